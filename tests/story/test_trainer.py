"""What a training does, told by small ones: from its first batch to its last checkpoint."""

from __future__ import annotations

import errno
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.core.experiment import ExperimentConfig, TrainingConfig
from oellm_autoexp.errors import AutoexpError
from oellm_autoexp.trainer import (
    CheckpointConfig,
    CheckpointError,
    EpochLengthPolicy,
    FaultToleranceConfig,
    GenericTrainer,
    GenericTrainerConfig,
    HooksConfig,
    MultiDataLoaderConfig,
    NonFiniteLossError,
    PerformanceConfig,
    Preempted,
    PreemptionConfig,
    SamplingStrategy,
    TrainerError,
    TrainerHooks,
    TrainerPhase,
    ValidationAggregation,
    ValidationConfig,
    ValidationFrequency,
    WarmStartConfig,
    WarmStartResult,
)
from oellm_autoexp.trainer.loggers import Logger

#: Where Slurm's programs are installed, Fabric says so.
pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No job around it, one thread, and signals as they were."""
    for name in ("AUTOEXP_DEADLINE", "SLURM_JOB_END_TIME", "SLURM_JOB_ID", "AUTOEXP_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loader(samples: int = 8, seed: int = 0, batch_size: int = 2, shuffle: bool = False) -> DataLoader[Any]:
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 3, generator=draws)
    return DataLoader(
        TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=batch_size, shuffle=shuffle
    )


def step(trainer: Any, batch: Any, batch_idx: int, loader_idx: int, name: str) -> dict[str, Any]:
    inputs, wanted = batch
    return {"loss": nn.functional.mse_loss(trainer.model(inputs), wanted)}


def made(
    directory: Path,
    *,
    model: Callable[[], nn.Module] | None = None,
    optimizers: Callable[[nn.Module], list[Any]] | None = None,
    schedulers: Callable[[list[Any]], list[Any]] = lambda _: [],
    step: Any = step,
    hooks: tuple[TrainerHooks, ...] = (),
    fabric: Any = None,
    **config: Any,
) -> GenericTrainer:
    torch.manual_seed(1)
    module = model() if model else nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    adamw = lambda module: [torch.optim.AdamW(module.parameters(), lr=0.01)]  # noqa: E731
    made_optimizers = (optimizers or adamw)(module)
    checkpoint = config.pop("checkpoint", {})
    if "config_hooks" in config:
        config["hooks"] = config.pop("config_hooks")
    trainer = GenericTrainer(
        GenericTrainerConfig(
            seed=config.pop("seed", 3),
            checkpoint=CheckpointConfig(root_dir=str(directory), **checkpoint),
            **config,
        ),
        module,
        made_optimizers,
        schedulers(made_optimizers),
        fabric,
    )
    trainer.set_training_step(step)
    for hook in hooks:
        trainer.hook_manager.register_hook(hook)
    return trainer


def weights(trainer: GenericTrainer) -> list[torch.Tensor]:
    return [each.detach().clone() for each in trainer.module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Calls(TrainerHooks):
    """Every event, with how many arguments came."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *arguments: self.seen.append(name)
        return super().__getattribute__(name)


