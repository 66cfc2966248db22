"""From the state of a session to rows that a person or a program reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.holds import holds
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import CONDITION, PARENT, Attempt, Job, JobState, Parent, Scalar
from oellm_autoexp.core.nodes import NodeExclusion
from oellm_autoexp.core.parents import culprits
from oellm_autoexp.core.session import Session
from oellm_autoexp.core.verdict import format_duration
from oellm_autoexp.schedulers.slurm.states import explained
from oellm_autoexp.store.series import last_values

Counts = dict[str, int]
_OUTCOMES = ("done", "failed", "open")
#: Signals of one look that are told one by one.
MANY = 3


def moment(session: Session, now: float) -> float:
    """The present of a session's jobs: `now`, or how far the virtual time of a rehearsal has come."""
    if session.opened is None or session.opened.scheduler.get("class_name") != "FakeSlurmClient":
        return now
    attempts = [attempt for job in session.jobs.values() for attempt in job.attempts]
    times = [(a.requested_at, a.started_at, a.ended_at, a.progressed_at) for a in attempts]
    return max((at for each in times for at in each if at is not None), default=session.opened.at)


def rows(session: Session, paths: SessionPaths, jobs: Sequence[Job], now: float) -> list[dict[str, Any]]:
    """One mapping a job: the contract of `status --json`, and more."""
    actions = _actions(session)
    return [_row(job, paths, actions.get(job.spec.name, {}), now) for job in jobs]


def _queued(attempt: Attempt | None) -> str:
    """Why an attempt waits in the queue, and what can be done about it."""
    return explained(attempt.pending_reason) if attempt is not None else ""


def behind(number: int, scheduler_id: str, *, waits: bool = False) -> str:
    """That an attempt waits behind the end of the live one, or as its job does, which `waits` for others."""
    return f"attempt {number} waits in the queue {'for that' if waits else 'behind it'} ({scheduler_id})"


def _successor(job: Job) -> dict[str, Any] | None:
    waits = job.successor
    return {"number": waits.number, "scheduler_id": waits.ref.id} if waits and waits.ref else None


def _row(job: Job, paths: SessionPaths, actions: Mapping[str, Counts], now: float) -> dict[str, Any]:
    attempt = job.attempt
    ran = [_ran(past, now) for past in job.attempts]
    return {
        "name": job.spec.name,
        "state": job.state.value,
        "attempts": len(job.attempts),
        "restarts": job.restarts,
        "error_mode": job.mode,
        "reason": job.reason or job.hold or _queued(attempt),
        "scheduler_id": attempt.ref.id if attempt and attempt.ref else None,
        "successor": _successor(job),
        "parameters": dict(job.spec.parameters),
        "parents": [parent.job for parent in job.spec.parents],
        "output_dir": job.spec.output_dir,
        "log_path": attempt.log_path if attempt else job.spec.log_of(1),
        "metrics": last_values(paths.series(job.spec.name)),
        "progress": dict(job.high_water),
        "actions": {
            **{key: sum(counts[key] for counts in actions.values()) for key in _OUTCOMES},
            "by_name": {name: dict(counts) for name, counts in actions.items()},
        },
        "wall_s": round(sum(ran), 1),
        "lost_s": round(sum(_lost(past) for past in job.attempts), 1),
        "ended_by": [past.mode for past in job.attempts if past.mode],
        "decisions": [text for past in job.attempts if (text := _restarted(past))],
    }


def _restarted(attempt: Attempt) -> str:
    """The restart that followed an attempt, and why; "" where none did."""
    kind, _, why = attempt.decision.partition(": ")
    return f"{why}: {attempt.reason}" if kind == "restart" else ""


def _ran(attempt: Attempt, now: float) -> float:
    if attempt.started_at is None:
        return 0.0
    return max(0.0, (attempt.ended_at if attempt.ended_at is not None else now) - attempt.started_at)


