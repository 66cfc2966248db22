"""Configs of experiments: every mistake named with a repair, and nothing lost between memory and file."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp import (
    ConfigurationError,
    ConfigurationManager,
    ExperimentConfig,
    LoggingConfig,
    ModelConfig,
    MultiDataLoaderConfig,
    OptimizerConfig,
    ParameterGrid,
    ParameterGridSearch,
    SamplingStrategy,
    ValidationError,
)
from oellm_autoexp.config import experiments
from oellm_autoexp.config.experiments import Variations, experiment

FUZZED = settings(max_examples=100, deadline=None, derandomize=True)
#: No half of a surrogate pair: files are UTF-8.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "class_name",
        "1e-3",
        "24:00:00",
        "0123",
        "true",
        "null",
        "~",
        "${x}",
        "\\${x}",
        "$HOME",
        "\\$HOME",
        "a: b",
        "# c",
        "2024-01-01",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OWN = {each.name for each in fields(ModelConfig)}
EXTRAS = st.dictionaries(TEXTS.filter(lambda key: key not in OWN), VALUES, max_size=3)


def whole() -> dict[str, Any]:
    return {
        "experiment_name": "x",
        "model": {"type": "resnet", "num_classes": 10},
        "scheduler": {"type": "multistep", "milestones": [1, 5]},
        "slurm": {"account": "0123", "time": "24:00:00", "gpus_per_node": 4, "extra_args": {"qos": "high"}},
        "train_loader_config": {"sampling_strategy": "weighted", "dataloader_weights": [0.7, 0.3]},
        "tags": ["a", "b"],
    }


# ---------------------------------------------------------------- reading


def test_what_is_left_out_has_its_default_and_other_spellings_mean_the_same() -> None:
    made = experiment({"experiment_name": "x", "trainer": {"max_epochs": 3, "batch_size": 64}})
    assert made == ExperimentConfig(
        experiment_name="x", training=replace(made.training, max_epochs=3), data=made.data
    )
    assert (made.training.max_epochs, made.data.batch_size) == (3, 64)
    assert made.logging.logger_type == "console"


def test_keys_of_a_model_s_own_are_attributes() -> None:
    model = experiment(whole()).model
    assert model.num_classes == 10
    assert ModelConfig(type="resnet", num_classes=10) == model != ModelConfig(type="resnet")
    with pytest.raises(AttributeError, match="ModelConfig has no `classes`"):
        model.classes  # noqa: B018


MISTAKES: dict[str, tuple[Any, str, str]] = {
    "no name": ({}, "", "`experiment_name` is missing"),
    "a section": ({"modle": {}}, "modle", "did you mean `model`"),
    "a key": ({"optimizer": {"lrr": 1}}, "optimizer.lrr", "did you mean `lr`"),
    "a key without its section": ({"lr": 1}, "lr", "did you mean `optimizer.lr`"),
    "text for a number": ({"optimizer": {"lr": "1e-3"}}, "optimizer.lr", "write it without quotes"),
    "a number for text": ({"slurm": {"time": 1440}}, "slurm.time", 'write it in quotes: "1440"'),
    "a fraction": ({"training": {"max_epochs": 1.5}}, "training.max_epochs", "not a fraction"),
    "a choice": ({"logging": {"logger_type": "wandbb"}}, "logging.logger_type", "did you mean `wandb`"),
    "below 0": ({"optimizer": {"lr": -1}}, "optimizer.lr", "must be above 0"),
    "endless": ({"optimizer": {"lr": float("inf")}}, "optimizer.lr", "must be above 0"),
    "no number": ({"optimizer": {"lr": float("nan")}}, "optimizer.lr", "must be above 0"),
    "betas": ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas", "below 1"),
    "three betas": ({"optimizer": {"betas": [0.9, 0.9, 0.9]}}, "optimizer", "Expected 2 items"),
    "warm-up": (
        {"scheduler": {"warmup_steps": 9, "max_steps": 9}},
        "scheduler.warmup_steps",
        "below max_steps",
    ),
    "milestones": ({"scheduler": {"milestones": [5, 1]}}, "scheduler.milestones", "must rise"),
    "no milestones": ({"scheduler": {"type": "multistep"}}, "scheduler.milestones", "must be given"),
    "a template": ({"checkpoint": {"filename_template": "{epok}"}}, "checkpoint.filename_template", "takes"),
    "one file": ({"checkpoint": {"filename_template": "x"}}, "checkpoint.filename_template", "shows {epoch}"),
    "a seed": ({"seed": 2**32}, "seed", "must be between"),
    "a name": ({"experiment_name": "a\nb"}, "experiment_name", "printable"),
    "no weights": (
        {"train_loader_config": {"sampling_strategy": "weighted"}},
        "train_loader_config.dataloader_weights",
        "above 0 for each",
    ),
    "counts": (
        {
            "val_loader_config": {
                "sampling_strategy": "weighted",
                "dataloader_names": ["a"],
                "dataloader_weights": [1, 2],
            }
        },
        "val_loader_config.dataloader_weights",
        "2 items for 1 dataloader_names",
    ),
    "two spellings": (
        {"training": {"batch_size": 1}, "data": {"batch_size": 2}},
        "training.batch_size",
        "another",
    ),
    "a list": ([], "", "must be a mapping, not a list"),
    "a section that is none": ({"model": 3}, "model", "must be a mapping"),
    "a key that is no text": ({"model": {1: 2}}, "model", "is not text"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_key_and_a_repair(case: str) -> None:
    data, key, says = MISTAKES[case]
    if isinstance(data, dict) and case != "no name":
        data = {"experiment_name": "x", **data}
    with pytest.raises(ValidationError) as caught:
        experiment(data)
    assert caught.value.faults[0].key == key
    assert says in str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        experiment({"experiment_name": "x", "optimizer": {"lrr": 1, "eps": "a"}, "seeed": 1})
    assert {fault.key for fault in caught.value.faults} == {"optimizer.lrr", "optimizer.eps", "seeed"}


def test_a_part_that_is_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="lr must be above 0, got 0"):
        OptimizerConfig(lr=0)
    with pytest.raises(ValueError, match="dataloader_weights must hold"):
        MultiDataLoaderConfig(sampling_strategy=SamplingStrategy.WEIGHTED)
    with pytest.raises(TypeError):
        LoggingConfig(wandb_projekt="x")  # type: ignore[call-arg]


@FUZZED
@given(VALUES)
def test_no_value_of_any_field_breaks_the_reader(junk: Any) -> None:
    """It is taken, or refused as a mistake in that section."""
    for each in fields(ExperimentConfig):
        data = {"experiment_name": "x", each.name: junk}
        try:
            made = experiment(data)
        except ValidationError as error:
            assert error.faults[0].key.partition(".")[0] in (each.name, "", "training", "data")
        else:
            assert experiment(made.to_dict()) == made


def test_what_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {"experiment_name": "x"}
    loop["model"] = loop
    with pytest.raises(ValidationError, match="contains itself"):
        experiment(loop)


def test_configs_are_values() -> None:
    """They cannot be changed, share nothing with what they were read from, and survive copies and pickles."""
    data = whole()
    made = experiment(data)
    data["model"]["num_classes"] = 11
    assert made.model.num_classes == 10
    with pytest.raises(FrozenInstanceError):
        made.seed = 3  # type: ignore[misc]
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    assert made.tags == ("a", "b")


# ---------------------------------------------------------------- files


@FUZZED
@given(
    extras=EXTRAS, custom=st.dictionaries(TEXTS, VALUES, max_size=3), text=TEXTS.filter(lambda t: t.strip())
)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_saved_config_is_read_back_as_it_was(
    ending: str, extras: Any, custom: Any, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without tags: other programs read it, too."""
    made = experiment({**whole(), "custom_params": custom, "description": text})
    made = replace(made, model=ModelConfig(type=text, extras=extras))
    manager = ConfigurationManager(tmp_path_factory.mktemp("root"))
    path = manager.project_root / f"c.{ending}"
    manager.save_config(made, path)
    assert manager.create_experiment_config(manager.load_config(path)) == made


