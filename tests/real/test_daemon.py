"""`daemon`: a loop in a real tmux session, found, stopped, revived, and led from another host."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from commands import PATIENCE_S, ROOT, Cli, until

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.store import journal, segments

CONFIG = """
project: {name: left.alone, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command:
    - bash
    - -c
    - echo "$0 $MINE" >> "$1/started"; until [ -e "$2" ]; do sleep 0.05; done
    - ${n}
    - ${job.output_dir}
    - GATE
sweep: {axes: {n: [1, 2]}}
"""
PROGRAMS = ("bash", "sh", "env", "cat", "mkdir", "sleep")


@pytest.fixture
def tmux() -> Iterator[Callable[..., str]]:
    """A tmux server of the test's own, which `cli` uses too; a call gives what it prints."""
    # The path of a socket holds 107 bytes, fewer than the directories of tests need.
    with tempfile.TemporaryDirectory(prefix="tmux-") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
        environment["TMUX_TMPDIR"] = folder

        def call(*words: str) -> str:
            done = subprocess.run(
                ["tmux", *words], env=environment, capture_output=True, text=True, check=False
            )
            return done.stdout

        yield call
        call("kill-server")


@pytest.fixture
def cli(tmp_path: Path, tmux: Callable[..., str]) -> Cli:
    (tmp_path / "sweep.yaml").write_text(CONFIG.replace("GATE", str(tmp_path / "gate")))
    # A server that was started from another shell, long ago: what it knows is not what a loop needs.
    tmux("new-session", "-d", "-s", "mine")
    folder = tmux("display-message", "-p", "#{socket_path}").strip()
    return Cli(tmp_path, TMUX_TMPDIR=str(Path(folder).parents[1]), MINE="of this shell", TMUX="")


def standing(cli: Cli) -> dict[str, object]:
    return json.loads(cli.within("daemon", "status", "outputs", "--json").stdout)


def run(cli: Cli) -> None:
    until(lambda: list(cli.states().values()) == [("running", 1)] * 2, "both run")


def finish(tmp_path: Path, cli: Cli) -> None:
    """Both succeed in their first attempt, and each was started once."""
    (tmp_path / "gate").touch()
    until(lambda: list(cli.states().values()) == [("succeeded", 1)] * 2, "both have succeeded")
    started = sorted(path.read_text() for path in tmp_path.glob("outputs/*/started"))
    assert started == ["1 of this shell\n", "2 of this shell\n"]


def test_a_loop_lives_in_a_tmux_session_until_all_is_done(
    tmp_path: Path, cli: Cli, tmux: Callable[..., str]
) -> None:
    """Started twice it is one; it has the environment of the shell that it was started from."""
    done = cli("daemon", "start", "sweep.yaml", "--local", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout.splitlines()[-1])
    assert first["tmux"].startswith("left-alone-")
    log = tmp_path / "outputs" / ".oellm-autoexp" / "monitor" / "daemon.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600, "tee(1) would make it with a umask's rights"
    run(cli)
    for reference in ("sweep.yaml", "outputs", "left.alone"):
        flag = ("--local",) if reference == "sweep.yaml" else ()
        again = cli("daemon", "start", reference, *flag)
        assert again.returncode == 0 and f"Process {first['pid']} on" in again.stdout, again.stderr
    assert sorted(tmux("list-sessions", "-F", "#{session_name}").split()) == sorted(["mine", first["tmux"]])
    shown = standing(cli)
    assert (shown["state"], shown["pid"], shown["tmux"]) == ("running", first["pid"], first["tmux"])
    assert cli.within("daemon", "status", "outputs").returncode == 0
    finish(tmp_path, cli)
    until(lambda: tmux("list-sessions", "-F", "#{session_name}").split() == ["mine"], "its session has ended")
    assert "left.alone_n1: succeeded" in log.read_text() and shown["log"] == str(log)
    ended = cli.within("daemon", "start", "outputs")
    assert ended.returncode == 0 and "Nothing is left to do" in ended.stdout


def test_what_was_stopped_stays_stopped_until_a_person_starts_it(
    tmp_path: Path, cli: Cli, tmux: Callable[..., str]
) -> None:
    """The lead is released, the jobs go on, and neither cron nor a service manager overrules it."""
    assert cli("daemon", "start", "sweep.yaml", "--local").returncode == 0
    run(cli)
    stopped = cli("daemon", "stop", "outputs")
    assert stopped.returncode == 0 and "2 job(s) go on running" in stopped.stdout, stopped.stderr
    assert (standing(cli)["state"], standing(cli)["pid"]) == ("stopped", None)
    assert cli.within("daemon", "status", "outputs").returncode == 1
    assert cli.within("daemon", "stop", "outputs").returncode == 0, "twice is once"
    revived = cli("daemon", "start", "outputs", "--revive")
    assert (revived.returncode, revived.stdout, revived.stderr) == (0, "", "")
    assert cli("daemon", "run", "outputs").returncode == 0
    assert standing(cli)["state"] == "stopped"
    assert cli("daemon", "start", "outputs").returncode == 0
    assert standing(cli)["state"] == "running"
    finish(tmp_path, cli)


def test_a_loop_that_died_is_revived_by_what_cron_runs(tmp_path: Path, cli: Cli) -> None:
    """Over and over, with next to no environment, and without a word where there is nothing to be done."""
    assert cli("daemon", "start", "sweep.yaml", "--local").returncode == 0
    run(cli)
    for name in ("systemctl", "loginctl"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)}
    assert cli.within("daemon", "install", "outputs", "--systemd", env=environment).returncode == 0
    (script,) = (tmp_path / "home" / "oellm-autoexp" / "daemon").iterdir()
    os.kill(int(str(standing(cli)["pid"])), signal.SIGKILL)
    until(lambda: standing(cli)["state"] == "down", "it is dead")
    assert cli.within("daemon", "status", "outputs").returncode == 1
    for said in ("Process", ""):
        argv = ["/bin/sh", str(script), "start", "--revive"]
        revived = subprocess.run(argv, env={}, cwd="/", capture_output=True, text=True, check=False)
        assert (revived.returncode, revived.stderr) == (0, "")
        assert revived.stdout.split(" ", 1)[0] == said
        assert standing(cli)["state"] == "running"
    finish(tmp_path, cli)


