"""Experiments by a template on a real cluster: with its options, bounded, once, refused in Slurm's words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commands import Cli, until
from dev_slurm import Cluster

from oellm_autoexp import ExperimentConfig, SLURMLauncher
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.experiment import SLURMConfig
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.services.session import history, replay

pytestmark = pytest.mark.slurm

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{JOB_NAME}}
#SBATCH --account={{ACCOUNT}}
#SBATCH --partition={{PARTITION}}
#SBATCH --nodes={{NODES}}
#SBATCH --ntasks-per-node={{NTASKS_PER_NODE}}
#SBATCH --mem={{MEM}}
#SBATCH --time={{TIME}}
#SBATCH --output=experiments/{{EXPERIMENT_NAME}}/slurm_%j.out
#SBATCH --comment={{NOTE}}
#SBATCH --open-mode=append  # Preserve logs across requeues
#SBATCH --signal=USR1@60  # Signal 60s before timeout
#SBATCH --requeue

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK}
python3 {{SCRIPT_PATH}} {{CONFIG_NAME}}
"""
TRAIN = """\
import os, pathlib, subprocess, sys
place = pathlib.Path(sys.argv[1])
line = " ".join(os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_NNODES", "AUTOEXP_ATTEMPT"))
with place.with_name("ran.txt").open("a") as ran:
    print(line, file=ran)
"""


@pytest.fixture
def project(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN)
    (root / "slurm_template.txt").write_text(TEMPLATE)
    monkeypatch.chdir(root)
    return root


def experiment(name: str, **asked: object) -> ExperimentConfig:
    slurm = SLURMConfig(**{"time": "0:05:00", "extra_args": {"note": "it's # a b"}, **asked})  # type: ignore[arg-type]
    return ExperimentConfig(experiment_name=name, slurm=slurm)


def finished(root: Path) -> SessionPaths:
    paths = SessionPaths(root / "experiments" / ".oellm-autoexp")
    until(lambda: replay(paths).ended is not None, "the end of the session")
    return paths


def test_a_batch_runs_on_slurm_within_its_bound_and_once(
    slurm: Cluster, project: Path, tmp_path: Path
) -> None:
    """The call has the ids of those that may start; Slurm has what the template asks for; the rest follow."""
    slurm_launcher = SLURMLauncher(
        template_path="slurm_template.txt",
        project_root=".",
        experiments_dir="./experiments",
        overrides=["scheduler.grace_seconds=3"],
    )
    assert slurm_launcher.validate_slurm_environment() == []
    five = [experiment(f"e{n}", nodes=1 + n % 2) for n in range(5)]
    result = slurm_launcher.submit_experiment_batch(
        experiments=five, script_path="train.py", max_concurrent=2, use_git_branch=False, dry_run=False
    )
    assert (result.success_count, result.failed_jobs) == (5, {}), result
    assert len(result.successful_jobs) == 2 and all(each.isdigit() for each in result.successful_jobs)
    asked = subprocess.run(
        ["scontrol", "show", "job", result.successful_jobs[1]], capture_output=True, text=True, check=True
    ).stdout
    assert "JobName=e1." in asked and "TimeLimit=00:05:00" in asked and "Requeue=1" in asked
    assert "NumNodes=2" in asked and "Comment=it's # a b" in asked
    paths = finished(project)
    ran = {f"e{n}": (project / f"experiments/e{n}/ran.txt").read_text().split() for n in range(5)}
    jobs = slurm_launcher.list_user_jobs()
    assert ran == {
        each.experiment_name: [each.job_id, str(1 + int(each.experiment_name[1]) % 2), "1"] for each in jobs
    }
    active, most = 0, 0
    for event in history(paths).events:
        active += isinstance(event, ev.SubmitRequested) - isinstance(event, ev.AttemptEnded)
        most = max(most, active)
    assert most == 2
    again = slurm_launcher.submit_experiments(five, "train.py")
    assert again == [each.job_id for each in jobs]
    assert set(Cli(project, home=tmp_path / "home").states("experiments").values()) == {("succeeded", 1)}


def test_what_slurm_refuses_is_told_and_tried_again_when_it_asks_otherwise(project: Path) -> None:
    """In Slurm's words; the others are submitted."""
    slurm_launcher = SLURMLauncher("slurm_template.txt", ".", overrides=["scheduler.grace_seconds=3"])
    result = slurm_launcher.submit_experiment_batch(
        [experiment("good"), experiment("bad", partition="nowhere")], "train.py"
    )
    good, bad = result.job_results
    assert good.success and good.job_id
    assert not bad.success and "invalid partition" in str(bad.error) and bad.job_id is None
    mended = slurm_launcher.submit_single_experiment(experiment("bad"), "train.py")
    assert mended.success and mended.job_id, mended.error
    paths = finished(project)
    assert {job.state.value for job in replay(paths).jobs.values()} == {"succeeded"}


def test_a_batch_may_go_as_one_array(project: Path) -> None:
    """One call of sbatch; each task runs the script of its experiment."""
    overrides = ["scheduler.grace_seconds=3", "slurm.array=true"]
    slurm_launcher = SLURMLauncher("slurm_template.txt", ".", overrides=overrides)
    result = slurm_launcher.submit_experiment_batch([experiment(name) for name in "abc"], "train.py")
    number = str(result.successful_jobs[0]).partition("_")[0]
    assert result.successful_jobs == [f"{number}_{task}" for task in range(3)]
    finished(project)
    assert all((project / f"experiments/{name}/ran.txt").read_text().endswith(" 1 1\n") for name in "abc")
