"""The Slurm client where things go wrong: a controller that hangs or forgets, an id that comes again."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from dev_slurm import Cluster
from schedulers import HOLD, SlurmBench

from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import SchedulerRef, SchedulerState
from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected, SubmitUnclear
from oellm_autoexp.rendering import guard_files
from oellm_autoexp.schedulers.slurm import commands as slurm_commands
from oellm_autoexp.schedulers.slurm.client import SlurmClient, SlurmClientConfig
from oellm_autoexp.store.effects import Effects

pytestmark = pytest.mark.slurm
S = SchedulerState


@pytest.fixture
def bench(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmBench:
    """On a cluster without accounting. Pauses after silence are short."""
    monkeypatch.setattr(slurm_commands, "FIRST_PAUSE_S", 0.1)
    return SlurmBench(tmp_path)


@pytest.fixture
def accounted(slurm_with_accounting: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmBench:
    """On a cluster with accounting."""
    monkeypatch.setattr(slurm_commands, "FIRST_PAUSE_S", 0.1)
    return SlurmBench(tmp_path)


@pytest.fixture
def mend(slurm: Cluster) -> Iterator[Callable[[], None]]:
    """Have the controller answer again; done at the end in any case."""

    def answers() -> None:
        slurm.thaw("slurmctld")
        slurm.start("slurmctld")
        slurm.wait_for_controller()

    yield answers
    answers()


def state(bench: SlurmBench, ref: SchedulerRef) -> SchedulerState:
    return bench.fact(ref).state


def directed(task: Task, directive: str) -> Task:
    """The task with a directive more in its script."""
    script = Path(task.script_path)
    script.write_text(script.read_text().replace("#SBATCH", f"#SBATCH {directive}\n#SBATCH", 1))
    return task


def until_running(bench: SlurmBench, ref: SchedulerRef) -> None:
    bench.until(lambda: state(bench, ref) is S.RUNNING, "it runs")


# ---------------------------------------------------------------- a controller that does not answer


def _found(bench: SlurmBench, *names: str) -> object:
    """None while it is silent: a controller that did not answer is left alone for a while."""
    try:
        return bench.find(*names)
    except SchedulerUnavailable:
        return None


def test_from_a_dead_controller_nothing_is_concluded(
    slurm: Cluster, bench: SlurmBench, mend: Callable[[], None]
) -> None:
    """Every question fails; a submission certainly was not made; and all is as it was when it is back."""
    (ref,) = bench.submit("a", bench.task("one", HOLD))
    until_running(bench, ref)
    slurm.kill("slurmctld", gently=True)
    asked: list[Callable[[], object]] = [
        lambda: bench.fact(ref),
        lambda: bench.find("a"),
        lambda: bench.scheduler.cancel([ref]),
        lambda: bench.submit("b", bench.task("two", "true")),
    ]
    for ask in asked:
        with pytest.raises(SchedulerUnavailable):
            ask()
        time.sleep(0.2)
    mend()
    bench.until(lambda: _found(bench, "a", "b") == {"a": [ref]}, "it answers")
    assert state(bench, ref) is S.RUNNING
    assert bench.ran == ["one"]


def test_a_controller_that_hangs_may_have_heard(
    slurm: Cluster, bench: SlurmBench, mend: Callable[[], None]
) -> None:
    """sbatch says that it failed, and the job is there when the controller wakes: it is looked up."""
    bench.scheduler.prepare()
    slurm.freeze("slurmctld")
    with pytest.raises(SubmitUnclear, match="timed out"):
        bench.submit("a", bench.task("one", "true"))
    with pytest.raises(SchedulerUnavailable):
        bench.find("a")
    mend()
    refs: list[SchedulerRef] = []

    def found() -> bool:
        with contextlib.suppress(SchedulerUnavailable):
            refs.extend(bench.find("a").get("a", ()))
        return bool(refs)

    bench.until(found, "it is found")
    assert bench.ended(refs[0]).state is S.COMPLETED
    assert bench.ran == ["one"]


def test_a_dead_controller_is_not_asked_without_a_pause(
    slurm: Cluster, bench: SlurmBench, mend: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the pause is over each question fails at once, and no command is started."""
    monkeypatch.setattr(slurm_commands, "FIRST_PAUSE_S", 60.0)
    (ref,) = bench.submit("a", bench.task("one", HOLD))
    slurm.kill("slurmctld", gently=True)
    for _ in range(3):
        with pytest.raises(SchedulerUnavailable, match=r"squeue: .*Unable to contact"):
            bench.fact(ref)
    assert bench.scheduler.calls["squeue"] == 1


