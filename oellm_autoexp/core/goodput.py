"""Where the time of a job went, told from the journal alone: the goodput ledger. Pure.

The wall time of a job is the time in which it was wanted: from its first submission until its verdict (or
now). Each millisecond of it belongs to exactly one part:

- *queue*: an attempt is asked for and does not run yet. One that waits behind another counts from its end,
  one that waits behind other jobs from when these have succeeded.
- *start-up*: from the start of an attempt until its first progress.
- *productive*: work that was kept.
- *rolled back*: work that was not kept, or that repeats what had been done.
- *hang*: the silence before a stall was acted on, and the time that it then took to end the attempt.
- *down*: no attempt is asked for: back-off, held, nobody watching, failed until a person starts it again.

ETTR, the effective training time ratio, is productive over wall time: Kokolis et al. 2024, "Revisiting
Reliability in Large-Scale Machine Learning Research Clusters" (arXiv:2410.21680), queue included; Wan et al.
2025, "Robust LLM Training Infrastructure at ByteDance" (arXiv:2509.16293). A restart that loses nothing but
its own time counts the same in both.

What is known and what is an estimate (`Basis`):

- Starts, ends, submissions, cancels are facts of the scheduler and the guard. Progress is dated when it was
  read in the log: one look late (seconds) while somebody watches. What was written while nobody did is dated
  when it was read, but never after the attempt's end.
- With *checkpoints*, rolled back is what came after the newest one that an attempt without success reported.
  That the next attempt goes on from it is an assumption; the journal cannot show it. A declared counter
  passes its old mark only when the lost work has been repeated and one more step is done, so so much of the
  time before the first progress counts as work (at the old pace: an estimate). Where checkpoints are the
  only progress, the mean time between two of them counts as work before the first one (an estimate).
- With *counters* alone it is not known where an attempt went on. From its start to the first new mark it
  starts up and repeats: the sum is known; that starting up took as long as in the job's quickest attempt
  with nothing to repeat is an estimate, and the rest is rolled back.
- With *nothing*, an attempt that succeeded was productive, one that ended otherwise was rolled back: a lower
  bound of what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import LogSignal, mode_root
from oellm_autoexp.core.signals import CHECKPOINT_STEP, CHECKPOINTS
from oellm_autoexp.core.spans import Account, Basis, Part, Span, Teller, basis_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Milliseconds, and GPU-milliseconds, of each part; whole numbers, so that they add up exactly."""

    ms: Mapping[Part, int]
    gpu_ms: Mapping[Part, int]
    basis: Basis

    @property
    def wall_ms(self) -> int:
        return sum(self.ms.values())

    @property
    def ettr(self) -> float | None:
        """Productive over wall time, 0 to 1; None before the first submission."""
        return self.ms[Part.PRODUCTIVE] / self.wall_ms if self.wall_ms else None

    @property
    def gpu_ettr(self) -> float | None:
        """The same with each job weighed by its GPUs; None without any."""
        whole = sum(self.gpu_ms.values())
        return self.gpu_ms[Part.PRODUCTIVE] / whole if whole else None

    @property
    def held_gpu_ms(self) -> int:
        """What was used up of an allocation: GPUs do not stand by in a queue or between attempts."""
        return sum(value for part, value in self.gpu_ms.items() if part.held)


def of_spans(spans: Iterable[Span], basis: Basis = Basis.NOTHING) -> Goodput:
    """The sums of spans."""
    ms, gpu_ms = dict.fromkeys(Part, 0), dict.fromkeys(Part, 0)
    for span in spans:
        ms[span.part] += span.end_ms - span.begin_ms
        gpu_ms[span.part] += (span.end_ms - span.begin_ms) * span.gpus
    return Goodput(ms=ms, gpu_ms=gpu_ms, basis=basis)


def total(parts: Iterable[Goodput]) -> Goodput:
    """The sum over jobs; its basis is that of the job whose work is known least."""
    ran = [each for each in parts if each.wall_ms]
    worked = [each for each in ran if each.ms[Part.PRODUCTIVE] or each.ms[Part.ROLLED_BACK]]
    order = list(Basis)
    return Goodput(
        ms={part: sum(each.ms[part] for each in ran) for part in Part},
        gpu_ms={part: sum(each.gpu_ms[part] for each in ran) for part in Part},
        basis=min((each.basis for each in worked), key=order.index, default=Basis.NOTHING),
    )


# ---------------------------------------------------------------- taking events in


def _ms(at: float) -> int:
    return round(at * 1000)


