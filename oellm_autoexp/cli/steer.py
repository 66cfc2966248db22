"""`cancel` and `retry`: what a person changes about jobs."""

from __future__ import annotations

from typing import Any

import typer

from oellm_autoexp.cli.arguments import Jobs, SessionRef, Yes, confirm
from oellm_autoexp.cli.finding import find_session


def cancel(session: SessionRef = None, jobs: Jobs = None, yes: Yes = False) -> None:
    """Cancel jobs; they stay cancelled until `retry`."""
    _command("cancel", session, jobs, yes, "Cancel")


def retry(session: SessionRef = None, jobs: Jobs = None, yes: Yes = False) -> None:
    """Start failed or cancelled jobs again, with fresh budgets; without names, all of them."""
    _command("retry", session, jobs, yes, "")


def _command(verb: str, session: str | None, jobs: list[str] | None, yes: bool, ask: str) -> None:
    from oellm_autoexp.services import session as service

    paths, state = find_session(session)
    found = service.chosen(state, jobs or [])
    held = verb == "retry" and state.breaker is not None
    if verb == "retry" and not jobs:
        found = [job for job in found if job.state.value in ("failed", "cancelled")]
    if ask:
        confirm(f"{ask} {len(found)} job(s)?", yes)
    names = [job.spec.name for job in found]
    ok, text = service.command(paths, verb, {"jobs": names})
    typer.echo(text)
    if held:
        names = [name for name, job in state.jobs.items() if not job.state.ended]
    if (
        ok
        and names
        and service.leader_of(paths) is None
        and any(not job.state.ended for job in _again(paths, names))
    ):
        typer.echo(f"Nobody watches this session: oellm-autoexp monitor {paths.state_dir}")
    raise typer.Exit(0 if ok else 3)


def _again(paths: Any, names: list[str]) -> list[Any]:
    from oellm_autoexp.services.session import replay

    jobs = replay(paths).jobs
    return [jobs[name] for name in names]
