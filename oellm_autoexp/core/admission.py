"""Who of the jobs that wait is submitted next, and how: within the slots, at the allowed rate. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job, Phase
from oellm_autoexp.core.session import Session


def token_of(
    nonce: str, jobs: Sequence[tuple[str, int]], exclude: Sequence[str] = (), after: str = ""
) -> str:
    """The token of a submission: the same jobs and attempt numbers of a session give the same token.

    One that is made again without the nodes for which it was refused, or not behind another job any more, is
    another: Slurm keeps a record of the refused one under its name.
    """
    named = [
        nonce,
        [list(pair) for pair in jobs],
        *([list(exclude)] if exclude else []),
        *([after] if after else []),
    ]
    text = json.dumps(named, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def admit(
    session: Session,
    ready: Sequence[Job],
    now: float,
    *,
    max_jobs: int | None,
    max_array_size: int,
    submit_rate_limit_s: float | None,
    throttles: bool = False,
    left_out: Callable[[Sequence[Job]], tuple[str, ...]] = lambda _jobs: (),
) -> tuple[ev.SubmitRequested, ...]:
    """The submissions that fit: in plan order, within the slots, at the allowed rate.

    With arrays one submission takes all that fit; otherwise each job is one. Where the scheduler `throttles`
    arrays, one may hold more than fit: it keeps to the slots itself. `left_out`: the nodes that jobs are not
    to be given.
    """
    assert session.opened is not None
    ordered = sorted(ready, key=lambda job: job.spec.index)
    arrays = throttled(session)
    free = len(ready) if max_jobs is None else max(0, max_jobs - occupied(session, arrays))
    blocks = _blocks(ordered[:free], max(1, max_array_size))
    at_once = None
    if throttles and 0 < free < len(ready) and not any(array.waits for array in arrays.values()):
        first = _blocks(ordered, max(1, max_array_size))[0]
        if len(first) > free:
            blocks, at_once = [first], free
    if submit_rate_limit_s:
        waited = session.last_spawn_at is None or now - session.last_spawn_at >= submit_rate_limit_s
        blocks = blocks[:1] if waited and not session.submissions else []
    out = []
    for block in blocks:
        pairs = tuple((job.spec.name, next_number(job)) for job in block)
        exclude = left_out(block)
        token = token_of(session.opened.nonce, pairs, exclude)
        out.append(ev.SubmitRequested(at=now, token=token, jobs=pairs, exclude=exclude, at_once=at_once))
    return tuple(out)


@dataclass(slots=True)
class Throttled:
    """What lives of an array that keeps to slots of its own."""

    at_once: int
    live: int = 0
    running: int = 0

    @property
    def waits(self) -> bool:
        """Whether it has tasks that have not begun."""
        return self.live > self.running

    @property
    def slots(self) -> int:
        """After the bound was lowered more may still run."""
        return max(self.running, min(self.at_once, self.live))


def throttled(session: Session) -> dict[str, Throttled]:
    """The arrays with a bound of which something lives, by token."""
    found: dict[str, Throttled] = {}
    for name in session.alive if session.throttles else ():
        attempt = session.jobs[name].attempts[-1]
        throttle = session.throttles.get(attempt.token)
        if throttle is not None:
            array = found.setdefault(attempt.token, Throttled(at_once=throttle.now))
            array.live += 1
            array.running += attempt.phase is Phase.RUNNING
    return found


def occupied(session: Session, arrays: Mapping[str, Throttled]) -> int:
    """How many slots are taken: a live attempt has one, an array that is throttled as many as it may run."""
    return session.live - sum(array.live - array.slots for array in arrays.values())


def rethrottle(
    session: Session, ready: Sequence[Job], now: float, *, max_jobs: int | None
) -> tuple[ev.ThrottleSet, ...]:
    """An array makes way for jobs that are to go on, and takes their slots when they have ended."""
    arrays = throttled(session)
    begun = sum(job.begun for job in ready)
    out = []
    for token, array in arrays.items():
        if array.waits and max_jobs is not None:
            others = occupied(session, arrays) - array.slots
            # Slurm takes 0 for no bound.
            wanted = max(1, max_jobs - others - begun)
            if wanted != array.at_once:
                out.append(ev.ThrottleSet(at=now, token=token, at_once=wanted))
    return tuple(out)


def _blocks(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Blocks of at most `size`: what is submitted together asks for the same, for the same time."""
    alike: dict[tuple[str, int | None], list[Job]] = {}
    for job in jobs:
        limit = job.time_limit_s if job.spec.batch else None
        alike.setdefault((job.spec.batch, limit), []).append(job)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


def next_number(job: Job) -> int:
    """The number of a job's next attempt."""
    last = job.attempts[-1].number if job.attempts else 0
    return max(last, job.withdrawn) + 1
