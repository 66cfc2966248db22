"""The typed sections of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compoconf import parse_config

from oellm_autoexp.config.sockets import (
    ActionConfig,
    BackendConfig,
    ConditionConfig,
    MonitorConfig,
    RestartPolicyConfig,
    SchedulerConfig,
)


@dataclass(kw_only=True)
class ProjectConfig:
    """`confirm_gpu_hours`: a plan that may use more asks before it is submitted; null: never."""

    name: str
    base_output_dir: str = "./outputs"
    state_dir: str | None = None
    group: str | None = None
    confirm_gpu_hours: float | None = 100.0
    resume: bool = True

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name must be a word that can be part of a path, got {self.name!r}")


@dataclass(kw_only=True)
class SlurmConfig:
    """What a job asks of the scheduler and how its script looks."""

    template_path: str | None = None
    script_dir: str | None = None
    log_dir: str | None = None
    array: bool = False
    submit_cmd: str = "sbatch"
    squeue_cmd: str = "squeue"
    cancel_cmd: str = "scancel"
    launcher_cmd: str | list[str] | None = None
    launcher_env_passthrough: bool = False
    srun_opts: str | list[str] | None = None
    srun: dict[str, Any] = field(default_factory=dict)
    sbatch: dict[str, Any] = field(default_factory=dict)
    sbatch_overrides: dict[str, Any] = field(default_factory=dict)
    sbatch_extra_directives: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    env_file: str | None = None
    export: str | None = None
    client: dict[str, Any] = field(default_factory=dict)
    test_only: bool = False

    def __post_init__(self) -> None:
        for name in ("time", "account", "partition"):
            for section in (self.sbatch, self.sbatch_overrides):
                value = section.get(name)
                if value is not None and not isinstance(value, str):
                    raise ValueError(f'sbatch.{name} must be text: write {name}: "{value}"')


@dataclass(kw_only=True)
class JobConfig:
    """What gates and ends a job. A condition is the name of an entry of `conditions`, or written in place."""

    start_condition: Any = None
    cancel_condition: Any = None
    finish_condition: Any = None
    start_condition_cmd: str | None = None
    start_condition_interval_seconds: float | None = None
    termination_string: str | None = None
    termination_command: str | None = None
    inactivity_threshold_seconds: float | None = None


@dataclass(kw_only=True)
class RootConfig:
    """A whole config, for one point."""

    project: ProjectConfig
    backend: BackendConfig | None = None
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    monitoring: MonitorConfig | None = None
    restart_policies: dict[str, RestartPolicyConfig] = field(default_factory=dict)
    actions: dict[str, ActionConfig] = field(default_factory=dict)
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)
    job: JobConfig = field(default_factory=JobConfig)
    scheduler: SchedulerConfig | None = None
    plugins: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class RulesConfig:
    """The sections that say how a job is watched and what follows; they travel in the journal."""

    monitoring: MonitorConfig | None = None
    restart_policies: dict[str, Any] = field(default_factory=dict)
    actions: dict[str, ActionConfig] = field(default_factory=dict)
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)
    job: JobConfig = field(default_factory=JobConfig)
    #: The raw log signals, by name.
    log_signals: dict[str, Any] = field(default_factory=dict)

    def policies(self, in_force: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        """The restart policies by error mode, defaults included."""
        entries = in_force(self.restart_policies)
        parsed: _Policies = parse_config(_Policies, {"entries": dict(entries)}, strict_types=True)
        return parsed.entries

    def either(self, name: str) -> Any:
        """A lifecycle key of the job, or of its monitor."""
        own = getattr(self.job, name, None)
        return own if own is not None else getattr(self.monitoring, name, None)


@dataclass(kw_only=True)
class _Policies:
    entries: dict[str, RestartPolicyConfig] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Condition:
    entry: ConditionConfig


def parse_rules(config: Mapping[str, Any]) -> RulesConfig:
    """The rules mapping of the journal as typed sections."""
    raw = {key: value for key, value in config.items() if value}
    signals = dict((raw.get("monitoring") or {}).get("log_signals") or {})
    parsed: RulesConfig = parse_config(RulesConfig, {**raw, "log_signals": signals}, strict_types=True)
    return parsed


def parse_condition(config: Mapping[str, Any]) -> Any:
    """A condition that was written in place."""
    parsed: _Condition = parse_config(_Condition, {"entry": dict(config)}, strict_types=True)
    return parsed.entry
