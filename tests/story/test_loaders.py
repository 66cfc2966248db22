"""Whatever the loaders and their turns: a run that goes on gets the batches of the one that was not cut.

Random numbers of this process are put back as a trainer does it: as they were behind the latest batch.
"""

from __future__ import annotations

import copy
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from oellm_autoexp.core.experiment import EpochLengthPolicy, MultiDataLoaderConfig, SamplingStrategy
from oellm_autoexp.errors import LoaderError, ValidationError
from oellm_autoexp.trainer.loaders import Batch, LoaderSet

S, L = SamplingStrategy, EpochLengthPolicy
SUM, MAX, MIN, FIXED = L.SUM_OF_LENGTHS, L.MAX_OF_LENGTHS, L.MIN_OF_LENGTHS, L.FIXED_NUM_STEPS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*are read again to get where it was",
    "ignore:'set_vital' is deprecated",
    "ignore:The `srun` command is available",
)


# ---------------------------------------------------------------- data


class Numbers(Dataset[torch.Tensor]):
    """Numbered samples: which one, and what was drawn for it from each generator."""

    def __init__(self, samples: int, first: int = 0) -> None:
        self.samples, self.first = samples, first

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        drawn = [random.randrange(10**6), int(torch.randint(10**6, ()))]
        return torch.tensor([self.first + index, *drawn])


class Stream(IterableDataset[torch.Tensor]):
    """Samples one after the other, with what was drawn for each; shuffled at its first if asked for."""

    def __init__(self, samples: int, first: int = 0, *, shuffle: bool = False) -> None:
        self.samples, self.first, self.shuffle = samples, first, shuffle

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = list(range(self.samples))
        if self.shuffle:
            random.shuffle(order)
        info = torch.utils.data.get_worker_info()
        for number in order[info.id :: info.num_workers] if info else order:
            yield torch.tensor([self.first + number, random.randrange(10**6)])


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.samples


class StatefulStream(IterableDataset[torch.Tensor]):
    """One that knows where it is, and begins anew only when it has come to its end."""

    def __init__(self, samples: int, first: int = 0) -> None:
        self.samples, self.first, self.place, self.rounds = samples, first, 0, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.place < self.samples:
            self.place += 1
            yield torch.tensor([self.first + self.place - 1, self.rounds, random.randrange(10**6)])
        self.place, self.rounds = 0, self.rounds + 1

    def __len__(self) -> int:
        return self.samples

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place, self.rounds = state["place"], state["rounds"]


class Endless(StatefulStream):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.place += 1
            yield torch.tensor([self.first + self.place - 1, random.randrange(10**6)])

    __len__ = None  # type: ignore[assignment]


class Moody(Sampler[int]):
    """A sampler that goes on with random numbers of its own from pass to pass, and can be asked for them."""

    def __init__(self, samples: int) -> None:
        self.samples, self.random = samples, random.Random(5)

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(self.samples), self.samples))

    def state_dict(self) -> Any:
        return self.random.getstate()

    def load_state_dict(self, state: Any) -> None:
        self.random.setstate(state)


