"""What is wrong or doubtful about an experiment, before it costs anything."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from oellm_autoexp.config import experiments
from oellm_autoexp.config.groups import options, shipped
from oellm_autoexp.core.experiment import DataConfig, ExperimentConfig, ModelConfig
from oellm_autoexp.core.model import Resources
from oellm_autoexp.core.times import format_time, parse_time
from oellm_autoexp.errors import ConfigError, ConfigurationError, Fault, did_you_mean
from oellm_autoexp.planning.resources import resources_of

#: Optimizers and schedules that are known by name; another one must be made by the training itself.
OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "adagrad", "adafactor", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant", "step", "multistep", "exponential", "wsd", "polynomial")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.ASCII | re.IGNORECASE)
_UNITS = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
#: As alike as a slip of the finger makes two names.
_SLIP = 0.85


@dataclass(frozen=True, kw_only=True)
class ValidationIssue:
    """One finding: what, at which key, and what to do."""

    level: Literal["error", "warning"]
    message: str
    field: str = ""
    suggestion: str = ""

    @property
    def component(self) -> str:
        """The section that it is about."""
        return self.field.partition(".")[0]

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.level, self.field, self.message) if part)
        return head + (f"\n  -> {self.suggestion}" if self.suggestion else "")


@dataclass(frozen=True)
class ValidationResult:
    """All findings about a config."""

    issues: Sequence[ValidationIssue] = ()

    @property
    def is_valid(self) -> bool:
        """Whether no finding is an error."""
        return not self.errors

    @property
    def errors(self) -> list[ValidationIssue]:
        return [issue for issue in self.issues if issue.level == "error"]

    @property
    def warnings(self) -> list[ValidationIssue]:
        return [issue for issue in self.issues if issue.level == "warning"]


@dataclass(frozen=True, kw_only=True)
class ClusterProfile:
    """What one job can have on a cluster, per node where the name says so; None where it is not known."""

    name: str = ""
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    mem_per_node: str | None = None
    max_nodes: int | None = None
    max_time: str | None = None
    partitions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mem_per_node is not None:
            _megabytes(self.mem_per_node)
        if self.max_time is not None:
            parse_time(self.max_time)

    @classmethod
    def named(cls, name: str) -> ClusterProfile:
        """What the group `slurm/NAME` that comes with this package says of a cluster.

        Raises:
            ConfigurationError: there is none of this name.
        """
        known = options([shipped()], "slurm")
        if name not in known:
            raise ConfigurationError(
                Fault(what=f"there is no cluster `{name}`", hint=did_you_mean(name, known))
            )
        group = experiments.read(shipped() / "slurm" / f"{name}.yaml")
        group = experiments.merged({"sbatch": {}}, group)
        one_node = {**group["sbatch"], "nodes": 1}
        gpus = resources_of({"sbatch": one_node}).gpus
        return cls(name=name, gpus_per_node=gpus or None)


@dataclass(frozen=True, kw_only=True)
class ResourceCheck:
    """What a config asks of Slurm, and whether the cluster has it."""

    resources: Resources
    profile: ClusterProfile
    result: ValidationResult

    @property
    def is_satisfiable(self) -> bool:
        """Whether nothing is asked that the cluster does not have."""
        return self.result.is_valid

    @property
    def issues(self) -> Sequence[ValidationIssue]:
        return self.result.issues


class ConfigValidator:
    """Looks at configs before they cost anything."""

    @staticmethod
    def validate_config(config: ExperimentConfig | Mapping[str, Any]) -> ValidationResult:
        """Every mistake in a mapping, or everything doubtful about an experiment without mistakes."""
        try:
            made = experiments.experiment(config)
        except ConfigError as error:
            return ValidationResult([_issue(fault) for fault in error.faults])
        return ValidationResult(list(_doubts(made)))

    @staticmethod
    def check_resource_requirements(
        config: ExperimentConfig, profile: ClusterProfile | Mapping[str, Any] | str | None = None
    ) -> ResourceCheck:
        """Whether a cluster has what a config asks for.

        `profile` is one, its fields, or the name of a cluster that comes with this package (`lumi`).

        Raises:
            ConfigurationError: a profile that does not exist or cannot be.
        """
        cluster = _profile(profile)
        resources = Resources(nodes=1, gpus=0)
        try:
            resources = resources_of({"sbatch": sbatch_of(config)})
            issues = list(_shortages(config, resources, cluster))
        except ConfigError as error:
            issues = [_issue(fault) for fault in error.faults]
        return ResourceCheck(resources=resources, profile=cluster, result=ValidationResult(issues))


def sbatch_of(config: ExperimentConfig) -> dict[str, Any]:
    """What the section `slurm` of an experiment asks for, as options of sbatch(1)."""
    slurm = config.slurm
    if slurm is None:
        return {}
    made: dict[str, Any] = {}
    for each in fields(slurm):
        value = getattr(slurm, each.name)
        # Logs and names are those of jobs and attempts.
        if value is not None and each.name not in ("extra_args", "job_name", "output", "error"):
            made[each.name.replace("_", "-")] = value
    made.update((key.replace("_", "-"), value) for key, value in slurm.extra_args.items())
    return made


def _issue(fault: Fault) -> ValidationIssue:
    key = fault.key.removeprefix("slurm.sbatch.")
    key = f"slurm.{key}" if key != fault.key else key
    return ValidationIssue(level="error", message=fault.what, field=key, suggestion=fault.hint)


def _profile(profile: ClusterProfile | Mapping[str, Any] | str | None) -> ClusterProfile:
    if profile is None:
        return ClusterProfile()
    if isinstance(profile, ClusterProfile):
        return profile
    if isinstance(profile, str):
        return ClusterProfile.named(profile)
    known = [each.name for each in fields(ClusterProfile)]
    for key in profile:
        if key not in known:
            raise ConfigurationError(
                Fault(key=str(key), what="unknown key", hint=did_you_mean(str(key), known))
            )
    try:
        return ClusterProfile(**profile)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(Fault(what=f"no profile of a cluster: {error}")) from None


def _megabytes(text: str) -> float:
    """Memory as sbatch(1) reads it: megabytes without a unit.

    >>> _megabytes("256G"), _megabytes("100")
    (262144.0, 100.0)
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"`{text}` is not an amount of memory: write 256G")
    return float(match[1]) * _UNITS[match[2].upper()]


