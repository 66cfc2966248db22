"""What waits in the queue while its parents run: who may, when it goes, when it is never to begin."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants import check_indexes
from test_lifecycle import S, rules, spec

from oellm_autoexp.core import early, successor
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.adopt import adopt
from oellm_autoexp.core.goodput import Ledger
from oellm_autoexp.core.holds import Holds
from oellm_autoexp.core.lifecycle import Gate, Observation
from oellm_autoexp.core.model import (
    CONDITION,
    JobSpec,
    JobState,
    Parent,
    Phase,
    SchedulerFact,
    SchedulerRef,
)
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.session import SUCCESSOR_AGAIN_S, Session
from oellm_autoexp.core.spans import Part

FREE = Holds()
OPENED = ev.SessionOpened(at=0, project="p", session="s", nonce="n", scheduler={})
WAITS = SchedulerFact(state=S.PENDING, reason="Dependency")


def child_of(*parents: str, name: str = "c", **changes: Any) -> JobSpec:
    """A job that waits for others to succeed."""
    return spec(name, parents=tuple(Parent(job=each, id=f"id-{each}") for each in parents), **changes)


class Family:
    """A session of parents and a child."""

    def __init__(self, *specs: JobSpec) -> None:
        self.session, self.now, self.ids = Session(), 0.0, 0
        self.tell(OPENED, *(ev.JobAdded(at=0, spec=replace(each, index=n)) for n, each in enumerate(specs)))

    def tell(self, *events: ev.Event) -> None:
        for event in events:
            self.session.apply(event)
        check_indexes(self.session)

    def submit(self, name: str) -> str:
        """One more attempt, which the scheduler has; its id."""
        job = self.session.jobs[name]
        pair = (name, max([job.withdrawn, *(each.number for each in job.attempts)]) + 1)
        self.tell(ev.SubmitRequested(at=self.now, token=f"{name}.{pair[1]}", jobs=(pair,)))
        return self.accepted(f"{name}.{pair[1]}")

    def accepted(self, token: str) -> str:
        self.ids += 1
        ref = SchedulerRef(id=str(self.ids), cluster="x", token=token)
        self.tell(
            ev.SubmitSpawned(at=self.now, token=token),
            ev.SubmitAccepted(at=self.now, token=token, refs=(ref,)),
        )
        return ref.id

    def started(self, name: str) -> None:
        number = self.session.jobs[name].attempts[-1].number
        self.tell(ev.AttemptStarted(at=self.now, job=name, attempt=number, started_at=self.now))

    def ended(self, name: str, mode: str = "success", *, final: bool = True) -> None:
        """The end of an attempt, and of its job or not."""
        last = self.session.jobs[name].attempts[-1]
        end = {"job": name, "attempt": last.number, "mode": mode}
        self.tell(ev.AttemptEnded(at=self.now, reason="", evidence="", started_at=last.started_at, **end))
        if not final:
            why = ev.RestartScheduled(at=self.now, entry=mode, why="again", not_before=self.now, **end)
            self.tell(why)
            return
        state = "succeeded" if mode == "success" else "failed"
        self.tell(ev.JobEnded(at=self.now, job=name, state=state, mode=mode, reason=""))

    def wanted(self, **options: Any) -> list[tuple[str, str]]:
        """Who is asked for, each with what it would wait behind."""
        told = {"held": FREE, "may_have_one": lambda _job: True, "max_jobs": None, **options}
        found = early.wanted(self.session, self.now, **told)
        assert all(len(each.jobs) == 1 for each in found)
        return [(each.jobs[0][0], each.after) for each in found]

    def queue(self, **options: Any) -> ev.SubmitRequested:
        """Ask for the one that is wanted."""
        told = {"held": FREE, "may_have_one": lambda _job: True, "max_jobs": None, **options}
        (request,) = early.wanted(self.session, self.now, **told)
        self.tell(request)
        return request

    def decided(self, fact: SchedulerFact | None = WAITS, **options: Any) -> list[ev.Event]:
        """What follows in a turn where this is said of everything that waits."""
        told = {"held": FREE, "max_jobs": None, "fits": lambda _job, _waits: True, **options}
        waiting = [self.session.jobs[name].successor for name in self.session.queued]
        refs = [each.ref for each in waiting if each is not None and each.ref is not None]
        facts = dict.fromkeys(refs, fact) if fact is not None else {}
        return list(early.decide(self.session, facts, self.now, **told))

    def dropped(self, **options: Any) -> str:
        """Why the one that waits is not to begin; "" where nothing is decided."""
        found = self.decided(**options)
        assert all(isinstance(event, ev.SuccessorDropped) for event in found), found
        return found[0].why if found else ""  # type: ignore[attr-defined]


@pytest.fixture
def family() -> Family:
    """A parent whose attempt the scheduler has, and a child that waits behind it."""
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    made.accepted(made.queue().token)
    return made


# ---------------------------------------------------------------- asking for it


def test_it_is_asked_for_once_the_scheduler_has_the_attempts_of_all_its_parents() -> None:
    """Behind all of them that have not succeeded; as a single job; once."""
    made = Family(spec("p"), spec("q"), spec("done"), child_of("p", "q", "done"))
    made.submit("p")
    made.submit("done")
    made.ended("done")
    assert made.wanted() == []
    made.tell(ev.SubmitRequested(at=0, token="t", jobs=(("q", 1),)))
    assert made.wanted() == []
    made.accepted("t")
    assert made.wanted() == [("c", "1:3")]
    request = made.queue()
    assert request.jobs == (("c", 1),)
    assert made.wanted() == []
    job = made.session.jobs["c"]
    assert job.attempts == () and job.state is JobState.WAITING and job.successor is not None
    assert list(made.session.alive) == ["p", "q"] and list(made.session.waiting) == ["c"]


def test_a_job_that_may_start_or_has_begun_is_not_asked_for() -> None:
    """What waits for nobody is submitted as ever; what has begun is its own."""
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    made.ended("p")
    assert made.wanted() == []
    made.submit("c")
    made.started("c")
    made.ended("c", "crash", final=False)
    made.tell(ev.JobRetried(at=0, job="p"))
    made.submit("p")
    assert made.wanted() == []


@pytest.mark.parametrize(
    "event",
    [
        ev.EndWished(at=0, job="p", why="", by="user", mode="cancelled"),
        ev.CancelRequested(at=0, job="p", attempt=1, why="", by="x", mode="stall"),
        ev.AttemptGone(at=0, job="p", attempt=1),
        ev.EndWished(at=0, job="c", why="", by="user", mode="cancelled"),
        ev.JobUnplanned(at=0, job="c"),
    ],
    ids=["parent to end", "parent cancelled", "parent in doubt", "to end", "unplanned"],
)
def test_it_is_not_asked_for_where_it_would_hardly_begin(event: ev.Event) -> None:
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    made.tell(event)
    assert made.wanted() == []


def test_a_parent_that_is_ended_by_its_success_is_waited_behind() -> None:
    """By its finish condition, say."""
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    made.tell(ev.EndWished(at=0, job="p", why="", by="finish_condition", mode="success"))
    assert made.wanted() == [("c", "1")]


def test_conditions_and_holds_keep_it_with_us() -> None:
    """A gate that only we can look at, rules that say no, the breaker, the canaries."""
    gate = Parent(job="p", id="id-p", gate=CONDITION)
    made = Family(spec("p"), spec("c", parents=(gate,)))
    made.submit("p")
    assert made.wanted() == []
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    assert made.wanted(may_have_one=lambda _job: False) == []
    assert made.wanted(held=Holds(breaker="breaker")) == made.wanted(held=Holds(canary="canary")) == []
    assert made.wanted() == [("c", "1")]


def test_a_refused_one_is_asked_for_again_later_and_one_refused_for_good_never() -> None:
    """The job waits as before, and is held by nothing; when it may start it is submitted as ever."""
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    for permanent in (False, True):
        request = made.queue()
        refused = ev.SubmitRefused(
            at=made.now, token=request.token, reason="limit", permanent=permanent, retry_at=made.now + 30
        )
        made.tell(refused)
        job = made.session.jobs["c"]
        assert (job.state, job.hold, job.not_before, job.withdrawn) == (JobState.WAITING, "", 0.0, 0)
        made.now += 29 + SUCCESSOR_AGAIN_S
        assert made.wanted() == []
        made.now += 1
    made.now = 1e9
    assert made.wanted() == []
    made.ended("p")
    made.submit("c")
    assert made.session.jobs["c"].successor_at == 0.0


def test_nothing_is_asked_for_while_the_scheduler_takes_no_more_jobs() -> None:
    """What may start comes before what is to wait."""
    made = Family(spec("p"), spec("other"), child_of("p"))
    made.submit("p")
    made.tell(ev.SubmitRequested(at=0, token="t", jobs=(("other", 1),)))
    made.tell(ev.SubmitRefused(at=0, token="t", reason="limit", permanent=False, retry_at=30))
    assert made.wanted() == []
    made.now = 30
    assert made.wanted() == [("c", "1")]


def test_the_rate_of_submissions_holds_for_it() -> None:
    made = Family(spec("p"), child_of("p"), child_of("p", name="d"))
    made.submit("p")
    assert made.wanted(submit_rate_limit_s=10.0) == []
    made.now = 10.0
    assert made.wanted(submit_rate_limit_s=10.0) == [("c", "1")]


# ---------------------------------------------------------------- slots


def test_it_holds_no_slot_and_each_is_promised_one() -> None:
    """That of a parent, or one that is free: those that would find none are not asked for."""
    made = Family(
        spec("p"), spec("q"), *(child_of("p", name=name) for name in "abc"), child_of("q", name="d")
    )
    made.submit("p")
    made.submit("q")
    assert [name for name, _ in made.wanted()] == ["a", "b", "c", "d"]
    assert [name for name, _ in made.wanted(max_jobs=2)] == ["a", "d"]
    assert [name for name, _ in made.wanted(max_jobs=3)] == ["a", "b", "d"]
    for request in early.wanted(made.session, 0, held=FREE, may_have_one=lambda _job: True, max_jobs=3):
        made.tell(request)
        made.accepted(request.token)
    assert made.wanted(max_jobs=3) == []
    assert made.session.live == 2


def test_the_slot_of_a_task_goes_to_the_next_task() -> None:
    """An array that has more tasks than it may run gives no slot away."""
    made = Family(spec("p"), spec("q"), child_of("p"))
    made.tell(ev.SubmitRequested(at=0, token="t", jobs=(("p", 1), ("q", 1)), at_once=1))
    made.tell(ev.SubmitSpawned(at=0, token="t"))
    refs = tuple(SchedulerRef(id=f"5_{task}", cluster="x", token="t", task=task) for task in (0, 1))
    made.tell(ev.SubmitAccepted(at=0, token="t", refs=refs))
    made.started("p")
    assert made.wanted(max_jobs=1) == []
    assert made.wanted(max_jobs=2) == [("c", "5_0")]
    made.started("q")
    assert made.wanted(max_jobs=1) == [("c", "5_0")]


@given(seed=st.integers(0, 2**32), most=st.integers(1, 4))
def test_whoever_waits_finds_a_slot_and_takes_none_before(seed: int, most: int) -> None:
    """In whatever order parents end: nobody that may start is kept from it by who waits in the queue."""
    rng = Random(seed)
    names = [f"p{number}" for number in range(most)]
    children = [
        child_of(*rng.sample(names, rng.randint(1, most)), name=f"c{number}")
        for number in range(rng.randint(1, 6))
    ]
    made = Family(*(spec(name) for name in names), *children)
    for name in names:
        made.submit(name)
        assert made.session.live <= most
    for request in early.wanted(made.session, 0, held=FREE, may_have_one=lambda _job: True, max_jobs=most):
        made.tell(request)
        made.accepted(request.token)
    assert made.session.live == most
    for name in rng.sample(names, most):
        made.ended(name)
        for event in made.decided(max_jobs=most):
            assert isinstance(event, ev.SuccessorTaken), event
            made.tell(event)
        assert made.session.live <= most
    assert not made.session.queued


# ---------------------------------------------------------------- when it goes


def test_it_is_the_next_attempt_when_all_its_parents_have_succeeded(family: Family) -> None:
    """And not before; with the number, the id and the log that it had."""
    assert family.decided() == []
    family.started("p")
    assert family.decided() == []
    family.ended("p")
    (event,) = family.decided()
    assert isinstance(event, ev.SuccessorTaken)
    family.tell(event)
    job = family.session.jobs["c"]
    assert job.live is not None and job.live.ref is not None
    assert (job.live.number, job.live.ref.id, job.live.phase) == (1, "2", Phase.ACCEPTED)
    assert (job.successor, job.state, job.spent) == (None, JobState.SUBMITTED, {})
    assert family.session.live == 1


def test_it_goes_in_a_turn_in_which_the_scheduler_knows_it(family: Family) -> None:
    """Without an answer nothing is concluded; what is over is not in the queue."""
    family.ended("p")
    assert family.decided(None) == []
    assert family.dropped(fact=SchedulerFact(state=S.GONE)) == "the scheduler says GONE"


def test_one_of_which_it_is_not_known_whether_it_was_submitted_is_looked_up_first() -> None:
    """One that was not handed in yet is not any more."""
    made = Family(spec("p"), child_of("p"))
    made.submit("p")
    request = made.queue()
    made.ended("p")
    why = made.dropped()
    assert why == "what it waits for has succeeded before it was submitted"
    made.tell(ev.SubmitSpawned(at=0, token=request.token))
    assert made.decided() == []
    made.accepted(request.token)
    assert [event.kind for event in made.decided()] == ["successor_taken"]


def test_without_a_slot_or_on_nodes_that_are_left_out_it_does_not_go(family: Family) -> None:
    """Others may have come in between; it is submitted as ever when there is one."""
    family.ended("p")
    assert family.dropped(max_jobs=0) == "no slot of max_jobs is free"
    assert family.dropped(fits=lambda _job, _waits: False) == "nodes are to be left out"


# ---------------------------------------------------------------- when it never begins


def test_a_parent_that_starts_again_has_it_made_anew_behind_that_one(family: Family) -> None:
    """No budget is charged, no attempt counted; the number of the first is not used again."""
    family.ended("p", "crash", final=False)
    why = family.dropped()
    assert why == "p is to be tried again"
    family.tell(*family.decided())
    assert family.decided() == []
    family.submit("p")
    assert family.wanted() == []
    family.tell(ev.SuccessorSettled(at=0, job="c", attempt=1))
    request = family.queue()
    assert (request.jobs, request.after) == ((("c", 2),), "3")
    job = family.session.jobs["c"]
    assert (job.spent, job.attempts, job.withdrawn) == ({}, (), 1)


def test_it_leaves_the_queue_as_soon_as_a_parent_is_to_end(family: Family) -> None:
    """Not when that has ended; an end that is a success is waited for."""
    family.tell(ev.EndWished(at=0, job="p", why="", by="finish_condition", mode="success"))
    assert family.decided() == []
    family.tell(ev.EndWished(at=0, job="p", why="", by="user", mode="cancelled"))
    assert family.dropped() == "p is to end"


def test_it_is_asked_for_once_behind_the_same(family: Family) -> None:
    """Whoever took it out of the queue meant it; and a guard that nobody led ends by itself."""
    assert family.dropped(fact=SchedulerFact(state=S.CANCELLED)) == "the scheduler says CANCELLED"
    family.tell(*family.decided(SchedulerFact(state=S.CANCELLED)))
    family.tell(ev.SuccessorSettled(at=0, job="c", attempt=1))
    assert family.wanted() == []
    family.ended("p", "crash", final=False)
    family.submit("p")
    assert family.wanted() == [("c", "3")]


def test_one_of_several_parents_may_succeed_before_the_others() -> None:
    """But where one that had succeeded is wanted again, it waits for that one, too."""
    made = Family(spec("p"), spec("q"), child_of("p", "q"))
    made.submit("p")
    made.submit("q")
    made.accepted(made.queue().token)
    made.ended("p")
    assert made.decided() == []
    made.tell(ev.JobRetried(at=0, job="p"))
    made.submit("p")
    assert made.dropped() == "p is to be tried again"


def test_the_breaker_and_a_changed_plan_take_it_out_of_the_queue(family: Family) -> None:
    """What the plan wants now holds when it is out; rules alone hold at once."""
    assert family.dropped(held=Holds(breaker="breaker")) == "breaker"
    old = family.session.jobs["c"].spec
    family.tell(ev.JobUpdated(at=0, job="c", spec=replace(old, rules="other")))
    assert family.session.jobs["c"].spec.rules == "other" and family.decided() == []
    family.tell(ev.JobUpdated(at=0, job="c", spec=replace(old, script_digest="e")))
    assert family.session.jobs["c"].spec.script_digest == "d"
    assert family.dropped() == "the plan has changed"
    family.tell(*family.decided(), ev.SuccessorSettled(at=0, job="c", attempt=1))
    assert family.session.jobs["c"].spec.script_digest == "e"
    assert family.session.jobs["c"].next_spec is None


def test_a_plan_with_other_rules_is_taken_with_it(family: Family) -> None:
    old = family.session.jobs["c"].spec
    done = reconcile(
        family.session, OPENED, [family.session.jobs["p"].spec, replace(old, rules="new")], {"new": {}}, now=0
    )
    assert done.rules == ("c",)
    family.tell(*done.events)
    family.ended("p")
    family.tell(*family.decided())
    job = family.session.jobs["c"]
    assert (job.spec.rules, job.next_spec) == ("new", None) and job.live is not None


def seen(**changes: Any) -> Observation:
    return replace(Observation(now=5.0), **changes)


def ends(family: Family, **changes: Any) -> list[ev.Event]:
    """What is decided of the child by itself."""
    job = family.session.jobs["c"]
    return list(successor.decide(job, seen(**changes), rules(), lambda _after, _waits: True))


@pytest.mark.parametrize("by", ["user", "parent", "cancel_condition"])
def test_a_job_that_is_to_end_does_so_when_what_waits_is_out_of_the_queue(family: Family, by: str) -> None:
    """The verdict waits for the claim."""
    changes: dict[str, Any] = {}
    if by == "cancel_condition":
        changes["cancel_gate"] = Gate.OPEN
    else:
        family.tell(ev.EndWished(at=0, job="c", why="unwanted", by=by, mode="cancelled"))
    events = ends(family, **changes)
    assert [event.kind for event in events][-1] == "successor_dropped"
    family.tell(*events)
    assert family.decided() == [] and ends(family, **changes) == []
    family.tell(ev.SuccessorSettled(at=0, job="c", attempt=1))
    (event,) = ends(family, **changes)
    assert isinstance(event, ev.JobEnded) and (event.state, event.by) == ("cancelled", by)


# ---------------------------------------------------------------- what has begun by itself


def test_what_has_begun_by_itself_is_the_next_attempt(family: Family) -> None:
    """Once it is known what became of its parents; then it is its own."""
    ended = SchedulerFact(state=S.COMPLETED)
    family.tell(*family.decided(ended))
    family.tell(ev.SuccessorSettled(at=0, job="c", attempt=1, begun=True))
    assert family.decided(ended) == []
    family.ended("p")
    (event,) = family.decided(ended, max_jobs=0, held=Holds(breaker="breaker"))
    family.tell(event)
    live = family.session.jobs["c"].live
    assert live is not None and live.cancel is None and live.number == 1


def test_a_job_that_is_to_end_and_has_begun_by_itself_is_ended_like_any_other(family: Family) -> None:
    """Found out when its claim was to be taken."""
    family.tell(ev.EndWished(at=0, job="c", why="unwanted", by="user", mode="cancelled"))
    family.tell(*ends(family))
    family.tell(ev.SuccessorSettled(at=0, job="c", attempt=1, begun=True))
    events = ends(family)
    assert [event.kind for event in events] == ["successor_taken"]
    family.tell(*events)
    events = ends(family, fact=SchedulerFact(state=S.RUNNING))
    assert [event.kind for event in events] == ["attempt_started", "cancel_requested"]


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({}, True),
        ({"success_needs_signal": True}, False),
        ({"acting": {"nan": 30.0}}, False),
    ],
)
def test_an_exit_status_is_enough_only_where_nothing_else_can_speak_against_it(
    family: Family, changes: dict[str, Any], tells: bool
) -> None:
    """A success signal, a signal that ends a job."""
    parent = family.session.jobs["p"]
    assert early.exit_tells(parent, rules(**changes), 0.0) is tells


def test_an_exit_status_is_not_enough_where_a_policy_starts_a_success_again(family: Family) -> None:
    again = {"success": {"class_name": "AlwaysRestartPolicy", "max_retries": 1}}
    assert not early.exit_tells(family.session.jobs["p"], rules(again), 0.0)
    family.ended("p")
    assert early.exit_tells(family.session.jobs["p"], rules(again), 0.0)


def test_it_waits_behind_the_attempts_that_it_names() -> None:
    """Whose words its guard may have to read, also where one of them has succeeded since."""
    made = Family(spec("p"), spec("done"), spec("q"), child_of("p", "done", "q"))
    for name in ("p", "done", "q"):
        made.submit(name)
    made.ended("done")
    made.queue()
    made.ended("q")
    waits = made.session.jobs["c"].successor
    assert waits is not None
    found = early.attempts_before(made.session, made.session.jobs["c"], waits)
    assert [(job.spec.name, attempt.number) for job, attempt in found] == [("p", 1), ("q", 1)]


# ---------------------------------------------------------------- beside it


def test_its_time_counts_from_when_its_parents_have_succeeded() -> None:
    """What it waited while they ran is nobody's time; what it ran by itself is its own."""
    ledger = Ledger()
    for name, begins in (("told", 20.0), ("alone", 6.0)):
        for event in (
            ev.JobAdded(at=0, spec=spec(name)),
            ev.SubmitRequested(at=1, token=name, jobs=((name, 1),), after="7"),
            ev.SubmitAccepted(at=1, token=name, refs=(SchedulerRef(id="8", cluster="x", token=name),)),
            ev.SuccessorTaken(at=10, job=name, attempt=1),
            ev.AttemptStarted(at=21, job=name, attempt=1, started_at=begins),
            ev.AttemptEnded(
                at=30,
                job=name,
                attempt=1,
                mode="success",
                reason="",
                evidence="",
                started_at=begins,
                ended_at=30,
            ),
            ev.JobEnded(at=30, job=name, state="succeeded", mode="success", reason=""),
        ):
            ledger.apply(event)
    spans = [(span.part, span.begin_ms, span.end_ms) for span in ledger.spans("told", 99.0)]
    assert spans == [(Part.QUEUE, 10_000, 20_000), (Part.PRODUCTIVE, 20_000, 30_000)]
    spans = [(span.part, span.begin_ms, span.end_ms) for span in ledger.spans("alone", 99.0)]
    assert spans == [(Part.PRODUCTIVE, 6_000, 30_000)]


def test_a_foreign_job_is_not_adopted_beside_it(family: Family) -> None:
    """Two would run."""
    given = (
        OPENED,
        ev.RulesSet(at=0, rules="r", config={}),
        ev.JobAdded(at=0, spec=family.session.jobs["c"].spec),
        ev.SubmitAccepted(at=0, token="", refs=(SchedulerRef(id="99", cluster="x", token=""),)),
    )
    done = adopt(family.session, given, "log", 0.0)
    assert done.refused and "has attempts of its own" in done.text
