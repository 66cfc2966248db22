"""What the evidence adds up to: the error mode of an ended attempt, and the sentence that says why.

The scheduler says *whether* an attempt ended, the exit record *how*, a cancel of ours *why*; a specific
log signal wins over a generic state. The rules are a list: the first one that has an answer gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from signal import Signals
from typing import TypeAlias

from oellm_autoexp.core.model import Attempt, ExitRecord, Job, SchedulerFact, SchedulerState, mode_root

#: The guard lost the claim: another copy of the attempt runs (see rendering/guard.py).
EXIT_CLAIM_LOST = 79
#: The guard could not make a claim (disk, path).
EXIT_CLAIM_FAILED = 78

#: Exit codes of a mistake that repeats itself: usage (argparse, getopt), not executable, not found (bash(1)).
CONFIG_FAULTS = {2: "usage error", 126: "command cannot be executed", 127: "command not found"}

#: So many attempts in a row that exit 0 at once, when more was wanted, are enough.
IDLE_ENDS = 3

_STATE_MODES = {
    SchedulerState.OUT_OF_MEMORY: "crash.oom",
    SchedulerState.NODE_FAIL: "crash.node_failure",
    SchedulerState.PREEMPTED: "preempted",
}
_PREEMPTION_SIGNALS = frozenset(
    128 + number for number in (Signals.SIGTERM, Signals.SIGUSR1, Signals.SIGUSR2)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    mode: str
    reason: str
    evidence: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An attempt whose death is proven and whose log is drained, with all the evidence."""

    job: Job
    attempt: Attempt
    fact: SchedulerFact | None = None
    exit: ExitRecord | None = None
    #: The first error line of the log, and the last one in a form that recognises it again.
    first_error: str = ""
    last_error: str = ""
    ended_at: float = 0.0
    #: Exit 0 is not enough: a success signal, string or command must have said so.
    success_needs_signal: bool = False
    #: The success command said so.
    confirmed: bool = False
    #: Rules whose error mode counts even if the command exits 0.
    acting: Collection[str] = ()
    startup_grace_s: float = 900.0

    @property
    def code(self) -> int | None:
        """The exit status, 128 + signal; None when nobody knows."""
        if self.exit is not None:
            return self.exit.exit_code
        fact = self.fact
        if fact is None or fact.state is SchedulerState.GONE:
            return None
        if fact.state is SchedulerState.COMPLETED:
            return 0
        if fact.signal:
            return 128 + fact.signal
        if fact.state is SchedulerState.FAILED:
            return fact.exit_code or 1
        return fact.exit_code or None

    @property
    def unclaimed(self) -> bool:
        """The guard could not make its claim, so that the command never began (it may exit 78 itself)."""
        return self.exit is None and self.code == EXIT_CLAIM_FAILED

    @property
    def cause(self) -> str:
        return self.exit.cause if self.exit is not None else ""

    def with_error(self, how: str) -> str:
        return f"{self.first_error} ({how})" if self.first_error else how


def classify(case: Case) -> Verdict:
    """The verdict: the first rule that has an answer."""
    for rule in _RULES:
        answer = rule(case)
        if answer is not None:
            mode, reason = answer
            return Verdict(mode=mode, reason=reason, evidence=_evidence(case), exit_code=case.code)
    raise AssertionError("the last rule always answers")


Answer: TypeAlias = "tuple[str, str] | None"


def _cancelled_by_us(case: Case) -> Answer:
    cancel = case.attempt.cancel
    if cancel is None or (case.code == 0 and case.cause == "exit"):
        return None
    return cancel.mode, cancel.why


def _named_by_a_signal(case: Case) -> Answer:
    """Highest priority first, then the earliest."""
    errors = [found for found in case.attempt.signals if mode_root(found.mode) != "success"]
    named = min(errors, key=lambda found: (-found.priority, found.at, found.offset), default=None)
    if named is None or (case.code == 0 and named.rule not in case.acting):
        return None
    if named.mode == "preempted" and (better := _cancelled_by_others(case) or _time_limit(case)):
        # It says that it was told to leave; who told it, and why, others know better.
        return better
    exit_text = f", exit {case.code}" if case.code else ""
    return named.mode, f"{named.line.strip() or case.first_error} (signal {named.rule}{exit_text})"


def _exit_zero(case: Case) -> Answer:
    if case.code != 0:
        return None
    if case.confirmed:
        return "success", "exit 0 and the termination command holds"
    if any(mode_root(found.mode) == "success" for found in case.attempt.signals):
        return "success", "exit 0 after the success signal"
    if case.cause == "timeout":
        return "timeout", _time_limit_reason(case.attempt)
    if case.cause.startswith("signal:"):
        return "preempted", f"ended by {case.cause.removeprefix('signal:')} from outside, exit 0"
    if case.success_needs_signal:
        if _does_nothing(case):
            times = f"{IDLE_ENDS} times in a row, at once and without progress"
            return "crash.config", case.with_error(f"exit 0 without the success signal, {times}")
        return "timeout", "exit 0 without the success signal: there is more to do"
    return "success", "exit 0"


def _does_nothing(case: Case) -> bool:
    """The last of IDLE_ENDS attempts that exit 0 within the start-up grace: a chain that gets nowhere."""
    past = [each for each in case.job.attempts if case.job.first_attempt <= each.number < case.attempt.number]
    row = past[1 - IDLE_ENDS :]
    return (
        len(row) == IDLE_ENDS - 1
        and all(each.mode == "timeout" and each.exit_code == 0 and not each.progressed for each in row)
        and all(_lived(each, each.ended_at) <= case.startup_grace_s for each in row)
        and not case.attempt.progressed
        and _lived(case.attempt, case.ended_at) <= case.startup_grace_s
    )


