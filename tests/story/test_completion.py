"""Completion for the shell: its script, and what Tab offers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, Cli

from oellm_autoexp.cli import main as cli

Tab = Callable[[str], list[str]]


@pytest.fixture
def installed(tmp_path: Path) -> Cli:
    """The program by its own name, as an installed one has it."""
    script = tmp_path / "bin" / "oellm-autoexp"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom oellm_autoexp.cli.main import main\nmain()\n")
    script.chmod(0o755)
    cli = Cli(tmp_path, HOME=str(tmp_path), PYTHONPATH=str(ROOT))
    cli.program = (str(script),)
    return cli


@pytest.fixture
def program(installed: Cli) -> Callable[..., str]:
    """Its output, without a word on stderr."""

    def run(*words: str, **variables: str) -> str:
        done = installed.within(*words, env=variables)
        assert done.stderr == ""
        return done.stdout

    return run


@pytest.fixture
def tab(program: Callable[..., str]) -> Tab:
    """What is offered for the last word of a line."""

    def offered(line: str) -> list[str]:
        words = f"oellm-autoexp {line}"
        more = {"_OELLM_AUTOEXP_COMPLETE": "complete_bash", "COMP_WORDS": words}
        return program(**more, COMP_CWORD=str(len(words.split(" ")) - 1)).split()

    return offered


def submitted(tmp_path: Path, program: Callable[..., str]) -> None:
    body = {
        "project": {"name": "tiny"},
        "backend": {"class_name": "CommandBackend", "command": ["true", "${i}"]},
        "sweep": {"axes": {"i": [0, 1]}},
        "scheduler": {"class_name": "local"},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(body))
    program("submit", "sweep.yaml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_its_script(shell: str, program: Callable[..., str]) -> None:
    """It asks this program by its own name."""
    shown = program(_OELLM_AUTOEXP_COMPLETE=f"source_{shell}")
    assert "_OELLM_AUTOEXP_COMPLETE" in shown and "complete" in shown


def test_an_installed_completion_works_in_bash(tmp_path: Path, installed: Cli) -> None:
    """`--install-completion` under bash; a new shell then completes by the function that it has loaded."""
    install = f"{tmp_path}/bin/oellm-autoexp --install-completion; true"
    assert installed.run("bash", "-c", install).returncode == 0
    ask = f"""
        PATH={tmp_path}/bin:$PATH; source {tmp_path}/.bashrc; complete -p oellm-autoexp > /dev/null || exit 1
        COMP_WORDS=(oellm-autoexp mon); COMP_CWORD=1; _oellm_autoexp_completion oellm-autoexp
        echo "${{COMPREPLY[@]}}"
    """
    done = installed.run("bash", "--norc", "-c", ask)
    assert (done.returncode, done.stdout) == (0, "monitor\n"), done.stderr


def test_commands_and_options_are_offered(tab: Tab) -> None:
    """Also those whose modules are loaded late."""
    assert tab("mon") == ["monitor"]
    assert {"status", "cleanup", "init"} <= set(tab(""))
    assert tab("monitor --dry") == ["--dry-run"]


def test_sessions_and_their_jobs_are_offered(tmp_path: Path, program: Callable[..., str], tab: Tab) -> None:
    """By the registry, whatever the command; jobs of the session before, named in any way."""
    submitted(tmp_path, program)
    for command in ("status", "show", "logs", "cancel", "retry", "monitor", "cleanup"):
        assert tab(f"{command} t") == ["tiny"]
    assert tab("status x") == []
    both = ["tiny_i0", "tiny_i1"]
    for session in ("tiny", "outputs", "sweep.yaml"):
        assert tab(f"cancel {session} tiny_") == both
    assert tab("logs tiny tiny_i1") == ["tiny_i1"]


def test_nodes_are_offered(tmp_path: Path, program: Callable[..., str], tab: Tab) -> None:
    """To exclude, those that jobs have had; to forgive, those that something speaks against."""
    body = {
        "project": {"name": "far"},
        "backend": {"class_name": "NullBackend"},
        "scheduler": {"class_name": "fake"},
        "slurm": {"sbatch": {"nodes": 2}},
    }
    (tmp_path / "far.yaml").write_text(json.dumps(body))
    program("submit", "far.yaml")
    assert tab("nodes far.fake ") == ["exclude", "forgive"]
    assert tab("nodes far.fake exclude node") == ["node01", "node02"]
    program("nodes", "far.fake", "exclude", "node02", "gone7")
    assert tab("nodes far.fake forgive ") == ["gone7", "node02"]
    assert tab("nodes far.fake exclude n") == ["node01"]


def test_trouble_offers_and_says_nothing(tmp_path: Path, program: Callable[..., str], tab: Tab) -> None:
    """No such session, a damaged journal, a state home that is a file, a config that does not load."""
    submitted(tmp_path, program)
    assert tab("cancel nowhere t") == []
    (tmp_path / "bad.yaml").write_text("project: [")
    assert tab("cancel bad.yaml t") == []
    segment = tmp_path / "outputs/.oellm-autoexp/monitor/journal/00000001.jsonl"
    data = segment.read_bytes()
    segment.write_bytes(data[:300] + b"x" + data[301:])
    assert tab("cancel tiny t") == []
    home = tmp_path / "home"
    home.rename(tmp_path / "away")
    home.write_text("")
    assert tab("status t") == []


def test_only_the_command_that_is_called_is_prepared() -> None:
    """All are, where none is named as it is called: then they are listed, or one that is near."""
    status, daemon = cli._needed(["status", "outputs"]), cli._needed(["daemon", "start"])
    assert [each.name for each in status.registered_commands] == ["status"] and not status.registered_groups
    assert [each.name for each in daemon.registered_groups] == ["daemon"] and not daemon.registered_commands
    for words in ([], ["statu"], ["--help"], ["--version"]):
        assert cli._needed(words) is cli.app
