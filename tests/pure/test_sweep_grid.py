"""The points of a sweep."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.sweep.grid import MAX_DEPTH, Grid, count, expand, keys

#: The same examples every time, whatever else the machine is doing.
FUZZED = settings(max_examples=100, deadline=None, derandomize=True)


def values(sweep):
    return [point.values for point in expand(sweep)]


def faults(sweep):
    with pytest.raises(ConfigError) as caught:
        expand(sweep)
    assert caught.value.exit_code == 2
    return {fault.key: fault for fault in caught.value.faults}


def test_mapping_is_the_product_of_its_keys_in_order():
    """The last key changes fastest, and values keep the order of declaration."""
    assert values({"axes": {"lr": [1e-3, 3e-4], "seed": [0, 1]}}) == [
        {"lr": 1e-3, "seed": 0},
        {"lr": 1e-3, "seed": 1},
        {"lr": 3e-4, "seed": 0},
        {"lr": 3e-4, "seed": 1},
    ]


@pytest.mark.parametrize(
    "axes, expected",
    [
        (None, [{}]),
        ({}, [{}]),
        ({"a": 1}, [{"a": 1}]),
        ({"a": None}, [{"a": None}]),
        ({"a": [None, 1]}, [{"a": None}, {"a": 1}]),
        ({"a.b": [1]}, [{"a.b": 1}]),
        ({"a": {"b": [1, 2], "c": [3]}}, [{"a.b": 1, "a.c": 3}, {"a.b": 2, "a.c": 3}]),
        ([{"a": [1, 2]}, {"b": 3}], [{"a": 1}, {"a": 2}, {"b": 3}]),
        (
            {"opt": [{"adam": {"lr": [1, 2]}}, {"sgd.lr": [3]}], "s": 0},
            [{"opt.adam.lr": 1, "s": 0}, {"opt.adam.lr": 2, "s": 0}, {"opt.sgd.lr": 3, "s": 0}],
        ),
        ({"a": [1, {"b": [2, 3]}]}, [{"a": 1}, {"a.b": 2}, {"a.b": 3}]),
        ({"betas": [[0.9, 0.95], [0.9, 0.999]]}, [{"betas": [0.9, 0.95]}, {"betas": [0.9, 0.999]}]),
        ({"a": ["${x}"]}, [{"a": "${x}"}]),
    ],
)
def test_axes_mean_what_the_first_version_meant(axes, expected):
    """Products, alternatives, unions, nesting; a list within alternatives is a value."""
    assert values({"axes": axes}) == expected


def test_groups_of_the_printed_config():
    """A product of a grid and a list of configs, with a dotted key that overrides the config."""
    grid = Grid(
        {
            "type": "product",
            "groups": [
                {"params": {"lr": [1e-3, 3e-4, 1e-4]}},
                {
                    "type": "list",
                    "configs": [
                        {"size": "small", "layers": 12, "slurm.sbatch.nodes": 1},
                        {"size": "large", "layers": 32, "slurm.sbatch.nodes": 4},
                    ],
                },
            ],
        }
    )
    points = list(grid.points())
    assert grid.keys == ("lr", "size", "layers", "slurm.sbatch.nodes")
    assert [point.index for point in points] == list(range(6)) and grid.count() == 6
    assert points[1].values == {"lr": 1e-3, "size": "large", "layers": 32, "slurm.sbatch.nodes": 4}


def test_list_groups_follow_one_another_and_nest():
    """`type: list` concatenates; a nested group brings its defaults along."""
    sweep = {
        "type": "list",
        "params": {"a": [1, 2]},
        "groups": [
            {"params": {"b": [3, 4]}, "defaults": {"c": {"d": 5}}},
            {"groups": [{"configs": [{"b": 6}, None]}]},
        ],
    }
    assert values(sweep) == [{"a": 1}, {"a": 2}, {"c.d": 5, "b": 3}, {"c.d": 5, "b": 4}, {"b": 6}, {}]
    assert keys(sweep) == ("a", "c.d", "b") and count(sweep) == 6


def test_specific_values_win_over_general_ones():
    """base_values < defaults < configs, outer defaults < inner ones."""
    sweep = {
        "base_values": {"a": 0, "b": 0, "c": 0, "l": [1, 2]},
        "defaults": {"b": 1, "c": 1},
        "groups": [{"defaults": {"c": 2, "d": 2}, "configs": [{"d": 3}, {"e": 4}]}],
    }
    assert values(sweep) == [
        {"a": 0, "b": 1, "c": 2, "l": [1, 2], "d": 3},
        {"a": 0, "b": 1, "c": 2, "l": [1, 2], "d": 2, "e": 4},
    ]


def test_labels_are_the_keys_with_alternatives():
    """A key written as a list is shown in names even with one value: adding a second renames nobody."""
    sweep = {
        "base_values": {"z": 1},
        "axes": {"lr": [1e-3], "fixed": 3, "opt": [{"adam.b": 1}, {"sgd.m": 2}]},
    }
    grid = Grid(sweep)
    assert grid.labels == ("lr", "opt.adam.b", "opt.sgd.m")
    assert grid.keys == ("z", "lr", "fixed", "opt.adam.b", "opt.sgd.m")


def test_filters_act_where_they_stand_and_points_are_renumbered():
    """A group's filter sees its values, its defaults and what lies below; indices have no gaps."""
    sweep = {
        "base_values": {"top": 2},
        "groups": [
            {"params": {"a": [1, 2, 3]}, "defaults": {"d": 1}, "filter": ["a * d >= top", "a != 3"]},
            {"params": {"b": [1, 2]}},
        ],
        "filter": "b == 1",
    }
    assert [(p.index, p.values["a"], p.values["b"]) for p in expand(sweep)] == [(0, 2, 1)]
    assert count(sweep) == 1 and Grid(sweep).reads == {"a", "d", "top", "b"}


