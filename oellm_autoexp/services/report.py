"""One file about a session for somebody who was not there. It is all told by the journal and the metrics."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.goodput import Goodput
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.metrics import better_by_name
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.core.spans import Span
from oellm_autoexp.errors import StateError, UsageError
from oellm_autoexp.reactions.policies import in_force
from oellm_autoexp.rendering import html, markdown
from oellm_autoexp.rendering.document import (
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
from oellm_autoexp.services import goodput, results, results_text, views
from oellm_autoexp.services.session import History
from oellm_autoexp.store.effects import Effects

FORMS: Mapping[str, Callable[[str, Sequence[Block]], str]] = {"html": html.page, "md": markdown.page}
#: Lines of one job's history that are told; the first and the last ones of a longer one.
MOST_LINES = 200
#: Metrics that a row of the table has room for.
MOST_METRICS = 4
#: Metrics by which jobs are ranked, and the rows of each.
MOST_RANKED, MOST_ROWS = 2, 20
#: Anybody may read what is written to be sent.
_MODE = 0o644


def write(text: str, path: Path) -> None:
    """Write a report.

    Raises:
        UsageError: the path is a directory.
        StateError: it cannot be written.
    """
    if path.is_dir():
        raise UsageError(
            "it is a directory", where=str(path), hint=f"name a file in it: {path / 'report.html'}"
        )
    try:
        Effects().write(path, text.encode(errors="replace"), mode=_MODE)
    except OSError as error:
        raise StateError(f"cannot be written: {error.strerror}", where=str(path)) from error


def report(past: History, paths: SessionPaths, form: str, now: float) -> str:
    """The report of a session as it is at `now` (UTC epoch seconds), in a form of `FORMS`.

    Raises:
        UsageError: nothing has been submitted yet.
    """
    if past.session.opened is None:
        raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
    found = _Found.of(past, paths, now)
    blocks = [
        *_summary(found),
        *_time(found),
        *_jobs(found),
        *_results(found),
        *_failures(found),
        *_histories(found),
        *_asked(found),
        *_again(found),
    ]
    return FORMS[form](f"Report on {past.session.opened.project}", blocks)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the parts of a report draw on."""

    past: History
    paths: SessionPaths
    now: float
    opened: ev.SessionOpened
    jobs: Sequence[Job]
    rows: Sequence[Mapping[str, Any]]
    spans: Mapping[str, Sequence[Span]]
    spent: Mapping[str, Goodput]
    whole: Goodput

    @classmethod
    def of(cls, past: History, paths: SessionPaths, now: float) -> _Found:
        assert past.session.opened is not None
        jobs = sorted(past.session.jobs.values(), key=lambda job: job.spec.index)
        names = [job.spec.name for job in jobs]
        return cls(
            past=past,
            paths=paths,
            now=now,
            opened=past.session.opened,
            jobs=jobs,
            rows=views.rows(past.session, paths, jobs, now),
            spans={name: past.ledger.spans(name, now) for name in names},
            spent={name: past.ledger.of(name, now) for name in names},
            whole=past.ledger.total(names, now),
        )


# ---------------------------------------------------------------- parts


def _summary(found: _Found) -> Iterator[Block]:
    states = ", ".join(f"{number} {state}" for state, number in views.counts(found.jobs).items())
    first = min((event.at for event in found.past.events), default=found.now)
    yield Paragraph(text=f"{states or 'no jobs'}. Begun {_utc(first)}, as of {_utc(found.now)}.")
    line = goodput.in_a_line(found.whole)
    if line:
        yield Paragraph(text=line)
    if found.past.session.breaker is not None:
        yield Paragraph(
            text=f"Waiting jobs are held: several died early of {found.past.session.breaker.cause}"
        )


def _time(found: _Found) -> Iterator[Block]:
    whole = found.whole
    if whole.ettr is None:
        return
    yield Heading(text="Where the time went")
    yield _shares(whole)
    gpus = bool(whole.held_gpu_ms)
    rows: list[list[Cell]] = []
    for part, ms in whole.ms.items():
        cells: list[Cell] = [
            Swatch(kind=part.value, text=goodput.NAMES[part]),
            goodput.percent(ms / whole.wall_ms),
            views.duration(ms / 1000),
        ]
        rows.append([*cells, f"{whole.gpu_ms[part] / 3.6e6:,.1f}"] if gpus else cells)
    header = ["part", "share", "job time", *(["GPU-hours"] if gpus else [])]
    yield Table(header=header, rows=rows, right=(1, 2, 3))
    yield Paragraph(
        text="Job time is the wall time of all jobs added up, each from its first submission to its verdict. "
        f"ETTR is the productive share of it. Progress: {goodput.KNOWN_BY[whole.basis]}."
    )


