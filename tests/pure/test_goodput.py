"""Where the time of a job went: each part, what is an estimate, and that they add up to the wall time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.goodput import Ledger, total
from oellm_autoexp.core.model import Cursor, JobSpec, LogSignal, Resources, SchedulerRef
from oellm_autoexp.core.spans import Basis, Part

QUEUE, START_UP, PRODUCTIVE, ROLLED_BACK, HANG, DOWN = Part
COUNTER = {"monitoring": {"log_signals": {"it": {"pattern": "x", "counter": "it"}}}}
#: One step of a history: (seconds, what happens, details).
Step = Sequence[Any]


def pairs(spans: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(spans[at], spans[at + 1]) for at in range(len(spans) - 1)]


def spec(name: str = "a", gpus: int = 0) -> JobSpec:
    return JobSpec(
        name=name,
        id=name,
        index=0,
        parameters={},
        argv=("true",),
        output_dir="o",
        checkpoint_dir="c",
        script_path="s",
        script_digest="d",
        log_path="l.{attempt}",
        rules="r",
        resources=Resources(gpus=gpus),
    )


def events(steps: Sequence[Step], name: str = "a", gpus: int = 0) -> Iterator[ev.Event]:
    """A history in short: `submit`, `run`, `count`, `save`, `stall`, `end` MODE, `again`, verdicts, …"""
    number, counts, saves = 0, 0, 0
    yield ev.JobAdded(at=0, spec=spec(name, gpus))
    for at, what, *more in steps:
        about: dict[str, Any] = {"at": at, "job": name}
        now: dict[str, Any] = {**about, "attempt": number}
        if what == "submit":
            number += 1
            yield ev.SubmitRequested(at=at, token=f"{name}{number}", jobs=((name, number),))
        elif what == "accept":
            ref = SchedulerRef(id="1", cluster="x", token=f"{name}{number}")
            yield ev.SubmitAccepted(at=at, token=ref.token, refs=(ref,))
        elif what == "refuse":
            yield ev.SubmitRefused(at=at, token=f"{name}{number}", reason="full", permanent=False)
            number -= 1
        elif what == "run":
            yield ev.AttemptStarted(**now, started_at=more[0] if more else at)
        elif what == "count":
            counts += 1
            yield ev.ProgressMade(**now, counter="it", value=counts)
        elif what == "save":
            saves += 1
            yield ev.ProgressMade(**now, counter="checkpoints", value=saves)
        elif what == "saw":
            line = LogSignal(
                rule="s", file="log", generation=0, offset=at, line="x", fields={"kind": more[0]}
            )
            yield ev.SignalsFound(**now, file="log", cursor=Cursor(), signals=(line,))
        elif what == "requeue":
            yield ev.AttemptPending(**now, reason="BeginTime")
        elif what == "stall":
            yield ev.CancelRequested(**now, why="quiet", by="x", mode="stall", silent_s=more[0])
        elif what == "end":
            yield ev.AttemptEnded(
                **now, mode=more[0], reason="", evidence="", started_at=_start(steps, at), ended_at=at
            )
        elif what == "again":
            yield ev.RestartScheduled(**now, mode="crash", entry="crash", why="", not_before=at)
        elif what == "retry":
            yield ev.JobRetried(**about)
        elif what == "update":
            yield ev.JobUpdated(**about, spec=spec(name, more[0]), again=True)
        else:
            yield ev.JobEnded(**about, state=what, mode="", reason="")


def _start(steps: Sequence[Step], end: float) -> float | None:
    """When the attempt that ended at `end` began."""
    started = None
    for at, what, *more in steps:
        if what == "submit":
            started = None
        elif what == "run":
            started = more[0] if more else at
        if at >= end and what == "end":
            break
    return started


def ledger(steps: Sequence[Step], rules: dict[str, Any] | None = None, **more: Any) -> Ledger:
    out = Ledger()
    for event in (ev.RulesSet(at=0, rules="r", config=rules or {}), *events(steps, **more)):
        out.apply(event)
    return out


def parts(steps: Sequence[Step], now: float, rules: dict[str, Any] | None = None) -> dict[Part, float]:
    """Seconds of the parts that have any."""
    found = ledger(steps, rules).of("a", now)
    return {part: ms / 1000 for part, ms in found.ms.items() if ms}


SMOOTH: list[Step] = [
    (10, "submit"),
    (40, "run"),
    (60, "count"),
    (100, "save"),
    (200, "end", "success"),
    (203, "succeeded"),
]


def test_a_job_that_nothing_happens_to() -> None:
    """It queues, starts up, works; the wall ends with the attempt, not when that was noticed."""
    assert parts(SMOOTH, 1000) == {QUEUE: 30, START_UP: 20, PRODUCTIVE: 140}
    found = ledger(SMOOTH).of("a", 1000)
    assert (found.wall_ms, found.ettr, found.basis) == (190_000, 140 / 190, Basis.CHECKPOINTS)


def test_what_a_scheduler_requeues_waits_again() -> None:
    """Work of before it counts as far as it was saved; the same attempt starts once more."""
    steps: list[Step] = [*SMOOTH[:4], (120, "count"), (150, "requeue"), (180, "run"), (200, "count")]
    steps += [(260, "save"), (300, "end", "success"), (303, "succeeded")]
    found = parts(steps, 1000)
    assert found[QUEUE] == 30 + 30
    assert sum(found.values()) == 290
    # Of the first start 40 s were kept; what came after the checkpoint is done again.
    assert found[ROLLED_BACK] == 50 and found[PRODUCTIVE] > 40 + 100 - 20


def test_before_its_first_submission_a_job_has_no_wall_time() -> None:
    assert ledger([]).of("a", 99).ettr is None
    assert ledger([]).of("b", 99).wall_ms == 0
    assert parts([(5, "cancelled"), (6, "retry")], 99) == {}


def test_what_came_after_the_newest_checkpoint_is_rolled_back() -> None:
    """And the time that repeating it takes is no start-up of the next attempt."""
    crashed: list[Step] = [
        (0, "submit"),
        (0, "run"),
        (10, "count"),
        (100, "save"),
        (130, "count"),
        (135, "end", "crash"),
    ]
    again: list[Step] = [
        (135, "again"),
        (150, "submit"),
        (160, "run"),
        (205, "count"),
        (300, "end", "success"),
    ]
    found = {START_UP: 10 + 15, PRODUCTIVE: 90 + 30 + 95, ROLLED_BACK: 35, DOWN: 15, QUEUE: 10}
    assert parts([*crashed, *again], 999) == {**found, DOWN: 15 + 699}, "the verdict is still to come"
    assert parts([*crashed, *again, (300, "succeeded")], 999) == found


def test_the_step_to_the_first_new_mark_is_work_where_it_is_known_how_long_one_takes() -> None:
    """A counter is read every 60 s: what a start needed beside the lost work and that step is start-up."""
    steps: list[Step] = [(0, "submit"), (0, "run")]
    steps += [(at, "count") for at in range(90, 90 + 60 * 12, 60)]
    steps += [(800, "save"), (810, "end", "crash"), (810, "again"), (810, "submit"), (810, "run")]
    steps += [(900, "count"), (1000, "end", "success"), (1000, "succeeded")]
    assert parts(steps, 2000) == {START_UP: 30 + 30, PRODUCTIVE: 770 + 160, ROLLED_BACK: 10}


def test_what_an_attempt_without_a_checkpoint_did_is_lost() -> None:
    steps: list[Step] = [
        (0, "submit"),
        (0, "run"),
        (10, "save"),
        (20, "end", "timeout"),
        (20, "again"),
        (20, "submit"),
    ]
    steps += [(20, "run"), (25, "count"), (80, "end", "crash"), (80, "failed")]
    assert parts(steps, 999) == {START_UP: 10 + 5, ROLLED_BACK: 10 + 55}


def test_with_counters_alone_starting_up_and_repeating_are_told_apart_by_the_quickest_start() -> None:
    """Their sum is known; the split is an estimate."""
    steps: list[Step] = [
        (0, "submit"),
        (0, "run"),
        (10, "count"),
        (100, "count"),
        (104, "end", "crash"),
        (104, "again"),
    ]
    steps += [(104, "submit"), (104, "run"), (150, "count"), (200, "end", "success"), (200, "succeeded")]
    assert parts(steps, 999) == {START_UP: 10 + 10, PRODUCTIVE: 90 + 50, ROLLED_BACK: 4 + 36}
    assert ledger(steps).of("a", 999).basis is Basis.COUNTERS


def test_with_checkpoints_alone_the_time_between_two_is_no_start_up() -> None:
    """The first one ends an interval of work; an interval takes as long as the mean of those seen."""
    steps: list[Step] = [(0, "submit"), (0, "run"), *((at, "saw", "checkpoint") for at in (130, 230, 330))]
    steps += [(330, "saw", "other"), (330, "end", "success"), (330, "succeeded")]
    assert parts(steps, 999) == {START_UP: 30, PRODUCTIVE: 300}


@pytest.mark.parametrize(
    ("mode", "rules", "found"),
    [
        ("success", {}, {PRODUCTIVE: 60}),
        ("success", COUNTER, {PRODUCTIVE: 60}),
        ("crash", {}, {ROLLED_BACK: 60}),
        ("crash", COUNTER, {START_UP: 60}),
        ("", {}, {PRODUCTIVE: 60}),
        ("", COUNTER, {START_UP: 60}),
    ],
)
def test_where_nothing_is_reported(mode: str, rules: dict[str, Any], found: dict[Part, float]) -> None:
    """Success was productive; of the rest it matters whether progress would have been told."""
    steps: list[Step] = [(0, "submit"), (0, "run")]
    steps += [(60, "end", mode), (60, "succeeded")] if mode == "success" else []
    steps += [(60, "end", mode), (60, "failed")] if mode == "crash" else []
    assert parts(steps, 60, rules) == found


@pytest.mark.parametrize(
    ("signals", "declared"),
    [
        ({"a": {"pattern": "x", "counter": "n"}}, True),
        ([{"name": "a", "pattern": "x", "metadata": {"kind": "checkpoint"}}], True),
        ({"a": {"pattern_type": "report", "pattern": "checkpoint"}}, True),
        ({"a": {"pattern": "x", "metadata": {"kind": "other"}}}, False),
        (["x"], False),
        ({"a": {"metadata": "x"}}, False),
        (7, False),
        (None, False),
    ],
)
def test_whether_progress_is_declared_is_read_from_the_rules(signals: Any, declared: bool) -> None:
    """In both forms that a config may have; a plug-in's monitor may mean something else by it."""
    told = parts([(0, "submit"), (0, "run")], 60, {"monitoring": {"log_signals": signals}})
    assert told == {START_UP if declared else PRODUCTIVE: 60}


