"""The fake cluster says what a Slurm 22.05 said in the same case, and keeps its own books in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_world import FakeWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected, SubmitUnclear
from oellm_autoexp.schedulers.fake.queue import NO_NODES, FakeJob
from oellm_autoexp.schedulers.fake.scenario import Symptom

SHORT = {"work": 0, "startup": 1}
LONG = {"work": "300d"}
HOUR, DAY = 3600.0, 86400.0


def dies(kind: str, **more: Any) -> dict[str, Any]:
    return {**LONG, "mishaps": [{"kind": kind, "after": "1h", **more}]}


# ---------------------------------------------------------------- ends, in Slurm's words


@pytest.mark.parametrize(
    ("play", "cluster", "request_", "word"),
    [
        (SHORT, {}, {}, ("COMPLETED", "None", "0:0")),
        (dies("exit", code=3), {}, {}, ("FAILED", "NonZeroExitCode", "3:0")),
        (dies("exit", code=143), {}, {}, ("FAILED", "NonZeroExitCode", "143:0")),
        (dies("kill"), {}, {}, ("FAILED", "JobLaunchFailure", "0:9")),
        (dies("oom"), {"shows_out_of_memory": False}, {}, ("FAILED", "JobLaunchFailure", "0:9")),
        (dies("oom"), {}, {}, ("OUT_OF_MEMORY", "OutOfMemory", "0:125")),
        (LONG, {}, {"time_limit": HOUR}, ("TIMEOUT", "TimeLimit", "0:15")),
        ({**LONG, "stop_takes": "1h"}, {}, {"time_limit": HOUR}, ("TIMEOUT", "TimeLimit", "0:9")),
    ],
)
def test_an_end_has_the_words_of_slurm(
    play: dict[str, Any], cluster: dict[str, Any], request_: dict[str, Any], word: tuple[str, str, str]
) -> None:
    """State, reason and exit code of each way in which a job can end by itself or at its limit."""
    world = FakeWorld(jobs=[play], cluster={**cluster, "min_job_age": "9d"})
    job = world.one(**request_)
    world.to(DAY)
    assert world.word(job) == word


def test_a_timeout_comes_after_the_limit_and_the_guard_says_so() -> None:
    """Slurm looks only now and then; the exit record says that it was the limit, which the guard knows."""
    world = FakeWorld(jobs=[LONG], cluster={"over_time": 30})
    job = world.one(time_limit=600.0)
    world.to(DAY)
    record = json.loads(world.memory.files["/attempts/one/1/exit.0.json"])
    assert (record["exit_code"], record["cause"]) == (143, "timeout")
    assert job.started_at is not None and job.ended_at is not None
    assert 630 <= job.ended_at - job.started_at <= 640
    assert "DUE TO TIME LIMIT" in world.memory.logs["/logs/one.1"]


@pytest.mark.parametrize(
    ("kind", "requeue", "then", "word"),
    [
        ("cancel", None, 60, ("CANCELLED", "None", "0:15")),
        ("preempt", False, 120, ("PREEMPTED", "None", "0:0")),
        ("preempt", True, 120, ("PENDING", "BeginTime", "0:0")),
        ("requeue", None, 60, ("PENDING", "BeginTime", "0:0")),
        ("node_fail", False, 600, ("NODE_FAIL", "NodeDown", "0:0")),
        ("node_fail", True, 310, ("PENDING", "BeginTime", "0:0")),
    ],
)
def test_an_end_from_outside_has_the_words_of_slurm(
    kind: str, requeue: bool | None, then: float, word: tuple[str, str, str]
) -> None:
    """Cancelled, preempted, requeued, failed node; what is requeued keeps its id and counts a restart."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 1, "min_job_age": "1d", "preempt_grace": 60})
    job = world.one(requeue=requeue)
    world.to(HOUR)
    world.befall(kind)
    world.to(HOUR + then)
    assert world.word(job) == word
    assert (job.id, job.restarts) == ("1", int(word[0] == "PENDING"))


def test_a_cancelled_waiting_job_keeps_its_reason() -> None:
    """As squeue shows it; it never started."""
    world = FakeWorld(jobs=[LONG])
    job = world.one()
    world.befall("hold")
    world.cluster.cancel([job.id])
    assert world.word(job) == ("CANCELLED", "JobHeldAdmin", "0:0")
    assert job.started_at is None


