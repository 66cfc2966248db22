"""Processes of this machine as jobs: killed guards, reboots, other hosts, full disks, reused pids."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import commands
import pytest
from commands import until

from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected
from oellm_autoexp.rendering import guard, guard_files
from oellm_autoexp.schedulers import local
from oellm_autoexp.schedulers.local import LocalScheduler, LocalSchedulerConfig
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import process_start

T = TypeVar("T")
DEADLINE_S = 20.0
HOLD = "echo holding; exec sleep 300"


class House:
    """A local scheduler with a directory for everything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scheduler = self.make()

    def make(self, effects: Effects | None = None, **config: Any) -> LocalScheduler:
        made = LocalSchedulerConfig(**{"kill_grace_seconds": 5.0, **config})
        return LocalScheduler(made, effects=effects or Effects(), state_dir=self.root / "state")

    def task(self, command: str, name: str = "job", **changes: Any) -> Task:
        script = self.root / f"{name}.sh"
        request = ScriptRequest(
            name=name, argv=["bash", "-c", command], environment={}, guard_path=guard.__file__
        )
        script.write_text(self.scheduler.render(request))
        places = {
            "script_path": script,
            "log_path": self.root / f"{name}.log",
            "attempt_dir": self.root / name,
        }
        given = {key: str(value) for key, value in places.items()} | {"name": name} | changes
        return Task(**given)

    def submit(self, command: str, name: str = "job", **changes: Any) -> SchedulerRef:
        (ref,) = self.scheduler.submit(Submission(token=name, tasks=[self.task(command, name, **changes)]))
        return ref

    def log(self, name: str = "job") -> str:
        path = self.root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def fact(self, ref: SchedulerRef) -> SchedulerFact:
        return self.scheduler.poll([ref])[ref]

    def ended(self, ref: SchedulerRef) -> SchedulerFact:
        until(lambda: self.fact(ref).state.ended, f"{ref.id} has ended")
        return self.fact(ref)

    def holding(self, ref: SchedulerRef) -> guard_files.Start:
        """Wait until the command runs; its guard and process group."""
        until(lambda: "holding" in self.log(ref.token), "the command runs")
        start = guard_files.read_start(self.root / ref.token)
        assert start is not None
        return start

    def forge(self, ref: SchedulerRef, **changes: Any) -> LocalScheduler:
        """A new daemon that finds another record of the process."""
        path = self.root / "state" / f"{ref.token}.json"
        body = json.loads(path.read_bytes())
        body[str(ref.task)].update(changes)
        path.write_text(json.dumps(body))
        return self.make()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    mark = str(tmp_path).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


# ---------------------------------------------------------------- how it ended


def test_a_time_limit_is_told_from_a_failure(house: House) -> None:
    """The guard keeps the limit; the state is TIMEOUT whatever the command made of it."""
    assert house.ended(house.submit("sleep 60", time_limit_s=1)).state is SchedulerState.TIMEOUT


def test_a_killed_guard_is_gone_when_nothing_of_it_lives(house: House) -> None:
    """No exit record and nobody who knows: gone. What it left behind is ended first, wherever it went."""
    deaf = "(trap '' TERM; setsid sleep 300 & echo $! > pid; env -i sleep 300 & echo $! >> pid)"
    ref = house.submit(f"cd {house.root}; {deaf}; {HOLD}")
    start = house.holding(ref)
    os.kill(start.pid, signal.SIGKILL)
    until(lambda: process_start(start.pid) is None, "the guard is dead")
    left = [int(pid) for pid in (house.root / "pid").read_text().split()]
    assert len(left) == 2 and all(process_start(pid) for pid in left)
    fact = house.fact(ref)
    assert fact.state is SchedulerState.COMPLETING and "guard was killed" in fact.reason
    assert house.ended(ref).state is SchedulerState.GONE
    assert not any(process_start(pid) for pid in left)
    assert house.make().find([ref.token]) == {ref.token: [ref]}


