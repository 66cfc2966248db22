"""`project.group` opens a session's state to a Unix group, and nothing else does."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
project: {{name: shared, base_output_dir: ./outputs{group}}}
backend:
  class_name: CommandBackend
  command: [echo, '@autoexp {{"metrics": {{"loss": 1}}}}']
"""


def modes(tmp_path: Path, group: str) -> dict[str, set[tuple[int, int]]]:
    """The (mode, group) of the directories and of the files that the loop itself wrote."""
    (tmp_path / "sweep.yaml").write_text(CONFIG.format(group=f", group: {group}" if group else ""))
    command = [sys.executable, "-m", "oellm_autoexp.cli.main", "submit", "sweep.yaml", "--local"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = [*command[:3], "retry", "outputs", "shared"]  # another process leads for one turn
    subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, check=True)
    state = tmp_path / "outputs" / ".oellm-autoexp"
    found: dict[str, set[tuple[int, int]]] = {"directories": set(), "files": set()}
    written = [state, state / "monitor", *(state / "monitor").rglob("*"), *(state / "metrics").rglob("*")]
    for path in written:
        status = path.stat()
        kind = "directories" if path.is_dir() else "files"
        found[kind].add((stat.S_IMODE(status.st_mode), status.st_gid))
    return found


def test_without_a_group_only_the_owner_reads_the_state(tmp_path: Path) -> None:
    found = modes(tmp_path, "")
    assert {mode for mode, _ in found["directories"]} == {0o700}
    assert {mode for mode, _ in found["files"]} == {0o600}


def test_a_group_reads_and_writes_the_state_whoever_leads(tmp_path: Path) -> None:
    """The first submission and a later leader, which has only the directory to go by."""
    mine = [number for number in os.getgroups() if number != os.getegid()]
    if os.geteuid() == 0:
        mine = [group.gr_gid for group in grp.getgrall() if group.gr_gid]
    if not mine:
        pytest.skip("this user has no second group")
    found = modes(tmp_path, grp.getgrgid(mine[0]).gr_name)
    assert found["directories"] == {(0o2770, mine[0])}
    assert found["files"] == {(0o660, mine[0])}
