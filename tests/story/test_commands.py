"""Commands on a session without a leader, and on one that is led."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def write(tmp_path: Path, command: str, values: list[int]) -> str:
    config: dict[str, Any] = {
        "project": {"name": "cmd"},
        "backend": {"class_name": "CommandBackend", "command": ["bash", "-c", command + " # ${i}"]},
        "sweep": {"axes": {"i": values}},
        "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}},
        "scheduler": {"class_name": "local", "max_jobs": 4},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(config))
    return str(path)


def test_a_failed_job_stays_failed_until_retry(tmp_path: Path, cli: Cli) -> None:
    """A second submit leaves it alone; `retry` gives it a new attempt, and `monitor` finishes it."""
    config = write(tmp_path, f"test -e {tmp_path}/mended", [0, 1])
    first = cli("submit", config)
    assert first.returncode == 1, first.stdout + first.stderr
    again = cli("submit", config)
    assert "2 already done" in again.stdout
    (tmp_path / "mended").touch()
    retried = cli("retry", "cmd", "i=1")
    assert retried.returncode == 0 and "cmd_i1" in retried.stdout, retried.stderr
    assert cli("monitor", "outputs").returncode == 1
    assert cli.states() == {"cmd_i0": ("failed", 1), "cmd_i1": ("succeeded", 2)}


def test_commands_reach_a_led_session_and_a_second_loop_is_refused(tmp_path: Path, cli: Cli) -> None:
    """While `submit` runs, a second loop is refused with its pid; `cancel` and a second `submit` reach it."""
    config = write(tmp_path, "sleep 60", [0])
    with cli.leader("submit", config, "--json") as leader:
        until(lambda: cli.states() == {"cmd_i0": ("running", 1)}, "the job runs")
        refused = cli("monitor", "outputs")
        assert refused.returncode == 3 and str(leader.pid) in refused.stderr
        config = write(tmp_path, "sleep 60", [0, 1])
        assert cli("submit", config).returncode in (0, 1)
        assert set(cli.states()) == {"cmd_i0", "cmd_i1"}
        cancelled = cli("cancel", "outputs", "--yes")
        assert cancelled.returncode == 0 and "cmd_i0" in cancelled.stdout, cancelled.stderr
        assert leader.wait(timeout=60) == 1
    assert {state for state, _ in cli.states().values()} == {"cancelled"}


def test_what_asks_refuses_without_a_terminal(tmp_path: Path, cli: Cli) -> None:
    """`cancel` without --yes and without a terminal exits 2 and changes nothing."""
    assert cli("submit", write(tmp_path, "true", [0])).returncode == 0
    refused = cli.within("cancel", "outputs")
    assert refused.returncode == 2 and "--yes" in refused.stderr


def test_a_session_is_found_by_its_name(tmp_path: Path, cli: Cli) -> None:
    """`sessions` lists it, and `status NAME` finds it; a wrong name gets a hint."""
    assert cli("submit", write(tmp_path, "true", [0])).returncode == 0
    assert "1 succeeded" in cli.within("sessions").stdout
    assert "cmd_i0" in cli.within("status", "cmd").stdout
    assert cli.within("status", "cmt").returncode == 2


def test_a_plan_leaves_the_scripts_that_a_session_may_run_again(tmp_path: Path, cli: Cli) -> None:
    """What a job computes changes by `submit --update` alone, so a retry runs what the session knows."""
    config = write(tmp_path, f"echo old >> {tmp_path}/ran; exit 1", [0])
    assert cli("submit", config).returncode == 1
    write(tmp_path, f"echo new >> {tmp_path}/ran", [0, 1])
    shown = cli("plan", config)
    assert (
        shown.returncode == 0
        and "Left as the session has them: 1 script, such as that of cmd_i0" in shown.stdout
    )
    assert (tmp_path / "outputs/scripts/cmd_i1.sbatch").exists()
    assert cli("retry", "outputs").returncode == 0
    assert cli("monitor", "outputs").returncode == 1
    assert (tmp_path / "ran").read_text() == "old\nold\n"
    assert cli("submit", config).returncode == 2
    assert cli("submit", config, "--update").returncode == 0
    assert (tmp_path / "ran").read_text() == "old\nold\nnew\nnew\n"


def test_the_directory_of_another_project_is_refused(tmp_path: Path, cli: Cli) -> None:
    """Neither `plan` nor `submit` writes into it, and both say whose it is."""
    config = write(tmp_path, "true", [0])
    assert cli("submit", config).returncode == 0
    sweep = (tmp_path / "outputs/sweep.json").read_bytes()
    for command in ("plan", "submit"):
        refused = cli(command, config, "-o", "project.name=other")
        assert refused.returncode == 2 and "it belongs to project 'cmd'" in refused.stderr
    assert (tmp_path / "outputs/sweep.json").read_bytes() == sweep
    assert not list(tmp_path.glob("outputs/scripts/other*"))