def test_a_hang_begins_with_the_silence_and_lasts_until_the_attempt_is_dead() -> None:
    steps: list[Step] = [
        (0, "submit"),
        (0, "run"),
        (10, "save"),
        (50, "save"),
        (55, "count"),
        (660, "stall", 600),
    ]
    assert parts(steps, 660) == {PRODUCTIVE: 60, HANG: 600}, (
        "10 s are within the time between two checkpoints"
    )
    steps += [(690, "end", "stall"), (690, "failed")]
    told = parts(steps, 999)
    assert (told[HANG], told[ROLLED_BACK]) == (630, 10)


def test_a_stall_that_a_signal_named_begins_with_the_last_progress() -> None:
    steps: list[Step] = [
        (0, "submit"),
        (0, "run"),
        (10, "count"),
        (50, "count"),
        (90, "stall", 0),
        (95, "end", "stall"),
    ]
    assert parts([*steps, (95, "failed")], 999)[HANG] == 45


def test_an_attempt_that_succeeds_despite_its_cancel_did_not_hang() -> None:
    steps: list[Step] = [(0, "submit"), (0, "run"), (10, "count"), (90, "stall", 60), (95, "end", "success")]
    assert parts([*steps, (95, "succeeded")], 999) == {START_UP: 10, PRODUCTIVE: 85}


