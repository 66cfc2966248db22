"""Whether there is room for what a session writes, before anything is submitted.

A full disk stops a campaign at the worst moment: a checkpoint is torn, and the journal cannot say so.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oellm_autoexp.errors import StateError
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.store.effects import Effects

#: What the state, the script, the directories and the first log of a job take at least: bytes and files.
JOB_BYTES, JOB_FILES = 64 * 1024, 16
#: What a session takes at least beside its jobs.
SESSION_BYTES, SESSION_FILES = 16 * 1024**2, 100
#: Room for this many times as much is too little to be left alone with; so is less than `LOW_BYTES`.
COMFORT, LOW_BYTES = 10, 1024**3
#: How long a quota is waited for: it is asked of a server.
QUOTA_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left at a place. None: without bound, or not known."""

    where: str
    what: str
    bytes_free: int | None = None
    files_free: int | None = None


def check(
    places: Iterable[Path], jobs: int, *, look: Callable[[Path], Iterable[Room]] | None = None
) -> list[str]:
    """Warnings about directories (or their nearest parents that exist) in which `jobs` new jobs would write.

    Raises:
        StateError: what is sure to be written has no room.
    """
    bytes_needed = SESSION_BYTES + jobs * JOB_BYTES
    files_needed = SESSION_FILES + jobs * JOB_FILES
    warnings: dict[str, None] = {}
    for place in dict.fromkeys(map(_nearest, places)):
        for room in (look or rooms)(place):
            for free, needed, low, words in (
                (room.bytes_free, bytes_needed, LOW_BYTES, size),
                (room.files_free, files_needed, 0, lambda number: f"{number} files"),
            ):
                if free is None:
                    continue
                what = f"{room.what} leaves room for {words(max(0, free))}"
                if free < needed:
                    raise StateError(
                        f"{what}; {jobs} new jobs need {words(needed)} for their state alone",
                        where=room.where,
                        hint="nothing was submitted; make room (`oellm-autoexp cleanup` lists what ended "
                        "sessions have left), or set project.base_output_dir and project.state_dir elsewhere",
                    )
                if free < max(COMFORT * needed, low):
                    warnings[f"{room.where}: {what}"] = None
    return list(warnings)


def rooms(place: Path) -> Iterator[Room]:
    """What the file system says, and this user's quota where a tool for it is there."""
    try:
        found = os.statvfs(place)
    except OSError:
        return
    # Some file systems make inodes as they are needed, and count none (btrfs).
    files = found.f_favail if found.f_files else None
    where = str(place)
    yield Room(
        where=where, what="the file system", bytes_free=found.f_bavail * found.f_frsize, files_free=files
    )
    mount = str(next((each for each in (place, *place.parents) if each.is_mount()), place))
    for argv in (("lfs", "quota", "-q", "-u", _user(), where), ("quota", "-w", "-p", "-f", mount)):
        if shutil.which(argv[0]):
            yield from _quota(argv, where)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _quota(argv: tuple[str, ...], where: str) -> Iterator[Room]:
    try:
        ran = Effects().run(argv, env={**clean_environment(), "LC_ALL": "C"}, cwd=None, timeout_s=QUOTA_S)
    except OSError:
        return
    yield from quotas(ran.output, where, f"your quota ({argv[0]})")


#: kilobytes used (`*`: too many), quota, limit, grace; the same of files. lfs-quota(1), quota(1).
_NUMBERS = re.compile(r"\s(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)(?:\s|$)")


def quotas(text: str, where: str, what: str) -> Iterator[Room]:
    """What quotas of this form leave. 0 is no limit; where there are two, the lower one counts."""
    for match in _NUMBERS.finditer(text):
        kilobytes, soft, hard, files, soft_files, hard_files = map(int, match.groups())
        limits = [limit for limit in (soft, hard) if limit]
        file_limits = [limit for limit in (soft_files, hard_files) if limit]
        yield Room(
            where=where,
            what=what,
            bytes_free=(min(limits) - kilobytes) * 1024 if limits else None,
            files_free=min(file_limits) - files if file_limits else None,
        )


def _nearest(path: Path) -> Path:
    """The directory itself, or where it would be made."""
    return next((each for each in (path, *path.parents) if each.is_dir()), path)


def size(number: int) -> str:
    """Bytes for people.

    >>> size(999), size(1_234_567)
    ('999 B', '1.2 MB')
    """
    left = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} TB"
