"""Gates for the start, the cancel and the finish of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compoconf import ConfigInterface, register

from oellm_autoexp.config.sockets import (
    AllOf,
    AnyOf,
    Check,
    CommandCheck,
    ConditionConfig,
    ConditionInterface,
    FileCheck,
    MetricCheck,
    Not,
    SignalCheck,
    made,
)
from oellm_autoexp.core.model import Scalar
from oellm_autoexp.reactions.fields import fill, fill_command


@dataclass(kw_only=True)
class CommandConditionConfig(ConfigInterface):
    """`command`: a shell command, or an argv (a list); `{name}`, `{output_dir}`, … are filled in."""

    command: str | list[str]
    timeout_seconds: float = 60.0


@register
class CommandCondition(ConditionInterface):
    """Holds when the command prints `1`, or exits 0 and prints nothing."""

    config: CommandConditionConfig
    config_class = CommandConditionConfig

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        command = fill_command(self.config.command, fields)
        return CommandCheck(command=command, timeout_s=self.config.timeout_seconds)


@dataclass(kw_only=True)
class FileExistsConditionConfig(ConfigInterface):
    path: str


@register
class FileExistsCondition(ConditionInterface):
    """Holds while the path exists."""

    config: FileExistsConditionConfig
    config_class = FileExistsConditionConfig

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        return FileCheck(pattern=_escape(fill(self.config.path, fields)))


@dataclass(kw_only=True)
class GlobConditionConfig(ConfigInterface):
    pattern: str
    at_least: int = 1


@register
class GlobCondition(ConditionInterface):
    """Holds while at least `at_least` paths match (`*`, `?`, `[…]`, and `**` for directories)."""

    config: GlobConditionConfig
    config_class = GlobConditionConfig

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        # What a value holds is itself; only the config's own stars stand for anything.
        literal = {
            name: _escape(value) if isinstance(value, str) else value for name, value in fields.items()
        }
        return FileCheck(pattern=fill(self.config.pattern, literal), at_least=self.config.at_least)


@dataclass(kw_only=True)
class SignalConditionConfig(ConfigInterface):
    """`signal`: a log signal by its name. `sibling`: the stage of the job that is meant; null: its own."""

    signal: str
    sibling: str | None = None


@register
class SignalCondition(ConditionInterface):
    """Holds once the signal was found."""

    config: SignalConditionConfig
    config_class = SignalConditionConfig

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        return SignalCheck(job=_job(self.config.sibling, fields), signal=self.config.signal)


@dataclass(kw_only=True)
class MetricConditionConfig(ConfigInterface):
    """`metric`: a metric or a counter by its name; it is to be `at_least` or `at_most` so much.

    `sibling`: the stage of the job that is meant; null: its own.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    sibling: str | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a MetricCondition has one of at_least and at_most")


@register
class MetricCondition(ConditionInterface):
    """Holds once the metric has been that high, or that low."""

    config: MetricConditionConfig
    config_class = MetricConditionConfig

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        config = self.config
        return MetricCheck(
            job=_job(config.sibling, fields),
            metric=config.metric,
            at_least=config.at_least,
            at_most=config.at_most,
        )


def _job(stage: str | None, fields: Mapping[str, Scalar]) -> str:
    """The job that is meant; "" where there is none."""
    return str(fields.get("name" if stage is None else f"sibling.{stage}") or "")


def _escape(path: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


@dataclass(kw_only=True)
class AllConditionConfig(ConfigInterface):
    conditions: list[ConditionConfig] = field(default_factory=list)


@register
class AllCondition(ConditionInterface):
    """Holds when every one holds."""

    config: AllConditionConfig
    config_class = AllConditionConfig

    def __init__(self, config: AllConditionConfig) -> None:
        super().__init__(config)
        self._conditions = [made(ConditionInterface, entry) for entry in config.conditions]

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        return AllOf(checks=tuple(condition.check(fields) for condition in self._conditions))


@dataclass(kw_only=True)
class AnyConditionConfig(ConfigInterface):
    conditions: list[ConditionConfig] = field(default_factory=list)


@register
class AnyCondition(ConditionInterface):
    """Holds when at least one holds."""

    config: AnyConditionConfig
    config_class = AnyConditionConfig

    def __init__(self, config: AnyConditionConfig) -> None:
        super().__init__(config)
        self._conditions = [made(ConditionInterface, entry) for entry in config.conditions]

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        return AnyOf(checks=tuple(condition.check(fields) for condition in self._conditions))


@dataclass(kw_only=True)
class NotConditionConfig(ConfigInterface):
    condition: ConditionConfig


@register
class NotCondition(ConditionInterface):
    """Holds when the other is known not to hold."""

    config: NotConditionConfig
    config_class = NotConditionConfig

    def __init__(self, config: NotConditionConfig) -> None:
        super().__init__(config)
        self._condition = made(ConditionInterface, config.condition)

    def check(self, fields: Mapping[str, Scalar]) -> Check:
        return Not(check=self._condition.check(fields))
