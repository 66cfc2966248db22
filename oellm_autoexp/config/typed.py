"""From plain mappings to typed sections, and every mistake on the way.

compoconf parses; it stops at the first mistake, reports it as text, and takes an entry without `class_name`
for the first class that fits. So what is refused, and in which words, is found here: by walking the same
annotations beside the data.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from compoconf import parse_config
from compoconf.compoconf import Registry

from oellm_autoexp.config.nodes import DYNAMIC
from oellm_autoexp.config.schema import RootConfig
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean, nearest
from oellm_autoexp.sweep.scalars import kind_of

#: What a person calls a type.
_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
#: What `__post_init__` of a config may raise for a value that it refuses.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)

HINTS: Mapping[str, Any] = get_type_hints(RootConfig)


def parse_section(name: str, value: Any) -> Any:
    """A section of the root as its typed config.

    Raises:
        ConfigError: every mistake in it.
    """
    annotation = HINTS[name]
    try:
        return parse_config(annotation, value, strict_types=True, key_history=name)
    except _REFUSALS as error:
        faults = list(faults_of(annotation, value, name))
        raise ConfigError(*(faults or [Fault(key=name, what=_told(error))])) from error


def plugin_class(socket: type, name: str) -> Any:
    """The class that is registered at a socket.

    Raises:
        KeyError: there is none of that name.
    """
    return Registry.get_class(socket, name)  # type: ignore[arg-type]


def faults_of(annotation: Any, value: Any, key: str) -> Iterator[Fault]:
    """Every way in which a value does not fit an annotation. Values that only a point knows always fit."""
    if annotation is Any or is_open(value):
        return
    options = _options(annotation)
    if value is None and any(option in (None, type(None), Any) for option in options):
        return
    configs = [option for option in options if getattr(option, "class_name", None)]
    if configs and isinstance(value, Mapping):
        yield from _plugin(configs, value, key)
    elif is_dataclass(annotation) and isinstance(annotation, type):
        yield from _dataclass(annotation, value, key)
    elif len(options) > 1:
        yield from _union(options, value, key)
    else:
        yield from _plain(annotation, value, key)


def is_open(value: Any) -> bool:
    """Whether a value is not known yet: it differs between points, or is still to be resolved."""
    return value is DYNAMIC or (isinstance(value, str) and "${" in value)


def _options(annotation: Any) -> Sequence[Any]:
    """The members of a union, of compoconf's lazy ones too."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [each for member in get_args(annotation) for each in _options(member)]
    for name in ("__constraints__", "__args__"):
        if get_origin(annotation) is None and hasattr(annotation, name):
            return tuple(getattr(annotation, name))
    return (annotation,)


# ---------------------------------------------------------------- one kind after the other


def _plugin(configs: Sequence[Any], value: Mapping[str, Any], key: str) -> Iterator[Fault]:
    by_name = {config.class_name: config for config in configs}
    name = value.get("class_name")
    if is_open(name):
        return
    if name is None:
        what = "class_name is missing"
        hint = "add `class_name: …`, one of " + ", ".join(sorted(by_name))
        yield Fault(key=key, what=what, hint=hint)
    elif not isinstance(name, str) or name not in by_name:
        what = f"there is no class {shown(name)} for this section"
        near = nearest(str(name), by_name)
        known = ", ".join(sorted(by_name))
        hint = f"did you mean `{near}`? Known here: {known}" if near else f"known here: {known}"
        hint += "; a class of your own must be named under `plugins`"
        yield Fault(key=f"{key}.class_name", what=what, value=shown(name), hint=hint)
    else:
        rest = {inner: item for inner, item in value.items() if inner != "class_name"}
        yield from _dataclass(by_name[name], rest, key)


def _dataclass(cls: Any, value: Any, key: str) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield _mismatch((dict,), value, key)
        return
    hints = get_type_hints(cls)
    known = [item for item in fields(cls) if item.init and item.name != "class_name"]
    names = [item.name for item in known]
    count = 0
    meant = set()
    for name in value:
        if name not in names and not getattr(cls, "_non_strict", False):
            count += 1
            meant.add(nearest(name, names))
            hint = did_you_mean(name, names)
            yield Fault(key=f"{key}.{name}", what="unknown key", value=shown(value[name]), hint=hint)
    for item in known:
        if item.name in value:
            for fault in faults_of(hints[item.name], value[item.name], f"{key}.{item.name}"):
                count += 1
                yield fault
        elif item.default is MISSING and item.default_factory is MISSING and item.name not in meant:
            count += 1
            yield Fault(key=key, what=f"`{item.name}` is missing", hint=f"add `{item.name}: …`")
    if not count and not any(_has_open(item) for item in value.values()):
        yield from _refused(cls, value, key, names)


