"""Writing a journal: taking over, the barrier before effects, the heartbeat, saying goodbye.

Segment `<epoch>.jsonl` is made complete with its header by a hard link; making the next epoch's file *is*
taking over, so lease, fencing, torn tails and history are one mechanism. A leader looks for a newer segment
after each write, and a new one reads what counts after its own segment is there: so a commit that came back
without an error is never behind the fence, and one that is behind it had no effects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from oellm_autoexp.core.events import Event, encode
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import LeadershipLost, NotLeader, StateError
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.leader import Leader, boot_id, process_start
from oellm_autoexp.store.segments import (
    CLOSED,
    FENCE,
    HEADER,
    Follower,
    History,
    epochs,
    heads,
    leader_alive,
    line_of,
    read,
    segment,
)

#: A leader on another host is dead when it has shown no sign of life for this long.
DEAD_AFTER_S = 120.0
HEARTBEAT_S = 10.0
_LOOK_S = 5.0
_json = json.JSONEncoder(separators=(",", ":")).encode


class _State(NamedTuple):
    """How far a journal is. Replaced in one assignment: Ctrl-C may come between any two."""

    #: Bytes that are on disk for certain.
    length: int
    #: Commits behind them that could not be written yet, byte for byte as readers may have seen them.
    unsaved: bytes
    #: The number of the record that comes next.
    number: int
    #: Records of the next commit: time, kind, body.
    buffer: list[tuple[float, str, str]]


class Journal:
    """The journal of a leader. `append` buffers; `commit` is the barrier before effects."""

    def __init__(self, paths: SessionPaths, effects: Effects, epoch: int, fd: int, length: int) -> None:
        self.epoch = epoch
        self._paths = paths
        self._effects = effects
        self._fd = fd
        self._target = str(segment(paths, epoch))
        self._state = _State(length, b"", 1, [])
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
        on_wait: Callable[[Leader], None] = lambda _leader: None,
        dead: Leader | None = None,
    ) -> tuple[Journal, History]:
        """Take over from a dead or departed leader; the history is what counts from before.

        On another host a leader is given `DEAD_AFTER_S` to show a sign of life; `on_wait` is told first.
        `dead` is one whom a `Vigil` has seen silent for that long already. A process may take over from
        itself: the older journal is then fenced off like any other.

        Raises:
            NotLeader: another process leads, with host, pid and age.
            StateError: the journal is damaged or cannot be written.
        """
        try:
            for directory in (paths.state_dir, paths.monitor, paths.journal, paths.inbox):
                effects.mkdir(directory)
            history = _after_departure(paths, now, monotonic, wait, on_wait, dead)
            epoch = history.last_epoch + 1
            path = segment(paths, epoch)
            header = line_of(epoch, 0, now, HEADER, json.dumps(asdict(Leader.this_process(now))))
            if not effects.write_new(path, header):
                raise _led_by(heads(paths)[-1].leader, paths, now)
            if not _settle(history, paths, effects):
                history = read(paths)
                _settle(history, paths, effects)
                history.lengths.pop(epoch, None)
            # Not O_APPEND: a commit that failed is written again at the same place.
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(
                f"the state directory cannot be written: {error.strerror}",
                where=str(error.filename or paths.state_dir),
                hint="free space or mend the permissions, then run the same command again; nothing is lost",
            ) from error
        journal = cls(paths, effects, epoch, fd, len(header))
        journal._add(now, FENCE, json.dumps(history.lengths))
        try:
            journal.commit()
        except BaseException:
            os.close(fd)
            raise
        return journal, history

    def _add(self, at: float, kind: str, body: str) -> None:
        self._state.buffer.append((at, kind, body))

    def append(self, event: Event) -> None:
        """Buffer an event; it is durable after the next `commit`."""
        # JSON's own words have no infinity, a log that reports `loss nan` has: Python's reader takes both.
        self._add(event.at, event.kind, _json(encode(event)))

    @property
    def dirty(self) -> bool:
        """Whether something is not on disk."""
        return bool(self._state.buffer or self._state.unsaved)

    def commit(self) -> None:
        """Make everything buffered durable, as one unit.

        Raises:
            LeadershipLost: a newer leader exists; no effect may follow.
            StateError: the file cannot be written; the records are kept for the next try.
        """
        self._check_newest()
        if not self.dirty:
            return
        # A retry repeats the same bytes at the same place, so that neither a torn half nor a reader who has
        # seen them already is in the way.
        length, unsaved, number, buffer = self._state
        last = len(buffer) - 1
        data = unsaved + b"".join(
            line_of(self.epoch, number + index, *item, more=index < last) for index, item in enumerate(buffer)
        )
        number += len(buffer)
        self._state = _State(length, data, number, [])
        try:
            self._effects.write_at(self._fd, data, length, self._target)
            self._effects.fsync(self._fd, self._target)
        except OSError as error:
            raise StateError(
                f"the journal cannot be written: {error.strerror}",
                where=self._target,
                hint="free space or mend the permissions; until then nothing is started, and nothing is lost",
            ) from error
        self._state = _State(length + len(data), b"", number, [])
        self._check_newest()

    def _check_newest(self) -> None:
        try:
            present = epochs(self._paths)
        except OSError as error:
            raise StateError(
                f"the journal cannot be looked at: {error.strerror}",
                where=str(self._paths.journal),
                hint="mend the permissions or the file system; until then nothing is started",
            ) from error
        if present and present[-1] > self.epoch:
            raise LeadershipLost(
                "another process has taken this session over", where=str(self._paths.state_dir)
            )
        if self.epoch not in present:
            raise StateError(
                "the journal was removed while it was written",
                where=self._target,
                hint="bring the state directory back, or stop this process; until then nothing is started",
            )

    def heartbeat(self, now: float, interval_s: float = HEARTBEAT_S) -> None:
        """Show other hosts that this leader lives, at most every `interval_s`."""
        if self._beat_at is not None and 0 <= now - self._beat_at < interval_s:
            return
        self._beat_at = now
        self._beat += 1
        leader = Leader.this_process(now)
        body = {
            "epoch": self.epoch,
            "counter": self._beat,
            "host": leader.host,
            "pid": leader.pid,
            "at": now,
            "interval": interval_s,
        }
        try:
            self._effects.write(self._paths.heartbeat, json.dumps(body).encode(), durable=False)
        except OSError:
            # Losing a heartbeat is how a full disk shows; the journal's own error says it to the user.
            return

    def close(self, now: float) -> None:
        """Say goodbye, with all that is buffered: the next leader need not wait for this one's death.

        Raises:
            LeadershipLost, StateError: as `commit`; the journal is closed nevertheless.
        """
        if self._fd < 0:
            return
        try:
            self._add(now, CLOSED, "{}")
            self.commit()
        finally:
            os.close(self._fd)
            self._fd = -1


# ---------------------------------------------------------------- taking over


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The last sign of life that a leader has written. `at` is UTC epoch seconds by its own clock."""

    epoch: int
    counter: int
    host: str
    pid: int
    at: float


