"""The batches of several loaders, in an order that follows from the config and a seed, from any place in it.

What a set of loaders says of its place is how many batches of each have been consumed; a run that goes on
from there gets the batches that the uninterrupted one would have got. What workers have read ahead is read
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from oellm_autoexp.core.experiment import EpochLengthPolicy, MultiDataLoaderConfig, plain
from oellm_autoexp.trainer import resumption
from oellm_autoexp.trainer.schedule import Length, Schedule, derived_seed, empty, refused, schedule_of
from oellm_autoexp.trainer.sources import MapSource, Source, is_map_style
from oellm_autoexp.trainer.streams import StreamSource


class Batch(NamedTuple):
    """One batch: its loader (number and name), its number within that loader in this epoch, and the data.

    `position` is its number in the epoch, `last` whether the epoch ends with it. All numbers begin at 0.
    """

    loader: int
    name: str
    number: int
    data: Any
    position: int
    last: bool


class LoaderSet:
    """Several loaders that take turns as a config says.

    Torch's map-style loaders are read in an order of ours: of a shuffled one it follows from (seed, loader,
    epoch, cycle), and what its workers draw at random from that and the number of the batch. Samplers, data
    sets and loaders of other kinds are asked for what they give, under random numbers that follow from the
    same. A data set that is read in this process (`num_workers=0`) draws from the generators of this process,
    as the model does: batches are read when they are asked for, one at a time, so that whoever restores these
    generators as of a batch's end gets the same numbers again. Nothing else here draws from them.

    Samples are shared among the processes of `fabric`, or of torch.distributed, unless a loader has been set
    up by Fabric or has a distributed sampler. Iterable data sets must share their samples themselves.

    Raises:
        ValidationError: the loaders do not go with the config, or a loader cannot keep its state although
            `save_dataset_state` asks for it.
    """

    def __init__(
        self,
        loaders: Sequence[Any],
        config: MultiDataLoaderConfig,
        *,
        seed: int,
        names: Sequence[str] | None = None,
        fabric: Any = None,
        phase: str = "train",
        save_dataset_state: bool = False,
    ) -> None:
        self.names = _names(loaders, names or config.dataloader_names, phase)
        try:
            self._config = replace(config, dataloader_names=self.names)
        except ValueError as error:
            raise refused(str(error)) from None
        self._plain = plain(self._config)
        self._seed, self._phase = seed, phase
        self._rank, self._world = _world(fabric)
        prefetch = _prefetch(loaders, config)
        self._sources: list[Source] = []
        self._moves: list[Callable[[Any], Any] | None] = []
        for number, (name, loader) in enumerate(zip(self.names, loaders, strict=True)):
            raw, set_up = _unwrapped(loader)
            seed_of = partial(derived_seed, seed, phase, number)
            if is_map_style(raw):
                world = None if set_up and self._world > 1 else (self._rank, self._world)
                self._sources.append(MapSource(name, raw, seed_of, world=world, prefetch=prefetch))
            else:
                cycles = config.cycle_short_loaders
                stream = StreamSource(name, raw, seed_of, cycles=cycles, prefetch=prefetch)
                if save_dataset_state and not stream.keeps_state:
                    raise _stateless(name, stream.workers)
                self._sources.append(stream)
            self._moves.append(_mover(loader, set_up, fabric))
        self._agree()
        for source in self._sources:
            if source.length == 0:
                raise empty(source.name)
        #: Batches of each loader in this epoch before its schedule was made anew, and since then.
        self._before, self._given = [0] * len(loaders), [0] * len(loaders)
        #: The loaders of the latest batch and of the one before it; -1: there was none.
        self._last = self._previous = -1
        #: Whether the latest batch is still in use.
        self._pending = False
        self._epoch, self._resumed = 0, False
        self._lengths, self._rest = self._whole(), False
        self._schedule = self._planned()
        self._reading = 0

    # ------------------------------------------------------------ reading

    def length(self) -> int:
        """Batches of this process in the epoch under way, or in the next where none is."""
        return sum(self._before) + self._schedule.total

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch: those that are left where a state of it was loaded, else all.

        An iterator of an earlier call gives nothing any more.
        """
        if not (self._resumed and number == self._epoch):
            for source in self._sources:
                source.begin(number)
            self._before, self._given = [0] * len(self._sources), [0] * len(self._sources)
            self._last = self._previous = -1
            self._epoch = number
            self._lengths, self._rest = self._whole(), False
            self._schedule = self._planned()
        self._resumed = self._pending = False
        self._reading += 1
        return self._batches(self._reading)

    def rewind(self) -> None:
        """Let the next epoch begin with the first batches of each loader, also of one that ends nowhere."""
        for source in self._sources:
            source.rewind()

    def consumed(self) -> None:
        """The latest batch has been used; a state that is asked for now is behind it."""
        self._pending = False

    def close(self) -> None:
        """End worker processes. What they have read ahead is read again when it is asked for."""
        for source in self._sources:
            source.close()

    def _batches(self, reading: int) -> Iterator[Batch]:
        length, given = self.length(), self._given
        position = sum(self._before) + sum(given)
        for loader in self._schedule.follow(given, self._last):
            if reading != self._reading:
                return
            self._pending = False
            source, move = self._sources[loader], self._moves[loader]
            data = source.take()
            if move is not None:
                data = move(data)
            index = self._before[loader] + given[loader]
            given[loader] += 1
            self._previous, self._last, self._pending = self._last, loader, True
            position += 1
            yield Batch(loader, source.name, index, data, position - 1, position == length)
        if reading == self._reading:
            self._pending = False

    def _whole(self) -> list[Length]:
        return [source.length for source in self._sources]

    def _planned(self) -> Schedule:
        config = self._config
        if self._rest:
            config = replace(config, epoch_length_policy=EpochLengthPolicy.SUM_OF_LENGTHS)
        return schedule_of(config, self._lengths, epoch=self._epoch)

    # ------------------------------------------------------------ state

    @property
    def is_global(self) -> bool:
        """Whether the state of one process serves all, in any number: no loader keeps one of its own."""
        return all(source.is_global for source in self._sources)

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last batch that was consumed: plain values, and what loaders keep themselves.

        A batch counts as consumed when the next one is asked for, or with `consumed()`.
        """
        back = [int(self._pending and each == self._last) for each in range(len(self._sources))]
        given = [had - less for had, less in zip(self._given, back, strict=True)]
        return {
            "format": resumption.FORMAT,
            "seed": self._seed,
            "world": self._world,
            "epoch": self._epoch,
            "complete": sum(given) == self._schedule.total,
            "before": list(self._before),
            "given": given,
            "last": self._previous if self._pending else self._last,
            "lengths": list(self._lengths),
            "rest": self._rest,
            "config": self._plain,
            "loaders": [
                {"name": source.name, **source.geometry(), **source.state(back=less)}
                for source, less in zip(self._sources, back, strict=True)
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where the state was taken. `epoch` of that epoch then gives what is left of it.

        With another number of processes, or other batch sizes, no sample is repeated or lost: under
        SUM_OF_LENGTHS what is left of the loaders is shared anew, FIXED_NUM_STEPS goes on with the same
        turns. The other policies count batches, which are others then, so they go on only between epochs.

        Raises:
            LoaderError: these loaders cannot go on there; the message says why, and what would.
        """
        begun = bool(sum(state["before"]) + sum(state["given"]))
        between = state["complete"] or not begun
        same = resumption.check(state, self._sources, self._config, self._seed, self._world, between=between)
        for source, saved in zip(self._sources, state["loaders"], strict=True):
            source.restore(saved)
        self._epoch, self._resumed, self._pending = state["epoch"], True, False
        self._before, self._given = list(state["before"]), list(state["given"])
        self._last = self._previous = state["last"]
        self._lengths, self._rest = list(state["lengths"]), state["rest"]
        self._reading += 1
        if state["complete"]:
            self._schedule = Schedule((), len(self._sources), sum(self._given))
            return
        if between:
            self._lengths = self._whole()
        elif not same and self._config.epoch_length_policy is not EpochLengthPolicy.FIXED_NUM_STEPS:
            self._before = [had + now for had, now in zip(self._before, self._given, strict=True)]
            self._given, self._last = [0] * len(self._sources), -1
            self._lengths, self._rest = [source.left for source in self._sources], True
        self._schedule = self._planned()

    def _agree(self) -> None:
        """Make sure that all processes take turns in the same way. Only lengths of streams can differ."""
        streams = any(not isinstance(source, MapSource) for source in self._sources)
        if not (streams and self._world > 1 and torch.distributed.is_initialized()):
            return
        lengths: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(lengths, self._whole())
        for source, *each in zip(self._sources, *lengths, strict=True):
            if len(set(each)) > 1:
                what = f"{source.name} has {', '.join(map(str, each))} batches on the {self._world} processes"
                raise refused(what, hint="share its data evenly, or use FIXED_NUM_STEPS without lengths")


