"""What a trainer is told. Each field acts; what cannot work is refused when the config is made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from oellm_autoexp.core.experiment import (
    CheckpointConfig,
    DDPConfig,
    ExperimentConfig,
    FaultToleranceConfig,
    HooksConfig,
    LoggingConfig,
    MultiDataLoaderConfig,
    PerformanceConfig,
    PreemptionConfig,
    TrainingConfig,
    ValidationConfig,
    WarmStartConfig,
    merged_performance,
    plain,
)


@dataclass(frozen=True, kw_only=True)
class GenericTrainerConfig:
    """How `GenericTrainer` trains.

    - `loss_weights_per_loader`: factors of the loss by loader, in the order of the loaders.
    - `per_loader_optimizer_id`: which optimizer a loader's batches are for; None: all optimizers step.
    - `scheduler_interval`: whether schedulers step with each optimizer step or each epoch, where a scheduler
      is given without an interval of its own.
    - `max_epochs`, `max_steps`: where training ends (optimizer steps); `fit(max_epochs=…)` wins. Without
      `max_epochs` there is one epoch, or as many as `max_steps` takes.
    - `log_loss_every_n_steps`: how often a line is printed, in optimizer steps.
    - `profile_training`: measure the seconds of loading and of a step.

    Raises:
        ValueError: the message begins with the field.
    """

    experiment_name: str = "experiment"
    seed: int | None = None
    train_loader_config: MultiDataLoaderConfig = field(default_factory=MultiDataLoaderConfig)
    val_loader_config: MultiDataLoaderConfig | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    fault_tolerance: FaultToleranceConfig = field(default_factory=FaultToleranceConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    ddp: DDPConfig = field(default_factory=DDPConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    loss_weights_per_loader: Sequence[float] | None = None
    per_loader_optimizer_id: Sequence[int] | None = None
    scheduler_interval: Literal["step", "epoch"] = "step"
    max_epochs: int | None = None
    max_steps: int | None = None
    log_loss_every_n_steps: int = 100
    validate_every_n_epochs: int = 1
    early_stopping_patience: int | None = None
    early_stopping_metric: str = "val_loss"
    early_stopping_mode: Literal["min", "max"] = "min"
    profile_training: bool = True
    experiment_config: ExperimentConfig | None = None

    def __post_init__(self) -> None:
        for name in ("loss_weights_per_loader", "per_loader_optimizer_id"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        positive = ("max_epochs", "max_steps", "log_loss_every_n_steps", "validate_every_n_epochs")
        for name in (*positive, "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value > 0):
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
        for name, choices in (
            ("early_stopping_mode", ("min", "max")),
            ("scheduler_interval", ("step", "epoch")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")
        if self.validate_every_n_epochs != 1 and self.validation.every_n_steps is not None:
            raise ValueError("validate_every_n_epochs is given, and so is validation.every_n_steps: keep one")
        if not self.experiment_name.strip():
            raise ValueError("experiment_name must be text that is not empty")
        loaders = len(self.train_loader_config.dataloader_names)
        for name in ("loss_weights_per_loader", "per_loader_optimizer_id"):
            given = getattr(self, name)
            if given is not None and loaders and len(given) != loaders:
                raise ValueError(f"{name} has {len(given)} items for {loaders} dataloader_names")
        if any(number < 0 for number in self.per_loader_optimizer_id or ()):
            raise ValueError(
                "per_loader_optimizer_id must hold numbers of optimizers, the first of which is 0"
            )

    @property
    def directory_name(self) -> str:
        """The experiment's name as one part of a path; other names than plain ones end in a digest."""
        safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", self.experiment_name)
        if safe == self.experiment_name and safe.strip("."):
            return safe
        return f"{safe.strip('.')[:100]}_{hashlib.sha256(self.experiment_name.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and scalars, for a checkpoint to show what it was made with."""
        return {each.name: plain(getattr(self, each.name)) for each in fields(self)}


def trainer_config(config: GenericTrainerConfig | ExperimentConfig) -> GenericTrainerConfig:
    """The trainer's config of an experiment; one that is a trainer's already is handed back.

    What an experiment says in two places is taken from the more specific one: `performance` wins over
    `training`, and `checkpoint.save_every_n_steps` over `training.save_frequency`.
    """
    if isinstance(config, GenericTrainerConfig):
        return config
    training = config.training
    checkpoint = config.checkpoint
    every = checkpoint.save_every_n_steps
    if every is None:
        checkpoint = replace(checkpoint, save_every_n_steps=training.save_frequency)
    elif training.save_frequency not in (every, TrainingConfig.save_frequency):
        what = f"training.save_frequency is {training.save_frequency}"
        raise ValueError(f"checkpoint.save_every_n_steps is {every} and {what}: keep one")
    return GenericTrainerConfig(
        experiment_name=config.experiment_name,
        seed=config.seed,
        train_loader_config=config.train_loader_config or MultiDataLoaderConfig(),
        val_loader_config=config.val_loader_config,
        checkpoint=checkpoint,
        preemption=config.preemption,
        logging=_logging(config),
        validation=config.validation or ValidationConfig(),
        fault_tolerance=config.fault_tolerance or FaultToleranceConfig(),
        performance=merged_performance(
            config.performance or PerformanceConfig(),
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            use_amp=training.use_amp,
            max_grad_norm=training.max_grad_norm,
        ),
        hooks=config.hooks or HooksConfig(),
        ddp=config.ddp or DDPConfig(),
        max_epochs=training.max_epochs,
        max_steps=training.max_steps,
        log_loss_every_n_steps=training.log_frequency,
        validate_every_n_epochs=training.validation_frequency,
        early_stopping_patience=training.early_stopping_patience,
        early_stopping_metric=training.early_stopping_metric,
        early_stopping_mode=training.early_stopping_mode,
        experiment_config=config,
    )


def _logging(config: ExperimentConfig) -> LoggingConfig:
    """What is said of an experiment is said of its run, unless that has words of its own."""
    logging = config.logging
    return replace(
        logging,
        wandb_tags=logging.wandb_tags or config.tags,
        wandb_notes=logging.wandb_notes or config.description,
    )


def is_set(part: Any, key: str) -> bool:
    """Whether a key has another value than its default."""
    return any(each.name == key and getattr(part, key) != each.default for each in fields(part))
