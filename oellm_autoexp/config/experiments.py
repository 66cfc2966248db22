"""Experiments from mappings and files, and back: every mistake is refused with its key and a suggestion."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from compoconf import parse_config

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.config.typed import faults_of, shown
from oellm_autoexp.core.experiment import ExperimentConfig, plain
from oellm_autoexp.core.symbols import OPEN
from oellm_autoexp.errors import ConfigError, ConfigurationError, Fault, ValidationError, did_you_mean
from oellm_autoexp.sweep.scalars import kind_of

HINTS: Mapping[str, Any] = get_type_hints(ExperimentConfig)
#: Other spellings of sections and keys.
ALIASES: Mapping[str, str] = {"trainer": "training", "training.batch_size": "data.batch_size"}
SUFFIXES = (".yaml", ".yml", ".json")
_ROOT = "experiment"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")
#: `$NAME` with backslashes before it, of which the last one goes.
_ESCAPED_VARIABLE = re.compile(r"\\*\$[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"(\\*)\$\{")
#: How many parts `Variations` keeps for the next config that has the same.
_KEPT = 4096


# ---------------------------------------------------------------- from mappings


def experiment(config: Mapping[str, Any] | ExperimentConfig) -> ExperimentConfig:
    """A mapping as an experiment; what is left out has its default.

    Raises:
        ValidationError: every mistake, with its key and a repair.
    """
    if isinstance(config, ExperimentConfig):
        return config
    data = _undiscriminated(ExperimentConfig, canonical(config))
    found = list(faults_of(ExperimentConfig, data, _ROOT))
    if not found:
        try:
            made: ExperimentConfig = parse_config(ExperimentConfig, data, strict_types=True)
            return made
        except (ValueError, TypeError, KeyError) as error:
            found = [Fault(key=_ROOT, what=str(error.args[0]) if error.args else type(error).__name__)]
    raise ValidationError(*(replace(fault, key=_within(fault.key), hint=_better(fault)) for fault in found))


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with other spellings replaced. It shares nothing with the one given.

    Raises:
        ValidationError: it is no mapping with texts as keys, or a key stands in two spellings.
    """
    if not isinstance(config, Mapping):
        raise ValidationError(Fault(what=f"a config must be a mapping, not a {kind_of(config)}"))
    _check_plain(config, "")
    data: dict[str, Any] = plain(config)
    for alias, key in ALIASES.items():
        section, _, name = alias.rpartition(".")
        parent = data.get(section) if section else data
        if not isinstance(parent, dict) or name not in parent:
            continue
        value = parent.pop(name)
        target, _, last = key.rpartition(".")
        home = data.setdefault(target, {}) if target else data
        if not isinstance(home, dict):
            continue
        if last in home and not (isinstance(home[last], dict) and isinstance(value, dict)):
            raise ValidationError(
                Fault(key=alias, what=f"is another spelling of `{key}`, which is given too")
            )
        home[last] = {**home[last], **value} if last in home else value
    return data


