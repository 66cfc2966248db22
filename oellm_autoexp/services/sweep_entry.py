"""Run one entry of a sweep.json as it was planned, without a scheduler. Standard library only: it may be
copied to where nothing is installed.

    python scripts/run_sweep_entry.py --sweep outputs/sweep.json --index 0 --dry-run
    python -m oellm_autoexp.services.sweep_entry --sweep outputs/sweep.json --index 0
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class EntryError(Exception):
    """An entry that cannot be run; the message is for a person."""


@dataclass(frozen=True)
class Entry:
    """`environment` holds only what the entry adds; references to variables are not filled in."""

    name: str
    output_dir: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str | None
    #: Which words and variables hold `${NAME}` that stand for variables; elsewhere these are plain text.
    argv_references: frozenset[int]
    environment_references: frozenset[str]

    def filled(self, outside: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """The argv and the whole environment of the command.

        Raises:
            EntryError: a variable that the entry refers to is not set.
        """
        env = {**outside, "AUTOEXP_ATTEMPT": outside.get("AUTOEXP_ATTEMPT", "1")}

        def fill(text: str) -> str:
            return _REFERENCE.sub(lambda match: _variable(env, match.group(1)), text)

        argv = [fill(w) if n in self.argv_references else w for n, w in enumerate(self.argv)]
        added = {
            key: fill(value) if key in self.environment_references else value
            for key, value in self.environment.items()
        }
        return argv, {**env, **added, "OELLM_AUTOEXP_JOB_NAME": self.name}


def _variable(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise EntryError(f"{name} is not set\n  -> export it before you run this entry")
    return env[name]


def read(sweep: Path, index: int) -> Entry:
    """Entry `index` (from 0) of a sweep.json.

    Raises:
        EntryError: the file cannot be read or is none, or has no such entry.
    """
    try:
        jobs = list(json.loads(sweep.read_text(encoding="utf-8"))["jobs"])
    except OSError as error:
        raise EntryError(f"{sweep}: {error.strerror}\n  -> `oellm-autoexp plan CONFIG` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EntryError(f"{sweep}: not a sweep.json ({error})") from None
    if not 0 <= index < len(jobs):
        have = f"it has {len(jobs)}, numbered from 0 to {len(jobs) - 1}" if jobs else "it has none"
        raise EntryError(f"{sweep}: no entry {index}: {have}")
    try:
        return _entry(jobs[index])
    except (KeyError, TypeError, AttributeError) as error:
        raise EntryError(f"{sweep}: entry {index} is broken ({error!r})") from None


def _entry(job: Mapping[str, Any]) -> Entry:
    launch = job["launch"]
    references = launch.get("references", {})
    return Entry(
        name=job["name"],
        output_dir=job["output_dir"],
        argv=tuple(launch["argv"]),
        environment=launch.get("environment", {}),
        cwd=launch.get("cwd"),
        argv_references=frozenset(references.get("argv", ())),
        environment_references=frozenset(references.get("environment", ())),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the command of the entry; returns only where that does not happen."""
    parser = argparse.ArgumentParser(prog="run_sweep_entry", description="Run one entry of a sweep.json.")
    parser.add_argument("--sweep", type=Path, required=True, metavar="FILE", help="the sweep.json of a plan")
    parser.add_argument("--index", type=int, required=True, metavar="N", help="the entry, counted from 0")
    parser.add_argument("--dry-run", action="store_true", help="show the command and run nothing")
    options = parser.parse_args(arguments)
    try:
        entry = read(options.sweep, options.index)
        if options.dry_run:
            sys.stdout.write(f"Command: {shlex.join(entry.argv)}\n")
            sys.stdout.write(f"Environment overrides: {dict(entry.environment)}\n")
            return 0
        argv, environment = entry.filled(os.environ)
        Path(entry.output_dir).mkdir(parents=True, exist_ok=True)
        if entry.cwd:
            os.chdir(entry.cwd)
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - exit code and signals are then the command's own
    except EntryError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename or entry.argv[0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main())
