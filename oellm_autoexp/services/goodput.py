"""Where the time went, in words and as JSON. What the parts mean is said in `core.goodput`."""

from __future__ import annotations

from typing import Any

from oellm_autoexp.core.goodput import Goodput
from oellm_autoexp.core.spans import Basis, Part
from oellm_autoexp.services.views import duration

NAMES = {
    Part.QUEUE: "queue",
    Part.START_UP: "start-up",
    Part.PRODUCTIVE: "productive",
    Part.ROLLED_BACK: "rolled back",
    Part.HANG: "hang",
    Part.DOWN: "down",
}
#: How far the split between productive, start-up and rolled back is known.
KNOWN_BY = {
    Basis.CHECKPOINTS: "told by checkpoints",
    Basis.COUNTERS: "told by counters; without checkpoints, start-up and rolled back are estimates",
    Basis.NOTHING: "no progress was reported; what failed counts as rolled back",
}
_MS_PER_HOUR = 3_600_000


def as_json(found: Goodput) -> dict[str, Any]:
    """Hours and GPU-hours of each part, and the share that was productive (null before a submission)."""
    return {
        "ettr": None if found.ettr is None else round(found.ettr, 4),
        "gpu_ettr": None if found.gpu_ettr is None else round(found.gpu_ettr, 4),
        "wall_hours": _hours(found.wall_ms),
        "hours": {part.value: _hours(ms) for part, ms in found.ms.items()},
        "gpu_hours": {part.value: _hours(ms) for part, ms in found.gpu_ms.items()},
        "gpu_hours_used": _hours(found.held_gpu_ms),
        "told_by": found.basis.value,
    }


def _hours(ms: int) -> float:
    return round(ms / _MS_PER_HOUR, 6)


def in_a_line(found: Goodput) -> str:
    """What a person reads below a table; "" before the first submission."""
    if found.ettr is None:
        return ""
    lost = ", ".join(f"{NAMES[part]} {percent(share)}" for part, share in _losses(found))
    rest = f"; {lost}" if lost else ""
    return f"ETTR {percent(found.ettr)} of {duration(found.wall_ms / 1000)} job time{rest}{_gpus(found)}"


def in_lines(found: Goodput) -> list[str]:
    """The same for one job, with the time of each part and what the figures rest on."""
    if found.ettr is None:
        return []
    parts = ", ".join(f"{NAMES[part]} {duration(ms / 1000)}" for part, ms in found.ms.items() if ms >= 500)
    wall = duration(found.wall_ms / 1000)
    return [f"ETTR {percent(found.ettr)} of {wall}{_gpus(found)} ({KNOWN_BY[found.basis]})", parts]


def percent(share: float) -> str:
    """A share for people: never 0 % of something, never 100 % of less than all."""
    if 0 < share < 0.005:
        return "<1 %"
    return f"{min(share, 0.99) if share < 1 else 1:.0%}".replace("%", " %")


def _losses(found: Goodput) -> list[tuple[Part, float]]:
    """What was not productive, the largest share first."""
    lost = [(part, ms / found.wall_ms) for part, ms in found.ms.items() if ms and part is not Part.PRODUCTIVE]
    return sorted(lost, key=lambda item: -item[1])


def _gpus(found: Goodput) -> str:
    if not found.held_gpu_ms:
        return ""
    share = percent(found.gpu_ms[Part.PRODUCTIVE] / found.held_gpu_ms)
    return f"; {found.held_gpu_ms / _MS_PER_HOUR:,.1f} GPU-hours used, {share} of them productive"
