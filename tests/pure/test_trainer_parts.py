"""The parts of the trainer, each by itself: hooks, figures, loggers, agreement, configs."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oellm_autoexp.config import experiments
from oellm_autoexp.core.experiment import (
    ExperimentConfig,
    LoggingConfig,
    PerformanceConfig,
    TrainingConfig,
    plain,
)
from oellm_autoexp.core.signals import CHECKPOINT_REPORT
from oellm_autoexp.errors import AutoexpError, ConfigurationError, TrainerError, ValidationError
from oellm_autoexp.trainer import (
    AggregationStrategy,
    GenericTrainerConfig,
    MetricsManager,
    TrainerHooks,
    building,
    builtin_hooks,
    keeping,
    loggers,
    reading,
    trackers,
)
from oellm_autoexp.trainer import __main__ as program
from oellm_autoexp.trainer.agreement import Agreement, Wishes
from oellm_autoexp.trainer.config import trainer_config
from oellm_autoexp.trainer.hooks import HookManager
from oellm_autoexp.trainer.metrics import Tally, samples_of, scalars
from oellm_autoexp.trainer.stepping import EarlyStopping, scheduled

# ---------------------------------------------------------------- hooks


class Short(TrainerHooks):
    """Takes fewer arguments than it could have."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_epoch_end(self, trainer: Any, epoch: int) -> None:
        self.seen.append(epoch)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.seen.append(len(arguments))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_hook_takes_as_many_arguments_as_it_wants() -> None:
    """And is asked only for what it has."""
    manager, hook = HookManager(), Short()
    manager.register_hook(hook)
    manager.call("on_epoch_end", None, 3, {"loss": 1.0})
    manager.call("on_train_batch_end", None, 1, 2, 3, 4)
    manager.call("on_train_end", None)
    assert hook.seen == [3, 5]
    assert manager.wants("on_epoch_end")
    assert not manager.wants("on_gradient_clip")


