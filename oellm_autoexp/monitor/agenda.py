"""Which jobs a tick looks at: what a look costs is paid where it can find something new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from oellm_autoexp.core.model import Job, JobState, Phase, SchedulerFact, SchedulerRef
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.rules import RuleSet


class Rehearsal(Protocol):
    """What a loop is told by a scheduler that is only played: where it need not look."""

    #: No running job may stay unlooked at for longer than this, in seconds.
    longest_s: float
    #: When the loop itself wants to go on, whatever happens before; infinity for never.
    awaited_at: float

    def news(self) -> Iterable[str]:
        """The jobs whose state or log has changed since the last call."""
        ...


class Agenda(Protocol):
    """Chooses the jobs of a tick, and hears what came of each look."""

    def due(self, now: float) -> Iterable[Job]: ...

    def looked(self, name: str, facts: Mapping[SchedulerRef, SchedulerFact], now: float) -> None: ...


class LiveJobs:
    """In life: every job that is alive, and the waiting ones that may end without having been so."""

    def __init__(self, session: Session, rules_of: Callable[[str], RuleSet]) -> None:
        self._session = session
        self._rules_of = rules_of

    def due(self, now: float) -> Iterable[Job]:  # noqa: ARG002 - the other agenda needs it
        jobs, rules_of = self._session.jobs, self._rules_of
        found = [jobs[name] for name in self._session.alive]
        for name in self._session.waiting:
            job = jobs[name]
            if job.end_wish is not None or undecided(job) or rules_of(job.spec.rules).gated:
                found.append(job)
        return found

    def looked(self, name: str, facts: Mapping[SchedulerRef, SchedulerFact], now: float) -> None:
        """A job that is alive is looked at in each tick, whatever was found."""


class NewsOnly:
    """In a rehearsal: the jobs that have something new to show, and those that only time moves on."""

    def __init__(self, session: Session, rehearsal: Rehearsal) -> None:
        self._session = session
        self._rehearsal = rehearsal
        #: Jobs of which something is under way that the next look could move on.
        self._restless: set[str] = set()
        #: Running jobs with nothing new, by when they were looked at, the longest ago first.
        self._still: dict[str, float] = {}
        session.changed.update(dict.fromkeys(session.jobs))

    def due(self, now: float) -> Iterable[Job]:
        session, still = self._session, self._still
        names = self._restless
        names.update(session.take_changed(), self._rehearsal.news())
        self._restless = set()
        for name, at in still.items():
            if now - at < self._rehearsal.longest_s:
                break
            # Silence grows although nothing happens.
            names.add(name)
        jobs = [session.jobs[name] for name in names if name in session.jobs]
        found = [job for job in jobs if not job.state.ended]
        return sorted(found, key=lambda job: job.spec.index)

    def looked(self, name: str, facts: Mapping[SchedulerRef, SchedulerFact], now: float) -> None:
        job = self._session.jobs[name]
        # What the look itself has changed, it has seen.
        self._session.changed.pop(name, None)
        self._still.pop(name, None)
        live = job.live
        if live is None or live.ref is None:
            return
        fact = facts.get(live.ref)
        if fact is None or fact.state.ended or live.cancel is not None or live.signals or live.gone_since:
            self._restless.add(name)
        elif job.state is JobState.RUNNING:
            self._still[name] = now


def undecided(job: Job) -> bool:
    """Whether the journal was cut between the end of the latest attempt and what follows from it."""
    last = job.attempt
    return (
        last is not None
        and last.phase is Phase.ENDED
        and not last.decision
        and last.number >= job.first_attempt
    )
