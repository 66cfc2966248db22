"""What a step costs above a loop by hand: by the trainer alone, with Fabric, and by Lightning's Trainer.

    python benchmarks/trainer.py [STEPS] [ROUNDS]

A small network (16-32-1, batches of 32, Adam, gradients clipped to 1) on one thread, so that what is measured
is what the loop adds. Batches are there already: reading is no part of it. The loop by hand asks for each
loss, as the others do. Every loop runs in each round, one behind the other, since the speed of a machine
drifts: the medians are told, and those of what each loop takes more than a loop by hand in the same round.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric import Fabric
from table import Table
from torch import nn

from oellm_autoexp.trainer import (
    CheckpointConfig,
    GenericTrainer,
    GenericTrainerConfig,
    LoggingConfig,
)

Batch = tuple[torch.Tensor, torch.Tensor]


class Loader:
    """What gives its batches, and costs nothing."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def by_hand(batches: list[Batch], fabric: Fabric | None) -> float:
    model, optimizer = network()
    if fabric is not None:
        model, optimizer = fabric.setup(model, optimizer)
    total = 0.0
    begin = time.process_time()
    for inputs, wanted in batches:
        loss = nn.functional.mse_loss(model(inputs), wanted)
        if fabric is None:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return time.process_time() - begin


def by_trainer(batches: list[Batch], fabric: Fabric | None) -> float:
    """With everything on that is on by itself: it could be killed anywhere, and would go on."""
    model, optimizer = network()
    with tempfile.TemporaryDirectory() as directory:
        config = GenericTrainerConfig(
            checkpoint=CheckpointConfig(root_dir=directory, save_every_n_epochs=None),
            logging=LoggingConfig(),
        )
        trainer = GenericTrainer(config, model, [optimizer], fabric=fabric)

        def step(trainer: Any, batch: Batch, *_: Any) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.mse_loss(trainer.model(batch[0]), batch[1])}

        class Clock:
            begin = end = 0.0

        trainer.set_training_step(step)
        trainer._complete = lambda: setattr(Clock, "end", time.process_time())  # type: ignore[method-assign]
        started = trainer._start
        trainer._start = lambda: (started(), setattr(Clock, "begin", time.process_time()))  # type: ignore
        trainer.fit([Loader(batches)], max_epochs=1)
        return Clock.end - Clock.begin


def by_lightning(batches: list[Batch]) -> float:
    """With its progress bar, logger and checkpoints off."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.adam = network()

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.adam

        def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
            outputs["loss"].item()

        def on_train_start(self) -> None:
            self.begin = time.process_time()

        def on_train_end(self) -> None:
            self.end = time.process_time()

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Loader(batches))
    return module.end - module.begin


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    fabric = Fabric(accelerator="cpu", devices=1)
    draws = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(32, 16, generator=draws), torch.randn(32, 1, generator=draws)) for _ in range(steps)
    ]
    loops: dict[str, Callable[[], float]] = {
        "reference: a loop by hand": lambda: by_hand(batches, None),
        "GenericTrainer": lambda: by_trainer(batches, None),
        "a loop by hand with Fabric": lambda: by_hand(batches, fabric),
        "GenericTrainer with Fabric": lambda: by_trainer(batches, fabric),
        "Lightning's Trainer": lambda: by_lightning(batches),
    }
    taken: dict[str, list[float]] = {name: [] for name in loops}
    quiet = Path(os.devnull).open("w")  # noqa: SIM115 - for the whole run
    for _ in range(rounds):
        for name, loop in loops.items():
            spoken, sys.stdout = sys.stdout, quiet
            try:
                taken[name].append(1e6 * loop() / steps)
            finally:
                sys.stdout = spoken
    table = Table("loop", "us a step", "above by hand", "ratio", left=(30,))
    floor = taken["reference: a loop by hand"]
    for name, each in taken.items():
        more = median(one - bare for one, bare in zip(each, floor, strict=True))
        table.row(name, f"{median(each):.0f}", f"{more:+.0f}", f"{1 + more / median(floor):.2f}")
    fabric_alone, ours = taken["a loop by hand with Fabric"], taken["GenericTrainer with Fabric"]
    beyond = median(one - bare for one, bare in zip(ours, fabric_alone, strict=True))
    print(f"\n{steps} steps, medians of {rounds} rounds; beyond Fabric's own: {beyond:+.0f} us a step")


if __name__ == "__main__":
    main()
