"""`status`, `show`, `logs` and `sessions`: what is, what was, and why. Nothing here changes anything."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import AsJson, Jobs, SessionRef
from oellm_autoexp.cli.finding import find_history, find_jobs, find_session
from oellm_autoexp.cli.watching import print_status
from oellm_autoexp.errors import StateError, UsageError, nearest


def status(
    session: SessionRef = None,
    jobs: Jobs = None,
    columns: Annotated[Optional[str], typer.Option(help="Parameters, metrics or fields, by commas.")] = None,
    sort: Annotated[Optional[str], typer.Option(help="The column to sort by.")] = None,
    form: Annotated[
        Optional[str], typer.Option("--format", help="md (default), csv or json, with --columns.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again every two seconds, until all have ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the jobs of a session."""
    from oellm_autoexp.services import views

    if form not in (None, "md", "csv", "json"):
        raise UsageError(f"--format is md, csv or json, not {form!r}")
    if not columns and (form or sort):
        raise UsageError("--format and --sort need --columns", hint="for example --columns lr,loss,state")
    while True:
        paths, past = find_history(session)
        wanted = find_jobs(paths, past.session, jobs)
        if watch:
            typer.echo("\033[2J\033[H", nl=False)
        if columns:
            names = ["name", *(name.strip() for name in columns.split(","))]
            rows = views.rows(past.session, paths, wanted, views.moment(past.session, time.time()))
            _warn_of_unknown([*names, *([sort] if sort else [])], rows)
            if sort:
                rows.sort(key=lambda row: _rank(views.columns(row, [sort])[0]))
            _print_columns(names, [views.columns(row, names) for row in rows], form or "md")
        else:
            print_status(past, paths, wanted, as_json)
        if not watch or all(job.state.ended for job in wanted):
            return
        time.sleep(2)


def _warn_of_unknown(names: list[str], rows: list[dict[str, Any]]) -> None:
    """A metric may come with the first line of a log, so a column that no job has is no mistake yet."""
    known = {name for row in rows for part in ("parameters", "metrics", "progress") for name in row[part]}
    known.update(name for row in rows for name in row)
    for name in dict.fromkeys(names):
        if rows and name not in known:
            near = nearest(name, sorted(known))
            hint = f"; did you mean `{near}`?" if near else ""
            typer.echo(f"no job has a parameter, metric or field `{name}` yet{hint}", err=True)


def _rank(value: Any) -> tuple[bool, bool, Any]:
    """Numbers by size before texts; what a job does not have last."""
    number = isinstance(value, (int, float))
    return (value is None, not number, value if number else str(value))


def _print_columns(names: list[str], rows: list[list[Any]], form: str) -> None:
    from oellm_autoexp.cli.render import flat

    if form == "json":
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    else:
        typer.echo(flat(names, rows, form), nl=False)


def show(session: SessionRef = None, jobs: Jobs = None, as_json: AsJson = False) -> None:
    """Explain a job: its attempts, the evidence, the rules and decisions, in the order of time."""
    from oellm_autoexp.services import goodput, views

    paths, past = find_history(session)
    chosen = find_jobs(paths, past.session, jobs)
    if not chosen and not as_json:
        print_status(past, paths, chosen, as_json)
    for job in chosen:
        lines = views.timeline(past.events, past.session, job)
        spent = past.ledger.of(job.spec.name, views.moment(past.session, time.time()))
        end = {"where time went": goodput.in_lines(spent), **views.conclusion(past.session, paths, job)}
        if as_json:
            shown = {"name": job.spec.name, "state": job.state.value, "timeline": lines, **end}
            typer.echo(json.dumps({**shown, "goodput": goodput.as_json(spent)}))
            continue
        typer.echo(f"{job.spec.name}  {job.state.value}")
        for at, text in lines:
            typer.echo(f"  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}  {text}")
        for heading, texts in end.items():
            for at, text in enumerate(texts):
                typer.echo(f"  {heading + ':' if at == 0 else '':19}{text}")


def logs(
    session: Annotated[str, typer.Argument(help="The session.", autocompletion=complete.sessions)],
    job: Annotated[str, typer.Argument(help="The job.", autocompletion=complete.jobs)],
    attempt: Annotated[Optional[int], typer.Option(help="Which attempt; the latest by default.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
) -> None:
    """Print the log of a job."""
    paths, state = find_session(session)
    found = find_jobs(paths, state, [job])
    if len(found) != 1:
        raise UsageError(f"{job!r} means {len(found)} jobs")
    spec = found[0].spec
    path = Path(spec.log_of(attempt or max(1, len(found[0].attempts))))
    if not path.exists():
        raise UsageError(f"there is no log yet: {path}")
    with path.open(errors="replace") as file:
        while True:
            text = file.read()
            if text:
                typer.echo(text, nl=False)
            elif not follow:
                return
            else:
                time.sleep(0.5)


def sessions(as_json: AsJson = False) -> None:
    """List the sessions of this user."""
    from oellm_autoexp.services import session as service

    found = service.known_sessions()
    if as_json:
        rows = [{"name": entry.name, "state_dir": entry.state_dir, "gone": entry.gone} for entry in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    for entry in found:
        typer.echo(f"{entry.name}  {_standing(entry)}  {entry.state_dir}")


def _standing(entry: Any) -> str:
    """How a session stands; one that cannot be read hides no other."""
    from oellm_autoexp.core.layout import SessionPaths
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services import views

    if entry.gone:
        return "gone"
    paths = SessionPaths(Path(entry.state_dir))
    try:
        jobs = service.replay(paths).jobs.values()
        alone = any(not job.state.ended for job in jobs) and service.leader_of(paths) is None
    except StateError as error:
        return f"damaged ({error.where}: {error.what})"
    states = ", ".join(f"{number} {state}" for state, number in views.counts(jobs).items())
    return f"{states} (nobody watches)" if alone else states
