"""The metrics of a job: one JSON object a line, for plots and tables. Lossy by intent, never the truth."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from oellm_autoexp.core.model import Scalar

#: The end of a series that is looked at for the latest values.
TAIL = 8192


def append_metrics(path: Path, attempt: int, records: Sequence[Mapping[str, Scalar]], now: float) -> None:
    """Add the last of a block's records; a full disk loses metrics, not jobs."""
    line = json.dumps({"t": round(now, 3), "attempt": attempt, **records[-1]})
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")


def last_values(path: Path) -> dict[str, Scalar]:
    """The latest value of each metric near the end of a series."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    values: dict[str, Scalar] = {}
    for line in lines:
        try:
            values.update(json.loads(line))
        except ValueError:
            continue
    return {name: value for name, value in values.items() if name not in ("t", "attempt")}
