"""Submissions and copies of jobs that the scheduler or a leader has lost sight of never run beside others."""

from __future__ import annotations

from typing import Any

import pytest
from deaths import Fatal, Killed
from played import LINES, Played, Setup, stage

from oellm_autoexp.core import events as ev
from oellm_autoexp.errors import LeadershipLost
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.execution import HEARTBEAT_S
from oellm_autoexp.schedulers.fake.scenario import ClusterFault

RULES: dict[str, Any] = {"monitoring": {"class_name": "SlurmLogMonitor"}}


def setup(work: float = 600.0, pace: float = 20.0, **cluster: Any) -> Setup:
    play = {"work": work, "startup": 5.0, "log_every": 60.0, "checkpoint_every": None, "lines": LINES}
    scenario = {"cluster": {"accounting": False, **cluster}, "jobs": [play]}
    return Setup(jobs=["one"], rules=RULES, scenario=scenario, pace=pace, stride=pace)


def ticks(played: Played, loop: Loop, number: int) -> None:
    for _ in range(number):
        loop.tick()
        played.audit.look_at_the_journal(loop.session)
        played.clock.wait(1.0)


def befall(played: Played, kind: Any, **fault: Any) -> None:
    played.client.befall(ClusterFault(kind=kind, at=0.0, **fault))


def logs(played: Played) -> dict[str, str]:
    return {path.name: path.read_text() for path in (played.root / "logs").iterdir()}


def test_a_leader_that_wakes_in_the_middle_of_sbatch_runs_nothing() -> None:
    """It was stopped before the call; meanwhile another has given the submission up and made its own."""
    with stage(setup()) as played:
        others: list[Loop] = []

        def stopped(name: str, _target: str) -> None:
            if name == "submit:before" and not others:
                others.append(played.submit())
                ticks(played, others[0], 6)
                assert played.audit.session.jobs["one"].state.value == "running"

        first = played.submit(Fatal(on_step=stopped))
        with pytest.raises(LeadershipLost):
            first.tick()
        assert len(played.client.played.jobs) == 2
        played.run(others[0])
        job = played.audit.session.jobs["one"]
        assert (job.state.value, [attempt.number for attempt in job.attempts]) == ("succeeded", [2])
        assert logs(played)["one.1.log"] == "autoexp guard: attempt is owned by nobody; this copy ends\n"
        played.audit.at_the_end()


def test_what_ran_and_was_forgotten_before_it_was_looked_for_has_run() -> None:
    """The leader died before it could write the id down, and the cluster forgets within minutes."""
    with stage(setup(min_job_age=30.0)) as played:
        with pytest.raises(Killed):
            loop = played.submit(Fatal(on_step=lambda name, _target: dies(name)))
            loop.tick()
        played.bury()
        played.pass_time(3600.0)
        assert not played.client.played.jobs
        played.run(played.submit())
        job = played.audit.session.jobs["one"]
        assert (job.state.value, len(job.attempts)) == ("succeeded", 1)
        assert played.client.played.next_id == 2


def dies(step: str) -> None:
    if step == "submit:after":
        raise Killed(step)


def test_a_copy_that_lost_its_claim_waits_for_the_one_that_has_it() -> None:
    """A crashed controller starts a job that runs already; how that one ends is how the attempt ends."""
    with stage(setup(work=6.0, scheduling_delay=1.0, pace=3.0)) as played:
        loop = played.submit()
        ticks(played, loop, 1)
        befall(played, "crash", lasts=5.0)
        played.run(loop)
        job = played.audit.session.jobs["one"]
        assert (job.state.value, len(job.attempts)) == ("succeeded", 1)
        (ended,) = [event for event in played.audit.events if isinstance(event, ev.AttemptEnded)]
        assert ended.evidence == "scheduler: FAILED (NonZeroExitCode); exit record: 0, exit, after 11 s"
        assert "this copy ends" in logs(played)["one.1.log"]


def test_a_copy_on_a_cut_off_node_ends_once_the_next_attempt_has_begun() -> None:
    """The scheduler has given it up, and cannot reach it: its guard sees the later claim."""
    with stage(setup(work=7200.0, nodes=2, requeue=False, slurmd_timeout=60.0, pace=5.0)) as played:
        loop = played.submit()
        ticks(played, loop, 3)
        befall(played, "node_fail", node="node1", lasts=3000.0, runs_on=True)
        for _ in range(40):
            if len(played.client.played.running) == 1:
                ticks(played, loop, 1)
        assert [run.request.attempt for run in played.client.played.running] == [1, 2]
        played.pass_time(HEARTBEAT_S)
        assert [run.request.attempt for run in played.client.played.running] == [2]
        played.run(loop)
        played.audit.at_the_end()


def test_each_end_of_a_job_fires_its_actions() -> None:
    """Cancelled, retried and cancelled again before it was ever submitted: told twice."""
    rules = {
        **RULES,
        "actions": {
            "tell": {
                "class_name": "AppendAction",
                "path": "ROOT/told",
                "text": "{job}",
                "on": ["job_cancelled"],
            }
        },
    }
    with stage(Setup(jobs=["one"], rules=rules, scenario={})) as played:
        loop = played.submit()
        for verbs in (("cancel",), ("retry", "cancel")):
            for verb in verbs:
                played.drop(verb, "one")
                played.pass_time(1.0)
            ticks(played, loop, 1)
        played.run(loop)
        assert (played.root / "told").read_text() == "one\none\n"