def test_a_class_name_is_a_key_like_any_other_where_keys_are_free() -> None:
    made = experiment({**whole(), "custom_params": {"class_name": "A", "b": {"class_name": "B"}}})
    assert made.custom_params == {"class_name": "A", "b": {"class_name": "B"}}
    made = experiment({**whole(), "optimizer": {"custom_params": {"class_name": "Adam"}}})
    assert "class_name" in made.optimizer.custom_params
    with pytest.raises(ValidationError, match="class_name: unknown key"):
        experiment({**whole(), "training": {"class_name": "A"}})
    with pytest.raises(TypeError, match="hidden_size is a key of its own"):
        ModelConfig(extras={"hidden_size": 3})


def test_another_reader_of_yaml_sees_the_same(tmp_path: Path) -> None:
    """Times and accounts are text for those of YAML 1.1, too."""
    made = experiment(whole())
    ConfigurationManager(tmp_path).save_config(made, tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == made.to_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object(), {1: 2}])
def test_what_no_file_can_hold_is_refused_before_it_is_written(value: Any, tmp_path: Path) -> None:
    for ending in ("yaml", "json"):
        with pytest.raises(ConfigurationError):
            ConfigurationManager(tmp_path).save_config({"a": value}, tmp_path / f"c.{ending}")
    assert not list(tmp_path.iterdir())