def _refused(cls: Any, value: Mapping[str, Any], key: str, names: Sequence[str]) -> Iterator[Fault]:
    """What the class itself has to say of values that are each of the right type."""
    try:
        parse_config(cls, value, strict_types=True)
    except ConfigError as error:
        yield from error.faults
    except _REFUSALS as error:
        said = _told(error)
        first = said.split(maxsplit=1)[0].strip(":`'\"") if said else ""
        if first in names:
            what = said.split(maxsplit=1)[1] if " " in said else said
            yield Fault(key=f"{key}.{first}", what=what, value=shown(value.get(first)))
        else:
            yield Fault(key=key, what=said)


def _union(options: Sequence[Any], value: Any, key: str) -> Iterator[Fault]:
    wanted = [option for option in options if option is not type(None)]
    if Any in wanted:
        return
    outcomes = [list(faults_of(option, value, key)) for option in wanted]
    if any(not outcome for outcome in outcomes):
        return
    # The member that got further than its own kind is the one that was meant.
    deeper = [outcome for outcome in outcomes if any(fault.key != key for fault in outcome)]
    yield from deeper[0] if deeper else outcomes[0] if len(outcomes) == 1 else [_mismatch(wanted, value, key)]


def _plain(annotation: Any, value: Any, key: str) -> Iterator[Fault]:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        yield from _literal(arguments, value, key)
    elif origin in (list, tuple, set, frozenset) or origin is Sequence:
        if not isinstance(value, (list, tuple)):
            yield _mismatch((list,), value, key)
        elif arguments:
            for number, item in enumerate(value):
                yield from faults_of(arguments[0], item, f"{key}.{number}")
    elif origin is dict or origin is Mapping:
        if not isinstance(value, Mapping):
            yield _mismatch((dict,), value, key)
        elif arguments:
            for name, item in value.items():
                yield from faults_of(arguments[1], item, f"{key}.{name}")
    elif origin in (str, int, float, bool):
        fits = isinstance(value, bool) if origin is bool else _is_number_or_text(origin, value)
        if not fits:
            yield _mismatch((origin,), value, key)
    elif isinstance(origin, type):
        try:
            parse_config(annotation, value, strict_types=True)
        except _REFUSALS as error:
            choices = ", ".join(each.name for each in origin) if issubclass(origin, Enum) else ""
            what = f"must be one of {choices}" if choices else _told(error)
            yield Fault(key=key, what=what, value=shown(value))


def _literal(choices: Sequence[Any], value: Any, key: str) -> Iterator[Fault]:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        names = [str(choice) for choice in choices]
        near = nearest(str(value), names)
        hint = f"did you mean `{near}`?" if near else ""
        yield Fault(key=key, what=f"must be one of {', '.join(names)}", value=shown(value), hint=hint)


def _is_number_or_text(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


# ---------------------------------------------------------------- words


def _mismatch(wanted: Sequence[Any], value: Any, key: str) -> Fault:
    kinds = [get_origin(option) or option for option in wanted]
    words = " or ".join(dict.fromkeys(_WORDS.get(kind, "a mapping") for kind in kinds))
    fraction = isinstance(value, float) and int in kinds
    what = f"must be {words}, not {'a fraction' if fraction else _a(kind_of(value))}"
    return Fault(key=key, what=what, value=shown(value), hint=_repair(kinds, value))


def _a(kind: str) -> str:
    return kind if kind in ("null", "text") else f"a {kind}"


def _repair(kinds: Sequence[Any], value: Any) -> str:
    if value is None:
        return "give it a value, or leave the key out if it has a default"
    if str in kinds and isinstance(value, (int, float)):
        return f'write it in quotes: "{shown(value)}"'
    if bool in kinds and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return "write `true`" if value.lower() in ("yes", "on") else "write `false`"
    if isinstance(value, str) and any(kind in (int, float, bool) for kind in kinds):
        return "write it without quotes" if _number_like(value) else ""
    if list in kinds and not isinstance(value, Mapping):
        return f"write `[{shown(value)}]`"
    return ""


def _number_like(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _has_open(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_open(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_open(item) for item in value)
    return is_open(value)


def shown(value: Any) -> str:
    """A value for a message, cut to a bounded length."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(_named(value))[:200]


def _named(value: Any) -> Any:
    """The value with what it refers to by name, at any depth: within a list, Python would show the marks."""
    if isinstance(value, Mapping):
        return {_named(key): _named(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(item) for item in value]
    return symbols.shown(value) if isinstance(value, str) else value


def _told(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    # Others quote values as Python writes them, which is with the marks of references as escapes.
    for mark in (symbols.OPEN, symbols.CLOSE):
        text = text.replace(ascii(mark)[1:-1], mark)
    return " ".join(symbols.shown(text).split())[:400]
