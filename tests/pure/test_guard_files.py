"""Reading what the guard left: whole, torn, foreign and missing files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.model import ExitRecord
from oellm_autoexp.rendering.guard_files import read_claim, read_exit, read_start

EXIT = {"exit_code": 3, "cause": "timeout", "started_at": 1.5, "ended_at": 2.5, "host": "n1"}
CLAIM = {
    "scheduler_id": "7",
    "restart_count": 0,
    "host": "n1",
    "boot_id": "b",
    "pid": 5,
    "pid_start": "9",
    "token": "t",
    "nonce": "n",
}


def put(directory: Path, kind: str, generation: int, body: object) -> Path:
    path = directory / f"{kind}.{generation}.json"
    path.write_text(json.dumps(body))
    return path


@settings(max_examples=50, deadline=None, derandomize=True)
@given(claims=st.sets(st.integers(0, 12), max_size=4), exits=st.sets(st.integers(0, 12), max_size=4))
def test_the_newest_generation_counts(claims: set[int], exits: set[int]) -> None:
    """An exit record speaks only if nobody has claimed the attempt after it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for generation in claims:
            put(directory, "claim", generation, {**CLAIM, "restart_count": generation})
        for generation in exits:
            put(directory, "exit", generation, {**EXIT, "generation": generation})
        newest = max(exits, default=-1)
        wanted = ExitRecord(**EXIT, generation=newest) if exits and newest >= max(claims, default=0) else None
        assert read_exit(directory) == wanted
        claim = read_claim(directory)
        assert (claim.generation if claim else None) == max(claims, default=None)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cut=st.integers(0, 200), tail=st.binary(max_size=8))
def test_a_torn_file_says_nothing(cut: int, tail: bytes) -> None:
    """Half a file, or one with rubbish behind it, is no record and no error."""
    with tempfile.TemporaryDirectory() as name:
        path = put(Path(name), "exit", 0, EXIT)
        whole = path.read_bytes()
        path.write_bytes(whole[:cut] + tail)
        assert read_exit(Path(name)) in (None, ExitRecord(**EXIT, generation=0))
        if cut < len(whole):
            assert read_exit(Path(name)) is None


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", '{"exit_code": "x"', "\0\0\0"])
def test_a_foreign_file_says_nothing(tmp_path: Path, text: str) -> None:
    """JSON of another shape is as good as none."""
    for kind in ("exit", "claim", "start"):
        (tmp_path / f"{kind}.0.json").write_text(text)
    assert read_exit(tmp_path) is read_claim(tmp_path) is read_start(tmp_path) is None


def test_names_that_are_not_the_guards_are_passed_over(tmp_path: Path) -> None:
    """Temporary files and strangers do not count, unknown keys are ignored."""
    for name in ("exit.x.json", "exit.5.json.12.tmp", ".claim.n1", "heartbeat.7", "exit.json"):
        (tmp_path / name).write_text("{}")
    put(tmp_path, "exit", 0, {**EXIT, "new": 1})
    put(tmp_path, "start", 0, {**CLAIM, "pgid": 6, "started_at": 1.0, "new": 1})
    assert read_exit(tmp_path) == ExitRecord(**EXIT, generation=0)
    start = read_start(tmp_path)
    assert start is not None and (start.pgid, start.pid, start.generation) == (6, 5, 0)


def test_nothing_there_is_nothing_said_and_unreadable_is_an_error(tmp_path: Path) -> None:
    """A missing directory means that nobody wrote; one that cannot be read means nothing at all."""
    assert read_exit(tmp_path / "missing") is read_claim(tmp_path / "missing") is None
    (tmp_path / "loop").symlink_to("loop")
    for read in (read_exit, read_claim, read_start):
        with pytest.raises(OSError, match="symbolic links"):
            read(tmp_path / "loop")
