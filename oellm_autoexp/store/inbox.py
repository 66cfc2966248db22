"""Commands of other processes, as files: dropped whole, carried out by the leader, answered there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.store.effects import Effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One wish of a person: "cancel", "retry", "reconcile"."""

    id: str
    verb: str
    args: Mapping[str, Any]
    path: Path


def drop(paths: SessionPaths, effects: Effects, verb: str, args: Mapping[str, Any], *, now: float) -> str:
    """Put a command into the inbox; its id names the answer in the journal."""
    effects.mkdir(paths.inbox)
    identity = f"{now:017.6f}-{uuid.uuid4().hex[:8]}"
    body = {"id": identity, "verb": verb, "args": args}
    effects.write(paths.inbox / f"{identity}.json", json.dumps(body).encode())
    return identity


def pending(paths: SessionPaths) -> list[Command]:
    """The commands that wait, oldest first. A file that is not a command is left alone."""
    commands = []
    for path in sorted(paths.inbox.glob("[!.]*.json")):
        try:
            body = json.loads(path.read_bytes())
            commands.append(Command(id=body["id"], verb=body["verb"], args=body["args"], path=path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return commands


def acknowledge(effects: Effects, command: Command) -> None:
    """Remove a command whose answer is on disk."""
    effects.unlink(command.path)