class StopAt(TrainerHooks):
    """Sends a signal behind an optimizer step, as a scheduler would."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    def on_after_optimizer_step(self, trainer: Any) -> None:
        if trainer.global_step + 1 == self.step:
            signal.raise_signal(self.signum)


# ---------------------------------------------------------------- one loop


def test_a_loop_by_hand_gives_the_same_weights(tmp_path: Path) -> None:
    """Windows of three batches and one of what is left, divided by how many they are, and clipped."""
    trainer = made(
        tmp_path,
        schedulers=lambda optimizers: [torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.9)],
        performance=PerformanceConfig(gradient_accumulation_steps=3, clip_grad_norm=0.5),
    )
    trainer.fit(loader(8), max_epochs=2)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    torch.manual_seed(3)
    for _ in range(2):
        batches = list(zip(*(each.split(2) for each in loader(8).dataset.tensors), strict=True))
        for window in (batches[:3], batches[3:]):
            for inputs, wanted in window:
                (nn.functional.mse_loss(model(inputs), wanted) / len(window)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert same(weights(trainer), list(model.parameters()))
    assert trainer.global_step == 4


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    """Whoever runs it again gets what came out, and nothing is called or written."""
    first = made(tmp_path)
    first.fit([loader()], max_epochs=2)
    files = sorted(path.name for path in first._keeper.directory.iterdir())
    calls = Calls()
    again = made(tmp_path, hooks=(calls,))
    again.fit([loader()], max_epochs=2)
    assert calls.seen == ["on_checkpoint_load"]
    assert same(weights(again), weights(first))
    assert sorted(path.name for path in first._keeper.directory.iterdir()) == files
    longer = made(tmp_path)
    longer.fit([loader()], max_epochs=3)
    assert longer.global_step == 12
    assert longer.phase is TrainerPhase.TRAINING_COMPLETE


def test_steps_end_a_training_within_an_epoch_and_more_go_on_there(tmp_path: Path) -> None:
    """With what a longer training would have had."""
    short = made(tmp_path / "a", max_steps=5)
    short.fit(loader(), loader(4, 9), max_epochs=9)
    assert (short.global_step, short.at.epoch, short.at.epoch_batches) == (5, 1, 1)
    assert short.at.validated_at == 5
    short = made(tmp_path / "a", max_steps=7)
    short.fit(loader(), loader(4, 9), max_epochs=9)
    whole = made(tmp_path / "b", max_steps=7)
    whole.fit(loader(), loader(4, 9), max_epochs=9)
    assert same(weights(short), weights(whole))


class Killed(TrainerHooks):
    """Ends the program at an event of a name, when its turn comes."""

    def __init__(self, event: str, turn: int = 1) -> None:
        self._turns = iter([False] * (turn - 1) + [True] + [False] * 10**4)
        setattr(self, event, self._told)

    def _told(self, trainer: Any) -> None:
        if next(self._turns):
            raise SystemExit(9)


@pytest.mark.parametrize("steps", [3, 4])
@pytest.mark.parametrize("event", ["on_validation_start", "on_epoch_end", "on_train_end"])
def test_what_comes_behind_the_last_step_is_not_left_out(tmp_path: Path, steps: int, event: str) -> None:
    """The last validation, and the end of the epoch where training ends with it."""
    ended: list[int] = []

    class Ended(TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            ended.append(epoch)

    def trainer(directory: Path, *hooks: TrainerHooks) -> GenericTrainer:
        return made(directory, hooks=hooks, max_steps=steps, checkpoint={"save_every_n_steps": 1})

    whole = trainer(tmp_path / "whole", Ended())
    whole.fit(loader(), loader(2))
    assert whole.at.validated_at == steps
    assert ended == ([0] if steps == 4 else [])
    if steps == 4 or event != "on_epoch_end":
        with pytest.raises(SystemExit):
            trainer(tmp_path / "left", Killed(event)).fit(loader(), loader(2))
    again = trainer(tmp_path / "left", Ended())
    again.fit(loader(), loader(2))
    assert again.at == whole.at
    assert len(ended) == (0 if steps == 3 else 1 if event == "on_train_end" else 2)


def test_a_signal_behind_the_last_step_leaves_the_rest_to_the_next_attempt(tmp_path: Path) -> None:
    """Also where a hook wanted the end just then."""

    class Both(TrainerHooks):
        def on_after_optimizer_step(self, trainer: Any) -> None:
            if trainer.global_step == 3:
                trainer.should_stop = True
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        made(tmp_path, hooks=(Both(),)).fit(loader(), loader(2), max_epochs=5)
    again = made(tmp_path)
    again.fit(loader(), loader(2), max_epochs=5)
    assert (again.at.epoch, again.at.validated_at) == (1, 4)
    assert again.phase is TrainerPhase.TRAINING_COMPLETE


def test_the_best_checkpoint_is_one_whose_weights_were_validated(tmp_path: Path) -> None:
    """Not a later one, which holds the figures of weights before."""
    often = ValidationConfig(frequency=ValidationFrequency.EVERY_N_STEPS, every_n_steps=2)
    trainer = made(tmp_path, validation=often, checkpoint={"save_every_n_steps": 1})
    trainer.set_validation_step(lambda t, *_: {"loss": {2: 1.0}.get(t.global_step, 2.0)})
    trainer.fit(loader(14), loader(2))
    assert (trainer._keeper.directory / "best.ckpt").readlink().name == "epoch_000_step_000002.ckpt"


def test_steps_alone_say_how_long_a_training_is(tmp_path: Path) -> None:
    """For as many epochs as they take; no epochs at all are a mistake."""
    trainer = made(tmp_path, max_steps=10)
    trainer.fit(loader())
    assert (trainer.global_step, trainer.at.epoch) == (10, 2)
    with pytest.raises(ValueError, match="max_epochs must be above 0, got 0"):
        made(tmp_path / "none").fit(loader(), max_epochs=0)


@pytest.mark.parametrize("automatic", [True, False])
def test_one_trainer_may_be_asked_again(tmp_path: Path, automatic: bool) -> None:
    """In a notebook, say: for more epochs, or behind a step function that failed within a window."""
    resumes = PreemptionConfig(resume_from_latest_symlink=automatic)
    fails = iter([False, True, *[False] * 100])

    def sometimes(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        loss = step(trainer, batch, 0, 0, "")
        loss["loss"].backward()
        if next(fails):
            raise RuntimeError("a mistake")
        trainer.model.zero_grad()
        return step(trainer, batch, 0, 0, "")

    by_two = PerformanceConfig(gradient_accumulation_steps=2)
    still = lambda: nn.Linear(3, 1)  # noqa: E731 - draws nothing at random
    trainer = made(tmp_path / "a", model=still, step=sometimes, preemption=resumes, performance=by_two)
    with pytest.raises(RuntimeError, match="a mistake"):
        trainer.fit(loader())
    trainer.set_training_step(step)
    trainer.fit(loader())
    trainer.fit(loader(), max_epochs=2)
    whole = made(tmp_path / "b", model=still, preemption=resumes, performance=by_two)
    whole.fit(loader(), max_epochs=2)
    assert trainer.global_step == 4
    assert same(weights(trainer), weights(whole))


def test_without_a_seed_the_order_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    """Whatever the program has drawn from torch meanwhile."""
    seen: list[float] = []

    def noting(trainer: Any, batch: Any, *rest: Any) -> dict[str, Any]:
        seen.extend(batch[0][:, 0].tolist())
        return step(trainer, batch, *rest)

    with pytest.raises(Preempted):
        made(tmp_path, seed=None, step=noting, hooks=(StopAt(2),)).fit(loader(shuffle=True))
    again = made(tmp_path, seed=None, step=noting)
    torch.manual_seed(77)
    again.fit(loader(shuffle=True))
    assert sorted(seen) == sorted(loader().dataset.tensors[0][:, 0].tolist())  # type: ignore[attr-defined]


def test_a_checkpoint_may_hold_no_places_of_loaders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then the epoch that was left begins anew, as is said."""
    without = FaultToleranceConfig(save_sampler_state=False)
    with pytest.raises(Preempted):
        made(tmp_path, hooks=(StopAt(2),), fault_tolerance=without).fit(loader())
    again = made(tmp_path, fault_tolerance=without)
    again.fit(loader())
    assert "epoch 0 begins anew" in caplog.text
    assert again.global_step == 6


def test_what_was_loaded_is_handed_on_by_what_is_saved_at_once(tmp_path: Path) -> None:
    """With the places of loaders, before there are loaders."""
    with pytest.raises(Preempted):
        made(tmp_path, hooks=(StopAt(2),)).fit(loader())
    between = made(tmp_path)
    between.load_checkpoint("latest.ckpt")
    between.save_checkpoint(emergency=True)
    between._keeper.close()
    again, whole = made(tmp_path), made(tmp_path / "whole")
    again.fit(loader())
    whole.fit(loader())
    assert again.global_step == 4
    assert same(weights(again), weights(whole))


