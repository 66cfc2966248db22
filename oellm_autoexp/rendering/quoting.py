"""Where in a text of the shell a value stands, and how it is quoted there."""

from __future__ import annotations

import re
import shlex


class Quotes:
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
