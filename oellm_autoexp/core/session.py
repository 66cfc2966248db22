"""All jobs of a session as the journal tells them.

`Session.apply` is the only way state changes, in life as in replay; so replay is recovery.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.lifecycle import begin, evolve, without_successor
from oellm_autoexp.core.model import Attempt, Job, JobState, Phase, mode_root
from oellm_autoexp.core.nodes import NodeLedger
from oellm_autoexp.core.quick import quick, replace

#: A death within this time of the start is an early one (the default start-up grace).
EARLY_S = 900.0
#: A successor that was refused is asked for again this much later than an attempt would be.
SUCCESSOR_AGAIN_S = 600.0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSubmission:
    """A submission whose outcome is not on disk."""

    token: str
    jobs: tuple[tuple[str, int], ...]
    requested_at: float
    exclude: tuple[str, ...] = ()
    at_once: int | None = None
    #: As of `SubmitRequested`.
    after: str = ""
    spawned_at: float | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """How many tasks of an array may run at once: as it was submitted, and as it is meant to be."""

    first: int
    now: int


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ActionState:
    """One action for one occurrence, from intent to outcome."""

    request: ev.ActionRequested
    runs: int = 0
    spawned_at: float | None = None
    position: int | None = None
    ended: ev.ActionEnded | None = None


@dataclass(slots=True)
class Session:
    """The state of a session; made by applying its journal from the first event on."""

    opened: ev.SessionOpened | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Names of the jobs with an attempt that may be able to run, as they came to be so.
    alive: dict[str, None] = field(default_factory=dict)
    #: Names of the jobs that have neither such an attempt nor a verdict.
    waiting: dict[str, None] = field(default_factory=dict)
    #: Names of the jobs of which an attempt waits behind others.
    queued: dict[str, None] = field(default_factory=dict)
    #: Names of the jobs that ended only because a parent did.
    orphans: dict[str, None] = field(default_factory=dict)
    #: Names of the jobs that have changed since `take_changed`.
    changed: dict[str, None] = field(default_factory=dict, compare=False)
    rules: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    submissions: dict[str, OpenSubmission] = field(default_factory=dict)
    #: Of arrays that have one, by token.
    throttles: dict[str, Throttle] = field(default_factory=dict)
    actions: dict[str, ActionState] = field(default_factory=dict)
    #: Keys of actions without an outcome, in order.
    open_actions: dict[str, None] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    blind: str = ""
    blind_since: float = 0.0
    breaker: ev.BreakerTripped | None = None
    #: Early deaths per cause since the breaker was last reset, each job with its nodes: what would trip it.
    #: Nodes that a job's end does not depend on are "".
    early_deaths: dict[str, dict[str, str]] = field(default_factory=dict)
    nodes: NodeLedger = field(default_factory=NodeLedger)
    last_spawn_at: float | None = None
    ended: ev.SessionEnded | None = None
    #: Nobody is to lead it until a person says so.
    stopped: bool = False

    def apply(self, event: ev.Event) -> None:  # noqa: C901 - one case per event is the clearest form
        """Take one event in."""
        match event:
            # First what a long journal is full of.
            case ev.ProgressMade() | ev.SignalsFound():
                self._of_job(event)
            case ev.SessionOpened():
                self.opened = event
                self.ended = None
            case ev.RulesSet():
                self.rules[event.rules] = event.config
            case ev.SessionEnded():
                self.ended = event
            case ev.Blinded():
                self.blind, self.blind_since = event.reason, event.at
            case ev.Sighted():
                self.blind = ""
            case ev.BreakerTripped():
                self.breaker = event
                self.nodes.apply(event)
            case ev.BreakerReset():
                self.breaker, self.ended = None, None
                self.early_deaths.clear()
            case ev.CommandAnswered():
                self.answered.add(event.command)
                if event.ok and event.verb in ("stop", "start"):
                    self.stopped = event.verb == "stop"
            case ev.NodesSuspected() | ev.NodesTrusted() | ev.NodesExcluded() | ev.NodesForgiven():
                self.nodes.apply(event)
            case ev.JobAdded():
                self._set(Job(spec=event.spec))
                self.ended = None
            case ev.SubmitRequested():
                self._requested(event)
            case ev.ThrottleSet():
                self.throttles[event.token] = replace(self.throttles[event.token], now=event.at_once)
            case ev.SubmitSpawned():
                self._spawned(event)
            case ev.SubmitAccepted():
                self._accepted(event)
            case ev.SubmitRefused():
                self._refused(event)
            case ev.ActionRequested():
                self._request_action(event)
            case ev.ActionSpawned():
                before = self.actions[event.key]
                self.actions[event.key] = replace(
                    before, runs=event.run, spawned_at=event.at, position=event.position
                )
            case ev.ActionEnded():
                self.actions[event.key] = replace(self.actions[event.key], ended=event)
                self.open_actions.pop(event.key, None)
            case _:
                self._of_job(event)

    def _of_job(self, event: ev.Event) -> None:
        name: str = getattr(event, "job")  # noqa: B009 - every event that comes here names a job
        job = evolve(self.jobs[name], event)
        if isinstance(event, (ev.ProgressMade, ev.SignalsFound)):
            # Most of a long journal is of these, which end nothing and begin nothing.
            self.jobs[name] = job
            self.changed[name] = None
        else:
            self._set(job)
        if isinstance(event, ev.SignalsFound):
            for request in actions_of(job, event):
                self._request_action(request)
        elif isinstance(event, ev.AttemptEnded):
            self.nodes.apply(event)
            self._count_early_death(job, final=False)
        elif isinstance(event, ev.JobEnded):
            self._count_early_death(job, final=True)
        elif isinstance(event, (ev.JobRetried, ev.JobUpdated)):
            self.ended = None

    def _set(self, job: Job) -> None:
        name = job.spec.name
        self.jobs[name] = job
        self.changed[name] = None
        if job.successor is not None:
            self.queued[name] = None
        elif name in self.queued:
            del self.queued[name]
        if job.live is not None:
            self.alive[name] = None
            self.waiting.pop(name, None)
        else:
            self.alive.pop(name, None)
            if job.orphaned:
                self.orphans[name] = None
            elif name in self.orphans:
                del self.orphans[name]
            if job.state.ended:
                self.waiting.pop(name, None)
            else:
                self.waiting[name] = None

    def take_changed(self) -> dict[str, None]:
        """The names of the jobs that have changed since the last call, in that order."""
        taken, self.changed = self.changed, {}
        return taken

    def _request_action(self, event: ev.ActionRequested) -> None:
        if event.key not in self.actions:
            self.actions[event.key] = ActionState(request=event)
            self.open_actions[event.key] = None

    # ---- submissions

    def _requested(self, event: ev.SubmitRequested) -> None:
        self.submissions[event.token] = OpenSubmission(
            token=event.token,
            jobs=event.jobs,
            requested_at=event.at,
            exclude=event.exclude,
            at_once=event.at_once,
            after=event.after,
        )
        if event.at_once is not None:
            self.throttles[event.token] = Throttle(first=event.at_once, now=event.at_once)
        for task, (name, number) in enumerate(event.jobs):
            job = self.jobs[name]
            attempt = Attempt(
                number=number,
                token=event.token,
                task=task,
                requested_at=event.at,
                time_limit_s=job.next_limit_s,
                log_path=job.spec.log_of(number),
                exclude=event.exclude,
                after=event.after,
            )
            self._set(replace(job, successor=attempt) if event.after else begin(job, attempt))

    def _each(self, token: str) -> Iterable[tuple[Job, Attempt]]:
        for name, number in self.submissions[token].jobs:
            job = self.jobs[name]
            yield job, job.numbered(number)

    def _put(self, job: Job, attempt: Attempt) -> None:
        if _waits_behind(job, attempt):
            self._set(replace(job, successor=attempt))
            return
        attempts = tuple(attempt if old.number == attempt.number else old for old in job.attempts)
        self._set(replace(job, attempts=attempts))

    def _spawned(self, event: ev.SubmitSpawned) -> None:
        self.submissions[event.token] = replace(self.submissions[event.token], spawned_at=event.at)
        self.last_spawn_at = event.at
        for job, attempt in list(self._each(event.token)):
            self._put(job, replace(attempt, phase=Phase.SPAWNED, spawned_at=event.at))

    def _accepted(self, event: ev.SubmitAccepted) -> None:
        by_task = {ref.task: ref for ref in event.refs}
        for job, attempt in list(self._each(event.token)):
            ref = by_task.get(attempt.task)
            if ref is None:
                # This task of the submission never came to be: the job waits as before.
                self._withdraw(replace(job, withdrawn=attempt.number), attempt, not_before=0.0, hold="")
            else:
                self._put(job, replace(attempt, phase=Phase.ACCEPTED, ref=ref))
        del self.submissions[event.token]

    def _refused(self, event: ev.SubmitRefused) -> None:
        for job, attempt in list(self._each(event.token)):
            if event.withdrawn:
                job = replace(job, withdrawn=attempt.number)
            again_at = math.inf if event.permanent and attempt.after else event.retry_at
            self._withdraw(job, attempt, not_before=again_at, hold=event.reason)
        del self.submissions[event.token]

    def _withdraw(self, job: Job, attempt: Attempt, *, not_before: float, hold: str) -> None:
        if _waits_behind(job, attempt):
            self._set(without_successor(replace(job, successor_at=not_before + SUCCESSOR_AGAIN_S)))
            return
        attempts = tuple(old for old in job.attempts if old.number != attempt.number)
        self._set(replace(job, attempts=attempts, state=JobState.WAITING, not_before=not_before, hold=hold))

    # ---- views

    def _count_early_death(self, job: Job, *, final: bool) -> None:
        """A death counts at once where its last line names the cause, else when it is the job's end."""
        attempt = job.attempt
        mode = job.mode if final or attempt is None else attempt.mode
        if attempt is None or attempt.progressed or mode_root(mode) != "crash":
            return
        if final:
            counts = job.state is JobState.FAILED
        else:
            counts = mode in ("crash", "crash.config") and attempt.last_error != "" and _early(attempt)
        if counts:
            cause = f"crash: {attempt.last_error}" if attempt.last_error else mode
            self.early_deaths.setdefault(cause, {})[job.spec.name] = "" if final else attempt.nodes

    @property
    def live(self) -> int:
        """How many attempts may be able to run."""
        return len(self.alive)

    @property
    def all_ended(self) -> bool:
        return not self.alive and not self.waiting


def _waits_behind(job: Job, attempt: Attempt) -> bool:
    return job.successor is not None and job.successor.number == attempt.number


def _early(attempt: Attempt) -> bool:
    if attempt.started_at is None or attempt.ended_at is None:
        return False
    return attempt.ended_at - attempt.started_at <= EARLY_S


def actions_of(job: Job, event: ev.SignalsFound) -> Iterable[ev.ActionRequested]:
    """The actions that signals fire: part of the signals' own record, so neither can be without the other."""
    for found in event.signals:
        for action in found.actions:
            yield ev.ActionRequested(
                at=event.at,
                key=f"{event.job}:{event.attempt}:{found.key}:{action}",
                action=action,
                job=event.job,
                attempt=event.attempt,
                rule=found.rule,
                rules=job.spec.rules,
                fields={**found.fields, "line": found.line},
            )
