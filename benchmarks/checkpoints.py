"""What a checkpoint costs a training: how long it waits, and how long it takes to begin again.

    python benchmarks/checkpoints.py [MB] [ROUNDS]

The reference is `torch.save` to a file and `torch.load` of it, without fsync and checksums. All are measured
in turns, with the file in the page cache; the median of each is told.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table import Table, number

from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import CommitRecord
from oellm_autoexp.trainer.saving import Saver

#: Float32 values in each tensor.
_VALUES = 1_000_000


def state(megabytes: float) -> dict[str, Any]:
    """A model and the two moments of Adam."""
    values = int(megabytes * 1e6 / 4)
    names = range(max(3, values // _VALUES))
    return {f"p{name}": torch.randn(values // len(names)) for name in names}


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 302.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, action: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = action()
        spent[name].append((time.perf_counter() - begin) * 1000)
        return result

    with tempfile.TemporaryDirectory() as directory:
        root, live = Path(directory), state(megabytes)
        raw = root / "raw.ckpt"
        with Saver(LocalStore(root / "store"), keep=1) as saver:
            for step in range(rounds + 1):
                timed("torch.save", lambda: torch.save(live, raw))
                record = CommitRecord(name=f"{step}.ckpt", step=step, epoch=0)
                begin = time.perf_counter()
                timed("save, beside the training", lambda record=record: saver.save(live, record))
                saver.wait()
                spent["until it is on disk"].append((time.perf_counter() - begin) * 1000)
                again = CommitRecord(name=f"{step}.ckpt", step=step, epoch=0)
                timed("save, blocking", lambda again=again: saver.save(live, again, blocking=True))
            # A training that begins again does so beside no save, and beside nothing that one has left.
            live.clear()
            os.sync()
            path = saver.store.path(saver.store.records()[0].name)
            for _ in range(rounds + 1):
                timed("torch.load", lambda: torch.load(raw))
                timed("load, checked", lambda: saver.load(path))
    # The first round makes buffers and fills caches.
    found = {name: statistics.median(values[1:]) for name, values in spent.items()}
    table = Table(f"{megabytes:.0f} MB", "ms", "ratio", left=(26,))
    for name, reference in (
        ("torch.save", "torch.save"),
        ("save, beside the training", "torch.save"),
        ("until it is on disk", "torch.save"),
        ("save, blocking", "torch.save"),
        ("torch.load", "torch.load"),
        ("load, checked", "torch.load"),
    ):
        table.row(name, number(found[name]), number(found[name] / found[reference]))


if __name__ == "__main__":
    main()
