"""What happens between two optimizer steps, where nothing is half done: validation, checkpoints, leaving."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

from torch import nn

from oellm_autoexp.checkpoints.record import Kind
from oellm_autoexp.core.experiment import ValidationFrequency
from oellm_autoexp.errors import NonFiniteLossError, TrainerError
from oellm_autoexp.trainer import requeue, state
from oellm_autoexp.trainer.agreement import Agreement, Wishes
from oellm_autoexp.trainer.config import GenericTrainerConfig
from oellm_autoexp.trainer.engine import Engine
from oellm_autoexp.trainer.hooks import HookManager
from oellm_autoexp.trainer.keeping import Keeper
from oellm_autoexp.trainer.loaders import LoaderSet
from oellm_autoexp.trainer.loggers import Logger
from oellm_autoexp.trainer.metrics import MetricsManager, Tally
from oellm_autoexp.trainer.phases import BOUNDARIES, PhaseMachine
from oellm_autoexp.trainer.phases import TrainerPhase as P
from oellm_autoexp.trainer.signals import Preempted, SignalWatch
from oellm_autoexp.trainer.stepping import EarlyStopping, Scheduled, learning_rates, metric
from oellm_autoexp.trainer.validation import Aggregate, Validation

_log = logging.getLogger("oellm_autoexp.trainer")


class Every(NamedTuple):
    """After how many optimizer steps something is done; 0: not by steps."""

    log: int
    validate: int


class Boundaries:
    """The half of `GenericTrainer` that acts between optimizer steps, and what both halves know."""

    #: What each step looks up: found faster than in a `__dict__` that was not used since the step before.
    __slots__ = (
        *("at", "config", "model", "optimizers", "hook_manager", "metrics", "should_stop"),
        *("_agreement", "_by_clock", "_engine", "_every", "_keeper", "_losses", "_max_norm", "_nonfinite"),
        *("_norms", "_owners", "_phases", "_scheduled", "_seconds", "_signals", "_training_step"),
        *("_within_step",),
    )
    config: GenericTrainerConfig
    at: state.Position
    metrics: MetricsManager
    logger: Logger
    hook_manager: HookManager
    model: nn.Module
    optimizers: list[Any]
    early_stopping: EarlyStopping | None
    #: A hook sets it to end the training at the next boundary.
    should_stop: bool
    _engine: Engine
    _keeper: Keeper
    _agreement: Agreement
    _phases: PhaseMachine
    _signals: SignalWatch
    _scheduled: list[Scheduled]
    _train: LoaderSet | None
    _validation: Validation | None
    _aggregation: Aggregate | None
    _pending: Mapping[str, Any] | None
    _seed: int | None
    _within_step: bool
    _saving: bool
    _nonfinite: Any
    _losses: list[Any]
    _norms: dict[str, Any]
    _seconds: dict[str, float]
    _every: Every
    _by_clock: bool
    _max_epochs: int

    @property
    def module(self) -> nn.Module:
        """The model as it was given, without what Fabric and the compiler put around it."""
        return self._engine.module

    @property
    def global_step(self) -> int:
        """How many optimizer steps there were."""
        return self.at.global_step

    @property
    def current_epoch(self) -> int:
        """The epoch, from 0."""
        return self.at.epoch

    @property
    def phase(self) -> P:
        """What the training is doing."""
        return self._phases.phase

    # ------------------------------------------------------------ steps and epochs

    @property
    def _validates_by_steps(self) -> bool:
        return self.config.validation.frequency is ValidationFrequency.EVERY_N_STEPS

    def _between_steps(self, stepped: bool) -> None:
        at, every = self.at, self._every
        if not stepped:
            self._watch()
            return
        if every.validate and at.global_step % every.validate == 0:
            at.validation_due = True
        if at.global_step % every.log == 0:
            self._log_interval()
        self._watch()
        if at.validation_due:
            self._validate()
        if self._keeper.due_at_step(at.global_step) and not self._epoch_is_over():
            self.save_checkpoint()

    def _finished(self) -> bool:
        at, most = self.at, self.config.max_steps
        return (
            bool(at.finished) or at.epoch >= self._max_epochs or (most is not None and at.global_step >= most)
        )

    def _epoch_is_over(self) -> bool:
        """The checkpoint of this step is cut at the end of the epoch, which is now."""
        return self._train is not None and self.at.epoch_batches >= self._train.length()

    def _end_batches(self) -> None:
        at = self.at
        self._phases.advance(P.SCHEDULER_EPOCH_STEP)
        for each in self._scheduled:
            if each.interval == "epoch" and each.monitor is None:
                each.scheduler.step()
        at.batches_done = True
        if self._validation is not None:
            often = self.config.validate_every_n_epochs
            by_epochs = not self._validates_by_steps and (at.epoch + 1) % often == 0
            at.validation_due = by_epochs or (self._finished() and at.validated_at != at.global_step)
        self._watch()

    def _end_epoch(self) -> None:
        at = self.at
        if at.validation_due:
            self._validate()
        self._phases.advance(P.EPOCH_END)
        looking = self.early_stopping is not None or any(each.monitor for each in self._scheduled)
        tally = self._over_ranks(self.metrics.end_epoch(), always=looking)
        logging_config = self.config.logging
        measured = at.val_metrics if at.val_fresh else {}
        figures = {**self.metrics.named(tally, "train"), **measured}
        metrics = {
            **self.metrics.named(
                tally,
                "train",
                per_loader=logging_config.log_per_loader_metrics,
                overall=logging_config.log_global_metrics,
            ),
            **measured,
        }
        self.metrics.note(metrics)
        for each in self._scheduled:
            if each.interval == "epoch" and each.monitor is not None and self._measured(each.monitor):
                each.scheduler.step(metric(figures, each.monitor))
        # Whatever a hook saves has all this behind it.
        if not self._validates_by_steps:
            self._look_for_end(figures)
        self.logger.log_epoch_summary(at.epoch, metrics, at.global_step)
        if logging_config.log_loader_proportions and self._train is not None and len(self._train.names) > 1:
            weights = self.config.train_loader_config.dataloader_weights
            self.logger.log_loader_proportions(
                at.epoch, self.metrics.proportions(tally, weights), at.global_step
            )
        self.hook_manager.call("on_epoch_end", self, at.epoch, metrics)
        self._heed_hooks()
        ended = at.epoch
        at.end_epoch()
        if self._keeper.due_at_epoch(ended) or self._keeper.due_at_step(at.global_step):
            self.save_checkpoint()
        self._watch()

    def _measured(self, name: str) -> bool:
        """Whether a metric was measured in this epoch; one of validation may not have been."""
        return self.at.val_fresh or self._validation is None or not name.startswith(("val/", "val_"))

    def _look_for_end(self, metrics: Mapping[str, float]) -> None:
        """Early stopping by the config; the metrics are those of all ranks, and so is what comes of them."""
        if self.early_stopping is not None and self._measured(self.early_stopping.name):
            self.at.finished = self.early_stopping.look(metrics) or self.at.finished

    def _heed_hooks(self) -> None:
        """All ranks end where a hook wants it on one."""
        if self._engine.highest([self.should_stop])[0]:
            self.at.finished = self.at.finished or "a hook has set should_stop"

    def _validate(self) -> None:
        """Validate; where ranks are told to leave meanwhile, it is done anew when training goes on."""
        assert self._validation is not None
        told, tally = self._validation.run(self)
        if told is not None:
            self._leave(told)
        assert tally is not None
        at = self.at
        metrics = self._validation.figures(
            self._over_ranks(tally, always=True), self.config, self._aggregation
        )
        at.validation_due, at.val_metrics, at.val_fresh = False, metrics, True
        at.validated_at = at.global_step
        self.metrics.note(metrics)
        by_steps = self._validates_by_steps and not at.batches_done
        if by_steps:
            self._look_for_end(metrics)
        self.logger.log_metrics(metrics, at.global_step)
        self.hook_manager.call("on_validation_end", self, at.epoch, metrics)
        if by_steps:
            self._heed_hooks()

    def _over_ranks(self, tally: Tally, *, always: bool = False) -> Tally:
        """The tally of all ranks, where it is asked for: decisions need the same figures everywhere."""
        if self._engine.world_size == 1 or not (always or self.config.logging.all_reduce_metrics):
            return tally
        return Tally.merged(self._engine.gathered(tally.state_dict()))

    def _log_interval(self) -> None:
        at, config = self.at, self.config
        tally = self._over_ranks(self.metrics.end_interval())
        metrics = self.metrics.named(
            tally,
            "train",
            per_loader=config.logging.log_per_loader_metrics and len(tally.batches) > 1,
            overall=config.logging.log_global_metrics,
        )
        metrics.update({f"train/{name}": rate for name, rate in learning_rates(self.optimizers).items()})
        metrics.update({f"train/{name}": float(norm) for name, norm in self._norms.items()})
        seconds, self._seconds = self._seconds, {"step": 0.0, "load": 0.0}
        if seconds["step"]:
            metrics["train/samples_per_second"] = sum(tally.samples.values()) / seconds["step"]
            if config.profile_training:
                metrics["train/load_seconds"] = seconds["load"] / self._every.log
                metrics["train/step_seconds"] = seconds["step"] / self._every.log
        self.logger.log_metrics(metrics, at.global_step)

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    # ------------------------------------------------------------ going back, and leaving

    def _roll_back(self) -> None:
        """Weights, optimizers and schedulers of the last checkpoint; batches and random numbers go on."""
        found = self._keeper.newest()
        if found is None:
            raise self._nonfinite_error("and there is no checkpoint to go back to")
        _, payload = found
        state.restore_weights(self, payload)
        # A step of the same number is another one now.
        self.at.global_step, self.at.validated_at = int(payload["global_step"]), -1

    def _nonfinite_error(self, more: str = "") -> NonFiniteLossError:
        self.logger.log_signal("non_finite_loss", self.at.global_step)
        what = f"loss nan or infinite behind step {self.at.global_step} {more}".rstrip()
        hint = "lower the learning rate, or set fault_tolerance.nonfinite_loss to skip or rollback"
        return NonFiniteLossError(what, hint=hint)

    def _heard(self) -> Wishes | None:
        """What any rank has to say, at the same steps on all of them; None where they do not talk now."""
        quiet = not (self._signals.pending or self.should_stop or self._by_clock)
        if (quiet and self._agreement.alone) or not self._agreement.due():
            return None
        return self._agreement.reached(
            Wishes(
                self._signals.pending,
                float(self._nonfinite),
                self._keeper.due_by_clock(),
                self._keeper.must_leave(),
                self.should_stop,
            )
        )

    def _watch(self) -> None:
        """Act on what ranks say."""
        told = self._heard()
        if told is None:
            return
        if told.nonfinite:
            raise self._nonfinite_error()
        if told.stop:
            self.at.finished = self.at.finished or "a hook has set should_stop"
        if told.signum or told.leave:
            self._leave(told)
        if told.save:
            self._keeper.save_at_next_step()

    def _leave(self, told: Wishes) -> None:
        """Save, and end with the exit code from which others see that the work is to be taken up again."""
        by_limit = not told.signum
        signum = int(told.signum) or int(getattr(Signals, self.config.preemption.signal))
        self.logger.log_signal("time_limit" if by_limit else "preempted", self.at.global_step)
        path = self.save_checkpoint(emergency=True)
        reason = "the time limit is near" if by_limit else f"{Signals(signum).name} came"
        reason = f"{reason}: training stopped behind step {self.at.global_step}, and goes on from {path}"
        _log.warning("%s", reason)
        if self._engine.rank == 0 and self.config.preemption.requeue_job:
            requeue.requeue()
        raise Preempted(signum, reason)

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(self, emergency: bool = False) -> Path:
        """Write a checkpoint; where it is, or will be when it was written in the background.

        Every rank has to call it. An emergency checkpoint is on disk when this returns.

        Raises:
            TrainerError: called within an optimizer step, where nothing could go on from.
            PreemptionTimeoutError, CheckpointTimeoutError: it took longer than the config allows.
            CheckpointError: it could not be written.
        """
        return self._save("emergency" if emergency else "regular")

    def save_emergency_checkpoint(self) -> Path:
        """`save_checkpoint(emergency=True)`, which is on disk when this returns.

        Where training ended within an optimizer step, there is nothing newer to save than what is there: then
        it is the checkpoint that is gone on from.
        """
        return self.save_checkpoint(emergency=True)

    def _save(self, kind: Kind) -> Path:
        if self._within_step:
            has_left = self.phase in (P.ERROR_RECOVERABLE, P.ERROR_FATAL)
            if kind == "emergency" and has_left and (latest := self._keeper.latest()) is not None:
                _log.warning("an optimizer step was given up: training goes on from %s", latest)
                return latest
            what = "a checkpoint was asked for within an optimizer step"
            raise TrainerError(what, hint="ask in on_validation_end, on_epoch_end, or outside of fit()")
        if self._saving:
            raise TrainerError(
                "a checkpoint was asked for while one is saved", hint="on_checkpoint_save is late"
            )
        if self._engine.highest([float(self._nonfinite)])[0]:
            raise self._nonfinite_error()
        phase = self._resumable_phase()
        self._advance_if_running(P.CHECKPOINT_SAVE_START)
        limit = self.config.preemption.max_checkpoint_sec - self._signals.seconds_since
        at = self.at
        if phase is P.EPOCH_END and at.batches_done:
            # A hook asks for it at the end of an epoch, which is not to be ended once more.
            self.at = replace(at)
            self.at.end_epoch()
        self._saving = True
        try:
            path = self._keeper.save(self, kind, phase, limit)
            self.hook_manager.call("on_checkpoint_save", self, path)
        finally:
            self.at, self._saving = at, False
        self._advance_if_running(P.CHECKPOINT_SAVE_END)
        return path

    def _resumable_phase(self) -> P:
        """The phase that whoever reads the checkpoint goes on in; a validation is done from its beginning."""
        if self.at.validation_due:
            return P.SCHEDULER_EPOCH_STEP if self.at.batches_done else P.TRAIN_BATCH_END
        return next((each for each in reversed(self._phases.history) if each in BOUNDARIES), P.INIT)

    def _advance_if_running(self, phase: P) -> None:
        """Outside of `fit`, checkpoints are no phase of the training."""
        if phase in self._phases.follows():
            self._phases.advance(phase)

    def load_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Put everything back as a checkpoint has it; `fit` goes on from there, whatever else is on disk.

        Raises:
            CheckpointError: it cannot be read, or is damaged.
            TrainerError: it belongs to another model or another set-up.
        """
        path = Path(checkpoint_path)
        self._take(path, self._keeper.load(path))

    def _take(self, path: Path, payload: Mapping[str, Any]) -> None:
        state.restore(self, payload)
        changed = state.changed(payload, self.config.to_dict())
        if changed and self._engine.rank == 0:
            _log.warning("%s was made with other values of %s", path.name, ", ".join(changed[:10]))
        self.hook_manager.call("on_checkpoint_load", self, path)
