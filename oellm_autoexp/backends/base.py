"""What a backend is written against.

    from compoconf import register
    from oellm_autoexp.backends.base import BaseBackend, BackendJobSpec, LaunchCommand

    @register
    class ExampleBackend(BaseBackend):
        config: ExampleConfig

        def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
            return LaunchCommand(argv=["python", "train.py"], environment={})

Named under `plugins:` or by an entry point of the group `oellm_autoexp.plugins`, it is selected by its
class name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oellm_autoexp.config.sockets import BackendInterface, BackendJobSpec, LaunchCommand
from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.sweep.scalars import format_scalar

__all__ = ["BackendJobSpec", "BaseBackend", "LaunchCommand", "environment", "words"]


class BaseBackend(BackendInterface):
    """The base of backends: it keeps its config and finds nothing to refuse."""


def words(values: Iterable[Any], key: str) -> list[str]:
    """The words of an argv, with the one text of each value. `key` is the config key they come from.

    Raises:
        ConfigError: null, a mapping, or a list within a list.
    """
    given = list(values)
    try:
        return [format_scalar(value) for value in given]
    except ValueError:
        return [_text(value, f"{key}.{number}") for number, value in enumerate(given)]


def environment(values: Mapping[str, Any], key: str) -> dict[str, str]:
    """The values of an environment as text.

    Raises:
        ConfigError: a value without a text.
    """
    return {name: _text(value, f"{key}.{name}") for name, value in values.items()}


def _text(value: Any, key: str) -> str:
    try:
        return format_scalar(value)
    except ValueError as error:
        raise ConfigError(Fault(key=key, what=str(error))) from None
