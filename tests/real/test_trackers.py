"""The trackers themselves: what is told to TensorBoard, Weights & Biases (offline) and MLflow is read back.

Their packages are installed by `make test`.
Each training is a process of its own: trackers change the output, the warnings and the environment of theirs.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from oellm_autoexp.core.experiment import LoggingConfig
from oellm_autoexp.trainer.trackers import create_logger

ROOT = Path(__file__).parents[2]
#: Trackers warn of what is to come in their own versions.
pytestmark = pytest.mark.filterwarnings("ignore")

#: Trains eight batches an epoch, twice; told a step, it is told to leave behind that.
PROGRAM = """
import logging, os, signal, sys
import matplotlib
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from oellm_autoexp.trainer import (
    CheckpointConfig, GenericTrainer, GenericTrainerConfig, LoggingConfig, TrainerHooks
)

matplotlib.use("Agg")
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
kinds, leave_at = sys.argv[1].split(","), int(sys.argv[2])
logging_config = LoggingConfig(
    logger_type="composite", composite_loggers=kinds, log_scalars_every_n_steps=1,
    wandb_project="tries", wandb_mode="offline", wandb_tags=["one", "two"], wandb_notes="to be read back",
    mlflow_tracking_uri=os.environ.get("TRIED_MLFLOW", "sqlite:///mlflow.db"), tensorboard_dir="tb",
)

class Show(TrainerHooks):
    def on_epoch_end(self, trainer, epoch):
        import matplotlib.pyplot as plt
        figure = plt.figure(figsize=(1, 1))
        red = torch.zeros(3, 2, 4)
        red[0] = 1
        grey = torch.full((2, 4), 128, dtype=torch.uint8)
        trainer.logger.log_text("shown/words", "loss < 1 & <b>falling</b>", trainer.global_step)
        trainer.logger.log_image("shown/red", red, trainer.global_step)
        trainer.logger.log_image("shown/grey", grey, trainer.global_step)
        trainer.logger.log_matplotlib_figure("shown/figure", figure, trainer.global_step)
        plt.close(figure)

    def on_train_batch_end(self, trainer):
        if trainer.global_step == leave_at:
            signal.raise_signal(signal.SIGTERM)

def step(trainer, batch, *_):
    x, y = batch
    return {"loss": nn.functional.mse_loss(trainer.model(x), y)}

