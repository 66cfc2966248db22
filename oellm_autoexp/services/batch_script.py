"""`wrap`: a batch script as what it runs, what it asks of Slurm, and the sweep that its array is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from oellm_autoexp.config import yaml_writer
from oellm_autoexp.config.schema import TEXT_OPTIONS
from oellm_autoexp.errors import UsageError
from oellm_autoexp.schedulers.slurm import text as slurm_text

TASK = "SLURM_ARRAY_TASK_ID"
#: Shells that take a script as the word behind `-c`.
_SHELLS = frozenset({"bash", "sh", "dash", "ksh", "zsh"})
#: What a process can be given as one word is 128 KiB (MAX_ARG_STRLEN, execve(2)); quotes are not counted.
_MOST_BYTES = 120 * 1024
_DROPPED = {
    "job-name": "",
    "wait": "--wait is left out: this session waits, or watches in the background with --detach",
    "output": "--output is left out: each attempt has a log of its own (`oellm-autoexp logs`)",
    "error": "--error is left out: both streams go to one log, so that what Slurm says stands there too",
}
_REFUSED = {
    "test-only": "`--dry-run` shows what would be submitted",
    "wrap": "a script has its commands in itself",
}
_TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A batch script: the words that run its text, its name, and what it stands for in a config."""

    words: Sequence[str]
    job_name: str
    sections: Mapping[str, Any]
    #: What is different from sbatch, for people.
    notices: Sequence[str] = ()


def wrapped(path: Path, cwd: Path) -> Wrapped:
    """Read a batch script. Its text is copied: a later edit of the file changes no job that is there.

    Raises:
        UsageError: sbatch would not take it, or a session cannot.
    """
    return wrapped_text(_read(cwd / path, str(path)), cwd, name=path.name, where=str(path))


def wrapped_text(text: str, cwd: Path, *, name: str, where: str) -> Wrapped:
    """As `wrapped`, for the text of a script; `name` is what it is called, `where` what a person knows it by.

    Raises:
        UsageError: as `wrapped`.
    """
    _check(text, where)
    shebang, _, rest = text.partition("\n")
    try:
        given = slurm_text.options_of(text)
        parts = [
            part
            for line in slurm_text.head(text)
            for part in shlex.split(line[len("#SBATCH") :], comments=True)
        ]
    except ValueError as error:
        what = f"a directive cannot be read: {error}"
        raise UsageError(what, where=where, hint="close the quotes") from None
    if not {"hetjob", "packjob"}.isdisjoint(parts):
        hint = "submit its parts as jobs of their own"
        raise UsageError("a job of several components cannot be wrapped", where=where, hint=hint)
    for option, hint in _REFUSED.items():
        if option in given:
            raise UsageError(f"--{option} is not for a job of a session", where=where, hint=hint)
    body = _body(rest)
    sections, notices = _sections(given, body, where, cwd)
    return Wrapped(
        words=[*_interpreter(shebang, where), "-c", body, name],
        job_name=given.get("job-name") or PurePosixPath(name).stem,
        sections=sections,
        notices=notices,
    )


def _read(file: Path, shown: str) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=shown) from None
    except UnicodeDecodeError:
        raise UsageError("is not a text in UTF-8", where=shown) from None


def _check(text: str, shown: str) -> None:
    if not text.startswith("#!"):
        hint = "it begins with a line such as #!/bin/bash; sbatch refuses others too"
        raise UsageError("is no batch script", where=shown, hint=hint)
    if "\r\n" in text:
        raise UsageError(
            "has the line ends of DOS", where=shown, hint=f"mend it: dos2unix {shlex.quote(shown)}"
        )
    if "\0" in text:
        raise UsageError("holds a NUL byte", where=shown)
    if len(text.encode()) > _MOST_BYTES:
        hint = f"let a short script call it, or: oellm-autoexp run -- bash {shlex.quote(shown)}"
        raise UsageError(f"has more than {_MOST_BYTES // 1024} KiB", where=shown, hint=hint)