def test_figures_of_an_interval_that_was_interrupted_are_those_of_all_of_it(tmp_path: Path) -> None:
    """Samples a second, too: the seconds before count as the samples do."""
    rates: list[float] = []

    class Rates(Logger):
        def log_metrics(self, metrics: Any, step: int) -> None:
            rates.extend(metrics[name] for name in metrics if name == "train/samples_per_second")

    few: dict[str, Any] = {"log_loss_every_n_steps": 4, "checkpoint": {"save_every_n_steps": 3}}
    first = made(tmp_path, hooks=(Killed("on_train_batch_start", 4),), **few)
    first._seconds["step"] = 1000.0
    with pytest.raises(SystemExit):
        first.fit(loader(16))
    again = made(tmp_path, **few)
    again._made_logger = Rates  # type: ignore[assignment, method-assign]
    again.fit(loader(16), max_epochs=1)
    assert rates[0] == pytest.approx(8 / 1000, rel=0.1)


def test_a_learning_rate_that_is_not_taken_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That of the checkpoint counts, or the bits would be others."""
    steps = lambda of: [torch.optim.lr_scheduler.StepLR(of[0], 1)]  # noqa: E731
    made(tmp_path, schedulers=steps).fit(loader())
    made(tmp_path, schedulers=steps).fit(loader(), max_epochs=2)
    assert "goes on with" not in caplog.text
    faster = lambda model: [torch.optim.AdamW(model.parameters(), lr=0.5)]  # noqa: E731
    made(tmp_path, schedulers=steps, optimizers=faster).fit(loader(), max_epochs=3)
    assert "AdamW goes on with lr [0.01] of the checkpoint, and not with [0.5]" in caplog.text


def test_a_checkpoint_of_another_config_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the training is complete, and would else seem to be that of this config."""
    made(tmp_path).fit(loader())
    made(tmp_path, log_loss_every_n_steps=3).fit(loader())
    assert "other values" not in caplog.text
    made(tmp_path, performance=PerformanceConfig(clip_grad_norm=3.0)).fit(loader())
    assert (
        "epoch_001_step_000004.ckpt was made with other values of performance.clip_grad_norm" in caplog.text
    )


def test_a_checkpoint_is_not_asked_for_while_one_is_saved(tmp_path: Path) -> None:
    class Again(TrainerHooks):
        def on_checkpoint_save(self, trainer: Any) -> None:
            trainer.save_checkpoint()

    fatal = HooksConfig(continue_on_hook_error=False)
    with pytest.raises(TrainerError, match="while one is saved"):
        made(tmp_path, hooks=(Again(),), config_hooks=fatal).fit(loader())


@pytest.mark.parametrize("other", ["optimizer", "scheduler"])
def test_a_checkpoint_of_another_optimizer_or_scheduler_is_refused(tmp_path: Path, other: str) -> None:
    """By name, and not in the middle of a step."""
    steps = lambda of: [torch.optim.lr_scheduler.StepLR(of[0], 3)]  # noqa: E731
    made(tmp_path, schedulers=steps).fit(loader())
    changed: dict[str, Any] = {"schedulers": steps}
    if other == "optimizer":
        changed["optimizers"] = lambda model: [torch.optim.SGD(model.parameters(), lr=0.1)]
    else:
        changed["schedulers"] = lambda of: [torch.optim.lr_scheduler.LambdaLR(of[0], lambda _: 1.0)]
    with pytest.raises(TrainerError, match=f"the checkpoint holds another {other} than (SGD|LambdaLR)"):
        made(tmp_path, **changed).fit(loader(), max_epochs=2)


def test_weights_of_losses_act(tmp_path: Path) -> None:
    """A loader whose loss counts nothing changes nothing; one that counts more moves the weights further."""
    names = MultiDataLoaderConfig(sampling_strategy=SamplingStrategy.SEQUENTIAL)
    sgd = lambda model: [torch.optim.SGD(model.parameters(), lr=0.01)]  # noqa: E731

    def trained(name: str, *factors: float) -> list[torch.Tensor]:
        trainer = made(
            tmp_path / name,
            model=lambda: nn.Linear(3, 1),
            optimizers=sgd,
            train_loader_config=names,
            loss_weights_per_loader=factors,
            performance=PerformanceConfig(clip_grad_norm=None),
        )
        trainer.fit([loader(2), loader(2, 1)])
        return weights(trainer)

    alone = made(
        tmp_path / "alone",
        model=lambda: nn.Linear(3, 1),
        optimizers=sgd,
        performance=PerformanceConfig(clip_grad_norm=None),
    )
    alone.fit(loader(2))
    assert same(trained("none", 1.0, 0.0), weights(alone))
    assert not same(trained("more", 1.0, 5.0), trained("equal", 1.0, 1.0))