def test_a_failed_job_is_down_until_somebody_starts_it_again_a_cancelled_one_was_not_wanted() -> None:
    """A failure that nobody looks at costs; what a person ended or had finished does not."""
    ended: list[Step] = [(0, "submit"), (0, "run"), (50, "end", "crash")]
    more: list[Step] = [
        (150, "retry"),
        (160, "submit"),
        (160, "run"),
        (200, "end", "success"),
        (200, "succeeded"),
    ]
    assert parts([*ended, (50, "failed"), *more], 999) == {ROLLED_BACK: 50, DOWN: 110, PRODUCTIVE: 40}
    assert parts([*ended, (50, "cancelled"), *more], 999) == {ROLLED_BACK: 50, DOWN: 10, PRODUCTIVE: 40}
    updated = [(150, "update", 0), *more[1:]]
    assert parts([*ended, (50, "succeeded"), *updated], 999)[DOWN] == 10


def test_a_job_that_is_cancelled_between_two_attempts_was_wanted_until_then() -> None:
    steps: list[Step] = [(0, "submit"), (0, "run"), (50, "end", "crash"), (50, "again"), (80, "cancelled")]
    assert parts(steps, 999) == {ROLLED_BACK: 50, DOWN: 30}


def test_a_refused_submission_queued_until_it_was_refused() -> None:
    steps: list[Step] = [
        (0, "submit"),
        (3, "refuse"),
        (33, "submit"),
        (34, "accept"),
        (40, "run"),
        (50, "end", "success"),
    ]
    assert parts([*steps, (50, "succeeded")], 999) == {QUEUE: 3 + 7, DOWN: 30, PRODUCTIVE: 10}


