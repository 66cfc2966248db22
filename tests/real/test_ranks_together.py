"""What one process meets, all of them know of: none waits for one that has left."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sharded_saving import together
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.errors import CheckpointError
from oellm_autoexp.trainer import CheckpointConfig, GenericTrainer, GenericTrainerConfig


class FullDisk(Disk):
    """Has no room."""

    def append(self, fd: int, data: memoryview, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def trainer(root: Path, schedulers: Any = lambda _: [], **config: Any) -> GenericTrainer:
    torch.manual_seed(5)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = GenericTrainer(
        GenericTrainerConfig(seed=3, checkpoint=CheckpointConfig(root_dir=str(root)), **config),
        *(model, optimizer, schedulers(optimizer)),
    )
    made.set_training_step(lambda t, batch, *_: {"loss": nn.functional.mse_loss(t.model(batch[0]), batch[1])})
    return made


def data() -> Any:
    draws = torch.Generator().manual_seed(1)
    tensors = TensorDataset(torch.randn(8, 4, generator=draws), torch.randn(8, 1, generator=draws))
    return DataLoader(tensors, batch_size=2)


def write_into_a_file(_rank: int, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        trainer(root / "file").fit(data())
    return str(caught.value)


def fill_the_disk(rank: int, root: Path) -> str:
    made = trainer(root)
    if rank == 0:
        made._keeper._saver._disk = FullDisk()
    with pytest.raises(CheckpointError) as caught:
        made.fit(data(), max_epochs=3)
    return str(caught.value)


def test_what_rank_0_cannot_write_ends_all(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("")
    for said in together(write_into_a_file, tmp_path / "root"):
        assert "cannot be written" in said
    for said in together(fill_the_disk, tmp_path / "root"):
        assert "No space left" in said


def step_by_own_losses(rank: int, root: Path) -> tuple[float, list[float]]:
    """The loss of rank 0 falls, that of rank 1 does not; on the average it rises."""

    def plateau(optimizer: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"scheduler": scheduler, "monitor": "train/loss"}

    made = trainer(root, plateau)
    made.set_training_step(
        lambda t, batch, *_: {
            "loss": t.model(batch[0]).sum() * 0 + (5.0 * t.at.epoch if rank else -1.0 * t.at.epoch)
        }
    )
    made.fit(data(), max_epochs=3)
    return made.optimizers[0].param_groups[0]["lr"], [
        float(each) for each in made.metrics._best["train/loss"]
    ]


def test_schedulers_look_at_the_figures_of_all(tmp_path: Path) -> None:
    assert together(step_by_own_losses, tmp_path) == [(0.025, [0.0, 4.0])] * 2