def _lost(attempt: Attempt) -> float:
    """Run time that an attempt without success threw away: what came after its last observed progress."""
    if not attempt.mode or attempt.mode == "success" or attempt.started_at is None:
        return 0.0
    kept = attempt.progressed_at if attempt.progressed_at is not None else attempt.started_at
    return max(0.0, (attempt.ended_at or kept) - max(kept, attempt.started_at))


def _actions(session: Session) -> dict[str, dict[str, Counts]]:
    """How many actions are done, failed or open, by job and by the action's name."""
    out: dict[str, dict[str, Counts]] = {}
    for state in session.actions.values():
        mine = out.setdefault(state.request.job, {})
        counts = mine.setdefault(state.request.action, dict.fromkeys(_OUTCOMES, 0))
        counts["open" if state.ended is None else "done" if state.ended.ok else "failed"] += 1
    return out


def counts(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs are in each state that has any."""
    found = {state.value: 0 for state in JobState}
    for job in jobs:
        found[job.state.value] += 1
    return {state: number for state, number in found.items() if number}


def columns(row: Mapping[str, Any], wanted: Sequence[str]) -> list[Scalar]:
    """The values of columns: parameters, metrics, progress, or fields of the row."""
    out: list[Scalar] = []
    for name in wanted:
        for source in (row["parameters"], row["metrics"], row["progress"], row):
            if name in source:
                out.append(source[name])
                break
        else:
            out.append(None)
    return out


def timeline(events: Sequence[ev.Event], session: Session, job: Job) -> list[tuple[float, str]]:
    """What happened to a job and why, in the order of time."""
    name = job.spec.name
    submitted = {attempt.token: attempt for attempt in _tries(job)}
    out: list[tuple[float, bool, str]] = []
    for event in events:
        text = _submission(event, submitted) if isinstance(event, ev.SubmitAccepted) else ""
        if getattr(event, "job", None) == name:
            text = told(event)
        elif isinstance(event, ev.ActionEnded) and session.actions[event.key].request.job == name:
            request = session.actions[event.key].request
            how = "done" if event.ok else f"failed: {event.reason}"
            text = f"action {request.action} for {request.rule}: {how}"
        elif isinstance(event, ev.JobAdded) and event.spec.name == name:
            text = "added to the session"
        if text:
            # A log is read before the scheduler's answer is taken in: both are of one tick.
            out.append((event.at, not isinstance(event, ev.AttemptStarted), text))
    return [(at, text) for at, _, text in sorted(out, key=lambda item: item[:2])]


def _tries(job: Job) -> tuple[Attempt, ...]:
    return (*job.attempts, job.successor) if job.successor is not None else job.attempts


def by_job(events: Iterable[ev.Event], session: Session) -> dict[str, list[ev.Event]]:
    """The events that `timeline` tells of each job, sorted once for all of them."""
    owners: dict[str, list[str]] = {}
    for job in session.jobs.values():
        for attempt in _tries(job):
            owners.setdefault(attempt.token, []).append(job.spec.name)
    out: dict[str, list[ev.Event]] = {name: [] for name in session.jobs}
    for event in events:
        if isinstance(event, ev.SubmitAccepted):
            names = owners.get(event.token, [])
        elif isinstance(event, ev.ActionEnded):
            names = [session.actions[event.key].request.job]
        elif isinstance(event, ev.JobAdded):
            names = [event.spec.name]
        else:
            names = [getattr(event, "job", "")]
        for name in names:
            if name in out:
                out[name].append(event)
    return out


def suspects(session: Session, now: float) -> list[dict[str, Any]]:
    """One mapping a node that is excluded or suspected: the contract of `nodes --json`."""
    given = (session.opened.scheduler if session.opened is not None else {}).get("node_exclusion", {})
    rules = None if given is None else NodeExclusion(**given)
    return [
        {
            "node": each.node,
            "state": "excluded" if each.excluded else "suspected",
            "score": round(each.score, 4),
            "why": each.why,
            "by": "user" if each.by_user else "policy",
            "until": each.until,
        }
        for each in session.nodes.suspects(now, rules)
    ]


def nodes_in_words(session: Session, now: float) -> str:
    """The nodes that jobs are kept off, in a line; "" where there are none."""
    names = [row["node"] for row in suspects(session, now) if row["state"] == "excluded"]
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return f"Nodes left out: {', '.join(names[:MANY])}{more}" if names else ""


def canaries_in_words(session: Session) -> str:
    """What the other jobs wait for, in a line; "" where they do not."""
    held = holds(session)
    waiting = sum(1 for job in session.jobs.values() if held.canary and job.hold == held.canary)
    return f"{waiting} jobs wait; {held.canary}" if waiting else ""


def conclusion(session: Session, paths: SessionPaths, job: Job) -> dict[str, list[str]]:
    """What a person wants to know at the end: the cause, what was done about it, and what can be typed."""
    name, state_dir, attempt = job.spec.name, str(paths.state_dir), job.attempt
    done = [
        f"attempt {past.number}: {_restarted(past) or past.decision}"
        for past in job.attempts
        if past.decision
    ]
    if attempt is not None and attempt.alive and attempt.cancel is not None:
        done.append(f"attempt {attempt.number} is being cancelled: {attempt.cancel.why}")
    if job.successor is not None and job.successor.ref is not None:
        done.append(behind(job.successor.number, job.successor.ref.id, waits=job.live is None))
    carried = [state for state in session.actions.values() if state.request.job == name]
    failed = [state.request for state in carried if state.ended is not None and not state.ended.ok]
    if carried:
        done.append(f"{len(carried) - len(failed)} of {len(carried)} actions done or under way")
    done += [f"action {request.action} for {request.rule} failed" for request in failed[-3:]]
    cause = f"{job.mode}: {job.reason}" if job.mode else job.hold or _queued(attempt)
    can = [f"oellm-autoexp logs {state_dir} {name}"] if attempt is not None else []
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        to_retry = " ".join(culprits(session, job)) if job.orphaned else name
        can.append(f"oellm-autoexp retry {state_dir} {to_retry}")
    elif not job.state.ended:
        can.append(f"oellm-autoexp cancel {state_dir} {name}")
    after = [_parent(session, parent) for parent in job.spec.parents]
    return {
        "cause": [cause or "nothing went wrong"],
        **({"comes after": after} if after else {}),
        "what was done": done,
        "what you can type": can,
    }


def _parent(session: Session, parent: Parent) -> str:
    found = session.jobs.get(parent.job)
    state = found.state.value if found is not None else "not in this session"
    return f"{parent.called}, {state}" + (", on a start condition" if parent.gate == CONDITION else "")


#: Which jobs are worth a line where not all fit.
_TELLING = ("failed", "unknown", "running", "pending", "submitted", "waiting", "cancelled", "succeeded")


def most_telling(session: Session, limit: int) -> list[Job]:
    """At most `limit` jobs, those that a person should look at first, in plan order."""
    jobs = list(session.jobs.values())
    if len(jobs) <= limit:
        return jobs
    ranked = sorted(range(len(jobs)), key=lambda at: _TELLING.index(jobs[at].state.value))
    return [jobs[at] for at in sorted(ranked[:limit])]


def _submission(event: ev.SubmitAccepted, submitted: Mapping[str, Attempt]) -> str:
    attempt = submitted.get(event.token)
    if attempt is None or attempt.ref is None:
        return ""
    how = "found again by its token" if event.adopted else "submitted"
    shown = ", ".join(attempt.exclude[:MANY]) + (", …" if len(attempt.exclude) > MANY else "")
    waits = f", to wait in the queue behind {attempt.after}" if attempt.after else ""
    return f"attempt {attempt.number} {how}: {attempt.ref.id}{waits}" + (f", not on {shown}" if shown else "")


def is_routine(event: ev.Event) -> bool:
    """What happens all the time while all is well: worth a line in a job's history, not on a terminal."""
    if isinstance(event, ev.SignalsFound):
        return not any(item.mode for item in event.signals)
    return isinstance(event, ev.ProgressMade)


def told(event: ev.Event) -> str:
    match event:
        case ev.AttemptStarted():
            return f"attempt {event.attempt} runs" + (f" on {event.nodes}" if event.nodes else "")
        case ev.AttemptPending():
            return f"attempt {event.attempt} waits in the queue" + (
                f": {explained(event.reason)}" if event.reason else ""
            )
        case ev.AttemptEnded():
            return f"attempt {event.attempt} ended, {event.mode}: {event.reason}  [{event.evidence}]"
        case ev.SignalsFound() if event.signals:
            found = "; ".join(f"{item.rule}: {item.line.strip()}" for item in event.signals[:MANY])
            more = f"; and {len(event.signals) - MANY} more" if len(event.signals) > MANY else ""
            return f"found in {event.file}: {found}{more}"
        case ev.CancelRequested():
            return f"attempt {event.attempt} is to be cancelled by {event.by}: {event.why}"
        case ev.RestartScheduled():
            waited = f", with attempt {event.successor}, which waited in the queue" if event.successor else ""
            return f"{event.why}{waited}  [policy for {event.entry}]"
        case ev.JobEnded():
            return f"{event.state}: {event.reason}" + (f"  [{event.by}]" if event.by else "")
        case ev.JobHeld():
            return f"held: {event.why}" if event.why else "no longer held"
        case ev.EndWished():
            return f"to end as {event.mode}, by {event.by}: {event.why}"
        case ev.JobRetried():
            return "waits again, since its parent does" if event.by == PARENT else "started again by a person"
        case ev.JobUpdated():
            return "the plan has changed"
        case ev.ActionEnded() if not event.ok:
            return f"action failed: {event.reason}"
        case ev.ProgressMade():
            return f"progress: {event.counter} {event.value:g}"
        case _:
            return _told_rarely(event)


def _told_rarely(event: ev.Event) -> str:
    match event:
        case ev.AttemptRequeued():
            count = f"restart {event.requeues} of this id"
            return f"attempt {event.attempt} was taken back by the scheduler, to start again ({count})"
        case ev.SuccessorDropped():
            return f"attempt {event.attempt}, which waits in the queue, is not to begin: {event.why}"
        case ev.SuccessorTaken():
            return f"attempt {event.attempt}, which waited in the queue, goes on: its time has come"
        case ev.SuccessorSettled():
            what = "had begun by itself" if event.begun else "is out of the queue, and never begins"
            return f"attempt {event.attempt} {what}"
        case ev.NodesSuspected():
            shown = ", ".join(event.nodes[:MANY]) + (", …" if len(event.nodes) > MANY else "")
            share = " each, for one of them may be to blame" if event.share and len(event.nodes) > 1 else ""
            return f"against {shown}: {event.what} (weight {event.weight:.2g}{share})"
        case ev.NodesTrusted():
            return f"it went well on {', '.join(event.nodes[:MANY])}, which were suspected"
        case ev.ExclusionUpdated():
            return f"attempt {event.attempt}, still queued, is not to start on {', '.join(event.exclude)}"
        case ev.CanaryProved():
            return f"the canary works: {event.why}"
        case _:
            return ""


def format_day(seconds: float) -> str:
    """A moment of a rehearsal, in seconds after its start: `day 3 04:12`."""
    minutes = int(seconds // 60)
    return f"day {minutes // 1440 + 1:>2} {minutes // 60 % 24:02d}:{minutes % 60:02d}"


def duration(seconds: float) -> str:
    """Seconds for people: `8 s` below a minute, else as Slurm writes it."""
    return f"{seconds:.0f} s" if seconds < 60 else format_duration(seconds)
