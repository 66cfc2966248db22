"""Every record of the journal survives its form on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.events import KINDS, decode, encode
from oellm_autoexp.core.model import Cursor, LogSignal, Scalar

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
configs = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mappings(hint: Any) -> st.SearchStrategy[Any]:
    """What may stand in a mapping of the journal."""
    _, value = get_args(hint)
    values = configs if value is Any else scalars if value == Scalar else st.from_type(value)
    return st.dictionaries(st.text(max_size=4), values, max_size=3)


st.register_type_strategy(Mapping, mappings)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_an_event_comes_back_as_it_was(kind, data):
    """Encode, write as JSON, read, decode: equal, whatever the fields hold (NaN too)."""
    event = data.draw(st.from_type(KINDS[kind]))
    body = json.loads(json.dumps(encode(event)))
    back = decode(kind, event.at, body)
    assert back == event or repr(back) == repr(event)


def test_defaults_take_no_room():
    """A long journal is mostly defaults."""
    cursor, signal = Cursor(), LogSignal(rule="r", file="log", generation=0, offset=5, line="x")
    event = KINDS["signals_found"](at=1.0, job="j", attempt=1, file="log", cursor=cursor, signals=(signal,))
    body = encode(event)
    assert body["cursor"] == {}
    assert "mode" not in body["signals"][0]


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("no_such_kind", {}, KeyError),
        ("job_held", {"job": "j"}, TypeError),
        ("job_held", {"job": "j", "why": "", "extra": 1}, TypeError),
        ("submit_requested", {"token": "t", "jobs": [["a", 1, 2]]}, ValueError),
        ("signals_found", {"job": "j", "attempt": 1, "file": "log", "cursor": {"no": 1}}, TypeError),
    ],
)
def test_what_does_not_fit_a_kind_is_refused(kind, body, error):
    """A record is never understood by half."""
    with pytest.raises(error):
        decode(kind, 1.0, body)
