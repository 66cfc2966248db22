"""From what a person typed to the session that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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


def state_dir_of(reference: str) -> Path:
    """The state directory that a config names."""
    from oellm_autoexp.services import plan as service

    return service.load(reference, scheduler="local").paths.state_dir