def test_a_config_is_looked_for_where_people_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, in the project, in its configs; there without its ending."""
    here, root = tmp_path / "here", tmp_path / "root"
    here.mkdir()
    (root / "configs").mkdir(parents=True)
    monkeypatch.chdir(here)
    manager = ConfigurationManager(project_root=root)
    for place, name in ((root / "configs", "configs"), (root, "root"), (here, "here")):
        (place / "c.yaml").write_text(f"experiment_name: {name}\n")
        assert manager.load_config("c.yaml")["experiment_name"] == name
    assert manager.load_config("c")["experiment_name"] == "configs"
    with pytest.raises(ConfigurationError, match=r"no such config in .*\n.*did you mean `c.yaml`"):
        manager.load_config("cc.yaml")
    (root / "c.toml").write_text("")
    with pytest.raises(ConfigurationError, match="must be YAML or JSON"):
        manager.load_config("c.toml")


def test_a_mistake_in_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    manager = ConfigurationManager(tmp_path)
    for name, text, says in (
        ("a.yaml", "experiment_name: x\noptimizer: {lrr: 1}\n", "did you mean `lr`"),
        ("b.yaml", "experiment_name: [x\n", "not YAML"),
        ("c.json", "{", "not JSON"),
        ("d.json", '{"optimizer": {"lr": NaN}}', "not a number to count with"),
        ("e.json", "[]", "must be a mapping"),
        ("f.yaml", "experiment_name: ${nowhere}\n", "nowhere"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigurationError, match=says) as caught:
            manager.load_config(name)
        assert name in str(caught.value) or name == "f.yaml"
    assert manager.load_config("a.yaml", validate=False)["optimizer"] == {"lrr": 1}


def test_variables_of_the_environment_and_references_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of the config goes before a variable; `$NAME` that is not set stays; a secret is refused."""
    monkeypatch.setenv("DATA_SET", "c4")
    monkeypatch.setenv("seed", "no")
    monkeypatch.setenv("MY_TOKEN", "secret")
    manager = ConfigurationManager(tmp_path)
    path = tmp_path / "c.yaml"
    data = {
        "experiment_name": "${DATA_SET}",
        "seed": 3,
        "data": {
            "dataset_name": "$DATA_SET",
            "root": "$UNSET_ONE",
            "s": "${seed}",
            "size": "${model.hidden_size}",
        },
        "model": {"hidden_size": 64, "name": "m-${oc.env:DATA_SET}"},
    }
    path.write_text(yaml.safe_dump(data))
    found = manager.load_config(path)
    assert found["experiment_name"] == "c4"
    assert found["data"] == {"dataset_name": "c4", "root": "$UNSET_ONE", "s": 3, "size": 64}
    assert found["model"]["name"] == "m-c4"
    path.write_text("experiment_name: x\ncustom_params: {token: '${MY_TOKEN}'}\n")
    with pytest.raises(ConfigurationError, match=r"custom_params\.token: refers to a secret") as caught:
        manager.load_config(path)
    assert "secret" not in str(caught.value).replace("a secret", "")


