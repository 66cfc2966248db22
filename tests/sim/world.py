"""A world in memory for the real loop: a clock that only waiting moves, and a scheduler with scripted jobs.

The world outlives the loops that are killed over it. Logs, claims and exit records are real files, written
as the guard writes them. The scheduler is the worst that the socket allows: submitting twice starts two
processes, answers get lost, questions go unanswered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission, Task
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import ExitRecord, JobSpec, Parent, SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.session import Session
from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED, EXIT_CLAIM_LOST
from oellm_autoexp.errors import SchedulerUnavailable, SubmitRejected, SubmitUnclear
from oellm_autoexp.monitor.checks import Executor, InlineExecutor
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.rendering.guard_files import Claim
from oellm_autoexp.services.plugins import load_builtin
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Journal, read

load_builtin()

#: What a process does: seconds after its start, then a line for its log or the code it exits with.
Script = Sequence[tuple[float, "str | int"]]
#: It runs until it is cancelled.
FOREVER: Script = ()


@dataclass
class Process:
    """One start of a task."""

    id: str
    token: str
    index: int
    task: Task
    attempt: int
    started_at: float
    script: list[tuple[float, str | int]]
    ended: ExitRecord | None = None

    @property
    def owner(self) -> tuple[str, int]:
        return self.task.name, self.attempt


@dataclass
class World:
    """`script_of` says what a task does; `outages` are the times in which the scheduler does not answer."""

    script_of: Callable[[str, int], Script]
    now: float = 1000.0
    outages: Sequence[tuple[float, float]] = ()
    #: (name, attempt) whose submission is taken in, but the answer is lost; once each.
    unclear: set[tuple[str, int]] = field(default_factory=set)
    #: (name, attempt) that the scheduler never takes.
    rejected: set[tuple[str, int]] = field(default_factory=set)
    #: What happens at a time, whether somebody watches or not.
    alarms: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    # ---- the clock of the loop

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass: everything that is due happens in order."""
        until = self.now + seconds
        while True:
            due = [(at, run) for at, run in self._due() if at <= until]
            if not due:
                break
            at, run = min(due, key=lambda item: item[0])
            self.now = max(self.now, at)
            run()
        self.now = until

    def _due(self) -> list[tuple[float, Callable[[], None]]]:
        acts = [
            (process.started_at + process.script[0][0], lambda process=process: self._act(process))
            for process in self.processes
            if process.ended is None and process.script
        ]
        alarms = [
            (alarm[0], lambda alarm=alarm: (self.alarms.remove(alarm), alarm[1]()))  # type: ignore[misc]
            for alarm in self.alarms
        ]
        return [*acts, *alarms]  # type: ignore[list-item]

    # ---- processes

    def start(self, token: str, index: int, task: Task) -> None:
        """Start a task, as often as it is asked for; a second claimant of an attempt gives up."""
        attempt = _attempt(task)
        identity = str(100 + len(self.processes))
        process = Process(identity, token, index, task, attempt, self.now, [])
        self.processes.append(process)
        process.script += self.script_of(task.name, attempt)
        directory = Path(task.attempt_dir)
        directory.mkdir(parents=True, exist_ok=True)
        Path(task.log_path).parent.mkdir(parents=True, exist_ok=True)
        if (directory / "claim.0.json").exists():
            process.ended = ExitRecord(exit_code=EXIT_CLAIM_LOST, started_at=self.now, ended_at=self.now)
            return
        claim = Claim(
            generation=0,
            scheduler_id=identity,
            restart_count=0,
            host="n",
            boot_id="b",
            pid=1,
            pid_start="1",
            token=token,
        )
        (directory / "claim.0.json").write_text(json.dumps(asdict(claim)))

    def _act(self, process: Process) -> None:
        _, what = process.script.pop(0)
        if isinstance(what, int):
            self.end(process, what)
            return
        with Path(process.task.log_path).open("a") as log:
            log.write(what + "\n")

    def end(self, process: Process, code: int, cause: str = "exit") -> None:
        process.ended = ExitRecord(
            exit_code=code,
            cause=cause,
            started_at=process.started_at,
            ended_at=self.now,
            host="n",
            generation=0,
        )
        if code != EXIT_CLAIM_FAILED:  # Who cannot claim an attempt can write nothing there.
            path = Path(process.task.attempt_dir) / "exit.0.json"
            path.write_text(json.dumps(asdict(process.ended)))

    @property
    def started(self) -> Counter[tuple[str, int]]:
        """How often each attempt was started."""
        return Counter(process.owner for process in self.processes)

    def overlaps(self) -> list[str]:
        """Jobs of which two processes were able to run at one time."""
        found = []
        for number, one in enumerate(self.processes):
            for other in self.processes[number + 1 :]:
                end = one.ended.ended_at if one.ended else float("inf")
                lost = EXIT_CLAIM_LOST in {p.ended.exit_code for p in (one, other) if p.ended}
                same = Path(one.task.attempt_dir).parent == Path(other.task.attempt_dir).parent
                if same and (other.started_at < end or lost):
                    found.append(f"{one.owner} {other.owner}")
        return found