def test_a_command_that_hangs_is_ended(bench: SlurmBench, tmp_path: Path) -> None:
    """After its time; what it has done nobody knows."""
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 300\n")
    slow.chmod(0o755)
    bench.options = {"submit_cmd": str(slow), "call_timeout_seconds": 0.5}
    bench.scheduler = bench.make()
    started = time.monotonic()
    with pytest.raises(SubmitUnclear):
        bench.submit("a", bench.task("one", "true"))
    assert time.monotonic() - started < 20


def test_a_command_that_is_not_there_is_no_answer(bench: SlurmBench) -> None:
    """As on a login node whose modules are being changed."""
    bench.options = {"squeue_cmd": "/no/squeue"}
    bench.scheduler = bench.make()
    with pytest.raises(SchedulerUnavailable, match="squeue"):
        bench.find("a")


# ---------------------------------------------------------------- a controller that forgets


def test_what_a_controller_has_forgotten_is_gone(slurm: Cluster, bench: SlurmBench) -> None:
    """Without accounting; and an id that is given again is not taken for the job that had it."""
    slurm.forget()  # Ids begin anew, however many other tests have used.
    (old,) = bench.submit("a", bench.task("one", HOLD))
    until_running(bench, old)
    slurm.forget()
    with_id = old
    others = []
    while with_id.id != old.id or with_id is old:
        (with_id,) = bench.submit(f"b{len(others)}", bench.task(f"other{len(others)}", HOLD))
        others.append(with_id)
        assert len(others) < 10
    facts = bench.scheduler.poll([old, with_id])
    assert facts[old].state is S.GONE
    assert facts[with_id].state is not S.GONE
    bench.scheduler.cancel([old])
    bench.until(lambda: state(bench, with_id) is S.RUNNING, "the other one runs")
    with pytest.raises(SubmitRejected, match="Invalid job id"):
        bench.scheduler.update([old], {"time_limit_s": 600})


def test_accounting_remembers_what_the_controller_has_forgotten(
    slurm_with_accounting: Cluster, accounted: SlurmBench
) -> None:
    """How it ended, and by its token that it was there; whose id was given again, too."""
    refs = accounted.submit("a", *(accounted.task(f"t{code}", f"exit {code}") for code in (0, 3)))
    for ref in refs:
        accounted.ended(ref)
    told: list[str] = []

    def is_known() -> bool:
        told[:] = slurm_with_accounting.run("sacct", "-n", "-X", "-P", "-o", "State").split()
        return told.count("COMPLETED") >= 1 and told.count("FAILED") >= 1

    accounted.until(is_known, f"slurmdbd has been told: {told}")
    slurm_with_accounting.forget()
    facts = accounted.again().scheduler.poll(refs)
    assert [facts[ref].state for ref in refs] == [S.COMPLETED, S.FAILED]
    assert facts[refs[1]].exit_code == 3
    assert accounted.again().find("a", "never") == {"a": refs}


def test_accounting_tells_of_each_task_that_never_began(
    slurm_with_accounting: Cluster, accounted: SlurmBench
) -> None:
    """sacct has one row for them, with a long list of tasks."""
    cluster = slurm_with_accounting
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        refs = accounted.submit("a", *(accounted.task(f"t{number}", HOLD) for number in range(90)))
        array, rest = refs[0].id.partition("_")[0], refs[::2]

        def is_told(state: str) -> bool:
            told = cluster.run("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", array)
            return f"{array}_[" in told and state in told

        accounted.until(lambda: is_told("PENDING"), "slurmdbd has been told of the array")
        cluster.run("scancel", *(ref.id for ref in refs[1::2]))
        cluster.run("scancel", array)
        accounted.until(lambda: is_told("CANCELLED"), "slurmdbd has been told of its end")
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")
    cluster.forget()
    facts = accounted.again().scheduler.poll(rest)
    assert {facts[ref].state for ref in rest} == {S.CANCELLED}