def test_configs_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    manager = ConfigurationManager(tmp_path)
    (tmp_path / "base.yaml").write_text("experiment_name: x\noptimizer: {lr: 1, betas: [0, 0]}\n")
    over = {"optimizer": {"betas": [0.1, 0.2]}, "trainer": {"max_epochs": 2}}
    made = manager.compose_configs("base.yaml", [over], {"training.batch_size": 8, "slurm.nodes": 2})
    assert made == {
        "experiment_name": "x",
        "optimizer": {"lr": 1, "betas": [0.1, 0.2]},
        "training": {"max_epochs": 2},
        "data": {"batch_size": 8},
        "slurm": {"nodes": 2},
    }
    assert over == {"optimizer": {"betas": [0.1, 0.2]}, "trainer": {"max_epochs": 2}}
    with pytest.raises(ValidationError, match="is a number, not a mapping"):
        manager.compose_configs({"seed": 1}, (), {"seed.x": 1})


# ---------------------------------------------------------------- variations


def test_a_variation_is_what_reading_the_whole_would_give() -> None:
    """Also two keys of one section, keys that make their section, other spellings and lists."""
    values = {
        "optimizer.lr": 0.5,
        "optimizer.betas": [0.1, 0.2],
        "performance.compile_model": True,
        "training.batch_size": 7,
        "trainer.max_epochs": 3,
        "model.head.size": 4,
        "seed": 9,
        "custom_params.a.b": [1],
    }
    made = Variations(experiment(whole())).made(values, "other")
    data = whole()
    data["model"]["head"] = {"size": 4}
    data |= {
        "experiment_name": "other",
        "optimizer": {"lr": 0.5, "betas": [0.1, 0.2]},
        "performance": {"compile_model": True},
        "data": {"batch_size": 7},
        "training": {"max_epochs": 3},
        "seed": 9,
        "custom_params": {"a": {"b": [1]}},
    }
    assert made == experiment(data)


def test_variations_do_not_change_their_base_or_each_other() -> None:
    base = experiment(whole())
    before = base.to_dict()
    variations = Variations(base)
    one, two = (variations.made({"model.head": {"n": n}, "tags": [str(n)]}, "v") for n in (1, 2))
    assert (one.model.head, two.model.head, two.tags) == ({"n": 1}, {"n": 2}, ("2",))
    assert variations.made({"model.head": {"n": 1}, "tags": ["1"]}, "v") == one
    assert base.to_dict() == before


def test_true_and_1_are_two_values_of_a_variation() -> None:
    variations = Variations(experiment(whole()))
    assert variations.made({"model.x": 1}, "a").model.x is not True
    assert variations.made({"model.x": True}, "a").model.x is True


SWEPT = {
    "lr": "did you mean `optimizer.lr`",
    "modle.type": "did you mean `model.type`",
    "experiment_name": "cannot be swept",
    "seed.x": "has no keys below it",
}


@pytest.mark.parametrize("key", SWEPT)
def test_a_key_that_no_experiment_has_is_refused_when_its_grid_is_added(key: str) -> None:
    with pytest.raises(ValidationError, match=SWEPT[key]):
        ParameterGridSearch({"experiment_name": "x"}).add_grid("g", {key: [1, 2]})


