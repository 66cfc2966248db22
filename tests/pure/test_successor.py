"""The attempt that waits behind the live one: when it is asked for, goes on, and is never to begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_lifecycle import S, attempt, exited, rules, spec

from oellm_autoexp.core import events as ev
from oellm_autoexp.core import successor
from oellm_autoexp.core.goodput import Ledger
from oellm_autoexp.core.lifecycle import Observation, Rules, evolve_all
from oellm_autoexp.core.model import (
    Attempt,
    Cancel,
    Job,
    JobState,
    Phase,
    Resources,
    SchedulerFact,
    SchedulerRef,
)
from oellm_autoexp.core.session import SUCCESSOR_AGAIN_S, Session
from oellm_autoexp.core.spans import Part

HOUR = 3600
SPEC = spec(resources=Resources(time_limit_s=HOUR))
OPENED = ev.SessionOpened(at=0, project="p", session="s", nonce="n", scheduler={})
WAITING = SchedulerFact(state=S.PENDING)


def chain(*, waits: dict[str, Any] | None = None, **changes: Any) -> Job:
    """A job that runs, and the attempt behind it."""
    behind = attempt(2, **{"phase": Phase.ACCEPTED, "started_at": None, "after": "1", **(waits or {})})
    return replace(Job(spec=SPEC, state=JobState.RUNNING, attempts=(attempt(),), successor=behind), **changes)


def at_limit(**changes: Any) -> Observation:
    seen = Observation(
        now=HOUR,
        fact=SchedulerFact(state=S.TIMEOUT),
        exit=exited(143, "timeout", after=HOUR),
        drained=True,
        successor=WAITING,
    )
    return replace(seen, **changes)


def decided(job: Job, seen: Observation, given: Rules | None = None, *, fits: bool = True) -> list[ev.Event]:
    return list(successor.decide(job, seen, given or rules(), lambda _after, _waits: fits))


def kinds(events: list[ev.Event]) -> list[str]:
    return [event.kind for event in events]


# ---------------------------------------------------------------- asking for it


def session(*, now: float = 0.0) -> Session:
    """A session whose one job runs since `now`."""
    made = Session()
    ref = SchedulerRef(id="7", cluster="x", token="t")
    for event in (
        OPENED,
        ev.JobAdded(at=now, spec=SPEC),
        ev.SubmitRequested(at=now, token="t", jobs=(("a", 1),)),
        ev.SubmitSpawned(at=now, token="t"),
        ev.SubmitAccepted(at=now, token="t", refs=(ref,)),
        ev.AttemptStarted(at=now, job="a", attempt=1, started_at=now),
    ):
        made.apply(event)
    return made


def asked(made: Session, now: float, given: Rules | None = None) -> tuple[ev.SubmitRequested, ...]:
    return successor.wanted(made, now, rules_of=lambda _job: given or rules())


def test_it_is_asked_for_once_the_live_one_is_past_its_start_up() -> None:
    """Behind the id of the live one, with the next number; once."""
    made = session()
    assert asked(made, 899.0) == ()
    (request,) = asked(made, 900.0)
    assert (request.jobs, request.after) == ((("a", 2),), "7")
    made.apply(request)
    assert asked(made, 901.0) == ()
    job = made.jobs["a"]
    assert job.successor is not None and job.successor.time_limit_s == HOUR
    assert [each.number for each in job.attempts] == [1] and job.state is JobState.RUNNING


@pytest.mark.parametrize(
    "policy",
    [
        {"class_name": "NoRestartPolicy"},
        {"class_name": "AdjustTimeLimitPolicy", "minutes": 30},
        {"class_name": "AlwaysRestartPolicy", "backoff_seconds": 10},
        {"class_name": "AlwaysRestartPolicy", "backoff_seconds": 0, "max_retries": 0},
    ],
    ids=["stops", "longer", "later", "used up"],
)
def test_it_is_not_asked_for_where_the_same_would_not_follow_at_once(policy: dict[str, Any]) -> None:
    """No restart, another limit, a wait: then nothing that is in the queue already could be it."""
    assert asked(session(), HOUR, rules({"timeout": policy})) == ()


def test_a_refused_one_is_asked_for_again_later_and_one_refused_for_good_never() -> None:
    """The job runs on: only what waits is refused. The number may be used again, under another token."""
    made = session()
    (request,) = asked(made, 900.0)
    made.apply(request)
    made.apply(ev.SubmitRefused(at=900, token=request.token, reason="limit", permanent=False, retry_at=930))
    assert made.jobs["a"].state is JobState.RUNNING and made.jobs["a"].hold == ""
    assert asked(made, 929.0 + SUCCESSOR_AGAIN_S) == ()
    (again,) = asked(made, 930.0 + SUCCESSOR_AGAIN_S)
    made.apply(again)
    made.apply(ev.SubmitRefused(at=2000, token=again.token, reason="never", permanent=True))
    assert asked(made, 1e9) == ()
    assert made.jobs["a"].state is JobState.RUNNING


def test_a_job_that_waits_for_a_condition_or_is_to_end_gets_none() -> None:
    """Rules that are not given; a wish."""
    made = session()
    assert successor.wanted(made, HOUR, rules_of=lambda _job: None) == ()
    made.apply(ev.EndWished(at=1, job="a", why="w", by="user", mode="cancelled"))
    assert asked(made, HOUR) == ()


def test_the_rate_of_submissions_holds_for_it() -> None:
    """Not before so many seconds after the last one."""
    made = session()
    given = rules(startup_grace_s=0)
    assert successor.wanted(made, 5.0, rules_of=lambda _job: given, submit_rate_limit_s=10.0) == ()
    assert len(successor.wanted(made, 10.0, rules_of=lambda _job: given, submit_rate_limit_s=10.0)) == 1


# ---------------------------------------------------------------- the end of the live one


def test_at_the_time_limit_it_is_the_next_attempt() -> None:
    """One event, charged like any restart; its log is read from the beginning."""
    job = chain(matches={"step": 5})
    events = decided(job, at_limit())
    assert kinds(events) == ["attempt_ended", "restart_scheduled"]
    after = evolve_all(job, tuple(events))
    assert [each.number for each in after.attempts] == [1, 2]
    assert after.successor is None and after.live is not None and after.live.phase is Phase.ACCEPTED
    assert (after.spent["timeout"].total, after.matches, after.state) == (1, {}, JobState.SUBMITTED)


@pytest.mark.parametrize(
    ("changes", "seen", "why"),
    [
        ({}, {"exit": exited(0), "fact": SchedulerFact(state=S.COMPLETED)}, "no restart follows"),
        ({}, {"exit": exited(1), "fact": SchedulerFact(state=S.FAILED)}, "a restart is to wait"),
        ({"next_spec": replace(SPEC, script_digest="e")}, {}, "the plan has changed"),
        ({"end_wish": Cancel(why="unwanted", by="user", mode="cancelled", at=0)}, {}, "unwanted"),
        ({"waits": {"phase": Phase.SPAWNED}}, {}, "it is not known to be in the queue"),
        ({}, {"successor": None}, "it is not known to be in the queue"),
        ({}, {"successor": SchedulerFact(state=S.CANCELLED)}, "the scheduler says CANCELLED"),
        ({}, {"successor": SchedulerFact(state=S.GONE)}, "the scheduler says GONE"),
    ],
)
def test_else_it_is_dropped_before_anything_else_follows(
    changes: dict[str, Any], seen: dict[str, Any], why: str
) -> None:
    """The end waits until the claim is taken; then the verdict is as if nothing had waited."""
    job = chain(**changes)
    events = decided(job, at_limit(**seen))
    assert kinds(events) == ["successor_dropped"]
    assert isinstance(events[0], ev.SuccessorDropped) and events[0].why == why
    job = evolve_all(job, tuple(events))
    assert decided(job, at_limit(**seen)) == []
    job = evolve_all(job, (ev.SuccessorSettled(at=HOUR, job="a", attempt=2),))
    assert (job.successor, job.withdrawn) == (None, 2)
    events = decided(job, at_limit(**seen))
    assert kinds(events)[0] == "attempt_ended" and len(events) == 2
    assert not (isinstance(events[1], ev.RestartScheduled) and events[1].successor)


def test_it_is_dropped_where_more_nodes_are_to_be_left_out() -> None:
    """It may be given the very node that has just failed."""
    (event,) = decided(chain(), at_limit(), fits=False)
    assert isinstance(event, ev.SuccessorDropped) and event.why == "nodes are to be left out"


def test_rules_alone_may_change_meanwhile() -> None:
    """They are no part of what was submitted."""
    job = chain(next_spec=replace(SPEC, rules="other"))
    assert kinds(decided(job, at_limit())) == ["attempt_ended", "restart_scheduled"]


def test_a_changed_policy_takes_it_out_of_the_queue_at_once() -> None:
    """While the live one runs: else it might begin by itself."""
    given = rules({"timeout": {"class_name": "NoRestartPolicy"}})
    seen = Observation(now=50, fact=SchedulerFact(state=S.RUNNING), successor=WAITING)
    assert kinds(decided(chain(), seen, given)) == ["successor_dropped"]
    assert decided(chain(), seen) == []


# ---------------------------------------------------------------- what has begun by itself


def begun() -> Job:
    job = chain(waits={"cancel": Cancel(why="w", by="successor", mode="cancelled", at=0)})
    return evolve_all(job, (ev.SuccessorSettled(at=1, job="a", attempt=2, begun=True),))


def test_what_has_begun_by_itself_is_the_next_attempt() -> None:
    """Charged, as the policy would have had it."""
    job = begun()
    after = evolve_all(job, tuple(decided(job, at_limit())))
    assert after.live is not None and after.live.number == 2 and after.live.cancel is None
    assert after.spent["timeout"].total == 1


def test_where_nothing_was_to_follow_it_is_ended_in_its_turn() -> None:
    """The verdict is that of the first one, and no budget is charged."""
    given = rules({"timeout": {"class_name": "NoRestartPolicy", "message": "enough"}})
    job = begun()
    events = decided(job, at_limit(), given)
    assert kinds(events) == ["attempt_ended", "restart_scheduled", "end_wished"]
    job = evolve_all(job, tuple(events))
    assert job.spent == {} and job.live is not None and job.live.number == 2
    seen = Observation(now=HOUR + 1, fact=SchedulerFact(state=S.RUNNING))
    assert kinds(decided(job, seen, given)) == ["attempt_started", "cancel_requested"]
    job = evolve_all(job, tuple(decided(job, seen, given)))
    events = decided(job, at_limit(now=HOUR + 9, exit=exited(143, "signal:TERM")), given)
    assert isinstance(events[-1], ev.JobEnded)
    assert (events[-1].state, events[-1].mode) == ("failed", "timeout") and "enough" in events[-1].reason


# ---------------------------------------------------------------- its time


def test_its_time_in_the_queue_counts_from_the_end_of_the_one_before() -> None:
    """What it waited while the other ran is nobody's time."""
    ledger, started = Ledger(), {"token": "t", "jobs": (("a", 1),)}
    ref = SchedulerRef(id="7", cluster="x", token="t")
    for event in (
        ev.JobAdded(at=0, spec=SPEC),
        ev.SubmitRequested(at=0, **started),
        ev.SubmitAccepted(at=0, token="t", refs=(ref,)),
        ev.AttemptStarted(at=10, job="a", attempt=1, started_at=10),
        ev.SubmitRequested(at=20, token="u", jobs=(("a", 2),), after="7"),
        ev.SubmitAccepted(at=20, token="u", refs=(replace(ref, token="u"),)),
        ev.AttemptEnded(
            at=115, job="a", attempt=1, mode="timeout", reason="", evidence="", started_at=10, ended_at=110
        ),
        ev.RestartScheduled(
            at=115, job="a", attempt=1, mode="timeout", entry="timeout", why="", not_before=115, successor=2
        ),
        ev.AttemptStarted(at=131, job="a", attempt=2, started_at=130),
    ):
        ledger.apply(event)
    spans = [(span.part, span.begin_ms, span.end_ms, span.attempt) for span in ledger.spans("a", 150.0)]
    assert spans[0] == (Part.QUEUE, 0, 10_000, 1)
    assert (Part.QUEUE, 110_000, 130_000, 2) in spans
    assert not [span for span in spans if span[0] is Part.DOWN]


def test_an_attempt_is_found_by_its_number() -> None:
    """Also the one that waits."""
    job = chain()
    assert isinstance(job.successor, Attempt) and job.numbered(2) is job.successor
    assert job.numbered(1) is job.attempts[0]
    with pytest.raises(KeyError):
        job.numbered(3)
