"""What a person sees while a session is led, and after it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


class Progress:
    """Live progress on a terminal, one line an event elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        import sys

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
        from oellm_autoexp.services.session import Watch

        return Watch(on_event=self._event, warn=lambda text: typer.echo(text, err=True))

    def on_tick(self, session: Any) -> None:
        if self._live is None:
            return
        from oellm_autoexp.cli.render import table
        from oellm_autoexp.core.layout import SessionPaths
        from oellm_autoexp.services import views

        paths = SessionPaths(Path(session.opened.session))
        shown = views.rows(session, paths, views.most_telling(session, 40), time.time())
        self._live.update(table(shown, title=_title(session)))

    def _event(self, event: Any) -> None:
        if self._quiet or self._live is not None:
            return
        from oellm_autoexp.services.views import told

        text = told(event)
        if text and getattr(event, "job", ""):
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
            typer.echo(f"{at}  {event.job}: {text}")


def lead(loop: Any, progress: Progress, paths: Any) -> None:
    """Run a loop to its end. Ctrl-C or SIGTERM leaves the jobs running, and says how to come back.

    Raises:
        typer.Exit: 130, after Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        loop.run(progress.on_tick)
    except KeyboardInterrupt:
        loop.close()
        progress.stop()
        typer.echo(
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

    session = service.replay(paths)
    print_status(session, paths, list(session.jobs.values()), as_json)
    raise typer.Exit(service.exit_code(session))


def print_status(session: Any, paths: Any, jobs: Sequence[Any], as_json: bool) -> None:
    """The table of jobs, or the JSON document that other programs read."""
    from oellm_autoexp.services import views

    rows = views.rows(session, paths, jobs, time.time())
    if as_json:
        typer.echo(json.dumps({"session": str(paths.state_dir), "jobs": rows}, indent=2))
        return
    from oellm_autoexp.cli.render import console, table

    console().print(table(rows, title=_title(session)))
    if session.blind:
        typer.echo(f"The scheduler does not answer: {session.blind}")
    if session.breaker is not None:
        typer.echo(
            f"Waiting jobs are held: {len(session.breaker.jobs)} died early of {session.breaker.cause};"
        )
        typer.echo("  `oellm-autoexp retry` lets them go on")
    ended_badly = [job for job in jobs if job.state.value == "failed"]
    if ended_badly:
        typer.echo(f"Why: oellm-autoexp show {paths.state_dir} {ended_badly[0].spec.name}")


def _title(session: Any) -> str:
    from oellm_autoexp.services import views

    return ", ".join(f"{number} {state}" for state, number in views.counts(session).items())