def test_a_loader_steps_its_own_optimizer(tmp_path: Path) -> None:
    """And no other; gradients that others left behind are gone by the next step."""
    model = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    before = {name: module.weight.detach().clone() for name, module in model.items()}

    def both(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
        return sum(nn.functional.mse_loss(each(batch[0]), batch[1]) for each in trainer.module.values())

    trainer = made(
        tmp_path,
        model=lambda: model,
        optimizers=lambda model: [torch.optim.SGD(each.parameters(), lr=0.1) for each in model.values()],
        schedulers=lambda optimizers: [
            torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in optimizers
        ],
        step=both,
        per_loader_optimizer_id=[1],
    )
    trainer.fit(loader(2))
    assert torch.equal(model["a"].weight, before["a"])
    assert not torch.equal(model["b"].weight, before["b"])
    assert [each.param_groups[0]["lr"] for each in trainer.optimizers] == [0.1, 0.05]


def test_schedulers_step_as_they_are_told(tmp_path: Path) -> None:
    """Each step, each epoch, or by a metric of validation."""
    seen = {}

    def schedulers(optimizers: list[Any]) -> list[Any]:
        seen["step"] = torch.optim.lr_scheduler.StepLR(optimizers[0], 100)
        seen["epoch"] = torch.optim.lr_scheduler.StepLR(optimizers[0], 100)
        seen["plateau"] = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0])
        return [seen["step"], (seen["epoch"], "epoch"), {"scheduler": seen["plateau"], "monitor": "val_loss"}]

    made(tmp_path, schedulers=schedulers).fit(loader(8), loader(2), max_epochs=3)
    assert (seen["step"].last_epoch, seen["epoch"].last_epoch, seen["plateau"].last_epoch) == (12, 3, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *_: {"loss": 1.0}, "it is 1.0, no tensor"),
        (lambda *_: {"loss": torch.ones(())}, "depends on no parameter"),
        (lambda t, b, *_: t.model(b[0]), "it has 2 numbers"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused(tmp_path: Path, wrong: Any, message: str) -> None:
    """Where others would train nothing and say nothing."""
    with pytest.raises(TrainerError, match=message):
        made(tmp_path, step=wrong).fit(loader())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match="no training step"):
        GenericTrainer(GenericTrainerConfig(), nn.Linear(1, 1), torch.optim.SGD([torch.ones(1)])).fit(
            loader()
        )
    with pytest.raises(ValueError, match="at least one loader"):
        made(tmp_path).fit([])
    with pytest.raises(ValueError, match="at least one optimizer"):
        GenericTrainer(GenericTrainerConfig(), nn.Linear(1, 1), [])
    with pytest.raises(ValueError, match="has 2 items for 1 train_loaders"):
        made(tmp_path, loss_weights_per_loader=(1, 2)).fit(loader())
    with pytest.raises(ValueError, match="names optimizer 1, and there are 1"):
        made(tmp_path, per_loader_optimizer_id=(1,))


def test_seed_001_spellings_and_experiments_are_taken(tmp_path: Path) -> None:
    """`optimizer=` and `scheduler=`, and an experiment's config in place of the trainer's."""
    config = ExperimentConfig(
        experiment_name="a/b",
        training=TrainingConfig(max_epochs=2, gradient_accumulation_steps=2),
        checkpoint=CheckpointConfig(root_dir=str(tmp_path)),
    )
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = GenericTrainer(config, model, optimizer=optimizer)
    trainer.set_training_step(step)
    trainer.fit(loader(8))
    assert trainer.global_step == 4
    (directory,) = tmp_path.iterdir()
    assert directory.name.startswith("a_b_")


# ---------------------------------------------------------------- hooks


def test_every_event_reaches_a_hook_in_order(tmp_path: Path) -> None:
    """One epoch of one batch, with validation and a checkpoint."""
    calls = Calls()
    made(tmp_path, hooks=(calls,)).fit(loader(2), loader(2), max_epochs=1)
    assert calls.seen == [
        "on_train_start",
        "on_epoch_start",
        "on_train_batch_start",
        "on_before_forward",
        "on_after_forward",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_gradient_clip",
        "on_after_optimizer_step",
        "on_train_batch_end",
        "on_validation_start",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_validation_end",
        "on_epoch_end",
        "on_checkpoint_save",
        "on_checkpoint_save",
        "on_train_end",
    ]


def test_every_phase_is_reached(tmp_path: Path) -> None:
    """Over a training with validation, checkpoints and a loss that is passed over; and one that fails."""
    seen: set[TrainerPhase] = {TrainerPhase.INIT}

    class Phases(TrainerHooks):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                return lambda trainer, *_: seen.update(trainer._phases.history)
            return super().__getattribute__(name)

    calls = iter(range(100))

    def sometimes(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
        loss = step(trainer, batch, 0, 0, "")["loss"]
        return loss * math.nan if next(calls) == 1 else loss

    trainer = made(
        tmp_path,
        step=sometimes,
        hooks=(Phases(),),
        fault_tolerance=FaultToleranceConfig(nonfinite_loss="skip"),
    )
    trainer.fit(loader(8), loader(2), max_epochs=1)
    seen.update(trainer._phases.history)
    failing = made(tmp_path / "b", step=lambda *_: 1.0)
    with pytest.raises(TrainerError, match=r"it is 1\.0, no tensor"):
        failing.fit(loader())
    seen.update(failing._phases.history)
    assert seen == set(TrainerPhase)


# ---------------------------------------------------------------- validation, early stopping


def test_validation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    """Neither in random numbers, nor in modes of modules."""
    without = made(tmp_path / "a")
    without.fit(loader(shuffle=True), max_epochs=3)
    frozen = made(
        tmp_path / "b",
        validation=ValidationConfig(frequency=ValidationFrequency.EVERY_N_STEPS, every_n_steps=2),
    )
    frozen.fit(loader(shuffle=True), [loader(4, 5, shuffle=True)], max_epochs=3)
    assert same(weights(without), weights(frozen))
    assert frozen.at.validated_at == 12


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        (ValidationAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES, (6 * 1 + 2 * 5) / 8),
        (ValidationAggregation.MACRO_AVG_EQUAL_LOADERS, 3.0),
        (ValidationAggregation.PRIMARY_METRIC_PER_LOADER, 1.0),
        (ValidationAggregation.CUSTOM, 5.0),
    ],
)
def test_validation_loaders_give_one_figure(
    tmp_path: Path, aggregation: ValidationAggregation, value: float
) -> None:
    """Weighted by samples, by loaders, of the first one, or as the program says."""
    trainer = made(tmp_path, validation=ValidationConfig(aggregation=aggregation))
    trainer.set_validation_step(lambda t, b, i, loader, n: {"loss": 1.0 + 4 * loader})
    trainer.set_validation_aggregation(lambda of: {"loss": max(each["loss"] for each in of.values())})
    trainer.fit(loader(), [loader(6), loader(2)])
    assert trainer.at.val_metrics["val/loss"] == value
    assert trainer.at.val_metrics["val/dl_val_dl1/loss"] == 5.0


