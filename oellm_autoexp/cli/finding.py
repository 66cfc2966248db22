"""From what a person typed to the session that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.errors import UsageError


def find_session(reference: str | None) -> Any:
    """The paths and the state of the session that a person means."""
    from oellm_autoexp.services import session as service

    paths = service.locate(reference, state_dir_of)
    return paths, service.replay(paths)


def find_history(reference: str | None) -> Any:
    """The paths and the history of the session that a person means."""
    from oellm_autoexp.services import session as service

    paths = service.locate(reference, state_dir_of)
    return paths, service.history(paths)


def find_jobs(paths: Any, state: Any, words: Sequence[str] | None) -> Any:
    """The jobs of a session that words mean; all for none.

    Raises:
        UsageError: a word that means no job; says so where it means one that was only generated.
    """
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services.collections import places as collections

    try:
        return service.chosen(state, words or [])
    except UsageError:
        waiting = collections.unsubmitted(paths, state.jobs)
        name = next((word for word in words or () if word in waiting), None)
        if name is None:
            raise
        hint = f"oellm-autoexp submit --collection {paths.state_dir.parent}"
        raise UsageError(f"{name} was generated, and not submitted yet", hint=hint) from None


def state_dir_of(reference: str) -> Path:
    """The state directory that a config names."""
    from oellm_autoexp.services import plan as service

    return service.load(reference, scheduler="local").paths.state_dir
