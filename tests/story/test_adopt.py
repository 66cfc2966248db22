"""`adopt`: a job that was submitted by hand is watched, acted upon and restarted like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until

from oellm_autoexp.config.sockets import SchedulerInterface, Submission, Task
from oellm_autoexp.errors import StateError, UsageError
from oellm_autoexp.services import plan
from oellm_autoexp.services.adopt import adopt
from oellm_autoexp.services.lead import lead
from oellm_autoexp.services.session import replay

RULES = """
project: {name: tiny, base_output_dir: ./outputs}
monitoring:
  class_name: SlurmLogMonitor
  log_signals:
    nan: {pattern: 'loss nan', mode: crash.nan}
    done: {pattern: 'all done', mode: success}
    saved: {pattern: 'saved (?P<path>\\S+)', action: note}
actions: {note: {class_name: AppendAction, path: "%(tmp)s/notes", text: "{job} {path}"}}
"""
RUNS = """
backend: {class_name: CommandBackend, command: [sh, -c, "echo again; echo all done"]}
"""
FOREIGN = "import sys, time\nfor line in sys.stdin: print(line, end='', flush=True)\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


def written(tmp_path: Path, *parts: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("".join(parts) % {"tmp": tmp_path})
    return path


# ---------------------------------------------------------------- a process of this machine


class Foreign:
    """A process that somebody has started by hand; it prints what it is told."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FOREIGN], stdin=subprocess.PIPE, stdout=out, text=True
            )

    @property
    def id(self) -> str:
        return str(self.process.pid)

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        until(lambda: text in self.log.read_text(), "it prints")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    found = Foreign(tmp_path / "train.out")
    with found.process:
        yield found
        found.process.kill()


def test_signals_and_actions_apply_and_the_success_signal_is_believed(
    tmp_path: Path, foreign: Foreign
) -> None:
    run = Cli(tmp_path)
    written(tmp_path, RULES)
    foreign.say("saved a.pt")
    told = run.within(
        "adopt", foreign.id, "--log", "train.out", "--config", "config.yaml", "--local", "--no-watch"
    )
    assert told.returncode == 0, told.stderr
    assert f"{foreign.id} is watched as job_{foreign.id}" in told.stdout
    foreign.say("saved b.pt")
    foreign.say("all done")
    foreign.end()
    assert run.within("monitor", "outputs").returncode == 0
    assert (tmp_path / "notes").read_text() == f"job_{foreign.id} a.pt\njob_{foreign.id} b.pt\n"
    (job,) = run.jobs()
    assert (job["state"], job["scheduler_id"]) == ("succeeded", foreign.id)


def test_a_signal_with_an_error_mode_ends_the_process(tmp_path: Path, foreign: Foreign) -> None:
    run = Cli(tmp_path)
    written(tmp_path, RULES.replace("mode: crash.nan", "mode: crash.nan, grace_seconds: 0"))
    foreign.say("loss nan")
    done = run.within("adopt", foreign.id, "--log", "train.out", "--config", "config.yaml", "--local")
    assert done.returncode == 1, done.stderr
    foreign.process.wait(10)
    (job,) = run.jobs()
    assert (job["state"], job["error_mode"], job["attempts"]) == ("failed", "crash.nan", 1)


def test_what_says_how_to_run_it_runs_it_again(tmp_path: Path, foreign: Foreign) -> None:
    run = Cli(tmp_path)
    written(tmp_path, RULES.replace("mode: crash.nan", "mode: crash"), RUNS)
    foreign.say("loss nan")
    run.within("adopt", foreign.id, "--log", "train.out", "--config", "config.yaml", "--local", "--no-watch")
    foreign.end()
    assert run.within("monitor", "outputs", "--json").returncode == 0
    (job,) = run.jobs()
    assert (job["name"], job["state"], job["attempts"]) == ("tiny", "succeeded", 2)
    # The second attempt has a log of its own; the foreign one stays as it was.
    assert "again" in Path(job["log_path"]).read_text()
    assert foreign.log.read_text() == "loss nan\n"
    # The plan of the config finds its job done.
    again = run.within("submit", "config.yaml", "--local")
    assert "1 already done: nothing is submitted again" in again.stdout


def test_it_survives_a_loop_that_was_killed(tmp_path: Path, foreign: Foreign) -> None:
    run = Cli(tmp_path)
    written(tmp_path, RULES)
    words = ("adopt", foreign.id, "--log", "train.out", "--config", "config.yaml", "--local")
    with run.leader(*words, stderr=subprocess.DEVNULL) as watching:
        until(lambda: run.states().get(f"job_{foreign.id}", ("", 0))[0] == "running", "it is seen to run")
        # While it is led, the leader answers.
        again = run.within(*words, "--no-watch")
        assert "is watched already" in again.stdout
        watching.kill()
    foreign.say("all done")
    foreign.end()
    assert run.within("monitor", "outputs").returncode == 0
    assert [job["state"] for job in run.jobs()] == ["succeeded"]


