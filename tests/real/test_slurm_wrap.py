"""A batch script under signals and policies on a real cluster, as sbatch would have run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Cli
from dev_slurm import Cluster

pytestmark = pytest.mark.slurm

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=wrapped
#SBATCH --array=1-3%2
#SBATCH -N1 --ntasks-per-node=2 -c1
#SBATCH --time=0:10:00
#SBATCH -o slurm-%A_%a.out

set -u
echo "$SLURM_ARRAY_TASK_ID-$AUTOEXP_ATTEMPT $* on $SLURM_NNODES in $SLURM_SUBMIT_DIR" >> ran
srun --ntasks=2 bash -c 'echo step $SLURM_PROCID'
[ "$SLURM_ARRAY_TASK_ID-$AUTOEXP_ATTEMPT" != 2-1 ] || { echo "RuntimeError: boom"; exit 3; }
"""


def test_a_batch_script_is_run_watched_and_restarted(slurm: Cluster, tmp_path: Path) -> None:
    """Its array is a sweep, its directives count, its arguments arrive; the task that fails starts again."""
    (tmp_path / "job.sbatch").write_text(SCRIPT)
    cli = Cli(tmp_path)
    policy = "restart_policies.crash={class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}"
    words = ("wrap", "job.sbatch", "-o", policy, "-o", "scheduler.breaker=null", "--", "a b", "$(id)")
    done = cli(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cli.states("wrapped") == {
        "wrapped_1": ("succeeded", 1),
        "wrapped_2": ("succeeded", 2),
        "wrapped_3": ("succeeded", 1),
    }
    ran = sorted((tmp_path / "ran").read_text().splitlines())
    assert ran == [f"{task} a b $(id) on 1 in {tmp_path}" for task in ("1-1", "2-1", "2-2", "3-1")]
    logs = {path.name: path.read_text() for path in (tmp_path / "outputs/wrapped/logs").glob("*.log")}
    assert len(logs) == 4 and all("step 0" in text and "step 1" in text for text in logs.values())
    again = cli(*words)
    assert again.returncode == 0 and "3 already done" in again.stdout, again.stderr