def heartbeat(paths: SessionPaths) -> Heartbeat | None:
    """The last heartbeat of a session; None where there is none that can be read."""
    try:
        body = json.loads(paths.heartbeat.read_bytes())
        return Heartbeat(**{name: body[name] for name in Heartbeat.__slots__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Vigil:
    """Watches for signs of life of a leader that cannot be seen from this host.

    Clocks of two hosts may differ by anything, so only this one's own monotonic time counts.
    """

    def __init__(self, paths: SessionPaths, monotonic: Callable[[], float]) -> None:
        self._paths, self._monotonic = paths, monotonic
        self._since = self._looked = monotonic()
        self._seen = _signs_of_life(paths)
        #: It has shown a sign of life since the vigil began.
        self.alive = False

    @property
    def dead(self) -> bool:
        """Whether it has been silent for `DEAD_AFTER_S`. Looks every few seconds at most."""
        now = self._monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            signs = _signs_of_life(self._paths)
            if signs != self._seen:
                self._seen, self._since, self.alive = signs, now, True
        return now - self._since >= DEAD_AFTER_S


def _after_departure(
    paths: SessionPaths,
    now: float,
    monotonic: Callable[[], float],
    wait: Callable[[float], None],
    on_wait: Callable[[Leader], None],
    dead: Leader | None,
) -> History:
    """The history, once its leader is known to be dead or gone.

    Raises:
        NotLeader: it lives.
    """
    history = read(paths)
    leader = history.leader
    if leader is None or history.closed or leader == dead:
        return history
    alive = leader.alive_here()
    if alive and leader.pid != os.getpid():
        raise _led_by(leader, paths, now)
    if alive is not None:
        return history
    on_wait(leader)
    vigil = Vigil(paths, monotonic)
    while not vigil.dead:
        if vigil.alive:
            history = read(paths)
            if history.closed:
                return history
            raise _led_by(history.leader or leader, paths, now)
        wait(_LOOK_S)
    return history


def _signs_of_life(paths: SessionPaths) -> tuple[bytes, list[tuple[str, int]]]:
    """What changes while a leader works: its heartbeat, and the segments' sizes."""
    try:
        beat = paths.heartbeat.read_bytes()
    except OSError:
        beat = b""
    sizes = [(path.name, path.stat().st_size) for path in (segment(paths, epoch) for epoch in epochs(paths))]
    return beat, sizes


def _led_by(leader: Leader, paths: SessionPaths, now: float) -> NotLeader:
    age = max(0.0, now - leader.started_at)
    return NotLeader(
        f"a loop is already at work on this session: host {leader.host}, pid {leader.pid}, for {age:.0f} s",
        where=str(paths.state_dir),
        hint="`oellm-autoexp status` shows it; `submit`, `cancel` and `retry` reach it",
    )


def _settle(history: History, paths: SessionPaths, effects: Effects) -> bool:
    """Make what was read of older segments durable; whether it is still all that is there.

    A dead leader may have written without having synced, and the new one acts on what it reads. Opening the
    file anew also makes an NFS client ask the server for its size.
    """
    same = True
    for epoch, size in history.sizes.items():
        path = segment(paths, epoch)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            effects.fsync(fd, str(path))
            same = same and os.fstat(fd).st_size == size
        finally:
            os.close(fd)
    return same


__all__ = [
    "Follower",
    "Heartbeat",
    "History",
    "Journal",
    "Leader",
    "Vigil",
    "boot_id",
    "heartbeat",
    "leader_alive",
    "process_start",
    "read",
]
