"""Partial evaluation: constants once, the rest per point, with the results of a full evaluation."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.config.nodes import DYNAMIC
from oellm_autoexp.config.tree import Tree
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError

#: The same examples every time, whatever else the machine is doing.
FUZZED = settings(max_examples=150, deadline=None, derandomize=True)

RAW = {
    "project": {"name": "tiny", "out": "./o/${project.name}"},
    "backend": {
        "command": ["python", "train.py", "--lr", "${lr}", "--out", "${job.output_dir}/x"],
        "env": {"TOKENS": "${oc.muli:${..batch},${.STEPS}}", "STEPS": 100},
        "batch": "${oc.mul:${slurm.sbatch.nodes},2}",
    },
    "slurm": {"sbatch": {"nodes": 1, "gpus-per-node": 8}, "copy": "${.sbatch}", "lines": ["a", "b"]},
    "restart_policies": {"crash": {"max": 2}, "crash.nan": {"message": "look"}},
    "said": "${restart_policies.crash.nan.message}",
}
KEYS = ["lr", "slurm.sbatch.nodes", "restart_policies.crash.nan.message", "slurm.sbatch.mem"]
JOB = {"name": "j", "output_dir": "/o/j", "attempt": symbols.reference(symbols.ATTEMPT_VARIABLE)}


def tree(raw=RAW, dynamic=KEYS):
    return Tree(raw, dynamic, environment={"A": "a"})


def refused(raw, dynamic, values=None, job=JOB):
    with pytest.raises(ConfigError) as caught:
        made = Tree(raw, dynamic, environment={})
        assert values is not None
        made.point(values, job)
    return caught.value.faults[0]


def test_what_differs_between_points_is_known():
    """Swept keys and everything that reaches them or the job; all else is resolved at once."""
    made = tree()
    assert made.dynamic_paths == (
        "backend.command.3",
        "backend.command.5",
        "backend.env.TOKENS",
        "backend.batch",
        "slurm.sbatch.nodes",
        "slurm.sbatch.mem",
        "slurm.copy",
        "restart_policies.crash.nan.message",
        "said",
    )
    assert ("restart_policies", "crash.nan", "message") in made.dynamic_parts
    assert made.folded["project"] == {"name": "tiny", "out": "./o/tiny"}
    assert made.folded["backend"]["command"][3] is DYNAMIC and made.folded["said"] is DYNAMIC
    assert made.folded["slurm"]["sbatch"] == {"nodes": DYNAMIC, "gpus-per-node": 8, "mem": DYNAMIC}
    assert made.free == {"lr"}


def test_a_point_overrides_and_everything_follows():
    """Free names are variables, dotted keys replace config keys, new keys appear only where set."""
    made = tree()
    one = made.point({"lr": 1e-3, "slurm.sbatch.nodes": 4}, JOB)
    assert one["backend"] == {
        "command": ["python", "train.py", "--lr", 1e-3, "--out", "/o/j/x"],
        "env": {"TOKENS": 800, "STEPS": 100},
        "batch": 8,
    }
    assert one["slurm"]["sbatch"] == one["slurm"]["copy"] == {"nodes": 4, "gpus-per-node": 8}
    assert one["said"] == "look" and list(one) == list(RAW)
    two = made.point({"lr": 1, "slurm.sbatch.mem": "8G", "restart_policies.crash.nan.message": "m"}, JOB)
    assert two["slurm"]["sbatch"] == {"nodes": 1, "gpus-per-node": 8, "mem": "8G"}
    assert two["said"] == "m" and two["restart_policies"]["crash"] == {"max": 2}


def test_constant_parts_are_shared_between_points():
    """A point copies only the containers above what changes."""
    made = tree()
    one, two = (made.point({"lr": lr}, JOB) for lr in (1, 2))
    assert one["project"] is two["project"] is made.folded["project"]
    assert one["slurm"]["lines"] is two["slurm"]["lines"]
    assert one["backend"] is not two["backend"] and made.folded["backend"]["command"][3] is DYNAMIC


def test_a_config_without_anything_dynamic_is_one_object():
    """Nothing swept, nothing of the job: the folded config is every point."""
    made = Tree({"a": 1, "b": ["${a}"]})
    assert made.point({}, {}) is made.folded == {"a": 1, "b": [1]} and made.dynamic_parts == ()


def test_swept_values_may_refer_to_others():
    """Values of a point may hold references to other values, to the config and to the job."""
    made = Tree({"x": "${b}", "d": {"n": 1}, "k": 5}, ["a", "b", "d.n", "l"])
    values = {
        "a": 2,
        "b": "${oc.mul:${a},${k}}",
        "d.n": "${.m}",
        "l": ["${a}", {"q": "${job.name}"}],
        "d.m": 3,
    }
    scope = Tree({"x": "${b}", "d": {"n": 1}, "k": 5}, values).at(values, JOB)
    assert scope.point_values() == {"a": 2, "b": 10, "d.n": 3, "l": [2, {"q": "j"}], "d.m": 3}
    assert scope.config() == {"x": 10, "d": {"n": 3, "m": 3}, "k": 5}
    assert made.reads_of("${oc.mul:${a},${k}}") == {"a"} and made.reads_of("plain") == frozenset()


def test_job_facts_may_be_filled_in_late():
    """A name is made of the point's values, and the output directory of the name."""
    job = {}
    scope = tree().at({"lr": 1}, job)
    job["output_dir"] = f"/o/{scope.point_values()['lr']}"
    assert scope.config()["backend"]["command"][-1] == "/o/1/x"


