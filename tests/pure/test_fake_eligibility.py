"""What keeps a job of the fake cluster from beginning or going on: others, its deadline, an administrator."""

from __future__ import annotations

from typing import Any

import pytest
from fake_world import FakeWorld

from oellm_autoexp.errors import SubmitRejected
from oellm_autoexp.schedulers.fake.eligibility import deadline

HOUR = 3600.0
SHORT = {"match": "short*", "work": HOUR, "startup": 0.0, "checkpoint_every": None}
FAILS = {"match": "fails*", "work": HOUR, "startup": 0.0, "mishaps": [{"after": HOUR / 2}]}


def world(**cluster: Any) -> FakeWorld:
    return FakeWorld(jobs=[SHORT, FAILS], cluster={"nodes": 4, "min_job_age": "1d", **cluster})


# ---------------------------------------------------------------- suspended


def test_a_suspended_job_stands_still_on_its_nodes_and_its_time_limit_with_it() -> None:
    """Slurm's word for it is SUSPENDED, without a reason; work and limit go on where they were."""
    played = world(nodes=1)
    job, other = played.one("short", time_limit=HOUR * 1.1), played.one("other")
    played.to(HOUR / 2)
    played.befall("suspend", job="short", lasts=2 * HOUR)
    played.to(HOUR)
    assert played.word(job) == ("SUSPENDED", "None", "0:0") and other.state == "PENDING"
    log = played.memory.logs["/logs/short.1"]
    played.to(HOUR * 2.4)
    assert played.memory.logs["/logs/short.1"] == log
    played.to(HOUR * 2.6)
    assert job.state == "RUNNING" and played.memory.logs["/logs/short.1"] > log
    played.to(HOUR * 3.1)
    assert played.word(job) == ("COMPLETED", "None", "0:0") and job.ended_at is not None
    assert job.ended_at - played.scenario.start == pytest.approx(3 * HOUR, abs=10)


@pytest.mark.parametrize(
    ("kind", "word"),
    [("cancel", ("CANCELLED", "None", "0:15")), ("node_fail", ("NODE_FAIL", "NodeDown", "0:0"))],
)
def test_a_suspended_job_ends_as_a_running_one_does(kind: str, word: tuple[str, str, str]) -> None:
    """It goes on for the signal; a node that dies takes it along. What was planned for it is void."""
    played = world(nodes=1, requeue=False)
    job = played.one("short")
    played.to(HOUR / 2)
    played.befall("suspend", lasts=10 * HOUR)
    played.befall(kind)
    played.to(HOUR)
    assert played.word(job) == word
    ended, log = job.ended_at, played.memory.logs["/logs/short.1"]
    played.to(20 * HOUR)
    assert (played.word(job), job.ended_at, played.memory.logs["/logs/short.1"]) == (word, ended, log)


def test_a_short_suspension_delays_what_was_due_behind_it() -> None:
    """It ends before the next line was due, which comes later by as much."""
    played = world()
    job = played.one("short")
    played.to(HOUR - 60)
    played.befall("suspend", lasts=30.0)
    played.to(HOUR + 40)
    assert job.state == "COMPLETED" and job.ended_at is not None
    assert job.ended_at - played.scenario.start >= HOUR + 30


def test_while_the_controller_is_away_nobody_resumes() -> None:
    played = world()
    job = played.one("short")
    played.to(600)
    played.befall("suspend", lasts=600.0)
    played.befall("outage", lasts=HOUR)
    played.to(600 + HOUR - 1)
    assert job.state == "SUSPENDED"
    played.to(600 + HOUR + 1)
    assert job.state == "RUNNING"


# ---------------------------------------------------------------- deadline


def test_what_cannot_end_before_its_deadline_is_taken_out_of_the_queue() -> None:
    """DEADLINE, with the words and the exit code that squeue shows; it never started."""
    played = world(nodes=1)
    played.one("short")
    late = played.one("late", time_limit=HOUR, deadline=played.cluster.now + 1.5 * HOUR)
    played.to(HOUR / 2 - 10)
    assert late.state == "PENDING"
    played.to(HOUR / 2 + 10)
    assert played.word(late) == ("DEADLINE", "DeadLine", "0:1") and late.started_at is None
    (record,) = played.cluster.records[late.id]
    assert record.job.state == "DEADLINE"


