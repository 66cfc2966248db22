"""The attempt of a job that waits in the queue while the parents of that job run (`Job.successor`). Pure.

It is submitted behind the ends of their live attempts, and kept apart from the job's attempts: the job waits
as it would without it, and holds no slot. When all parents have succeeded it is taken for the job's next
attempt, and told to go. Where a parent is to be tried again, or is lost, its claim is taken before anything
else follows, so that it never runs. Where nobody tells it anything, it begins by itself only behind exit
records that leave no doubt (`exit_tells`); whoever comes back finds its claim, and takes it for an attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from oellm_autoexp.core import events as ev
from oellm_autoexp.core import parents
from oellm_autoexp.core.admission import next_number, occupied, throttled, token_of
from oellm_autoexp.core.holds import Holds
from oellm_autoexp.core.lifecycle import Rules, evolve, follow
from oellm_autoexp.core.model import (
    SUCCESS,
    Attempt,
    Job,
    JobState,
    Phase,
    SchedulerFact,
    SchedulerRef,
    mode_root,
)
from oellm_autoexp.core.session import Session
from oellm_autoexp.core.successor import drop, plan_has_changed


def wanted(
    session: Session,
    now: float,
    *,
    held: Holds,
    may_have_one: Callable[[Job], bool],
    max_jobs: int | None,
    left_out: Callable[[Sequence[Job]], tuple[str, ...]] = lambda _jobs: (),
    submit_rate_limit_s: float | None = None,
) -> tuple[ev.SubmitRequested, ...]:
    """The attempts to be asked for: of each job that waits only for parents whose attempts the scheduler has.

    `may_have_one`: False for a job that is to have none. Each is one submission; none is asked for while the
    scheduler takes no more jobs.
    """
    assert session.opened is not None
    waiting = [session.jobs[name] for name in session.waiting]
    if any(job.hold and now < job.not_before for job in waiting):
        return ()
    found = []
    for job in sorted(waiting, key=lambda job: job.spec.index):
        if not _may_wait_in_queue(job, now) or held.of(job) or not may_have_one(job):
            continue
        after = behind(session, job)
        if after and after != job.dropped_after and not _in_doubt(session, job):
            found.append((job, after))
    if submit_rate_limit_s:
        waited = session.last_spawn_at is None or now - session.last_spawn_at >= submit_rate_limit_s
        found = found[:1] if waited and not session.submissions else []
    slots, out = _Slots(session, max_jobs), []
    for job, after in found:
        if slots.take(job):
            pair, exclude = (job.spec.name, next_number(job)), left_out([job])
            token = token_of(session.opened.nonce, [pair], exclude, after)
            out.append(ev.SubmitRequested(at=now, token=token, jobs=(pair,), exclude=exclude, after=after))
    return tuple(out)


def _may_wait_in_queue(job: Job, now: float) -> bool:
    return (
        bool(job.spec.parents)
        and job.successor is None
        and job.planned
        and job.end_wish is None
        and now >= max(job.not_before, job.successor_at)
        and not job.begun
    )


def behind(session: Session, job: Job) -> str:
    """The ids, joined by ":", of the attempts behind whose ends a job may wait in the queue; "" for none.

    Every parent that has not succeeded must have an attempt that the scheduler has, and that nobody ends.
    """
    ids: dict[str, None] = {}
    for parent in job.spec.parents:
        if parent.gate != SUCCESS:
            return ""
        found = session.jobs.get(parent.job)
        if found is None or found.state is not JobState.SUCCEEDED:
            live = found.live if found is not None and not _is_to_end(found) else None
            if live is None or live.ref is None:
                return ""
            ids[live.ref.id] = None
    return ":".join(ids)


def _is_to_end(job: Job) -> bool:
    """Whether a job is being ended otherwise than by its success."""
    wishes = job.end_wish, job.live.cancel if job.live is not None else None
    return any(wish is not None and mode_root(wish.mode) != "success" for wish in wishes)


def _in_doubt(session: Session, job: Job) -> bool:
    """Whether it is not known if a parent's attempt is still there."""
    return any(session.jobs[parent.job].state is JobState.UNKNOWN for parent in job.spec.parents)