def test_a_tmux_session_in_which_a_person_works_gets_a_window(
    tmp_path: Path, cli: Cli, tmux: Callable[..., str]
) -> None:
    """It stays when the loop ends, so that the next loop finds it there."""
    assert cli("daemon", "start", "sweep.yaml", "--local").returncode == 0
    run(cli)
    name = str(standing(cli)["tmux"])
    tmux("new-window", "-d", "-t", f"={name}:")
    assert cli("daemon", "stop", "outputs").returncode == 0
    until(lambda: len(tmux("list-windows", "-t", f"={name}").splitlines()) == 1, "the loop's window is gone")
    assert cli("daemon", "start", "outputs").returncode == 0
    assert len(tmux("list-windows", "-t", f"={name}").splitlines()) == 2
    assert standing(cli)["tmux"] == name
    finish(tmp_path, cli)


def test_attach_brings_the_session_to_a_terminal(tmp_path: Path, cli: Cli, tmux: Callable[..., str]) -> None:
    """It becomes tmux, and detaching ends it; the loop goes on."""
    assert cli("daemon", "start", "sweep.yaml", "--local").returncode == 0
    run(cli)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def clients() -> list[str]:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 65536)  # What is drawn must go somewhere.
        return tmux("list-clients", "-F", "#{session_name}").split()

    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    environment = {**cli.environment, "TERM": "xterm"}
    argv = [*cli.program, "daemon", "attach", "outputs"]
    process = subprocess.Popen(argv, cwd=tmp_path, env=environment, **terminal)  # type: ignore[call-overload]
    try:
        name = standing(cli)["tmux"]
        until(lambda: clients() == [name], "it is attached")
        tmux("detach-client", "-s", f"={name}")
        until(lambda: not clients() and process.poll() is not None, "it is detached")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    assert standing(cli)["state"] == "running"
    finish(tmp_path, cli)


