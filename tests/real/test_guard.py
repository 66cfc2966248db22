"""The guard as jobs meet it: a process beside a script, under signals, limits, full disks and rivals."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import until
from rights import ordinary

from oellm_autoexp.core.model import ExitRecord
from oellm_autoexp.rendering import guard, guard_files
from oellm_autoexp.store.journal import process_start

DEADLINE_S = 20.0


class Guards:
    """Starts guards of one attempt; none is left when the test ends."""

    def __init__(self, root: Path) -> None:
        self.dir = root / "attempt"
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *argv: str, python: str = sys.executable, stdin: int | None = None, **variables: object
    ) -> subprocess.Popen[str]:
        return self.run([python, "-I", guard.__file__, *argv], stdin, **variables)

    def run(self, argv: list[str], stdin: int | None = None, **variables: object) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOEXP", "SLURM"))}
        env.pop("PYTHONUNBUFFERED", None)
        env.update(AUTOEXP_ATTEMPT_DIR=str(self.dir), AUTOEXP_KILL_GRACE_S="5")
        env.update({name: str(value) for name, value in variables.items()})
        process = subprocess.Popen(
            argv,
            preexec_fn=ordinary,
            env=env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def bash(self, script: str, **variables: object) -> subprocess.Popen[str]:
        return self.start("--", "bash", "-c", script, **variables)

    def ready(self, script: str, **variables: object) -> subprocess.Popen[str]:
        """A guard whose command has said `ready`."""
        process = self.bash(script, **variables)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @property
    def exit(self) -> ExitRecord | None:
        return guard_files.read_exit(self.dir)


@pytest.fixture
def guards(tmp_path: Path) -> Iterator[Guards]:
    made = Guards(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE_S)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def dead(pid: int) -> bool:
    return process_start(pid) is None


LOOP = "while :; do sleep 0.02; done"


# ---------------------------------------------------------------- how it ended


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)],
)
def test_it_exits_as_its_command_did_and_leaves_the_record(guards: Guards, script: str, code: int) -> None:
    """The status of the command, or 128 + signal, comes out of the guard and stands in the exit record."""
    before = time.time()
    process = guards.bash(script, AUTOEXP_SCHEDULER_ID="7_1", AUTOEXP_TOKEN="tok")
    assert end(process)[0] == code
    record, claim, start = guards.exit, guard_files.read_claim(guards.dir), guard_files.read_start(guards.dir)
    assert record is not None and claim is not None and start is not None
    assert (record.exit_code, record.cause, record.generation) == (code, "exit", 0)
    assert before <= record.started_at <= record.ended_at <= time.time()
    assert (claim.scheduler_id, claim.token, claim.restart_count) == ("7_1", "tok", 0)
    assert (start.pid, start.boot_id, start.nonce) == (process.pid, guard.boot_id(), claim.nonce)
    assert record.host == claim.host


@pytest.mark.parametrize(
    ("command", "code", "says"), [("no-such-program", 127, "not found"), ("/etc", 126, "cannot be executed")]
)
def test_a_command_that_cannot_be_run_is_named(guards: Guards, command: str, code: int, says: str) -> None:
    """Not found is 127 and not executable 126, each with one clear line."""
    status, _, err = end(guards.start("--", command))
    assert status == code
    assert err.count("\n") == 1 and command in err and says in err
    assert guards.exit is not None and guards.exit.exit_code == code


def test_the_command_sees_its_claim_and_its_deadline(guards: Guards) -> None:
    """Output is unbuffered, and the job can know its generation and when its time is over."""
    show = 'echo "$PYTHONUNBUFFERED $AUTOEXP_CLAIMED $AUTOEXP_GENERATION $AUTOEXP_DEADLINE"'
    _, out, _ = end(guards.bash(show, AUTOEXP_TIME_LIMIT_S=1000))
    unbuffered, claimed, generation, deadline = out.split()
    assert (unbuffered, claimed, generation) == ("1", "1", "0")
    assert 990 < float(deadline) - time.time() < 1010


def test_a_buffering_that_the_user_chose_is_kept(guards: Guards) -> None:
    """PYTHONUNBUFFERED is a default, not an order."""
    assert end(guards.bash('echo "$PYTHONUNBUFFERED"', PYTHONUNBUFFERED="2"))[1] == "2\n"


def test_the_command_starts_with_plain_signals(guards: Guards) -> None:
    """What Python ignores (SIGPIPE) and what the guard blocks is not inherited: `yes | head` works.

    Signals 32 and 33 belong to the C library's threads (signal(7)); a shell may start with them ignored.
    """
    status, out, err = end(guards.bash("yes | head -1; grep -E '^Sig(Blk|Ign)' /proc/self/status"))
    assert status == 0 and err == ""
    assert out.splitlines()[0] == "y"
    ours = (1 << 31) - 1
    assert [int(line.split()[1], 16) & ours for line in out.splitlines()[1:]] == [0, 0]


# ---------------------------------------------------------------- claims


def test_of_twenty_copies_exactly_one_runs(guards: Guards, tmp_path: Path) -> None:
    """Rivals for one attempt: one runs the command, all others exit 79 and say who has it."""
    ran = tmp_path / "ran"
    script = f"echo $AUTOEXP_SCHEDULER_ID >> {ran}; echo ready; {LOOP}"
    rivals = {number: guards.bash(script, AUTOEXP_SCHEDULER_ID=number) for number in range(20)}
    until(lambda: sum(rival.poll() is not None for rival in rivals.values()) == 19, "19 rivals gave up")
    (winner,) = [number for number, rival in rivals.items() if rival.poll() is None]
    rivals[winner].send_signal(signal.SIGTERM)
    for number, rival in rivals.items():
        status, _, err = end(rival)
        if number != winner:
            assert status == 79 and f"owned by {winner} on " in err
    assert ran.read_text() == f"{winner}\n"
    assert not [name for name in os.listdir(guards.dir) if name.startswith(".")]


@pytest.mark.parametrize(
    ("scheduler_id", "restarts", "runs"), [("7", 1, True), ("7", 0, False), ("8", 0, False), ("8", 5, False)]
)
def test_only_a_later_start_of_the_same_job_takes_over(
    guards: Guards, scheduler_id: str, restarts: int, runs: bool
) -> None:
    """A requeued job runs again as the next generation; a duplicate under any other id or count does not."""
    end(guards.bash("exit 4", SLURM_JOB_ID="7"))
    again = guards.bash("exit 5", SLURM_JOB_ID=scheduler_id, SLURM_RESTART_COUNT=restarts)
    assert end(again)[0] == (5 if runs else 79)
    record, claim = guards.exit, guard_files.read_claim(guards.dir)
    assert record is not None and claim is not None
    assert (record.exit_code, record.generation) == ((5, 1) if runs else (4, 0))
    assert (claim.scheduler_id, claim.restart_count) == ("7", restarts if runs else 0)


def test_a_copy_ends_when_a_later_attempt_has_been_claimed(guards: Guards, tmp_path: Path) -> None:
    """The scheduler has lost it, on a cut-off node, and the job was submitted again: the later one wins."""
    guards.dir = tmp_path / "job" / "2"
    process = guards.ready(f"echo ready; {LOOP}", AUTOEXP_HEARTBEAT_S=0.05)
    for earlier in ("1", "3.tmp"):
        (guards.dir.parent / earlier).mkdir()
        (guards.dir.parent / earlier / "claim.0.json").write_text("{}")
    later = guard_files.claim_file(guards.dir.parent / "11")
    until(lambda: (guards.dir / "heartbeat.0").exists(), "a heartbeat")
    assert process.poll() is None
    later.parent.mkdir()
    later.write_text("{}")
    code, _, err = end(process)
    assert (code, guards.exit and guards.exit.cause) == (79, "superseded"), err


def test_array_tasks_are_told_apart(guards: Guards) -> None:
    """The scheduler id of a task is the array's id and its index."""
    end(guards.bash("exit 0", SLURM_JOB_ID="12", SLURM_ARRAY_JOB_ID="10", SLURM_ARRAY_TASK_ID="2"))
    claim = guard_files.read_claim(guards.dir)
    assert claim is not None and claim.scheduler_id == "10_2"