class Pairs(Sampler[list[int]]):
    """A sampler of batches."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return (self.samples + 1) // 2

    def __iter__(self) -> Iterator[list[int]]:
        starts = list(range(0, self.samples, 2))
        random.shuffle(starts)
        for start in starts:
            yield [*range(start, min(start + 2, self.samples))]


class Twice:
    """A plain iterable, with or without a length."""

    def __init__(self, batches: int, first: int) -> None:
        self.batches, self.first = batches, first

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = list(range(self.batches))
        random.shuffle(order)
        for number in order:
            yield torch.tensor([self.first + number])


class SizedTwice(Twice):
    def __len__(self) -> int:
        return self.batches


Make = Callable[[int, int], Any]


def mapped(**keys: Any) -> Make:
    return lambda samples, first: DataLoader(Numbers(samples, first), **keys)


#: Loaders of so many samples, the first of which has this number; all with a length.
MAKERS: dict[str, Make] = {
    "in order": mapped(batch_size=2),
    "shuffled": mapped(batch_size=2, shuffle=True),
    "shuffled, last dropped": mapped(batch_size=2, shuffle=True, drop_last=True),
    "one by one": mapped(batch_size=None, shuffle=True),
    "stateful map": lambda n, first: StatefulDataLoader(Numbers(n, first), batch_size=2, shuffle=True),
    "with replacement": lambda n, first: DataLoader(
        Numbers(n, first), 2, sampler=RandomSampler(range(n), replacement=True, num_samples=n + 3)
    ),
    "weights": lambda n, first: DataLoader(
        Numbers(n, first), 2, sampler=WeightedRandomSampler([1.0] * n, n, generator=torch.Generator())
    ),
    "subset": lambda n, first: DataLoader(Numbers(n, first), 2, sampler=SubsetRandomSampler(range(0, n, 2))),
    "moody": lambda n, first: DataLoader(Numbers(n, first), 2, sampler=Moody(n)),
    "batches": lambda n, first: DataLoader(Numbers(n, first), batch_sampler=Pairs(n)),
    "distributed": lambda n, first: DataLoader(
        Numbers(n, first), 2, sampler=DistributedSampler(range(n), num_replicas=2, rank=1)
    ),
    "sized stream": lambda n, first: DataLoader(SizedStream(n, first, shuffle=True), batch_size=2),
    "stateful stream": lambda n, first: DataLoader(StatefulStream(n, first), batch_size=2),
    "stateful loader": lambda n, first: StatefulDataLoader(StatefulStream(n, first), batch_size=2),
    "plain": SizedTwice,
    "list": lambda n, first: [torch.tensor([first + number]) for number in range(n)],
}
ENDLESS: dict[str, Make] = {
    "endless": lambda n, first: DataLoader(Endless(n, first), batch_size=2),
    "endless stateful loader": lambda n, first: StatefulDataLoader(Endless(n, first), batch_size=2),
    "without a length": lambda n, first: DataLoader(Stream(n, first, shuffle=True), batch_size=2),
    "plain without a length": Twice,
}
EVERY = {**MAKERS, **ENDLESS}


@dataclass(frozen=True)
class Case:
    config: MultiDataLoaderConfig
    loaders: tuple[tuple[str, int], ...]

    def made(self, **keys: Any) -> LoaderSet:
        made = [EVERY[kind](samples, 100 * each) for each, (kind, samples) in enumerate(self.loaders)]
        return LoaderSet(made, self.config, seed=11, **keys)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    strategy, policy = draw(st.sampled_from(S)), draw(st.sampled_from(L))
    kinds = sorted(EVERY if policy is FIXED else MAKERS)
    loaders = draw(
        st.lists(st.tuples(st.sampled_from(kinds), st.integers(2, 7)), min_size=1, max_size=3).map(tuple)
    )
    keys: dict[str, Any] = {"burst_size": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        keys["choice_rng_seed"] = 3
    if strategy is S.WEIGHTED:
        weights = st.sampled_from([0.3, 0.7, 1.0, 2.0])
        keys["dataloader_weights"] = draw(st.tuples(*[weights] * len(loaders)))
    if strategy is S.ALTERNATING:
        keys["alternating_pattern"] = tuple(draw(st.permutations(range(len(loaders)))))
    if policy is FIXED:
        keys["steps_per_epoch"] = draw(st.integers(1, 14))
    config = MultiDataLoaderConfig(sampling_strategy=strategy, epoch_length_policy=policy, **keys)
    return Case(config, loaders)


# ---------------------------------------------------------------- reading


Seen = tuple[int, int, int, int, bool, list[Any]]


def seen(epoch: int, batch: Batch) -> Seen:
    return (epoch, batch.loader, batch.number, batch.position, batch.last, batch.data.tolist())


def generators() -> Any:
    return random.getstate(), torch.get_rng_state()


def put_back(kept: Any) -> None:
    random.setstate(kept[0])
    torch.set_rng_state(kept[1])


def sow(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def whole(made: LoaderSet, epochs: int) -> tuple[list[Seen], list[Any]]:
    """All batches, and behind each the state and the generators."""
    sow(0)
    found, places = [], []
    for epoch in range(epochs):
        for batch in made.epoch(epoch):
            found.append(seen(epoch, batch))
            # What the model draws.
            random.random()
            made.consumed()
            places.append((copy.deepcopy(made.state_dict()), generators()))
    return found, places


def rest(made: LoaderSet, place: Any, epochs: int) -> list[Seen]:
    """What a new process gets that goes on at a place."""
    state, kept = place
    sow(99)
    made.load_state_dict(state)
    # Not before the state: what gets there must leave no trace in them.
    put_back(kept)
    found = []
    for epoch in range(state["epoch"], epochs):
        for batch in made.epoch(epoch):
            found.append(seen(epoch, batch))
            random.random()
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.data())
def test_a_run_that_goes_on_gets_the_same_batches(case: Case, data: st.DataObject) -> None:
    found, places = whole(case.made(), 3)
    assert [each[3] for each in found if each[0] == 1] == list(range(len(found) // 3))
    cut = data.draw(st.integers(0, len(found) - 1))
    assert rest(case.made(), places[cut], 3) == found[cut + 1 :]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.data())
def test_it_may_be_cut_again_and_again(case: Case, data: st.DataObject) -> None:
    found, _ = whole(case.made(), 2)
    made, got = case.made(), []
    sow(0)
    epoch = 0
    while epoch < 2:
        steps = data.draw(st.integers(1, 5))
        for batch in made.epoch(epoch):
            got.append(seen(epoch, batch))
            random.random()
            made.consumed()
            steps -= 1
            if not steps:
                break
        else:
            epoch += 1
            continue
        state, kept = copy.deepcopy(made.state_dict()), generators()
        made = case.made()
        made.load_state_dict(state)
        put_back(kept)
    assert got == found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.data())
def test_a_batch_that_was_not_consumed_comes_again(case: Case, data: st.DataObject) -> None:
    found, places = whole(case.made(), 2)
    made = case.made()
    sow(0)
    cut = data.draw(st.integers(1, len(found) - 1))
    number = 0
    for epoch in range(2):
        for _ in made.epoch(epoch):
            number += 1
            if number > cut:
                state = copy.deepcopy(made.state_dict())
                got = rest(case.made(), (state, places[cut - 1][1]), 2)
                assert got == found[cut:]
                return
            random.random()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_under_sum_every_sample_is_seen_once_an_epoch(case: Case) -> None:
    kinds = {kind for kind, _ in case.loaders}
    made = case.made()
    found = [seen(0, batch) for batch in made.epoch(0)]
    assert len(found) == made.length()
    assert [each[4] for each in found] == [False] * (len(found) - 1) + [True]
    if case.config.epoch_length_policy is SUM and not kinds & {
        "with replacement",
        "weights",
        "distributed",
        "subset",
        "shuffled, last dropped",
    }:
        counts = Counter(sample for each in found for sample in samples_of(each[5]))
        wanted = [100 * each + n for each, (_, samples) in enumerate(case.loaders) for n in range(samples)]
        assert counts == Counter(wanted)


def samples_of(data: Any) -> list[int]:
    return [row[0] for row in data] if isinstance(data[0], list) else [data[0]]


# ---------------------------------------------------------------- workers


ROUND_ROBIN = MultiDataLoaderConfig()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_the_same_random_numbers_again(persistent: bool) -> None:
    """Whatever they have read ahead, in later epochs, and whichever worker gets a batch."""

    def made(workers: int = 2) -> LoaderSet:
        keys: dict[str, Any] = {"num_workers": workers, "persistent_workers": persistent and workers > 0}
        first = DataLoader(Numbers(9), 2, shuffle=True, **keys)
        second = DataLoader(Numbers(5, 100), batch_size=None, shuffle=True, **keys)
        settings = MultiDataLoaderConfig(epoch_length_policy=FIXED, steps_per_epoch=12)
        return LoaderSet([first, second], settings, seed=1)

    found, places = whole(made(), 2)
    for cut in (0, 10, 15):
        assert rest(made(), places[cut], 2) == found[cut + 1 :]
    assert rest(made(workers=1), places[13], 2) == found[14:]


def test_workers_on_a_stream_are_played_again_or_asked_for_their_state() -> None:
    def played() -> LoaderSet:
        keys: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
        return LoaderSet([DataLoader(SizedStream(9, shuffle=True), 2, **keys)], ROUND_ROBIN, seed=1)

    def asked() -> LoaderSet:
        loader: Any = StatefulDataLoader(StatefulStream(8), 2, num_workers=1)
        return LoaderSet([loader], ROUND_ROBIN, seed=1)

    for made in (played, asked):
        found, places = whole(made(), 2)
        got = rest(made(), places[5], 2)
        # What a StatefulDataLoader's workers draw is not in its state.
        numbers = [[*map(samples_of, (each[5] for each in run))] for run in (got, found[6:])]
        assert numbers[0] == numbers[1]
        if made is played:
            assert got == found[6:]


def test_what_workers_read_ahead_is_capped_over_all_loaders() -> None:
    keys: dict[str, Any] = {"num_workers": 2, "prefetch_factor": 4}
    loaders = [DataLoader(Numbers(40), 2, **keys) for _ in range(2)]
    few = MultiDataLoaderConfig(prefetch_cap_total_batches=9)
    made = LoaderSet(loaders, few, seed=1)
    assert len(list(made.epoch(0))) == 40
    assert [source._loader.prefetch_factor for source in made._sources] == [2, 2]  # type: ignore[attr-defined]
    made.close()
    with pytest.raises(ValidationError, match="3 batches in all for 4 workers"):
        LoaderSet(loaders, MultiDataLoaderConfig(prefetch_cap_total_batches=3), seed=1)


def test_nothing_but_data_in_this_process_draws_from_the_generators() -> None:
    loaders = [
        DataLoader(Numbers(8), 2, shuffle=True, num_workers=1),
        DataLoader([*range(8)], 2, shuffle=True),  # type: ignore[arg-type]
        DataLoader(SizedStream(4, shuffle=True), 2, num_workers=1),
        SizedTwice(4, 0),
    ]
    made = LoaderSet(loaders, ROUND_ROBIN, seed=1)
    sow(5)
    before = generators()
    for _ in made.epoch(0):
        made.state_dict()
    made.load_state_dict(made.state_dict())
    list(made.epoch(1))
    after = generators()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


def test_a_shuffled_order_differs_by_loader_epoch_and_cycle_and_follows_from_the_seed() -> None:
    def orders(seed: int, *, phase: str = "train") -> list[list[int]]:
        loaders = [DataLoader([*range(50)], 50, shuffle=True) for _ in range(2)]  # type: ignore[arg-type]
        settings = MultiDataLoaderConfig(epoch_length_policy=FIXED, steps_per_epoch=4)
        made = LoaderSet(loaders, settings, seed=seed, phase=phase)
        return [batch.data.tolist() for epoch in range(2) for batch in made.epoch(epoch)]

    sow(1)
    first = orders(3)
    assert len({tuple(order) for order in first}) == 8
    sow(2)
    assert orders(3) == first
    assert orders(4) != first
    assert orders(3, phase="val") != first


# ---------------------------------------------------------------- several processes


@dataclass(frozen=True)
class Process:
    """What a set of loaders asks Fabric for."""

    global_rank: int
    world_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def read(made: LoaderSet, batches: int | None = None) -> list[int]:
    """Samples of an epoch's batches, or of its first ones."""
    found: list[int] = []
    iterator = made.epoch(0)
    for batch in iterator if batches is None else (next(iterator) for _ in range(batches)):
        found += batch.data.tolist()
    made.consumed()
    return found


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
def test_samples_are_shared_as_a_distributed_sampler_shares_them(
    shuffle: bool, drop_last: bool, samples: int, world: int, size: int
) -> None:
    if drop_last and samples < world * size:
        return
    data: Any = [*range(samples)]
    ours, theirs = [], []
    for rank in range(world):
        loader = DataLoader(data, size, shuffle=shuffle, drop_last=drop_last)
        ours.append(read(LoaderSet([loader], ROUND_ROBIN, seed=7, fabric=Process(rank, world))))
        sampler: Any = DistributedSampler(
            data, num_replicas=world, rank=rank, shuffle=shuffle, drop_last=drop_last
        )
        loader = DataLoader(data, size, sampler=sampler, drop_last=drop_last)
        theirs.append(read(LoaderSet([loader], ROUND_ROBIN, seed=7)))
        if not shuffle:
            assert theirs[-1] == [number for batch in loader for number in batch.tolist()]
    assert ours == theirs
    if not drop_last:
        assert {number for each in ours for number in each} == set(data)


