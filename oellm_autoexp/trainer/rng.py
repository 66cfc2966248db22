"""The state of all random number generators: taken when a checkpoint is cut, put back when it is read."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """The generators of torch (CPU and each CUDA device), NumPy and Python, in plain types and tensors."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": None,
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)]
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` took. CUDA devices that are not here are passed over."""
    torch.set_rng_state(state["torch"].cpu())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if state["cuda"] and torch.cuda.is_available():
        for device, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each.cpu(), device)
    if state["numpy"] is not None:
        import numpy

        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed everything; each rank has a stream of its own, so that dropout differs between them."""
    torch.manual_seed(seed + rank)
    random.seed(seed + rank)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed((seed + rank) % 2**32)


@contextmanager
def untouched() -> Iterator[None]:
    """What happens within leaves no trace in any generator."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
