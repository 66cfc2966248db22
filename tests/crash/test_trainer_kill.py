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


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGKILL"])
def test_two_ranks_of_which_one_is_told_leave_together(
    parent: trainings.Parent, tmp_path: Path, name: str, spread: str
) -> None:
    """The signal reaches one rank; both stop behind the same optimizer step, and end with the same bits."""
    undisturbed = tmp_path / "undisturbed"
    answer = parent.train(undisturbed, 2, ranks=2, spread=spread)
    assert answer["ends"] == [0, 0], (undisturbed / "log-0").read_text()
    draw = random.Random(name)
    number = trainings.SIGNALS[name]
    for training in range(3 if spread == "ddp" else 2):
        directory = tmp_path / str(training)
        for rank in (0, 1):
            call = draw.randint(answer["calls"] // 10, answer["calls"] * 9 // 10)
            kill = (rank, call, name)
            ends = parent.train(directory, 2, ranks=2, spread=spread, kill=kill)["ends"]
            if name == "SIGKILL":
                assert ends[rank] in (0, -number)
            else:
                assert ends in ([0, 0], [128 + number] * 2), (directory / f"log-{rank}").read_text()
                assert len(trainings.trace(directory, 0)) == len(trainings.trace(directory, 1))
        ends = parent.train(directory, 2, ranks=2, spread=spread)["ends"]
        assert ends == [0, 0], (directory / "log-0").read_text()
        for rank in (0, 1):
            whole = trainings.trace(undisturbed, rank)
            assert lineage(trainings.trace(directory, rank), whole) == whole
            assert trainings.final(directory, rank) == trainings.final(undisturbed, rank)


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, "ddp"), (1, "")), ((2, "fsdp"), (1, "")), ((2, "fsdp"), (2, "ddp")), ((2, "ddp"), (2, "fsdp"))],
    ids=lambda each: f"{each[0]}{each[1]}",
)
def test_others_go_on_with_what_two_have_left(
    parent: trainings.Parent, tmp_path: Path, before: tuple[int, str], after: tuple[int, str]
) -> None:
    """Ended within an epoch: each sample of it is seen once, by those before or by those after, also where
    the model is spread in another way."""
    (ranks, spread), (ranks_after, spread_after) = before, after
    ends = parent.train(tmp_path, 1, ranks=ranks, spread=spread, max_steps=4)["ends"]
    assert ends == [0] * ranks, (tmp_path / "log-0").read_text()
    seen = [json.loads(line) for rank in (0, 1) for line in trainings.trace(tmp_path, rank)]
    assert len(seen) == 4 * ranks
    ends = parent.train(tmp_path, 1, ranks=ranks_after, spread=spread_after, scale=2)["ends"]
    assert ends == [0] * ranks_after, (tmp_path / "log-0").read_text()
    seen = [json.loads(line) for rank in (0, 1) for line in trainings.trace(tmp_path, rank)]
    samples = [sample for (epoch, *_, batch), *_ in seen if epoch == 0 for sample in batch]
    assert sorted(samples) == [*range(28), *range(1000, 1012)]
