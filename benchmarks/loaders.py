"""What reading through a set of loaders costs, beside the bare loop over torch's DataLoaders.

    python benchmarks/loaders.py [BATCHES]

Shuffled loaders over tensors in memory, 32 samples of 64 numbers a batch, that take turns one batch each; all
with full resumability on. The bare loop calls `next` on the iterators of the same loaders in turn. Both are
read alternately, and the best of seven passes counts; CPU is that of the process that reads. Then: a state,
and going on at the middle of an epoch.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from table import Table, number
from torch.utils.data import DataLoader, Dataset

from oellm_autoexp.core.experiment import MultiDataLoaderConfig
from oellm_autoexp.trainer.loaders import LoaderSet

SIZE = 32
REPEATS = 7


class Rows(Dataset[torch.Tensor]):
    """Rows of a tensor."""

    def __init__(self, samples: int) -> None:
        self.rows = torch.zeros(samples, 64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


def loaders(count: int, workers: int, batches: int) -> list[DataLoader[torch.Tensor]]:
    keys = {"num_workers": workers, "persistent_workers": workers > 0}
    data = Rows(SIZE * batches // count)
    return [DataLoader(data, SIZE, shuffle=True, **keys) for _ in range(count)]


def bare(made: list[DataLoader[torch.Tensor]]) -> Callable[[], Iterator[torch.Tensor]]:
    def read() -> Iterator[torch.Tensor]:
        live = [iter(loader) for loader in made]
        for _ in range(len(made[0])):
            for each in live:
                yield next(each)

    return read


def ours(made: LoaderSet) -> Callable[[], Iterator[torch.Tensor]]:
    def read() -> Iterator[torch.Tensor]:
        for batch in made.epoch(0):
            yield batch.data

    return read


def spent(read: Callable[[], Iterator[torch.Tensor]]) -> tuple[float, float]:
    """Seconds by the wall, and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in read():
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(batches: int) -> None:
    heads = "samples/s", "bare", "ratio", "CPU µs a batch", "bare CPU"
    table = Table("workers each", "loaders", *heads, left=(12,))
    for workers in (0, 2):
        for count in (1, 2, 4):
            made = LoaderSet(loaders(count, workers, batches), MultiDataLoaderConfig(), seed=1)
            readers = bare(loaders(count, workers, batches)), ours(made)
            for read in readers:
                spent(read)
            passes = [[spent(read) for read in readers] for _ in range(REPEATS)]
            (their_s, their_cpu_s), (our_s, our_cpu_s) = (
                [min(each) for each in zip(*times, strict=True)] for times in zip(*passes, strict=True)
            )
            total = made.length()
            table.row(
                str(workers),
                str(count),
                number(SIZE * total / our_s),
                number(SIZE * total / their_s),
                number(their_s / our_s),
                number(our_cpu_s / total * 1e6),
                number(their_cpu_s / total * 1e6),
            )
            made.close()


def resuming(batches: int) -> None:
    made = LoaderSet(loaders(2, 0, batches), MultiDataLoaderConfig(), seed=1)
    iterator = made.epoch(0)
    for _ in range(batches // 2):
        next(iterator)
    made.consumed()
    started = time.perf_counter()
    for _ in range(100):
        state = made.state_dict()
    state_us = (time.perf_counter() - started) * 1e4
    again = LoaderSet(loaders(2, 0, batches), MultiDataLoaderConfig(), seed=1)
    started = time.perf_counter()
    again.load_state_dict(state)
    next(again.epoch(0))
    ms = (time.perf_counter() - started) * 1e3
    print(f"a state: {number(state_us)} µs; the batch behind {batches // 2:,} others: after {number(ms)} ms")


def main() -> None:
    # More workers than CPUs are meant here.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    torch.set_num_threads(1)
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    compare(batches)
    resuming(batches)


if __name__ == "__main__":
    main()
