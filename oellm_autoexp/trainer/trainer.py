"""`GenericTrainer`: a training loop that may be killed anywhere and goes on as if it had not been.

The way of a batch is on one screen: `_train_epoch`. What happens between two optimizer steps is in
`boundaries`, what a checkpoint holds in `state`, when and where it is written in `keeping`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.errors import CheckpointError, PreemptionTimeoutError, SetupError, TrainerError
from oellm_autoexp.trainer import builtin_hooks, state
from oellm_autoexp.trainer.beginning import Beginning, as_list
from oellm_autoexp.trainer.config import GenericTrainerConfig, trainer_config
from oellm_autoexp.trainer.engine import engine
from oellm_autoexp.trainer.hooks import HookManager
from oellm_autoexp.trainer.keeping import Keeper
from oellm_autoexp.trainer.loaders import Batch
from oellm_autoexp.trainer.loggers import Ended, Logger
from oellm_autoexp.trainer.metrics import MetricsManager, samples_of, scalars
from oellm_autoexp.trainer.phases import PhaseMachine
from oellm_autoexp.trainer.phases import TrainerPhase as P
from oellm_autoexp.trainer.signals import Preempted, SignalWatch
from oellm_autoexp.trainer.stepping import EarlyStopping, scheduled
from oellm_autoexp.trainer.validation import Aggregate, Step

_log = logging.getLogger("oellm_autoexp.trainer")


class GenericTrainer(Beginning):
    """Trains a model on one or several loaders, with or without Lightning Fabric.

        trainer = GenericTrainer(config, model, [optimizer], [scheduler], fabric)
        trainer.set_training_step(step)
        trainer.fit([loader], [val_loader], max_epochs=10)

    `optimizers` may be one, `schedulers` too; `stepping.scheduled` says in which forms schedulers are taken.
    Model and optimizers are set up with Fabric here, unless they are already: use `trainer.model`.

    Raises:
        SetupError (a ValueError): what is given does not fit together.
    """

    def __init__(
        self,
        config: GenericTrainerConfig | ExperimentConfig,
        model: nn.Module,
        optimizers: Any = None,
        schedulers: Any = None,
        fabric: Any = None,
        *,
        optimizer: Any = None,
        scheduler: Any = None,
    ) -> None:
        self.config = config = trainer_config(config)
        _log.setLevel(config.logging.console_log_level)
        bare = as_list(optimizers if optimizers is not None else optimizer)
        if not bare:
            raise SetupError("optimizers must hold at least one optimizer")
        self._engine = engine(model, bare, config.performance, config.ddp, fabric)
        self.fabric, self.model, self.optimizers = fabric, self._engine.model, self._engine.optimizers
        self.device = self._engine.device
        self._scheduled = [
            scheduled(each, config.scheduler_interval)
            for each in as_list(schedulers if schedulers is not None else scheduler)
        ]
        self._owners = [_owner(each.scheduler, bare) for each in self._scheduled]
        wrong = [each for each in config.per_loader_optimizer_id or () if each >= len(bare)]
        if wrong:
            raise SetupError(f"per_loader_optimizer_id names optimizer {wrong[0]}, and there are {len(bare)}")
        self.hook_manager = HookManager(continue_on_error=config.hooks.continue_on_hook_error)
        for hook in builtin_hooks.configured(config):
            self.hook_manager.register_hook(hook)
        self.at = state.Position()
        self.metrics = MetricsManager(window=config.performance.gradient_accumulation_steps)
        self.logger: Logger = Logger()
        self.early_stopping: EarlyStopping | None = None
        if config.early_stopping_patience and config.validation.early_stopping_source != "hook":
            name, mode = config.early_stopping_metric, config.early_stopping_mode
            self.early_stopping = EarlyStopping(config.early_stopping_patience, name, mode)
        #: A hook sets it to end the training at the next boundary.
        self.should_stop = False
        self._training_step: Step | None = None
        self._validation_step: Step | None = None
        self._aggregation: Aggregate | None = None
        self._warm_start: Callable[[Path], Any] | None = None
        self._phases = PhaseMachine()
        self._signals = SignalWatch()
        self._keeper = Keeper(config, self._engine)
        self._train = None
        self._validation = None
        self._pending: Mapping[str, Any] | None = (
            None  # what a checkpoint says of loaders that are not there yet
        )
        self._configured: tuple[Any, Any] = (None, None)
        self._seed: int | None = None
        self._within_step = self._saving = False
        self._nonfinite: Any = False
        self._losses: list[Any] = []
        self._norms: dict[str, Any] = {}
        self._seconds = {"step": 0.0, "load": 0.0}
        # Looked up at each step: a chain of attributes that was not used since is slow to follow.
        self._max_norm = config.performance.clip_grad_norm

    @classmethod
    def from_config(cls, config: ExperimentConfig, fabric: Any = None) -> GenericTrainer:
        """Everything that an experiment's config names, made: model, optimizer, scheduler, step functions.

        `fit_configured()` trains it. See `oellm_autoexp.trainer.building` for how names are found.
        """
        from oellm_autoexp.trainer import building

        return building.trainer(cls, config, fabric)

    # ------------------------------------------------------------ what a program says before

    def set_training_step(self, step: Step) -> None:
        """The function that computes the loss of a batch."""
        self._training_step = step

    def set_validation_step(self, step: Step) -> None:
        """The function that computes the figures of a validation batch; without one, the training step."""
        self._validation_step = step

    def set_validation_aggregation(self, aggregate: Aggregate) -> None:
        """For `validation.aggregation: custom`: from loader → name → figure to name → figure."""
        self._aggregation = aggregate

    def set_warm_start_loader(self, load: Callable[[Path], Any]) -> None:
        """A function that reads weights from a file: a state dict, or a `WarmStartResult`."""
        self._warm_start = load

    # ------------------------------------------------------------ training

    def fit(
        self,
        train_loaders: Any,
        val_loaders: Any = None,
        max_epochs: int | None = None,
        resume_from_checkpoint: str | Path | None = None,
    ) -> None:
        """Train to the end, going on from the newest complete checkpoint where there is one.

        `resume_from_checkpoint`: weights to begin with, where there is none; with
        `preemption.resume_from_latest_symlink` off, the checkpoint to go on from ("latest", or a path).

        Raises:
            SetupError (a ValueError): there is no training step, or no loader.
            Preempted: a signal or the time limit said to leave; a checkpoint is on disk.
            TrainerError: training cannot go on.
            CheckpointError: there are checkpoints, and none can be used.
        """
        with self._signals:
            try:
                self._prepare(train_loaders, val_loaders, max_epochs, resume_from_checkpoint)
                if self._nothing_left():
                    self._phases.advance(P.TRAINING_COMPLETE)
                    _log.info("this training is complete: %s steps", self.at.global_step)
                else:
                    self._start()
                    self._train_epochs()
                    self._complete()
            except BaseException as error:
                again = isinstance(error, (Preempted, PreemptionTimeoutError, KeyboardInterrupt))
                self._advance_if_running(P.ERROR_RECOVERABLE if again else P.ERROR_FATAL)
                try:
                    self._close("left" if again else "failed")
                except CheckpointError as other:
                    # What ended the training is what is to be told.
                    _log.error("%s", other)
                raise
            self._close("finished")

    def _close(self, ended: Ended) -> None:
        try:
            self._keeper.close()
        finally:
            self.logger.close(ended)

    def configure_loaders(self, train_loaders: Any, val_loaders: Any = None) -> None:
        """The loaders that `fit_configured` uses."""
        self._configured = train_loaders, val_loaders

    def fit_configured(self) -> None:
        """`fit` on the loaders of `configure_loaders`, for as long as the config says."""
        train_loaders, val_loaders = self._configured
        self.fit(train_loaders, val_loaders)

    def _train_epochs(self) -> None:
        """Also where training is over but for the end of its last epoch."""
        while True:
            self._train_epoch()
            if self.at.batches_done:
                self._end_epoch()
            if self._finished():
                return

    def _train_epoch(self) -> None:
        """The rest of an epoch: each batch from its loading to the step of the optimizer."""
        at, phase, hooks = self.at, self._phases.advance, self.hook_manager
        if at.validation_due:
            self._validate()
        if at.batches_done or (self._finished() and not self._epoch_is_over()):
            return
        if at.epoch_batches == 0 and P.TRAIN_START_EPOCH in self._phases.follows():
            phase(P.TRAIN_START_EPOCH)
            hooks.call("on_epoch_start", self, at.epoch)
        asked = time.perf_counter()
        for size, window in self._windows():
            self._within_step, used = True, set()
            for number, batch in enumerate(window, 1):
                phase(P.TRAIN_BATCH_LOAD)
                if number == 1:
                    self._seconds["load"] += time.perf_counter() - asked
                data = self._engine.to_device(batch.data)
                hooks.call("on_train_batch_start", self, data, batch.number, batch.name)
                with self._engine.without_sync(skip=number < size):
                    outputs = self._forward(data, batch)
                    self._backward(outputs.get("loss"), batch, size)
                used.add(batch.loader)
                values = scalars(outputs, self._engine.on_cpu)
                self.metrics.add_train_batch(batch.name, values, samples_of(batch.data, outputs))
                self._losses.append(values["loss"])
                at.epoch_batches += 1
                stepped = number == size and self._healthy()
                if stepped:
                    self._step(used)
                phase(P.TRAIN_BATCH_END)
                hooks.call("on_train_batch_end", self, data, batch.number, batch.name, values)
                if self._signals.pending:
                    self._leave_in_time()
            self._within_step = False
            self._seconds["step"] += time.perf_counter() - asked
            self._between_steps(stepped)
            if self._finished() and not self._epoch_is_over():
                return
            asked = time.perf_counter()
        self._end_batches()

    def _windows(self) -> Iterator[tuple[int, Iterable[Batch]]]:
        """The batches of each optimizer step, and how many they are; at the end of an epoch what is left."""
        assert self._train is not None
        size = self.config.performance.gradient_accumulation_steps
        batches = self._train.epoch(self.at.epoch)
        if size == 1:
            for batch in batches:
                yield 1, (batch,)
            return
        while (left := self._train.length() - self.at.epoch_batches) > 0:
            yield min(size, left), islice(batches, min(size, left))

    def _forward(self, data: Any, batch: Batch) -> Mapping[str, Any]:
        assert self._training_step is not None
        self._phases.advance(P.TRAIN_BATCH_FORWARD)
        hooks = self.hook_manager
        hooks.call("on_before_forward", self)
        started = time.perf_counter()
        with self._engine.autocast():
            outputs = self._training_step(self, data, batch.number, batch.loader, batch.name)
        if hooks.wants("on_after_forward"):
            hooks.call("on_after_forward", self, 1000 * (time.perf_counter() - started))
        return outputs if type(outputs) is dict or isinstance(outputs, Mapping) else {"loss": outputs}

    def _backward(self, loss: Any, batch: Batch, size: int) -> None:
        if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
            raise TrainerError(
                f"the loss of a batch of `{batch.name}` cannot be minimised: {_shown(loss)}",
                where="training step",
                hint="return {'loss': loss} with one number that was computed from the model's parameters",
            )
        if self.config.loss_weights_per_loader is not None:
            loss = loss * self.config.loss_weights_per_loader[batch.loader]
        self._phases.advance(P.TRAIN_BATCH_BACKWARD)
        self.hook_manager.call("on_before_backward", self, loss)
        self._engine.backward(loss if size == 1 else loss / size)
        self.hook_manager.call("on_after_backward", self)

    def _step(self, loaders: set[int]) -> None:
        """Clip and step the optimizers whose loaders took part, then their schedulers."""
        hooks, of_loader, limit = self.hook_manager, self.config.per_loader_optimizer_id, self._max_norm
        used = sorted({of_loader[each] for each in loaders}) if of_loader else range(len(self.optimizers))
        self._phases.advance(P.TRAIN_BATCH_OPTIM_STEP)
        for number in used:
            hooks.call("on_before_optimizer_step", self, number)
            if limit is not None:
                norm = self._engine.clip(number, limit)
                self._norms["grad_norm" if number == 0 else f"grad_norm_{number}"] = norm
                if hooks.wants("on_gradient_clip"):
                    hooks.call("on_gradient_clip", self, float(norm))
            self.optimizers[number].step()
            hooks.call("on_after_optimizer_step", self, number)
        self._clear_gradients()
        self.at.global_step += 1
        self._phases.advance(P.SCHEDULER_BATCH_STEP)
        for each, owner in zip(self._scheduled, self._owners, strict=True):
            if each.interval == "step" and (owner is None or owner in used):
                each.scheduler.step()

    def _healthy(self) -> bool:
        """Whether the losses of a window are numbers; else what the config says has been done.

        Where training ends at such a loss, and to look would make a device or other ranks wait, that is put
        off until ranks talk (`_watch`) or a checkpoint is cut, whichever comes first.
        """
        losses, self._losses = self._losses, []
        bad: Any
        if self._engine.on_cpu:
            bad = not all(map(math.isfinite, losses))
        else:
            bad = ~torch.isfinite(torch.stack([each.float().reshape(()) for each in losses])).all()
        limits = self.config.fault_tolerance
        if limits.nonfinite_loss == "stop":
            self._nonfinite = bad | self._nonfinite
            if self._engine.on_cpu and self._engine.world_size == 1 and bad:
                raise self._nonfinite_error()
            return True
        if not self._engine.highest([float(bad)])[0]:
            self.at.nonfinite = 0
            return True
        self.at.nonfinite += 1
        self._clear_gradients()
        self.metrics.take_back(len(losses))
        if self.at.nonfinite > limits.max_nonfinite:
            raise self._nonfinite_error(f"for the {self.at.nonfinite}th time in a row")
        self._phases.advance(P.ERROR_RECOVERABLE)
        if limits.nonfinite_loss == "rollback":
            self._roll_back()
        _log.warning("loss nan or infinite behind step %s: %s", self.at.global_step, limits.nonfinite_loss)
        return False

    def _leave_in_time(self) -> None:
        """Give a window up that takes too long after a signal; it is repeated from the last checkpoint."""
        limit = self.config.preemption.max_checkpoint_sec
        if self._signals.seconds_since > limit:
            what = (
                f"told to leave {self._signals.seconds_since:.0f} s ago, and the optimizer step is not done"
            )
            hint = "raise preemption.max_checkpoint_sec, or accumulate fewer gradients"
            raise PreemptionTimeoutError(what, hint=hint)

    # ------------------------------------------------------------ the end

    def _unvalidated(self) -> bool:
        """Whether training has ended within an epoch, with weights that were not validated."""
        ended = self._phases.boundary is P.TRAIN_BATCH_END and self._validation is not None
        return ended and self.at.validated_at != self.at.global_step

    def _nothing_left(self) -> bool:
        """Whether it was complete when it was left: not behind its last step, before what comes then."""
        at = self.at
        open_end = at.validation_due or at.batches_done or self._epoch_is_over() or self._unvalidated()
        return self._finished() and not open_end

    def _complete(self) -> None:
        """A last validation where training ended within an epoch, a last checkpoint, and hooks."""
        if self._unvalidated():
            self.at.validation_due = True
            self._validate()
        self._save("final")
        self._phases.advance(P.TRAINING_COMPLETE)
        self.hook_manager.call("on_train_end", self)


def _owner(scheduler: Any, optimizers: Sequence[Any]) -> int | None:
    """The number of the optimizer whose learning rate a scheduler changes; None where it does not say."""
    own = getattr(scheduler, "optimizer", None)
    bare = [getattr(each, "optimizer", each) if hasattr(each, "_strategy") else each for each in optimizers]
    for number, (outer, inner) in enumerate(zip(optimizers, bare, strict=True)):
        if own is outer or own is inner:
            return number
    return None


def _shown(loss: Any) -> str:
    if not isinstance(loss, Tensor):
        return f"it is {loss!r:.60}, no tensor"
    if loss.numel() != 1:
        return f"it has {loss.numel()} numbers"
    return "it depends on no parameter (requires_grad is False)"
