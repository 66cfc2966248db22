"""`generate`: batch scripts from a job spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import AsJson
from oellm_autoexp.errors import UsageError

#: Names that are listed where there are more.
SHOWN = 10
_SORTS = (
    ("added", "new"),
    ("changed", "changed"),
    ("unchanged", "unchanged"),
    ("missing", "no longer in it"),
)


def generate(
    spec: Annotated[Optional[Path], typer.Argument(metavar="[SPEC]", help="A job spec, in YAML.")] = None,
    template: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Without a spec: the Jinja2 template.")
    ] = None,
    params: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Without a spec: the parameters, in YAML.")
    ] = None,
    output_dir: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Where scripts go; it wins over the spec.")
    ] = None,
    slurm_args_file: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Python with get_slurm_args(params, defaults), without a spec."),
    ] = None,
    collection: Annotated[
        Optional[str],
        typer.Option(
            "--collection",
            "--into",
            metavar="NAME",
            help="The collection that takes the jobs in; the spec's name by default.",
            autocompletion=complete.sessions,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite scripts that were edited.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; show what would be, and the first script.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a batch script for each combination of parameters, from a template and a job spec.

    A second run changes nothing; an edited spec adds what is new. Nothing is submitted: what was generated is
    a collection, which submit, status, retry and the others know by its name.
    """
    from oellm_autoexp.services.collections import generate as service
    from oellm_autoexp.services.collections import places as collections
    from oellm_autoexp.store.effects import Effects

    generator = _generator(spec, template, params, slurm_args_file)
    target = output_dir.resolve() if output_dir is not None else generator.spec.output_dir
    place = collections.place_of(_name(generator) if collection is None else collection, Path.cwd())
    is_new = not place.there
    if dry_run:
        made = generator.compared(target, collections.read(place))
        if made.edited and not force:
            service.refuse(made, target)
    else:
        made = service.into(generator, place, target, Effects.of(place.paths.state_dir), force=force)
    if as_json:
        typer.echo(json.dumps(_document(made, place, target, dry_run), indent=2))
        return
    typer.echo(f"Collection:  {place.name}{' (new)' if is_new else ''}, in {place.base_output_dir}")
    typer.echo(f"Scripts:     {target}")
    if generator.spec.logs_dir:
        typer.echo(f"Logs:        {generator.spec.logs_dir}")
    typer.echo(f"Jobs:        {len(made.jobs)}")
    for job in made.jobs[:SHOWN]:
        typer.echo(f"  {job.name}")
    if len(made.jobs) > SHOWN:
        typer.echo(f"  … and {len(made.jobs) - SHOWN} more")
    if dry_run:
        typer.echo(f"\n--- {made.jobs[0].script}\n{generator.preview(0)}\n---")
    counts = [f"{len(getattr(made, key))} {word}" for key, word in _SORTS if getattr(made, key)]
    if made.edited:
        counts.append(f"{len(made.edited)} overwritten")
    typer.echo(f"{'Would be' if dry_run else 'Generated'}: {', '.join(counts)}")
    if dry_run:
        typer.echo("Nothing was written.")
        return
    name = place.name if collection is None or "/" not in collection else collection
    if made.missing:
        typer.echo(f"  what the spec has no more stays: oellm-autoexp collections show {name}")
    typer.echo(f"  submit and watch:  oellm-autoexp submit --collection {name}")


def _generator(
    spec: Path | None, template: Path | None, params: Path | None, slurm_args_file: Path | None
) -> Any:
    from oellm_autoexp.planning import jobspec
    from oellm_autoexp.planning.functions import function_of
    from oellm_autoexp.services.collections.generate import JobGenerator

    if spec is not None:
        beside = {"--template": template, "--params": params, "--slurm-args-file": slurm_args_file}
        given = [flag for flag, value in beside.items() if value is not None]
        if given:
            hint = "a spec says it itself; without one: --template F --params F"
            raise UsageError(f"{', '.join(given)} cannot stand beside a spec", where=str(spec), hint=hint)
        return JobGenerator.from_spec(spec)
    if template is None or params is None:
        hint = "oellm-autoexp generate job_spec.yaml, or: generate --template t.job.j2 --params params.yaml"
        raise UsageError("name a job spec, or --template and --params", hint=hint)
    where = Path.cwd()
    logic = None if slurm_args_file is None else str(slurm_args_file)
    return JobGenerator.from_spec(
        jobspec.JobSpecFile(
            template=(where / template).resolve(),
            parameters=jobspec.read_parameters(params),
            slurm_logic=function_of(logic, "get_slurm_args", where, "--slurm-args-file"),
            output_dir=where,
        )
    )


def _name(generator: Any) -> str:
    """The name of the collection where none is given: the spec's, else that of its file or template."""
    from oellm_autoexp.core.layout import project_name

    spec = generator.spec
    return project_name([spec.name or (spec.file or spec.template).name.partition(".")[0]], None)


def _document(made: Any, place: Any, target: Path, dry_run: bool) -> dict[str, Any]:
    sorts = {key: list(getattr(made, key)) for key in ("added", "changed", "unchanged", "edited", "missing")}
    jobs = [
        {
            "job_name": job.name,
            "script_path": job.script,
            "parameters": dict(job.parameters),
            "slurm_args": dict(job.slurm),
        }
        for job in made.jobs
    ]
    return {
        "collection": place.name,
        "state_dir": str(place.paths.state_dir),
        "output_dir": str(target),
        "dry_run": dry_run,
        **sorts,
        "jobs": jobs,
    }
