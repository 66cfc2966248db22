"""Jobs that wait for others: siblings of another stage, and the segments of a chain. Pure.

A job that has begun is its own: only before that do its parents say whether it may start, or end it. What
ended because of a parent comes back with it (`Session.orphans`). All of this follows from the state of a
session alone, and so goes on wherever a leader dies.
"""

from __future__ import annotations

from collections.abc import Collection

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import CONDITION, PARENT, SUCCESS, Job, JobState, Parent
from oellm_autoexp.core.session import Session

_LOST = (JobState.FAILED, JobState.CANCELLED)


def waits(session: Session, job: Job, *, played: bool = False) -> str:
    """For whom a job waits; "" if it may start as far as its parents are concerned.

    Where conditions are only `played`, they hold when the parent that they speak of has begun.
    """
    if not job.spec.parents or job.begun:
        return ""
    for parent in job.spec.parents:
        if parent.gate == SUCCESS and not _has(session, parent, JobState.SUCCEEDED):
            return f"waits until {parent.called} has succeeded"
        found = session.jobs.get(parent.job)
        if parent.gate == CONDITION and played and (found is None or not found.begun):
            return f"waits until {parent.called} has begun"
    return ""


def over(session: Session, job: Job) -> bool:
    """Whether all that its start condition speaks of has come to its end, before the job has begun."""
    gating = [parent for parent in job.spec.parents if parent.gate == CONDITION]
    return bool(gating) and not job.begun and all(_has(session, each, JobState.SUCCEEDED) for each in gating)


def too_late(job: Job, said: str, now: float) -> ev.EndWished:
    """The end of a job whose start condition can no longer hold."""
    gating = " and ".join(parent.called for parent in job.spec.parents if parent.gate == CONDITION)
    why = f"its start condition will not hold any more: {gating} has succeeded, and {said}"
    return ev.EndWished(at=now, job=job.spec.name, why=why, by="start_condition", mode="cancelled")


def orphaned(session: Session, now: float) -> tuple[ev.EndWished, ...]:
    """The waiting jobs that never begin, since a parent of theirs has failed for good."""
    found = []
    for name in session.waiting:
        job = session.jobs[name]
        if not job.spec.parents or job.end_wish is not None or job.begun:
            continue
        parent = lost_parent(session, job)
        if parent is not None:
            why = f"{parent.called} {_became(session.jobs[parent.job])}"
            found.append(ev.EndWished(at=now, job=name, why=why, by=PARENT, mode="cancelled"))
    return tuple(found)


def revived(session: Session, now: float) -> tuple[ev.JobRetried, ...]:
    """The jobs that ended because of a parent only, and may wait for it again."""
    jobs = session.jobs
    return tuple(
        ev.JobRetried(at=now, job=name, by=PARENT)
        for name in session.orphans
        if jobs[name].planned and lost_parent(session, jobs[name]) is None
    )


def lost_parent(session: Session, job: Job, except_for: Collection[str] = ()) -> Parent | None:
    """The first parent that ended without success, and is none of those that start again."""
    for parent in job.spec.parents:
        if parent.job not in except_for and _has(session, parent, *_LOST):
            return parent
    return None


def culprits(session: Session, job: Job) -> list[str]:
    """The jobs whose end is why an orphan never began: those to be retried."""
    found: dict[str, None] = {}
    seen, left = {job.spec.name}, [job]
    while left:
        for parent in left.pop().spec.parents:
            if parent.job in seen or not _has(session, parent, *_LOST):
                continue
            seen.add(parent.job)
            above = session.jobs[parent.job]
            if above.orphaned:
                left.append(above)
            else:
                found[parent.job] = None
    return list(found)


def _has(session: Session, parent: Parent, *states: JobState) -> bool:
    found = session.jobs.get(parent.job)
    return found is not None and found.state in states


def _became(job: Job) -> str:
    what = "never began" if job.orphaned else "failed" if job.state is JobState.FAILED else "was cancelled"
    return f"{what}: {job.reason}"
