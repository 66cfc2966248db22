"""A hook for trainings that a test disturbs: it makes sure that they are there to be disturbed.

PAUSES, a directory: a training that finds `<job>.<step>.<rank>` there stops behind that step, until a signal
comes that it lives through. It gives the file another name, `….reached`, and holds it open meanwhile.
One that says HANG ends by SIGKILL alone, one that says NEAR_DEADLINE goes on shortly before its job's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from oellm_autoexp.trainer import TrainerHooks

HANG, NEAR_DEADLINE = "hang", "near deadline"
#: Seconds before the deadline: less than the quarter of a minute in which a training is to leave.
_NEAR_S = 10


def at(directory: Path, job: str, step: int, rank: int = 0) -> Path:
    """The file that has a training stop behind a step."""
    return directory / f"{job}.{step}.{rank}"


def reached(path: Path) -> Path:
    """That file, once the training is there."""
    return path.with_name(f"{path.name}.reached")


def waiting(path: Path) -> int:
    """The process that waits where a file had it stop, whatever namespaces it is in."""
    place = reached(path).stat()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), place):
                return int(link.parts[2])
    raise AssertionError(f"nobody waits at {path.name}")


class Pause(TrainerHooks):
    """Named in `hooks.hook_classes` of an experiment; without the variables it does nothing."""

    def __init__(self) -> None:
        self._directory = os.environ.get("PAUSES")
        self._job = os.environ.get("AUTOEXP_JOB_NAME", "")

    def on_train_batch_end(self, trainer: Any) -> None:
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
            with wanted.open() as file:
                how = file.read()
                if how == NEAR_DEADLINE:
                    signal.signal(signal.SIGALRM, lambda *_: None)
                    left = float(os.environ["AUTOEXP_DEADLINE"]) - _NEAR_S - time.time()
                    signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
                wanted.rename(reached(wanted))
                while os.read(reading, 1) and how == HANG:
                    pass
        finally:
            signal.set_wakeup_fd(before)
            os.close(reading)
            os.close(writing)
