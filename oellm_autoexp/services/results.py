"""Which points won: the kept metrics of a session's jobs, ranked, and by the values of swept keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.metrics import STEPS, Better, Statistic, better_by_name
from oellm_autoexp.core.model import Job, Scalar
from oellm_autoexp.core.ranking import Entrant, Group, Place, averaged_over, grouped, ranked, varied
from oellm_autoexp.errors import UsageError, did_you_mean
from oellm_autoexp.planning.sweep_json import text_of
from oellm_autoexp.services.session import History
from oellm_autoexp.store.readings import metric_names, read_curve

#: Points of curves that are kept of all jobs together, and the most and fewest of one.
_POINTS, _MOST, _FEWEST = 20_000, 150, 24


@dataclass(frozen=True, kw_only=True)
class Results:
    """One metric over the jobs of a session."""

    session: str
    metric: str
    statistic: Statistic
    better: Better
    #: Keys by whose values jobs are grouped; empty: each job for itself.
    by: tuple[str, ...]
    #: Keys whose values tell jobs apart.
    keys: Sequence[str]
    places: Sequence[Place]
    without: Sequence[Entrant]
    groups: Sequence[Group]
    #: The parameters of each job as they are, for programs.
    parameters: Mapping[str, Mapping[str, Scalar]]

    @property
    def best(self) -> Place | None:
        """The job that won; None where none has a finite value."""
        return self.places[0] if self.places and self.places[0].rank is not None else None

    @property
    def averaged(self) -> list[str]:
        """The keys over which the values of a group are averaged."""
        return averaged_over(self.groups, self.by)


def metrics(past: History, paths: SessionPaths, jobs: Sequence[Job]) -> list[tuple[str, int]]:
    """The metrics that jobs have, with how many have each, the most common first."""
    since = _computed_since(past.events)
    found: Counter[str] = Counter()
    for job in jobs:
        found.update(metric_names(paths.series(job.spec.name), since=since.get(job.spec.name, 0)))
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def points_to_draw(jobs: int) -> int:
    """Points of each of so many curves that a drawing needs."""
    return max(_FEWEST, min(_MOST, _POINTS // max(1, jobs)))


def results(
    past: History,
    paths: SessionPaths,
    jobs: Sequence[Job],
    *,
    metric: str,
    by: Sequence[str] = (),
    statistic: Statistic | None = None,
    better: Better | None = None,
    step: str | None = None,
    points: int = 0,
) -> Results:
    """Rank jobs by a metric. What is not given follows from the metric's name.

    `points`: about so many of each curve are kept.

    Raises:
        UsageError: no job has the metric or a key of `by`, or the name does not tell what is better.
    """
    rule = _rule(metric, statistic, better)
    if rule is None:
        known = metrics(past, paths, jobs)
        if metric not in dict(known):
            raise _unknown(metric, known)
        hint = "--better low or --better high; --min and --max say it too"
        raise UsageError(f"is less or more of `{metric}` better? Its name does not tell", hint=hint)
    statistic, better = rule
    texts = {job.spec.name: {k: text_of(v) for k, v in job.spec.parameters.items()} for job in jobs}
    _check(by, texts.values())
    since = _computed_since(past.events)
    steps = (step,) if step is not None else STEPS
    entrants = [
        Entrant(
            job=name,
            index=job.spec.index,
            state=job.state.value,
            parameters=texts[name],
            curve=read_curve(
                paths.series(name), metric, steps=steps, since=since.get(name, 0), points=points
            ),
        )
        for job in jobs
        for name in [job.spec.name]
    ]
    places, without = ranked(entrants, statistic, better)
    if not places:
        raise _unknown(metric, metrics(past, paths, jobs))
    return Results(
        session=str(paths.state_dir),
        metric=metric,
        statistic=statistic,
        better=better,
        by=tuple(by),
        keys=varied(texts.values()),
        places=places,
        without=without,
        groups=grouped(places, without, by, better) if by else (),
        parameters={job.spec.name: job.spec.parameters for job in jobs},
    )


def _check(by: Sequence[str], parameters: Iterable[Mapping[str, str]]) -> None:
    known = list(dict.fromkeys(key for row in parameters for key in row))
    for key in by:
        if key not in known:
            hint = did_you_mean(key, known) or "there are no parameters"
            raise UsageError(f"no job has a parameter `{key}`", where="--by", hint=hint)


def _rule(metric: str, statistic: Statistic | None, better: Better | None) -> tuple[Statistic, Better] | None:
    """What stands for a job, and what wins: as given, else as `--min` and `--max` mean, else by the name.

    None: nothing tells what is better.
    """
    if better is None and statistic in (Statistic.MIN, Statistic.MAX):
        better = Better.LOW if statistic is Statistic.MIN else Better.HIGH
    if better is None:
        better = better_by_name(metric)
    if better is None:
        return None
    if statistic is None:
        statistic = Statistic.MIN if better is Better.LOW else Statistic.MAX
    return statistic, better


def _unknown(metric: str, known: Sequence[tuple[str, int]]) -> UsageError:
    if not known:
        hint = 'a program tells them by `@autoexp {"metrics": {"loss": 2.3}}`, a signal by `metrics`'
        return UsageError("no metrics have been kept yet", hint=hint)
    return UsageError(
        f"no job has a metric `{metric}`", hint=did_you_mean(metric, [name for name, _ in known])
    )


def _computed_since(events: Iterable[ev.Event]) -> dict[str, int]:
    """The first attempt of jobs whose name now stands for another computation (`submit --update`).

    What earlier attempts have told is of another point.
    """
    identities: dict[str, str] = {}
    latest: dict[str, int] = {}
    since: dict[str, int] = {}
    for event in events:
        if isinstance(event, ev.JobAdded):
            identities[event.spec.name] = event.spec.id
        elif isinstance(event, ev.SubmitRequested):
            latest.update(event.jobs)
        elif isinstance(event, ev.JobUpdated) and identities.get(event.job) != event.spec.id:
            identities[event.job] = event.spec.id
            since[event.job] = latest.get(event.job, 0) + 1
    return since


# ---------------------------------------------------------------- for programs


def as_json(found: Results) -> dict[str, Any]:
    """The contract of `results --format json`. What is no finite number is null."""
    return {
        "session": found.session,
        "metric": found.metric,
        "statistic": found.statistic.value,
        "better": found.better.value,
        "by": list(found.by),
        "averaged_over": found.averaged,
        "groups": [_group_as_json(group, found.by) for group in found.groups],
        "jobs": [_place_as_json(place, found) for place in found.places],
        "without": [{"job": each.job, "state": each.state} for each in found.without],
    }


def _place_as_json(place: Place, found: Results) -> dict[str, Any]:
    curve, reading, own = place.curve, place.reading, found.parameters[place.entrant.job]
    return {
        "rank": place.rank,
        "job": place.entrant.job,
        "state": place.entrant.state,
        "parameters": {key: value if _plain(value) else text_of(value) for key, value in own.items()},
        "value": _finite(place.value),
        "step": reading.step,
        "attempt": reading.attempt,
        "time": reading.at,
        "last": _finite(curve.last.value),
        "min": curve.low.value if curve.low else None,
        "max": curve.high.value if curve.high else None,
        "mean": _finite(curve.mean),
        "count": curve.count,
        "not_finite": curve.not_finite,
    }


def _plain(value: Scalar) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _group_as_json(group: Group, by: Sequence[str]) -> dict[str, Any]:
    best = group.best
    return {
        "rank": group.rank,
        "values": dict(zip(by, group.values, strict=True)),
        "mean": _finite(group.mean),
        "std": _finite(group.deviation),
        "best": best.value if best else None,
        "best_job": best.entrant.job if best else None,
        "best_step": best.reading.step if best else None,
        "jobs": group.jobs,
        "not_finite": group.not_finite,
        "without": group.without,
    }


def flat(found: Results) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the CSV file; jobs and values without the metric are rows with an empty value."""
    return _flat_groups(found) if found.by else _flat_jobs(found)