def _shortages(
    config: ExperimentConfig, resources: Resources, cluster: ClusterProfile
) -> Iterator[ValidationIssue]:
    slurm = config.slurm
    if slurm is None:
        what = "says nothing, so the cluster's defaults decide"
        yield ValidationIssue(level="warning", field="slurm", message=what)
        return
    where = cluster.name or "the cluster"

    def more(field: str, asked: Any, there: Any) -> ValidationIssue:
        what = f"asks for {asked}, and {where} has {there}"
        return ValidationIssue(level="error", field=f"slurm.{field}", message=what, suggestion="ask for less")

    per_node = resources.gpus / resources.nodes
    if cluster.gpus_per_node is not None and per_node > cluster.gpus_per_node:
        yield more("gpus_per_node", f"{per_node:g} GPUs a node", cluster.gpus_per_node)
    cpus = (slurm.cpus_per_task or 1) * slurm.ntasks_per_node
    if cluster.cpus_per_node is not None and cpus > cluster.cpus_per_node:
        yield more("cpus_per_task", f"{cpus} CPUs a node", cluster.cpus_per_node)
    if cluster.max_nodes is not None and resources.nodes > cluster.max_nodes:
        yield more("nodes", f"{resources.nodes} nodes", f"at most {cluster.max_nodes}")
    if slurm.mem is not None:
        try:
            asked = _megabytes(slurm.mem)
        except ValueError as error:
            yield ValidationIssue(level="error", field="slurm.mem", message=str(error))
        else:
            if cluster.mem_per_node is not None and asked > _megabytes(cluster.mem_per_node):
                yield more("mem", slurm.mem, f"{cluster.mem_per_node} a node")
    limit = parse_time(cluster.max_time) if cluster.max_time is not None else None
    if limit is not None and (resources.time_limit_s is None or resources.time_limit_s > limit):
        limit_s = resources.time_limit_s
        asked_time = "no time limit" if limit_s is None else format_time(limit_s)
        yield more("time", asked_time, f"at most {format_time(limit)}")
    if cluster.partitions is not None and slurm.partition not in (None, *cluster.partitions):
        hint = did_you_mean(str(slurm.partition), cluster.partitions)
        what = f"there is no partition `{slurm.partition}`"
        yield ValidationIssue(level="error", field="slurm.partition", message=what, suggestion=hint)


