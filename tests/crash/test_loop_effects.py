"""The loop is killed at every effect and started again: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from deaths import Fatal, Killed
from world import FOREVER, Script, Stage, World

from oellm_autoexp.config.sockets import Capabilities
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import JobState
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects

RULES = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "log_signals": {
            "step": {"pattern": r"step (?P<step>\d+)", "metrics": True, "counter": "step"},
            "saved": {"pattern": r"Checkpoint saved: (?P<path>\S+)", "action": ["convert", "note"]},
        },
    },
    "actions": {
        "convert": {"class_name": "CommandAction", "command": "convert {path}"},
        "note": {"class_name": "AppendAction", "path": "ROOT/notes", "text": "{job} {path}"},
        "tell": {
            "class_name": "AppendAction",
            "path": "ROOT/told",
            "text": "{job} {signal}",
            "on": ["job_succeeded", "job_cancelled", "job_failed", "job_restarted"],
        },
    },
    "restart_policies": {
        "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0.5}
    },
}
SCRIPTS: dict[tuple[str, int], Script] = {
    ("a", 1): ((0.3, "step 1"), (0.6, "Checkpoint saved: a-1"), (1.6, "Checkpoint saved: a-2"), (2.0, 0)),
    ("b", 1): ((0.2, "Checkpoint saved: b-1"), (0.5, "RuntimeError: only once"), (0.6, 1)),
    ("b", 2): ((0.2, "Checkpoint saved: b-2"), (0.7, 0)),
    ("c", 1): FOREVER,
    ("d", 1): ((0.2, "RuntimeError: first"), (0.3, 1)),
    ("d", 2): ((0.2, "RuntimeError: second"), (0.3, 1)),
    ("convert", 1): ((0.4, 0),),
}
#: Steps at which what was written may be lost or torn, or an array is half submitted.
UNSAFE = ("write_at:after", "fsync:before", "append:after", "queue:before", "queue:after", "submit:after")
SAVED = {("a", "a-1"), ("a", "a-2"), ("b", "b-1"), ("b", "b-2")}


@contextlib.contextmanager
def staged(array_size: int = 1) -> Iterator[Stage]:
    """The scenario, in memory where there is such a place, since it syncs a lot."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        root = Path(directory)
        world = World(
            # By how often it was begun: the number of an attempt that was given up is not used again.
            lambda name, _attempt: SCRIPTS[name, 1 if name == "convert" else len(attempts(world)[name])],
            unclear={("b", 2)},
            outages=[(1000.8, 1001.4)],
        )
        rules = {
            **RULES,
            "actions": {
                name: {
                    key: value.replace("ROOT", directory) if isinstance(value, str) else value
                    for key, value in action.items()
                }
                for name, action in RULES["actions"].items()
            },
        }
        capabilities = Capabilities(
            max_array_size=array_size, find_grace_s=1.0, gone_grace_s=1.0, poll_interval_s=0.5
        )
        stage = Stage(root, world, rules, ("a", "b", "c", "d"), capabilities=capabilities)
        world.alarms.append((1002.2, lambda: cancel(stage)))
        yield stage


def attempts(world: World) -> dict[str, set[int]]:
    """The attempts of each task that were begun."""
    found: dict[str, set[int]] = defaultdict(set)
    for name, attempt in world.started:
        found[name].add(attempt)
    return found


def cancel(stage: Stage) -> None:
    """What `oellm-autoexp cancel` does on a led session."""
    inbox.drop(stage.paths, Effects(), "cancel", {"jobs": ["c"]}, now=stage.world.now)


def play(stage: Stage, *fatal: Fatal) -> int:
    """Run the scenario to its end, killed as told; how often it was."""
    killed = 0
    for effects in (*fatal, Effects()):
        loop = None
        stage.journal = None
        try:
            loop = stage.submit(effects, nonce=f"nonce-{killed}")
            stage.run(loop, ticks=200)
            loop.close()
        except Killed:
            killed += 1
            stage.world.wait(0.3)
        else:
            check(stage, loop.session)
            return killed
        finally:
            drop(stage)
    raise AssertionError("never")


def drop(stage: Stage) -> None:
    """A dead process holds no file open."""
    if stage.journal is not None and stage.journal._fd >= 0:
        os.close(stage.journal._fd)
        stage.journal._fd = -1


