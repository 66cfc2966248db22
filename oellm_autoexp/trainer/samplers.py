"""Which samples make which batch: the order of a pass over a data set, and the share of each process.

The order of a shuffled pass follows from a seed alone, never from the state of a generator; so any of its
batches is found by its number, and no data is read to get there.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

#: So many batches of an order are made Python's numbers in one go.
_AT_ONCE = 64

#: The samples of one pass in the order of all processes together.
Order: TypeAlias = "Sequence[Any] | torch.Tensor"


@contextmanager
def aside(seed: int) -> Iterator[None]:
    """Random numbers within come from `seed`, and those after it are as if nothing had been drawn.

    Concerns the generators of Python, NumPy (where it is loaded) and torch on the CPU; half a millisecond.
    """
    numpy = sys.modules.get("numpy")
    kept = random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None
    sow(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        torch.set_rng_state(kept[1])
        if numpy and kept[2] is not None:
            numpy.random.set_state(kept[2])


def sow(seed: int) -> None:
    """Let random numbers of Python, NumPy (where it is loaded) and torch on the CPU follow from `seed`."""
    random.seed(seed)
    # Not `torch.manual_seed`, which would also sow the devices.
    torch.default_generator.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed([seed & 0xFFFFFFFF, seed >> 32])


def shuffled(samples: int, seed: int) -> torch.Tensor:
    """All numbers below `samples`, in an order that follows from `seed`; 8 bytes each."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def drawn(sampler: Any, seed: int) -> Order:
    """What a sampler gives in a pass: read to its end, with whatever it draws following from `seed`.

    A sampler without a length is not read ahead; it must take its random numbers from a generator of its own.
    """
    generator = getattr(sampler, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    with aside(seed):
        return list(sampler)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `world` processes takes of each pass over `samples`, in batches.

    All processes together take the order from its front: after k batches of each, its first k · size · world
    samples are used up. A pass may start behind `start` samples that were used up before. With `drop_tail`
    what does not make a sample for each process is left out, else the first samples fill up; with `drop_last`
    the last batch is left out where it is not full (both as `DistributedSampler` and `DataLoader` have it).
    """

    samples: int
    size: int
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    drop_tail: bool = False

    def each(self, start: int = 0) -> int:
        """Samples that each process takes of a pass."""
        left = self.samples - start
        return left // self.world if self.drop_tail else -(-left // self.world)

    def batches(self, start: int = 0) -> int:
        """Batches that each process takes of a pass."""
        each = self.each(start)
        return each // self.size if self.drop_last else -(-each // self.size)

    def used(self, batches: int, start: int = 0) -> int:
        """Samples of the order that are used up after so many batches of each process."""
        if batches >= self.batches(start):
            return self.samples
        return min(self.samples, start + batches * self.size * self.world)

    def run(self, order: Order, number: int, start: int = 0) -> Iterator[list[Any]]:
        """The batches of this process from that number on."""
        wide, each, last = self.size * self.world, self.each(start), self.batches(start)
        for at in range(number, last, _AT_ONCE):
            piece = order[start + at * wide : start + (at + _AT_ONCE) * wide]
            numbers = piece.tolist() if isinstance(piece, torch.Tensor) else list(piece)
            for batch in range(at, min(at + _AT_ONCE, last)):
                begin = (batch - at) * wide
                if (batch + 1) * self.size <= each and begin + wide <= len(numbers):
                    yield numbers[begin + self.rank : begin + wide : self.world]
                else:
                    yield self.batch(order, batch, start)

    def batch(self, order: Order, number: int, start: int = 0) -> list[Any]:
        """The samples of this process's batch of that number (0-based, counted from `start`)."""
        begin, end = number * self.size, min((number + 1) * self.size, self.each(start))
        first, beyond = start + begin * self.world + self.rank, start + end * self.world
        found = order[first : min(beyond, self.samples) : self.world]
        batch: list[Any] = found.tolist() if isinstance(found, torch.Tensor) else list(found)
        for place in range(first + len(batch) * self.world, beyond, self.world):
            again = order[(place - self.samples) % self.samples]
            batch.append(again.item() if isinstance(again, torch.Tensor) else again)
        return batch


class Aim:
    """The index sampler of a `DataLoader`: each time it is iterated, it gives what it was last pointed at."""

    def __init__(self) -> None:
        self._batches: Iterable[Any] = ()

    def at(self, batches: Iterable[Any]) -> None:
        """Point at the rest of a pass."""
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class Sown:
    """A map-style data set whose random numbers follow from the batch, not from who loads it or when.

    It is asked for (seed, indices), and passes everything else on to the data set within, so that code that
    meets it in a worker finds the attributes it looks for.
    """

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_within", dataset)

    def __getitems__(self, asked: tuple[int, list[Any]]) -> list[Any]:
        seed, indices = asked
        sow(seed)
        dataset = self._within
        many = getattr(dataset, "__getitems__", None)
        return list(many(indices)) if many else [dataset[index] for index in indices]

    def __getitem__(self, asked: tuple[int, Any]) -> Any:
        seed, index = asked
        sow(seed)
        return self._within[index]

    def __len__(self) -> int:
        return len(self._within)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._within, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._within, name, value)

    def __reduce__(self) -> tuple[type[Sown], tuple[Any]]:
        return type(self), (self._within,)
