"""Drawings of results as SVG: a mark for each job, for light and dark pages; nothing is loaded with them.

Each drawing is described by a frozen dataclass; `drawn` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Union

from oellm_autoexp.rendering import marks
from oellm_autoexp.rendering.html import text
from oellm_autoexp.rendering.scales import Scale, is_logarithmic, is_wide, short

_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 88, 62
_HEIGHT = 400


@dataclass(frozen=True, kw_only=True)
class Column:
    """The jobs of one value of a number, with their mean."""

    at: float
    dots: Sequence[marks.Dot]
    mean: float | None
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """The jobs of one value that is no number, with their mean."""

    label: str
    dots: Sequence[marks.Dot]
    mean: float | None
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A job over its steps. `group`: the number of its colour in `Curves.groups`; `best_at`: where it won."""

    points: Sequence[tuple[float, float]]
    group: int
    tip: str
    best: bool = False
    best_at: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class _Chart:
    title: str
    subtitle: str
    #: The metric, and whether less of it is better.
    metric: str
    low_wins: bool
    #: What is not drawn, a line each.
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Scatter(_Chart):
    """A number that was varied, and the metric over it; best columns first or in any order."""

    x_label: str
    columns: Sequence[Column]


@dataclass(frozen=True, kw_only=True)
class Strip(_Chart):
    """Values that are no numbers below each other, in the order given, and the metric to the right."""

    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Curves(_Chart):
    """The metric over steps. `groups`: what the colours mean; `numbers`: which they grow with, if any."""

    x_label: str
    lines: Sequence[Line]
    groups_of: str = ""
    groups: Sequence[str] = ()
    numbers: Sequence[float] = field(default_factory=tuple)


Chart = Union[Scatter, Strip, Curves]


def drawn(chart: Chart) -> str:
    """The whole SVG file; the same chart gives the same text."""
    match chart:
        case Scatter():
            height, body, legend = _HEIGHT, list(_scatter(chart)), _legend_of_dots(chart.columns)
        case Strip():
            pitch = _pitch(chart)
            height, legend = round(pitch * max(1, len(chart.rows))) + 10, _legend_of_dots(chart.rows)
            body = list(_strip(chart, pitch, height))
        case Curves():
            height, body, legend = _HEIGHT, list(_curves(chart)), _legend_of_lines(chart)
    whole = _TOP + height + _BOTTOM + 16 * len(chart.notes)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {marks.WIDTH} {whole}"'
        f' width="{marks.WIDTH}" height="{whole}" role="img" aria-label="{text(chart.title)}"'
        ' font-family="system-ui, sans-serif">',
        f"<title>{text(chart.title)}</title>",
        f"<style>{marks.STYLE}</style>",
        f'<rect class="bg" width="{marks.WIDTH}" height="{whole}"/>',
        marks.said(24, 30, chart.title, size=17, bold=True, room=marks.WIDTH - 48),
        marks.said(24, 50, chart.subtitle, size=12, kind="dim", room=marks.WIDTH - 48),
        *legend,
        *body,
    ]
    for number, note in enumerate(chart.notes):
        y = _TOP + height + _BOTTOM + 16 * number
        out.append(marks.said(24, y, note, size=11, kind="dim", room=marks.WIDTH - 48))
    return "\n".join([*out, "</svg>"]) + "\n"


# ---------------------------------------------------------------- kinds


def _scatter(chart: Scatter) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    places = [column.at for column in chart.columns]
    x = Scale.over(places, _LEFT + 10, marks.WIDTH - _RIGHT - 10, log=is_logarithmic(places))
    y = _value_scale([dot.value for column in chart.columns for dot in column.dots], bottom, _TOP)
    yield from _y_axis(y, chart.metric)
    few = sorted(set(places))
    yield from _x_axis(x, bottom, chart.x_label, few if _fit(x, few) else x.ticks())
    ordered = sorted(chart.columns, key=lambda column: column.at)
    means = [(x.at(each.at), y.at(each.mean)) for each in ordered if each.mean is not None]
    if len(means) > 1:
        path = marks.points(means)
        yield f'<polyline class="mean" points="{path}" fill="none" stroke-width="2" stroke-opacity=".55"/>'
    size = marks.size_of(sum(len(column.dots) for column in chart.columns))
    worst = _TOP + 6 if chart.low_wins else bottom - 6
    for column in sorted(chart.columns, key=lambda each: each.best):
        at = x.at(column.at)
        for number, dot in enumerate(column.dots):
            beside = at + (number % 5 - 2) * 3 if not math.isfinite(dot.value) else at
            yield marks.dot(beside, y.at(dot.value) if math.isfinite(dot.value) else worst, dot, size)
        if column.mean is not None and len(column.dots) > 1:
            mark = "winline" if column.best else "mean"
            where = y.at(column.mean)
            yield marks.rule(mark, at - 9, at + 9, where, where, width=3)


