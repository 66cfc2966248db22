"""Disks that are full, gone or damaged: one clear error, the state as it was, and on it goes when mended."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, Done, Running, until
from rights import ordinary
from world import Script, Stage, World

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.services.session import replay
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.segments import segment

#: Says that it has begun, waits until it may go on.
JOB = """
echo "$AUTOEXP_JOB_NAME $AUTOEXP_ATTEMPT" >> ran
until [ -e go ]; do sleep 0.02; done
"""


class Place:
    """A directory with a config, and the command line in it."""

    def __init__(self, root: Path, home: Path | None = None) -> None:
        self.root = root
        self.paths = SessionPaths(root / "outputs" / ".oellm-autoexp")
        self.cli = Cli(root, home=home)

    def config(self, command: str = JOB, points: int = 2, **changes: Any) -> str:
        path = self.root / "sweep.yaml"
        script = f"cd {self.root}; {command} # ${{i}}"
        config = {
            "project": {"name": "disk"},
            "backend": {"class_name": "CommandBackend", "command": ["bash", "-c", script]},
            "sweep": {"axes": {"i": list(range(points))}},
            "restart_policies": {
                "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0}
            },
            "scheduler": {"class_name": "local", "max_jobs": 4},
            **changes,
        }
        path.write_text(json.dumps(config))
        return str(path)

    def run(self, *words: str, limit: int | None = None) -> Done:
        """A command to its end, held to permissions; with `limit` no file can grow beyond so many bytes."""
        done = self.cli(*words, preexec_fn=ordinary if limit is None else lambda: _limit(0, limit))
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def refused(self, *words: str, says: str, limit: int | None = None) -> str:
        """A command that must fail with exit code 3 and one message."""
        done = self.run(*words, limit=limit)
        assert done.returncode == 3, done.stdout + done.stderr
        assert says in done.stderr
        assert done.stderr.count("error:") == 1
        return done.stderr

    @contextmanager
    def leader(self, *words: str) -> Iterator[Running]:
        """A command that leads the session meanwhile."""
        with (
            (self.root / "leader.out").open("ab") as output,
            (self.root / "leader.err").open("ab") as errors,
            self.cli.leader(*words, stdout=output, stderr=errors) as leader,
        ):
            try:
                yield leader
            finally:
                self.go()

    @property
    def errors(self) -> str:
        return (self.root / "leader.err").read_text()

    @property
    def ran(self) -> list[str]:
        path = self.root / "ran"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def go(self) -> None:
        (self.root / "go").touch()

    def states(self) -> dict[str, tuple[str, int]]:
        jobs = replay(self.paths).jobs
        return {name: (job.state.value, len(job.attempts)) for name, job in jobs.items()}

    def fingerprint(self) -> dict[str, str]:
        """Every file of the state, by its content."""
        files = (path for path in self.paths.state_dir.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _limit(pid: int, size: int) -> None:
    """No file of a process may grow beyond `size` bytes: as on a full disk, writing more fails."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


ONCE = ["disk_i0 1", "disk_i1 1"]
DONE = {"disk_i0": ("succeeded", 1), "disk_i1": ("succeeded", 1)}

# ---------------------------------------------------------------- full


@pytest.mark.parametrize("room", [0, 1500])
def test_a_disk_that_is_full_at_the_start_refuses_and_then_works(place: Place, room: int) -> None:
    """Whichever file it is that has no room: nothing is started, and the same command works later."""
    config = place.config()
    place.go()
    place.refused("submit", config, limit=room, says="File too large")
    assert place.ran == []
    assert place.run("submit", config).returncode == 0
    assert place.ran == ONCE
    assert place.states() == DONE