def check(stage: Stage, session: object) -> None:
    """The invariants, at the end."""
    world, events = stage.world, stage.events
    replayed = stage.replayed()
    assert replayed == session
    # Verdicts, and no more attempts than the budget allows. (The cancel may come before the first start.)
    states = {name: (job.state, len(job.attempts)) for name, job in replayed.jobs.items()}
    of_c = len(attempts(world)["c"])
    assert of_c <= 1
    assert states == {
        "a": (JobState.SUCCEEDED, 1),
        "b": (JobState.SUCCEEDED, 2),
        "c": (JobState.CANCELLED, of_c),
        "d": (JobState.FAILED, 2),
    }
    # At most one attempt of a job at a time, each started exactly once.
    assert {times for owner, times in world.started.items() if owner[0] != "convert"} == {1}
    begun = {name: len(numbers) for name, numbers in attempts(world).items() if name != "convert"}
    assert begun == {"a": 1, "b": 2, "d": 2, **({"c": of_c} if of_c else {})}
    assert world.overlaps() == []
    # Each submission intent has one outcome.
    asked = Counter(event.token for event in events if isinstance(event, ev.SubmitRequested))
    ended = Counter(
        event.token for event in events if isinstance(event, (ev.SubmitAccepted, ev.SubmitRefused))
    )
    assert asked == ended
    assert not replayed.submissions
    # Each occurrence has one action that was completed.
    outcomes = Counter(event.key for event in events if isinstance(event, ev.ActionEnded))
    assert set(outcomes) == set(replayed.actions)
    assert set(outcomes.values()) == {1}
    assert all(action.ended is not None and action.ended.ok for action in replayed.actions.values())
    assert not replayed.open_actions
    signals = {
        (a.request.job, a.request.fields["path"])
        for a in replayed.actions.values()
        if a.request.action == "convert"
    }
    assert signals == SAVED
    assert world.started["convert", 1] == len(SAVED)
    notes = sorted(line.split() for line in (stage.root / "notes").read_text().splitlines())
    assert notes == sorted([job, path] for job, path in SAVED)
    told = sorted((stage.root / "told").read_text().splitlines())
    assert told == [
        "a job_succeeded",
        "b job_restarted",
        "b job_succeeded",
        "c job_cancelled",
        "d job_failed",
        "d job_restarted",
    ]
    # Commands are answered once; nothing is left over.
    answers = [event for event in events if isinstance(event, ev.CommandAnswered)]
    assert [(answer.verb, answer.ok) for answer in answers] == [("cancel", True)]
    assert inbox.pending(stage.paths) == []
    assert not stage.paths.snapshot.exists()
    assert all(text.endswith("the controller does not answer") for text in stage.warnings)


@pytest.mark.parametrize(("left", "array_size"), [("all", 1), ("synced", 1), ("torn", 3)])
def test_a_death_at_any_effect_loses_and_doubles_nothing(left: str, array_size: int) -> None:
    """Killed before and after each effect, with all, the synced, or a torn half of the last writing left."""
    with staged(array_size) as stage:
        whole = Fatal(now=lambda: stage.world.now)
        assert play(stage, whole) == 0
        kinds = {event.kind for event in stage.events}
        assert kinds >= {"blinded", "sighted", "restart_scheduled", "cancel_sent", "command_answered"}
        assert any(event.adopted for event in stage.events if isinstance(event, ev.SubmitAccepted))
    assert len(whole.names) > 200
    previous, earlier = "", 0.0
    for at, (name, now) in enumerate(zip(whole.names, whole.times, strict=True), start=1):
        same = previous.endswith(":after") and name.endswith(":before") and now == earlier
        previous, earlier = name, now
        if same if left == "all" else name not in UNSAFE:
            continue  # Nothing happened since the step before, or all is synced: the same death again.
        with staged(array_size) as stage:
            fatal = Fatal(at, lost=left == "synced", torn=left == "torn")
            try:
                assert play(stage, fatal) == 1
            except BaseException as error:
                raise AssertionError(f"killed at step {at}, {name}") from error


@pytest.mark.parametrize("seed", range(3))
def test_many_deaths_in_a_row_lose_and_double_nothing(seed: int) -> None:
    """Killed again and again, sometimes before it has done anything at all."""
    moments = random.Random(seed)
    for _ in range(8):
        deaths = [
            Fatal(moments.randint(1, 60), lost=moments.random() < 0.3, torn=moments.random() < 0.3)
            for _ in range(20)
        ]
        with staged(moments.choice([1, 3])) as stage:
            try:
                assert play(stage, *deaths) >= 4
            except BaseException as error:
                raise AssertionError(f"killed at steps {[fatal.at for fatal in deaths]}") from error


def test_what_is_on_disk_is_what_is_in_memory() -> None:
    """After every turn a replay of the journal gives the state that the loop has."""
    with staged() as stage:
        loop = stage.submit()
        turns = 0

        def compare() -> None:
            nonlocal turns
            turns += 1
            assert stage.replayed() == loop.session

        stage.run(loop, on_tick=compare)
        assert turns > 10
        loop.close()
        assert stage.replayed() == loop.session
