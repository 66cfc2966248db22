"""When a submission is through: each of its jobs has an id, an end, or a reason to wait."""

from __future__ import annotations

from collections.abc import Mapping

from oellm_autoexp.core.model import Job
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.loop import RealClock
from oellm_autoexp.services.daemon import hand_over
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.services.session import leader_of, replay

#: Who has heard nothing new of the jobs for so long goes on without: they are recorded.
PATIENCE_S = 60.0
_LOOK_S, _LONGEST_LOOK_S = 0.05, 1.0


def settled(plan: PlanResult) -> Mapping[str, Job]:
    """The session's jobs when those of a plan, which another process has taken, have come so far.

    Raises:
        StateError: nobody leads the session, and nobody can be made to.
    """
    paths, clock = plan.loaded.paths, RealClock()
    at_first = plan.loaded.scheduler.capabilities.default_max_jobs
    heard, left, pause = clock.monotonic(), len(plan.jobs), _LOOK_S
    while True:
        session = replay(paths)
        count = sum(not _is_settled(session, session.jobs[job.spec.name], at_first) for job in plan.jobs)
        now = clock.monotonic()
        if not count or now - heard > PATIENCE_S:
            return session.jobs
        if count != left:
            heard, left = now, count
        if session.ended is None and leader_of(paths) is None:
            # It was killed.
            hand_over(paths, None)
        clock.wait(pause)
        pause = min(2 * pause, _LONGEST_LOOK_S)


def _is_settled(session: Session, job: Job, default_max_jobs: int | None) -> bool:
    if job.live is not None:
        return job.live.ref is not None
    bound = session.opened.scheduler.get("max_jobs") if session.opened is not None else None
    most = bound or default_max_jobs
    has_no_slot = most is not None and session.live >= most
    return job.state.ended or bool(job.hold) or job.not_before > 0 or has_no_slot