def test_an_attempt_that_never_ran_only_queued() -> None:
    assert parts([(0, "submit"), (9, "end", "cancelled"), (9, "cancelled")], 999) == {QUEUE: 9}


def test_clocks_that_disagree_leave_no_gap_and_no_overlap() -> None:
    """A node's clock may be ahead of ours: what it says was later is cut."""
    steps: list[Step] = [
        (0, "submit"),
        (20, "run", -5),
        (30, "count"),
        (100, "end", "crash"),
        (90, "again"),
        (95, "submit"),
    ]
    found = ledger([*steps, (99, "run", 99)]).spans("a", 120)
    assert all(one.end_ms == two.begin_ms for one, two in pairs(found))
    assert (found[0].begin_ms, found[-1].end_ms) == (0, 120_000)


def test_gpu_hours_count_what_each_attempt_asked_for() -> None:
    """Queue and down are weighed too, but use up nothing."""
    found = ledger(SMOOTH, gpus=4).of("a", 1000)
    assert found.gpu_ms == {part: 4 * ms for part, ms in found.ms.items()}
    assert found.held_gpu_ms == 4 * 160_000
    steps: list[Step] = [*SMOOTH, (300, "update", 8), (300, "submit"), (310, "run"), (320, "end", "success")]
    grown = ledger([*steps, (320, "succeeded")], gpus=4).of("a", 1000)
    assert grown.held_gpu_ms == 4 * 160_000 + 8 * 10_000
    assert grown.gpu_ettr is not None and found.gpu_ettr == found.ettr


def test_the_sum_over_jobs_is_the_sum_of_each_part() -> None:
    one, two = ledger(SMOOTH).of("a", 999), ledger([(0, "submit"), (0, "run")]).of("a", 60)
    both = total([one, two, ledger([]).of("a", 60)])
    assert both.wall_ms == one.wall_ms + two.wall_ms
    assert both.ms[PRODUCTIVE] == 200_000 and both.basis is Basis.NOTHING
    assert total([]).ettr is None and total([]).gpu_ettr is None


# ---------------------------------------------------------------- whatever happens

