"""The program as people run it: commands in a directory, and what a test waits for in other processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from oellm_autoexp.cli.main import main

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]
Running = subprocess.Popen[str]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "oellm_autoexp.cli.main")
SLURM = frozenset({"sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo", "srun"})
#: Seconds; long enough for any machine, so that only a test that fails waits for it.
PATIENCE_S = 280.0


def until(look: Callable[[], T], what: str) -> T:
    """What `look` gives, once that counts as true: a condition of another process."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < give_up, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)
    return found


def path_without_cluster(directory: Path) -> str:
    """A PATH that has what a machine has, but for Slurm: links in `directory`."""
    directory.mkdir()
    for place in (Path("/bin"), Path("/usr/bin")):
        for program in place.iterdir():
            link = directory / program.name
            if program.name not in SLURM and not link.is_symlink():
                link.symlink_to(program)
    return f"{Path(sys.executable).parent}:{directory}"


def printed(page: str) -> Iterator[list[str]]:
    """The commands of a page of docs/howto, in its order: the words behind the program's name."""
    for text in (ROOT / "docs" / "howto" / page).read_text().splitlines():
        for found in re.findall(r"^    (oellm-autoexp .*)|`(oellm-autoexp [a-z][^`]*)`", text):
            yield shlex.split("".join(found))[1:]


def shown_files(page: str) -> dict[str, str]:
    """The files that a page of docs/howto shows, each behind a line that only names it."""
    text = (ROOT / "docs" / "howto" / page).read_text()
    return dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


class Cli:
    """Runs commands in a directory, with a registry of sessions of its own."""

    def __init__(self, root: Path, *, home: Path | None = None, **variables: str) -> None:
        self.root = root
        self.program: Sequence[str] = PROGRAM
        self.variables = {"XDG_STATE_HOME": str(home or root / "home"), **variables}

    def __call__(self, *words: str, **options: Any) -> Done:
        """A command of the program to its end."""
        return self.run(*self.program, *words, **options)

    def run(self, *argv: str, **options: Any) -> Done:
        """Any program to its end, without a terminal; `env` is added, the rest as of `subprocess.run`."""
        given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **options}
        given["env"] = {**self.environment, **given.get("env", {})}
        return subprocess.run(argv, cwd=self.root, timeout=PATIENCE_S, check=False, **given)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}

    def start(self, *words: str, **options: Any) -> Running:
        """A command that goes on; `options` as of `subprocess.Popen`."""
        given = {"stdout": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([*self.program, *words], cwd=self.root, env=self.environment, **given)

    @contextlib.contextmanager
    def leader(self, *words: str, **options: Any) -> Iterator[Running]:
        """A command that leads the session meanwhile; killed at the end, if it is still there."""
        process = self.start(*words, **options)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def within(self, *words: str, env: Mapping[str, str] | None = None) -> Done:
        """A command in this process: the same for what needs none of its own, and far cheaper."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(self.root)
            patch.setattr(sys, "argv", ["oellm-autoexp", *words])
            patch.setattr(sys, "stdin", io.StringIO())
            patch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own.
            for name, value in {**self.variables, **(env or {})}.items():
                patch.setenv(name, value)
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def jobs(self, session: str = "outputs") -> list[dict[str, Any]]:
        """What `status --json` says of the jobs; none where there is no session yet."""
        shown = self.within("status", session, "--json")
        return json.loads(shown.stdout)["jobs"] if shown.returncode == 0 else []

    def states(self, session: str = "outputs") -> dict[str, tuple[str, int]]:
        """State and number of attempts of each job."""
        return {job["name"]: (job["state"], job["attempts"]) for job in self.jobs(session)}
