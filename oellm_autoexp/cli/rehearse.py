"""`rehearse`: what would happen to a config, and what it would cost, before anything is spent."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import AsJson, ConfigDir, ConfigRef, Override
from oellm_autoexp.errors import UsageError


def rehearse(
    config_ref: ConfigRef = "autoexp",
    config_dir: ConfigDir = None,
    override: Override = None,
    scenario: Annotated[
        Optional[Path], typer.Option("--scenario", metavar="FILE", help="What happens on the fake cluster.")
    ] = None,
    faults: Annotated[
        Optional[str],
        typer.Option(
            "--faults", metavar="NAME", help="A fault model: llama3.", autocompletion=complete.fault_models
        ),
    ] = None,
    days: Annotated[
        Optional[float],
        typer.Option("--days", metavar="D", help="Days of work of each job; it ends when all is done."),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="How often, each time with other luck.")
    ] = 1,
    seed: Annotated[
        Optional[int], typer.Option("--seed", metavar="S", help="The first seed; the scenario's by default.")
    ] = None,
    against: Annotated[
        Optional[list[str]],
        typer.Option(
            "--against",
            metavar="OVERRIDES",
            help="The same luck with these overrides, and the difference; repeat it.",
        ),
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option("--plot", metavar="FILE", help="Draw it: .svg or .png (extra `plot`).")
    ] = None,
    keep: Annotated[
        Optional[Path], typer.Option("--keep", metavar="DIR", help="Keep the sessions there, to look at.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play a config on a fake cluster: what befalls it, what each policy does, where the time goes."""
    from oellm_autoexp.services import comparison
    from oellm_autoexp.services import rehearse as service

    form = _form(plot)
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, not {seeds}")
    if days is not None and days <= 0:
        raise UsageError(f"--days must be more than 0, not {days:g}")
    played = service.scenario_of(faults=faults, scenario=scenario, days=days, config_dir=config_dir)
    first = seed if seed is not None else played.seed
    words = [
        *(["--faults", faults] if faults is not None else []),
        *(["--scenario", str(scenario)] if scenario is not None else []),
        *(["--days", f"{days:g}"] if days is not None else []),
    ]
    rehearsal = service.Rehearsal(
        config_ref=config_ref,
        config_dir=str(config_dir) if config_dir is not None else None,
        overrides=override or (),
        scenario=played,
        seeds=range(first, first + seeds),
        against=against or (),
        words=words,
        keep=keep,
    )
    service.check(rehearsal)
    with _progress(quiet=as_json) as on_run:
        runs = service.rehearse(rehearsal, on_run)
    if plot is not None:
        service.write(plot, comparison.drawn(rehearsal, runs, form))
    if as_json:
        typer.echo(json.dumps(comparison.as_json(rehearsal, runs), indent=2))
    else:
        _told(rehearsal, runs, plot)
    own = comparison.by_variant(rehearsal, runs)[""]
    raise typer.Exit(0 if all(run.succeeded for run in own) else 1)


def _form(plot: Path | None) -> str:
    """The form of a plot, by the file's name; refused before anything is played."""
    from oellm_autoexp.rendering import plot as plots

    if plot is None:
        return ""
    form = plot.suffix.lower().lstrip(".")
    if form not in plots.FORMS:
        raise UsageError(f"--plot draws .svg or .png, not {plot.name!r}")
    plots.require()
    return form


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("playing", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _told(rehearsal: Any, runs: Any, plot: Path | None) -> None:
    from oellm_autoexp.services import comparison

    first = runs[0]
    typer.echo(f"What happens with seed {first.seed}:")
    typer.echo("\n".join(f"  {line}" for line in comparison.shortened(first.timeline)))
    typer.echo("")
    _table(rehearsal, runs)
    for run in runs:
        if not run.succeeded and not run.variant:
            states = ", ".join(f"{number} {state}" for state, number in run.states.items())
            typer.echo(f"Seed {run.seed}: {states}. Once more: {rehearsal.again(run.seed, run.variant)}")
    if rehearsal.keep is not None:
        for variant in rehearsal.variants:
            run = next(run for run in runs if run.variant == variant)
            command = shlex.join(["oellm-autoexp", "report", _session_of(run)])
            typer.echo(f"Look at one of {variant or comparison.AS_IT_IS}: {command}")
    if plot is not None:
        typer.echo(f"Written: {plot.absolute()}")


def _session_of(run: Any) -> str:
    """Where the session of a run is kept."""
    from oellm_autoexp.core.layout import REHEARSAL_DIR_NAME

    return str(Path(run.directory).absolute() / "outputs" / REHEARSAL_DIR_NAME)


def _table(rehearsal: Any, runs: Any) -> None:
    from rich.table import Table

    from oellm_autoexp.cli.render import console
    from oellm_autoexp.services import comparison

    out = Table(header_style="bold", box=None, pad_edge=False)
    number = len(rehearsal.seeds)
    out.add_column("1 seed" if number == 1 else f"median of {number} seeds (lowest – highest)", no_wrap=True)
    out.add_column(comparison.AS_IT_IS, justify="right", no_wrap=True)
    for variant in rehearsal.against:
        out.add_column(variant, justify="right", overflow="fold", max_width=34)
        out.add_column("difference", justify="right", no_wrap=True)
    for row in comparison.rows(rehearsal, runs):
        cells = comparison.texts(row)
        style = "bold" if cells[0] == "ETTR" else "dim" if cells[0].startswith(" ") else None
        out.add_row(*cells, style=style)
    terminal = console()
    with terminal.capture() as captured:
        terminal.print(out)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
