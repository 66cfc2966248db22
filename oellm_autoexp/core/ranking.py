"""Which jobs won, and which values of their parameters: rows in, rows out. Pure.

A value that is no finite number never wins: it stands behind all that are. Ties keep the order of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from oellm_autoexp.core.metrics import Better, Curve, Reading, Statistic, mean_and_deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A job with what is known of its metric; `parameters` are texts, `curve` None: it has no such metric."""

    job: str
    index: int
    state: str
    parameters: Mapping[str, str]
    curve: Curve | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job in the ranking; `rank` None: its value is no finite number."""

    rank: int | None
    entrant: Entrant
    curve: Curve
    reading: Reading

    @property
    def value(self) -> float:
        return self.reading.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The jobs that have the same values of some parameters (None: a job has no such parameter)."""

    rank: int | None
    values: tuple[str | None, ...]
    #: Those with the metric, best first.
    places: Sequence[Place]
    #: How many jobs have the metric but no finite value, and how many do not have it.
    not_finite: int
    without: int
    #: Of the finite values.
    mean: float | None
    deviation: float | None

    @property
    def best(self) -> Place | None:
        return self.places[0] if self.places and self.places[0].rank is not None else None

    @property
    def jobs(self) -> int:
        return len(self.places) + self.without


def ranked(
    entrants: Iterable[Entrant], statistic: Statistic, better: Better
) -> tuple[list[Place], list[Entrant]]:
    """The jobs that have the metric, best first; and those that do not, in plan order."""
    without: list[Entrant] = []
    found: list[tuple[Entrant, Curve, Reading]] = []
    for entrant in sorted(entrants, key=lambda each: each.index):
        if entrant.curve is None:
            without.append(entrant)
        else:
            found.append((entrant, entrant.curve, entrant.curve.of(statistic)))
    found.sort(key=lambda each: _order(each[2].value, better))
    places = [
        Place(
            rank=number if math.isfinite(reading.value) else None,
            entrant=entrant,
            curve=curve,
            reading=reading,
        )
        for number, (entrant, curve, reading) in enumerate(found, 1)
    ]
    return places, without


def _order(value: float | None, better: Better) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return True, 0.0
    return False, value if better is Better.LOW else -value


def grouped(
    places: Sequence[Place], without: Sequence[Entrant], by: Sequence[str], better: Better
) -> list[Group]:
    """One group a combination of values of the parameters `by`, the best mean first."""
    members: dict[tuple[str | None, ...], list[Place]] = {}
    lacking: dict[tuple[str | None, ...], int] = {}
    for entrant in sorted([*(place.entrant for place in places), *without], key=lambda each: each.index):
        members.setdefault(_values(entrant, by), [])
    for place in places:
        members[_values(place.entrant, by)].append(place)
    for entrant in without:
        values = _values(entrant, by)
        lacking[values] = lacking.get(values, 0) + 1
    found = []
    for values, mine in members.items():
        finite = [place.value for place in mine if place.rank is not None]
        found.append((values, mine, len(mine) - len(finite), *mean_and_deviation(finite)))
    found.sort(key=lambda each: _order(each[3], better))
    return [
        Group(
            rank=number if mean is not None else None,
            values=values,
            places=mine,
            not_finite=not_finite,
            without=lacking.get(values, 0),
            mean=mean,
            deviation=deviation,
        )
        for number, (values, mine, not_finite, mean, deviation) in enumerate(found, 1)
    ]


def _values(entrant: Entrant, by: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(entrant.parameters.get(key) for key in by)


def varied(parameters: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys whose values tell jobs apart, in the order in which they are met.

    >>> varied([{"lr": "0.1", "steps": "9"}, {"lr": "0.2", "steps": "9", "size": "s"}])
    ['lr', 'size']
    """
    rows = list(parameters)
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]


def averaged_over(groups: Sequence[Group], by: Sequence[str]) -> list[str]:
    """The other keys that differ between jobs of one group."""
    found: dict[str, None] = {}
    for group in groups:
        found.update(dict.fromkeys(varied(place.entrant.parameters for place in group.places)))
    return [key for key in found if key not in by]
