"""What values of parameters have to do with how jobs end: counts that add up, and findings that are true."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.core.analysis import Case, Finding, Kind, analysis, chance
from oellm_autoexp.services.analysis import sentence


def case(end: str = "succeeded", *, modes: tuple[str, ...] = (), run_s: float = 60.0, **keys: Any) -> Case:
    ended = {end: True} if end else {}
    return Case(
        parameters={key: str(value) for key, value in keys.items()},
        begun=True,
        modes=frozenset(modes),
        run_s=run_s,
        **ended,  # type: ignore[arg-type]
    )


def sweep(bad: str = "0.1") -> list[Case]:
    """Four learning rates and four seeds; one rate diverges."""
    return [
        case(
            "failed" if lr == bad else "succeeded",
            modes=("crash.nan",) if lr == bad else (),
            lr=lr,
            seed=seed,
        )
        for lr in ("0.1", "0.01", "0.001", "0.0001")
        for seed in range(4)
    ]


def test_what_differs_notably_from_the_rest_comes_first() -> None:
    """Once: that the other values are better is the same thing, and no seed is to blame."""
    found = analysis(sweep())
    assert [sentence(finding) for finding in found.findings] == ["lr=0.1: 4 of 4 crash.nan, others 0 of 12"]
    first = found.rows[0]
    assert (first.key, first.value, first.finding) == ("lr", "0.1", found.findings[0])
    assert first.modes == {"crash.nan": 4} and first.rate(first.failed) == 1.0
    assert found.keys == ["lr", "seed"] and len(found.rows) == 8 and found.below_support == 0


def test_values_of_too_few_jobs_are_left_out_and_counted() -> None:
    found = analysis(sweep(), min_support=5)
    assert found.rows == [] and found.below_support == 8
    assert len(analysis(sweep(), min_support=4, by=["seed"]).rows) == 4


def test_a_mode_that_restarts_have_mended_is_found_too() -> None:
    """All jobs succeed in the end, those with large batches after running out of memory."""
    cases = [
        case(modes=("crash.oom",) if batch == 64 else (), batch=batch, seed=seed)
        for batch in (16, 32, 64)
        for seed in range(4)
    ]
    assert [sentence(f) for f in analysis(cases).findings] == ["batch=64: 4 of 4 crash.oom, others 0 of 8"]


def test_run_times_that_lie_apart_are_told() -> None:
    cases = [
        case(run_s=(7200 if size == "l" else 2400) + seed, size=size, seed=seed)
        for size in "sml"
        for seed in range(4)
    ]
    found = analysis(cases).findings
    assert [sentence(finding) for finding in found] == ["size=l: median run time 02:00:01, others 00:40:01"]
    near = [
        case(run_s=100 + seed + (1 if size == "l" else 0), size=size, seed=seed)
        for size in "sl"
        for seed in range(4)
    ]
    assert analysis(near).findings == []


def test_jobs_without_a_verdict_count_as_what_they_are() -> None:
    cases = [*sweep(), case("running", lr="0.1", seed=9), case("", lr="0.1", seed=10)]
    row = next(row for row in analysis(cases).rows if row.value == "0.1")
    assert (row.jobs, row.running, row.failed, row.ended) == (6, 1, 4, 4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["succeeded", "failed", "cancelled", "running", ""]),
            st.sampled_from(["a", "b", "c", "d<|"]),
            st.sampled_from([0, 1, None]),
            st.sampled_from([(), ("crash",), ("crash.oom", "stall")]),
            st.floats(0, 1e6),
        ),
        max_size=30,
    ),
    st.integers(1, 4),
)
def test_counts_add_up(made: list[tuple[str, str, int | None, tuple[str, ...], float]], support: int) -> None:
    """Each job is once among the values of each parameter, unless its value is left out."""
    cases = [
        case(end, modes=modes, run_s=run_s, x=x, **({} if y is None else {"y": y}))
        for end, x, y, modes, run_s in made
    ]
    whole = analysis(cases, min_support=1)
    for key in whole.keys:
        rows = [row for row in whole.rows if row.key == key]
        assert sum(row.jobs for row in rows) == len(cases)
        for name in ("succeeded", "failed", "cancelled", "running"):
            assert sum(getattr(row, name) for row in rows) == sum(getattr(each, name) for each in cases)
        assert sum(row.hours for row in rows) == pytest.approx(sum(each.run_s for each in cases) / 3600)
        for row in rows:
            assert row.ended <= row.jobs and all(count <= row.jobs for count in row.modes.values())
    some = analysis(cases, min_support=support)
    assert len(some.rows) + some.below_support == len(whole.rows)
    assert [row.finding for row in some.rows if row.finding] == list(some.findings)
    for finding in some.findings:
        assert finding.kind is Kind.RUN_TIME or true_of(finding, cases)


def true_of(finding: Finding, cases: list[Case]) -> bool:
    def counted(mine: list[Case]) -> tuple[int, int]:
        if finding.kind is Kind.FAILED:
            mine = [each for each in mine if each.ended]
            return sum(each.failed for each in mine), len(mine)
        return sum(finding.mode in each.modes for each in mine), len(mine)

    here = [each for each in cases if each.parameters.get(finding.key) == finding.value]
    there = [each for each in cases if each.parameters.get(finding.key) != finding.value]
    told = (finding.have, finding.of), (finding.others_have, finding.others_of)
    return told == (counted(here), counted(there))


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_chance_is_the_share_of_all_ways_to_deal(of: int, others_of: int, data: st.DataObject) -> None:
    """Counted by dealing in every way."""
    have, others = data.draw(st.integers(0, of)), data.draw(st.integers(0, others_of))
    ways = [sum(n < of for n in dealt) for dealt in combinations(range(of + others_of), have + others)]
    more = have * others_of >= others * of
    as_large = [count for count in ways if (count >= have if more else count <= have)]
    assert chance(have, of, others, others_of) == pytest.approx(len(as_large) / len(ways))