class Counting(IterableDataset[Any]):
    """Numbers without an end; one that keeps its state goes on where it was."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.next += 1
            yield torch.full((3,), float(self.next)), torch.zeros(1)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


class Stateless(Counting):
    """Begins anew wherever it is iterated."""

    state_dict = load_state_dict = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        self.next = 0
        return super().__iter__()


@pytest.mark.parametrize("kind", [Counting, Stateless])
def test_each_validation_reads_the_same_of_a_stream_without_an_end(
    tmp_path: Path, kind: type[Counting]
) -> None:
    """In one attempt or several."""
    two = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=2)
    seen: list[list[float]] = []

    def look(trainer: Any, batch: Any, *_: Any) -> dict[str, float]:
        seen.append(batch[0][:, 0].tolist())
        return {"loss": 1.0}

    for epochs in (2, 3):
        trainer = made(tmp_path, val_loader_config=two)
        trainer.set_validation_step(look)
        trainer.fit(loader(), DataLoader(kind(), batch_size=2), max_epochs=epochs)
    assert seen == [[1.0, 2.0], [3.0, 4.0]] * 3


@pytest.mark.parametrize("name", ["val_loss", "val/loss"])
def test_early_stopping_counts_on_after_a_restart(tmp_path: Path, name: str) -> None:
    """Its state is in the checkpoint; the end is final, whatever epochs are asked for."""

    def trainer(*hooks: TrainerHooks) -> GenericTrainer:
        found = made(tmp_path, hooks=hooks, early_stopping_patience=3, early_stopping_metric=name)
        found.set_validation_step(lambda t, *_: {"loss": 1.0})
        return found

    with pytest.raises(Preempted):
        trainer(StopAt(9)).fit(loader(), loader(2), max_epochs=50)
    again = trainer()
    again.fit(loader(), loader(2), max_epochs=50)
    assert again.at.epoch == 4
    assert "has not been better than 1 for 3 validations" in again.at.finished
    more = trainer()
    more.fit(loader(), loader(2), max_epochs=99)
    assert more.at.epoch == 4


@pytest.mark.parametrize("event", ["on_epoch_end", "on_validation_end"])
def test_training_goes_on_from_what_a_hook_has_saved(tmp_path: Path, event: str) -> None:
    """Nothing of the end of an epoch is done twice, or left out: not the schedule, nor the patience."""

    class Saves(TrainerHooks):
        def __init__(self, leave: bool) -> None:
            self.leave = leave

        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            self.save(trainer, "on_epoch_end", epoch)

        def on_validation_end(self, trainer: Any, epoch: int) -> None:
            self.save(trainer, "on_validation_end", epoch)

        def save(self, trainer: Any, now: str, epoch: int) -> None:
            if now == event and epoch == 1:
                trainer.save_checkpoint(emergency=True)
                if self.leave:
                    raise SystemExit(9)

    plateau = lambda of: [torch.optim.lr_scheduler.ReduceLROnPlateau(of[0], patience=1)]  # noqa: E731

    def trainer(directory: Path, *hooks: TrainerHooks) -> GenericTrainer:
        rare: dict[str, Any] = {"save_every_n_epochs": None}
        kept = {"checkpoint": rare, "early_stopping_patience": 5}
        found = made(directory, schedulers=plateau, hooks=hooks, **kept)
        found.set_validation_step(lambda t, *_: {"loss": 1.0})
        return found

    whole = trainer(tmp_path / "whole", Saves(leave=False))
    whole.fit(loader(), loader(2), max_epochs=50)
    with pytest.raises(SystemExit):
        trainer(tmp_path / "left", Saves(leave=True)).fit(loader(), loader(2), max_epochs=50)
    again = trainer(tmp_path / "left")
    again.fit(loader(), loader(2), max_epochs=50)
    assert again.at == whole.at
    assert same(weights(again), weights(whole))
    assert again.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]


def test_what_comes_along_saves_the_patience_of_the_hook_beside_it(tmp_path: Path) -> None:
    """The hook that saves is told last, so that what it saves has counted the validation."""
    left = iter([False, True, False, False, False])

    class Leaves(TrainerHooks):
        def on_checkpoint_save(self, trainer: Any) -> None:
            if next(left):
                raise SystemExit(9)

    def trainer(*hooks: TrainerHooks) -> GenericTrainer:
        both = HooksConfig(
            enable_model_checkpoint_hook=True,
            enable_early_stopping_hook=True,
            hook_configs={"EarlyStoppingHook": {"patience": 3, "min_delta": 10.0}},
        )
        found = made(tmp_path, checkpoint={"save_every_n_epochs": None}, config_hooks=both, hooks=hooks)
        losses = {4: 3.0, 8: 2.0}
        found.set_validation_step(lambda t, *_: {"loss": losses.get(t.global_step, 5.0)})
        return found

    with pytest.raises(SystemExit):
        trainer(Leaves()).fit(loader(), loader(2), max_epochs=50)
    again = trainer()
    again.fit(loader(), loader(2), max_epochs=50)
    assert again.at.epoch == 4


def test_epochs_without_validation_are_no_looks(tmp_path: Path) -> None:
    """Neither for the patience, nor for a scheduler that looks at a figure of validation."""
    plateau = lambda of: [torch.optim.lr_scheduler.ReduceLROnPlateau(of[0], patience=1)]  # noqa: E731
    trainer = made(tmp_path, schedulers=plateau, validate_every_n_epochs=2, early_stopping_patience=3)
    trainer.set_validation_step(lambda t, *_: {"loss": 1.0})
    told: list[list[str]] = []

    class Told(TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int, metrics: Any) -> None:
            told.append([name for name in metrics if name == "val/loss"])

    trainer.hook_manager.register_hook(Told())
    trainer.fit(loader(), loader(2), max_epochs=50)
    assert trainer.at.epoch == 8
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
    assert told == [[], ["val/loss"]] * 4


def test_early_stopping_by_an_unknown_metric_is_an_error(tmp_path: Path) -> None:
    """With the name that was meant, not a training that never stops early."""
    with pytest.raises(TrainerError, match="no metric is called 'val_los'"):
        made(tmp_path, early_stopping_patience=1, early_stopping_metric="val_los").fit(loader(), loader(2))


def test_the_early_stopping_hook_of_a_config_ends_training(tmp_path: Path) -> None:
    """Unless the config says that only its own patience counts."""
    arguments = {"EarlyStoppingHook": {"patience": 1, "min_delta": 10.0}}
    hooks = HooksConfig(enable_early_stopping_hook=True, hook_configs=arguments)
    config = GenericTrainerConfig(hooks=hooks, checkpoint=CheckpointConfig(root_dir=str(tmp_path)))
    model = nn.Linear(3, 1)
    trainer = GenericTrainer(config, model, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.set_training_step(step)
    trainer.fit(loader(), loader(2), max_epochs=50)
    assert trainer.at.finished == "a hook has set should_stop"
    assert trainer.at.epoch == 2


# ---------------------------------------------------------------- losses that are no numbers


def broken(at: int) -> Any:
    """A step whose loss is no number in the call of that number."""
    calls = iter(range(10**6))

    def run(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
        loss = step(trainer, batch, 0, 0, "")["loss"]
        return loss * (math.nan if next(calls) == at else 1.0)

    return run


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it reaches the weights, and in a line that the orchestrator knows."""
    trainer = made(tmp_path, step=broken(2))
    with pytest.raises(NonFiniteLossError, match="loss nan or infinite behind step 2"):
        trainer.fit(loader())
    assert '@autoexp {"signal": "non_finite_loss", "step": 2}' in capsys.readouterr().out
    assert all(bool(torch.isfinite(each).all()) for each in weights(trainer))


