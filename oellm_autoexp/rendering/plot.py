"""Figures for people, drawn by matplotlib (extra `plot`), which is loaded only when one is wanted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from oellm_autoexp.errors import UsageError
from oellm_autoexp.rendering.document import COLOURS

FORMS = ("svg", "png")


@dataclass(frozen=True, kw_only=True)
class StackedBar:
    """One bar: shares of 1 by kind, and single observations of the first kind (shares of 1)."""

    label: str
    shares: Mapping[str, float]
    points: Sequence[float] = ()


def require() -> None:
    """Refuse to draw where that cannot be done.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        hint = "pip install 'oellm-autoexp[plot]'"
        raise UsageError("a plot needs matplotlib, which is not installed", hint=hint)


def stacked(bars: Sequence[StackedBar], names: Mapping[str, str], title: str, form: str) -> bytes:
    """A picture of bars below each other, as SVG or PNG; the same bars give the same bytes.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with matplotlib.rc_context({"svg.hashsalt": "oellm-autoexp", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0, 1.7 + 0.62 * len(bars)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        at = list(range(len(bars)))
        left = [0.0] * len(bars)
        for kind, name in names.items():
            widths = [bar.shares.get(kind, 0.0) for bar in bars]
            if not any(widths):
                continue
            axes.barh(at, widths, left=left, height=0.66, color=COLOURS[kind], edgecolor="white", label=name)
            for place, width, start in zip(at, widths, left, strict=True):
                if width >= 0.05:
                    text = f"{width:.0%}"
                    colour = "white" if kind == "down" else "black"
                    axes.text(
                        start + width / 2, place, text, ha="center", va="center", color=colour, fontsize=9
                    )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, bar in zip(at, bars, strict=True):
            axes.scatter(
                bar.points,
                [place + 0.26] * len(bar.points),
                s=7,
                color="black",
                alpha=0.55,
                zorder=3,
                linewidths=0,
            )
        axes.set_yticks(at, [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        axes.set_title(title, loc="left", fontsize=11)
        figure.legend(loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
        out = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()
