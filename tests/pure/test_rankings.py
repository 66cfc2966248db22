"""Which points won: readings of series against a plain reading of their lines, rankings against an oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.metrics import (
    Better,
    Curve,
    Points,
    Reading,
    Statistic,
    better_by_name,
    mean_and_deviation,
)
from oellm_autoexp.core.ranking import Entrant, averaged_over, grouped, ranked, varied
from oellm_autoexp.store import readings
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.readings import metric_names, read_curve
from oellm_autoexp.store.series import Series

#: Names that look like other parts of a line.
NAMES = ["loss", 'a"loss', "é,", "{loss", 'x":1,"loss', "eval loss", "\\", "[loss]"]
VALUES = st.one_of(
    st.floats(),
    st.integers(-(10**20), 10**20),
    st.booleans(),
    st.sampled_from(["1.5", '","loss":7,"', "nan", "}", "\n", '{"loss":3}']),
)
RECORDS = st.lists(
    st.dictionaries(st.sampled_from([*NAMES, "step", "epoch"]), VALUES, max_size=4), max_size=12
)


def write(path: Path, records: list[dict[str, Any]], attempts: int = 1) -> list[dict[str, Any]]:
    """Records as the program writes them, and what they are on disk; attempts change in equal parts."""
    series, out = Series(Effects(), interval_s=0.0), []
    for at, record in enumerate(records):
        attempt = 1 + at * attempts // max(1, len(records))
        series.add(path, attempt, [record], 1000.0 + at)
        out.append({**record, "t": 1000.0 + at, "attempt": attempt})
    return out


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


@given(records=RECORDS, block=st.integers(1, 400), since=st.integers(0, 3), name=st.sampled_from(NAMES))
@settings(max_examples=150, deadline=None)
def test_a_curve_is_what_a_plain_reading_of_all_lines_gives(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], block: int, since: int, name: str
) -> None:
    """Whatever names and texts stand in the lines, and wherever the file is cut into blocks."""
    path = tmp_path_factory.mktemp("series") / "job.jsonl"
    told = [row for row in write(path, records, attempts=3) if row["attempt"] >= since]
    with pytest.MonkeyPatch.context() as patch:
        # A record is never longer than a block.
        patch.setattr(readings, "BLOCK", 400 + block)
        curve = read_curve(path, name, since=since, points=3)
        names = metric_names(path, since=since)
    assert names == {key for row in told for key, value in row.items() if is_number(value)} - {"t", "attempt"}
    rows = [row for row in told if is_number(row.get(name))]
    if not rows:
        assert curve is None
        return
    assert curve is not None
    values = [float(row[name]) for row in rows]
    finite = [value for value in values if math.isfinite(value)]
    assert (curve.count, curve.not_finite) == (len(values), len(values) - len(finite))
    assert same(curve.last.value, values[-1]) and curve.last.at == rows[-1]["t"]
    assert curve.begin == told[0]["t"] and len(curve.points.values) <= 2 * 3 + 1
    assert same(curve.points.values[-1], values[-1])
    for reading, extreme in ((curve.low, min), (curve.high, max)):
        assert (reading is None) == (not finite)
        if reading is not None:
            row = rows[values.index(extreme(finite))]
            assert (reading.value, reading.at, reading.attempt) == (
                extreme(finite),
                row["t"],
                row["attempt"],
            )
            own = [row[key] for key in ("step", "epoch") if is_number(row.get(key))]
            own = [float(step) for step in own if math.isfinite(step)]
            assert not own or reading.step == own[0]
    if finite and max(map(abs, finite)) < 1e300:
        assert curve.mean == pytest.approx(
            math.fsum(finite) / len(finite), abs=1e-9 * max(map(abs, finite)), rel=1e-9
        )
    assert same(curve.of(Statistic.MIN).value, min(finite, default=math.nan))


def test_a_record_without_a_step_has_the_one_that_was_told_before(tmp_path: Path) -> None:
    """Also where that is in another block; a step that is asked for by name is the only one."""
    path = tmp_path / "job.jsonl"
    write(path, [{"step": 10, "loss": 3}, {"eval": 0.5}, {"step": 20, "tokens": 7, "loss": 2}, {"eval": 0.7}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "BLOCK", 70)
        curve, by_tokens = read_curve(path, "eval"), read_curve(path, "eval", steps=("tokens",))
    assert curve is not None and curve.low is not None and by_tokens is not None
    assert (curve.low.step, curve.last.step) == (10, 20)
    assert by_tokens.last.step == 7 and by_tokens.low is not None and by_tokens.low.step is None


@given(cut=st.integers(0, 300), junk=st.binary(max_size=30))
@settings(max_examples=60, deadline=None)
def test_torn_lines_bring_no_value_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    """A number that was cut short is no number; what comes after is read."""
    path = tmp_path_factory.mktemp("series") / "job.jsonl"
    values = [123.456, 789.125, 654.375, 111.625]
    write(path, [{"loss": value} for value in values])
    path.write_bytes(path.read_bytes()[:cut] + junk)
    curve = read_curve(path, "loss")
    if curve is not None and b"loss" not in junk:
        assert {curve.last.value, *(x.value for x in (curve.low, curve.high) if x)} <= set(values)
    metric_names(path)
    # The next record may end a torn line; the one behind it stands for itself.
    write(path, [{"loss": 0.5}, {"loss": 0.25}])
    curve = read_curve(path, "loss")
    assert curve is not None and curve.last.value == 0.25


def test_names_that_a_torn_line_has_made_up_are_no_metrics(tmp_path: Path) -> None:
    path = tmp_path / "job.jsonl"
    path.write_bytes(b'{"\xff":1,"lo\tss":2,"acc":3}\n{"loss":4}\n')
    assert metric_names(path) == {"acc", "loss"}


def test_a_series_that_is_not_there_has_no_metrics(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "none", "loss") is None and metric_names(tmp_path / "none") == set()


def test_what_was_rolled_back_is_not_drawn() -> None:
    """Where a later attempt repeats steps, what it says of them counts."""
    points = Points(most=9)
    for step, value in ((0, 5.0), (10, 4.0), (20, 3.5), (10, 4.1), (15, math.nan), (20, 3.2)):
        points.add(Reading(value=value, step=step, at=float(step)))
    curve = Curve(
        last=Reading(value=3.2),
        low=None,
        high=None,
        mean=None,
        count=6,
        not_finite=1,
        begin=0.0,
        points=points,
    )
    assert curve.path(by_step=True) == [(0, 5.0), (10, 4.1), (20, 3.2)]
    assert len(curve.path(by_step=False)) == 5


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", Better.LOW),
        ("valloss", Better.LOW),
        ("eval/lm_loss", Better.LOW),
        ("trainLoss", Better.LOW),
        ("PPL", Better.LOW),
        ("error_rate", Better.LOW),
        ("step_time", Better.LOW),
        ("ms_per_token", Better.LOW),
        ("accuracy", Better.HIGH),
        ("acc1", Better.HIGH),
        ("top5_acc", Better.HIGH),
        ("F1", Better.HIGH),
        ("recall@5", Better.HIGH),
        ("rewards/mean", Better.HIGH),
        ("tokens_per_s", Better.HIGH),
        ("grad_norm", None),
        ("lr", None),
        ("score_error", None),
        ("per", None),
        ("", None),
        ("è|", None),
    ],
)
def test_names_say_what_is_better_where_people_agree_on_it(name: str, better: Better | None) -> None:
    assert better_by_name(name) == better


# ---------------------------------------------------------------- rankings

PLAIN = st.one_of(st.none(), st.floats(), st.integers(-3, 3).map(float))


def entrants(values: list[tuple[float | None, str, str]]) -> list[Entrant]:
    out = []
    for index, (value, lr, seed) in enumerate(values):
        reading = Reading(value=value if value is not None else 0.0)
        good = reading if math.isfinite(reading.value) else None
        curve = Curve(last=reading, low=good, high=good, mean=None, count=1, not_finite=int(good is None))
        parameters = {"lr": lr, "seed": seed} if seed else {"lr": lr}
        out.append(
            Entrant(
                job=f"j{index}",
                index=index,
                state="succeeded",
                parameters=parameters,
                curve=None if value is None else curve,
            )
        )
    return out


@given(
    values=st.lists(st.tuples(PLAIN, st.sampled_from("abc"), st.sampled_from(["", "0", "1"])), max_size=14),
    better=st.sampled_from(Better),
    statistic=st.sampled_from([Statistic.MIN, Statistic.MAX, Statistic.LAST]),
    by=st.sampled_from([("lr",), ("seed",), ("lr", "seed")]),
)
def test_the_winner_is_the_extreme_and_nobody_is_lost(
    values: list[tuple[float | None, str, str]], better: Better, statistic: Statistic, by: tuple[str, ...]
) -> None:
    """What is no finite number never wins; groups have every job once, figures are those of the jobs."""
    jobs = entrants(values)
    places, without = ranked(reversed(jobs), statistic, better)
    finite = [value for value, *_ in values if value is not None and math.isfinite(value)]
    assert len(places) + len(without) == len(jobs)
    assert [place.rank for place in places][: len(finite)] == list(range(1, len(finite) + 1))
    assert all(place.rank is None for place in places[len(finite) :])
    assert [place.value for place in places[: len(finite)]] == sorted(finite, reverse=better is Better.HIGH)
    groups = grouped(places, without, by, better)
    assert sum(group.jobs for group in groups) == len(jobs)
    assert len({group.values for group in groups}) == len(groups)
    ranks = [group.rank for group in groups if group.rank is not None]
    assert ranks == list(range(1, len(ranks) + 1))
    means = [group.mean for group in groups if group.mean is not None]
    assert means == sorted(means, reverse=better is Better.HIGH)
    for group in groups:
        mine = [job for job in jobs if tuple(job.parameters.get(key) for key in by) == group.values]
        assert len(mine) == group.jobs and sum(job.curve is None for job in mine) == group.without
        good = [place.value for place in group.places if place.rank is not None]
        assert len(good) + group.not_finite + group.without == group.jobs
        if good:
            best = min(good) if better is Better.LOW else max(good)
            assert group.best is not None and group.best.value == best
            assert group.mean == pytest.approx(mean_and_deviation(good)[0])
        else:
            assert group.best is None and group.rank is None


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=8))
def test_mean_and_deviation_overflow_nowhere(values: list[float]) -> None:
    mean, deviation = mean_and_deviation(values)
    assert mean is not None and (deviation is None) == (len(values) == 1)
    size = max(map(abs, values))
    assert min(values) - size * 1e-9 <= mean <= max(values) + size * 1e-9


def test_what_is_averaged_over_are_the_other_keys_that_differ() -> None:
    jobs = entrants([(1.0, "a", "0"), (2.0, "a", "1"), (3.0, "b", "0")])
    places, without = ranked(jobs, Statistic.MIN, Better.LOW)
    assert varied(job.parameters for job in jobs) == ["lr", "seed"]
    assert averaged_over(grouped(places, without, ("lr",), Better.LOW), ("lr",)) == ["seed"]
    assert averaged_over(grouped(places, without, ("lr", "seed"), Better.LOW), ("lr", "seed")) == []