def test_such_a_step_can_be_passed_over(tmp_path: Path) -> None:
    """It is as if the batch had not been there, but for the random numbers it took."""
    skip = FaultToleranceConfig(nonfinite_loss="skip")
    by_two = PerformanceConfig(gradient_accumulation_steps=2)
    for size, settings in ((1, {}), (2, {"performance": by_two})):
        trainer = made(tmp_path / str(size), step=broken(1), fault_tolerance=skip, **settings)
        trainer.fit(loader(8))
        assert (trainer.global_step, trainer.at.epoch) == (4 // size - 1, 1)
        assert math.isfinite(trainer.metrics.get_best_metric("loss", phase="train") or math.nan)
    always = made(
        tmp_path / "b",
        step=lambda t, b, *_: step(t, b, 0, 0, "")["loss"] * math.inf,
        fault_tolerance=FaultToleranceConfig(nonfinite_loss="skip", max_nonfinite=2),
    )
    with pytest.raises(NonFiniteLossError, match="for the 3th time in a row"):
        always.fit(loader(8))


def test_or_training_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    """Weights and steps are those of the checkpoint; batches go on behind the one that did it."""
    seen = []

    class Weights(TrainerHooks):
        def on_train_batch_end(self, trainer: Any) -> None:
            seen.append((trainer.global_step, weights(trainer)))

    trainer = made(
        tmp_path,
        step=broken(3),
        hooks=(Weights(),),
        checkpoint={"save_every_n_steps": 2},
        fault_tolerance=FaultToleranceConfig(nonfinite_loss="rollback"),
    )
    trainer.fit(loader(12))
    assert [number for number, _ in seen] == [1, 2, 3, 2, 3, 4]
    assert same(seen[3][1], seen[1][1])
    nothing = made(
        tmp_path / "b", step=broken(0), fault_tolerance=FaultToleranceConfig(nonfinite_loss="rollback")
    )
    with pytest.raises(NonFiniteLossError, match="no checkpoint to go back to"):
        nothing.fit(loader())


# ---------------------------------------------------------------- checkpoints, leaving and coming back


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_signal_is_obeyed_behind_the_step(tmp_path: Path, signum: int, code: int) -> None:
    """With an emergency checkpoint, an exit code that says which it was, and the handlers as they were."""
    before = signal.getsignal(signum)
    trainer = made(tmp_path, hooks=(StopAt(2, signum),), checkpoint={"save_every_n_epochs": None})
    with pytest.raises(Preempted, match="training stopped behind step 2") as left:
        trainer.fit(loader(), max_epochs=2)
    assert left.value.code == code
    assert signal.getsignal(signum) == before
    assert trainer.phase is TrainerPhase.ERROR_RECOVERABLE
    again = made(tmp_path)
    again.fit(loader(), max_epochs=2)
    whole = made(tmp_path / "whole")
    whole.fit(loader(), max_epochs=2)
    assert same(weights(again), weights(whole))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """The first one waits for the step."""

    class Twice(TrainerHooks):
        def on_before_forward(self, trainer: Any) -> None:
            if trainer.global_step == 1:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, hooks=(Twice(),)).fit(loader())


def test_a_signal_during_validation_repeats_the_validation(tmp_path: Path) -> None:
    """What was validated counts once, and metrics are those of the undisturbed training."""

    class During(TrainerHooks):
        def on_validation_batch_start(self, trainer: Any, batch: Any, batch_idx: int) -> None:
            if trainer.at.epoch == 1 and batch_idx == 1:
                signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted):
        made(tmp_path / "a", hooks=(During(),)).fit(loader(), loader(8, 7), max_epochs=3)
    again = made(tmp_path / "a", fault_tolerance=FaultToleranceConfig(verify_deterministic_resume=True))
    again.fit(loader(), loader(8, 7), max_epochs=3)
    whole = made(tmp_path / "b")
    whole.fit(loader(), loader(8, 7), max_epochs=3)
    assert same(weights(again), weights(whole))
    assert again.at == whole.at
    assert again.metrics.state_dict() == whole.metrics.state_dict()


