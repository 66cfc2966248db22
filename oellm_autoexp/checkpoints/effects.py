"""The seam through which checkpoints change files, so that tests can end the world at each change."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """Real changes. `step` is called with the name and the target of each, before and after it happens."""

    def step(self, name: str, target: str) -> None:
        """A hook for tests; does nothing in life."""

    @contextlib.contextmanager
    def _change(self, name: str, target: Path) -> Iterator[None]:
        self.step(f"{name}:before", str(target))
        yield
        self.step(f"{name}:after", str(target))

    def mkdir(self, path: Path) -> None:
        with self._change("mkdir", path):
            path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """A new file, or other bytes in an old one; on disk when this returns, its name after `sync`."""
        with self._change("write", path), path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def append(self, fd: int, data: memoryview, path: Path) -> None:
        """write(2) until everything is written."""
        with self._change("append", path):
            while data:
                data = data[os.write(fd, data) :]

    def sync(self, path: Path) -> None:
        """The bytes of a file, or the names in a directory, are on disk when this returns (fsync(2))."""
        with self._change("sync", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            except OSError:
                # Some network file systems refuse it for directories; their names are on disk at once.
                if not path.is_dir():
                    raise
            finally:
                os.close(fd)

    def rename(self, path: Path, target: Path) -> None:
        """Another name on the same file system; what had it before is gone at the same moment."""
        with self._change("rename", path):
            path.replace(target)

    def symlink(self, path: Path, target: str) -> None:
        with self._change("symlink", path):
            path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        """A missing file is fine."""
        with self._change("unlink", path):
            path.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """A file, or a directory with all that is in it; a missing one is fine."""
        with self._change("remove", path):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