def _pitch(chart: Strip) -> float:
    return max(4.0, min(30.0, 900 / max(1, len(chart.rows))))


def _strip(chart: Strip, pitch: float, height: int) -> Iterator[str]:
    bottom = _TOP + height
    longest = max((min(marks.LABEL, len(row.label)) for row in chart.rows), default=0)
    left = max(_LEFT, 38 + longest * 12 * marks.CHARACTER)
    values = [dot.value for row in chart.rows for dot in row.dots]
    x = _value_scale(values, left + 8, marks.WIDTH - _RIGHT - 8)
    yield from _x_axis(x, bottom, chart.metric, x.ticks(), top=_TOP)
    size = min(marks.size_of(len(values)), pitch * 0.4)
    # Where rows are narrower than text, only some are labelled; the best one always is.
    every = math.ceil(13 / pitch)
    best = next((number for number, row in enumerate(chart.rows) if row.best), 0)
    worst = marks.WIDTH - _RIGHT - 8 if chart.low_wins else left + 8
    for number, row in enumerate(chart.rows):
        middle = _TOP + 5 + pitch * (number + 0.5)
        if (number - best) % every == 0:
            kind = "win" if row.best else "ink"
            yield marks.said(left - 8, middle + 4, row.label, size=12, kind=kind, anchor="end", bold=row.best)
            yield marks.rule("grid", left, marks.WIDTH - _RIGHT, middle, middle)
        for turn, dot in enumerate(row.dots):
            # Jobs that are alike stay apart, always in the same way.
            aside = (turn % 3 - 1) * pitch * 0.16 if len(row.dots) > 1 else 0.0
            at = x.at(dot.value) if math.isfinite(dot.value) else worst
            yield marks.dot(at, middle + aside, dot, size)
        if row.mean is not None and len(row.dots) > 1:
            mark, at, half = "winline" if row.best else "mean", x.at(row.mean), min(9.0, pitch * 0.42)
            yield marks.rule(mark, at, at, middle - half, middle + half, width=3)


def _curves(chart: Curves) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    steps = [step for line in chart.lines for step, _ in line.points]
    x = Scale.over(steps, _LEFT, marks.WIDTH - _RIGHT - 10, pad=0.01)
    y = _value_scale([value for line in chart.lines for _, value in line.points], bottom, _TOP)
    yield from _y_axis(y, chart.metric)
    yield from _x_axis(x, bottom, chart.x_label, x.ticks(8))
    many = len(chart.lines) > 40
    for line in sorted(chart.lines, key=lambda each: each.best):
        places = [(x.at(step), y.at(value)) for step, value in line.points]
        # A line through one point is a point.
        path = marks.points(places * 2 if len(places) == 1 else places)
        if line.best:
            colour, width, opacity = 'class="mark winline"', 3.0, 1.0
        else:
            colour = _colour(chart, line.group)
            width, opacity = (1.0, 0.45) if many else (1.6, 0.85)
        yield (
            f'<polyline {colour} points="{path}" fill="none" stroke-width="{width}"'
            f' stroke-opacity="{opacity}" stroke-linejoin="round" stroke-linecap="round">'
            f"<title>{text(line.tip)}</title></polyline>"
        )
        if line.best_at is not None:
            yield marks.ring(x.at(line.best_at[0]), y.at(line.best_at[1]), 6)


def _colour(chart: Curves, group: int) -> str:
    if not chart.groups:
        return 'class="mark c0"'
    if not chart.numbers:
        return f'class="mark c{group}"' if group < len(marks.PALETTE) else 'class="mark no"'
    return f'class="mark" stroke="{marks.on_ramp(_share(chart.numbers, chart.numbers[group]))}"'


def _share(numbers: Sequence[float], number: float) -> float:
    scale = Scale.over(numbers, 0.0, 1.0, log=is_logarithmic(numbers), pad=0.0)
    return scale.at(number)


