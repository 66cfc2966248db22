"""Training as the first documents show it: their calls, by these names and keywords, train and are checked.

Where a document contradicts itself, docs/howto/trainer.md says what holds ("What differs").
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from oellm_autoexp import ConfigurationManager, ExperimentConfig, ModelTrainingFramework
from oellm_autoexp.errors import ConfigurationError, JobSubmissionError, SLURMError, ValidationError
from oellm_autoexp.trainer import (
    AggregationStrategy,
    CheckpointConfig,
    CheckpointTimeoutError,
    EpochLengthPolicy,
    FaultToleranceConfig,
    GenericTrainer,
    GenericTrainerConfig,
    HooksConfig,
    LoggingConfig,
    MetricsManager,
    MultiDataLoaderConfig,
    PerformanceConfig,
    Preempted,
    PreemptionConfig,
    PreemptionTimeoutError,
    ResumeState,
    SamplingStrategy,
    TrainerError,
    TrainerPhase,
    ValidationConfig,
)
from oellm_autoexp.trainer.hooks import TrainerHooks

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a directory of its own, without a job around it."""
    for name in ("AUTOEXP_DEADLINE", "SLURM_JOB_END_TIME", "SLURM_JOB_ID", "AUTOEXP_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def digits(
    samples: int, seed: int = 0, width: int = 784, batch_size: int = 16, noise: float = 5.0
) -> DataLoader[Any]:
    """Pictures of ten classes that can be told apart."""
    draws = torch.Generator().manual_seed(seed)
    classes = torch.randint(10, (samples,), generator=draws)
    marks = torch.randn(10, width, generator=torch.Generator().manual_seed(99))
    pictures = marks[classes] + noise * torch.randn(samples, width, generator=draws)
    return DataLoader(TensorDataset(pictures, classes), batch_size=batch_size, shuffle=True)


def training_step(
    trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Any]:
    x, y = batch
    outputs = trainer.model(x)
    loss = F.cross_entropy(outputs, y)
    return {"loss": loss}


def validation_step(
    trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Any]:
    x, y = batch
    with torch.no_grad():
        outputs = trainer.model(x)
        loss = F.cross_entropy(outputs, y)
    return {"loss": loss}


