"""The attempt that waits in the queue behind the end of the live one (`Job.successor`). Pure.

It belongs to the job's attempts only when the live one has ended, and the same is to be tried again at once:
then it is told to go. In all other cases its claim is taken before anything else follows, so that it never
runs. Where nobody tells it anything, and the live one ended by its time limit, it begins by itself; whoever
comes back finds its claim, and takes it for the next attempt.

What waits behind the parents of a job (`core.early`) is the same but for when it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oellm_autoexp.core import events as ev
from oellm_autoexp.core import lifecycle
from oellm_autoexp.core.admission import next_number, token_of
from oellm_autoexp.core.lifecycle import Observation, Rules, evolve, evolve_all, follow
from oellm_autoexp.core.model import Attempt, Job, JobSpec, JobState, Phase
from oellm_autoexp.core.quick import replace
from oellm_autoexp.core.session import Session


def wanted(
    session: Session,
    now: float,
    *,
    rules_of: Callable[[Job], Rules | None],
    left_out: Callable[[Sequence[Job]], tuple[str, ...]] = lambda _jobs: (),
    submit_rate_limit_s: float | None = None,
) -> tuple[ev.SubmitRequested, ...]:
    """The successors to be asked for: one for each job that runs, past its start-up, towards a time limit.

    `rules_of`: None for a job that is to have none.
    """
    assert session.opened is not None
    out: list[ev.SubmitRequested] = []
    for name in session.alive:
        job = session.jobs[name]
        if not _may_have_one(job, now):
            continue
        rules, live, limit = rules_of(job), job.attempts[-1], job.next_limit_s
        if rules is None or live.ref is None or live.started_at is None or limit is None:
            continue
        # What dies early would only fill the queue.
        past = now - live.started_at >= min(rules.startup_grace_s, limit / 2)
        if not past or _unlike(job, _after_limit(job, rules, now), limit, now):
            continue
        pair, exclude = (name, next_number(job)), left_out([job])
        token = token_of(session.opened.nonce, [pair], exclude, live.ref.id)
        out.append(ev.SubmitRequested(at=now, token=token, jobs=(pair,), exclude=exclude, after=live.ref.id))
    if submit_rate_limit_s:
        waited = session.last_spawn_at is None or now - session.last_spawn_at >= submit_rate_limit_s
        out = out[:1] if waited and not session.submissions else []
    return tuple(out)


def _may_have_one(job: Job, now: float) -> bool:
    live = job.attempts[-1]
    return (
        job.successor is None
        and now >= job.successor_at
        and job.state is JobState.RUNNING
        and live.phase is Phase.RUNNING
        and live.cancel is None
        and job.end_wish is None
    )


def decide(
    job: Job, seen: Observation, rules: Rules, fits: Callable[[Job, Attempt], bool]
) -> tuple[ev.Event, ...]:
    """`lifecycle.decide`, for a job of which an attempt may wait behind the live one, or behind its parents.

    `fits`: whether nothing speaks against the nodes that this one may be given, now that the job's latest
    attempt has ended.
    """
    if job.live is None and job.successor is not None:
        return _decide_waiting(job, job.successor, seen, rules)
    dropped = _unwanted(job, seen, rules)
    job = evolve_all(job, dropped)
    events, waits = lifecycle.decide(job, seen, rules), job.successor
    at = next((at for at, event in enumerate(events) if isinstance(event, ev.AttemptEnded)), None)
    if waits is None or at is None:
        return dropped + events
    after, then = evolve_all(job, events[: at + 1]), events[-1]
    if waits.phase is Phase.RUNNING:
        return dropped + events[:-1] + _begun(after, then, waits, seen.now)
    if waits.cancel is None:
        why = _unfit(after, then, waits, seen) or ("" if fits(after, waits) else "nodes are to be left out")
        if not why and isinstance(then, ev.RestartScheduled):
            return (*events[:-1], replace(then, successor=waits.number))
        dropped = (drop(job, waits, why, seen.now),)
    # The end is told once it is certain that nothing else runs.
    return dropped + events[:at]


def _decide_waiting(job: Job, waits: Attempt, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    """A job that is to end before it has begun does so when what waits of it can no longer begin."""
    events = lifecycle.decide(job, seen, rules)
    if not events or not isinstance(events[-1], ev.JobEnded):
        return events
    if waits.phase is Phase.RUNNING:
        return (*events[:-1], ev.SuccessorTaken(at=seen.now, job=job.spec.name, attempt=waits.number))
    if waits.cancel is not None:
        return events[:-1]
    return (*events[:-1], drop(job, waits, events[-1].reason, seen.now))


def _unwanted(job: Job, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    """What waits, and could no longer go on in any case, leaves the queue."""
    waits = job.successor
    if waits is None or waits.cancel is not None or waits.phase is Phase.RUNNING or job.live is None:
        return ()
    if job.end_wish is not None:
        why = job.end_wish.why
    elif seen.successor is not None and seen.successor.state.ended:
        why = f"the scheduler says {seen.successor.state.value}"
    else:
        why = _unlike(job, _after_limit(job, rules, seen.now), waits.time_limit_s, seen.now)
    return (drop(job, waits, why, seen.now),) if why else ()


def _unfit(after: Job, then: ev.Event, waits: Attempt, seen: Observation) -> str:
    """Why what waits cannot be the attempt that follows an end; "" if it can."""
    unlike = _unlike(after, then, waits.time_limit_s, seen.now)
    if unlike:
        return unlike
    if waits.phase is not Phase.ACCEPTED or seen.successor is None or seen.successor.state.ended:
        return "it is not known to be in the queue"
    return ""


def _unlike(job: Job, then: ev.Event, limit_s: int | None, now: float) -> str:
    """Why what follows an end is not the same again, at once; "" if it is."""
    if not isinstance(then, ev.RestartScheduled):
        return "no restart follows"
    if then.not_before > now:
        return "a restart is to wait"
    if then.time_limit_s is not None and then.time_limit_s != limit_s:
        return "a restart has another time limit"
    return "the plan has changed" if plan_has_changed(job) else ""


def plan_has_changed(job: Job) -> bool:
    """Whether what was submitted is no longer what the plan wants."""
    return job.next_spec is not None and _submitted(job.next_spec) != _submitted(job.spec)


def _submitted(spec: JobSpec) -> tuple[object, ...]:
    return spec.id, spec.script_path, spec.script_digest, spec.resources


def _after_limit(job: Job, rules: Rules, now: float) -> ev.Event:
    """What would follow if the live attempt reached its time limit now."""
    number, name = job.attempts[-1].number, job.spec.name
    ended = ev.AttemptEnded(at=now, job=name, attempt=number, mode="timeout", reason="", evidence="")
    return follow(evolve(job, ended), rules, now)


def drop(job: Job, waits: Attempt, why: str, now: float) -> ev.SuccessorDropped:
    """That an attempt which waits is never to begin."""
    return ev.SuccessorDropped(at=now, job=job.spec.name, attempt=waits.number, why=why)


def _begun(after: Job, then: ev.Event, waits: Attempt, now: float) -> tuple[ev.Event, ...]:
    """What has begun by itself is the next attempt; where none was to follow, it is ended in its turn."""
    if isinstance(then, ev.RestartScheduled):
        return (replace(then, successor=waits.number, not_before=now),)
    assert isinstance(then, ev.JobEnded)
    name, latest = after.spec.name, after.attempts[-1]
    taken = ev.RestartScheduled(
        at=now,
        job=name,
        attempt=latest.number,
        mode=latest.mode,
        entry=latest.mode,
        why=f"attempt {waits.number} has begun by itself",
        not_before=now,
        charged=False,
        successor=waits.number,
    )
    if after.end_wish is not None:
        return (taken,)
    wish = ev.EndWished(at=now, job=name, why=then.reason, by=then.by or "policy", mode=then.mode)
    return taken, wish