def test_a_disk_that_fills_up_stops_the_loop_and_no_job(place: Place) -> None:
    """It says so once, starts nothing, loses nothing; when there is room it goes on by itself."""
    config = place.config(points=3, scheduler={"class_name": "local", "max_jobs": 2})
    with place.leader("submit", config) as leader:
        until(lambda: len(place.ran) == 2 and "running" in str(place.states()), "two jobs run")
        journal = segment(place.paths, 1)
        _limit(leader.pid, journal.stat().st_size)
        place.go()
        until(lambda: "the journal cannot be written: File too large" in place.errors, "the leader says so")
        assert str(journal) in place.errors
        assert "nothing is lost" in place.errors
        before = place.states()
        until(lambda: _ended(place, "disk_i0") and _ended(place, "disk_i1"), "the jobs have ended")
        assert place.states() == before
        assert place.ran == ONCE
        _limit(leader.pid, resource.RLIM_INFINITY)
        assert leader.wait(timeout=60) == 0, place.errors
        assert place.errors.count("the journal cannot be written") == 1
    assert place.ran == [*ONCE, "disk_i2 1"]
    assert set(place.states().values()) == {("succeeded", 1)}


def _ended(place: Place, job: str) -> bool:
    return (place.paths.attempt(job, 1) / "exit.0.json").exists()


class Full(Effects):
    """A disk with room for so many bytes of an append; None: enough."""

    room: int | None = None

    def append(self, path: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
        if self.room is not None:
            super().append(path, data[: self.room], private=private, durable=durable)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().append(path, data, private=private, durable=durable)


def noted(tmp_path: Path, script: Script, path: Path) -> Stage:
    rules = {
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "log_signals": {"saved": {"pattern": r"saved (?P<n>\w+)", "action": "note"}},
        },
        "actions": {"note": {"class_name": "AppendAction", "path": str(path), "text": "saved {n}"}},
    }
    return Stage(tmp_path, World(lambda _name, _attempt: script), rules, ("a",))


@pytest.mark.parametrize("room", [0, 3, 7])
def test_texts_wait_for_room_and_keep_their_order(tmp_path: Path, room: int) -> None:
    """What was cut short is completed; nothing is given up, repeated, or overtaken."""
    stage = noted(tmp_path, ((1.0, "saved one"), (2.0, "saved two"), (3.0, 0)), tmp_path / "notes")
    disk = Full()
    disk.room = room
    stage.world.alarms.append((1021.0, lambda: setattr(disk, "room", None)))
    stage.run(stage.submit(disk))
    assert (tmp_path / "notes").read_text() == "saved one\nsaved two\n"
    assert [event.ok for event in stage.events if isinstance(event, ev.ActionEnded)] == [True, True]
    assert len([event for event in stage.events if isinstance(event, ev.ActionSpawned)]) < 10
    (said,) = set(stage.warnings)
    assert said == f"the action note of a waits: {tmp_path}/notes: No space left on device"


