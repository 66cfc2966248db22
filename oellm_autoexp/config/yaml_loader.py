"""The one YAML dialect: 1e-3 is a float, 24:00:00 and 2024-01-01 and 0123 are text, no key stands twice."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from oellm_autoexp.errors import ConfigError, Fault


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, as OmegaConf reads floats; Slurm's times and accounts stay text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*"
        r"(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        _tag, re.compile(rf"^(?:{_pattern})$"), list(_first) + ([""] if _pattern[-1] == "|" else [])
    )


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(yaml.SafeLoader.construct_yaml_float(loader, node))
    if math.isinf(value) and "inf" not in node.value.lower():
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is too large", node.start_mark)
    return value


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            hint = f'write "{key_node.value}": in quotes' if isinstance(key_node, yaml.ScalarNode) else ""
            what = f"the key {key!r} is not text; {hint}"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        if key in out:
            what = f"the key {key!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text: str, file: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: with file, line and a repair.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        what = error.problem or str(error)
        hint = ""
        if "escape character" in what:
            hint = "in double quotes a backslash is YAML's own: put patterns in single quotes"
        elif "found unexpected" in what or "did not find expected" in what or "expected ',' or" in what:
            hint = 'put values with ${…}, {…}, ": " or "#" in quotes'
        raise ConfigError(Fault(what=what, file=file, line=line, hint=hint)) from error
    except yaml.YAMLError as error:
        raise ConfigError(Fault(what=str(error), file=file)) from error


def load(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: it does not exist, cannot be read, or is no mapping.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(Fault(what=f"cannot be read: {error.strerror}", file=str(path))) from error
    except UnicodeDecodeError as error:
        raise ConfigError(Fault(what="is not UTF-8 text", file=str(path))) from error
    value = parse(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(Fault(what="must be a mapping of sections", file=str(path), line=1))
    return value


def line_of(text: str, key: str) -> int:
    """The line (from 1) where a dotted key stands, or the nearest parent of it; 0 when none does."""
    node = yaml.compose(text, Loader=_Loader)
    line, rest = 0, key
    while rest and isinstance(node, (yaml.MappingNode, yaml.SequenceNode)):
        if isinstance(node, yaml.SequenceNode):
            head, _, rest = rest.partition(".")
            if not head.isdigit() or int(head) >= len(node.value):
                break
            node = node.value[int(head)]
            line = node.start_mark.line + 1
            continue
        found = [pair for pair in node.value if rest == pair[0].value or rest.startswith(f"{pair[0].value}.")]
        if not found:
            break
        key_node, node = max(found, key=lambda pair: len(pair[0].value))
        line = key_node.start_mark.line + 1
        rest = rest[len(key_node.value) + 1 :]
    return line