def test_an_attempt_of_another_session_is_left_alone(house: House, tmp_path: Path) -> None:
    """Sessions may use the same token: what a killed guard leaves is told from a namesake's processes."""
    (tmp_path / "other").mkdir()
    other = House(tmp_path / "other")
    ref, namesake = house.submit(HOLD), other.submit(HOLD)
    assert ref.id == namesake.id
    os.kill(house.holding(ref).pid, signal.SIGKILL)
    other.holding(namesake)
    assert house.ended(ref).state is SchedulerState.GONE
    assert other.fact(namesake).state is SchedulerState.RUNNING
    other.scheduler.cancel([namesake])
    assert other.ended(namesake).exit_code == 143


def test_a_reboot_is_a_node_failure(house: House) -> None:
    """Another boot id: the process is dead, and nobody wrote how. What never ran may start again."""
    ref = house.submit(HOLD)
    house.holding(ref)
    rebooted = house.forge(ref, boot_id="before")
    fact = rebooted.poll([ref])[ref]
    assert fact.state is SchedulerState.NODE_FAIL and house.scheduler.cluster in fact.reason
    assert rebooted.find([ref.token]) == {ref.token: [ref]}
    (house.root / ref.token / "claim.0.json").unlink()
    assert rebooted.find([ref.token]) == {}
    house.scheduler.cancel([ref])


def test_an_attempt_that_cannot_be_claimed_fails_with_its_status(house: House) -> None:
    """78 where the directory cannot be made, 79 where another copy has it; neither counts as started."""
    (house.root / "file").touch()
    first = house.submit("echo ran", attempt_dir=str(house.root / "file" / "x"))
    house.ended(house.submit("true", "owner"))
    second = house.submit("echo ran", "rival", attempt_dir=str(house.root / "owner"))
    assert (house.ended(first).exit_code, house.ended(second).exit_code) == (78, 79)
    assert "ran" not in house.log() + house.log("rival")
    assert house.make().find(["job", "owner", "rival"]).keys() == {"owner"}


def test_without_an_exit_record_the_parent_still_knows(house: House) -> None:
    """Where the record cannot be written, the daemon that started the process was told its status."""
    place = house.root / "job"
    ref = house.submit(f"rm -r {place}; touch {place}; exit 5", environment={"AUTOEXP_EXIT_RETRY_S": "0"})
    fact = house.ended(ref)
    assert (fact.state, fact.exit_code) == (SchedulerState.FAILED, 5)
    assert "cannot write" in house.log()
    assert house.make().poll([ref])[ref].state is SchedulerState.GONE


# ---------------------------------------------------------------- other machines


def test_of_another_host_nothing_is_guessed(house: House) -> None:
    """Its processes cannot be seen from here: every question says on which host to ask."""
    ref = house.submit(HOLD)
    house.holding(ref)
    there = house.forge(ref, host="node7", boot_id="theirs")
    for ask in (lambda: there.poll([ref]), lambda: there.cancel([ref])):
        with pytest.raises(SchedulerUnavailable, match="node7"):
            ask()
    # That it was started is known from the claim; without one, only there.
    assert [found.cluster for found in there.find([ref.token])[ref.token]] == ["node7"]
    (house.root / ref.token / "claim.0.json").unlink()
    with pytest.raises(SchedulerUnavailable, match="node7"):
        there.find([ref.token])
    foreign = SchedulerRef(id="x.0", cluster="node8", token="x")
    for ask in (lambda: there.poll([foreign]), lambda: there.cancel([foreign])):
        with pytest.raises(SchedulerUnavailable, match="node8"):
            ask()
    house.scheduler.cancel([ref])


def test_an_exit_record_is_an_answer_from_any_host(house: House) -> None:
    """How it ended is on the shared disk."""
    ref = house.submit("exit 4")
    house.ended(ref)
    fact = house.forge(ref, host="node7", boot_id="theirs").poll([ref])[ref]
    assert (fact.state, fact.exit_code) == (SchedulerState.FAILED, 4)