def test_the_one_that_was_taken_over_ends(guards: Guards) -> None:
    """On a node that was cut off the first copy may live on: it ends when it sees its successor's claim."""
    first = guards.ready(f"echo ready; {LOOP}", SLURM_JOB_ID="7", AUTOEXP_HEARTBEAT_S=0.05)
    second = guards.ready(f"echo ready; {LOOP}", SLURM_JOB_ID="7", SLURM_RESTART_COUNT=1)
    status, _, err = end(first)
    assert status == 79 and "taken over" in err
    assert guards.exit is None and second.poll() is None


def test_a_claim_whose_answer_got_lost_is_still_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may link and, asked again after a lost answer, say that the name is taken."""
    real = os.link

    def link(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", target)

    monkeypatch.setattr(guard.os, "link", link)
    assert guard.claim(str(tmp_path), guard.identity({"AUTOEXP_SCHEDULER_ID": "7"})) == 0


def test_an_attempt_that_cannot_be_claimed_runs_nothing(guards: Guards, tmp_path: Path) -> None:
    """A path that cannot be made, a full disk, a damaged claim, no directory given: 78 and one line."""
    (tmp_path / "file").touch()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "claim.0.json").write_text('{"schedu')
    full = f"ulimit -f 0; exec {sys.executable} -I {guard.__file__} -- echo ran"
    cases = [
        guards.bash("echo ran", AUTOEXP_ATTEMPT_DIR=tmp_path / "file" / "attempt"),
        guards.bash("echo ran", AUTOEXP_ATTEMPT_DIR=torn),
        guards.bash("echo ran", AUTOEXP_ATTEMPT_DIR=""),
        guards.bash("echo ran", AUTOEXP_TIME_LIMIT_S="a day"),
        guards.bash("echo ran", AUTOEXP_TIME_LIMIT_S="9", AUTOEXP_SIGNAL="NOISE@9"),
        guards.run(["bash", "-c", full]),
    ]
    for case in cases:
        status, out, err = end(case)
        assert (status, out) == (78, ""), err
        assert err.startswith("autoexp guard: ") and err.count("\n") == 1


def test_a_directory_without_write_permission_runs_nothing(guards: Guards) -> None:
    """A state directory of somebody else: 78 and one line."""
    guards.dir.mkdir(mode=0o500)
    status, out, err = end(guards.bash("echo ran"))
    assert (status, out, err.count("\n")) == (78, "", 1) and "Permission denied" in err


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2", "INT", "HUP"])
def test_signals_reach_the_command(guards: Guards, name: str) -> None:
    """What is sent to the guard arrives at the command, and is the cause if the command ends then."""
    process = guards.ready(f"trap 'echo got; exit 7' {name}; echo ready; {LOOP}")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert end(process)[:2] == (7, "got\n")
    assert guards.exit is not None and guards.exit.cause == f"signal:{name}"


def test_a_command_that_ignores_its_end_is_killed_after_the_grace(guards: Guards) -> None:
    """SIGTERM, then SIGKILL when the grace is over."""
    process = guards.ready(f"trap '' TERM; echo ready; {LOOP}", AUTOEXP_KILL_GRACE_S=0.2)
    process.terminate()
    assert end(process)[0] == 137
    assert guards.exit is not None and guards.exit.cause == "signal:TERM"


def test_a_signal_for_the_whole_job_is_a_signal_from_outside(guards: Guards) -> None:
    """Slurm signals every process: the command may be dead before the guard hears of it."""
    process = guards.ready(f"echo ready; {LOOP}")
    start = guard_files.read_start(guards.dir)
    assert start is not None
    os.killpg(start.pgid, signal.SIGTERM)
    until(lambda: dead(start.pgid), "the command has ended")
    process.terminate()
    assert end(process)[0] == 143
    assert guards.exit is not None and guards.exit.cause == "signal:TERM"


def test_a_command_that_ends_itself_by_a_signal_was_not_signalled(guards: Guards) -> None:
    """Nobody outside sent it: the cause is the command's own."""
    assert end(guards.bash("kill -TERM $$"))[0] == 143
    assert guards.exit is not None and guards.exit.cause == "exit"