def _shares(spent: Goodput) -> Bar:
    pieces, at = [], 0
    for part, ms in spent.ms.items():
        if ms:
            said = f"{goodput.NAMES[part]} {goodput.percent(ms / spent.wall_ms)}"
            pieces.append((part.value, at / spent.wall_ms, (at + ms) / spent.wall_ms, said))
            at += ms
    return Bar(pieces=pieces, text=", ".join(said for *_, said in pieces))


def _jobs(found: _Found) -> Iterator[Block]:
    yield Heading(text="Jobs")
    begin = min((spans[0].begin_ms for spans in found.spans.values() if spans), default=0)
    end = max((spans[-1].end_ms for spans in found.spans.values() if spans), default=begin + 1)
    header = ["job", "state", "tries", "ended by", "last metrics", "ETTR", "wall", "time", "reason"]
    rows: list[list[Cell]] = []
    for job, row in zip(found.jobs, found.rows, strict=True):
        spent = found.spent[job.spec.name]
        rows.append(
            [
                job.spec.name,
                job.state.value,
                str(row["attempts"]),
                ", ".join(row["ended_by"]),
                ", ".join(f"{name} {_number(value)}" for name, value in _few(row["metrics"])),
                "" if spent.ettr is None else goodput.percent(spent.ettr),
                views.duration(spent.wall_ms / 1000),
                _strip(found.spans[job.spec.name], begin, end, spent),
                row["reason"],
            ]
        )
    yield Table(header=header, rows=rows, right=(2, 5, 6))
    if found.whole.ettr is not None:
        yield Paragraph(text=f"The strips go from {_utc(begin / 1000)} to {_utc(end / 1000)}.")


def _results(found: _Found) -> Iterator[Block]:
    """Who won, by the metrics that most jobs have and whose names tell what is better; a loss comes first."""
    metrics = [
        (name, jobs)
        for name, jobs in results.metrics(found.past, found.paths, found.jobs)
        if jobs > 1 and better_by_name(name) is not None
    ]
    metrics.sort(key=lambda item: (-item[1], "loss" not in item[0]))
    for at, (name, _) in enumerate(metrics[:MOST_RANKED]):
        if at == 0:
            yield Heading(text="Results")
        ranking = results.results(found.past, found.paths, found.jobs, metric=name)
        yield from results_text.blocks(ranking, MOST_ROWS)