def test_fabrics_loaders_are_read_as_they_have_been_set_up() -> None:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    sampler = SubsetRandomSampler(range(0, 20, 2))
    loaders = [DataLoader(Numbers(9), 2, shuffle=True), DataLoader(Numbers(20, 100), 2, sampler=sampler)]
    wrapped: Any = fabric.setup_dataloaders(*loaders)

    def made() -> LoaderSet:
        return LoaderSet(wrapped, ROUND_ROBIN, seed=2, fabric=fabric)

    found, places = whole(made(), 2)
    assert rest(made(), places[7], 2) == found[8:]
    sow(0)
    plain = LoaderSet(loaders, ROUND_ROBIN, seed=2)
    assert [seen(0, batch)[5][0][0] for batch in plain.epoch(0)] == [each[5][0][0] for each in found[:10]]


def test_a_sampler_of_ones_own_is_told_the_epoch() -> None:
    sampler: Any = DistributedSampler(range(8), num_replicas=1, rank=0)
    made = LoaderSet([DataLoader(Numbers(8), 2, sampler=sampler)], ROUND_ROBIN, seed=1)
    list(made.epoch(4))
    assert sampler.epoch == 4


@settings(deadline=None)
@given(
    st.lists(st.integers(4, 40), min_size=1, max_size=3),
    st.tuples(st.integers(1, 4), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 3)),
    st.sampled_from([S.ROUND_ROBIN, S.SEQUENTIAL, S.WEIGHTED]),
    st.data(),
)
def test_another_world_goes_on_without_repeating_or_losing_samples(
    samples: list[int],
    old: tuple[int, int],
    new: tuple[int, int],
    strategy: SamplingStrategy,
    data: st.DataObject,
) -> None:
    weights = tuple([1.0] * len(samples)) if strategy is S.WEIGHTED else None
    settings = MultiDataLoaderConfig(sampling_strategy=strategy, dataloader_weights=weights)

    def made(rank: int, world: int, size: int) -> LoaderSet:
        loaders: list[Any] = [
            DataLoader([*range(100 * each, 100 * each + count)], size, shuffle=True)  # type: ignore[arg-type]
            for each, count in enumerate(samples)
        ]
        return LoaderSet(loaders, settings, seed=7, fabric=Process(rank, world))

    def sets(world: int, size: int) -> list[LoaderSet]:
        return [made(rank, world, size) for rank in range(world)]

    before = sets(*old)
    cut = data.draw(st.integers(0, before[0].length()))
    seen_by = Counter(number for each in before for number in read(each, cut))
    states = [each.state_dict() for each in before]
    assert all(state == states[0] for state in states)
    assert before[0].is_global
    after = sets(*new)
    for each in after:
        each.load_state_dict(states[0])
    # And once more in the middle of what is left.
    left = after[0].length() - cut
    second = data.draw(st.integers(0, left))
    seen_by += Counter(number for each in after for number in read(each, second))
    last = sets(*old)
    for each in last:
        each.load_state_dict(after[0].state_dict())
    seen_by += Counter(number for each in last for number in read(each))
    assert set(seen_by) == {100 * each + n for each, count in enumerate(samples) for n in range(count)}
    # Only where processes are filled up to the same number of samples is one seen twice.
    filled = sum(seen_by.values()) - sum(samples)
    assert filled <= len(samples) * 2 * max(old[0] - 1, new[0] - 1)
    if old[0] == new[0] == 1:
        assert not filled


