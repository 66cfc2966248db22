"""One metric of a series, found among the bytes of its lines: no object is made of a line.

That is exact for what `store.series` writes: one flat JSON object a line. Within a JSON string a quote
follows a backslash, so what stands behind `{`, a comma or a blank is a key. Memory does not grow with the
series.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from oellm_autoexp.core.metrics import STEPS, Curve, Points, Reading

#: Bytes that are looked at at a time.
BLOCK = 1 << 20
_NAMES = re.compile(rb'"(?<=[{, ]")([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*(?=[-\dNI])')
_OWN = frozenset({"t", "attempt"})


def metric_names(path: Path, *, since: int = 0) -> set[str]:
    """The names of all metrics of a series that have a number, from attempt `since` on."""
    found: set[bytes] = set()
    for block in _blocks(path, since):
        found.update(_NAMES.findall(block))
    names: set[str] = set()
    for name in found:
        with contextlib.suppress(ValueError):  # of a torn line
            names.add(json.loads(b'"' + name + b'"'))
    return names - _OWN


def read_curve(
    path: Path, metric: str, *, steps: Sequence[str] = STEPS, since: int = 0, points: int = 0
) -> Curve | None:
    """One metric of a series from attempt `since` on; None: it has no number.

    `steps`: metrics of which the first that a record has is its step; a record without any has the one that
    was told last before it. `points`: about so many points of the curve are kept.
    """
    reader = _Reader(metric, steps, points)
    for block in _blocks(path, since):
        reader.take(block)
    return reader.curve()


def _blocks(path: Path, since: int) -> Iterator[bytes]:
    """The series in pieces of whole lines, without what earlier attempts wrote."""
    begun = since <= 1
    for block in _lines(path):
        if not begun:
            place = _first_of(block, since)
            if place is None:
                continue
            begun = True
            yield block[place:]
        else:
            yield block


def _first_of(block: bytes, since: int) -> int | None:
    for found in _key("attempt").value.finditer(block):
        number = _number(found[1])
        if number is not None and number >= since:
            return block.rfind(b"\n", 0, found.start()) + 1
    return None


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    try:
        with path.open("rb") as file:
            while data := file.read(BLOCK):
                data = rest + data
                end = data.rfind(b"\n") + 1
                if end:
                    yield data[:end]
                # What is longer than a block is no record.
                rest = data[end:] if len(data) - end < BLOCK else b""
    except OSError:
        return
    try:
        json.loads(rest)
    except ValueError:
        return  # Torn: a number at its end may be the half of one.
    yield rest


@dataclass(frozen=True, slots=True)
class _Key:
    """A key as it stands in a line, and a pattern for the value behind it."""

    text: bytes
    value: re.Pattern[bytes]


@lru_cache(maxsize=64)
def _key(name: str) -> _Key:
    text = json.dumps(name).encode()
    literal = re.escape(text)
    # It begins with the key, which `re` looks for by a fast search.
    return _Key(text, re.compile(literal + rb"(?<=[{, ]" + literal + rb")\s*:\s*([^,}\s]+)\s*(?=[,}])"))


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class _Reader:
    def __init__(self, metric: str, steps: Sequence[str], points: int) -> None:
        self._metric = _key(metric)
        self._steps = [_key(name) for name in steps if name != metric]
        self._points = Points(points)
        #: Those of the steps that a block has at all, and what was told before it.
        self._present: list[_Key] = []
        self._told: float | None = None
        self._begin: float | None = None
        self._last: Reading | None = None
        self._low: Reading | None = None
        self._high: Reading | None = None
        self._mean = 0.0
        self._finite = 0
        self._count = 0
        self._last_is_kept = False

    def take(self, block: bytes) -> None:
        """The next lines of the series."""
        if self._begin is None:
            self._begin = _in(_line_of(block, 0), _key("t"))
        self._present = [key for key in self._steps if key.text in block]
        found = list(self._metric.value.finditer(block))
        try:
            values = [float(each[1]) for each in found]
        except ValueError:
            found = [each for each in found if _number(each[1]) is not None]
            values = [float(each[1]) for each in found]
        if values:
            self._take(block, [each.start() for each in found], values)
        self._told = self._told_before(block, len(block))

    def _take(self, block: bytes, places: Sequence[int], values: Sequence[float]) -> None:
        self._count += len(values)
        self._last = self._reading(block, places[-1], values[-1])
        # The sum of numbers is finite only if each of them is.
        finite = values if math.isfinite(sum(values)) else [value for value in values if math.isfinite(value)]
        if finite:
            low, high = min(finite), max(finite)
            if self._low is None or low < self._low.value:
                self._low = self._reading(block, places[values.index(low)], low)
            if self._high is None or high > self._high.value:
                self._high = self._reading(block, places[values.index(high)], high)
            before, self._finite = self._finite, self._finite + len(finite)
            # Each part is divided first, so that the sum cannot overflow.
            parts = math.fsum(value / self._finite for value in finite)
            self._mean = self._mean * (before / self._finite) + parts
        if self._points.most:
            for place, value in zip(places, values, strict=True):
                self._last_is_kept = self._points.due()
                if self._last_is_kept:
                    self._points.add(self._reading(block, place, value))

    def _reading(self, block: bytes, place: int, value: float) -> Reading:
        line = _line_of(block, place)
        attempt = _in(line, _key("attempt"))
        return Reading(
            value=value,
            step=self._step(block, place, line),
            at=_in(line, _key("t")),
            attempt=None if attempt is None else int(attempt),
        )

    def _step(self, block: bytes, place: int, line: bytes) -> float | None:
        for key in self._present:
            step = _in(line, key)
            if step is not None:
                return step
        return self._told_before(block, place)

    def _told_before(self, block: bytes, place: int) -> float | None:
        for key in self._present:
            step = _last_before(key, block, place)
            if step is not None:
                return step
        return self._told

    def curve(self) -> Curve | None:
        """What has been found; None: nothing."""
        if self._last is None:
            return None
        if self._points.most and not self._last_is_kept:
            self._points.add(self._last)
        return Curve(
            last=self._last,
            low=self._low,
            high=self._high,
            mean=self._mean if self._finite else None,
            count=self._count,
            not_finite=self._count - self._finite,
            begin=self._begin,
            points=self._points,
        )


def _line_of(block: bytes, place: int) -> bytes:
    end = block.find(b"\n", place)
    return block[block.rfind(b"\n", 0, place) + 1 : end if end >= 0 else len(block)]


def _in(line: bytes, key: _Key) -> float | None:
    """The finite number of a key in a line."""
    found = key.value.search(line)
    number = _number(found[1]) if found is not None else None
    return number if number is not None and math.isfinite(number) else None


def _last_before(key: _Key, block: bytes, place: int) -> float | None:
    """The finite number of a key in the last line before `place` that has one."""
    while (place := block.rfind(key.text, 0, place)) >= 0:
        number = _in(_line_of(block, place), key)
        if number is not None:
            return number
    return None
