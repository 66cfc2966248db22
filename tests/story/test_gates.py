"""What lets a job start, ends it from outside, and says when it is done or stuck; on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from world import FOREVER, Script, SimConfig, Stage, World

from oellm_autoexp.config.sockets import Capabilities
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects

T = TypeVar("T")
STEPS: Script = (*((float(second), f"step {second}") for second in range(1, 6)), (6.0, 0))


def stage(
    tmp_path: Path,
    rules: Mapping[str, Any],
    *scripts: Script,
    alarms: Mapping[float, Callable[[], Any]] | None = None,
    **changes: Any,
) -> Stage:
    """A session of one job `a`; `scripts` are what its attempts do, `alarms` what happens at a second."""
    world = World(lambda _name, attempt: scripts[min(attempt, len(scripts)) - 1])
    world.alarms += [(world.now + second, run) for second, run in (alarms or {}).items()]
    rules = {"restart_policies": {"stall": {"class_name": "NoRestartPolicy"}}, **rules}
    return Stage(tmp_path, world, rules, ("a",), **changes)


def job(made: Stage) -> Job:
    """Run it to its end; what became of the job."""
    loop = made.submit()
    made.run(loop)
    loop.close()
    assert made.replayed() == loop.session
    assert made.warnings == []
    return loop.session.jobs["a"]


def held(made: Stage) -> list[str]:
    return [event.why for event in made.events if isinstance(event, ev.JobHeld)]


def seconds(made: Stage) -> float:
    """When the first attempt was started, in seconds from the beginning."""
    return made.world.processes[0].started_at - 1000.0


def watch(**keys: Any) -> dict[str, Any]:
    return {"monitoring": {"class_name": "SlurmLogMonitor", "startup_grace_seconds": 0.0, **keys}}


# ---------------------------------------------------------------- start


@pytest.mark.parametrize("where", ["job", "monitoring"])
def test_a_start_command_holds_a_job_until_it_passes(tmp_path: Path, where: str) -> None:
    """It is asked once an interval, and why the job waits is on record; the job's own key wins."""
    ready = tmp_path / "ready"
    keys = {"start_condition_cmd": f"test -e {ready}", "start_condition_interval_seconds": 2.0}
    rules = {"job": keys} if where == "job" else watch(**keys)

    class Counting(Effects):
        checks = 0

        def step(self, name: str, target: str) -> None:
            self.checks += name == "check:before"

    effects = Counting()
    made = stage(tmp_path, rules, STEPS, alarms={5.0: ready.touch})
    loop = made.submit(effects)
    made.run(loop)
    assert loop.session.jobs["a"].state is JobState.SUCCEEDED
    assert 5.0 <= seconds(made) <= 7.5
    assert effects.checks == 4
    assert held(made)[0] == f"start condition: `test -e {ready}` exited 1"


def test_a_start_command_passes_by_what_it_prints(tmp_path: Path) -> None:
    """`1` lets the job start whatever the exit status; any other word holds it."""
    said = tmp_path / "said"
    said.write_text("0\n")
    keys = {"start_condition_cmd": f"cat {said}", "start_condition_interval_seconds": 1.0}
    made = stage(tmp_path, {"job": keys}, STEPS, alarms={3.0: lambda: said.write_text("1\n")})
    assert job(made).state is JobState.SUCCEEDED
    assert 3.0 <= seconds(made) <= 4.5
    assert held(made)[0].endswith("exited 0, printed '0'")


def test_a_condition_that_does_not_answer_holds_a_job_and_says_so(tmp_path: Path) -> None:
    """Unknown is not yes; a cancel condition that does not answer ends nothing."""
    hung = {"class_name": "CommandCondition", "command": "sleep 20", "timeout_seconds": 0.05}
    rules = {"job": {"start_condition": hung, "start_condition_interval_seconds": 1000.0}}
    made = stage(tmp_path, rules, STEPS)
    loop = made.submit()
    for _ in range(20):
        loop.tick()
        made.world.wait(0.5)
    assert made.world.processes == []
    assert held(made) == ["start condition: `sleep 20` did not answer within 0.05 s"]
    rules = {"job": {"cancel_condition": hung, "finish_condition": hung}}
    assert job(stage(tmp_path / "other", rules, STEPS)).mode == "success"


