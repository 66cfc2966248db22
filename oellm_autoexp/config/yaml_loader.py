"""The one YAML dialect: 1e-3 is a float, 24:00:00 and 2024-01-01 and 0123 are text, no key stands twice.

Other readers of YAML 1.1 take 24:00:00 for 86400 and 0123 for 83; where such a text is written without
quotes it is a `Bare`, so that a place that needs certainty can refuse it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from oellm_autoexp.errors import ConfigError, Fault

#: Leading zeros, and numbers to the base 60. Source: yaml.org/type/int.html, yaml.org/type/float.html.
_AMBIGUOUS = re.compile(
    r"[-+]?(?:0[0-9_]*[0-9]|[1-9][0-9_]*(?::[0-5]?[0-9])+|[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*)", re.ASCII
)
_ESCAPES = "in double quotes a backslash is YAML's own: put patterns and paths in single quotes"
_QUOTE = "put texts with ${…}, {…}, `: `, `#`, `*` or `%` in quotes"


class Bare(str):
    """A text without quotes that other readers of YAML take for a number."""


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2, floats as OmegaConf reads them. `faults` are gathered while it goes on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[tuple[yaml.Mark, str, str]] = []

    def fault(self, node: yaml.Node, what: str, hint: str = "") -> None:
        self.faults.append((node.start_mark, what, hint))


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def _text(_loader: _Loader, node: yaml.ScalarNode) -> str:
    value = str(node.value)
    return Bare(value) if node.style is None and _AMBIGUOUS.fullmatch(value) else value


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    try:
        return int(node.value.replace("_", ""))
    except ValueError:  # CPython's limit on digits
        loader.fault(node, f"the number has {len(node.value)} digits", "quote it to make it text")
        return str(node.value)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(yaml.SafeLoader.construct_yaml_float(loader, node))
    if not math.isfinite(value):
        what = "is too large for a number" if node.value[-1].isdigit() else "is not a number to count with"
        loader.fault(node, f"`{node.value}` {what}", "quote it to make it text")
    return value


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    _check_keys(loader, node)
    loader.flatten_mapping(node)
    return {
        str(loader.construct_object(key, deep=True)): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


def _check_keys(loader: _Loader, node: yaml.MappingNode) -> None:
    """What is merged by `<<` may be given again; what is written twice may not."""
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            loader.fault(key_node, "a key must be text", _QUOTE)
        elif key_node.tag == "tag:yaml.org,2002:merge":
            continue
        elif key_node.tag != "tag:yaml.org,2002:str":
            kind = key_node.tag.rpartition(":")[2]
            hint = f'write "{key_node.value}": in quotes'
            loader.fault(key_node, f"the key `{key_node.value}` is not text but {kind}", hint)
        else:
            first = seen.get(key_node.value)
            if first is not None:
                what = f"the key `{key_node.value}` stands twice (first in line {first})"
                loader.fault(key_node, what, "keep one of the two")
            seen.setdefault(key_node.value, key_node.start_mark.line + 1)


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text: str, file: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: with file, line and a repair; every key that stands twice or is no text.
    """
    loader = None
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error, text, file)) from None
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ConfigError(Fault(what=f"not YAML: {_short(str(error))}", file=file, line=line)) from None
    except RecursionError:
        raise ConfigError(Fault(what="is nested too deep", file=file)) from None
    finally:
        if loader is not None:
            loader.dispose()
    if loader.faults:
        raise ConfigError(
            *(Fault(what=what, hint=hint, file=file, line=at.line + 1) for at, what, hint in loader.faults)
        )
    return value


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Fault:
    mark, lines = error.problem_mark or error.context_mark, text.splitlines()
    if error.context_mark and mark and mark.line >= len(lines):
        mark = error.context_mark  # What was never closed is where it was opened, not at the end.
    line = min(mark.line + 1, len(lines)) if mark else 0
    written = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    what, hint = _short(str(error.problem or error)), ""
    if "unknown escape character" in what or "escape sequence" in what:
        hint = _ESCAPES
    elif re.search(r"(?<![\"'\w])\$\{", written) and "[" in written + "{":
        what = f"`${{…}}` must be quoted within […] or {{…}} ({what})"
        hint = 'write "${lr}" with quotes'
    elif "'\\t'" in what:
        hint = "indent with spaces, not with tabs"
    elif "found undefined alias" in what or "cannot start any token" in what:
        hint = _QUOTE
    elif "mapping values are not allowed" in what:
        hint = "put a text with `: ` in quotes, and check the indentation"
    elif "could not determine a constructor" in what:
        hint = "leave the `!tag` out"
    elif "expected" in what:
        hint = f"{_QUOTE}; check brackets and indentation"
    return Fault(what=f"not YAML: {what}", value=written[:200], file=file, line=line, hint=hint)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def load(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty one.

    Raises:
        ConfigError: it does not exist, cannot be read, or is no mapping.
    """
    value = parse(read(path), str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        what = "must be a mapping of sections"
        raise ConfigError(Fault(what=what, file=str(path), line=1, hint="begin with `project: {name: …}`"))
    return value


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(Fault(what=f"cannot be read: {error.strerror}", file=str(path))) from None
    except UnicodeDecodeError:
        raise ConfigError(Fault(what="is not UTF-8 text", file=str(path))) from None


def scalar(text: str) -> Any:
    """The value of a text that stands alone, as on a command line: no `#`, `: ` or quotes are special.

    >>> scalar("1e-3"), scalar("true"), scalar("24:00:00"), scalar("a: b"), scalar("")
    (0.001, True, '24:00:00', 'a: b', '')
    """
    if not text:
        return ""
    loader = _Loader("")
    tag: str = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag.endswith(":merge"):
        return text
    node = yaml.ScalarNode(tag=tag, value=text, start_mark=loader.get_mark())
    try:
        value = loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
    if loader.faults:
        raise ConfigError(Fault(what=loader.faults[0][1], hint=loader.faults[0][2]))
    return str(value) if isinstance(value, str) else value


def implicit_resolvers() -> Mapping[str, Sequence[tuple[str, re.Pattern[str]]]]:
    """What this dialect takes for more than text, by first character: for those who write it."""
    return _Loader.yaml_implicit_resolvers


def tree(text: str) -> yaml.Node | None:
    """The nodes of a YAML text with their places; None where it is broken."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return None
