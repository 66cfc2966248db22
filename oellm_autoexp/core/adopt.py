"""A job that somebody has submitted by hand becomes the first attempt of a job of a session.

Its evidence is the scheduler's word and its log alone: it has no guard, and so no record of its exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.admission import token_of
from oellm_autoexp.core.model import Job, JobSpec, SchedulerRef
from oellm_autoexp.core.reconcile import opening
from oellm_autoexp.core.session import Session


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What to journal, and a sentence for the one who asked. Nothing to journal: it is watched already."""

    text: str
    events: tuple[ev.Event, ...] = ()
    refused: bool = False


def adopt(session: Session, given: Sequence[ev.Event], log_path: str, now: float) -> Adopted:
    """Take a foreign job in.

    `given`: SessionOpened, RulesSet, JobAdded with the spec that later attempts are made from, SubmitAccepted
    with the one reference. `log_path` is the log of the foreign job alone.
    """
    opened = next(event for event in given if isinstance(event, ev.SessionOpened))
    rules = next(event for event in given if isinstance(event, ev.RulesSet))
    spec = next(event.spec for event in given if isinstance(event, ev.JobAdded))
    (ref,) = next(event.refs for event in given if isinstance(event, ev.SubmitAccepted))
    known = _known(session, spec)
    watched = _watched(session, ref)
    if watched is not None:
        return Adopted(text=f"{ref.id} is watched already, as {watched.spec.name} ({watched.state.value})")
    alive = known is not None and (known.live is not None or known.successor is not None)
    if known is not None and (known.spec.id != spec.id or alive or known.state.ended):
        why = (
            "is another job" if known.spec.id != spec.id else f"has attempts of its own ({known.state.value})"
        )
        return Adopted(text=f"{known.spec.name} {why}: give {ref.id} another --name", refused=True)
    name = spec.name if known is None else known.spec.name
    number = 1 if known is None or known.attempt is None else known.attempt.number + 1
    spec = replace(spec, name=name)
    first = replace(spec, log_path=log_path)
    nonce = session.opened.nonce if session.opened is not None else opened.nonce
    jobs = ((name, number),)
    token = token_of(nonce, jobs)
    return Adopted(
        text=f"{ref.id} is watched as {name}",
        events=(
            *opening(session, opened),
            *(() if spec.rules in session.rules else (rules,)),
            ev.JobAdded(at=now, spec=first) if known is None else ev.JobUpdated(at=now, job=name, spec=first),
            ev.SubmitRequested(at=now, token=token, jobs=jobs),
            ev.SubmitSpawned(at=now, token=token),
            ev.SubmitAccepted(at=now, token=token, refs=(ref,), adopted=True),
            # From the next attempt on it is a job like any other.
            ev.JobUpdated(at=now, job=name, spec=spec),
        ),
    )


def _known(session: Session, spec: JobSpec) -> Job | None:
    same = (job for job in session.jobs.values() if job.spec.id == spec.id)
    return next(same, None) or session.jobs.get(spec.name)


def _watched(session: Session, ref: SchedulerRef) -> Job | None:
    """The job of which it is an attempt; ids are used again, so that the time of submission counts too."""
    for job in session.jobs.values():
        for attempt in job.attempts:
            theirs = attempt.ref
            if theirs is not None and _identity(theirs) == _identity(ref):
                return job
    return None


def _identity(ref: SchedulerRef) -> tuple[str, str, float]:
    return ref.cluster, ref.id, ref.submitted_at