def test_a_process_or_a_log_that_is_not_there_is_a_mistake(tmp_path: Path, foreign: Foreign) -> None:
    run = Cli(tmp_path)
    written(tmp_path, RULES)
    foreign.end()
    gone = run.within("adopt", foreign.id, "--log", "train.out", "--config", "config.yaml", "--local")
    assert (gone.returncode, "does not know a job" in gone.stderr) == (2, True)
    nolog = run.within("adopt", "1", "--log", "nosuch.out", "--config", "config.yaml", "--local")
    assert (nolog.returncode, "there is no such file" in nolog.stderr) == (2, True)
    assert not (tmp_path / "outputs").exists()


def test_without_a_config_it_is_watched_in_a_session_of_its_own(tmp_path: Path, foreign: Foreign) -> None:
    run = Cli(tmp_path)
    told = run.within(
        "adopt", foreign.id, "--log", "train.out", "--local", "--name", "mine", "--no-watch", "--json"
    )
    assert told.returncode == 0, told.stderr
    (job,) = json.loads(told.stdout)["jobs"]
    assert (job["name"], job["state"]) == ("mine", "submitted")
    assert Path(json.loads(told.stdout)["session"]) == tmp_path / "outputs" / "adopted" / ".oellm-autoexp"


# ---------------------------------------------------------------- a job of a cluster

SCRIPT = "#!/bin/bash\n#SBATCH --nodes=1\ntrue\n"


class Cluster:
    """A fake cluster on which somebody has submitted by hand."""

    def __init__(self, tmp_path: Path, config: Path) -> None:
        self.tmp_path, self.config = tmp_path, config

    @property
    def scheduler(self) -> SchedulerInterface:
        return plan.load(str(self.config), scheduler="fake", cwd=self.tmp_path).scheduler

    def sbatch(self, *names: str) -> list[str]:
        script = self.tmp_path / "by_hand.sh"
        script.write_text(SCRIPT)
        tasks = [
            Task(
                name=name,
                script_path=str(script),
                log_path=str(self.log(name)),
                attempt_dir=str(self.tmp_path / "none" / name),
            )
            for name in names
        ]
        refs = self.scheduler.submit(Submission(token="byhand", tasks=tasks))
        for name in names:
            self.log(name).touch()
        return [ref.id for ref in refs]

    def log(self, name: str) -> Path:
        return self.tmp_path / f"{name}.out"

    def adopt(self, identity: str, name: str, **given: Any) -> Any:
        return adopt(
            identity,
            self.log(name),
            str(self.config),
            name=given.pop("as_name", name),
            scheduler="fake",
            cwd=self.tmp_path,
            **given,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, written(tmp_path, RULES))


def test_a_task_of_an_array_is_known_by_its_number(cluster: Cluster) -> None:
    first, second = cluster.sbatch("foreign_0", "foreign_1")
    assert second == f"{first.partition('_')[0]}_1"
    paths, text = cluster.adopt(second, "foreign_1")
    assert text == f"{second} is watched as foreign_1"
    assert cluster.adopt(second, "foreign_1")[1] == f"{second} is watched already, as foreign_1 (submitted)"
    loop = lead(paths)
    loop.run()
    loop.close()
    session = replay(paths)
    assert {name: job.state.value for name, job in session.jobs.items()} == {"foreign_1": "succeeded"}


def test_several_jobs_are_watched_in_one_session(cluster: Cluster) -> None:
    first, second = cluster.sbatch("foreign_0", "foreign_1")
    cluster.adopt(first, "foreign_0")
    paths, _ = cluster.adopt(second, "foreign_1")
    assert list(replay(paths).jobs) == ["foreign_0", "foreign_1"]
    with pytest.raises(StateError, match=r"give .* another --name"):
        cluster.adopt(*cluster.sbatch("foreign_2"), "foreign_2", as_name="foreign_0")


def test_an_unknown_job_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.sbatch("foreign_0")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="does not know a job '999'"):
        cluster.adopt("999", "foreign_0")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_with_several_jobs_must_be_told_which(tmp_path: Path) -> None:
    sweep = RUNS.replace("echo again", "echo ${n}") + "sweep: {axes: {n: [1, 2]}}\n"
    cluster = Cluster(tmp_path, written(tmp_path, RULES, sweep))
    (identity,) = cluster.sbatch("foreign_0")
    with pytest.raises(UsageError, match="the config has 2 jobs: which one is it"):
        cluster.adopt(identity, "foreign_0", as_name=None)
    paths, _ = cluster.adopt(identity, "foreign_0", as_name="tiny_n2")
    job = replay(paths).jobs["tiny_n2"]
    assert job.live is not None
    assert (job.live.log_path, job.next_spec is not None) == (str(cluster.log("foreign_0")), True)
