"""Which checkpoints stay: pure decisions over commit records."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

from oellm_autoexp.checkpoints.record import CommitRecord


def newest_first(records: Collection[CommitRecord]) -> list[CommitRecord]:
    return sorted(records, key=lambda record: (record.number, record.step), reverse=True)


def best(
    records: Collection[CommitRecord], metric: str, mode: Literal["min", "max"] = "min"
) -> CommitRecord | None:
    """The one with the best finite value of the metric, the newest of equals; None where none has it."""
    sign = 1.0 if mode == "min" else -1.0
    known = [
        record for record in newest_first(records) if math.isfinite(record.metrics.get(metric, math.nan))
    ]
    return min(known, key=lambda record: sign * record.metrics[metric], default=None)


def superseded(
    records: Collection[CommitRecord], keep: int, protect: Collection[str] = ()
) -> Sequence[CommitRecord]:
    """Those that may go, oldest first.

    The last `keep` (at least 1) that are no emergency checkpoints stay, the newest of all, and those whose
    names are protected. An emergency checkpoint stays until a regular one of a later step is committed
    after it.
    """
    ordered = newest_first(records)
    steady = [record for record in ordered if record.kind != "emergency"]
    staying = {record.name for record in [*ordered[:1], *steady[: max(1, keep)]]} | set(protect)
    staying |= {
        record.name
        for record in ordered
        if record.kind == "emergency"
        and not any(later.number > record.number and later.step > record.step for later in steady)
    }
    return [record for record in reversed(ordered) if record.name not in staying]
