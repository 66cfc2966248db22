"""Each field of an experiment's config acts on something, or is refused: none is taken and forgotten."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from oellm_autoexp.config import experiments
from oellm_autoexp.core import experiment as schema
from oellm_autoexp.core.experiment import (
    DataConfig,
    DDPConfig,
    ExperimentConfig,
    LoggingConfig,
    ModelConfig,
    PerformanceConfig,
    SLURMConfig,
    ValidationConfig,
)
from oellm_autoexp.errors import TrainerError, ValidationError
from oellm_autoexp.services.experiments.sbatch_template import TemplateContext
from oellm_autoexp.services.experiments.validation import sbatch_of
from oellm_autoexp.trainer import CheckpointConfig, GenericTrainer, GenericTrainerConfig, building, launching
from oellm_autoexp.trainer.config import trainer_config

PACKAGE = Path(schema.__file__).parents[1]
CLASSES = [
    each
    for each in vars(schema).values()
    if isinstance(each, type) and dataclasses.is_dataclass(each) and not each.__name__.startswith("_")
] + [GenericTrainerConfig]
#: The keys of these are handed on by their names, whatever they are; see the tests below.
HANDED_ON = (ModelConfig, DataConfig, SLURMConfig)
#: What is kept with an experiment's results, in its `config.yaml`, its checkpoints and its run of a tracker,
#: and what step functions and hooks may look up (`trainer.config.experiment_config`).
KEPT = {"created_by", "created_at", "version", "experiment_config"}


def sections(kind: type) -> set[str]:
    """The names under which a part stands in a whole."""
    found = set()
    for whole in (ExperimentConfig, GenericTrainerConfig):
        for name, hint in get_type_hints(whole).items():
            if hint is kind or kind in get_args(hint):
                found.add(name)
    return found or {"config"}


@cache
def words(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What a module reads: attributes and texts; and which names it mentions."""
    read, mentioned = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
        elif isinstance(node, ast.Name):
            mentioned.add(node.id)
        elif isinstance(node, ast.alias):
            mentioned.add(node.name)
    return frozenset(read), frozenset(mentioned)


def readers(kind: type) -> Iterator[frozenset[str]]:
    """What is read in each module that has to do with a part."""
    for path in PACKAGE.rglob("*.py"):
        read, mentioned = words(path)
        if path != Path(schema.__file__) and (kind.__name__ in mentioned or sections(kind) & read):
            yield read


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if kind not in HANDED_ON], ids=lambda kind: kind.__name__
)
def test_every_field_is_read_by_somebody(kind: type) -> None:
    """Outside of the schema, in a module that knows this part."""
    read = frozenset().union(*readers(kind))
    names = {each.name for each in dataclasses.fields(kind)}
    kept = KEPT if kind in (ExperimentConfig, GenericTrainerConfig) else set()
    assert names - read - kept == set()


def test_what_is_kept_is_kept() -> None:
    config = ExperimentConfig(experiment_name="x", created_by="me", created_at="today", version="7")
    kept = trainer_config(config).to_dict()["experiment_config"]
    assert (kept["created_by"], kept["created_at"], kept["version"]) == ("me", "today", "7")


def test_what_is_said_of_an_experiment_is_said_of_its_run() -> None:
    """Tags and description go to the tracker, unless its section has others."""
    said: dict[str, Any] = {"experiment_name": "x", "tags": ("a", "b"), "description": "why"}
    logging = trainer_config(ExperimentConfig(**said)).logging
    assert (logging.wandb_tags, logging.wandb_notes) == (("a", "b"), "why")
    own = LoggingConfig(wandb_tags=("c",), wandb_notes="how")
    logging = trainer_config(ExperimentConfig(**said, logging=own)).logging
    assert (logging.wandb_tags, logging.wandb_notes) == (("c",), "how")


# ---------------------------------------------------------------- what is handed on


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_model_and_its_data_get_what_they_take(section: str) -> None:
    """All keys by their names; with `**more` those that are set and those of its own."""
    part = {"model": ModelConfig, "data": DataConfig}[section](width=3)
    config = ExperimentConfig(experiment_name="x", **{section: part})
    names = [each.name for each in dataclasses.fields(part) if each.name not in ("extras", "type")]
    taker: Any = eval(f"lambda {', '.join(names)}, width: dict(locals())")
    wanted = {**{name: getattr(part, name) for name in names}, "width": 3}
    assert building.made(taker, config, section) == wanted
    changed = dataclasses.replace(config, data=DataConfig(train_split="half", width=3))
    assert building.made(lambda **more: more, changed, "data") == {"train_split": "half", "width": 3}


