"""What changes with steps beside the weights: learning rates, and the patience with a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim.lr_scheduler import ReduceLROnPlateau

from oellm_autoexp.errors import SetupError, TrainerError, did_you_mean

Interval = Literal["step", "epoch"]


@dataclass(frozen=True)
class Scheduled:
    """A scheduler, when it steps, and the metric that it looks at (epochs only)."""

    scheduler: Any
    interval: Interval
    monitor: str | None = None


def scheduled(given: Any, interval: Interval) -> Scheduled:
    """A scheduler as it may be given: bare, as (scheduler, "step" or "epoch"), or as a mapping with the keys
    `scheduler`, `interval` and `monitor`. One that looks at a metric steps with epochs, by `val/loss`.

    Raises:
        SetupError: an interval that is neither.
    """
    monitor = None
    if isinstance(given, Scheduled):
        return given
    if isinstance(given, Mapping):
        interval, monitor = given.get("interval", interval), given.get("monitor")
        given = given["scheduler"]
    elif isinstance(given, tuple):
        given, interval = given
    if interval not in ("step", "epoch"):
        raise SetupError(f"the interval of a scheduler must be step or epoch, got {interval!r}")
    if isinstance(given, ReduceLROnPlateau):
        return Scheduled(given, "epoch", monitor or "val/loss")
    return Scheduled(given, interval, monitor)


def metric(metrics: Mapping[str, float], name: str) -> float:
    """A metric by its name; `val_loss` means `val/loss`.

    Raises:
        TrainerError: there is none of that name.
    """
    for spelling in (name, name.replace("_", "/", 1)):
        if spelling in metrics:
            return metrics[spelling]
    what = f"no metric is called {name!r}"
    raise TrainerError(what, hint=did_you_mean(name.replace("_", "/", 1), metrics))


class EarlyStopping:
    """Ends a training whose metric has not become better for `patience` looks in a row."""

    def __init__(
        self, patience: int, name: str, mode: Literal["min", "max"] = "min", min_delta: float = 0.0
    ) -> None:
        self.patience, self.name, self.mode, self.min_delta = patience, name, mode, min_delta
        self.best = math.inf
        self.waited = 0

    def look(self, metrics: Mapping[str, float]) -> str:
        """Why training ends here; "" when it does not.

        Raises:
            TrainerError: the metric is not there.
        """
        value = metric(metrics, self.name) * (1 if self.mode == "min" else -1)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return ""
        self.waited += 1
        if self.waited < self.patience:
            return ""
        best = self.best if self.mode == "min" else -self.best
        return f"{self.name} has not been better than {best:.6g} for {self.waited} validations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def learning_rates(optimizers: Sequence[Any]) -> dict[str, float]:
    """`lr` of the first group of the first optimizer; of others by number."""
    return {
        "lr" if number == 0 else f"lr_{number}": float(optimizer.param_groups[0]["lr"])
        for number, optimizer in enumerate(optimizers)
    }