def test_an_end_goes_through_completing() -> None:
    """The end time is set already; the nodes are free only afterwards."""
    world = FakeWorld(jobs=[{**LONG, "stop_takes": 10}], cluster={"nodes": 1})
    job = world.one()
    world.to(HOUR)
    world.cluster.cancel([job.id])
    world.to(HOUR + 5)
    assert (job.state, job.reason) == ("COMPLETING", "None") and job.ended_at is not None
    assert not world.cluster.nodes["node1"].free
    world.to(HOUR + 20)
    assert job.state == "CANCELLED" and world.cluster.nodes["node1"].free


# ---------------------------------------------------------------- nodes that break


BROKEN = {"kind": "exit", "code": 1, "lines": ["uncorrectable ECC error on {node}"]}


def test_what_breaks_on_a_node_ends_the_job_there_and_the_node_stays_in_service() -> None:
    """The job shows the symptom, with the name of the node; a neighbour works on."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 4})
    wide, other = world.one("wide", nodes=2), world.one("other")
    world.to(HOUR)
    world.befall("node_error", node="node2", name="GPU", symptom=Symptom(**BROKEN))
    world.to(HOUR + 10)
    assert world.word(wide) == ("FAILED", "NonZeroExitCode", "1:0") and other.state == "RUNNING"
    assert "uncorrectable ECC error on node2\n" in world.memory.logs["/logs/wide.1"]
    assert world.cluster.nodes["node2"].free
    (what,) = world.cluster.befallen
    assert (what.name, what.node, what.job) == ("GPU", "node2", "wide")


def test_a_hang_that_a_watchdog_ends_leaves_its_lines_when_it_ends() -> None:
    """Silence for ten minutes, then the line and the exit code of the watchdog."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 1})
    job = world.one()
    world.to(HOUR)
    silence = Symptom(kind="hang", ends_after=600, code=134, lines=["Watchdog"])
    world.befall("node_error", symptom=silence)
    before = world.memory.logs["/logs/one.1"]
    world.to(HOUR + 595)
    assert job.state == "RUNNING" and world.memory.logs["/logs/one.1"] == before
    world.to(HOUR + 610)
    assert world.word(job)[2] == "134:0" and world.memory.logs["/logs/one.1"] == before + "Watchdog\n"


def test_a_node_that_stays_broken_breaks_again_until_it_is_drained_and_repaired() -> None:
    """Whoever gets it is hit again; once the site has drained it nobody gets it, and then it is sound."""
    sticky = {"every": 1800, "drained_after": 6 * HOUR, "repair": DAY}
    fault = {"kind": "node_error", "at": HOUR, "node": "node1", "sticky": sticky, "symptom": BROKEN}
    world = FakeWorld(jobs=[LONG], faults=[fault], cluster={"nodes": 1}, seed=4)
    starts, drained_at = 0, None
    for minute in range(0, 3 * 24 * 60, 5):
        world.to(minute * 60)
        node = world.cluster.nodes["node1"]
        if drained_at is None and node.drained_until:
            drained_at = world.now
        if all(job.ended for job in world.cluster.jobs.values()):
            starts += 1
            last = world.one("one", attempt=starts, time_limit=30 * DAY)
    assert starts > 3 and drained_at is not None
    hits = [what.at - world.scenario.start for what in world.cluster.befallen if what.job]
    assert len(hits) == starts - 1 and max(hits) < drained_at + 2 * HOUR
    # After the repair the job works on.
    assert last.state == "RUNNING" and world.now - drained_at > DAY


