"""What Tab offers for sessions and jobs. It never fails and never prints: that would spoil the typed line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import typer


def sessions(incomplete: str) -> list[str]:
    """Names of sessions that can be seen; where none fits, the shell offers files."""
    return _quietly(lambda: _sessions(incomplete))


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the jobs of the session that was typed before."""
    return _quietly(lambda: _jobs(ctx.params.get("session"), incomplete))


def verbs(incomplete: str) -> list[str]:
    """What `nodes` can do."""
    return [verb for verb in ("exclude", "forgive") if verb.startswith(incomplete)]


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Nodes that something is known about: those that jobs have had, or that may be forgiven."""
    return _quietly(lambda: _nodes(ctx.params.get("session"), ctx.params.get("verb"), incomplete))


def fault_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of fault models, of the directory of configs that was typed before, and the shipped ones."""
    return _quietly(lambda: _fault_models(ctx.params.get("config_dir"), incomplete))


def _quietly(find: Callable[[], Iterator[str]]) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return list(dict.fromkeys(find()))
        except Exception:  # noqa: BLE001 - nothing is offered where nothing can be found
            return []


def _sessions(incomplete: str) -> Iterator[str]:
    from oellm_autoexp.store.registry import Registry

    for entry in Registry().list_all():
        if not entry.gone and entry.name.startswith(incomplete):
            yield entry.name


def _nodes(session: str | None, verb: str | None, incomplete: str) -> Iterator[str]:
    from oellm_autoexp.cli.finding import find_session
    from oellm_autoexp.core.hostlist import expand

    _, state = find_session(session)
    found = sorted({**state.nodes.by_user, **state.nodes.evidence})
    if verb == "exclude":
        lists = {attempt.nodes for job in state.jobs.values() for attempt in job.attempts}
        found = sorted({node for text in lists for node in expand(text)} - state.nodes.by_user.keys())
    yield from (name for name in found if name.startswith(incomplete))


def _fault_models(config_dir: Path | str | None, incomplete: str) -> Iterator[str]:
    from oellm_autoexp.services.rehearse import fault_models

    names = fault_models([Path(config_dir)] if config_dir else [])
    yield from (name for name in names if name.startswith(incomplete))


def _jobs(session: str | None, incomplete: str) -> Iterator[str]:
    from oellm_autoexp.cli.finding import find_session

    _, state = find_session(session)
    yield from (name for name in state.jobs if name.startswith(incomplete))
