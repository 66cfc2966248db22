"""What waits, how often is looked, and what is concluded when nobody knows; on a clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from world import FOREVER, Script, SimConfig, Stage, World

from oellm_autoexp.config.sockets import Capabilities
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import JobState, Resources
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects

STOP = {"restart_policies": {"crash": {"class_name": "NoRestartPolicy"}}}


def stage(
    tmp_path: Path, script: Script, jobs: str = "a", rules: Mapping[str, Any] | None = None, **changes: Any
) -> Stage:
    return Stage(tmp_path, World(lambda _name, _attempt: script), rules or STOP, tuple(jobs), **changes)


def states(made: Stage) -> dict[str, str]:
    return {name: job.state.value for name, job in made.replayed().jobs.items()}


# ---------------------------------------------------------------- held back


def test_submissions_keep_their_distance(tmp_path: Path) -> None:
    """`submit_rate_limit_seconds` holds for the session, and nobody is forgotten."""
    made = stage(tmp_path, ((1.0, 0),), "abcd", config=SimConfig(submit_rate_limit_seconds=3.0))
    made.run(made.submit())
    starts = [process.started_at for process in made.world.processes]
    assert all(later - earlier >= 3.0 for earlier, later in pairwise(starts))
    assert states(made) == dict.fromkeys("abcd", "succeeded")


def test_early_deaths_of_one_cause_hold_the_rest_until_a_person_says_so(tmp_path: Path) -> None:
    """The session ends with the rest waiting and says why; `retry` lets it go on."""
    dying: Script = ((0.5, "ImportError: no module named torch"), (0.6, 1))
    made = stage(tmp_path, dying, "abcdef", config=SimConfig(max_jobs=1, breaker=3))
    loop = made.submit()
    made.run(loop)
    assert states(made) == {**dict.fromkeys("abc", "failed"), **dict.fromkeys("def", "waiting")}
    assert loop.session.jobs["d"].hold.startswith("breaker: 3 jobs died early of `crash: ")
    made.world.script_of = lambda _name, _attempt: ((1.0, 0),)
    inbox.drop(made.paths, Effects(), "retry", {"jobs": ["a", "b", "c"]}, now=made.world.now)
    made.run(loop)
    assert states(made) == dict.fromkeys("abcdef", "succeeded")


def test_deaths_of_different_causes_hold_nobody(tmp_path: Path) -> None:
    """Nor do those of jobs that got somewhere first."""
    causes = {name: f"ValueError: odd {'x' * number}" for number, name in enumerate("abcd")}
    world = World(lambda name, _attempt: ((0.5, causes[name]), (0.6, 1)))
    made = Stage(tmp_path, world, STOP, tuple("abcd"), config=SimConfig(max_jobs=1))
    made.run(made.submit())
    assert states(made) == dict.fromkeys("abcd", "failed")


# ---------------------------------------------------------------- how often is looked


def test_the_number_of_questions_does_not_grow_with_the_jobs(tmp_path: Path) -> None:
    """One for all of them, each interval."""
    calls = []
    for jobs in ("a", "abcdefghij"):
        made = stage(tmp_path / jobs, ((20.0, 0),), jobs, capabilities=Capabilities(max_array_size=100))
        made.run(made.submit())
        calls.append(dict(made.world.calls))
    assert calls[0] == calls[1]
    assert calls[0]["submit"] == 1
    assert calls[0]["poll"] <= 3


@pytest.mark.parametrize(("key", "asked"), [(None, 30.0), (2.0, 2.0), (7.0, 7.0)])
def test_the_scheduler_is_asked_as_often_as_the_config_says(
    tmp_path: Path, key: float | None, asked: float
) -> None:
    """`poll_interval_seconds`, or the scheduler's own interval."""
    rules = {"monitoring": {"class_name": "SlurmLogMonitor", "poll_interval_seconds": key}}
    made = stage(tmp_path, ((100.0, 0),), rules=rules, capabilities=Capabilities())
    times: list[float] = []
    loop = made.submit()

    def look() -> None:
        if made.world.calls["poll"] > len(times):
            times.append(made.world.now)

    made.run(loop, on_tick=look)
    gaps = {round(later - earlier, 2) for earlier, later in pairwise(times[1:])}
    assert all(asked <= gap <= asked + 0.25 for gap in gaps)


@pytest.mark.parametrize(("key", "most"), [(None, 5.25), (1.0, 1.25), (12.0, 12.25)])
def test_logs_are_read_as_often_as_the_config_says(tmp_path: Path, key: float | None, most: float) -> None:
    """`check_interval_seconds`; without it every five seconds, or with each answer of a faster scheduler."""
    rules = {
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "check_interval_seconds": key,
            "log_signals": {"seen": {"pattern": "hello", "action": "note"}},
        },
        "actions": {"note": {"class_name": "AppendAction", "path": f"{tmp_path}/notes", "text": "x"}},
    }
    lines: Script = tuple((float(second), "hello") for second in range(1, 60))
    made = stage(tmp_path, (*lines, (60.0, 0)), rules=rules, capabilities=Capabilities(poll_interval_s=30.0))
    made.run(made.submit())
    found = [event for event in made.events if isinstance(event, ev.SignalsFound)]
    gaps = [later.at - earlier.at for earlier, later in pairwise(found)]
    assert max(gaps) <= most
    assert len(found) <= 62 / (most - 0.25) + 5
    assert sum(len(event.signals) for event in found) == 59


