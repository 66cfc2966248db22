"""Where metrics go: the log (for people and the orchestrator), a CSV file, and several loggers at once.

Only rank 0 logs. Trackers are in `trackers`.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

_log = logging.getLogger("oellm_autoexp.trainer")

Metrics = Mapping[str, float]
#: How a training ended: `left` is to go on in another attempt.
Ended = Literal["finished", "left", "failed"]
#: The orchestrator cuts lines behind 8192 bytes.
_MAX_LINE = 8000


class Logger:
    """The base of loggers: takes everything, does nothing. `step` counts optimizer steps."""

    def log_metrics(self, metrics: Metrics, step: int) -> None: ...
    def log_epoch_summary(self, epoch: int, metrics: Metrics, step: int) -> None:  # noqa: ARG002
        """What an epoch (0-based) came to; what validation found was logged before."""
        self.log_metrics(_of_epoch(metrics), step)

    def log_loader_proportions(self, epoch: int, proportions: Metrics, step: int) -> None:  # noqa: ARG002
        """How the loaders took part in an epoch."""
        self.log_metrics({f"loaders/{name}": value for name, value in proportions.items()}, step)

    def log_checkpoint(self, path: Path, step: int) -> None: ...
    def log_signal(self, name: str, step: int) -> None:
        """Something that the orchestrator may act on."""

    def log_text(self, tag: str, text: str, step: int) -> None: ...
    def log_image(self, tag: str, image: Any, step: int) -> None:
        """A tensor or array: (channels, height, width) or (height, width), in bytes or from 0 to 1."""

    def log_matplotlib_figure(self, tag: str, figure: Any, step: int) -> None: ...
    def close(self, ended: Ended = "finished") -> None: ...


class ConsoleLogger(Logger):
    """A bar on a terminal, else one line that the orchestrator reads (`@autoexp {json}`).

    `total_steps`: where the bar ends, None where nobody knows.
    """

    def __init__(self, stream: TextIO | None = None, total_steps: int | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._total = total_steps
        self._bar = self._stream.isatty()
        self._width = 0

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        if self._bar:
            self._draw(metrics, step)
        else:
            self._report({"metrics": _short(metrics), "progress": {"step": step}})

    def log_epoch_summary(self, epoch: int, metrics: Metrics, step: int) -> None:
        if self._bar:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/dl_" not in name)
            self._line(f"epoch {epoch + 1} (step {step}): {shown}")
        else:
            self._report({"metrics": _of_epoch(metrics), "progress": {"step": step, "epoch": epoch + 1}})

    def log_loader_proportions(self, epoch: int, proportions: Metrics, step: int) -> None:
        shown = ", ".join(
            f"{name.removesuffix('_batches')} {count:.0f}"
            for name, count in proportions.items()
            if name.endswith("_batches")
        )
        self._line(f"epoch {epoch + 1} (step {step}): batches by loader: {shown}")

    def log_checkpoint(self, path: Path, step: int) -> None:
        if self._bar:
            self._line(f"checkpoint saved: {path} (step {step})")
        else:
            self._report({"checkpoint": str(path), "step": step, "progress": {"step": step}})

    def log_signal(self, name: str, step: int) -> None:
        if not self._bar:
            self._report({"signal": name, "step": step})

    def log_text(self, tag: str, text: str, step: int) -> None:
        self._line(f"{tag} (step {step}): {text}")

    def close(self, ended: Ended = "finished") -> None:  # noqa: ARG002
        if self._bar and self._width:
            self._write("\n")
            self._width = 0

    def _report(self, said: Mapping[str, Any]) -> None:
        if "metrics" in said:
            said = {**said, "metrics": _without_only_loader(said["metrics"])}
        line = json.dumps(_plain(said))
        if len(line) > _MAX_LINE and "metrics" in said:
            metrics = {name: value for name, value in said["metrics"].items() if "dl_" not in name}
            line = json.dumps(_plain({**said, "metrics": dict(list(metrics.items())[:100])}))
        self._write(f"@autoexp {line}\n")

    def _draw(self, metrics: Metrics, step: int) -> None:
        short = _short(metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in short.items() if "/" not in name)
        if self._total:
            done = min(20, 20 * step // self._total)
            text = f"[{'=' * done}{' ' * (20 - done)}] {step}/{self._total}  {shown}"
        else:
            text = f"step {step}  {shown}"
        text = text[:200]
        self._write(f"\r{text}{' ' * max(0, self._width - len(text))}")
        self._width = len(text)

    def _line(self, text: str) -> None:
        clear = f"\r{' ' * self._width}\r" if self._bar and self._width else ""
        self._width = 0
        self._write(f"{clear}{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _without_only_loader(metrics: Metrics) -> Metrics:
    """The figures of a loader that is alone are those of all loaders."""
    if len({name.split("dl_", 1)[1].split("/")[0] for name in metrics if "dl_" in name}) != 1:
        return metrics
    return {name: value for name, value in metrics.items() if "dl_" not in name}


def _of_epoch(metrics: Metrics) -> dict[str, float]:
    """The figures of training, under names of their own: a curve has one kind of point."""
    return {f"epoch/{name}": value for name, value in metrics.items() if name.startswith("train/")}


def _short(metrics: Metrics) -> dict[str, float]:
    """`train/loss` is what everybody calls the loss."""
    return {name.removeprefix("train/"): value for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    """JSON has no number for what is none."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class CSVLogger(Logger):
    """A file with a line for each value: step, metric, value. Lines behind `resumed_at` are left out."""

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resumed_at and path.exists():
            with path.open(newline="") as before:
                kept = [row for row in csv.reader(before) if len(row) == 3 and _up_to(row[0], resumed_at)]
        # Beside the old file, which counts until this one is whole.
        temporary = path.with_name(f"{path.name}.new")
        self._file = temporary.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(("step", "metric", "value"))
        self._rows.writerows(kept)
        self._file.flush()
        temporary.replace(path)

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        self._rows.writerows((step, name, repr(value)) for name, value in metrics.items())
        self._file.flush()

    def close(self, ended: Ended = "finished") -> None:  # noqa: ARG002
        self._file.close()


