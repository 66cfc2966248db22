"""`submit --detach` leaves a loop behind; a costly plan asks first."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from commands import Cli, until

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
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "sweep.yaml").write_text(CONFIG.replace("GATE", str(tmp_path / "gate")))
    return Cli(tmp_path)


def test_a_detached_loop_finishes_the_session_and_can_be_replaced(tmp_path: Path, cli: Cli) -> None:
    """It outlives the command; killed, another one goes on; nothing is started twice."""
    done = cli("submit", "sweep.yaml", "--local", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["pid"]
    until(lambda: list(cli.states().values()) == [("running", 1)] * 2, "both run")
    assert cli("monitor", "outputs").returncode == 3, "one loop is enough"
    os.kill(first, signal.SIGKILL)
    again = cli("submit", "sweep.yaml", "--local", "--detach")
    assert again.returncode == 0 and "2 go on" in again.stdout, again.stdout + again.stderr
    assert "oellm-autoexp status" in again.stdout
    (tmp_path / "gate").touch()
    until(lambda: list(cli.states().values()) == [("succeeded", 1)] * 2, "both have succeeded")
    started = sorted(path.read_text() for path in tmp_path.glob("outputs/*/started"))
    assert started == ["1\n", "2\n"]
    assert "detached_n1: succeeded" in (tmp_path / "outputs/.oellm-autoexp/monitor/daemon.log").read_text()


def test_a_loop_takes_another_bound_on_its_jobs_from_whoever_submits(tmp_path: Path, cli: Cli) -> None:
    """The loop that leads need not be started anew."""
    local = ("submit", "sweep.yaml", "--local", "--detach")
    assert cli(*local, "-o", "scheduler.max_jobs=1").returncode == 0
    until(lambda: sorted(state for state, _ in cli.states().values()) == ["running", "waiting"], "one runs")
    assert cli(*local, "-o", "scheduler.max_jobs=2").returncode == 0
    until(lambda: list(cli.states().values()) == [("running", 1)] * 2, "both run")
    (tmp_path / "gate").touch()
    until(lambda: list(cli.states().values()) == [("succeeded", 1)] * 2, "both have succeeded")


def test_a_costly_plan_asks_before_anything_is_written(tmp_path: Path, cli: Cli) -> None:
    """Without a terminal it ends with 2 and says what it would cost; what is done already costs nothing."""
    (tmp_path / "gate").touch()
    asks = ("slurm.sbatch.gpus-per-node=4", "slurm.sbatch.time=12:00:00", "project.confirm_gpu_hours=50")
    costly = [word for override in asks for word in ("-o", override)]
    refused = cli("submit", "sweep.yaml", "--local", *costly)
    assert refused.returncode == 2 and "96 GPU-hours" in refused.stderr and "--yes" in refused.stderr
    assert not (tmp_path / "outputs").exists()
    assert cli("submit", "sweep.yaml", "--local", "--yes", *costly).returncode == 0
    assert cli("submit", "sweep.yaml", "--local", *costly).returncode == 0
