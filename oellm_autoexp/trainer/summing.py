"""Files of tensors with checksums, which are made and compared while the bytes pass by.

Two sums are made of each file. SHA-256 identifies it and can be compared by any program, at a fraction of a
gigabyte a second. `ColumnSums` costs a few milliseconds a gigabyte more than reading does, so a training that
starts again compares that one.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.record import FileRecord

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Words of 8 bytes in a row. Prime, so that no two pages of a file begin in the same column.
WIDTH = 4093
#: So many rows at once are small enough for the cache, and for torch to sum without threads of its own.
_ROWS = 8
_CHUNK = WIDTH * _ROWS * 8
#: What is smaller is not worth a second thread.
_LARGE = 4 << 20
_BUFFER = 1 << 20
_THREADS = 4


class ColumnSums:
    """The sums (modulo 2**64) of the columns of a file that is cut into rows of `WIDTH` little-endian words.

    Pieces may be added in any order, as long as each byte is added once. Any one changed word changes the
    digest, as do pages that are lost, repeated, swapped or from elsewhere, unless in each column what was
    lost and what was won are equal. It is no protection against somebody who wants to deceive.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(WIDTH, dtype=torch.int64)
        self._scratch = memoryview(b"")
        self._words = self._sums

    def add(self, offset: int, data: memoryview) -> None:
        """Bytes (`data` has the format of bytes) that stand at `offset` in the file."""
        while data:
            # To the end of a row first, then whole rows.
            size = min(len(data), _CHUNK - offset % (WIDTH * 8))
            piece, lead = data[:size], offset % 8
            if piece.readonly or lead or size % 8:
                if not self._scratch:
                    self._scratch = memoryview(bytearray(_CHUNK))
                    self._words = torch.frombuffer(self._scratch, dtype=torch.int64)
                # Parts of a word add up to the word where zeros stand for the other bytes.
                words = -(-(lead + size) // 8)
                self._scratch[:lead] = bytes(lead)
                self._scratch[lead : lead + size] = piece
                self._scratch[lead + size : words * 8] = bytes(words * 8 - lead - size)
                self._add(offset // 8, self._words[:words])
            else:
                self._add(offset // 8, torch.frombuffer(piece, dtype=torch.int64))
            offset += size
            data = data[size:]

    def add_rows(self, rows: torch.Tensor) -> None:
        """Whole rows of words of 64 bits."""
        self._sums += rows.sum(0)

    def _add(self, index: int, words: torch.Tensor) -> None:
        column = index % WIDTH
        if column:
            head = words[: WIDTH - column]
            self._sums[column : column + len(head)] += head
            words = words[len(head) :]
        rows = len(words) // WIDTH
        if rows:
            self.add_rows(words[: rows * WIDTH].view(rows, WIDTH))
            words = words[rows * WIDTH :]
        if len(words):
            self._sums[: len(words)] += words

    def merge(self, other: ColumnSums) -> None:
        self._sums += other._sums

    def digest(self) -> str:
        data = bytes(self._sums.view(torch.uint8).tolist())
        return hashlib.sha256(data).hexdigest()


class SummingFile(io.RawIOBase):
    """A new file, written from its beginning to its end; on disk after `close`.

    `record` tells what was meant to be written, whatever became of it. `failure`: the first error of a
    write; nothing more is written then.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = disk or Disk()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._buffer = bytearray()
        self._size = 0
        self.failure: BaseException | None = None
        self._sha = hashlib.sha256()
        self._sums = ColumnSums()
        self._hasher = ThreadPoolExecutor(1, "checkpoint-sha256")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def tell(self) -> int:
        return self._size + len(self._buffer)

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        if len(self._buffer) + len(view) <= _BUFFER:
            self._buffer += view
        else:
            self.flush()
            self._put(view)
        return len(view)

    def flush(self) -> None:
        if not self.closed and self._buffer:
            self._put(memoryview(bytes(self._buffer)))
            self._buffer.clear()

    def _put(self, data: memoryview) -> None:
        """SHA-256 is the slowest of the three, so it has a thread. Then `data` is the caller's again."""
        if self.failure is not None:
            raise self.failure
        try:
            hashed = self._hasher.submit(self._sha.update, data)
        except RuntimeError:
            # The interpreter is about to end, and starts no threads.
            self._sha.update(data)
            hashed = None
        try:
            self._disk.append(self._fd, data, self._path)
            self._sums.add(self._size, data)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            if hashed is not None:
                hashed.result()
        self._size += len(data)

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.failure is None:
                self.flush()
                self._disk.sync(self._path)
        finally:
            self._hasher.shutdown()
            os.close(self._fd)
            super().close()

    def record(self, path: str) -> FileRecord:
        """Of the closed file, whose path is to be `path`."""
        return FileRecord(
            path=path, bytes=self._size, sha256=self._sha.hexdigest(), quick=self._sums.digest()
        )


class CheckingFile(io.RawIOBase):
    """A file for torch.load, of which `problem` tells whether it is what its record says.

    Large reads are shared out to threads, and summed while the bytes are in the cache; all other bytes are
    read once more for the sums.
    """

    def __init__(self, path: Path, record: FileRecord) -> None:
        self._record = record
        self._at = 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        self._sums = ColumnSums()
        self._summed: list[tuple[int, int]] = []
        self._threads = min(_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, "checkpoint-read")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        start = self._at
        view = view[: max(0, self._size - start)]
        fresh = len(view) >= _BUFFER and all(
            start + len(view) <= first or last <= start for first, last in self._summed
        )
        if fresh:
            self._summed.append((start, start + len(view)))
            done = self._read_summed(start, view)
        else:
            done = self._read(start, view)
        self._at += done
        return done

    def _read_summed(self, start: int, view: memoryview) -> int:
        if len(view) < _LARGE:
            self._sums.merge(self._read_part(start, view))
            return len(view)
        # Each part begins with a word.
        size = -(-len(view) // (8 * self._threads)) * 8
        jobs = [
            self._pool.submit(self._read_part, start + first, view[first : first + size])
            for first in range(0, len(view), size)
        ]
        for job in jobs:
            self._sums.merge(job.result())
        return len(view)

    def _read_part(self, start: int, view: memoryview) -> ColumnSums:
        sums = ColumnSums()
        # From the end of a row on, whole chunks.
        first = min(len(view), -start % (WIDTH * 8))
        last = len(view) - (len(view) - first) % _CHUNK
        if start % 8:
            first = last = 0
        self._read_and_add(sums, start, view[:first])
        if first < last:
            chunks = torch.frombuffer(view[first:last], dtype=torch.int64).view(-1, _ROWS, WIDTH)
            for chunk in chunks.unbind(0):
                self._read(start + first, view[first : first + _CHUNK])
                sums.add_rows(chunk)
                first += _CHUNK
        self._read_and_add(sums, start + last, view[last:])
        return sums

    def _read_and_add(self, sums: ColumnSums, start: int, view: memoryview) -> None:
        self._read(start, view)
        sums.add(start, view)

    def _read(self, start: int, view: memoryview) -> int:
        """Fill the view.

        Raises:
            EOFError: the file has become shorter.
        """
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], start + done)
            if not got:
                raise EOFError(f"{self._record.path} ends at byte {start + done}")
            done += got
        return done

    def size_problem(self) -> str:
        """As `problem`, of what can be told without reading."""
        if self._size != self._record.bytes:
            return f"{self._record.path}: {self._size} bytes in place of {self._record.bytes}"
        return ""

    def problem(self) -> str:
        """What differs from the record, "" where nothing does. What was not read yet is read now."""
        file = self._record
        if problem := self.size_problem():
            return problem
        at = 0
        for first, last in [*sorted(self._summed), (self._size, self._size)]:
            while at < first:
                piece = memoryview(bytearray(min(first - at, _BUFFER)))
                self._read(at, piece)
                self._sums.add(at, piece)
                at += len(piece)
            at = last
        self._summed = [(0, self._size)]
        return "" if self._sums.digest() == file.quick else f"{file.path}: its checksum is wrong"

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown()
            os.close(self._fd)
            super().close()
