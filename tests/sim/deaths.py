"""Deaths at a step of the effects, for what runs within the test; and disks that are full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from oellm_autoexp.store.effects import Effects, write_all


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Dying(Effects):
    """Dies before its n-th step, and does nothing more."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, name: str, target: str) -> None:
        if self.left == 0:
            raise Killed(f"{name} {target}")
        self.left -= 1


class Fatal(Effects):
    """Dies at its step number `at` (0: never).

    `lost`: with what was not yet synced; `torn`: half of it is left. While `full` nothing can be written.
    `on_step` is told of each step first. `names` and `times` are those of all steps so far.
    """

    def __init__(
        self,
        at: int = 0,
        *,
        lost: bool = False,
        torn: bool = False,
        now: Callable[[], float] = lambda: 0.0,
        on_step: Callable[[str, str], None] = lambda _name, _target: None,
    ) -> None:
        super().__init__()
        self.at, self.lost, self.torn = at, lost, torn
        self.full = False
        self.count = 0
        self.names: list[str] = []
        self.times: list[float] = []
        self._now = now
        self._on_step = on_step
        self._unsynced: tuple[int, int, bytes] | None = None

    def step(self, name: str, target: str) -> None:
        self.count += 1
        self.names.append(name)
        self.times.append(self._now())
        self._on_step(name, target)
        if self.count == self.at:
            self._power_off()
            raise Killed(f"{name} {target}")
        if self.full and name in ("write_at:before", "append:before", "write:before", "mkdir:before"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    def _power_off(self) -> None:
        if self._unsynced is not None and (self.lost or self.torn):
            fd, offset, data = self._unsynced
            os.ftruncate(fd, offset)
            if self.torn:
                os.lseek(fd, offset, os.SEEK_SET)
                write_all(fd, data[: len(data) // 2])

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        if not self.full:
            self._unsynced = (fd, offset, data)
        super().write_at(fd, data, offset, target)

    def append(self, path: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
        if self.torn and self.count + 2 == self.at:
            super().append(path, data[: len(data) // 2], private=private, durable=durable)
        super().append(path, data, private=private, durable=durable)

    def fsync(self, fd: int, target: str) -> None:
        super().fsync(fd, target)
        self._unsynced = None