def test_a_database_that_is_away_says_nothing(slurm_with_accounting: Cluster, accounted: SlurmBench) -> None:
    """The controller has answered: that it knows the job no more stands."""
    (ref,) = accounted.submit("a", accounted.task("one", "true"))
    accounted.ended(ref)
    slurm_with_accounting.forget()
    slurm_with_accounting.kill("slurmdbd")
    try:
        assert state(accounted, ref) is S.GONE
    finally:
        slurm_with_accounting.start("slurmdbd")


# ---------------------------------------------------------------- one token, two jobs


def test_of_two_jobs_with_one_token_one_runs(bench: SlurmBench) -> None:
    """The one that claimed it is the attempt, whichever was submitted first; a cancel ends both."""
    (first,) = bench.submit("a", bench.task("one", HOLD))
    (second,) = bench.submit("a", bench.task("one", HOLD))
    directory = bench.root / "attempts" / "one"
    bench.until(lambda: guard_files.read_claim(directory), "one has claimed")
    claim = guard_files.read_claim(directory)
    assert claim is not None and claim.scheduler_id in (first.id, second.id)
    bench.until(lambda: "this copy ends" in bench.log(bench.task("one", HOLD)), "the other one has ended")
    for ref in (first, second):
        assert state(bench, ref) is S.RUNNING
    assert bench.find("a")["a"][0].id == claim.scheduler_id
    bench.scheduler.cancel([first])
    assert bench.ended(second).state is S.CANCELLED
    assert bench.ran == ["one"]


def test_a_job_that_lost_its_claim_and_waits_is_cancelled_too(bench: SlurmBench, slurm: Cluster) -> None:
    """A cancel is for all that carry the token, also where one has not started."""
    (first,) = bench.submit("a", bench.task("one", HOLD))
    until_running(bench, first)
    slurm.run(
        "scontrol",
        "create",
        "reservation=all",
        "starttime=now",
        "duration=60",
        "nodes=ALL",
        "users=nobody",
        "flags=ignore_jobs",
    )
    try:
        (second,) = bench.submit("a", bench.task("one", HOLD))
        bench.scheduler.cancel([first])
        assert bench.ended(first).state is S.CANCELLED
        left = slurm.run("squeue", "-h", "-t", "pending,running", "-o", "%i", "-j", second.id, check=False)
        assert second.id not in left.split()
    finally:
        slurm.run("scontrol", "delete", "reservationname=all")


# ---------------------------------------------------------------- nodes, requeues, limits


def test_a_lost_node_ends_a_job(slurm: Cluster, bench: SlurmBench) -> None:
    """Slurm does not start it again by itself."""
    (ref,) = bench.submit("a", bench.task("one", HOLD))
    until_running(bench, ref)
    node = bench.fact(ref).nodes
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        fact = bench.ended(ref)
        assert (fact.state, fact.reason, fact.nodes) == (S.NODE_FAIL, "NodeDown", node)
    finally:
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        slurm.wait_for_nodes()


def test_a_requeued_job_is_the_same_attempt_in_its_next_generation(slurm: Cluster, bench: SlurmBench) -> None:
    """Where the script asks for it: the same id, one restart more; the log goes on."""
    (ref,) = bench.submit("a", directed(bench.task("one", HOLD), "--requeue"))
    until_running(bench, ref)
    bench.until(lambda: bench.ran == ["one"], "its command runs")
    slurm.run("scontrol", "requeue", ref.id)
    bench.until(lambda: bench.ran == ["one", "one"], "its command runs again")
    bench.until(lambda: state(bench, ref) is S.RUNNING, "it runs again")
    assert bench.fact(ref).restart_count == 1
    claim = guard_files.read_claim(bench.root / "attempts" / "one")
    assert claim is not None and (claim.generation, claim.scheduler_id) == (1, ref.id)
    assert bench.log(bench.task("one", HOLD)).count("holding\n") == 2