def test_a_hook_that_fails_hinders_nobody_unless_it_shall(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with where it failed; or training ends with an error that names it."""

    class Failing(TrainerHooks):
        def on_train_start(self, trainer: Any) -> None:
            raise ZeroDivisionError("oh")

    hook = Short()
    hook.on_train_start = hook.seen.append  # type: ignore[method-assign]
    manager = HookManager()
    manager.register_hook(Failing())
    manager.register_hook(hook)
    manager.call("on_train_start", "it")
    assert hook.seen == ["it"]
    assert "Failing.on_train_start failed: ZeroDivisionError: oh (training goes on)" in caplog.text
    strict = HookManager(continue_on_error=False)
    strict.register_hook(Failing())
    with pytest.raises(TrainerError, match=r"Failing\.on_train_start failed"):
        strict.call("on_train_start", None)


def test_a_name_that_is_no_event_is_refused() -> None:
    """With the one that was meant."""

    class Wrong(TrainerHooks):
        def on_epoch_ends(self, trainer: Any) -> None: ...

    with pytest.raises(TypeError, match="did you mean `on_epoch_end`"):
        HookManager().register_hook(Wrong())
    with pytest.raises(TypeError, match="must be a TrainerHooks"):
        HookManager().register_hook(object())  # type: ignore[arg-type]


def test_states_of_hooks_find_their_hooks_again(caplog: pytest.LogCaptureFixture) -> None:
    """By class name and place among those of one class."""
    manager, again = HookManager(), HookManager()
    for number in range(2):
        hook = Short()
        hook.seen = [number]
        manager.register_hook(hook)
        again.register_hook(Short())
    again.load_state_dict({**manager.state_dict(), "Gone": {}})
    assert [hook.seen for hook in again.hooks] == [[0], [1]]  # type: ignore[attr-defined]
    assert "the hook Gone, which is not registered" in caplog.text


def test_hooks_of_a_config_are_found_and_made() -> None:
    """User's first; a wrong path or argument is an error that names it."""
    from oellm_autoexp.trainer import HooksConfig

    hooks = HooksConfig(
        hook_classes=[f"{__name__}.Short"],
        hook_configs={"GradientMonitorHook": {"every_n_steps": 7}},
        enable_gradient_monitor=True,
        enable_logging_hook=True,
    )
    made = list(builtin_hooks.configured(GenericTrainerConfig(hooks=hooks)))
    assert [type(hook).__name__ for hook in made] == ["Short", "LoggingHook", "GradientMonitorHook"]
    for wrong, message in [
        (HooksConfig(hook_classes=["no.such"]), "`no.such` cannot be found"),
        (HooksConfig(hook_configs={"X": {}}), "has arguments for X"),
        (HooksConfig(enable_logging_hook=True, hook_configs={"LoggingHook": {"x": 1}}), "LoggingHook"),
    ]:
        with pytest.raises(TrainerError, match=message):
            list(builtin_hooks.configured(GenericTrainerConfig(hooks=wrong)))


# ---------------------------------------------------------------- figures

BATCHES = st.lists(
    st.tuples(st.sampled_from("ab"), st.floats(-10, 10), st.integers(1, 9)), min_size=1, max_size=20
)


@given(BATCHES)
def test_figures_are_those_of_all_samples(batches: list[tuple[str, float, int]]) -> None:
    """Whether a loader's batches are equal in size or not; and parts of a tally make the whole."""
    manager = MetricsManager(("a", "b"))
    for loader, value, samples in batches:
        manager.add_train_batch(loader, {"loss": torch.tensor(value, dtype=torch.float64)}, samples)
    tally = manager.end_interval()
    named = manager.named(tally, "train")
    total = sum(samples for _, _, samples in batches)
    assert named["train/loss"] == pytest.approx(
        sum(torch.tensor(value).item() * samples for _, value, samples in batches) / total, abs=1e-4
    )
    half = len(batches) // 2
    parts = []
    for part in (batches[:half], batches[half:]):
        each = Tally()
        for loader, value, samples in part:
            each.add(loader, {"loss": value}, samples)
        parts.append(each.state_dict())
    merged = Tally.merged(parts)
    for strategy in AggregationStrategy:
        assert merged.overall(strategy)["loss"] == pytest.approx(tally.overall(strategy)["loss"], abs=1e-4)


def test_figures_in_all_the_ways() -> None:
    """Of two loaders: one batch of two samples, and two of one."""
    tally = Tally()
    tally.add("a", {"loss": 1.0}, 2)
    tally.add("b", {"loss": 4.0}, 1)
    tally.add("b", {"loss": 6.0}, 1)
    found = {strategy.value: tally.overall(strategy)["loss"] for strategy in AggregationStrategy}
    assert found == {"weighted_average": 3.0, "simple_average": 3.0, "sum": 11.0, "max": 6.0, "min": 1.0}
    manager = MetricsManager(("a", "b"))
    manager.note({"val/loss": 2.0, "val/f1": 0.1})
    manager.note({"val/loss": 3.0, "val/f1": 0.4})
    assert manager.get_best_metric("loss") == 2.0
    assert manager.get_best_metric("f1", "max") == 0.4
    assert manager.get_best_metric("never") is None
    assert manager.proportions(tally, [1, 1]) == {
        "a_batches": 1,
        "a_samples": 2,
        "a_divergence": pytest.approx(1 / 3 - 0.5),
        "b_batches": 2,
        "b_samples": 2,
        "b_divergence": pytest.approx(2 / 3 - 0.5),
    }


def test_what_a_step_returns_is_cut_from_its_graph() -> None:
    """Numbers and tensors of one item are figures; others are the step's own business."""
    loss = torch.ones(1, requires_grad=True).sum()
    outputs = {"loss": loss, "logits": torch.ones(3), "n": 2, "name": "x"}
    assert scalars(outputs, on_cpu=True) == {"loss": 1.0, "n": 2.0}
    assert not scalars(outputs, on_cpu=False)["loss"].requires_grad
    assert samples_of({"x": [torch.ones(5, 2)]}, {}) == 5
    assert samples_of([1, 2], {"num_samples": 7}) == 7
    assert samples_of("text", {}) == 1


# ---------------------------------------------------------------- loggers


def test_the_console_speaks_to_the_orchestrator() -> None:
    """Each line has figures under their plain names, the step as a counter, and numbers that JSON has."""
    stream = io.StringIO()
    console = loggers.ConsoleLogger(stream)
    console.log_metrics({"train/loss": 2.5, "train/dl_only/loss": 2.5, "train/lr": float("nan")}, 7)
    console.log_checkpoint(Path("/x/y.ckpt"), 7)
    console.log_signal("preempted", 7)
    lines = stream.getvalue().splitlines()
    said = [json.loads(line.removeprefix("@autoexp ")) for line in lines]
    assert said == [
        {"metrics": {"loss": 2.5, "lr": "nan"}, "progress": {"step": 7}},
        {"checkpoint": "/x/y.ckpt", "step": 7, "progress": {"step": 7}},
        {"signal": "preempted", "step": 7},
    ]
    assert CHECKPOINT_REPORT.regex.search(lines[1])
    stream.truncate(0)
    console.log_metrics({f"train/dl_{n}/loss": 0.123456789 for n in range(500)} | {"train/loss": 1.0}, 8)
    (line,) = stream.getvalue().strip("\0").splitlines()
    assert len(line) < 8192
    assert json.loads(line.removeprefix("@autoexp "))["metrics"]["loss"] == 1.0


def test_a_terminal_has_a_bar() -> None:
    """Drawn over itself; what is said in between stands in lines of its own."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    console = loggers.ConsoleLogger(stream, total_steps=20)
    console.log_metrics({"train/loss": 2.0}, 10)
    console.log_epoch_summary(0, {"train/loss": 2.0, "val/loss": 3.0}, 10)
    console.close()
    text = stream.getvalue()
    assert text.startswith("\r[==========          ] 10/20  loss 2")
    assert "epoch 1 (step 10): train/loss 2, val/loss 3\n" in text
    assert "@autoexp" not in text


def test_a_csv_file_goes_on_behind_the_step_that_is_gone_on_from(tmp_path: Path) -> None:
    """What an attempt before wrote beyond it was of steps that are done again."""
    config = LoggingConfig(logger_type="csv")
    first = trackers.create_logger(config, directory=tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1.0 / step}, step)
    first.close()
    again = trackers.create_logger(config, directory=tmp_path, resumed_at=2)
    again.log_metrics({"loss": 0.25}, 3)
    again.close()
    rows = (tmp_path / "metrics.csv").read_text().split()
    assert rows == ["step,metric,value", "1,loss,1.0", "2,loss,0.5", "3,loss,0.25"]


def test_a_csv_file_is_whole_whenever_a_training_is_killed(tmp_path: Path) -> None:
    """What was kept of it is there before the first line of the next attempt."""
    config = LoggingConfig(logger_type="csv")
    first = trackers.create_logger(config, directory=tmp_path)
    first.log_metrics({"loss": 1.0}, 1)
    first.close()
    again = trackers.create_logger(config, directory=tmp_path, resumed_at=1)
    found = (tmp_path / "metrics.csv").read_text().split()
    again.close()
    assert found == ["step,metric,value", "1,loss,1.0"]


def test_what_is_taken_back_never_counts() -> None:
    """However many batches have waited to be added up."""
    metrics = MetricsManager(window=3)
    for number in range(1026):
        metrics.add_train_batch("a", {"loss": float(number)}, 1)
    metrics.take_back(3)
    assert metrics.end_epoch().batches == {"a": 1023}


def test_a_logger_that_cannot_begin_hinders_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config = LoggingConfig(logger_type="csv", csv_path=str(tmp_path / "file" / "metrics.csv"))
    logger = trackers.create_logger(config, directory=tmp_path)
    logger.log_metrics({"loss": 1.0}, 1)
    assert "csv cannot begin" in caplog.text


def test_a_logger_that_fails_hinders_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once."""

    class Failing(loggers.Logger):
        def log_metrics(self, metrics: Any, step: int) -> None:
            raise OSError("disk full")

    stream = io.StringIO()
    both = loggers.CompositeLogger([Failing(), loggers.ConsoleLogger(stream)])
    both.log_metrics({}, 1)
    both.log_metrics({}, 2)
    both.log_text("a", "b", 2)
    assert len(stream.getvalue().splitlines()) == 3
    assert caplog.text.count("disk full") == 1


def test_a_tracker_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to install, before training."""
    for name in ("wandb", "mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    for kind in ("wandb", "mlflow", "tensorboard"):
        config = LoggingConfig(logger_type=kind, wandb_project="p", tensorboard_dir=str(tmp_path))
        with pytest.raises(TrainerError, match=f"the package `{kind}` is not installed here"):
            trackers.create_logger(config, directory=tmp_path)


def test_a_run_of_a_tracker_goes_on_under_its_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same for each attempt, another for another training."""
    ids = []

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...
        def finish(self) -> None: ...

    def init(**given: Any) -> Run:
        ids.append((given["id"], given["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = LoggingConfig(logger_type="wandb", wandb_project="p")
    for directory in ("a", "a", "b"):
        trackers.create_logger(config, directory=tmp_path / directory).close()
    assert ids[0] == ids[1] != ids[2]
    assert ids[0][1] == "allow"


def test_loggers_are_those_that_are_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The console always; W&B never without a project."""
    assert trackers._kinds(LoggingConfig(logger_type="csv")) == ["console", "csv"]
    assert trackers._kinds(LoggingConfig(logger_type="composite")) == ["console"]
    given = LoggingConfig(logger_type="composite", tensorboard_dir="x")
    assert trackers._kinds(given) == ["console", "tensorboard"]
    assert trackers._kinds(LoggingConfig(logger_type="wandb")) == ["console"]
    assert "wandb_project is not set" in caplog.text


# ---------------------------------------------------------------- agreement, patience


class Ranks:
    """An engine of two ranks, of which the other one always wants to save."""

    world_size, on_cpu = 2, True

    def highest(self, values: Any) -> list[float]:
        return [max(a, b) for a, b in zip(values, [0, 0, 1, 0, 0, -64], strict=True)]


def test_ranks_talk_when_they_agreed_to() -> None:
    """First at once; then after as many steps as the slowest of them wants."""
    agreement = Agreement(Ranks())  # type: ignore[arg-type]
    assert agreement.due()
    assert agreement.reached(Wishes(signum=15)) == Wishes(signum=15, save=1)
    waited = next(count for count in range(1, 100) if agreement.due())
    assert 1 <= waited <= 64
    always = Agreement(Ranks(), each_step=True)  # type: ignore[arg-type]
    always.reached(Wishes())
    assert always.due()


def test_patience_ends() -> None:
    """After so many looks without a better value, in either direction."""
    stopping = EarlyStopping(2, "val_acc", "max", min_delta=0.1)
    assert [bool(stopping.look({"val/acc": value})) for value in (0.5, 0.55, 0.7, 0.7, 0.7)] == [
        *(False, False, False, False, True)
    ]
    with pytest.raises(TrainerError, match="did you mean `val/acc`"):
        EarlyStopping(2, "val_ac").look({"val/acc": 1.0})


def test_an_interval_of_a_scheduler_is_step_or_epoch() -> None:
    optimizer = torch.optim.SGD([torch.ones(1)], lr=1)
    bare = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert scheduled(bare, "epoch").interval == "epoch"
    assert scheduled((bare, "step"), "epoch").interval == "step"
    with pytest.raises(ValueError, match="must be step or epoch"):
        scheduled((bare, "batch"), "epoch")


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"early_stopping_patience": 0}, "early_stopping_patience must be a whole number above 0"),
        ({"early_stopping_mode": "best"}, "early_stopping_mode must be min or max"),
        ({"scheduler_interval": "batch"}, "scheduler_interval must be step or epoch"),
        ({"max_steps": 1.5}, "max_steps must be a whole number"),
        ({"experiment_name": " "}, "experiment_name must be text"),
        ({"per_loader_optimizer_id": [-1]}, "per_loader_optimizer_id must hold"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    """With the field."""
    with pytest.raises(ValueError, match=message):
        GenericTrainerConfig(**given)


def test_an_experiment_says_how_it_is_trained() -> None:
    """What stands in two places is taken from the one that says more, and refused where both do."""
    config = ExperimentConfig(
        experiment_name="x",
        training=TrainingConfig(gradient_accumulation_steps=4, save_frequency=7),
        performance=PerformanceConfig(compile_model=True),
    )
    found = trainer_config(config)
    assert found.performance.gradient_accumulation_steps == 4
    assert found.performance.compile_model
    assert found.checkpoint.save_every_n_steps == 7
    assert trainer_config(found) is found
    with pytest.raises(ValueError, match=r"performance\.gradient_accumulation_steps is 2"):
        ExperimentConfig(
            experiment_name="x",
            training=TrainingConfig(gradient_accumulation_steps=4),
            performance=PerformanceConfig(gradient_accumulation_steps=2),
        )


CONFIGS: list[Any] = [
    {"experiment_name": "x", "trainer": {"batch_size": 4, "max_epochs": 2}},
    {
        "experiment_name": "x",
        "model": {"type": "a.B", "heads": 3, "dropout": 0},
        "optimizer": {"betas": [0.8, 0.9], "custom_params": {"fused": True}},
        "scheduler": {"type": "multistep", "warmup_steps": 0, "milestones": [1, 2]},
        "train_loader_config": {"sampling_strategy": "weighted", "dataloader_weights": [1, 2]},
        "validation": {"frequency": "every_n_steps", "every_n_steps": 3},
        "ddp": {"devices": 2},
        "fault_tolerance": {"nonfinite_loss": "skip"},
    },
    {"experiment_name": "x", "optimiser": {}},
    {"experiment_name": "x", "optimizer": {"lr": "fast"}},
    {"experiment_name": "x", "optimizer": {"lr": -1.0}},
    {"experiment_name": "x", "training": {"max_epochs": 1.5}},
    {"experiment_name": "x", "logging": {"logger_type": "paper"}},
    {"experiment_name": "x", "tags": "ab"},
    {"experiment_name": "x", "training": {"batch_size": 2}, "data": "text"},
    {"experiment_name": "x", "validation": {"aggregation": []}},
    {"experiment_name": "x", "training": {"use_amp": False}, "performance": {"use_amp": True}},
    {"experiment_name": "x", "training": {"max_grad_norm": 2.0}, "performance": {"clip_grad_norm": 3.0}},
    {},
    [],
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_job_reads_a_config_as_the_orchestrator_does(config: Any) -> None:
    """Two readers of one thing: what one refuses the other does, and what they make is equal."""
    try:
        wanted: Any = experiments.experiment(config)
    except ConfigurationError:
        with pytest.raises(ConfigurationError):
            reading.experiment(config)
    else:
        found = reading.experiment(config)
        assert found == wanted
        assert reading.experiment(json.loads(json.dumps(plain(found.to_dict())))) == found


def test_mistakes_in_a_config_are_said_with_their_keys(tmp_path: Path) -> None:
    """All of a level at once, with suggestions."""
    with pytest.raises(ValidationError) as error:
        reading.experiment({"experiment_name": "x", "optimizer": {"lrr": 1}, "model": {"type": 3}})
    assert "optimizer.lrr: unknown key\n  -> did you mean `lr`?" in str(error.value)
    assert "model.type: must be str, got 3" in str(error.value)
    file = tmp_path / "x.json"
    file.write_text('{\n"a": }')
    with pytest.raises(ConfigurationError, match=r"x\.json:2: is no JSON"):
        reading.read_file(file)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        reading.read_file(tmp_path / "none.json")
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is no text in UTF-8"):
        reading.read_file(file)
    file = tmp_path / "x.yaml"
    file.write_text("experiment_name: x\ntraining: {max_epochs: 3}\noptimizer: {lr: 1e-4}\n")
    found = reading.read_file(file)
    assert (found.training.max_epochs, found.optimizer.lr) == (3, 0.0001)


# ---------------------------------------------------------------- from names


def config_of(**sections: Any) -> ExperimentConfig:
    return reading.experiment({"experiment_name": "x", **sections})


class Line(nn.Module):
    """A model with a loss."""

    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1).requires_grad_(trained)

    def forward(self, inputs: Any) -> Any:
        return self.line(inputs)

    @staticmethod
    def training_step(trainer: Any, batch: Any, *_: Any) -> Any:
        return trainer.model(batch).sum()


def four_batches() -> list[list[torch.Tensor]]:
    return [[torch.ones(2, 2)] * 4]


def no_loaders() -> None: ...


HERE = "test_trainer_parts"
WEIGHTED = {"sampling_strategy": "weighted", "dataloader_weights": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": f"{HERE}.Lime"}}, "model.type: `test_trainer_parts.Lime` cannot be found"),
        ({"model": {"type": f"{HERE}.HERE"}}, "which cannot be called"),
        ({"model": {"type": f"{HERE}.Line", "trained": False}}, "has no parameter that wants a gradient"),
        ({"data": {"dataset_name": f"{HERE}.no_loaders"}}, "no_loaders: gives no loaders"),
        ({"optimizer": {"custom_params": {"nope": 1}}}, "optimizer.custom_params: AdamW"),
        ({"scheduler": {"type": "cosine"}}, "set scheduler.max_steps"),
        ({"train_loader_config": WEIGHTED}, "dataloader_weights has 2 items for 1"),
        ({"validation": {"aggregation": "custom"}}, "call set_validation_aggregation"),
        ({"hooks": {"hook_classes": [f"{HERE}.Line"]}}, "is no class of TrainerHooks"),
        ({"custom_params": {"training_step": 3}}, "custom_params.training_step: must be a dotted path"),
        ({"performance": {"precision": "64-bits"}}, "Fabric cannot be set up: Precision '64-bits'"),
        ({"performance": {"compile_model": True, "compile_backend": "no"}}, "compile_backend: Invalid"),
        ({"training": {"early_stopping_patience": 1}}, "there are no validation loaders"),
    ],
)
def test_a_config_that_cannot_be_trained_ends_with_its_key_and_exit_code_2(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From which the orchestrator sees that no restart will mend it."""
    config: dict[str, Any] = {
        "experiment_name": "x",
        "model": {"type": f"{HERE}.Line"},
        "data": {"dataset_name": f"{HERE}.four_batches"},
        "training": {"max_epochs": 1},
        "checkpoint": {"root_dir": str(tmp_path)},
        "ddp": {"accelerator": "cpu"},
        "deterministic": False,
    }
    assert program.main(["--json", json.dumps({**config, **changes})]) == 2
    assert message in capsys.readouterr().err


def test_names_are_registered_or_dotted_paths() -> None:
    """What is neither is said, with what there is."""
    building.register("model", "registered-line")(lambda config: nn.Linear(config.model.hidden_size, 1))
    config = config_of(model={"type": "registered-line", "hidden_size": 7})
    model = building.made(building.named("model", "registered-line", ""), config, "model")
    assert model.in_features == 7
    with pytest.raises(TrainerError, match="no model is registered as `nothing`"):
        building.named("model", "nothing", "model.type")
    with pytest.raises(ValueError, match="registered already"):
        building.register("model", "registered-line")(nn.Linear)
    with pytest.raises(ValueError, match="kind must be one of"):
        building.register("loss", "x")
    linear = config_of(model={"type": "torch.nn.Linear", "in_features": 2, "out_features": 3, "nope": 1})
    with pytest.raises(TrainerError, match="does not take nope"):
        building.made(nn.Linear, linear, "model")


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "torch.optim.RMSprop"])
def test_optimizers_are_made(kind: str) -> None:
    """With the learning rate; biases and norms do not decay."""
    made = building.optimizer_of(config_of(optimizer={"type": kind, "lr": 0.5}), nn.Linear(2, 2))
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in made.param_groups] == [0.01, 0.0]


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        (
            {"type": "cosine", "warmup_steps": 2, "max_steps": 4, "min_lr": 0.2},
            [0.5, 1.0, 1.0, 0.6, 0.2, 0.2],
        ),
        (
            {"type": "linear", "warmup_steps": 0, "max_steps": 4, "min_lr": 0},
            [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        ),
        ({"type": "constant", "warmup_steps": 2}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"type": "step", "step_size": 2, "gamma": 0.5}, [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]),
        ({"type": "multistep", "milestones": [1, 3], "gamma": 0.5}, [1.0, 0.5, 0.5, 0.25, 0.25, 0.25]),
    ],
)
def test_learning_rates_follow_their_schedule(scheduler: dict[str, Any], rates: list[float]) -> None:
    """Up in the warmup, then down as the name says."""
    config = config_of(optimizer={"type": "sgd", "lr": 1.0}, scheduler=scheduler)
    optimizer = building.optimizer_of(config, nn.Linear(1, 1, bias=False))
    (made,) = building.scheduler_of(config, optimizer)
    found = []
    for _ in rates:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert found == pytest.approx(rates)


def test_a_schedule_needs_an_end() -> None:
    """Which may be that of the training."""
    with pytest.raises(TrainerError, match="when the learning rate is down"):
        config = config_of(scheduler={"type": "cosine"})
        building.scheduler_of(config, building.optimizer_of(config, nn.Linear(1, 1)))


def test_the_program_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2, and no traceback."""
    assert program.main(["--json", '{"experiment_name": "x", "modle": {}}']) == 2
    assert "did you mean `model`?" in capsys.readouterr().err
    assert program.main([]) == 2


def test_checkpoints_go_where_the_orchestrator_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the config says where."""
    monkeypatch.setenv("AUTOEXP_CHECKPOINT_DIR", "/there")
    assert keeping.root(config_of().checkpoint) == Path("/there")
    assert keeping.root(config_of(checkpoint={"root_dir": "mine"}).checkpoint) == Path("mine")


def test_errors_of_the_trainer_are_errors_of_this_program() -> None:
    """Doors show them without a traceback."""
    import oellm_autoexp

    for name in ("TrainerError", "PreemptionTimeoutError", "CheckpointTimeoutError", "NonFiniteLossError"):
        assert issubclass(getattr(oellm_autoexp, name), AutoexpError)