# ---------------------------------------------------------------- what is given


def _names(loaders: Sequence[Any], names: Sequence[str], phase: str) -> tuple[str, ...]:
    before = "" if phase == "train" else f"{phase}_"
    found = tuple(names) or tuple(f"{before}dl{number}" for number in range(len(loaders)))
    if len(found) != len(loaders):
        what = f"{len(found)} names for {len(loaders)} loaders: {', '.join(found)}"
        raise refused(what, "dataloader_names", "give one name for each loader, or none")
    if len(set(found)) != len(found):
        raise refused(f"names of loaders must differ: {', '.join(found)}", "dataloader_names")
    return found


def _world(fabric: Any) -> tuple[int, int]:
    """Rank and number of processes."""
    if fabric is not None:
        return fabric.global_rank, fabric.world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _prefetch(loaders: Sequence[Any], config: MultiDataLoaderConfig) -> int | None:
    """How many batches each worker may read ahead under `prefetch_cap_total_batches`."""
    workers = sum(getattr(loader, "num_workers", 0) or 0 for loader in loaders)
    cap = config.prefetch_cap_total_batches
    if cap is None or not workers:
        return None
    if cap < workers:
        what = f"{cap} batches in all for {workers} workers, each of which reads at least one ahead"
        raise refused(what, "prefetch_cap_total_batches", "use fewer workers, or raise it")
    return cap // workers


def _unwrapped(loader: Any) -> tuple[Any, bool]:
    """The loader within what `Fabric.setup_dataloaders` gives, and whether it was one."""
    set_up = type(loader).__name__ == "_FabricDataLoader"
    return (loader._dataloader, True) if set_up else (loader, False)


def _mover(loader: Any, set_up: bool, fabric: Any) -> Callable[[Any], Any] | None:
    """What brings data to the device; None where there is nothing to bring."""
    device = loader.device if set_up else getattr(fabric, "device", None)
    if device is None or device.type == "cpu":
        return None
    if fabric is not None:
        return partial(_to_device, fabric)
    from lightning.fabric.utilities import move_data_to_device

    return partial(move_data_to_device, device=device)


def _to_device(fabric: Any, data: Any) -> Any:
    return fabric.to_device(data)


def _stateless(name: str, workers: int) -> Exception:
    key = "fault_tolerance.save_dataset_state"
    what, hint = "cannot be asked where it is", "give it state_dict and load_state_dict"
    if workers:
        what, hint = f"is in {workers} workers", "use torchdata's StatefulDataLoader"
    hint = f"{hint}, or unset {key}: after a restart batches are then read again"
    return refused(f"the data set of loader {name} {what}, so its state cannot be saved", key, hint)