# ---------------------------------------------------------------- nobody knows


def test_a_job_that_the_scheduler_forgot_is_lost_only_after_a_grace(tmp_path: Path) -> None:
    """Unknown until a second answer confirms it; then another attempt, once."""
    capabilities = Capabilities(gone_grace_s=30.0, poll_interval_s=1.0)
    world = World(lambda _name, attempt: FOREVER if attempt == 1 else ((1.0, 0),))
    made = Stage(tmp_path, world, {}, ("a",), capabilities=capabilities)
    loop = made.submit()
    world.alarms.append((1005.0, lambda: world.processes[0].__setattr__("id", "forgotten")))
    seen: dict[float, JobState] = {}
    made.run(loop, on_tick=lambda: seen.__setitem__(world.now, loop.session.jobs["a"].state))
    assert seen[1010.0] is JobState.UNKNOWN
    first, second = loop.session.jobs["a"].attempts
    assert (first.mode, first.reason) == ("crash.lost", "it vanished without an exit record")
    assert second.mode == "success"
    assert world.processes[1].started_at >= 1035.0


def test_a_job_that_is_known_again_was_never_lost(tmp_path: Path) -> None:
    """One answer that forgot it proves nothing."""
    capabilities = Capabilities(gone_grace_s=30.0, poll_interval_s=1.0)
    made = stage(tmp_path, ((40.0, 0),), capabilities=capabilities)
    world = made.world
    world.alarms.append((1005.0, lambda: world.processes[0].__setattr__("id", "forgotten")))
    world.alarms.append((1015.0, lambda: world.processes[0].__setattr__("id", "100")))
    made.run(made.submit())
    assert states(made) == {"a": "succeeded"}
    assert len(world.processes) == 1


def test_three_days_without_an_answer_change_nothing(tmp_path: Path) -> None:
    """Nothing is cancelled, restarted or given up; what the exit record says is believed afterwards."""
    watch = {
        "class_name": "SlurmLogMonitor",
        "inactivity_threshold_seconds": 60.0,
        "startup_grace_seconds": 0.0,
    }
    made = stage(tmp_path, ((3600.0, 0),), rules={"monitoring": watch}, jobs="ab")
    begin, end = 1005.0, 1005.0 + 3 * 86400
    made.world.outages = [(begin, end)]
    loop = made.submit()
    while made.world.now < end:
        loop.tick()
        made.world.wait(200.0 if made.world.now > begin else 0.5)
    kinds = [event.kind for event in made.events if event.at > begin + 1]
    assert kinds == []
    made.run(loop)
    assert states(made) == {"a": "succeeded", "b": "succeeded"}
    assert [event.kind for event in made.events].count("blinded") == 1


def test_a_submission_that_nobody_took_is_made_again_and_only_then(tmp_path: Path) -> None:
    """An unclear answer is looked up; the grace begins with the first look-up that is answered."""
    capabilities = Capabilities(find_grace_s=20.0, poll_interval_s=1.0)
    made = stage(tmp_path, ((1.0, 0),), capabilities=capabilities)
    made.world.unclear.add(("a", 1))
    made.world.outages = [(1000.1, 1050.0)]
    loop = made.submit()
    real = made.world.start
    made.world.start = lambda token, index, task: _vanish(made, real, token, index, task)  # type: ignore[method-assign]
    made.run(loop)
    assert states(made) == {"a": "succeeded"}
    first = next(event for event in made.events if isinstance(event, ev.SubmitRefused))
    assert first.reason == "the scheduler never had it"
    assert 1070.0 <= first.at <= 1085.0


def _vanish(made: Stage, real: Any, token: str, index: int, task: Any) -> None:
    """The first call starts nothing that anybody ever sees."""
    real(token, index, task)
    if made.world.now < 1000.1:
        made.world.processes[-1].token = "gone"
        (Path(task.attempt_dir) / "claim.0.json").unlink()


# ---------------------------------------------------------------- what a restart gets


def test_a_chain_of_time_limits_gets_longer_ones(tmp_path: Path) -> None:
    """AdjustTimeLimitPolicy: each attempt is submitted with more, to the bound."""
    policy = {"class_name": "AdjustTimeLimitPolicy", "minutes": 30, "max_minutes": 100}
    world = World(lambda _name, attempt: FOREVER if attempt < 4 else ((1.0, 0),))
    made = Stage(
        tmp_path,
        world,
        {"restart_policies": {"timeout": policy}},
        ("a",),
        job_changes={"resources": Resources(time_limit_s=3600)},
    )
    loop = made.submit()

    def limit() -> None:
        for process in world.processes:
            if process.ended is None and process.attempt < 4 and world.now - process.started_at >= 5:
                world.end(process, 143, "timeout")

    made.run(loop, on_tick=limit)
    assert [process.task.time_limit_s for process in world.processes] == [3600, 5400, 6000, 6000]
    assert [attempt.mode for attempt in loop.session.jobs["a"].attempts] == ["timeout"] * 3 + ["success"]
    assert loop.session.jobs["a"].attempts[0].reason == "reached its time limit of 01:00:00"
