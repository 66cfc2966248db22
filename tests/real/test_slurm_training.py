"""Sweeps of the shipped example on a real cluster: whatever befalls them, they end as undisturbed ones do."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pauses
import pytest
from commands import PATIENCE_S, Cli, until
from dev_slurm import Cluster
from example import ROOT, ended, experiment, final, start, sweep, told

pytestmark = pytest.mark.slurm


class Trainings:
    """A sweep of the example on a cluster, and the same trainings by themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cli = Cli(root)
        self.pauses = root / "pauses"
        self.pauses.mkdir()
        self.path = f"{ROOT}:{Path(pauses.__file__).parent}"
        self.steps = 40
        self.experiment = experiment()
        self.experiment["hooks"] = {"hook_classes": ["pauses.Pause"]}

    def write(self, points: Sequence[Mapping[str, Any]], *, launcher: str = "python", **sbatch: Any) -> None:
        """The config of the sweep, each point with a `name`. Crashes have one restart."""
        self.experiment["training"].update(max_steps=self.steps)
        environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": self.path, "PAUSES": str(self.pauses)}
        crash = {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0}
        config = sweep(
            self.experiment,
            {},
            defaults={"scheduler": "slurm", "slurm": "base"},
            backend={"environment": environment, "launcher": launcher},
            slurm={"array": True, "sbatch": sbatch},
            monitoring={"startup_grace_seconds": 1, "poll_interval_seconds": 1},
            restart_policies={"crash": {**crash, "refilled_by_progress": False}},
            scheduler={"breaker": None, "grace_seconds": 3, "calls_per_second": 50, "call_burst": 100},
        )
        config["sweep"] = {"type": "list", "groups": [{"configs": list(points)}]}
        config["sweep"]["name_template"] = "{name}"
        (self.root / "sweep.yaml").write_text(json.dumps(config))

    def job(self, name: str) -> dict[str, Any]:
        """What `status --json` says of it."""
        (row,) = (each for each in self.cli.jobs() if each["name"] == name)
        return row

    def ends(self) -> dict[str, tuple[str, list[str]]]:
        return {row["name"]: (row["state"], row["ended_by"]) for row in self.cli.jobs()}

    def shown(self, name: str) -> str:
        return self.cli.within("show", "outputs", name).stdout

    def pause(self, name: str, *steps: int, rank: int = 0, how: str = "") -> None:
        """Have a training wait behind some steps, each time until a signal comes, or for ever (`hang`)."""
        for step in steps:
            pauses.at(self.pauses, name, step, rank).write_text(how)

    def at(self, name: str, step: int, rank: int = 0) -> str:
        """The id that Slurm has for a training which waits behind a step, and is seen to run."""
        until(pauses.reached(pauses.at(self.pauses, name, step, rank)).exists, f"{name} is at step {step}")
        until(lambda: self.job(name)["state"] == "running", f"{name} is seen to run")
        return str(self.job(name)["scheduler_id"])

    def send(self, number: signal.Signals, name: str, step: int, rank: int = 0) -> None:
        """Send a signal to the one process that waits behind a step."""
        self.at(name, step, rank)
        os.kill(pauses.waiting(pauses.at(self.pauses, name, step, rank)), number)

    def log(self, name: str, attempt: int) -> str:
        return (self.root / "outputs" / "logs" / f"{name}.{attempt}.log").read_text()

    def assert_as_if_undisturbed(self, *names: str, **changes: Any) -> None:
        """Bit by bit: losses all along, and what the last checkpoint holds. `changes`: to the experiment."""
        directory = self.root / "alone" / "-".join(names)
        alone = ended(start({**self.experiment, **changes}, directory, PYTHONPATH=self.path))
        assert alone.returncode == 0, alone.stderr
        whole = final(directory)
        assert whole["global_step"] == self.steps
        for name in names:
            said = "".join(self.log(name, each + 1) for each in range(self.job(name)["attempts"]))
            for metric in ("loss", "val/loss", "lr", "grad_norm"):
                assert told(said, metric) == told(alone.stdout, metric), (name, metric)
            assert final(self.root / "outputs" / name) == whole, name


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    return Trainings(tmp_path)


def preempt(slurm: Cluster, job: str) -> None:
    """Have a short job of higher rank take the node of one in the partition `preempt`."""
    node = slurm.run("squeue", "-h", "-o", "%N", "-j", job).strip()
    slurm.run("sbatch", "--output=/dev/null", "--wait", f"--nodelist={node}", "--wrap=true")


def of_seeds(*names: str) -> list[dict[str, Any]]:
    """Points that differ in their seed."""
    return [{"name": name, "backend.experiment.seed": seed} for seed, name in enumerate(names, 1)]


