"""Small trainings in forked children, killed at any call, beside ones that nobody disturbs.

Run as a program this is the warmed parent: it has torch loaded, and forks a child for each order it reads.
An order is a line of JSON: {"directory", "accumulation", "ranks", "spread" (of the model: "ddp", "fsdp", ""),
"scale" (of the data), "max_steps", "kill": [rank, call, signal] or null}.
The answer is a line, too: {"ends": [exit code or -signal of each rank], "calls": how many there were}.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SIGNALS = {"SIGUSR1": signal.SIGUSR1, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
EPOCHS = 2


# ---------------------------------------------------------------- the training, in a child


def training(
    directory: Path,
    accumulation: int,
    rank: int = 0,
    scale: int = 1,
    spread: str = "",
    max_steps: int | None = None,
) -> tuple[Any, list[Any], list[Any]]:
    """A trainer with dropout, a step scheduler and two shuffled loaders that take turns by weight."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from oellm_autoexp.trainer import (
        CheckpointConfig,
        GenericTrainer,
        GenericTrainerConfig,
        LoggingConfig,
        MultiDataLoaderConfig,
        PerformanceConfig,
        SamplingStrategy,
        TrainerHooks,
    )

    def loader(first: int, samples: int, shuffle: bool = True) -> Any:
        numbers = torch.arange(first, first + samples)
        draws = torch.Generator().manual_seed(first)
        data = TensorDataset(
            numbers, torch.randn(samples, 4, generator=draws), torch.randn(samples, 1, generator=draws)
        )
        return DataLoader(data, batch_size=2, shuffle=shuffle)

    class Trace(TrainerHooks):
        """What was seen and what came of it, a line for each batch, written at once."""

        def __init__(self) -> None:
            path = directory / f"trace-{rank}"
            self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def on_train_batch_end(
            self, trainer: Any, batch: Any, batch_idx: int, name: str, metrics: Any
        ) -> None:
            seen = [trainer.at.epoch, trainer.at.epoch_batches, name, batch_idx, batch[0].tolist()]
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            line = json.dumps([seen, trainer.at.global_step, float(metrics["loss"]).hex(), rates])
            os.write(self._file, f"{line}\n".encode())

    torch.manual_seed(5)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 1))
    if spread == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif spread == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
    config = GenericTrainerConfig(
        experiment_name="killed",
        seed=11,
        max_steps=max_steps,
        checkpoint=CheckpointConfig(root_dir=str(directory), save_every_n_steps=3),
        logging=LoggingConfig(log_scalars_every_n_steps=4),
        performance=PerformanceConfig(gradient_accumulation_steps=accumulation),
        train_loader_config=MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.WEIGHTED, dataloader_weights=(0.7, 0.3)
        ),
    )
    trainer = GenericTrainer(config, model, [optimizer], [scheduler])

    def step(trainer: Any, batch: Any, batch_idx: int, loader_idx: int, name: str) -> dict[str, Any]:
        _, inputs, wanted = batch
        return {"loss": nn.functional.mse_loss(trainer.model(inputs), wanted)}

    trainer.set_training_step(step)
    trainer.hook_manager.register_hook(Trace())
    return trainer, [loader(0, 14 * scale), loader(1000, 6 * scale)], [loader(2000, 4 * scale, shuffle=False)]


def final_state(trainer: Any) -> dict[str, str]:
    """What is left of a training, in digits that differ where one bit does."""

    def digest(value: Any) -> str:
        hashed = hashlib.sha256()

        def feed(each: Any) -> None:
            if isinstance(each, dict):
                for key in sorted(each, key=str):
                    hashed.update(str(key).encode())
                    feed(each[key])
            elif isinstance(each, (list, tuple)):
                for item in each:
                    feed(item)
            elif hasattr(each, "full_tensor"):
                feed(each.full_tensor())
            elif hasattr(each, "numpy"):
                hashed.update(each.detach().numpy().tobytes())
            else:
                hashed.update(repr(each).encode())

        feed(value)
        return hashed.hexdigest()

    from oellm_autoexp.trainer import rng

    return {
        "model": digest(trainer.module.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
        "rng": digest(rng.capture()),
        "metrics": digest(trainer.metrics.state_dict()),
        "validation": digest(trainer.at.val_metrics),
    }


def child(order: dict[str, Any], rank: int, report: int) -> int:
    """Train, and be killed by its own hand where the order says so; the exit code."""
    directory, ranks = Path(order["directory"]), order["ranks"]
    log = os.open(directory / f"log-{rank}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    calls = 0
    kill = order["kill"] if order["kill"] and order["kill"][0] == rank else None
    deadly = SIGNALS[kill[2]] if kill else None

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if kill and calls == kill[1]:
            os.kill(os.getpid(), deadly)

    if ranks > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{order['meeting']}", rank=rank, world_size=ranks)
    what = {key: order[key] for key in ("accumulation", "scale", "spread", "max_steps")}
    trainer, train, val = training(directory, rank=rank, **what)
    code = 0
    sys.setprofile(count)
    try:
        trainer.fit(train, val, max_epochs=EPOCHS)
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.setprofile(None)
    if not code:
        (directory / f"final-{rank}.json").write_text(json.dumps(final_state(trainer)))
    os.write(report, f"{calls}\n".encode())
    return code


# ---------------------------------------------------------------- the warmed parent


def serve() -> None:
    import torch
    import torch.distributed.fsdp

    from oellm_autoexp.trainer import GenericTrainer, saving  # noqa: F401 - loaded before forks

    torch.set_num_threads(1)
    # What torch loads at its first use is loaded before forks, too.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    for line in sys.stdin:
        order = json.loads(line)
        reading, report = os.pipe()
        children = []
        for rank in range(order["ranks"]):
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    code = child(order, rank, report)
                except BaseException:  # noqa: BLE001 - a child must not go on as its parent
                    import traceback

                    traceback.print_exc()
                    code = 98
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            children.append(pid)
        os.close(report)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        with os.fdopen(reading) as told:
            calls = [int(each) for each in told.read().split()]
        sys.stdout.write(json.dumps({"ends": ends, "calls": max(calls, default=0)}) + "\n")
        sys.stdout.flush()


class Parent:
    """The warmed parent, as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._meetings = 0

    def train(
        self,
        directory: Path,
        accumulation: int,
        *,
        ranks: int = 1,
        spread: str | None = None,
        scale: int | None = None,
        max_steps: int | None = None,
        kill: tuple[int, int, str] | None = None,
    ) -> dict[str, Any]:
        directory.mkdir(exist_ok=True)
        self._meetings += 1
        order = {
            "directory": str(directory),
            "accumulation": accumulation,
            "ranks": ranks,
            "spread": ("ddp" if ranks > 1 else "") if spread is None else spread,
            "scale": scale or ranks,
            "max_steps": max_steps,
            "kill": kill,
            "meeting": str(directory / f"meeting-{self._meetings}"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


def trace(directory: Path, rank: int = 0) -> list[str]:
    """What the training in a directory has seen, over all its attempts."""
    path = directory / f"trace-{rank}"
    return path.read_text().splitlines() if path.exists() else []


def final(directory: Path, rank: int = 0) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / f"final-{rank}.json").read_text())
    return found


if __name__ == "__main__":
    serve()
