"""Names of experiments that show their parameters: `base_lr=0.001_hidden-size=256`, and back.

`_` stands between parameters and `=` before a value, so a value or key that holds one of them, or that does
not say whether `1` is a number or a text, cannot be shown exactly: such a name ends in a hash of all of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from oellm_autoexp.sweep.names import legalize, short_names
from oellm_autoexp.sweep.scalars import label

#: A longer name is a hash: it is for people to read.
MAX_SHOWN = 120
_DIGITS = 12
_KEPT = 4096
_ILLEGAL = re.compile(r"[^A-Za-z0-9.+-]+|(?<=\.)\.+")
_HASH = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}


class NamingStrategy(str, Enum):
    """How experiments are named: by their parameters, a hash of them, or the time and a hash."""

    PARAMETER_BASED = "parameter_based"
    HASH_BASED = "hash_based"
    TIMESTAMP_BASED = "timestamp_based"


class ExperimentNamer:
    """Names that are legal as path, git ref and name of a Slurm job; other parameters have another.

    `keys` are those of the whole sweep: then each is shown by its last word where that is enough, in this
    order. Without, whole keys are shown, sorted. `timestamp` is what `TIMESTAMP_BASED` shows.
    """

    def __init__(
        self, base: str, strategy: NamingStrategy, *, keys: Sequence[str] | None = None, timestamp: str = ""
    ) -> None:
        self._base, self._strategy = base, strategy
        legal = legalize(base)
        self._head = legal.replace("=", "-")
        self._exact = self._head == legal
        self._shown = short_names(tuple(keys)) if keys is not None else None
        self._stamp = f"{timestamp}_" if strategy is NamingStrategy.TIMESTAMP_BASED and timestamp else ""
        #: Values come again and again in a product.
        self._pieces: dict[tuple[str, str], tuple[str, bool]] = {}

    def name(self, parameters: Mapping[str, Any]) -> str:
        """The name of an experiment."""
        if self._strategy is not NamingStrategy.PARAMETER_BASED:
            return _ending(self._head, f"{self._stamp}{_digest(self._base, parameters)}")
        shown = self._shown if self._shown is not None else {key: key for key in sorted(parameters)}
        exact = self._exact and parameters.keys() <= shown.keys()
        pieces = [self._head]
        for key, short in shown.items():
            if key in parameters:
                piece, is_exact = self._piece(short, parameters[key])
                pieces.append(piece)
                exact = exact and is_exact
        name = "_".join(pieces)
        if exact and len(name) <= MAX_SHOWN and legalize(name) == name:
            return name
        kept = name if len(name) < MAX_SHOWN - _DIGITS else self._head
        return _ending(kept, _digest(self._base, parameters))

    def _piece(self, key: str, value: Any) -> tuple[str, bool]:
        wanted = (key, repr(value))
        found = self._pieces.get(wanted)
        if found is None:
            if len(self._pieces) >= _KEPT:
                self._pieces.clear()
            found = self._pieces[wanted] = _piece(key, value)
        return found


def parsed_name(name: str) -> dict[str, Any]:
    """The parameters that a name shows, by the keys that it shows.

    They are exact, except where the name ends in a hash: then texts are as near as the name can be, and a
    name that is only a hash shows none.
    """
    chunks = name.split("_")
    if _HASH.fullmatch(chunks[-1]):
        chunks.pop()
    found: dict[str, Any] = {}
    while len(chunks) > 1 and "=" in chunks[-1]:
        key, _, text = chunks.pop().partition("=")
        found[key.replace("-", "_")] = _value(text)
    return dict(reversed(found.items()))


def _piece(key: str, value: Any) -> tuple[str, bool]:
    """`key=value`, and whether that says exactly what they are."""
    shown_key = _ILLEGAL.sub("-", key)
    exact = shown_key.replace("-", "_") == key
    text = "" if isinstance(value, Mapping) else label(value)
    shown = _ILLEGAL.sub("-", text)
    exact = exact and shown == text and _canonical(_value(shown)) == _canonical(value)
    return f"{shown_key}={shown}", exact


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= MAX_SHOWN else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return [_value(item) for item in text.split("+")] if "+" in text else text


def _canonical(value: Any) -> str:
    """A text that equal values of equal types share, and no others."""
    if isinstance(value, Mapping):
        items = sorted((repr(key), _canonical(item)) for key, item in value.items())
        return json.dumps(["mapping", items])
    if isinstance(value, (list, tuple)):
        return json.dumps(["list", [_canonical(item) for item in value]])
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), type(value))
    return json.dumps([kind.__name__, str(value) if kind is str else repr(value)])


def _digest(base: str, parameters: Mapping[str, Any]) -> str:
    text = json.dumps([base, _canonical(parameters)])
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _ending(head: str, end: str) -> str:
    return legalize(f"{head[: MAX_SHOWN - len(end) - 1].rstrip('._-')}_{end}")
