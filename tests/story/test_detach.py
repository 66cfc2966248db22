"""`submit --detach` leaves a loop behind; a costly plan asks first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
project: {name: detached, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command:
    - bash
    - -c
    - echo "$0" >> "$1/started"; until [ -e "$2" ]; do sleep 0.05; done
    - ${n}
    - ${job.output_dir}
    - GATE
sweep: {axes: {n: [1, 2]}}
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Any]:
    """Run a command of the tool in a directory of its own."""
    (tmp_path / "sweep.yaml").write_text(CONFIG.replace("GATE", str(tmp_path / "gate")))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "home")}

    def run(*words: str) -> Any:
        argv = [sys.executable, "-m", "oellm_autoexp.cli.main", *words]
        said = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(argv, cwd=tmp_path, env=environment, check=False, **said)

    return run


def states(command: Callable[..., Any]) -> list[str]:
    return [job["state"] for job in json.loads(command("status", "outputs", "--json").stdout)["jobs"]]


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition of another process, long enough for any machine."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_a_detached_loop_finishes_the_session_and_can_be_replaced(tmp_path: Path, command: Any) -> None:
    """It outlives the command; killed, another one goes on; nothing is started twice."""
    done = command("submit", "sweep.yaml", "--local", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["pid"]
    until(lambda: states(command) == ["running", "running"])
    assert command("monitor", "outputs").returncode == 3, "one loop is enough"
    os.kill(first, signal.SIGKILL)
    again = command("submit", "sweep.yaml", "--local", "--detach")
    assert again.returncode == 0 and "2 go on" in again.stdout, again.stdout + again.stderr
    assert "oellm-autoexp status" in again.stdout
    (tmp_path / "gate").touch()
    until(lambda: states(command) == ["succeeded", "succeeded"])
    started = sorted(path.read_text() for path in tmp_path.glob("outputs/*/started"))
    assert started == ["1\n", "2\n"]
    assert "detached_n1: succeeded" in (tmp_path / "outputs/.oellm-autoexp/monitor/daemon.log").read_text()


def test_a_costly_plan_asks_before_anything_is_written(tmp_path: Path, command: Any) -> None:
    """Without a terminal it ends with 2 and says what it would cost; what is done already costs nothing."""
    (tmp_path / "gate").touch()
    asks = ("slurm.sbatch.gpus-per-node=4", "slurm.sbatch.time=12:00:00", "project.confirm_gpu_hours=50")
    costly = [word for override in asks for word in ("-o", override)]
    refused = command("submit", "sweep.yaml", "--local", *costly)
    assert refused.returncode == 2 and "96 GPU-hours" in refused.stderr and "--yes" in refused.stderr
    assert not (tmp_path / "outputs").exists()
    assert command("submit", "sweep.yaml", "--local", "--yes", *costly).returncode == 0
    assert command("submit", "sweep.yaml", "--local", *costly).returncode == 0
