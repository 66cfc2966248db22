"""`submit --fake`: a whole sweep is played; nothing of the user's is run, no real session is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import LeadershipLost
from oellm_autoexp.services import calls, session, submit, views
from oellm_autoexp.services.lead import lead
from oellm_autoexp.store import journal

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

CONFIG = """\
project: {name: tiny, base_output_dir: ./outputs}
backend: {class_name: CommandBackend, command: [touch, ran, "${lr}"]}
slurm:
  sbatch: {nodes: 2, time: "12:00:00", partition: main}
  log_dir: ./elsewhere/logs
  script_dir: ./elsewhere/scripts
sweep: {axes: {lr: [1e-3, 3e-4], seed: [0, 1]}, name_template: "{project}_lr{lr}_s{seed}"}
monitoring:
  class_name: SlurmLogMonitor
  inactivity_threshold_seconds: 3600
  termination_string: ALL DONE
  log_path_template: elsewhere/{name}.{attempt}.txt
  start_condition_cmd: touch started
  log_signals:
    saved: {pattern: 'Checkpoint saved: (?P<path>\\S+)', action: [convert, note]}
    nan: {pattern: 'loss nan', mode: crash.nan}
actions:
  convert: {command: 'touch converted', timeout_seconds: 600}
  note: {class_name: AppendAction, path: ./notes, text: '{job} {path}'}
  tell: {class_name: NotifyAction, url: 'http://127.0.0.1:9/', on: [job_failed, session_ended]}
restart_policies:
  crash: {class_name: AlwaysRestartPolicy, max_retries: 2}
  timeout: {class_name: AdjustTimeLimitPolicy, minutes: 30}
  crash.nan: {class_name: NoRestartPolicy, message: look at the learning rate}
"""
SCENARIO = """\
cluster: {nodes: 6, requeue: true, partitions: {main: {max_time: 1d}}}
jobs:
- match: '*lr0.001_s0'
  work: 30h
  lines: {saved: 'Checkpoint saved: {checkpoint}'}
- match: '*lr0.001_s1'
  mishaps: [{kind: exit, after: 2h, lines: ['step 7 loss nan']}]
- match: '*_s0'
  mishaps: [{kind: hang, after: 3.5h, attempts: 1}]
- {work: 5h, mishaps: [{kind: kill, after: 1h, attempts: 1}]}
faults:
- {kind: node_fail, node: node2, at: 4h, lasts: 2h}
- {kind: outage, at: 6h, lasts: 1h}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    (tmp_path / "faults.yaml").write_text(SCENARIO)
    return tmp_path


@pytest.fixture
def cli(home: Path) -> Cli:
    environment = {**os.environ, "XDG_STATE_HOME": str(home / "state")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oellm_autoexp.cli.main", *words]
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def rows(text: str) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(text)["jobs"]}


def test_a_sweep_is_played_to_its_end(home: Path, cli: Cli) -> None:
    """Each policy decides as it would; commands, actions and conditions are only recorded."""
    done = cli("submit", "sweep.yaml", "--scenario", "faults.yaml")
    assert done.returncode == 1, done.stderr
    assert "tiny_lr0.001_s0: attempt 1 ended, timeout" in done.stdout
    found = rows(cli("status", "outputs/.oellm-autoexp-fake", "--json").stdout)
    assert {name: (row["state"], row["ended_by"]) for name, row in found.items()} == {
        "tiny_lr0.001_s0": ("succeeded", ["timeout", "timeout", "success"]),
        "tiny_lr0.001_s1": ("failed", ["crash.nan"]),
        "tiny_lr0.0003_s0": ("succeeded", ["stall", "success"]),
        "tiny_lr0.0003_s1": ("succeeded", ["crash", "success"]),
    }
    by_name = found["tiny_lr0.001_s0"]["actions"]["by_name"]
    assert by_name["convert"]["done"] == by_name["note"]["done"] > 20
    assert {path.name for path in home.iterdir()} == {"sweep.yaml", "faults.yaml", "outputs", "state"}
    assert [path.name for path in (home / "outputs").iterdir()] == [".oellm-autoexp-fake"]


def test_it_is_watched_and_steered_like_any_session(home: Path, cli: Cli) -> None:
    """Twice the same submits nothing; `retry` and `monitor --fake` go on in its own time."""
    assert cli("submit", "sweep.yaml", "--scenario", "faults.yaml").returncode == 1
    again = cli("submit", "sweep.yaml", "--fake", "--scenario", "faults.yaml")
    assert again.returncode == 1 and "4 already done" in again.stdout, again.stderr
    assert cli("retry", "tiny.fake", "tiny_lr0.001_s1").returncode == 0
    assert cli("monitor", "sweep.yaml", "--fake").returncode == 1
    (row,) = rows(cli("status", "tiny.fake", "--json", "tiny_lr0.001_s1").stdout).values()
    assert (row["state"], row["attempts"], row["wall_s"] > 7200) == ("failed", 2, True)
    other = cli("submit", "sweep.yaml", "--fake")
    assert other.returncode == 2 and "began with another scenario" in other.stderr
    real = cli("status", "sweep.yaml")
    assert real.returncode == 2 and "nothing has been submitted" in real.stderr


