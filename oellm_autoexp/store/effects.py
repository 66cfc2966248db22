"""The one seam through which every effect goes: files, processes, scheduler calls.

Tests hand in an `Effects` that counts and dies at a chosen operation; nothing else in the package
writes, renames, links, spawns or kills.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Files may name accounts, paths and environments: only the owner reads them.
DIR_MODE = 0o700
FILE_MODE = 0o600
#: What is made inside belongs to the group too.
_GROUP_DIR_MODE = 0o2770


# prctl(2)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


Child = subprocess.Popen[bytes]


class Ran(NamedTuple):
    """How a command ended. `status`: its exit status, negative for a signal, None where its time was up."""

    status: int | None
    output: str
    errors: str


class Effects:
    """Real effects. `step` is called with the name and target of each before and after it happens.

    `group`: a numeric group id that may read and write private files and directories too. What need not
    outlive the machine (a rehearsal) is not `durable`: nothing waits for a disk.
    """

    group: int | None = None

    def __init__(self, *, group: int | None = None, durable: bool = True) -> None:
        self.group = group
        self._durable = durable

    @classmethod
    def of(cls, state_dir: Path) -> Effects:
        """Effects that leave a state directory as open as it is: to its group, where `mkdir` has opened it.

        Any other mode may be a umask's, and opens nothing.
        """
        try:
            return cls(group=_opened_to(state_dir))
        except OSError:
            return cls()

    def step(self, name: str, target: str) -> None:
        """A hook for tests; does nothing in life."""

    @contextlib.contextmanager
    def _effect(self, name: str, target: str | Path) -> Iterator[None]:
        self.step(f"{name}:before", str(target))
        yield
        self.step(f"{name}:after", str(target))

    # ---- files

    def mkdir(self, path: Path, *, mode: int = DIR_MODE) -> None:
        """Create a directory; an existing one keeps its mode, missing parents get the usual one.

        Parents that are missing within a directory that is open to the group are open to it too.

        Raises:
            NotADirectoryError: something else has its name.
        """
        if path.is_dir():
            return
        with self._effect("mkdir", path):
            for parent in reversed(path.parents):
                if self.group is not None and not parent.is_dir():
                    self._make(parent, DIR_MODE if _opened_to(parent.parent) == self.group else 0o777)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make(path, mode)
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def _make(self, path: Path, mode: int) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
            if mode == DIR_MODE and self.group is not None:
                os.chown(path, -1, self.group)
                path.chmod(_GROUP_DIR_MODE)  # whatever the umask

    def _share(self, fd: int, mode: int) -> None:
        """Open a new private file to the group, with the rights of its owner."""
        if self.group is not None and not mode & 0o077:
            os.fchown(fd, -1, self.group)
            os.fchmod(fd, mode | mode >> 3)

    def write(self, path: Path, data: bytes, *, mode: int = FILE_MODE, durable: bool = True) -> None:
        """Replace a file atomically: temporary file, fsync, rename, fsync of the directory.

        With `durable` False the caller writes many files and then calls `sync` once.
        """
        temp = _temporary(path)
        with self._effect("write", path):
            try:
                self._write_synced(temp, data, mode, durable)
                self.step("write:rename", str(path))
                temp.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    temp.unlink()
                raise
            if durable:
                self._fsync_dir(path.parent)

    def create(self, path: Path, data: bytes, *, mode: int) -> bool:
        """Create a file that nobody reads before the caller's `sync`; False when the name is taken.

        Half as costly as `write`. A crash may leave a part of it: the caller must recognise and replace that.
        """
        with self._effect("create", path):
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except FileExistsError:
                return False
            try:
                self._share(fd, mode)
                write_all(fd, data)
            finally:
                os.close(fd)
        return True

    def sync(self, path: Path) -> None:
        """Make everything that was written to the file system of the directory `path` durable (syncfs(2))."""
        with self._effect("sync", path):
            if not self._durable:
                return
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _LIBC.syncfs(fd) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(path))
            finally:
                os.close(fd)

    def write_new(self, path: Path, data: bytes, *, mode: int = FILE_MODE) -> bool:
        """Create a complete file by hard link; False when the name is taken.

        A hard link is atomic on NFS too, where O_EXCL may not be; there, link(2) may also fail although
        it was done (a lost answer), and only the link count tells (open(2)).
        """
        temp = _temporary(path)
        with self._effect("link", path):
            try:
                self._write_synced(temp, data, mode)
                self.step("link:link", str(path))
                try:
                    os.link(temp, path)
                except FileExistsError:
                    if temp.stat().st_nlink != 2:
                        return False
            finally:
                with contextlib.suppress(OSError):
                    temp.unlink()
            self._fsync_dir(path.parent)
        return True

    def _write_synced(self, path: Path, data: bytes, mode: int, durable: bool = True) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            self._share(fd, mode)
            write_all(fd, data)
            if durable:
                self._fsync(fd)
        finally:
            os.close(fd)

    def _fsync(self, fd: int) -> None:
        if self._durable:
            os.fsync(fd)

    def _fsync_dir(self, path: Path) -> None:
        if self._durable:
            fsync_dir(path)

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        """Write at a place of an open file; durable only after `fsync`. Repeating it changes nothing."""
        with self._effect("write_at", target):
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data)

    def fsync(self, fd: int, target: str) -> None:
        with self._effect("fsync", target):
            self._fsync(fd)

    def append(self, path: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
        """Append to a file of the user's (or a `private` one of ours), creating it."""
        with self._effect("append", path):
            flags, mode, new = (
                os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC,
                FILE_MODE if private else 0o666,
                False,
            )
            try:
                fd = os.open(path, flags)
            except FileNotFoundError:
                fd, new = os.open(path, flags | os.O_CREAT, mode), True
            try:
                if new:
                    self._share(fd, mode)
                write_all(fd, data)
                if durable:
                    self._fsync(fd)
            finally:
                os.close(fd)
            if durable and new:
                self._fsync_dir(path.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file; a missing one is fine."""
        with self._effect("unlink", path):
            path.unlink(missing_ok=True)

    def rename(self, path: Path, target: Path) -> None:
        """Give a directory another name in the same parent, durably; `target` must not exist or be empty."""
        with self._effect("rename", path):
            path.rename(target)
            self._fsync_dir(target.parent)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all that is in it; a missing one is fine. Links in it are not followed.

        Raises:
            OSError: `path` is itself a link, or something in it cannot be removed.
        """
        with self._effect("remove_tree", path):
            if path.is_symlink():
                raise OSError(errno.ELOOP, "is a symbolic link", str(path))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)

    def remove_empty(self, path: Path) -> None:
        """Remove a directory if nothing is in it."""
        with self._effect("remove_empty", path), contextlib.suppress(OSError):
            path.rmdir()

    # ---- processes and schedulers

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        output: Path | None = None,
        private: bool = False,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own (it outlives this one), appending to `output`.

        `private`: where `output` is made, only those who read the state may read it.
        """
        with self._effect("spawn", argv[0]), contextlib.ExitStack() as stack:
            sink: int = subprocess.DEVNULL
            if output is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                mode = FILE_MODE if private else 0o644
                new = not output.exists()
                sink = os.open(output, flags, mode)
                stack.callback(os.close, sink)
                if new:
                    self._share(sink, mode)
            return subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=stdin,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                close_fds=True,
            )

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        timeout_s: float,
        errors: str = "replace",
    ) -> Ran:
        """Run a command to its end, which comes after `timeout_s` at the latest, and with this process's.

        It has a session of its own, so that Ctrl-C does not reach it. `errors`: as of `bytes.decode`.

        Raises:
            OSError: it cannot be started.
        """
        parent = os.getpid()

        def tie() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with self._effect("run", argv[0]):
            child = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=tie,
            )
            with child:
                try:
                    output, said = child.communicate(timeout=timeout_s)
                    status: int | None = child.returncode
                except subprocess.TimeoutExpired:
                    child.kill()
                    output, said = child.communicate()
                    status = None
                except BaseException:
                    child.kill()
                    raise
        return Ran(status, output.decode(errors=errors), said.decode(errors=errors))

    def symlink(self, path: Path, target: str) -> None:
        """A symbolic link at `path`; one that is there already is replaced."""
        with self._effect("symlink", path):
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def kill(self, pid: int, number: signal.Signals) -> None:
        """Send a signal; a process that is gone already is fine."""
        with self._effect("kill", str(pid)), contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def call(self, name: str, target: str, function: Callable[[], T]) -> T:
        """Any other effect (a scheduler call), made visible to the seam."""
        with self._effect(name, target):
            return function()


def _opened_to(path: Path) -> int | None:
    """The group that a directory was opened to.

    Raises:
        OSError: it cannot be looked at.
    """
    found = path.stat()
    return found.st_gid if stat.S_IMODE(found.st_mode) == _GROUP_DIR_MODE else None


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other thread, process or host uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fsync_dir(path: Path) -> None:
    """Make a rename or link in `path` durable (fsync(2): the directory needs its own)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        # Some network file systems refuse fsync on directories; the data itself is synced.
        pass
    finally:
        os.close(fd)