def test_a_termination_at_any_moment_leaves_a_record_or_no_claim(tmp_path: Path) -> None:
    """From its first instant on, SIGTERM ends a guard either before the claim or with an exit record."""
    chance, claimed = random.Random(7), 0
    for number in range(30):
        guards = Guards(tmp_path / str(number))
        process = guards.bash(f"echo $$ > {tmp_path}/{number}.pid; {LOOP}")
        try:
            process.wait(chance.uniform(0.0, 0.12))
        except subprocess.TimeoutExpired:
            process.terminate()
        status, _, _ = end(process)
        if guard_files.read_claim(guards.dir) is None:
            assert status == -signal.SIGTERM
            continue
        claimed += 1
        assert (status, guards.exit and guards.exit.cause) == (143, "signal:TERM")
        pid = tmp_path / f"{number}.pid"
        assert not (pid.exists() and pid.read_text() and not dead(int(pid.read_text())))
    assert claimed


# ---------------------------------------------------------------- the time limit


def test_a_command_is_warned_before_its_time_limit(guards: Guards) -> None:
    """The early signal comes first; a command that then saves and leaves has reached its limit."""
    process = guards.bash(
        f"trap 'echo saved; exit 0' USR1; {LOOP}", AUTOEXP_TIME_LIMIT_S=30, AUTOEXP_SIGNAL="B:USR1@29.7"
    )
    assert end(process)[:2] == (0, "saved\n")
    assert guards.exit is not None and guards.exit.cause == "timeout"


