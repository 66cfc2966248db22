"""What is done when a log signal is found, or when something happened to a job or the session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compoconf import ConfigInterface, register

from oellm_autoexp.config.sockets import (
    ActionInterface,
    AppendText,
    Deed,
    EndJob,
    PostJson,
    RestartJob,
    RunCommand,
)
from oellm_autoexp.core.model import Scalar
from oellm_autoexp.reactions.fields import fill, fill_command, names

#: Happenings that an action may name in `on`, beside the signals that name the action.
OCCASIONS = (
    "job_started",
    "job_succeeded",
    "job_failed",
    "job_cancelled",
    "job_restarted",
    "session_ended",
    "blind",
)


@dataclass(kw_only=True)
class ActionBaseConfig(ConfigInterface):
    """`on`: happenings that fire the action too, beside the signals that name it."""

    on: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = [occasion for occasion in self.on if occasion not in OCCASIONS]
        if unknown:
            raise ValueError(f"on: {unknown[0]!r} is not one of {', '.join(OCCASIONS)}")


@dataclass(kw_only=True)
class CommandActionConfig(ActionBaseConfig):
    """`command` is a shell command (values are quoted for it) or an argv.

    `timeout_seconds`: the command is ended after this; None: never.
    `on_interrupt`: what a run that died with its machine counts as. `retries`: tries after a non-zero exit.
    """

    command: str | list[str]
    timeout_seconds: float | None = 3600.0
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    on_interrupt: Literal["retry", "stop"] = "retry"
    retries: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.command:
            raise ValueError("command is empty")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be positive, got {self.timeout_seconds}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, got {self.retries}")


@register
class CommandAction(ActionInterface):
    """Run a command on this machine, once per occurrence, with a log of its own."""

    config: CommandActionConfig
    config_class = CommandActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        return RunCommand(
            command=fill_command(self.config.command, fields),
            timeout_s=self.config.timeout_seconds,
            environment=self.config.environment,
            cwd=self.config.cwd,
            on_interrupt=self.config.on_interrupt,
            retries=self.config.retries,
        )

    def placeholders(self) -> frozenset[str]:
        return names(self.config.command)


@dataclass(kw_only=True)
class AppendActionConfig(ActionBaseConfig):
    """`text` gets a newline at its end if it has none."""

    path: str
    text: str


@register
class AppendAction(ActionInterface):
    """Append a line to a file."""

    config: AppendActionConfig
    config_class = AppendActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        text = fill(self.config.text, fields)
        return AppendText(
            path=fill(self.config.path, fields), text=text if text.endswith("\n") else text + "\n"
        )

    def placeholders(self) -> frozenset[str]:
        return names([self.config.path, self.config.text])


@dataclass(kw_only=True)
class EndActionConfig(ActionBaseConfig):
    """`message` is the reason that a person reads."""

    message: str = ""


@dataclass(kw_only=True)
class CancelActionConfig(EndActionConfig):
    """Why the job is cancelled."""


@register
class CancelAction(ActionInterface):
    """Cancel the job; it stays cancelled."""

    config: CancelActionConfig
    config_class = CancelActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        why = fill(self.config.message, fields) or "a log signal asked for it"
        return EndJob(mode="cancelled", why=why)

    def placeholders(self) -> frozenset[str]:
        return names(self.config.message)


@dataclass(kw_only=True)
class FinishActionConfig(EndActionConfig):
    """Why the job is done."""


@register
class FinishAction(ActionInterface):
    """End the job as a success."""

    config: FinishActionConfig
    config_class = FinishActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        why = fill(self.config.message, fields) or "a log signal says that it is done"
        return EndJob(mode="success", why=why)

    def placeholders(self) -> frozenset[str]:
        return names(self.config.message)


@dataclass(kw_only=True)
class RestartActionConfig(EndActionConfig):
    """`mode` names the policy that is asked and whose budget is charged."""

    mode: str = "crash"


@register
class RestartAction(ActionInterface):
    """End the attempt; the policy of `mode` decides what follows."""

    config: RestartActionConfig
    config_class = RestartActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        why = fill(self.config.message, fields) or "a log signal asked for a restart"
        return RestartJob(mode=self.config.mode, why=why)

    def placeholders(self) -> frozenset[str]:
        return names(self.config.message)


@dataclass(kw_only=True)
class NotifyActionConfig(ActionBaseConfig):
    """Tell somebody: a `command`, or a POST of a JSON object to `url`; exactly one of the two."""

    command: str | list[str] | None = None
    url: str | None = None
    message: str = "{project}: {job} {state}: {reason}"
    timeout_seconds: float = 30.0
    on: list[str] = field(default_factory=lambda: ["job_failed", "session_ended", "blind"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.command is None) == (self.url is None):
            raise ValueError("give either command or url")


@register
class NotifyAction(ActionInterface):
    """Tell somebody when a job failed, the session ended, or the scheduler cannot be reached."""

    config: NotifyActionConfig
    config_class = NotifyActionConfig

    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        message = fill(self.config.message, fields)
        everything = {**fields, "message": message}
        if self.config.command is not None:
            command = fill_command(self.config.command, everything)
            return RunCommand(command=command, timeout_s=self.config.timeout_seconds, on_interrupt="stop")
        assert self.config.url is not None
        return PostJson(url=self.config.url, body=everything, timeout_s=self.config.timeout_seconds)

    def placeholders(self) -> frozenset[str]:
        texts = [self.config.message]
        if isinstance(self.config.command, str):
            texts.append(self.config.command)
        elif self.config.command is not None:
            texts.extend(self.config.command)
        return names(texts) - {"message"}
