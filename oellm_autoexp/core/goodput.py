"""Where the time of a job went, told from the journal alone: the goodput ledger. Pure.

The wall time of a job is the time in which it was wanted: from its first submission until its verdict (or
now). Each millisecond of it belongs to exactly one part:

- *queue*: an attempt is asked for and does not run yet.
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
  passes its old mark only when the lost work has been repeated, so so much of the time before the first
  progress counts as work again (at the old pace: an estimate). Where checkpoints are the only progress, the
  mean time between two of them counts as work before the first one (an estimate).
- With *counters* alone it is not known where an attempt went on. From its start to the first new mark it
  starts up and repeats: the sum is known; that starting up took as long as in the job's quickest attempt
  with nothing to repeat is an estimate, and the rest is rolled back.
- With *nothing*, an attempt that succeeded was productive, one that ended otherwise was rolled back: a lower
  bound of what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import JobSpec, JobState, LogSignal, mode_root
from oellm_autoexp.core.signals import CHECKPOINT_STEP, CHECKPOINTS


class Part(str, Enum):
    """What a stretch of time was spent on."""

    QUEUE = "queue"
    START_UP = "start_up"
    PRODUCTIVE = "productive"
    ROLLED_BACK = "rolled_back"
    HANG = "hang"
    DOWN = "down"

    @property
    def held(self) -> bool:
        """Whether the job held its resources meanwhile."""
        return self not in (Part.QUEUE, Part.DOWN)


class Basis(str, Enum):
    """What tells of the progress of a job, from the least to the most that can be known."""

    NOTHING = "nothing"
    COUNTERS = "counters"
    CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of one part (UTC epoch milliseconds), of attempt `attempt` (0: before the first)."""

    part: Part
    begin_ms: int
    end_ms: int
    attempt: int
    gpus: int


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


@dataclass(slots=True)
class _Try:
    """What is kept of one attempt: a handful of times, however long its log."""

    number: int
    requested: int
    gpus: int
    #: When the scheduler refused it: it was never there.
    withdrawn: int | None = None
    started: int | None = None
    ended: int | None = None
    mode: str = ""
    #: When the silence began that was taken for a stall.
    silent: int | None = None
    #: The first and last progress of any kind, and the first of a counter.
    first: int | None = None
    last: int | None = None
    counted: int | None = None
    #: The first and last checkpoint, and how many looks found one.
    first_saved: int | None = None
    saved: int | None = None
    saves: int = 0

    def progress(self, at: int, *, saved: bool) -> None:
        self.first = at if self.first is None else self.first
        self.last = at
        if not saved:
            self.counted = at if self.counted is None else self.counted
        elif self.saved != at:
            self.first_saved = at if self.first_saved is None else self.first_saved
            self.saved = at
            self.saves += 1


@dataclass(slots=True)
class _Stretch:
    """A time in which a job was wanted."""

    begin: int
    tries: list[_Try] = field(default_factory=list)
    #: The verdict, "" while there is none.
    state: str = ""
    #: When the verdict came between two attempts; None: with the end of the last one.
    closed: int | None = None


