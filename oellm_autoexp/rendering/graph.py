"""Who waits for whom, drawn: a tree of text, Mermaid, SVG. The same graph gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True, kw_only=True)
class Box:
    """One job, or one stage. `group`: what it is drawn within."""

    key: str
    label: str
    detail: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """`end` waits for `start`; `loose`: for a condition about it, not for its success."""

    start: str
    end: str
    loose: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Boxes in order, and arrows between them, which form no circle."""

    title: str
    boxes: Sequence[Box] = field(default_factory=tuple)
    arrows: Sequence[Arrow] = field(default_factory=tuple)

    def after(self) -> dict[str, list[Arrow]]:
        """The arrows that leave each box."""
        found: dict[str, list[Arrow]] = {box.key: [] for box in self.boxes}
        for arrow in self.arrows:
            found[arrow.start].append(arrow)
        return found

    def ranks(self) -> dict[str, int]:
        """How many boxes stand before each, on the longest way."""
        left = {box.key: 0 for box in self.boxes}
        for arrow in self.arrows:
            left[arrow.end] += 1
        after, ranks = self.after(), dict.fromkeys(left, 0)
        free = [key for key, waits in left.items() if not waits]
        for key in free:
            for arrow in after[key]:
                ranks[arrow.end] = max(ranks[arrow.end], ranks[key] + 1)
                left[arrow.end] -= 1
                if not left[arrow.end]:
                    free.append(arrow.end)
        return ranks


# ---------------------------------------------------------------- text


def text(graph: Graph) -> str:
    """A tree: each box stands below the last one that it waits for; other ones are named beside it."""
    boxes = {box.key: box for box in graph.boxes}
    ranks, before = graph.ranks(), {box.key: [] for box in graph.boxes}  # type: dict[str, int], dict[str, list[Arrow]]
    for arrow in graph.arrows:
        before[arrow.end].append(arrow)
    below: dict[str, list[str]] = {key: [] for key in boxes}
    for key, arrows in before.items():
        if arrows:
            below[max(arrows, key=lambda arrow: ranks[arrow.start]).start].append(key)
    lines = [graph.title]
    # From the last to the first, since the last that is put on a stack comes first.
    stack = [(key, "", "", "") for key in reversed(boxes) if not before[key]]
    while stack:
        key, lead, own, parent = stack.pop()
        lines.append(f"{lead}{own}{_line(boxes, before[key], key, parent)}".rstrip())
        inner = lead + {"": "", "├─ ": "│  ", "└─ ": "   "}[own]
        children = below[key]
        for number, child in reversed(list(enumerate(children))):
            stack.append((child, inner, "└─ " if number == len(children) - 1 else "├─ ", key))
    return "\n".join(lines) + "\n"


def _line(boxes: Mapping[str, Box], arrows: Sequence[Arrow], key: str, parent: str) -> str:
    box, said = boxes[key], []
    if box.detail:
        said.append(box.detail)
    if any(arrow.loose and arrow.start == parent for arrow in arrows):
        said.append("on its start condition")
    others = [boxes[arrow.start].label for arrow in arrows if arrow.start != parent]
    if others:
        said.append(f"after {', '.join(others)} too")
    return f"{box.label}  {'; '.join(said)}"


# ---------------------------------------------------------------- Mermaid


def mermaid(graph: Graph) -> str:
    """A flowchart for Mermaid (https://mermaid.js.org/syntax/flowchart.html)."""
    numbers = {box.key: f"j{number}" for number, box in enumerate(graph.boxes)}
    lines = ["---", f"title: {_quoted(graph.title)}", "---", "flowchart LR"]
    groups = list(dict.fromkeys(box.group for box in graph.boxes))
    for number, group in enumerate(groups):
        inside = [box for box in graph.boxes if box.group == group]
        boxes = [f"  {numbers[box.key]}[{_quoted(_both(box, '<br>'))}]" for box in inside]
        if group:
            boxes = [f"  subgraph s{number}[{_quoted(group)}]", *(f"  {box}" for box in boxes), "  end"]
        lines += boxes
    for arrow in graph.arrows:
        drawn = "-. start condition .->" if arrow.loose else "-->"
        lines.append(f"  {numbers[arrow.start]} {drawn} {numbers[arrow.end]}")
    return "\n".join(lines) + "\n"


