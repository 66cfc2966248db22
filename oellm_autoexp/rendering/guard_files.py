"""What the guard left in an attempt's directory, for the one who watches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oellm_autoexp.core.model import ExitRecord


def _newest(attempt_dir: Path, name: str) -> dict[str, Any] | None:
    """The file of the newest generation; None where there is none.

    Raises:
        OSError: it cannot be told.
    """
    found = sorted(attempt_dir.glob(f"{name}.*.json"), key=lambda path: int(path.suffixes[0][1:]))
    if not found:
        return None
    try:
        body: dict[str, Any] = json.loads(found[-1].read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return body


def read_exit(attempt_dir: Path) -> ExitRecord | None:
    """How the attempt ended; None where the newest generation has not left a record."""
    body, claim = _newest(attempt_dir, "exit"), _newest(attempt_dir, "claim")
    if body is None:
        return None
    record = ExitRecord(**body)
    claims = len(list(attempt_dir.glob("claim.*.json")))
    return record if claim is None or record.generation == claims - 1 else None


def read_claim(attempt_dir: Path) -> dict[str, Any] | None:
    """Who owns the attempt."""
    return _newest(attempt_dir, "claim")


def read_start(attempt_dir: Path) -> dict[str, Any] | None:
    """The process that runs the command, and its process group."""
    return _newest(attempt_dir, "start")