def _flat_jobs(found: Results) -> tuple[list[str], list[list[Any]]]:
    own = ["rank", "job", "state"]
    figures = ["value", "step", "attempt", "last", "min", "max", "mean", "count", "not_finite"]
    header = [*own, *_named_apart(found.keys, (*own, *figures)), *figures]
    rows: list[list[Any]] = []
    for place in found.places:
        told = {**_place_as_json(place, found), "value": place.value, "last": place.curve.last.value}
        values = [place.entrant.parameters.get(key) for key in found.keys]
        rows.append([*(told[name] for name in own), *values, *(told[name] for name in figures)])
    for each in found.without:
        values = [each.parameters.get(key) for key in found.keys]
        rows.append([None, each.job, each.state, *values, *[None] * len(figures)])
    return header, rows


def _flat_groups(found: Results) -> tuple[list[str], list[list[Any]]]:
    figures = ["mean", "std", "best", "best_job", "best_step", "jobs", "not_finite", "without"]
    rows = []
    for group in found.groups:
        told = _group_as_json(group, found.by)
        rows.append([group.rank, *group.values, *(told[name] for name in figures)])
    return ["rank", *_named_apart(found.by, ("rank", *figures)), *figures], rows


def _named_apart(keys: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names of columns for parameters that differ from those of the others."""
    return [f"parameters.{key}" if key in taken else key for key in keys]