def _check_plain(value: Any, key: str, depth: int = 0) -> None:
    if depth > 50:
        raise ValidationError(Fault(key=key[:200], what="is nested too deep, or contains itself"))
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValidationError(Fault(key=key, what=f"the key {name!r:.200} is not text"))
            _check_plain(item, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_plain(item, f"{key}.{number}", depth + 1)


class _Undiscriminated(dict[str, Any]):
    """A mapping in which `class_name` is a key like others; compoconf would look for such a class."""

    def __contains__(self, key: object) -> bool:
        return key != "class_name" and super().__contains__(key)


def _undiscriminated(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with the mappings that compoconf itself reads so marked; what they hold stays as it is."""
    hints = get_type_hints(cls)
    made = _Undiscriminated(data)
    for name, value in data.items():
        if isinstance(value, Mapping) and name in hints:
            inner = _part(hints[name])
            made[name] = _undiscriminated(inner, value) if inner else _Undiscriminated(value)
    return made


def _within(key: str) -> str:
    return "" if key == _ROOT else key.removeprefix(f"{_ROOT}.")


def _better(fault: Fault) -> str:
    """For a key without its section, the key with it."""
    key = _within(fault.key)
    if fault.what == "unknown key" and "." not in key and not fault.hint.startswith("did you mean"):
        return did_you_mean(key, known_keys())
    return fault.hint


def known_keys() -> list[str]:
    """Every key that an experiment may have, dotted."""
    return list(_keys(ExperimentConfig, ""))


def _keys(cls: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    for each in fields(cls):
        inner = _part(hints[each.name])
        if inner is not None:
            yield f"{prefix}{each.name}"
            yield from _keys(inner, f"{prefix}{each.name}.")
        elif each.name != "extras":
            yield f"{prefix}{each.name}"


def _part(hint: Any) -> type | None:
    """The dataclass that an annotation stands for, if any."""
    for each in (hint, *get_args(hint)):
        if isinstance(each, type) and is_dataclass(each):
            return each
    return None


class Variations:
    """Makes experiments that differ from a base in some keys; what is equal is shared, since it is frozen."""

    def __init__(self, base: ExperimentConfig) -> None:
        self.base = base
        self._fields = vars(base)
        self._plain = base.to_dict()
        self._parts: dict[tuple[str, str], Any] = {}
        self._names: dict[str, tuple[str, tuple[str, ...]]] = {}

    def check(self, keys: Sequence[str]) -> None:
        """Refuse keys that no experiment has.

        Raises:
            ValidationError: every one of them, with a suggestion; two that mean the same.
        """
        faults = []
        seen: dict[tuple[str, tuple[str, ...]], str] = {}
        for key in keys:
            place = section, inner = self._place(key)
            other = seen.setdefault(place, key)
            if section not in HINTS:
                faults.append(Fault(key=key, what="unknown key", hint=did_you_mean(key, known_keys())))
            elif section == "experiment_name":
                hint = "the name of each experiment is made from the base's"
                faults.append(Fault(key=key, what="cannot be swept", hint=hint))
            elif other != key:
                faults.append(Fault(key=key, what=f"means the same as `{other}`", hint="keep one of the two"))
            elif inner and _part(HINTS[section]) is None and section != "custom_params":
                faults.append(Fault(key=key, what=f"`{section}` has no keys below it"))
        if faults:
            raise ValidationError(*faults)

    def made(self, values: Mapping[str, Any], name: str) -> ExperimentConfig:
        """The experiment with these values at their dotted keys, and a name of its own.

        Raises:
            ValidationError: a key that does not exist, a value that it does not take.
        """
        by_section: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
        for key, value in values.items():
            section, inner = self._place(key)
            by_section.setdefault(section, []).append((inner, value))
        changes = {section: self._section(section, given) for section, given in by_section.items()}
        try:
            return ExperimentConfig(**{**self._fields, **changes, "experiment_name": name})
        except (ValueError, TypeError) as error:
            raise ValidationError(Fault(what=str(error))) from None

    @staticmethod
    def place(key: str) -> tuple[str, ...]:
        """Where a key stands, in whichever spelling it is given."""
        section, dot, rest = key.partition(".")
        renamed = ALIASES.get(section, section) + dot + rest
        return tuple(ALIASES.get(renamed, renamed).split("."))

    def _place(self, key: str) -> tuple[str, tuple[str, ...]]:
        found = self._names.get(key)
        if found is None:
            section, *inner = self.place(key)
            found = self._names[key] = (section, tuple(inner))
        return found

    def _section(self, section: str, given: Sequence[tuple[tuple[str, ...], Any]]) -> Any:
        wanted = (section, repr(given))
        found = self._parts.get(wanted)
        if found is None:
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            found = self._parts[wanted] = self._parsed(section, given)
        return found

    def _parsed(self, section: str, given: Sequence[tuple[tuple[str, ...], Any]]) -> Any:
        if section not in HINTS:
            key = ".".join((section, *given[0][0]))
            raise ValidationError(Fault(key=key, what="unknown key", hint=did_you_mean(key, known_keys())))
        data = copy.deepcopy(self._plain.get(section))
        for inner, value in given:
            _check_plain(value, section)
            data = _set(data, inner, plain(value), section)
        part = _part(HINTS[section])
        if part is not None and isinstance(data, Mapping):
            data = _undiscriminated(part, data)
        faults = list(faults_of(HINTS[section], data, section))
        if not faults:
            try:
                return parse_config(HINTS[section], data, strict_types=True, key_history=section)
            except (ValueError, TypeError, KeyError) as error:
                faults = [Fault(key=section, what=str(error.args[0]) if error.args else type(error).__name__)]
        raise ValidationError(*faults)


def _set(data: Any, inner: Sequence[str], value: Any, key: str) -> Any:
    """The data with a value set at a path; mappings are made on the way."""
    if not inner:
        return value
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ValidationError(
            Fault(key=f"{key}.{inner[0]}", what=f"`{key}` is a {kind_of(data)}, not a mapping")
        )
    data[inner[0]] = _set(data.get(inner[0]), inner[1:], value, f"{key}.{inner[0]}")
    return data


# ---------------------------------------------------------------- files


#: Where PyYAML has libyaml, that writes the same at a fraction of the cost.
_Fastest: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Fastest):  # type: ignore[misc]
    """Quotes every text that some reader of YAML would take for something else."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: [*resolvers, *yaml_loader.implicit_resolvers().get(first, ())]
    for first, resolvers in {
        **{first: [] for first in yaml_loader.implicit_resolvers()},
        **yaml.SafeDumper.yaml_implicit_resolvers,
    }.items()
}


def to_yaml(data: Any) -> str:
    """Plain data as YAML without tags."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False)
    return text


def dumped(config: Mapping[str, Any] | ExperimentConfig, format: str) -> str:
    """A config as the text of a file: `yaml` or `json`.

    Raises:
        ConfigurationError: another format, or a value that no such file can hold.
    """
    data = config.to_dict() if isinstance(config, ExperimentConfig) else plain(config)
    if format not in ("yaml", "json"):
        hint = did_you_mean(format, ("yaml", "json"))
        raise ConfigurationError(Fault(what=f"there is no format `{format}`", hint=hint))
    _check_plain(data, "")
    try:
        text = as_json(escaped(data))
        return to_yaml(escaped(data)) if format == "yaml" else text
    except yaml.YAMLError as error:
        raise ConfigurationError(Fault(what=f"cannot be saved: {error}"[:300])) from None


def as_json(data: Any) -> str:
    """Plain data as JSON, its texts as they are.

    Raises:
        ConfigurationError: a value that JSON does not have.
    """
    _check_plain(data, "")
    try:
        text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        text.encode()
        return text
    except (ValueError, TypeError) as error:
        raise ConfigurationError(Fault(what=f"cannot be saved: {error}"[:300])) from None


def escaped(value: Any) -> Any:
    """Plain data whose texts mean themselves where references are resolved."""
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped(item) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if _ESCAPED_VARIABLE.fullmatch(value):
        return f"\\{value}"
    return _REFERENCE.sub(lambda found: f"{found[1] * 2}\\${{", value)


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds.

    Raises:
        ConfigurationError: it cannot be read, with the line.
    """
    try:
        if path.suffix != ".json":
            return yaml_loader.load(path)
        return _json(yaml_loader.read(path), path)
    except ConfigError as error:
        raise ConfigurationError(*error.faults) from None


def _json(text: str, path: Path) -> dict[str, Any]:
    def refuse(name: str) -> Any:
        raise ConfigurationError(Fault(what=f"`{name}` is not a number to count with", file=str(path)))

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg}"
        raise ConfigurationError(Fault(what=what, file=str(path), line=error.lineno)) from None
    except (RecursionError, ValueError) as error:
        raise ConfigurationError(Fault(what=f"not JSON: {error}"[:200], file=str(path))) from None
    if not isinstance(value, dict):
        what = f"must be a mapping of sections, not a {kind_of(value)}"
        raise ConfigurationError(Fault(what=what, file=str(path), line=1))
    return value


