"""Results for people: the table with what must be said beside it, and the drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oellm_autoexp.core.metrics import Better, Statistic
from oellm_autoexp.core.ranking import Group, Place
from oellm_autoexp.rendering import chart, marks
from oellm_autoexp.rendering.document import Block, Paragraph
from oellm_autoexp.rendering.document import Table as TableBlock
from oellm_autoexp.services.results import Results

_NAMES = {
    Statistic.MIN: "least",
    Statistic.MAX: "greatest",
    Statistic.LAST: "last",
    Statistic.MEAN: "mean",
}
#: Jobs that are named in a sentence; the others are counted.
_NAMED = 5
#: What stands where a job has no such parameter.
NO_VALUE = "–"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells, and the curve of the job that they tell of (its values, thinned); `best`: it won."""

    cells: Sequence[str]
    best: bool
    curve: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is shown; the columns of `figures` stand to the right."""

    header: Sequence[str]
    rows: Sequence[Row]
    figures: frozenset[int]


def shown(text: str) -> str:
    """Text on one line, with what is no character to look at written as Python does.

    >>> shown("a\\nb"), shown("é|<")
    ('a\\\\nb', 'é|<')
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def number(value: float | None) -> str:
    """A figure for people; "" where there is none."""
    if value is None:
        return ""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.5g}"


def table(found: Results) -> Table:
    """The ranking of jobs, or of the values of keys."""
    return _of_groups(found) if found.by else _of_jobs(found)


def _of_jobs(found: Results) -> Table:
    columns: list[tuple[str, bool, Callable[[Place], str]]] = [
        ("", True, lambda place: str(place.rank or "")),
        *((shown(key), True, _parameter(key)) for key in found.keys),
        (
            f"{_NAMES[found.statistic]} {shown(found.metric)}",
            True,
            lambda place: number(place.value),
        ),
    ]
    if any(place.reading.step is not None for place in found.places):
        columns.append(("at step", True, lambda place: number(place.reading.step)))
    if found.statistic is not Statistic.LAST:
        columns.append(("last", True, lambda place: number(place.curve.last.value)))
    columns += [
        ("state", False, lambda place: place.entrant.state),
        ("job", False, lambda place: shown(place.entrant.job)),
    ]
    rows = [
        Row(
            cells=[cell(place) for _, _, cell in columns],
            best=place is found.best,
            curve=place.curve.points.values,
        )
        for place in found.places
    ]
    figures = frozenset(at for at, (_, figure, _) in enumerate(columns) if figure)
    return Table(header=[name for name, _, _ in columns], rows=rows, figures=figures)


def _parameter(key: str) -> Callable[[Place], str]:
    return lambda place: _value(place.entrant.parameters.get(key))


def _value(text: str | None) -> str:
    return NO_VALUE if text is None else shown(text)


def _of_groups(found: Results) -> Table:
    header = ["", *map(shown, found.by), "mean", "std", "best", "at step", "jobs", "best job"]
    rows = [
        Row(
            cells=[
                str(group.rank or ""),
                *map(_value, group.values),
                number(group.mean) if group.mean is not None else "nan" if group.not_finite else "",
                number(group.deviation),
                number(group.best.value) if group.best else "",
                number(group.best.reading.step) if group.best else "",
                _jobs(group),
                shown(group.best.entrant.job) if group.best else "",
            ],
            best=group.rank == 1,
            curve=group.best.curve.points.values if group.best else (),
        )
        for group in found.groups
    ]
    return Table(header=header, rows=rows, figures=frozenset(range(len(header) - 1)))


def _jobs(group: Group) -> str:
    counted = group.jobs - group.without - group.not_finite
    return str(counted) if counted == group.jobs else f"{counted} of {group.jobs}"


# ---------------------------------------------------------------- sentences


def headline(found: Results) -> str:
    """What was compared, and who won."""
    less = "less" if found.better is Better.LOW else "more"
    what = f"The {_NAMES[found.statistic]} {shown(found.metric)} of each job counts; {less} is better."
    if found.by and found.averaged:
        what += f" Means are over {', '.join(map(shown, found.averaged))}."
    return f"{_winner(found)} {what}"


def _winner(found: Results) -> str:
    best = found.best
    if best is None:
        return "None has won: there is no finite value."
    if found.by:
        return f"Best: {_values(found, found.groups[0])}, mean {number(found.groups[0].mean)}."
    step = f" at step {number(best.reading.step)}" if best.reading.step is not None else ""
    return f"Best: {shown(best.entrant.job)}, {number(best.value)}{step}."


def _values(found: Results, group: Group) -> str:
    return ", ".join(
        f"{shown(key)}={_value(value)}" for key, value in zip(found.by, group.values, strict=True)
    )


