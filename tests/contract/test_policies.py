"""What every restart policy does, whichever it is: it decides purely, with a reason, within its budget."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sockets import POLICIES, policy, sealed

from oellm_autoexp.core.lifecycle import Observation, Rules, decide, evolve_all
from oellm_autoexp.core.model import (
    Attempt,
    EndedAttempt,
    ExitRecord,
    Job,
    JobSpec,
    Phase,
    Restart,
    SchedulerFact,
    SchedulerRef,
    SchedulerState,
    Stop,
)
from oellm_autoexp.reactions.policies import BUILT_IN, DEFAULT_POLICIES, in_force

ENDED = st.builds(
    EndedAttempt,
    job=st.just("a"),
    mode=st.sampled_from(["crash", "crash.oom", "stall", "timeout", "preempted", "cancelled", "success"]),
    reason=st.text(max_size=20),
    attempt=st.integers(1, 1000),
    restarts=st.integers(0, 1000),
    restarts_without_progress=st.integers(0, 1000),
    progressed=st.booleans(),
    progress_known=st.booleans(),
    time_limit_s=st.none() | st.integers(1, 10**7),
)
BOUNDED = [name for name in POLICIES if "max_retries" in {item.name for item in fields(policy(name).config)}]


@pytest.mark.parametrize("name", POLICIES)
@given(ended=ENDED)
@settings(max_examples=60, deadline=None)
def test_a_decision_is_pure_and_says_why(name: str, ended: EndedAttempt) -> None:
    """The same end gives the same decision, from the config's defaults; a person can read what it is."""
    one, other = policy(name), policy(name)
    before = deepcopy(one.config)
    with sealed():
        decision = one.decide(ended)
        again = one.decide(ended)
    assert decision == again == other.decide(ended)
    assert one.config == before
    assert isinstance(decision, (Restart, Stop))
    assert decision.why
    if isinstance(decision, Restart):
        assert decision.delay_s >= 0
        assert decision.time_limit_s is None or decision.time_limit_s >= (ended.time_limit_s or 0)


def life(policies: Rules, progress: list[bool]) -> Job:
    """A job whose every attempt crashes after hours; `progress` says which of them got further."""
    spec = JobSpec(
        name="a",
        id="i",
        index=0,
        parameters={},
        argv=(),
        output_dir="",
        checkpoint_dir="",
        script_path="",
        script_digest="",
        log_path="",
    )
    job = Job(spec=spec)
    for number, progressed in enumerate(progress, start=1):
        if job.state.ended:
            break
        ref = SchedulerRef(id=str(number), cluster="x", token="t")
        attempt = Attempt(
            number=number,
            token="t",
            requested_at=0,
            phase=Phase.RUNNING,
            ref=ref,
            progressed_at=1.0 if progressed else None,
        )
        job = replace(job, attempts=(*job.attempts, attempt))
        seen = Observation(
            now=9000.0,
            fact=SchedulerFact(state=SchedulerState.FAILED),
            exit=ExitRecord(exit_code=1, started_at=1.0, ended_at=9000.0),
            drained=True,
        )
        job = evolve_all(job, decide(job, seen, policies))
    return job


@pytest.mark.parametrize("name", BOUNDED)
@given(most=st.integers(0, 6), progress=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=25, deadline=None)
def test_max_retries_is_the_most_restarts_whatever_the_progress(
    name: str, most: int, progress: list[bool]
) -> None:
    """N restarts are N + 1 attempts, and the verdict names the budget."""
    budget = policy(name, max_retries=most, max_retries_without_progress=None)
    job = life(Rules(policies={"crash": budget}, progress_known=True), progress)
    assert job.state.ended
    assert len(job.attempts) == most + 1
    assert (f"all {most} restarts" if most else "no restarts allowed") in job.reason


