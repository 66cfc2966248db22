"""`project.group` opens a session's state to a Unix group, and nothing else does."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
from pathlib import Path

import pytest
from commands import Cli

from oellm_autoexp.store.effects import Effects

CONFIG = """
project: {{name: shared, base_output_dir: ./outputs{group}}}
backend:
  class_name: CommandBackend
  command: [echo, '@autoexp {{"metrics": {{"loss": 1}}}}']
monitoring: {{log_signals: {{loss: {{pattern: loss, action: note}}}}}}
actions: {{note: {{command: 'true'}}}}
"""


@pytest.fixture
def group() -> int:
    mine = [number for number in os.getgroups() if number != os.getegid()]
    if os.geteuid() == 0:
        mine = [each.gr_gid for each in grp.getgrall() if each.gr_gid]
    if not mine:
        pytest.skip("this user has no second group")
    return mine[0]


def write(place: Path, group: str) -> None:
    (place / "sweep.yaml").write_text(CONFIG.format(group=f", group: {group}" if group else ""))


def modes(*roots: Path) -> dict[str, set[tuple[int, int]]]:
    """The (mode, group) of directories and of files."""
    found: dict[str, set[tuple[int, int]]] = {"directories": set(), "files": set()}
    for path in [each for root in roots for each in (root, *root.rglob("*"))]:
        status = path.stat()
        kind = "directories" if path.is_dir() else "files"
        found[kind].add((stat.S_IMODE(status.st_mode), status.st_gid))
    return found


def submitted(place: Path, group: str) -> Path:
    """The state after a first submission, and a later command of another process that has only the state."""
    write(place, group)
    done = Cli(place)("submit", "sweep.yaml", "--local")
    assert done.returncode == 0, done.stderr
    done = Cli(place)("retry", "outputs", "shared")
    assert done.returncode == 0, done.stderr
    return place / "outputs" / ".oellm-autoexp"


def test_without_a_group_only_the_owner_reads_the_state(tmp_path: Path) -> None:
    state = submitted(tmp_path, "")
    found = modes(state / "monitor", state / "metrics")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert {mode for mode, _ in found["directories"]} == {0o700}
    assert {mode for mode, _ in found["files"]} == {0o600}


def test_a_group_reads_and_writes_the_state_whoever_leads(tmp_path: Path, group: int) -> None:
    """All of it, what the guard of a job and of an action wrote too; nothing in the user's own home."""
    state = submitted(tmp_path, grp.getgrgid(group).gr_name)
    logs = {path for path in state.rglob("log") if path.is_file()}
    assert modes(state)["directories"] == {(0o2770, group)}
    files = [path for path in state.rglob("*") if path.is_file() and path not in logs]
    assert {path.name for path in files} >= {"guard.py", "claim.0.json", "exit.0.json", "shared.jsonl"}
    assert modes(*files)["files"] == {(0o660, group), (0o770, group)}
    assert {mode for mode, _ in modes(tmp_path / "home" / "oellm-autoexp")["directories"]} == {0o700}


def test_a_loop_in_the_background_is_as_open(tmp_path: Path, group: int) -> None:
    """Its log too, which another of the group may have to write on in."""
    write(tmp_path, grp.getgrgid(group).gr_name)
    done = Cli(tmp_path)("submit", "sweep.yaml", "--local", "--detach")
    assert done.returncode == 0, done.stderr
    log = tmp_path / "outputs" / ".oellm-autoexp" / "monitor" / "daemon.log"
    status = log.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, group)
    assert Cli(tmp_path)("cancel", "outputs", "--yes").returncode == 0


def test_a_state_that_is_not_open_is_not_taken_for_open(tmp_path: Path, group: int) -> None:
    """A config that names a group later is refused with the commands that help; they do."""
    submitted(tmp_path, "")
    write(tmp_path, grp.getgrgid(group).gr_name)
    refused = Cli(tmp_path)("submit", "sweep.yaml", "--local")
    assert refused.returncode == 3 and "is not open to the group" in refused.stderr
    subprocess.run(refused.stderr.partition("open it: ")[2], shell=True, check=True)
    state = submitted(tmp_path, grp.getgrgid(group).gr_name)
    assert modes(state)["directories"] == {(0o2770, group)}


def test_a_directory_is_opened_by_no_umask(tmp_path: Path) -> None:
    """A state directory that somebody made beforehand opens nothing, however its rights came about."""
    for mode in (0o775, 0o2775, 0o770, 0o700):
        tmp_path.chmod(mode)
        assert Effects.of(tmp_path).group is None
    tmp_path.chmod(0o2770)
    assert Effects.of(tmp_path).group == tmp_path.stat().st_gid
    assert Effects.of(tmp_path / "none").group is None
