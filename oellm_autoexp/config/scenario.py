"""A scenario of the fake cluster: a YAML file, read into the dataclasses that its player brings.

Times are numbers of seconds, or text with a unit: 90s, 15min, 36h, 7d.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from compoconf import parse_config

from oellm_autoexp.config import files, yaml_loader
from oellm_autoexp.config.typed import faults_of
from oellm_autoexp.errors import ConfigError, Fault

T = TypeVar("T")

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)", re.ASCII)
_HINT = "a time is a number of seconds, or has a unit: 90s, 15min, 36h, 7d"
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def load(path: Path, kind: type[T]) -> T:
    """A scenario file as `kind`, a dataclass of dataclasses.

    Raises:
        ConfigError: every mistake in the file, with its line.
    """
    if not path.is_file():
        raise ConfigError(Fault(what="there is no such scenario", key="scheduler.scenario", value=str(path)))
    try:
        return parse(yaml_loader.load(path), kind)
    except ConfigError as error:
        faults = (fault if fault.file else files.placed(fault, path) for fault in error.faults)
        raise ConfigError(*faults) from error.__cause__


def parse(data: Mapping[str, Any], kind: type[T]) -> T:
    """A plain mapping as `kind`.

    Raises:
        ConfigError: every mistake in it.
    """
    plain = _timed(kind, data)
    faults = [
        replace(
            fault,
            key=fault.key.lstrip("."),
            hint=fault.hint or (_HINT if fault.what.startswith("must be a number") else ""),
        )
        for fault in faults_of(kind, plain, "")
    ]
    if faults:
        raise ConfigError(*faults)
    parsed: T = parse_config(kind, plain, strict_types=True)
    return parsed


def _timed(annotation: Any, value: Any) -> Any:
    """The value with its times in seconds: where a number is wanted, a text with a unit will do."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for option in options:
        if is_dataclass(option) and isinstance(option, type) and isinstance(value, Mapping):
            hints = get_type_hints(option)
            names = {item.name for item in fields(option)}
            return {key: _timed(hints[key], item) if key in names else item for key, item in value.items()}
        inner = get_args(option)
        if inner and isinstance(value, Mapping):
            return {key: _timed(inner[-1], item) for key, item in value.items()}
        if inner and isinstance(value, Sequence) and not isinstance(value, str):
            return [_timed(inner[0], item) for item in value]
        if option is float and isinstance(value, str):
            match = _TIME.fullmatch(value.strip())
            if match:
                return float(match[1]) * _UNITS[match[2]]
    return value