def test_the_time_limit_warns_then_terminates_then_kills(guards: Guards) -> None:
    """USR1, TERM and KILL, in this order, for a command that will not leave."""
    process = guards.bash(
        f"trap 'echo usr1' USR1; trap 'echo term' TERM; {LOOP}",
        AUTOEXP_TIME_LIMIT_S=0.6,
        AUTOEXP_SIGNAL="USR1@0.3",
        AUTOEXP_KILL_GRACE_S=0.3,
    )
    status, out, err = end(process)
    assert (status, out.split()) == (137, ["usr1", "term"])
    assert "time limit of 0.6 s reached" in err
    record = guards.exit
    assert record is not None and record.cause == "timeout"
    assert 0.9 <= record.ended_at - record.started_at < 5


def test_a_limit_that_the_scheduler_keeps_is_not_kept_twice(guards: Guards) -> None:
    """An administrator may have extended it: the guard ends nothing, and warns nobody."""
    process = guards.bash(
        "trap 'echo warned' USR1; sleep 0.6; echo done",
        AUTOEXP_TIME_LIMIT_S=0.2,
        AUTOEXP_SIGNAL="B:USR1@1",
        AUTOEXP_LIMIT_KEPT_OUTSIDE=1,
    )
    assert end(process)[:2] == (0, "done\n")
    assert guards.exit is not None and guards.exit.cause == "exit"


