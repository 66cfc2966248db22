"""What a job script is rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oellm_autoexp.core.model import Scalar


@dataclass(frozen=True, kw_only=True)
class ScriptRequest:
    """Everything a job script is rendered from; nothing that differs between attempts."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    #: Variables set before `environment`, none of which is in it; one object for all jobs that have the same.
    shared_environment: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    cwd: str | None = None
    #: Resolved `slurm` section: sbatch, launcher_cmd, srun, … (plain mappings).
    slurm: Mapping[str, Any] = field(default_factory=dict)
    #: Static AUTOEXP_* variables.
    job_environment: Mapping[str, str] = field(default_factory=dict)
    guard_path: str = ""
    #: The point's values, for templates of users.
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
