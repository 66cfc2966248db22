"""What one experiment trains, on what, and how: the config that launchers write and trainers read.

Configs are values: frozen, checked when they are made, and compared by what they hold. `dataclasses.replace`
makes another. `config.experiments` reads them from mappings and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Literal

MAX_NAME_LENGTH = 200
#: Seeds of NumPy end here.
MAX_SEED = 2**32 - 1


# ---------------------------------------------------------------- checks; each message begins with its field


def _above_zero(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be above 0, got {value!r}")


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"{name} must not be negative, got {value!r}")


def _below_one(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _some_text(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{name} must be text that is not empty, got {value!r}")


def _one_of(config: Any, name: str, *choices: str | None) -> None:
    value = getattr(config, name)
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _tuples(config: Any, *names: str) -> None:
    """Lists become tuples, so that nobody can change what several configs share."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list):
            object.__setattr__(config, name, tuple(value))


# ---------------------------------------------------------------- parts with keys of their own


@dataclass(frozen=True, init=False)
class _Open:
    """A part that takes any further key; they are attributes, too (`config.model.num_classes`)."""

    _non_strict: ClassVar[bool] = True
    extras: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **given: Any) -> None:
        extras = dict(given.pop("extras", {}))
        for name in {each.name for each in fields(self)}.intersection(extras):
            raise TypeError(f"{name} is a key of its own, not one of the extras")
        for each in fields(self):
            if each.name == "extras":
                continue
            if each.name in given:
                value = given.pop(each.name)
            elif each.default is not MISSING:
                value = each.default
            else:
                raise TypeError(f"{each.name} is missing")
            object.__setattr__(self, each.name, value)
        object.__setattr__(self, "extras", {**extras, **given})
        self.__post_init__()

    def __post_init__(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        extras = self.__dict__.get("extras", {})
        if name in extras:
            return extras[name]
        raise AttributeError(f"{type(self).__name__} has no `{name}`")


@dataclass(frozen=True, init=False)
class ModelConfig(_Open):
    """The architecture. What a model needs beyond these keys is given beside them."""

    type: str = "custom"
    hidden_size: int = 512
    num_layers: int = 6
    dropout: float = 0.1
    activation: str = "relu"

    def __post_init__(self) -> None:
        _some_text(self, "type", "activation")
        _above_zero(self, "hidden_size", "num_layers")
        _below_one(self, "dropout")


@dataclass(frozen=True, init=False)
class DataConfig(_Open):
    """The data set and how it is loaded. What a data set needs beyond these keys is given beside them."""

    dataset_name: str = "custom"
    batch_size: int = 32
    train_split: str = "train"
    val_split: str | None = "validation"
    num_workers: int = 4
    pin_memory: bool = True

    def __post_init__(self) -> None:
        _some_text(self, "dataset_name", "train_split", "val_split")
        _above_zero(self, "batch_size")
        _not_negative(self, "num_workers")


# ---------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop. `max_grad_norm` and `early_stopping_patience` of null: not at all."""

    max_epochs: int = 100
    max_steps: int | None = None
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    use_amp: bool = True
    early_stopping_patience: int | None = None
    early_stopping_metric: str = "val/loss"
    early_stopping_mode: Literal["min", "max"] = "min"
    validation_frequency: int = 1
    log_frequency: int = 100
    save_frequency: int = 1000

    def __post_init__(self) -> None:
        _above_zero(self, "max_epochs", "max_steps", "gradient_accumulation_steps", "max_grad_norm")
        _above_zero(
            self, "early_stopping_patience", "validation_frequency", "log_frequency", "save_frequency"
        )
        _some_text(self, "early_stopping_metric")
        _one_of(self, "early_stopping_mode", "min", "max")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`custom_params` are handed on to the optimizer as they are."""

    type: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    custom_params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _tuples(self, "betas")
        _some_text(self, "type")
        _above_zero(self, "lr", "eps")
        _not_negative(self, "weight_decay")
        if len(self.betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The schedule of the learning rate: `gamma` and `step_size` of `step`, `milestones` of `multistep`."""

    type: str = "cosine"
    warmup_steps: int = 1000
    max_steps: int | None = None
    min_lr: float = 1e-6
    gamma: float = 0.1
    step_size: int = 10
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _tuples(self, "milestones")
        _some_text(self, "type")
        _not_negative(self, "warmup_steps", "min_lr")
        _above_zero(self, "max_steps", "step_size")
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps must be below max_steps ({self.max_steps}), got {self.warmup_steps}"
            )
        if not (_is_number(self.gamma) and 0 < self.gamma <= 1):
            raise ValueError(f"gamma must be above 0 and at most 1, got {self.gamma!r}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.type == "multistep" and not self.milestones:
            raise ValueError("milestones must be given for multistep")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written (null: not by this), how many stay, and which one counts as the best."""

    save_every_n_epochs: int | None = 1
    save_every_n_steps: int | None = None
    save_every_n_minutes: float | None = None
    max_checkpoints: int = 5
    root_dir: str = "checkpoints"
    filename_template: str = "epoch_{epoch:03d}_step_{step:06d}.ckpt"
    monitor_metric: str | None = None
    monitor_mode: Literal["min", "max"] = "min"
    save_best: bool = True
    save_rng: bool = True
    save_optimizer: bool = True
    save_scheduler: bool = True

    def __post_init__(self) -> None:
        _above_zero(self, "save_every_n_epochs", "save_every_n_steps", "save_every_n_minutes")
        _above_zero(self, "max_checkpoints")
        _one_of(self, "monitor_mode", "min", "max")
        object.__setattr__(self, "root_dir", str(self.root_dir))
        try:
            name = self.filename_template.format(epoch=0, step=0, timestamp=0)
            other = self.filename_template.format(epoch=1, step=1, timestamp=1)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            what = f"filename_template takes {{epoch}}, {{step}} and {{timestamp}}: {error}"
            raise ValueError(what) from None
        if "/" in name or "\0" in name or name == other:
            raise ValueError("filename_template must be a file's name that shows {epoch} or {step}")


@dataclass(frozen=True, kw_only=True)
class PreemptionConfig:
    """What is done when the scheduler takes the nodes away."""

    signal: str = "SIGUSR1"
    max_checkpoint_sec: float = 300.0
    requeue_job: bool = True
    resume_from_latest_symlink: bool = True

    def __post_init__(self) -> None:
        _one_of(self, "signal", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT")
        _above_zero(self, "max_checkpoint_sec")


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """How a step is run.

    `precision`: of Fabric, such as "bf16-mixed"; null: mixed on a GPU where `use_amp`, else 32 bits.
    `compile_backend`: of `torch.compile`; null: its own choice.
    """

    gradient_accumulation_steps: int = 1
    compile_model: bool = False
    compile_backend: str | None = None
    use_amp: bool = True
    precision: str | None = None
    clip_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _above_zero(self, "gradient_accumulation_steps", "clip_grad_norm")
        _some_text(self, "compile_backend", "precision")
        if self.compile_backend is not None and not self.compile_model:
            raise ValueError("compile_backend is given, and compile_model is off")


@dataclass(frozen=True, kw_only=True)
class DDPConfig:
    """Over which devices a model is trained, as Fabric calls them.

    `strategy`: auto, ddp, fsdp (FSDP2: `fully_shard`), or any other of Fabric; `backend`: nccl, gloo (null:
    by the device); `devices`: how many on each node (null: all GPUs of the node, or one process on a CPU).
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: int | None = None
    num_nodes: int = 1
    backend: str | None = None
    find_unused_parameters: bool = False
    timeout_seconds: float = 1800.0

    def __post_init__(self) -> None:
        _some_text(self, "accelerator", "strategy", "backend")
        _above_zero(self, "devices", "num_nodes", "timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Weights to begin with.

    `loader_class`: dotted path of what reads them; null: they are in a checkpoint of this program.
    """

    loader_class: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        _some_text(self, "loader_class")


#: What metrics can be sent to.
LOGGERS = ("console", "csv", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go. Trackers are used only where they are named."""

    logger_type: Literal["console", "csv", "tensorboard", "wandb", "mlflow", "composite"] = "console"
    composite_loggers: tuple[str, ...] | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_tags: tuple[str, ...] = ()
    wandb_notes: str | None = None
    wandb_name: str | None = None
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    wandb_id: str | None = None
    wandb_resume: Literal["allow", "must", "never"] | None = None
    tensorboard_dir: str | None = None
    csv_path: str | None = None
    mlflow_tracking_uri: str | None = None
    mlflow_experiment: str | None = None
    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_per_loader_metrics: bool = True
    log_global_metrics: bool = True
    log_loader_proportions: bool = True
    all_reduce_metrics: bool = False
    log_scalars_every_n_steps: int | None = 50

    def __post_init__(self) -> None:
        _tuples(self, "composite_loggers", "wandb_tags")
        _one_of(self, "logger_type", *LOGGERS, "composite")
        _one_of(self, "wandb_mode", "online", "offline", "disabled", None)
        _one_of(self, "wandb_resume", "allow", "must", "never", None)
        _one_of(self, "console_log_level", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        _above_zero(self, "log_scalars_every_n_steps")
        _some_text(self, "tensorboard_dir", "csv_path", "mlflow_tracking_uri", "mlflow_experiment")
        unknown = set(self.composite_loggers or ()) - set(LOGGERS)
        if unknown:
            known = f"{', '.join(LOGGERS[:-1])} and {LOGGERS[-1]}"
            raise ValueError(f"composite_loggers takes {known}, got {', '.join(map(str, sorted(unknown)))}")


# ---------------------------------------------------------------- several loaders, validation, faults


class SamplingStrategy(str, Enum):
    """Which loader the next batch comes from."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED = "weighted"
    ALTERNATING = "alternating"
    SEQUENTIAL = "sequential"


class EpochLengthPolicy(str, Enum):
    """How many batches make an epoch."""

    SUM_OF_LENGTHS = "sum_of_lengths"
    MAX_OF_LENGTHS = "max_of_lengths"
    MIN_OF_LENGTHS = "min_of_lengths"
    FIXED_NUM_STEPS = "fixed_num_steps"


class ValidationFrequency(str, Enum):
    """When is validated."""

    PER_EPOCH = "per_epoch"
    EVERY_N_STEPS = "every_n_steps"


class ValidationAggregation(str, Enum):
    """How several validation loaders give one figure."""

    MICRO_AVG_WEIGHTED_BY_SAMPLES = "micro_avg_weighted_by_samples"
    MACRO_AVG_EQUAL_LOADERS = "macro_avg_equal_loaders"
    PRIMARY_METRIC_PER_LOADER = "primary_metric_per_loader"
    CUSTOM = "custom"


@dataclass(frozen=True, kw_only=True)
class MultiDataLoaderConfig:
    """How several loaders take turns."""

    sampling_strategy: SamplingStrategy = SamplingStrategy.ROUND_ROBIN
    dataloader_names: tuple[str, ...] = ()
    dataloader_weights: tuple[float, ...] | None = None
    alternating_pattern: tuple[int, ...] | None = None
    epoch_length_policy: EpochLengthPolicy = EpochLengthPolicy.SUM_OF_LENGTHS
    steps_per_epoch: int | None = None
    cycle_short_loaders: bool = True
    burst_size: int = 1
    choice_rng_seed: int | None = None
    prefetch_cap_total_batches: int | None = None

    def __post_init__(self) -> None:
        _tuples(self, "dataloader_names", "dataloader_weights", "alternating_pattern")
        _above_zero(self, "steps_per_epoch", "burst_size", "prefetch_cap_total_batches")
        names = self.dataloader_names
        if len(set(names)) != len(names):
            raise ValueError(f"dataloader_names must differ, got {list(names)}")
        if self.sampling_strategy is SamplingStrategy.WEIGHTED:
            self._check_weights(len(names))
        if self.sampling_strategy is SamplingStrategy.ALTERNATING:
            pattern = self.alternating_pattern or ()
            if not pattern or min(pattern) < 0 or (names and max(pattern) >= len(names)):
                raise ValueError("alternating_pattern must hold numbers of loaders, the first of which is 0")
        if self.epoch_length_policy is EpochLengthPolicy.FIXED_NUM_STEPS and self.steps_per_epoch is None:
            raise ValueError("steps_per_epoch must be given for FIXED_NUM_STEPS")

    def _check_weights(self, names: int) -> None:
        weights = self.dataloader_weights or ()
        if not weights or not all(_is_number(weight) and 0 < weight < math.inf for weight in weights):
            raise ValueError("dataloader_weights must hold a number above 0 for each loader")
        if names and len(weights) != names:
            raise ValueError(f"dataloader_weights has {len(weights)} items for {names} dataloader_names")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When and how is validated."""

    frequency: ValidationFrequency = ValidationFrequency.PER_EPOCH
    every_n_steps: int | None = None
    aggregation: ValidationAggregation = ValidationAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES
    per_loader_metrics: bool = True
    global_metrics: bool = True
    early_stopping_source: Literal["both", "hook", "legacy"] = "both"

    def __post_init__(self) -> None:
        _above_zero(self, "every_n_steps")
        _one_of(self, "early_stopping_source", "both", "hook", "legacy")
        by_steps = self.frequency is ValidationFrequency.EVERY_N_STEPS
        if by_steps and self.every_n_steps is None:
            raise ValueError("every_n_steps must be given for EVERY_N_STEPS")
        if self.every_n_steps is not None and not by_steps:
            raise ValueError("every_n_steps is given, and frequency is not EVERY_N_STEPS: keep one")


@dataclass(frozen=True, kw_only=True)
class FaultToleranceConfig:
    """What a checkpoint holds beyond the model, how long it may take, and what a loss that is no number does.

    `nonfinite_loss`: `stop`; `skip` the optimizer step; `rollback` to the weights of the last checkpoint and
    go on behind the batches since. The latter two give up after `max_nonfinite` times in a row.
    """

    save_sampler_state: bool = True
    save_dataset_state: bool = True
    verify_deterministic_resume: bool = False
    checkpoint_timeout_sec: float = 300.0
    nonfinite_loss: Literal["stop", "skip", "rollback"] = "stop"
    max_nonfinite: int = 3

    def __post_init__(self) -> None:
        _above_zero(self, "checkpoint_timeout_sec", "max_nonfinite")
        _one_of(self, "nonfinite_loss", "stop", "skip", "rollback")


@dataclass(frozen=True, kw_only=True)
class HooksConfig:
    """Hooks by dotted path, with their arguments by class name; and those that come along."""

    hook_classes: tuple[str, ...] = ()
    hook_configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    enable_logging_hook: bool = False
    enable_gradient_monitor: bool = False
    enable_model_checkpoint_hook: bool = False
    enable_early_stopping_hook: bool = False
    continue_on_hook_error: bool = True

    def __post_init__(self) -> None:
        _tuples(self, "hook_classes")


# ---------------------------------------------------------------- the scheduler, and the whole


@dataclass(frozen=True, kw_only=True)
class SLURMConfig:
    """What a job asks of Slurm; null: what the project's config or the cluster says.

    `extra_args` are further options of sbatch by their long names.
    """

    account: str | None = None
    partition: str | None = None
    nodes: int = 1
    ntasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    constraint: str | None = None
    requeue: bool | None = None
    job_name: str | None = None
    output: str | None = None
    error: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _some_text(self, "account", "partition", "mem", "time", "constraint", "job_name", "output", "error")
        _some_text(self, "mail_type", "mail_user")
        _above_zero(self, "nodes", "ntasks_per_node", "cpus_per_task")
        _not_negative(self, "gpus_per_node")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything about one experiment."""

    experiment_name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig | None = None
    slurm: SLURMConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    performance: PerformanceConfig | None = None
    train_loader_config: MultiDataLoaderConfig | None = None
    val_loader_config: MultiDataLoaderConfig | None = None
    validation: ValidationConfig | None = None
    fault_tolerance: FaultToleranceConfig | None = None
    ddp: DDPConfig | None = None
    hooks: HooksConfig | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    created_by: str | None = None
    created_at: str | None = None
    version: str = "1.0"
    seed: int | None = None
    deterministic: bool = True
    benchmark: bool = False
    custom_params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _tuples(self, "tags")
        _some_text(self, "experiment_name")
        name = self.experiment_name
        if name is None or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            what = f"experiment_name must be printable text of at most {MAX_NAME_LENGTH} characters"
            raise ValueError(f"{what}, got {name!r:.100}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed <= MAX_SEED):
            raise ValueError(f"seed must be between 0 and {MAX_SEED}, got {self.seed!r}")
        if self.performance is not None:
            training = self.training
            merged_performance(
                self.performance,
                gradient_accumulation_steps=training.gradient_accumulation_steps,
                use_amp=training.use_amp,
                max_grad_norm=training.max_grad_norm,
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and scalars, which `config.experiments.experiment` reads back."""
        return {name: plain(value) for name, value in vars(self).items()}


def merged_performance(
    performance: PerformanceConfig,
    *,
    gradient_accumulation_steps: int,
    use_amp: bool,
    max_grad_norm: float | None,
) -> PerformanceConfig:
    """`performance`, with what only the `training` of the same experiment says.

    Raises:
        ValueError: both say something, and it differs.
    """
    said = {
        "gradient_accumulation_steps": ("gradient_accumulation_steps", gradient_accumulation_steps),
        "use_amp": ("use_amp", use_amp),
        "clip_grad_norm": ("max_grad_norm", max_grad_norm),
    }
    merged: dict[str, Any] = {}
    defaults = PerformanceConfig()
    for ours, (theirs, value) in said.items():
        own, default = getattr(performance, ours), getattr(defaults, ours)
        if own not in (value, default) and value != default:
            raise ValueError(f"performance.{ours} is {own!r} and training.{theirs} is {value!r}: keep one")
        merged[ours] = value if own == default else own
    return replace(performance, **merged)


def plain(value: Any) -> Any:
    """A config, or a part or value of one, in the types of JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, _Open):
        own = {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name != "extras"}
        return {**own, **plain(value.extras)}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
