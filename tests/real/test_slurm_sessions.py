"""Whole sessions on a real cluster, as a person runs them: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from commands import PATIENCE_S, Cli, until
from dev_slurm import Cluster

from oellm_autoexp.config.sockets import SchedulerInterface
from oellm_autoexp.core.session import Session
from oellm_autoexp.schedulers.slurm.client import SlurmClient
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services import submit as service

pytestmark = pytest.mark.slurm

TRAIN = """\
#!/bin/bash
echo "$AUTOEXP_JOB_NAME $AUTOEXP_ATTEMPT" >> "$RAN"
case $1-$AUTOEXP_ATTEMPT in
  crash-1) echo "RuntimeError: boom"; exit 3 ;;
  memory-1) exec python3 -c 'import time; held = bytearray(900_000_000); time.sleep(60)' ;;
  hang-1) sleep 300 & wait ;;
  node-1 | preempt-1 | long-1) while :; do echo on; sleep 0.5; done ;;
  preempt-2) exit 3 ;;
  wait*) while [ ! -e "$RAN.go" ]; do sleep 0.1; done ;;
esac
echo ALL DONE
"""
CONFIG = """\
project: {{name: real, base_output_dir: ./outputs}}
backend: {{class_name: CommandBackend, command: [bash, {train}, "${{kind}}"], environment: {{RAN: {ran}}}}}
slurm: {{array: {array}, sbatch: {{time: "{limit}"{sbatch}}}}}
sweep: {{axes: {{kind: [{kinds}]}}, name_template: "{{project}}_{{kind}}"}}
monitoring:
  class_name: SlurmLogMonitor
  startup_grace_seconds: 1
  poll_interval_seconds: 1
  {more}
  log_signals: {{memory: {{pattern: 'exceeded memory limit', mode: crash.oom}}}}
restart_policies:
  crash: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
  crash.oom: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
  crash.node_failure: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
  crash.lost: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
  stall: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
  timeout: {{class_name: AdjustTimeLimitPolicy, minutes: 5}}
scheduler: {{class_name: slurm, breaker: null, grace_seconds: 3, calls_per_second: 50, call_burst: 100}}
"""


#: A partition whose jobs give way to those of the default one.
PREEMPT = "partition: preempt"


def preempt(slurm: Cluster, *where: str) -> None:
    """Have a short job of higher rank take the place of those in `PREEMPT`."""
    slurm.run("sbatch", "--output=/dev/null", "--wait", *where, "--wrap=true")


class Sessions:
    """A directory with a config for a real cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cli = Cli(root)
        (root / "train.sh").write_text(TRAIN)

    def config(
        self, kinds: str, *, array: bool = True, limit: str = "00:10:00", more: str = "", sbatch: str = ""
    ) -> None:
        text = CONFIG.format(
            train=self.root / "train.sh",
            ran=self.root / "ran",
            kinds=kinds,
            array=str(array).lower(),
            limit=limit,
            more=more,
            sbatch=f", {sbatch}" if sbatch else "",
        )
        (self.root / "sweep.yaml").write_text(text)

    @property
    def ran(self) -> list[str]:
        """Job and attempt of every start of a command."""
        path = self.root / "ran"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def runs(self, job: str) -> Callable[[], bool]:
        """Whether a job is seen to run."""
        return lambda: self.cli.states().get(job, ("", 0))[0] == "running"

    def node(self, slurm: Cluster, job: str) -> str:
        """Where Slurm runs a job."""
        (number,) = (each["scheduler_id"] for each in self.cli.jobs() if each["name"] == job)
        return slurm.run("squeue", "-h", "-o", "%N", "-j", number).strip()

    def ended_by(self) -> dict[str, tuple[str, list[str]]]:
        return {job["name"]: (job["state"], job["ended_by"]) for job in self.cli.jobs()}


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


