"""The command line: parse, call one service, print one view."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.errors import AutoexpError, UsageError

app = typer.Typer(
    name="oellm-autoexp",
    help="Describe experiments once; the orchestrator gets them finished.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigRef = Annotated[str, typer.Argument(help="A YAML file, or the name of a config.", show_default=True)]
ConfigDir = Annotated[
    Optional[Path], typer.Option("-C", "--config-dir", help="Where configs and groups are.")
]
Override = Annotated[
    Optional[list[str]], typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override; repeat it.")
]
Local = Annotated[bool, typer.Option("--local", help="Run the jobs on this machine.")]
Fake = Annotated[bool, typer.Option("--fake", "--use-fake-slurm", help="Play on a fake Slurm cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SessionRef = Annotated[
    Optional[str], typer.Argument(help="A state or output directory, a session's name, or a config.")
]
Jobs = Annotated[
    Optional[list[str]], typer.Argument(help="Names, prefixes, globs, key=value, or scheduler ids.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _scheduler(local: bool, fake: bool) -> str | None:
    if local and fake:
        raise UsageError("--local and --fake exclude each other")
    return "local" if local else "fake" if fake else None


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this needs a yes, and there is no terminal to ask on", hint="add --yes")
    if not typer.confirm(question):
        raise typer.Exit(1)


def _planned(ref: str, config_dir: Path | None, override: list[str] | None, scheduler: str | None) -> Any:
    from oellm_autoexp.services import plan as service

    loaded = service.load(ref, config_dir, override or [], scheduler=scheduler)
    known = {}
    if loaded.paths.journal.is_dir():
        # The machinery of sessions takes a tenth of a second to import; the first plan does without.
        from oellm_autoexp.services.session import replay

        known = {job.spec.id: name for name, job in replay(loaded.paths).jobs.items()}
    return service.plan(loaded, known)


@app.command(epilog="Example: oellm-autoexp plan sweep.yaml --local -o sweep.axes.lr=[1e-3]")
def plan(
    config_ref: ConfigRef = "autoexp",
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; print what would be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a config, expand its sweep, and write scripts and sweep.json."""
    from oellm_autoexp.services import plan as service
    from oellm_autoexp.store.effects import Effects

    result = _planned(config_ref, config_dir, override, _scheduler(local, fake))
    if not dry_run:
        service.write(result, Effects())
    if as_json:
        jobs = [
            {
                "name": job.spec.name,
                "id": job.spec.id,
                "parameters": dict(job.spec.parameters),
                "argv": list(job.spec.argv),
                "script_path": job.spec.script_path,
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


def _describe(result: Any) -> None:
    totals = result.totals
    for job in result.jobs:
        typer.echo(f"  {job.spec.name}  [{job.spec.id}]")
    typer.echo(f"{len(result.jobs)} jobs on {totals.nodes} nodes; {totals.cost}")
    typer.echo("Policies in force:")
    for policy in result.policies:
        config = {key: value for key, value in policy.config.items() if key != "class_name"}
        origin = "configured" if policy.configured else "default"
        details = ", ".join(f"{key}={value}" for key, value in config.items())
        typer.echo(f"  {policy.mode:20} {policy.config.get('class_name')} {details} ({origin})")


@app.command(epilog="Example: oellm-autoexp submit sweep.yaml --local")
def submit(
    config_ref: ConfigRef = "autoexp",
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written; submit nothing.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Take changed jobs.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Cancel jobs that the plan no longer has.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Submit what is not done yet, and watch until everything has a verdict."""
    if dry_run:
        plan(config_ref, config_dir, override, local, fake, dry_run=True, as_json=as_json)
        return
    from oellm_autoexp.services import session as service

    result = _planned(config_ref, config_dir, override, _scheduler(local, fake))
    if prune:
        _confirm("Cancel the jobs that the plan no longer has?", yes)
    with _Progress(quiet=as_json) as progress:
        done, loop = service.submit(result, update=update, prune=prune, watch=progress.watch)
        paths = result.loaded.paths
        _say_reconciled(done, service.replay(paths) if loop is None else loop.session, as_json)
        if loop is not None:
            _run(loop, progress, paths)
    _finish(paths, as_json)


def _say_reconciled(done: Any, session: Any, as_json: bool) -> None:
    if as_json:
        return
    ended = [name for name in done.unchanged if session.jobs[name].state.ended]
    parts = [f"{len(done.added)} new"]
    if ended:
        parts.append(f"{len(ended)} already done: nothing is submitted again")
    if len(done.unchanged) > len(ended):
        parts.append(f"{len(done.unchanged) - len(ended)} go on")
    for label, names in (("other resources", done.resources), ("other rules", done.rules)):
        if names:
            parts.append(f"{len(names)} with {label}")
    if done.missing:
        parts.append(f"{len(done.missing)} no longer in the plan: {', '.join(done.missing[:5])}")
    typer.echo("; ".join(parts))


def _run(loop: Any, progress: _Progress, paths: Any) -> None:
    try:
        loop.run(progress.on_tick)
    except KeyboardInterrupt:
        loop.close()
        progress.stop()
        live = loop.session.live
        typer.echo(
            f"\nStopped watching. {live} job(s) go on running.\n"
            f"  come back:  oellm-autoexp monitor {paths.state_dir}\n"
            f"  end them:   oellm-autoexp cancel {paths.state_dir} --yes",
            err=True,
        )
        raise typer.Exit(130) from None
    loop.close()


def _finish(paths: Any, as_json: bool) -> None:
    from oellm_autoexp.services import session as service

    session = service.replay(paths)
    _print_status(session, paths, list(session.jobs.values()), as_json)
    raise typer.Exit(service.exit_code(session))


class _Progress:
    """Live progress on a terminal, one line an event elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live: Any = None
        self._shown_at = 0.0

    def __enter__(self) -> _Progress:
        if not self._quiet and sys.stdout.isatty():
            from rich.live import Live

            from oellm_autoexp.cli.render import console

            self._live = Live(console=console(), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def watch(self) -> Any:
        from oellm_autoexp.services.session import Watch

        return Watch(on_event=self._event, warn=lambda text: typer.echo(text, err=True))

    def on_tick(self, session: Any) -> None:
        if self._live is None:
            return
        from oellm_autoexp.cli.render import table
        from oellm_autoexp.core.layout import SessionPaths
        from oellm_autoexp.services import views

        paths = SessionPaths(Path(session.opened.session))
        now = time.time()
        rows = views.rows(session, paths, list(session.jobs.values()), now)
        title = ", ".join(f"{number} {state}" for state, number in views.counts(session).items())
        self._live.update(table(rows[:40], title=title))

    def _event(self, event: Any) -> None:
        if self._quiet or self._live is not None:
            return
        from oellm_autoexp.services.views import told

        text = told(event)
        if text and getattr(event, "job", ""):
            typer.echo(f"{event.job}: {text}")


def _state_dir(reference: str) -> Path:
    from oellm_autoexp.services import plan as service

    return service.load(reference, scheduler="local").paths.state_dir


def _session(reference: str | None) -> Any:
    from oellm_autoexp.services import session as service

    paths = service.locate(reference, _state_dir)
    return paths, service.replay(paths)


def _print_status(session: Any, paths: Any, jobs: Any, as_json: bool) -> None:
    from oellm_autoexp.services import views

    rows = views.rows(session, paths, jobs, time.time())
    if as_json:
        typer.echo(json.dumps({"session": str(paths.state_dir), "jobs": rows}, indent=2))
        return
    from oellm_autoexp.cli.render import console, table

    title = ", ".join(f"{number} {state}" for state, number in views.counts(session).items())
    console().print(table(rows, title=title))
    if session.blind:
        typer.echo(f"The scheduler does not answer: {session.blind}")
    if session.breaker is not None:
        typer.echo(
            f"Waiting jobs are held: {len(session.breaker.jobs)} died early of {session.breaker.cause};"
        )
        typer.echo("  `oellm-autoexp retry` lets them go on")


@app.command(epilog="Example: oellm-autoexp status outputs --columns lr,loss --sort loss --format md")
def status(
    session: SessionRef = None,
    jobs: Jobs = None,
    columns: Annotated[Optional[str], typer.Option(help="Parameters, metrics or fields, by commas.")] = None,
    sort: Annotated[Optional[str], typer.Option(help="The column to sort by.")] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv or json, with --columns.")] = "md",
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the jobs of a session."""
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services import views

    if form not in ("md", "csv", "json"):
        raise UsageError(f"--format is md, csv or json, not {form!r}")
    while True:
        paths, state = _session(session)
        wanted = service.chosen(state, jobs or [])
        if watch:
            typer.echo("\033[2J\033[H", nl=False)
        if columns:
            names = ["name", *columns.split(",")]
            rows = [views.columns(row, names) for row in views.rows(state, paths, wanted, time.time())]
            if sort:
                at = names.index(sort) if sort in names else 0
                rows.sort(key=lambda row: (row[at] is None, str(type(row[at])), row[at]))
            _print_columns(names, rows, form)
        else:
            _print_status(state, paths, wanted, as_json)
        if not watch:
            return
        time.sleep(2)


def _print_columns(names: list[str], rows: list[list[Any]], form: str) -> None:
    from oellm_autoexp.cli.render import flat

    if form == "json":
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    else:
        typer.echo(flat(names, rows, form), nl=False)


@app.command(epilog="Example: oellm-autoexp show outputs tiny_lr0.001_seed0")
def show(session: SessionRef = None, jobs: Jobs = None, as_json: AsJson = False) -> None:
    """Explain a job: its attempts, the evidence, the rules and decisions, in the order of time."""
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services import views
    from oellm_autoexp.store import journal

    paths, state = _session(session)
    events = journal.read(paths).events
    for job in service.chosen(state, jobs or []):
        lines = views.timeline(events, state, job)
        if as_json:
            typer.echo(json.dumps({"name": job.spec.name, "timeline": lines}))
            continue
        typer.echo(f"{job.spec.name}  {job.state.value}")
        for at, text in lines:
            typer.echo(f"  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}  {text}")
        typer.echo(f"  log: {job.attempt.log_path if job.attempt else '(none yet)'}")
        if job.state.ended and job.state.value != "succeeded":
            typer.echo(f"  again: oellm-autoexp retry {paths.state_dir} {job.spec.name}")


@app.command(epilog="Example: oellm-autoexp logs outputs tiny_lr0.001_seed0 -f")
def logs(
    session: Annotated[str, typer.Argument(help="The session.")],
    job: Annotated[str, typer.Argument(help="The job.")],
    attempt: Annotated[Optional[int], typer.Option(help="Which attempt; the latest by default.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
) -> None:
    """Print the log of a job."""
    from oellm_autoexp.services import session as service

    _, state = _session(session)
    found = service.chosen(state, [job])
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


@app.command(epilog="Example: oellm-autoexp cancel outputs 'tiny_*' --yes")
def cancel(session: SessionRef = None, jobs: Jobs = None, yes: Yes = False) -> None:
    """Cancel jobs; they stay cancelled until `retry`."""
    _command("cancel", session, jobs, yes, "Cancel")


@app.command(epilog="Example: oellm-autoexp retry outputs tiny_lr0.001_seed0")
def retry(session: SessionRef = None, jobs: Jobs = None, yes: Yes = False) -> None:
    """Start failed or cancelled jobs again, with fresh budgets; without names, all of them."""
    _command("retry", session, jobs, yes, "")


def _command(verb: str, session: str | None, jobs: list[str] | None, yes: bool, ask: str) -> None:
    from oellm_autoexp.services import session as service

    paths, state = _session(session)
    found = service.chosen(state, jobs or [])
    if verb == "retry" and not jobs:
        found = [job for job in found if job.state.value in ("failed", "cancelled")]
    if ask:
        _confirm(f"{ask} {len(found)} job(s)?", yes)
    names = [job.spec.name for job in found]
    ok, text = service.command(paths, verb, {"jobs": names})
    typer.echo(text)
    if verb == "retry" and ok and not _led(paths):
        typer.echo(f"watch them: oellm-autoexp monitor {paths.state_dir}")
    raise typer.Exit(0 if ok else 3)


def _led(paths: Any) -> bool:
    from oellm_autoexp.store.journal import leader_alive

    return leader_alive(paths) is not None


@app.command(epilog="Example: oellm-autoexp monitor outputs")
def monitor(session: SessionRef = None, as_json: AsJson = False) -> None:
    """Watch a session until everything has a verdict, restarting and acting as its rules say."""
    from oellm_autoexp.services import session as service

    paths, _ = _session(session)
    with _Progress(quiet=as_json) as progress:
        _run(service.lead(paths, watch=progress.watch), progress, paths)
    _finish(paths, as_json)


@app.command()
def sessions(as_json: AsJson = False) -> None:
    """List the sessions of this user."""
    from oellm_autoexp.core.layout import SessionPaths
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services import views

    found = service.known_sessions()
    if as_json:
        rows = [{"name": entry.name, "state_dir": entry.state_dir, "gone": entry.gone} for entry in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    for entry in found:
        states = {} if entry.gone else views.counts(service.replay(SessionPaths(Path(entry.state_dir))))
        shown = "gone" if entry.gone else ", ".join(f"{number} {state}" for state, number in states.items())
        typer.echo(f"{entry.name}  {shown}  {entry.state_dir}")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake is a message, never a traceback."""
    try:
        yield
    except AutoexpError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


def main() -> None:
    """The entry point of `oellm-autoexp`."""
    with _plain_errors():
        app()


if __name__ == "__main__":
    main()
