"""Who may write checkpoints, and who reads one: flock(2), which ends with its holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from oellm_autoexp.checkpoints.owner import Owner
from oellm_autoexp.errors import CheckpointError

_BUSY = (errno.EAGAIN, errno.EACCES)
_PAUSE_S = 0.05


class WriterLock:
    """Held from `take` until `release`, or the end of the process that took it; children do not inherit it.

    On a file system without locks it holds nothing, and `exclusive` is False.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.exclusive = False
        self._fd: int | None = None
        _TAKEN.add(self)

    def take(self, wait_s: float) -> None:
        """Nothing where it is held already.

        Raises:
            CheckpointError: another one holds it for longer than `wait_s` seconds.
        """
        if self._fd is not None:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self.exclusive = self._wait(fd, wait_s)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(Owner.this_process()).encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _wait(self, fd: int, wait_s: float) -> bool:
        give_up = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _BUSY:
                    return False
                if time.monotonic() >= give_up:
                    raise self._refusal(fd) from None
                time.sleep(_PAUSE_S)
            else:
                return True

    def _refusal(self, fd: int) -> CheckpointError:
        owner = Owner.parse(os.pread(fd, 1000, 0).decode(errors="replace"))
        who = f" (process {owner.pid} on {owner.host})" if owner else ""
        return CheckpointError(
            f"another training{who} writes its checkpoints here",
            where=str(self.path.parent),
            hint="wait for its end, or give this one a directory of its own (checkpoint.root_dir)",
        )

    def now(self) -> float:
        """The time of the file system, by which the age of other files in it can be told."""
        assert self._fd is not None
        os.utime(self._fd)
        return os.fstat(self._fd).st_mtime

    def release(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                # Closing alone would leave it to a child that is just being forked.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close it in a child, and leave it to the parent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self.exclusive = False


# A lock belongs to the open file, which a forked child shares: a worker of a data loader that outlives its
# trainer would keep the next one out.
_TAKEN: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go() -> None:
    for lock in list(_TAKEN):
        lock.forget()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def held(path: Path, *, shared: bool) -> Iterator[bool]:
    """A lock on a file or directory itself; False where another holds one that excludes this.

    Without locks in the file system it is True.

    Raises:
        OSError: there is no such file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            got = True
        except OSError as error:
            got = error.errno not in _BUSY
        yield got
    finally:
        os.close(fd)