def test_nodes_can_be_left_out(slurm: Cluster, bench: SlurmBench) -> None:
    """At submission, and of one that waits."""
    submission = Submission(
        token=bench.token("a"), tasks=[bench.task("one", HOLD)], exclude=["node1", "node2"]
    )
    (ref,) = bench.scheduler.submit(submission)
    until_running(bench, ref)
    assert bench.fact(ref).nodes == "node3"
    (waits,) = bench.submit("b", directed(bench.task("two", HOLD), "--hold"))
    bench.scheduler.update([waits], {"exclude": ["node1", "node3"]})
    slurm.run("scontrol", "release", waits.id)
    until_running(bench, waits)
    assert bench.fact(waits).nodes == "node2"


def test_a_time_limit_travels_and_can_be_changed(slurm: Cluster, bench: SlurmBench) -> None:
    """The attempt's own wins over that of its script."""
    task = bench.task("one", HOLD)
    changed = Task(**{**vars(task), "time_limit_s": 3000})
    (ref,) = bench.submit("a", changed)
    shown = lambda: slurm.run("squeue", "-h", "-o", "%l", "-j", ref.id).strip()  # noqa: E731
    assert shown() == "50:00"
    bench.scheduler.update([ref], {"time_limit_s": 7200})
    assert shown() == "2:00:00"
    short = bench.task("two", HOLD)
    short = directed(short, "--partition=short")
    (ref,) = bench.submit("b", Task(**{**vars(short), "time_limit_s": 3000}))
    assert shown() == "5:00", "no more than the partition gives"
    with pytest.raises(SubmitRejected, match="colour"):
        bench.scheduler.update([ref], {"colour": "red"})


def test_a_command_is_told_before_its_time_limit(bench: SlurmBench) -> None:
    """By Slurm itself, to the batch script; the guard hands it on, and knows what it means."""
    command = "trap 'echo saved; exit 0' USR1; echo holding; sleep 300 & wait"
    task = directed(bench.task("one", command), "--signal=B:USR1@10")
    task = Task(**{**vars(task), "time_limit_s": 60, "signal": "B:USR1@10"})
    (ref,) = bench.submit("a", task)
    bench.ended(ref)
    record = guard_files.read_exit(Path(task.attempt_dir))
    assert record is not None and (record.cause, record.exit_code) == ("timeout", 0)
    assert "saved" in bench.log(task)


def test_a_job_asks_for_no_more_than_is_left_until_its_deadline(slurm: Cluster, bench: SlurmBench) -> None:
    """The last segment of a chain is shorter; sbatch would refuse a longer one."""
    deadline = datetime.fromtimestamp(time.time() + 1830).isoformat(timespec="seconds")
    task = directed(bench.task("one", HOLD), f"--deadline={deadline}")
    (ref,) = bench.submit("a", Task(**{**vars(task), "time_limit_s": 86400}))
    assert slurm.run("squeue", "-h", "-o", "%l", "-j", ref.id).strip() in ("30:00", "29:00")


def test_of_several_nodes_the_one_that_failed_is_named(slurm: Cluster, bench: SlurmBench) -> None:
    """Neither squeue nor sacct say it."""
    (ref,) = bench.submit("a", directed(bench.task("one", HOLD), "--nodes=2"))
    until_running(bench, ref)
    _, second = expand(bench.fact(ref).nodes)
    slurm.kill(second)
    slurm.run("scontrol", "update", f"nodename={second}", "state=down", "reason=test")
    try:
        fact = bench.ended(ref)
        assert (fact.state, fact.failed_nodes) == (S.NODE_FAIL, second)
    finally:
        slurm.start(second)
        slurm.run("scontrol", "update", f"nodename={second}", "state=resume", check=False)
        slurm.wait_for_nodes()


def test_a_cancelled_command_can_save_and_leaves_a_record(bench: SlurmBench) -> None:
    """The guard ends before Slurm's SIGKILL comes, even if the command does not."""
    stubborn = bench.task("one", "trap '' TERM; echo holding; sleep 300 & while :; do wait; done")
    (ref,) = bench.submit("a", stubborn)
    bench.running(stubborn)
    bench.scheduler.cancel([ref])
    assert bench.ended(ref).state is S.CANCELLED
    record = guard_files.read_exit(Path(stubborn.attempt_dir))
    assert record is not None and (record.cause, record.exit_code) == ("signal:TERM", 137)


# ---------------------------------------------------------------- arrays