def test_what_can_end_before_its_deadline_runs() -> None:
    played = world()
    job = played.one("short", time_limit=HOUR * 1.1, deadline=played.cluster.now + 1.5 * HOUR)
    played.to(2 * HOUR)
    assert job.state == "COMPLETED"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("now+90", 90), ("now+2hours", 7200), ("now+1day", 86400), ("2026-01-01T06:00:00", 21600)],
)
def test_a_deadline_is_a_date_or_counts_from_now(text: str, seconds: float) -> None:
    start = FakeWorld().scenario.start
    assert deadline(text, start) == start + seconds


@pytest.mark.parametrize("text", ["", "tomorrow", "now-1hour", "2026-13-01"])
def test_what_is_no_deadline_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid deadline"):
        deadline(text, 0.0)


# ---------------------------------------------------------------- dependencies


@pytest.mark.parametrize(
    ("first", "kind", "waits", "then"),
    [
        ("short", "afterok", True, "RUNNING"),
        ("short", "afterany", True, "RUNNING"),
        ("short", "afternotok", True, "DependencyNeverSatisfied"),
        ("short", "after", False, "RUNNING"),
        ("fails", "afterok", True, "DependencyNeverSatisfied"),
        ("fails", "afternotok", True, "RUNNING"),
        ("fails", "afterany", True, "RUNNING"),
    ],
)
def test_a_job_waits_for_another(first: str, kind: str, waits: bool, then: str) -> None:
    """Until that has ended (or begun), as its kind says; what can never be waits for ever."""
    played = world()
    before = played.one(first)
    job = played.one("next", dependency=f"{kind}:{before.id}")
    played.to(20)
    assert job.reason == ("Dependency" if waits else "None")
    played.to(HOUR + 60)
    assert then in (job.state, job.reason)
    played.to(30 * HOUR)
    assert then == "RUNNING" or played.word(job) == ("PENDING", then, "0:0")


def test_a_dependency_that_can_never_hold_ends_the_job_where_the_site_has_it_so() -> None:
    played = world(kill_invalid_depend=True)
    before = played.one("fails")
    job = played.one("next", dependency=f"afterok:{before.id}")
    played.to(HOUR)
    assert played.word(job) == ("CANCELLED", "DependencyNeverSatisfied", "0:0")


def test_a_job_waits_for_every_task_and_every_kind_and_for_nothing_that_is_not_here() -> None:
    """An array's id means all its tasks; a job of the real cluster counts as over."""
    played = world()
    array = played.submit("short0", "fails1")
    number = array[0].id.partition("_")[0]
    job = played.one("any", dependency=f"afterany:{number},after:99999")
    one = played.one("one", dependency=f"afterok:{array[0].id}")
    never = played.one("never", dependency=f"afterok:{number}")
    played.to(HOUR / 2 + 60)
    assert (job.reason, one.reason, never.reason) == ("Dependency", "Dependency", "DependencyNeverSatisfied")
    played.to(HOUR + 60)
    assert (job.state, one.state) == ("RUNNING", "RUNNING")


def test_a_dependency_on_a_job_that_is_forgotten_is_known_to_accounting() -> None:
    played = world(min_job_age=60.0)
    before = played.one("fails")
    played.to(HOUR)
    assert before.id not in played.cluster.jobs
    job = played.one("next", dependency=f"afterok:{before.id}")
    played.to(HOUR + 60)
    assert job.reason == "DependencyNeverSatisfied"


@pytest.mark.parametrize("text", ["afterok:x", "later:1", "afterok", "afterok:1,"])
def test_what_is_no_dependency_is_refused_in_slurms_words(text: str) -> None:
    with pytest.raises(SubmitRejected, match="Batch job submission failed: Job dependency problem"):
        world().one("next", dependency=text)
