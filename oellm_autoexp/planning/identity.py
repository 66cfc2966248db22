"""What makes a job the same job: the content hash of what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
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
    parameters: Mapping[str, Any], backend: Any, environment: Mapping[str, Any], source: str = ""
) -> str:
    """The id of a job: 12 hexadecimal digits.

    `parameters` are the point's resolved values, `backend` the resolved section as it was written (not the
    parsed one: a default that a release adds changes no id), `environment` that of `slurm.environment`,
    `source` the key of an isolated source; without one the id is that of the other three.

    Raises:
        ConfigError: a number that is infinite or none.
    """
    # The text of `canonical([RECIPE, parameters, backend, environment])`.
    text = f"[{RECIPE},{canonical(parameters)},{canonical(backend)},{_environment(environment)}]{source}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest(value: Any) -> str:
    """An identity of a plain value: 16 hexadecimal digits of its content hash."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