class Stuck:
    """Takes everything and never gets to it, as a thread on a hung file system."""

    def submit(self, function: Callable[[], T], /) -> Future[T]:
        return Future()


def test_a_condition_that_hangs_delays_no_other_job(tmp_path: Path) -> None:
    """The job that it gates waits; the one beside it runs to its end."""
    world = World(lambda _name, _attempt: STEPS)
    gated = {"job": {"start_condition_cmd": "true"}}
    made = Stage(tmp_path, world, gated, ("a",), executor=Stuck())
    loop = made.submit()
    free = Stage(tmp_path, world, {}, ("a", "b"))
    loop.record(ev.RulesSet(at=0.0, rules="free", config={}))
    loop.record(ev.JobAdded(at=0.0, spec=replace(free.specs()[1], rules="free")))
    for _ in range(40):
        loop.tick()
        world.wait(0.25)
    states = {name: each.state for name, each in loop.session.jobs.items()}
    assert states == {"a": JobState.WAITING, "b": JobState.SUCCEEDED}
    assert "not checked yet" in loop.session.jobs["a"].hold


def test_a_restart_asks_the_start_condition_anew(tmp_path: Path) -> None:
    """What held for the first attempt need not hold for the second."""
    ready = tmp_path / "ready"
    ready.touch()
    keys = {"start_condition_cmd": f"test -e {ready}", "start_condition_interval_seconds": 1.0}
    policy = {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0.0}}
    rules = {"job": keys, "restart_policies": policy}
    made = stage(tmp_path, rules, ((2.0, 1),), STEPS, alarms={1.0: ready.unlink, 8.0: ready.touch})
    assert job(made).state is JobState.SUCCEEDED
    assert made.world.processes[1].started_at >= 1008.0


# ---------------------------------------------------------------- cancel and finish

IN_PLACE = {
    "file": {"class_name": "FileExistsCondition", "path": "{output_dir}/flag"},
    "glob": {"class_name": "GlobCondition", "pattern": "{output_dir}/f*"},
    "command": {"class_name": "CommandCondition", "command": "test -e {output_dir}/flag"},
    "any": {
        "class_name": "AnyCondition",
        "conditions": [
            {"class_name": "FileExistsCondition", "path": "/nowhere"},
            {"class_name": "FileExistsCondition", "path": "{output_dir}/flag"},
        ],
    },
    "not": {
        "class_name": "NotCondition",
        "condition": {
            "class_name": "NotCondition",
            "condition": {"class_name": "FileExistsCondition", "path": "{output_dir}/flag"},
        },
    },
}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_finish_condition_ends_a_job_as_a_success(tmp_path: Path, kind: str, by_name: bool) -> None:
    """Every condition, as an entry of `conditions` or written in place; the live attempt is ended first."""
    condition = IN_PLACE[kind]
    flag = tmp_path / "out" / "flag"
    flag.parent.mkdir()
    keys = {"finish_condition": "done" if by_name else condition, "start_condition_interval_seconds": 1.0}
    rules = {"conditions": {"done": condition} if by_name else {}, "job": keys}
    made = stage(tmp_path, rules, FOREVER, alarms={4.0: flag.touch})
    done = job(made)
    assert (done.state, done.mode, len(done.attempts)) == (JobState.SUCCEEDED, "success", 1)
    ended = made.world.processes[0].ended
    assert ended is not None and 1004.0 <= ended.ended_at <= 1006.0
    wish = next(event for event in made.events if isinstance(event, ev.EndWished))
    assert wish.by == "finish_condition"


def test_a_cancel_condition_ends_a_running_job_for_good(tmp_path: Path) -> None:
    """No policy is asked, and the reason says what did it."""
    flag = tmp_path / "flag"
    condition = {"class_name": "FileExistsCondition", "path": str(flag)}
    rules = {"job": {"cancel_condition": condition, "start_condition_interval_seconds": 1.0}}
    done = job(stage(tmp_path, rules, FOREVER, alarms={3.0: flag.touch}))
    assert (done.state, len(done.attempts)) == (JobState.CANCELLED, 1)
    assert done.reason == "the cancel condition holds"


