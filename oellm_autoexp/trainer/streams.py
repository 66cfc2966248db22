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
    """Anything that can be iterated. A pass that an epoch leaves unfinished goes on in the next one.

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
        #: The state before the very first batch.
        self._first: Any = None
        #: Whether what was restored is the end of a pass.
        self._ended = False
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
        if self._finish() or self._ended or not self._done:
            self._go(epoch, 0)

    def rewind(self) -> None:
        if self._stateful is not None and self._first is not None:
            self._stateful.load_state_dict(copy.deepcopy(self._first))
        self._go(0, 0)

    def take(self) -> Any:
        length = self.length
        if self._ended or (length is not None and self._done >= length):
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
        ended = self._ended
        if self._iterator is None:
            self._note_begin()
        elif not back and self._stateful is not None:
            # A data set may have come to its end with a batch that is not full.
            fetcher = getattr(self._iterator, "_dataset_fetcher", None)
            ended = self._finish() or ended or bool(getattr(fetcher, "ended", False))
            self._known = (done, copy.deepcopy(self._stateful.state_dict()))
        at, state = self._known
        found = {"epoch": self._epoch, "cycle": self._cycle, "done": done, "skip": done - at}
        return found if state is None else {**found, "state": state, "ended": ended}

    def restore(self, state: dict[str, Any]) -> None:
        self._go(state["epoch"], state["cycle"])
        self._done, self._ended = state["done"], state.get("ended", False)
        self._known = (state["done"] - state["skip"], copy.deepcopy(state.get("state")))
        if self._known[1] is not None and self._stateful is not None:
            self._stateful.load_state_dict(copy.deepcopy(self._known[1]))

    def close(self) -> None:
        if self._iterator is not None:
            self.restore(self.state(back=0))

    def _go(self, epoch: int, cycle: int) -> None:
        self._epoch, self._cycle, self._done = epoch, cycle, 0
        self._iterator, self._known, self._ended = None, (0, None), False

    def _finish(self) -> bool:
        """Whether a pass has given all its batches; then it comes to its end, where generators tidy up."""
        if not self._done or self._done != self.length:
            return False
        if not self._ended:
            with aside(self._seed()):
                if next(self._open(), _END) is not _END:
                    what = f"loader {self.name} has more batches than its length ({self.length}) says"
                    warnings.warn(f"{what}; they are left out", stacklevel=2)
            self._ended = True
        return True

    def _note_begin(self) -> None:
        """Ask for the state before the first batch: a data set may remember passes before this one."""
        if self._stateful is not None and not self._done and self._known[1] is None:
            with aside(self._seed()):
                self._known = (0, copy.deepcopy(self._stateful.state_dict()))
            if self._first is None:
                self._first = self._known[1]

    def _seed(self) -> int:
        return self._seed_of(self._epoch, self._cycle, "stream")

    def _next(self) -> Any:
        if self._iterator is not None:
            return next(self._iterator, _END)
        # What a pass draws before its first batch, an order say, follows from the seed.
        with aside(self._seed()):
            iterator = self._open()
            if not self._done:
                return next(iterator, _END)
        return next(iterator, _END)

    def _open(self) -> Iterator[Any]:
        """The pass, from where it is. Whoever calls this for the first time does so `aside`."""
        if self._iterator is not None:
            return self._iterator
        self._note_begin()
        number = self._epoch + self._cycle * CYCLES_APART
        at, _ = self._known
        skip = self._done - at
        if callable(told := getattr(self._dataset, "set_epoch", None)):
            told(number)
        self._generator.manual_seed(self._seed())
        if self.is_global:
            self._iterator = itertools.islice(iter(self._loader), skip, None)
            return self._iterator
        if skip:
            what = f"loader {self.name} keeps no state: {skip} batches are read again to get where it was"
            warnings.warn(f"{what}; give its data set state_dict and load_state_dict", stacklevel=2)
        iterator: Iterator[Any] = iter(self._loader)
        self._iterator = iterator
        for _ in itertools.islice(iterator, skip):
            pass
        return iterator
