"""The hooks that come along, and those that a config names by dotted path."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal

from oellm_autoexp.errors import SetupError
from oellm_autoexp.trainer.config import GenericTrainerConfig
from oellm_autoexp.trainer.hooks import TrainerHooks
from oellm_autoexp.trainer.stepping import EarlyStopping, metric

_log = logging.getLogger("oellm_autoexp.trainer")


class LoggingHook(TrainerHooks):
    """Says in the log of the program where a training is."""

    def on_train_start(self, trainer: Any) -> None:
        _log.info("training begins at epoch %s, step %s", trainer.at.epoch, trainer.at.global_step)

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items() if "/dl_" not in name)
        _log.info("epoch %s ends at step %s: %s", epoch, trainer.at.global_step, shown)

    def on_train_end(self, trainer: Any) -> None:
        _log.info("training ends at step %s: %s", trainer.at.global_step, trainer.at.finished or "complete")


class GradientMonitorHook(TrainerHooks):
    """Logs the norm of the gradient of each parameter, every so many optimizer steps."""

    def __init__(self, every_n_steps: int = 100) -> None:
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        if optimizer_idx == 0 and (trainer.at.global_step + 1) % self.every_n_steps == 0:
            from oellm_autoexp.trainer.engine import whole

            norms = {
                f"gradients/{name}": float(whole(parameter.grad.norm()))
                for name, parameter in trainer.module.named_parameters()
                if parameter.grad is not None
            }
            trainer.logger.log_metrics(norms, trainer.at.global_step + 1)


class ModelCheckpointHook(TrainerHooks):
    """Saves a checkpoint whenever a validation metric is better than ever."""

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None

    def on_validation_end(self, trainer: Any, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        value = metric(metrics, self.monitor)
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]


class EarlyStoppingHook(TrainerHooks):
    """Ends a training whose validation metric has not become better for a while."""

    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 10,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 1e-4,
    ) -> None:
        self._stopping = EarlyStopping(patience, monitor, mode, min_delta)

    def on_validation_end(self, trainer: Any, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        if trainer.config.validation.early_stopping_source != "legacy" and self._stopping.look(metrics):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return self._stopping.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stopping.load_state_dict(state)


def configured(config: GenericTrainerConfig) -> Iterator[TrainerHooks]:
    """The hooks of a config: those of the user first.

    Raises:
        SetupError: one that cannot be found or made.
    """
    hooks = config.hooks
    switches = {
        LoggingHook: hooks.enable_logging_hook,
        GradientMonitorHook: hooks.enable_gradient_monitor,
        EarlyStoppingHook: hooks.enable_early_stopping_hook,
        # The last one: what it saves has the states of those before it.
        ModelCheckpointHook: hooks.enable_model_checkpoint_hook,
    }
    classes = [found(path, "hooks.hook_classes") for path in hooks.hook_classes]
    classes += [kind for kind, on in switches.items() if on]
    unknown = set(hooks.hook_configs) - {getattr(kind, "__name__", "") for kind in classes}
    if unknown:
        what = f"has arguments for {', '.join(sorted(unknown))}, which is no hook of this training"
        raise SetupError(what, where="hooks.hook_configs", hint="name it in hooks.hook_classes, or enable it")
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, TrainerHooks)):
            raise SetupError(f"{kind!r:.60} is no class of TrainerHooks", where="hooks.hook_classes")
        try:
            yield kind(**hooks.hook_configs.get(kind.__name__, {}))
        except TypeError as error:
            raise SetupError(str(error), where=f"hooks.hook_configs.{kind.__name__}") from None


def found(path: str, where: str) -> Any:
    """What a dotted path (`package.module.name`) leads to.

    Raises:
        SetupError: nothing.
    """
    if not isinstance(path, str):
        raise SetupError(f"must be a dotted path, got {path!r:.60}", where=where)
    module, dot, name = path.rpartition(".")
    try:
        if not dot:
            raise ImportError("a dotted path is `package.module.name`")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = "is its package installed, or its directory on PYTHONPATH?"
        raise SetupError(f"`{path}` cannot be found: {error}", where=where, hint=hint) from None
