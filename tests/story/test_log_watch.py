"""`monitor --log`: signals of files that are named by hand, each acted on once, without a session."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, Running, until
from deaths import Dying, Killed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oellm_autoexp.monitor.loop import RealClock
from oellm_autoexp.services import log_watch
from oellm_autoexp.store.effects import Effects

# The monitoring section and the options of README 004, recipe 6; the pattern in the quotes that YAML needs.
RECIPE = r"""
monitoring:
  class_name: SlurmLogMonitor
  log_signals:
    - name: checkpoint_ready
      pattern: 'Checkpoint saved: (?P<path>.+\.pt)'
      pattern_type: regex
      action: convert_checkpoint
      metadata:
        kind: checkpoint
"""
PRINTED = RECIPE.replace("'", '"')
WORDS = ["monitor", "autoexp", "-C", "config", "--fake", "--log", "train=outputs/logs/train.out"]
ACTION = "convert_checkpoint=python tools/convert.py {checkpoint_path}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project as recipe 6 supposes it."""
    for name in ("config", "outputs/logs", "tools"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "config" / "autoexp.yaml").write_text("project: {name: post}\n" + RECIPE)
    (tmp_path / "tools" / "convert.py").write_text(
        "import sys\nprint('converting')\nopen('converted', 'a').write(repr(sys.argv[1:]) + '\\n')\n"
    )
    log(tmp_path).write_text(
        "start\nCheckpoint saved: /data/it's $HOME/1.pt\nstep\nCheckpoint saved: /2.pt\n"
    )
    return tmp_path


def log(place: Path) -> Path:
    return place / "outputs" / "logs" / "train.out"