def test_a_host_that_was_renamed_is_still_this_one(house: House) -> None:
    """The boot id says that it is the same machine."""
    ref = house.submit(HOLD)
    house.holding(ref)
    renamed = house.forge(ref, host="old-name")
    assert renamed.poll([ref])[ref].state is SchedulerState.RUNNING
    renamed.cancel([ref])
    house.ended(ref)


def test_a_pid_that_was_used_again_is_not_the_job(house: House) -> None:
    """Another process with the pid of a dead guard is neither alive for us nor signalled by us."""
    ref = house.submit(HOLD)
    start = house.holding(ref)
    os.kill(start.pid, signal.SIGKILL)
    until(lambda: house.fact(ref).state is SchedulerState.GONE, "it is gone")
    with subprocess.Popen(["sleep", "300"]) as stranger:
        later = house.forge(ref, pid=stranger.pid)
        assert later.poll([ref])[ref].state is SchedulerState.GONE
        later.cancel([ref])
        assert stranger.poll() is None
        stranger.kill()


# ---------------------------------------------------------------- cancel


def test_a_guard_that_does_not_react_is_killed_by_the_second_cancel(house: House) -> None:
    """SIGTERM first; asked again after the grace, SIGKILL to the guard and all of its command."""
    house.scheduler = house.make(kill_grace_seconds=0.05)
    ref = house.submit(f"setsid sleep 300 & {HOLD}")
    start = house.holding(ref)
    os.kill(start.pid, signal.SIGSTOP)
    house.scheduler.cancel([ref])
    assert house.fact(ref).state is SchedulerState.RUNNING

    def again() -> bool:
        house.scheduler.cancel([ref])
        return house.fact(ref).state.ended

    until(again, "it has ended")
    assert process_start(start.pgid) is None


def test_a_time_limit_cannot_be_changed(house: House) -> None:
    """The refusal says when the change applies."""
    with pytest.raises(SubmitRejected, match="next attempt"):
        house.scheduler.update([house.submit("true")], {"time_limit_s": 9})


# ---------------------------------------------------------------- trouble while submitting


