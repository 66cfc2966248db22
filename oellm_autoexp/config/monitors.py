"""How jobs are watched: the monitors and their log signals, as a config writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from compoconf import ConfigInterface, register

from oellm_autoexp.config.schema import not_negative
from oellm_autoexp.config.sockets import MonitorInterface


@dataclass(kw_only=True)
class LogSignalConfig:
    """One rule: a pattern in a log, and what a match means. See `core.signals.SignalRule`.

    `match`: "once", "every", or how many matches of an attempt count (null: once for a signal that only
    names a mode, else every). `metrics`: named groups that go to the job's series (true: all of them);
    `counter`: the group whose high-water mark is progress. `grace_seconds`: after this long a live attempt
    with the signal's error mode is ended; null: the signal only explains the end.
    """

    pattern: str
    pattern_type: Literal["regex", "substring", "report"] = "regex"
    action: str | list[str] | None = None
    mode: str | None = None
    match: str | int | None = None
    priority: int = 0
    files: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    extract_groups: dict[str, str] = field(default_factory=dict)
    types: dict[str, Literal["int", "float", "str"]] = field(default_factory=dict)
    metrics: bool | list[str] = field(default_factory=list)
    counter: str | None = None
    grace_seconds: float | None = 30.0

    def __post_init__(self) -> None:
        not_negative(self)
        if isinstance(self.match, str) and self.match not in ("once", "every"):
            raise ValueError(f"match must be once, every or a number, got {self.match!r}")
        if isinstance(self.match, int) and self.match < 1:
            raise ValueError(f"match must be at least 1, got {self.match}")


@dataclass(kw_only=True)
class SlurmLogMonitorConfig(ConfigInterface):
    """Times are seconds; null leaves them to the scheduler's default, or switches the rule off.

    `poll_interval_seconds`: between two questions to the scheduler (the shortest of all live jobs counts).
    `check_interval_seconds`: between two looks at the logs; one goes with each answer of the scheduler.
    """

    poll_interval_seconds: float | None = None
    check_interval_seconds: float | None = None
    #: Silence, or a declared counter standing still, for this long is a stall. "auto": learned from the job
    #: itself, once it has been seen to get ahead for an hour; never less than half an hour.
    inactivity_threshold_seconds: float | Literal["auto"] | None = None
    progress_threshold_seconds: float | None = None
    #: No stall before this much of an attempt has passed.
    startup_grace_seconds: float = 900.0
    termination_string: str | None = None
    termination_command: str | None = None
    log_path_template: str | None = None
    output_paths: list[str] = field(default_factory=list)
    start_condition_cmd: str | None = None
    start_condition_interval_seconds: float | None = None
    log_signals: dict[str, LogSignalConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        not_negative(self)


@register
class SlurmLogMonitor(MonitorInterface):
    """Watches the log of each job and its `output_paths`."""

    config: SlurmLogMonitorConfig
    config_class = SlurmLogMonitorConfig


@dataclass(kw_only=True)
class NullMonitorConfig(ConfigInterface):
    """Nothing to configure."""


@register
class NullMonitor(MonitorInterface):
    """Watches nothing: only the scheduler says what becomes of a job."""

    config: NullMonitorConfig
    config_class = NullMonitorConfig