def remarks(found: Results) -> list[str]:
    """What the table does not show: jobs without the metric or a finite value, jobs that still run."""
    out = []
    if found.without:
        named = [f"{each.job} ({each.state})" for each in found.without]
        out.append(f"{_count(named)} no {shown(found.metric)}: {_some(named)}")
    never = [place.entrant.job for place in found.places if place.rank is None]
    if never:
        out.append(f"{_count(never)} no finite value, and no rank: {_some(never)}")
    partly = [
        place.entrant.job for place in found.places if place.curve.not_finite and place.rank is not None
    ]
    if partly:
        out.append(f"{_count(partly)} NaN or infinite values, which do not count: {_some(partly)}")
    open_ = [
        place.entrant.job
        for place in found.places
        if place.entrant.state not in ("succeeded", "failed", "cancelled")
    ]
    if open_:
        out.append(f"Not at their end, so this may change: {_some(open_)}")
    return out


def _count(names: Sequence[str]) -> str:
    return "1 job has" if len(names) == 1 else f"{len(names)} jobs have"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(shown, names[:_NAMED])) + more


def blocks(found: Results, most: int | None = None) -> list[Block]:
    """The same as parts of a page; `most` rows at most, the best ones."""
    what = table(found)
    rows = [list(row.cells) for row in what.rows[:most]]
    left = len(what.rows) - len(rows)
    more = [f"{left} more rows: oellm-autoexp results …"] if left else []
    return [
        Paragraph(text=headline(found)),
        TableBlock(header=what.header, rows=rows, right=sorted(what.figures)),
        *(Paragraph(text=text) for text in [*more, *remarks(found)]),
    ]


# ---------------------------------------------------------------- the drawing


def drawn(found: Results) -> str:
    """An SVG with a mark for each job that has the metric.

    One numeric key gives points over it, other keys a strip of dots each, no key the curves.
    """
    if not found.by:
        return chart.drawn(_curves(found))
    common = _common(found)
    numbers = [_as_number(group.values[0]) for group in found.groups]
    groups = [group for group in found.groups if group.places]
    if len(found.by) == 1 and all(value is not None for value in numbers):
        columns = [
            chart.Column(
                at=_as_number(group.values[0]) or 0.0,
                dots=_dots(group, found),
                mean=group.mean,
                best=group.rank == 1,
            )
            for group in groups
        ]
        return chart.drawn(chart.Scatter(**common, x_label=shown(found.by[0]), columns=columns))
    rows = [
        chart.Row(
            label=_values(found, group) if len(found.by) > 1 else _value(group.values[0]),
            dots=_dots(group, found),
            mean=group.mean,
            best=group.rank == 1,
        )
        for group in groups
    ]
    return chart.drawn(chart.Strip(**common, rows=rows))


def _common(found: Results) -> dict[str, Any]:
    by = f" by {', '.join(map(shown, found.by))}" if found.by else ""
    return {
        "title": f"{shown(found.metric)}{by}",
        "subtitle": headline(found),
        "metric": shown(found.metric),
        "low_wins": found.better is Better.LOW,
        "notes": remarks(found)[:3],
    }


def _dots(group: Group, found: Results) -> list[marks.Dot]:
    return [marks.Dot(value=place.value, tip=_tip(place), best=place is found.best) for place in group.places]


def _tip(place: Place) -> str:
    step = f" at step {number(place.reading.step)}" if place.reading.step is not None else ""
    return f"{shown(place.entrant.job)}: {number(place.value)}{step}"


def _as_number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _curves(found: Results) -> chart.Curves:
    by_step = all(place.reading.step is not None or _has_steps(place) for place in found.places)
    key = found.keys[0] if found.keys else ""
    names = list(dict.fromkeys(_value(place.entrant.parameters.get(key)) for place in found.places))
    numbers = [_as_number(name) for name in names]
    numeric = [value for value in numbers if value is not None]
    ramp = key and len(numeric) == len(names) > 6
    ordered = sorted(names, key=lambda name: _as_number(name) or 0.0) if len(numeric) == len(names) else names
    lines = []
    for place in found.places:
        best = place is found.best
        reading = place.reading
        x = reading.step if by_step else _elapsed(place)
        lines.append(
            chart.Line(
                points=place.curve.path(by_step=by_step),
                group=ordered.index(_value(place.entrant.parameters.get(key))),
                tip=_tip(place),
                best=best,
                best_at=(x, reading.value) if best and x is not None else None,
            )
        )
    return chart.Curves(
        **_common(found),
        x_label="step" if by_step else "seconds since its first record",
        lines=lines,
        groups_of=shown(key),
        groups=[f"{shown(key)} {name}" for name in ordered] if key else (),
        numbers=sorted(numeric) if ramp else (),
    )


def _has_steps(place: Place) -> bool:
    steps = place.curve.points.steps
    return bool(steps) and not math.isnan(steps[-1])


def _elapsed(place: Place) -> float | None:
    at, begin = place.reading.at, place.curve.begin
    return None if at is None or begin is None else at - begin
