"""Where a plan came from: config, overrides, code, interpreter and versions. Secrets are not in it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.store.source import state

#: What decides how a config becomes a plan.
_DEPENDENCIES = ("oellm-autoexp", "compoconf", "hydra-core", "omegaconf", "jinja2", "pyyaml")
REDACTED = "(secret)"


def provenance(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    directory: Path | None = None,
    unused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A JSON object that says what was planned from. The same inputs give the same object.

    `config` is the resolved config, `directory` where the code is looked for (None: not looked for), `unused`
    are variables of the shell that somebody may have meant for the jobs.
    """
    return {
        **({"unused": redacted(unused)} if unused else {}),
        "config": redacted(config),
        "overrides": [redacted_override(text) for text in overrides],
        "git": state(directory) if directory is not None else {},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "versions": versions(),
    }


def redacted(value: Any, name: str = "") -> Any:
    """A plain copy in which the values of secret names are replaced and references are shown as `${NAME}`."""
    if isinstance(value, Mapping):
        return {str(key): redacted(inner, str(key).rpartition(".")[2]) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(inner, name) for inner in value]
    if isinstance(value, str):
        shown = symbols.shown(value)
        hidden = value and shown == value and symbols.is_secret(name)
        return REDACTED if hidden else shown
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def redacted_override(text: str) -> str:
    """`key=value` without the value of a secret."""
    key, sign, value = text.partition("=")
    name = key.rpartition(".")[2]
    return f"{key}{sign}{redacted(value, name)}"


def versions() -> dict[str, str]:
    """The versions of what makes plans."""
    found = {}
    for name in _DEPENDENCIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
