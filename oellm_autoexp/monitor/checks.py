"""Conditions are checked beside the loop, never in it: a hung command or file system delays nothing else."""

from __future__ import annotations

import glob
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Protocol, TypeVar

from oellm_autoexp.config.sockets import (
    AllOf,
    AnyOf,
    Check,
    CommandCheck,
    FileCheck,
    MetricCheck,
    Not,
    SignalCheck,
)
from oellm_autoexp.core import symbols
from oellm_autoexp.core.lifecycle import Gate
from oellm_autoexp.core.model import Job
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.series import read_series

T = TypeVar("T")

#: Bytes of a condition's output that are looked at.
OUTPUT_LIMIT = 4096


class Executor(Protocol):
    """Where slow reads go: a thread pool in life, inline in simulation."""

    def submit(self, function: Callable[[], T], /) -> Future[T]: ...


class InlineExecutor:
    """Does it at once."""

    def submit(self, function: Callable[[], T], /) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - a future carries any error to who asks for the result
            future.set_exception(error)
        return future


@dataclass(slots=True)
class _Entry:
    check: Check
    due_at: float
    value: Gate = Gate.UNKNOWN
    why: str = "not checked yet"
    pending: Future[tuple[Gate, str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the jobs of a session: a job by its name, and where its metrics are."""

    job: Callable[[str], Job | None] = lambda _name: None
    series: Callable[[str], Path] = Path


class Checks:
    """The values of conditions, refreshed in the background every `interval_s`.

    What only the journal is asked for is answered at once.
    """

    def __init__(self, executor: Executor, effects: Effects, known: Known | None = None) -> None:
        self._executor = executor
        self._effects = effects
        self._known = known or Known()
        self._entries: dict[tuple[str, str], _Entry] = {}

    def value(self, job: str, kind: str, check: Check, *, interval_s: float, now: float) -> tuple[Gate, str]:
        """The latest value, and why. Starts a check where none is under way and the last one is old."""
        if _of_signals(check):
            return evaluate(check, self._effects, self._known)
        key = (job, kind)
        entry = self._entries.get(key)
        if entry is None or entry.check != check:
            entry = self._entries[key] = _Entry(check=check, due_at=now)
        if entry.pending is None and now >= entry.due_at:
            entry.due_at = now + interval_s
            entry.pending = self._executor.submit(lambda: evaluate(check, self._effects, self._known))
        if entry.pending is not None and entry.pending.done():
            done, entry.pending = entry.pending, None
            try:
                entry.value, entry.why = done.result()
            except OSError as error:
                entry.value, entry.why = Gate.UNKNOWN, str(error)
        return entry.value, entry.why

    def forget(self, job: str) -> None:
        """Ask anew next time: what is known was true of an earlier life of the job."""
        for key in [key for key in self._entries if key[0] == job]:
            del self._entries[key]


class PlayedChecks(Checks):
    """In a rehearsal nothing is looked at: what lets a job start or counts it as done holds, nothing else."""

    def value(self, job: str, kind: str, check: Check, *, interval_s: float, now: float) -> tuple[Gate, str]:  # noqa: ARG002
        holds = kind.startswith(("start", "success"))
        return (Gate.OPEN if holds else Gate.CLOSED), "played"


def of_jobs(check: Check) -> bool:
    """Whether a check looks only at what jobs have said, which no longer changes when they have ended."""
    if isinstance(check, (AllOf, AnyOf)):
        return bool(check.checks) and all(of_jobs(each) for each in check.checks)
    return of_jobs(check.check) if isinstance(check, Not) else isinstance(check, (SignalCheck, MetricCheck))


def _of_signals(check: Check) -> bool:
    if isinstance(check, (AllOf, AnyOf)):
        return bool(check.checks) and all(_of_signals(each) for each in check.checks)
    return _of_signals(check.check) if isinstance(check, Not) else isinstance(check, SignalCheck)


def evaluate(check: Check, effects: Effects, known: Known | None = None) -> tuple[Gate, str]:
    """The value of a check, and what was seen. An unknown part leaves doubt."""
    known = known or Known()
    if isinstance(check, SignalCheck):
        return _signal(check, known)
    if isinstance(check, MetricCheck):
        return _metric(check, known)
    if isinstance(check, CommandCheck):
        return _command(check, effects)
    if isinstance(check, FileCheck):
        return _files(check)
    if isinstance(check, Not):
        value, why = evaluate(check.check, effects, known)
        turned = {Gate.OPEN: Gate.CLOSED, Gate.CLOSED: Gate.OPEN, Gate.UNKNOWN: Gate.UNKNOWN}
        return turned[value], f"not ({why})"
    if isinstance(check, AllOf):
        return _combine(check.checks, effects, known, decisive=Gate.CLOSED, otherwise=Gate.OPEN)
    assert isinstance(check, AnyOf)
    return _combine(check.checks, effects, known, decisive=Gate.OPEN, otherwise=Gate.CLOSED)


def _combine(
    checks: Sequence[Check], effects: Effects, known: Known, *, decisive: Gate, otherwise: Gate
) -> tuple[Gate, str]:
    doubt = ""
    reasons = []
    for check in checks:
        value, why = evaluate(check, effects, known)
        if value is decisive:
            return decisive, why
        if value is Gate.UNKNOWN:
            doubt = why
        reasons.append(why)
    return (Gate.UNKNOWN, doubt) if doubt else (otherwise, "; ".join(reasons))


def _signal(check: SignalCheck, known: Known) -> tuple[Gate, str]:
    job = known.job(check.job)
    if job is not None and check.signal in job.seen:
        return Gate.OPEN, f"{check.job} has said `{check.signal}`"
    return Gate.CLOSED, f"{check.job} has not said `{check.signal}`"


def _metric(check: MetricCheck, known: Known) -> tuple[Gate, str]:
    job, asked = known.job(check.job), check.at_least if check.at_least is not None else check.at_most
    assert asked is not None
    values = []
    if job is not None:
        # Of an earlier life of the job a later one says nothing.
        records = read_series(known.series(check.job))
        first = job.first_attempt
        values = [
            _number(record.get(check.metric)) for record in records if record.get("attempt", 0) >= first
        ]
        values.append(_number(job.reached(check.metric)))
    found = [value for value in values if value is not None]
    if not found:
        return Gate.CLOSED, f"{check.job} has told no `{check.metric}`"
    best = max(found) if check.at_least is not None else min(found)
    holds = best >= asked if check.at_least is not None else best <= asked
    word = "least" if check.at_least is not None else "most"
    return (
        Gate.OPEN if holds else Gate.CLOSED,
        f"`{check.metric}` of {check.job} was {best:g} at best (asked for: at {word} {asked:g})",
    )


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _files(check: FileCheck) -> tuple[Gate, str]:
    paths = glob.iglob(check.pattern, recursive=True)  # noqa: PTH207 - the pattern may be absolute
    found = sum(1 for _ in islice(paths, check.at_least))
    if found < check.at_least:
        # A glob is silent about what it could not look into: that is not "nothing is there".
        above = Path(*takewhile(lambda part: not glob.has_magic(part), Path(check.pattern).parent.parts))
        try:
            if glob.has_magic(check.pattern):
                os.scandir(above).close()
            else:
                above.stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            return Gate.UNKNOWN, f"{error.filename}: {error.strerror}"
    holds = found >= check.at_least
    return (Gate.OPEN if holds else Gate.CLOSED), f"{found} of {check.at_least} match {check.pattern}"


def _command(check: CommandCheck, effects: Effects) -> tuple[Gate, str]:
    if isinstance(check.command, str):
        argv, shown = ["/bin/sh", "-c", check.command], check.command
    else:
        shown = symbols.shown(" ".join(check.command))
        try:
            argv = [symbols.expanded(word, os.environ) for word in check.command]
        except ValueError as error:
            return Gate.UNKNOWN, f"`{shown}`: {error}"
    try:
        done = effects.call(
            "check",
            shown,
            lambda: subprocess.run(
                argv,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=check.timeout_s,
                check=False,
            ),
        )
    except subprocess.TimeoutExpired:
        return Gate.UNKNOWN, f"`{shown}` did not answer within {check.timeout_s:g} s"
    except OSError as error:
        return Gate.UNKNOWN, f"`{shown}` could not be run: {error.strerror}"
    output = done.stdout[:OUTPUT_LIMIT].decode(errors="replace").strip()
    holds = output == "1" or (done.returncode == 0 and not output)
    said = f", printed {output[:80]!r}" if output else ""
    return (Gate.OPEN if holds else Gate.CLOSED), f"`{shown}` exited {done.returncode}{said}"