@dataclass(kw_only=True)
class SimConfig:
    """As a scheduler's config."""

    max_jobs: int | None = None
    breaker: int | None = 3
    submit_rate_limit_seconds: float | None = None


class SimScheduler(SchedulerInterface):
    """The scheduler of a world."""

    config: SimConfig

    def __init__(self, world: World, effects: Effects, config: SimConfig, capabilities: Capabilities) -> None:
        super().__init__(config)
        self._world = world
        self._effects = effects
        self.capabilities = capabilities
        self.cluster = "sim"

    def _ask(self, what: str) -> None:
        self._world.calls[what] += 1
        if any(begin <= self._world.now < end for begin, end in self._world.outages):
            raise SchedulerUnavailable("the controller does not answer")

    def render(self, request: ScriptRequest) -> str:
        return f"#!/bin/sh\n# {request.name}\n"

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        self._ask("submit")
        lost = False
        if any((task.name, _attempt(task)) in self._world.rejected for task in submission.tasks):
            raise SubmitRejected("invalid account")
        for index, task in enumerate(submission.tasks):
            self._effects.call(
                "queue",
                task.name,
                lambda index=index, task=task: self._world.start(submission.token, index, task),  # type: ignore[misc]
            )
            owner = self._world.processes[-1].owner
            lost = lost or owner in self._world.unclear
            self._world.unclear.discard(owner)
        if lost:
            raise SubmitUnclear("the connection was closed")
        return self._found(submission.token)

    def _found(self, token: str) -> list[SchedulerRef]:
        refs = [_ref(process) for process in self._world.processes if process.token == token]
        return sorted(refs, key=lambda ref: ref.task)

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        self._ask("find")
        found = {token: self._found(token) for token in tokens}
        return {token: refs for token, refs in found.items() if refs}

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        self._ask("poll")
        by_id = {process.id: process for process in self._world.processes}
        return {ref: _fact(by_id.get(ref.id)) for ref in refs}

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        self._ask("cancel")
        for ref in refs:
            process = next(process for process in self._world.processes if process.id == ref.id)
            if process.ended is None:
                self._world.end(process, 143, "signal:TERM")

    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        raise NotImplementedError


def _attempt(task: Task) -> int:
    return int(task.environment.get("AUTOEXP_ATTEMPT", "1"))


def _ref(process: Process) -> SchedulerRef:
    return SchedulerRef(
        id=process.id,
        cluster="sim",
        token=process.token,
        task=process.index,
        submitted_at=process.started_at,
    )


def _fact(process: Process | None) -> SchedulerFact:
    if process is None:
        return SchedulerFact(state=SchedulerState.GONE)
    if process.ended is None:
        return SchedulerFact(state=SchedulerState.RUNNING, started_at=process.started_at)
    state = SchedulerState.FAILED if process.ended.exit_code else SchedulerState.COMPLETED
    return SchedulerFact(
        state=state,
        exit_code=process.ended.exit_code,
        started_at=process.started_at,
        ended_at=process.ended.ended_at,
    )


