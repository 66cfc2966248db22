"""Arguments and options that several commands share, each with one meaning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.errors import UsageError

ConfigRef = Annotated[str, typer.Argument(help="A YAML file, or the name of a config.", show_default=True)]
ConfigDir = Annotated[
    Optional[Path], typer.Option("-C", "--config-dir", help="Where configs and groups are.")
]
Override = Annotated[
    Optional[list[str]], typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override; repeat it.")
]
Local = Annotated[bool, typer.Option("--local", help="Run the jobs on this machine.")]
Fake = Annotated[bool, typer.Option("--fake", "--use-fake-slurm", help="Play on a fake Slurm cluster.")]
Scenario = Annotated[
    Optional[Path],
    typer.Option("--scenario", metavar="FILE", help="What happens on the fake cluster; means --fake."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SessionRef = Annotated[
    Optional[str],
    typer.Argument(
        help="A state or output directory, a session's name, or a config.", autocompletion=complete.sessions
    ),
]
Jobs = Annotated[
    Optional[list[str]],
    typer.Argument(help="Names, prefixes, globs, key=value, or scheduler ids.", autocompletion=complete.jobs),
]
SubmitDryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be written; submit nothing.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Watch in the background: this terminal may be closed.")
]
Update = Annotated[bool, typer.Option("--update", help="Take changed jobs.")]
Canary = Annotated[
    Optional[int],
    typer.Option(metavar="N", min=0, help="Start N jobs; the others wait until these work. 0: none wait."),
]
Prune = Annotated[bool, typer.Option("--prune", help="Cancel jobs that the plan no longer has.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def scheduler_flag(local: bool, fake: bool, scenario: Path | None = None) -> str | None:
    """The scheduler that the flags ask for; None: the config's own."""
    fake = fake or scenario is not None
    if local and fake:
        raise UsageError("--local excludes --fake and --scenario")
    return "local" if local else "fake" if fake else None


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost or spent.

    Raises:
        UsageError: nobody can be asked.
        typer.Exit: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on", hint="add --yes")
    if not typer.confirm(question):
        raise typer.Exit(1)
