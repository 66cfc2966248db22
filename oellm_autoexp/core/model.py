"""The frozen nouns of a session: job, attempt, what a scheduler and a log said about them.

Times are UTC epoch seconds, durations are seconds (`_s`), sizes are bytes (`_bytes`).
Nothing here reads a clock or touches a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Union

from oellm_autoexp.core.quick import quick

Scalar = Union[str, int, float, bool, None]


class JobState(str, Enum):
    """What a person sees of a job; the values are the contract of `status --json`."""

    #: No attempt is alive: not yet submitted, held by a gate, or between two attempts.
    WAITING = "waiting"
    #: Handed to the scheduler, which has not said anything about it yet.
    SUBMITTED = "submitted"
    #: Queued.
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: An attempt exists, but what became of it cannot be told at the moment.
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


#: The roots of error modes. A finer kind is dotted: `crash.oom`, `crash.nan`, `crash.config`.
MODES = ("success", "stall", "timeout", "crash", "preempted", "cancelled")


def mode_root(mode: str) -> str:
    return mode.split(".", 1)[0]


def most_specific(mode: str, known: Mapping[str, Any]) -> str | None:
    """The longest dotted prefix of `mode` that `known` has an entry for.

    >>> most_specific("crash.oom.gpu", {"crash": 1, "crash.oom": 2})
    'crash.oom'
    """
    parts = mode.split(".")
    for end in range(len(parts), 0, -1):
        candidate = ".".join(parts[:end])
        if candidate in known:
            return candidate
    return None


class SchedulerState(str, Enum):
    """What a scheduler says of one attempt, in the words of Slurm's squeue(1) and sacct(1)."""

    PENDING = "PENDING"
    #: Allocated, but the script has not started (CONFIGURING) or may not go on (SUSPENDED, STOPPED).
    HELD = "HELD"
    RUNNING = "RUNNING"
    #: The end has begun; processes may still be alive.
    COMPLETING = "COMPLETING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    #: The scheduler answered and does not know the attempt (any more).
    GONE = "GONE"

    @property
    def ended(self) -> bool:
        return self not in _ALIVE


_ALIVE = frozenset(
    {SchedulerState.PENDING, SchedulerState.HELD, SchedulerState.RUNNING, SchedulerState.COMPLETING}
)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerRef:
    """The identity of one scheduler job: ids are reused, so an id alone names nothing."""

    id: str
    cluster: str
    token: str
    task: int = 0
    submitted_at: float = 0.0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerFact:
    """One answered statement of the scheduler about one attempt."""

    state: SchedulerState
    reason: str = ""
    #: The process exit status where the scheduler knows it (0–255).
    exit_code: int | None = None
    #: The number of the signal that ended it, 0 for none.
    signal: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    #: A node list as Slurm writes it (`core.hostlist`).
    nodes: str = ""
    #: Those of them that have failed, where the scheduler can tell them from the others.
    failed_nodes: str = ""
    #: How often the scheduler itself has started this id again (Slurm's Restarts).
    restart_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """What the guard wrote when the command ended."""

    #: Exit status of the command, or 128 + signal.
    exit_code: int
    #: Why the guard ended: "exit" (the command ended by itself), "timeout" (the local time limit),
    #: or "signal:TERM" (forwarded from outside before the command ended).
    cause: str = "exit"
    started_at: float = 0.0
    ended_at: float = 0.0
    host: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one attempt asks for; zero means the scheduler's default."""

    nodes: int = 1
    gpus: int = 0
    time_limit_s: int | None = None
    #: What the command is sent before the time limit, as by sbatch's `--signal` ("B:USR1@300"); "": nothing.
    signal: str = ""


