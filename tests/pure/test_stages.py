"""Siblings: which point of another stage belongs to a point, and what is refused; a staged plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.core.model import Parent
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.planning.plan import PlannedJob
from oellm_autoexp.services import plan as service
from oellm_autoexp.sweep.grid import Grid
from oellm_autoexp.sweep.stages import MissingSibling, Stages, Trail

ARMS: dict[str, Any] = {
    "project": {"name": "tiny", "base_output_dir": "./outputs"},
    "backend": {
        "class_name": "CommandBackend",
        "command": ["train", "${lr}", "${steps}", "--load", "${load}", "--out", "${job.output_dir}"],
    },
    "sweep": {
        "groups": [
            {"params": {"lr": [1e-3, 3e-4]}},
            {
                "type": "list",
                "groups": [
                    {"stage": "stable", "defaults": {"steps": 1000, "load": "none"}},
                    {
                        "stage": "decay",
                        "defaults": {
                            "steps": "${oc.divi:${sibling.stable.params.steps},5}",
                            "load": "${sibling.stable.checkpoint_dir}",
                        },
                    },
                ],
            },
        ]
    },
}


def stages(sweep: Mapping[str, Any]) -> Stages:
    grid = Grid(sweep)
    declared = [point.values for point in grid.points()]
    return Stages(declared, chained=grid.chained, by=grid.siblings_by)


def planned(tmp_path: Path, config: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Any:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    loaded = service.load(str(tmp_path / "sweep.yaml"), scheduler="local", cwd=tmp_path)
    return service.plan(loaded, known).jobs


def arms(tmp_path: Path, *groups: Mapping[str, Any], **sweep: Any) -> dict[str, PlannedJob]:
    """The jobs of a sweep over `lr` with other stages, by name."""
    section = {"groups": [{"params": {"lr": [1, 2]}}, {"type": "list", "groups": list(groups)}], **sweep}
    return {job.spec.name: job for job in planned(tmp_path, {**ARMS, "sweep": section})}


def refused(tmp_path: Path, *groups: Mapping[str, Any], **sweep: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        arms(tmp_path, *groups, **sweep)
    return str(caught.value)


STABLE: dict[str, Any] = {"stage": "stable", "defaults": {"steps": 1000, "load": "none"}}


def decay(load: str, **more: Any) -> dict[str, Any]:
    return {"stage": "decay", "defaults": {"steps": 200, "load": load}, **more}


# ---------------------------------------------------------------- which point is a sibling

VALUES = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
)


@given(shared=VALUES, own=st.integers(1, 3), names=st.lists(st.sampled_from("wxyz"), min_size=2, unique=True))
def test_stages_of_one_product_pair_by_what_they_share(
    shared: dict[str, list[int]], own: int, names: list[str]
) -> None:
    """Each point has exactly one sibling in each stage before it, with the same values."""
    # Of the last stage there are many points to one of the stages before.
    groups: list[dict[str, Any]] = [{"stage": name, "defaults": {f"n_{name}": 1}} for name in names[:-1]]
    groups.append({"stage": names[-1], "params": {"only_last": list(range(own))}})
    sweep = {"groups": [{"params": shared}, {"type": "list", "groups": groups}]}
    grid = Grid(sweep)
    points = [point.values for point in grid.points()]
    made = stages(sweep)
    edges = {}
    for index, values in enumerate(points):
        before = names[: names.index(values["stage"])]
        for stage in before:
            found = made.sibling(index, stage)
            edges[index, stage] = found
            assert points[found]["stage"] == stage
            assert all(points[found][key] == values[key] for key in shared)
            same = [
                other
                for other in points
                if other["stage"] == stage and all(other[key] == values[key] for key in shared)
            ]
            assert same == [points[found]]
    ranks = {index: names.index(values["stage"]) for index, values in enumerate(points)}
    assert all(ranks[parent] < ranks[child] for (child, _), parent in edges.items())


@given(times=st.integers(1, 5), seeds=st.integers(1, 3))
def test_a_repeated_group_is_a_chain_and_its_last_segment_the_sibling(times: int, seeds: int) -> None:
    """Each segment follows the one before; other stages refer to the last one."""
    sweep = {
        "groups": [
            {"params": {"seed": list(range(seeds))}},
            {"type": "list", "groups": [{"stage": "train", "repeat": times}, {"stage": "eval"}]},
        ]
    }
    points = [point.values for point in Grid(sweep).points()]
    made = stages(sweep)
    for index, values in enumerate(points):
        before = made.before(index)
        if values["stage"] == "eval":
            assert before is None
            found = points[made.sibling(index, "train")]
            assert (found["seed"], found["repeat"]) == (values["seed"], times)
        elif values["repeat"] == 1:
            assert before is None
            with pytest.raises(MissingSibling, match="the first segment of `train` follows none"):
                made.sibling(index, "train")
        else:
            assert before == made.sibling(index, "train")
            assert points[before] == {**values, "repeat": values["repeat"] - 1}


def test_values_that_stages_never_share_pair_nothing() -> None:
    """`steps` and `size` say what a stage is; `lr` says to which arm a point belongs."""
    made = stages(
        {
            "type": "list",
            "groups": [
                {"stage": "a", "params": {"lr": [1, 2], "steps": [100]}, "defaults": {"size": 1}},
                {"stage": "b", "params": {"lr": [2], "steps": [10, 20]}, "defaults": {"size": 2}},
            ],
        }
    )
    assert made.paired_by("a", "b") == made.paired_by("b", "a") == ("lr",)
    assert [made.sibling(index, "a") for index in (2, 3)] == [1, 1]


def test_true_is_not_one() -> None:
    """As people read it."""
    made = stages(
        {
            "type": "list",
            "configs": [{"stage": "a", "x": 1}, {"stage": "a", "x": True}, {"stage": "b", "x": True}],
        }
    )
    assert made.sibling(2, "a") == 1


def test_a_point_comes_once_on_a_trail() -> None:
    """Whatever is met again while it is worked out stands in a circle, which is named."""
    trail = Trail(stages({"type": "list", "groups": [{"stage": name} for name in "abc"]}))
    circle = pytest.raises(ConfigError, match="in a circle: b -> c -> b")
    with circle, trail.at(0), trail.at(1), trail.at(2), trail.at(1):
        pass
    with trail.at(1):
        pass


# ---------------------------------------------------------------- a staged plan


def test_references_say_what_is_known_of_the_siblings_job(tmp_path: Path) -> None:
    """Places, names, ids, parameters and keys of its config; the log is that of any attempt."""
    texts = [
        "name",
        "id",
        "output_dir",
        "checkpoint_dir",
        "log_path",
        "params.lr",
        "lr",
        "backend.cwd",
        "slurm.sbatch.time",
    ]
    load = "|".join(f"${{sibling.stable.{text}}}" for text in texts)
    config = {**ARMS, "slurm": {"sbatch": {"time": "1:00:00"}}}
    config["backend"] = {**ARMS["backend"], "cwd": "/data/${lr}"}
    config["sweep"] = {"axes": {"lr": [1]}, "base_values": {}}
    config["sweep"] = {"groups": [{"params": {"lr": [1]}}, {"type": "list", "groups": [STABLE, decay(load)]}]}
    stable, child = planned(tmp_path, config)
    out = tmp_path / "outputs"
    assert child.spec.argv[4].split("|") == [
        "tiny_lr1_stable",
        stable.spec.id,
        f"{out}/tiny_lr1_stable",
        f"{out}/tiny_lr1_stable/checkpoints",
        f"{out}/logs/tiny_lr1_stable.*.log",
        "1",
        "1",
        "/data/1",
        "1:00:00",
    ]
    assert child.spec.parents == (Parent(job="tiny_lr1_stable", id=stable.spec.id, stage="stable"),)
    assert stable.spec.parents == ()
    assert child.spec.name == "tiny_lr1_decay"


def test_arms_have_their_own_siblings_and_values_are_computed_from_theirs(tmp_path: Path) -> None:
    """The parent of each is the one with its learning rate."""
    jobs = {job.spec.name: job.spec for job in planned(tmp_path, ARMS)}
    for lr in ("0.001", "0.0003"):
        child = jobs[f"tiny_lr{lr}_decay"]
        assert child.parameters["steps"] == 200
        assert [parent.job for parent in child.parents] == [f"tiny_lr{lr}_stable"]
        assert child.parameters["load"] == jobs[f"tiny_lr{lr}_stable"].checkpoint_dir


def test_a_plan_of_stages_does_not_depend_on_their_order(tmp_path: Path) -> None:
    """A stage may stand before the one that it refers to."""
    groups = ARMS["sweep"]["groups"]
    turned = [groups[0], {"type": "list", "groups": groups[1]["groups"][::-1]}]
    one = {job.spec.name: job.spec.id for job in planned(tmp_path, ARMS)}
    other = {job.spec.name: job.spec.id for job in planned(tmp_path, {**ARMS, "sweep": {"groups": turned}})}
    assert one == other


def test_a_change_of_a_parent_is_a_change_of_its_children(tmp_path: Path) -> None:
    """What a job starts from is part of what it computes; other arms stay, and so does a moved project."""
    ids = {job.spec.name: job.spec.id for job in planned(tmp_path, ARMS)}
    (tmp_path / "moved").mkdir()
    assert {job.spec.name: job.spec.id for job in planned(tmp_path / "moved", ARMS)} == ids
    groups = [{**group, "stage": f"{group['stage']}"} for group in ARMS["sweep"]["groups"][1]["groups"]]
    groups[0] = {"stage": "stable", "defaults": {"steps": 1000, "load": "${oc.select:warm,none}"}}
    more = [{"params": {"lr": [1e-3, 3e-4]}}, {"type": "list", "groups": groups}]
    changed = {**ARMS, "metadata": {}, "sweep": {"groups": more, "base_values": {}}}
    assert {job.spec.name: job.spec.id for job in planned(tmp_path, changed)} == ids
    groups[0] = {"stage": "stable", "defaults": {"steps": 1000, "load": "other"}}
    after = {job.spec.name: job.spec.id for job in planned(tmp_path, changed)}
    assert after.keys() == ids.keys()
    assert all(after[name] != ids[name] for name in ids)


def test_a_job_without_parents_keeps_the_id_that_it_had(tmp_path: Path) -> None:
    """Stages change nothing for sweeps that have none."""
    plain = {**ARMS, "sweep": {"axes": {"lr": [1], "steps": [5], "load": ["x"]}}}
    assert [job.spec.id for job in planned(tmp_path, plain)] == ["32ab4f06a51c"]


def test_upstreams_spelling_means_the_same(tmp_path: Path) -> None:
    """`stage` as a key of `configs` or `defaults`; another `stage` that nothing refers to is a variable."""
    configs = [
        {"stage": "stable", "steps": 1000, "load": "none"},
        {"stage": "decay", "steps": 200, "load": "${sibling.stable.output_dir}"},
    ]
    sweep = {"groups": [{"params": {"lr": [1, 2]}}, {"type": "list", "configs": configs}]}
    jobs = [job.spec for job in planned(tmp_path, {**ARMS, "sweep": sweep})]
    assert [len(job.parents) for job in jobs] == [0, 1, 0, 1]
    zero = {**ARMS, "sweep": {"axes": {"stage": [1, 2], "lr": [1], "steps": [1], "load": ["x"]}}}
    zero["metadata"] = {"zero": "${stage}"}
    zero["slurm"] = {"environment": {"ZERO": "${stage}"}}
    assert [job.spec.name for job in planned(tmp_path, zero)] == [
        "tiny_stage1_lr1_steps1_loadx",
        "tiny_stage2_lr1_steps1_loadx",
    ]


def test_segments_may_go_on_where_the_one_before_ended(tmp_path: Path) -> None:
    """A stage that is repeated may refer to itself; its first segment says what it has instead."""
    load = "${oc.select:sibling.train.checkpoint_dir,none}"
    jobs = arms(tmp_path, {"stage": "train", "repeat": 3, "defaults": {"steps": 1, "load": load}})
    specs = [jobs[f"tiny_lr1_train_repeat{number}"].spec for number in (1, 2, 3)]
    assert [spec.parameters["load"] for spec in specs] == [
        "none",
        specs[0].checkpoint_dir,
        specs[1].checkpoint_dir,
    ]
    assert [[parent.job for parent in spec.parents] for spec in specs] == [
        [],
        [specs[0].name],
        [specs[1].name],
    ]


def test_a_whole_sweep_may_be_repeated_and_be_long(tmp_path: Path) -> None:
    """Without a stage, too; a chain may be longer than a stack is deep, also seen from its end."""
    long = {"stage": "train", "repeat": 1200, "defaults": {"steps": 1, "load": "none"}}
    sweep = {
        "groups": [{"type": "list", "groups": [decay("${sibling.train.name}"), long]}],
        "base_values": {"lr": 1},
    }
    jobs = planned(tmp_path, {**ARMS, "sweep": sweep})
    assert jobs[0].spec.parents[0].job == "tiny_train_repeat1200"
    assert len(jobs) == 1201
    plain = {**ARMS, "sweep": {"axes": {"lr": [1, 2], "steps": [1], "load": ["x"]}, "repeat": 2}}
    names = {job.spec.name: [parent.job for parent in job.spec.parents] for job in planned(tmp_path, plain)}
    assert names["tiny_lr2_steps1_loadx_repeat2"] == ["tiny_lr2_steps1_loadx_repeat1"]


def test_a_start_condition_that_speaks_of_a_sibling_takes_the_place_of_its_end(tmp_path: Path) -> None:
    """In place, by name or as a command; other parents still have to succeed."""
    flag = "${sibling.stable.output_dir}/ready"
    gates = []
    for keys in (
        {"job.start_condition": {"class_name": "FileExistsCondition", "path": flag}},
        {"job.start_condition_cmd": f"test -e {flag}"},
        {"start_condition_cmd": f"test -e {flag}"},
    ):
        group = decay("none")
        group["defaults"] = {**group["defaults"], **keys}
        last = {"stage": "eval", "defaults": {"steps": 0, "load": "${sibling.decay.name}"}}
        jobs = arms(tmp_path, STABLE, group, last)
        gates += [parent.gate for parent in jobs["tiny_lr1_decay"].spec.parents]
        assert [parent.gate for parent in jobs["tiny_lr1_eval"].spec.parents] == ["success"]
    assert gates == ["condition"] * 3


SIGNALS = {
    "loss": {"pattern": r"step (?P<step>\d+) loss (?P<loss>\S+)", "metrics": True, "counter": "step"},
    "ready": {"pattern": "warmup done", "metadata": {"kind": "milestone"}},
}


def conditional(tmp_path: Path, condition: Any, **more: Any) -> dict[str, PlannedJob]:
    """A stage that starts on a condition, and refers to the other one by nothing else."""
    group = decay("none")
    group["defaults"] = {**group["defaults"], "job.start_condition": condition}
    sweep = {"groups": [{"params": {"lr": [1, 2]}}, {"type": "list", "groups": [STABLE, group]}]}
    config = {**ARMS, "monitoring": {"log_signals": SIGNALS}, "sweep": sweep, **more}
    return {job.spec.name: job for job in planned(tmp_path, config)}


def test_a_condition_that_names_a_stage_is_a_reference(tmp_path: Path) -> None:
    """In place or by name, at any depth; its siblings share their rules, and the others have none."""
    signal = {"class_name": "SignalCondition", "sibling": "stable", "signal": "ready"}
    metric = {"class_name": "MetricCondition", "sibling": "stable", "metric": "loss", "at_most": 2}
    nested = {
        "class_name": "AnyCondition",
        "conditions": [{"class_name": "NotCondition", "condition": signal}],
    }
    for condition, more in (
        (signal, {}),
        (metric, {}),
        (nested, {}),
        ("ready", {"conditions": {"ready": signal}}),
    ):
        jobs = conditional(tmp_path, condition, **more)
        parents = [jobs[f"tiny_lr{lr}_decay"].spec.parents for lr in (1, 2)]
        expected = [[(f"tiny_lr{lr}_stable", "stable", "condition")] for lr in (1, 2)]
        assert [[(each.job, each.stage, each.gate) for each in found] for found in parents] == expected
        assert jobs["tiny_lr1_decay"].spec.rules == jobs["tiny_lr2_decay"].spec.rules
        assert "start_condition" not in (jobs["tiny_lr1_stable"].rules["job"] or {})


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"class_name": "SignalCondition", "sibling": "stabel", "signal": "ready"}, "no stage `stabel`"),
        ({"class_name": "SignalCondition", "sibling": "stable", "signal": "redy"}, "no log signal `redy`"),
        ({"class_name": "SignalCondition", "sibling": "stable", "signal": "loss"}, "is not kept"),
        ({"class_name": "MetricCondition", "sibling": "stable", "metric": "loss"}, "one of at_least and"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(tmp_path: Path, condition: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        conditional(tmp_path, condition)


# ---------------------------------------------------------------- what is refused


def test_a_missing_sibling_is_named_with_what_there_is(tmp_path: Path) -> None:
    child = decay("${sibling.stable.name}", params={"seed": [0, 2]})
    text = refused(
        tmp_path, {**STABLE, "params": {"seed": [0, 1]}}, child, name_template="{stage}_{lr}_{seed}"
    )
    assert "has no sibling in the stage `stable`: none has seed=2 (there is 0, 1)" in text
    assert "siblings_by" in text


def test_several_siblings_are_named(tmp_path: Path) -> None:
    text = refused(
        tmp_path,
        {"stage": "stable", "defaults": {"steps": 1, "load": "${seed}"}, "params": {"seed": [0, 1]}},
        decay("${sibling.stable.name}"),
    )
    assert "has 2 siblings in the stage `stable` with lr=1: (seed=0) and (seed=1)" in text
    assert "sweep `seed` in the stage `decay` too" in text


def test_the_keys_that_pair_points_may_be_named(tmp_path: Path) -> None:
    """Then a value that differs is no hindrance."""
    first = {"stage": "stable", "defaults": {"steps": 1000, "load": "none"}, "params": {"seed": [0]}}
    child = decay("${sibling.stable.name}", params={"seed": [0, 2]})
    template = "{stage}_{lr}_{seed}"
    jobs = arms(tmp_path, first, child, name_template=template, siblings_by=["lr"])
    assert jobs["decay_1_2"].spec.parents[0].job == "stable_1_0"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("${sibling.decay.name}", "${sibling.stable.name}", "in a circle: stable -> decay -> stable"),
        ("${sibling.decay.params.load}", "${sibling.stable.params.load}", "in a circle"),
        ("${sibling.stable.name}", "none", "the stage `stable` refers to itself"),
        ("none", "${sibling.stabel.name}", "there is no stage `stabel`"),
        ("none", "${sibling.stable.outptu_dir}", "`sibling.stable.outptu_dir` does not exist"),
        ("none", "${sibling.stable}", "is a sibling, and no value"),
        ("none", r"\${sibling.stable.name}", "is escaped"),
    ],
)
def test_references_that_lead_nowhere_are_refused(tmp_path: Path, first: str, second: str, said: str) -> None:
    stable = {"stage": "stable", "defaults": {"steps": 1, "load": first}}
    assert said in refused(tmp_path, stable, decay(second))


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"stage": "a b"}, "must be a word"),
        ({"stage": 1}, "must be a word"),
        ({"repeat": 0}, "must be a number of segments"),
        ({"repeat": True}, "must be a number of segments"),
        ({"repeat": 2, "params": {"repeat": [1]}}, "swept twice"),
        ({"stage": "a", "groups": [{"stage": "b"}]}, "`stage` is swept twice"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grid({"groups": [group]})


def test_a_variable_may_not_be_called_like_the_count_of_segments() -> None:
    groups = [{"repeat": 2}, {"params": {"repeat": [1, 2]}}]
    with pytest.raises(ConfigError, match="counts segments"):
        Grid({"type": "list", "groups": groups})
    assert Grid({"axes": {"repeat": [1, 2]}}).keys == ("repeat",)
