"""Reading a journal: append-only JSON lines, one segment a leader, no lock, a writer perhaps at work.

A line is `{"v", "e", "n", "t", "k", "d", "m"?, "c"}`: version, epoch, sequence number within the segment,
time, kind, body, "more of this commit follows", CRC-32 (hex) of the line before `,"c"`. A commit is all or
nothing: the records of an unfinished one at a segment's end do not count yet. Anything wrong before the end
is an error.

Record 0 of a segment is its header (who leads); record 1 is its fence: how many bytes of the older segments
count. What an older leader wrote behind the fence was never acted on and is never replayed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oellm_autoexp.core.events import KINDS, Event, decode
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import StateError
from oellm_autoexp.store.leader import Leader

VERSION = 1
HEADER, FENCE, CLOSED = "header", "fence", "closed"
_TAIL_BYTES = 4096
_parse: Callable[[str], tuple[dict[str, Any], int]] = json.JSONDecoder().raw_decode


# ---------------------------------------------------------------- one record


def line_of(epoch: int, number: int, at: float, kind: str, body: str, *, more: bool = False) -> bytes:
    """A record as it stands in a segment; `body` is JSON text."""
    text = f'{{"v":{VERSION},"e":{epoch},"n":{number},"t":{at!r},"k":"{kind}","d":{body}'
    if more:
        text += ',"m":1'
    data = text.encode("ascii")
    return data + b',"c":"%08x"}\n' % zlib.crc32(data)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its line end; None when it is torn or damaged."""
    body, mark, checksum = line.rpartition(b',"c":"')
    if not mark or checksum != b'%08x"}' % zlib.crc32(body):
        return None
    text = body.decode("ascii", "replace") + "}"
    try:
        record, end = _parse(text)
    except ValueError:
        return None
    return record if end == len(text) else None


def damaged(path: Path, offset: int, what: str) -> StateError:
    """The error for a segment that cannot be trusted from `offset` on."""
    hint = "nothing was changed; restore the file from a backup"
    newest = not path.with_name(f"{int(path.stem) + 1:08d}.jsonl").exists()
    if offset and newest:
        # Attempts carry tokens and claims: one that is forgotten here is kept from running twice.
        hint += f", or go on without what stands behind this place: truncate -s {offset} {path}"
    return StateError(what, where=f"{path}, byte {offset}", hint=hint)


def _newer(path: Path, offset: int, what: str) -> StateError:
    return StateError(
        f"the journal was written by a newer version of this program ({what})",
        where=f"{path}, byte {offset}",
        hint="use that version, or another state directory; nothing was changed",
    )


# ---------------------------------------------------------------- one segment


@dataclass(slots=True)
class Stretch:
    """What stands in a part of a segment."""

    events: list[Event] = field(default_factory=list)
    #: Offset behind the last complete commit, and the number of the record that comes there.
    end: int = 0
    number: int = 0
    #: The leader said goodbye.
    closed: bool = False
    #: The fence, if it stands in this part.
    fence: Mapping[int, int] | None = None


