"""What values of parameters have to do with how jobs end and how long they run: cases in, tables out.

The jobs of a value are compared with all others. What counts as a difference: one that large in this
direction would come about by chance at most once in twenty times (Fisher's exact test, one-sided), were the
jobs dealt out blindly. With many values a few such differences are to be expected: look there first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from oellm_autoexp.core.ranking import varied

#: A difference that chance makes more often is not told.
CHANCE = 0.05
#: Medians of run times that differ by less (times, seconds) are not told.
RATIO, SECONDS = 1.5, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How one job has fared; `parameters` are texts."""

    parameters: Mapping[str, str]
    #: It has its verdict; at most one of the next three.
    succeeded: bool = False
    failed: bool = False
    cancelled: bool = False
    running: bool = False
    #: An attempt has run.
    begun: bool = False
    #: The error modes of its attempts, and of its failure.
    modes: frozenset[str] = frozenset()
    #: Seconds that it ran, over all attempts; GPU-hours that it held.
    run_s: float = 0.0
    gpu_hours: float = 0.0

    @property
    def ended(self) -> bool:
        return self.succeeded or self.failed or self.cancelled


class Kind(str, Enum):
    """What sets a value apart."""

    FAILED = "failed"
    MODE = "mode"
    RUN_TIME = "run_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How the jobs of a value differ from the others.

    FAILED, MODE: `have` of `of` jobs, `others_have` of `others_of`; the `chance` of so large a difference.
    RUN_TIME: median seconds of the jobs that succeeded, here and elsewhere (`have`, `others_have`).
    """

    key: str
    value: str | None
    kind: Kind
    #: The error mode; "" for others.
    mode: str = ""
    have: float
    of: int
    others_have: float
    others_of: int
    chance: float | None = None

    @property
    def more(self) -> bool:
        """Whether it is worse here than elsewhere."""
        if self.kind is Kind.RUN_TIME:
            return self.have > self.others_have
        return self.have / self.of > self.others_have / self.others_of

    @property
    def about(self) -> tuple[str, Kind, str]:
        """What it is a finding of, apart from the value."""
        return self.key, self.kind, self.mode

    @property
    def order(self) -> tuple[bool, bool, float, float]:
        """The most telling first."""
        if self.kind is Kind.RUN_TIME:
            small, large = sorted((self.have, self.others_have))
            return True, not self.more, 0.0, -(large / small if small else math.inf)
        apart = abs(self.have / self.of - self.others_have / self.others_of)
        return False, not self.more, self.chance or 0.0, -apart


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRow:
    """All jobs of one value of one parameter (None: jobs that do not have the parameter)."""

    key: str
    value: str | None
    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    running: int
    #: How many jobs have had each error mode, the most common first.
    modes: Mapping[str, int]
    #: Of the jobs that have a verdict; None: none has.
    median_run_s: float | None
    hours: float
    gpu_hours: float
    finding: Finding | None = None

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    def rate(self, count: int) -> float | None:
        """A number of jobs as a share of those that have a verdict."""
        return count / self.ended if self.ended else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The values of parameters, those that differ most from the rest first."""

    keys: Sequence[str]
    rows: Sequence[ValueRow]
    findings: Sequence[Finding]
    #: Values that too few jobs have.
    below_support: int


def analysis(cases: Sequence[Case], *, min_support: int = 3, by: Sequence[str] = ()) -> Analysis:
    """Compare the jobs of each value with the others. Values with fewer than `min_support` jobs are left out.

    `by`: the parameters to look at; all that differ between jobs by default.
    """
    keys = list(by) or varied(case.parameters for case in cases)
    rows: list[ValueRow] = []
    below = 0
    for key in keys:
        parts: dict[str | None, list[Case]] = {}
        for case in cases:
            parts.setdefault(case.parameters.get(key), []).append(case)
        for value, mine in parts.items():
            if len(mine) < min_support:
                below += 1
                continue
            others = [case for other, theirs in parts.items() if other != value for case in theirs]
            found = _finding(key, value, mine, others, min_support)
            rows.append(_row(key, value, mine, found))
    told = _once([row.finding for row in rows if row.finding is not None])
    places = {(finding.key, finding.value): at for at, finding in enumerate(told)}
    kept = [row for row in rows if (row.key, row.value) in places]
    rest = [_without_finding(row) for row in rows if (row.key, row.value) not in places]
    kept.sort(key=lambda row: places[row.key, row.value])
    rest.sort(key=lambda row: -(row.rate(row.failed) or 0.0))
    return Analysis(keys=keys, rows=[*kept, *rest], findings=told, below_support=below)


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """Where values are worse than the rest, that the rest is better is the same said twice."""
    worse = {finding.about for finding in findings if finding.more}
    told = [finding for finding in findings if finding.more or not _mirrored(finding, worse)]
    return sorted(told, key=lambda finding: finding.order)


