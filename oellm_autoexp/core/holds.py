"""Why jobs that have not begun wait though nothing of their own keeps them: the breaker, and the canaries.

Jobs that have begun go on within their budgets: they are what shows whether a sweep works after all.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import BREAKER, Job, JobState, Phase
from oellm_autoexp.core.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """What holds jobs that have not begun; "" for nothing."""

    breaker: str = ""
    canary: str = ""
    canaries: Collection[str] = ()

    def of(self, job: Job) -> str:
        """Why a job without a verdict may not be submitted; "" if it may."""
        if job.begun:
            return ""
        return self.breaker or ("" if job.spec.name in self.canaries else self.canary)


def holds(session: Session) -> Holds:
    """What holds jobs now."""
    tripped, first = session.breaker, canaries(session)
    return Holds(
        breaker=f"breaker: {len(tripped.jobs)} jobs died early of `{tripped.cause}`" if tripped else "",
        canary=_of_canaries(first),
        canaries=frozenset(job.spec.name for job in first),
    )


def halt(session: Session) -> str:
    """What keeps everything from going on without a person: "breaker" or "canary"; "" while something can."""
    if session.live:
        return ""
    found = holds(session)
    if not (found.breaker or found.canary):
        return ""
    if not all(found.of(session.jobs[name]) for name in session.waiting):
        return ""
    return "breaker" if found.breaker else "canary"


# ---------------------------------------------------------------- canaries


def canaries(session: Session) -> list[Job]:
    """The jobs that go first: so many as the session was opened with, in plan order.

    None of them waits for another job, which would wait for it in turn.
    """
    wanted = int(session.opened.scheduler.get("canary") or 0) if session.opened is not None else 0
    if not wanted:
        return []
    planned = (job for job in session.jobs.values() if job.planned and not job.spec.parents)
    return heapq.nsmallest(wanted, planned, key=lambda job: job.spec.index)


def _of_canaries(jobs: Collection[Job]) -> str:
    for job in jobs:
        if job.state in (JobState.FAILED, JobState.CANCELLED) and not job.proved:
            return f"canary {job.spec.name} {job.state.value}: {job.reason}"
    left = [job.spec.name for job in jobs if not _has_proved(job)]
    return f"waits for canaries: {', '.join(left)}" if left else ""


def _has_proved(job: Job) -> bool:
    return job.proved or job.state is JobState.SUCCEEDED


def proof(job: Job, now: float, *, startup_grace_s: float, progress_known: bool) -> str:
    """How a canary shows that it works, once it does: it runs past its start-up, and gets ahead.

    Getting ahead is asked only of jobs that declare a counter or checkpoints, or have reported some.
    """
    attempt = job.live
    if attempt is None or attempt.phase is not Phase.RUNNING or attempt.started_at is None:
        return ""
    if job.proved or job.state is not JobState.RUNNING or now - attempt.started_at < startup_grace_s:
        return ""
    if attempt.progressed:
        return "it has got ahead and is past its start-up"
    return "" if progress_known or job.high_water else "it runs and is past its start-up"


# ---------------------------------------------------------------- the breaker


def breaker(session: Session, threshold: int | None, now: float) -> tuple[ev.Event, ...]:
    """Trip when several jobs died early of the same cause; reset when one of them gets ahead after all.

    Deaths that all befell one node are left to node exclusion.
    """
    if session.breaker is not None:
        ahead = [name for name in session.breaker.jobs if _gets_ahead(session.jobs[name])]
        return (ev.BreakerReset(at=now, by=ahead[0]),) if ahead else ()
    if threshold is None:
        return ()
    for cause, jobs in session.early_deaths.items():
        if len(jobs) >= threshold and not _on_one_node(jobs.values()) and _some_are_left(session):
            return (ev.BreakerTripped(at=now, cause=cause, jobs=tuple(jobs)),)
    return ()


def _gets_ahead(job: Job) -> bool:
    return job.state is JobState.SUCCEEDED or (job.attempt is not None and job.attempt.progressed)


def _on_one_node(places: Collection[str]) -> bool:
    lists = set(places)
    return len(lists) == 1 and len(expand(next(iter(lists)))) == 1


def _some_are_left(session: Session) -> bool:
    names = chain(session.waiting, session.alive)
    return any(not session.jobs[name].begun for name in names)


def withdrawals(session: Session, now: float) -> tuple[ev.CancelRequested, ...]:
    """The queued attempts of jobs that the breaker holds leave the queue; they may come back later."""
    tripped = session.breaker
    if tripped is None:
        return ()
    why = f"withdrawn from the queue: {len(tripped.jobs)} jobs died early of `{tripped.cause}`"
    found = []
    for name in session.alive:
        job = session.jobs[name]
        attempt = job.live
        if attempt is None or attempt.phase is not Phase.ACCEPTED or attempt.cancel is not None:
            continue
        if job.state in (JobState.SUBMITTED, JobState.PENDING) and not job.begun and job.end_wish is None:
            found.append(
                ev.CancelRequested(
                    at=now, job=name, attempt=attempt.number, why=why, by=BREAKER, mode="preempted"
                )
            )
    return tuple(found)
