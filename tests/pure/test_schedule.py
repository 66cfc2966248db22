"""Which loader comes next: the table of strategies and policies, beside a list made step by step."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oellm_autoexp.core.experiment import EpochLengthPolicy, MultiDataLoaderConfig, SamplingStrategy
from oellm_autoexp.errors import ValidationError
from oellm_autoexp.trainer.schedule import derived_seed, quotas, schedule_of

S, L = SamplingStrategy, EpochLengthPolicy
SUM, MAX, MIN, FIXED = L.SUM_OF_LENGTHS, L.MAX_OF_LENGTHS, L.MIN_OF_LENGTHS, L.FIXED_NUM_STEPS


def config(strategy: SamplingStrategy, policy: EpochLengthPolicy = SUM, **keys: Any) -> MultiDataLoaderConfig:
    return MultiDataLoaderConfig(sampling_strategy=strategy, epoch_length_policy=policy, **keys)


def listed(settings: MultiDataLoaderConfig, lengths: list[int | None], epoch: int = 0) -> str:
    return "".join(map(str, schedule_of(settings, lengths, epoch=epoch).follow()))


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("settings", "lengths", "expected"),
    [
        (config(S.ROUND_ROBIN), [2, 4], "010111"),
        (config(S.ROUND_ROBIN, burst_size=3), [2, 7], "001111111"),
        (config(S.ROUND_ROBIN, burst_size=2), [3, 4], "0011011"),
        (config(S.ROUND_ROBIN, MAX), [2, 4], "0101"),
        (config(S.ROUND_ROBIN, MIN), [2, 4], "01"),
        (config(S.ROUND_ROBIN, FIXED, steps_per_epoch=7), [2, 4], "0101010"),
        (config(S.ROUND_ROBIN, FIXED, steps_per_epoch=6, cycle_short_loaders=False), [2, 4], "010111"),
        (config(S.SEQUENTIAL), [2, 4], "001111"),
        (config(S.SEQUENTIAL, MAX), [2, 4], "00001111"),
        (config(S.SEQUENTIAL, MAX, cycle_short_loaders=False), [2, 4], "001111"),
        (config(S.SEQUENTIAL, MIN), [2, 4], "0011"),
        (config(S.SEQUENTIAL, FIXED, steps_per_epoch=7), [9, 9, 9], "0001122"),
        (config(S.SEQUENTIAL, FIXED, steps_per_epoch=8, cycle_short_loaders=False), [1, 9, 9], "01111222"),
        (config(S.ALTERNATING, alternating_pattern=(0, 0, 1)), [4, 4], "00100111"),
        (config(S.ALTERNATING, MAX, alternating_pattern=(0, 1, 1)), [2, 5], "01101"),
        (config(S.ALTERNATING, MIN, alternating_pattern=(1, 0)), [2, 5], "10"),
        (config(S.ALTERNATING, FIXED, alternating_pattern=(0, 0, 1), steps_per_epoch=7), [1, 1], "0010010"),
        (config(S.WEIGHTED, FIXED, dataloader_weights=(0.7, 0.3), steps_per_epoch=10), [9, 9], "0100100010"),
        (config(S.WEIGHTED, dataloader_weights=(2, 3, 1)), [2, 3, 1], "101201"),
        (config(S.WEIGHTED, dataloader_weights=(0.9, 0.1)), [5, 5], "0000011111"),
        (
            config(S.WEIGHTED, FIXED, dataloader_weights=(1, 1), steps_per_epoch=6, burst_size=2),
            [9, 9],
            "001101",
        ),
        (config(S.WEIGHTED, MAX, dataloader_weights=(3, 1)), [2, 8], "01000100"),
        (config(S.WEIGHTED, MAX, dataloader_weights=(3, 1), cycle_short_loaders=False), [2, 8], "00111111"),
        (config(S.WEIGHTED, MIN, dataloader_weights=(1, 3)), [4, 8], "1011"),
        (config(S.WEIGHTED, MAX, dataloader_weights=(1, 1)), [None, 4], "0101"),
        (config(S.ROUND_ROBIN, FIXED, steps_per_epoch=5), [None, None], "01010"),
    ],
)
def test_the_table(settings: MultiDataLoaderConfig, lengths: list[int | None], expected: str) -> None:
    schedule = schedule_of(settings, lengths)
    assert listed(settings, lengths) == expected
    assert schedule.total == len(expected)


def test_a_declared_seed_lets_other_loaders_come_first_in_other_epochs() -> None:
    plain, rotated = config(S.ROUND_ROBIN), config(S.ROUND_ROBIN, choice_rng_seed=1)
    lengths: list[int | None] = [3, 3, 3]
    assert {listed(plain, lengths, epoch) for epoch in range(9)} == {"012012012"}
    assert {listed(rotated, lengths, epoch) for epoch in range(20)} == {"012012012", "120120120", "201201201"}
    assert listed(rotated, lengths, 5) == listed(rotated, lengths, 5)


# ---------------------------------------------------------------- step by step


WEIGHTS = st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0, 2.0, 5.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[MultiDataLoaderConfig, list[int]]:
    strategy, policy = draw(st.sampled_from(S)), draw(st.sampled_from(L))
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    keys: dict[str, Any] = {
        "cycle_short_loaders": draw(st.booleans()),
        "burst_size": draw(st.integers(1, 4)),
    }
    if draw(st.booleans()):
        keys["choice_rng_seed"] = 7
    named = set(range(len(lengths)))
    if strategy is S.WEIGHTED:
        keys["dataloader_weights"] = draw(st.tuples(*[WEIGHTS] * len(lengths)))
    if strategy is S.ALTERNATING:
        pattern = [*named, *draw(st.lists(st.sampled_from(sorted(named)), max_size=3))]
        keys["alternating_pattern"] = tuple(draw(st.permutations(pattern)))
    if policy is FIXED:
        most = 40 if keys["cycle_short_loaders"] else sum(lengths)
        keys["steps_per_epoch"] = draw(st.integers(1, most))
    return config(strategy, policy, **keys), lengths


def in_turns(settings: MultiDataLoaderConfig, lengths: list[int], epoch: int) -> list[int]:
    """ROUND_ROBIN and ALTERNATING, one step after the other."""
    pattern = list(settings.alternating_pattern or range(len(lengths)))
    if settings.choice_rng_seed is not None:
        first = derived_seed(settings.choice_rng_seed, epoch) % len(pattern)
        pattern = pattern[first:] + pattern[:first]
    policy = settings.epoch_length_policy
    cycling = settings.cycle_short_loaders and policy in (MAX, FIXED)
    total = {
        SUM: sum(lengths),
        MAX: max(lengths),
        MIN: min(lengths),
        FIXED: settings.steps_per_epoch or 0,
    }[policy]
    given = [0] * len(lengths)
    steps: list[int] = []
    for loader in itertools.cycle(pattern):
        for _ in range(settings.burst_size):
            if len(steps) == total:
                return steps
            if cycling or given[loader] < lengths[loader]:
                steps.append(loader)
                given[loader] += 1
    return steps


@given(cases(), st.integers(0, 3))
def test_turns_are_those_that_are_taken_step_by_step(
    case: tuple[MultiDataLoaderConfig, list[int]], epoch: int
) -> None:
    settings, lengths = case
    assume(settings.sampling_strategy in (S.ROUND_ROBIN, S.ALTERNATING))
    found = list(schedule_of(settings, lengths, epoch=epoch).follow())
    assert found == in_turns(settings, lengths, epoch)


@given(cases(), st.integers(0, 3))
def test_every_loader_is_read_once_under_sum_and_never_beyond_its_end_unless_cycling(
    case: tuple[MultiDataLoaderConfig, list[int]], epoch: int
) -> None:
    settings, lengths = case
    schedule = schedule_of(settings, lengths, epoch=epoch)
    given_by = Counter(schedule.follow())
    counts = [given_by[loader] for loader in range(len(lengths))]
    assert sum(counts) == schedule.total
    if settings.epoch_length_policy is SUM:
        assert counts == lengths
    if settings.epoch_length_policy is MIN or not settings.cycle_short_loaders:
        assert all(count <= length for count, length in zip(counts, lengths, strict=True))
    if settings.epoch_length_policy is FIXED:
        assert schedule.total == settings.steps_per_epoch


@given(cases(), st.integers(0, 3))
def test_a_schedule_goes_on_from_any_place(case: tuple[MultiDataLoaderConfig, list[int]], epoch: int) -> None:
    settings, lengths = case
    schedule = schedule_of(settings, lengths, epoch=epoch)
    whole = list(schedule.follow())
    counts, last = [0] * len(lengths), -1
    for position, loader in enumerate(whole):
        assert list(schedule.follow(counts, last)) == whole[position:]
        counts[loader] += 1
        last = loader
    assert list(schedule.follow(counts, last)) == []


@given(st.lists(WEIGHTS, min_size=1, max_size=5), st.integers(1, 60), st.integers(1, 4))
def test_weights_are_kept_to_the_batch_and_all_along(weights: list[float], steps: int, burst: int) -> None:
    settings = config(
        S.WEIGHTED, FIXED, dataloader_weights=tuple(weights), steps_per_epoch=steps, burst_size=burst
    )
    found = list(schedule_of(settings, [None] * len(weights)).follow())
    exact = [Fraction(repr(weight)) for weight in weights]
    shares = [weight * steps / sum(exact) for weight in exact]
    counts = Counter(found)
    for loader, share in enumerate(shares):
        assert abs(counts[loader] - share) < 1
    if burst == 1:
        for position in range(steps + 1):
            so_far = Counter(found[:position])
            for loader in range(len(weights)):
                ideal = Fraction(position * counts[loader], steps)
                assert -1 < ideal - so_far[loader] < len(weights)


@given(st.lists(WEIGHTS, min_size=1, max_size=6), st.integers(0, 1000))
def test_quotas_add_up_and_are_the_nearest_whole_numbers(weights: list[float], total: int) -> None:
    exact = [Fraction(repr(weight)) for weight in weights]
    shares = quotas(range(len(exact)), exact, total)
    assert sum(shares) == total
    for share, weight in zip(shares, exact, strict=True):
        assert abs(share - weight * total / sum(exact)) < 1


def test_an_epoch_of_ten_million_batches_is_a_few_blocks_and_its_end_is_reached_at_once() -> None:
    lengths: list[int | None] = [4_000_000, 3_000_001, 2_000_000, 1_000_000]
    weighted = schedule_of(config(S.WEIGHTED, dataloader_weights=(0.5, 0.3, 0.17, 0.03)), lengths)
    assert weighted.total == 10_000_001
    assert len(weighted.blocks) == 4
    assert list(weighted.follow([4_000_000, 3_000_001, 2_000_000, 999_990], 3)) == [3] * 10
    turns = schedule_of(config(S.ROUND_ROBIN, burst_size=7), lengths)
    rest = turns.follow([1_000_002, 999_999, 999_999, 999_999], 0)
    assert list(itertools.islice(rest, 6)) == [0, 0, 0, 0, 1, 1]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "lengths", "message"),
    [
        (config(S.ROUND_ROBIN), [], "no loader is given"),
        (config(S.ROUND_ROBIN, dataloader_names=("validation",)), [3, 3], "1 names for 2 loaders"),
        (config(S.WEIGHTED, dataloader_weights=(1, 1)), [3, 3, 3], "2 weights for 3 loaders"),
        (config(S.ALTERNATING, alternating_pattern=(0, 2)), [3, 3], "loader 2 is named, and there are 2"),
        (
            config(S.ALTERNATING, alternating_pattern=(0, 0)),
            [3, 3],
            "1 of 2 loaders are named; 1 would",
        ),
        (config(S.ROUND_ROBIN), [3, None], "1 of 2 loaders have no length, so SUM_OF_LENGTHS"),
        (config(S.ROUND_ROBIN, MAX), [3, None], "1 of 2 loaders have no length"),
        (config(S.WEIGHTED, MAX, dataloader_weights=(1, 1)), [None, None], "2 of 2 loaders have no length"),
        (config(S.ROUND_ROBIN, MIN), [3, 0], "loader 1 has no batches"),
        (
            config(S.ROUND_ROBIN, FIXED, steps_per_epoch=9, cycle_short_loaders=False),
            [3, 3],
            "9 steps are asked for, and the loaders have 6 batches",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_both_counts(
    settings: MultiDataLoaderConfig, lengths: list[int | None], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule_of(settings, lengths)
