"""A hook for trainings that a test disturbs: it makes sure that they are there to be disturbed.

PAUSES, a directory: a training that finds `<job>.<step>.<rank>` there stops behind that step, until a signal
comes that it may live through, and says so by another name of the file, `….reached`.
PACE: so many seconds at least each batch takes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from oellm_autoexp.trainer import TrainerHooks


def at(directory: Path, job: str, step: int, rank: int = 0) -> Path:
    """The file that has a training stop behind a step."""
    return directory / f"{job}.{step}.{rank}"


def reached(path: Path) -> Path:
    """That file, once the training is there."""
    return path.with_name(f"{path.name}.reached")


class Pause(TrainerHooks):
    """Named in `hooks.hook_classes` of an experiment; without the variables it does nothing."""

    def __init__(self) -> None:
        self._directory = os.environ.get("PAUSES")
        self._job = os.environ.get("AUTOEXP_JOB_NAME", "")
        self._pace = float(os.environ.get("PACE", "0"))

    def on_train_batch_end(self, trainer: Any) -> None:
        time.sleep(self._pace)
        if self._directory is None:
            return
        ranks = torch.distributed
        rank = ranks.get_rank() if ranks.is_available() and ranks.is_initialized() else 0
        wanted = at(Path(self._directory), self._job, trainer.global_step, rank)
        if wanted.exists():
            self._wait(wanted)

    def _wait(self, wanted: Path) -> None:
        # Signals that are handled write to this pipe: one that comes before the read is not missed.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing)
        try:
            wanted.rename(reached(wanted))
            os.read(reading, 1)
        finally:
            signal.set_wakeup_fd(before)
            os.close(reading)
            os.close(writing)
