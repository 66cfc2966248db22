"""Two whole configs, kept byte for byte as users are shown them, do what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Cli, path_without_cluster

PRINTED = Path(__file__).resolve().parents[1] / "data" / "printed"


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line beside copies of the printed files, on a machine without a Slurm."""
    for path in PRINTED.iterdir():
        shutil.copy(path, tmp_path / path.name)
    elsewhere = tmp_path_factory.mktemp("path") / "bin"
    return Cli(tmp_path, PATH=path_without_cluster(elsewhere))


def typed(name: str) -> list[str]:
    """The words of the command that stands in the first line of a printed config."""
    return (PRINTED / name).read_text().splitlines()[0].split("oellm-autoexp ")[1].split()


def test_the_local_sweep_runs_as_printed(tmp_path: Path, cli: Cli) -> None:
    """Four jobs succeed with the words of their points, and each checkpoint is converted once."""
    assert typed("sweep.yaml") == ["submit", "sweep.yaml", "--local"]
    done = cli(*typed("sweep.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = cli.jobs("sweep.yaml")
    names = ["tiny_lr0.001_s0", "tiny_lr0.001_s1", "tiny_lr0.0003_s0", "tiny_lr0.0003_s1"]
    assert [job["name"] for job in jobs] == names
    assert {(job["state"], job["attempts"]) for job in jobs} == {("succeeded", 1)}
    for job in jobs:
        out = tmp_path / "outputs" / job["name"]
        lr, seed = (str(job["parameters"][key]) for key in ("lr", "seed"))
        expected = ["train.py", "--lr", lr, "--seed", seed, "--out", str(out)]
        assert json.loads((out / "argv.json").read_text()) == expected
        assert (out / "step-10.converted").read_text() == "step-10.pt\n"
        assert job["actions"]["by_name"] == {"convert": {"done": 1, "failed": 0, "open": 0}}
    again = cli(*typed("sweep.yaml"))
    assert again.returncode == 0 and "4 already done" in again.stdout, again.stdout + again.stderr
    assert {path.read_text() for path in tmp_path.glob("outputs/*/step-10.converted")} == {"step-10.pt\n"}


def test_the_policies_of_the_local_sweep_are_in_force(cli: Cli) -> None:
    """`plan` names what the config says beside the defaults that it leaves in place."""
    shown = cli.within("plan", "sweep.yaml", "--local", "--dry-run").stdout
    policies = shown[shown.index("Policies in force:") :].splitlines()[1:]
    lines = {line.split()[0]: line for line in policies}
    assert "AlwaysRestartPolicy max_retries=2 (configured)" in lines["crash"]
    assert "AdjustTimeLimitPolicy minutes=30" in lines["timeout"] and "configured" in lines["timeout"]
    assert "look at the learning rate (configured)" in lines["crash.nan"]
    assert "(default)" in lines["stall"]


def test_the_cluster_sweep_renders_as_printed(tmp_path: Path, cli: Cli) -> None:
    """Six scripts with the shipped group `slurm: lumi` underneath: options, set-up lines, and the argv."""
    done = cli("plan", "lumi.yaml")
    assert done.returncode == 0, done.stderr
    assert "6 jobs on 15 nodes; at most 2880 GPU-hours" in done.stdout
    entries = json.loads((tmp_path / "outputs/lrsize/sweep.json").read_text())["jobs"]
    assert len(entries) == 6
    for entry in entries:
        name, at = entry["name"], entry["parameters"]
        nodes, layers = {"small": ("1", "12"), "large": ("4", "32")}[at["size"]]
        assert name == f"lrsize_{at['size']}_lr{at['lr']}"
        script = tmp_path / "outputs/lrsize/scripts" / f"{name}.sbatch"
        lines = script.read_text().splitlines()
        options = {line for line in lines if line.startswith("#SBATCH")}
        assert options == {
            f"#SBATCH --job-name={name}",
            "#SBATCH --account=project_465000123",
            "#SBATCH --partition=standard-g",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --time=24:00:00",
            f"#SBATCH --nodes={nodes}",
        }
        checkpoints = tmp_path / "outputs/lrsize" / name / "checkpoints"
        command = f"exec python train.py --lr {at['lr']} --layers {layers} --ckpt {checkpoints}"
        setup = ["module load LUMI cray-python", "source ~/envs/train/bin/activate"]
        assert [line for line in lines if line in (*setup, command)] == [*setup, command]
        assert cli.run("bash", "-n", str(script)).returncode == 0


def test_the_cluster_sweep_says_what_it_lacks_here(tmp_path: Path, cli: Cli) -> None:
    """Without a Slurm to talk to, `submit` exits 2, names the way out, and has written nothing."""
    before = sorted(tmp_path.iterdir())
    assert typed("lumi.yaml") == ["submit", "lumi.yaml", "--detach"]
    refused = cli(*typed("lumi.yaml"))
    assert refused.returncode == 2
    assert "Slurm" in refused.stderr and "--local" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.iterdir()) == before