def _doubt(field: str, message: str, suggestion: str = "") -> ValidationIssue:
    return ValidationIssue(level="warning", field=field, message=message, suggestion=suggestion)


def _doubts(config: ExperimentConfig) -> Iterator[ValidationIssue]:
    yield from _slips(config)
    yield from _odd_training(config)
    training, performance, slurm = config.training, config.performance, config.slurm
    ranks = slurm.nodes * slurm.ntasks_per_node if slurm is not None else 1
    whole = config.data.batch_size * training.gradient_accumulation_steps * ranks
    if whole > 10_000:
        yield _doubt("data.batch_size", f"makes {whole} samples a step, over accumulation and {ranks} ranks")
    if performance is not None:
        pair = (performance.gradient_accumulation_steps, training.gradient_accumulation_steps)
        if pair[0] != pair[1]:
            what = f"{pair[0]} here, and {pair[1]} in training.gradient_accumulation_steps"
            yield _doubt("performance.gradient_accumulation_steps", what, "say it in one place")
    if config.logging.logger_type == "wandb" and not config.logging.wandb_project:
        yield _doubt("logging.wandb_project", "is missing, so nothing goes to Weights & Biases")


def _slips(config: ExperimentConfig) -> Iterator[ValidationIssue]:
    """Keys of a person's own that look like ours."""
    for section, kind, extras in (
        ("model", ModelConfig, config.model.extras),
        ("data", DataConfig, config.data.extras),
    ):
        known = [each.name for each in fields(kind)]
        for key in extras:
            near = difflib.get_close_matches(key, known, n=1, cutoff=_SLIP)
            if near:
                hint = f"did you mean `{near[0]}`?"
                yield _doubt(f"{section}.{key}", f"is a key of your own, and looks like `{near[0]}`", hint)


def _odd_training(config: ExperimentConfig) -> Iterator[ValidationIssue]:
    optimizer, training, schedule = config.optimizer, config.training, config.scheduler
    if optimizer.type.lower() not in OPTIMIZERS:
        hint = did_you_mean(optimizer.type, OPTIMIZERS)
        yield _doubt("optimizer.type", f"`{optimizer.type}` is not known", hint)
    if optimizer.lr > 1:
        yield _doubt("optimizer.lr", f"{optimizer.lr:g} is above 1", "learning rates are far below 1")
    if schedule is not None and schedule.type.lower() not in SCHEDULES:
        hint = did_you_mean(schedule.type, SCHEDULES)
        yield _doubt("scheduler.type", f"`{schedule.type}` is not known", hint)
    if schedule is not None and training.max_steps and schedule.warmup_steps > training.max_steps / 10:
        what = f"{schedule.warmup_steps} is more than a tenth of {training.max_steps} steps"
        yield _doubt("scheduler.warmup_steps", what)
    patience = training.early_stopping_patience
    if patience is not None and patience < training.validation_frequency:
        what = f"{patience} is shorter than the {training.validation_frequency} epochs between validations"
        yield _doubt("training.early_stopping_patience", what)
