"""Any command as a backend, and one that only shows what it was given."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from compoconf import ConfigInterface, register

from oellm_autoexp.backends.base import BackendJobSpec, BaseBackend, LaunchCommand, environment, words
from oellm_autoexp.errors import ConfigError, Fault


@dataclass(kw_only=True)
class CommandBackendConfig(ConfigInterface):
    """`command`: the words of the command, or a text that is split as a shell would (nothing is expanded).

    `environment`: variables for the command; `cwd`: where it runs (None: where it was planned).
    """

    command: list[Any] | str = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    cwd: str | None = None


@register
class CommandBackend(BaseBackend):
    """Runs a command as it is written."""

    config: CommandBackendConfig
    config_class = CommandBackendConfig
    reads_parameters = False

    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:  # noqa: ARG002 - the config says it
        config = self.config
        command = config.command
        argv = _split(command) if isinstance(command, str) else words(command, "backend.command")
        if not argv or not argv[0]:
            hint = "write `command: [python, train.py, …]`"
            raise ConfigError(Fault(key="backend.command", what="names no program", hint=hint))
        variables = environment(config.environment, "backend.environment")
        return LaunchCommand(argv=argv, environment=variables, cwd=config.cwd)


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        what = f"cannot be split into words: {error}"
        hint = "write it as a list, one word an item"
        raise ConfigError(Fault(key="backend.command", what=what, value=command, hint=hint)) from None


@dataclass(kw_only=True)
class NullBackendConfig(ConfigInterface):
    """`base_command` is followed by the point's values as `--key=value` and then by `extra_cli_args`."""

    base_command: list[Any] = field(default_factory=lambda: ["echo"])
    extra_cli_args: list[Any] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)


@register
class NullBackend(BaseBackend):
    """Trains nothing: shows what a job would be given."""

    config: NullBackendConfig
    config_class = NullBackendConfig

    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
        config = self.config
        given = {key: value for key, value in spec.parameters.items() if value is not None}
        shown = environment(given, "sweep")
        return LaunchCommand(
            argv=[
                *words(config.base_command, "backend.base_command"),
                *(f"--{key}={text}" for key, text in shown.items()),
                *words(config.extra_cli_args, "backend.extra_cli_args"),
            ],
            environment=environment(config.environment, "backend.environment"),
        )
