"""Whether a job may begin at all: what it depends on, and its deadline, as sbatch(1) has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from oellm_autoexp.schedulers.fake.queue import FakeJob

WAITS, NEVER = "Dependency", "DependencyNeverSatisfied"
_KINDS = ("after", "afterany", "afterok", "afternotok")
_FROM_NOW = re.compile(r"now\+(\d+)(second|minute|hour|day|week|)s?", re.ASCII)
_UNITS = {"": 1.0, "second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0}

#: The states of the tasks that an id means, as the controller or accounting knows them; none: of no job here.
States = Callable[[str], Sequence[str]]


def terms(dependency: str) -> list[tuple[str, str]]:
    """What a job depends on: kinds and ids. Several kinds are apart by `,`; each of them must hold.

    Raises:
        ValueError: it is of another form.
    """
    found = []
    for part in dependency.split(","):
        kind, *ids = part.split(":")
        if kind not in _KINDS or not ids or not all(re.fullmatch(r"\d+(_\d+)?", each) for each in ids):
            raise ValueError("Job dependency problem")
        found += [(kind, each) for each in ids]
    return found


def dependency(job: FakeJob, states: States) -> str:
    """Why a job must still wait for others: WAITS, NEVER, or "".

    What this cluster has never had counts as over: a config may name a job of the real one.
    """
    if not job.request.dependency:
        return ""
    reason = ""
    for kind, identity in terms(job.request.dependency):
        for state in states(identity):
            over = state not in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
            if (kind == "after" and state == "PENDING") or (kind != "after" and not over):
                reason = WAITS
            elif over and kind in ("afterok", "afternotok") and (state == "COMPLETED") != (kind == "afterok"):
                return NEVER
    return reason


def deadline(text: str, now: float) -> float:
    """The moment that `--deadline` names, in UTC epoch seconds.

    Raises:
        ValueError: neither now+COUNT[UNITS] nor a date.
    """
    found = _FROM_NOW.fullmatch(text)
    if found:
        return now + int(found[1]) * _UNITS[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"invalid deadline specification: {text}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def is_too_late(job: FakeJob, now: float) -> bool:
    """Whether it could not end before its deadline if it began now."""
    return job.request.deadline is not None and now + job.time_limit > job.request.deadline