def test_the_attempt_is_a_reference():
    """`job.attempt` is known only in the job and stays symbolic within a longer text."""
    made = Tree({"x": "v${job.attempt}"})
    assert made.point({}, JOB)["x"] == "v" + symbols.reference("AUTOEXP_ATTEMPT")


def test_siblings():
    """`sibling.*` is dynamic and comes from the caller."""
    made = Tree({"x": "${sibling.train.output_dir}"})
    assert made.at({}, {}, sibling={"train": {"output_dir": "/t"}}).config() == {"x": "/t"}


def test_what_is_read_is_known():
    """Variables that nothing reads can be refused; computed keys count as reading all they might."""
    raw = {
        "a": "${lr} ${job.name}",
        "p": {"s": {"x": 1}, "l": {"x": 2}},
        "b": "${p.${size}.x}",
        "n": {"m": 1},
    }
    made = Tree(raw, ["lr", "size", "unused", "p.s.x", "n.m"])
    assert made.reads == {"lr", "size", "job.name", "p.s.x"}
    assert Tree({"a": "${oc.select:lr,1}"}, ["lr", "other"]).reads == {"lr"}
    assert Tree({"a": "${${k}}", "k": "lr"}, ["lr", "other"]).reads == {"lr", "other"}


def test_a_key_through_a_reference_is_followed():
    """A mapping that is itself a reference is looked into, also at a point."""
    raw = {
        "preset": "${presets.${size}}",
        "presets": {"s": {"l": 1}, "b": {"l": "${lr}"}},
        "x": "${preset.l}",
    }
    made = Tree(raw, ["size", "lr"])
    assert made.point({"size": "s", "lr": 7}, JOB)["x"] == 1
    assert made.point({"size": "b", "lr": 7}, JOB)["x"] == 7
    fault = refused(raw, ["size", "lr"], {"size": "x", "lr": 7})
    assert fault.key == "preset" and "did you mean `presets.s`" in fault.hint


def test_defaults_of_select_see_swept_keys():
    """A key that only points create is not missing at the points that set it."""
    made = Tree({"a": {}, "x": "${oc.select:a.b,none}"}, ["a.b"])
    assert [made.point(v, JOB)["x"] for v in ({"a.b": 3}, {})] == [3, "none"]


def test_what_stands_below_a_swept_key_is_needed_only_without_it():
    """A base value that cannot be resolved is no fault while every point replaces it."""
    made = Tree({"a": "${oc.env:UNSET_FOR_THIS_TEST}", "b": "${a}"}, ["a"], environment={})
    assert made.point({"a": 1}, JOB) == {"a": 1, "b": 1}
    with pytest.raises(ConfigError, match="UNSET_FOR_THIS_TEST is not set"):
        made.point({}, JOB)


@pytest.mark.parametrize(
    "dynamic, key, says",
    [
        (["slurm.sbach.nodes"], "slurm.sbach.nodes", "did you mean `slurm.sbatch`"),
        (["project.name.x"], "project.name.x", "`project.name` is not a mapping"),
        (["project.out.x"], "project.out.x", "`project.out` is not a mapping"),
        (["slurm.lines.7"], "slurm.lines.7", "`slurm.lines` is not a mapping"),
        (["slurm.sbatch.nodes", "slurm.sbatch"], "slurm.sbatch.nodes", "`slurm.sbatch` is swept too"),
    ],
)
def test_swept_keys_without_a_place_are_refused(dynamic, key, says):
    """New keys only below mappings that exist; nothing below a key that is swept as a whole."""
    fault = refused(RAW, ["lr", *dynamic])
    assert fault.key == key and says in str(fault)


