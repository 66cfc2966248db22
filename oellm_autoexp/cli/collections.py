"""`collections`: batch scripts under one name, and what sets the values of their parameters apart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import (
    AsJson,
    ConfigDir,
    Local,
    Override,
    SessionRef,
    Yes,
    confirm,
    scheduler_flag,
)
from oellm_autoexp.cli.finding import find_history
from oellm_autoexp.errors import StateError, UsageError

Name = Annotated[
    str, typer.Argument(help="A collection: its name, or its directory.", autocompletion=complete.sessions)
]


def list_(as_json: AsJson = False) -> None:
    """List the collections of this user, with how their jobs stand."""
    from oellm_autoexp.services.collections import places as service

    rows = [_summary(place) for place in service.every()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo("No collection is known here: `oellm-autoexp generate` makes one.")
    for row in rows:
        states = ", ".join(f"{number} {state}" for state, number in row["states"].items())
        typer.echo(f"{row['name']}  {states or row.get('error') or 'no jobs'}  {row['directory']}")
        for text in row["descriptions"]:
            typer.echo(f"  {text}")


def _summary(place: Any) -> dict[str, Any]:
    from oellm_autoexp.services import views
    from oellm_autoexp.services.collections import places as service
    from oellm_autoexp.services.session import replay

    try:
        collection, session = service.read(place), replay(place.paths)
    except StateError as error:
        # The others can be listed all the same.
        about = {"name": place.name, "directory": str(place.base_output_dir)}
        return {**about, "jobs": 0, "states": {}, "descriptions": [], "error": str(error)}
    waiting = service.unsubmitted(place.paths, session.jobs)
    states = {"unsubmitted": len(waiting)} if waiting else {}
    return {
        "name": place.name,
        "directory": str(place.base_output_dir),
        "jobs": len({**collection.jobs, **session.jobs}),
        "states": {**states, **views.counts(session.jobs.values())},
        "descriptions": [each.description for each in collection.origins.values() if each.description],
    }


def show(collection: Name, as_json: AsJson = False) -> None:
    """Show every script of a collection, what it was made from, and how its job stands."""
    from oellm_autoexp.cli.render import flat
    from oellm_autoexp.services.collections import places as service
    from oellm_autoexp.services.session import replay

    place = service.existing(collection, Path.cwd())
    found, jobs = service.read(place), replay(place.paths).jobs
    rows: list[dict[str, Any]] = [
        {
            "name": job.name,
            "state": jobs[job.name].state.value if job.name in jobs else "unsubmitted",
            "error_mode": jobs[job.name].mode if job.name in jobs else "",
            "parameters": job.given,
            "slurm_args": dict(job.slurm),
            "overrides": list(job.overrides),
            "script_path": job.runs,
            "spec": job.origin,
        }
        for job in found.jobs.values()
    ]
    if as_json:
        origins = {
            key: {"description": each.description, "template": each.template, "logs_dir": each.logs_dir}
            for key, each in found.origins.items()
        }
        typer.echo(
            json.dumps({"name": place.name, "cwd": found.cwd, "specs": origins, "jobs": rows}, indent=2)
        )
        return
    keys = list(dict.fromkeys(key for job in found.jobs.values() for key in job.given))
    table = [[row["name"], row["state"], *(row["parameters"].get(key) for key in keys)] for row in rows]
    typer.echo(flat(["job", "state", *keys], table, "md"), nl=False)
    for key, about in found.origins.items():
        typer.echo(
            f"{len(found.of(key))} from {key or 'scripts that were there'}: {about.description or '-'}"
        )


def delete(
    collection: Name,
    jobs: Annotated[
        Optional[list[str]], typer.Argument(help="Only these, which were never submitted.")
    ] = None,
    scripts: Annotated[bool, typer.Option("--scripts", help="The generated scripts, too.")] = False,
    yes: Yes = False,
) -> None:
    """Forget a collection whose jobs have ended, with its state; outputs and logs stay.

    Scripts that were edited by hand, or not generated, are never removed.
    """
    from oellm_autoexp.services.collections import delete as deleting
    from oellm_autoexp.services.collections import places as service

    place = service.existing(collection, Path.cwd())
    plan = deleting.planned(place, jobs or [], scripts=scripts)
    what = f"{len(plan.jobs)} job(s) of {place.name}" if jobs else f"the collection {place.name}"
    confirm(f"Remove {what}{f' and {len(plan.scripts)} script(s)' if scripts else ''}?", yes)
    deleting.carry_out(place, plan)
    kept = f"; {plan.kept} that were edited stay" if plan.kept else ""
    typer.echo(f"Removed {what}{f' and {len(plan.scripts)} script(s)' if scripts else ''}{kept}.")


def import_(
    collection: Annotated[
        str, typer.Argument(help="The collection that takes them in.", autocompletion=complete.sessions)
    ],
    scripts: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="[SCRIPT[=JOBID]]...", help="Batch scripts, with ids of jobs."),
    ] = None,
    listing: Annotated[
        Optional[Path],
        typer.Option("--list", metavar="FILE", help="YAML: jobs: [{script, name, parameters, job_id, log}]."),
    ] = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Take batch scripts that are there into a collection, and watch the jobs that run them already."""
    from oellm_autoexp.services.collections import imported
    from oellm_autoexp.services.collections import places as service
    from oellm_autoexp.services.collections.plan import Terms
    from oellm_autoexp.store.effects import Effects

    cwd = Path.cwd()
    found = imported.of_words(scripts or [], cwd)
    if listing is not None:
        found += imported.listed(listing, cwd)
    if not found:
        raise UsageError("name a script, or --list FILE", hint="collections import old run.sbatch=4711")
    place = service.place_of(collection, cwd)
    terms = Terms(
        overrides=override or [], scheduler=scheduler_flag(local, fake=False), config_dir=config_dir
    )
    told = imported.into(place, found, terms, Effects.of(place.paths.state_dir))
    if as_json:
        typer.echo(json.dumps({"collection": place.name, "imported": told}, indent=2))
        return
    typer.echo("\n".join(told))
    if any(each.job_id for each in found):
        typer.echo(f"Watch them: oellm-autoexp monitor {place.base_output_dir}")


