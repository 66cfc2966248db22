"""Planning, submitting and watching from a Python program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import until

from oellm_autoexp import render_scripts, submit_jobs
from oellm_autoexp.core.events import Event, JobEnded
from oellm_autoexp.core.model import JobState
from oellm_autoexp.errors import ConfigError, UsageError
from oellm_autoexp.services import session as sessions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "python.md"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory and a registry of sessions of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)


def write(command: str = "exit 0", **more: Any) -> str:
    config: dict[str, Any] = {
        "project": {"name": "calls", "base_output_dir": "./outputs"},
        "backend": {"class_name": "CommandBackend", "command": ["bash", "-c", command + " # ${i}"]},
        "sweep": {"axes": {"i": [0, 1]}},
        "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}},
        **more,
    }
    Path("sweep.yaml").write_text(json.dumps(config))
    return "sweep.yaml"


def test_scripts_are_written_and_the_plan_comes_back() -> None:
    """As `plan` does; a dry run writes nothing, overrides apply."""
    plan = render_scripts(write(), scheduler="local", dry_run=True)
    assert not Path("outputs").exists()
    plan = render_scripts(write(), overrides=["sweep.axes.i=[5]"], scheduler="local")
    assert [job.spec.parameters["i"] for job in plan.jobs] == [5]
    assert Path(plan.jobs[0].spec.script_path).read_text() == plan.jobs[0].script


def test_jobs_are_submitted_and_watched_to_their_end() -> None:
    """The session says what became of each; the second time nothing is left to do."""
    heard: list[Event] = []
    plan = render_scripts(write("test ${i} = 0"), scheduler="local")
    session = submit_jobs(plan, on_event=heard.append)
    states = {job.spec.parameters["i"]: job.state for job in session.jobs.values()}
    assert states == {0: JobState.SUCCEEDED, 1: JobState.FAILED}
    assert sum(isinstance(event, JobEnded) for event in heard) == 2
    again = submit_jobs("sweep.yaml", scheduler="local")
    assert [len(job.attempts) for job in again.jobs.values()] == [1, 1]


def test_a_changed_job_is_refused_until_it_is_taken() -> None:
    """`update` takes it, as on the command line."""
    template = {"axes": {"i": [0]}, "name_template": "only"}
    submit_jobs(write("exit 0", sweep=template), scheduler="local")
    with pytest.raises(ConfigError, match="has changed"):
        submit_jobs(write("true", sweep=template), scheduler="local")
    session = submit_jobs(write("true", sweep=template), scheduler="local", update=True)
    assert [len(job.attempts) for job in session.jobs.values()] == [2]


def test_what_the_command_line_would_ask_must_be_agreed_to() -> None:
    """Cancelling jobs that the plan no longer has needs yes=True; without it nothing happens."""
    submit_jobs(write(), scheduler="local")
    shorter = write(sweep={"axes": {"i": [0]}})
    with pytest.raises(UsageError, match="yes=True"):
        submit_jobs(shorter, scheduler="local", prune=True)
    session = submit_jobs(shorter, scheduler="local", prune=True, yes=True)
    assert sum(job.planned for job in session.jobs.values()) == 1


def test_without_waiting_a_process_in_the_background_watches() -> None:
    """The call returns at once; the jobs come to their end all the same."""
    plan = render_scripts(write("sleep 0.2"), scheduler="local")
    session = submit_jobs(plan, wait=False)
    assert len(session.jobs) == 2
    paths = plan.loaded.paths
    until(lambda: sessions.replay(paths).ended is not None, "the session has ended")
    assert sessions.exit_code(sessions.replay(paths)) == 0


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each Python block of docs/howto/python.md, one after the other."""
    write("exit 0", sweep={"axes": {"lr": [0.1, 0.01]}}, backend=command_of("${lr}"))
    scope: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    assert "succeeded" in capsys.readouterr().out


def command_of(value: str) -> dict[str, Any]:
    return {"class_name": "CommandBackend", "command": ["true", value]}