def test_a_sweep_ends_as_its_policies_say(slurm_of_small_nodes: Cluster, sessions: Sessions) -> None:
    """One array in which everything goes wrong that can; what did is started again, and nothing else."""
    slurm = slurm_of_small_nodes
    kinds = ("fine", "crash", "memory", "hang", "long", "node", "preempt")
    sessions.config(
        ", ".join(kinds), limit="00:00:30", more="inactivity_threshold_seconds: 8", sbatch=PREEMPT
    )
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(sessions.runs("real_node"), "it runs")
        node = sessions.node(slurm, "real_node")
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        until(sessions.runs("real_preempt"), "it runs")
        preempt(slurm, f"--nodelist={sessions.node(slurm, 'real_preempt')}")
        try:
            assert leader.wait(PATIENCE_S) == 0
        finally:
            slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert sessions.ended_by() == {
        "real_fine": ("succeeded", ["success"]),
        "real_crash": ("succeeded", ["crash", "success"]),
        "real_memory": ("succeeded", ["crash.oom", "success"]),
        "real_hang": ("succeeded", ["stall", "success"]),
        "real_long": ("succeeded", ["timeout", "success"]),
        "real_node": ("succeeded", ["crash.node_failure", "success"]),
        # It crashes after it was preempted: the budget of crashes is as if nothing had been before.
        "real_preempt": ("succeeded", ["preempted", "crash", "success"]),
    }
    again = [f"real_{kind} 2" for kind in kinds if kind != "fine"]
    assert sessions.ran == sorted([*(f"real_{kind} 1" for kind in kinds), *again, "real_preempt 3"])
    log = next((sessions.root / "outputs").rglob("*memory*1*.log"), None)
    assert log is not None and "exceeded memory limit" in log.read_text()


@pytest.mark.parametrize("mode", ["cancel", "requeue"])
def test_a_preempted_job_is_tried_again_and_charged_nothing(
    slurm: Cluster, sessions: Sessions, mode: str
) -> None:
    """Whatever the partition does to whom it preempts; Slurm itself starts it no more."""
    sessions.config("preempt", array=False, sbatch=PREEMPT)
    slurm.run("scontrol", "update", "partitionname=preempt", f"preemptmode={mode}")
    try:
        with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
            until(sessions.runs("real_preempt"), "it runs")
            preempt(slurm, "--nodes=3", "--exclusive")
            assert leader.wait(PATIENCE_S) == 0
    finally:
        slurm.run("scontrol", "update", "partitionname=preempt", "preemptmode=requeue")
    assert sessions.ended_by() == {"real_preempt": ("succeeded", ["preempted", "crash", "success"])}
    assert sessions.ran == ["real_preempt 1", "real_preempt 2", "real_preempt 3"]


def test_a_preempted_job_that_slurm_queues_again_is_the_same_attempt(
    slurm: Cluster, sessions: Sessions
) -> None:
    """Where the config asks for it; no policy is asked."""
    sessions.config("wait", array=False, sbatch=f"{PREEMPT}, requeue: true")
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(lambda: sessions.ran == ["real_wait 1"], "its command runs")
        preempt(slurm, "--nodes=3", "--exclusive")
        until(lambda: sessions.ran == ["real_wait 1"] * 2, "its command runs again")
        (sessions.root / "ran.go").touch()
        assert leader.wait(PATIENCE_S) == 0
    assert sessions.ended_by() == {"real_wait": ("succeeded", ["success"])}


@pytest.mark.parametrize("what", ["", ".slurmd"])
def test_a_node_that_fails_is_left_out_of_the_restart(
    slurm_of_small_nodes: Cluster, sessions: Sessions, what: str
) -> None:
    """Without power, or only without its slurmd: then the lost copy runs on for a while beside the next."""
    slurm = slurm_of_small_nodes
    sessions.config("node, wait", array=False)
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(lambda: sessions.ran == ["real_node 1", "real_wait 1"], "their commands run")
        until(sessions.runs("real_node"), "it is seen to run")
        node = sessions.node(slurm, "real_node")
        slurm.kill(f"{node}{what}")
        try:
            until(lambda: sessions.cli.states()["real_node"] == ("succeeded", 2), "it runs elsewhere")
            (sessions.root / "ran.go").touch()
            assert leader.wait(PATIENCE_S) == 0
        finally:
            slurm.start(node)
            slurm.wait_for_nodes()
    assert sessions.ended_by()["real_node"] == ("succeeded", ["crash.node_failure", "success"])
    assert sessions.ran == ["real_node 1", "real_node 2", "real_wait 1"]


def test_a_controller_that_is_started_again_changes_nothing(slurm: Cluster, sessions: Sessions) -> None:
    sessions.config("wait1, wait2, wait3", array=True)
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(lambda: {state for state, _ in sessions.cli.states().values()} == {"running"}, "all run")
        slurm.kill("slurmctld", gently=True)
        slurm.start("slurmctld")
        slurm.wait_for_controller()
        (sessions.root / "ran.go").touch()
        assert leader.wait(PATIENCE_S) == 0
    assert set(sessions.cli.states().values()) == {("succeeded", 1)}
    assert sessions.ran == ["real_wait1 1", "real_wait2 1", "real_wait3 1"]