def test_the_same_global_batch_gives_the_same_global_batches() -> None:
    def made(rank: int, world: int, size: int) -> LoaderSet:
        loaders = [DataLoader([*range(40)], size, shuffle=True) for _ in range(2)]  # type: ignore[arg-type]
        settings = MultiDataLoaderConfig(epoch_length_policy=MAX)
        return LoaderSet(loaders, settings, seed=7, fabric=Process(rank, world))

    alone = made(0, 1, 4)
    batches = [sorted(batch.data.tolist()) for batch in alone.epoch(0)]
    four = [made(rank, 4, 1) for rank in range(4)]
    for each in four:
        read(each, 3)
        assert each.state_dict()["given"] == [2, 1]
    two = [made(rank, 2, 2) for rank in range(2)]
    for each in two:
        each.load_state_dict(four[0].state_dict())
    pairs = zip(*(each.epoch(0) for each in two), strict=True)
    got = [[*left.data.tolist(), *right.data.tolist()] for left, right in pairs]
    assert [sorted(each) for each in got] == batches[3:]


def test_fixed_steps_go_on_with_the_same_turns_in_another_world() -> None:
    def made(rank: int, world: int) -> LoaderSet:
        loaders = [DataLoader([*range(40)], 2, shuffle=True) for _ in range(2)]  # type: ignore[arg-type]
        settings = MultiDataLoaderConfig(epoch_length_policy=FIXED, steps_per_epoch=12, burst_size=3)
        return LoaderSet(loaders, settings, seed=7, fabric=Process(rank, world))

    pair = [made(rank, 2) for rank in range(2)]
    used = Counter(number for each in pair for number in read(each, 4))
    alone = made(0, 1)
    alone.load_state_dict(pair[0].state_dict())
    rest_of = list(alone.epoch(0))
    assert [batch.loader for batch in rest_of] == [1, 1, 0, 0, 0, 1, 1, 1]
    assert [batch.position for batch in rest_of] == list(range(4, 12))
    first = [number for batch in rest_of if batch.loader == 0 for number in batch.data.tolist()]
    assert sum(used.values()) == 16
    assert len(set(first)) == 6


