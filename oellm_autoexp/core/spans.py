"""The time of one job, from what is kept of its attempts to spans of one part each. `core.goodput` says what
the parts mean, what is known, and what is an estimate. Times are UTC epoch milliseconds, whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from oellm_autoexp.core.model import JobSpec, JobState, mode_root

#: So many steps of a counter tell how long one takes.
FEWEST_STEPS = 10


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


@dataclass(slots=True)
class Try:
    """What is kept of one attempt: a handful of times, however long its log."""

    number: int
    requested: int
    gpus: int
    #: It was in the queue before it was wanted, and may have begun by itself before anybody saw that.
    waited: bool = False
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
    #: The last progress of a counter, and how many looks found one.
    last_counted: int | None = None
    counts: int = 0
    #: The first and last checkpoint, and how many looks found one.
    first_saved: int | None = None
    saved: int | None = None
    saves: int = 0

    @property
    def wanted(self) -> int:
        """From when on its time is the job's."""
        by_itself = self.waited and self.started is not None
        return min(self.requested, self.started or 0) if by_itself else self.requested

    def progress(self, at: int, *, saved: bool) -> None:
        self.first = at if self.first is None else self.first
        self.last = at
        if not saved:
            self.counted = at if self.counted is None else self.counted
            self.counts += self.last_counted != at
            self.last_counted = at
        elif self.saved != at:
            self.first_saved = at if self.first_saved is None else self.first_saved
            self.saved = at
            self.saves += 1


@dataclass(slots=True)
class Stretch:
    """A time in which a job was wanted."""

    begin: int
    tries: list[Try] = field(default_factory=list)
    #: The verdict, "" while there is none.
    state: str = ""
    #: When the verdict came between two attempts; None: with the end of the last one.
    closed: int | None = None


@dataclass(slots=True)
class Account:
    """One job."""

    gpus: int
    rules: str
    next_gpus: int | None = None
    stretches: list[Stretch] = field(default_factory=list)
    #: Something follows the last attempt: it was decided to try again.
    waits: bool = False

    @property
    def tries(self) -> Iterator[Try]:
        for stretch in self.stretches:
            yield from stretch.tries

    @property
    def latest(self) -> Try | None:
        return self.stretches[-1].tries[-1] if self.stretches and self.stretches[-1].tries else None

    @property
    def live(self) -> bool:
        last = self.latest
        return last is not None and last.ended is None and last.withdrawn is None

    def find(self, number: int) -> Try | None:
        last = self.latest
        if last is not None and last.number == number:
            return last
        return next((each for each in self.tries if each.number == number and each.withdrawn is None), None)

    def submit(self, number: int, at: int, *, waited: bool = False) -> None:
        if not self.stretches:
            self.stretches.append(Stretch(begin=at))
        self.gpus, self.next_gpus = self.gpus if self.next_gpus is None else self.next_gpus, None
        self.stretches[-1].tries.append(Try(number=number, requested=at, gpus=self.gpus, waited=waited))
        self.waits = False

    def follow(self, number: int, at: int) -> None:
        """It was decided to try again, with the attempt `number` that is in the queue already (0: none)."""
        last = self.latest
        if number:
            self.submit(number, at if last is None or last.ended is None else last.ended)
        else:
            self.waits = True

    def requeue(self, number: int, at: int) -> None:
        """The scheduler has taken an attempt that ran back into its queue, as if it were submitted now."""
        found = self.find(number)
        if found is not None and found.started is not None and found.ended is None:
            found.ended = at
            again = Try(number=number, requested=at, gpus=found.gpus)
            self.stretches[-1].tries.append(again)

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
            self.stretches.append(Stretch(begin=at))
        self.waits = True


def basis_of(account: Account) -> Basis:
    tries = list(account.tries)
    if any(each.saved is not None for each in tries):
        return Basis.CHECKPOINTS
    return Basis.COUNTERS if any(each.counted is not None for each in tries) else Basis.NOTHING


# ---------------------------------------------------------------- telling


class Teller:
    """Splits the time of one job, attempt by attempt."""

    def __init__(self, account: Account, *, tells: bool) -> None:
        self._tells = tells
        self._basis = basis_of(account)
        tries = list(account.tries)
        between = sum(each.saves - 1 for each in tries if each.saves > 1)
        saved = sum((each.saved or 0) - (each.first_saved or 0) for each in tries if each.saves > 1)
        #: The mean time between two checkpoints; 0 where it is not known.
        self._cadence = saved // between if between else 0
        steps = sum(each.counts - 1 for each in tries if each.counts > 1)
        counted = sum((each.last_counted or 0) - (each.counted or 0) for each in tries if each.counts > 1)
        #: The mean time between two marks of a counter; 0 where too few are known.
        self._beat = counted // steps if steps >= FEWEST_STEPS else 0
        #: Work since the newest checkpoint that the next attempt has to repeat.
        self._to_repeat = 0
        #: The quickest start-up with nothing to repeat; None: there was none yet.
        self._quickest: int | None = None
        self._got_ahead = False

    def tell(self, stretch: Stretch, now: int, out: list[Span]) -> None:
        """Add the spans of a stretch, each from where the one before it ends."""
        begin = min([stretch.begin, *(each.wanted for each in stretch.tries[:1])])
        cursor = max(begin, out[-1].end_ms) if out else begin

        def until(part: Part, end: int, number: int, gpus: int) -> None:
            nonlocal cursor
            if end > cursor:
                out.append(Span(part=part, begin_ms=cursor, end_ms=end, attempt=number, gpus=gpus))
                cursor = end

        number, gpus = 0, stretch.tries[0].gpus if stretch.tries else 0
        for each in stretch.tries:
            until(Part.DOWN, each.wanted, number, gpus)
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

    def _split(self, each: Try, start: int, end: int) -> tuple[tuple[Part, int], ...]:
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

    def _without_progress(self, each: Try, start: int, hung: int, *, fine: bool) -> tuple[int, int]:
        """Ends of start-up and of productive time of an attempt that reported nothing."""
        if each.ended is not None and fine:
            return start, hung
        if self._tells or self._basis is not Basis.NOTHING:
            return hung, hung
        return start, hung if fine else start

    def _before(self, each: Try, start: int, first: int) -> tuple[int, int]:
        """Ends of start-up, and of what an attempt repeats as far as that is not work that counts."""
        waited = first - start
        if self._basis is Basis.COUNTERS:
            if not self._got_ahead:
                self._quickest = waited if self._quickest is None else min(waited, self._quickest)
                return first, first
            quickest = waited if self._quickest is None else self._quickest
            return start + min(waited, quickest), first
        # The first mark that is new comes one beat after the old ones.
        worked = self._to_repeat + self._beat if each.counted == each.first else self._cadence
        up = first - min(worked, waited)
        return up, up


def _within(at: int | None, start: int, end: int) -> int | None:
    return None if at is None else min(max(at, start), end)
