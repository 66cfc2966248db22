"""`{field}` placeholders in commands and texts of actions and conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from oellm_autoexp.core import symbols
from oellm_autoexp.core.model import Scalar
from oellm_autoexp.rendering.quoting import Quotes

# `{{` and `}}` are literal braces; `${…}` is the shell's; a name is what a named group or parameter can be.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|(?<!\$)\{([A-Za-z_][A-Za-z0-9_.]*)\}")


def names(text: str | Sequence[str]) -> frozenset[str]:
    """The fields that a text (or argv) reads."""
    parts = [text] if isinstance(text, str) else text
    return frozenset(
        match.group(1) for part in parts for match in _PLACEHOLDER.finditer(part) if match.group(1)
    )


def fill(text: str, fields: Mapping[str, Scalar], *, quote: bool = False) -> str:
    """The text with its placeholders filled; with `quote` each value is text, never code, to a shell.

    A reference to the attempt's number becomes the number. One to a secret stays, or becomes the shell's own.

    Raises:
        KeyError: a field is missing.
    """
    number = fields.get("attempt", "")
    text = text.replace(symbols.reference(symbols.ATTEMPT_VARIABLE), "" if number is None else str(number))
    out, quotes, end = [], Quotes(), 0
    for match in _PLACEHOLDER.finditer(text):
        out.append(quotes.read(text[end : match.start()]))
        end = match.end()
        if match.group() in ("{{", "}}"):
            out.append(quotes.read(match.group()[0]))
            continue
        found = fields[match.group(1)]
        plain = "" if found is None else str(found)
        out.append(quotes.word(plain) if quote else plain)
    filled = "".join([*out, text[end:]])
    return symbols.shown(filled) if quote else filled


def fill_command(command: str | Sequence[str], fields: Mapping[str, Scalar]) -> str | tuple[str, ...]:
    """A shell command with quoted values, or an argv with plain ones."""
    if isinstance(command, str):
        return fill(command, fields, quote=True)
    return tuple(fill(part, fields) for part in command)