def test_a_cancel_condition_ends_a_waiting_job_without_starting_it(tmp_path: Path) -> None:
    """Nothing is submitted for a job that is not wanted."""
    flag = tmp_path / "flag"
    rules = {
        "job": {
            "start_condition_cmd": "false",
            "cancel_condition": {"class_name": "FileExistsCondition", "path": str(flag)},
            "start_condition_interval_seconds": 1.0,
        }
    }
    made = stage(tmp_path, rules, FOREVER, alarms={3.0: flag.touch})
    assert job(made).state is JobState.CANCELLED
    assert made.world.processes == []


def test_a_retry_does_not_believe_what_a_condition_said_before(tmp_path: Path) -> None:
    """The condition that ended the job no longer holds: the new attempt runs to its end."""
    flag = tmp_path / "flag"
    condition = {"class_name": "FileExistsCondition", "path": str(flag)}
    rules = {"job": {"cancel_condition": condition, "start_condition_interval_seconds": 60.0}}
    flag.touch()
    made = stage(tmp_path, rules, STEPS)
    loop = made.submit()
    loop.tick()
    assert loop.session.jobs["a"].state is JobState.CANCELLED
    flag.unlink()
    inbox.drop(made.paths, Effects(), "retry", {"jobs": ["a"]}, now=made.world.now)
    made.run(loop)
    assert loop.session.jobs["a"].state is JobState.SUCCEEDED


# ---------------------------------------------------------------- what counts as done


@pytest.mark.parametrize("where", ["job", "monitoring"])
def test_a_termination_string_tells_done_from_more_to_do(tmp_path: Path, where: str) -> None:
    """Exit 0 without it is chained like a time limit; with it the job has succeeded. It is no regex."""
    keys = {"termination_string": "All done. (100%)"}
    rules = {"job": keys} if where == "job" else watch(**keys)
    more: Script = ((1.0, "All done! 100%"), (2.0, 0))
    made = stage(tmp_path, rules, more, more, ((1.0, "x All done. (100%) y"), (2.0, 0)))
    done = job(made)
    assert (done.state, done.mode) == (JobState.SUCCEEDED, "success")
    assert [attempt.mode for attempt in done.attempts] == ["timeout", "timeout", "success"]


def test_a_termination_string_does_not_excuse_a_crash(tmp_path: Path) -> None:
    """Exit 1 after it is a crash."""
    rules = {
        "job": {"termination_string": "done"},
        "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}},
    }
    assert job(stage(tmp_path, rules, ((1.0, "done"), (2.0, 1)))).mode == "crash"


def test_a_termination_command_tells_done_from_more_to_do(tmp_path: Path) -> None:
    """It is asked after exit 0, for each attempt anew."""
    ready = tmp_path / "ready"
    rules = {"job": {"termination_command": f"test -e {ready}"}}
    made = stage(tmp_path, rules, ((2.0, 0),), alarms={5.0: ready.touch})
    done = job(made)
    assert done.state is JobState.SUCCEEDED
    assert {attempt.mode for attempt in done.attempts[:-1]} == {"timeout"}
    assert len(done.attempts) in (2, 3)
    assert done.reason == "exit 0 and the termination command holds"


# ---------------------------------------------------------------- stalls


@pytest.mark.parametrize("where", ["job", "monitoring"])
def test_silence_for_the_declared_time_is_a_stall(tmp_path: Path, where: str) -> None:
    """The attempt is ended, and the policy of `stall` decides what follows."""
    keys = {"inactivity_threshold_seconds": 10.0}
    rules = watch(**keys) if where == "monitoring" else {**watch(), "job": keys}
    policy = {"stall": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0.0}}
    made = stage(tmp_path, {**rules, "restart_policies": policy}, ((1.0, "x"), (8.0, "y")), STEPS)
    done = job(made)
    assert [attempt.mode for attempt in done.attempts] == ["stall", "success"]
    ended = made.world.processes[0].ended
    assert ended is not None and 1018.0 <= ended.ended_at <= 1019.5
    assert done.attempts[0].reason == "no output for 00:00:10 (threshold 00:00:10)"


