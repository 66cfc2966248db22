"""What follows from what was seen: verdicts, restarts, cancels, budgets. No fixtures, no clock, no files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oellm_autoexp.config.schema import parse_rules
from oellm_autoexp.config.sockets import RestartPolicyInterface, made
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.admission import admit, occupied, rethrottle, throttled, token_of
from oellm_autoexp.core.holds import breaker
from oellm_autoexp.core.lifecycle import Gate, Observation, Rules, decide, evolve_all
from oellm_autoexp.core.model import (
    Attempt,
    Cancel,
    ExitRecord,
    Job,
    JobSpec,
    JobState,
    LogSignal,
    Phase,
    SchedulerFact,
    SchedulerRef,
    SchedulerState,
)
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.session import Session
from oellm_autoexp.core.verdict import Case, classify
from oellm_autoexp.reactions.policies import in_force
from oellm_autoexp.services.plugins import load_builtin

load_builtin()

S = SchedulerState


def spec(name: str = "a", **changes: Any) -> JobSpec:
    base = JobSpec(
        name=name,
        id=f"id-{name}",
        index=0,
        parameters={},
        argv=("true",),
        output_dir="o",
        checkpoint_dir="c",
        script_path="s",
        script_digest="d",
        log_path="l.{attempt}",
        rules="r",
    )
    return replace(base, **changes)


def attempt(number: int = 1, **changes: Any) -> Attempt:
    ref = SchedulerRef(id=str(number), cluster="x", token="t")
    base = Attempt(
        number=number,
        token="t",
        requested_at=0,
        phase=Phase.RUNNING,
        ref=ref,
        started_at=0.0,
        time_limit_s=3600,
    )
    return replace(base, **changes)


def running(**changes: Any) -> Job:
    return Job(spec=spec(), state=JobState.RUNNING, attempts=(attempt(**changes),))


def exited(code: int, cause: str = "exit", after: float = 100.0) -> ExitRecord:
    return ExitRecord(exit_code=code, cause=cause, started_at=1.0, ended_at=1.0 + after)


def signal(mode: str, **changes: Any) -> LogSignal:
    return replace(
        LogSignal(rule=mode, file="log", generation=0, offset=5, line=f"saw {mode}", mode=mode), **changes
    )


def rules(policies: dict[str, Any] | None = None, **changes: Any) -> Rules:
    parsed = parse_rules({"restart_policies": policies or {}}).policies(in_force)
    return Rules(
        policies={mode: made(RestartPolicyInterface, entry) for mode, entry in parsed.items()}, **changes
    )


def ended(code: int, state: SchedulerState = S.FAILED, **changes: Any) -> Observation:
    return replace(
        Observation(now=100, fact=SchedulerFact(state=state), exit=exited(code), drained=True), **changes
    )


@pytest.mark.parametrize(
    ("state", "record", "changes", "mode"),
    [
        (S.COMPLETED, exited(0), {}, "success"),
        (S.COMPLETED, None, {}, "success"),
        (S.FAILED, exited(1), {}, "crash"),
        (S.FAILED, exited(2), {}, "crash.config"),
        (S.FAILED, exited(127), {}, "crash.config"),
        (S.FAILED, exited(143, "signal:TERM"), {}, "preempted"),
        (S.FAILED, exited(138, "signal:USR1", after=3590), {}, "timeout"),
        (S.FAILED, exited(143), {}, "crash"),
        (S.COMPLETED, exited(0, "signal:TERM"), {}, "preempted"),
        (S.TIMEOUT, exited(143, "timeout"), {}, "timeout"),
        (S.TIMEOUT, None, {}, "timeout"),
        (S.OUT_OF_MEMORY, None, {}, "crash.oom"),
        (S.NODE_FAIL, None, {}, "crash.node_failure"),
        (S.PREEMPTED, None, {}, "preempted"),
        (S.CANCELLED, None, {}, "cancelled"),
        (S.GONE, None, {}, "crash.lost"),
        (S.GONE, exited(0), {}, "success"),
        (S.FAILED, exited(1), {"signals": (signal("crash.oom"),)}, "crash.oom"),
        (S.TIMEOUT, None, {"signals": (signal("crash.nan"),)}, "crash.nan"),
        (S.COMPLETED, exited(0), {"signals": (signal("crash.nan"),)}, "success"),
        (
            S.FAILED,
            exited(1),
            {"signals": (signal("crash.nan"), signal("crash.oom", priority=1, offset=9))},
            "crash.oom",
        ),
        # A program that says it was told to leave does not know by whom.
        (S.FAILED, exited(1), {"signals": (signal("preempted"),)}, "preempted"),
        (S.CANCELLED, exited(143, "signal:TERM"), {"signals": (signal("preempted"),)}, "cancelled"),
        (S.FAILED, exited(138, "timeout"), {"signals": (signal("preempted"),)}, "timeout"),
        (S.TIMEOUT, None, {"signals": (signal("preempted"),)}, "timeout"),
        (S.FAILED, exited(143), {"cancel": Cancel(why="quiet", by="x", mode="stall", at=0)}, "stall"),
        (S.COMPLETED, exited(0), {"cancel": Cancel(why="quiet", by="x", mode="stall", at=0)}, "success"),
    ],
)
def test_the_verdict_combines_the_evidence(
    state: SchedulerState, record: ExitRecord | None, changes: dict[str, Any], mode: str
) -> None:
    """The scheduler says whether, the exit record how, a cancel why; specific signals win."""
    tried = attempt(**changes)
    case = Case(
        job=Job(spec=spec()), attempt=tried, fact=SchedulerFact(state=state), exit=record, ended_at=100
    )
    assert classify(case).mode == mode


def test_exit_zero_without_the_success_signal_is_chained() -> None:
    """Where a success signal is configured, exit 0 without it means that there is more to do."""
    case = Case(job=running(), attempt=attempt(), exit=exited(0), success_needs_signal=True)
    assert classify(case).mode == "timeout"
    said = attempt(signals=(signal("success"),))
    assert classify(replace(case, attempt=said)).mode == "success"
    assert classify(replace(case, confirmed=True)).mode == "success"


def test_the_same_death_twice_at_once_is_a_config_fault() -> None:
    """Two deaths in a row with the same last error and no progress are not tried a third time."""
    first = attempt(1, phase=Phase.ENDED, mode="crash", last_error="boom", ended_at=5.0)
    job = Job(spec=spec(), attempts=(first, attempt(2)))
    case = Case(job=job, attempt=job.attempts[1], exit=exited(1), last_error="boom", ended_at=5)
    assert classify(case).mode == "crash.config"
    assert classify(replace(case, last_error="other")).mode == "crash"
    assert classify(replace(case, attempt=attempt(2, progressed_at=1.0))).mode == "crash"
    assert classify(replace(case, ended_at=5000)).mode == "crash"
    # A job that has worked before has no mistake in its config, whatever befalls it now.
    worked = attempt(1, phase=Phase.ENDED, mode="crash", progressed_at=2.0, ended_at=5.0)
    later = [replace(first, number=2), attempt(3)]
    case = replace(case, job=replace(job, attempts=(worked, *later)), attempt=later[1])
    assert classify(case).mode == "crash"


def test_nothing_is_concluded_without_an_answer() -> None:
    """A three-day outage of the scheduler changes nothing, however quiet the job is."""
    seen = Observation(now=3 * 86400, fact=None, quiet_s=3 * 86400)
    assert decide(running(), seen, rules(stall_after_s=60)) == ()


def test_a_verdict_waits_for_the_log() -> None:
    """Until the log is read to its end, a generic state is not the last word."""
    assert decide(running(), ended(1, drained=False), rules()) == ()


def test_gone_counts_only_after_a_grace() -> None:
    """ "Not known" is confirmed by a second answer a grace later."""
    gone = Observation(now=10, fact=SchedulerFact(state=S.GONE), drained=True, gone_grace_s=60)
    job = running()
    first = decide(job, gone, rules())
    assert [type(event) for event in first] == [ev.AttemptGone]
    job = evolve_all(job, first)
    assert job.state is JobState.UNKNOWN
    assert decide(job, replace(gone, now=69), rules()) == ()
    later = decide(job, replace(gone, now=70), rules())
    assert isinstance(later[0], ev.AttemptEnded) and later[0].mode == "crash.lost"


def test_a_stall_needs_a_threshold_and_an_answer_and_the_start_up_grace() -> None:
    """Silence counts when declared, while RUNNING was answered, after the start-up grace."""
    quiet = Observation(now=1000, fact=SchedulerFact(state=S.RUNNING), quiet_s=61)
    assert decide(running(), quiet, rules(startup_grace_s=0)) == ()
    strict = rules(stall_after_s=60, startup_grace_s=900)
    (cancel,) = decide(running(), quiet, strict)
    assert isinstance(cancel, ev.CancelRequested) and cancel.mode == "stall"
    assert decide(running(), replace(quiet, now=899), strict) == ()
    assert decide(evolve_all(running(), requeued()), quiet, strict) != (cancel,)


def requeued(count: int = 1) -> tuple[ev.Event, ...]:
    return (ev.AttemptRequeued(at=1000, job="a", attempt=1, requeues=count),)


def test_what_the_scheduler_starts_again_is_journaled_as_that() -> None:
    """Seen in its queue, or only by the number of its starts, or at its end; once for each start."""

    def kinds(job: Job, **fact: Any) -> list[str]:
        seen = Observation(now=1000, fact=SchedulerFact(**fact), drained=True)
        return [event.kind for event in decide(job, seen, rules())]

    waits = kinds(running(), state=S.PENDING, reason="BeginTime", restart_count=1)
    assert waits == ["attempt_requeued", "attempt_pending"]
    assert kinds(running(), state=S.PENDING) == ["attempt_requeued"]
    unseen = kinds(running(), state=S.RUNNING, restart_count=2, started_at=990.0)
    assert unseen == ["attempt_requeued", "attempt_started"]
    over = kinds(running(), state=S.FAILED, exit_code=1, restart_count=1)
    assert over[:2] == ["attempt_requeued", "attempt_ended"]
    back = evolve_all(running(), requeued(2))
    assert (back.state, back.attempts[0].requeues, back.attempts[0].started_at) == (JobState.PENDING, 2, None)
    assert kinds(back, state=S.PENDING, restart_count=2) == []
    assert kinds(back, state=S.RUNNING, restart_count=2) == ["attempt_started"]


def test_a_failure_of_an_earlier_start_does_not_end_the_next() -> None:
    """What the log said of it is over; a success that it told of stays."""
    job = running(signals=(signal("crash.nan"), signal("success")))
    strict = rules(acting={"crash.nan": 0.0})
    seen = Observation(now=1000, fact=SchedulerFact(state=S.RUNNING))
    assert [event.kind for event in decide(job, seen, strict)] == ["cancel_requested"]
    job = evolve_all(job, requeued())
    assert [found.rule for found in job.attempts[0].signals] == ["success"] and job.matches == {}
    again = replace(seen, fact=SchedulerFact(state=S.RUNNING, restart_count=1))
    assert [event.kind for event in decide(job, again, strict)] == ["attempt_started"]


def test_a_learned_threshold_needs_a_job_that_was_watched_and_is_patient_with_stalls() -> None:
    """Five times the longest silence and at least half an hour; each stall of late doubles it."""
    learned = rules(stall_learned=True, startup_grace_s=0)
    quiet = Observation(now=9e5, fact=SchedulerFact(state=S.RUNNING), quiet_s=3599)
    assert decide(running(), quiet, learned) == ()
    (cancel,) = decide(running(), replace(quiet, usual_s=60), learned)
    assert isinstance(cancel, ev.CancelRequested) and cancel.mode == "stall"
    assert "threshold 00:30:00, learned: it was never quiet for more than 00:01:00" in cancel.why
    assert decide(running(), replace(quiet, usual_s=720), learned) == ()
    job = running()
    stalled = replace(job.attempts[0], number=0, phase=Phase.ENDED, mode="stall")
    again = replace(job, attempts=(stalled, *job.attempts))
    assert decide(again, replace(quiet, usual_s=60), learned) == ()
    assert decide(again, replace(quiet, usual_s=60, quiet_s=3600), learned) != ()


def test_the_scheduler_may_take_a_running_attempt_back_into_its_queue() -> None:
    """It waits under the same id, and starts again: neither an end nor another attempt."""
    fact = SchedulerFact(state=S.PENDING, reason="BeginTime")
    job = evolve_all(running(), decide(running(), Observation(now=50, fact=fact), rules()))
    assert job.state is JobState.PENDING and job.live is not None
    assert (job.live.phase, job.live.started_at) == (Phase.ACCEPTED, None)
    back = SchedulerFact(state=S.RUNNING, started_at=80.0, nodes="n2")
    job = evolve_all(job, decide(job, Observation(now=90, fact=back), rules()))
    assert job.state is JobState.RUNNING and len(job.attempts) == 1
    assert (job.attempts[0].started_at, job.attempts[0].nodes) == (80.0, "n2")


def test_a_cancel_is_sent_once_and_again_only_after_a_while() -> None:
    """A cancel without effect is repeated after a minute, not at every tick."""
    cancel = Cancel(why="w", by="user", mode="cancelled", at=0, sent_at=10)
    seen = Observation(now=60, fact=SchedulerFact(state=S.RUNNING))
    assert decide(running(cancel=cancel), seen, rules()) == ()
    (again,) = decide(running(cancel=cancel), replace(seen, now=71), rules())
    assert isinstance(again, ev.CancelRequested)


def test_an_acting_signal_gives_the_job_time_to_die_by_itself() -> None:
    """A signal with an error mode ends a live attempt after its grace."""
    job = running(signals=(signal("crash.nan", at=100.0),))
    acting = rules(acting={"crash.nan": 30.0})
    seen = Observation(now=129, fact=SchedulerFact(state=S.RUNNING))
    assert decide(job, seen, acting) == ()
    (cancel,) = decide(job, replace(seen, now=130), acting)
    assert isinstance(cancel, ev.CancelRequested) and cancel.mode == "crash.nan"


def play(codes: list[int], policy: Rules) -> Job:
    """One attempt after the other with these exit codes, until the job ends."""
    job = Job(spec=spec())
    for number, code in enumerate(codes, start=1):
        if job.state.ended:
            break
        job = replace(job, attempts=(*job.attempts, attempt(number)), state=JobState.RUNNING)
        state = S.COMPLETED if code == 0 else S.FAILED
        # Long lives: the same death twice is no config fault then.
        seen = ended(code, state, exit=exited(code, after=5000), now=5000)
        job = evolve_all(job, decide(job, seen, policy))
    return job


def test_max_retries_n_is_n_restarts() -> None:
    """`max_retries: 2` gives three attempts, and the reason names the budget."""
    policy = rules({"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2}})
    job = play([1] * 9, policy)
    assert (job.state, len(job.attempts)) == (JobState.FAILED, 3)
    assert "all 2 restarts" in job.reason
    assert play([1, 1, 0], policy).state is JobState.SUCCEEDED


def test_a_stop_ends_the_job() -> None:
    """NoRestartPolicy is final, and its message is part of the reason."""
    policy = rules({"crash": {"class_name": "NoRestartPolicy", "message": "look at it"}})
    job = play([1, 1], policy)
    assert (job.state, len(job.attempts)) == (JobState.FAILED, 1)
    assert "look at it" in job.reason


def test_preemption_costs_nothing() -> None:
    """A preempted job comes back without its budgets being charged."""
    job = running()
    seen = ended(143, exit=exited(143, "signal:TERM"))
    job = evolve_all(job, decide(job, seen, rules()))
    assert job.state is JobState.WAITING and job.spent == {} and not job.state.ended


def test_progress_refills_the_fruitless_budget() -> None:
    """Restarts without progress are bounded where progress can be seen; progress starts the count anew."""
    policy = rules(
        {"timeout": {"class_name": "AlwaysRestartPolicy", "backoff_seconds": 0}}, progress_known=True
    )
    job = Job(spec=spec())
    for number in range(1, 30):
        if job.state.ended:
            break
        job = replace(
            job, attempts=(*job.attempts, attempt(number, progressed_at=1.0 if number == 3 else None))
        )
        seen = ended(143, S.TIMEOUT, exit=exited(143, "timeout"))
        job = evolve_all(job, decide(job, seen, policy))
    assert job.state is JobState.FAILED
    assert len(job.attempts) == 6
    assert "no progress" in job.reason


def test_progress_refills_every_budget_whatever_ended_the_attempt_that_made_it() -> None:
    """Fruitless crashes before and after an attempt that got ahead, and then timed out, do not add up."""
    job = Job(spec=spec())
    deaths = [exited(1), exited(1), exited(143, "timeout"), exited(1), exited(1), exited(1)]
    for number, death in enumerate(deaths, start=1):
        assert not job.state.ended
        marked = attempt(number, progressed_at=1.0 if number == 3 else None)
        job = replace(job, attempts=(*job.attempts, marked))
        state = S.TIMEOUT if death.cause == "timeout" else S.FAILED
        job = evolve_all(job, decide(job, ended(death.exit_code, state, exit=death), rules()))
    assert job.state is JobState.FAILED and len(job.attempts) == 6
    assert "all 2 restarts for crash are used up since it last got ahead" in job.reason


def test_the_time_limit_grows_with_adjust_time_limit() -> None:
    """AdjustTimeLimitPolicy gives the next attempt more minutes."""
    policy = rules({"timeout": {"class_name": "AdjustTimeLimitPolicy", "minutes": 30}})
    job = running()
    job = evolve_all(job, decide(job, ended(143, S.TIMEOUT, exit=exited(143, "timeout")), policy))
    assert job.time_limit_s == 3600 + 1800


def test_a_configured_crash_policy_leaves_config_faults_alone() -> None:
    """`crash` catches finer kinds, but crash.config and cancelled yield only to their own names."""
    policies = in_force({"crash": {"class_name": "AlwaysRestartPolicy"}})
    assert "crash.oom" not in policies
    assert policies["crash.config"]["class_name"] == "NoRestartPolicy"
    assert policies["cancelled"]["class_name"] == "NoRestartPolicy"


def test_conditions_end_a_job_alive_or_waiting() -> None:
    """A finish condition makes a success of a waiting job, and cancels a live one first."""
    seen = Observation(now=1, finish_gate=Gate.OPEN)
    waiting = evolve_all(Job(spec=spec()), decide(Job(spec=spec()), seen, rules()))
    assert waiting.state is JobState.SUCCEEDED
    live = decide(running(), replace(seen, fact=SchedulerFact(state=S.RUNNING)), rules())
    assert [type(event) for event in live] == [ev.EndWished, ev.CancelRequested]
    unknown = Observation(now=1, finish_gate=Gate.UNKNOWN, cancel_gate=Gate.UNKNOWN)
    assert decide(Job(spec=spec()), unknown, rules()) == ()


# ---------------------------------------------------------------- across jobs


def opened() -> ev.SessionOpened:
    return ev.SessionOpened(at=0, project="p", session="s", nonce="n", scheduler={"class_name": "x"})


def session(*specs: JobSpec) -> Session:
    state = Session()
    for event in reconcile(state, opened(), specs, {"r": {}}, now=0).events:
        state.apply(event)
    return state


def test_admission_keeps_to_the_slots_in_plan_order() -> None:
    """At most max_jobs attempts may live; the first of the plan go first."""
    state = session(*(spec(str(i), index=i) for i in range(5)))
    ready = list(reversed(state.jobs.values()))
    first = admit(state, ready, 0, max_jobs=2, max_array_size=1, submit_rate_limit_s=None)
    assert [request.jobs for request in first] == [(("0", 1),), (("1", 1),)]
    for request in first:
        state.apply(request)
    assert admit(state, ready[:3], 0, max_jobs=2, max_array_size=1, submit_rate_limit_s=None) == ()


def test_arrays_take_as_many_as_fit() -> None:
    """ceil(N / size) submissions."""
    state = session(*(spec(str(i), index=i) for i in range(5)))
    out = admit(
        state, list(state.jobs.values()), 0, max_jobs=None, max_array_size=2, submit_rate_limit_s=None
    )
    assert [len(request.jobs) for request in out] == [2, 2, 1]


def admitted(state: Session, names: str, **changes: Any) -> list[tuple[str, int | None]]:
    """The submissions that follow, each as the names of its jobs and its bound; they are taken in."""
    ready = [state.jobs[name] for name in names]
    rules = {"max_jobs": 2, "max_array_size": 9, "submit_rate_limit_s": None, "throttles": True}
    out = admit(state, ready, 0, **{**rules, **changes})
    for request in out:
        state.apply(request)
    return [("".join(name for name, _ in request.jobs), request.at_once) for request in out]


def test_an_array_may_hold_more_than_run_at_once() -> None:
    """One submission, not one for each slot that becomes free; the next waits until all of it has begun."""
    state = session(*(spec(name, index=index) for index, name in enumerate("abcdefg")))
    assert admitted(state, "abc", throttles=False) == [("ab", None)]
    state = session(*(spec(name, index=index) for index, name in enumerate("abcdefg")))
    assert admitted(state, "bacd") == [("abcd", 2)]
    assert admitted(state, "efg") == []
    assert admitted(state, "efg", max_jobs=3) == [("e", None)]
    state = session(*(spec(name, index=index) for index, name in enumerate("abcdefg")))
    assert admitted(state, "ab") == [("ab", None)]
    assert admitted(state, "abcd", max_jobs=None) == [("abcd", None)]


def test_an_array_makes_way_for_what_goes_on() -> None:
    """Its bound sinks by one for each job that has begun and is ready, to one at least, and rises again."""
    state = session(*(spec(name, index=index) for index, name in enumerate("abcdefg")))
    assert admitted(state, "abcdef", max_jobs=3) == [("abcdef", 3)]
    (token,) = state.submissions
    refs = tuple(SchedulerRef(id=f"1_{task}", cluster="c", token=token, task=task) for task in range(6))
    state.apply(ev.SubmitSpawned(at=1, token=token))
    state.apply(ev.SubmitAccepted(at=1, token=token, refs=refs))
    for name in "abc":
        state.apply(ev.AttemptStarted(at=2, job=name, attempt=1, started_at=2))
    ended = ev.AttemptEnded(at=3, job="a", attempt=1, mode="crash", reason="r", evidence="e", started_at=2)
    state.apply(ended)
    ready = [state.jobs["a"]]
    (change,) = rethrottle(state, ready, 3, max_jobs=3)
    assert (change.token, change.at_once) == (token, 2)
    state.apply(change)
    assert rethrottle(state, ready, 3, max_jobs=3) == ()
    assert admitted(state, "a", max_jobs=3) == [("a", None)]
    assert rethrottle(state, [], 4, max_jobs=3) == ()
    assert occupied(state, throttled(state)) == 3
    assert [each.at_once for each in rethrottle(state, [], 4, max_jobs=1)] == [1]
    (again,) = state.submissions
    state.apply(ev.SubmitRefused(at=5, token=again, reason="r", permanent=False, retry_at=9))
    assert [each.at_once for each in rethrottle(state, [state.jobs["g"]], 5, max_jobs=3)] == [3]


def test_what_runs_of_an_array_keeps_its_slots_though_the_bound_was_lowered() -> None:
    """And an array of which nothing waits any more has no bound that would matter."""
    state = session(*(spec(name, index=index) for index, name in enumerate("abcd")))
    assert admitted(state, "abcd", max_jobs=3) == [("abcd", 3)]
    (token,) = state.submissions
    refs = tuple(SchedulerRef(id=f"1_{task}", cluster="c", token=token, task=task) for task in range(4))
    state.apply(ev.SubmitSpawned(at=1, token=token))
    state.apply(ev.SubmitAccepted(at=1, token=token, refs=refs))
    for name in "abc":
        state.apply(ev.AttemptStarted(at=2, job=name, attempt=1, started_at=2))
    (change,) = rethrottle(state, [], 3, max_jobs=1)
    state.apply(change)
    assert (change.at_once, occupied(state, throttled(state))) == (1, 3)
    state.apply(ev.AttemptStarted(at=4, job="d", attempt=1, started_at=4))
    assert rethrottle(state, [], 5, max_jobs=9) == ()


def test_a_token_names_jobs_and_attempts() -> None:
    """The same jobs and attempts of a session have the same token, others another."""
    assert token_of("n", [("a", 1)]) == token_of("n", [("a", 1)])
    assert len({token_of("n", [("a", 1)]), token_of("n", [("a", 2)]), token_of("m", [("a", 1)])}) == 3


def test_submitting_the_same_plan_twice_changes_nothing() -> None:
    """Nothing is added, nothing is journaled."""
    state = session(spec("a"), spec("b"))
    again = reconcile(state, opened(), [spec("a"), spec("b")], {"r": {}}, now=1)
    assert (again.unchanged, again.events) == (("a", "b"), ())


def test_a_changed_job_is_refused_until_update() -> None:
    """Same name, other computation: refused with the difference; --update takes it."""
    state = session(spec("a", parameters={"lr": 1}))
    new = spec("a", id="other", parameters={"lr": 2})
    refused = reconcile(state, opened(), [new], {"r": {}}, now=1)
    assert refused.refused and refused.events == () and refused.changed == {"a": "lr: 1 -> 2"}
    taken = reconcile(state, opened(), [new], {"r": {}}, now=1, update=True)
    for event in taken.events:
        state.apply(event)
    assert state.jobs["a"].spec.id == "other"


def test_a_part_of_a_plan_says_nothing_of_the_others() -> None:
    """They are not missing, also where a person prunes; what has ended of the part starts anew if wanted."""
    state = session(spec("a"), spec("b"))
    for prune in (False, True):
        part = reconcile(state, opened(), [spec("a")], {"r": {}}, now=1, prune=prune, whole=False)
        assert (part.missing, part.events) == ((), ())
    for name in "ab":
        state.jobs[name] = replace(state.jobs[name], state=JobState.FAILED)
    part = reconcile(state, opened(), [spec("a"), spec("b")], {"r": {}}, now=1, whole=False, again=("a",))
    assert [event.job for event in part.events if isinstance(event, ev.JobRetried)] == ["a"]


def test_a_missing_job_is_reported_and_cancelled_only_by_prune() -> None:
    """A point that left the plan goes on until a person says otherwise."""
    state = session(spec("a"), spec("b"))
    kept = reconcile(state, opened(), [spec("a")], {"r": {}}, now=1)
    assert kept.missing == ("b",)
    assert not any(isinstance(event, ev.EndWished) for event in kept.events)
    pruned = reconcile(state, opened(), [spec("a")], {"r": {}}, now=1, prune=True)
    assert any(isinstance(event, ev.EndWished) and event.job == "b" for event in pruned.events)


def test_the_breaker_holds_the_rest_after_the_same_early_deaths() -> None:
    """Three early deaths of one cause stop the others from being submitted."""
    state = session(*(spec(str(i), index=i) for i in range(5)))
    for name in ("0", "1", "2"):
        assert breaker(state, 3, 0) == ()
        state.jobs[name] = replace(state.jobs[name], attempts=(attempt(phase=Phase.ENDED, last_error="x"),))
        state.apply(ev.JobEnded(at=0, job=name, state="failed", mode="crash.config", reason="x"))
    (tripped,) = breaker(state, 3, 0)
    assert isinstance(tripped, ev.BreakerTripped) and tripped.jobs == ("0", "1", "2")


def test_a_refused_submission_leaves_no_attempt() -> None:
    """Proven not submitted: the job waits as before, under the same attempt number."""
    state = session(spec("a"))
    state.apply(ev.SubmitRequested(at=0, token="t", jobs=(("a", 1),)))
    state.apply(ev.SubmitSpawned(at=0, token="t"))
    state.apply(ev.SubmitRefused(at=0, token="t", reason="limit", permanent=False, retry_at=9))
    job = state.jobs["a"]
    assert (job.attempts, job.state, job.not_before) == ((), JobState.WAITING, 9)


def test_a_partly_found_array_keeps_what_exists() -> None:
    """Tasks that never came to be wait again; the others are adopted."""
    state = session(spec("a"), spec("b", index=1))
    state.apply(ev.SubmitRequested(at=0, token="t", jobs=(("a", 1), ("b", 1))))
    state.apply(ev.SubmitSpawned(at=0, token="t"))
    ref = SchedulerRef(id="7_1", cluster="x", token="t", task=1)
    state.apply(ev.SubmitAccepted(at=0, token="t", refs=(ref,), adopted=True))
    assert state.jobs["a"].attempts == ()
    assert state.jobs["b"].live is not None and state.jobs["b"].live.ref == ref