def test_maintenance_requeues_the_job_and_keeps_the_node_for_a_while() -> None:
    """The same id starts on another node; later the node is back."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 2})
    job = world.one()
    world.to(HOUR)
    assert job.nodes == ("node1",)
    world.befall("maintenance", node="node1", lasts=2 * HOUR)
    world.to(HOUR + 300)
    assert (job.state, job.restarts, job.nodes) == ("RUNNING", 1, ("node2",))
    assert not world.cluster.nodes["node1"].free
    world.to(4 * HOUR)
    assert world.cluster.nodes["node1"].free


# ---------------------------------------------------------------- reasons for waiting


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"time_limit": 2 * DAY}, "PartitionTimeLimit"),
        ({"nodes": 3}, "PartitionNodeLimit"),
        ({"nodes": 5, "partition": "wide"}, "PartitionConfig"),
        ({"partition": "closed"}, "PartitionDown"),
    ],
)
def test_what_can_never_start_waits_for_ever(request_: dict[str, Any], reason: str) -> None:
    """sbatch takes it (EnforcePartLimits=NO), and squeue says why."""
    partitions = {"main": {"max_time": "1d", "max_nodes": 2}, "wide": {}, "closed": {"down": True}}
    world = FakeWorld(jobs=[SHORT], cluster={"nodes": 4, "partitions": partitions})
    job = world.one(**{"time_limit": HOUR, **request_})
    world.to(30 * DAY)
    assert (job.state, job.reason) == ("PENDING", reason)


def test_the_first_that_does_not_fit_waits_for_resources_and_the_others_for_priority() -> None:
    """A short one may start before its turn where that delays nobody (backfill)."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 4})
    running = world.one("running", nodes=3, time_limit=10 * HOUR)
    wide = world.one("wide", nodes=4, time_limit=HOUR)
    long_ = world.one("long", nodes=1, time_limit=20 * HOUR)
    short = world.one("short", nodes=1, time_limit=HOUR)
    world.to(60)
    assert [job.state for job in (running, short)] == ["RUNNING", "RUNNING"]
    assert (wide.reason, long_.reason) == ("Resources", "Priority")


def test_a_held_job_and_one_without_nodes_say_so() -> None:
    """Held by an administrator; all nodes down."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 1, "slurmd_timeout": 60})
    held = world.one("held")
    world.befall("hold")
    world.to(60)
    assert held.reason == "JobHeldAdmin"
    world.befall("node_fail")
    other = world.one("other")
    world.to(300)
    assert (other.state, other.reason) == ("PENDING", NO_NODES)
    world.befall("release")
    world.to(2 * HOUR)
    assert {held.state, other.state} == {"RUNNING", "PENDING"}


# ---------------------------------------------------------------- submitting


def test_refusals_have_the_words_of_sbatch() -> None:
    """Too large an array, an unknown partition, too many jobs."""
    world = FakeWorld(cluster={"max_array_size": 2, "max_submit_jobs": 2, "partitions": {"main": {}}})
    with pytest.raises(SubmitRejected, match="Invalid job array specification"):
        world.submit("a", "b", "c")
    with pytest.raises(SubmitRejected, match="Invalid partition name specified"):
        world.one(partition="nope")
    first, second = world.submit("a", "b")
    assert (first.id, second.id) == ("1_0", "1_1")
    with pytest.raises(SubmitDeferred, match="job submit limit"):
        world.one("c")


def test_a_frozen_controller_takes_in_what_it_did_not_answer() -> None:
    """`sbatch` says that it timed out, and the job is there when the controller wakes."""
    world = FakeWorld(jobs=[LONG])
    world.befall("frozen", lasts=600.0)
    with pytest.raises(SubmitUnclear, match="Socket timed out"):
        world.one()
    with pytest.raises(SchedulerUnavailable, match="Socket timed out"):
        world.cluster.ask()
    world.to(700)
    world.cluster.ask()
    assert [job.state for job in world.cluster.jobs.values()] == ["RUNNING"]


def test_a_dead_controller_takes_nothing() -> None:
    """Certainly not accepted; what ends meanwhile is told when it is back, with that time."""
    world = FakeWorld(jobs=[{"work": "1h", "startup": 0, "checkpoint_every": None}])
    job = world.one()
    world.to(1800)
    world.befall("outage", lasts=2 * HOUR)
    with pytest.raises(SchedulerUnavailable, match="Unable to contact slurm controller"):
        world.one("other")
    world.to(2 * HOUR)
    assert job.state == "RUNNING" and "/attempts/one/1/exit.0.json" in world.memory.files
    world.to(3 * HOUR)
    assert job.state == "COMPLETED" and job.ended_at == world.scenario.start + 1800 + 2 * HOUR


def test_a_lost_answer_is_an_accepted_job() -> None:
    """Once; the next submission is answered."""
    world = FakeWorld(jobs=[LONG])
    world.befall("lost_answer")
    with pytest.raises(SubmitUnclear):
        world.one()
    assert [job.token for job in world.cluster.jobs.values()] == ["one"]
    assert world.one("two").id == "2"


def test_a_crashed_controller_gives_an_id_again() -> None:
    """What was submitted just before is forgotten; the next job has its id, and another token."""
    world = FakeWorld(jobs=[LONG], faults=[{"kind": "crash", "at": "365d"}])
    world.to(100)
    assert world.one("old").id == "1"
    world.to(200)
    assert world.one("young").id == "2"
    world.befall("crash", lasts=10.0)
    world.to(300)
    assert [job.token for job in world.cluster.jobs.values()] == ["old"]
    assert world.one("new").id == "2"


# ---------------------------------------------------------------- excluded nodes


def test_excluded_nodes_are_not_given() -> None:
    """Neither to a job nor to one behind it that fits; the failed one of a job's nodes is known."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 4, "requeue": False, "min_job_age": "1d"})
    job, narrow = world.one(nodes=2, exclude=("node1", "node3")), world.one("narrow", exclude=("node4",))
    world.to(60)
    assert (job.nodes, narrow.nodes) == (("node2", "node4"), ("node1",))
    world.befall("node_fail", node="node4")
    world.to(HOUR)
    assert world.word(job)[0] == "NODE_FAIL" and job.failed_nodes == ("node4",)


