"""`init`: a first config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from oellm_autoexp.cli.arguments import ConfigDir


def init(
    command: Annotated[
        Optional[list[str]], typer.Argument(metavar="-- COMMAND...", help="What to run, word by word.")
    ] = None,
    slurm: Annotated[
        Optional[str], typer.Option("--slurm", metavar="NAME", help="For a cluster: a group such as lumi.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where to write it.")] = Path(
        "sweep.yaml"
    ),
    name: Annotated[Optional[str], typer.Option("--name", help="The project's name.")] = None,
    config_dir: ConfigDir = None,
    show: Annotated[bool, typer.Option("--print", help="Print it; write nothing.")] = False,
) -> None:
    """Write a commented first config for a command."""
    from oellm_autoexp.services import starter
    from oellm_autoexp.store.effects import Effects

    if slurm is not None:
        folders = [output.parent, config_dir if config_dir is not None else Path("config")]
        starter.check_group(slurm, folders)
    text = starter.config_text(command or [], name=name, slurm=slurm)
    if show:
        typer.echo(text, nl=False)
        return
    starter.write(output, text, Effects())
    file = shlex.quote(str(output))
    steps = "".join(f"\n  oellm-autoexp {verb} {file} --local" for verb in ("plan", "submit"))
    typer.echo(f"Wrote {output}. Next:{steps}")