def test_one_task_of_an_array_is_cancelled_alone(bench: SlurmBench) -> None:
    """The others run on; each has its own log, and its own verdict."""
    tasks = [bench.task(f"t{number}", HOLD) for number in range(3)]
    refs = bench.submit("a", *tasks)
    for task in tasks:
        bench.running(task)
    bench.scheduler.cancel([refs[1]])
    assert bench.ended(refs[1]).state is S.CANCELLED
    assert [state(bench, ref) for ref in (refs[0], refs[2])] == [S.RUNNING, S.RUNNING]
    assert refs[1].id == f"{refs[0].id.partition('_')[0]}_1"
    assert bench.scheduler.calls["sbatch"] == 1


def test_an_array_runs_what_was_submitted(bench: SlurmBench, slurm: Cluster) -> None:
    """Whatever a later plan has written into the scripts, before it starts."""
    held = [directed(bench.task(f"t{number}", "true"), "--hold") for number in range(2)]
    tasks = [directed(task, "--requeue") for task in held]
    refs = bench.submit("a", *tasks)
    for task in tasks:
        Path(task.script_path).write_text("#!/bin/sh\nexit 5\n")
    slurm.run("scontrol", "release", refs[0].id.partition("_")[0])
    assert {bench.ended(ref).state for ref in refs} == {S.COMPLETED}
    assert bench.ran == ["t0", "t1"]


def test_the_log_of_a_task_holds_what_slurm_says_of_it(bench: SlurmBench, slurm: Cluster) -> None:
    """Lines of slurmstepd, in which a memory limit or a cancel is named."""
    tasks = [bench.task(f"t{number}", HOLD) for number in range(2)]
    refs = bench.submit("a", *tasks)
    for task in tasks:
        bench.running(task)
    bench.scheduler.cancel([refs[1]])
    bench.ended(refs[1])
    bench.until(lambda: "CANCELLED AT" in bench.log(tasks[1]), "Slurm's line is in the log")
    assert "CANCELLED AT" not in bench.log(tasks[0])


# ---------------------------------------------------------------- the environment


