"""A model that is spread over processes trains as a whole one does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sharded_saving import together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from oellm_autoexp.errors import TrainerError
from oellm_autoexp.trainer import (
    CheckpointConfig,
    FaultToleranceConfig,
    GenericTrainer,
    GenericTrainerConfig,
    HooksConfig,
    PerformanceConfig,
    launching,
)
from oellm_autoexp.trainer.loggers import Logger


def model(spread: str) -> Any:
    torch.manual_seed(5)
    made = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    if spread == "ddp":
        return nn.parallel.DistributedDataParallel(made)
    if spread == "fsdp":
        fully_shard(made[0])
        fully_shard(made)
    return made


def trained(
    root: Path,
    spread: str,
    warm: str | None = None,
    bad: int | None = None,
    logger: Logger | None = None,
    **config: Any,
) -> Any:
    """A trainer behind two epochs of six batches a rank; `bad`: the batch behind which two have no loss."""
    made = model(spread)
    trainer = GenericTrainer(
        GenericTrainerConfig(
            experiment_name=spread or "whole",
            seed=3,
            checkpoint=CheckpointConfig(root_dir=str(root), save_every_n_epochs=None, save_every_n_steps=2),
            performance=PerformanceConfig(gradient_accumulation_steps=2, clip_grad_norm=0.5),
            **config,
        ),
        made,
        torch.optim.AdamW(made.parameters(), lr=0.05),
    )
    seen = 0

    def step(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        nonlocal seen
        seen += 1
        loss = nn.functional.mse_loss(trainer.model(batch[0]), batch[1])
        return {"loss": loss * (math.nan if bad is not None and bad < seen <= bad + 2 else 1.0)}

    trainer.set_training_step(step)
    if logger is not None:
        trainer._made_logger = lambda: logger  # type: ignore[method-assign]
    draws = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(24, 4, generator=draws), torch.randn(24, 1, generator=draws))
    trainer.fit(DataLoader(data, batch_size=2, shuffle=True), max_epochs=2, resume_from_checkpoint=warm)
    return trainer


def whole(trainer: Any) -> list[list[float]]:
    weights = trainer.module.state_dict().values()
    return [getattr(each, "full_tensor", lambda each=each: each)().flatten().tolist() for each in weights]


def weights_of_both(_rank: int, root: Path) -> tuple[list[list[float]], list[list[float]]]:
    return whole(trained(root, "ddp")), whole(trained(root, "fsdp"))


def test_gradients_that_are_gathered_over_two_batches_are_those_of_ddp(tmp_path: Path) -> None:
    for ddp, fsdp in together(weights_of_both, tmp_path / "root"):
        assert [pytest.approx(each, rel=1e-4, abs=1e-5) for each in ddp] == fsdp


def gradients_of_both(_rank: int, root: Path) -> list[dict[str, float]]:
    """Of the second optimizer step, as the hook that comes along logs them."""

    class Gradients(Logger):
        def __init__(self) -> None:
            self.seen: dict[str, float] = {}

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.seen.update({name: metrics[name] for name in metrics if name.startswith("gradients/")})

    found = []
    for spread in ("ddp", "fsdp"):
        logger = Gradients()
        monitor = HooksConfig(
            enable_gradient_monitor=True, hook_configs={"GradientMonitorHook": {"every_n_steps": 2}}
        )
        trained(root, spread, logger=logger, max_steps=2, hooks=monitor)
        found.append(logger.seen)
    return found


def test_gradients_are_logged_whole(tmp_path: Path) -> None:
    for ddp, fsdp in together(gradients_of_both, tmp_path / "root"):
        assert len(ddp) == 4
        assert fsdp == pytest.approx(ddp, rel=1e-4)


def roll_back(_rank: int, root: Path) -> tuple[int, bool]:
    trainer = trained(root, "fsdp", bad=6, fault_tolerance=FaultToleranceConfig(nonfinite_loss="rollback"))
    return trainer.global_step, all(math.isfinite(each) for one in whole(trainer) for each in one)


def test_a_loss_that_is_no_number_rolls_all_shards_back(tmp_path: Path) -> None:
    """Six optimizer steps, of which the fourth fails and takes the third with it."""
    assert together(roll_back, tmp_path / "root") == [(4, True)] * 2


def begin_with_whole_weights(rank: int, root: Path) -> list[bool]:
    """A file that one process wrote, of which each rank takes its part."""
    before = trained(root, "ddp", max_steps=2)
    path = str(root / "ddp" / "latest.ckpt")
    made = model("fsdp")
    after = GenericTrainer(
        GenericTrainerConfig(checkpoint=CheckpointConfig(root_dir=str(root / "other"))),
        made,
        torch.optim.SGD(made.parameters()),
    )
    after._begin_with_weights(Path(path))
    taken = GenericTrainer(
        GenericTrainerConfig(checkpoint=CheckpointConfig(root_dir=str(root / "third"))),
        made := model("fsdp"),
        torch.optim.AdamW(made.parameters()),
    )
    taken.load_checkpoint(path)
    moments = taken.optimizers[0].state_dict()["state"][0]["exp_avg"]
    theirs = before.optimizers[0].state_dict()["state"][0]["exp_avg"]
    return [whole(after) == whole(before), whole(taken) == whole(before), moments.full_tensor().equal(theirs)]


def test_whole_checkpoints_are_taken_by_shards(tmp_path: Path) -> None:
    assert together(begin_with_whole_weights, tmp_path / "root") == [[True] * 3] * 2


class Block(nn.Module):
    """With running figures, which each rank has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, inputs: Any) -> Any:
        return self.norm(self.line(inputs))


