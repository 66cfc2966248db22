"""From files that grow to signals: byte cursors over logs that are cut, rotated or rewritten at will."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        nothing = FileFindings(cursor, findings=Findings(matches=dict(matches)))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return nothing
        except OSError as error:
            return replace(nothing, unknown=f"{path}: {error.strerror}")
        try:
            return self._read(fd, name, cursor, matches, max_bytes, drain)
        except OSError as error:
            return replace(nothing, unknown=f"{path}: {error.strerror}")
        finally:
            os.close(fd)

    def _read(
        self, fd: int, name: str, cursor: Cursor, matches: Mapping[str, int], max_bytes: int, drain: bool
    ) -> FileFindings:
        size = os.fstat(fd).st_size
        cursor = _recognised(fd, cursor, size)
        out = FileFindings(cursor, findings=Findings(matches=dict(matches)))
        matcher = self._matcher(name)
        position, end, used = cursor.offset, min(size, cursor.offset + max_bytes), 0
        while position < end and len(out.findings.signals) + len(out.findings.metrics) < MANY:
            data = os.pread(fd, min(BLOCK, end - position), position)
            if not data:
                break
            last = position + len(data) >= size
            used = _whole(data, final=drain and last)
            if used == 0:
                break
            block = Block(data[:used], position)
            _merge(out.findings, matcher.match(block, cursor.generation, out.findings.matches))
            position += used
        out.more = end < size or (position < end and used > 0)
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


def _whole(data: bytes, *, final: bool) -> int:
    """How many bytes are whole lines. `final`: the rest is a line too.

    A line that goes on is cut at multiples of MAX_LINE from its start, wherever the bytes were cut.
    """
    if final:
        return len(data)
    start = max(data.rfind(end) for end in (b"\n", b"\r", b"\0")) + 1
    return start + (len(data) - start) // MAX_LINE * MAX_LINE


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
