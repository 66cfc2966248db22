"""A loader that can only be read on: iterable data sets, stateful loaders, plain iterables."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from oellm_autoexp.errors import LoaderError
from oellm_autoexp.trainer.samplers import aside
from oellm_autoexp.trainer.schedule import Length
from oellm_autoexp.trainer.sources import CYCLES_APART, SeedOf, has_state, rebuilt

_END = object()


class StreamSource:
    """Anything that can be iterated.

    It goes on from the state of the loader, or of a data set that is read in this process; without one the
    batches of the pass are read again and thrown away.
    """

    def __init__(
        self, name: str, loader: Any, seed_of: SeedOf, *, cycles: bool, prefetch: int | None
    ) -> None:
        self.name, self._seed_of, self._cycles = name, seed_of, cycles
        self.workers = getattr(loader, "num_workers", 0) or 0
        self.is_global = isinstance(loader, Sequence)
        self.shares_itself = True
        self._generator = torch.Generator()
        self._dataset: Any = getattr(loader, "dataset", None)
        #: What knows its state.
        self._stateful: Any = loader if has_state(loader) else None
        if type(loader) is DataLoader:
            # New workers in each pass: those that live on would go on with their random numbers.
            how = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
            self._loader = rebuilt(loader, self._dataset, self._generator, prefetch, **how)
            if not self.workers and has_state(self._dataset):
                self._stateful = self._dataset
        else:
            self._loader = loader
            if self.workers and prefetch is not None:
                loader.prefetch_factor = min(loader.prefetch_factor or prefetch, prefetch)
        self._epoch = self._cycle = self._done = 0
        self._iterator: Iterator[Any] | None = None
        #: A state, and after how many batches of the pass it was taken.
        self._known: tuple[int, Any] = (0, None)
        try:
            self.length: Length = len(self._loader)
        except (TypeError, NotImplementedError):
            self.length = None

    @property
    def left(self) -> Length:
        return None if self.length is None else self.length - self._done

    @property
    def keeps_state(self) -> bool:
        """Whether it goes on without reading again; plain iterables need not."""
        return self._stateful is not None or not isinstance(self._dataset, IterableDataset)

    def geometry(self) -> dict[str, Any]:
        return {"length": self.length}

    def begin(self, epoch: int) -> None:
        if self.length is None and self._done:
            return
        if self._known[1] is not None and self._iterator is None:
            # Restored and not read since: what it was told last is where it goes on.
            with aside(self._seed()):
                self._open()
        self._finish()
        self._go(epoch, 0)

    def take(self) -> Any:
        length = self.length
        if length is not None and self._done >= length:
            self._finish()
            self._go(self._epoch, self._cycle + 1)
        batch = self._next()
        if batch is _END and length is None and self._cycles:
            self._go(self._epoch, self._cycle + 1)
            batch = self._next()
            if batch is _END:
                what = f"loader {self.name} has ended, and gives nothing when it is iterated again"
                raise LoaderError(
                    what, hint="give something that can be iterated twice, a list or a data set, say"
                )
        if batch is _END:
            what = f"loader {self.name} ended after {self._done} batches"
            hint = "set cycle_short_loaders, or ask for fewer steps"
            if length is not None:
                what, hint = f"{what}, and its length is {length}", "its `__len__` must tell what it gives"
            raise LoaderError(what, hint=hint)
        self._done += 1
        return batch

    def state(self, *, back: int) -> dict[str, Any]:
        done = self._done - back
        # Before its first batch a pass needs no state, but a data set may remember passes before it.
        asked = self._stateful is not None and (self._iterator is not None or self._stateful is self._dataset)
        if not back and asked:
            self._known = (done, copy.deepcopy(self._stateful.state_dict()))
        at, state = self._known
        found = {"epoch": self._epoch, "cycle": self._cycle, "done": done, "skip": done - at}
        return found if state is None else {**found, "state": state}

    def restore(self, state: dict[str, Any]) -> None:
        self._go(state["epoch"], state["cycle"])
        self._done = state["done"]
        self._known = (state["done"] - state["skip"], copy.deepcopy(state.get("state")))
        if self._known[1] is not None and self._stateful is not None:
            self._stateful.load_state_dict(copy.deepcopy(self._known[1]))

    def close(self) -> None:
        self._iterator = None

    def _go(self, epoch: int, cycle: int) -> None:
        self._epoch, self._cycle, self._done = epoch, cycle, 0
        self._iterator, self._known = None, (0, None)

    def _finish(self) -> None:
        """Let a pass that has given all its batches come to its end: generators tidy up there."""
        if self._done and self._done == self.length:
            with aside(self._seed()):
                if self._iterator is None:
                    self._open()
                if next(self._iterator or iter(()), _END) is not _END:
                    what = f"loader {self.name} has more batches than its length ({self.length}) says"
                    warnings.warn(f"{what}; they are left out", stacklevel=2)

    def _seed(self) -> int:
        return self._seed_of(self._epoch, self._cycle, "stream")

    def _next(self) -> Any:
        if self._iterator is not None:
            return next(self._iterator, _END)
        # What a pass draws before its first batch, an order say, follows from the seed.
        with aside(self._seed()):
            self._open()
            if not self._done:
                return next(self._iterator or iter(()), _END)
        return next(self._iterator or iter(()), _END)

    def _open(self) -> None:
        """Iterate, and get where the pass is. Random numbers come from the seed of the pass meanwhile."""
        number = self._epoch + self._cycle * CYCLES_APART
        at, _ = self._known
        skip = self._done - at
        if callable(told := getattr(self._dataset, "set_epoch", None)):
            told(number)
        self._generator.manual_seed(self._seed())
        if self.is_global:
            self._iterator = itertools.islice(iter(self._loader), skip, None)
            return
        if skip:
            what = f"loader {self.name} keeps no state: {skip} batches are read again to get where it was"
            warnings.warn(f"{what}; give its data set state_dict and load_state_dict", stacklevel=2)
        self._iterator = iter(self._loader)
        for _ in itertools.islice(self._iterator, skip):
            pass
