"""`plan`, `submit` and `monitor`: from a config to jobs that have ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import (
    AsJson,
    Canary,
    ConfigDir,
    ConfigRef,
    Detach,
    Fake,
    Local,
    Override,
    Prune,
    Scenario,
    SessionRef,
    SubmitDryRun,
    Update,
    Yes,
    confirm,
    scheduler_flag,
)
from oellm_autoexp.cli.finding import find_session
from oellm_autoexp.cli.watching import Progress, finish, lead, print_status
from oellm_autoexp.errors import UsageError


def planned(
    ref: str,
    config_dir: Path | None,
    override: list[str] | None,
    scheduler: str | None,
    scenario: Path | None,
) -> Any:
    from oellm_autoexp.services import calls

    return calls.planned(ref, config_dir, override or [], scheduler, scenario)


def plan(
    config_ref: ConfigRef = "autoexp",
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    scenario: Scenario = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; print what would be.")] = False,
    graph: Annotated[
        Optional[Literal["text", "mermaid", "svg"]],
        typer.Option("--graph", help="Draw who waits for whom, and write nothing else; alone: as text."),
    ] = None,
    graph_file: Annotated[
        Optional[Path], typer.Option("--graph-file", metavar="FILE", help="Where to: .txt, .mmd or .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a config, expand its sweep, and write scripts and sweep.json."""
    if as_json and (graph or graph_file):
        raise UsageError("--json excludes --graph: it names the parents of each job")
    result = planned(config_ref, config_dir, override, scheduler_flag(local, fake, scenario), scenario)
    if graph is None and graph_file is None:
        show(result, dry_run=dry_run, as_json=as_json)
    else:
        draw(result, graph, graph_file)


def draw(result: Any, form: str | None, path: Path | None) -> None:
    """Draw a plan: to a file, or here."""
    from oellm_autoexp.services import graph as service

    form = form or (service.form_of(path) if path is not None else "text")
    drawn = service.drawn(result, form)
    if path is None:
        typer.echo(drawn, nl=False)
    else:
        result.loaded.effects.write(path, drawn.encode(), mode=0o644, durable=False)
        typer.echo(f"Written: {path}")


def show(result: Any, *, dry_run: bool, as_json: bool) -> None:
    """Print a plan, and write its files unless this is a dry run."""
    from oellm_autoexp.services import plan as service
    from oellm_autoexp.services.source import exposed

    _warn([*service.unused_in_shell(result.loaded), *service.without_queue(result.loaded), *exposed(result)])
    if not dry_run:
        service.write(result, result.loaded.effects, leave=result.held)
    if as_json:
        jobs = [
            {
                "name": job.spec.name,
                "id": job.spec.id,
                "parameters": dict(job.spec.parameters),
                "argv": list(job.spec.argv),
                "script_path": job.spec.script_path,
                "parents": [
                    {"job": parent.job, "stage": parent.stage, "gate": parent.gate}
                    for parent in job.spec.parents
                ],
            }
            for job in result.jobs
        ]
        typer.echo(json.dumps({"project": result.loaded.project, "jobs": jobs}, indent=2))
        return
    if dry_run:
        for file in service.files(result):
            typer.echo(f"--- {file.path}")
            typer.echo(file.data.decode() if file.path.suffix != ".py" else f"({len(file.data)} bytes)")
    _describe(result)
    if dry_run:
        typer.echo("Nothing was written.")
        return
    if result.held:
        typer.echo(
            f"Left as the session has them: {_many(len(result.held), 'script')}, such as that of "
            f"{min(result.held)}; `submit` compares the jobs and replaces them"
        )
    folders = sorted({str(Path(job.spec.script_path).parent) for job in result.jobs})
    typer.echo("\n".join(f"Written: {path}" for path in (*folders, result.sweep_json) if path))