def test_output_in_a_watched_file_is_no_silence(tmp_path: Path) -> None:
    """`output_paths` count as the log does."""
    other = tmp_path / "train.out"

    def grow() -> None:
        with other.open("a") as file:
            file.write("step\n")

    rules = watch(inactivity_threshold_seconds=5.0)
    script: Script = ((20.0, 0),)
    made = stage(
        tmp_path,
        rules,
        script,
        alarms={float(second): grow for second in range(1, 20, 3)},
        job_changes={"output_paths": (str(other),)},
    )
    assert job(made).state is JobState.SUCCEEDED


def test_no_stall_without_a_threshold_and_none_within_the_startup_grace(tmp_path: Path) -> None:
    """A quiet job is only quiet."""
    assert job(stage(tmp_path / "none", watch(), ((200.0, 0),))).state is JobState.SUCCEEDED
    rules = watch(inactivity_threshold_seconds=5.0, startup_grace_seconds=60.0)
    assert job(stage(tmp_path / "grace", rules, ((50.0, "compiled"), (54.0, 0)))).mode == "success"


def test_silence_is_not_counted_while_nobody_answers(tmp_path: Path) -> None:
    """Whether it ran in that time nobody knows; the count begins anew when the scheduler answers."""
    rules = watch(inactivity_threshold_seconds=20.0)
    made = stage(tmp_path, rules, ((1.0, "x"), (36.0, "y"), (40.0, 0)))
    made.world.outages = [(1005.0, 1016.0)]
    done = job(made)
    assert done.mode == "success", done.reason
    kinds = [event.kind for event in made.events if event.kind in ("blinded", "sighted")]
    assert kinds[:2] == ["blinded", "sighted"]


COUNTER = {"it": {"pattern": r"iteration (?P<n>\d+)", "types": {"n": "int"}, "counter": "n"}}


def test_a_counter_that_stands_still_is_a_stall_however_much_is_printed(tmp_path: Path) -> None:
    """The log grows; the counter does not."""
    talk = [(float(second), f"iteration {min(second, 5)}") for second in range(1, 60)]
    made = stage(tmp_path, watch(progress_threshold_seconds=10.0, log_signals=COUNTER), talk)
    done = job(made)
    assert done.mode == "stall"
    assert done.reason.startswith("no progress for 00:00:10 (threshold 00:00:10)")
    ended = made.world.processes[0].ended
    assert ended is not None and 1015.0 <= ended.ended_at <= 1017.0


def test_a_counter_that_moves_is_no_stall(tmp_path: Path) -> None:
    """Also where the program reports it by itself."""
    talk = [*((float(second), f"iteration {second}") for second in range(1, 40)), (40.0, 0)]
    rules = watch(progress_threshold_seconds=10.0, log_signals=COUNTER)
    assert job(stage(tmp_path / "rule", rules, talk)).mode == "success"
    report = [*((s, f'@autoexp {{"progress": {{"n": {s}}}}}') for s in (1.0, 8.0, 15.0)), (20.0, 0)]
    rules = watch(progress_threshold_seconds=10.0)
    assert job(stage(tmp_path / "report", rules, report)).mode == "success"
    stuck = [*report[:-1], (60.0, 0)]
    assert job(stage(tmp_path / "stuck", rules, stuck)).mode == "stall"


def test_a_job_that_has_no_counter_cannot_stand_still(tmp_path: Path) -> None:
    """A threshold for progress means nothing where nothing is counted."""
    talk: Script = ((5.0, "hello"), (100.0, 0))
    assert job(stage(tmp_path, watch(progress_threshold_seconds=10.0), talk)).mode == "success"


# ---------------------------------------------------------------- what an attempt leaves to the next


def test_lines_of_an_earlier_attempt_say_nothing_about_the_next(tmp_path: Path) -> None:
    """A watched file goes on over attempts; an error that was seen once too often is not found again."""
    shared = tmp_path / "train.out"
    shared.touch()

    def fail() -> None:
        with shared.open("a") as file:
            file.write("NCCL error\n")

    signals = {"nccl": {"pattern": "NCCL error", "mode": "crash.nccl", "grace_seconds": 0.5}}
    rules = {
        **watch(log_signals=signals),
        "restart_policies": {"crash": {"class_name": "AlwaysRestartPolicy", "backoff_seconds": 0.0}},
    }
    made = stage(
        tmp_path,
        rules,
        FOREVER,
        ((5.0, 0),),
        alarms={1.0: fail, 1.6: fail},
        job_changes={"output_paths": (str(shared),)},
    )
    assert [attempt.mode for attempt in job(made).attempts] == ["crash.nccl", "success"]


