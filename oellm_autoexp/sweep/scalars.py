"""The one way a value becomes text: in names, in argv and where `${…}` stands within a longer text."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def format_scalar(value: Any) -> str:
    """The text of a value.

    Booleans are `true`/`false` as in YAML; floats have their shortest exact form, so `1e-3` and `0.001`
    are the same text; strings stay as they are; the items of a list are joined by commas.

    Raises:
        ValueError: null, a mapping, or a list within a list: these have no text of their own.

    >>> [format_scalar(value) for value in (True, 3, 1e-3, 3e-4, 1e-05, "a b", [1, 2.5])]
    ['true', '3', '0.001', '0.0003', '1e-05', 'a b', '1,2.5']
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if value is None:
        raise ValueError("null has no text: give a value, or leave the entry out")
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple)) for item in value):
            raise ValueError("a list within a list has no text")
        return ",".join(format_scalar(item) for item in value)
    raise ValueError(f"a {kind_of(value)} has no text")


def label(value: Any) -> str:
    """The text of a value within a name: total, where `format_scalar` refuses.

    >>> label(None), label([0.9, 0.95])
    ('null', '0.9+0.95')
    """
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)) and value:
        return "+".join(label(item) for item in value)
    if isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]
    return format_scalar(value)


def kind_of(value: Any) -> str:
    """What a person who writes YAML calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "list"
    return "mapping" if isinstance(value, dict) else type(value).__name__
