"""Where metrics go beside the log: TensorBoard, W&B, MLflow; and the loggers that a config names.

Trackers are imported when they are made. One that fails, at its beginning or later, is reported once and
never ends a training; only a package that is missing does, before the first step.
"""

from __future__ import annotations

import html
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from oellm_autoexp.core.experiment import LOGGERS, LoggingConfig
from oellm_autoexp.errors import SetupError
from oellm_autoexp.trainer.loggers import CompositeLogger, ConsoleLogger, CSVLogger, Ended, Logger, Metrics

_log = logging.getLogger("oellm_autoexp.trainer")


def create_logger(
    config: LoggingConfig,
    *,
    name: str = "experiment",
    directory: Path = Path(),
    resumed_at: int = 0,
    total_steps: int | None = None,
    shown: Mapping[str, Any] | None = None,
) -> Logger:
    """The loggers that a config names.

    `directory` is where the ids of tracker runs are kept, so that an attempt goes on with the run of the one
    before; a CSV file lies there, too, unless it is named. `resumed_at`: the step that is gone on from.

    Raises:
        SetupError: the package of a tracker is not installed.
    """
    ids = _RunIds(directory / "tracker_runs.json")
    shown = shown or {}
    makers: dict[str, Callable[[], Logger]] = {
        "console": lambda: ConsoleLogger(total_steps=total_steps),
        "csv": lambda: CSVLogger(Path(config.csv_path or directory / "metrics.csv"), resumed_at),
        # A directory for each run: what is hidden behind `resumed_at` must be its own.
        "tensorboard": lambda: TensorBoardLogger(
            str(Path(config.tensorboard_dir or "tb_logs", directory.name or name)), resumed_at
        ),
        "wandb": lambda: WandbLogger(config, name, ids.get("wandb", lambda: uuid.uuid4().hex[:12]), shown),
        "mlflow": lambda: MLflowLogger(config, name, ids, shown),
    }
    made: list[Logger] = []
    for kind in _kinds(config):
        try:
            made.append(makers[kind]())
        except SetupError:
            raise
        except Exception as error:  # noqa: BLE001 - trackers fail in their own ways
            _log.warning("%s cannot begin, and training goes on without it: %s", kind, error)
    return CompositeLogger(made)


def _kinds(config: LoggingConfig) -> list[str]:
    kinds: list[str]
    if config.logger_type != "composite":
        kinds = [config.logger_type]
    elif config.composite_loggers is not None:
        kinds = list(dict.fromkeys(config.composite_loggers))
    else:
        tracker = "wandb" if config.wandb_project else "tensorboard" if config.tensorboard_dir else None
        kinds = ["console"] + ([tracker] if tracker else [])
    assert set(kinds) <= set(LOGGERS)
    if "wandb" in kinds and not config.wandb_project:
        _log.warning("logging.wandb_project is not set: metrics go to the console instead")
        kinds = list(dict.fromkeys("console" if kind == "wandb" else kind for kind in kinds))
    # The orchestrator reads the log, whatever else is written.
    return kinds if "console" in kinds else ["console", *kinds]


class TensorBoardLogger(Logger):
    """Event files of TensorBoard; what an attempt before wrote behind `resumed_at` is hidden."""

    def __init__(self, directory: str, resumed_at: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "tensorboard") from error
        purge = resumed_at + 1 if resumed_at else None
        self._writer: Any = SummaryWriter(directory, purge_step=purge)

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        self._writer.add_text(tag, text, step)

    def log_image(self, tag: str, image: Any, step: int) -> None:
        self._writer.add_image(tag, _pixels(image), step)

    def log_matplotlib_figure(self, tag: str, figure: Any, step: int) -> None:
        self._writer.add_figure(tag, figure, step)

    def close(self, ended: Ended = "finished") -> None:  # noqa: ARG002
        self._writer.close()


