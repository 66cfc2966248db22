"""docs/howto/from-a-script.md as it is typed: a script, one that goes on, a sweep of it; killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Cli, path_without_cluster, printed, shown_files, until

PAGE = "from-a-script.md"
#: Half as many as on the page.
EPOCHS = 10


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A directory with the files of the page, on a machine without Slurm."""
    for name, text in shown_files(PAGE).items():
        (tmp_path / name).write_text(re.sub(r"\b20(?=\)| \* len)", str(EPOCHS), text))
    elsewhere = tmp_path_factory.mktemp("path") / "bin"
    return Cli(tmp_path, PATH=path_without_cluster(elsewhere), PYTHONPATH=str(ROOT))


def curve(output: str, name: str = "val/loss") -> dict[int, float]:
    """Step → a figure, as the trainer tells it."""
    lines = (line.removeprefix("@autoexp ") for line in output.splitlines() if f'"{name}"' in line)
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return {each["progress"]["step"]: each["metrics"][name] for each in said}


def kill_when_saved(cli: Cli) -> str:
    """Section 2: `kill -9`, once it has said "checkpoint"; what it said."""
    command = [sys.executable, "train.py", "--lr", "0.01"]
    said = []
    with subprocess.Popen(
        command, cwd=cli.root, env=cli.environment, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            said.append(line)
            if '"checkpoint"' in line:
                training.kill()
    assert training.returncode == -signal.SIGKILL
    return "".join(said)


def kill_trainings(outputs: Path, wanted: int) -> None:
    """Section 3: `pkill -9 -f train.py`, for each job once it has a checkpoint."""
    killed: set[str] = set()

    def all_are() -> bool:
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            own = dict(each.partition(b"=")[::2] for each in variables)
            place = Path(own.get(b"AUTOEXP_CHECKPOINT_DIR", b"").decode())
            mine = words[1:2] == [b"train.py"] and place.is_relative_to(outputs)
            if mine and str(place) not in killed and list(place.glob("*/step-*.json")):
                os.kill(int(process.name), signal.SIGKILL)
                killed.add(str(place))
        return len(killed) == wanted

    until(all_are, "each training has saved and was killed")


@pytest.mark.kill9
def test_the_page_leads_from_a_script_to_a_sweep_that_survives(cli: Cli) -> None:
    """Whatever is killed, the losses are the same to the last bit; done is done."""
    plain = cli.run("python3", "plain.py", "--lr", "0.01")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.splitlines()[-1].startswith(f"epoch {EPOCHS - 1}: held out 0.0")

    undisturbed = cli.run("python3", "train.py", "--lr", "0.01", env={"AUTOEXP_CHECKPOINT_DIR": "elsewhere"})
    losses = curve(undisturbed.stdout)
    assert len(losses) == EPOCHS and min(losses.values()) < 0.1, undisturbed.stderr

    before = kill_when_saved(cli)
    after = cli.run("python3", "train.py", "--lr", "0.01")
    assert after.returncode == 0, after.stderr
    assert min(curve(after.stdout, "loss")) > 200
    assert {**curve(before), **curve(after.stdout)} == losses
    done = cli.run("python3", "train.py", "--lr", "0.01")
    assert (done.returncode, done.stdout) == (0, "")

    for words in printed(PAGE):
        if words[0] == "run" or "slurm.yaml" in words:
            continue
        if words[0] != "submit":
            result = cli(*words)
            assert result.returncode == 0, result.stderr
            continue
        with cli.start(*words, stderr=subprocess.STDOUT) as submit:
            kill_trainings(cli.root / "outputs", 2)
            output, _ = submit.communicate()
        assert submit.returncode == 0, output
    assert cli.states("spiral") == {"spiral_lr0.01": ("succeeded", 2), "spiral_lr0.001": ("succeeded", 2)}
    logs = sorted((cli.root / "outputs").rglob("spiral_lr0.01.*.log"))
    assert len(logs) == 2
    of_sweep: dict[int, float] = {}
    for log in logs:
        of_sweep.update(curve(log.read_text()))
    assert of_sweep == losses