def _quoted(label: str) -> str:
    return '"' + label.replace("&", "#amp;").replace('"', "#quot;") + '"'


def _both(box: Box, between: str) -> str:
    return f"{box.label}{between}{box.detail}" if box.detail else box.label


# ---------------------------------------------------------------- SVG

_WIDTH_OF_CHAR, _LINE, _PAD, _GAP_X, _GAP_Y, _TOP = 7.3, 17, 10, 64, 14, 58


def svg(graph: Graph) -> str:
    """A picture: what waits stands to the right of what it waits for."""
    places, size = _laid_out(graph)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(graph.title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#555555"/></marker></defs>',
        f'<text x="{_PAD}" y="24" font-size="15">{escape(graph.title)}</text>',
    ]
    for arrow in graph.arrows:
        one, other = places[arrow.start], places[arrow.end]
        x, y, to_x, to_y = one.right, one.middle, other.x, other.middle
        bend = max(24, (to_x - x) // 2)
        dashes = ' stroke-dasharray="5 4"' if arrow.loose else ""
        parts.append(
            f'<path d="M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}" fill="none" '
            f'stroke="#555555"{dashes} marker-end="url(#end)"/>'
        )
    for box in graph.boxes:
        place = places[box.key]
        # Okabe and Ito's sky blue, lightened: black on it is read by everybody.
        parts.append(
            f'<rect x="{place.x}" y="{place.y}" width="{place.width}" height="{place.height}" rx="5" '
            'fill="#ddeffb" stroke="#56b4e9"/>'
        )
        for number, line in enumerate(_lines(box)):
            colour = "#000000" if number == 0 else "#555555"
            parts.append(
                f'<text x="{place.x + _PAD}" y="{place.y + 20 + number * _LINE}" fill="{colour}">'
                f"{escape(line)}</text>"
            )
    if any(arrow.loose for arrow in graph.arrows):
        at = size[1] - _PAD
        parts.append(f'<text x="{_PAD}" y="{at}" fill="#555555">dashed: on its start condition</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Place:
    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def middle(self) -> int:
        return self.y + self.height // 2


def _lines(box: Box) -> list[str]:
    return [box.label, box.detail] if box.detail else [box.label]


def _laid_out(graph: Graph) -> tuple[dict[str, _Place], tuple[int, int]]:
    """A column for each rank; in it boxes stand in the order of what they wait for."""
    ranks, before = graph.ranks(), {box.key: [] for box in graph.boxes}  # type: dict[str, int], dict[str, list[str]]
    for arrow in graph.arrows:
        before[arrow.end].append(arrow.start)
    columns: dict[int, list[Box]] = {}
    for box in graph.boxes:
        columns.setdefault(ranks[box.key], []).append(box)
    places: dict[str, _Place] = {}
    x, bottom = _PAD, _TOP
    for rank in sorted(columns):
        boxes = sorted(
            columns[rank], key=lambda box: min((places[key].y for key in before[box.key]), default=0)
        )
        longest = max(len(line) for box in boxes for line in _lines(box))
        width, y = int(longest * _WIDTH_OF_CHAR) + 2 * _PAD, _TOP
        for box in boxes:
            # Beside what it waits for, where there is room.
            y = max(y, min((places[key].y for key in before[box.key]), default=0))
            height = _LINE * len(_lines(box)) + _PAD
            places[box.key] = _Place(x, y, width, height)
            y += height + _GAP_Y
        x, bottom = x + width + _GAP_X, max(bottom, y)
    title = int(len(graph.title) * _WIDTH_OF_CHAR * 1.2) + 2 * _PAD
    return places, (max(x - _GAP_X + _PAD, title), bottom + 2 * _PAD)


#: How a graph is written, by the name of the form.
FORMS: Mapping[str, Callable[[Graph], str]] = {"text": text, "mermaid": mermaid, "svg": svg}
