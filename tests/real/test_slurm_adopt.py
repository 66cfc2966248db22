"""`adopt` on a real cluster: jobs that somebody submitted with sbatch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import Cli, until
from dev_slurm import Cluster

pytestmark = pytest.mark.slurm

CONFIG = """
project: {name: tiny, base_output_dir: ./outputs}
slurm: {sbatch: {time: "00:10:00"}}
backend: {class_name: CommandBackend, command: [sh, -c, "echo second"]}
restart_policies: {crash: {class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}
scheduler: {class_name: slurm, grace_seconds: 1}
"""


@pytest.fixture
def run(tmp_path: Path) -> Cli:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return Cli(tmp_path)


def by_hand(cluster: Cluster, tmp_path: Path, command: str, *options: str) -> str:
    """The id of a job that waits until a file `go` is there."""
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; {command}"
    argv = ["sbatch", "--parsable", "--mem=10", f"--output={tmp_path}/%a.out", f"--wrap={wait}", *options]
    (tmp_path / "0.out").touch()
    return cluster.run(*argv).strip()


def test_a_job_that_fails_is_run_again_as_the_config_says(slurm: Cluster, run: Cli, tmp_path: Path) -> None:
    number = by_hand(slurm, tmp_path, "exit 3")
    words = ("adopt", number, "--log", "0.out", "--config", "config.yaml", "--no-watch")
    for _ in range(2):
        told = run.within(*words)
        assert told.returncode == 0, told.stderr
    assert f"{number} is watched already, as tiny" in told.stdout
    (tmp_path / "go").touch()
    assert run.within("monitor", "outputs").returncode == 0
    (job,) = run.jobs()
    assert (job["state"], job["attempts"], job["ended_by"]) == ("succeeded", 2, ["crash", "success"])
    assert job["scheduler_id"] != number


def test_tasks_of_an_array_are_adopted_one_by_one(slurm: Cluster, run: Cli, tmp_path: Path) -> None:
    array = by_hand(slurm, tmp_path, "exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    whole = run.within("adopt", array, "--log", "0.out")
    assert (whole.returncode, f"name a task of it, such as {array}_0" in whole.stderr) == (2, True)
    for task in (0, 1):
        told = run.within("adopt", f"{array}_{task}", "--log", "0.out", "--no-watch")
        assert told.returncode == 0, told.stderr
    (tmp_path / "go").touch()
    assert run.within("monitor", "outputs/adopted").returncode == 1
    states = {job["scheduler_id"]: job["state"] for job in run.jobs("outputs/adopted")}
    assert states == {f"{array}_0": "succeeded", f"{array}_1": "failed"}


def test_a_job_is_ended_by_its_id_alone(slurm: Cluster, run: Cli, tmp_path: Path) -> None:
    number = by_hand(slurm, tmp_path, "true")
    other = by_hand(slurm, tmp_path, "true")
    assert run.within("adopt", number, "--log", "0.out", "--no-watch").returncode == 0
    assert run.within("cancel", "outputs/adopted", number, "--yes").returncode == 0
    run.within("monitor", "outputs/adopted")
    assert [job["state"] for job in run.jobs("outputs/adopted")] == ["cancelled"]
    assert slurm.run("squeue", "-h", "-o", "%T", "-j", other).strip() in ("PENDING", "RUNNING")


def test_an_ended_job_that_squeue_has_forgotten_is_found_by_accounting(
    slurm_with_accounting: Cluster, run: Cli, tmp_path: Path
) -> None:
    cluster = slurm_with_accounting
    number = by_hand(cluster, tmp_path, "exit 4")
    assert run.within("adopt", number, "--log", "0.out", "--no-watch").returncode == 0
    (tmp_path / "go").touch()
    sacct = ("sacct", "-n", "-X", "-j", number, "-o", "State")
    until(lambda: "FAILED" in cluster.run(*sacct), "accounting has its end")
    cluster.kill("slurmctld")
    shutil.rmtree(cluster.directory / "state")
    (cluster.directory / "state").mkdir()
    cluster.start("slurmctld")
    cluster.wait_for_nodes()
    assert number not in cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split()
    done = run.within("monitor", "outputs/adopted")
    assert done.returncode == 1
    (job,) = run.jobs("outputs/adopted")
    assert job["reason"].startswith("exit 4")