def analyze(
    session: SessionRef = None,
    by: Annotated[
        Optional[str],
        typer.Option("--by", metavar="KEYS", help="Only these parameters, by commas; all that differ else."),
    ] = None,
    min_support: Annotated[
        int, typer.Option("--min-support", metavar="N", help="Leave out values that fewer jobs have.")
    ] = 3,
    top: Annotated[int, typer.Option("--top", metavar="N", help="So many values, the most telling.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Say which values of parameters go with failures, with long runs, or with none."""
    from oellm_autoexp.services import analysis as service
    from oellm_autoexp.services import views

    for name, value in (("--min-support", min_support), ("--top", top)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    keys = list(dict.fromkeys(key.strip() for key in (by or "").split(",") if key.strip()))
    paths, past = find_history(session)
    now = views.moment(past.session, time.time())
    found = service.analyzed(past, now, min_support=min_support, by=keys)
    if as_json:
        told = {"session": str(paths.state_dir), "min_support": min_support, **service.as_json(found, top)}
        typer.echo(json.dumps(told, indent=2))
        return
    _told(found, top, min_support)


def _told(found: Any, top: int, min_support: int) -> None:
    from oellm_autoexp.cli.render import columns
    from oellm_autoexp.services import analysis as service

    if not found.keys:
        typer.echo("The jobs of this session do not differ in any parameter.")
        return
    for finding in found.findings[:top]:
        typer.echo(service.sentence(finding))
    if not found.findings:
        typer.echo("No value differs notably from the rest.")
    header, rows = service.table(found, top)
    typer.echo("")
    columns(header, rows, right=range(2, len(header)), left=("ended by",))
    for remark in service.remarks(found, top, min_support):
        typer.echo(remark)