def _stretch(path: Path, epoch: int, data: bytes, start: int, number: int) -> Stretch:
    """Read the bytes of a segment that begin at offset `start` with record `number`.

    Raises:
        StateError: damage that cannot be the end of an interrupted write; a newer version's record.
    """
    out = Stretch(end=start, number=number)
    batch: list[Event] = []
    closed = False
    position = start
    lines = data.split(b"\n")
    del lines[-1]  # what follows the last line end is torn, or empty
    for index, line in enumerate(lines):
        record = _record(line)
        if record is None:
            if _is_hole(lines[index:]):
                break
            raise damaged(path, position, "a record of the journal is damaged")
        try:
            if record["v"] > VERSION:
                raise _newer(path, position, f"record version {record['v']}")
            if record["e"] != epoch or record["n"] != number:
                raise damaged(path, position, f"record {number} of the journal is missing")
            kind = record["k"]
            if kind in KINDS:
                batch.append(decode(kind, record["t"], record["d"]))
            elif kind == CLOSED:
                closed = True
            elif kind == FENCE:
                out.fence = {int(key): value for key, value in record["d"].items()}
            elif kind != HEADER:
                raise _newer(path, position, f"a record of the kind {kind!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, position, f"a record cannot be understood ({error!r})") from error
        position += len(line) + 1
        number += 1
        if "m" not in record:
            out.events += batch
            batch.clear()
            out.end, out.number, out.closed = position, number, closed
    return out


def _is_hole(lines: list[bytes]) -> bool:
    """Whether the first line was not written to its end: zeros in it, and no record after it."""
    return b"\0" in lines[0] and not any(_record(line) for line in lines[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How a segment begins. `fence` is None while its leader is still taking over."""

    epoch: int
    path: Path
    leader: Leader
    fence: Mapping[int, int] | None


def heads(paths: SessionPaths) -> list[Head]:
    """The beginnings of all segments, oldest first.

    Raises:
        StateError: a segment is missing, damaged, or cannot be read.
    """
    out: list[Head] = []
    try:
        for epoch in epochs(paths):
            if epoch != len(out) + 1:
                what = f"segment {len(out) + 1} of the journal is missing"
                hint = "restore it from a backup; without it nobody knows what was submitted"
                raise StateError(what, where=str(paths.journal), hint=hint)
            out.append(_head(segment(paths, epoch), epoch))
    except OSError as error:
        raise unreadable(paths, error) from error
    return out


def _head(path: Path, epoch: int) -> Head:
    with path.open("rb") as file:
        first, second = file.readline(), file.readline()
    begin = _stretch(path, epoch, first + second, 0, 0)
    header = _record(first[:-1])
    try:
        if header is None or header["k"] != HEADER:
            raise damaged(path, 0, "the header of a journal's segment is damaged")
        return Head(epoch=epoch, path=path, leader=Leader(**header["d"]), fence=begin.fence)
    except (KeyError, TypeError) as error:
        raise damaged(
            path, 0, f"the header of a journal's segment cannot be understood ({error!r})"
        ) from error


def segment(paths: SessionPaths, epoch: int) -> Path:
    return paths.journal / f"{epoch:08d}.jsonl"


def epochs(paths: SessionPaths) -> list[int]:
    """The epochs that have a segment, ascending.

    Listed, not looked up by name: a listing asks an NFS server, while a name that was missing a moment
    ago may stay missing in the client's cache.
    """
    try:
        names = os.listdir(paths.journal)  # noqa: PTH208 - names are all that is needed
    except FileNotFoundError:
        return []
    stems = (name[:-6] for name in names if name.endswith(".jsonl"))
    return sorted(int(stem) for stem in stems if len(stem) == 8 and stem.isdecimal())


def unreadable(paths: SessionPaths, error: OSError) -> StateError:
    return StateError(
        f"the journal cannot be read: {error.strerror}",
        where=str(error.filename or paths.journal),
        hint="mend the permissions or the file system, then run the same command again; nothing was changed",
    )


# ---------------------------------------------------------------- the whole


@dataclass(slots=True)
class History:
    """Everything that counts in a journal, in order."""

    events: list[Event] = field(default_factory=list)
    last_epoch: int = 0
    #: Who wrote the newest segment; None for an empty journal.
    leader: Leader | None = None
    #: The last leader said goodbye.
    closed: bool = False
    #: Of the segments that no fence has settled: bytes that count, and bytes that are there.
    lengths: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    #: Where a follower goes on: epoch, offset, record number.
    position: tuple[int, int, int] = (0, 0, 0)


def read(paths: SessionPaths) -> History:
    """Read a journal; a writer may be at work.

    Raises:
        StateError: a damaged record that is not a torn end, with file and byte offset; an unreadable file; a
            newer version's journal.
    """
    begun = heads(paths)
    while True:
        history = _history(paths, begun)
        again = heads(paths)
        if again == begun:
            return history
        begun = again  # A new leader came in between: its fence may exclude what was just read.


def _history(paths: SessionPaths, begun: list[Head]) -> History:
    history = History()
    limits = _limits(begun)
    for head in begun:
        limit = limits.get(head.epoch)
        try:
            data = head.path.read_bytes()
        except OSError as error:
            raise unreadable(paths, error) from error
        part = _stretch(head.path, head.epoch, data[:limit], 0, 0)
        if limit is not None and part.end != limit:
            raise damaged(head.path, part.end, _short(limit))
        history.events += part.events
        history.last_epoch, history.leader, history.closed = head.epoch, head.leader, part.closed
        if limit is None:
            history.lengths[head.epoch], history.sizes[head.epoch] = part.end, len(data)
            if len(history.lengths) == 1:
                history.position = (head.epoch, part.end, part.number)
    return history


def _limits(begun: Iterable[Head]) -> dict[int, int]:
    """How many bytes of a segment count, where a later leader has said so."""
    out: dict[int, int] = {}
    for head in begun:
        out.update(head.fence or {})
    return out


def _short(limit: int) -> str:
    return f"records are missing: the next leader has read {limit} bytes of this file"


class Follower:
    """Sees the new events of a journal that somebody else writes; reads only what was appended.

    It begins behind `after`, or at the journal's start.
    """

    def __init__(self, paths: SessionPaths, after: History | None = None) -> None:
        self._paths = paths
        self._epoch, self._offset, self._number = after.position if after is not None else (0, 0, 0)

    def new_events(self) -> list[Event]:
        """The events since the last call, in order, each once.

        Raises:
            StateError: as `read`.
        """
        out: list[Event] = []
        if self._epoch == 0:
            if not epochs(self._paths):
                return out
            self._epoch = 1
        while True:
            path = segment(self._paths, self._epoch)
            try:
                with path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
                # After reading: without a newer segment by now, nothing that was read can be fenced off.
                newer = epochs(self._paths)[-1] > self._epoch
            except (OSError, IndexError) as error:
                missing = (
                    error if isinstance(error, OSError) else FileNotFoundError(2, "No such file or directory")
                )
                raise unreadable(self._paths, missing) from error
            limit = _limits(heads(self._paths)).get(self._epoch) if newer else None
            if newer and limit is None:
                return out  # The new leader is about to say how much of this segment counts.
            if limit is not None:
                data = data[: max(0, limit - self._offset)]
            part = _stretch(path, self._epoch, data, self._offset, self._number)
            out += part.events
            self._offset, self._number = part.end, part.number
            if limit is None:
                return out
            if self._offset < limit:
                raise damaged(path, self._offset, _short(limit))
            self._epoch, self._offset, self._number = self._epoch + 1, 0, 0


def leader_alive(paths: SessionPaths) -> Leader | None:
    """The leader at work, if there is one (on another host: as far as its segment says). Cheap.

    Raises:
        StateError: the journal is damaged or unreadable.
    """
    begun = heads(paths)
    if not begun:
        return None
    try:
        with begun[-1].path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError as error:
        raise unreadable(paths, error) from error
    last = _record(lines[-1]) if lines else None
    if (last is not None and last.get("k") == CLOSED) or begun[-1].leader.alive_here() is False:
        return None
    return begun[-1].leader