def test_training_leaves_before_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the orchestrator or Slurm tell it, with the exit code of the signal that the config names."""
    for name in ("AUTOEXP_DEADLINE", "SLURM_JOB_END_TIME"):
        monkeypatch.setenv(name, str(time.time() - 1))
        with pytest.raises(Preempted, match="the time limit is near") as left:
            made(tmp_path / name, preemption=PreemptionConfig(signal="SIGTERM")).fit(loader())
        assert left.value.code == 143
        monkeypatch.delenv(name)
    monkeypatch.setenv("AUTOEXP_DEADLINE", str(time.time() + 3600))
    made(tmp_path / "far").fit(loader())


def test_slurm_is_asked_for_a_requeue_where_nobody_else_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the task of an array; not under the orchestrator."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(Preempted):
        made(tmp_path / "a", hooks=(StopAt(1),)).fit(loader())
    monkeypatch.setenv("AUTOEXP_ATTEMPT", "1")
    with pytest.raises(Preempted):
        made(tmp_path / "b", hooks=(StopAt(1),)).fit(loader())
    assert (tmp_path / "asked").read_text() == "requeue 11_3\n"


def test_checkpoints_are_written_by_steps_epochs_and_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each behind an optimizer step; the names say which."""
    saved: list[str] = []

    class Saved(TrainerHooks):
        def on_checkpoint_save(self, trainer: Any, path: Path) -> None:
            saved.append(path.name)

    made(tmp_path / "a", hooks=(Saved(),), checkpoint={"save_every_n_steps": 3}).fit(loader(), max_epochs=2)
    assert saved == [
        *("epoch_000_step_000003.ckpt", "epoch_001_step_000004.ckpt", "epoch_001_step_000006.ckpt"),
        *("epoch_002_step_000008.ckpt", "epoch_002_step_000008.ckpt"),
    ]
    saved.clear()
    rare = {"save_every_n_epochs": 2, "save_every_n_minutes": 1e-9}
    made(tmp_path / "b", hooks=(Saved(),), checkpoint=rare).fit(loader(4))
    assert saved[:2] == ["epoch_000_step_000001.ckpt", "epoch_001_step_000002.ckpt"]


def test_a_checkpoint_that_could_not_be_written_is_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the next one, also where that is the last, or one before leaving; twice in a row ends training."""

    def trainer(directory: Path, fails: int, *hooks: TrainerHooks) -> GenericTrainer:
        found = made(directory, hooks=hooks)
        found._keeper._saver._disk = FullDisk(fails)
        return found

    with pytest.raises(Preempted):
        trainer(tmp_path / "a", 1, StopAt(6)).fit(loader(), max_epochs=3)
    assert "No space left" in caplog.text
    assert (tmp_path / "a" / "experiment" / "latest.ckpt").readlink().name == "epoch_001_step_000006.ckpt"
    trainer(tmp_path / "b", 1).fit(loader(), max_epochs=1)
    assert (tmp_path / "b" / "experiment" / "latest.ckpt").readlink().name == "epoch_001_step_000004.ckpt"
    with pytest.raises(CheckpointError, match="No space left"):
        trainer(tmp_path / "c", 2).fit(loader(), max_epochs=3)


class FullDisk(Disk):
    """Has no room for the first few files of tensors."""

    def __init__(self, fails: int) -> None:
        self._fails = fails

    def append(self, fd: int, data: memoryview, path: Path) -> None:
        if self._fails:
            self._fails -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(fd, data, path)


def test_what_ends_a_training_is_told_also_where_its_last_checkpoint_fails(tmp_path: Path) -> None:
    trainer = made(tmp_path, step=failing(5))
    trainer._keeper._saver._disk = FullDisk(9)
    with pytest.raises(RuntimeError, match="a mistake"):
        trainer.fit(loader(), max_epochs=3)


def failing(at: int) -> Any:
    """A step that fails in the call of that number."""
    calls = iter(range(10**6))

    def run(trainer: Any, batch: Any, *_: Any) -> Any:
        if next(calls) == at:
            raise RuntimeError("a mistake")
        return step(trainer, batch, 0, 0, "")

    return run


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path: Path) -> None:
    """No more than where somebody else writes: both are told before the first batch."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        made(tmp_path / "file", step=failing(0)).fit(loader())
    with LocalStore(tmp_path / "experiment") as other:
        other.claim()
        trainer = made(tmp_path, step=failing(0))
        trainer._keeper._saver.store._wait_s = 0.0  # type: ignore[attr-defined]
        with pytest.raises(CheckpointError, match="another training"):
            trainer.fit(loader())


