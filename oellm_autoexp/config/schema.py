"""The typed sections of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compoconf import parse_config

from oellm_autoexp.config.sockets import (
    ActionConfig,
    BackendConfig,
    ConditionConfig,
    MonitorConfig,
    RestartPolicyConfig,
    SchedulerConfig,
)

#: Options of sbatch(1) that are text even where they look like a number.
TEXT_OPTIONS = frozenset(
    {"time", "time-min", "account", "partition", "qos", "reservation", "begin", "deadline", "constraint"}
)
#: Keys that hold a path: relative ones start at the file that they stand in.
PATHS = (
    ("project", "base_output_dir"),
    ("project", "state_dir"),
    ("slurm", "script_dir"),
    ("slurm", "log_dir"),
    ("slurm", "template_path"),
    ("slurm", "env_file"),
    ("scheduler", "scenario"),
)
#: The same within sections of plug-ins, of named entries (`*`), and at any depth (`**`).
ENTRY_PATHS = (
    ("backend", "cwd"),
    ("actions", "*", "cwd"),
    ("actions", "*", "path"),
    ("conditions", "**", "path"),
    ("conditions", "**", "pattern"),
    ("job", "**", "path"),
    ("job", "**", "pattern"),
)
#: Those of them that must exist.
FILES = (("slurm", "template_path"), ("slurm", "env_file"))
DEFAULT_BASE_OUTPUT_DIR = "./outputs"
#: Error modes that are one key, though they hold a dot.
FINER_MODES = ("crash.oom", "crash.nan", "crash.node_failure", "crash.config", "crash.lost")


#: Source: sbatch(1).
_SHORT_OPTIONS = {
    "A": "account",
    "B": "extra-node-info",
    "C": "constraint",
    "D": "chdir",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "I": "immediate",
    "J": "job-name",
    "L": "licenses",
    "M": "clusters",
    "N": "nodes",
    "O": "overcommit",
    "Q": "quiet",
    "S": "core-spec",
    "W": "wait",
    "a": "array",
    "b": "begin",
    "c": "cpus-per-task",
    "d": "dependency",
    "e": "error",
    "i": "input",
    "k": "no-kill",
    "m": "distribution",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "s": "oversubscribe",
    "t": "time",
    "v": "verbose",
    "w": "nodelist",
    "x": "exclude",
}


def option(name: str) -> str:
    """An option by its long name, as sbatch(1) spells it.

    >>> option("gpus_per_node"), option("t")
    ('gpus-per-node', 'time')
    """
    return _SHORT_OPTIONS.get(name, name.replace("_", "-"))


@dataclass(kw_only=True)
class ProjectConfig:
    """`base_output_dir` holds the jobs' directories, `state_dir` (null: in it) the session's journal.

    `group`: a Unix group, of which you are a member, that may read the state. `confirm_gpu_hours`: a plan
    that may use more asks before it is submitted; null: never. `git_isolation`: jobs run from a working tree
    of their own, at the commit that they were planned from, detached or on a branch; null: from yours.
    `git_dirty`: whether uncommitted changes are refused, or recorded and put into that tree. `resume` is
    accepted and has no effect: a session always goes on.
    """

    name: str
    base_output_dir: str = DEFAULT_BASE_OUTPUT_DIR
    state_dir: str | None = None
    group: str | None = None
    confirm_gpu_hours: float | None = 100.0
    git_isolation: Literal["worktree", "branch"] | None = None
    git_dirty: Literal["refuse", "record"] = "refuse"
    resume: bool = True

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name or not self.name.isprintable():
            raise ValueError(f"name must be a word that can be part of a path, got {self.name!r}")
        if not self.base_output_dir:
            raise ValueError("base_output_dir is empty: write `.` for the directory of the config")
        if self.confirm_gpu_hours is not None and self.confirm_gpu_hours < 0:
            raise ValueError(f"confirm_gpu_hours must not be negative, got {self.confirm_gpu_hours}")


@dataclass(kw_only=True)
class SlurmConfig:
    """What a job asks of the scheduler, and how its script looks.

    `sbatch` and `srun` hold options by their long names (with `-` or `_`); `sbatch_overrides` win over
    `sbatch`. `launcher_cmd` stands before the command; `launcher_env_passthrough` hands `environment` on to
    it as `--env` options. `setup` are lines of shell before the command; `env_file` is read in the job.
    `client: {class_name: …}` is another way to write `scheduler: {class_name: …}`: it says which Slurm.
    """

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
    test_only: bool = False


@dataclass(kw_only=True)
class JobConfig:
    """What gates and ends a job. A condition is the name of an entry of `conditions`, or written in place.

    Each of these may be swept, with or without `job.` before it where no other section has the name.
    """

    start_condition: ConditionConfig | str | None = None
    cancel_condition: ConditionConfig | str | None = None
    finish_condition: ConditionConfig | str | None = None
    start_condition_cmd: str | None = None
    start_condition_interval_seconds: float | None = None
    termination_string: str | None = None
    termination_command: str | None = None
    inactivity_threshold_seconds: float | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        not_negative(self)


def not_negative(config: Any) -> None:
    """Refuse negative times.

    Raises:
        ValueError: names the field.
    """
    for name, value in vars(config).items():
        if name.endswith("_seconds") and isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"{name} must not be negative, got {value:g}")


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


def parse_rules(config: Mapping[str, Any]) -> RulesConfig:
    """The rules mapping of the journal as typed sections."""
    raw = {key: value for key, value in config.items() if value}
    signals = dict((raw.get("monitoring") or {}).get("log_signals") or {})
    parsed: RulesConfig = parse_config(RulesConfig, {**raw, "log_signals": signals}, strict_types=True)
    return parsed
