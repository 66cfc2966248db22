"""The journal's vocabulary: intents, outcomes and observed facts, with their form on disk.

An *intent* without its *outcome* is outstanding work. Names ending in `Requested` are intents; their
outcomes carry the same token or key. Everything else is a fact that was observed or a decision made.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Union

from oellm_autoexp.core.model import Cursor, JobSpec, LogSignal, Scalar, SchedulerRef
from oellm_autoexp.core.quick import quick


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One record of the journal. `at` is when it was journaled (UTC epoch seconds)."""

    kind: ClassVar[str]
    at: float


# ---------------------------------------------------------------- the session


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """A source was reconciled with the session; the latest one is in force."""

    kind: ClassVar[str] = "session_opened"
    project: str
    session: str
    nonce: str
    #: The registered class name of the scheduler and its resolved config.
    scheduler: Mapping[str, Any]
    #: What the plan came from: {"config_ref", "config_dir", "overrides", …}.
    source: Mapping[str, Any] = field(default_factory=dict)
    #: Resolved config, git commit, dirty flag, interpreter, versions.
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesSet(Event):
    """Signals, policies, actions, gates under an identity that job specs refer to."""

    kind: ClassVar[str] = "rules_set"
    rules: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """Every job has a verdict, or nothing can go on without a person."""

    kind: ClassVar[str] = "session_ended"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blinded(Event):
    """The scheduler stopped answering; until `Sighted` nothing is concluded from it."""

    kind: ClassVar[str] = "blinded"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted(Event):
    kind: ClassVar[str] = "sighted"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTripped(Event):
    """Several jobs died early of the same cause; waiting jobs are held."""

    kind: ClassVar[str] = "breaker_tripped"
    cause: str
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerReset(Event):
    kind: ClassVar[str] = "breaker_reset"
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSuspected(Event):
    """The end of an attempt speaks against nodes, each with this weight (see `core.nodes`).

    `share`: one of them may be to blame, and nobody says which.
    """

    kind: ClassVar[str] = "nodes_suspected"
    nodes: tuple[str, ...]
    weight: float
    what: str
    job: str
    attempt: int
    share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesTrusted(Event):
    """An attempt on suspected nodes ended well."""

    kind: ClassVar[str] = "nodes_trusted"
    nodes: tuple[str, ...]
    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesExcluded(Event):
    """A person wants no job on these nodes, until they are forgiven."""

    kind: ClassVar[str] = "nodes_excluded"
    nodes: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesForgiven(Event):
    """What was known against nodes is forgotten, by "user" or since the "scheduler" takes no job without."""

    kind: ClassVar[str] = "nodes_forgiven"
    nodes: tuple[str, ...]
    by: str = "user"
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAnswered(Event):
    """A command from the inbox was carried out (or refused) and this is its answer."""

    kind: ClassVar[str] = "command_answered"
    command: str
    verb: str
    ok: bool
    text: str


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAdded(Event):
    kind: ClassVar[str] = "job_added"
    spec: JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUpdated(Event):
    """The plan has another spec for a job of this name.

    A live job takes it at its next attempt. `again` starts an ended job anew.
    """

    kind: ClassVar[str] = "job_updated"
    job: str
    spec: JobSpec
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUnplanned(Event):
    """The plan no longer has this job; it goes on until it is cancelled by a person."""

    kind: ClassVar[str] = "job_unplanned"
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHeld(Event):
    """Why a waiting job is not submitted ("" when it may go)."""

    kind: ClassVar[str] = "job_held"
    job: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryProved(Event):
    """A canary has shown that it works; when all have, the other jobs may start."""

    kind: ClassVar[str] = "canary_proved"
    job: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWished(Event):
    """A person or a rule wants the job to end; the live attempt, if any, is cancelled first.

    `mode` is the verdict to give ("cancelled", "success", "crash.nan" …).
    """

    kind: ClassVar[str] = "end_wished"
    job: str
    why: str
    by: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRetried(Event):
    """A person starts an ended job again; its budgets begin anew."""

    kind: ClassVar[str] = "job_retried"
    job: str
    by: str = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartScheduled(Event):
    """A policy decided to try again, not before `not_before`."""

    kind: ClassVar[str] = "restart_scheduled"
    job: str
    attempt: int
    mode: str
    #: The policy entry that was charged ("crash", "crash.oom", …) and the sentence it gave.
    entry: str
    why: str
    not_before: float
    #: False where this restart is free of budgets (preemption).
    charged: bool = True
    time_limit_s: int | None = None
    #: The number of the attempt that waits in the queue already, and is to go on; 0: one is to be submitted.
    successor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """The verdict of a job; only a person's command changes it."""

    kind: ClassVar[str] = "job_ended"
    job: str
    state: str
    mode: str
    reason: str
    #: The rule or policy entry that decided.
    by: str = ""