torch.manual_seed(1)
x = torch.randn(16, 2)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2, shuffle=True)
model = nn.Linear(2, 1)
config = GenericTrainerConfig(
    experiment_name="tried", seed=1, logging=logging_config, checkpoint=CheckpointConfig(save_every_n_steps=3)
)
trainer = GenericTrainer(config, model, [torch.optim.SGD(model.parameters(), lr=0.05)])
trainer.set_training_step(step)
trainer.hook_manager.register_hook(Show())
trainer.fit([loader], [loader], max_epochs=2)
"""
STEPS = list(range(1, 17))


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOEXP_", "SLURM_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true", **more}


def train(directory: Path, kinds: str, leave_at: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kinds, str(leave_at)],
        cwd=directory,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == (143 if leave_at else 0), done.stderr
    return done


def told(*attempts: subprocess.CompletedProcess[str]) -> dict[int, float]:
    """The curve of the loss on the console; of a step that was done twice the later one."""
    curve = {}
    for done in attempts:
        for line in done.stdout.splitlines():
            said = json.loads(line.removeprefix("@autoexp ")) if line.startswith("@autoexp") else {}
            if "loss" in said.get("metrics", {}):
                curve[said["progress"]["step"]] = said["metrics"]["loss"]
    return curve


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_shows_one_curve_through_a_restart(tmp_path: Path) -> None:
    """Killed between two checkpoints; the points behind the one that is gone on from are those of the second
    attempt alone."""
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    first = train(tmp_path, "tensorboard", leave_at=5)
    # As after SIGKILL: only the checkpoint of step 3 is there.
    for place in (tmp_path / "checkpoints" / "tried").iterdir():
        if re.search(r"\d{6}", place.name) and "000003" not in place.name:
            place.unlink()
    second = train(tmp_path, "tensorboard")
    assert len(list((tmp_path / "tb" / "tried").glob("events.*"))) == 2
    shown = events.EventAccumulator(str(tmp_path / "tb" / "tried"), {"images": 0, "tensors": 0}).Reload()
    points = shown.Scalars("train/loss")
    assert [point.step for point in points] == STEPS
    assert {point.step: point.value for point in points} == pytest.approx(told(first, second))
    assert min(told(second)) == 4 < max(told(first))
    assert [point.step for point in shown.Scalars("val/loss")] == [8, 16]
    red, grey = (shown.Images(f"shown/{name}")[-1] for name in ("red", "grey"))
    assert (red.step, red.width, red.height, grey.height) == (16, 4, 2, 2)
    assert shown.Images("shown/figure")[-1].width == 100
    words = shown.Tensors("shown/words/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert words == "loss < 1 & <b>falling</b>"


# ---------------------------------------------------------------- Weights & Biases


def records(data: bytes) -> Iterator[Any]:
    """What is in a file of an offline run: blocks of 32 KiB of parts, each behind seven bytes."""
    proto = import_module("wandb.proto.wandb_internal_pb2")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = proto.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_goes_on_with_its_run_through_a_restart(tmp_path: Path) -> None:
    """Two attempts, one run: the same id, and our steps beside those of W&B, which begin anew."""
    import_module("wandb")
    attempts = train(tmp_path, "wandb", leave_at=5), train(tmp_path, "wandb")
    places = sorted((tmp_path / "wandb").glob("offline-run-*"))
    found = [list(records(next(place.glob("*.wandb")).read_bytes())) for place in places]
    of = lambda kind, each: [getattr(record, kind) for record in each if record.HasField(kind)]  # noqa: E731
    runs = [run for attempt in found for run in of("run", attempt)]
    assert len(found) == len(runs) == 2
    assert len({run.run_id for run in runs}) == 1
    (run, _) = runs
    assert (run.project, run.display_name, list(run.tags)) == ("tries", "tried", ["one", "two"])
    assert run.notes == "to be read back"
    told_of = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert told_of["checkpoint"]["save_every_n_steps"] == 3
    curve, seen = {}, set()
    for row in (row for attempt in found for row in of("history", attempt)):
        items = {"/".join(each.nested_key) or each.key: each.value_json for each in row.item}
        seen |= {name.removesuffix("/_type") for name in items if name.endswith("/_type")}
        if "train/loss" in items:
            curve[int(items["trainer/step"])] = float(items["train/loss"])
    assert list(curve) == STEPS
    assert curve == pytest.approx(told(*attempts))
    assert seen == {"shown/words", "shown/red", "shown/grey", "shown/figure"}
    words = next(places[0].rglob("*.html"), None) or next(places[1].rglob("*.html"))
    assert "<pre>loss &lt; 1 &amp; &lt;b&gt;falling&lt;/b&gt;</pre>" in words.read_text()
    assert [each.exit_code for attempt in found for each in of("exit", attempt)] == [1, 0]
    assert [len(of("preempting", attempt)) for attempt in found] == [1, 0]


# ---------------------------------------------------------------- MLflow


def test_mlflow_goes_on_with_its_run_through_a_restart(tmp_path: Path) -> None:
    """One run with the config as its parameters, which ends as the training does."""
    mlflow = import_module("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    first = train(tmp_path, "mlflow", leave_at=5)
    client = mlflow.MlflowClient(store)
    number = client.get_experiment_by_name("tried").experiment_id
    (run,) = client.search_runs([number])
    assert run.info.status == "KILLED"
    second = train(tmp_path, "mlflow")
    (run,) = client.search_runs([number])
    assert run.info.status == "FINISHED"
    assert run.data.params["checkpoint.save_every_n_steps"] == "3"
    assert {"one", "two"} <= set(run.data.tags)
    assert run.data.tags["mlflow.note.content"] == "to be read back"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [each.step for each in history] == STEPS
    assert {each.step: each.value for each in history} == pytest.approx(told(first, second))
    kept = {
        str(place.relative_to(tmp_path / "mlruns" / number / run.info.run_id / "artifacts"))
        for place in (tmp_path / "mlruns").rglob("shown/*/*")
    }
    assert kept == {
        f"shown/{name}/{step}.{ending}"
        for name, ending in (("words", "txt"), ("red", "png"), ("grey", "png"), ("figure", "png"))
        for step in (8, 16)
    }


def test_a_run_that_the_server_does_not_know_is_begun_anew(tmp_path: Path) -> None:
    """And remembered; names that MLflow would not take are changed, and a value may be no number."""
    mlflow = import_module("mlflow")
    for store in ("one", "two", "two"):
        where = f"sqlite:///{tmp_path}/{store}.db"
        config = LoggingConfig(logger_type="mlflow", mlflow_tracking_uri=where)
        logger = create_logger(config, name="lost", directory=tmp_path)
        logger.log_metrics({"train/dl_a(b)/loss": math.nan}, 1)
        logger.close("failed")
        client = mlflow.MlflowClient(where)
        (run,) = client.search_runs([client.get_experiment_by_name("lost").experiment_id])
        assert run.info.status == "FAILED"
        assert math.isnan(run.data.metrics["train/dl_a_b_/loss"])


# ---------------------------------------------------------------- all of them


def test_a_tracker_that_cannot_begin_hinders_nothing(tmp_path: Path) -> None:
    """A server that is not there is said once; the training and the other trackers go on."""
    import_module("mlflow"), import_module("tensorboard")
    nobody = {"TRIED_MLFLOW": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = train(tmp_path, "mlflow,tensorboard", **nobody)
    assert list(told(done)) == STEPS
    assert done.stderr.count("mlflow cannot begin, and training goes on without it") == 1
    assert list((tmp_path / "tb" / "tried").glob("events.*"))


def test_of_several_processes_the_first_one_logs(tmp_path: Path) -> None:
    """Two processes that train together are one run of each tracker."""
    for package in ("tensorboard", "wandb", "mlflow"):
        mlflow = import_module(package)
    config = json.loads((ROOT / "examples" / "lm" / "config.json").read_text())
    config["model"].update(hidden_size=16, num_layers=1, heads=2, context=16)
    config["data"].update(context=16, path="lm.py", batch_size=8)
    config["training"].update(max_steps=4)
    config["scheduler"].update(warmup_steps=2)
    config["ddp"] = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    config["logging"] = {
        "logger_type": "composite",
        "composite_loggers": ["tensorboard", "wandb", "mlflow", "csv"],
        "log_scalars_every_n_steps": 1,
        "wandb_project": "tries",
        "wandb_mode": "offline",
        "mlflow_tracking_uri": "sqlite:///mlflow.db",
    }
    (tmp_path / "lm.py").write_text((ROOT / "examples" / "lm" / "lm.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "oellm_autoexp.trainer", "--json", json.dumps(config)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "tb_logs" / "lm").iterdir())) == 1
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("lm").experiment_id])) == 1
    rows = (tmp_path / "checkpoints" / "lm" / "metrics.csv").read_text().splitlines()
    assert sum(",train/loss," in row for row in rows) == 4
