"""From files that grow to signals: byte cursors over logs that are cut, rotated or rewritten at will."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oellm_autoexp.core.error_lines import error_lines
from oellm_autoexp.core.model import Cursor
from oellm_autoexp.core.signals import MAX_LINE, Findings, SignalRule
from oellm_autoexp.monitor.match import Block, Matcher

#: Below 128 KiB, where malloc(3) keeps memory instead of giving it back to the system after each block.
BLOCK = 120 * 1024
#: Bytes before the cursor, and at the head of the file, whose checksums recognise the file.
SAMPLE = 256
#: What is read at the end of a log to say why an attempt died.
TAIL = 256 * 1024
#: Findings after which a look ends, at the next whole block: memory stays small whatever a log says.
MANY = 1024


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
        self._rules = rules
        self._matchers: dict[str, Matcher] = {}

    def _matcher(self, name: str) -> Matcher:
        found = self._matchers.get(name)
        if found is None:
            found = self._matchers[name] = Matcher(self._rules, name)
        return found

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
            try:
                return self._read(fd, name, cursor, matches, max_bytes, drain)
            finally:
                os.close(fd)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            unknown = "" if missing else f"{path}: {error.strerror}"
            return FileFindings(cursor, findings=Findings(matches=dict(matches)), unknown=unknown)

    def _read(
        self, fd: int, name: str, cursor: Cursor, matches: Mapping[str, int], max_bytes: int, drain: bool
    ) -> FileFindings:
        status = os.fstat(fd)
        size = status.st_size
        most = min(BLOCK, max_bytes)
        cursor, data, sample = _recognised(fd, cursor, status, most)
        out = FileFindings(cursor, findings=Findings(matches=dict(matches)))
        position, end, used = cursor.offset, min(size, cursor.offset + max_bytes), 0
        while position < end and len(out.findings.signals) + len(out.findings.metrics) < MANY:
            if position > cursor.offset:
                data, sample = _around(fd, position, min(BLOCK, end - position))
            if len(data) <= sample:
                used = 0
                break
            last = position + len(data) - sample >= size
            used = _whole(data, sample, final=drain and last)
            if used == 0:
                break
            block = Block(data[sample : sample + used], position)
            _merge(out.findings, self._matcher(name).match(block, cursor.generation, out.findings.matches))
            position += used
        out.more = end < size or (position < end and used > 0)
        out.grown_bytes = position - cursor.offset
        if out.grown_bytes:
            ahead, head = sample + used, cursor.head
            if cursor.offset < SAMPLE:
                head = _checksum(os.pread(fd, min(SAMPLE, position), 0))
            out.cursor = Cursor(
                inode=cursor.inode,
                generation=cursor.generation,
                offset=position,
                head=head,
                tail=_checksum(data[max(0, ahead - SAMPLE) : ahead]),
            )
        return out


def _around(fd: int, position: int, count: int) -> tuple[bytes, int]:
    """What follows a place in a file, behind the sample before it; and how long that is."""
    sample = min(SAMPLE, position)
    return os.pread(fd, sample + count, position - sample), sample


def _recognised(fd: int, cursor: Cursor, status: os.stat_result, most: int) -> tuple[Cursor, bytes, int]:
    """The cursor, or a new generation where this is not the file it was made for; and the bytes around it."""
    inode, size = status.st_ino, status.st_size
    if cursor.inode == inode and size >= cursor.offset:
        data, sample = _around(fd, cursor.offset, min(most, size - cursor.offset))
        # An empty start has no bytes to tell files apart by: nothing was read, so nothing can be repeated.
        if not sample:
            return cursor, data, 0
        head = data[:sample] if cursor.offset == sample else os.pread(fd, SAMPLE, 0)
        if _checksum(head) == cursor.head and _checksum(data[:sample]) == cursor.tail:
            return cursor, data, sample
    generation = cursor.generation + 1 if cursor.inode else 0
    return Cursor(inode=inode, generation=generation), *_around(fd, 0, min(most, size))


def _checksum(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}" if data else ""


def _whole(data: bytes, begin: int, *, final: bool) -> int:
    """How many bytes behind `begin` are whole lines. `final`: the rest is a line too.

    A line that goes on is cut at multiples of MAX_LINE from its start, wherever the bytes were cut.
    """
    if final:
        return len(data) - begin
    start = max(begin, *(data.rfind(end, begin) + 1 for end in (b"\n", b"\r", b"\0")))
    return start - begin + (len(data) - start) // MAX_LINE * MAX_LINE


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
