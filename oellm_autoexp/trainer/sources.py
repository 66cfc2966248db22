"""One loader of numbered samples, read from any place by the number of the batch.

A *pass* reads a loader from its beginning to its end. A new one begins with each epoch, and wherever a loader
is gone through again within it; a *cycle* is its number in the epoch.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset

from oellm_autoexp.errors import LoaderError
from oellm_autoexp.trainer.samplers import Aim, Order, Share, Sown, aside, drawn, shuffled
from oellm_autoexp.trainer.schedule import Length

#: `set_epoch` is told `epoch + cycle * this`, so that no two passes are told the same.
CYCLES_APART = 1_000_003

_DISTRIBUTED = ("DistributedSampler", "StatefulDistributedSampler")

#: The seed of a pass, or of something within it, by (epoch, cycle, further parts).
SeedOf = Callable[..., int]


class Source(Protocol):
    """What a set of loaders knows of each of them."""

    name: str
    #: Worker processes, each of which reads ahead.
    workers: int
    #: Whether its state is the same on all processes.
    is_global: bool
    #: Whether it has been told what part of the data is this process's, and cannot be told otherwise.
    shares_itself: bool

    @property
    def length(self) -> Length:
        """Batches of this process in a whole pass."""

    @property
    def left(self) -> Length:
        """Batches of this process that are left in the pass under way."""

    def geometry(self) -> dict[str, Any]:
        """What must stay as it is for batches to stay as they are."""

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""

    def rewind(self) -> None:
        """Go back to where it first began, in the middle of a pass too."""

    def take(self) -> Any:
        """The next batch. Raises LoaderError where there is none."""

    def state(self, *, back: int) -> dict[str, Any]:
        """Where it is, or was one batch ago with `back=1`."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go where that state was taken."""

    def close(self) -> None:
        """Let go of workers and of what they have read ahead."""


def has_state(thing: Any) -> bool:
    """Whether it can be asked where it is, and be put there."""
    return all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict"))


def is_torchs(thing: Any, *names: str) -> bool:
    """Whether it is of one of these classes of torch or torchdata, and of no class made from them."""
    return type(thing).__name__ in names and type(thing).__module__.partition(".")[0] in (
        "torch",
        "torchdata",
    )


