"""Quick classes behave as the frozen dataclasses that they are."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Attempt, Cursor, Job, LogSignal, SchedulerRef
from oellm_autoexp.core.quick import quick, replace

CLASSES = [Attempt, Cursor, Job, LogSignal, SchedulerRef, *ev.KINDS.values()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    number: int
    name: str = "x"
    things: dict[str, int] = dataclasses.field(default_factory=dict)


@quick
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    number: int
    name: str = "x"
    things: dict[str, int] = dataclasses.field(default_factory=dict)


VALUES = st.fixed_dictionaries(
    {"number": st.integers()},
    optional={"name": st.text(), "things": st.dictionaries(st.text(), st.integers())},
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(VALUES, VALUES)
def test_making_and_replacing_are_what_dataclasses_do(first: dict[str, Any], second: dict[str, Any]) -> None:
    """The same fields, whatever is given, left out or replaced."""
    plain, made = Plain(**first), Quick(**first)
    assert dataclasses.asdict(made) == dataclasses.asdict(plain)
    changed = replace(made, **second)
    assert dataclasses.asdict(changed) == dataclasses.asdict(dataclasses.replace(plain, **second))
    assert changed == dataclasses.replace(made, **second)
    assert dataclasses.asdict(made) == dataclasses.asdict(plain)


def test_it_stays_frozen_and_strict() -> None:
    """No field can be set, none left out or invented; each instance has its own default mapping."""
    made = Quick(number=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.number = 2  # type: ignore[misc]
    assert made.things is not Quick(number=1).things
    with pytest.raises(TypeError, match="number"):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Quick(number=1, other=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field 'other'"):
        replace(made, other=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not a quick class"):
        replace(Plain(number=1))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_can_be_named(cls: type) -> None:
    """The signature is the fields, by keyword, required where they have no default."""
    parameters = inspect.signature(cls).parameters
    assert list(parameters) == [item.name for item in dataclasses.fields(cls)]
    for item in dataclasses.fields(cls):
        required = item.default is item.default_factory is dataclasses.MISSING
        assert (parameters[item.name].default is inspect.Parameter.empty) == required
        assert parameters[item.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert not hasattr(cls, "__post_init__")
