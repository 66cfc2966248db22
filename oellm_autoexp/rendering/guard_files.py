"""What the guard left in an attempt's directory, for the one who watches.

Missing, foreign and torn files are `None`; a directory that cannot be read raises OSError: unknown.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from oellm_autoexp.core.model import ExitRecord

#: The scheduler id in the claim of an attempt that was given up: it belongs to nobody, and nobody runs it.
WITHDRAWN = "withdrawn"
_NAME = re.compile(r"(claim|start|exit)\.(\d{1,9})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who owns the attempt: of several copies of it, the one that runs."""

    generation: int
    scheduler_id: str
    restart_count: int
    host: str
    boot_id: str
    pid: int
    #: Field 22 of /proc/PID/stat: with boot id and pid it names a process that is never reused.
    pid_start: str | None
    token: str = ""
    nonce: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Claim):
    """The guard that runs the command, and the command's process group."""

    pgid: int
    started_at: float


T = TypeVar("T", Claim, Start, ExitRecord)


def read_claim(attempt_dir: Path) -> Claim | None:
    """The newest owner of the attempt.

    Raises:
        OSError: it cannot be told.
    """
    generation = _generations(attempt_dir).get("claim")
    return None if generation is None else _read(attempt_dir, "claim", generation, Claim)


def withdrawal(host: str) -> bytes:
    """The claim that keeps every copy of an attempt from running; `host`: who gave it up."""
    claim = Claim(
        generation=0,
        scheduler_id=WITHDRAWN,
        restart_count=0,
        host=host,
        boot_id="",
        pid=0,
        pid_start=None,
        nonce=WITHDRAWN,
    )
    return json.dumps(asdict(claim)).encode()


def claim_file(attempt_dir: Path) -> Path:
    """Where the first copy of an attempt makes its claim."""
    return attempt_dir / "claim.0.json"


def go_file(attempt_dir: Path) -> Path:
    """What tells an attempt that was queued behind another to begin."""
    return attempt_dir / "go"


def read_start(attempt_dir: Path) -> Start | None:
    """The newest process that was about to run the command; it may be of an earlier generation.

    Raises:
        OSError: it cannot be told.
    """
    generation = _generations(attempt_dir).get("start")
    return None if generation is None else _read(attempt_dir, "start", generation, Start)


def read_exit(attempt_dir: Path) -> ExitRecord | None:
    """How the attempt ended; None while the newest generation has not left a record.

    Raises:
        OSError: it cannot be told.
    """
    found = _generations(attempt_dir)
    if "exit" not in found or found["exit"] < found.get("claim", 0):
        return None
    return _read(attempt_dir, "exit", found["exit"], ExitRecord)


def _generations(attempt_dir: Path) -> dict[str, int]:
    """The newest generation of each kind of file. (`Path.glob` hides errors, so it will not do.)"""
    newest: dict[str, int] = {}
    try:
        names = os.listdir(attempt_dir)  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return newest
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            kind, generation = match[1], int(match[2])
            newest[kind] = max(generation, newest.get(kind, 0))
    return newest


def _read(attempt_dir: Path, name: str, generation: int, kind: type[T]) -> T | None:
    try:
        body = json.loads((attempt_dir / f"{name}.{generation}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(body, dict):
        return None
    known: dict[str, Any] = {field.name: body[field.name] for field in fields(kind) if field.name in body}
    try:
        return kind(**{**known, "generation": generation})
    except TypeError:
        return None