def is_map_style(loader: Any) -> bool:
    """Whether it is a torch DataLoader over a data set with numbered samples, iterated in torch's way."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    own = type(loader).__iter__ is not DataLoader.__iter__
    return not own or is_torchs(loader, "StatefulDataLoader")


def rebuilt(loader: Any, dataset: Any, generator: torch.Generator, prefetch: int | None, **how: Any) -> Any:
    """The same loader over what it is told to read, with a generator of its own."""
    factor = loader.prefetch_factor
    if factor is not None and prefetch is not None:
        factor = min(factor, prefetch)
    accelerator = getattr(torch, "accelerator", torch.cuda)
    with warnings.catch_warnings():
        # Torch has warned of too many workers already.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(
            dataset,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory and accelerator.is_available(),
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
            prefetch_factor=factor,
            **how,
        )


# ---------------------------------------------------------------- map-style


class MapSource:
    """A torch DataLoader over numbered samples, read through one of ours that asks for batches by number.

    `world` is (rank, processes), which share the samples, unless a distributed sampler says how; None: they
    do not.
    """

    is_global = True

    def __init__(
        self, name: str, loader: Any, seed_of: SeedOf, *, world: tuple[int, int] | None, prefetch: int | None
    ) -> None:
        self.name, self.workers = name, loader.num_workers
        self._given, self._seed_of, self._prefetch = loader, seed_of, prefetch
        own_batches = loader.batch_sampler is not None and not is_torchs(loader.batch_sampler, "BatchSampler")
        #: Whether an entry of the order is all that the data set is asked for at once.
        self._single = own_batches or loader.batch_sampler is None
        self._sampler = loader.batch_sampler if own_batches else loader.sampler
        if loader.batch_sampler is not None and not own_batches:
            self._sampler = loader.batch_sampler.sampler
        self._rank, self._world, self._drop_tail = *(world or (0, 1)), loader.drop_last
        self.shares_itself = world is None
        sampler = self._sampler
        #: What Fabric's distributed sampler is wrapped around.
        within = getattr(getattr(sampler, "dataset", None), "_sampler", None)
        if is_torchs(sampler, *_DISTRIBUTED) or within is not None:
            self._rank, self._world, self._drop_tail = sampler.rank, sampler.num_replicas, sampler.drop_last
            self._sampler, self.shares_itself = sampler if within is None else within, False
        elif hasattr(sampler, "num_replicas"):
            self._rank, self._world, self.shares_itself = 0, 1, True
        self._epoch = self._cycle = self._start = self._done = 0
        self._sampler_state: Any = None
        self._aim, self._generator = Aim(), torch.Generator()
        self._loader: Any = None
        self._iterator: Iterator[Any] | None = None
        self._share = self._measured()

    def _measured(self) -> Share | None:
        try:
            samples = len(self._samples_of())
        except TypeError:
            return None
        size, drop_last = (1, False) if self._single else (self._given.batch_size, self._given.drop_last)
        return Share(samples, size, drop_last, self._rank, self._world, self._drop_tail)

    def _samples_of(self) -> Any:
        """What is as long as a pass of all processes together."""
        return self._sampler.dataset if is_torchs(self._sampler, *_DISTRIBUTED) else self._sampler

    @property
    def length(self) -> Length:
        return self._share.batches() if self._share else None

    @property
    def left(self) -> Length:
        return self._share.batches(self._start) - self._done if self._share else None

    def geometry(self) -> dict[str, Any]:
        share = self._share
        if share is None:
            return {"batch": (self._given.batch_size or 1) * self._world}
        return {"samples": share.samples, "batch": share.size * share.world, "length": share.batches()}

    def begin(self, epoch: int) -> None:
        if self._share is not None or not self._done:
            self._go(epoch, 0, 0, 0)

    def rewind(self) -> None:
        self._go(0, 0, 0, 0)

    def take(self) -> Any:
        if self._share and self._done >= self._share.batches(self._start):
            self._go(self._epoch, self._cycle + 1, 0, 0)
        if self._iterator is None:
            self._iterator = self._opened()
        try:
            batch = next(self._iterator)
        except StopIteration:
            what = f"loader {self.name} ended after {self._done} batches of its pass"
            raise LoaderError(what, hint="its sampler gives less than its length says") from None
        self._done += 1
        return batch

    def state(self, *, back: int) -> dict[str, Any]:
        done = self._done - back
        state: dict[str, Any] = {
            "epoch": self._epoch,
            "cycle": self._cycle,
            "start": self._start,
            "done": done,
        }
        state["used"] = self._share.used(done, self._start) if self._share else done
        if has_state(self._sampler):
            # As it was when the pass began: what it gave since then may be ahead of what was consumed.
            begun = self._sampler_state
            state["sampler"] = copy.deepcopy(self._sampler.state_dict()) if begun is None else begun
            state["drawn"] = begun is not None
        return state

    def restore(self, state: dict[str, Any]) -> None:
        start, done, share = state["start"], state["done"], self._share
        if share and (share.used(done, start) != state["used"] or done > share.batches(start)):
            # Batches have another size now: what is left of the pass is counted from here.
            start, done = state["used"], 0
        self._sampler_state = None
        self._go(state["epoch"], state["cycle"], start, done)
        if "sampler" in state and has_state(self._sampler):
            self._sampler.load_state_dict(copy.deepcopy(state["sampler"]))
            self._sampler_state = state["sampler"] if state["drawn"] else None

    def close(self) -> None:
        self._iterator = self._loader = None

    def _go(self, epoch: int, cycle: int, start: int, done: int) -> None:
        if self._sampler_state is not None and self._iterator is None and self._share is not None:
            # Restored and not read since: a sampler with a state is where a pass has taken it.
            self._order(self._seed_of(self._epoch, self._cycle, "order"))
        self._epoch, self._cycle, self._start, self._done = epoch, cycle, start, done
        self._iterator = self._sampler_state = None
        for sampler in (self._sampler, self._given.sampler, getattr(self._sampler, "sampler", None)):
            if callable(told := getattr(sampler, "set_epoch", None)):
                told(epoch + cycle * CYCLES_APART)
        # Its length may be another one in each pass.
        self._share = self._measured()

    def _opened(self) -> Iterator[Any]:
        """The batches from here to the end of the pass."""
        if self._loader is None:
            dataset = Sown(self._given.dataset) if self.workers else self._given.dataset
            how: dict[str, Any] = {"persistent_workers": self._given.persistent_workers}
            if self._given.batch_sampler is None:
                how.update(batch_size=None, sampler=self._aim)
            else:
                how.update(batch_sampler=self._aim)
            self._loader = rebuilt(self._given, dataset, self._generator, self._prefetch, **how)
        if self._sampler_state is None and has_state(self._sampler):
            self._sampler_state = copy.deepcopy(self._sampler.state_dict())
        self._aim.at(self._asked())
        self._generator.manual_seed(self._seed_of(self._epoch, self._cycle, "workers"))
        return iter(self._loader)

    def _asked(self) -> Iterator[Any]:
        """What the data set is asked for, batch by batch; workers are told a seed for each, too.

        It knows nothing of this source, so that workers end when nobody uses it any more.
        """
        seed = self._seed_of(self._epoch, self._cycle, "order")
        share, start, done = self._share, self._start, self._done
        batches: Iterator[Any]
        wide = share.size * share.world if share else 1
        if share is None:
            size = 1 if self._single else self._given.batch_size
            batches = _endless(self._sampler, seed, done, size, self._rank, self._world)
        else:
            order = self._order(seed)
            if len(order) != share.samples:
                what = f"the sampler of loader {self.name} gave {len(order)}, its length is {share.samples}"
                raise LoaderError(what, hint="its `__len__` must tell what `__iter__` gives in this epoch")
            batches = share.run(order, done, start)
        if self._single:
            batches = (batch[0] for batch in batches)
        if self.workers:
            seed_of = partial(self._seed_of, self._epoch, self._cycle, "batch", self._rank)
            batches = ((seed_of(start + number * wide), asked) for number, asked in enumerate(batches, done))
        return batches

    def _order(self, seed: int) -> Order:
        sampler, samples = self._sampler, len(self._samples_of())
        if is_torchs(sampler, "SequentialSampler"):
            return range(samples)
        if is_torchs(sampler, *_DISTRIBUTED):
            return shuffled(samples, seed) if sampler.shuffle else range(samples)
        whole = is_torchs(sampler, "RandomSampler") and samples == len(sampler.data_source)
        if whole and not sampler.replacement:
            return shuffled(samples, seed)
        return drawn(sampler, seed)


def _endless(sampler: Any, seed: int, done: int, size: int, rank: int, world: int) -> Iterator[list[Any]]:
    """This process's batches of a sampler without a length, behind those that are done."""
    with aside(seed):
        samples = iter(sampler)
        for _ in itertools.islice(samples, done * size * world):
            pass
    while batch := list(itertools.islice(samples, size * world))[rank::world]:
        yield batch