def test_what_hooks_keep_is_saved_when_all_of_them_were_told(tmp_path: Path) -> None:
    """A hook that saves, and behind it one that counts."""

    class Saves(TrainerHooks):
        def on_validation_end(self, trainer: Any) -> None:
            trainer.save_checkpoint()

    class Counts(TrainerHooks):
        seen = 0

        def on_validation_end(self, trainer: Any) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    often = ValidationConfig(frequency=ValidationFrequency.EVERY_N_STEPS, every_n_steps=2)
    every: dict[str, Any] = {"checkpoint": {"save_every_n_steps": 2}, "validation": often}
    with pytest.raises(SystemExit):
        made(tmp_path, hooks=(Saves(), Counts(), Killed("on_train_batch_start", 4)), **every).fit(
            loader(14), loader(2)
        )
    counts = Counts()
    again = made(tmp_path, hooks=(Saves(), counts), **every)
    again.load_checkpoint("latest.ckpt")
    assert (again.global_step, counts.seen) == (2, 1)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning that names it; where all are damaged nothing is trained, and nothing removed."""
    trainer = made(tmp_path, hooks=(StopAt(6),), checkpoint={"save_every_n_steps": 2})
    with pytest.raises(Preempted):
        trainer.fit(loader(), max_epochs=3)
    newest = trainer._keeper.directory / "epoch_001_step_000006.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = made(tmp_path)
    again.fit(loader(), max_epochs=3)
    assert "epoch_001_step_000006.ckpt is passed over" in caplog.text
    whole = made(tmp_path / "whole")
    whole.fit(loader(), max_epochs=3)
    assert same(weights(again), weights(whole))
    for path in trainer._keeper.directory.glob("epoch*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none is complete and undamaged"):
        made(tmp_path).fit(loader(), max_epochs=3)


def test_checkpoints_by_hand(tmp_path: Path) -> None:
    """Saved and loaded outside of training; what was loaded wins over what is newest."""
    trainer = made(tmp_path)
    path = trainer.save_checkpoint()
    assert path.name == "epoch_000_step_000000.ckpt"
    trainer.fit(loader(), max_epochs=1)
    best = trainer.save_emergency_checkpoint()
    trained = weights(trainer)
    other = made(tmp_path)
    other.load_checkpoint(best)
    assert same(weights(other), trained)
    other.fit(loader(), max_epochs=2)
    assert other.global_step == 8

    class Early(TrainerHooks):
        def on_before_forward(self, trainer: Any) -> None:
            trainer.save_checkpoint()

    hooks = HooksConfig(continue_on_hook_error=False)
    config = GenericTrainerConfig(hooks=hooks, checkpoint=CheckpointConfig(root_dir=str(tmp_path / "c")))
    model = nn.Linear(3, 1)
    within = GenericTrainer(config, model, torch.optim.SGD(model.parameters(), lr=0.1))
    within.set_training_step(step)
    within.hook_manager.register_hook(Early())
    with pytest.raises(TrainerError, match="within an optimizer step"):
        within.fit(loader())


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    """Another model, another number of optimizers."""
    made(tmp_path).fit(loader())
    with pytest.raises(TrainerError, match="holds another model"):
        made(tmp_path, model=lambda: nn.Linear(3, 1)).fit(loader(), max_epochs=2)
    two = lambda model: [torch.optim.SGD(each.parameters()) for each in (model[0], model[2])]  # noqa: E731
    with pytest.raises(AutoexpError, match="holds 1 optimizers, and there are 2"):
        made(tmp_path, optimizers=two).fit(loader(), max_epochs=2)


def test_a_training_may_begin_with_weights_of_another(tmp_path: Path) -> None:
    """Of a checkpoint, or as a function reads them; optimizers and steps begin anew."""
    first = made(tmp_path / "a")
    first.fit(loader())
    path = first._keeper.directory / "latest.ckpt"
    begun = {}

    class Begin(TrainerHooks):
        def on_train_start(self, trainer: Any) -> None:
            begun["weights"], begun["step"] = weights(trainer), trainer.global_step

    made(tmp_path / "b", hooks=(Begin(),)).fit(loader(), resume_from_checkpoint=path)
    assert same(begun["weights"], weights(first))
    assert begun["step"] == 0
    half = made(tmp_path / "c", hooks=(Begin(),), warm_start=WarmStartConfig(strict=True))
    some = {"0.weight": torch.ones(4, 3)}
    half.set_warm_start_loader(lambda path: WarmStartResult(some, strict=False))
    half.fit(loader(), resume_from_checkpoint=path)
    assert torch.equal(begun["weights"][0], torch.ones(4, 3))
    torch.save(first.module.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(TrainerError, match=r"weights\.pt: is no checkpoint of this program"):
        made(tmp_path / "e").fit(loader(), resume_from_checkpoint=tmp_path / "weights.pt")
    manual = made(
        tmp_path / "d", hooks=(Begin(),), preemption=PreemptionConfig(resume_from_latest_symlink=False)
    )
    manual.fit(loader(), max_epochs=2, resume_from_checkpoint=path)
    assert begun["step"] == 4


# ---------------------------------------------------------------- Fabric, and the compiler


def test_fabric_on_one_device_trains_the_same(tmp_path: Path) -> None:
    """Bit by bit, and its checkpoints are those of a training without it."""
    from lightning.fabric import Fabric

    plain = made(tmp_path / "a", performance=PerformanceConfig(gradient_accumulation_steps=2))
    plain.fit(loader(shuffle=True), loader(4), max_epochs=2)
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(Preempted):
        made(
            tmp_path / "b",
            fabric=fabric,
            hooks=(StopAt(2),),
            performance=PerformanceConfig(gradient_accumulation_steps=2),
        ).fit(loader(shuffle=True), loader(4), max_epochs=2)
    again = made(tmp_path / "b", performance=PerformanceConfig(gradient_accumulation_steps=2))
    again.fit(loader(shuffle=True), loader(4), max_epochs=2)
    assert same(weights(plain), weights(again))
    assert again.metrics.state_dict() == plain.metrics.state_dict()


def test_half_precision_comes_from_fabric(tmp_path: Path) -> None:
    """The model computes in bf16, and keeps its weights in 32 bits."""
    from lightning.fabric import Fabric

    seen = []

    class Layer(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            out = super().forward(inputs)
            seen.append(out.dtype)
            return out

    trainer = made(
        tmp_path,
        model=lambda: Layer(3, 1),
        fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"),
    )
    trainer.fit(loader())
    assert set(seen) == {torch.bfloat16}
    assert weights(trainer)[0].dtype == torch.float32


def test_a_model_that_is_to_be_compiled_is(tmp_path: Path) -> None:
    """The compiler sees its graph; checkpoints have the names of the model as it was given."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.register_backend(backend, name="noting")
    trainer = made(tmp_path, performance=PerformanceConfig(compile_model=True, compile_backend="noting"))
    trainer.fit(loader())
    assert graphs
    assert list(trainer.module.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    plain = made(tmp_path)
    plain.fit(loader(), max_epochs=1)
    assert same(weights(plain), weights(trainer))


def test_the_script_of_the_docs_trains_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does nothing when it is run again."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "trainer.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "trainer.md", "exec"), {})
    assert '"progress": {"step": 640' in capsys.readouterr().out
    exec(compile(code, "trainer.md", "exec"), {})
    assert not capsys.readouterr().out
