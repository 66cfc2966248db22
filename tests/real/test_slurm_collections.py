"""Collections on a real cluster: generated scripts as Slurm jobs, other resources, jobs that run already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Cli, until
from dev_slurm import Cluster

pytestmark = pytest.mark.slurm

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --time={{ slurm.time }}
#SBATCH --mem={{ slurm.mem }}
#SBATCH --output={{ logs_dir }}/{{ job_name }}.%j.out
echo "{{ job_name }} in $SLURM_SUBMIT_DIR" >> ran
if [ {{ lr }} = 0.2 ]; then exec python3 hold.py; fi
"""
#: Slurm looks at what a job has every few seconds.
HOLD = """\
import os, time
held = bytearray(300_000_000)
while not os.path.exists("go"):
    time.sleep(0.1)
"""
SPEC = {
    "template": "train.job.j2",
    "output_dir": "job_scripts",
    "logs_dir": "logs",
    "parameters": {"values": {"lr": [0.1, 0.2]}},
    "slurm_args": {"defaults": {"time": "00:10:00", "mem": "100M"}},
}
GRACE = ("-o", "scheduler.grace_seconds=1")


def test_what_ran_out_of_memory_is_started_again_with_more(slurm: Cluster, tmp_path: Path) -> None:
    """That job alone, and no other; its logs are where the spec wants them."""
    (tmp_path / "train.job.j2").write_text(TEMPLATE)
    (tmp_path / "spec.yaml").write_text(json.dumps(SPEC))
    (tmp_path / "hold.py").write_text(HOLD)
    cli = Cli(tmp_path)
    assert cli.within("generate", "spec.yaml", "--collection", "exp1").returncode == 0
    done = cli.within("submit", "--collection", "exp1", *GRACE)
    assert done.returncode == 1, done.stdout + done.stderr
    ended = {job["name"]: (job["state"], job["error_mode"]) for job in cli.jobs("exp1")}
    assert ended == {"lr0.1": ("succeeded", "success"), "lr0.2": ("failed", "crash.oom")}
    (tmp_path / "go").touch()
    told = cli.within("retry", "exp1", "--filter", "oom", "-o", "slurm.sbatch.mem=500M")
    assert told.returncode == 0 and "1 with other resources" in told.stdout, told.stdout + told.stderr
    assert cli.within("monitor", "exp1").returncode == 0
    assert cli.states("exp1") == {"lr0.1": ("succeeded", 1), "lr0.2": ("succeeded", 2)}
    number = next(job["scheduler_id"] for job in cli.jobs("exp1") if job["name"] == "lr0.2")
    assert "mem=500M" in slurm.run("scontrol", "show", "job", number)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert sorted(ran) == [f"{name} in {tmp_path}" for name in ("lr0.1", "lr0.2", "lr0.2")]
    assert {path.parent for path in tmp_path.rglob("lr0*.log")} == {tmp_path / "logs"}


def test_a_job_that_was_submitted_by_hand_is_imported_with_its_script(slurm: Cluster, tmp_path: Path) -> None:
    """It is watched under the name of its script, is not run again, and is started again like any other."""
    script = "#!/bin/bash\n#SBATCH --mem=10M\n#SBATCH -o run.%j.out\necho x >> ran\n"
    (tmp_path / "a.sbatch").write_text(f"{script}while [ ! -e go ]; do sleep 0.1; done\nexit $(cat go)\n")
    number = slurm.run("sbatch", "--parsable", f"--chdir={tmp_path}", str(tmp_path / "a.sbatch")).strip()
    until(lambda: (tmp_path / f"run.{number}.out").exists(), "it runs")
    cli = Cli(tmp_path)
    policy = ("-o", "restart_policies.crash.class_name=NoRestartPolicy", *GRACE)
    for said in (f"{number} is watched as a", "is watched already"):
        told = cli.within("collections", "import", "old", f"a.sbatch={number}", *policy)
        assert told.returncode == 0 and said in told.stdout, told.stdout + told.stderr
    (tmp_path / "go").write_text("3")
    done = cli.within("submit", "--collection", "old", *policy)
    assert done.returncode == 1, done.stdout + done.stderr
    (job,) = cli.jobs("old")
    assert (job["state"], job["error_mode"], job["scheduler_id"]) == ("failed", "crash", number)
    (tmp_path / "go").write_text("0")
    assert cli.within("retry", "old").returncode == 0
    assert cli.within("monitor", "old").returncode == 0
    assert cli.states("old") == {"a": ("succeeded", 2)}
    assert (tmp_path / "ran").read_text() == "x\nx\n"