# ---------------------------------------------------------------- refusals


def cut_after(made: LoaderSet, batches: int) -> dict[str, Any]:
    iterator = made.epoch(0)
    for _ in range(batches):
        next(iterator)
    made.consumed()
    return copy.deepcopy(made.state_dict())


def two(samples: int = 8, size: int = 2, *, seed: int = 1, **keys: Any) -> LoaderSet:
    loaders = [DataLoader([*range(samples)], size, shuffle=True) for _ in range(2)]  # type: ignore[arg-type]
    fabric = keys.pop("fabric", None)
    return LoaderSet(loaders, MultiDataLoaderConfig(**keys), seed=seed, fabric=fabric)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({}, {"seed": 2}, "after 3 batches, and since then the seed was 1 and is 2"),
        ({}, {"burst_size": 2}, "burst_size was 1 and is 2"),
        ({}, {"samples": 9}, "loader dl0 had 8 samples and has 9"),
        ({}, {"dataloader_names": ("a", "b")}, "has the loaders dl0, dl1, and these are a, b"),
        (
            {"epoch_length_policy": MAX},
            {"epoch_length_policy": MAX, "fabric": Process(0, 2)},
            "MAX_OF_LENGTHS counts batches",
        ),
        (
            {"epoch_length_policy": MIN},
            {"epoch_length_policy": MIN, "size": 4},
            "MIN_OF_LENGTHS counts",
        ),
    ],
)
def test_what_cannot_go_on_in_the_middle_of_an_epoch_says_why(
    old: dict[str, Any], new: dict[str, Any], message: str
) -> None:
    state = cut_after(two(**old), 3)
    with pytest.raises(LoaderError, match=message):
        two(**new).load_state_dict(state)


