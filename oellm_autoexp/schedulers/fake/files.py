"""What the fake cluster keeps on disk: the logs and guards' files of its jobs, and its own history.

The history is what was asked of the cluster and when. Since the cluster is deterministic, playing it again
gives the cluster back; so a rehearsal that was killed goes on, and nothing large is ever rewritten.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oellm_autoexp.errors import LeadershipLost, StateError
from oellm_autoexp.rendering import guard_files
from oellm_autoexp.store.effects import Effects

VERSION = 2


class JobFiles:
    """What jobs write, gathered until `flush`. Bytes that a killed process has written already stay."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._texts: dict[str, list[str]] = {}
        self._whole: dict[str, str] = {}
        #: Bytes of each log up to the last `flush` or `skip`.
        self._lengths: dict[str, int] = {}
        #: The logs that were looked at.
        self._logs: dict[str, Path] = {}
        self._made: set[Path] = set()
        #: Logs that have been written to since this was emptied.
        self.grown: set[str] = set()

    def append(self, path: str, text: str) -> None:
        self._texts.setdefault(path, []).append(text)

    def write(self, path: str, text: str) -> None:
        self._whole[path] = text

    def withdrawn(self, attempt_dir: str) -> bool:
        try:
            claim = guard_files.claim_file(Path(attempt_dir)).read_bytes()
        except OSError:
            return False
        return bool(json.loads(claim)["scheduler_id"] == guard_files.WITHDRAWN)

    def skip(self) -> None:
        """Take what was gathered as written: it was, by an earlier process."""
        for path, texts in self._texts.items():
            self._lengths[path] = self._lengths.get(path, 0) + len("".join(texts).encode())
        self._texts.clear()
        self._whole.clear()

    def flush(self) -> None:
        """Write what was gathered. What could not be written is kept for the next time.

        Raises:
            OSError: a full disk, a directory that cannot be written.
        """
        for path in list(self._texts):
            data = "".join(self._texts[path]).encode()
            before = self._lengths.get(path, 0)
            log, there = self._logs.get(path), 0
            if log is None:
                log = Path(path)
                # An earlier process may have written it; only the first look needs the disk.
                there = max(0, _size(log) - before)
                self._directory(log.parent, 0o755)
            if there < len(data):
                self._effects.append(log, data[there:], durable=False)
            self._logs[path] = log
            self.grown.add(path)
            self._lengths[path] = before + len(data)
            del self._texts[path]
        for path in list(self._whole):
            self._directory(Path(path).parent, 0o700)
            self._effects.write(Path(path), self._whole[path].encode(), durable=False)
            del self._whole[path]

    def _directory(self, path: Path, mode: int) -> None:
        if path not in self._made:
            self._effects.mkdir(path, mode=mode)
            self._made.add(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Inputs:
    """The history of a cluster: one JSON object a line, of which the head names its scenario.

    Several processes may come to write it, one after the other. Who begins to says so in the file, and only
    then reads what counts: what its predecessor adds behind that does not, and the predecessor sees it at
    once, before it does what it has asked for.
    """

    def __init__(self, path: Path, effects: Effects) -> None:
        self._path = path
        self._effects = effects
        self._me = ""
        self._has_head = self._torn = self._is_lost = False
        #: How many bytes of the file have been looked at.
        self._seen = 0

    @property
    def is_open(self) -> bool:
        """Whether this process writes it."""
        return bool(self._me)

    def read(self) -> list[Mapping[str, Any]]:
        """The head and what was asked, in order; nothing for a new history.

        A record that was cut when its writer died was never answered.

        Raises:
            StateError: the file is of another version.
            LeadershipLost: another process writes it by now.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        self._seen, self._torn = len(data), not data.endswith(b"\n")
        found: list[Mapping[str, Any]] = []
        writer = ""
        for body in _records(data):
            if "open" in body:
                if self._me and writer == self._me:
                    raise self._lost()
                writer = body["open"]
            elif not found and body.get("version", VERSION) != VERSION:
                raise StateError("it is of another version", where=str(self._path), hint="remove it")
            elif ("version" in body and not found) or (found and body.get("by") == writer):
                found.append(body)
        self._has_head = bool(found)
        return found

    def open(self, head: Mapping[str, Any]) -> None:
        """Become the one who writes; what counts is to be read after that."""
        self._effects.mkdir(self._path.parent)
        if not self._has_head:
            self._append(head)
        me = secrets.token_hex(4)
        self._append({"open": me})
        self._me = me

    def add(self, body: Mapping[str, Any]) -> None:
        """Add a record, before what it asks for is done.

        Raises:
            LeadershipLost: another process writes it by now; this record does not count.
        """
        if self._is_lost:
            raise self._lost()
        self._append({"by": self._me, **body})
        with self._path.open("rb") as file:
            file.seek(self._seen)
            data = file.read()
        self._seen += len(data)
        if any(body.get("open", self._me) != self._me for body in _records(data)):
            raise self._lost()

    def _append(self, body: Mapping[str, Any]) -> None:
        line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
        cut, self._torn = self._torn, True
        self._effects.append(self._path, (b"\n" if cut else b"") + line, private=True, durable=False)
        self._torn = False

    def _lost(self) -> LeadershipLost:
        self._is_lost = True
        return LeadershipLost(
            "another process plays this cluster by now", where=str(self._path.parent.parent)
        )


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    """The whole records of a history; what was cut was ended by the one who came next."""
    for line in data.split(b"\n"):
        try:
            body = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(body, dict):
            yield body