class Net(nn.Module):
    """Pairs of blocks, the last of which is there twice."""

    def __init__(self) -> None:
        super().__init__()
        last = Block()
        self.pairs = nn.ModuleList([nn.ModuleList([Block(), last]), nn.ModuleDict({"a": Block(), "b": last})])

    def forward(self, inputs: Any) -> Any:
        first, second = self.pairs
        for block in (*first, *second.values()):
            inputs = block(inputs)
        return inputs


def pairs_of_blocks(_rank: int, root: Path) -> bool:
    def trained_pairs(name: str, steps: int) -> tuple[list[list[float]], dict[str, float]]:
        torch.manual_seed(5)
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
        made = launching._shard(Net(), mesh)
        matrices = [each for each in made.parameters() if each.ndim == 2]
        checkpoint = CheckpointConfig(root_dir=str(root / name))
        config = GenericTrainerConfig(seed=3, max_steps=steps, checkpoint=checkpoint)
        trainer = GenericTrainer(config, made, torch.optim.Muon(matrices, lr=0.05))
        trainer.set_training_step(lambda t, batch, *_: t.model(batch[0]).square().mean())
        trainer.set_validation_step(lambda t, batch, *_: t.model(batch[0]).abs().mean())
        data = TensorDataset(torch.randn(16, 4, generator=torch.Generator().manual_seed(1)))
        trainer.fit(DataLoader(data, batch_size=2, shuffle=True), DataLoader(data, batch_size=4))
        return whole(trainer), trainer.at.val_metrics

    trained_pairs("left", 3)
    again, figures = trained_pairs("left", 6)
    uninterrupted, wanted = trained_pairs("whole", 6)
    return again == uninterrupted and figures == wanted


def optimizer_too_early(_rank: int, _root: Path) -> str:
    made = model("")
    optimizer = torch.optim.SGD(made.parameters())
    fully_shard(made)
    with pytest.raises(TrainerError) as caught:
        GenericTrainer(GenericTrainerConfig(), made, optimizer)
    return str(caught.value)


def test_what_ranks_have_for_themselves_is_there_again_and_lists_in_lists_are_sharded(tmp_path: Path) -> None:
    """Each block once, and no list, which has no forward of its own."""
    assert together(pairs_of_blocks, tmp_path / "root") == [True] * 2


def test_an_optimizer_of_what_was_there_before_is_refused(tmp_path: Path) -> None:
    for said in together(optimizer_too_early, tmp_path / "root"):
        assert "an optimizer was made before the model was sharded" in said


def test_fsdp1_is_refused() -> None:
    """PyTorch makes one on GPUs only."""
    name = type("FullyShardedDataParallel", (nn.Linear,), {})
    made = name(2, 2)
    with pytest.raises(TrainerError, match="fully_shard"):
        GenericTrainer(GenericTrainerConfig(), made, torch.optim.SGD(made.parameters()))
