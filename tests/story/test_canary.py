"""`submit --canary N`: the first jobs of a plan go first, and the others only when these work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from campaign import START, Campaign
from commands import Cli

from oellm_autoexp.core import events as ev

HOUR = 3600.0
WORK = {"work": "5h", "startup": 60, "log_every": 300, "checkpoint_every": "1h"}
DIES = {
    "work": "5h",
    "startup": 60,
    "mishaps": [{"kind": "exit", "after": "5min", "lines": ["KeyError: 'lr'"]}],
}


def starts(made: Campaign) -> dict[str, float]:
    """Seconds after the beginning at which each job first ran."""
    times: dict[str, float] = {}
    for event in made.of(ev.AttemptStarted):
        times.setdefault(event.job, event.started_at - START)
    return times


def campaign(root: Path, play: dict[str, Any], jobs: int = 8, **more: Any) -> Campaign:
    config = {"monitoring": {"class_name": "SlurmLogMonitor", "startup_grace_seconds": 900}, **more}
    return Campaign(root, {"cluster": {"nodes": 64}, "jobs": [play]}, jobs, config=config)


@pytest.mark.parametrize(
    ("play", "after"),
    [
        (WORK, 900.0),  # past its start-up, with progress
        ({**WORK, "log_every": 2 * HOUR, "startup": 1200, "checkpoint_every": "30min"}, 3000.0),
        ({"work": 300, "startup": 10, "checkpoint_every": None}, 310.0),  # a success is proof enough
    ],
)
def test_the_others_start_when_every_canary_has_shown_that_it_works(
    tmp_path: Path, play: dict[str, Any], after: float
) -> None:
    """That is: success, or life beyond the start-up grace with progress, where the job tells of any."""
    config = {"log_signals": {"step": {"pattern": '"step": (?P<step>\\d+)', "counter": "step"}}}
    made = campaign(tmp_path, play)
    made.config = {"monitoring": {**made.config["monitoring"], **config}}  # type: ignore[index]
    session = made.run("scheduler.canary=2")
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}
    times = starts(made)
    others = [at for name, at in times.items() if name not in ("j0", "j1")]
    assert max(times["j0"], times["j1"]) < 60
    assert len(others) == 6 and after <= min(others) <= max(others) <= after + 300
    held = [event.why for event in made.of(ev.JobHeld) if event.job == "j7"]
    assert held[0] == "waits for canaries: j0, j1" and held[-1] == ""


def test_a_canary_that_fails_holds_the_rest_until_a_person_says_so(tmp_path: Path) -> None:
    """The session ends there; the next leader knows it, too, and so does a submission without the flag."""
    made = campaign(tmp_path, DIES)
    session = made.run("scheduler.canary=1")
    assert starts(made).keys() == {"j0"}
    assert session.jobs["j0"].state.value == "failed"
    assert session.jobs["j1"].hold.startswith("canary j0 failed: KeyError: 'lr'")
    assert session.ended is not None and session.ended.reason == "canary"
    for again in (made.lead, made.submit):
        again()
        made.run()
        assert starts(made).keys() == {"j0"}
    loop = made.lead()
    assert loop.commands.obey("retry", {"jobs": ["j0"]}, loop._clock.now())[0]
    made.run()
    assert starts(made).keys() == {"j0"} and len(made.of(ev.JobRetried)) == 1
    made.submit("scheduler.canary=0")
    made.run()
    assert starts(made).keys() == {f"j{number}" for number in range(8)}


def test_one_that_dies_later_than_its_proof_holds_nobody(tmp_path: Path) -> None:
    """The rest has started by then, and its own restarts are its own affair."""
    play = {**WORK, "mishaps": [{"kind": "exit", "after": "2h", "code": 3}]}
    made = campaign(tmp_path, play, jobs=3, restart_policies={"crash": {"class_name": "NoRestartPolicy"}})
    session = made.run("scheduler.canary=1")
    assert starts(made).keys() == {"j0", "j1", "j2"}
    assert [event.job for event in made.of(ev.CanaryProved)] == ["j0"]
    assert {job.state.value for job in session.jobs.values()} == {"failed"}


def test_the_command_line_has_it(tmp_path: Path) -> None:
    """`--canary 1` on real processes: the bad canary alone has run; it is said what the others wait for."""
    cli = Cli(tmp_path)
    config = {
        "project": {"name": "cmd"},
        "backend": {"class_name": "CommandBackend", "command": ["bash", "-c", "test -e mended # ${i}"]},
        "sweep": {"axes": {"i": [0, 1, 2]}},
        "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    first = cli("submit", "c.yaml", "--local", "--canary", "1")
    assert first.returncode == 1, first.stderr
    assert "2 jobs wait; canary cmd_i0 failed" in first.stdout and "--canary 0" in first.stdout
    assert cli.states() == {"cmd_i0": ("failed", 1), "cmd_i1": ("waiting", 0), "cmd_i2": ("waiting", 0)}
    (tmp_path / "mended").touch()
    assert cli("retry", "outputs").returncode == 0
    assert cli("monitor", "outputs").returncode == 0
    assert cli.states() == {
        "cmd_i0": ("succeeded", 2),
        "cmd_i1": ("succeeded", 1),
        "cmd_i2": ("succeeded", 1),
    }
    refused = cli.within("submit", "c.yaml", "--local", "--canary", "-1")
    assert refused.returncode == 2 and "canary" in refused.stderr
