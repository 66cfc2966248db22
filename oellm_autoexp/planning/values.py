"""Values that programs and functions of a person's give, as a file of JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.sweep.scalars import kind_of


def plain(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Values of a program or a function as they come back from a file of JSON: tuples are lists.

    Raises:
        ConfigError: what no such file has: a number that is none, an object, a key that is no text.
    """
    found = {}
    for name, value in values.items():
        try:
            found[name] = _plain(value)
        except ValueError as error:
            raise ConfigError(Fault(key=f"{key}.{name}", what=str(error), value=shown(value))) from None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        if "\0" in value or value != value.encode(errors="replace").decode():
            raise ValueError("holds what no text in UTF-8 has")
        return str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("is not a number to count with")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise ValueError(f"must be text, numbers, lists or mappings of them, not a {kind_of(value)}")


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