@pytest.mark.parametrize(
    "raw, values, key, says",
    [
        ({"x": "${lr}"}, {}, "x", "the point has no `lr`"),
        ({"x": "${lr.y}"}, {"lr": {"z": 1}}, "x", "did you mean"),
        ({"x": "${job.outputdir}"}, {"lr": 1}, "x", "did you mean `job.output_dir`"),
        ({"x": "${oc.add:${lr},1}"}, {"lr": "a"}, "x", "`a` is not a number"),
        ({"x": "${lr}"}, {"lr": "${lr}"}, "lr", "refers to itself: lr -> lr"),
        ({"x": "${lr}", "y": "${x}"}, {"lr": "${y}"}, "y", "x -> lr -> y -> x"),
        ({"x": "${lr}"}, {"lr": "${nope}"}, "lr", "`nope` does not exist"),
        ({"x": "${lr}"}, {"lr": "${"}, "lr", "broken"),
    ],
)
def test_mistakes_that_only_a_point_shows(raw, values, key, says):
    """The place, the text and the reason, as for constants."""
    fault = refused(raw, ["lr"], values)
    assert fault.key == key and says in str(fault)


def test_list_items_can_be_swept():
    """An item of a list by its number."""
    assert Tree({"l": [1, 2, "${l.1}"]}, ["l.1"]).point({"l.1": 5}, JOB) == {"l": [1, 5, 5]}


PATHS = ["a", "b.c", "b.d", "e.0", "e.1", "f", "g.h.i"]
NAMES = ["v", "w", "job.n"]


@st.composite
def leaves(draw):
    reference = st.sampled_from([*PATHS, *NAMES, "b", "g.h", "b.${key}"])
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.one_of(st.integers(0, 9), st.sampled_from(["t", 0.5])))
    if kind == 1:
        return f"p${{{draw(st.sampled_from(PATHS))}}}"
    if kind == 2:
        return f"${{oc.select:{draw(st.sampled_from([*PATHS, *NAMES, 'g.new', 'b.new']))},7}}"
    return f"${{{draw(reference)}}}"


@st.composite
def sweeps(draw):
    raw = {
        "key": draw(st.sampled_from(["c", "d"])),
        "a": draw(leaves()),
        "b": {"c": draw(leaves()), "d": draw(leaves())},
        "e": [draw(leaves()), draw(leaves())],
        "f": draw(leaves()),
        "g": {"h": {"i": draw(leaves())}},
    }
    dynamic = draw(
        st.lists(st.sampled_from([*PATHS, "key", "b", "g.h", "g.new", "b.new"]), unique=True, max_size=3)
    )
    values = {}
    for key in dynamic:
        if key in ("b", "g.h"):
            values[key] = {"c": draw(leaves()), "d": 1, "i": 2}
        elif key == "key":
            values[key] = draw(st.sampled_from(["c", "d"]))
        else:
            values[key] = draw(leaves())
    return raw, dynamic, {**values, "v": draw(st.integers()), "w": draw(leaves())}


def substituted(raw, values):
    """The config with the point written into it, to be resolved as a whole."""
    whole = {**copy.deepcopy(raw), "v": values["v"], "w": values["w"]}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = whole
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if isinstance(node, list):
            node[int(last)] = copy.deepcopy(value)
        else:
            node[last] = copy.deepcopy(value)
    return whole


def outcome(function):
    try:
        return function()
    except ConfigError as error:
        return ["refused", *sorted({fault.key for fault in error.faults})]


@FUZZED
@given(sweeps())
def test_a_point_equals_the_whole_config_with_the_point_written_in(sweep):
    """Partial evaluation changes nothing but the time it takes."""
    raw, dynamic, values = sweep
    before = copy.deepcopy(raw)
    if any(key.startswith(f"{other}.") for key in dynamic for other in dynamic):
        fault = refused(raw, [*dynamic, "v", "w"])
        assert fault.what
        return
    whole = outcome(lambda: dict(Tree(substituted(raw, values), environment={}).point({}, {"n": 3})))
    if isinstance(whole, dict):
        del whole["v"], whole["w"]
    point = outcome(lambda: Tree(raw, [*dynamic, "v", "w"], environment={}).point(values, {"n": 3}))
    if isinstance(whole, list):
        # A variable that is not read may be broken without harm.
        assert isinstance(point, list) or whole == ["refused", "w"]
    else:
        assert point == whole and repr(point) == repr(whole)
    assert raw == before