def test_without_tmux_it_runs_behind_the_terminal_and_attach_follows_its_log(
    tmp_path: Path, cli: Cli, tmux: Callable[..., str]
) -> None:
    """The same commands, the same words."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    # The one on PATH may be a script that needs more programs.
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    cli.variables["PATH"] = str(programs)
    done = cli("daemon", "start", "sweep.yaml", "--local")
    assert done.returncode == 0 and "tmux session" not in done.stdout, done.stderr
    run(cli)
    assert (standing(cli)["state"], standing(cli)["tmux"]) == ("running", None)
    log = Path(str(standing(cli)["log"]))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    follower = cli.start("daemon", "attach", "outputs")
    finish(tmp_path, cli)
    said, _ = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0
    assert "left.alone_n1: attempt 1 runs" in said and "left.alone_n2: succeeded" in said


def test_stopping_what_nobody_leads_starts_nothing(tmp_path: Path, cli: Cli) -> None:
    """A job that waits is not submitted by the turn that takes the word in."""
    assert cli("daemon", "start", "sweep.yaml", "--local", "-o", "scheduler.max_jobs=1").returncode == 0
    until(lambda: ("running", 1) in cli.states().values(), "one runs, one waits")
    os.kill(int(str(standing(cli)["pid"])), signal.SIGKILL)
    until(lambda: standing(cli)["state"] == "down", "it is dead")
    (tmp_path / "gate").touch()
    until(lambda: list(tmp_path.glob("outputs/.oellm-autoexp/attempts/*/1/exit.*")), "the first has ended")
    assert cli("daemon", "stop", "outputs").returncode == 0
    assert standing(cli)["state"] == "stopped"
    assert len(list(tmp_path.glob("outputs/*/started"))) == 1
    assert cli("daemon", "start", "outputs").returncode == 0
    finish(tmp_path, cli)


# ---------------------------------------------------------------- another login node


def elsewhere(paths: SessionPaths) -> None:
    """Have the last leader be one of another host."""
    (*_, head) = segments.heads(paths)
    leader = replace(head.leader, host="login7", pid=77)
    lines = head.path.read_bytes().split(b"\n", 1)
    header = segments.line_of(head.epoch, 0, leader.started_at, "header", json.dumps(asdict(leader)))
    head.path.write_bytes(header + lines[1])
    beat = json.loads(paths.heartbeat.read_bytes())
    paths.heartbeat.write_text(json.dumps({**beat, "host": "login7", "pid": 77}))


@pytest.fixture
def away(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionPaths]:
    """A session whose leader is on another host; a sign of life is waited for briefly."""
    assert cli("daemon", "start", "sweep.yaml", "--local").returncode == 0
    run(cli)
    os.kill(int(str(standing(cli)["pid"])), signal.SIGKILL)
    until(lambda: standing(cli)["state"] == "down", "it is dead")
    paths = SessionPaths(tmp_path / "outputs" / ".oellm-autoexp")
    elsewhere(paths)
    monkeypatch.setattr(journal, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(journal, "_LOOK_S", 0.1)
    yield paths
    (tmp_path / "gate").touch()


def test_a_leader_on_another_host_is_named(
    away: SessionPaths, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the age of its heartbeat, and what to do where that is old. While it lives no other is started."""
    beat = json.loads(away.heartbeat.read_bytes())
    away.heartbeat.write_text(json.dumps({**beat, "at": beat["at"] - 3600}))
    shown = standing(cli)
    assert (shown["state"], shown["host"], shown["pid"], shown["tmux"]) == ("silent", "login7", 77, None)
    assert 3600 <= float(str(shown["heartbeat_age_s"])) < 3700
    told = cli.within("daemon", "status", "outputs")
    assert told.returncode == 1
    assert "Process 77 on login7 leads for" in told.stdout and "01:00:0" in told.stdout
    assert "daemon start" in told.stdout
    away.heartbeat.write_text(json.dumps({**beat, "at": beat["at"] + 3600}))
    told = cli.within("daemon", "status", "outputs")
    assert told.returncode == 0 and "login7" in told.stdout, "a clock of another host may be ahead"
    # One that shows signs of life is not led beside; cron is not told.
    monkeypatch.setattr(journal, "DEAD_AFTER_S", 60.0)
    signs = iter(range(10**6))
    monkeypatch.setattr(journal, "_signs_of_life", lambda _paths: (str(next(signs)).encode(), []))
    refused = cli.within("daemon", "start", "outputs")
    assert refused.returncode == 3 and "host login7, pid 77" in refused.stderr
    quiet = cli.within("daemon", "start", "outputs", "--revive")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_dead_leader_on_another_host_is_taken_over_from(
    away: SessionPaths, tmp_path: Path, cli: Cli
) -> None:
    """It says for how long it waits and for whom."""
    started = cli.within("daemon", "start", "outputs")
    assert started.returncode == 0, started.stderr
    assert "login7 (pid 77)" in started.stderr and "sign of life" in started.stderr
    assert standing(cli)["state"] == "running"
    finish(tmp_path, cli)


def test_a_command_is_carried_out_although_a_leader_on_another_host_is_dead(
    away: SessionPaths, cli: Cli
) -> None:
    """It waits for an answer no longer than for a sign of life."""
    done = cli.within("cancel", "outputs", "--yes")
    assert done.returncode == 0 and "cancelling" in done.stdout, done.stderr