class Ledger:
    """The accounts of all jobs of a session; made by applying its journal from the first event on."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._submissions: dict[str, tuple[tuple[str, int], ...]] = {}
        #: Rules under which a job says how far it is.
        self._telling: set[str] = set()

    def apply(self, event: ev.Event) -> None:  # noqa: C901 - one case per event is the clearest form
        """Take one event in."""
        match event:
            case ev.ProgressMade():
                self._progress(event, saved=event.counter in (CHECKPOINTS, CHECKPOINT_STEP))
            case ev.SignalsFound():
                if any(_is_checkpoint(found) for found in event.signals):
                    self._progress(event, saved=True)
            case ev.RulesSet():
                if _tells(event.config):
                    self._telling.add(event.rules)
            case ev.JobAdded():
                spec = event.spec
                self._accounts[spec.name] = Account(gpus=spec.resources.gpus, rules=spec.rules)
            case ev.SubmitRequested() if not event.after:
                self._submissions[event.token] = event.jobs
                for name, number in event.jobs:
                    self._accounts[name].submit(number, _ms(event.at))
            case ev.SubmitAccepted():
                there = {ref.task for ref in event.refs}
                self._withdraw(event, lambda task: task not in there)
            case ev.SubmitRefused():
                self._withdraw(event, lambda _task: True)
            case ev.AttemptStarted():
                self._change(event.job, event.attempt, started=_ms(event.started_at))
            case ev.AttemptRequeued() | ev.AttemptPending():
                self._accounts[event.job].requeue(event.attempt, _ms(event.at))
            case ev.AttemptEnded():
                started = None if event.started_at is None else _ms(event.started_at)
                ended = _ms(event.at if event.ended_at is None else event.ended_at)
                self._change(event.job, event.attempt, started=started, ended=ended, mode=event.mode)
            case ev.CancelRequested() if mode_root(event.mode) == "stall":
                self._silence(event)
            case ev.SuccessorTaken():
                self._accounts[event.job].submit(event.attempt, _ms(event.at), waited=True)
            case ev.RestartScheduled():
                self._accounts[event.job].follow(event.successor, _ms(event.at))
            case ev.JobUpdated():
                self._accounts[event.job].update(event.spec)
                if event.again:
                    self._accounts[event.job].reopen(_ms(event.at))
            case ev.JobRetried():
                self._accounts[event.job].reopen(_ms(event.at))
            case ev.JobEnded():
                self._accounts[event.job].close(event.state, _ms(event.at))
            case _:
                return

    def _progress(self, event: ev.ProgressMade | ev.SignalsFound, *, saved: bool) -> None:
        found = self._accounts[event.job].find(event.attempt)
        if found is not None:
            seen_at = event.seen_at if isinstance(event, ev.ProgressMade) else None
            found.progress(_ms(event.at if seen_at is None else seen_at), saved=saved)

    def _silence(self, event: ev.CancelRequested) -> None:
        found = self._accounts[event.job].find(event.attempt)
        if found is None or found.silent is not None:
            return
        if event.silent_s:
            found.silent = _ms(event.at - event.silent_s)
        else:
            # A signal called it a stall: it began at some time since the last progress.
            found.silent = _ms(event.at) if found.last is None else found.last

    def _change(self, job: str, number: int, **changes: Any) -> None:
        found = self._accounts[job].find(number)
        if found is not None:
            for name, value in changes.items():
                setattr(found, name, value)

    def _withdraw(self, event: ev.SubmitAccepted | ev.SubmitRefused, gone: Callable[[int], bool]) -> None:
        for task, (name, number) in enumerate(self._submissions.pop(event.token, ())):
            found = self._accounts[name].find(number)
            if found is not None and gone(task):
                found.withdrawn = _ms(event.at)

    # ---- the accounts

    def spans(self, job: str, now: float) -> tuple[Span, ...]:
        """The wall time of a job in the order of time, without a gap where it was wanted throughout."""
        account = self._accounts.get(job)
        if account is None:
            return ()
        teller = Teller(account, tells=account.rules in self._telling)
        out: list[Span] = []
        for stretch in account.stretches:
            teller.tell(stretch, _ms(now) if stretch.closed is None else stretch.closed, out)
        return tuple(out)

    def of(self, job: str, now: float) -> Goodput:
        """Where the time of a job went, until its verdict or `now` (UTC epoch seconds)."""
        account = self._accounts.get(job)
        return of_spans(self.spans(job, now), basis_of(account) if account is not None else Basis.NOTHING)

    def total(self, jobs: Iterable[str], now: float) -> Goodput:
        """Where the time of several jobs went."""
        return total(self.of(job, now) for job in jobs)


def _is_checkpoint(found: LogSignal) -> bool:
    return found.fields.get("kind") == "checkpoint"


def _tells(rules: Mapping[str, Any]) -> bool:
    """Whether rules declare a counter or checkpoints, so that no progress means none was made.

    A monitor of a plug-in may mean something else by these keys; then nothing is declared.
    """
    signals = (rules.get("monitoring") or {}).get("log_signals")
    entries = signals.values() if isinstance(signals, Mapping) else signals
    return isinstance(entries, Iterable) and any(_declares(entry) for entry in entries)


def _declares(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    about = entry.get("metadata")
    return bool(
        entry.get("counter")
        or (isinstance(about, Mapping) and about.get("kind") == "checkpoint")
        or (entry.get("pattern_type") == "report" and entry.get("pattern") == "checkpoint")
    )