@dataclass(slots=True)
class _Account:
    """One job."""

    gpus: int
    rules: str
    next_gpus: int | None = None
    stretches: list[_Stretch] = field(default_factory=list)
    #: Something follows the last attempt: it was decided to try again.
    waits: bool = False

    @property
    def tries(self) -> Iterator[_Try]:
        for stretch in self.stretches:
            yield from stretch.tries

    @property
    def latest(self) -> _Try | None:
        return self.stretches[-1].tries[-1] if self.stretches and self.stretches[-1].tries else None

    @property
    def live(self) -> bool:
        last = self.latest
        return last is not None and last.ended is None and last.withdrawn is None

    def find(self, number: int) -> _Try | None:
        last = self.latest
        if last is not None and last.number == number:
            return last
        return next((each for each in self.tries if each.number == number and each.withdrawn is None), None)

    def submit(self, number: int, at: int) -> None:
        if not self.stretches:
            self.stretches.append(_Stretch(begin=at))
        self.gpus, self.next_gpus = self.gpus if self.next_gpus is None else self.next_gpus, None
        self.stretches[-1].tries.append(_Try(number=number, requested=at, gpus=self.gpus))
        self.waits = False

    def update(self, spec: JobSpec) -> None:
        """Rules hold at once, resources from the next attempt."""
        self.rules, self.next_gpus = spec.rules, spec.resources.gpus

    def close(self, state: str, at: int) -> None:
        if self.stretches:
            last = self.latest
            between = self.waits or last is None or last.ended is None
            self.stretches[-1].state, self.stretches[-1].closed = state, at if between else None

    def reopen(self, at: int) -> None:
        """What had failed was wanted all the time; what was done or cancelled is wanted again from now."""
        if not self.stretches or not self.stretches[-1].state:
            return
        if self.stretches[-1].state == JobState.FAILED.value:
            self.stretches[-1].state = ""
        else:
            self.stretches.append(_Stretch(begin=at))
        self.waits = True


