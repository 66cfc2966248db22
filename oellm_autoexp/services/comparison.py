"""What a rehearsal found over its seeds: a row for each figure, a column for each policy, the difference."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from oellm_autoexp.core.spans import Part
from oellm_autoexp.rendering import plot
from oellm_autoexp.services.goodput import NAMES
from oellm_autoexp.services.rehearse import Rehearsal, Run, Told
from oellm_autoexp.services.views import format_day

#: What the column of the config itself is called.
AS_IT_IS = "as configured"
#: Lines of a timeline that are shown of its beginning and of its end.
FIRST, LAST = 14, 5
#: A line of a timeline is cut here.
WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a run: its name, what it is of a run, and its unit ("%", "d", "h" or "")."""

    name: str
    of: Callable[[Run], float]
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure under each policy, and how much more it is than as configured (the median over seeds)."""

    figure: Figure
    columns: Sequence[Spread]
    differences: Sequence[float]


def _share(part: Part) -> Callable[[Run], float]:
    def share(run: Run) -> float:
        whole = sum(run.parts.values())
        return 100 * run.parts[part.value] / whole if whole else 0.0

    return share


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """What is worth a row: where nothing happened, there is none."""
    yield Figure(name="ETTR", of=lambda run: 100 * run.ettr, unit="%")
    for part in Part:
        if part is not Part.PRODUCTIVE and any(run.parts[part.value] for run in runs):
            yield Figure(name=f"  {NAMES[part]}", of=_share(part), unit="%")
    yield Figure(name="until the last end", of=lambda run: run.took_s / 86400, unit="d")
    yield Figure(name="interruptions", of=lambda run: sum(run.ends.values()) - run.ends.get("success", 0))
    for mode in sorted({mode for run in runs for mode in run.ends} - {"success"}):
        yield Figure(name=f"  {mode}", of=lambda run, mode=mode: run.ends.get(mode, 0))  # type: ignore[misc]
    if any(run.retries for run in runs):
        yield Figure(name="started again by a person", of=lambda run: run.retries)
    if any(run.gpu_hours for run in runs):
        yield Figure(name="GPU-hours used", of=lambda run: run.gpu_hours, unit="h")
    yield Figure(name="jobs that succeeded", of=lambda run: run.states.get("succeeded", 0))


def by_variant(rehearsal: Rehearsal, runs: Sequence[Run]) -> Mapping[str, Sequence[Run]]:
    """The runs of each policy, by seed."""
    return {variant: [run for run in runs if run.variant == variant] for variant in rehearsal.variants}


def rows(rehearsal: Rehearsal, runs: Sequence[Run]) -> list[Row]:
    """The table of a rehearsal."""
    grouped = by_variant(rehearsal, runs)
    base = grouped[""]
    out = []
    for figure in figures(runs):
        columns = [Spread.of([figure.of(run) for run in mine]) for mine in grouped.values()]
        # Seed by seed: the luck was the same.
        differences = [
            median(figure.of(run) - figure.of(own) for own, run in zip(base, grouped[variant], strict=True))
            for variant in rehearsal.against
        ]
        out.append(Row(figure=figure, columns=columns, differences=differences))
    return out


def texts(row: Row) -> list[str]:
    """A row as people read it: each policy's median (and range), and after it the difference."""
    unit = row.figure.unit
    cells = [row.figure.name]
    for number, spread in enumerate(row.columns):
        span = (
            f" ({_plain(spread.low, unit)} – {_plain(spread.high, unit)})" if spread.low < spread.high else ""
        )
        cells.append(f"{_plain(spread.median, unit)}{f' {unit}' if unit else ''}{span}")
        if number:
            cells.append(_signed(row.differences[number - 1], unit))
    return cells


def _plain(value: float, unit: str) -> str:
    return f"{value:,.1f}" if unit in ("%", "d") or value % 1 else f"{value:,.0f}"


def _signed(value: float, unit: str) -> str:
    text = f"{value:+,.1f}" if unit in ("%", "d") or value % 1 else f"{value:+,.0f}"
    return "" if float(text.replace(",", "")) == 0 else text


def mean_shares(runs: Sequence[Run]) -> dict[Part, float]:
    """The mean share of each part over seeds; they add up to 1."""
    return {part: mean(_share(part)(run) for run in runs) / 100 for part in Part}


def drawn(rehearsal: Rehearsal, runs: Sequence[Run], form: str) -> bytes:
    """The shares as a picture, in a form of `plot.FORMS`; a dot is the ETTR of one seed.

    Raises:
        UsageError: matplotlib is not installed.
    """
    bars = [
        plot.StackedBar(
            label=textwrap.fill(variant or AS_IT_IS, 30, break_on_hyphens=False, break_long_words=False),
            shares={part.value: share for part, share in mean_shares(mine).items()},
            points=[run.ettr for run in mine],
        )
        for variant, mine in by_variant(rehearsal, runs).items()
    ]
    order = [Part.PRODUCTIVE, *(part for part in Part if part is not Part.PRODUCTIVE)]
    number = len(rehearsal.seeds)
    of = "1 seed" if number == 1 else f"mean of {number} seeds, each dot the ETTR of one"
    return plot.stacked(
        bars, {part.value: NAMES[part] for part in order}, f"Where the time goes ({of})", form
    )


def shortened(timeline: Sequence[Told]) -> list[str]:
    """The lines of a timeline that a person reads: the first and the last ones of a long one."""
    lines = [
        f"{format_day(told.at_s)}  {told.job + ': ' if told.job else ''}{told.what}" for told in timeline
    ]
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]
    if len(lines) > FIRST + LAST + 1:
        left_out = len(lines) - FIRST - LAST
        lines = [*lines[:FIRST], f"… {left_out} more lines: --json has all of them", *lines[-LAST:]]
    return lines


def as_json(rehearsal: Rehearsal, runs: Sequence[Run]) -> dict[str, Any]:
    """Everything, for programs. Times are seconds, shares are percent."""
    table = rows(rehearsal, runs)
    policies = []
    for number, (variant, mine) in enumerate(by_variant(rehearsal, runs).items()):
        policies.append(
            {
                "overrides": variant,
                "figures": {row.figure.name.strip(): asdict(row.columns[number]) for row in table},
                "differences": {row.figure.name.strip(): row.differences[number - 1] for row in table}
                if number
                else {},
                "runs": [{**asdict(run), "ettr": round(run.ettr, 4)} for run in mine],
            }
        )
    return {"config": rehearsal.config_ref, "seeds": list(rehearsal.seeds), "policies": policies}