def _describe(result: Any) -> None:
    totals = result.totals
    typer.echo("\n".join(f"  {job.spec.name}  [{job.spec.id}]" for job in result.jobs))
    typer.echo(f"{_many(len(result.jobs), 'job')} on {_many(totals.nodes, 'node')}; {result.cost}")
    typer.echo("Policies in force:")
    for policy in result.policies:
        config = {key: value for key, value in policy.config.items() if key != "class_name"}
        origin = "configured" if policy.configured else "default"
        details = ", ".join(f"{key}={'null' if value is None else value}" for key, value in config.items())
        words = [str(policy.config.get("class_name")), details, f"({origin})"]
        typer.echo(f"  {policy.mode:20} {' '.join(word for word in words if word)}")


def _warn(texts: list[str]) -> None:
    for text in texts:
        typer.echo(f"warning: {text}", err=True)


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def submit(
    config_ref: Annotated[
        Optional[str], typer.Argument(help="A YAML file, or the name of a config (default: autoexp).")
    ] = None,
    collection: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME", help="A collection, in place of a config.", autocompletion=complete.sessions
        ),
    ] = None,
    only: Annotated[
        Optional[str],
        typer.Option(
            "--filter", metavar="WORD", help="Of a collection: unsubmitted, failed, timeout, all, …"
        ),
    ] = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    scenario: Scenario = None,
    dry_run: SubmitDryRun = False,
    detach: Detach = False,
    update: Update = False,
    canary: Canary = None,
    prune: Prune = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Submit what is not done yet, and watch until everything has a verdict.

    Of a collection that is what no one has submitted yet; with --filter also jobs that have ended, again.
    """
    from oellm_autoexp.services.daemon import behind

    begin = behind if detach else None
    if collection is not None:
        if config_ref is not None:
            raise UsageError("a collection is submitted without a config", where=config_ref)
        from oellm_autoexp.services.collections.plan import Terms

        terms = Terms(
            overrides=override or [],
            scheduler=scheduler_flag(local, fake, scenario),
            scenario=scenario,
            config_dir=config_dir,
            canary=canary,
        )
        found = _collected(collection, only, terms, as_json)
        if found is None or dry_run:
            if found is not None:
                show(found[0], dry_run=True, as_json=as_json)
            return
        result, again = found
        hand_in(result, update=update, prune=prune, yes=yes, as_json=as_json, begin=begin, again=again)
        return
    if only is not None:
        raise UsageError(
            "--filter needs --collection", hint="retry SESSION --filter … starts jobs of any session"
        )
    config_ref = config_ref or "autoexp"
    if canary is not None:
        override = [*(override or []), f"scheduler.canary={canary}"]
    result = planned(config_ref, config_dir, override, scheduler_flag(local, fake, scenario), scenario)
    if dry_run:
        show(result, dry_run=True, as_json=as_json)
        return
    hand_in(result, update=update, prune=prune, yes=yes, as_json=as_json, begin=begin)


def _collected(reference: str, only: str | None, terms: Any, as_json: bool) -> tuple[Any, list[str]] | None:
    """The plan of what `only` chooses, and what of it starts anew; None: that is nothing, as was said."""
    from oellm_autoexp.core import selection
    from oellm_autoexp.services.collections import places as collections
    from oellm_autoexp.services.collections import plan as batch_plan
    from oellm_autoexp.services.session import history, replay

    place = collections.existing(reference, Path.cwd())
    names = list(collections.read(place).jobs)
    jobs = replay(place.paths).jobs
    if only is not None:
        word = selection.checked(only, jobs.values())
        names = [name for name in names if selection.chosen(jobs.get(name), word)]
    if not names:
        why = f"No job of {place.name} is {only}." if only else f"{place.name} has no jobs."
        typer.echo(why, err=as_json)
        if as_json:
            print_status(history(place.paths), place.paths, [], as_json)
        return None
    found = batch_plan.planned(place, terms, frozenset(names))
    for notice in found.notices:
        typer.echo(f"note: {notice}", err=True)
    again = [] if only is None else [name for name in names if name in jobs and jobs[name].state.ended]
    return found.result, again


def hand_in(
    result: Any,
    *,
    update: bool,
    prune: bool,
    yes: bool,
    as_json: bool,
    begin: Callable[..., Any] | None,
    again: Sequence[str] = (),
) -> None:
    """Submit a plan, and watch it; or have it watched by what `begin` starts. Jobs in `again` start anew."""
    from oellm_autoexp.services import submit as service
    from oellm_autoexp.services.daemon import hand_over
    from oellm_autoexp.services.plan import unused_in_shell, without_queue
    from oellm_autoexp.services.session import history, leader_of, replay
    from oellm_autoexp.services.source import exposed

    paths = result.loaded.paths
    terms = service.Terms(update=update, prune=prune, again=again)
    done = service.preview(result, terms)
    _warn([*unused_in_shell(result.loaded), *without_queue(result.loaded), *exposed(result)])
    _warn(service.check_room(result, done))
    cost = service.to_confirm(result, done)
    if cost:
        confirm(f"{len(done.added)} new jobs may use {cost}. Submit them?", yes)
    if prune and done.missing:
        confirm(f"Cancel {len(done.missing)} jobs that the plan no longer has?", yes)
    leader = None
    with Progress(quiet=as_json) as progress:
        done, loop = service.submit(result, terms, watch=progress.watch)
        if not as_json:
            progress.say(_reconciled(done, replay(paths) if loop is None else loop.session))
        if begin is not None:
            leader = hand_over(paths, loop, begin)
        elif loop is not None:
            lead(loop, progress, paths)
    if loop is None and begin is None:
        leader = leader_of(paths)
        if leader is not None:
            past = history(paths)
            print_status(past, paths, list(past.session.jobs.values()), as_json)
            if not as_json:
                typer.echo(f"Process {leader.pid} on {leader.host} leads this session and goes on with it.")
            return
    if begin is None or leader is None:
        finish(paths, as_json)
    else:
        print_leader(paths, leader, as_json)


def print_leader(paths: Any, leader: Any, as_json: bool) -> None:
    """Say who watches now, and how to look."""
    from oellm_autoexp.services import daemon
    from oellm_autoexp.services.session import replay

    shown = daemon.standing(paths, replay(paths), time.time())
    if as_json:
        answer = {"session": str(paths.state_dir), "host": leader.host, "pid": leader.pid, "tmux": shown.tmux}
        typer.echo(json.dumps(answer))
        return
    where = f" in the tmux session {shown.tmux}" if shown.tmux else ""
    typer.echo(f"Process {leader.pid} on {leader.host} watches{where}; its log is {paths.daemon_log}")
    if shown.tmux:
        typer.echo(f"  attach:     oellm-autoexp daemon attach {paths.state_dir}")
    typer.echo(
        f"  look:       oellm-autoexp status {paths.state_dir}\n"
        f"  end them:   oellm-autoexp cancel {paths.state_dir} --yes"
    )


def _reconciled(done: Any, session: Any) -> str:
    ended = [name for name in done.unchanged if session.jobs[name].state.ended]
    parts = [f"{len(done.added)} new"]
    if ended:
        parts.append(f"{len(ended)} already done: nothing is submitted again")
    if len(done.unchanged) > len(ended):
        parts.append(f"{len(done.unchanged) - len(ended)} go on")
    if done.changed:
        parts.append(f"{len(done.changed)} changed: what has ended starts again")
    for label, names in (("other resources", done.resources), ("other rules", done.rules)):
        if names:
            parts.append(f"{len(names)} with {label}")
    if done.missing:
        parts.append(f"{len(done.missing)} no longer in the plan: {', '.join(done.missing[:5])}")
    return "; ".join(parts)


def monitor(session: SessionRef = None, as_json: AsJson = False) -> None:
    """Watch a session until everything has a verdict, restarting and acting as its rules say."""
    from oellm_autoexp.services import lead as service

    paths, state = find_session(session)
    if not state.jobs:
        raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
    with Progress(quiet=as_json) as progress:
        lead(service.lead(paths, watch=progress.watch), progress, paths)
    finish(paths, as_json)