def test_a_config_may_name_the_fake_cluster_itself(home: Path, cli: Cli) -> None:
    """`scheduler: {class_name: fake, scenario: F}`, F beside the file; `slurm.client` says the same."""
    (home / "configs").mkdir()
    (home / "configs" / "s.yaml").write_text("jobs: [{work: 1h, mishaps: [{after: 60, code: 3}]}]\n")
    for name, text in (
        ("a", "scheduler: {class_name: fake, scenario: s.yaml, breaker: null}"),
        ("b", "slurm: {client: {class_name: FakeSlurmClient, scenario: s.yaml}}"),
    ):
        head = (
            f"project: {{name: {name}, base_output_dir: out_{name}}}\nbackend: {{class_name: NullBackend}}\n"
        )
        (home / "configs" / f"{name}.yaml").write_text(head + text + "\n")
        done = cli("submit", f"configs/{name}.yaml", "--json")
        assert done.returncode == 1, done.stderr
        (row,) = json.loads(done.stdout)["jobs"]
        assert (row["state"], row["attempts"]) == ("failed", 3)
        assert row["log_path"].startswith(str(home / "configs" / f"out_{name}" / ".oellm-autoexp-fake"))


def test_a_plan_shows_what_would_be_played(home: Path, cli: Cli) -> None:
    """Scripts as Slurm gets them, in the subtree of rehearsals."""
    done = cli("plan", "sweep.yaml", "--fake")
    assert done.returncode == 0, done.stderr
    script = home / "outputs/.oellm-autoexp-fake/scripts/tiny_lr0.001_s0.sbatch"
    assert "#SBATCH --nodes=2\n" in script.read_text()
    wrong = cli("plan", "sweep.yaml", "--local", "--scenario", "faults.yaml")
    assert wrong.returncode == 2 and "--local excludes" in wrong.stderr
    missing = cli("plan", "sweep.yaml", "--scenario", "none.yaml")
    assert missing.returncode == 2 and "there is no such scenario" in missing.stderr


#: The first moment of a rehearsal, 2026-01-01.
START = 1_767_225_600.0


class Interrupted(Exception):
    """The process is gone."""


def test_a_killed_rehearsal_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process finds cluster and journal as they were: no attempt is lost or begun twice."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.chdir(home)
    plan = calls.planned("sweep.yaml", scheduler="fake", scenario="faults.yaml")
    paths = plan.loaded.paths
    _, loop = submit.submit(plan)
    assert loop is not None

    def dies_after(turns: int) -> Callable[[Session], None]:
        left = [turns]

        def count(_session: Session) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted

        return count

    for turns in (1, 3, 40, 100, 77):
        with pytest.raises(Interrupted):
            loop.run(dies_after(turns))
        # What is shown of it is in its own time, not in that of the one who looks.
        assert 0 <= views.moment(loop.session, 0.0) - START < 4 * 86400
        loop = lead(paths)
    loop.run()
    loop.close()
    ended = session.replay(paths)
    assert {name: job.state.value for name, job in ended.jobs.items()} == {
        "tiny_lr0.001_s0": "succeeded",
        "tiny_lr0.001_s1": "failed",
        "tiny_lr0.0003_s0": "succeeded",
        "tiny_lr0.0003_s1": "succeeded",
    }
    events = journal.read(paths).events
    times = [event.at for event in events]
    assert times == sorted(times)
    starts = [event for event in events if isinstance(event, ev.AttemptStarted)]
    started = [(event.job, event.attempt, event.started_at) for event in starts]
    # One is started twice: the cluster itself requeues it when node2 fails.
    assert len(started) == len(set(started)) == sum(len(job.attempts) for job in ended.jobs.values()) + 1
    assert all(attempt_claimed_once(paths, name, job) for name, job in ended.jobs.items())


def test_a_leader_that_was_stopped_moves_the_cluster_no_more(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes in the middle of its rest, after another has taken over, which plays on undisturbed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.chdir(home)
    plan = calls.planned("sweep.yaml", scheduler="fake", scenario="faults.yaml")
    _, first = submit.submit(plan)
    assert first is not None
    first.tick()
    second = lead(plan.loaded.paths)
    with pytest.raises(LeadershipLost, match="another process plays this cluster"):
        first._clock.wait(60.0)
    second.run()
    second.close()
    jobs = session.replay(plan.loaded.paths).jobs
    assert {name: len(job.attempts) for name, job in jobs.items()} == {
        "tiny_lr0.001_s0": 3,
        "tiny_lr0.001_s1": 1,
        "tiny_lr0.0003_s0": 2,
        "tiny_lr0.0003_s1": 2,
    }


def attempt_claimed_once(paths: SessionPaths, name: str, job: Any) -> bool:
    """Whether all claims of each attempt are of one scheduler id."""
    for attempt in job.attempts:
        claims = paths.attempt(name, attempt.number).glob("claim.*.json")
        if {json.loads(path.read_text())["scheduler_id"] for path in claims} != {attempt.ref.id}:
            return False
    return True