class _Slots:
    """Who may wait in the queue, so that each finds a slot of `max_jobs` when its parents have ended.

    Nobody holds a slot while waiting: each is promised that of a parent, or one that is free.
    """

    def __init__(self, session: Session, max_jobs: int | None) -> None:
        self._bounded = max_jobs is not None
        self._session, self._arrays = session, throttled(session)
        self._free = 0 if max_jobs is None else max(0, max_jobs - occupied(session, self._arrays))
        self._lent: set[str] = set()
        for name in session.queued:
            if session.jobs[name].live is None:
                self.take(session.jobs[name])

    def take(self, job: Job) -> bool:
        """Promise a slot to a job; whether there is one."""
        lender = next((each.job for each in job.spec.parents if self._lends(each.job)), None)
        if not self._bounded or lender is not None:
            self._lent.update([lender] if lender is not None else [])
            return True
        self._free -= 1
        return self._free >= 0

    def _lends(self, parent: str) -> bool:
        """The slot of an array's task goes to the next task, while there is one."""
        live = self._session.jobs[parent].live if parent in self._session.jobs else None
        if live is None or parent in self._lent:
            return False
        array = self._arrays.get(live.token)
        return array is None or not array.waits


def decide(
    session: Session,
    facts: Mapping[SchedulerRef, SchedulerFact],
    now: float,
    *,
    held: Holds,
    max_jobs: int | None,
    fits: Callable[[Job, Attempt], bool],
) -> tuple[ev.Event, ...]:
    """Who of those that wait behind parents is taken for an attempt, and who is never to begin.

    `facts`: this turn's answers of the scheduler. `fits`: whether nothing speaks against the nodes that an
    attempt may be given. What a wish ends is left to `successor.decide`.
    """
    free = None if max_jobs is None else max(0, max_jobs - occupied(session, throttled(session)))
    out: list[ev.Event] = []
    for name in session.queued:
        job = session.jobs[name]
        waits = job.successor
        if waits is None or job.live is not None or job.end_wish is not None:
            continue
        fact = facts.get(waits.ref) if waits.ref is not None else None
        event = _next(session, job, waits, fact, now, held.of(job), free, fits)
        if isinstance(event, ev.SuccessorTaken) and free is not None:
            free -= 1
        out += [event] if event is not None else []
    return tuple(out)


def _next(
    session: Session,
    job: Job,
    waits: Attempt,
    fact: SchedulerFact | None,
    now: float,
    hold: str,
    free: int | None,
    fits: Callable[[Job, Attempt], bool],
) -> ev.Event | None:
    over = not parents.waits(session, job)
    lost = "" if over else _lost(session, job, waits)
    taken = ev.SuccessorTaken(at=now, job=job.spec.name, attempt=waits.number)
    if waits.phase is Phase.RUNNING:
        # It has begun by itself; what became of its parents will be known soon, if it is not yet.
        return taken if over or lost else None
    if waits.cancel is not None:
        return None
    why = hold or lost
    if not why and plan_has_changed(job):
        why = "the plan has changed"
    if not why and fact is not None and fact.state.ended:
        why = f"the scheduler says {fact.state.value}"
    if not why and over:
        if waits.phase is Phase.SPAWNED or (waits.phase is Phase.ACCEPTED and fact is None):
            return None  # The look-up, or the next answer, says whether it is in the queue.
        if waits.phase is Phase.REQUESTED:
            why = "what it waits for has succeeded before it was submitted"
        elif free is not None and free <= 0:
            why = "no slot of max_jobs is free"
        elif fits(job, waits):
            return taken
        else:
            why = "nodes are to be left out"
    return drop(job, waits, why, now) if why else None


def _lost(session: Session, job: Job, waits: Attempt) -> str:
    """Which parent will not succeed by the attempt that this one waits behind; "" if each may."""
    ids = waits.after.split(":")
    for parent in job.spec.parents:
        found = session.jobs.get(parent.job)
        if found is not None and found.state is JobState.SUCCEEDED:
            continue
        if found is None or _is_to_end(found):
            return f"{parent.called} is to end"
        if found.live is None or found.live.ref is None or found.live.ref.id not in ids:
            return f"{parent.called} is to be tried again"
    return ""


def attempts_before(session: Session, job: Job, waits: Attempt) -> tuple[tuple[Job, Attempt], ...]:
    """The attempts of parents behind whose ends an attempt waits."""
    ids = set(waits.after.split(":"))
    found = [session.jobs[parent.job] for parent in job.spec.parents if parent.job in session.jobs]
    latest = [(each, each.attempts[-1]) for each in found if each.attempts]
    return tuple((each, last) for each, last in latest if last.ref is not None and last.ref.id in ids)


def exit_tells(parent: Job, rules: Rules, now: float) -> bool:
    """Whether exit status 0 of its latest attempt is the success of a job, whatever else there is to see."""
    if parent.live is None:
        return parent.state is JobState.SUCCEEDED
    if rules.success_needs_signal or rules.acting:
        return False
    name, number = parent.spec.name, parent.live.number
    ended = ev.AttemptEnded(
        at=now, job=name, attempt=number, mode="success", reason="", evidence="", exit_code=0
    )
    then = follow(evolve(parent, ended), rules, now)
    return isinstance(then, ev.JobEnded) and then.state == JobState.SUCCEEDED.value
