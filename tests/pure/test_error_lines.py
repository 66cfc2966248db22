"""The line that says why a program died, in logs as they really look."""

from __future__ import annotations

import pytest

from oellm_autoexp.core.error_lines import error_lines, normalise_error

TRACEBACK = """step 10
Traceback (most recent call last):
  File "/home/x/train.py", line 3, in <module>
    raise ValueError("error: not me")
ValueError: hidden size must be positive
"""
CUDA = """[rank3]: Traceback (most recent call last):
[rank3]:   File "train.py", line 9, in step
[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
[rank0]:[E ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


@pytest.mark.parametrize(
    ("log", "first"),
    [
        (TRACEBACK, "ValueError: hidden size must be positive"),
        (CUDA, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("slurmstepd: error: Exceeded job memory limit\n", "slurmstepd: error: Exceeded job memory limit"),
        ("run.sh: line 3: trane: command not found\n", "run.sh: line 3: trane: command not found"),
        ("train.py: error: argument --lr: bad\n", "train.py: error: argument --lr: bad"),
        ("error: 0.02\nloss 3\n", ""),
        ("all is well\n", ""),
        ("Broken pipe error: x\n", "Broken pipe error: x"),
    ],
)
def test_the_first_cause_is_found(log: str, first: str) -> None:
    """Causes before consequences; metrics are no errors."""
    assert error_lines(log.splitlines())[0] == first


def test_the_same_death_is_recognised() -> None:
    """Numbers, addresses and temporary paths differ from one attempt to the next."""
    one = normalise_error("OSError: [Errno 5] worker 3 at 0x7f32 failed")
    assert one == normalise_error("OSError: [Errno 5] worker 12 at 0x11aa failed")
    assert one != normalise_error("OSError: [Errno 5] writer 3 at 0x7f32 failed")
