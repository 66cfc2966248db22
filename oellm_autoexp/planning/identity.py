"""What makes a job the same job: the content hash of what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.core.latest import Latest
from oellm_autoexp.errors import ConfigError, Fault

#: Part of every id: a new recipe gives every job a new id, so it changes only with a migration.
RECIPE = 1

#: What `job.*` means while an id is made: a job is the same wherever it writes.
SYMBOLIC_JOB: Mapping[str, str] = {
    "name": "${job.name}",
    "output_dir": "${job.output_dir}",
    "checkpoint_dir": "${job.checkpoint_dir}",
    "log_path": "${job.log_path}",
    "attempt": symbols.reference(symbols.ATTEMPT_VARIABLE),
}

#: Sections that say how a job is watched and what follows its end: they change no id and reach no backend.
LIFECYCLE = ("job", "monitoring", "restart_policies", "actions", "conditions", "scheduler")
#: Names of per-job lifecycle keys that a sweep may use without their section.
LIFECYCLE_ALIASES = frozenset(
    {
        "start_condition_cmd",
        "start_condition_interval_seconds",
        "termination_string",
        "termination_command",
        "inactivity_threshold_seconds",
    }
)


def canonical(value: Any) -> str:
    """One text for equal plain values, whatever the order of their keys.

    Raises:
        ConfigError: a number that is infinite or none.
    """
    try:
        return _encoder().encode(value)
    except ValueError:
        raise ConfigError(
            Fault(what="holds a number that is infinite or not a number", hint="quote it to make it text")
        ) from None


@cache
def _encoder() -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


#: The longest part of most ids is the same object at most points.
_environment = Latest(canonical)


def job_id(
    parameters: Mapping[str, Any],
    backend: Any,
    environment: Mapping[str, Any],
    source: str = "",
    parents: Mapping[str, str] | None = None,
) -> str:
    """The id of a job: 12 hexadecimal digits.

    `parameters` are the point's resolved values, `backend` the resolved section as it was written (not the
    parsed one: a default that a release adds changes no id), `environment` that of `slurm.environment`,
    `source` the key of an isolated source, `parents` the ids of the jobs that it waits for, by their stages;
    without these the id is that of the other three.

    Raises:
        ConfigError: a number that is infinite or none.
    """
    # The text of `canonical([RECIPE, parameters, backend, environment])`.
    text = f"[{RECIPE},{canonical(parameters)},{canonical(backend)},{_environment(environment)}]{source}"
    if parents:
        text += canonical(parents)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity_of(
    values: Mapping[str, Any],
    symbolic: Mapping[str, Any],
    directory: Path,
    source: str,
    parents: Mapping[str, str],
) -> str:
    """The id of a point's job by its values and its config, with its places and siblings left open.

    It stays the same where its project is moved, or has another path on another host.

    Raises:
        ConfigError: a number that is infinite or none.
    """
    parameters = {key: value for key, value in values.items() if not is_lifecycle(key)}
    environment = (symbolic.get("slurm") or {}).get("environment") or {}
    backend: Any = symbolic.get("backend")
    cwd = backend.get("cwd") if isinstance(backend, Mapping) else None
    if isinstance(cwd, str) and Path(cwd).is_relative_to(directory):
        backend = {**backend, "cwd": str(Path(cwd).relative_to(directory))}
    return job_id(parameters, backend, environment, source, parents)


def is_lifecycle(key: str) -> bool:
    """Whether a swept key says how a job is watched, not what it computes."""
    return key in LIFECYCLE_ALIASES or key.partition(".")[0] in LIFECYCLE


def digest(value: Any) -> str:
    """An identity of a plain value: 16 hexadecimal digits of its content hash."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