def test_more_exclusions_than_a_job_can_bear_are_told_as_slurm_tells_them() -> None:
    """At submission it is refused; once queued it waits with BadConstraints until the list is mended."""
    world = FakeWorld(jobs=[LONG], cluster={"nodes": 3})
    with pytest.raises(SubmitRejected, match="Requested node configuration is not available"):
        world.one(nodes=2, exclude=("node1", "node2"))
    with pytest.raises(SubmitRejected, match="Invalid node name specified"):
        world.one(exclude=("node9",))
    first = world.one("first", nodes=3, time_limit=HOUR)
    job = world.one("second", nodes=2)
    world.to(60)
    world.cluster.exclude(job.id, ["node1", "node2"])
    world.to(120)
    assert world.word(job)[:2] == ("PENDING", "BadConstraints")
    with pytest.raises(SubmitRejected, match="Invalid node name specified"):
        world.cluster.exclude(job.id, ["node9"])
    with pytest.raises(SubmitRejected, match="no longer pending"):
        world.cluster.exclude(first.id, [])
    world.cluster.exclude(job.id, ["node2"])
    world.to(2 * HOUR)
    assert job.nodes == ("node1", "node3")
    with pytest.raises(SubmitRejected, match="Invalid job id"):
        world.cluster.exclude("77", [])


# ---------------------------------------------------------------- two copies


def test_a_cut_off_copy_goes_on_until_it_sees_that_a_later_start_has_taken_over() -> None:
    """Same id, higher restart count, next generation; both write to one log for a while."""
    play = {**LONG, "log_every": 10, "checkpoint_every": None, "startup": 0}
    cluster = {"nodes": 2, "slurmd_timeout": 60, "requeue": True, "requeue_delay": 10}
    world = FakeWorld(jobs=[play], cluster=cluster)
    job = world.one()
    world.to(600)
    world.befall("node_fail", node=job.nodes[0], runs_on=True, lasts=HOUR)
    world.to(670)
    first = next(iter(world.cluster.nodes.values())).orphans[0]
    assert (job.state, first.alive) == ("PENDING", True)
    world.to(690)
    assert (job.state, job.restarts, first.alive) == ("RUNNING", 1, True)
    world.to(720)
    assert not first.alive
    files = world.memory.files
    assert json.loads(files["/attempts/one/1/claim.1.json"])["restart_count"] == 1
    assert json.loads(files["/attempts/one/1/exit.0.json"])["cause"] == "superseded"


def test_the_second_copy_of_an_attempt_ends_at_once() -> None:
    """Submitted twice: the loser of the claim exits 79, and leaves no exit record."""
    world = FakeWorld(jobs=[LONG])
    first, second = world.one(), world.one()
    world.to(HOUR)
    assert first.state == "RUNNING" and world.word(second) == ("FAILED", "NonZeroExitCode", "79:0")
    assert "attempt is owned by 1 on" in world.memory.logs["/logs/one.1"]
    assert not any("exit" in path for path in world.memory.files)