_WHATS = ["submit", "refuse", "run", "count", "save", "saw", "stall", "end", "again", "retry", "update"]
_WHATS += ["accept", "succeeded", "failed", "cancelled"]
_MORE: dict[str, st.SearchStrategy[Any]] = {
    "saw": st.sampled_from(["checkpoint", "x"]),
    "stall": st.sampled_from([0.0, 1.5, 600.0]),
    "end": st.sampled_from(["success", "crash", "stall", "timeout", "preempted"]),
    "update": st.integers(0, 8),
}


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Steps in any order, also such as never happen, at times that mostly but not always go forward."""
    at, out = draw(st.floats(0, 1e9)), []
    for what in draw(st.lists(st.sampled_from(_WHATS), max_size=30)):
        at = max(0.0, at + draw(st.floats(-2, 1000)))
        out.append((at, what, draw(_MORE[what])) if what in _MORE else (at, what))
    return out


@settings(max_examples=200, deadline=None)
@given(histories(), st.sampled_from([{}, COUNTER]), st.floats(0, 2e9))
def test_the_parts_add_up_to_the_wall_time_exactly(steps: list[Step], rules: Any, now: float) -> None:
    """Whatever happened: spans follow each other, nothing is counted twice, nothing is left out."""
    known = ledger(steps, rules, gpus=2)
    spans, found = known.spans("a", now), known.of("a", now)
    gaps = sum(two.begin_ms - one.end_ms for one, two in pairs(spans))
    assert all(span.begin_ms < span.end_ms for span in spans)
    assert all(one.end_ms <= two.begin_ms for one, two in pairs(spans))
    wanted = {what for _, what, *_ in steps} & {"succeeded", "cancelled"}
    assert not gaps or wanted, "a gap is a time in which the job was not wanted"
    wall = spans[-1].end_ms - spans[0].begin_ms - gaps if spans else 0
    assert sum(found.ms.values()) == found.wall_ms == wall
    assert sum(found.gpu_ms.values()) >= 0 and min(found.ms.values()) >= 0
    assert found.ettr is None or 0 <= found.ettr <= 1


@settings(max_examples=100, deadline=None)
@given(histories(), st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_wall_time_only_grows(steps: list[Step], one: float, two: float) -> None:
    """Looking later never shows less time."""
    known = ledger(steps)
    early, late = sorted([one, two])
    assert known.of("a", early).wall_ms <= known.of("a", late).wall_ms


@settings(max_examples=100, deadline=None)
@given(st.lists(histories(), max_size=3))
def test_jobs_do_not_touch_each_other(several: list[list[Step]]) -> None:
    """The accounts of jobs in one journal are those that each would have alone."""
    together = Ledger()
    for number, steps in enumerate(several):
        for event in events(steps, name=str(number)):
            together.apply(event)
    for number, steps in enumerate(several):
        alone = ledger(steps, name=str(number))
        assert together.of(str(number), 2e9) == alone.of(str(number), 2e9)


def test_a_session_of_the_loop_itself(tmp_path: Any) -> None:
    """What the real loop journals over a simulated scheduler: a stall, a crash, a success."""
    from world import FOREVER, Stage, World

    scripts: dict[int, Any] = {
        1: [(20, "step 1"), (40, "Saved"), (60, "step 2")],
        2: [(10, "step 3"), (30, "Saved"), (50, "step 4"), (55, 1)],
        3: [(10, "step 5"), (90, 0)],
    }
    signals = {
        "step": {"pattern": r"step (?P<step>\d+)", "counter": "step"},
        "saved": {"pattern": "Saved", "metadata": {"kind": "checkpoint"}},
    }
    watch = {"class_name": "SlurmLogMonitor", "inactivity_threshold_seconds": 300, "startup_grace_seconds": 1}
    rules = {
        "monitoring": {**watch, "log_signals": signals},
        "restart_policies": {},
        "actions": {},
        "job": {},
    }
    world = World(lambda _name, attempt: scripts[attempt] or FOREVER)
    stage = Stage(tmp_path, world, rules, ["a"])
    loop = stage.submit()
    stage.run(loop, ticks=5000)
    loop.close()
    known = Ledger()
    for event in stage.events:
        known.apply(event)
    found = known.of("a", world.now)
    told = {part: ms / 1000 for part, ms in found.ms.items()}
    assert found.basis is Basis.CHECKPOINTS
    assert told[HANG] == pytest.approx(300, abs=10)
    assert told[ROLLED_BACK] == pytest.approx(20 + 25, abs=12)
    assert told[START_UP] == pytest.approx(20 + 10 + 10, abs=40)
    assert told[PRODUCTIVE] > 100
