"""Commands of other processes, as files: dropped whole, carried out by the leader, answered in the journal.

A command whose answer is in the journal while its file is still there (the leader died in between) was
carried out: its id is among the session's answered ones, and only the file remains to be removed.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.core.events import CommandAnswered
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.segments import Follower

#: Seconds between two looks for an answer.
ANSWER_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One wish of a person: "cancel", "retry", "reconcile". `at` is UTC epoch seconds where it was given."""

    id: str
    verb: str
    args: Mapping[str, Any]
    path: Path
    host: str = ""
    pid: int = 0
    at: float = 0.0


def drop(paths: SessionPaths, effects: Effects, verb: str, args: Mapping[str, Any], *, now: float) -> str:
    """Put a command into the inbox; its id names the answer in the journal.

    Raises:
        OSError: the state directory cannot be written.
    """
    for directory in (paths.state_dir, paths.monitor, paths.inbox):
        effects.mkdir(directory)
    identity = f"{now:017.6f}-{uuid.uuid4().hex[:8]}"
    body = {
        "id": identity,
        "verb": verb,
        "args": args,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": now,
    }
    effects.write(paths.inbox / f"{identity}.json", json.dumps(body).encode())
    return identity


def pending(
    paths: SessionPaths, report: Callable[[Path, str], None] = lambda _path, _why: None
) -> list[Command]:
    """The commands that wait, oldest first. A file that is not a command is reported and left alone."""
    commands = []
    for path in sorted(paths.inbox.glob("[!.]*.json")):
        try:
            commands.append(_command(path))
        except FileNotFoundError:
            continue  # acknowledged in this moment
        except (OSError, ValueError, KeyError, TypeError) as error:
            report(path, f"not a command: {error!r}")
    return commands


def _command(path: Path) -> Command:
    body = json.loads(path.read_bytes())
    if body["id"] != path.stem or not isinstance(body["verb"], str) or not isinstance(body["args"], dict):
        raise ValueError("its id, verb or arguments are not what `drop` writes")
    return Command(
        id=body["id"],
        verb=body["verb"],
        args=body["args"],
        path=path,
        host=body.get("host", ""),
        pid=body.get("pid", 0),
        at=body.get("at", 0.0),
    )


def acknowledge(effects: Effects, command: Command) -> None:
    """Remove a command whose answer is on disk."""
    effects.unlink(command.path)


def await_answer(
    command: str,
    follower: Follower,
    *,
    monotonic: Callable[[], float],
    wait: Callable[[float], None],
    timeout_s: float,
    still_led: Callable[[], bool] = lambda: True,
) -> CommandAnswered | None:
    """The leader's answer to a command; None when it has not come in time, or nobody leads any more.

    `follower` must have been made before the command was dropped, or at the journal's start.

    Raises:
        StateError: the journal is damaged or unreadable.
    """
    begin = monotonic()
    while True:
        led = still_led()  # asked before the journal: a leader that answers and leaves has answered
        for event in follower.new_events():
            if isinstance(event, CommandAnswered) and event.command == command:
                return event
        if not led or monotonic() - begin >= timeout_s:
            return None
        wait(ANSWER_POLL_S)
