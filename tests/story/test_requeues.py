"""What the scheduler itself starts again under the same id is the same attempt, and its next start."""

from __future__ import annotations

from typing import Any

import pytest
from played import LINES, Played, Setup, stage

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.rendering.guard_files import read_claim
from oellm_autoexp.services.views import told

RULES: dict[str, Any] = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "startup_grace_seconds": 60,
        "inactivity_threshold_seconds": 400,
        "log_signals": {
            "nccl": {"pattern": "NCCL error", "mode": "crash.nccl", "grace_seconds": 300},
            "begun": {"pattern": "^training begins|^resumed", "action": "note", "match": "once"},
        },
    },
    "actions": {"note": {"class_name": "AppendAction", "path": "ROOT/notes", "text": "{line}"}},
}


def setup(*, rehearsal: bool, fault: str, **cluster: Any) -> Setup:
    """A job of 50 minutes that something befalls after ten."""
    node = {"kind": fault, "at": 600, "lasts": 3600.0, "node": "node1", "job": "one"}
    play = {"work": 3000.0, "startup": 5.0, "log_every": 100.0, "checkpoint_every": 500.0, "lines": LINES}
    habits = {"nodes": 3, "slurmd_timeout": 60, "requeue": True, "requeue_delay": 120.0, **cluster}
    scenario = {"cluster": habits, "jobs": [play], "faults": [node]}
    return Setup(jobs=["one"], rules=RULES, scenario=scenario, rehearsal=rehearsal)


def one(played: Played) -> Job:
    return played.audit.session.jobs["one"]


def of(played: Played, *kinds: type[ev.Event]) -> list[Any]:
    return [event for event in played.audit.events if isinstance(event, kinds)]


@pytest.mark.parametrize("rehearsal", [False, True])
@pytest.mark.parametrize("fault", ["node_fail", "preempt", "requeue"])
def test_a_requeue_is_journaled_and_the_same_attempt_goes_on(fault: str, rehearsal: bool) -> None:
    """No policy is asked, no budget charged; what the log said of the first start ends nothing."""
    with stage(setup(rehearsal=rehearsal, fault=fault)) as played:

        def says_why() -> None:
            log = played.root / "logs" / "one.1.log"
            if one(played).state is JobState.RUNNING and 500 < played.clock.now() - start < 600:
                with log.open("a") as file:
                    file.write("NCCL error: unhandled system error\n")

        start = played.clock.now()
        played.run(played.submit(), says_why)
        job = one(played)
        assert (job.state, len(job.attempts), job.spent) == (JobState.SUCCEEDED, 1, {})
        assert job.attempts[0].requeues == 1 and not of(played, ev.CancelRequested)
        (again,) = of(played, ev.AttemptRequeued)
        assert (
            told(again) == "attempt 1 was taken back by the scheduler, to start again (restart 1 of this id)"
        )
        starts = [event.started_at for event in of(played, ev.AttemptStarted)]
        assert len(starts) == 2 and starts[0] < again.at <= starts[1] + 60
        claim = read_claim(played.paths.attempt("one", 1))
        assert claim is not None and (claim.generation, claim.restart_count) == (1, 1)
        # Once in each start: its beginning is noted both times.
        begun = [found.line for event in of(played, ev.SignalsFound) for found in event.signals]
        assert [line.split()[0] for line in begun if "NCCL" not in line] == ["training", "resumed"]
        played.audit.at_the_end()


def test_a_requeue_that_nobody_saw_waiting_is_told_by_the_number_of_starts() -> None:
    """While the controller was away it took the job back and started it again."""
    with stage(setup(rehearsal=False, fault="requeue", requeue_delay=10.0)) as played:
        loop = played.submit()

        def leaps() -> None:
            if not of(played, ev.AttemptRequeued) and 560 < played.clock.now() - start < 600:
                played.pass_time(400.0)

        start = played.clock.now()
        played.run(loop, leaps)
        job = one(played)
        assert (job.state, len(job.attempts), job.attempts[0].requeues) == (JobState.SUCCEEDED, 1, 1)
        kinds = [event.kind for event in of(played, ev.AttemptStarted, ev.AttemptPending, ev.AttemptRequeued)]
        assert kinds[-3:] == ["attempt_started", "attempt_requeued", "attempt_started"]
        played.audit.at_the_end()


def test_silence_before_a_requeue_does_not_count_after_it() -> None:
    """The queue is no stall, and the next start has its own threshold."""
    quiet = setup(rehearsal=False, fault="requeue", requeue_delay=300.0)
    plays = [
        {**play, "startup": 350.0, "log_every": 350.0, "checkpoint_every": None}
        for play in quiet.scenario["jobs"]
    ]
    quiet.scenario = {**quiet.scenario, "jobs": plays}
    with stage(quiet) as played:
        played.run(played.submit())
        assert one(played).state is JobState.SUCCEEDED and not of(played, ev.CancelRequested)