def test_once_is_once_though_a_watched_file_is_not_there(tmp_path: Path) -> None:
    """A missing file has no news; it takes back nothing of what others said."""
    signals = {"seen": {"pattern": "hello", "match": "once", "action": "note"}}
    action = {"class_name": "AppendAction", "path": str(tmp_path / "notes"), "text": "seen"}
    script: Script = ((1.0, "hello"), (2.0, "hello"), (3.0, "hello"), (4.0, 0))
    made = stage(
        tmp_path,
        {**watch(log_signals=signals), "actions": {"note": action}},
        script,
        job_changes={"output_paths": (str(tmp_path / "nowhere"),)},
    )
    assert job(made).state is JobState.SUCCEEDED
    assert (tmp_path / "notes").read_text() == "seen\n"


@pytest.mark.parametrize("report", ["counter", "checkpoint"])
def test_a_new_loop_sees_no_progress_that_an_earlier_one_has_seen(tmp_path: Path, report: str) -> None:
    """Restarting the daemon neither loses progress nor makes any."""
    said = {
        "counter": '@autoexp {{"progress": {{"iteration": {}}}}}',
        "checkpoint": '@autoexp {{"checkpoint": "/ckpt/{}"}}',
    }[report]
    signals = {
        "hello": {
            "pattern": "hello",
            "metadata": {"kind": "note"},
            "mode": "crash.hello",
            "grace_seconds": None,
        }
    }
    script: Script = ((1.0, said.format(7)), (1.6, said.format(9)), (2.0, "hello"), (30.0, 0))
    made = stage(tmp_path, watch(log_signals=signals), script)
    loop = made.submit()
    for _ in range(9):
        loop.tick()
        made.world.wait(0.5)
    for _ in range(3):
        loop = made.lead()
        for _ in range(5):
            loop.tick()
            made.world.wait(0.5)
    made.run(loop)
    progress = [event.value for event in made.events if isinstance(event, ev.ProgressMade)]
    assert progress == ([7.0, 9.0] if report == "counter" else [1.0, 2.0])
    assert loop.session.jobs["a"].attempts[0].progressed


def test_what_is_beyond_max_jobs_waits_and_is_not_lost(tmp_path: Path) -> None:
    """At most so many run at once, and in the end every one has run."""
    world = World(lambda _name, _attempt: ((2.0, 0),))
    made = Stage(tmp_path, world, {}, tuple("abcdef"), config=SimConfig(max_jobs=2))
    loop = made.submit()
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, sum(1 for process in world.processes if process.ended is None))

    made.run(loop, on_tick=count)
    assert most == 2
    assert {each.state for each in loop.session.jobs.values()} == {JobState.SUCCEEDED}


def test_lost_time_begins_at_the_last_progress_and_not_when_that_was_journaled(tmp_path: Path) -> None:
    """Marks are journaled every few seconds and at the end; the loss counts from when they were seen."""
    rules = {
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "startup_grace_seconds": 0,
            "inactivity_threshold_seconds": 30,
            "log_signals": {"step": {"pattern": r"step (?P<step>\d+)", "counter": "step"}},
        }
    }
    script: Script = ((1.0, "step 1"), (4.0, "step 2"))
    world = World(lambda _name, attempt: script if attempt == 1 else ((1.0, "step 3"), (2.0, 0)))
    made = Stage(tmp_path, world, rules, ("a",), capabilities=Capabilities(poll_interval_s=1.0))
    loop = made.submit()
    made.run(loop)
    first = loop.session.jobs["a"].attempts[0]
    assert first.mode == "stall"
    assert first.progressed_at is not None and first.started_at is not None and first.ended_at is not None
    assert first.progressed_at - first.started_at <= 6.0
    assert first.ended_at - first.progressed_at >= 30.0
