"""From values to places on a drawing, and the round values that are written beside an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Beyond them, sums and ratios overflow; what is beyond stands at the end of the axis.
_MOST, _LEAST = 1e140, 1e-140
#: The share of an axis that is left free at each end.
_PAD = 0.05


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis from `low` to `high` (values) over `begin` to `end` (coordinates of the drawing)."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    @classmethod
    def over(
        cls, values: Iterable[float], begin: float, end: float, *, log: bool = False, pad: float = _PAD
    ) -> Scale:
        """The scale that shows finite values, with room at both ends; for `log` all are above 0."""
        held = [min(max(value, -_MOST), _MOST) for value in values] or [0.0, 1.0]
        low, high = min(held), max(held)
        if log:
            low, high = max(low, _LEAST), max(high, _LEAST)
            ratio = (high / low) ** pad if high > low else 2.0
            return cls(low=low / ratio, high=high * ratio, begin=begin, end=end, log=True)
        size = max(abs(low), abs(high))
        if size < _LEAST:
            room = 1.0
        else:
            # Values that are all but the same are drawn as the same.
            room = (high - low) * pad if high - low > size * 1e-9 else size * 0.1
        return cls(low=low - room, high=high + room, begin=begin, end=end)

    def at(self, value: float) -> float:
        """The coordinate of a value; what is outside stands at the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            size = max(abs(self.low), abs(self.high))
            share = (value / size - self.low / size) / (self.high / size - self.low / size)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, most: int = 6) -> list[float]:
        """At most about `most` round values within the scale; at least one."""
        found = self._decades(most) if self.log else []
        return found if len(found) >= 2 else _round_values(self.low, self.high, most)

    def _decades(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            exponents = range(first, last + 1)
            found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def _round_values(low: float, high: float, most: int) -> list[float]:
    raw = high / most - low / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * base for factor in (1, 2, 2.5, 5, 10) if factor * base >= raw * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(first, last + 1)] or [low]


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether values are spread by factors rather than by differences: 1e-4, 1e-3, 1e-2 or 1, 2, 4, 8."""
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] <= 0 or ordered[-1] / ordered[0] < 8:
        return False
    logs = [math.log(value) for value in ordered]
    return _unevenness(logs) <= _unevenness([value / ordered[-1] for value in ordered])


def _unevenness(values: Sequence[float]) -> float:
    """The largest gap between neighbours, as a share of all."""
    return max(after - before for before, after in pairwise(values)) / (values[-1] - values[0])


def is_wide(values: Sequence[float]) -> bool:
    """Whether values cover so many sizes that most would stick together on a linear axis."""
    held = sorted(value for value in values if math.isfinite(value))
    return bool(held) and held[0] > 0 and held[-1] / held[len(held) // 2] >= 30


def short(value: float) -> str:
    """A number beside an axis.

    >>> [short(value) for value in (0.0, 0.1 + 0.2, 1200, 2e6, 1e-5, -2.5)]
    ['0', '0.3', '1200', '2e6', '1e-5', '-2.5']
    """
    text = f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 or not value else f"{value:.3g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa
