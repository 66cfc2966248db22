"""What a person sees while a session is led, and after it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import typer

#: Names in a line where there are more.
SHOWN = 5


def to_nobody(stream: IO[str]) -> None:
    """Drop what goes to a stream whose reader has gone, also what the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Progress:
    """Live progress on a terminal, one line an event elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._live: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet and self._terminal:
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
        from oellm_autoexp.services.lead import Watch

        return Watch(on_event=self._event, warn=lambda text: self.say(text, err=True))

    def say(self, text: str, *, err: bool = False) -> None:
        """Print a line. That nobody reads it, or that it finds no room, must not disturb the loop."""
        try:
            typer.echo(text, err=err)
        except BrokenPipeError:
            to_nobody(sys.stderr if err else sys.stdout)
        except OSError:
            return

    def on_tick(self, session: Any) -> None:
        if self._live is None:
            return
        from oellm_autoexp.cli.render import table
        from oellm_autoexp.core.layout import SessionPaths
        from oellm_autoexp.services import views

        paths = SessionPaths(Path(session.opened.session))
        shown = views.rows(
            session, paths, views.most_telling(session, 40), views.moment(session, time.time())
        )
        self._live.update(table(shown, title=_title(list(session.jobs.values()))))

    def _event(self, event: Any) -> None:
        if self._quiet or self._live is not None:
            return
        from oellm_autoexp.services.views import is_routine, told

        text = "" if is_routine(event) else told(event)
        # An action's key begins with the job's name and says what fired it.
        about = getattr(event, "job", "") or getattr(event, "key", "")
        if text and about:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
            self.say(f"{at}  {about}: {text}")


def lead(loop: Any, progress: Progress, paths: Any) -> None:
    """Run a loop to its end. Ctrl-C, SIGTERM or `daemon stop` leaves the jobs running, and says how to go on.

    Raises:
        typer.Exit: 130, after Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        loop.run(progress.on_tick)
        if loop.session.stopped:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        loop.close()
        progress.stop()
        progress.say(
            f"\nStopped watching. {loop.session.live} job(s) go on running.\n"
            f"  come back:  oellm-autoexp monitor {paths.state_dir}\n"
            f"  look:       oellm-autoexp status {paths.state_dir}\n"
            f"  end them:   oellm-autoexp cancel {paths.state_dir} --yes",
            err=True,
        )
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    loop.close()


def finish(paths: Any, as_json: bool) -> None:
    """Print how a session stands, and exit with its code."""
    from oellm_autoexp.services import session as service

    past = service.history(paths)
    session = past.session
    try:
        print_status(past, paths, list(session.jobs.values()), as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # How it ended does not depend on who reads about it.
        to_nobody(sys.stdout)
    raise typer.Exit(service.exit_code(session))


def print_status(past: Any, paths: Any, jobs: Sequence[Any], as_json: bool) -> None:
    """The table of jobs and where their time went, or the JSON document that other programs read."""
    from oellm_autoexp.services import goodput, views
    from oellm_autoexp.services.collections.places import unsubmitted

    session = past.session
    now = views.moment(session, time.time())
    rows = views.rows(session, paths, jobs, now)
    spent = past.ledger.total([job.spec.name for job in jobs], now)
    if as_json:
        for row in rows:
            row["goodput"] = goodput.as_json(past.ledger.of(row["name"], now))
        whole = {"session": str(paths.state_dir), "goodput": goodput.as_json(spent), "jobs": rows}
        if paths.collection.is_file():
            whole["unsubmitted"] = unsubmitted(paths, session.jobs)
        typer.echo(json.dumps(whole, indent=2))
        return
    from oellm_autoexp.cli.render import printed
    from oellm_autoexp.services.session import leader_of

    generated = unsubmitted(paths, session.jobs)
    if rows or not generated:
        printed(rows, title=_title(jobs))
    if generated:
        shown = ", ".join(generated[:SHOWN]) + (", …" if len(generated) > SHOWN else "")
        typer.echo(f"{len(generated)} generated and not submitted: {shown}")
        typer.echo(f"  oellm-autoexp submit --collection {paths.state_dir.parent}")
    line = goodput.in_a_line(spent)
    if line:
        typer.echo(line)
    if session.blind:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session.blind_since))
        typer.echo(f"The scheduler has not answered since {since}: {session.blind}")
    if session.breaker is not None:
        typer.echo(
            f"Waiting jobs are held: {len(session.breaker.jobs)} died early of {session.breaker.cause};"
        )
        typer.echo(f"  `oellm-autoexp retry {paths.state_dir}` lets them go on")
    line = views.canaries_in_words(session)
    if line:
        typer.echo(f"{line}\n  `oellm-autoexp submit … --canary 0` lets all start")
    line = views.nodes_in_words(session, now)
    if line:
        typer.echo(f"{line}\n  `oellm-autoexp nodes {paths.state_dir}` says why")
    ended_badly = [job for job in jobs if job.state.value == "failed"]
    if ended_badly:
        typer.echo(f"Why: oellm-autoexp show {paths.state_dir} {ended_badly[0].spec.name}")
        typer.echo(f"Start what failed again: oellm-autoexp retry {paths.state_dir}")
    if any(not job.state.ended for job in jobs) and leader_of(paths) is None:
        typer.echo(f"Nobody watches this session: oellm-autoexp monitor {paths.state_dir}")


def _title(jobs: Sequence[Any]) -> str:
    from oellm_autoexp.services import views

    return ", ".join(f"{number} {state}" for state, number in views.counts(jobs).items())
