"""How jobs fare by the values of their parameters, told from the journal alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oellm_autoexp.core.analysis import Analysis, Case, Finding, Kind, ValueRow, analysis
from oellm_autoexp.core.goodput import Goodput
from oellm_autoexp.core.model import Attempt, Job, JobState
from oellm_autoexp.errors import UsageError, did_you_mean
from oellm_autoexp.planning.sweep_json import text_of
from oellm_autoexp.services.goodput import percent
from oellm_autoexp.services.results_text import NO_VALUE, shown
from oellm_autoexp.services.session import History
from oellm_autoexp.services.views import duration

_MS_PER_HOUR = 3_600_000


def analyzed(past: History, now: float, *, min_support: int = 3, by: Sequence[str] = ()) -> Analysis:
    """The analysis of a session as it is at `now` (UTC epoch seconds).

    Raises:
        UsageError: no job has a parameter of `by`.
    """
    jobs = sorted(past.session.jobs.values(), key=lambda job: job.spec.index)
    known = list(dict.fromkeys(key for job in jobs for key in job.spec.parameters))
    for key in by:
        if key not in known:
            hint = did_you_mean(key, known) or "there are no parameters"
            raise UsageError(f"no job has a parameter `{key}`", where="--by", hint=hint)
    cases = [_case(job, past.ledger.of(job.spec.name, now), now) for job in jobs]
    return analysis(cases, min_support=min_support, by=by)


def _case(job: Job, spent: Goodput, now: float) -> Case:
    # What an earlier verdict was about does not count: a person has started it anew since.
    attempts = [attempt for attempt in job.attempts if attempt.number >= job.first_attempt]
    modes = {attempt.mode for attempt in attempts if attempt.mode and attempt.mode != "success"}
    if job.state is JobState.FAILED and job.mode:
        modes.add(job.mode)
    return Case(
        parameters={key: text_of(value) for key, value in job.spec.parameters.items()},
        succeeded=job.state is JobState.SUCCEEDED,
        failed=job.state is JobState.FAILED,
        cancelled=job.state is JobState.CANCELLED,
        running=job.state is JobState.RUNNING,
        begun=any(attempt.started_at is not None for attempt in attempts),
        modes=frozenset(modes),
        run_s=sum(_ran(attempt, now) for attempt in attempts),
        gpu_hours=spent.held_gpu_ms / _MS_PER_HOUR,
    )


def _ran(attempt: Attempt, now: float) -> float:
    if attempt.started_at is None:
        return 0.0
    return max(0.0, (attempt.ended_at if attempt.ended_at is not None else now) - attempt.started_at)


# ---------------------------------------------------------------- for programs


def as_json(found: Analysis, top: int) -> dict[str, Any]:
    """The contract of `collections analyze --json`. Rates are shares of the jobs that have a verdict."""
    return {
        "parameters": list(found.keys),
        "findings": [_finding_as_json(finding) for finding in found.findings[:top]],
        "values": [_row_as_json(row) for row in found.rows[:top]],
        "left_out": {
            "below_support": found.below_support,
            "beyond_top": max(0, len(found.rows) - top),
        },
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "parameter": finding.key,
        "value": finding.value,
        "kind": finding.kind.value,
        "mode": finding.mode or None,
        "have": finding.have,
        "of": finding.of,
        "others_have": finding.others_have,
        "others_of": finding.others_of,
        "chance": finding.chance,
        "text": sentence(finding),
    }


def _row_as_json(row: ValueRow) -> dict[str, Any]:
    return {
        "parameter": row.key,
        "value": row.value,
        "jobs": row.jobs,
        "succeeded": row.succeeded,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "running": row.running,
        "success_rate": row.rate(row.succeeded),
        "failure_rate": row.rate(row.failed),
        "running_rate": row.running / row.jobs,
        "modes": dict(row.modes),
        "median_run_s": None if row.median_run_s is None else round(row.median_run_s, 1),
        "hours": round(row.hours, 6),
        "gpu_hours": round(row.gpu_hours, 6),
    }


# ---------------------------------------------------------------- for people


def sentence(finding: Finding) -> str:
    """One difference, in a line: `lr=0.1: 4 of 4 crash.nan, others 0 of 12`."""
    what = f"{shown(finding.key)}={NO_VALUE if finding.value is None else shown(finding.value)}"
    if finding.kind is Kind.RUN_TIME:
        here, there = duration(finding.have), duration(finding.others_have)
        return f"{what}: median run time {here}, others {there}"
    of = "failed" if finding.kind is Kind.FAILED else finding.mode
    others = f"others {finding.others_have:g} of {finding.others_of}"
    return f"{what}: {finding.have:g} of {finding.of} {of}, {others}"


def table(found: Analysis, top: int) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people."""
    gpus = any(row.gpu_hours for row in found.rows)
    header = [
        "parameter",
        "value",
        "jobs",
        "succeeded",
        "failed",
        "running",
        "ended by",
        "median run",
        "hours",
    ]
    rows = []
    for row in found.rows[:top]:
        cells = [
            shown(row.key),
            NO_VALUE if row.value is None else shown(row.value),
            str(row.jobs),
            _share(row, row.succeeded),
            _share(row, row.failed),
            str(row.running or ""),
            ", ".join(f"{mode} {count}" for mode, count in row.modes.items()),
            "" if row.median_run_s is None else duration(row.median_run_s),
            f"{row.hours:,.1f}",
        ]
        rows.append([*cells, f"{row.gpu_hours:,.1f}"] if gpus else cells)
    return [*header, "GPU-hours"] if gpus else header, rows


def _share(row: ValueRow, count: int) -> str:
    rate = row.rate(count)
    return "" if rate is None else f"{count} of {row.ended} ({percent(rate)})"


def remarks(found: Analysis, top: int, min_support: int) -> list[str]:
    """What the table leaves out."""
    out = []
    if found.below_support:
        values = "1 value" if found.below_support == 1 else f"{found.below_support} values"
        out.append(f"{values} with fewer than {min_support} jobs left out: --min-support 1 shows them")
    beyond = len(found.rows) - top
    if beyond > 0:
        out.append(f"{beyond} more below these: --top {len(found.rows)} shows them")
    return out