# ---------------------------------------------------------------- parts


def _value_scale(values: Sequence[float], begin: float, end: float) -> Scale:
    finite = [value for value in values if math.isfinite(value)]
    return Scale.over(finite, begin, end, log=is_wide(finite))


def _y_axis(y: Scale, label: str) -> Iterator[str]:
    for value in y.ticks():
        at = y.at(value)
        yield marks.rule("grid", _LEFT, marks.WIDTH - _RIGHT, at, at)
        yield marks.said(_LEFT - 8, at + 4, short(value), size=12, kind="dim", anchor="end")
    middle = (y.begin + y.end) / 2
    shown = text(marks.cut(_axis_label(label, y), abs(y.begin - y.end), 13))
    yield (
        f'<text class="ink" x="18" y="{middle:.1f}" font-size="13" text-anchor="middle"'
        f' transform="rotate(-90 18 {middle:.1f})">{shown}</text>'
    )


def _x_axis(
    x: Scale, bottom: float, label: str, ticks: Sequence[float], *, top: float | None = None
) -> Iterator[str]:
    yield marks.rule("axis", x.begin - 8, x.end + 8, bottom, bottom)
    for value in ticks:
        at = x.at(value)
        if top is not None:
            yield marks.rule("grid", at, at, top, bottom)
        yield marks.rule("axis", at, at, bottom, bottom + 4)
        yield marks.said(at, bottom + 19, short(value), size=12, kind="dim", anchor="middle")
    middle = (x.begin + x.end) / 2
    yield marks.said(
        middle, bottom + 40, _axis_label(label, x), size=13, anchor="middle", room=marks.WIDTH - 2 * _LEFT
    )


def _axis_label(label: str, scale: Scale) -> str:
    return f"{label} (logarithmic)" if scale.log else label


def _fit(x: Scale, values: Sequence[float]) -> bool:
    """Whether each value can be written below the axis without touching the next."""
    ends = [(x.at(value), len(short(value)) * 12 * marks.CHARACTER) for value in values]
    return all(b - a > (wide + wider) / 2 + 6 for (a, wide), (b, wider) in pairwise(ends))


def _legend_of_dots(groups: Sequence[Column] | Sequence[Row]) -> Iterator[str]:
    dots = [dot for group in groups for dot in group.dots]
    items = [('<circle class="job" cx="{0}" cy="{1}" r="5" fill-opacity=".6"/>', "a job")]
    if any(len(group.dots) > 1 for group in groups):
        line = '<line class="mean" x1="{2}" x2="{3}" y1="{1}" y2="{1}" stroke-width="3"/>'
        items.append((line, "mean of a value"))
        if any(group.best for group in groups):
            items.append((line.replace("mean", "winline"), "best mean"))
    if any(dot.best for dot in dots):
        ring = '<circle class="winline" cx="{0}" cy="{1}" r="6" fill="none" stroke-width="2"/>'
        items.append((ring + '<circle class="win" cx="{0}" cy="{1}" r="3.5"/>', "best job"))
    if any(not math.isfinite(dot.value) for dot in dots):
        cross = '<text class="dim" x="{0}" y="{4}" font-size="15" text-anchor="middle">×</text>'
        items.append((cross, "no finite value"))
    yield from marks.legend(items)


def _legend_of_lines(chart: Curves) -> Iterator[str]:
    line = '<line {what} x1="{{2}}" x2="{{3}}" y1="{{1}}" y2="{{1}}" stroke-width="3"/>'
    items = []
    if any(each.best for each in chart.lines):
        items.append((line.format(what='class="winline"'), "best"))
    if chart.numbers:
        ends = (min(chart.numbers), max(chart.numbers))
        for share, number in zip((0.0, 1.0), ends, strict=True):
            what = f'stroke="{marks.on_ramp(share)}"'
            items.append((line.format(what=what), f"{marks.cut(chart.groups_of, 160, 12)} {short(number)}"))
    elif chart.groups:
        shown = chart.groups[: len(marks.PALETTE)]
        for number, name in enumerate(shown):
            items.append((line.format(what=f'class="c{number}"'), marks.cut(name, 190, 12)))
        if len(chart.groups) > len(shown):
            items.append((line.format(what='class="no"'), f"{len(chart.groups) - len(shown)} more"))
    else:
        items.append((line.format(what='class="c0"'), "a job"))
    yield from marks.legend(items)
