"""What a submission to Slurm was: written before sbatch is called, and never changed.

It tells a look-up under which name and since when to ask. For an array it is the index from which each task
learns what it is; beside it lie a link for each task's log (`--output` has one pattern for all tasks) and the
array's script.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.rendering import array_task
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.store.effects import Effects

#: slurmdbd(8) keeps 255 characters of a job's name, of which a token takes the last.
_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A submission, as far as a look-up needs it."""

    token: str
    #: The job's name in Slurm; it ends with the token.
    name: str
    submitted_at: float
    attempt_dirs: tuple[str, ...]
    #: The nodes that its script excludes.
    exclude: str = ""


class Records:
    """The records of one session's submissions."""

    def __init__(self, effects: Effects, directory: Path) -> None:
        self._effects = effects
        self._dir = directory
        self._known: dict[str, Record] = {}

    def write(
        self, submission: Submission, environments: Sequence[Mapping[str, str]], now: float
    ) -> tuple[Record, str, str]:
        """Put a submission on disk; its record, its script and its `--output`.

        Raises:
            OSError: it cannot be written, or a script cannot be read.
        """
        token, tasks = submission.token, submission.tasks
        more = f"+{len(tasks) - 1}" if len(tasks) > 1 else ""
        record = Record(
            token=token,
            name=f"{tasks[0].name[:_NAME_LENGTH]}{more}.{token}",
            submitted_at=now,
            attempt_dirs=tuple(task.attempt_dir for task in tasks),
            exclude=slurm_text.options_of(_read(tasks[0])).get("exclude", ""),
        )
        self._effects.mkdir(self._dir)
        # slurmstepd(8) makes no directory for a log, and fails the job where there is none.
        for folder in {Path(task.log_path).parent for task in tasks}:
            self._effects.mkdir(folder, mode=0o755)
        script, output = tasks[0].script_path, tasks[0].log_path
        head = {"token": token, "name": record.name, "submitted_at": now, "exclude": record.exclude}
        lines = [json.dumps(head)]
        if len(tasks) == 1:
            lines.append(json.dumps({"attempt_dir": tasks[0].attempt_dir}))
            self._write_index(record, lines)
            return record, script, slurm_text.literal_path(output)
        texts = [_read(task) for task in tasks]
        for task, text, environment in zip(tasks, texts, environments, strict=True):
            body = {"attempt_dir": task.attempt_dir, "environment": dict(environment), "script": text}
            lines.append(json.dumps(body))
        self._write_index(record, lines)
        logs = self._dir / f"{token}.logs"
        self._effects.mkdir(logs)
        for index, task in enumerate(tasks):
            self._effects.symlink(logs / str(index), task.log_path)
        path = self._dir / f"{token}.sh"
        self._effects.write(path, self._array_script(token, texts[0]).encode(), mode=0o700)
        return record, str(path), slurm_text.literal_path(str(logs)) + "/%a"

    def _write_index(self, record: Record, lines: Sequence[str]) -> None:
        self._effects.write(self._path(record.token), ("\n".join(lines) + "\n").encode())
        self._known[record.token] = record

    def _array_script(self, token: str, first: str) -> str:
        """One script for all tasks, with the directives that they have in common."""
        source = Path(array_task.__file__).read_bytes()
        # Another version has another name: an array that waits keeps the one it was submitted with.
        dispatcher = self._dir / f"array_task.{hashlib.sha256(source).hexdigest()[:8]}.py"
        if not dispatcher.is_file():
            self._effects.write(dispatcher, source, mode=0o700)
        command = shlex.join(["python3", "-I", str(dispatcher), str(self._path(token))])
        return "\n".join(["#!/bin/bash", *slurm_text.shared_directives(first), f"exec {command}", ""])

    def _path(self, token: str) -> Path:
        return self._dir / f"{token}.jsonl"

    def read(self, token: str) -> Record | None:
        """The record of a submission; None where there is none (a power cut may have taken it).

        Raises:
            OSError: it cannot be read.
        """
        if token not in self._known:
            try:
                head, *tasks = map(json.loads, self._path(token).read_text(encoding="utf-8").splitlines())
                self._known[token] = Record(
                    token=token,
                    name=str(head["name"]),
                    submitted_at=float(head["submitted_at"]),
                    attempt_dirs=tuple(str(task["attempt_dir"]) for task in tasks),
                    exclude=str(head["exclude"]),
                )
            except (FileNotFoundError, KeyError, TypeError, ValueError):
                return None
        return self._known[token]


def _read(task: Task) -> str:
    return Path(task.script_path).read_text(encoding="utf-8", errors="surrogateescape")