def test_a_time_limit_is_followed_by_a_longer_one(slurm: Cluster, sessions: Sessions) -> None:
    """The command is told before Slurm would end it, and goes on in the next attempt."""
    sessions.config("long", array=False, limit="00:01:00")
    path = sessions.root / "sweep.yaml"
    path.write_text(path.read_text().replace("sbatch: {", "sbatch: {signal: USR1@50, "))
    done = sessions.cli("submit", "sweep.yaml", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sessions.ended_by() == {"real_long": ("succeeded", ["timeout", "success"])}


def test_what_others_cancel_stays_dead_and_what_they_requeue_goes_on(
    slurm: Cluster, sessions: Sessions
) -> None:
    """`scancel` by hand is a verdict."""
    sessions.config("long, hang", array=True)
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(sessions.runs("real_long"), "it runs")
        until(sessions.runs("real_hang"), "it runs")
        ids = {job["name"]: job["scheduler_id"] for job in sessions.cli.jobs()}
        slurm.run("scancel", ids["real_long"])
        until(lambda: sessions.cli.states()["real_long"][0] == "cancelled", "it is seen to be cancelled")
        assert sessions.cli.states()["real_hang"][0] == "running"
        cancelled = sessions.cli("cancel", "outputs", "real_hang", "--yes")
        assert cancelled.returncode == 0, cancelled.stderr
        assert leader.wait(60) == 1
    assert sessions.ran == ["real_hang 1", "real_long 1"]


def test_what_slurm_starts_again_under_the_same_id_goes_on(slurm: Cluster, sessions: Sessions) -> None:
    """Where the config asks for it: the same attempt, told of as requeued; no policy is asked."""
    sessions.config("wait", array=False, sbatch="requeue: true")
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(sessions.runs("real_wait"), "it runs")
        until(lambda: sessions.ran == ["real_wait 1"], "its command runs")
        (job,) = sessions.cli.jobs()
        slurm.run("scontrol", "requeue", job["scheduler_id"])
        until(lambda: sessions.ran == ["real_wait 1"] * 2, "its command runs again")
        (sessions.root / "ran.go").touch()
        assert leader.wait(60) == 0
    assert sessions.ended_by() == {"real_wait": ("succeeded", ["success"])}
    shown = sessions.cli("show", "outputs", "real_wait").stdout
    assert "taken back by the scheduler, to start again (restart 1" in shown, shown


def test_while_the_controller_is_away_nothing_is_decided(slurm: Cluster, sessions: Sessions) -> None:
    """Jobs that end meanwhile are judged rightly afterwards, and none is started again."""
    sessions.config("wait1, wait2, wait3", array=True)
    with sessions.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        until(lambda: {state for state, _ in sessions.cli.states().values()} == {"running"}, "all run")
        slurm.kill("slurmctld", gently=True)
        try:
            until(lambda: "squeue" in sessions.cli("status", "outputs").stdout, "it says that it is blind")
            (sessions.root / "ran.go").touch()
            exits = sessions.root / "outputs" / ".oellm-autoexp" / "attempts"
            until(lambda: len(list(exits.rglob("exit.0.json"))) == 3, "all have ended")
            assert {state for state, _ in sessions.cli.states().values()} == {"running"}
        finally:
            slurm.start("slurmctld")
            slurm.wait_for_controller()
        assert leader.wait(120) == 0
    assert sessions.ran == ["real_wait1 1", "real_wait2 1", "real_wait3 1"]


def test_a_loop_in_a_job_goes_on_in_the_next_one(slurm: Cluster, sessions: Sessions) -> None:
    """Told of its limit it ends, and its successor leads; where all is done, the last one is taken back."""
    sessions.config("wait1, wait2", array=False)
    one_at_a_time = ("-o", "scheduler.max_jobs=1")
    with sessions.cli.leader("submit", "sweep.yaml", "--yes", *one_at_a_time) as leader:
        until(sessions.runs("real_wait1"), "the first one runs")
        leader.terminate()
        assert leader.wait(PATIENCE_S) == 130

    def led_by() -> str:
        told = json.loads(sessions.cli.within("daemon", "status", "outputs", "--json").stdout)
        return f"{told['host']} {told['pid']}" if told["state"] == "running" else ""

    limits = ("--sbatch", "time=1", "--sbatch", "signal=B:TERM@10")
    installed = sessions.cli.within("daemon", "install", "outputs", "--in-job", *limits)
    assert installed.returncode == 0, installed.stderr
    first = until(led_by, "a job leads")
    assert first.startswith("node")
    until(lambda: led_by() not in ("", first), "the next one leads")
    assert sessions.cli.states() == {"real_wait1": ("running", 1), "real_wait2": ("waiting", 0)}
    (sessions.root / "ran.go").touch()
    until(lambda: not slurm.run("squeue", "-h"), "the session has come to its end, and so has the chain")
    assert set(sessions.cli.states().values()) == {("succeeded", 1)}
    assert sessions.ran == ["real_wait1 1", "real_wait2 1"]
    chain = slurm.run("squeue", "-h", "-t", "all", "-o", "%j %T").splitlines()
    ends = Counter(line.split()[1] for line in chain if line.startswith("real-"))
    assert ends["COMPLETED"] == ends["CANCELLED"] == 1 and ends["FAILED"] >= 1, ends


TASKS = 1000


class Asked:
    """How often a client calls each command: `calls` in all, `most` in one tick."""

    def __init__(self, client: SchedulerInterface) -> None:
        assert isinstance(client, SlurmClient)
        self.client = client
        self.most: Counter[str] = Counter()
        self._before = dict(client.calls)

    @property
    def calls(self) -> Mapping[str, int]:
        return self.client.calls

    def tick(self) -> None:
        for name, calls in self.calls.items():
            self.most[name] = max(self.most[name], calls - self._before.get(name, 0))
        self._before = dict(self.calls)


def test_a_thousand_points_are_one_call_of_sbatch(slurm_with_accounting: Cluster, sessions: Sessions) -> None:
    """Each runs once, over one squeue and at most one sacct a tick; those that end unseen, too."""
    sessions.config("fine", array=True)
    path = sessions.root / "sweep.yaml"
    axes = f"kind: [fine], seed: [{', '.join(map(str, range(TASKS)))}]"
    text = path.read_text().replace("kind: [fine]", axes).replace("{project}_{kind}", "{project}_{seed}")
    path.write_text(text.replace('"${kind}"]', '"${kind}", "${seed}"]'))

    class Seen(Exception):
        """Enough for the first leader."""

    def led(until_ended: int) -> tuple[Session, Asked]:
        plan = planning.plan(planning.load(str(path), cwd=sessions.root))
        _, loop = service.submit(plan)
        assert loop is not None
        asked = Asked(plan.loaded.scheduler)

        def look(session: Session) -> None:
            asked.tick()
            if until_ended <= sum(job.state.ended for job in session.jobs.values()) < TASKS:
                raise Seen

        with contextlib.suppress(Seen):
            loop.run(look)
        loop.close()
        return loop.session, asked

    with slurm_with_accounting.configured(MinJobAge=2):
        _, first = led(until_ended=TASKS // 2)
        left = ("squeue", "-h", "-t", "all")
        until(lambda: not slurm_with_accounting.run(*left), "slurmctld has forgotten all")
    session, second = led(until_ended=TASKS)
    assert Counter(job.state.value for job in session.jobs.values()) == {"succeeded": TASKS}
    assert len(sessions.ran) == len(set(sessions.ran)) == TASKS
    assert (first.calls["sbatch"], second.calls.get("sbatch", 0)) == (1, 0)
    for asked in (first, second):
        assert asked.most["squeue"] == 1 and asked.most["sacct"] <= 1, asked.most
    assert second.calls["sacct"] > 0


KILLS = 100


@pytest.mark.parametrize(("cluster", "seed"), [("slurm", 1), ("slurm_with_accounting", 2)])
def test_leaders_that_are_killed_around_sbatch_lose_and_repeat_nothing(
    cluster: str, seed: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before, in and after the call, with sbatch dying too or going on alone: each command runs once."""
    slurm: Cluster = request.getfixturevalue(cluster)
    argv = [sys.executable, str(Path(__file__).with_name("deaths_at_sbatch.py"))]
    argv += [str(tmp_path), str(KILLS), str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(told["points"].values()) == KILLS and min(told["points"].values()) >= KILLS // 10, told
    # What was given up and came to be all the same has nothing to do, and ends.
    until(lambda: not slurm.run("squeue", "-h", "-t", "pending,running,completing"), "no job is left")
    for number, states in enumerate(told["sessions"]):
        assert set(states.values()) == {"succeeded"}, (number, states)
        ran = (tmp_path / f"session{number}" / "ran").read_text().splitlines()
        assert sorted(line.split()[0] for line in ran) == sorted(states), number
