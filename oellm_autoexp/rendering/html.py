"""A document as one HTML file that asks nothing of the network: style and drawings are in it, no script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from oellm_autoexp.rendering.document import (
    COLOURS,
    Bar,
    Block,
    Cell,
    Code,
    Details,
    Heading,
    Paragraph,
    Swatch,
    Table,
)

#: Width of a bar's own coordinates; it is stretched to the place it has.
_WIDTH = 1000
#: What no HTML document may hold: controls, and halves of characters.
_UNSPEAKABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
tr { border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; padding: .8rem; background: #8881; }
summary { cursor: pointer; padding: .2rem 0; }
svg { display: block; width: 100%; height: 1rem; }
td svg { min-width: 12rem; height: .9rem; margin-top: .3rem; }
i { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; }
""" + "".join(f".{kind} {{ fill: {colour}; background: {colour}; }}\n" for kind, colour in COLOURS.items())


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole file."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a log line may hold: nothing is loaded, nothing runs.
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{text(title)}</h1>\n"
    )
    return head + "".join(_blocks(blocks)) + "</body>\n</html>\n"


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading():
                yield f"<h2>{text(block.text)}</h2>\n"
            case Paragraph():
                yield f"<p>{text(block.text)}</p>\n"
            case Table():
                yield from _table(block)
            case Code():
                yield f"<pre>{text(block.text)}</pre>\n"
            case Bar():
                yield _bar(block) + "\n"
            case Details():
                opened = " open" if block.unfolded else ""
                yield f"<details{opened}><summary>{text(block.summary)}</summary>\n"
                yield from _blocks(block.blocks)
                yield "</details>\n"


def _table(table: Table) -> Iterator[str]:
    def row(name: str, cells: Sequence[Cell]) -> str:
        marked = (' class="n"' if at in table.right else "" for at in range(len(cells)))
        return "".join(
            f"<{name}{mark}>{_cell(cell)}</{name}>" for mark, cell in zip(marked, cells, strict=True)
        )

    yield f"<table>\n<thead><tr>{row('th', table.header)}</tr></thead>\n<tbody>\n"
    for cells in table.rows:
        yield f"<tr>{row('td', cells)}</tr>\n"
    yield "</tbody>\n</table>\n"


def _cell(cell: Cell) -> str:
    match cell:
        case Bar():
            return _bar(cell)
        case Swatch():
            return f'<i class="{text(cell.kind)}"></i>{text(cell.text)}'
        case _:
            return text(cell)


def _bar(bar: Bar) -> str:
    pieces = "".join(
        f'<rect class="{text(kind)}" x="{begin * _WIDTH:.2f}" width="{(end - begin) * _WIDTH:.2f}"'
        f' height="10"><title>{text(said)}</title></rect>'
        for kind, begin, end, said in bar.pieces
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} 10" preserveAspectRatio="none" role="img"'
        f' aria-label="{text(bar.text)}">{pieces}</svg>'
    )


def text(said: str) -> str:
    """Text within HTML or XML, whatever it holds."""
    return html.escape(_UNSPEAKABLE.sub("\ufffd", said))