def resolved(data: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The config with its references resolved, by the same rules as in every config.

    A value that is `${NAME}` or `$NAME` as a whole is that of the environment where the config has no such
    key; `$NAME` that is not set stays as it is.

    Raises:
        ConfigurationError: a reference that leads nowhere; a secret, which no file may hold.
    """
    # What reads references takes a tenth of a second to import.
    from oellm_autoexp.config.tree import Tree

    try:
        tree = Tree(_with_environment(data, data), environment=environment)
        found = _plain(tree.folded)
    except ConfigError as error:
        raise ConfigurationError(*error.faults) from None
    for key, value in _texts(found, ""):
        if OPEN in value:
            what, hint = (
                "refers to a secret, which no config may hold",
                "read it in the program that needs it",
            )
            raise ConfigurationError(Fault(key=key, what=what, value=shown(value), hint=hint))
    made: dict[str, Any] = found
    return made


def _with_environment(value: Any, root: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_environment(item, root) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_environment(item, root) for item in value]
    found = _VARIABLE.fullmatch(value) if isinstance(value, str) else None
    if found is None and isinstance(value, str) and _ESCAPED_VARIABLE.fullmatch(value):
        return value[1:]
    if found is None or (found[1] and found[1] in root):
        return value
    if found[2]:
        return f"${{oc.env:{found[2]},'{value}'}}"
    return f"${{oc.env:{found[1]}}}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{key}.{number}")
    elif isinstance(value, str):
        yield key, value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs: mappings are merged, everything else of `over` replaces what stands in `base`."""
    made = dict(base)
    for key, value in over.items():
        there = made.get(key)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        made[key] = merged(there, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return made


def with_value(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A config with a value at a dotted key.

    Raises:
        ValidationError: something on the way is no mapping.
    """
    made: dict[str, Any] = _set(copy.deepcopy(dict(config)), key.split("."), value, "config")
    return made