#: What lets a job start that has a parent: the parent's success, or the job's own start condition.
SUCCESS, CONDITION = "success", "condition"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A job that another one waits for: its sibling in another stage, or the segment that it follows."""

    job: str
    #: Its content hash, as the waiting job was planned.
    id: str
    stage: str = ""
    gate: str = SUCCESS

    @property
    def called(self) -> str:
        """How a sentence names it."""
        return f"{self.job} (stage {self.stage})" if self.stage else self.job


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One experiment that a person wants done, as the plan froze it."""

    name: str
    #: Content hash of what it computes: parameters, backend, environment, and the ids of its parents.
    id: str
    index: int
    parameters: Mapping[str, Scalar]
    argv: tuple[str, ...]
    output_dir: str
    checkpoint_dir: str
    script_path: str
    #: sha256 of the script's bytes; another digest with the same id means changed resources.
    script_digest: str
    #: The log of attempt N: `{attempt}` is replaced by N.
    log_path: str
    #: Files watched beside the log.
    output_paths: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    #: Jobs of which this is equal may be tasks of one submission.
    batch: str = ""
    #: Identity of the rules (signals, policies, actions, gates) in force for this job.
    rules: str = ""
    #: The key of the source that it runs from (`core.source`); "": where it was planned.
    source: str = ""
    #: The jobs that it waits for, by their stages.
    parents: tuple[Parent, ...] = ()

    def log_of(self, attempt: int) -> str:
        return self.log_path.replace("{attempt}", str(attempt))


#: Who cancels what the breaker holds: such an attempt never counts as begun, and is free of budgets.
BREAKER = "breaker"
#: Who ends a job whose parent has failed for good.
PARENT = "parent"