def test_an_array_that_is_preempted_and_killed_ends_as_if_nobody_had_come(
    slurm_of_small_nodes: Cluster, trainings: Trainings
) -> None:
    """By signals, a job of higher rank, and SIGKILL: what was disturbed is started again, no other."""
    slurm, names = slurm_of_small_nodes, ("whole", "signalled", "killed", "preempted")
    trainings.write(of_seeds(*names), time="00:10:00", mem=1000, partition="preempt")
    trainings.pause("signalled", 12, 23, 31)
    trainings.pause("killed", 17)
    trainings.pause("preempted", 12)
    with trainings.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        first = trainings.at("signalled", 12)
        slurm.run("scancel", "--batch", "--signal=USR1", first)
        preempt(slurm, trainings.at("preempted", 12))
        trainings.send(signal.SIGKILL, "killed", 17)
        trainings.send(signal.SIGKILL, "signalled", 23)
        slurm.run("scancel", "--full", "--signal=TERM", trainings.at("signalled", 31))
        assert leader.wait(PATIENCE_S) == 0
    assert trainings.ends() == {
        "whole": ("succeeded", ["success"]),
        # The one restart that a crash has was not spent on the preemption before it.
        "signalled": ("succeeded", ["preempted", "crash", "preempted", "success"]),
        "killed": ("succeeded", ["crash", "success"]),
        "preempted": ("succeeded", ["preempted", "success"]),
    }
    array = first.partition("_")[0]
    still = [name for name in names if trainings.job(name)["scheduler_id"].startswith(f"{array}_")]
    assert still == ["whole"]
    assert '"step": 12} (signal told_to_leave, exit 138)' in trainings.shown("signalled")
    assert "restart 1 of 1 after crash: signal SIGKILL" in trainings.shown("killed")
    assert "scheduler: PREEMPTED" in trainings.shown("preempted")
    for seed, name in enumerate(names, 1):
        trainings.assert_as_if_undisturbed(name, seed=seed)


def test_trainings_that_take_longer_than_their_time_limit_end_as_if_they_had_none(
    slurm: Cluster, trainings: Trainings
) -> None:
    """They leave before it, by their own clock or by Slurm's signal; one that hangs is killed by Slurm."""
    names = ("long", "hung", "warned")
    points = of_seeds(*names)
    points[2]["slurm.sbatch.signal"] = "USR1@40"
    trainings.write(points, time="00:01:00")
    trainings.pause("long", 12, how=pauses.NEAR_DEADLINE)
    trainings.pause("hung", 17, how=pauses.HANG)
    trainings.pause("warned", 12)
    done = trainings.cli("submit", "sweep.yaml", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    ends = trainings.ends()
    # On a slow machine a minute is not enough for what is left, and there is one attempt more.
    for name in names:
        assert set(ends[name][1][:-1]) == {"timeout"} and ends[name][1][-1] == "success"
    assert "(signal time_limit, exit 138)" in trainings.shown("long")
    for name in ("hung", "warned"):
        assert "restart 1 after timeout: reached its time limit of 00:01:00" in trainings.shown(name)
    assert "scheduler: TIMEOUT" in trainings.shown("hung")
    assert "told_to_leave" not in trainings.shown("hung")
    for seed, name in enumerate(names, 1):
        trainings.assert_as_if_undisturbed(name, seed=seed)


def test_slurm_may_start_a_training_again_itself_and_a_person_may_end_one_for_good(
    slurm: Cluster, trainings: Trainings
) -> None:
    """The same attempt goes on from its checkpoint; one that `scancel` has told to leave stays dead."""
    trainings.write(of_seeds("requeued", "cancelled"), time="00:10:00", requeue=True)
    trainings.pause("requeued", 12)
    trainings.pause("cancelled", 12)
    with trainings.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        slurm.run("scontrol", "requeue", trainings.at("requeued", 12))
        slurm.run("scancel", trainings.at("cancelled", 12))
        assert leader.wait(PATIENCE_S) == 1
    assert trainings.ends() == {
        "requeued": ("succeeded", ["success"]),
        "cancelled": ("cancelled", ["cancelled"]),
    }
    assert "taken back by the scheduler" in trainings.shown("requeued")
    trainings.assert_as_if_undisturbed("requeued", seed=1)


def test_all_processes_of_a_training_leave_at_the_same_step_whichever_is_signalled(
    slurm: Cluster, trainings: Trainings
) -> None:
    """Whoever has started them, on one node or two: they go on as two that nobody disturbed."""
    trainings.steps = 200  # processes talk twice a second, and no less often than every 64 steps
    trainings.experiment["ddp"] = {"accelerator": "cpu", "devices": "${devices}", "num_nodes": "${nodes}"}
    names = ("torchrun", "srun")
    points = [
        {"name": name, "devices": 2 - (name == "srun"), "nodes": 1 + (name == "srun")} for name in names
    ]
    # srun has one task on each of two nodes; torchrun makes two processes on the first.
    trainings.write(points, launcher="${name}", time="00:10:00", nodes=2, ntasks_per_node=1, cpus_per_task=2)
    for name in names:
        trainings.pause(name, 12, rank=1)
        trainings.pause(name, 100, rank=0)
    with trainings.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        for name in names:
            trainings.send(signal.SIGUSR1, name, 12, rank=1)
        for name in names:
            slurm.run("scancel", "--batch", "--signal=USR1", trainings.at(name, 100))
        assert leader.wait(PATIENCE_S) == 0
    assert trainings.ends() == dict.fromkeys(names, ("succeeded", ["preempted", "preempted", "success"]))
    # A process that leaves with the code of a signal is no fault of its node, whatever launchers print.
    assert trainings.cli.within("nodes", "outputs").stdout == "Nothing speaks against any node.\n"
    for name in names:
        left = re.findall(
            r"training stopped behind (step \d+), and goes on from (\S+)", trainings.log(name, 1)
        )
        assert len(set(left)) == 1, left
    trainings.assert_as_if_undisturbed(*names, ddp={"accelerator": "cpu", "devices": 2})