@pytest.mark.parametrize(
    ("number", "limit", "cause"),
    [
        (signal.SIGUSR1, 1000, "timeout"),
        (signal.SIGUSR2, 1000, "signal:USR2"),
        (signal.SIGTERM, 1000, "signal:TERM"),
        (signal.SIGTERM, 3, "timeout"),
    ],
)
def test_the_schedulers_signals_at_the_limit_mean_the_limit(
    guards: Guards, number: signal.Signals, limit: int, cause: str
) -> None:
    """The one that announces it, whenever it comes, and SIGTERM once the limit is near."""
    process = guards.ready(
        f"trap 'exit 0' USR1 USR2 TERM; echo ready; {LOOP}",
        AUTOEXP_TIME_LIMIT_S=limit,
        AUTOEXP_SIGNAL="B:USR1@60",
        AUTOEXP_LIMIT_KEPT_OUTSIDE=1,
    )
    process.send_signal(number)
    assert end(process)[0] == 0
    assert guards.exit is not None and guards.exit.cause == cause


def test_the_heartbeat_counts(guards: Guards) -> None:
    """Others see that the guard lives by a counter that grows."""
    process = guards.ready(f"echo ready; {LOOP}", AUTOEXP_HEARTBEAT_S=0.05)
    path = guards.dir / "heartbeat.0"
    until(lambda: path.exists() and int(path.read_text().split()[0]) >= 3, "three beats")
    process.terminate()
    end(process)


# ---------------------------------------------------------------- what is left behind


LEFT_BEHIND = {
    "in the background": "sleep 60 & echo $!",
    "in a session of its own": "setsid sleep 60 & echo $!",
    "orphaned": "(sleep 60 & echo $!)",
    "orphaned in a session of its own": "(setsid sleep 60 & echo $!)",
    "deaf": "(trap '' TERM; sleep 60 & echo $!)",
}