def test_a_loop_within_a_job_gives_its_jobs_nothing_of_it(
    bench: SlurmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Slurm set there, and what a person set for its commands, changes nothing."""
    for name, value in {
        "SLURM_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_CPUS_PER_TASK": "99",
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_ARRAY_INX": "0-9",
        "SQUEUE_FORMAT": "%j",
        "SQUEUE_STATES": "RUNNING",
        "SLURM_CLUSTERS": "nowhere",
        "SLURM_TIME_FORMAT": "relative",
        "AUTOEXP_CLAIMED": "1",
        "AUTOEXP_ATTEMPT_DIR": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    command = 'echo "${SLURM_CPUS_PER_TASK-none} ${SLURM_ARRAY_TASK_ID-none} $AUTOEXP_ATTEMPT_DIR"'
    task = bench.task("one", command)
    (ref,) = bench.submit("a", task)
    assert bench.ended(ref).state is S.COMPLETED
    assert bench.log(task) == f"none none {task.attempt_dir}\n"


@pytest.mark.parametrize(("export", "seen"), [("NONE", "none"), ("MINE", "set"), (None, "set")])
def test_a_job_gets_of_the_shell_what_the_config_says(
    bench: SlurmBench, monkeypatch: pytest.MonkeyPatch, export: str | None, seen: str
) -> None:
    """What it has to know of its attempt reaches it in any case, and the steps of srun see what it sees."""
    monkeypatch.setenv("MINE", "set")
    monkeypatch.setenv("OTHERS", "set")
    command = 'echo "${MINE-none} $AUTOEXP_ATTEMPT $AUTOEXP_TOKEN"; export HERE=1; srun sh -c "echo \\$HERE"'
    request = bench.request("one", command)
    slurm_section: dict[str, Any] = {"export": export} if export else {}
    script = bench.root / "one.sh"
    script.write_text(bench.scheduler.render(type(request)(**{**vars(request), "slurm": slurm_section})))
    plain = bench.task("plain", "true", {"AUTOEXP_ATTEMPT": "7"})
    task = Task(**{**vars(plain), "script_path": str(script)})
    (ref,) = bench.submit("a", task)
    assert bench.ended(ref).state is S.COMPLETED
    assert bench.log(task) == f"{seen} 7 {bench.token('a')}\n1\n"


# ---------------------------------------------------------------- refusals, limits, clusters


def test_a_mistake_is_refused_in_slurms_words(bench: SlurmBench) -> None:
    task = directed(bench.task("one", "true"), "--partition=nowhere")
    with pytest.raises(SubmitRejected, match="invalid partition specified: nowhere"):
        bench.submit("a", task)
    Path(task.script_path).unlink()
    with pytest.raises(SubmitRejected):
        bench.submit("a", task)
    assert bench.find("a") == {}


def test_a_limit_on_jobs_defers(slurm_with_accounting: Cluster, accounted: SlurmBench) -> None:
    """It fails nothing: what does not fit now is told so, and an array is tried in halves."""
    run = slurm_with_accounting.run
    run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=3")
    try:
        tasks = [accounted.task(f"t{number}", HOLD) for number in range(4)]
        with pytest.raises(SubmitDeferred, match=r"AssocMaxSubmitJobLimit|job submit limit"):
            accounted.submit("a", *tasks)
        assert accounted.scheduler.capabilities.max_array_size == 2
        # Until others have ended nobody asks again.
        with pytest.raises(SubmitDeferred):
            accounted.submit("b", tasks[0])
        assert accounted.scheduler.calls["sbatch"] == 1
        fresh = accounted.again()
        assert fresh.scheduler.capabilities.max_array_size == 3
        assert len(fresh.submit("b", *tasks[:3])) == 3
    finally:
        run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")


def test_clusters_are_kept_apart(slurm_with_accounting: Cluster, accounted: SlurmBench) -> None:
    """With `clusters` every command names them, and an id belongs to one of them."""
    accounted.options = {"clusters": ["dev"], "array": True}
    accounted.scheduler = accounted.make()
    refs = accounted.submit("a", *(accounted.task(f"t{number}", HOLD) for number in range(2)))
    assert {ref.cluster for ref in refs} == {"dev"}
    accounted.until(lambda: state(accounted, refs[0]) is S.RUNNING, "it runs")
    assert accounted.find("a") == {"a": refs}
    foreign = SchedulerRef(id=refs[0].id, cluster="elsewhere", token=refs[0].token)
    with pytest.raises(SchedulerUnavailable, match="elsewhere"):
        accounted.scheduler.poll([foreign])
    accounted.scheduler.cancel(refs)
    assert accounted.ended(refs[0]).state is S.CANCELLED


# ---------------------------------------------------------------- politeness


@pytest.mark.parametrize("count", [1, 300])
def test_a_poll_is_one_squeue_whatever_the_number(bench: SlurmBench, count: int) -> None:
    tasks = [bench.task(f"t{number}", HOLD) for number in range(count)]
    refs = bench.submit("a", *tasks)
    before = dict(bench.scheduler.calls)
    assert bench.scheduler.poll(refs).keys() == set(refs)
    after = dict(bench.scheduler.calls)
    assert after == {**before, "squeue": before.get("squeue", 0) + 1}


def test_a_poll_asks_accounting_once_for_all_that_have_left(
    slurm_with_accounting: Cluster, accounted: SlurmBench
) -> None:
    """And not at all while the controller knows them."""
    refs = [accounted.submit(f"a{number}", accounted.task(f"t{number}", "true"))[0] for number in range(3)]
    for ref in refs:
        accounted.ended(ref)
    assert accounted.scheduler.calls.get("sacct", 0) == 0
    slurm_with_accounting.forget()
    accounted.scheduler.poll(refs)
    assert accounted.scheduler.calls["sacct"] == 1


def test_sessions_of_a_user_share_the_rate(slurm: Cluster, tmp_path: Path) -> None:
    """The bucket lies in the user's state home, one for each cluster."""
    config = SlurmClientConfig(calls_per_second=100, call_burst=5)
    for name in ("one", "two"):
        SlurmClient(config, effects=Effects(), state_dir=tmp_path / name).prepare()
    (bucket,) = (Path(os.environ["XDG_STATE_HOME"]) / "oellm-autoexp" / "slurm").iterdir()
    tokens, _ = json.loads(bucket.read_text())
    assert tokens < 5