def _mirrored(finding: Finding, worse: set[tuple[str, Kind, str]]) -> bool:
    if finding.kind is Kind.RUN_TIME:
        return finding.about in worse
    return any(key == finding.key and kind is not Kind.RUN_TIME for key, kind, _ in worse)


def _row(key: str, value: str | None, mine: Sequence[Case], finding: Finding | None) -> ValueRow:
    modes = Counter(mode for case in mine for mode in case.modes)
    return ValueRow(
        key=key,
        value=value,
        jobs=len(mine),
        succeeded=sum(case.succeeded for case in mine),
        failed=sum(case.failed for case in mine),
        cancelled=sum(case.cancelled for case in mine),
        running=sum(case.running for case in mine),
        modes=dict(sorted(modes.items(), key=lambda item: (-item[1], item[0]))),
        median_run_s=_quantile([case.run_s for case in mine if case.ended], 0.5),
        hours=math.fsum(case.run_s for case in mine) / 3600,
        gpu_hours=math.fsum(case.gpu_hours for case in mine),
        finding=finding,
    )


def _without_finding(row: ValueRow) -> ValueRow:
    told = {name: getattr(row, name) for name in ValueRow.__slots__}
    return ValueRow(**{**told, "finding": None})


def _finding(
    key: str, value: str | None, mine: Sequence[Case], others: Sequence[Case], min_support: int
) -> Finding | None:
    """The most telling difference of a value from the rest; None where there is none."""
    found = [_compared(key, value, Kind.FAILED, "", _failures(mine), _failures(others))]
    for mode in sorted({mode for case in (*mine, *others) for mode in case.modes}):
        here, there = _with_mode(mine, mode), _with_mode(others, mode)
        found.append(_compared(key, value, Kind.MODE, mode, here, there))
    found.append(_slower(key, value, mine, others, min_support))
    told = [each for each in found if each is not None]
    # A mode says more than that jobs failed.
    return min(told, key=lambda each: (*each.order, each.kind is not Kind.MODE), default=None)


def _failures(cases: Iterable[Case]) -> tuple[int, int]:
    ended = [case for case in cases if case.ended]
    return sum(case.failed for case in ended), len(ended)


def _with_mode(cases: Iterable[Case], mode: str) -> tuple[int, int]:
    begun = [case for case in cases if case.begun or case.ended]
    return sum(mode in case.modes for case in begun), len(begun)


def _compared(
    key: str, value: str | None, kind: Kind, mode: str, here: tuple[int, int], there: tuple[int, int]
) -> Finding | None:
    (have, of), (others_have, others_of) = here, there
    if not of or not others_of:
        return None
    by_chance = chance(have, of, others_have, others_of)
    if by_chance > CHANCE:
        return None
    return Finding(
        key=key,
        value=value,
        kind=kind,
        mode=mode,
        have=have,
        of=of,
        others_have=others_have,
        others_of=others_of,
        chance=by_chance,
    )


def chance(have: int, of: int, others_have: int, others_of: int) -> float:
    """How likely so large a difference in this direction is, were those that have it dealt out blindly.

    >>> round(chance(4, 4, 0, 12), 6), round(chance(0, 12, 4, 4), 6), chance(2, 4, 2, 4) > 0.5
    (0.000549, 0.000549, True)
    """
    all_have, whole = have + others_have, of + others_of
    least, most = max(0, all_have - others_of), min(of, all_have)
    more = have * others_of >= others_have * of
    counts = range(have, most + 1) if more else range(least, have + 1)
    certain = _log_ways(whole, all_have)
    logs = (_log_ways(of, count) + _log_ways(others_of, all_have - count) - certain for count in counts)
    return min(1.0, math.fsum(map(math.exp, logs)))


def _log_ways(of: int, some: int) -> float:
    """The logarithm of the number of ways to choose."""
    return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)


def _slower(
    key: str, value: str | None, mine: Sequence[Case], others: Sequence[Case], min_support: int
) -> Finding | None:
    """Run times that lie apart: the middle halves of both do not meet, and the medians differ enough."""
    here = [case.run_s for case in mine if case.succeeded]
    there = [case.run_s for case in others if case.succeeded]
    if min(len(here), len(there)) < max(2, min_support):
        return None
    apart = _quarter(here, 1) > _quarter(there, 3) or _quarter(here, 3) < _quarter(there, 1)
    small, large = sorted((_quarter(here, 2), _quarter(there, 2)))
    if not apart or large < max(RATIO * small, small + SECONDS):
        return None
    return Finding(
        key=key,
        value=value,
        kind=Kind.RUN_TIME,
        have=_quarter(here, 2),
        of=len(here),
        others_have=_quarter(there, 2),
        others_of=len(there),
    )


def _quarter(values: Sequence[float], number: int) -> float:
    return _quantile(values, number / 4) or 0.0


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Between the values that are nearest to a share of all, as `statistics.quantiles` (inclusive) has it."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    first = math.floor(place)
    last = min(first + 1, len(ordered) - 1)
    return ordered[first] + (ordered[last] - ordered[first]) * (place - first)
