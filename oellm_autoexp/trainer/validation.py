"""Validation: every batch of the validation loaders, without a trace in what training depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oellm_autoexp.core.experiment import ValidationAggregation
from oellm_autoexp.trainer import rng
from oellm_autoexp.trainer.agreement import Wishes
from oellm_autoexp.trainer.config import GenericTrainerConfig
from oellm_autoexp.trainer.loaders import LoaderSet
from oellm_autoexp.trainer.metrics import AggregationStrategy, Tally, samples_of, scalars
from oellm_autoexp.trainer.phases import TrainerPhase as P

if TYPE_CHECKING:
    from oellm_autoexp.trainer.boundaries import Boundaries

_MEAN = AggregationStrategy.WEIGHTED_AVERAGE

#: `fn(trainer, batch, batch_idx, dataloader_idx, dataloader_name)` gives the loss, or a mapping with `loss`.
Step = Callable[[Any, Any, int, int, str], "Tensor | Mapping[str, Any]"]
#: From loader → name → figure to name → figure.
Aggregate = Callable[[Mapping[str, Mapping[str, float]]], Mapping[str, float]]


class Validation:
    """The validation loaders of a training.

    `even`: all ranks have as many batches, so that they can talk between them and leave in the middle.
    """

    def __init__(self, loaders: LoaderSet, step: Step, *, even: bool) -> None:
        self.loaders = loaders
        self._step = step
        self._even = even

    def run(self, trainer: Boundaries) -> tuple[Wishes | None, Tally | None]:
        """What all batches report; or, where ranks are told to leave meanwhile, what they were told."""
        hooks, phase, engine = trainer.hook_manager, trainer._phases.advance, trainer._engine
        phase(P.VAL_START_EPOCH)
        hooks.call("on_validation_start", trainer, trainer.at.epoch)
        tally = Tally()
        self.loaders.rewind()
        with rng.untouched(), torch.no_grad(), _evaluating(trainer.model):
            for batch in self.loaders.epoch(0):
                phase(P.VAL_BATCH_LOAD)
                data = engine.to_device(batch.data)
                hooks.call("on_validation_batch_start", trainer, data, batch.number, batch.name)
                phase(P.VAL_BATCH_FORWARD)
                with engine.autocast():
                    outputs = self._step(trainer, data, batch.number, batch.loader, batch.name)
                if isinstance(outputs, Tensor):
                    outputs = {"loss": outputs}
                values = scalars(outputs, engine.on_cpu)
                tally.add(batch.name, values, samples_of(batch.data, outputs))
                phase(P.VAL_BATCH_END)
                hooks.call("on_validation_batch_end", trainer, data, batch.number, batch.name, values)
                if self._even and (told := trainer._heard()) is not None and (told.signum or told.leave):
                    return told, None
        return None, tally

    def figures(
        self, tally: Tally, config: GenericTrainerConfig, aggregate: Aggregate | None
    ) -> dict[str, float]:
        """The figures under the names that are logged."""
        validation = config.validation
        loaders = tally.by_loader(_MEAN)
        overall: Mapping[str, float]
        if validation.aggregation is ValidationAggregation.CUSTOM:
            assert aggregate is not None
            overall = aggregate(loaders)
        elif validation.aggregation is ValidationAggregation.PRIMARY_METRIC_PER_LOADER:
            overall = loaders.get(self.loaders.names[0], {})
        elif validation.aggregation is ValidationAggregation.MACRO_AVG_EQUAL_LOADERS:
            overall = _macro(loaders)
        else:
            overall = tally.overall(_MEAN)
        found: dict[str, float] = {}
        if validation.global_metrics:
            found.update({f"val/{name}": value for name, value in overall.items()})
        if validation.per_loader_metrics:
            for loader, values in loaders.items():
                found.update({f"val/dl_{loader}/{name}": value for name, value in values.items()})
        return found


def _macro(loaders: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each loader counts the same, whatever its size."""
    found: dict[str, list[float]] = {}
    for values in loaders.values():
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model evaluates; then each of its parts is in the mode in which it was."""
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