def small(**config: Any) -> GenericTrainer:
    """A trainer of a small model, as the samples make it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = GenericTrainer(
        config=GenericTrainerConfig(seed=1, **config), model=model, optimizers=[optimizer]
    )
    trainer.set_training_step(training_step)
    trainer.set_validation_step(validation_step)
    return trainer


def few(seed: int = 0, samples: int = 64) -> DataLoader[Any]:
    return digits(samples, seed, width=8, batch_size=8, noise=0.5)


# ---------------------------------------------------------------- the complete set-up


def complete_training_setup(logging: LoggingConfig, val_names: list[str]) -> GenericTrainer:
    # Model
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))

    # Optimizer
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    # Configuration
    config = GenericTrainerConfig(
        train_loader_config=MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.7, 0.3],
            dataloader_names=["primary", "auxiliary"],
        ),
        val_loader_config=MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.SEQUENTIAL,
            dataloader_names=val_names,
        ),
        checkpoint=CheckpointConfig(
            save_every_n_steps=500,
            max_checkpoints=3,
        ),
        logging=logging,
    )

    # Trainer
    trainer = GenericTrainer(config=config, model=model, optimizers=[optimizer])

    # Step functions
    def training_step(trainer, batch, batch_idx, dataloader_idx, dataloader_name):
        x, y = batch
        outputs = trainer.model(x)
        loss = nn.functional.cross_entropy(outputs, y)
        return {"loss": loss, f"{dataloader_name}/loss": loss}

    trainer.set_training_step(training_step)
    return trainer


def fitted(trainer: GenericTrainer, max_epochs: int) -> GenericTrainer:
    primary_loader, auxiliary_loader = digits(112), digits(48, seed=1)
    val_primary, val_auxiliary = digits(32, seed=2), digits(32, seed=3)
    # Train
    trainer.fit(
        train_loaders=[primary_loader, auxiliary_loader],
        val_loaders=[val_primary, val_auxiliary],
        max_epochs=max_epochs,
    )
    return trainer


def test_the_complete_setup_needs_a_name_for_each_validation_loader() -> None:
    """It gives two loaders and one name; both counts are told, before the first step."""
    with pytest.raises(ValueError, match="1 names for 2 loaders: validation"):
        fitted(complete_training_setup(LoggingConfig(), ["validation"]), 1)
    assert not Path("checkpoints").exists()


def test_the_complete_setup_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """With one more name; the shares are exact, each loader has figures, the best and the latest stay."""
    trainer = fitted(complete_training_setup(LoggingConfig(), ["validation", "more"]), 100)
    assert trainer.global_step == 100 * 10
    said = capsys.readouterr().out
    assert "batches by loader: primary 7, auxiliary 3" in said
    lines = [line.removeprefix("@autoexp ") for line in said.splitlines() if "metrics" in line]
    rows = [json.loads(line)["metrics"] for line in lines]
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    assert len(losses) == 100 and losses[-1] < losses[0] / 2
    assert {"dl_primary/primary/loss", "dl_auxiliary/auxiliary/loss"} <= {
        name for row in rows for name in row
    }
    kept = Path("checkpoints", "experiment")
    assert len(list(kept.glob("step-*.json"))) <= 3 + 2
    assert (kept / "latest.ckpt").readlink() == Path("epoch_100_step_001000.ckpt")
    assert (kept / "best.ckpt").exists()


def test_the_complete_setup_without_the_package_of_its_logger_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    wandb = LoggingConfig(logger_type="wandb", wandb_project="my-project")
    with pytest.raises(TrainerError, match="pip install wandb, or choose another logger"):
        fitted(complete_training_setup(wandb, ["validation", "more"]), 1)


@pytest.mark.parametrize(
    "given",
    [
        {"logger_type": "wandb", "wandb_project": "my-project"},
        {
            "logger_type": "composite",
            "composite_loggers": ["console", "tensorboard", "wandb"],
            "wandb_project": "my-project",
            "tensorboard_dir": "./logs",
        },
    ],
    ids=["wandb", "composite"],
)
def test_the_loggers_of_the_samples_log(given: dict[str, Any], tmp_path: Path) -> None:
    """W&B without an account: offline. In a process of its own, which trackers change."""
    for package in ("wandb", "tensorboard"):
        assert find_spec(package), f"{package} is not installed"
    code = (
        "import test_seed_samples_training as t; from oellm_autoexp.trainer import LoggingConfig; "
        f"t.fitted(t.complete_training_setup(LoggingConfig(**{given!r}), ['validation', 'more']), 2)"
    )
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "goes on without it" not in done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert len(list(tmp_path.glob("logs/experiment/events.*"))) == (given["logger_type"] == "composite")


# ---------------------------------------------------------------- the trainer, method by method


def test_fit_validates_saves_and_loads() -> None:
    """Loaders in lists; `save_checkpoint` gives a path, `load_checkpoint` takes one."""
    trainer = small(
        checkpoint=CheckpointConfig(monitor_metric="val/loss", monitor_mode="min", save_best=True)
    )
    trainer.fit(train_loaders=[few()], val_loaders=[few(1)], max_epochs=3)
    checkpoint_path = trainer.save_checkpoint()
    # Emergency checkpoint for preemption
    emergency_path = trainer.save_checkpoint(emergency=True)
    assert checkpoint_path == emergency_path  # nothing has changed in between
    assert emergency_path.name == "epoch_003_step_000024.ckpt"
    again = small()
    # Below the directory of its experiment, which the document leaves out.
    again.load_checkpoint("checkpoints/experiment/best.ckpt")
    for one, other in zip(again.module.parameters(), trainer.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.metrics.get_best_metric("loss") < 2.3


def test_a_custom_hook_is_told_of_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    class CustomHook(TrainerHooks):
        def on_epoch_end(self, trainer, epoch):
            print(f"Epoch {epoch} completed")

    trainer = small(hooks=HooksConfig(continue_on_hook_error=False))
    trainer.hook_manager.register_hook(CustomHook())
    trainer.fit([few()], None, max_epochs=2)
    assert re.findall(r"^Epoch \d completed$", capsys.readouterr().out, re.MULTILINE) == [
        "Epoch 0 completed",
        "Epoch 1 completed",
    ]


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({"sampling_strategy": SamplingStrategy.ROUND_ROBIN}, "ababab"),
        (
            {
                "sampling_strategy": SamplingStrategy.WEIGHTED,
                "dataloader_weights": [0.7, 0.3],
                "epoch_length_policy": EpochLengthPolicy.FIXED_NUM_STEPS,
                "steps_per_epoch": 10,
            },
            "abaabaaaba",
        ),
        ({"sampling_strategy": SamplingStrategy.ALTERNATING, "alternating_pattern": [0, 0, 1]}, "aabaab"),
        ({"sampling_strategy": SamplingStrategy.SEQUENTIAL}, "aaabbb"),
    ],
    ids=["ROUND_ROBIN", "WEIGHTED", "ALTERNATING", "SEQUENTIAL"],
)
def test_loaders_take_turns_by_their_strategy(given: dict[str, Any], order: str) -> None:
    """The same in each epoch: WEIGHTED is no lottery, whatever its document says."""
    seen: list[str] = []

    def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
        assert dataloader_name == ["a", "b"][dataloader_idx]
        seen.append(dataloader_name)
        return training_step(trainer, batch, batch_idx, dataloader_idx, dataloader_name)

    trainer = small(train_loader_config=MultiDataLoaderConfig(dataloader_names=["a", "b"], **given))
    trainer.set_training_step(step)
    trainer.fit(train_loaders=[few(0, 24), few(1, 24)], max_epochs=2)
    if given["sampling_strategy"] is SamplingStrategy.ALTERNATING:
        assert seen[:3] == list("aab") and seen.count("a") == seen.count("b") == 6
    else:
        assert "".join(seen) == 2 * order


def test_every_part_of_the_config_is_taken() -> None:
    """All sub-configs of the document at once."""
    trainer = small(
        train_loader_config=MultiDataLoaderConfig(),
        val_loader_config=MultiDataLoaderConfig(sampling_strategy=SamplingStrategy.SEQUENTIAL),
        checkpoint=CheckpointConfig(
            save_every_n_epochs=1,
            save_every_n_steps=None,
            max_checkpoints=5,
            root_dir=Path("checkpoints"),
            filename_template="epoch_{epoch:03d}_step_{step:06d}.ckpt",
            monitor_metric="val/loss",
            monitor_mode="min",
            save_best=True,
        ),
        logging=LoggingConfig(logger_type="console"),
        validation=ValidationConfig(),
        fault_tolerance=FaultToleranceConfig(verify_deterministic_resume=True),
        performance=PerformanceConfig(gradient_accumulation_steps=2, clip_grad_norm=1.0),
        hooks=HooksConfig(enable_logging_hook=True),
    )
    trainer.fit([few()], [few(1)], 2)
    assert trainer.global_step == 8


def test_metrics_are_averages_of_samples() -> None:
    metrics_manager = MetricsManager(aggregation_strategy=AggregationStrategy.WEIGHTED_AVERAGE)
    metrics_manager.add_train_batch("a", {"loss": 1.0}, 3)
    metrics_manager.add_train_batch("b", {"loss": 5.0}, 1)
    assert metrics_manager.named(metrics_manager.end_epoch(), "train")["train/loss"] == 2.0


# ---------------------------------------------------------------- errors, and leaving


class Signals(TrainerHooks):
    """Sends a signal in the forward pass of a batch, counted from 1."""

    def __init__(self, at: int, signum: int = signal.SIGUSR1) -> None:
        self.at, self.signum, self.seen = at, signum, 0

    def on_before_forward(self, trainer: Any) -> None:
        self.seen += 1
        if self.seen == self.at:
            signal.raise_signal(self.signum)


def handled(trainer: GenericTrainer, train_loaders: Any, val_loaders: Any) -> Path | None:
    """The document's way to deal with errors; what was saved."""
    logger = logging.getLogger("sample")
    try:
        trainer.fit(train_loaders, val_loaders)
    except PreemptionTimeoutError:
        # Handle preemption timeout
        return trainer.save_emergency_checkpoint()
    except TrainerError as e:
        # Handle general trainer errors
        logger.error(f"Training failed: {e}")
    return None


