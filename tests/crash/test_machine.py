"""A state machine over loop, fake cluster, file system and clock: whatever happens in whatever order.

`AUTOEXP_EXAMPLES=N` tries N histories in place of the few that each run of the tests does (`make soak`).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from deaths import Fatal, Killed
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from played import LINES, Played, Setup, stage
from simulation import FAULTS, RULES

from oellm_autoexp.errors import LeadershipLost
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.scenario import ClusterFault

JOBS = ["steady", "breaks", "hangs"]
#: What waits for others, in the queue too, in some of the histories.
CHILDREN = {"child": ["breaks", "hangs"]}
PLAY = {"startup": 5.0, "log_every": 60.0, "checkpoint_every": 200.0, "lines": LINES}
SCENARIO: dict[str, Any] = {
    "jobs": [
        {**PLAY, "match": "steady", "work": 900.0},
        {**PLAY, "match": "child", "work": 300.0},
        {**PLAY, "match": "breaks", "work": 600.0, "mishaps": [{"kind": "exit", "at_work": 100.0}]},
        {
            **PLAY,
            "match": "hangs",
            "work": 600.0,
            "mishaps": [{"kind": "hang", "after": 90.0, "attempts": 1}],
        },
    ],
    "faults": [{"kind": "crash", "at": "365d"}],
}
EXAMPLES = int(os.environ.get("AUTOEXP_EXAMPLES", "60"))
#: Once nothing more happens, so many ticks are enough.
CALM_TICKS = 3000


class Orchestra(RuleBasedStateMachine):
    """One session; `leader` leads it, `stopped` are former leaders that may wake."""

    played: Played
    leader: Loop
    effects: Fatal

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.stopped: list[Loop] = []

    @initialize(
        arrays=st.booleans(),
        accounting=st.booleans(),
        requeue=st.booleans(),
        rehearsal=st.booleans(),
        early=st.booleans(),
    )
    def begin(self, arrays: bool, accounting: bool, requeue: bool, rehearsal: bool, early: bool) -> None:
        habits = {
            "nodes": 2,
            "max_array_size": 10 if arrays else 1,
            "accounting": accounting,
            "requeue": requeue,
            "requeue_delay": 20.0,
            "min_job_age": 60.0,
            "slurmd_timeout": 60.0,
            "default_time": 7200.0,
        }
        monitoring = {**RULES["monitoring"], "inactivity_threshold_seconds": 300}
        setup = Setup(
            jobs=[*JOBS, *(CHILDREN if early else ())],
            parents=CHILDREN if early else {},
            early_wait=60.0 if early else None,
            rules={**RULES, "monitoring": monitoring},
            scenario={**SCENARIO, "cluster": habits},
            breaker=None,
            rehearsal=rehearsal,
        )
        self.played = self._stack.enter_context(stage(setup))
        self._lead()

    def _lead(self) -> None:
        self.effects = Fatal()
        self.leader = self.played.submit(self.effects)

    def _tick(self) -> None:
        self.leader.tick()
        saved = not self.leader._journal.dirty
        self.played.audit.look_at_the_journal(self.leader.session if saved else None)

    # ---- the loop

    @rule(number=st.integers(1, 12), seconds=st.sampled_from([1.0, 60.0, 300.0]))
    def time_passes(self, number: int, seconds: float) -> None:
        for _ in range(number):
            self._tick()
            self.played.clock.wait(seconds)

    @precondition(lambda self: not self.effects.full)
    @rule(steps=st.integers(1, 60), lost=st.booleans(), torn=st.booleans())
    def it_is_killed(self, steps: int, lost: bool, torn: bool) -> None:
        self.effects.lost, self.effects.torn = lost, torn
        self.effects.at = self.effects.count + steps
        try:
            for _ in range(30):
                self._tick()
                self.played.clock.wait(1.0)
        except Killed:
            pass
        self.stopped.clear()
        self.played.bury()
        self._lead()

    @precondition(lambda self: not self.effects.full)
    @rule(junk=st.sampled_from([b"\0" * 100, b'{"v":1,"e"', b'{"v":1}\n'[:-1], b"\xff\xfe"]))
    def it_is_killed_and_the_tail_of_its_journal_is_damaged(self, junk: bytes) -> None:
        self._tick()
        self.stopped.clear()
        self.played.bury()
        newest = max(self.played.paths.journal.iterdir())
        with newest.open("ab") as file:
            file.write(junk)
        self._lead()

    @precondition(lambda self: not self.effects.full)
    @rule()
    def it_is_stopped_and_another_takes_over(self) -> None:
        self.stopped.append(self.leader)
        self._lead()

    @precondition(lambda self: self.stopped)
    @rule()
    def a_stopped_one_wakes(self) -> None:
        before = self.played.client.calls.copy()
        try:
            self.stopped.pop().tick()
        except LeadershipLost:
            before["squeue"] = self.played.client.calls["squeue"]
            before["sacct"] = self.played.client.calls["sacct"]
            assert before == self.played.client.calls, "a leader of the past has done something"
        else:
            raise AssertionError("a leader of the past has not seen that it is one")

    @rule(seconds=st.sampled_from([-3600.0, 3600.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.played.clock.skew += seconds

    @rule(full=st.booleans())
    def the_disk_fills_or_is_freed(self, full: bool) -> None:
        self.effects.full = full

    # ---- people and the cluster

    @rule(verb=st.sampled_from(["cancel", "retry"]), job=st.sampled_from(JOBS))
    def a_person_gives_a_command(self, verb: str, job: str) -> None:
        self.played.drop(verb, job)

    @rule(kind=st.sampled_from(sorted(FAULTS)), lasts=st.sampled_from([5.0, 200.0]), runs_on=st.booleans())
    def the_cluster_has_a_fault(self, kind: Any, lasts: float, runs_on: bool) -> None:
        self.played.client.befall(ClusterFault(kind=kind, at=0.0, lasts=lasts, runs_on=runs_on))

    @rule(job=st.sampled_from(JOBS), kept=st.sampled_from([0, 10]))
    def a_log_is_cut(self, job: str, kept: int) -> None:
        attempt = self.played.audit.session.jobs[job].attempt if self.played.audit.session.jobs else None
        if attempt is not None and os.path.exists(attempt.log_path):
            os.truncate(attempt.log_path, min(kept, os.path.getsize(attempt.log_path)))

    # ---- the end

    def teardown(self) -> None:
        """Nothing more happens: every job comes to its verdict."""
        if not hasattr(self, "leader"):
            return
        with self._stack:
            self.effects.full = False
            cluster, left = self.played.client.played, CALM_TICKS
            for job in cluster.jobs.values():
                job.held = ""
            cluster.wake()

            def count() -> None:
                nonlocal left
                left -= 1
                assert left, "9: no end, though nothing more happens"

            self.played.run(self.leader, count)
            self.played.audit.look_at_the_journal()
            self.played.audit.at_the_end()


TestWhateverHappens = Orchestra.TestCase
TestWhateverHappens.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    derandomize=EXAMPLES == 60,
    suppress_health_check=list(HealthCheck),
)