@pytest.mark.parametrize(
    "sweep, key, text",
    [
        ({"axis": {}}, "sweep.axis", "did you mean `axes`"),
        ({"groups": [{"param": {}}]}, "sweep.groups.0.param", "did you mean `params`"),
        ({"groups": [{"axes": {}}]}, "sweep.groups.0.axes", "known here"),
        ({"axes": {"a": []}}, "sweep.axes.a", "no points"),
        ({"configs": []}, "sweep.configs", "no points"),
        ({"axes": 3}, "sweep.axes", "must be a mapping"),
        ({"axes": [3]}, "sweep.axes.0", "must be a mapping"),
        ({"axes": {"a": {1, 2}}}, "sweep.axes.a", "cannot be swept"),
        ({"axes": {3: [1]}}, "sweep.axes.3", "not usable as a key"),
        ({"axes": {"a b": [1]}}, "sweep.axes.a b", "not usable as a key"),
        ({"axes": {"a": 1}, "params": {"b": 1}}, "sweep.axes", "beside `params`"),
        ({"axes": {"a": {"b": 1}, "a.b": 2}}, "sweep.axes", "twice"),
        (
            {"groups": [{"params": {"a": 1}}, {"configs": [{"b": 1}, {"a": 1}]}]},
            "sweep",
            "`a` is swept twice",
        ),
        ({"base_values": {"a": {"b": 1}, "a.b": 2}}, "sweep.base_values.a.b", "given twice"),
        ({"type": "zip"}, "sweep.type", "product or list"),
        ({"groups": {"a": 1}}, "sweep.groups", "must be a list"),
        ({"groups": [3]}, "sweep.groups.0", "must be a mapping"),
        ({"params": [1]}, "sweep.params", "must be a mapping"),
        ({"configs": [3]}, "sweep.configs.0", "must be a mapping"),
        ({"filter": "x > 1", "axes": {"a": [1]}}, "sweep.filter", "unknown name `x`"),
        ({"filter": [3]}, "sweep.filter.0", "must be text"),
        ({"name_template": 3}, "sweep.name_template", "must be text"),
        ({"store_sweep_json": "no"}, "sweep.store_sweep_json", "true or false"),
        ("lr", "sweep", "must be a mapping"),
    ],
)
def test_mistakes_are_named_with_their_place(sweep, key, text):
    """Each mistake is one fault with its key path and what to do."""
    assert text in str(faults(sweep)[key])


def test_all_mistakes_are_reported_at_once():
    """A person repairs everything in one go."""
    assert len(faults({"axis": 1, "axes": {"a": [], "b": []}, "type": "x"})) == 4


def test_hostile_nesting_is_refused():
    """Endless nesting is a fault, not a crash."""
    deep = [1]
    for _ in range(3 * MAX_DEPTH):
        deep = {"a": deep}
    assert "deep" in str(next(iter(faults({"axes": deep}).values())))
    assert "deep" in str(next(iter(faults({"base_values": deep}).values())))


def test_a_million_points_cost_no_memory():
    """Points are made on demand, and counting them is arithmetic."""
    sweep = {"axes": {name: list(range(10)) for name in "abcdef"}}
    assert count(sweep) == 10**6
    tracemalloc.start()
    last = list(itertools.islice(expand(sweep), 5000))[-1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.values == {"a": 0, "b": 0, "c": 4, "d": 9, "e": 9, "f": 9}
    assert peak < 4_000_000


scalars = st.one_of(st.integers(-3, 3), st.text("xy", max_size=2), st.booleans(), st.none())
names = st.text("abc", min_size=1, max_size=2)
axes = st.recursive(
    st.one_of(scalars, st.lists(scalars, min_size=1, max_size=3)),
    lambda inner: st.one_of(
        st.dictionaries(names, inner, max_size=3),
        st.lists(st.dictionaries(names, inner, min_size=1, max_size=1), min_size=1, max_size=3),
    ),
    max_leaves=8,
)


def recursive_points(axes, prefix=""):
    """The semantics again, written the short way."""
    if isinstance(axes, dict):
        points = [{}]
        for key, below in axes.items():
            more = recursive_points(below, f"{prefix}.{key}" if prefix else key)
            points = [{**one, **two} for one in points for two in more]
        return points
    if isinstance(axes, list):
        return [point for item in axes for point in recursive_points(item, prefix)]
    return [{prefix: axes}] if prefix else [{}]


@FUZZED
@given(st.dictionaries(names, axes, max_size=3))
def test_expansion_equals_the_recursive_definition(axes):
    """The lazy engine gives the points, in the order, of the plain recursion; `count` agrees."""
    try:
        points = values({"axes": axes})
    except ConfigError as error:
        assert all("swept twice" in fault.what for fault in error.faults)
        return
    assert points == recursive_points(axes)
    assert count({"axes": axes}) == len(points)
    assert set().union(*points) <= set(keys({"axes": axes}))


anything = st.recursive(
    st.one_of(scalars, st.floats(), st.binary(max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["axes", "type", "params", "configs", "groups", "defaults", "filter", "a", "b.c", ""]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)


@FUZZED
@given(anything)
def test_no_input_breaks_the_reader(sweep):
    """Whatever stands in the section: points, or a config error."""
    try:
        list(itertools.islice(expand(sweep), 50))
    except ConfigError as error:
        assert all(fault.key.startswith("sweep") for fault in error.faults)
