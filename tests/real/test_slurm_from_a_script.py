"""The last section of docs/howto/from-a-script.md on a real cluster: told to leave, the trainings go on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from commands import ROOT, Cli, shown_files, until
from dev_slurm import Cluster

PAGE = "from-a-script.md"
pytestmark = pytest.mark.slurm


def losses(text: str) -> dict[int, float]:
    said = [json.loads(line.removeprefix("@autoexp ")) for line in text.splitlines() if "val/loss" in line]
    return {each["progress"]["step"]: each["metrics"]["val/loss"] for each in said}


def test_the_sweep_of_the_page_survives_signals_on_slurm(slurm: Cluster, tmp_path: Path) -> None:
    """SIGUSR1, as before a time limit: saved, left with 138, gone on with, and the losses are the same."""
    for name, text in shown_files(PAGE).items():
        (tmp_path / name).write_text(text)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cli = Cli(tmp_path, PATH=path, PYTHONPATH=str(ROOT))
    undisturbed = cli.run("python3", "train.py", env={"AUTOEXP_CHECKPOINT_DIR": "elsewhere"})
    assert len(losses(undisturbed.stdout)) == 20, undisturbed.stderr
    told: set[str] = set()

    def tell_those_that_have_saved() -> bool:
        for saved in (tmp_path / "outputs").glob("*/checkpoints/spiral/step-*.json"):
            name = saved.parents[2].name
            if name not in told:
                (job,) = (each for each in cli.jobs() if each["name"] == name)
                slurm.run("scancel", "--full", "--signal=USR1", str(job["scheduler_id"]))
                told.add(name)
        return len(told) == 2

    with cli.start("submit", "slurm.yaml") as submit:
        until(tell_those_that_have_saved, "both have saved and were told to leave")
        output, _ = submit.communicate()
    assert submit.returncode == 0, output
    assert cli.states("spiral") == {"spiral_lr0.01": ("succeeded", 2), "spiral_lr0.001": ("succeeded", 2)}
    found: dict[int, float] = {}
    for log in sorted((tmp_path / "outputs").rglob("spiral_lr0.01.*.log")):
        found.update(losses(log.read_text()))
    assert found == losses(undisturbed.stdout)