class Phase(str, Enum):
    """How far one attempt has come."""

    #: The intent is on disk; the scheduler has not been called.
    REQUESTED = "requested"
    #: The scheduler was called; its answer is not on disk yet, or it was unclear.
    SPAWNED = "spawned"
    #: The scheduler has it.
    ACCEPTED = "accepted"
    RUNNING = "running"
    #: Death is proven; the verdict is in `mode`.
    ENDED = "ended"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """An intent of ours to end an attempt, and why. `by` is "user", "policy", or a rule's name."""

    why: str
    by: str
    mode: str
    at: float
    sent_at: float | None = None
    tries: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a log file has been read, in a form that recognises another file under the same name."""

    inode: int = 0
    generation: int = 0
    #: Byte offset of the first line that has not been read to its end.
    offset: int = 0
    #: Checksums (hex) of up to 256 bytes at the start of the file and before `offset`.
    head: str = ""
    tail: str = ""


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class LogSignal:
    """A typed fact found in a log. (file, generation, offset, rule) names the occurrence."""

    rule: str
    file: str
    generation: int
    offset: int
    #: The line, cut to a bounded length.
    line: str
    #: Named groups, converted to the declared types, with metadata and aliases mixed in.
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    mode: str = ""
    priority: int = 0
    #: The actions that this occurrence fires, each once.
    actions: tuple[str, ...] = ()
    #: When it was journaled.
    at: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.file}:{self.generation}:{self.offset}:{self.rule}"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a job."""

    number: int
    token: str
    requested_at: float
    task: int = 0
    phase: Phase = Phase.REQUESTED
    time_limit_s: int | None = None
    log_path: str = ""
    ref: SchedulerRef | None = None
    spawned_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    pending_reason: str = ""
    nodes: str = ""
    #: How often the scheduler itself has started it again under the same id.
    requeues: int = 0
    #: Nodes that it is not to be given.
    exclude: tuple[str, ...] = ()
    #: The scheduler's ids of the attempts behind whose ends it was queued, as `SubmitRequested.after`.
    after: str = ""
    #: Nodes that its signals with an error mode name, the first few.
    named_nodes: tuple[str, ...] = ()
    cancel: Cancel | None = None
    #: The signals with a mode that were found since its latest start, the first of each rule.
    signals: tuple[LogSignal, ...] = ()
    #: When a declared counter or a checkpoint last moved ahead during this attempt.
    progressed_at: float | None = None
    #: When the scheduler first answered "not known" (SchedulerState.GONE), to be confirmed after a grace.
    gone_since: float | None = None
    # The verdict, once ended.
    exit_code: int | None = None
    mode: str = ""
    reason: str = ""
    #: The last error line, normalised, to recognise the same death again.
    last_error: str = ""
    decision: str = ""

    @property
    def alive(self) -> bool:
        return self.phase is not Phase.ENDED

    @property
    def progressed(self) -> bool:
        return self.progressed_at is not None

    @property
    def withdrawn(self) -> bool:
        """Whether it left the queue, or was to, because of the breaker."""
        return self.cancel is not None and self.cancel.by == BREAKER


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a policy entry has used of its budgets."""

    total: int = 0
    without_progress: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the journal tells it."""

    spec: JobSpec
    state: JobState = JobState.WAITING
    attempts: tuple[Attempt, ...] = ()
    #: What ended the last attempt, and the sentence a person reads.
    mode: str = ""
    reason: str = ""
    #: Do not submit before this time (back-off).
    not_before: float = 0.0
    #: Why a waiting job is not submitted.
    hold: str = ""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    #: High-water marks of declared counters, and the number of complete checkpoints reported.
    high_water: Mapping[str, float] = field(default_factory=dict)
    cursors: Mapping[str, Cursor] = field(default_factory=dict)
    #: How often each rule has matched in the current attempt.
    matches: Mapping[str, int] = field(default_factory=dict)
    #: The rules of signals that were found since the job was added, or last started anew.
    seen: frozenset[str] = frozenset()
    #: A wish of a person or a rule that this job end ("" for none).
    end_wish: Cancel | None = None
    #: The time limit of the next attempt where a policy has changed it.
    time_limit_s: int | None = None
    #: Replaces `spec` at the next attempt (`--update` on a live job).
    next_spec: JobSpec | None = None
    #: False when the plan no longer has it.
    planned: bool = True
    #: The highest number of an attempt that was given up as never submitted. It is not used again: should its
    #: submission come to be after all, it finds the attempt claimed and runs nothing.
    withdrawn: int = 0
    #: Attempts before this number belong to an earlier verdict (`retry`, `--update`).
    first_attempt: int = 1
    #: As a canary it has shown that it works.
    proved: bool = False
    #: The attempt that waits in the queue behind the end of the live one, or, of a job that waits for others,
    #: behind the ends of theirs; RUNNING: it has begun by itself. Its `cancel` says why it is not to begin.
    #: It is one of `attempts` once what it waits behind has ended as it should.
    successor: Attempt | None = None
    #: Before this time none is asked for.
    successor_at: float = 0.0
    #: The ids behind which the last one waited that was dropped before the job began: none is asked for
    #: behind the same again.
    dropped_after: str = ""

    @property
    def next_limit_s(self) -> int | None:
        """The time limit that the next attempt asks for: the plan's, or what a policy has made of it."""
        return self.time_limit_s if self.time_limit_s is not None else self.spec.resources.time_limit_s

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def live(self) -> Attempt | None:
        """The attempt that may still be able to run, if there is one."""
        if not self.attempts:
            return None
        last = self.attempts[-1]
        return last if last.phase is not Phase.ENDED else None

    def numbered(self, number: int) -> Attempt:
        """The attempt of a number, be it the successor.

        Raises:
            KeyError: there is none.
        """
        if self.successor is not None and self.successor.number == number:
            return self.successor
        for attempt in reversed(self.attempts):
            if attempt.number == number:
                return attempt
        raise KeyError(number)

    @property
    def orphaned(self) -> bool:
        """Whether it ended only because a parent did."""
        wish = self.end_wish
        return self.state is JobState.CANCELLED and wish is not None and wish.by == PARENT

    def reached(self, counter: str) -> float | None:
        """The high-water mark of a counter; None where it is of an earlier verdict, or there is none."""
        ahead = any(each.progressed for each in self.attempts if each.number >= self.first_attempt)
        return self.high_water.get(counter) if ahead else None

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)

    @property
    def begun(self) -> bool:
        """Whether an attempt has run since it was added, or was last started anew by a person."""
        return any(
            attempt.started_at is not None and not attempt.withdrawn
            for attempt in self.attempts
            if attempt.number >= self.first_attempt
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAttempt:
    """What a restart policy is told about the end of an attempt."""

    job: str
    mode: str
    reason: str
    attempt: int
    #: Restarts charged to this policy entry so far, in all and since the last progress.
    restarts: int
    restarts_without_progress: int
    progressed: bool
    #: Whether the job declares a counter or reports checkpoints; without either, progress cannot be told.
    progress_known: bool = False
    time_limit_s: int | None = None
    #: Fields of the signal that named the mode, if one did.
    fields: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Try again after `delay_s`, with another time limit where one is given."""

    why: str
    delay_s: float = 0.0
    time_limit_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The job ends with the mode it has."""

    why: str
