"""What is shown, to whom, and what becomes of a command whose output nobody reads."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Cli, Done, Running, until

from oellm_autoexp.cli.main import COLLECTION_COMMANDS, COMMANDS, DAEMON_COMMANDS

CONFIG = """\
project: {name: rd, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command: [bash, -c, 'until [ -e gate ]; do sleep 0.05; done; exit ${c}']
sweep: {axes: {c: [0, 7]}}
restart_policies: {crash: {class_name: NoRestartPolicy}}
scheduler: {class_name: local, max_jobs: 2}
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line beside a config of two gated jobs, one of which fails."""
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    return Cli(tmp_path)


@pytest.fixture
def leader(cli: Cli) -> Iterator[Running]:
    """A `submit` that leads the session while both jobs run."""
    with cli.leader("submit", "sweep.yaml", "--json") as process:
        until(lambda: list(cli.states().values()) == [("running", 1)] * 2, "both run")
        yield process


def piped(cli: Cli, *words: str, into: str) -> Done:
    """A command whose output goes somewhere, as a shell says it."""
    shell = ("bash", "-o", "pipefail", "-c", f'"$@" {into}', "run")
    return cli.run(*shell, *cli.program, *words)


def test_a_second_submit_hands_over_and_ends_well(tmp_path: Path, cli: Cli, leader: Running) -> None:
    """It names the process that leads, and exits 0: what becomes of the jobs is for that one to say."""
    second = cli("submit", "sweep.yaml")
    assert second.returncode == 0, second.stderr
    assert "0 new; 2 go on" in second.stdout
    assert f"Process {leader.pid} on " in second.stdout
    assert "Nobody watches" not in cli.within("status", "outputs").stdout
    (tmp_path / "gate").touch()
    assert leader.wait(timeout=120) == 1


def test_status_says_when_nobody_watches(tmp_path: Path, cli: Cli, leader: Running) -> None:
    """After Ctrl-C the jobs run on; `status` and `cancel` name the command that sees to them."""
    leader.send_signal(signal.SIGINT)
    assert leader.wait(timeout=60) == 130
    hint = f"Nobody watches this session: oellm-autoexp monitor {tmp_path}/outputs/.oellm-autoexp"
    shown = cli.within("status", "outputs", "c=0").stdout
    assert hint in shown and shown.startswith("1 running\n"), "only what was asked for is counted"
    assert not any(line != line.rstrip() for line in shown.splitlines())
    assert "2 running (nobody watches)" in cli.within("sessions").stdout
    assert hint in cli("cancel", "outputs", "c=0", "--yes").stdout
    (tmp_path / "gate").touch()
    assert cli("monitor", "outputs").returncode == 1
    ended = cli.within("status", "outputs").stdout
    assert "Nobody watches" not in ended
    watched = cli("status", "outputs", "--watch")
    assert (watched.returncode, watched.stderr) == (0, ""), "there is nothing more to wait for"
    assert f"Start what failed again: oellm-autoexp retry {tmp_path}/outputs/.oellm-autoexp" in ended


def test_a_reader_that_has_read_enough_ends_no_session(tmp_path: Path, cli: Cli) -> None:
    """`submit | head` is led to its end, and its exit code says how that was; looking exits 0."""
    (tmp_path / "gate").touch()
    for pipe in ("| true", "2>&1 | head -1"):
        done = piped(cli, "submit", "sweep.yaml", into=pipe)
        assert (done.returncode, done.stderr) == (1, "")
    assert {state for state, _ in cli.states().values()} == {"succeeded", "failed"}
    looks = (["plan", "sweep.yaml"], ["status", "outputs"], ["show", "outputs"], ["sessions"])
    for words in looks:
        done = piped(cli, *words, into="| true")
        assert (done.returncode, done.stderr) == (0, ""), words
    full = piped(cli, "status", "outputs", into="> /dev/full")
    assert (full.returncode, full.stderr) == (3, "error: output: No space left on device\n")


def test_columns_that_no_job_has_are_named(tmp_path: Path, cli: Cli) -> None:
    """An unknown column is empty and said on stderr; a sort needs columns; numbers sort by size."""
    (tmp_path / "gate").touch()
    assert cli("submit", "sweep.yaml", "-o", "sweep.axes.c=[10, 9, 0]").returncode == 1
    shown = cli.within("status", "outputs", "--columns", "c, stat", "--sort", "c", "--format", "csv")
    assert shown.returncode == 0
    assert shown.stdout.splitlines() == ["name,c,stat", "rd_c0,0,", "rd_c9,9,", "rd_c10,10,"]
    assert shown.stderr == "no job has a parameter, metric or field `stat` yet; did you mean `state`?\n"
    refused = cli.within("status", "outputs", "--sort", "c")
    assert refused.returncode == 2 and "--columns" in refused.stderr


def test_plan_says_what_it_wrote(tmp_path: Path, cli: Cli) -> None:
    """One of a thing is not called several; a dry run says that it wrote nothing."""
    one = ("sweep.yaml", "-o", "sweep.axes.c=[0]")
    dry = cli.within("plan", *one, "--dry-run").stdout
    assert dry.endswith("Nothing was written.\n") and not (tmp_path / "outputs").exists()
    shown = cli.within("plan", *one).stdout
    assert "1 job on 1 node; no GPUs" in shown
    assert f"Written: {tmp_path}/outputs/scripts\nWritten: {tmp_path}/outputs/sweep.json\n" in shown


@pytest.mark.parametrize(
    "command",
    [command.__name__ for command, _ in COMMANDS]
    + [f"daemon {command.__name__}" for command, _ in DAEMON_COMMANDS]
    + [f"collections {command.__name__.rstrip('_')}" for command, _ in COLLECTION_COMMANDS],
)
def test_the_help_of_a_command_has_examples(cli: Cli, command: str) -> None:
    """Each can be typed as it stands, and the meaning of exit codes is one word away."""
    shown = cli.within(*command.split(), "--help").stdout
    assert f"\n    oellm-autoexp {command}" in shown and "Exit codes: oellm-autoexp --help" in shown


def test_the_help_explains_exit_codes(cli: Cli) -> None:
    shown = cli.within("--help").stdout
    assert "    2    a mistake in the config or in usage; nothing was changed" in shown


def test_a_session_that_is_gone_is_told_from_one_that_never_was(tmp_path: Path, cli: Cli) -> None:
    """A removed directory is named; `sessions` lists it as gone."""
    (tmp_path / "gate").touch()
    assert cli("submit", "sweep.yaml").returncode == 1
    shutil.rmtree(tmp_path / "outputs")
    refused = cli.within("status", "rd")
    assert refused.returncode == 2
    assert f"{tmp_path}/outputs/.oellm-autoexp: the session 'rd' is gone" in refused.stderr
    assert "rd  gone" in cli.within("sessions").stdout
    assert "there is no session 'rdd'" in cli.within("status", "rdd").stderr
