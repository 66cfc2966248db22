"""A training that is killed at any call, over and over, is the training that nobody disturbed, bit by bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trainings

#: Kills of each kind, three to a training.
POINTS, CHAIN = 51, 3


@pytest.fixture(scope="module")
def parent() -> Iterator[trainings.Parent]:
    found = trainings.Parent()
    yield found
    found.close()


def lineage(seen: list[str], whole: list[str]) -> list[str]:
    """The batches that the final weights have seen: of what was seen twice, the later one.

    Each attempt must go on somewhere within what the undisturbed training saw, and see the same from there.
    """
    places = {line: number for number, line in enumerate(whole)}
    assert len(places) == len(whole)
    kept: list[str] = []
    for line in seen:
        assert line in places, f"never seen by the undisturbed training: {line}"
        assert places[line] <= len(kept), f"something was left out before {line}"
        kept[places[line] :] = [line]
    return kept


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGKILL"])
def test_killed_anywhere_it_ends_with_the_same_bits(
    parent: trainings.Parent, tmp_path: Path, name: str, accumulation: int
) -> None:
    """Losses, learning rates, samples, weights, optimizer, random numbers and metrics are all equal."""
    undisturbed = tmp_path / "undisturbed"
    answer = parent.train(undisturbed, accumulation)
    assert answer["ends"] == [0]
    whole, wanted = trainings.trace(undisturbed), trainings.final(undisturbed)
    draw = random.Random(f"{name} {accumulation}")
    number = trainings.SIGNALS[name]
    for training in range(POINTS // CHAIN):
        directory = tmp_path / str(training)
        for _ in range(CHAIN):
            before = len(trainings.trace(directory))
            call = draw.randint(1, answer["calls"])
            (end,) = parent.train(directory, accumulation, kill=(0, call, name))["ends"]
            assert end in (0, -number, 128 + number), (directory / "log-0").read_text()
            if end == 128 + number and before:
                again = trainings.trace(directory)[before:]
                assert not set(again[:1]) & set(trainings.trace(directory)[:before])
        assert parent.train(directory, accumulation)["ends"] == [0], (directory / "log-0").read_text()
        assert lineage(trainings.trace(directory), whole) == whole
        assert trainings.final(directory) == wanted


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGKILL"])
def test_two_ranks_of_which_one_is_told_leave_together(
    parent: trainings.Parent, tmp_path: Path, name: str
) -> None:
    """The signal reaches one rank; both stop behind the same optimizer step, and end with the same bits."""
    undisturbed = tmp_path / "undisturbed"
    answer = parent.train(undisturbed, 2, ranks=2)
    assert answer["ends"] == [0, 0]
    draw = random.Random(name)
    number = trainings.SIGNALS[name]
    for training in range(3):
        directory = tmp_path / str(training)
        for rank in (0, 1):
            call = draw.randint(answer["calls"] // 10, answer["calls"] * 9 // 10)
            ends = parent.train(directory, 2, ranks=2, kill=(rank, call, name))["ends"]
            if name == "SIGKILL":
                assert ends[rank] in (0, -number)
            else:
                assert ends in ([0, 0], [128 + number] * 2), (directory / f"log-{rank}").read_text()
                assert len(trainings.trace(directory, 0)) == len(trainings.trace(directory, 1))
        assert parent.train(directory, 2, ranks=2)["ends"] == [0, 0], (directory / "log-0").read_text()
        for rank in (0, 1):
            whole = trainings.trace(undisturbed, rank)
            assert lineage(trainings.trace(directory, rank), whole) == whole
            assert trainings.final(directory, rank) == trainings.final(undisturbed, rank)


def test_one_process_goes_on_with_what_two_have_left(parent: trainings.Parent, tmp_path: Path) -> None:
    """Stopped within an epoch: each sample of it is seen once, by the two or by the one."""
    directory = tmp_path / "shrunk"
    calls = parent.train(tmp_path / "undisturbed", 1, ranks=2)["calls"]
    ends = parent.train(directory, 1, ranks=2, kill=(0, calls // 4, "SIGTERM"))["ends"]
    assert ends == [143, 143], (directory / "log-0").read_text()
    before = [json.loads(line) for rank in (0, 1) for line in trainings.trace(directory, rank)]
    assert {seen[0] for seen, *_ in before} == {0}
    assert parent.train(directory, 1, scale=2)["ends"] == [0], (directory / "log-0").read_text()
    lines = {line for rank in (0, 1) for line in trainings.trace(directory, rank)}
    samples = [sample for line in lines for sample in json.loads(line)[0][4] if json.loads(line)[0][0] == 0]
    assert sorted(samples) == [*range(28), *range(1000, 1012)]