IDLE = {
    "a model": ({"model": {"type": "m", "dropout": 0.3}}, "does nothing with dropout"),
    "data": ({"data": {"dataset_name": "d", "train_split": "half"}}, "does nothing with train_split"),
    "sgd": ({"optimizer": {"type": "sgd", "betas": [0.8, 0.9]}}, "sgd does nothing with betas"),
    "a step schedule": (
        {"scheduler": {"type": "step", "warmup_steps": 5}},
        "step does nothing with warmup_steps",
    ),
    "a cosine": ({"scheduler": {"type": "cosine", "max_steps": 2000, "gamma": 0.5}}, "nothing with gamma"),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_key_that_would_do_nothing_is_refused(case: str) -> None:
    """Where it is set: a sweep of it would train the same again and again."""
    given, message = IDLE[case]
    config = experiments.experiment({"experiment_name": "x", **given})
    model = nn.Linear(2, 2)
    with pytest.raises(TrainerError, match=message):
        for section in ("model", "data"):
            building.made(lambda hidden_size=1, batch_size=1: None, config, section)
        building.scheduler_of(config, building.optimizer_of(config, model))


@pytest.mark.parametrize(
    ("strategy", "key", "value"), [("deepspeed", "backend", "gloo"), ("fsdp", "find_unused_parameters", True)]
)
def test_what_ddp_says_beside_another_strategy_is_refused(strategy: str, key: str, value: object) -> None:
    said = f"{key} is for the strategy ddp, and the strategy is {strategy}"
    with pytest.raises(TrainerError, match=said):
        launching._strategy(DDPConfig(strategy=strategy, **{key: value}), 2)


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(SLURMConfig)])
def test_what_is_asked_of_slurm_reaches_its_options_or_its_template(name: str) -> None:
    value: Any = {"extra_args": {"qos": "high"}, "requeue": True, "mem": "7G", "time": "7:00"}.get(name, "7")
    if name in ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task"):
        value = 7
    bare, asked = (
        ExperimentConfig(experiment_name="x", slurm=SLURMConfig(**given)) for given in ({}, {name: value})
    )
    in_template = TemplateContext.of(asked) != TemplateContext.of(bare)
    assert in_template
    if name not in ("job_name", "output", "error"):
        assert sbatch_of(asked) != sbatch_of(bare)


# ---------------------------------------------------------------- what contradicts itself


def refused(make: Any) -> str:
    with pytest.raises((ValueError, ValidationError)) as raised:
        make()
    return str(raised.value)


def test_two_fields_that_contradict_each_other_are_refused() -> None:
    """Rather than one of them be forgotten."""
    assert "every_n_steps is given" in refused(lambda: ValidationConfig(every_n_steps=5))
    assert "compile_model is off" in refused(lambda: PerformanceConfig(compile_backend="eager"))
    by_steps = ValidationConfig(frequency=schema.ValidationFrequency.EVERY_N_STEPS, every_n_steps=5)
    assert "keep one" in refused(lambda: GenericTrainerConfig(validation=by_steps, validate_every_n_epochs=2))
    twice = experiments.experiment(
        {
            "experiment_name": "x",
            "training": {"save_frequency": 10},
            "checkpoint": {"save_every_n_steps": 20},
        }
    )
    assert "checkpoint.save_every_n_steps is 20" in refused(lambda: trainer_config(twice))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"ddp": DDPConfig(devices=2)}, "ddp.devices"),
        ({"ddp": DDPConfig(strategy="fsdp")}, "ddp.strategy"),
        ({"ddp": DDPConfig(accelerator="gpu")}, "ddp.accelerator"),
        ({"performance": PerformanceConfig(precision="bf16-mixed")}, "performance.precision"),
    ],
)
def test_what_only_fabric_does_is_refused_without_one(
    given: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """With what gives one."""
    model = nn.Linear(1, 1)
    config = GenericTrainerConfig(checkpoint=CheckpointConfig(root_dir=str(tmp_path)), **given)
    with pytest.raises(ValueError, match=rf"{key} is set, which needs a Fabric.*fabric_of"):
        GenericTrainer(config, model, [torch.optim.SGD(model.parameters(), lr=0.1)])
