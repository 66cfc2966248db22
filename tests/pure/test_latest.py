"""Results that are used again, and what must not be: another object, another point, another job."""

from __future__ import annotations

import hashlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.config.tree import Tree
from oellm_autoexp.core.latest import Latest
from oellm_autoexp.planning.identity import RECIPE, canonical, job_id

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(max_size=5), plain, max_size=4)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_a_result_is_used_again_only_for_the_same_object(order: list[int]) -> None:
    """Equal objects are not the same object: whoever made another one gets a fresh result."""
    objects = [[1], [1], [2], [3]]
    calls: list[Any] = []
    latest = Latest(lambda value: calls.append(value) or list(value))
    assert [latest(objects[number]) for number in order] == [objects[number] for number in order]
    changes = sum(1 for before, now in zip([None, *order], order, strict=False) if before != now)
    assert len(calls) == changes


def test_a_call_that_failed_leaves_the_last_result() -> None:
    """An error is not kept, and neither is what it failed on."""
    latest = Latest(lambda text: int(text))
    good, bad = "7", "seven"
    assert latest(good) == 7
    for _ in range(2):
        try:
            latest(bad)
        except ValueError:
            continue
        raise AssertionError("the failure was kept as a result")
    assert latest(good) == 7


@given(mappings, plain, mappings)
def test_an_id_is_the_hash_of_one_canonical_text(parameters: Any, backend: Any, environment: Any) -> None:
    """However its parts are put together: the recipe of ids never changes silently."""
    whole = canonical([RECIPE, parameters, backend, environment])
    expected = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    assert job_id(parameters, backend, environment) == expected


@given(
    st.lists(
        st.sampled_from(
            ["${lr}", "${job.name}", "${t.0}", "${t.1}-${t.2}", "${t.3}/${job.attempt}", "c", "${m}", "${t}"]
        ),
        min_size=4,
        max_size=4,
    ),
    st.integers(0, 9),
)
def test_a_point_with_another_job_is_what_it_is_from_scratch(texts: list[str], lr: int) -> None:
    """Only what depends on the job is computed again, whatever refers to what."""
    raw = {"t": texts, "m": {"job": "${job.name}", "lr": "${lr}", "both": "${t}"}, "n": {"lr": "${lr}"}}
    try:
        tree = Tree(raw, ["lr"])
        first = tree.at({"lr": lr}, {"name": "x", "attempt": 1})
        before = first.config()
    except Exception:  # noqa: BLE001 - circles are refused, which is tested elsewhere
        return
    job = {"name": "y", "attempt": 2}
    again = first.with_job(job).config()
    assert again == tree.point({"lr": lr}, job)
    assert before == tree.point({"lr": lr}, {"name": "x", "attempt": 1})
    assert again["n"] is before["n"]
