"""The truth of a session: append-only JSON lines, one segment per leader.

Segment `<epoch>.jsonl` is made complete with its header by a hard link; making the next epoch's file *is*
taking over, so lease, fencing, torn tails and history are one mechanism. The header says how many bytes of
the segment before it count: what a fenced leader wrote later is never replayed.

A line is `{"v", "e", "n", "t", "k", "d", "m"?, "c"}`: version, epoch, sequence number within the segment,
time, kind, body, "more of this commit follows", CRC-32 of the line without `c`. A commit is all or nothing:
records of an unfinished one at a segment's end are dropped. Anything wrong before the end is an error.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oellm_autoexp.core.events import Event, decode, encode
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import LeadershipLost, NotLeader, StateError
from oellm_autoexp.store.effects import FILE_MODE, Effects

VERSION = 1
#: A leader on another host is dead when its heartbeat has not moved for this long.
DEAD_AFTER_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who wrote a segment: a process, by an identity that is never reused."""

    host: str
    boot_id: str
    pid: int
    pid_start: str
    started_at: float = 0.0

    @classmethod
    def this_process(cls, now: float) -> Leader:
        return cls(
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or "",
            started_at=now,
        )

    def alive_here(self) -> bool | None:
        """Whether the process lives; None when that cannot be told from this host."""
        if self.host != socket.gethostname():
            return None
        return self.boot_id == boot_id() and process_start(self.pid) == self.pid_start


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """The start time of a live process (field 22 of /proc/PID/stat, proc(5)); None if dead or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


# ---------------------------------------------------------------- reading


@dataclass(slots=True)
class History:
    """Everything that counts in a journal, in order."""

    events: list[Event] = field(default_factory=list)
    last_epoch: int = 0
    leader: Leader | None = None
    #: The last leader said goodbye.
    closed: bool = False
    #: Bytes of the last segment that count.
    length: int = 0


def segments(paths: SessionPaths) -> list[Path]:
    """The segments in order of their epochs."""
    return sorted(paths.journal.glob("[!.]*.jsonl"))


def read(paths: SessionPaths) -> History:
    """Read a journal without a lock; a writer may be at work.

    Raises:
        StateError: a damaged record that is not at a segment's end, with file and byte offset.
    """
    history = History()
    parts: list[tuple[Path, bytes, int, dict[str, Any]]] = []
    for path in segments(paths):
        data = path.read_bytes()
        head_end = data.find(b"\n") + 1
        header = _parse(data[:head_end], path, 0, 0)
        if header is None or header["k"] != "header":
            raise _damaged(path, 0, "the header is damaged")
        parts.append((path, data, head_end, header["d"]))
    for index, (path, data, head_end, header) in enumerate(parts):
        limit = parts[index + 1][3]["previous_bytes"] if index + 1 < len(parts) else len(data)
        last = index + 1 == len(parts)
        events, length, closed = _records(path, data[:limit], head_end)
        history.events += events
        if last:
            history.last_epoch = int(path.stem)
            history.leader = Leader(**header["leader"])
            history.length, history.closed = length, closed
    return history


def _records(path: Path, data: bytes, start: int) -> tuple[list[Event], int, bool]:
    """The events after `start`, the bytes that count, and whether the leader said goodbye."""
    done: list[Event] = []
    batch: list[Event] = []
    position = good = start
    number, closed = 1, False
    while position < len(data):
        end = data.find(b"\n", position) + 1
        record = _parse(data[position:end], path, position, number) if end else None
        if record is None:
            if end and end < len(data) and data[end:].strip(b"\0"):
                raise _damaged(path, position, "a record is damaged")
            break
        position, number = end, number + 1
        closed = record["k"] == "closed"
        if not closed:
            try:
                batch.append(decode(record["k"], record["t"], record["d"]))
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(path, position, f"a record cannot be understood ({error!r})") from error
        if not record.get("m"):
            done += batch
            batch = []
            good = position
    return done, good, closed


def _parse(line: bytes, path: Path, offset: int, number: int) -> dict[str, Any] | None:
    """A record; None when the line is torn or damaged."""
    body, mark, checksum = line.rpartition(b',"c":"')
    if not mark or checksum[8:] != b'"}\n' or b"%08x" % zlib.crc32(body) != checksum[:8]:
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    if record["v"] > VERSION:
        raise StateError(
            "the journal was written by a newer version of this program",
            where=f"{path}, byte {offset}",
            hint="use that version, or another state directory",
        )
    return record if record["n"] == number else None


def _damaged(path: Path, offset: int, what: str) -> StateError:
    return StateError(
        what,
        where=f"{path}, byte {offset}",
        hint="nothing was changed; restore the file from a backup, or cut it there to go on without the rest",
    )


class Follower:
    """Sees new events of a journal that somebody else writes."""

    def __init__(self, paths: SessionPaths) -> None:
        self._paths = paths
        self._seen = 0

    def new_events(self) -> list[Event]:
        """The events since the last call."""
        events = read(self._paths).events
        fresh, self._seen = events[self._seen :], len(events)
        return fresh


# ---------------------------------------------------------------- writing


class Journal:
    """The journal of a leader. `append` buffers; `commit` is the barrier before effects."""

    def __init__(self, paths: SessionPaths, effects: Effects, epoch: int, fd: int, length: int) -> None:
        self.epoch = epoch
        self._paths = paths
        self._effects = effects
        self._fd = fd
        self._path = _segment(paths, epoch)
        self._length = length
        self._number = 1
        self._buffer: list[tuple[str, float, dict[str, Any]]] = []
        self._beat = 0
        self._beat_at: float | None = None

    @classmethod
    def lead(
        cls,
        paths: SessionPaths,
        effects: Effects,
        *,
        now: float,
        monotonic: Callable[[], float],
        wait: Callable[[float], None],
    ) -> tuple[Journal, History]:
        """Take over from a dead or departed leader; the history is what counts from before.

        Raises:
            NotLeader: another process leads, with host, pid and age.
            StateError: the journal is damaged or cannot be written.
        """
        try:
            for directory in (paths.journal, paths.inbox):
                effects.mkdir(directory)
            _wait_for_death(paths, now, monotonic, wait)
            history = read(paths)
            leader = Leader.this_process(now)
            header = {"leader": asdict(leader), "previous_bytes": history.length}
            line = _line(history.last_epoch + 1, 0, now, "header", header, more=False)
            path = _segment(paths, history.last_epoch + 1)
            if not effects.write_new(path, line):
                raise NotLeader(
                    "another process has just taken this session over", where=str(paths.state_dir)
                )
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(
                f"the state directory cannot be written: {error.strerror}",
                where=str(error.filename or paths.state_dir),
                hint="free space or mend the permissions, then run the same command again; nothing is lost",
            ) from error
        return cls(paths, effects, history.last_epoch + 1, fd, len(line)), history

    def append(self, event: Event) -> None:
        """Buffer an event; it is durable after the next `commit`."""
        self._buffer.append((event.kind, event.at, encode(event)))

    @property
    def dirty(self) -> bool:
        return bool(self._buffer)

    def commit(self) -> None:
        """Make everything buffered durable, as one unit.

        Raises:
            LeadershipLost: a newer leader exists; nothing was written.
            StateError: the file cannot be written; the records stay buffered for the next try.
        """
        if _segment(self._paths, self.epoch + 1).exists():
            raise LeadershipLost(
                "another process has taken this session over", where=str(self._paths.state_dir)
            )
        if not self._buffer:
            return
        last = len(self._buffer) - 1
        data = b"".join(
            _line(self.epoch, self._number + index, at, kind, body, more=index < last)
            for index, (kind, at, body) in enumerate(self._buffer)
        )
        target = str(self._path)
        try:
            # An earlier failed write may have left half a record: it must not stand in the middle.
            if os.fstat(self._fd).st_size != self._length:
                os.ftruncate(self._fd, self._length)
            self._effects.append(self._fd, data, target)
            self._effects.fsync(self._fd, target)
        except OSError as error:
            raise StateError(
                f"the journal cannot be written: {error.strerror}",
                where=target,
                hint="free space or mend the permissions; until then nothing is started, and nothing is lost",
            ) from error
        self._length += len(data)
        self._number += len(self._buffer)
        self._buffer.clear()

    def heartbeat(self, now: float, interval_s: float = 10.0) -> None:
        """Show other hosts that this leader lives, at most every `interval_s`."""
        if self._beat_at is not None and 0 <= now - self._beat_at < interval_s:
            return
        self._beat_at = now
        self._beat += 1
        body = {"epoch": self.epoch, "counter": self._beat, "at": now, "pid": os.getpid()}
        try:
            self._effects.write(self._paths.heartbeat, json.dumps(body).encode())
        except OSError:
            # Losing a heartbeat is how a full disk shows; the journal's own error says it to the user.
            return

    def close(self, now: float) -> None:
        """Say goodbye: the next leader need not wait for this one's death."""
        try:
            self.commit()
            line = _line(self.epoch, self._number, now, "closed", {}, more=False)
            self._effects.append(self._fd, line, str(self._path))
        finally:
            os.close(self._fd)


