"""Where a job's files are: directories, script, logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import label

#: Stands for the attempt's number in the path of a log.
ATTEMPT = "{attempt}"

# `${job.name}` is still symbolic where places are found, since a job's places are part of what it means.
_FIELD = re.compile(r"\$\{job\.([^{}]*)\}|\{([^{}]*)\}")
_SLURM_FIELD = re.compile(r"%[0-9]*[a-zA-Z]")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the files of a session's jobs go. All paths are absolute; `log_template` may be None."""

    base_output_dir: Path
    script_dir: Path
    log_dir: Path
    log_template: str | None = None
    output_paths: tuple[str, ...] = ()

    def of(self, name: str, project: str, parameters: Mapping[str, Any]) -> JobPlaces:
        """The places of one job.

        Raises:
            ConfigError: a name that is a directory of ours, a template that names what does not exist.
        """
        if name in RESERVED_JOB_NAMES:
            what = f"`{name}` is the name of a directory of ours"
            raise ConfigError(Fault(key="sweep.name_template", what=what, hint="give the jobs other names"))
        output_dir = f"{self.base_output_dir}/{name}"
        fields = {
            **parameters,
            "project": project,
            "name": name,
            "job_name": name,
            "output_dir": output_dir,
            "checkpoint_dir": f"{output_dir}/checkpoints",
            "log_dir": str(self.log_dir),
            "attempt": ATTEMPT,
        }
        return JobPlaces(
            output_dir=output_dir,
            checkpoint_dir=f"{output_dir}/checkpoints",
            script_path=f"{self.script_dir}/{name}.sbatch",
            log_path=self._log_path(name, fields),
            output_paths=tuple(
                str(Path(output_dir, _filled(path, fields, f"monitoring.output_paths.{number}")))
                for number, path in enumerate(self.output_paths)
            ),
        )

    def _log_path(self, name: str, fields: Mapping[str, Any]) -> str:
        if self.log_template is None:
            return f"{self.log_dir}/{name}.{ATTEMPT}.log"
        key = "monitoring.log_path_template"
        if _SLURM_FIELD.search(self.log_template):
            hint = "write {name} and {attempt}: the path must be known before Slurm gives an id"
            what = "has a pattern of Slurm's"
            raise ConfigError(Fault(key=key, what=what, value=self.log_template, hint=hint))
        path = _filled(self.log_template, fields, key)
        if "/" not in path:
            path = f"{self.log_dir}/{path}"
        if ATTEMPT not in path:
            # One log for each attempt: a restart neither overwrites nor continues the log it followed.
            whole = Path(path)
            path = str(whole.with_name(f"{whole.stem}.{ATTEMPT}{whole.suffix}"))
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlaces:
    """The places of one job; `log_path` holds `{attempt}`."""

    output_dir: str
    checkpoint_dir: str
    script_path: str
    log_path: str
    output_paths: tuple[str, ...] = ()

    def facts(self, name: str) -> dict[str, str]:
        """What `${job.…}` means in the config of this job."""
        attempt = symbols.reference(symbols.ATTEMPT_VARIABLE)
        return {
            "name": name,
            "output_dir": self.output_dir,
            "checkpoint_dir": self.checkpoint_dir,
            "log_path": self.log_path.replace(ATTEMPT, attempt),
            "attempt": attempt,
        }


def _filled(template: str, fields: Mapping[str, Any], key: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in fields:
            what = f"unknown placeholder `{match.group()}`"
            raise ConfigError(Fault(key=key, what=what, value=template, hint=did_you_mean(name, fields)))
        return label(fields[name])

    return _FIELD.sub(value, template)
