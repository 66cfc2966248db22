"""Which loader gives the next batch: an epoch of several loaders as a few blocks, never as a list.

A schedule is walked from any point, which is named by how many batches each loader has given so far; reaching
it costs nothing that grows with the epoch. Nothing here is random, and nothing knows of torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain, islice, repeat

from oellm_autoexp.core.experiment import EpochLengthPolicy, MultiDataLoaderConfig, SamplingStrategy
from oellm_autoexp.errors import Fault, ValidationError

#: How many batches a loader has in one pass; None: nobody knows, or it never ends.
Length = int | None
#: More batches than any epoch has.
ENDLESS = 1 << 62


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that follows from all parts, the same in every process and on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def refused(what: str, key: str = "", hint: str = "") -> ValidationError:
    """A mistake in how loaders are to take turns."""
    return ValidationError(Fault(what=what, key=key, hint=hint))


def empty(name: str) -> ValidationError:
    """A loader that gives nothing."""
    return refused(f"{name} has no batches", hint="look at its data, its batch size and drop_last")


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True)
class Turns:
    """Loaders one after another, each for a number of batches; the whole is done `times` times."""

    turns: tuple[tuple[int, int], ...]
    times: int

    def quotas(self, loaders: int) -> list[int]:
        """Batches of each loader in this block."""
        given = [0] * loaders
        for loader, batches in self.turns:
            given[loader] += batches * self.times
        return given

    def follow(self, given: Sequence[int], _last: int | None) -> Iterator[int]:
        """The loaders of the batches that are left when each has given so many of this block."""
        return chain.from_iterable(self._runs(given))

    def _runs(self, given: Sequence[int]) -> Iterator[Iterable[int]]:
        ends = list(accumulate(batches for _, batches in self.turns))
        done, within = divmod(sum(given), ends[-1])
        for round_ in range(done, self.times):
            for (loader, batches), end in zip(self.turns, ends, strict=True):
                skipped = max(0, within - (end - batches)) if round_ == done else 0
                yield repeat(loader, max(0, batches - skipped))


@dataclass(frozen=True, slots=True)
class Interleave:
    """Loaders mixed as evenly as their quotas allow, in bursts; the last burst of a loader may be short.

    With each burst every loader that has any left earns its share of the whole, and the one with the most
    credit pays one burst. Among equals the loader that has just had its turn steps back; then the first goes
    first.
    """

    order: tuple[int, ...]
    shares: tuple[int, ...]
    burst: int

    def quotas(self, _loaders: int) -> list[int]:
        """Batches of each loader in this block."""
        return list(self.shares)

    def follow(self, given: Sequence[int], last: int | None) -> Iterator[int]:
        """The loaders of the batches that are left when each has given so many, `last` the latest of them."""
        burst, shares = self.burst, self.shares
        for loader, batches in enumerate(given):
            if batches % burst and batches < shares[loader]:
                yield from repeat(loader, min(burst - batches % burst, shares[loader] - batches))
                last = loader
        bursts = [-(-share // burst) for share in shares]
        taken = [-(-batches // burst) for batches in given]
        whole, now = sum(bursts), sum(taken)
        # Credit is counted in parts of `whole`, so that it is exact.
        credit = [now * mine - had * whole for mine, had in zip(bursts, taken, strict=True)]
        live = [loader for loader in self.order if taken[loader] < bursts[loader]]
        for _ in range(now, whole):
            chosen, most = -1, -ENDLESS
            for loader in live:
                credit[loader] += bursts[loader]
                if credit[loader] > most or (credit[loader] == most and chosen == last):
                    chosen, most = loader, credit[loader]
            credit[chosen] -= whole
            taken[chosen] += 1
            last = chosen
            if taken[chosen] < bursts[chosen]:
                yield from repeat(chosen, burst)
            else:
                live.remove(chosen)
                yield from repeat(chosen, shares[chosen] - (taken[chosen] - 1) * burst)


Block = Turns | Interleave


@dataclass(frozen=True, slots=True)
class Schedule:
    """The batches of one epoch: `total` of them, from so many loaders."""

    blocks: tuple[Block, ...]
    loaders: int
    total: int

    def follow(self, given: Sequence[int] = (), last: int | None = None) -> Iterator[int]:
        """The loader of each batch that is left.

        `given` is how many batches each loader has given so far in this epoch, `last` the loader of the
        latest one. Both must come from walking this schedule.
        """
        # Nothing in Python runs between two batches of the same turn.
        return islice(chain.from_iterable(self._parts(given, last)), self.total - sum(given))

    def _parts(self, given: Sequence[int], last: int | None) -> Iterator[Iterator[int]]:
        behind = list(given) or [0] * self.loaders
        for block in self.blocks:
            quotas = block.quotas(self.loaders)
            here = [min(had, quota) for had, quota in zip(behind, quotas, strict=True)]
            behind = [had - part for had, part in zip(behind, here, strict=True)]
            if here == quotas:
                continue
            yield block.follow(here, last if any(here) else None)


# ---------------------------------------------------------------- from a config


def schedule_of(config: MultiDataLoaderConfig, lengths: Sequence[Length], *, epoch: int = 0) -> Schedule:
    """How loaders of these lengths take turns in an epoch.

    With `choice_rng_seed` another loader comes first in each epoch, and gains from remainders.

    Raises:
        ValidationError: the config and the loaders do not go together; the message has both counts.
    """
    _check(config, lengths)
    limits, bound = _limits(config, lengths), _bound(config, lengths)
    order = list(range(len(lengths)))
    pattern = list(config.alternating_pattern or ())
    if config.choice_rng_seed is not None:
        seed = derived_seed(config.choice_rng_seed, epoch)
        order, pattern = _rotated(order, seed), _rotated(pattern, seed)
    blocks: list[Block]
    match config.sampling_strategy:
        case SamplingStrategy.ROUND_ROBIN:
            blocks = _in_turns(order, limits, min(bound, sum(limits)), config.burst_size)
        case SamplingStrategy.ALTERNATING:
            named = sum(limits[loader] for loader in set(pattern))
            blocks = _in_turns(pattern, limits, min(bound, named), config.burst_size)
        case SamplingStrategy.SEQUENTIAL:
            shares = [min(bound, limit) for limit in limits]
            if config.epoch_length_policy is EpochLengthPolicy.FIXED_NUM_STEPS:
                shares = _even_shares(order, limits, bound)
            blocks = [Turns(tuple((loader, shares[loader]) for loader in order if shares[loader]), 1)]
        case SamplingStrategy.WEIGHTED:
            weights = [Fraction(repr(float(weight))) for weight in config.dataloader_weights or ()]
            blocks = _by_weight(order, weights, limits, min(bound, sum(limits)), config.burst_size)
    return Schedule(tuple(blocks), len(lengths), sum(sum(block.quotas(len(lengths))) for block in blocks))


def _rotated(items: list[int], seed: int) -> list[int]:
    first = seed % len(items) if items else 0
    return items[first:] + items[:first]


def _check(config: MultiDataLoaderConfig, lengths: Sequence[Length]) -> None:
    count = len(lengths)
    if not count:
        raise refused("no loader is given", hint="give at least one")
    names = config.dataloader_names
    if names and len(names) != count:
        raise refused(f"{len(names)} names for {count} loaders: {', '.join(names)}", "dataloader_names")
    if (
        config.sampling_strategy is SamplingStrategy.WEIGHTED
        and len(config.dataloader_weights or ()) != count
    ):
        what = f"{len(config.dataloader_weights or ())} weights for {count} loaders"
        raise refused(what, "dataloader_weights", "give one weight for each loader")
    if config.sampling_strategy is SamplingStrategy.ALTERNATING:
        _check_pattern(config, count)
    for each, length in enumerate(lengths):
        if length == 0 and config.epoch_length_policy is not EpochLengthPolicy.SUM_OF_LENGTHS:
            raise empty(names[each] if names else f"loader {each}")
    _check_ends(config, lengths)


def _check_pattern(config: MultiDataLoaderConfig, count: int) -> None:
    pattern = config.alternating_pattern or ()
    if max(pattern) >= count:
        what = f"loader {max(pattern)} is named, and there are {count} loaders (the first is 0)"
        raise refused(what, "alternating_pattern")
    unnamed = [str(each) for each in range(count) if each not in pattern]
    if unnamed and config.epoch_length_policy is EpochLengthPolicy.SUM_OF_LENGTHS:
        what = f"{len(set(pattern))} of {count} loaders are named; {', '.join(unnamed)} would never be read"
        raise refused(what, "alternating_pattern", "under SUM_OF_LENGTHS every loader is read to its end")


def _check_ends(config: MultiDataLoaderConfig, lengths: Sequence[Length]) -> None:
    policy, endless = config.epoch_length_policy, lengths.count(None)
    if policy is EpochLengthPolicy.FIXED_NUM_STEPS:
        limits, steps = _limits(config, lengths), config.steps_per_epoch or 0
        if config.sampling_strategy is SamplingStrategy.ALTERNATING:
            limits = [limits[each] for each in set(config.alternating_pattern or ())]
        if steps > sum(limits):
            what = f"{steps} steps are asked for, and the loaders have {sum(limits)} batches"
            hint = "set cycle_short_loaders, so that short loaders are gone through again"
            raise refused(what, "steps_per_epoch", hint)
    elif endless:
        mixed = config.sampling_strategy is SamplingStrategy.WEIGHTED and endless < len(lengths)
        if not (mixed and policy is EpochLengthPolicy.MAX_OF_LENGTHS):
            what = f"{endless} of {len(lengths)} loaders have no length, so {policy.name} sets no end"
            hint = "use FIXED_NUM_STEPS, or WEIGHTED with MAX_OF_LENGTHS beside a loader that ends"
            raise refused(what, "epoch_length_policy", hint)


def _limits(config: MultiDataLoaderConfig, lengths: Sequence[Length]) -> list[int]:
    """The most batches that each loader gives in an epoch."""
    again = config.cycle_short_loaders and config.epoch_length_policy in (
        EpochLengthPolicy.MAX_OF_LENGTHS,
        EpochLengthPolicy.FIXED_NUM_STEPS,
    )
    return [ENDLESS if again or length is None else length for length in lengths]


def _bound(config: MultiDataLoaderConfig, lengths: Sequence[Length]) -> int:
    """What the policy says of an epoch's length, or of each loader's part where one follows the other."""
    known = [length for length in lengths if length is not None]
    match config.epoch_length_policy:
        case EpochLengthPolicy.SUM_OF_LENGTHS:
            return ENDLESS
        case EpochLengthPolicy.MAX_OF_LENGTHS:
            return max(known)
        case EpochLengthPolicy.MIN_OF_LENGTHS:
            return min(known)
        case EpochLengthPolicy.FIXED_NUM_STEPS:
            return config.steps_per_epoch or 0


def _in_turns(pattern: Sequence[int], limits: Sequence[int], total: int, burst: int) -> list[Block]:
    """The pattern again and again, each turn a burst; loaders that have nothing left are passed over."""
    blocks: list[Block] = []
    room, left = list(limits), total
    while left:
        turns = [loader for loader in pattern if room[loader]]
        takes = {loader: turns.count(loader) * burst for loader in turns}
        # As often as nobody runs out and the epoch does not end.
        times = min(left // (len(turns) * burst), *(room[loader] // each for loader, each in takes.items()))
        part = [(loader, burst) for loader in turns]
        if not times:
            times, part = 1, []
            for loader in turns:
                batches = min(burst, room[loader] - sum(each for one, each in part if one == loader))
                batches = min(batches, left - sum(each for _, each in part))
                if batches:
                    part.append((loader, batches))
        block = Turns(tuple(part), times)
        blocks.append(block)
        given = block.quotas(len(limits))
        room = [limit - batches for limit, batches in zip(room, given, strict=True)]
        left -= sum(given)
    return blocks


def _by_weight(
    order: Sequence[int], weights: Sequence[Fraction], limits: Sequence[int], total: int, burst: int
) -> list[Block]:
    """Weights set the pace. When a loader has nothing left, the others go on at the pace of theirs."""
    blocks: list[Block] = []
    room, left = list(limits), total
    while left:
        live = [loader for loader in order if room[loader]]
        shares = quotas(live, weights, left)
        short = [loader for loader in live if shares[loader] > room[loader]]
        if short:
            # As many batches as the first that runs out allows at its pace.
            first = min(short, key=lambda loader: room[loader] / weights[loader])
            weighed = sum(weights[loader] for loader in live)
            shares = quotas(live, weights, math.floor(room[first] * weighed / weights[first]))
            shares = [min(share, limit) for share, limit in zip(shares, room, strict=True)]
            shares[first] = room[first]
        blocks.append(Interleave(tuple(order), tuple(shares), burst))
        left -= sum(shares)
        room = [limit - share for limit, share in zip(room, shares, strict=True)]
    return blocks


def _even_shares(order: Sequence[int], limits: Sequence[int], total: int) -> list[int]:
    """`total` split evenly; what a loader cannot give is asked of the others."""
    fixed: dict[int, int] = {}
    while True:
        free = [loader for loader in order if loader not in fixed]
        shares = quotas(free, [1] * len(limits), total - sum(fixed.values()))
        over = [loader for loader in free if shares[loader] > limits[loader]]
        if not over:
            return [fixed.get(loader, share) for loader, share in enumerate(shares)]
        fixed.update({loader: limits[loader] for loader in over})


def quotas(order: Sequence[int], weights: Sequence[Fraction | int], total: int) -> list[int]:
    """`total` in whole numbers that follow the weights of the loaders in `order`, by largest remainder.

    Among equal remainders the loader that comes first in `order` gains; those that are not in it get nothing.

    >>> quotas([0, 1, 2], [3, 2, 1], 7)
    [4, 2, 1]
    """
    weighed = sum(weights[loader] for loader in order)
    shares = [0] * len(weights)
    missing = []
    for place, loader in enumerate(order):
        exact = Fraction(total * weights[loader]) / weighed
        shares[loader] = math.floor(exact)
        missing.append((shares[loader] - exact, place, loader))
    for _, _, loader in sorted(missing)[: total - sum(shares)]:
        shares[loader] += 1
    return shares
