"""Sweeps of the shipped example on a real cluster: whatever befalls them, they end as undisturbed ones do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pauses
import pytest
from commands import PATIENCE_S, Cli, until
from dev_slurm import Cluster
from example import ROOT, ended, experiment, final, start, sweep, told

pytestmark = pytest.mark.slurm


class Trainings:
    """A sweep of the example over seeds, one array on a cluster, and the same trainings by themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cli = Cli(root)
        self.pauses = root / "pauses"
        self.pauses.mkdir()
        self.experiment = experiment()
        self.experiment["training"].update(max_steps=40)
        self.experiment["hooks"] = {"hook_classes": ["pauses.Pause"]}
        self.path = f"{ROOT}:{Path(pauses.__file__).parent}"

    def write(self, seeds: Iterable[int], *, sbatch: Mapping[str, Any], pace: float = 0, **more: Any) -> None:
        """The config of the sweep. A crash may be followed by one restart, in all."""
        environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": self.path, "PAUSES": str(self.pauses)}
        crash = {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0}
        config = sweep(
            self.experiment,
            {"backend.experiment.seed": list(seeds)},
            defaults={"scheduler": "slurm", "slurm": "base"},
            backend={"environment": {**environment, "PACE": pace}, **more},
            slurm={"array": True, "sbatch": sbatch},
            monitoring={"startup_grace_seconds": 1, "poll_interval_seconds": 1},
            restart_policies={"crash": {**crash, "refilled_by_progress": False}},
            scheduler={"breaker": None, "grace_seconds": 3, "calls_per_second": 50, "call_burst": 100},
        )
        (self.root / "sweep.yaml").write_text(json.dumps(config))

    def alone(self, seeds: Iterable[int]) -> dict[int, Any]:
        """The same trainings as programs that nobody disturbs, all at once."""
        running = {
            seed: start(
                {**self.experiment, "experiment_name": f"lm_seed{seed}", "seed": seed},
                self.root / "alone" / str(seed),
                PYTHONPATH=self.path,
            )
            for seed in seeds
        }
        return {seed: ended(each) for seed, each in running.items()}

    def job(self, seed: int) -> dict[str, Any]:
        (row,) = (each for each in self.cli.jobs() if each["name"] == f"lm_seed{seed}")
        return row

    def pause(self, seed: int, *steps: int, rank: int = 0) -> None:
        """Have a training wait behind some steps."""
        for step in steps:
            pauses.at(self.pauses, f"lm_seed{seed}", step, rank).touch()

    def at(self, seed: int, step: int, rank: int = 0) -> str:
        """The id of the job that Slurm runs a training as, once that waits behind a step and is seen to run."""
        there = pauses.reached(pauses.at(self.pauses, f"lm_seed{seed}", step, rank))
        until(there.exists, f"seed {seed} is at step {step}")
        until(lambda: self.job(seed)["state"] == "running", f"seed {seed} is seen to run")
        return str(self.job(seed)["scheduler_id"])

    def processes(self, seed: int) -> list[int]:
        """The processes of a training on any node of the cluster."""
        return sorted(_running({"AUTOEXP_JOB_NAME": f"lm_seed{seed}", "AUTOEXP_OUTPUT_DIR": str(self.root)}))

    def assert_as_if_undisturbed(self, seeds: Iterable[int]) -> None:
        """Bit by bit: losses all the way, and what the last checkpoint holds."""
        for seed, plain in self.alone(seeds).items():
            assert plain.returncode == 0, plain.stderr
            logs = sorted(
                (self.root / "outputs" / "logs").glob(f"lm_seed{seed}.*.log"),
                key=lambda path: int(path.name.split(".")[-2]),
            )
            said = "".join(path.read_text() for path in logs)
            for name in ("loss", "val/loss", "lr", "grad_norm"):
                assert told(said, name) == told(plain.stdout, name), (seed, name)
            whole = final(self.root / "alone" / str(seed))
            assert whole["global_step"] == 40
            assert final(self.root / "outputs" / f"lm_seed{seed}") == whole, seed


def _running(variables: Mapping[str, str]) -> Iterator[int]:
    """Trainers whose environment has variables that begin with some texts."""
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
            pairs = (place / "environ").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        mine = dict(pair.partition("=")[::2] for pair in pairs)
        is_trainer = words[1:3] == ["-m", "oellm_autoexp.trainer"]
        if is_trainer and all(mine.get(name, "").startswith(text) for name, text in variables.items()):
            yield int(place.name)


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    return Trainings(tmp_path)


def preempt(slurm: Cluster, node: str) -> None:
    """Have a short job of higher rank take the place of what runs on a node."""
    slurm.run("sbatch", "--output=/dev/null", "--wait", f"--nodelist={node}", "--wrap=true")


WHOLE, SIGNALLED, KILLED, PREEMPTED = range(1, 5)


def test_an_array_that_is_preempted_and_killed_ends_as_if_nobody_had_come(
    slurm_of_small_nodes: Cluster, trainings: Trainings
) -> None:
    """By signals, by a job of higher rank, by SIGKILL; what was disturbed is started again, and nothing else."""
    slurm, seeds = slurm_of_small_nodes, (WHOLE, SIGNALLED, KILLED, PREEMPTED)
    trainings.write(seeds, sbatch={"time": "00:10:00", "mem": 1000, "partition": "preempt"})
    trainings.pause(SIGNALLED, 12, 23, 31)
    trainings.pause(KILLED, 17)
    trainings.pause(PREEMPTED, 12)
    with trainings.cli.leader("submit", "sweep.yaml", "--yes") as leader:
        array = trainings.at(SIGNALLED, 12).partition("_")[0]
        slurm.run("scancel", "--batch", "--signal=USR1", trainings.at(SIGNALLED, 12))
        place = trainings.at(PREEMPTED, 12)
        preempt(slurm, slurm.run("squeue", "-h", "-o", "%N", "-j", place).strip())
        trainings.at(KILLED, 17)
        (pid,) = trainings.processes(KILLED)
        os.kill(pid, signal.SIGKILL)
        trainings.at(SIGNALLED, 23)
        (pid,) = trainings.processes(SIGNALLED)
        os.kill(pid, signal.SIGKILL)
        slurm.run("scancel", "--full", "--signal=TERM", trainings.at(SIGNALLED, 31))
        assert leader.wait(PATIENCE_S) == 0
    assert {seed: (trainings.job(seed)["state"], trainings.job(seed)["ended_by"]) for seed in seeds} == {
        WHOLE: ("succeeded", ["success"]),
        # The one restart that a crash has was not spent on the preemption before it.
        SIGNALLED: ("succeeded", ["preempted", "crash", "preempted", "success"]),
        KILLED: ("succeeded", ["crash", "success"]),
        PREEMPTED: ("succeeded", ["preempted", "success"]),
    }
    first = {
        trainings.job(seed)["scheduler_id"].partition("_")[0] == array for seed in seeds if seed != WHOLE
    }
    assert trainings.job(WHOLE)["scheduler_id"].partition("_")[0] == array and first == {False}
    print(trainings.cli.within("show", "outputs", "lm_seed2").stdout)
    print(trainings.cli.within("show", "outputs", "lm_seed4").stdout)
    print(trainings.cli.within("show", "outputs", "lm_seed3").stdout)
    print(json.dumps(trainings.cli.jobs(), indent=1))
    trainings.assert_as_if_undisturbed(seeds)