def test_a_job_goes_on_from_its_newest_checkpoint() -> None:
    """What was done since is lost; a job that saves when it is told to stop loses nothing."""
    play = {"work": "10h", "startup": 0, "checkpoint_every": "2h", "checkpoint_takes": 0, "step_takes": 3600}
    for saves, at in ((False, 2), (True, 3)):
        world = FakeWorld(jobs=[{**play, "saves_when_stopped": saves}])
        job = world.one()
        world.to(3.5 * HOUR)
        world.cluster.cancel([job.id])
        world.to(4 * HOUR)
        world.one(attempt=2)
        world.to(5 * HOUR)
        assert world.memory.logs["/logs/one.2"].startswith(f"resumed at step {at}\n")


# ---------------------------------------------------------------- properties

PLAYS = st.fixed_dictionaries(
    {"work": st.floats(0, 5 * HOUR), "startup": st.floats(0, 300), "stop_takes": st.floats(0, 60)},
    optional={
        "checkpoint_every": st.one_of(st.none(), st.floats(300, 5000)),
        "log_every": st.floats(200, 5000),
        "saves_when_stopped": st.booleans(),
        "mishaps": st.lists(
            st.fixed_dictionaries(
                {
                    "kind": st.sampled_from(["exit", "kill", "oom", "hang"]),
                    "every": st.floats(100, 9000),
                    "attempts": st.just(1),
                    "chance": st.floats(0, 1),
                }
            ),
            max_size=2,
        ),
    },
)
KINDS = [
    "node_fail",
    "preempt",
    "suspend",
    "cancel",
    "hold",
    "release",
    "requeue",
    "outage",
    "frozen",
    "crash",
    "lost_answer",
]
FAULTS = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(KINDS), "at": st.floats(0, 6 * HOUR), "lasts": st.floats(0, 2 * HOUR)},
        optional={"runs_on": st.booleans()},
    ),
    max_size=6,
)
SCENARIOS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "cluster": st.fixed_dictionaries(
            {"nodes": st.integers(1, 4)},
            optional={
                "requeue": st.booleans(),
                "queue_wait": st.just(600.0),
                "slurmd_timeout": st.just(60.0),
            },
        ),
        "jobs": st.lists(PLAYS, max_size=1),
        "faults": FAULTS,
    }
)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 3), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("wait"), st.floats(0, HOUR), st.just(0)),
    ),
    max_size=12,
)


def play(scenario: dict[str, Any], calls: list[Any], look: Callable[[FakeWorld], None]) -> FakeWorld:
    world = FakeWorld(**scenario)
    for number, (what, first, second) in enumerate(calls):
        try:
            if what == "submit":
                world.submit(
                    *(f"j{number}x{task}" for task in range(first)), nodes=second, time_limit=2 * HOUR
                )
            elif what == "cancel":
                ids = list(world.cluster.jobs)
                world.cluster.cancel(ids[first % len(ids) :][:1] if ids else [])
            else:
                world.to(world.now + first)
        except (SchedulerUnavailable, SubmitUnclear):
            pass
        look(world)
    return world


def in_order(world: FakeWorld) -> None:
    """The cluster's books at one moment."""
    cluster = world.cluster
    assert cluster.next_at >= cluster.now
    held = [name for job in cluster.jobs.values() if not job.ended for name in job.nodes]
    assert len(held) == len(set(held)) <= len(cluster.nodes)
    for job in cluster.jobs.values():
        assert job.pending == (not job.nodes) or job.ended
        if job.state == "RUNNING":
            assert len(job.nodes) == job.request.nodes
            assert all(cluster.nodes[name].job == job.id for name in job.nodes)
    for node in cluster.nodes.values():
        if node.job:
            assert node.name in cluster.jobs[node.job].nodes


@given(SCENARIOS, CALLS)
@settings(max_examples=150, deadline=None)
def test_the_books_are_in_order_whatever_befalls(scenario: dict[str, Any], calls: list[Any]) -> None:
    """A node has one job, a running job its nodes, and time never runs back."""
    times = [0.0]

    def look(world: FakeWorld) -> None:
        in_order(world)
        assert world.now >= times[-1]
        times.append(world.now)

    world = play(scenario, calls, look)
    for hour in range(1, 20):
        world.to(world.now + HOUR * hour)
        in_order(world)