class Ledger:
    """The accounts of all jobs of a session; made by applying its journal from the first event on."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
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
                self._accounts[spec.name] = _Account(gpus=spec.resources.gpus, rules=spec.rules)
            case ev.SubmitRequested():
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
            case ev.AttemptEnded():
                started = None if event.started_at is None else _ms(event.started_at)
                ended = _ms(event.at if event.ended_at is None else event.ended_at)
                self._change(event.job, event.attempt, started=started, ended=ended, mode=event.mode)
            case ev.CancelRequested() if mode_root(event.mode) == "stall":
                self._silence(event)
            case ev.RestartScheduled():
                self._accounts[event.job].waits = True
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
            found.progress(_ms(event.at), saved=saved)

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
        teller = _Teller(account, tells=account.rules in self._telling)
        out: list[Span] = []
        for stretch in account.stretches:
            teller.tell(stretch, _ms(now) if stretch.closed is None else stretch.closed, out)
        return tuple(out)

    def of(self, job: str, now: float) -> Goodput:
        """Where the time of a job went, until its verdict or `now` (UTC epoch seconds)."""
        account = self._accounts.get(job)
        return of_spans(self.spans(job, now), _basis(account) if account is not None else Basis.NOTHING)

    def total(self, jobs: Iterable[str], now: float) -> Goodput:
        """Where the time of several jobs went."""
        return total(self.of(job, now) for job in jobs)


def _is_checkpoint(found: LogSignal) -> bool:
    return found.fields.get("kind") == "checkpoint"


def _tells(rules: Mapping[str, Any]) -> bool:
    """Whether rules declare a counter or checkpoints, so that no progress means none was made."""
    signals = (rules.get("monitoring") or {}).get("log_signals") or ()
    for entry in signals.values() if isinstance(signals, Mapping) else signals:
        kind = (entry.get("metadata") or {}).get("kind")
        reported = entry.get("pattern_type") == "report" and entry.get("pattern") == "checkpoint"
        if entry.get("counter") or kind == "checkpoint" or reported:
            return True
    return False


def _basis(account: _Account) -> Basis:
    tries = list(account.tries)
    if any(each.saved is not None for each in tries):
        return Basis.CHECKPOINTS
    return Basis.COUNTERS if any(each.counted is not None for each in tries) else Basis.NOTHING


# ---------------------------------------------------------------- telling


class _Teller:
    """Splits the time of one job, attempt by attempt."""

    def __init__(self, account: _Account, *, tells: bool) -> None:
        self._tells = tells
        self._basis = _basis(account)
        tries = list(account.tries)
        between = sum(each.saves - 1 for each in tries if each.saves > 1)
        saved = sum((each.saved or 0) - (each.first_saved or 0) for each in tries if each.saves > 1)
        #: The mean time between two checkpoints; 0 where it is not known.
        self._cadence = saved // between if between else 0
        #: Work since the newest checkpoint that the next attempt has to repeat.
        self._to_repeat = 0
        #: The quickest start-up with nothing to repeat; None: there was none yet.
        self._quickest: int | None = None
        self._got_ahead = False

    def tell(self, stretch: _Stretch, now: int, out: list[Span]) -> None:
        """Add the spans of a stretch, each from where the one before it ends."""
        cursor = max(stretch.begin, out[-1].end_ms) if out else stretch.begin

        def until(part: Part, end: int, number: int, gpus: int) -> None:
            nonlocal cursor
            if end > cursor:
                out.append(Span(part=part, begin_ms=cursor, end_ms=end, attempt=number, gpus=gpus))
                cursor = end

        number, gpus = 0, stretch.tries[0].gpus if stretch.tries else 0
        for each in stretch.tries:
            until(Part.DOWN, each.requested, number, gpus)
            number, gpus = each.number, each.gpus
            if each.withdrawn is not None:
                until(Part.QUEUE, each.withdrawn, number, gpus)
                continue
            end = max(cursor, now if each.ended is None else each.ended)
            start = end if each.started is None else min(max(each.started, cursor), end)
            until(Part.QUEUE, start, number, gpus)
            for part, to in self._split(each, start, end):
                until(part, to, number, gpus)
        last = stretch.tries[-1] if stretch.tries else None
        if stretch.closed is not None:
            until(Part.DOWN, stretch.closed, number, gpus)
        elif not stretch.state and (last is None or last.ended is not None or last.withdrawn is not None):
            until(Part.DOWN, now, number, gpus)

    def _split(self, each: _Try, start: int, end: int) -> tuple[tuple[Part, int], ...]:
        """The parts of the time that an attempt ran, each with its end, in order."""
        hung = end
        if each.silent is not None and (each.ended is None or mode_root(each.mode) == "stall"):
            hung = min(max(each.silent, start), end)
        first, last = _within(each.first, start, hung), _within(each.last, start, hung)
        fine = each.ended is None or mode_root(each.mode) == "success"
        if first is None or last is None:
            up, kept = self._without_progress(each, start, hung, fine=fine)
            return (
                (Part.START_UP, up),
                (Part.PRODUCTIVE, kept),
                (Part.ROLLED_BACK, hung),
                (Part.HANG, end),
            )
        up, again = self._before(each, start, first)
        if fine:
            kept = hung
        elif self._basis is Basis.COUNTERS:
            kept = last
        else:
            saved = _within(each.saved, start, hung)
            kept = again if saved is None else max(again, saved)
            self._to_repeat = last - kept if saved is not None else self._to_repeat + last - first
        self._got_ahead = True
        return (
            (Part.START_UP, up),
            (Part.ROLLED_BACK, again),
            (Part.PRODUCTIVE, kept),
            (Part.ROLLED_BACK, hung),
            (Part.HANG, end),
        )

    def _without_progress(self, each: _Try, start: int, hung: int, *, fine: bool) -> tuple[int, int]:
        """Ends of start-up and of productive time of an attempt that reported nothing."""
        if each.ended is not None and fine:
            return start, hung
        if self._tells or self._basis is not Basis.NOTHING:
            return hung, hung
        return start, hung if fine else start

    def _before(self, each: _Try, start: int, first: int) -> tuple[int, int]:
        """Ends of start-up, and of what an attempt repeats as far as that is not work that counts."""
        waited = first - start
        if self._basis is Basis.COUNTERS:
            if not self._got_ahead:
                self._quickest = waited if self._quickest is None else min(waited, self._quickest)
                return first, first
            quickest = waited if self._quickest is None else self._quickest
            return start + min(waited, quickest), first
        worked = self._to_repeat if each.counted == each.first else self._cadence
        up = first - min(worked, waited)
        return up, up


def _within(at: int | None, start: int, end: int) -> int | None:
    return None if at is None else min(max(at, start), end)
