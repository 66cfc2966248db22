"""Durations as Slurm writes them. Source: sbatch(1), `--time`."""

from __future__ import annotations

import re
import signal

from oellm_autoexp.core.verdict import format_duration as format_time

__all__ = ["format_time", "parse_signal", "parse_time"]

_UNLIMITED = frozenset({"infinite", "unlimited", "-1"})
#: minutes, minutes:seconds, hours:minutes:seconds; with days: hours, hours:minutes, hours:minutes:seconds.
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_SIGNAL = re.compile(r"(?:([BR]+):)?(?:SIG)?(\w+)(?:@(\d+))?", re.ASCII)
#: Seconds before the time limit where `--signal` names none.
_BEFORE_S = 60


def parse_time(text: str | int) -> int | None:
    """Seconds; None for no limit. A bare number is minutes.

    Raises:
        ValueError: not one of Slurm's forms, or no time at all.

    >>> [parse_time(text) for text in ("30", "1:30", "24:00:00", "1-12", "1-00:30", "UNLIMITED")]
    [1800, 90, 86400, 129600, 88200, None]
    """
    shown = str(text).strip()
    if shown.lower() in _UNLIMITED:
        return None
    match = _TIME.fullmatch(shown)
    if not match:
        raise ValueError(f"`{shown}` is not a time: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*given, 0, 0][:3]
    elif len(given) == 3:
        hours, minutes, seconds = given
    else:
        hours, (minutes, seconds) = 0, [*given, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError(f"`{shown}` is no time at all")
    return total


def parse_signal(text: str) -> str:
    """`--signal` of sbatch, to the batch script, which hands it on to its command and so to srun's steps.

    Raises:
        ValueError: no signal, or no form of Slurm's.

    >>> parse_signal("USR1"), parse_signal("B:SIGTERM@300"), parse_signal("R:10@120")
    ('B:USR1@60', 'B:TERM@300', 'BR:10@120')
    """
    match = _SIGNAL.fullmatch(text.strip())
    if not match:
        raise ValueError(f"`{text}` is not a signal before the time limit: write USR1@300, with the seconds")
    flags, name, before = match.groups()
    try:
        signal.Signals(int(name)) if name.isdecimal() else signal.Signals[f"SIG{name}"]
    except (KeyError, ValueError):
        raise ValueError(f"there is no signal `{name}`: write USR1@300, with the seconds") from None
    return f"{''.join(sorted({*'B', *(flags or '')}))}:{name}@{before or _BEFORE_S}"