@pytest.mark.parametrize("new", [{"seed": 2}, {"burst_size": 2}, {"samples": 9}, {"fabric": Process(0, 2)}])
def test_between_epochs_all_of_it_may_change(new: dict[str, Any]) -> None:
    done = two()
    state = cut_after(done, done.length())
    made = two(**new)
    made.load_state_dict(state)
    assert list(made.epoch(0)) == []
    assert len(list(made.epoch(1))) == two(**new).length()


def test_a_stream_goes_on_only_with_as_many_processes() -> None:
    def made(world: int) -> LoaderSet:
        return LoaderSet([DataLoader(StatefulStream(8), 2)], ROUND_ROBIN, seed=1, fabric=Process(0, world))

    state = cut_after(made(2), 2)
    assert not made(2).is_global
    with pytest.raises(LoaderError, match="own place in loader dl0; now there are 4"):
        made(4).load_state_dict(state)


def test_a_stream_without_a_state_is_read_again_with_a_warning_or_refused() -> None:
    def made(**keys: Any) -> LoaderSet:
        return LoaderSet([DataLoader(SizedStream(8), 2)], ROUND_ROBIN, seed=1, **keys)

    state = cut_after(made(), 3)
    again = made()
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match="loader dl0 keeps no state: 3 batches are read again"):
        assert len(list(again.epoch(0))) == 1
    with pytest.raises(ValidationError, match="cannot be asked where it is"):
        made(save_dataset_state=True)
    workers: Any = DataLoader(StatefulStream(8), 2, num_workers=1)
    with pytest.raises(ValidationError, match="is in 1 workers"):
        LoaderSet([workers], ROUND_ROBIN, seed=1, save_dataset_state=True)
    kept: list[Any] = [DataLoader(StatefulStream(8), 2), StatefulDataLoader(StatefulStream(8), 2), [1, 2]]
    assert LoaderSet(kept, ROUND_ROBIN, seed=1, save_dataset_state=True).length() == 10