def _wait_for_death(
    paths: SessionPaths, now: float, monotonic: Callable[[], float], wait: Callable[[float], None]
) -> None:
    history = read(paths)
    leader = history.leader
    if leader is None or history.closed:
        return
    alive = leader.alive_here()
    if alive is False or (alive and leader.pid == os.getpid()):
        return
    if alive is None:
        since, beat = monotonic(), _beat(paths)
        while monotonic() - since < DEAD_AFTER_S:
            wait(5.0)
            if _beat(paths) != beat:
                break
        else:
            return
    age = max(0.0, now - leader.started_at)
    raise NotLeader(
        f"a loop is already at work on this session: host {leader.host}, pid {leader.pid}, for {age:.0f} s",
        where=str(paths.state_dir),
        hint="`oellm-autoexp status` shows it; `submit`, `cancel` and `retry` reach it",
    )


def leader_alive(paths: SessionPaths) -> Leader | None:
    """The leader at work, if there is one (on another host: as far as its segment says)."""
    history = read(paths)
    if history.leader is None or history.closed or history.leader.alive_here() is False:
        return None
    return history.leader


def _beat(paths: SessionPaths) -> bytes:
    try:
        return paths.heartbeat.read_bytes()
    except OSError:
        return b""


def _segment(paths: SessionPaths, epoch: int) -> Path:
    return paths.journal / f"{epoch:08d}.jsonl"


def _line(epoch: int, number: int, at: float, kind: str, body: dict[str, Any], *, more: bool) -> bytes:
    record: dict[str, Any] = {"v": VERSION, "e": epoch, "n": number, "t": at, "k": kind, "d": body}
    if more:
        record["m"] = 1
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return text + b',"c":"%08x"}\n' % zlib.crc32(text)


__all__ = [
    "FILE_MODE",
    "Follower",
    "History",
    "Journal",
    "Leader",
    "boot_id",
    "leader_alive",
    "process_start",
    "read",
]
