"""The bucket that all sessions of a user share."""

from __future__ import annotations

from pathlib import Path

import pytest

from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.rate import Bucket


class Time:
    """A clock that stands unless somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waited: list[float] = []

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now_s += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def bucket(path: Path | None, time: Time) -> Bucket:
    return Bucket(path, Effects(), burst=3, per_s=2, now=time.now, wait=time.wait)


@pytest.mark.parametrize("has_file", [True, False])
def test_a_burst_and_then_the_rate(tmp_path: Path, time: Time, has_file: bool) -> None:
    """With a file, and without a home to put it in."""
    one = bucket(tmp_path / "a" / "b" / "rate" if has_file else None, time)
    for _ in range(7):
        one.take()
    assert time.waited == [0.5] * 4


def test_processes_share_it(tmp_path: Path, time: Time) -> None:
    """Two of them get no more than one alone."""
    both = [bucket(tmp_path / "a" / "b" / "rate", time) for _ in range(2)]
    for turn in range(10):
        both[turn % 2].take()
    assert sum(time.waited) == 3.5


def test_it_fills_up_again_and_not_beyond(tmp_path: Path, time: Time) -> None:
    one = bucket(tmp_path / "rate", time)
    for _ in range(3):
        one.take()
    time.now_s += 3600
    for _ in range(4):
        one.take()
    assert time.waited == [0.5]


def test_a_clock_that_is_set_back_locks_nobody_out(tmp_path: Path, time: Time) -> None:
    """The hosts of a cluster differ, and clocks are corrected."""
    one = bucket(tmp_path / "rate", time)
    one.take()
    time.now_s -= 1e6
    one.take()
    one.take()
    one.take()
    assert time.waited == [0.5]


@pytest.mark.parametrize("text", ["", "x", "[]", "[1]", '["a", 2]', "{}", "null"])
def test_a_broken_file_is_begun_anew(tmp_path: Path, time: Time, text: str) -> None:
    (tmp_path / "rate").write_text(text)
    bucket(tmp_path / "rate", time).take()
    assert time.waited == []


def test_a_directory_in_its_place_leaves_each_its_own(tmp_path: Path, time: Time) -> None:
    (tmp_path / "rate").mkdir()
    one = bucket(tmp_path / "rate", time)
    for _ in range(4):
        one.take()
    assert time.waited == [0.5]


def test_nobody_waits_for_ever(tmp_path: Path, time: Time) -> None:
    """However many take a turn at once."""
    path = tmp_path / "rate"
    path.write_text("[-1e9, 1000.0]")
    bucket(path, time).take()
    assert max(time.waited) <= 30.0