@pytest.mark.parametrize("script", LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
def test_nothing_that_the_command_started_outlives_it(guards: Guards, script: str) -> None:
    """When the guard ends, all that its command left running has ended."""
    status, out, _ = end(guards.bash(f"{script}; exit 3", AUTOEXP_KILL_GRACE_S=0.2))
    assert status == 3
    assert dead(int(out))


def test_the_command_dies_with_a_guard_that_is_killed(guards: Guards) -> None:
    """SIGKILL to the guard: no exit record, and the command does not go on alone."""
    process = guards.ready(f"echo ready; {LOOP}")
    start = guard_files.read_start(guards.dir)
    assert start is not None and not dead(start.pgid)
    process.kill()
    until(lambda: dead(start.pgid), "the command died")
    assert end(process)[0] == -signal.SIGKILL
    assert guards.exit is None


# ---------------------------------------------------------------- full disks

#: Fills the guard's disk as far as it can tell: none of its writes to files succeed (setrlimit(2)).
FULL = (
    f"{sys.executable} -c 'import os, resource as r; "
    'r.prlimit(int(os.environ["GUARD"]), r.RLIMIT_FSIZE, (0, r.RLIM_INFINITY))\''
)


def test_an_exit_record_waits_for_room_on_the_disk(guards: Guards) -> None:
    """The disk is full when the command ends: the guard says so, tries again, and writes it when it can."""
    process = guards.bash(f"export GUARD=$PPID; {FULL}; exit 9")
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "cannot write" in line and "exit status 9" in line and "trying again" in line
    assert process.poll() is None and guards.exit is None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert end(process)[0] == 9
    assert guards.exit is not None and guards.exit.exit_code == 9


def test_a_disk_that_stays_full_does_not_hold_the_job_for_ever(guards: Guards) -> None:
    """After a bounded time the guard gives up, says so, and still exits with the status."""
    process = guards.bash(f"export GUARD=$PPID; {FULL}; exit 9", AUTOEXP_EXIT_RETRY_S=0.2)
    status, _, err = end(process)
    assert status == 9 and guards.exit is None
    assert err.rstrip().endswith("given up")
    assert not [name for name in os.listdir(guards.dir) if name.endswith(".tmp")]


def test_a_log_that_cannot_be_written_does_not_stop_the_guard(guards: Guards) -> None:
    """Its own lines may be lost; the record is not."""
    script = f"exec {sys.executable} -I {guard.__file__} -- no-such-program 2>/dev/full"
    assert end(guards.run(["bash", "-c", script]))[0] == 127
    assert guards.exit is not None and guards.exit.exit_code == 127


# ---------------------------------------------------------------- the word of the submitter


def test_it_waits_for_the_go(guards: Guards) -> None:
    """Without the submitter's word nothing runs; with it the script runs, with an empty standard input."""
    for word, expected in ((b"", (79, "")), (b"g", (0, "ran\n"))):
        gate, go = os.pipe()
        process = guards.start("--await-go", "bash", "-c", "cat; echo ran", stdin=gate)
        os.close(gate)
        assert process.poll() is None
        os.write(go, word)
        os.close(go)
        assert end(process)[:2] == expected


# ---------------------------------------------------------------- old Pythons


def test_it_is_written_for_python_3_6_and_the_standard_library() -> None:
    """Compute nodes have the Python of their distribution and nothing else."""
    source = Path(guard.__file__).read_text()
    tree: Any = ast.parse(source, feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names if isinstance(node, ast.Import)}
    assert names <= sys.stdlib_module_names
    assert all(isinstance(node, ast.Import) for node in imports)


def pythons() -> dict[str, str]:
    """The Pythons of this machine by version, from PATH and pyenv; pyenv's own scripts are none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep)), *root.glob("versions/3.*/bin")]
    found = {"this": sys.executable}
    for path in (path for folder in folders for path in folder.glob("python3.*")):
        if re.fullmatch(r"python3\.([6-9]|\d\d)", path.name) and path.read_bytes()[:2] != b"#!":
            found.setdefault(path.name, str(path))
    return found


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_it_runs_on_the_pythons_that_are_here(guards: Guards, python: str) -> None:
    """Whatever Python a machine has, the guard does the same."""
    process = guards.start("--", "bash", "-c", f"trap 'exit 7' TERM; echo ready; {LOOP}", python=python)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert end(process)[0] == 7
    assert guards.exit is not None and guards.exit.cause == "signal:TERM"


# ---------------------------------------------------------------- queued behind another attempt


@pytest.fixture
def behind(guards: Guards) -> dict[str, object]:
    """The variables of an attempt behind another one, whose directory is empty; nobody says a word."""
    return {"AUTOEXP_AFTER_DIR": guards.dir.parent / "before", "AUTOEXP_AFTER_WAIT_S": 0}


def left_word(behind: dict[str, object], code: int, cause: str, generation: int = 0) -> None:
    directory = Path(str(behind["AUTOEXP_AFTER_DIR"]))
    directory.mkdir(exist_ok=True)
    record = {"exit_code": code, "cause": cause, "started_at": 1.0, "ended_at": 2.0}
    (directory / f"exit.{generation}.json").write_text(json.dumps(record))


def test_what_is_queued_behind_another_attempt_waits_for_the_word(
    guards: Guards, behind: dict[str, object]
) -> None:
    """Until then nothing is claimed; the command is told nothing of it."""
    behind["AUTOEXP_AFTER_WAIT_S"] = 600
    process = guards.bash("env | grep AUTOEXP_AFTER; echo began", AUTOEXP_TIME_LIMIT_S=1000, **behind)
    assert process.stderr is not None
    assert "waiting to be told to begin" in process.stderr.readline()
    assert not guards.dir.exists()
    guards.dir.mkdir()
    (guards.dir / "go").touch()
    assert end(process)[:2] == (0, "began\n")
    assert guards.exit is not None


@pytest.mark.parametrize(
    ("word", "zero", "begins"),
    [
        (None, "1", False),
        ((143, "timeout"), "", True),
        ((0, "timeout"), "1", True),
        ((0, "timeout"), "", False),
        ((0, "exit"), "1", False),
        ((1, "exit"), "1", False),
        ((143, "signal:TERM"), "1", False),
    ],
)
def test_told_nothing_it_begins_only_behind_a_time_limit(
    guards: Guards, behind: dict[str, object], word: tuple[int, str] | None, zero: str, begins: bool
) -> None:
    """An exit with 0 may have been a success of which only the log tells."""
    if word is not None:
        left_word(behind, *word)
    code, out, _ = end(guards.bash("echo began", AUTOEXP_AFTER_ZERO=zero, **behind))
    assert (code, out) == ((0, "began\n") if begins else (78, ""))
    assert guards.dir.exists() == begins


@pytest.mark.parametrize(
    ("words", "end_", "begins"),
    [
        ([(0, "exit"), (0, "exit")], "success", True),
        ([(0, "exit"), None], "success", False),
        ([(0, "exit"), (1, "exit")], "success", False),
        ([(0, "exit"), (0, "signal:TERM")], "success", False),
        ([(0, "timeout"), (0, "exit")], "success", False),
        ([(0, "exit"), (0, "exit")], "unknown", False),
        ([(143, "timeout"), (143, "timeout")], "unknown", False),
    ],
)
def test_without_a_word_it_goes_on_behind_several_that_ended_well(
    guards: Guards, tmp_path: Path, words: list[tuple[int, str] | None], end_: str, begins: bool
) -> None:
    """Where it was told that exit status 0 is enough, and each has left word of that."""
    places = [tmp_path / f"job {number}" for number in range(len(words))]
    for place, word in zip(places, words, strict=True):
        if word is not None:
            left_word({"AUTOEXP_AFTER_DIR": place}, *word)
    told = {"AUTOEXP_AFTER_DIR": "\n".join(map(str, places)), "AUTOEXP_AFTER_WAIT_S": 0}
    process = guards.bash("env | grep AUTOEXP_AFTER; echo began", AUTOEXP_AFTER_END=end_, **told)
    code, out, err = end(process)
    assert (code, out) == ((0, "began\n") if begins else (78, ""))
    assert ("nobody leads the session; what it waits for has succeeded" in err) == begins
    assert guards.dir.exists() == begins


def test_the_word_of_an_earlier_start_means_nothing(guards: Guards, behind: dict[str, object]) -> None:
    """The attempt before has been started again since, and has not ended."""
    left_word(behind, 143, "timeout")
    directory = Path(str(behind["AUTOEXP_AFTER_DIR"]))
    for generation in (0, 1):
        (directory / f"claim.{generation}.json").write_text("{}")
    assert end(guards.bash("echo began", **behind))[:2] == (78, "")
    left_word(behind, 143, "timeout", generation=1)
    assert end(guards.bash("echo began", **behind))[:2] == (0, "began\n")


def test_what_was_given_up_never_begins(guards: Guards, behind: dict[str, object]) -> None:
    """The leader has its claim: whatever the attempt before has left."""
    left_word(behind, 143, "timeout")
    guards.dir.mkdir()
    guard_files.claim_file(guards.dir).write_bytes(guard_files.withdrawal("login1"))
    assert end(guards.bash("echo began", **behind))[:2] == (79, "")


def test_a_signal_ends_the_wait(guards: Guards, behind: dict[str, object]) -> None:
    """A cancel while it waits: nothing is run or claimed."""
    behind["AUTOEXP_AFTER_WAIT_S"] = 600
    process = guards.bash("echo began", **behind)
    assert process.stderr is not None and process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (78, "")
    assert not guards.dir.exists()


def test_an_attempt_runs_on_where_a_later_one_is_given_up(tmp_path: Path) -> None:
    """A claim that nobody runs by is no later start."""
    directory = tmp_path / "job"
    for number in (1, 2):
        (directory / str(number)).mkdir(parents=True)
    guard_files.claim_file(directory / "2").write_bytes(guard_files.withdrawal("login1"))
    watching = guard.Guard(str(directory / "1"), {})
    assert not watching.has_successor()
    guard_files.claim_file(directory / "2").write_text('{"scheduler_id": "12"}')
    assert watching.has_successor()
