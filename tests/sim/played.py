"""A session over the fake cluster: loops come and go, are killed and put to sleep; cluster and jobs go on.

The loop is the real one, in a directory of its own. Its clock is the cluster's, which may be set forward and
back. Commands of actions run in a `World` that has the same time. Everything is audited as it happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invariants import Audit
from world import Script, SimConfig, SimScheduler, World

from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, Parent, Resources, SchedulerFact, SchedulerRef
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.checks import InlineExecutor
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient, FakeSlurmClientConfig
from oellm_autoexp.services.plugins import load_builtin
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Journal

load_builtin()

#: What the loop's commands do: an action that takes seven seconds.
SEVEN_SECONDS: Script = ((7.0, 0),)
SAVED = r"Checkpoint saved: (?P<path>\S+) at step (?P<step>\d+)"
LINES = {"saved": "Checkpoint saved: {checkpoint} at step {step}", "progress": "step {step} loss {loss}"}


@dataclass(kw_only=True)
class Setup:
    """A session to be played: its plan and rules, the cluster, the pace of its loop. Times are seconds."""

    jobs: Sequence[str]
    #: `cluster`, `jobs` and `faults` of a scenario.
    scenario: Mapping[str, Any]
    rules: Mapping[str, Any]
    max_jobs: int | None = None
    breaker: int | None = 3
    canary: int = 0
    time_limit: int | None = None
    #: How long what is queued behind another attempt waits for the word; None: nothing is.
    successor_wait: float | None = None
    pace: float = 20.0
    stride: float = 60.0
    #: As `submit --fake`: actions and conditions are only played, and not every job is looked at.
    rehearsal: bool = False
    #: Whether jobs wait in the queue, too, while those run that they wait for, and so long for the word.
    early_wait: float | None = None
    #: Whom jobs wait for.
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Watched(SchedulerInterface):
    """The cluster as a leader talks to it; every call and answer is put before the audit."""

    def __init__(self, played: Played) -> None:
        client, pace = played.client, played.setup.pace
        super().__init__(client.config)
        self._played = played
        self._client = client
        self.cluster = client.cluster
        self.capabilities = Capabilities(
            max_array_size=client.capabilities.max_array_size,
            throttles=client.capabilities.throttles,
            find_grace_s=2 * pace,
            gone_grace_s=2 * pace,
            poll_interval_s=pace,
            successors=client.capabilities.successors,
        )

    def render(self, request: ScriptRequest) -> str:
        return self._client.render(request)

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        self._played.audit.called("sbatch", self._played.client.played.now)
        return self._client.submit(submission)

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        self._played.audit.called("find", self._played.client.played.now)
        return self._client.find(tokens)

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        self._played.audit.called("poll", self._played.client.played.now)
        facts = self._client.poll(refs)
        self._played.audit.answered(self._played.clock.now(), facts)
        return facts

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        self._played.audit.called("scancel", self._played.client.played.now)
        self._client.cancel(refs)

    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        self._client.update(refs, changes)


class PlayedClock:
    """The cluster's time, as a machine shows it whose clock is wrong by `skew`; monotonic is never wrong."""

    def __init__(self, played: Played) -> None:
        self._played = played
        self.skew = 0.0

    def now(self) -> float:
        return self._played.client.played.now + self.skew

    def monotonic(self) -> float:
        return self._played.client.played.now

    def wait(self, seconds: float) -> None:
        """At least the pace; where nothing happens in that time, to the next happening within the stride."""
        setup = self._played.setup
        left = self._played.client.played.next_at - self._played.client.played.now
        self._played.pass_time(max(seconds, setup.pace, min(left, setup.stride)))


