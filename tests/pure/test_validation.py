"""What is said of an experiment before it costs anything: errors, doubts, what a cluster lacks."""

from __future__ import annotations

from typing import Any

import pytest

from oellm_autoexp import (
    ClusterProfile,
    ConfigurationError,
    ConfigValidator,
    ValidationResult,
)
from oellm_autoexp.config.experiments import experiment
from oellm_autoexp.services.experiments.validation import sbatch_of


def config(**more: Any) -> Any:
    return experiment({"experiment_name": "x", **more})


def said(result: ValidationResult) -> dict[str, str]:
    return {issue.field: issue.level for issue in result.issues}


def test_a_config_without_doubts_is_valid() -> None:
    result = ConfigValidator.validate_config(config())
    assert result.is_valid and not result.issues


def test_mistakes_of_a_mapping_are_findings_with_a_suggestion() -> None:
    result = ConfigValidator.validate_config({"experiment_name": "x", "optimizer": {"lrr": 1}})
    assert not result.is_valid and not result.warnings
    (issue,) = result.errors
    assert (issue.component, issue.field, issue.suggestion) == (
        "optimizer",
        "optimizer.lrr",
        "did you mean `lr`?",
    )
    assert str(issue) == "error: optimizer.lrr: unknown key\n  -> did you mean `lr`?"


DOUBTS = {
    "model.hiden_size": {"model": {"hiden_size": 3}},
    "optimizer.type": {"optimizer": {"type": "adamv"}},
    "optimizer.lr": {"optimizer": {"lr": 3.0}},
    "scheduler.type": {"scheduler": {"type": "cosin"}},
    "scheduler.warmup_steps": {"scheduler": {}, "training": {"max_steps": 2000}},
    "training.early_stopping_patience": {
        "training": {"early_stopping_patience": 1, "validation_frequency": 5}
    },
    "data.batch_size": {"data": {"batch_size": 512}, "slurm": {"nodes": 8, "ntasks_per_node": 4}},
    "performance.gradient_accumulation_steps": {"performance": {"gradient_accumulation_steps": 4}},
    "logging.wandb_project": {"logging": {"logger_type": "wandb"}},
}


@pytest.mark.parametrize("key", DOUBTS)
def test_what_is_doubtful_is_a_warning_at_its_key(key: str) -> None:
    result = ConfigValidator.validate_config(config(**DOUBTS[key]))
    assert said(result) == {key: "warning"}
    assert result.is_valid


PROFILE = {
    "name": "booster",
    "gpus_per_node": 4,
    "cpus_per_node": 32,
    "mem_per_node": "512G",
    "max_nodes": 16,
    "max_time": "24:00:00",
    "partitions": ("gpu", "debug"),
}
FITS = {"nodes": 2, "gpus_per_node": 4, "mem": "512G", "time": "1-00:00:00", "partition": "gpu"}
SHORT: dict[str, tuple[dict[str, Any], str]] = {
    "gpus_per_node": ({"gpus_per_node": 8}, "asks for 8 GPUs a node, and booster has 4"),
    "cpus_per_task": ({"cpus_per_task": 16, "ntasks_per_node": 4}, "64 CPUs a node"),
    "nodes": ({"nodes": 17}, "17 nodes, and booster has at most 16"),
    "mem": ({"mem": "1T"}, "1T, and booster has 512G a node"),
    "time": ({"time": "24:00:01"}, "at most"),
    "partition": ({"partition": "gpuu"}, "there is no partition `gpuu`"),
}


def test_what_a_cluster_has_is_satisfiable() -> None:
    check = ConfigValidator.check_resource_requirements(config(slurm=FITS), PROFILE)
    assert check.is_satisfiable and not check.issues
    assert (check.resources.nodes, check.resources.gpus, check.resources.time_limit_s) == (2, 8, 86400)


@pytest.mark.parametrize("key", SHORT)
def test_what_a_cluster_does_not_have_is_an_error_at_its_key(key: str) -> None:
    change, says = SHORT[key]
    check = ConfigValidator.check_resource_requirements(
        config(slurm={**FITS, **change}), ClusterProfile(**PROFILE)
    )
    assert not check.is_satisfiable
    (issue,) = check.issues
    assert issue.field == f"slurm.{key}" and says in issue.message


def test_without_a_time_limit_a_job_may_not_fit() -> None:
    check = ConfigValidator.check_resource_requirements(config(slurm={}), {"max_time": "1:00:00"})
    assert said(check.result) == {"slurm.time": "error"}


def test_without_a_section_or_a_profile_little_is_known() -> None:
    check = ConfigValidator.check_resource_requirements(config(), PROFILE)
    assert check.is_satisfiable and said(check.result) == {"slurm": "warning"}
    assert not ConfigValidator.check_resource_requirements(config(slurm=FITS)).issues


@pytest.mark.parametrize(("key", "value"), [("time", "soon"), ("mem", "much")])
def test_what_slurm_could_not_read_is_an_error(key: str, value: str) -> None:
    check = ConfigValidator.check_resource_requirements(config(slurm={key: value}))
    assert said(check.result) == {f"slurm.{key}": "error"}


def test_clusters_that_come_with_the_package_have_names() -> None:
    slurm = {"gpus_per_node": 8, "nodes": 3}
    assert ConfigValidator.check_resource_requirements(config(slurm=slurm), "lumi").is_satisfiable
    check = ConfigValidator.check_resource_requirements(config(slurm=slurm), "juwels")
    assert said(check.result) == {"slurm.gpus_per_node": "error"}


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("lumii", "did you mean `lumi`"),
        ({"gpus": 4}, "unknown key"),
        ({"max_time": "soon"}, "not a time"),
        ({"mem_per_node": "much"}, "not an amount of memory"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(profile: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ConfigValidator.check_resource_requirements(config(), profile)


def test_options_of_sbatch_have_their_long_names() -> None:
    slurm = {"account": "a", "mail_user": "me", "extra_args": {"cpu_freq": "high"}, "job_name": "mine"}
    assert sbatch_of(config(slurm=slurm)) == {
        "account": "a",
        "nodes": 1,
        "ntasks-per-node": 1,
        "mail-user": "me",
        "cpu-freq": "high",
    }