# ---------------------------------------------------------------- attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRequested(Event):
    """Intent: one call to the scheduler for these (job, attempt number) pairs, in task order."""

    kind: ClassVar[str] = "submit_requested"
    token: str
    jobs: tuple[tuple[str, int], ...]
    #: Nodes that none of them is to be given.
    exclude: tuple[str, ...] = ()
    #: Of an array: at most so many of its tasks run at once (sbatch's `--array=…%K`); None: no bound.
    at_once: int | None = None
    #: The scheduler's ids, joined by ":", of the attempts behind whose ends the one attempt is to wait: the
    #: live one of the job, or those of its parents; "" for none.
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleSet(Event):
    """Intent: so many tasks of an array may run at once from now on."""

    kind: ClassVar[str] = "throttle_set"
    token: str
    at_once: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitSpawned(Event):
    """Written before the scheduler is called; an intent without it was never carried out."""

    kind: ClassVar[str] = "submit_spawned"
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitAccepted(Event):
    """Outcome: the scheduler has it; one reference per task. `adopted`: found by its token later."""

    kind: ClassVar[str] = "submit_accepted"
    token: str
    refs: tuple[SchedulerRef, ...]
    adopted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRefused(Event):
    """Outcome: proven not submitted. `permanent` refusals end the jobs, others are tried again.

    `withdrawn`: its attempts were claimed by the leader, so that none of them can ever run.
    """

    kind: ClassVar[str] = "submit_refused"
    token: str
    reason: str
    permanent: bool
    retry_at: float = 0.0
    withdrawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessorDropped(Event):
    """Intent: the attempt that waits behind others is never to begin."""

    kind: ClassVar[str] = "successor_dropped"
    job: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessorSettled(Event):
    """Outcome: its claim was taken by the leader, so that it never runs; or, `begun`, it had one already."""

    kind: ClassVar[str] = "successor_settled"
    job: str
    attempt: int
    begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessorTaken(Event):
    """The attempt that waits behind those of the job's parents is the job's from now on, and is told to go.

    The parents have succeeded, or it has begun by itself.
    """

    kind: ClassVar[str] = "successor_taken"
    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPending(Event):
    kind: ClassVar[str] = "attempt_pending"
    job: str
    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRequeued(Event):
    """The scheduler itself has ended a start of the attempt, and starts it again under the same id.

    `requeues`: how often it has done so (Slurm's Restarts); the guard's claims count the same as generations.
    """

    kind: ClassVar[str] = "attempt_requeued"
    job: str
    attempt: int
    requeues: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionUpdated(Event):
    """Outcome: the scheduler keeps a queued attempt from these nodes, instead of those it was told before."""

    kind: ClassVar[str] = "exclusion_updated"
    job: str
    attempt: int
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(Event):
    kind: ClassVar[str] = "attempt_started"
    job: str
    attempt: int
    started_at: float
    nodes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptGone(Event):
    """The scheduler does not know the attempt, or only a copy that another one kept from running.

    To be confirmed after a grace.
    """

    kind: ClassVar[str] = "attempt_gone"
    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event):
    """Death is proven, the log is drained: what ended the attempt, and the evidence in words."""

    kind: ClassVar[str] = "attempt_ended"
    job: str
    attempt: int
    mode: str
    reason: str
    evidence: str
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Event):
    """Intent: end the live attempt at the scheduler."""

    kind: ClassVar[str] = "cancel_requested"
    job: str
    attempt: int
    why: str
    by: str
    mode: str
    #: For a stall: seconds of observed silence, or of a counter standing still, before it.
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSent(Event):
    """Outcome: the scheduler took the cancel; death is still to be proven."""

    kind: ClassVar[str] = "cancel_sent"
    job: str
    attempt: int