@pytest.mark.parametrize(
    ("loaders", "keys", "message"),
    [
        ([[1], [2]], {"names": ["validation"]}, "1 names for 2 loaders"),
        ([[1], [2]], {"names": ["a", "a"]}, "names of loaders must differ"),
        ([[]], {}, "dl0 has no batches"),
        ([DataLoader([1], 2, drop_last=True)], {}, "dl0 has no batches"),  # type: ignore[arg-type]
        ([iter([1])], {}, "1 of 1 loaders have no length"),
    ],
)
def test_loaders_that_cannot_be_read_are_refused(
    loaders: list[Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        LoaderSet(loaders, ROUND_ROBIN, seed=1, **keys)


def test_a_loader_that_gives_less_than_it_said_is_an_error_that_names_it() -> None:
    class Short(SizedTwice):
        def __len__(self) -> int:
            return 5

    made = LoaderSet([Short(3, 0)], ROUND_ROBIN, seed=1)
    with pytest.raises(LoaderError, match="loader dl0 ended after 3 batches, and its length is 5"):
        list(made.epoch(0))
    fixed = MultiDataLoaderConfig(epoch_length_policy=FIXED, steps_per_epoch=5)
    with pytest.raises(LoaderError, match="gives nothing when it is iterated again"):
        list(LoaderSet([iter([1, 2])], fixed, seed=1).epoch(0))


def test_names_are_those_that_were_given_or_numbers() -> None:
    assert LoaderSet([[1], [2]], ROUND_ROBIN, seed=1).names == ("dl0", "dl1")
    assert LoaderSet([[1]], ROUND_ROBIN, seed=1, phase="val").names == ("val_dl0",)
    named = MultiDataLoaderConfig(dataloader_names=("web", "code"))
    assert LoaderSet([[1], [2]], named, seed=1).names == ("web", "code")
    assert LoaderSet([[1], [2]], named, seed=1, names=["a", "b"]).names == ("a", "b")


def in_process(rank: int, port: int, answers: Any) -> None:
    """One of two processes of a gloo group: what it reads, and what it says of lengths that differ."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    loaders: list[Any] = [DataLoader([*range(8)], 2, shuffle=True), [torch.tensor([100 + rank])]]  # type: ignore[arg-type]
    found = read(LoaderSet(loaders, ROUND_ROBIN, seed=1))
    try:
        LoaderSet([[1] * (rank + 1)], ROUND_ROBIN, seed=1)
    except ValidationError as error:
        answers.put((rank, found, str(error)))


def test_processes_of_torch_share_samples_and_agree_on_lengths() -> None:
    context = torch.multiprocessing.get_context("fork")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [context.Process(target=in_process, args=(rank, port, answers)) for rank in range(2)]
    for child in children:
        child.start()
    (_, first, error), (_, second, _) = sorted(answers.get(timeout=120) for _ in children)
    for child in children:
        child.join()
    assert sorted(first + second) == [*range(8), 100, 101]
    assert "dl0 has 1, 2 batches on the 2 processes" in error