def _cancelled_by_others(case: Case) -> Answer:
    if case.fact is None or case.fact.state is not SchedulerState.CANCELLED:
        return None
    return "cancelled", "cancelled outside of this program" + (
        f" ({case.fact.reason})" if case.fact.reason else ""
    )


def _missed_deadline(case: Case) -> Answer:
    """It was taken out of the queue, for it could no longer end in time: another try would fare the same."""
    fact = case.fact
    if fact is None or fact.state is not SchedulerState.DEADLINE or case.exit is not None:
        return None
    if case.attempt.started_at is not None:
        return None
    return "crash.config", "it was taken out of the queue: it could not end before its deadline (--deadline)"


def _time_limit(case: Case) -> Answer:
    state = case.fact.state if case.fact is not None else None
    if (
        case.cause == "timeout"
        or state in (SchedulerState.TIMEOUT, SchedulerState.DEADLINE)
        or (case.code in _PREEMPTION_SIGNALS and _near_limit(case))
    ):
        return "timeout", _time_limit_reason(case.attempt)
    return None


def _state_says_it(case: Case) -> Answer:
    if case.fact is None or case.fact.state not in _STATE_MODES:
        return None
    said = f"the scheduler says {case.fact.state.value}" + (
        f" ({case.fact.reason})" if case.fact.reason else ""
    )
    return _STATE_MODES[case.fact.state], case.with_error(said)


def _preempted(case: Case) -> Answer:
    if case.code not in _PREEMPTION_SIGNALS or case.cause == "exit" or case.code is None:
        return None
    return "preempted", f"ended by {_how(case.code)} from outside"


def _config_fault(case: Case) -> Answer:
    if case.code not in CONFIG_FAULTS or case.code is None:
        return None
    return "crash.config", case.with_error(f"exit {case.code}, {CONFIG_FAULTS[case.code]}")


def _vanished(case: Case) -> Answer:
    if case.code is not None:
        return None
    foreign = case.attempt.ref is not None and not case.attempt.ref.token
    if foreign and any(mode_root(found.mode) == "success" for found in case.attempt.signals):
        # It never had a guard: that no record is there says nothing.
        return "success", "it ended after the success signal"
    return "crash.lost", case.with_error("it vanished without an exit record")


def _same_death_again(case: Case) -> Answer:
    """Two deaths in a row with the same last error, at once and without progress, repeat for ever.

    Not so where the job has got ahead before: then its config works, and the budgets decide.
    """
    earlier = [
        past for past in case.job.attempts if case.job.first_attempt <= past.number < case.attempt.number
    ]
    if not case.last_error or not earlier or case.attempt.progressed or case.code is None:
        return None
    if any(past.progressed for past in earlier):
        return None
    past = earlier[-1]
    if (
        past.last_error == case.last_error
        and _lived(past, past.ended_at) <= case.startup_grace_s
        and _lived(case.attempt, case.ended_at) <= case.startup_grace_s
    ):
        return "crash.config", case.with_error(f"{_how(case.code)}, twice in a row without progress")
    return None


def _crash(case: Case) -> Answer:
    how = _how(case.code or 0)
    if case.unclaimed:
        how = "exit 78: the attempt could not be claimed in the state directory (disk full, not writable?)"
    return "crash", case.with_error(how)


_RULES: tuple[Callable[[Case], Answer], ...] = (
    _cancelled_by_us,
    _named_by_a_signal,
    _exit_zero,
    _cancelled_by_others,
    _missed_deadline,
    _time_limit,
    _state_says_it,
    _preempted,
    _config_fault,
    _vanished,
    _same_death_again,
    _crash,
)


def _lived(attempt: Attempt, ended_at: float | None) -> float:
    if attempt.started_at is None or ended_at is None:
        return 0.0
    return ended_at - attempt.started_at


def _near_limit(case: Case) -> bool:
    """Within 5 % (at least 30 s, at most half) of the time limit: trainers save and leave before it."""
    limit = case.attempt.time_limit_s
    if limit is None:
        return False
    if case.exit is not None and case.exit.started_at:
        lived = case.exit.ended_at - case.exit.started_at
    else:
        lived = _lived(case.attempt, case.ended_at)
    return lived >= limit - min(limit / 2, max(30.0, 0.05 * limit))


def _time_limit_reason(attempt: Attempt) -> str:
    if attempt.time_limit_s is None:
        return "reached its time limit"
    return f"reached its time limit of {format_duration(attempt.time_limit_s)}"


def format_duration(seconds: float) -> str:
    """Seconds as Slurm writes a time: `[D-]HH:MM:SS`.

    >>> format_duration(93784)
    '1-02:03:04'
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{days}-{clock}" if days else clock


def _how(code: int) -> str:
    try:
        return f"signal {Signals(code - 128).name}"
    except ValueError:
        return f"exit {code}"


def _evidence(case: Case) -> str:
    parts = []
    if case.fact is not None:
        parts.append(
            f"scheduler: {case.fact.state.value}" + (f" ({case.fact.reason})" if case.fact.reason else "")
        )
    if case.exit is not None:
        ran = case.exit.ended_at - case.exit.started_at
        parts.append(f"exit record: {case.exit.exit_code}, {case.exit.cause}, after {ran:.0f} s")
    else:
        parts.append("no exit record")
    parts += [f"signal {found.rule} ({found.mode}) at byte {found.offset}" for found in case.attempt.signals]
    if case.attempt.cancel is not None:
        parts.append(f"cancelled by {case.attempt.cancel.by}")
    return "; ".join(parts)
