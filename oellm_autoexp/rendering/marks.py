"""What drawings are made of: marks, lines of text that are cut to their room, a legend; and their colours.

The colours are those that people who do not tell red from green can tell apart (Okabe and Ito 2008).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oellm_autoexp.rendering.html import text

WIDTH = 860
#: Of a character, as a share of the size of its font; generous, so that nothing overlaps.
CHARACTER = 0.62
#: The most characters of a label; the rest is told when it is pointed at.
LABEL = 34
#: For values that are told apart by colour; dark pages have a lighter kind.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31")
_ON_DARK = ("#4aa8e0", "#f0b43c", "#2fc79b", "#e0a0c4", "#9ad4f5", "#c4a866")
#: From low to high where there are too many values for the palette; seen on light and dark.
_RAMP = ((44, 110, 190), (60, 160, 150), (165, 190, 60))

STYLE = (
    ".bg{fill:#fff}.ink{fill:#1f2328}.dim{fill:#59636e}.grid{stroke:#d8dee4}.axis{stroke:#848d97}"
    ".job{fill:#0072b2}.mean{stroke:#0072b2}.win{fill:#d55e00}.winline{stroke:#d55e00}.no{stroke:#59636e}"
    + "".join(f".c{number}{{stroke:{colour}}}" for number, colour in enumerate(PALETTE))
    + "@media (prefers-color-scheme: dark){"
    ".bg{fill:#16181d}.ink{fill:#e6edf3}.dim{fill:#9198a1}.grid{stroke:#30363d}.axis{stroke:#6e7681}"
    ".job{fill:#56b4e9}.mean{stroke:#56b4e9}.win{fill:#ff8a3d}.winline{stroke:#ff8a3d}.no{stroke:#9198a1}"
    + "".join(f".c{number}{{stroke:{colour}}}" for number, colour in enumerate(_ON_DARK))
    + "}"
)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One job: its value (NaN or infinite: it has no finite one), and what it says when it is pointed at."""

    value: float
    tip: str
    best: bool = False


def on_ramp(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    first = min(int(place), len(_RAMP) - 2)
    mixed = (
        round(a + (b - a) * (place - first)) for a, b in zip(_RAMP[first], _RAMP[first + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def size_of(dots: int) -> float:
    return 5.0 if dots <= 40 else 4.0 if dots <= 120 else 3.0


def dot(x: float, y: float, dot: Dot, size: float) -> str:
    tip = f"<title>{text(dot.tip)}</title>"
    if not math.isfinite(dot.value):
        cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path class="mark no" d="{cross}" fill="none" stroke-width="1.8">{tip}</path>'
    kind, opacity = ("win", 1.0) if dot.best else ("job", 0.6)
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"'
    mark = f'<circle class="mark {kind}" {place} fill-opacity="{opacity}">{tip}</circle>'
    return mark + ring(x, y, size + 3) if dot.best else mark


def ring(x: float, y: float, size: float) -> str:
    return f'<circle class="winline" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="none" stroke-width="2"/>'


def rule(kind: str, x1: float, x2: float, y1: float, y2: float, *, width: int = 1) -> str:
    thick = f' stroke-width="{width}"' if width > 1 else ""
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"{thick}/>'


def points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def legend(items: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Marks with names in one line; those that do not fit are left out, and counted."""
    x, y = 24.0, 71
    for number, (mark, name) in enumerate(items):
        width = 30 + len(name) * 12 * CHARACTER
        if (x + width > WIDTH - 60 and number < len(items) - 1) or x + width > WIDTH - 10:
            yield said(x, y + 4, f"+ {len(items) - number}", size=12, kind="dim")
            return
        yield mark.format(f"{x + 8:.1f}", y, f"{x:.1f}", f"{x + 16:.1f}", y + 5)
        yield said(x + 22, y + 4, name, size=12, kind="dim")
        x += width + 10


def said(
    x: float,
    y: float,
    said: str,
    *,
    size: int,
    kind: str = "ink",
    anchor: str = "start",
    bold: bool = False,
    room: float = LABEL * 12 * CHARACTER + 1,
) -> str:
    """A line of text that is cut to its room (coordinates); the whole of it is told when it is pointed at."""
    shown = cut(said, room, size)
    whole = f"<title>{text(said)}</title>" if shown != said else ""
    weight = ' font-weight="600"' if bold else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}"{place}{weight}'
    return f'<text class="{kind}" {where}>{text(shown)}{whole}</text>'


def cut(said: str, room: float, size: int) -> str:
    most = max(4, int(room / (size * CHARACTER)))
    return said if len(said) <= most else f"{said[: most - 1]}…"
