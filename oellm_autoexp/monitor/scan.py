"""From files that grow to signals: byte cursors over logs that are cut, rotated or rewritten at will."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oellm_autoexp.core.model import Cursor
from oellm_autoexp.core.signals import MAX_LINE, Findings, SignalRule, error_lines, match_lines

BLOCK = 256 * 1024
#: Bytes before the cursor, and at the head of the file, whose checksums recognise the file.
SAMPLE = 256
#: What is read at the end of a log to say why an attempt died.
TAIL = 256 * 1024

_END = re.compile(rb"[\n\r\0]")


@dataclass(slots=True)
class FileFindings:
    """What one look at one file found."""

    cursor: Cursor
    grown_bytes: int = 0
    findings: Findings = field(default_factory=Findings)
    #: Bytes are left for the next look.
    more: bool = False
    #: Why the file could not be read; nothing may be concluded then.
    unknown: str = ""


class LogWatcher:
    """Applies rules to the new bytes of files."""

    def __init__(self, rules: Sequence[SignalRule]) -> None:
        self.rules = rules

    def look(
        self,
        name: str,
        path: Path,
        cursor: Cursor,
        matches: Mapping[str, int],
        *,
        max_bytes: int = 8 * 1024 * 1024,
        drain: bool = False,
    ) -> FileFindings:
        """Read what is new in a file. With `drain` its unfinished last line counts too.

        A missing file is one without news. A file that was cut, replaced or rewritten starts a generation.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return FileFindings(cursor)
        except OSError as error:
            return FileFindings(cursor, unknown=f"{path}: {error.strerror}")
        try:
            return self._read(fd, name, cursor, matches, max_bytes, drain)
        except OSError as error:
            return FileFindings(cursor, unknown=f"{path}: {error.strerror}")
        finally:
            os.close(fd)

    def _read(
        self, fd: int, name: str, cursor: Cursor, matches: Mapping[str, int], max_bytes: int, drain: bool
    ) -> FileFindings:
        size = os.fstat(fd).st_size
        cursor = _recognised(fd, cursor, size)
        out = FileFindings(cursor, findings=Findings(matches=dict(matches)))
        position, end = cursor.offset, min(size, cursor.offset + max_bytes)
        while position < end:
            data = os.pread(fd, min(BLOCK, end - position), position)
            if not data:
                break
            last = position + len(data) >= size
            lines, used = _lines(data, position, final=drain and last)
            _merge(
                out.findings, match_lines(self.rules, name, cursor.generation, lines, out.findings.matches)
            )
            position += used
            if used == 0:
                break
        out.more = end < size
        out.grown_bytes = position - cursor.offset
        if out.grown_bytes:
            out.cursor = Cursor(
                inode=cursor.inode,
                generation=cursor.generation,
                offset=position,
                head=_checksum(fd, 0, min(SAMPLE, position)),
                tail=_checksum(fd, max(0, position - SAMPLE), min(SAMPLE, position)),
            )
        return out


def _recognised(fd: int, cursor: Cursor, size: int) -> Cursor:
    """The cursor, or a new generation where this is not the file it was made for."""
    inode = os.fstat(fd).st_ino
    if cursor.inode == 0:
        return Cursor(inode=inode)
    same = (
        cursor.inode == inode
        and size >= cursor.offset
        and _checksum(fd, 0, min(SAMPLE, cursor.offset)) == cursor.head
        and _checksum(fd, max(0, cursor.offset - SAMPLE), min(SAMPLE, cursor.offset)) == cursor.tail
    )
    # An empty start has no bytes to tell files apart by: nothing was read, so nothing can be repeated.
    if same or (cursor.offset == 0 and cursor.inode == inode):
        return cursor
    return Cursor(inode=inode, generation=cursor.generation + 1)


def _checksum(fd: int, position: int, length: int) -> str:
    return f"{zlib.crc32(os.pread(fd, length, position)):08x}" if length else ""


def _lines(data: bytes, base: int, *, final: bool) -> tuple[list[tuple[int, str]], int]:
    """Whole lines with their byte offsets, and how many bytes they take. `final`: the rest is a line too."""
    out = []
    start = 0
    while start < len(data):
        found = _END.search(data, start, start + MAX_LINE)
        if found is not None:
            end, after = found.start(), found.end()
        elif len(data) - start >= MAX_LINE:
            end = after = start + MAX_LINE
        elif final:
            end = after = len(data)
        else:
            break
        if end > start:
            out.append((base + start, data[start:end].decode("utf-8", "replace")))
        start = after
    return out, start


def _merge(into: Findings, new: Findings) -> None:
    into.signals += new.signals
    into.matches = new.matches
    into.metrics += new.metrics
    into.checkpoints += new.checkpoints
    for name, value in new.counters.items():
        into.counters[name] = max(value, into.counters.get(name, float("-inf")))


def errors_at_end(path: Path) -> tuple[str, str]:
    """The first root error line and the last error line near the end of a log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return "", ""
    return error_lines(text.splitlines())