def _interpreter(shebang: str, shown: str) -> list[str]:
    """The words of a shebang; the kernel hands on what stands behind the program as one argument."""
    program, _, argument = shebang.removeprefix("#!").strip().partition(" ")
    words, named = [program, argument.strip()], [program]
    if PurePosixPath(program).name == "env":
        words = [program, *argument.split()]
        named = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    shell = PurePosixPath(named[0]).name if named else ""
    if shell not in _SHELLS:
        hint = f"run it as a command: oellm-autoexp run -- {shell or 'python3'} {shlex.quote(shown)}"
        raise UsageError(f"is no script of a shell ({shebang})", where=shown, hint=hint)
    # These end the options, and `-c` is one.
    return [word for word in words if word not in ("", "-", "--")]


def _body(rest: str) -> str:
    """The script without its directives: what it asks of Slurm is no part of what it computes."""
    lines = rest.splitlines(keepends=True)
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join([*(line for line in lines[:end] if not line.startswith("#SBATCH")), *lines[end:]])


def _sections(
    given: Mapping[str, str], body: str, shown: str, cwd: Path
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    sections: dict[str, dict[str, Any]] = {}
    notices = []
    sbatch: dict[str, Any] = {}
    for name, value in given.items():
        if name in _DROPPED:
            notices += [_DROPPED[name]] if _DROPPED[name] else []
        elif name == "export":
            sections.setdefault("slurm", {})["export"] = value
        elif name == "clusters":
            sections.setdefault("scheduler", {})["clusters"] = value.split(",")
        elif name == "chdir":
            sections.setdefault("backend", {})["cwd"] = str(cwd / value)
        elif name == "array":
            _array(value, body, shown, sections)
            notices.append(f"--array is a sweep over {TASK}: each task is a job, restarted by itself")
        else:
            sbatch[name] = _value(name, value)
    if sbatch:
        sections.setdefault("slurm", {})["sbatch"] = sbatch
    if "SLURM_SUBMIT_DIR" in body:
        # To Slurm it is where our sbatch was called. What a job computes has no part in `setup`.
        line = yaml_writer.literal(f"export SLURM_SUBMIT_DIR={shlex.quote(str(cwd))}")
        sections.setdefault("slurm", {})["setup"] = [line]
    return sections, notices


def _value(name: str, text: str) -> Any:
    if not text:
        return True
    is_number = name not in TEXT_OPTIONS and re.fullmatch(r"0|[1-9]\d{0,17}", text, re.ASCII)
    return int(text) if is_number else text


def _array(text: str, body: str, shown: str, sections: dict[str, dict[str, Any]]) -> None:
    """The tasks of an array as points of a sweep, and at most so many at once as it says."""
    listed, percent, most = text.partition("%")
    tasks: list[int] = []
    for part in listed.split(","):
        match = _TASKS.fullmatch(part.strip())
        step = int(match.group(3) or 1) if match else 0
        if match is None or not step or (percent and not most.isdecimal()):
            hint = "write --array=0-15, --array=1,3,5-9 or --array=1-10%2"
            raise UsageError(f"`{text}` are no tasks of an array", where=f"{shown}: --array", hint=hint)
        first = int(match.group(1))
        tasks += range(first, int(match.group(2) or first) + 1, step)
    tasks = sorted(set(tasks))
    if not tasks:
        raise UsageError(f"`{text}` has no tasks", where=f"{shown}: --array")
    sections["sweep"] = {"axes": {TASK: tasks}, "name_template": f"{{project}}_{{{TASK}}}"}
    if percent and int(most):
        sections.setdefault("scheduler", {})["max_jobs"] = int(most)
    facts = {
        "SLURM_ARRAY_TASK_COUNT": len(tasks),
        "SLURM_ARRAY_TASK_MIN": tasks[0],
        "SLURM_ARRAY_TASK_MAX": tasks[-1],
    }
    # What the script does not look at must not make other jobs of those there when the array grows.
    seen = {name: value for name, value in facts.items() if name in body}
    sections.setdefault("backend", {})["environment"] = {TASK: f"${{{TASK}}}", **seen}
