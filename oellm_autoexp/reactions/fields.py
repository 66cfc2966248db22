"""`{field}` placeholders in commands and texts of actions and conditions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from oellm_autoexp.core import symbols
from oellm_autoexp.core.model import Scalar

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
    out, quotes, end = [], _Quotes(), 0
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


class _Quotes:
    """What a POSIX shell would make of a value at a place of a command (2.2 and 2.3 of its chapter 2).

    Inside quotes a value ends them first and begins them again behind itself. In a command that another shell
    reads (`bash -c '…{path}…'`), and in a here-document, a value is text to the first shell only.
    """

    def __init__(self) -> None:
        #: Quotes, command substitutions and a comment that are open here, the innermost last.
        self._open: list[str] = []
        self._escaped = False
        self._before = "\n"

    def read(self, piece: str) -> str:
        """Go on over a piece of the command; the piece."""
        for char in piece:
            if self._escaped:
                self._escaped, self._before = False, ""
                continue
            self._step(char, self._open[-1] if self._open else "")
            self._before = char
        return piece

    def _step(self, char: str, top: str) -> None:
        if top == "#":
            if char == "\n":
                self._open.pop()
        elif top == "'":
            if char == "'":
                self._open.pop()
        elif char == "\\":
            self._escaped = True
        elif (char in '"`' and char == top) or (char == ")" and top == "("):
            self._open.pop()
        elif char in '"`' or (char == "(" and (top == "(" or self._before == "$")) or self._plain(char, top):
            self._open.append(char)

    def _plain(self, char: str, top: str) -> bool:
        """Whether outside of double quotes a single quote or a comment begins."""
        return top != '"' and (char == "'" or (char == "#" and self._before in " \t\n;&|()"))

    def word(self, value: str) -> str:
        """A value at this place."""
        top = self._open[-1] if self._open else ""
        quoted = shlex.quote(value)
        if top == "#":
            return quoted.replace("\n", " ")
        if top in ("'", '"'):
            quoted = f"{top}{quoted}{top}"
        if "`" in self._open:
            # The shell takes these away before it reads what is in between.
            quoted = re.sub(r"[\\`$]", r"\\\g<0>", quoted)
        if self._escaped:
            # What a backslash stands before is dropped with it where that is a line's end.
            quoted = "\n" + quoted
        self._escaped, self._before = False, "x"
        return quoted


def fill_command(command: str | Sequence[str], fields: Mapping[str, Scalar]) -> str | tuple[str, ...]:
    """A shell command with quoted values, or an argv with plain ones."""
    if isinstance(command, str):
        return fill(command, fields, quote=True)
    return tuple(fill(part, fields) for part in command)