def test_a_preemption_that_takes_too_long_can_be_handled() -> None:
    """In the middle of an optimizer step there is nothing newer than the last checkpoint; the next call
    goes on from there, and ends where an undisturbed training does.
    """
    config: dict[str, Any] = {
        "preemption": PreemptionConfig(max_checkpoint_sec=1e-9),
        "performance": PerformanceConfig(gradient_accumulation_steps=4),
    }
    saving = {"checkpoint": CheckpointConfig(save_every_n_steps=1)}
    trainer = small(experiment_name="disturbed", **config, **saving)
    trainer.hook_manager.register_hook(Signals(at=6))
    saved = handled(trainer, [few()], None)
    assert saved is not None and saved.name == "epoch_000_step_000001.ckpt"
    trainer.fit([few()], None)
    undisturbed = small(experiment_name="undisturbed", **config, **saving)
    undisturbed.fit([few()], None)
    for one, other in zip(trainer.module.parameters(), undisturbed.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_error_can_be_handled(caplog: pytest.LogCaptureFixture) -> None:
    """Without `max_epochs` it is one epoch."""
    trainer = small()
    assert handled(trainer, few(), few(1)) is None
    assert trainer.current_epoch == 1 and not caplog.records
    trainer = small(experiment_name="no loss")
    trainer.set_training_step(lambda trainer, *_: {"loss": torch.tensor(1.0)})
    handled(trainer, few(), few(1))
    assert "Training failed: training step: the loss of a batch" in caplog.text


def test_the_errors_have_the_family_that_is_told() -> None:
    assert issubclass(PreemptionTimeoutError, TrainerError) and issubclass(
        CheckpointTimeoutError, TrainerError
    )
    assert issubclass(JobSubmissionError, SLURMError) and issubclass(ValidationError, ConfigurationError)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_training_goes_on(signum: int) -> None:
    """It leaves with 128 + signal, not as if it had ended; the next one ends with the same weights."""
    whole = small(experiment_name="whole")
    whole.fit(train_loaders=[few()], val_loaders=[few(1)], max_epochs=2)
    first = small(experiment_name="cut")
    first.hook_manager.register_hook(Signals(at=11, signum=signum))
    with pytest.raises(Preempted) as left:
        first.fit(train_loaders=[few()], val_loaders=[few(1)], max_epochs=2)
    assert left.value.code == 128 + signum
    second = small(experiment_name="cut")
    second.fit(train_loaders=[few()], val_loaders=[few(1)], max_epochs=2)
    for one, other in zip(second.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------- the second document


def test_the_first_sketch_trains_with_one_of_everything() -> None:
    """One loader, one optimizer, one scheduler, a Fabric; `fit` by place."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = nn.Linear(8, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
    trainer = GenericTrainer(
        config=GenericTrainerConfig(seed=1),
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
    )
    trainer.set_training_step(training_step)
    train_loader, val_loader = few(), few(1)
    trainer.fit(train_loader, val_loader, 1)
    assert trainer.global_step == 8 and optimizer.param_groups[0]["lr"] == 0.025


MODELS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Mlp(nn.Sequential):
    def __init__(self, hidden_size, num_classes):
        super().__init__(nn.Linear(8, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_classes))

    @staticmethod
    def training_step(trainer, batch, batch_idx, dataloader_idx, dataloader_name):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(trainer.model(x), y)}

def marks(batch_size):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.argmax(1)), batch_size, shuffle=True)
"""


def test_the_second_sketch_makes_a_trainer_from_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`create_experiment` with `trainer` for `training`, then `from_config(config, fabric)`."""
    Path("marks.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    framework = ModelTrainingFramework(Path.cwd())
    config = framework.create_experiment(
        {
            "experiment_name": "mlp_baseline",
            "model": {"type": "marks.Mlp", "hidden_size": 32, "num_classes": 8},
            "data": {"dataset_name": "marks.marks"},
            "optimizer": {"lr": 1e-2, "weight_decay": 0.01},
            "trainer": {"max_epochs": 5, "batch_size": 16},
        }
    )
    assert isinstance(config, ExperimentConfig)
    trainer = GenericTrainer.from_config(config, None)
    trainer.fit_configured()
    assert trainer.global_step == 5 * 4
    assert Path("checkpoints", "mlp_baseline", "latest.ckpt").readlink().name == "epoch_005_step_000020.ckpt"


def test_a_checkpoint_has_the_state_that_is_told() -> None:
    """Phase, epoch, step, place and time; random numbers lie beside it in the same file."""
    trainer = small()
    trainer.fit(few())
    payload = torch.load(Path("checkpoints/experiment/latest.ckpt"), weights_only=False)
    state = ResumeState.from_dict(payload["resume_state"])
    assert (state.phase, state.epoch, state.global_step) == (TrainerPhase.EPOCH_END, 1, 8)
    assert state.train is not None and state.timestamp > 0
    assert set(payload["rng_states"][0]) >= {"torch", "python"}
    with pytest.raises(ValidationError, match=r"version 'v2\.0'"):
        ResumeState.from_dict({"phase": "init", "epoch": 0, "global_step": 0, "version": "v2.0"})


@pytest.mark.parametrize(
    "name", ["use_wandb", "log_images_every_n_steps", "log_gradients", "log_model_parameters"]
)
def test_fields_of_logging_that_would_do_nothing_are_refused(name: str) -> None:
    """Trackers are chosen by `logger_type`; images and gradients are sent by hooks."""
    with pytest.raises(TypeError, match=name):
        LoggingConfig(**{name: True})


# ---------------------------------------------------------------- the whole workflow's train.py


TRAIN = """
import sys
import torch
from marks import Mlp, marks
from oellm_autoexp import ConfigurationManager
from oellm_autoexp.trainer import GenericTrainer, GenericTrainerConfig

load_config = ConfigurationManager(project_root=".").load_config
config = load_config(sys.argv[1])
model = Mlp(hidden_size=config["model"]["hidden_size"], num_classes=8)
optimizer = torch.optim.Adam(model.parameters(), lr=config["optimizer"]["lr"])
trainer_config = GenericTrainerConfig(experiment_name=config["experiment_name"], seed=1)
trainer = GenericTrainer(trainer_config, model, [optimizer])
trainer.set_training_step(Mlp.training_step)
train_loader, val_loader = marks(16), marks(64)
trainer.fit([train_loader], [val_loader], max_epochs=5)
"""


def test_the_training_script_of_the_whole_workflow_trains() -> None:
    """It is given the config that the launcher wrote."""
    Path("marks.py").write_text(MODELS)
    Path("train.py").write_text(TRAIN)
    manager = ConfigurationManager(project_root=".")
    made = manager.create_experiment_config(
        {"experiment_name": "one", "model": {"type": "mlp", "hidden_size": 32}, "optimizer": {"lr": 1e-2}}
    )
    manager.save_config(made, "experiment.yaml")
    done = subprocess.run(
        [sys.executable, "train.py", "experiment.yaml"],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r'"val/loss": ([\d.]+)', done.stdout)]
    assert len(losses) == 5 and losses[-1] < losses[0]