@pytest.mark.parametrize("name", BOUNDED)
@given(most=st.integers(0, 3), progress=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(max_examples=25, deadline=None)
def test_a_refilled_budget_ends_what_does_not_get_ahead_and_nothing_else(
    name: str, most: int, progress: list[bool]
) -> None:
    """N restarts since the last progress, and all of them again after it, declared or not."""
    budget = policy(name, max_retries=most, refilled_by_progress=True)
    attempts, used = 0, 0
    for progressed in progress:
        attempts += 1
        used = 0 if progressed else used
        if used >= most:
            break
        used += 1
    for is_known in (True, False):
        job = life(Rules(policies={"crash": budget}, progress_known=is_known), progress)
        assert len(job.attempts) == attempts


@pytest.mark.parametrize("name", BOUNDED)
@given(most=st.integers(0, 4), progress=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(max_examples=25, deadline=None)
def test_restarts_without_progress_are_counted_from_the_last_progress(
    name: str, most: int, progress: list[bool]
) -> None:
    """So many in a row, not one more; each progress gives them all back."""
    budget = policy(name, max_retries=None, max_retries_without_progress=most)
    job = life(Rules(policies={"crash": budget}, progress_known=True), progress)
    fruitless = 0
    attempts = 0
    for progressed in progress:
        attempts += 1
        fruitless = 0 if progressed else fruitless
        if fruitless >= most:
            break
        fruitless += 1
    assert len(job.attempts) == attempts
    unknown = life(Rules(policies={"crash": budget}, progress_known=False), progress)
    assert len(unknown.attempts) == len(progress)


@pytest.mark.parametrize("name", BOUNDED)
@given(
    ended=ENDED,
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1e308),
    most=st.floats(0, 1e6),
)
@settings(max_examples=100, deadline=None)
def test_the_wait_grows_to_its_limit_and_no_further(
    name: str, ended: EndedAttempt, first: float, factor: float, most: float
) -> None:
    """However many restarts, and however steep the growth."""
    config = {
        "max_retries": None,
        "max_retries_without_progress": None,
        "backoff_seconds": first,
        "backoff_factor": factor,
        "backoff_max_seconds": most,
    }
    assume(set(config) <= {item.name for item in fields(policy(name).config)})
    later = replace(ended, restarts_without_progress=ended.restarts_without_progress + 1)
    one, two = policy(name, **config).decide(ended), policy(name, **config).decide(later)
    assert isinstance(one, Restart)
    assert isinstance(two, Restart)
    assert 0 <= one.delay_s <= two.delay_s <= most


def test_adjusted_time_limits_grow_to_their_bound() -> None:
    """By the minutes that the config says; one that is above the bound already stays."""
    ended = EndedAttempt(
        job="a",
        mode="timeout",
        reason="",
        attempt=1,
        restarts=0,
        restarts_without_progress=0,
        progressed=False,
        time_limit_s=3600,
    )
    grown = policy("AdjustTimeLimitPolicy", minutes=30, max_minutes=100)
    limits = []
    for _ in range(4):
        decision = grown.decide(ended)
        assert isinstance(decision, Restart)
        assert decision.time_limit_s is not None
        limits.append(decision.time_limit_s)
        ended = replace(ended, time_limit_s=decision.time_limit_s)
    assert limits == [5400, 6000, 6000, 6000]
    assert "time limit now 01:40:00" in decision.why
    above = grown.decide(replace(ended, time_limit_s=9000))
    assert isinstance(above, Restart)
    assert above.time_limit_s == 9000
    unlimited = grown.decide(replace(ended, time_limit_s=None))
    assert isinstance(unlimited, Restart)
    assert unlimited.time_limit_s is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("AlwaysRestartPolicy", {"max_retries": -1}, "max_retries must not be negative"),
        ("AlwaysRestartPolicy", {"backoff_seconds": -0.5}, "backoff_seconds must not be negative"),
        ("AlwaysRestartPolicy", {"backoff_factor": 0.5}, "backoff_factor must be at least 1"),
        ("AlwaysRestartPolicy", {"backoff_factor": float("nan")}, "backoff_factor"),
        ("AlwaysRestartPolicy", {"backoff_seconds": float("nan")}, "backoff_seconds"),
        ("AdjustTimeLimitPolicy", {"minutes": -1}, "minutes must not be negative"),
        ("AdjustTimeLimitPolicy", {"minutes": float("inf")}, "minutes"),
        ("AdjustTimeLimitPolicy", {"max_minutes": 0}, "max_minutes must be positive"),
    ],
)
def test_an_impossible_budget_is_refused(name: str, changes: dict[str, float], message: str) -> None:
    """The error names the key."""
    with pytest.raises(ValueError, match=message):
        policy(name, **changes)


def test_every_default_policy_can_be_made() -> None:
    """What is in force where a config says nothing is a config like any other."""
    entries = in_force({})
    assert set(entries) == {*BUILT_IN, *DEFAULT_POLICIES}
    for entry in entries.values():
        policy(**{"name" if key == "class_name" else key: value for key, value in entry.items()})
