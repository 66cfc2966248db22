"""A token bucket in a small file, so that all processes of a user keep to one rate together."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from oellm_autoexp.store.effects import FILE_MODE, Effects

#: Nobody waits longer than this for a turn, or for another's look at the file (whose process may be stopped).
MOST_S, LOCK_S = 30.0, 1.0


class Bucket:
    """`burst` turns at once, then `per_s` in a second.

    A file that cannot be used (no home, a full disk) leaves each process a bucket of its own.
    """

    def __init__(
        self,
        path: Path | None,
        effects: Effects,
        *,
        burst: float,
        per_s: float,
        now: Callable[[], float] = time.time,  # noqa: TID251 - the file is for processes of several hosts
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._effects = effects
        self._burst = burst
        self._per_s = per_s
        self._now = now
        self._wait = wait
        self._own = (burst, now())

    def take(self) -> None:
        """Take a turn; wait for it if there is none."""
        try:
            left = self._effects.call("rate", str(self._path), self._taken)
        except OSError:
            self._own = self._after(*self._own)
            left = self._own[0]
        if left < 0:
            self._wait(min(MOST_S, -left / self._per_s))

    def _taken(self) -> float:
        if self._path is None:
            raise FileNotFoundError
        if not self._path.parent.is_dir():
            self._effects.mkdir(self._path.parent.parent)
            self._effects.mkdir(self._path.parent)
        with _locked(self._path) as fd:
            tokens, at = _read(fd, (self._burst, self._now()))
            tokens, at = self._after(tokens, at)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps([tokens, at]).encode(), 0)
        return tokens

    def _after(self, tokens: float, at: float) -> tuple[float, float]:
        """The bucket after one more turn. A clock that was set back refills nothing, and takes nothing."""
        now = self._now()
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._per_s)
        return max(tokens - 1.0, -MOST_S * self._per_s), now


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        give_up = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.01)
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, default: tuple[float, float]) -> tuple[float, float]:
    try:
        tokens, at = json.loads(os.pread(fd, 256, 0))
        return float(tokens), float(at)
    except (TypeError, ValueError):
        return default
