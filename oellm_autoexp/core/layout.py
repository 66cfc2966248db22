"""Where everything of a session lives. The only arithmetic on state paths; nothing here touches a disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from oellm_autoexp.errors import UsageError

STATE_DIR_NAME = ".oellm-autoexp"
#: Below a base output directory: state and outputs of what is only played.
REHEARSAL_DIR_NAME = ".oellm-autoexp-fake"

#: Names inside the base output directory that jobs may not take.
RESERVED_JOB_NAMES = frozenset({"scripts", "logs", "sweep.json", STATE_DIR_NAME, REHEARSAL_DIR_NAME})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True)
class SessionPaths:
    """The state directory of a session."""

    state_dir: Path

    @cached_property
    def monitor(self) -> Path:
        return self.state_dir / "monitor"

    @property
    def snapshot(self) -> Path:
        """A cache for people and other programs; the journal is the truth."""
        return self.monitor / "state.json"

    @property
    def config(self) -> Path:
        """The config of a session whose config is no file of a person's."""
        return self.state_dir / "config.yaml"

    @property
    def collection(self) -> Path:
        """The scripts of a collection, where this is the session of one."""
        return self.state_dir / "collection.json"

    @property
    def collection_lock(self) -> Path:
        return self.state_dir / "collection.lock"

    @cached_property
    def journal(self) -> Path:
        return self.monitor / "journal"

    @cached_property
    def heartbeat(self) -> Path:
        return self.monitor / "heartbeat.json"

    @cached_property
    def inbox(self) -> Path:
        return self.monitor / "inbox"

    @property
    def daemon_log(self) -> Path:
        return self.monitor / "daemon.log"

    @property
    def guard(self) -> Path:
        return self.state_dir / "guard.py"

    @property
    def scheduler(self) -> Path:
        """What the scheduler plug-in keeps."""
        return self.state_dir / "scheduler"

    @cached_property
    def metrics(self) -> Path:
        return self.state_dir / "metrics"

    def series(self, job: str) -> Path:
        """The metrics of one job, one JSON object a line."""
        return self.metrics / f"{job}.jsonl"

    def attempt(self, job: str, number: int) -> Path:
        """Where the guard claims attempt `number` and leaves its start, heartbeat and exit files."""
        return self.state_dir / "attempts" / job / str(number)

    def action(self, key: str, run: int) -> Path:
        """The directory of one try of an action; the key is hashed since it holds paths."""
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self.state_dir / "actions" / digest / str(run)

    @property
    def sources(self) -> Path:
        """Working trees that jobs run from, where `project.git_isolation` wants them."""
        return self.state_dir / "source"

    def source(self, key: str) -> Path:
        return self.sources / key

    def source_record(self, key: str) -> Path:
        """What `source(key)` holds, and whether it is complete."""
        return self.sources / f"{key}.json"

    def standalone(self, job: str) -> SessionPaths:
        """What `monitor --log` remembers of one job: a journal of its own, apart from the session's."""
        return SessionPaths(self.state_dir / "standalone" / job)


def default_state_dir(base_output_dir: Path) -> Path:
    return base_output_dir / STATE_DIR_NAME


def project_name(command: Sequence[str], given: str | None) -> str:
    """The name that was given, or one that the command suggests.

    Raises:
        UsageError: the given one cannot be a name.
    """
    if given is not None:
        if not _NAME.fullmatch(given) or given in RESERVED_JOB_NAMES:
            hint = "use letters, digits, `-`, `_` and `.`; a name of a directory of ours is none"
            raise UsageError(f"{given!r} cannot be the name of a project", where="--name", hint=hint)
        return given
    scripts = [word for word in command if word.endswith((".py", ".sh"))]
    stem = PurePosixPath((scripts or command)[0]).stem
    found = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:40]
    return found if _NAME.fullmatch(found) and found not in RESERVED_JOB_NAMES else "first"
