"""The trainer as a program: the example language model, on one process and two, and in a sweep."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import until
from example import EXAMPLE, ROOT, ended, environment, experiment, start, sweep, told

from oellm_autoexp.backends.base import BackendJobSpec
from oellm_autoexp.backends.fabric import FabricBackend, FabricBackendConfig


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """The example, small enough for a test."""
    return experiment()


def run(
    config: dict[str, Any] | Path, directory: Path, cwd: Path = EXAMPLE, **more: str
) -> subprocess.CompletedProcess[str]:
    return ended(start(config, directory, cwd, **more))


def test_the_example_learns_and_is_not_trained_twice(base: dict[str, Any], tmp_path: Path) -> None:
    """From guessing to less than that, in a few steps; with torch and the standard library alone.

    The second time from another directory, as the docs type it: the model is found beside its config.
    """
    blocked = tmp_path / "blocked"
    for name in ("compoconf", "yaml", "rich", "typer", "hydra", "omegaconf", "lightning", "jinja2"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not in this container')\n")
    path = f"{blocked}:{ROOT}"
    done = run(base, tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    losses = told(done.stdout, "loss")
    assert list(losses) == [5, 10, 15, 20, 25, 30]
    assert losses[5] > losses[30] + 0.5
    assert set(told(done.stdout, "val/loss")) == {15, 30}
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "lm")
    config = Path("examples", "lm", "config.json")
    (tmp_path / config).write_text(json.dumps(base))
    again = run(config, tmp_path, tmp_path, PYTHONPATH=path)
    assert again.returncode == 0
    assert "this training is complete" in again.stderr
    assert not told(again.stdout, "loss")


#: What the script of a Slurm job has, which no srun has started: one task on the first of two nodes.
BATCH_SCRIPT = {
    "AUTOEXP_ATTEMPT": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "lm",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_of_fabric_train_together(base: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    """Started by Fabric, they share the samples, and go on from where they were told to leave: also in the
    script of a Slurm job, whatever tasks that has.
    """
    config = {
        **base,
        "ddp": {"accelerator": "cpu", "devices": 2, "strategy": strategy},
        "performance": {"gradient_accumulation_steps": 2},
    }
    config["training"] = {**base["training"], "max_steps": 10, "log_frequency": 5, "save_frequency": 100}
    whole = run(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    left = run(config, tmp_path / "left", AUTOEXP_DEADLINE="1", **BATCH_SCRIPT)
    assert left.returncode == 138, left.stderr
    assert '@autoexp {"signal": "time_limit", "step": 1}' in left.stdout
    again = run(config, tmp_path / "left")
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("loss", "val/loss", "grad_norm"):
        assert told(again.stdout, name) == told(whole.stdout, name)


@pytest.mark.parametrize(
    ("ddp", "precision", "said"),
    [
        ({"accelerator": "cuda", "devices": 64}, None, "Fabric cannot be set up"),
        ({"accelerator": "cpu", "strategy": "nonsense"}, None, "invalid strategy name"),
        ({"accelerator": "cpu", "strategy": "fsdp"}, "16-mixed", "does not support"),
    ],
)
def test_what_fabric_refuses_is_told_in_a_line(
    base: dict[str, Any], tmp_path: Path, ddp: dict[str, Any], precision: str | None, said: str
) -> None:
    done = run({**base, "ddp": ddp, "performance": {"precision": precision}}, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ddp: Fabric cannot be set up")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_torchrun_ends_with_what_the_shipped_signals_know_as_preemption(tmp_path: Path) -> None:
    """Also where its processes are done when they are told to leave, and so say nothing of that."""
    spec = BackendJobSpec(parameters={}, name="job", output_dir="o", checkpoint_dir="c")
    config = FabricBackendConfig(
        launcher="torchrun", experiment={"model": {"type": "m.M"}, "ddp": {"devices": 1}}
    )
    told = FabricBackend(config).build_launch_command(spec).environment
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--no-python"]
    script = f"trap 'exit 0' USR1; touch {tmp_path / 'there'}; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, *words, "bash", "-c", script],
        env=environment(**told),
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        until((tmp_path / "there").exists, "it runs")
        launcher.send_signal(signal.SIGUSR1)
        said = launcher.communicate(timeout=100)[1]
    assert launcher.returncode == 1, said
    shipped = yaml.safe_load((ROOT / "config" / "monitoring" / "fabric.yaml").read_text())["log_signals"]
    rule = shipped["launcher_told_to_leave"]
    assert rule["mode"] == "preempted" and re.search(rule["pattern"], said), said


@pytest.mark.kill9
def test_a_sweep_of_it_that_is_killed_ends_with_the_same_losses(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training is killed with SIGKILL once in the middle; the orchestrator takes it up again."""
    for name, value in environment(AUTOEXP_REGISTRY=str(tmp_path / "registry")).items():
        monkeypatch.setenv(name, value)
    base["training"].update(max_steps=40, save_frequency=5)
    finals = []
    for killed in (False, True):
        directory = tmp_path / str(killed)
        directory.mkdir()
        config = sweep(
            base, {"backend.experiment.optimizer.lr": [0.02, 0.005]}, defaults={"scheduler": "local"}
        )
        (directory / "sweep.yaml").write_text(json.dumps(config))
        command = [
            sys.executable,
            "-m",
            "oellm_autoexp.cli.main",
            "submit",
            str(directory / "sweep.yaml"),
            "--local",
        ]
        with subprocess.Popen(
            command, cwd=directory, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT
        ) as loop:
            if killed:
                kill_each(directory / "outputs", 2)
            output, _ = loop.communicate(timeout=250)
        assert loop.returncode == 0, output
        logs = sorted((directory / "outputs").rglob("*.out")) or sorted(
            (directory / "outputs").rglob("*.log")
        )
        curves: dict[str, dict[int, float]] = {}
        for log in logs:
            name = "0.005" if '"lr": 0.005' in log.read_text() or "0.005" in log.name else "0.02"
            curves.setdefault(name, {}).update(told(log.read_text(), "val/loss"))
        finals.append({name: curve[max(curve)] for name, curve in curves.items()})
    assert len(finals[0]) == 2
    assert finals[0] == finals[1]


def kill_each(outputs: Path, trainings: int) -> None:
    """Kill each training with SIGKILL, once it has saved a checkpoint."""
    killed: set[str] = set()
    give_up = time.monotonic() + 200
    while len(killed) < trainings and time.monotonic() < give_up:
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                place = next(
                    (
                        each.partition(b"=")[2].decode()
                        for each in (process / "environ").read_bytes().split(b"\0")
                        if each.startswith(b"AUTOEXP_CHECKPOINT_DIR=")
                    ),
                    "",
                )
            except OSError:
                continue
            mine = words[1:3] == ["-m", "oellm_autoexp.trainer"] and place.startswith(str(outputs))
            if mine and place not in killed and list(Path(place).rglob("step-*.json")):
                os.kill(int(process.name), signal.SIGKILL)
                killed.add(place)
        time.sleep(0.01)
    assert len(killed) == trainings
