"""Plain values as YAML that our reader, and any other, takes for these very values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from oellm_autoexp.errors import UsageError

_PLAIN = re.compile(r"(--?)?[A-Za-z_][A-Za-z0-9_./-]*", re.ASCII)
#: Words that some reader of YAML takes for something else than text.
_NOT_TEXT = frozenset(["true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan"])
_BEFORE_REFERENCE = re.compile(r"(\\*)\$\{")
#: Characters that stand for something while a config is read, and what UTF-8 cannot write.
_UNWRITABLE = re.compile("[\ue000\ue001\ue00f\ud800-\udfff\0]")
_HINT = "put the command into a script, and give the script"
_WIDTH = 96


def literal(word: str) -> str:
    """A text in which `${` begins no reference.

    Raises:
        UsageError: it cannot be written.

    >>> literal("echo ${HOME}")
    'echo \\\\${HOME}'
    """
    check(word)
    return escaped(word)


def escaped(text: str) -> str:
    """The same for a part of a text."""
    # The backslash of `${`, and those before it, are doubled as OmegaConf reads them.
    return _BEFORE_REFERENCE.sub(lambda match: match.group(1) * 2 + r"\${", text)


def check(word: str) -> None:
    """Refuse a text that no config can hold.

    Raises:
        UsageError: with the text.
    """
    if _UNWRITABLE.search(word):
        raise UsageError(f"the word {word!r} holds a character that a config cannot hold", hint=_HINT)
    if word == "???":
        raise UsageError("the word `???` stands for a value that is still to be set", hint=_HINT)


def scalar(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return "null" if value is None else repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    if value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    return '"' + "".join(map(_in_quotes, value)) + '"'


def _in_quotes(char: str) -> str:
    if char in '\\"':
        return "\\" + char
    if char.isprintable():
        return char
    return {"\n": "\\n", "\t": "\\t"}.get(char) or f"\\U{ord(char):08X}"


def dump(config: Mapping[str, Any]) -> str:
    """A config as the text of a file: a section a paragraph, what is short in one line."""
    return "\n".join("".join(_entry(key, value, "")) for key, value in config.items())


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    """The lines of a key."""
    head = f"{indent}{scalar(key)}:"
    if isinstance(value, Mapping) and value and (not indent or len(head) + len(scalar(value)) > _WIDTH):
        yield f"{head}\n"
        for inner, item in value.items():
            yield from _entry(inner, item, f"{indent}  ")
    elif isinstance(value, list) and len(head) + len(scalar(value)) > _WIDTH:
        yield f"{head}\n"
        for item in value:
            yield from _text(f"{indent}  -", item, f"{indent}    ")
    else:
        yield from _text(head, value, f"{indent}  ")


def _text(head: str, value: Any, indent: str) -> Iterator[str]:
    """A value behind its key; a text of several lines as it stands."""
    lines = value.split("\n") if isinstance(value, str) else []
    if len(lines) < 3 or not any(lines[-2:]) or not all(_is_clear(line) for line in lines):
        yield f"{head} {scalar(value)}\n"
        return
    # Without a number the first line would say how far the text is indented.
    yield f"{head} |2{'-' if lines[-1] else ''}\n"
    if not lines[-1]:
        del lines[-1]
    yield from (f"{indent}{line}\n" if line else "\n" for line in lines)


def _is_clear(line: str) -> bool:
    return line.replace("\t", " ").isprintable() and "\ufeff" not in line