def test_a_device_that_is_always_full_is_one(tmp_path: Path) -> None:
    """/dev/full says what a full disk says; when the path leads elsewhere the text gets there."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    notes = tmp_path / "notes"
    notes.symlink_to("/dev/full")

    def mend() -> None:
        notes.unlink()

    stage = noted(tmp_path, ((1.0, "saved one"), (3.0, 0)), notes)
    stage.world.alarms.append((1021.0, mend))
    stage.run(stage.submit())
    assert notes.read_text() == "saved one\n"


def test_a_text_that_can_never_be_written_is_given_up(tmp_path: Path) -> None:
    """A directory in its place is a mistake, not a full disk."""
    (tmp_path / "notes").mkdir()
    stage = noted(tmp_path, ((1.0, "saved one"), (3.0, 0)), tmp_path / "notes")
    stage.run(stage.submit())
    ended = [event for event in stage.events if isinstance(event, ev.ActionEnded)]
    assert [(event.ok, event.reason) for event in ended] == [(False, f"{tmp_path}/notes: Is a directory")]


# ---------------------------------------------------------------- not writable, gone


def test_a_file_where_a_directory_should_be_is_named(place: Place) -> None:
    """The output directory cannot be made; nothing was started; without the file it works."""
    config = place.config()
    place.go()
    (place.root / "outputs").write_text("in the way")
    assert str(place.root / "outputs") in place.refused("submit", config, says="Not a directory")
    assert place.ran == []
    (place.root / "outputs").unlink()
    assert place.run("submit", config).returncode == 0
    assert place.states() == DONE


@pytest.mark.parametrize("name", ["monitor", "monitor/journal", "monitor/inbox", "scheduler", "attempts"])
def test_a_file_within_the_state_directory_is_named(place: Place, name: str) -> None:
    """Whichever directory of the state it stands for."""
    config = place.config()
    place.go()
    blocked = place.paths.state_dir / name
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    if name in ("scheduler", "attempts"):
        # The session can be led: it says what is wrong, and that it tries again.
        with place.leader("submit", config) as leader:
            says = "Not a directory" if name == "scheduler" else "could not be claimed in the state directory"
            out = place.root / "leader.out"
            until(lambda: says in place.errors + out.read_text(), "it says so")
            until(lambda: {state for state, _ in place.states().values()} == {"waiting"}, "both wait")
            assert leader.poll() is None
    else:
        assert str(blocked) in place.refused("submit", config, says="irectory")
        blocked.unlink()
        assert place.run("submit", config).returncode == 0
    assert place.ran == ([] if name in ("scheduler", "attempts") else ONCE)


def test_an_attempt_that_cannot_be_claimed_costs_nothing_and_is_tried_again(tmp_path: Path) -> None:
    """The command never began, however often: the budget of crashes is for crashes."""
    unclaimed: Script = ((0.1, 78),)
    scripts = dict.fromkeys(range(1, 6), unclaimed)
    rules = {"restart_policies": {"crash": {"class_name": "NoRestartPolicy"}}}
    stage = Stage(tmp_path, World(lambda _name, attempt: scripts.get(attempt, ((1.0, 0),))), rules, ("a",))
    stage.run(stage.submit(), ticks=5000)
    job = stage.replayed().jobs["a"]
    assert (job.state.value, len(job.attempts), dict(job.spent)) == ("succeeded", 6, {})
    assert job.attempts[0].reason.startswith("exit 78: the attempt could not be claimed")
    starts = [process.started_at for process in stage.world.processes]
    gaps = [round(later - earlier) for earlier, later in pairwise(starts)]
    assert gaps == [31, 61, 121, 241, 481] or gaps == [30, 60, 120, 240, 480]


def test_a_command_that_exits_78_by_itself_has_crashed(tmp_path: Path) -> None:
    """Its exit record says that it was the command."""
    config = {"class_name": "NoRestartPolicy"}
    stage = Stage(
        tmp_path, World(lambda _name, _attempt: ()), {"restart_policies": {"crash": config}}, ("a",)
    )
    stage.world.alarms.append((1002.0, lambda: _exit_78(stage)))
    stage.run(stage.submit())
    job = stage.replayed().jobs["a"]
    assert (job.state.value, job.reason) == ("failed", "exit 78; no restart after crash")


def _exit_78(stage: Stage) -> None:
    (process,) = stage.world.processes
    stage.world.end(process, 78)
    (Path(process.task.attempt_dir) / "exit.0.json").write_text('{"exit_code": 78}')


def test_a_read_only_directory_is_named(place: Place) -> None:
    """And nothing is started."""
    config = place.config()
    place.go()
    (place.root / "outputs").mkdir(mode=0o500)
    place.refused("submit", config, says="Permission denied")
    (place.root / "outputs").chmod(0o700)
    assert place.run("submit", config).returncode == 0
    assert place.states() == DONE


def test_logs_that_are_deleted_meanwhile_hurt_nobody(place: Place) -> None:
    """The attempt goes on and is judged by how it ended; the next one has a log again."""
    command = f'{JOB}\necho finished; test "$AUTOEXP_ATTEMPT" = 2'
    with place.leader("submit", place.config(command)) as leader:
        until(lambda: len(place.ran) == 2 and "running" in str(place.states()), "the jobs run")
        shutil.rmtree(place.root / "outputs" / "logs")
        place.go()
        assert leader.wait(timeout=60) == 0, place.errors
    assert place.states() == {"disk_i0": ("succeeded", 2), "disk_i1": ("succeeded", 2)}
    assert place.cli.within("logs", "outputs", "disk_i0").stdout.strip().endswith("finished")
    missing = place.cli.within("logs", "outputs", "disk_i0", "--attempt", "1")
    assert missing.returncode == 2
    assert "no log" in missing.stderr


def test_a_state_directory_that_is_moved_away_stops_the_loop_until_it_is_back(place: Place) -> None:
    """No record can be kept, so nothing follows; the jobs go on."""
    with place.leader("submit", place.config()) as leader:
        until(lambda: len(place.ran) == 2 and "running" in str(place.states()), "the jobs run")
        # The directory itself stays: jobs and heartbeats need a place.
        journal, away = place.paths.journal, place.root / "away"
        journal.rename(away)
        until(lambda: "the journal was removed" in place.errors, "the leader says so")
        place.go()
        away.rename(journal)
        assert leader.wait(timeout=60) == 0, place.errors
    assert place.ran == ONCE
    assert place.states() == DONE


# ---------------------------------------------------------------- damaged


def finished(place: Place) -> Path:
    """A session that has ended, and its journal."""
    place.go()
    assert place.run("submit", place.config()).returncode == 0
    return segment(place.paths, 1)


COMMANDS = [
    "status outputs",
    "show outputs",
    "logs outputs disk_i0",
    "monitor outputs",
    "retry outputs disk_i0",
    "cancel outputs --yes",
    "submit sweep.yaml",
    "plan sweep.yaml",
]


def test_a_damaged_record_is_refused_by_every_command(place: Place) -> None:
    """Exit code 3 with file and byte; nothing is changed; with the old bytes it works again."""
    journal = finished(place)
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    offset = len(b"".join(lines[:4]))
    journal.write_bytes(whole[: offset + 30] + b"#" + whole[offset + 31 :])
    before = place.fingerprint()
    for command in COMMANDS:
        refused = place.cli.within(*command.split())
        assert refused.returncode == 3, refused.stdout
        assert f"{journal}, byte {offset}" in refused.stderr and "backup" in refused.stderr
        assert place.fingerprint() == before, command
    journal.write_bytes(whole)
    again = place.run("submit", "sweep.yaml")
    assert (again.returncode, "2 already done" in again.stdout) == (0, True)
    assert place.states() == DONE
    assert place.ran == ONCE


def test_one_damaged_session_hides_no_other(place: Place, tmp_path: Path) -> None:
    """`sessions` lists it as what it is."""
    journal = finished(place)
    other = Place(tmp_path / "other", home=tmp_path / "home")
    other.root.mkdir()
    other.go()
    config = Path(other.config(points=1))
    config.write_text(config.read_text().replace('"name": "disk"', '"name": "whole"'))
    assert other.run("submit", str(config)).returncode == 0
    whole = journal.read_bytes()
    journal.write_bytes(whole[:700] + b"#" + whole[701:])
    done = place.cli.within("sessions")
    assert done.returncode == 0, done.stderr
    assert "whole  1 succeeded" in done.stdout
    assert "disk  " in done.stdout
    assert f"{journal}, byte " in done.stdout + done.stderr
    assert json.loads(place.cli.within("sessions", "--json").stdout)


@pytest.mark.parametrize("cut", [1, 60])
def test_a_torn_end_is_no_damage(place: Place, cut: int) -> None:
    """The daemon dies within a write: what it had not finished did not happen, and on it goes."""
    with place.leader("submit", place.config()) as leader:
        until(lambda: len(place.ran) == 2 and "running" in str(place.states()), "the jobs run")
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        journal = segment(place.paths, 1)
        journal.write_bytes(journal.read_bytes()[:-cut])
        assert len(place.states()) == 2
        place.go()
        done = place.run("monitor", "outputs")
        assert done.returncode == 0, done.stderr
    assert place.ran == ONCE
    assert place.states() == DONE