class SimClock:
    """The clock of a world, as the loop reads it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    def monotonic(self) -> float:
        return self._world.now

    def wait(self, seconds: float) -> None:
        self._world.wait(seconds)


@dataclass
class Stage:
    """A session in a directory over a world: its plan, and how loops over it are made."""

    root: Path
    world: World
    rules: Mapping[str, Any]
    jobs: Sequence[str]
    job_changes: Mapping[str, Any] = field(default_factory=dict)
    #: Whom jobs wait for: a parent by its name, for its success.
    parents: Mapping[str, Sequence[str | Parent]] = field(default_factory=dict)
    #: What is in force for some jobs instead of `rules`.
    own_rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: SimConfig = field(default_factory=SimConfig)
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(find_grace_s=1.0, gone_grace_s=1.0, poll_interval_s=0.5)
    )
    #: Where actions run; None: in this world.
    local: SchedulerInterface | None = None
    executor: Executor = field(default_factory=InlineExecutor)
    warnings: list[str] = field(default_factory=list)
    journal: Journal | None = None

    @property
    def paths(self) -> SessionPaths:
        return SessionPaths(self.root / "state")

    def specs(self) -> list[JobSpec]:
        base = JobSpec(
            name="",
            id="",
            index=0,
            parameters={},
            argv=("true",),
            output_dir=str(self.root / "out"),
            checkpoint_dir=str(self.root / "ckpt"),
            script_path=str(self.root / "job.sh"),
            script_digest="d",
            log_path="",
            rules="r",
        )
        return [
            replace(
                base,
                name=name,
                id=f"id-{name}",
                index=index,
                parameters={"point": name},
                rules=name if name in self.own_rules else "r",
                log_path=str(self.root / "logs" / f"{name}.{{attempt}}.log"),
                parents=tuple(
                    Parent(job=parent, id=f"id-{parent}", stage=parent) if isinstance(parent, str) else parent
                    for parent in self.parents.get(name, ())
                ),
                **self.job_changes,
            )
            for index, name in enumerate(self.jobs)
        ]

    def submit(self, effects: Effects | None = None, nonce: str = "nonce") -> Loop:
        """A loop that leads the session, with the plan reconciled: what `submit` does."""
        loop = self.lead(effects)
        opened = ev.SessionOpened(
            at=self.world.now, project="p", session="s", nonce=nonce, scheduler={"class_name": "sim"}
        )
        rules = {"r": self.rules, **self.own_rules}
        done = reconcile(loop.session, opened, self.specs(), rules, now=self.world.now)
        for event in done.events:
            loop.record(event)
        return loop

    def lead(self, effects: Effects | None = None) -> Loop:
        effects, clock = effects or Effects(), SimClock(self.world)
        self.journal, history = Journal.lead(
            self.paths, effects, now=clock.now(), monotonic=clock.monotonic, wait=clock.wait
        )
        session = Session()
        for event in history.events:
            session.apply(event)
        scheduler = SimScheduler(self.world, effects, self.config, self.capabilities)
        local = self.local or SimScheduler(self.world, effects, SimConfig(), self.capabilities)
        return Loop(
            session,
            self.journal,
            scheduler,
            local,
            self.paths,
            effects,
            clock,
            self.executor,
            warn=self.warnings.append,
        )

    def run(self, loop: Loop, *, ticks: int = 1000, on_tick: Callable[[], None] = lambda: None) -> None:
        """Run a loop to its end, which comes within so many ticks."""
        left = ticks

        def count(_session: Session) -> None:
            nonlocal left
            left -= 1
            assert left > 0, f"no end after {ticks} ticks: {loop.session.jobs}"
            on_tick()

        loop.run(count)

    @property
    def events(self) -> list[ev.Event]:
        return read(self.paths).events

    def replayed(self) -> Session:
        session = Session()
        for event in self.events:
            session.apply(event)
        return session
