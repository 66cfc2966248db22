"""Grids that a program declares: what they hold, in which order, counted and sampled without being built."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import ConfigError, ValidationError
from oellm_autoexp.sweep.parameters import ParameterGrid, _shuffled

FUZZED = settings(max_examples=100, deadline=None, derandomize=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
KEYS = st.sampled_from(["lr", "optimizer.lr", "model.hidden_size", "seed", "data.batch_size", "x"])
PARAMETERS = st.dictionaries(KEYS, st.lists(SCALARS, min_size=1, max_size=4), min_size=1, max_size=4)


def grid_of(parameters: dict[str, list[Any]]) -> ParameterGrid:
    grid = ParameterGrid("g")
    for key, values in parameters.items():
        grid.add_parameter(key, values)
    return grid


def points(grid: ParameterGrid) -> list[dict[str, Any]]:
    return list(grid.generate_permutations())


def three() -> ParameterGrid:
    return grid_of({"lr": [1, 2, 3], "wd": [0, 1]})


@FUZZED
@given(PARAMETERS)
def test_a_grid_is_the_product_of_its_parameters(parameters: dict[str, list[Any]]) -> None:
    """In their order, the last key changing fastest; the count is that of the enumeration."""
    grid = grid_of(parameters)
    expected = [
        dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())
    ]
    assert points(grid) == expected
    assert grid.get_parameter_count() == len(expected)


def test_a_grid_without_parameters_has_no_points() -> None:
    grid = ParameterGrid("empty")
    assert grid.get_parameter_count() == 0
    assert points(grid) == []
    assert grid.sample(3) == []


def test_adding_a_key_again_replaces_it_and_calls_chain() -> None:
    grid = (
        ParameterGrid("g")
        .add_parameter("lr", [1])
        .add_nested_parameter("model.size", [2])
        .add_parameter("lr", [3])
    )
    assert points(grid) == [{"lr": 3, "model.size": 2}]


def test_linked_parameters_go_together_and_several_groups_follow_one_another() -> None:
    grid = ParameterGrid("g").add_parameter("seed", [0, 1])
    grid.add_linked_parameters(["layers", "heads"], [(2, 4), {"layers": 6, "heads": 8}])
    grid.add_linked_parameters(["width"], [(64,)])
    assert points(grid) == [
        {"seed": seed, **row}
        for seed in (0, 1)
        for row in ({"layers": 2, "heads": 4}, {"layers": 6, "heads": 8}, {"width": 64})
    ]
    assert grid.get_parameter_count() == 6


@pytest.mark.parametrize("when", [{"opt": "sgd"}, "opt == 'sgd'", lambda point: point["opt"] == "sgd"])
def test_a_conditional_parameter_is_swept_only_where_its_condition_holds(when: Any) -> None:
    grid = ParameterGrid("g").add_parameter("opt", ["sgd", "adam"])
    grid.add_conditional_parameter("momentum", [0.0, 0.9], when)
    expected = [{"opt": "sgd", "momentum": 0.0}, {"opt": "sgd", "momentum": 0.9}, {"opt": "adam"}]
    assert points(grid) == expected
    assert grid.get_parameter_count() == 3
    assert sorted(map(str, grid.sample(10))) == sorted(map(str, expected))


def test_a_computed_parameter_follows_from_the_point_and_constraints_see_it() -> None:
    grid = three().add_computed_parameter("warmup", lambda point: point["lr"] * 10)
    grid.add_constraint("warmup >= 20").exclude_combinations([{"lr": 3, "wd": 1}])
    assert points(grid) == [
        {"lr": 2, "wd": 0, "warmup": 20},
        {"lr": 2, "wd": 1, "warmup": 20},
        {"lr": 3, "wd": 0, "warmup": 30},
    ]
    assert grid.get_parameter_count() == 3


def test_drawn_values_are_the_same_for_a_seed_and_lie_within_their_bounds() -> None:
    """On every machine: the figures are part of the test."""
    grid = ParameterGrid("g").add_parameter_distribution("lr", "loguniform", 50, seed=1, low=1e-5, high=1e-1)
    drawn = [point["lr"] for point in points(grid)]
    assert len(set(drawn)) == 50 and all(1e-5 <= value < 1e-1 for value in drawn)
    assert sum(value < 1e-3 for value in drawn) in range(15, 36)
    other = ParameterGrid("g").add_parameter_distribution("lr", "loguniform", 50, seed=2, low=1e-5, high=1e-1)
    assert points(other) != points(grid)
    normal = ParameterGrid("g").add_parameter_distribution("x", "normal", 400, seed=0, mean=5, std=2)
    values = [point["x"] for point in points(normal)]
    assert abs(sum(values) / 400 - 5) < 0.4
    assert abs((sum((value - 5) ** 2 for value in values) / 400) ** 0.5 - 2) < 0.3
    choice = ParameterGrid("g").add_parameter_distribution("c", "choice", 30, choices=["a", "b"])
    assert {point["c"] for point in points(choice)} == {"a", "b"}


def test_a_million_points_are_counted_and_sampled_without_being_built() -> None:
    grid = grid_of({"a": list(range(1000)), "b": list(range(1000)), "c": [0, 1]})
    grid.get_parameter_count()
    tracemalloc.start()
    try:
        assert grid.get_parameter_count() == 2_000_000
        sample = grid.sample(100, seed=3)
        assert next(grid.generate_permutations()) == {"a": 0, "b": 0, "c": 0}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert len({tuple(point.values()) for point in sample}) == 100
    assert sample == grid.sample(100, seed=3) != grid.sample(100, seed=4)
    # Evenly: no half of a range is preferred.
    assert 25 < sum(point["a"] < 500 for point in sample) < 75


@FUZZED
@given(st.integers(1, 300), st.integers())
def test_sampling_all_of_a_grid_gives_each_point_once(size: int, seed: int) -> None:
    assert sorted(_shuffled(size, seed)) == list(range(size))


@FUZZED
@given(PARAMETERS, st.integers(0, 5))
def test_a_sample_of_everything_is_everything(parameters: dict[str, list[Any]], seed: int) -> None:
    """Also behind filters, of which a sample holds only what they keep."""
    grid = grid_of(parameters).add_constraint(lambda point: hash(str(point)) is not None)
    assert sorted(map(repr, grid.sample(10_000, seed))) == sorted(map(repr, points(grid)))


@FUZZED
@given(PARAMETERS)
def test_what_is_saved_comes_back(parameters: dict[str, list[Any]]) -> None:
    grid = grid_of(parameters)
    key = next(iter(parameters))
    grid.add_linked_parameters(["p", "q"], [(1, 2), (3, 4)])
    grid.add_conditional_parameter("only", [1, 2], {key: parameters[key][0]})
    grid.add_parameter_distribution("drawn", "uniform", 2, seed=5, low=0, high=1)
    grid.add_constraint("p > 0").exclude_combinations([{"q": 4}])
    again = ParameterGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert points(again) == points(grid)
    assert again.to_dict() == grid.to_dict()


def test_a_function_is_not_lost_silently_when_a_grid_is_saved() -> None:
    grid = three().add_constraint(lambda point: point["lr"] > 1)
    with pytest.raises(
        ValidationError, match=r"the function .*<lambda> \(.*test_parameter_grid.py:\d+\) cannot"
    ):
        grid.to_dict()


def broken(point: dict[str, Any]) -> bool:
    return bool(point["missing"])


MISTAKES = {
    "no values": (lambda g: g.add_parameter("lr", []), "has no values"),
    "not a list": (lambda g: g.add_parameter("lr", "abc"), "must be a list of values, not a text"),
    "a set": (lambda g: g.add_parameter("lr", {1, 2}), "must be a list of values"),
    "a key": (lambda g: g.add_parameter("a b", [1]), "not usable as a key"),
    "a key that is no text": (lambda g: g.add_parameter(3, [1]), "not usable as a key"),
    "an object": (lambda g: g.add_parameter("lr", [object()]), "cannot be swept"),
    "bytes": (lambda g: g.add_parameter("lr", [b"x"]), "cannot be swept"),
    "a row": (lambda g: g.add_linked_parameters(["a", "b"], [(1,)]), "needs a value for each of a, b"),
    "no rows": (lambda g: g.add_linked_parameters(["a"], []), "need keys and rows"),
    "two ways": (lambda g: g.add_linked_parameters(["lr"], [(1,)]), "declared in two ways"),
    "a distribution": (lambda g: g.add_parameter_distribution("x", "unifrom", 2), "did you mean `uniform`"),
    "bounds": (lambda g: g.add_parameter_distribution("x", "uniform", 2, lo=1), "takes low and high, not lo"),
    "order": (lambda g: g.add_parameter_distribution("x", "uniform", 2, low=2, high=1), "in this order"),
    "log of 0": (lambda g: g.add_parameter_distribution("x", "loguniform", 2, low=0, high=1), "above 0"),
    "no samples": (lambda g: g.add_parameter_distribution("x", "uniform", 0, low=0, high=1), "n_samples"),
    "endless": (lambda g: g.add_parameter_distribution("x", "normal", 1, mean=0, std=float("inf")), "std"),
    "a filter": (lambda g: g.add_constraint("lrr > 1"), "did you mean `lr`"),
    "a call": (lambda g: g.add_constraint("__import__('os')"), "a call"),
    "a key of when": (lambda g: g.add_conditional_parameter("m", [1], {"opt": 1}), "is not swept"),
    "neither": (lambda g: g.add_constraint(3), "must be text, a mapping or a function"),
    "a function": (lambda g: g.add_constraint(broken), r"broken \(.*:\d+\) raised KeyError: 'missing'"),
    "computed junk": (lambda g: g.add_computed_parameter("z", lambda _: object()), "cannot be swept"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_value_error_that_says_what(name: str) -> None:
    """At once where it can be seen, else when points are asked for; never a point that is dropped."""
    add, says = MISTAKES[name]
    grid = three()
    with pytest.raises(ValidationError, match=says) as caught:
        add(grid)
        points(grid)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, ConfigError)


def test_a_function_cannot_change_the_points() -> None:
    grid = three().add_constraint(lambda point: point.clear() is None)
    assert points(grid) == points(three())


@FUZZED
@given(
    st.recursive(
        SCALARS | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=12,
    )
)
def test_no_saved_grid_breaks_the_reader(junk: Any) -> None:
    """Whatever a file holds: a grid, or a mistake that is named."""
    for data in (
        {"name": "g", "parameters": junk},
        {"name": "g", "linked": junk},
        {"name": "g", "drawn": junk},
    ):
        try:
            points(ParameterGrid.from_dict(data))
        except ValidationError:
            continue
