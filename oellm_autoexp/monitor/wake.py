"""How long a loop rests, and what wakes it early: file events where the file system is a local one.

A missing wake-up is never evidence: whatever happens is found by the next look too, only later.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

#: File systems whose every change is made by this kernel, and so is seen by inotify(7).
LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
#: The shortest and the longest rest between two ticks.
MIN_REST_S, MAX_REST_S = 0.25, 5.0
#: The part of one CPU that a loop may use, however busy the logs are.
MAX_LOAD = 0.05
#: The rest grows by this factor when nothing happened.
CALM = 2


class Rest:
    """How long to rest after a tick: short while things happen, longer while they do not."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = max(MIN_REST_S, min(MAX_REST_S, longest_s))
        self._rest_s = MIN_REST_S

    def after(self, *, changed: bool, due_s: float = MAX_REST_S) -> float:
        """The seconds to rest after a tick, unless woken; `due_s`: what is to be done next is due so soon."""
        self._rest_s = MIN_REST_S if changed else min(self._longest_s, self._rest_s * CALM)
        return max(MIN_REST_S, min(self._rest_s, due_s))


class Alarm:
    """Rings when a file in one of its directories changes. Does nothing where that cannot be known.

    However often it rings, the ticks between use at most MAX_LOAD of one CPU; `cpu` tells the seconds used.
    """

    def __init__(self, wait: Callable[[float], None], cpu: Callable[[], float] = time.process_time) -> None:
        self._wait = wait
        self._cpu = cpu
        self._used_s = cpu()
        self._rang = threading.Event()
        self._observer: Any = None
        self._watched: set[Path] = set()

    def watch(self, directories: Iterable[Path]) -> None:
        """Watch directories, each with all below it; known ones and those that cannot be are passed over."""
        for directory in directories:
            if directory in self._watched or not directory.is_dir():
                continue
            self._watched.add(directory)
            if file_system(directory, mounts()) not in LOCAL:
                continue
            # inotify(7): a user has only so many instances and watches; without them it goes on as before.
            with contextlib.suppress(OSError):
                self._started().schedule(_Ring(self._rang), str(directory), recursive=True)

    def _started(self) -> Any:
        if self._observer is None:
            from watchdog.observers import Observer

            self._observer = Observer()
            self._observer.daemon = True
            self._observer.start()
        return self._observer

    def rest(self, most_s: float) -> bool:
        """Wait until something happens, for about `most_s` seconds; whether something did."""
        least_s = max(MIN_REST_S, (self._cpu() - self._used_s) / MAX_LOAD)
        self._wait(least_s)
        rang = False
        if self._observer is not None:
            rang = self._rang.wait(max(0.0, most_s - least_s))
            self._rang.clear()
        elif most_s > least_s:
            self._wait(most_s - least_s)
        self._used_s = self._cpu()
        return rang

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=1.0)
            self._observer = None


class _Ring:
    """What watchdog calls; reading a file is no news."""

    def __init__(self, rang: threading.Event) -> None:
        self._rang = rang

    def dispatch(self, event: Any) -> None:
        if event.event_type in ("created", "modified", "moved", "deleted"):
            self._rang.set()


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that holds a path, from the text of /proc/self/mountinfo (proc(5))."""
    best, kind = -1, ""
    target = path.resolve()
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if (target == point or point in target.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split()[0]
    return kind


def mounts() -> str:
    """The text of /proc/self/mountinfo; "" where there is none."""
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