@given(SCENARIOS, CALLS)
@settings(max_examples=100, deadline=None)
def test_once_the_faults_are_over_every_job_that_can_run_ends(
    scenario: dict[str, Any], calls: list[Any]
) -> None:
    """Nothing is left running; what waits is held, or too wide for the cluster."""
    world = play(scenario, calls, lambda _world: None)
    world.to(world.now + 60 * DAY)
    for job in world.cluster.jobs.values():
        assert job.ended or (job.pending and job.reason in ("JobHeldAdmin", "PartitionConfig")), job
    assert all(node.free for node in world.cluster.nodes.values())


@given(SCENARIOS, CALLS, st.floats(1, 1000))
@settings(max_examples=100, deadline=None)
def test_the_same_seed_gives_the_same_bytes_however_time_is_cut(
    scenario: dict[str, Any], calls: list[Any], piece: float
) -> None:
    """Logs and guards' files depend on what was asked when, not on the steps in which time passed."""

    def up_to_now(world: FakeWorld) -> None:
        world.to(world.now)

    one, two = play(scenario, calls, up_to_now), play(scenario, calls, up_to_now)
    end = one.now + 20 * HOUR
    one.to(end)
    while two.now < end:
        two.to(min(end, two.now + max(piece, 300.0)))
    assert one.memory.logs == two.memory.logs and one.memory.files == two.memory.files
    assert [one.word(job) for job in one.cluster.jobs.values()] == [
        two.word(job) for job in two.cluster.jobs.values()
    ]


# ---------------------------------------------------------------- queued behind another attempt


def queued_behind(time_limit: float = 600.0, **request: Any) -> tuple[FakeWorld, FakeJob]:
    """An attempt with a time limit, and another behind it."""
    world = FakeWorld(jobs=[LONG], cluster={"min_job_age": "9d"})
    first = world.one(time_limit=time_limit)
    given = {"after_dir": first.request.attempt_dir, "after_wait": 100.0, **request}
    return world, world.one(attempt=2, dependency=f"afterany:{first.id}", time_limit=600.0, **given)


def begun_by(world: FakeWorld) -> set[int]:
    return {run.request.attempt for run in world.cluster.running}


def test_what_is_queued_behind_another_attempt_begins_at_the_word() -> None:
    """It has its nodes, and its command does not run before."""
    world, second = queued_behind()
    world.to(700)
    assert second.state == "RUNNING" and begun_by(world) == set()
    assert world.cluster.awaiting_word == [second.request.attempt_dir]
    world.cluster.word(second.request.attempt_dir, withdrawn=False)
    assert begun_by(world) == {2} and world.cluster.awaiting_word == []


def test_what_is_given_up_while_it_waits_never_begins() -> None:
    """It loses the claim, like any other copy."""
    world, second = queued_behind()
    world.to(700)
    world.cluster.word(second.request.attempt_dir, withdrawn=True)
    world.to(DAY)
    assert world.word(second) == ("FAILED", "NonZeroExitCode", "79:0")
    assert "/attempts/one/2/claim.0.json" not in world.memory.files


@pytest.mark.parametrize(("time_limit", "begins"), [(600.0, True), (2 * DAY, False)])
def test_told_nothing_it_begins_behind_a_time_limit_only(time_limit: float, begins: bool) -> None:
    """The guard reads the exit record of the one before."""
    world, second = queued_behind(time_limit)
    if not begins:
        world.to(300)
        world.cluster.cancel(["1"])
    world.to(time_limit + 200 if begins else 900)
    assert begun_by(world) == ({2} if begins else set())
    assert world.word(second)[2] == ("0:0" if begins else "78:0")


def test_a_cancel_ends_the_wait_for_the_word() -> None:
    """Nothing is written of an attempt that has not begun."""
    world, second = queued_behind()
    world.to(700)
    world.cluster.cancel([second.id])
    world.to(DAY)
    assert second.state == "CANCELLED" and begun_by(world) == set()
    assert not [path for path in world.memory.files if path.startswith("/attempts/one/2/")]
