"""The metrics of a job: one JSON object a line, for plots and tables. Lossy by intent, never the truth.

A record is {"t", "attempt", …the line's fields}. Of the lines with the same fields that come in one interval
only the last is kept; the interval grows with the age of the series, so that weeks stay a few thousand lines.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oellm_autoexp.core.model import Scalar
from oellm_autoexp.store.effects import Effects

#: The end of a series that is looked at for the latest values.
TAIL_BYTES = 8192
#: The interval is at least the series' age divided by this.
RESOLUTION = 1000.0
#: Different sets of fields that one interval can hold.
MAX_SHAPES = 32
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)
class _Pending:
    begin: float
    written_at: float = float("-inf")
    held: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)


class Series:
    """Writes the series of many jobs; keeps no file open.

    `interval_s`: the least seconds between two writes of one series.
    """

    def __init__(self, effects: Effects, *, interval_s: float = 1.0) -> None:
        self._effects = effects
        self._interval_s = interval_s
        self._pending: dict[Path, _Pending] = {}
        #: The series of which something is held, and when it is to be written.
        self._due: dict[Path, float] = {}
        self._settled_at = float("-inf")

    def add(self, path: Path, attempt: int, records: Sequence[Mapping[str, Scalar]], now: float) -> None:
        """Take metrics in, oldest first; written when due, at the latest by `settle`."""
        pending = self._pending.get(path)
        if pending is None:
            pending = self._pending[path] = _Pending(begin=_begin(path, now))
        for record in records:
            shape = tuple(sorted(record))
            pending.held.pop(shape, None)  # the newest comes last
            pending.held[shape] = {**record, "t": round(now, 3), "attempt": attempt}
            if len(pending.held) > MAX_SHAPES:
                del pending.held[next(iter(pending.held))]
        gap = max(self._interval_s, (now - pending.begin) / RESOLUTION)
        # A clock that was set back must not silence a series.
        if not 0 <= now - pending.written_at < gap:
            self._write(path, pending, now)
        elif path not in self._due:
            self._due[path] = pending.written_at + gap

    def settle(self, now: float, *, only: Path | None = None, every: bool = False) -> None:
        """Write what has become due; all that is held of `only` (an attempt ends), or of `every` series."""
        if only is not None:
            due = [only] if only in self._due else []
        elif every or now < self._settled_at:
            due = list(self._due)
        else:
            due = [path for path, at in self._due.items() if at <= now]
        self._settled_at = now
        for path in due:
            self._write(path, self._pending[path], now)

    def _write(self, path: Path, pending: _Pending, now: float) -> None:
        text = "".join(_encode(record) + "\n" for record in pending.held.values())
        pending.held.clear()
        self._due.pop(path, None)
        pending.written_at = now
        with contextlib.suppress(OSError):  # a full disk loses metrics, not jobs
            try:
                self._effects.append(path, text.encode(), private=True, durable=False)
            except FileNotFoundError:
                self._effects.mkdir(path.parent)
                self._effects.append(path, text.encode(), private=True, durable=False)


def _begin(path: Path, now: float) -> float:
    """When a series began: a new daemon goes on at the same pace."""
    try:
        with path.open("rb") as file:
            return min(now, float(json.loads(file.readline(TAIL_BYTES))["t"]))
    except (OSError, ValueError, KeyError, TypeError):
        return now


def read_series(path: Path) -> list[dict[str, Any]]:
    """All records of a series, oldest first; torn lines are passed over."""
    try:
        return list(_records(path.read_bytes()))
    except OSError:
        return []


def last_values(path: Path) -> dict[str, Scalar]:
    """The latest value of each metric near the end of a series; reads only the end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read()
    except OSError:
        return {}
    values: dict[str, Scalar] = {}
    for record in _records(data):
        values.update(record)
    return {name: value for name, value in values.items() if name not in ("t", "attempt")}


def _records(data: bytes) -> list[dict[str, Any]]:
    records = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records