class Failing(Effects):
    """Effects of which one fails; `also` runs first."""

    def __init__(self, name: str, error: BaseException, also: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._name, self._error, self._also = name, error, also

    def step(self, name: str, target: str) -> None:
        if name == self._name:
            self._also()
            raise self._error


@pytest.mark.parametrize("step", ["spawn:before", "write:before", "write:rename", "go:before"])
def test_a_submission_that_fails_halfway_runs_nothing(house: House, step: str) -> None:
    """A full disk or too many processes: deferred, all that waited ends, and another try runs each once."""
    ran = house.root / "ran"
    tasks = [house.task(f"echo {name} >> {ran}", name) for name in ("a", "b", "c")]
    submission = Submission(token="tok", tasks=tasks)
    failing = house.make(Failing(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(SubmitDeferred, match="No space left"):
        failing.submit(submission)
    assert house.make().find(["tok"]) == failing.find(["tok"]) == {}
    until(lambda: not failing._children or failing.find([]), "the waiting processes have ended")
    refs = house.scheduler.submit(submission)
    assert [house.ended(ref).state for ref in refs] == [SchedulerState.COMPLETED] * 3
    assert sorted(ran.read_text().split()) == ["a", "b", "c"]


def test_a_log_directory_that_cannot_be_made_defers(house: House) -> None:
    """The error names the place, and nothing is left."""
    (house.root / "file").touch()
    with pytest.raises(SubmitDeferred, match="file"):
        house.submit("true", log_path=str(house.root / "file" / "x" / "log"))


def test_a_token_that_is_submitted_twice_starts_once(house: House) -> None:
    """The second call answers with the same references."""
    submission = Submission(token="job", tasks=[house.task(HOLD)])
    refs = house.scheduler.submit(submission)
    assert house.scheduler.submit(submission) == refs == house.make().submit(submission)
    house.holding(refs[0])
    assert house.scheduler.submit(submission) == refs == house.make().submit(submission)
    house.scheduler.cancel(refs)
    house.ended(refs[0])
    assert house.log() == "holding\n"


def test_a_process_that_neither_goes_on_nor_ends_is_no_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process that has not got its word: unknown, until it ends; then it is proven not started."""
    monkeypatch.setattr(local, "_DECIDE_S", 0.1)
    path = house.root / "state" / "tok.json"

    def stop() -> None:
        os.kill(json.loads(path.read_bytes())["0"]["pid"], signal.SIGSTOP)

    submission = Submission(token="tok", tasks=[house.task("echo ran")])
    with pytest.raises(SubmitDeferred):
        house.make(Failing("go:before", OSError("died"), stop)).submit(submission)
    with pytest.raises(SchedulerUnavailable, match="neither goes on nor ends"):
        house.make().find(["tok"])
    os.kill(json.loads(path.read_bytes())["0"]["pid"], signal.SIGCONT)
    monkeypatch.setattr(local, "_DECIDE_S", DEADLINE_S)
    assert house.make().find(["tok"]) == {}
    assert house.log() == ""


def test_state_that_cannot_be_read_is_no_answer(house: House) -> None:
    """A damaged record, a directory that cannot be read: unknown, with the path."""
    ref = house.submit("true")
    house.ended(ref)
    record = house.root / "state" / "job.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:20])
    with pytest.raises(SchedulerUnavailable, match=r"job\.json"):
        house.make().find(["job"])
    record.write_bytes(whole)
    (house.root / "job").rename(house.root / "away")
    (house.root / "job").symlink_to("job")
    for ask in (lambda: house.make().poll([ref]), lambda: house.make().find(["job"])):
        with pytest.raises(SchedulerUnavailable, match="symbolic links"):
            ask()


# ---------------------------------------------------------------- a good neighbour


def test_no_zombies_and_no_open_files_are_left(house: House) -> None:
    """After many submissions the daemon has as many files open as before, and no child that ended."""
    files = len(os.listdir("/proc/self/fd"))
    refs = [house.submit("true", f"job{number}") for number in range(20)]
    until(lambda: all(f.state.ended for f in house.scheduler.poll(refs).values()), "all have ended")
    assert len(os.listdir("/proc/self/fd")) == files
    assert house.scheduler._children == set()


def test_an_array_needs_few_open_files(house: House) -> None:
    """More tasks than files may be open start together, and each runs once."""
    count = 60
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_local_scheduler import House, Submission
house = House(Path(sys.argv[1]))
command = f"echo $AUTOEXP_SCHEDULER_ID >> {{house.root}}/ran"
tasks = [house.task(command, f"t{{number}}") for number in range({count})]
house.scheduler.submit(Submission(token="tok", tasks=tasks))
"""
    limited = f'ulimit -n 40; exec {sys.executable} -c "$@"'
    modules = [Path(__file__).parent, Path(commands.__file__).parent]
    argv = ["bash", "-c", limited, "bash", program, *map(str, [house.root, *modules])]
    subprocess.run(argv, check=True, timeout=60)
    refs = house.scheduler.find(["tok"])["tok"]
    until(lambda: all(f.state.ended for f in house.scheduler.poll(refs).values()), "all have ended")
    assert sorted((house.root / "ran").read_text().split()) == sorted(ref.id for ref in refs)
    assert len(refs) == count


def test_variables_of_another_job_do_not_reach_this_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon inside a Slurm job or inside an attempt does not hand on whose job it is."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("AUTOEXP_DEADLINE", "7")
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("SLURM_CONF", "/here")
    monkeypatch.setenv("MINE", "kept")
    house.ended(house.submit('echo "$SLURM_JOB_ID,$AUTOEXP_DEADLINE,$PMI_RANK,$SLURM_CONF,$MINE"'))
    assert house.log() == ",,,/here,kept\n"


def test_impossible_settings_are_refused() -> None:
    """The message names the setting."""
    with pytest.raises(ValueError, match="max_jobs"):
        LocalSchedulerConfig(max_jobs=0)
    with pytest.raises(ValueError, match="kill_grace_seconds"):
        LocalSchedulerConfig(kill_grace_seconds=-1)
