"""Experiments from Python on a real cluster: submitted once, with what they ask for, shown by `status`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Cli, until
from dev_slurm import Cluster

from oellm_autoexp import ModelTrainingFramework, ParameterGrid
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.services.session import replay

pytestmark = pytest.mark.slurm

TRAIN = """\
import os, pathlib, sys
place = pathlib.Path(sys.argv[1])
assert "experiment_name: " + os.environ["AUTOEXP_JOB_NAME"] in place.read_text()
line = os.environ["SLURM_JOB_ID"] + " " + os.environ["SLURM_NNODES"] + "\\n"
place.with_name("ran.txt").open("a").write(line)
"""


def test_a_grid_search_runs_on_slurm_and_is_not_submitted_twice(slurm: Cluster, tmp_path: Path) -> None:
    """The call returns with the ids that Slurm gave; a process in the background watches to the end."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN)
    framework = ModelTrainingFramework(root, overrides=["scheduler.grace_seconds=3"])
    base = framework.create_experiment({"experiment_name": "base", "slurm": {"time": "5"}})
    grid = ParameterGrid("sizes").add_parameter("slurm.nodes", [1, 2])
    grid.add_parameter("optimizer.lr", [1e-3, 1e-4])
    results = framework.run_grid_search(base, [grid])
    assert len(results) == 4 and len(set(results.submitted_jobs)) == 4, results
    assert all(each.isdigit() for each in results)
    home = root / "experiments" / "sizes"
    paths = SessionPaths(home / ".oellm-autoexp")
    until(lambda: replay(paths).ended is not None, "the end of the session")
    again = framework.run_grid_search(base, [grid])
    assert again.submitted_jobs == results.submitted_jobs
    ran = [path.read_text() for path in sorted(home.glob("*/ran.txt"))]
    assert sorted(ran) == sorted(
        f"{each.job_id} {1 if 'nodes=1' in each.experiment_name else 2}\n" for each in results.results
    )
    shown = Cli(root)("status", str(home / "autoexp.yaml"), "--json")
    assert [row["state"] for row in json.loads(shown.stdout)["jobs"]] == ["succeeded"] * 4