def _few(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The metrics with room in a row; what people call a loss comes first."""
    return sorted(metrics.items(), key=lambda item: "loss" not in item[0])[:MOST_METRICS]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _strip(spans: Sequence[Span], begin: int, end: int, spent: Goodput) -> Bar:
    """One job over the time of the session."""
    length = max(1, end - begin)
    pieces = [
        (
            span.part.value,
            (span.begin_ms - begin) / length,
            (span.end_ms - begin) / length,
            f"{goodput.NAMES[span.part]}, {views.duration((span.end_ms - span.begin_ms) / 1000)}"
            + (f", attempt {span.attempt}" if span.attempt else ""),
        )
        for span in spans
    ]
    return Bar(pieces=pieces, text=_shares(spent).text if spent.wall_ms else "not submitted")


def _failures(found: _Found) -> Iterator[Block]:
    """Each attempt that ended badly, with the first error line of its log, and the evidence."""
    rows: list[list[Cell]] = []
    ended = [event for event in found.past.events if isinstance(event, ev.AttemptEnded)]
    for event in ended:
        if not event.mode.startswith("success"):
            rows.append([event.job, str(event.attempt), event.mode, event.reason, event.evidence])
    order = {job.spec.name: job.spec.index for job in found.jobs}
    rows.sort(key=lambda row: (order.get(str(row[0]), 0), int(str(row[1]))))
    if rows:
        yield Heading(text="What went wrong")
        header = ["job", "attempt", "ended by", "first error line, or what was observed", "evidence"]
        yield Table(header=header, rows=rows, right=(1,))


def _histories(found: _Found) -> Iterator[Block]:
    yield Heading(text="What happened and why")
    whole = [(event.at, text) for event in found.past.events if (text := _of_session(event))]
    if whole:
        yield Details(summary="The session", blocks=[_lines(whole)])
    told = [event for event in found.past.events if not _dull(event)]
    by_job = views.by_job(told, found.past.session)
    for job in found.jobs:
        lines = views.timeline(by_job.get(job.spec.name, ()), found.past.session, job)
        summary = f"{job.spec.name}: {job.state.value}" + (f", {job.mode}" if job.mode else "")
        done = views.conclusion(found.past.session, found.paths, job)
        blocks: list[Block] = [_lines(lines)]
        blocks += [Paragraph(text=f"Cause: {text}") for text in done["cause"] if job.state is JobState.FAILED]
        blocks += [Paragraph(text=f"Time: {text}") for text in goodput.in_lines(found.spent[job.spec.name])]
        yield Details(summary=summary, blocks=blocks, unfolded=job.state is JobState.FAILED)


def _dull(event: ev.Event) -> bool:
    """What happens all the time while all is well; the table counts it."""
    return views.is_routine(event) or (isinstance(event, ev.ActionEnded) and event.ok)


def _lines(lines: Sequence[tuple[float, str]]) -> Table:
    rows: list[list[Cell]] = [[_utc(at).removesuffix(" UTC"), text] for at, text in lines]
    if len(rows) > MOST_LINES:
        half = MOST_LINES // 2
        rows = [*rows[:half], ["", f"… {len(rows) - 2 * half} more: oellm-autoexp show …"], *rows[-half:]]
    return Table(header=["time (UTC)", "what"], rows=rows)


def _of_session(event: ev.Event) -> str:
    match event:
        case ev.SessionOpened():
            return "a plan was submitted"
        case ev.SessionEnded():
            return f"the session ended: {event.reason}"
        case ev.Blinded():
            return f"the scheduler stopped answering: {event.reason}"
        case ev.Sighted():
            return "the scheduler answers again"
        case ev.BreakerTripped():
            return f"waiting jobs are held: {', '.join(event.jobs)} died early of {event.cause}"
        case ev.BreakerReset():
            return f"no longer held, by {event.by}"
        case ev.CommandAnswered():
            return f"{event.verb} by a person: {event.text}"
        case _:
            return ""


def _asked(found: _Found) -> Iterator[Block]:
    source, origin = found.opened.source, found.opened.provenance
    git, python = origin.get("git") or {}, origin.get("python") or {}
    commit = git.get("commit")
    changed = " with changes that are not in it" if git.get("dirty") else ""
    facts = {
        "project": found.opened.project,
        "config": source.get("config"),
        "overrides": " ".join(map(str, source.get("overrides") or ())),
        "scheduler": found.opened.scheduler.get("class_name"),
        "directory": source.get("cwd"),
        "session": str(found.paths.state_dir),
        "commit": f"{commit} (branch {git.get('branch')}){changed}" if commit else "no repository",
        "Python": python.get("version"),
        "versions": ", ".join(
            f"{name} {version}" for name, version in (origin.get("versions") or {}).items()
        ),
    }
    yield Heading(text="What was asked")
    yield Table(header=["", ""], rows=[[name, str(value)] for name, value in facts.items() if value])
    yield Paragraph(text="Restart policies in force, by what ended an attempt:")
    yield Table(header=["error mode", "policy", "settings", "from"], rows=_policies(found))
    config = json.dumps(origin.get("config") or {}, indent=2, ensure_ascii=False)
    yield Details(summary="The resolved config", blocks=[Code(text=config)])


def _policies(found: _Found) -> list[list[Cell]]:
    """Each entry once, whichever jobs it is in force for."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for identity in dict.fromkeys(job.spec.rules for job in found.jobs):
        configured = found.past.session.rules.get(identity, {}).get("restart_policies") or {}
        for mode, entry in sorted(in_force(configured).items()):
            settings = {key: value for key, value in entry.items() if key != "class_name"}
            said = ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
            origin = "config" if mode in configured else "default"
            rows.setdefault((mode, repr(entry)), [mode, str(entry.get("class_name")), said, origin])
    return list(rows.values())


def _again(found: _Found) -> Iterator[Block]:
    source, git = found.opened.source, found.opened.provenance.get("git") or {}
    versions = found.opened.provenance.get("versions") or {}
    words = ["oellm-autoexp", "submit", str(source.get("config") or "CONFIG")]
    if source.get("config_dir"):
        words += ["-C", str(source["config_dir"])]
    for override in source.get("overrides") or ():
        words += ["-o", str(override)]
    if found.opened.scheduler.get("class_name") == "LocalScheduler":
        words.append("--local")
    lines = [shlex.join(["cd", str(source.get("cwd") or ".")])]
    if git.get("commit"):
        lines.append(shlex.join(["git", "checkout", str(git["commit"])]))
    if versions.get("oellm-autoexp"):
        lines.append(shlex.join(["pip", "install", f"oellm-autoexp=={versions['oellm-autoexp']}"]))
    yield Heading(text="How to do it again")
    yield Code(text="\n".join([*lines, shlex.join(words)]))
    if git.get("dirty"):
        yield Paragraph(text="There were changes that the commit does not have; they are not in this report.")
    commands = Table(
        header=["job", "command"], rows=[[job.spec.name, shlex.join(job.spec.argv)] for job in found.jobs]
    )
    yield Details(summary="The command of each job", blocks=[commands])


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
