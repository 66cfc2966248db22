"""An experiment's config from JSON or a mapping, with the standard library alone: containers have no more.

The orchestrator reads the same keys with `config.experiments`; a test holds the two together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.errors import ConfigurationError, Fault, ValidationError, did_you_mean

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")

#: Other spellings, as everywhere.
_ALIASES = {"trainer": "training"}


def read_file(path: Path) -> ExperimentConfig:
    """The experiment in a JSON file, or in a YAML file where PyYAML is installed.

    Raises:
        ConfigurationError: it cannot be read.
        ValidationError: what it says cannot be; every mistake of one level at a time.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(Fault(what=f"cannot be read: {error.strerror}", file=str(path))) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(Fault(what=f"is no text in UTF-8: {error}", file=str(path))) from None
    return read_text(text, str(path), yaml=path.suffix in (".yaml", ".yml"))


def read_text(text: str, source: str, *, yaml: bool = False) -> ExperimentConfig:
    """The same from text; `source` is what errors name."""
    try:
        data = _yaml(text, source) if yaml else json.loads(text)
    except json.JSONDecodeError as error:
        fault = Fault(what=f"is no JSON: {error.msg}", file=source, line=error.lineno)
        raise ConfigurationError(fault) from None
    return experiment(data)


def _yaml(text: str, source: str) -> Any:
    from importlib import import_module

    try:
        yaml = import_module("yaml")
    except ImportError:
        hint = "pip install pyyaml, or write the config as JSON"
        raise ConfigurationError(Fault(what="PyYAML is not installed", file=source, hint=hint)) from None
    # PyYAML takes 1e-4 for text, for want of a dot.
    reader = type("Reader", (yaml.SafeLoader,), {})
    reader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))  # type: ignore[attr-defined]
    try:
        return yaml.load(text, reader)
    except yaml.YAMLError as error:
        raise ConfigurationError(Fault(what=f"is no YAML: {error}", file=source)) from None


def experiment(data: Any) -> ExperimentConfig:
    """An experiment from a mapping.

    Raises:
        ValidationError: the mistakes, with their keys.
    """
    if isinstance(data, Mapping):
        data = {_ALIASES.get(key, key): value for key, value in data.items()}
        training = data.get("training")
        if isinstance(training, Mapping) and "batch_size" in training:
            rest = {key: value for key, value in training.items() if key != "batch_size"}
            given = data.get("data") or {}
            if isinstance(given, Mapping):
                given = {"batch_size": training["batch_size"], **given}
            data = {**data, "training": rest, "data": given}
    made: ExperimentConfig = _part(ExperimentConfig, data, "")
    return made


def _part(kind: Any, data: Any, key: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValidationError(Fault(key=key, what=f"must be a mapping, not {data!r:.50}"))
    hints, own = get_type_hints(kind), {each.name for each in fields(kind)}
    open_part = getattr(kind, "_non_strict", False)
    faults: list[Fault] = []
    given: dict[str, Any] = {}
    for name, value in data.items():
        place = f"{key}.{name}" if key else str(name)
        if name in own:
            try:
                given[name] = _value(hints[name], value, place)
            except ValidationError as error:
                faults += error.faults
        elif open_part:
            given[name] = value
        else:
            faults.append(Fault(key=place, what="unknown key", hint=did_you_mean(str(name), own)))
    if faults:
        raise ValidationError(*faults)
    try:
        return kind(**given)
    except (ValueError, TypeError) as error:
        raise ValidationError(Fault(key=key, what=str(error))) from None


def _value(hint: Any, value: Any, key: str) -> Any:
    for choice in _choices(hint):
        origin = get_origin(choice)
        if choice is Any or (choice is NoneType and value is None):
            return value
        if origin is Literal and value in get_args(choice):
            return value
        if isinstance(choice, type) and issubclass(choice, Enum):
            if value in [each.value for each in choice]:
                return choice(value)
            if isinstance(value, str) and value in choice.__members__:
                return choice[value]
        elif is_dataclass(choice) and isinstance(value, Mapping):
            return _part(choice, value, key)
        elif origin is tuple and isinstance(value, (list, tuple)):
            inner = get_args(choice)[0]
            return tuple(_value(inner, each, f"{key}.{number}") for number, each in enumerate(value))
        elif origin is dict and isinstance(value, Mapping):
            return dict(value)
        elif choice is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif type(value) is choice:
            return value
    raise ValidationError(Fault(key=key, what=f"must be {_shown(hint)}, got {value!r:.100}"))


def _choices(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            yield from _choices(each)
    else:
        yield hint


def _shown(hint: Any) -> str:
    names = []
    for choice in _choices(hint):
        if get_origin(choice) is Literal:
            names += [repr(each) for each in get_args(choice)]
        elif isinstance(choice, type) and issubclass(choice, Enum):
            names += [repr(each.value) for each in choice]
        elif choice is NoneType:
            names.append("null")
        else:
            names.append(
                getattr(choice, "__name__", str(choice)) if get_origin(choice) is None else str(choice)
            )
    return " or ".join(names)
