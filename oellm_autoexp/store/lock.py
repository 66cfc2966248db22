"""A lock between processes on one file: flock(2), which the kernel releases when its holder ends, however."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from oellm_autoexp.errors import AutoexpError, StateError

Self = TypeVar("Self", bound="FileLock")


class FileLock:
    """Held within a `with`. The file stays; it is not re-entrant.

    Whoever holds it may remove the file: those who waited for it then wait for the one that comes next.

    Raises:
        StateError: on entering; another holds it for longer than `timeout` seconds, or the file system has no
            such locks.
    """

    _PAUSE_S = 0.05
    #: What to do where the file cannot be opened.
    _MEND = "the directory must be yours"

    def __init__(self, lock_file_path: str | Path, timeout: float = 60.0) -> None:
        self.lock_file_path = Path(lock_file_path)
        self.timeout = timeout
        self._fd: int | None = None

    def __enter__(self: Self) -> Self:
        if self._fd is not None:
            raise self._error("this process holds it already", "leave it before it is entered again")
        give_up = time.monotonic() + self.timeout
        while self._fd is None:
            try:
                # Not inherited: what a child leaves behind in the background must not hold it on.
                fd = os.open(self.lock_file_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise self._error(f"cannot be opened: {error.strerror}", self._MEND) from error
            try:
                self._wait(fd, give_up)
                self._fd = fd if self._is_there(fd) else None
            finally:
                if self._fd is None:
                    os.close(fd)
        return self

    def _is_there(self, fd: int) -> bool:
        """Whether the path still leads to the file that is locked."""
        try:
            return os.path.samestat(os.fstat(fd), self.lock_file_path.stat())
        except FileNotFoundError:
            return False

    def _wait(self, fd: int, give_up: float) -> None:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    hint = "use a file system that has flock"
                    raise self._error(f"the file system has no locks: {error.strerror}", hint) from error
                if time.monotonic() >= give_up:
                    what = f"another process holds it for longer than {self.timeout:g} s"
                    raise self._error(what, f"`lsof {self.lock_file_path}` names it") from None
                time.sleep(self._PAUSE_S)
            else:
                return

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _error(self, what: str, hint: str) -> AutoexpError:
        return StateError(what, where=str(self.lock_file_path), hint=hint)
