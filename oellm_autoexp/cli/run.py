"""`run` and `wrap`: a command, or a batch script, under signals and policies in one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete, submit
from oellm_autoexp.cli.arguments import (
    AsJson,
    Canary,
    ConfigDir,
    Detach,
    Fake,
    Local,
    Override,
    Prune,
    Scenario,
    SubmitDryRun,
    Update,
    Yes,
    scheduler_flag,
)

Sweep = Annotated[
    Optional[list[str]],
    typer.Option(
        "--sweep", metavar="KEY=VALUES", help="An axis: lr=1e-3,3e-4 or seed=range(0,4); repeat it."
    ),
]
Name = Annotated[
    Optional[str],
    typer.Option(
        "--name", help="The session's name; outputs go to outputs/NAME.", autocompletion=complete.sessions
    ),
]
SaveConfig = Annotated[
    Optional[Path],
    typer.Option("--save-config", metavar="FILE", help="Only write the config that this stands for."),
]


def run(
    command: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="-- COMMAND...", help="What to run, word by word; {lr} is a variable."),
    ] = None,
    name: Name = None,
    sweep: Sweep = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    scenario: Scenario = None,
    save_config: SaveConfig = None,
    dry_run: SubmitDryRun = False,
    detach: Detach = False,
    update: Update = False,
    canary: Canary = None,
    prune: Prune = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Submit a command, once for each combination of a sweep, and watch until everything has a verdict.

    Each word reaches the command as it stands, through no shell; {lr} in it becomes the value of the axis lr.
    The same line again goes on with the session. --save-config writes the YAML that the line stands for.
    """
    from oellm_autoexp.core.layout import project_name
    from oellm_autoexp.services import one_line, starter

    words = command or []
    if not words or not words[0]:
        raise starter.no_command("run")
    line = one_line.Line(
        command=words,
        name=project_name(words, name),
        sweep=sweep or [],
        overrides=override or [],
        scheduler=scheduler_flag(local, fake, scenario),
        scenario=scenario,
        config_dir=config_dir,
    )
    if save_config is not None:
        _save(line, save_config, as_json)
        return
    result = one_line.planned(line, Path.cwd(), canary)
    if dry_run:
        submit.show(result, dry_run=True, as_json=as_json)
        return
    _hand_in(result, detach, update=update, prune=prune, yes=yes, as_json=as_json)


def wrap(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A batch script, as for sbatch.")],
    arguments: Annotated[
        Optional[list[str]], typer.Argument(metavar="[-- ARGUMENTS...]", help="For the script.")
    ] = None,
    name: Name = None,
    sweep: Sweep = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    scenario: Scenario = None,
    save_config: SaveConfig = None,
    dry_run: SubmitDryRun = False,
    detach: Detach = False,
    update: Update = False,
    canary: Canary = None,
    prune: Prune = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Submit a batch script as sbatch would, and watch, restart and act upon it.

    Its #SBATCH lines become slurm.sbatch; -o wins over them. An array becomes a sweep. Its text is copied: an
    edit of the file reaches no job that is there, and makes another job of it.
    """
    from oellm_autoexp.core.layout import project_name
    from oellm_autoexp.services import batch_script, one_line

    found = batch_script.wrapped(script, Path.cwd())
    line = one_line.Line(
        command=arguments or [],
        before=found.words,
        name=project_name([found.job_name], name),
        sweep=sweep or [],
        overrides=override or [],
        scheduler=scheduler_flag(local, fake, scenario),
        scenario=scenario,
        config_dir=config_dir,
        sections=found.sections,
    )
    for notice in found.notices:
        typer.echo(f"note: {notice}", err=True)
    if save_config is not None:
        _save(line, save_config, as_json)
        return
    result = one_line.planned(line, Path.cwd(), canary)
    if dry_run:
        submit.show(result, dry_run=True, as_json=as_json)
        return
    _hand_in(result, detach, update=update, prune=prune, yes=yes, as_json=as_json)


def _hand_in(result: Any, detach: bool, **options: Any) -> None:
    from oellm_autoexp.services.daemon import behind

    submit.hand_in(result, begin=behind if detach else None, **options)


def _save(line: Any, file: Path, as_json: bool) -> None:
    """Write the config of a line that plans, and say how to go on."""
    from oellm_autoexp.services import one_line
    from oellm_autoexp.store.effects import Effects

    result = one_line.planned(line, Path.cwd())
    one_line.saved(line, Path.cwd(), file, Effects())
    if as_json:
        typer.echo(json.dumps({"config": str(file), "jobs": len(result.jobs)}))
        return
    words = [str(file), *(["-C", str(line.config_dir)] if line.config_dir is not None else [])]
    steps = "".join(f"\n  {shlex.join(['oellm-autoexp', verb, *words])}" for verb in ("plan", "submit"))
    typer.echo(f"Wrote {file}. Nothing was submitted. Next:{steps}")
