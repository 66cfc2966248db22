"""What steps report, added up: by loader, over an interval, an epoch or a validation.

Names are `train/<k>` and `val/<k>` over all loaders, `train/dl_<name>/<k>` and `val/dl_<name>/<k>` for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import reduce
from operator import add, mul
from typing import Any

import torch
from torch import Tensor

Values = Mapping[str, Any]
_Report = tuple[str, Values, int]
#: Loader → the samples of its batches, and name → figures with the samples of the batches that have them.
Columns = dict[str, tuple[list[int], dict[str, tuple[list[float], list[int]]]]]

#: So many batches may wait for being added up.
_WAITING = 1024


class AggregationStrategy(str, Enum):
    """How the batches of several loaders give one figure."""

    #: Each sample counts the same.
    WEIGHTED_AVERAGE = "weighted_average"
    #: Each batch counts the same within its loader, and each loader the same.
    SIMPLE_AVERAGE = "simple_average"
    SUM = "sum"
    MAX = "max"
    MIN = "min"


class Tally:
    """Sums of what steps report, by loader and name.

    What is still on a device is kept and read in one go, so that no step waits for its own figures.
    A sum is: weighted by samples, samples, unweighted, batches, highest, lowest.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {}
        self._batches: dict[str, int] = {}
        self._samples: dict[str, int] = {}
        self._waiting: list[_Report] = []

    def add(self, loader: str, values: Values, samples: int) -> None:
        """One batch: scalars by name (numbers, or tensors of one item), and how many samples it had."""
        self._waiting.append((loader, values, samples))
        if len(self._waiting) >= _WAITING:
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            self.fold(columns(self._waiting))
            self._waiting.clear()

    def fold(self, found: Columns) -> None:
        """Add batches one by one, in their order: the same sums, bit by bit, whenever they are folded."""
        for loader, (sizes, of_name) in found.items():
            self._batches[loader] = self._batches.get(loader, 0) + len(sizes)
            self._samples[loader] = self._samples.get(loader, 0) + sum(sizes)
            sums = self._sums.setdefault(loader, {})
            for name, (values, samples) in of_name.items():
                each = sums.setdefault(name, [0.0, 0, 0.0, 0, values[0], values[0]])
                each[0] = reduce(add, map(mul, values, samples), each[0])
                each[1] += sum(samples)
                each[2] = reduce(add, values, each[2])
                each[3] += len(values)
                each[4] = reduce(max, values, each[4])
                each[5] = reduce(min, values, each[5])

    @property
    def batches(self) -> dict[str, int]:
        self._settle()
        return dict(self._batches)

    @property
    def samples(self) -> dict[str, int]:
        self._settle()
        return dict(self._samples)

    def by_loader(self, strategy: AggregationStrategy) -> dict[str, dict[str, float]]:
        """Loader → name → figure."""
        self._settle()
        return {
            loader: {name: _figure(each, strategy) for name, each in sums.items()}
            for loader, sums in self._sums.items()
        }

    def overall(self, strategy: AggregationStrategy) -> dict[str, float]:
        """Name → figure over all loaders that report it."""
        self._settle()
        found: dict[str, list[list[float]]] = {}
        for sums in self._sums.values():
            for name, each in sums.items():
                found.setdefault(name, []).append(each)
        return {name: _over_loaders(each, strategy) for name, each in found.items()}

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        sums = {loader: {name: list(each) for name, each in of.items()} for loader, of in self._sums.items()}
        return {"sums": sums, "batches": dict(self._batches), "samples": dict(self._samples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting.clear()
        self._sums = {
            loader: {name: list(each) for name, each in of.items()} for loader, of in state["sums"].items()
        }
        self._batches, self._samples = dict(state["batches"]), dict(state["samples"])

    @classmethod
    def merged(cls, states: Sequence[Mapping[str, Any]]) -> Tally:
        """The tallies of all ranks as one."""
        whole = cls()
        for state in states:
            for loader, count in state["batches"].items():
                whole._batches[loader] = whole._batches.get(loader, 0) + count
                whole._samples[loader] = whole._samples.get(loader, 0) + state["samples"][loader]
            for loader, sums in state["sums"].items():
                target = whole._sums.setdefault(loader, {})
                for name, each in sums.items():
                    target[name] = _added(target[name], each) if name in target else list(each)
        return whole


def scalars(outputs: Values, on_cpu: bool) -> dict[str, Any]:
    """The figures of what a step returned, cut off from its graph: numbers, and tensors of one item."""
    found: dict[str, Any] = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            if value.numel() == 1:
                found[name] = value.item() if on_cpu else value.detach()
        elif isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def columns(reports: Sequence[_Report]) -> Columns:
    """What batches report, by loader and name; tensors become numbers in one transfer, however many."""
    tensors = [value for _, values, _ in reports for value in values.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([each.float().reshape(()) for each in tensors]).tolist() if tensors else ())
    found: Columns = {}
    for loader, values, samples in reports:
        sizes, of_name = found.setdefault(loader, ([], {}))
        sizes.append(samples)
        for name, value in values.items():
            column, its_samples = of_name.setdefault(name, ([], []))
            column.append(next(numbers) if isinstance(value, Tensor) else float(value))
            its_samples.append(samples)
    return found


def samples_of(batch: Any, outputs: Values) -> int:
    """How many samples a batch has: as the step says (`num_samples`, `batch_size`), else its first tensor."""
    for name in ("num_samples", "batch_size"):
        if name in outputs:
            return int(outputs[name])
    while isinstance(batch, (list, tuple, dict)) and batch:
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    shape = getattr(batch, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else 1


def _figure(each: Sequence[float], strategy: AggregationStrategy) -> float:
    weighted, samples, total, batches, highest, lowest = each
    if strategy is AggregationStrategy.WEIGHTED_AVERAGE:
        return weighted / samples if samples else math.nan
    if strategy is AggregationStrategy.SIMPLE_AVERAGE:
        return total / batches
    if strategy is AggregationStrategy.SUM:
        return total
    return highest if strategy is AggregationStrategy.MAX else lowest


def _over_loaders(sums: Sequence[Sequence[float]], strategy: AggregationStrategy) -> float:
    if strategy is AggregationStrategy.SIMPLE_AVERAGE:
        return math.fsum(_figure(each, strategy) for each in sums) / len(sums)
    whole = list(sums[0])
    for each in sums[1:]:
        whole = _added(whole, each)
    return _figure(whole, strategy)


def _added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    sums = [one[place] + other[place] for place in range(4)]
    return [*sums, max(one[4], other[4]), min(one[5], other[5])]


class MetricsManager:
    """The figures of a training: of the running interval, of the running epoch, and the best so far.

    `window`: so many batches can be taken back.
    """

    def __init__(
        self,
        train_loader_names: Sequence[str] = (),
        val_loader_names: Sequence[str] = (),
        aggregation_strategy: AggregationStrategy = AggregationStrategy.WEIGHTED_AVERAGE,
        *,
        window: int = 1,
    ) -> None:
        self.train_loader_names = tuple(train_loader_names)
        self.val_loader_names = tuple(val_loader_names)
        self.strategy = AggregationStrategy(aggregation_strategy)
        self._interval, self._epoch = Tally(), Tally()
        self._window, self._most = window, _WAITING + window
        self._waiting: list[_Report] = []
        self._best: dict[str, list[float]] = {}

    def add_train_batch(self, loader: str, values: Values, samples: int) -> None:
        """What a batch of training reports; it counts for the interval and for the epoch."""
        self._waiting.append((loader, values, samples))
        if len(self._waiting) >= self._most:
            self._settle(len(self._waiting) - self._window)

    def take_back(self, batches: int) -> None:
        """The latest batches do not count: nothing was learned of them."""
        del self._waiting[-batches:]

    def _settle(self, batches: int | None = None) -> None:
        if self._waiting:
            found = columns(self._waiting[:batches])
            self._interval.fold(found)
            self._epoch.fold(found)
            del self._waiting[:batches]

    def end_interval(self) -> Tally:
        """The interval that ends here."""
        self._settle()
        done, self._interval = self._interval, Tally()
        return done

    def end_epoch(self) -> Tally:
        """The epoch that ends here."""
        self._settle()
        done, self._epoch = self._epoch, Tally()
        return done

    def named(
        self,
        tally: Tally,
        phase: str,
        *,
        strategy: AggregationStrategy | None = None,
        per_loader: bool = True,
        overall: bool = True,
    ) -> dict[str, float]:
        """A tally under the names that are logged; `phase` is train or val."""
        strategy = strategy or self.strategy
        found = (
            {f"{phase}/{name}": value for name, value in tally.overall(strategy).items()} if overall else {}
        )
        if per_loader:
            for loader, values in tally.by_loader(strategy).items():
                found.update({f"{phase}/dl_{loader}/{name}": value for name, value in values.items()})
        return found

    def note(self, metrics: Mapping[str, float]) -> None:
        """Keep the best of each metric."""
        for name, value in metrics.items():
            if not math.isnan(value):
                low, high = self._best.get(name, (value, value))
                self._best[name] = [min(low, value), max(high, value)]

    def get_best_metric(self, name: str, mode: str = "min", phase: str = "val") -> float | None:
        """The best value so far of `<phase>/<name>`; None where it never was reported."""
        best = self._best.get(f"{phase}/{name}", self._best.get(name))
        return None if best is None else best[0 if mode == "min" else 1]

    def proportions(self, tally: Tally, weights: Sequence[float] | None = None) -> dict[str, float]:
        """How the loaders took part: `<name>_batches`, `<name>_samples`, and as shares of all batches the
        `<name>_divergence` from what `weights` ask for (without weights: from equal shares)."""
        names = self.train_loader_names or tuple(tally.batches)
        batches, samples = tally.batches, tally.samples
        total, asked = sum(batches.values()) or 1, weights or [1.0] * len(names)
        found: dict[str, float] = {}
        for name, weight in zip(names, asked, strict=False):
            found[f"{name}_batches"] = batches.get(name, 0)
            found[f"{name}_samples"] = samples.get(name, 0)
            found[f"{name}_divergence"] = batches.get(name, 0) / total - weight / math.fsum(asked)
        return found

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        best = {name: list(each) for name, each in self._best.items()}
        return {"interval": self._interval.state_dict(), "epoch": self._epoch.state_dict(), "best": best}

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the states of several processes."""
        self.load_state_dict(states[0])
        self._interval = Tally.merged([state["interval"] for state in states])
        self._epoch = Tally.merged([state["epoch"] for state in states])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting.clear()
        self._interval.load_state_dict(state["interval"])
        self._epoch.load_state_dict(state["epoch"])
        self._best = {name: list(each) for name, each in state["best"].items()}