# ---------------------------------------------------------------- logs


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalsFound(Event):
    """Signals and the cursor behind them in one record: neither lost nor repeated by a crash."""

    kind: ClassVar[str] = "signals_found"
    job: str
    attempt: int
    file: str
    cursor: Cursor
    signals: tuple[LogSignal, ...] = ()
    matches: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade(Event):
    """A declared counter reached a new high-water mark, or `checkpoint` was reported complete."""

    kind: ClassVar[str] = "progress_made"
    job: str
    attempt: int
    counter: str
    value: float
    #: When it was seen in the log, where that was before it was journaled: marks are kept back for seconds.
    seen_at: float | None = None


# ---------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRequested(Event):
    """Intent: carry out `action` once for the occurrence that `key` names."""

    kind: ClassVar[str] = "action_requested"
    key: str
    action: str
    job: str = ""
    attempt: int = 0
    rule: str = ""
    #: The rules identity whose config defines the action.
    rules: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpawned(Event):
    """Written before the action's effect; `run` counts its tries from 1."""

    kind: ClassVar[str] = "action_spawned"
    key: str
    run: int
    #: For an append: the size of the file before it, so that a repeated one can be recognised.
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionEnded(Event):
    """Outcome of an action. `ok` False: it failed for good, `reason` says how."""

    kind: ClassVar[str] = "action_ended"
    key: str
    ok: bool
    reason: str = ""
    exit_code: int | None = None


# ---------------------------------------------------------------- form on disk

KINDS: dict[str, type[Event]] = {
    cls.kind: quick(cls)
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Event) and cls is not Event
}


def encode(event: Event) -> dict[str, Any]:
    """The JSON object of an event's fields, without its kind and time. Defaults are left out."""
    body = {}
    for item in _FIELDS[type(event)]:
        value = getattr(event, item.name)
        if item.name != "at" and value != item.default:
            body[item.name] = value if value.__class__ in _JSON_SCALARS else _plain(value)
    return body


def decode(kind: str, at: float, body: Mapping[str, Any]) -> Event:
    """The event that `encode` wrote.

    Raises:
        KeyError: the kind is not known to this version.
        TypeError, ValueError: the body does not fit the kind.
    """
    cls = KINDS[kind]
    return cls(at=at, **_rebuilt(body, _READERS[cls]))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            if inner != item.default:
                out[item.name] = _plain(inner)
        return out
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value


def _reader(hint: Any) -> Callable[[Any], Any]:
    """A function that rebuilds a value of the annotated type from JSON."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) == 1:
            read = _reader(inner[0])
            return lambda value: None if value is None else read(value)
        return _same
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            read = _reader(args[0])
            return lambda value: tuple(read(item) for item in value)
        reads = [_reader(arg) for arg in args]
        return lambda value: tuple(r(item) for r, item in zip(reads, value, strict=True))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    return _same


def _same(value: Any) -> Any:
    return value


def _dataclass_reader(cls: type) -> Callable[[Any], Any]:
    readers = _readers(cls)
    return lambda value: cls(**_rebuilt(value, readers))


def _readers(cls: type) -> dict[str, Callable[[Any], Any]]:
    """Readers of the fields whose form in JSON differs; the others cost a long replay nothing."""
    hints = typing.get_type_hints(cls)
    readers = {item.name: _reader(hints[item.name]) for item in dataclasses.fields(cls)}
    return {name: read for name, read in readers.items() if read is not _same}


def _rebuilt(values: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]]) -> Mapping[str, Any]:
    if not readers:
        return values
    return {**values, **{name: read(values[name]) for name, read in readers.items() if name in values}}


_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})
_FIELDS = {cls: dataclasses.fields(cls) for cls in KINDS.values()}
_READERS = {cls: _readers(cls) for cls in KINDS.values()}