class WandbLogger(Logger):
    """A run of Weights & Biases, taken up under its id."""

    def __init__(self, config: LoggingConfig, name: str, run_id: str, shown: Mapping[str, Any]) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise _missing("wandb", "wandb") from error
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=config.wandb_name or name,
            tags=list(config.wandb_tags) or None,
            notes=config.wandb_notes,
            mode=config.wandb_mode,
            id=config.wandb_id or run_id,
            resume=config.wandb_resume or "allow",
            config=dict(shown),
        )
        # Weights & Biases drops steps that run back, which they do after a restart: our step is a metric.
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        self._run.log({**metrics, "trainer/step": step})

    def log_text(self, tag: str, text: str, step: int) -> None:
        shown = self._wandb.Html(f"<pre>{html.escape(text)}</pre>")
        self._run.log({tag: shown, "trainer/step": step})

    def log_image(self, tag: str, image: Any, step: int) -> None:
        pixels = _pixels(image).permute(1, 2, 0).numpy()
        self._run.log({tag: self._wandb.Image(pixels), "trainer/step": step})

    def log_matplotlib_figure(self, tag: str, figure: Any, step: int) -> None:
        self._run.log({tag: self._wandb.Image(figure), "trainer/step": step})

    def close(self, ended: Ended = "finished") -> None:
        if ended == "left":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if ended == "finished" else 1)


class MLflowLogger(Logger):
    """A run of MLflow, taken up under its id. What the config says is its parameters."""

    def __init__(self, config: LoggingConfig, name: str, ids: _RunIds, shown: Mapping[str, Any]) -> None:
        try:
            mlflow, self._entities = import_module("mlflow"), import_module("mlflow.entities")
        except ImportError as error:
            raise _missing("mlflow", "mlflow") from error
        self._error: type[Exception] = mlflow.MlflowException
        self._client: Any = mlflow.MlflowClient(config.mlflow_tracking_uri)
        create = lambda: self._new_run(config, name, shown)  # noqa: E731
        self._run = ids.get("mlflow", create)
        if not self._is_known():
            self._run = ids.get("mlflow", create, anew=True)
        self._client.update_run(self._run, status="RUNNING")

    def _is_known(self) -> bool:
        """Whether this server has the run: the one of the attempt before may have been another."""
        try:
            self._client.get_run(self._run)
        except self._error as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _new_run(self, config: LoggingConfig, name: str, shown: Mapping[str, Any]) -> str:
        number = self._experiment(config.mlflow_experiment or name)
        tags = dict.fromkeys(config.wandb_tags, "")
        if config.wandb_notes:
            tags["mlflow.note.content"] = config.wandb_notes
        run = str(self._client.create_run(number, run_name=name, tags=tags).info.run_id)
        params = (self._entities.Param(_legal(key), value[:500]) for key, value in _flat(shown))
        while some := list(islice(params, 100)):  # as many as a request may have
            self._client.log_batch(run, params=some)
        return run

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except self._error:
                # Another job of the same sweep may have been faster.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        now = time.time_ns() // 1_000_000
        values = (self._entities.Metric(_legal(name), value, now, step) for name, value in metrics.items())
        while some := list(islice(values, 1000)):
            self._client.log_batch(self._run, metrics=some)

    def log_text(self, tag: str, text: str, step: int) -> None:
        self._client.log_text(self._run, text, f"{tag}/{step}.txt")

    def log_image(self, tag: str, image: Any, step: int) -> None:
        pixels = _pixels(image).permute(1, 2, 0).numpy()
        self._client.log_image(self._run, pixels, artifact_file=f"{tag}/{step}.png")

    def log_matplotlib_figure(self, tag: str, figure: Any, step: int) -> None:
        self._client.log_figure(self._run, figure, f"{tag}/{step}.png")

    def close(self, ended: Ended = "finished") -> None:
        status = {"finished": "FINISHED", "left": "KILLED", "failed": "FAILED"}[ended]
        self._client.set_terminated(self._run, status=status)


def _legal(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-./: ]", "_", name, flags=re.ASCII)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", str(value)


def _pixels(image: Any) -> Any:
    """An image as bytes: (channels, height, width)."""
    import torch

    pixels = torch.as_tensor(image).detach().cpu()
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"an image is (channels, height, width) with 1, 3 or 4 channels, got {list(pixels.shape)}"
        )
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels


class _RunIds:
    """A small file: tracker → id of its run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, tracker: str, create: Callable[[], str], *, anew: bool = False) -> str:
        """The id that is remembered; where there is none, or with `anew`, the one that `create` makes."""
        try:
            known: dict[str, str] = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            known = {}
        if anew or tracker not in known:
            known[tracker] = create()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(known))
            temporary.replace(self._path)
        return known[tracker]


def _missing(logger: str, package: str) -> SetupError:
    return SetupError(
        f"the package `{package}` is not installed here",
        where=f"logging.logger_type: {logger}",
        hint=f"pip install {package}, or choose another logger",
    )
