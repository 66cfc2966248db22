"""`cancel` and `retry`: what a person changes about jobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli.arguments import Jobs, Override, SessionRef, Yes, confirm
from oellm_autoexp.cli.finding import find_jobs, find_session
from oellm_autoexp.errors import UsageError

Filter = Annotated[
    Optional[str],
    typer.Option("--filter", metavar="WORD", help="Only jobs in this state or error mode: failed, timeout…"),
]


def cancel(session: SessionRef = None, jobs: Jobs = None, only: Filter = None, yes: Yes = False) -> None:
    """Cancel jobs; they stay cancelled until `retry`."""
    from oellm_autoexp.services.lead import command

    paths, state = find_session(session)
    found = _filtered(find_jobs(paths, state, jobs), only)
    if only is not None and not found:
        typer.echo(f"No job is {only}: nothing is cancelled")
        return
    confirm(f"Cancel {len(found)} job(s)?", yes)
    ok, text = command(paths, "cancel", {"jobs": [job.spec.name for job in found]})
    _told(paths, [job.spec.name for job in found], ok, text)


def retry(
    session: SessionRef = None,
    jobs: Jobs = None,
    only: Filter = None,
    override: Override = None,
    param: Annotated[
        Optional[list[str]],
        typer.Option("--param", metavar="KEY=VALUE", help="Of a collection: another parameter; repeat it."),
    ] = None,
    extra_params: Annotated[
        Optional[str],
        typer.Option(metavar="FILE:FUNCTION", help="get_extra_params(job) -> parameters, of a collection."),
    ] = None,
    select: Annotated[
        Optional[str],
        typer.Option(metavar="FILE:FUNCTION", help="should_resubmit(job) -> bool, or (bool, reason)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which would start again.")] = False,
    yes: Yes = False,  # noqa: ARG001 - nothing is asked, and who gives it is not refused
) -> None:
    """Start failed or cancelled jobs again, with fresh budgets; without names, all of them.

    -o changes what they ask for from now on. Parameters go into the template of a collection's scripts.
    """
    from oellm_autoexp.services import retry as again

    paths, state = find_session(session)
    found = _filtered(find_jobs(paths, state, jobs), only)
    if not jobs and only is None:
        found = again.retryable(found)
    names = [job.spec.name for job in found]
    if select is not None or extra_params is not None:
        names, given = _asked(paths, state, found, select, extra_params)
    else:
        given = {}
    given = {name: {**given.get(name, {}), **_parameters(param)} for name in names}
    if (only is not None or select is not None) and not names and not dry_run:
        typer.echo(f"No job is {'chosen' if only is None else only}: nothing starts again")
        return
    if dry_run:
        typer.echo("\n".join([*names, f"{len(names)} would start again"]))
        return
    held = state.breaker is not None
    changes = again.Changes(overrides=override or [], parameters=given)
    ok, text = again.again(paths, state, names, changes)
    if held:
        names = [name for name, job in state.jobs.items() if not job.state.ended]
    _told(paths, names, ok, text)


def _filtered(found: list[Any], only: str | None) -> list[Any]:
    if only is None:
        return found
    from oellm_autoexp.core import selection

    word = selection.checked(only, found)
    return [job for job in found if selection.chosen(job, word)]


def _asked(
    paths: Any, state: Any, found: list[Any], select: str | None, extra: str | None
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The names that a person's function chooses, and what another adds to their parameters."""
    from oellm_autoexp.planning.functions import function_of
    from oellm_autoexp.services import retry as again
    from oellm_autoexp.services import views

    rows = views.rows(state, paths, found, views.moment(state, time.time()))
    names = [row["name"] for row in rows]
    chooses = function_of(select, "should_resubmit", Path.cwd(), "--select")
    if chooses is not None:
        names, reasons = again.selected(rows, chooses)
        typer.echo("".join(f"left out: {reason}\n" for reason in reasons), err=True, nl=False)
    adds = function_of(extra, "get_extra_params", Path.cwd(), "--extra-params")
    wanted = [row for row in rows if row["name"] in names]
    return names, again.extra_parameters(wanted, adds) if adds is not None else {}


def _parameters(texts: list[str] | None) -> dict[str, Any]:
    from oellm_autoexp.config import overrides

    given = {}
    for text in texts or ():
        name, sign, _ = text.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError("is no parameter", where=f"--param {text}", hint="write --param epochs=20")
        given[name] = overrides.parse([text], [])[0].value
    return given


def _told(paths: Any, names: list[str], ok: bool, text: str) -> None:
    from oellm_autoexp.services import session as service

    typer.echo(text)
    jobs = service.replay(paths).jobs if ok and names else {}
    if any(not jobs[name].state.ended for name in names if name in jobs) and service.leader_of(paths) is None:
        typer.echo(f"Nobody watches this session: oellm-autoexp monitor {paths.state_dir}")
    raise typer.Exit(0 if ok else 3)