def _up_to(step: str, last: int) -> bool:
    return step.isdecimal() and int(step) <= last


class CompositeLogger(Logger):
    """Several loggers. What fails in one is reported once for each of its methods, and hinders no other."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)
        self._reported: set[tuple[int, str]] = set()

    def _each(self, method: str, *arguments: Any) -> None:
        for number, logger in enumerate(self.loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # noqa: BLE001 - trackers fail in their own ways
                if (number, method) not in self._reported:
                    self._reported.add((number, method))
                    _log.warning(
                        "%s.%s failed, and training goes on without it: %s",
                        *(type(logger).__name__, method, error),
                    )

    def log_metrics(self, metrics: Metrics, step: int) -> None:
        self._each("log_metrics", metrics, step)

    def log_epoch_summary(self, epoch: int, metrics: Metrics, step: int) -> None:
        self._each("log_epoch_summary", epoch, metrics, step)

    def log_loader_proportions(self, epoch: int, proportions: Metrics, step: int) -> None:
        self._each("log_loader_proportions", epoch, proportions, step)

    def log_checkpoint(self, path: Path, step: int) -> None:
        self._each("log_checkpoint", path, step)

    def log_signal(self, name: str, step: int) -> None:
        self._each("log_signal", name, step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        self._each("log_text", tag, text, step)

    def log_image(self, tag: str, image: Any, step: int) -> None:
        self._each("log_image", tag, image, step)

    def log_matplotlib_figure(self, tag: str, figure: Any, step: int) -> None:
        self._each("log_matplotlib_figure", tag, figure, step)

    def close(self, ended: Ended = "finished") -> None:
        self._each("close", ended)
