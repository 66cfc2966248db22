"""What Tab offers for sessions and jobs. It never fails and never prints: that would spoil the typed line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import typer


def sessions(incomplete: str) -> list[str]:
    """Names of sessions that can be seen; where none fits, the shell offers files."""
    return _quietly(lambda: _sessions(incomplete))


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the jobs of the session that was typed before."""
    return _quietly(lambda: _jobs(ctx.params.get("session"), incomplete))


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


def _jobs(session: str | None, incomplete: str) -> Iterator[str]:
    from oellm_autoexp.cli.finding import find_session

    _, state = find_session(session)
    yield from (name for name in state.jobs if name.startswith(incomplete))
