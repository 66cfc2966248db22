"""What a page says, apart from how it looks: blocks that `html` and `markdown` write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A strip of coloured pieces over the line from 0 to 1."""

    #: Kind (a name of `COLOURS`), begin, end, what it says when pointed at.
    pieces: Sequence[tuple[str, float, float, str]]
    #: What it says where it cannot be drawn.
    text: str


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """A name with the colour that stands for it in bars."""

    kind: str
    text: str


Cell = Union[str, Bar, Swatch]


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    #: Columns of numbers.
    right: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text as it is: commands, a config."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that are folded away where a page can do that."""

    summary: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    unfolded: bool = False


Block = Union[Heading, Paragraph, Table, Code, Details, Bar]

#: Colours that people who do not tell red from green can tell apart (Okabe and Ito 2008).
COLOURS = {
    "queue": "#bdbdbd",
    "start_up": "#56b4e9",
    "productive": "#009e73",
    "rolled_back": "#e69f00",
    "hang": "#d55e00",
    "down": "#555555",
}