def test_a_value_that_an_experiment_does_not_take_is_an_error_and_no_point_is_dropped() -> None:
    search = ParameterGridSearch({"experiment_name": "x"}).add_grid("g", {"optimizer.lr": [0.1, -1]})
    made = search.generate_experiments()
    assert next(made).optimizer.lr == 0.1
    with pytest.raises(ValidationError, match=r"optimizer\.lr: must be above 0"):
        next(made)


def test_two_spellings_of_one_key_in_a_grid_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"means the same as `data\.batch_size`"):
        ParameterGridSearch({"experiment_name": "x"}).add_grid(
            "g", {"data.batch_size": [1], "training.batch_size": [2]}
        )


def test_grids_follow_one_another_and_no_point_stands_twice() -> None:
    search = ParameterGridSearch({"experiment_name": "x"})
    search.add_grid("a", {"seed": [0, 1]}).add_grid("b", {"optimizer.lr": [0.5]})
    names = [each.experiment_name for each in search.generate_experiments()]
    assert names == ["x_seed=0", "x_seed=1", "x_lr=0.5"]
    assert search.get_total_experiments() == 3
    search.add_grid("c", {"seed": [1]})
    with pytest.raises(ValidationError, match="the grids `a` and `c` have the same point"):
        list(search.generate_experiments())
    with pytest.raises(ValidationError, match="there is a grid of this name"):
        search.add_grid("a", {"seed": [5]})


def test_the_name_of_a_config_is_that_which_the_search_gives_it() -> None:
    search = ParameterGridSearch({"experiment_name": "x"}).add_grid("a", {"optimizer.lr": [0.5, 0.25]})
    first, second = search.generate_experiments()
    assert search.get_experiment_name(first) == first.experiment_name == "x_lr=0.5"
    assert search.get_experiment_name(replace(second, experiment_name="x")) == "x_lr=0.25"


def test_names_show_what_tells_experiments_apart_and_not_what_follows_from_it() -> None:
    grid = ParameterGrid("a").add_parameter("optimizer.lr", [0.5])
    grid.add_computed_parameter("optimizer.weight_decay", lambda point: point["optimizer.lr"] / 2)
    (made,) = ParameterGridSearch({"experiment_name": "x"}).add_grid(grid).generate_experiments()
    assert (made.experiment_name, made.optimizer.weight_decay) == ("x_lr=0.5", 0.25)


def test_a_saved_search_gives_the_same_experiments(tmp_path: Path) -> None:
    search = ParameterGridSearch(whole()).add_grid(
        "a", {"optimizer.lr": [0.5, 0.25], "model.act": ["$x", "${y}"]}
    )
    search.save_grid_config(tmp_path / "g.json")
    again = ParameterGridSearch.load_grid_config(tmp_path / "g.json")
    assert list(again.generate_experiments()) == list(search.generate_experiments())
    data = json.loads((tmp_path / "g.json").read_text())
    for change, says in (
        ({"grid": []}, "did you mean `grids`"),
        ({"grids": 3}, "must be a list"),
        ({"naming_strategy": "hash"}, "hash_based"),
        ({"base_config": {}}, "experiment_name"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(ValidationError, match=says):
            ParameterGridSearch.load_grid_config(tmp_path / "bad.json")


def test_a_summary_lists_what_is_swept_and_the_first_experiments(tmp_path: Path) -> None:
    search = ParameterGridSearch(whole()).add_grid("a", {"seed": list(range(150))})
    search.save_summary(tmp_path / "s.txt")
    text = (tmp_path / "s.txt").read_text()
    assert "150 experiments" in text and "seed: 0, 1, 2" in text and "(150)" in text
    assert "x_seed=99\n… and 50 more\n" in text


def test_known_keys_are_all_keys() -> None:
    known = experiments.known_keys()
    assert {"optimizer.lr", "model", "model.type", "train_loader_config.burst_size", "seed"} <= set(known)
    assert "model.extras" not in known
