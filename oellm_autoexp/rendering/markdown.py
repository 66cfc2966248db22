"""A document as Markdown (CommonMark with the tables of GitHub). No text of a log can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from oellm_autoexp.rendering.document import (
    Bar,
    Block,
    Cell,
    Code,
    Details,
    Heading,
    Paragraph,
    Table,
)

_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~#!$@^{}]")
#: Where a line begins: a list, numbered or not, or a heading of dashes.
_AT_START = re.compile(r"^\d{1,9}(?=[.)](?:\s|$))|^(?=[-+=](?:[-+=\s]|$))")
#: What GitHub makes links of.
_LINK = re.compile(r"(://)|(?<=www)(\.)", re.IGNORECASE)
_SPACES = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole file."""
    return "\n".join([f"# {text(title)}", "", *_blocks(blocks)])


def _blocks(blocks: Sequence[Block], level: int = 2) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading():
                yield f"{'#' * level} {text(block.text)}"
            case Paragraph():
                yield text(block.text)
            case Bar():
                yield text(block.text)
            case Code():
                yield _fenced(block.text)
            case Table():
                yield from _table(block)
            case Details():
                yield f"{'#' * (level + 1)} {text(block.summary)}"
                yield ""
                yield from _blocks(block.blocks, level + 1)
                continue
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield _row(table.header)
    yield _line(["--:" if at in table.right else "---" for at in range(len(table.header))])
    for cells in table.rows:
        yield _row(cells)


def _row(cells: Sequence[Cell]) -> str:
    return _line([text(cell if isinstance(cell, str) else cell.text) for cell in cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fenced(content: str) -> str:
    """Code, within a fence longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{content.rstrip()}\n{fence}"


def text(said: str) -> str:
    """One line of text that reads as it is: every character that could be markup is escaped."""
    line = _SPACES.sub(" ", said).strip()
    line = _SPECIAL.sub(r"\\\g<0>", line)
    line = _AT_START.sub(r"\g<0>\\", line)
    return _LINK.sub(lambda found: "\\" + found.group(), line)