@dataclass
class Played:
    """A session being played in `root`."""

    root: Path
    setup: Setup
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = SessionPaths(self.root / "state")
        script, scenario = self.root / "job.sbatch", self.root / "scenario.yaml"
        script.write_text(f"#!/bin/bash\nexport AUTOEXP_CHECKPOINT_DIR={self.root}/ckpt\n")
        # The pace is ours: the client passes just as much time as it is told.
        told = {**self.setup.scenario, "pace": 1e-3, "stride": 1e-3}
        scenario.write_text(json.dumps(told))
        config = FakeSlurmClientConfig(
            scenario=str(scenario),
            max_jobs=self.setup.max_jobs,
            breaker=self.setup.breaker,
            successor=self.setup.successor_wait is not None,
            successor_wait_seconds=self.setup.successor_wait or self.setup.early_wait or 0.0,
            dependency="ours" if self.setup.early_wait is None else "native",
        )
        self.client = FakeSlurmClient(config, effects=Effects(durable=False), state_dir=self.root / "cluster")
        self.client.longest_s = self.setup.stride
        self.clock = PlayedClock(self)
        self.world = World(lambda _name, _attempt: SEVEN_SECONDS, now=self.client.played.now)
        self.audit = Audit(self.paths, self.client.played)
        self._journals: list[Journal] = []

    def pass_time(self, seconds: float) -> None:
        """Let time pass; the audit sees the cluster at each happening."""
        cluster = self.client.played
        until = cluster.now + seconds
        while cluster.now < until:
            self.client.pass_time(max(1e-3, min(until, cluster.next_at) - cluster.now))
            self.audit.look_at_the_cluster()
        self.world.wait(cluster.now - self.world.now)

    # ---- loops

    def specs(self) -> list[JobSpec]:
        return [
            JobSpec(
                name=name,
                id=f"id-{name}",
                index=index,
                parameters={"point": name},
                argv=("true",),
                output_dir=str(self.root / "out"),
                checkpoint_dir=str(self.root / "ckpt"),
                script_path=str(self.root / "job.sbatch"),
                script_digest="d",
                log_path=str(self.root / "logs" / f"{name}.{{attempt}}.log"),
                resources=Resources(time_limit_s=self.setup.time_limit),
                rules="r",
                parents=tuple(
                    Parent(job=parent, id=f"id-{parent}", stage=parent)
                    for parent in self.setup.parents.get(name, ())
                ),
            )
            for index, name in enumerate(self.setup.jobs)
        ]

    def lead(self, effects: Effects | None = None) -> Loop:
        """A loop of a new process."""
        effects = effects or Effects()
        journal, history = Journal.lead(
            self.paths,
            effects,
            now=self.clock.now(),
            monotonic=self.clock.monotonic,
            wait=self.pass_time,
        )
        self._journals.append(journal)
        session = Session()
        for event in history.events:
            session.apply(event)
        return Loop(
            session,
            journal,
            Watched(self),
            SimScheduler(self.world, effects, SimConfig(), Capabilities()),
            self.paths,
            effects,
            self.clock,
            InlineExecutor(),
            rehearsal=self.client if self.setup.rehearsal else None,
            warn=self.warnings.append,
        )

    def submit(self, effects: Effects | None = None) -> Loop:
        """A loop that has reconciled the plan, as `submit` does each time."""
        loop = self.lead(effects)
        now = self.clock.now()
        scheduler = {"class_name": "fake", "canary": self.setup.canary}
        opened = ev.SessionOpened(at=now, project="p", session="s", nonce="nonce", scheduler=scheduler)
        for event in reconcile(loop.session, opened, self.specs(), {"r": self.rules}, now=now).events:
            loop.record(event)
        return loop

    @property
    def rules(self) -> dict[str, Any]:
        """The rules, with the directory in the place of ROOT."""
        found: dict[str, Any] = json.loads(json.dumps(self.setup.rules).replace("ROOT", str(self.root)))
        return found

    def bury(self) -> None:
        """The leaders have died; the audit sees what they had written."""
        self.close()
        self.audit.look_at_the_journal()

    def close(self) -> None:
        """Dead processes hold no file open."""
        for journal in self._journals:
            if journal._fd >= 0:
                os.close(journal._fd)
                journal._fd = -1
        self._journals.clear()

    def drop(self, verb: str, *jobs: str) -> None:
        """What `oellm-autoexp cancel` or `retry` does on a led session."""
        inbox.drop(self.paths, Effects(), verb, {"jobs": list(jobs)}, now=self.clock.now())

    def run(self, loop: Loop, on_tick: Callable[[], None] = lambda: None) -> None:
        """Run a loop to the end of the session, audited after each tick."""

        def audited(session: Session) -> None:
            self.audit.look_at_the_journal(session)
            on_tick()

        loop.run(audited)
        loop.close()


@contextlib.contextmanager
def stage(setup: Setup) -> Iterator[Played]:
    """A setup in a directory that is gone afterwards; in memory where there is such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        played = Played(Path(directory), setup)
        try:
            yield played
        finally:
            played.close()