def converted(place: Path) -> list[str]:
    file = place / "converted"
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cli(place: Path) -> Cli:
    # Debian has a `python` only within an environment, and the tests need none that is activated.
    return Cli(place, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


BOTH = [repr(["/data/it's $HOME/1.pt"]), repr(["/2.pt"])]


def test_recipe_6_converts_each_checkpoint_once(place: Path, cli: Cli) -> None:
    """The command as it is printed: one pass, values quoted for the shell, nothing again in a second pass."""
    first = cli(*WORDS, "--action", ACTION)
    assert first.returncode == 0, first.stderr
    assert "signal checkpoint_ready" in first.stdout
    assert sorted(converted(place)) == sorted(BOTH)
    second = cli(*WORDS, "--action", ACTION)
    assert (second.returncode, second.stdout) == (0, "Nothing new.\n")
    with log(place).open("a") as file:
        file.write("Checkpoint saved: /3.pt")
    assert cli(*WORDS, "--action", ACTION).returncode == 0
    assert converted(place)[2:] == [repr(["/3.pt"])]


def test_the_pattern_in_double_quotes_is_refused_with_its_repair(place: Path, cli: Cli) -> None:
    r"""YAML knows no escape `\.`: the error names the line and says to write single quotes."""
    (place / "config" / "autoexp.yaml").write_text("project: {name: post}\n" + PRINTED)
    refused = cli.within(*WORDS, "--action", ACTION)
    assert refused.returncode == 2
    assert "autoexp.yaml:7" in refused.stderr and "single quotes" in refused.stderr


def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(place: Path, cli: Cli) -> None:
    """The planned commands as JSON, word for word; not a file more than before."""
    before = sorted(place.rglob("*"))
    shown = cli.within(*WORDS, "--action", ACTION, "--dry-run", "--json-output")
    assert shown.returncode == 0, shown.stderr
    body = json.loads(shown.stdout)
    assert [row["line"] for row in body["signals"]] == log(place).read_text().splitlines()[1::2]
    assert body["signals"][0]["fields"]["checkpoint_path"] == "/data/it's $HOME/1.pt"
    planned = [(row["state"], row["command"]) for row in body["actions"]]
    assert planned[1] == ("planned", "python tools/convert.py /2.pt")
    assert sorted(place.rglob("*")) == before


def test_an_action_of_the_config_runs_where_the_command_line_has_none(place: Path, cli: Cli) -> None:
    """`--action` wins over an action of that name in the config; without it the config's is taken."""
    own = "\nactions: {convert_checkpoint: {command: 'echo {path} >> own'}}\n"
    (place / "config" / "autoexp.yaml").write_text("project: {name: post}\n" + RECIPE + own)
    assert cli(*WORDS).returncode == 0
    assert len((place / "own").read_text().splitlines()) == 2
    log(place).write_text("Checkpoint saved: /other.pt\n")
    assert cli(*WORDS, "--action", ACTION).returncode == 0
    assert converted(place) == [repr(["/other.pt"])]
    assert len((place / "own").read_text().splitlines()) == 2


def test_a_failed_action_is_told_with_its_log_and_exits_1(place: Path, cli: Cli) -> None:
    """It is not tried again by the next pass: once is once."""
    failed = cli(*WORDS, "--action", "convert_checkpoint=echo no room >&2; exit 3", "--json-output")
    assert failed.returncode == 1
    rows = json.loads(failed.stdout)["actions"]
    assert [(row["state"], row["exit_code"]) for row in rows] == [("failed", 3), ("failed", 3)]
    assert "no room" in Path(rows[0]["log"]).read_text()
    assert cli(*WORDS, "--action", ACTION).stdout == "Nothing new.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "train=missing.out"], "there is no such file"),
        (["--log", "train"], "NAME=VALUE"),
        (["--log", "a/b=outputs/logs/train.out"], "part of a path"),
        (["--log", "t=outputs/logs/train.out", "--action", "convert=x"], "known here: convert"),
        (
            ["--log", "t=outputs/logs/train.out", "--action", "convert_checkpoint=x {pth}"],
            "did you mean `path`?",
        ),
        (["--log", "t=outputs/logs/train.out"], "there is no action `convert_checkpoint`"),
        (["--loop"], "need --log"),
        (["--log", "t=x", "--interval", "0"], "--interval"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    place: Path, cli: Cli, words: list[str], said: str
) -> None:
    """Exit 2, one message, no state."""
    extra = ["--action", ACTION] if "missing.out" in words[-1] else []
    refused = cli.within("monitor", "autoexp", "-C", "config", *words, *extra)
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr and "Traceback" not in refused.stderr
    assert not (place / "outputs" / ".oellm-autoexp").exists()


def test_a_config_without_log_signals_is_refused(place: Path, cli: Cli) -> None:
    """There would be nothing to look for."""
    (place / "config" / "autoexp.yaml").write_text("project: {name: post}\n")
    refused = cli.within(*WORDS)
    assert refused.returncode == 2 and "no log signals" in refused.stderr


def test_an_action_that_needs_a_session_is_left_out_and_said(place: Path, cli: Cli) -> None:
    """Nothing can be cancelled where there is no session; the signal is still shown."""
    own = "\nactions: {convert_checkpoint: {class_name: CancelAction}}\n"
    (place / "config" / "autoexp.yaml").write_text("project: {name: post}\n" + RECIPE + own)
    done = cli(*WORDS)
    assert done.returncode == 0 and "left out: only within a session" in done.stdout


# ---------------------------------------------------------------- --loop


@pytest.fixture
def loop(cli: Cli) -> Iterator[Callable[..., Running]]:
    """Starts watchers that go on, and ends those that are left."""
    with ExitStack() as stack:

        def start(*words: str) -> Running:
            follow = (*WORDS, "--loop", "--interval", "0.1", "--json-output", *words)
            # As from a terminal: a shell's background jobs ignore Ctrl-C.
            options = {
                "stderr": subprocess.PIPE,
                "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            }
            return stack.enter_context(cli.leader(*follow, **options))

        yield start


def rows_of(process: Running, number: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(number)]


def test_a_loop_follows_a_file_that_is_still_to_come(place: Path, loop: Callable[..., Running]) -> None:
    """Lines as they are completed, each as one JSON line; Ctrl-C ends it with 130."""
    log(place).unlink()
    process = loop("--action", ACTION)
    until((place / "outputs/.oellm-autoexp/standalone/train/guard.py").exists, "it watches")
    with log(place).open("w") as file:
        file.write("Checkpoint saved: /4.pt")
        file.flush()
        file.write("\nCheckpoint saved: /5.pt\n")
    rows = rows_of(process, 4)
    assert {(row["type"], row.get("state")) for row in rows} == {("signal", None), ("action", "done")}
    assert sorted(converted(place)) == [repr(["/4.pt"]), repr(["/5.pt"])]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr is not None and "takes up where" in process.stderr.read()


def test_a_second_watcher_of_the_same_job_is_refused(
    place: Path, cli: Cli, loop: Callable[..., Running]
) -> None:
    """Two would act twice; another JOB, or a dry run, is free."""
    process = loop("--action", ACTION)
    rows_of(process, 1)
    refused = cli(*WORDS, "--action", ACTION)
    assert refused.returncode == 3 and str(process.pid) in refused.stderr
    assert cli(*WORDS, "--action", ACTION, "--dry-run").returncode == 0
    other = [word.replace("train=", "other=") for word in WORDS]
    assert cli(*other, "--action", "convert_checkpoint=true").returncode == 0


@pytest.mark.kill9
def test_an_action_that_outlives_its_killed_watcher_is_waited_for_not_repeated(
    place: Path, cli: Cli, loop: Callable[..., Running]
) -> None:
    """kill -9 while the action runs: the next call finds the process, and reports how it ended."""
    slow = (
        "convert_checkpoint=echo {path} >> begun; until test -e go; do sleep 0.02; done; echo {path} >> ended"
    )
    process = loop("--action", slow)
    begun = place / "begun"
    until(lambda: begun.exists() and len(begun.read_text().splitlines()) == 2, "both actions have begun")
    process.kill()
    process.wait()
    (place / "go").touch()
    after = cli(*WORDS, "--action", slow)
    assert after.returncode == 0, after.stderr
    assert after.stdout.count("convert_checkpoint done") == 2
    for name in ("begun", "ended"):
        assert len((place / name).read_text().splitlines()) == 2


# ---------------------------------------------------------------- killed anywhere


def watch(place: Path, effects: Effects) -> log_watch.LogWatch:
    words = ["train=outputs/logs/train.out"]
    paths, jobs, *_ = log_watch.watched("autoexp", place / "config", [], words, [], cwd=place)
    return log_watch.LogWatch(paths, jobs, report=lambda _kind, _row: None, effects=effects)


APPEND = "\nactions: {convert_checkpoint: {class_name: AppendAction, path: %s, text: '{path}'}}\n"


def appending(place: Path) -> None:
    own = APPEND % (place / "converted")
    (place / "config" / "autoexp.yaml").write_text("project: {name: post}\n" + RECIPE + own)


def test_death_before_any_effect_neither_loses_nor_repeats_an_action(place: Path) -> None:
    """A pass that dies at each of its steps in turn, and one that is left alone: every checkpoint once."""
    appending(place)
    steps = 0
    while True:
        log(place).write_text(f"Checkpoint saved: /{steps}.pt\n")
        (place / "converted").unlink(missing_ok=True)
        try:
            watch(place, Dying(steps)).once()
            break
        except Killed:
            watch(place, Effects()).once()
            assert converted(place) == [f"/{steps}.pt"], f"killed before step {steps}"
        steps += 1
    assert steps > 10


class Full(Effects):
    """A disk on which there is no room for the journal for a while."""

    full = False

    def step(self, name: str, target: str) -> None:
        if self.full and name == "write_at:before" and "journal" in target:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)


class Turns(RealClock):
    """Does something at each wait, and presses Ctrl-C after the last."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.then = iter(then)

    def wait(self, seconds: float) -> None:
        next(self.then, lambda: signal.raise_signal(signal.SIGINT))()


def test_a_loop_waits_for_room_and_then_acts(place: Path) -> None:
    """A full disk is told once, and nothing is started; with room again, each action is done once."""
    appending(place)
    effects, warned = Full(), list[str]()
    words = ["train=outputs/logs/train.out"]
    paths, jobs, *_ = log_watch.watched("autoexp", place / "config", [], words, [], cwd=place)

    def fill() -> None:
        effects.full = True
        with log(place).open("a") as file:
            file.write("Checkpoint saved: /late.pt\n")

    def look() -> None:
        assert "/late.pt" not in converted(place)

    clock = Turns(fill, look, look, lambda: setattr(effects, "full", False), lambda: None)
    watching = log_watch.LogWatch(
        paths, jobs, report=lambda _kind, _row: None, warn=warned.append, effects=effects, clock=clock
    )
    with pytest.raises(KeyboardInterrupt):
        watching.follow(1e-9)
    watching.close()
    assert len(warned) == 1 and "No space left" in warned[0]
    assert converted(place)[2:] == ["/late.pt"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Checkpoint saved: /%d.pt\n", "noise %d\n", "Checkpoint saved: /%d.p\n", ""]),
            st.sampled_from(["once", "die", "rotate", "wait"]),
        ),
        max_size=12,
    ),
    st.integers(0, 40),
)
def test_every_line_is_acted_on_once_however_passes_are_cut(
    place: Path, chunks: list[tuple[str, str]], steps: int
) -> None:
    """Lines come in, files are replaced, passes die: in the end each checkpoint was appended exactly once."""
    appending(place)
    shutil.rmtree(place / "outputs/.oellm-autoexp", ignore_errors=True)
    (place / "converted").unlink(missing_ok=True)
    log(place).write_text("begin\n")
    expected = []
    for number, (text, then) in enumerate(chunks):
        line = text % number if text else ""
        with log(place).open("a") as file:
            file.write(line)
        if ".pt" in line:
            expected.append(f"/{number}.pt")
        if then == "die":
            try:
                watch(place, Dying(steps)).once()
            except Killed:
                continue
        elif then in ("once", "rotate"):
            watch(place, Effects()).once()
        if then == "rotate":
            log(place).rename(place / "old")
            log(place).write_text(f"file {number}\n")
    watch(place, Effects()).once()
    assert converted(place) == expected
