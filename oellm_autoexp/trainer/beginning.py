"""How a training begins: with its loaders, from a checkpoint, from weights of another training, or anew."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oellm_autoexp.core.experiment import MultiDataLoaderConfig, SamplingStrategy, ValidationAggregation
from oellm_autoexp.errors import SetupError, TrainerError
from oellm_autoexp.trainer import rng, sharded, state
from oellm_autoexp.trainer.agreement import Agreement
from oellm_autoexp.trainer.boundaries import Boundaries, Every
from oellm_autoexp.trainer.builtin_hooks import found
from oellm_autoexp.trainer.loaders import LoaderSet
from oellm_autoexp.trainer.loggers import Logger
from oellm_autoexp.trainer.phases import PhaseMachine, TrainerPhase
from oellm_autoexp.trainer.trackers import create_logger
from oellm_autoexp.trainer.validation import Step, Validation

_log = logging.getLogger("oellm_autoexp.trainer")


@dataclass(frozen=True)
class WarmStartResult:
    """What a warm start loader may return; `strict`: every name has to fit."""

    model_state_dict: Mapping[str, Any]
    strict: bool = True


class Beginning(Boundaries):
    """The part of `GenericTrainer` that is over when its loop begins."""

    fabric: Any
    _training_step: Step | None
    _validation_step: Step | None
    _warm_start: Callable[[Path], Any] | None

    def _prepare(
        self, train_loaders: Any, val_loaders: Any, max_epochs: int | None, wanted: str | Path | None
    ) -> None:
        """All that comes before the first batch, which is one that was not used yet."""
        train_loaders, val_loaders = as_list(train_loaders), as_list(val_loaders)
        config = self.config
        self._check_given(train_loaders, max_epochs)
        self._max_epochs = max_epochs or config.max_epochs or (sys.maxsize if config.max_steps else 1)
        # A `fit` before this one may have been given up within a step.
        self._within_step = self.should_stop = self._nonfinite = False
        self._losses.clear()
        self._clear_gradients()
        self._read(wanted)
        self._make_loaders(train_loaders, val_loaders)
        self._check_monitors()
        self._agreement = Agreement(self._engine, each_step=config.fault_tolerance.nonfinite_loss != "stop")
        scalars = config.logging.log_scalars_every_n_steps or config.log_loss_every_n_steps
        by_steps = 0
        if self._validation is not None and self._validates_by_steps:
            by_steps = config.validation.every_n_steps or 0
        self._every = Every(min(scalars, config.log_loss_every_n_steps), by_steps)
        self._by_clock = self._keeper.by_clock
        if not self.model.training:
            self.model.train()
        self._go_on_or_begin(wanted)

    def _check_given(self, train_loaders: list[Any], max_epochs: int | None) -> None:
        if self._training_step is None:
            raise SetupError("there is no training step: call set_training_step(fn) before fit()")
        if not train_loaders:
            raise SetupError("train_loaders must hold at least one loader")
        if max_epochs is not None and max_epochs < 1:
            raise SetupError(f"max_epochs must be above 0, got {max_epochs}")
        for name in ("loss_weights_per_loader", "per_loader_optimizer_id"):
            given = getattr(self.config, name)
            if given is not None and len(given) != len(train_loaders):
                raise SetupError(f"{name} has {len(given)} items for {len(train_loaders)} train_loaders")

    def _check_monitors(self) -> None:
        """Else the end of the first epoch would say so."""
        looked_at = [each.monitor for each in self._scheduled if each.monitor]
        if self.early_stopping is not None:
            looked_at.append(self.early_stopping.name)
        unseen = [each for each in looked_at if each.startswith(("val/", "val_"))]
        if unseen and self._validation is None:
            what = f"a scheduler or early stopping looks at {unseen[0]}, and there are no validation loaders"
            raise SetupError(what, hint="give fit() val_loaders, or monitor train/loss")

    def _make_loaders(self, train_loaders: list[Any], val_loaders: list[Any]) -> None:
        """Their order follows from the seed of the config, else of the checkpoint, else of torch."""
        config = self.config
        seed = self._seed if config.seed is None else config.seed
        self._seed = int(self._engine.told(torch.initial_seed() % 2**32 if seed is None else seed))
        self._train = LoaderSet(
            train_loaders,
            config.train_loader_config,
            seed=self._seed,
            fabric=self.fabric,
            phase="train",
            save_dataset_state=config.fault_tolerance.save_dataset_state,
        )
        self._validation = self._validating(val_loaders)
        self.metrics.train_loader_names = self._train.names
        self.metrics.val_loader_names = self._validation.loaders.names if self._validation else ()

    def _validating(self, loaders: list[Any]) -> Validation | None:
        custom = self.config.validation.aggregation is ValidationAggregation.CUSTOM
        if custom and self._aggregation is None:
            raise SetupError(
                "validation.aggregation is custom: call set_validation_aggregation(fn) before fit()"
            )
        if not loaders:
            return None
        assert self._training_step is not None
        config = self.config.val_loader_config or MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.SEQUENTIAL
        )
        assert self._seed is not None
        found = LoaderSet(loaders, config, seed=self._seed, fabric=self.fabric, phase="val")
        most, fewest = self._engine.highest([found.length(), -found.length()])
        even = most == -fewest
        return Validation(found, self._validation_step or self._training_step, even=even)

    def _read(self, wanted: str | Path | None) -> None:
        """What was loaded by hand stays; else the newest checkpoint is read, else the one that is wanted."""
        automatic = self.config.preemption.resume_from_latest_symlink
        if self._pending is None and (automatic or wanted == "latest"):
            newest = self._keeper.newest()
            if newest is not None:
                record, payload = newest
                self._take(self._keeper.directory / record.name, payload)
        elif self._pending is None and wanted is not None:
            self.load_checkpoint(wanted)

    def _go_on_or_begin(self, wanted: str | Path | None) -> None:
        """From what was read; else anew, with the weights that are wanted."""
        config = self.config
        if self._pending is not None:
            loaded, self._pending = self._pending, None
            state.restore_ranks(self, loaded)
            if config.fault_tolerance.verify_deterministic_resume:
                self._verify(loaded)
            return
        if self.at.epoch_batches:
            _log.warning(
                "nothing was loaded: epoch %s begins anew, with the weights as they are", self.at.epoch
            )
            self.metrics.end_interval()
            self.metrics.end_epoch()
        self.at.epoch_batches, self.at.batches_done, self.at.validation_due = 0, False, False
        self._phases = PhaseMachine()
        if config.seed is not None and not self.at.global_step:
            rng.seed_all(config.seed, self._engine.rank)
        if config.preemption.resume_from_latest_symlink and wanted is not None and wanted != "latest":
            self._begin_with_weights(Path(wanted))

    def _verify(self, payload: Mapping[str, Any]) -> None:
        """What a checkpoint made now would hold is what the one that was read holds."""
        phase = TrainerPhase(payload["resume_state"]["phase"])
        again = state.capture(self, phase, payload["save_timestamp"])
        differing = state.differences(
            {key: payload[key] for key in state.VERIFIED}, {key: again[key] for key in state.VERIFIED}
        )
        # Only rank 0 has the whole, and all of them end where it does.
        differing = self._engine.told(differing)
        if self._engine.world_size == payload["world_size"] and differing:
            what = f"after reading the checkpoint this differs from it: {', '.join(differing[:5])}"
            raise TrainerError(what, where="fault_tolerance.verify_deterministic_resume")

    def _begin_with_weights(self, path: Path) -> None:
        warm = self.config.warm_start
        load = self._warm_start or (
            found(warm.loader_class, "warm_start.loader_class") if warm.loader_class else None
        )
        strict = warm.strict
        weights: Any = load(path) if load is not None else self._keeper.load(path).get("model_state_dict")
        if weights is None:
            hint = "name what reads it: warm_start.loader_class, or set_warm_start_loader(torch.load), say"
            raise TrainerError("is no checkpoint of this program", where=str(path), hint=hint)
        if isinstance(weights, WarmStartResult):
            weights, strict = weights.model_state_dict, weights.strict
        if self._engine.sharded:
            like = state.likeness(self._engine)
            weights = sharded.spread({"model_state_dict": dict(weights)}, like)["model_state_dict"]
        try:
            missing, unexpected = self.module.load_state_dict(weights, strict=strict)
        except RuntimeError as error:
            hint = "set warm_start.strict to false to leave out what does not fit by name"
            raise TrainerError(
                f"holds the weights of another model: {error}", where=str(path), hint=hint
            ) from None
        if missing or unexpected:
            _log.warning("weights of %s: %s missing, %s unexpected", path, len(missing), len(unexpected))

    def _start(self) -> None:
        """Loggers, and the hooks that begin."""
        self._keeper.claim()
        if (made := self._engine.agreed(self._made_logger)) is not None:
            self.logger = made
        self._keeper.begin(self.logger)
        self.hook_manager.call("on_train_start", self)

    def _made_logger(self) -> Logger | None:
        """Only rank 0 logs."""
        if self._engine.rank != 0:
            return None
        config = self.config
        assert self._train is not None
        length, micro = self._train.length(), config.performance.gradient_accumulation_steps
        return create_logger(
            config.logging,
            name=config.experiment_name,
            directory=self._keeper.directory,
            resumed_at=self.at.global_step,
            total_steps=min(self._max_epochs * -(-length // micro), config.max_steps or sys.maxsize),
            shown=config.to_dict(),
        )


def as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]
