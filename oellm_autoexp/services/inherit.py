"""Run a command in the environment of another process: `python3 -I inherit.py PID COMMAND [ARGUMENT…]`.

A tmux server starts what it runs in its own environment: that of whoever started it, long ago perhaps.
Variables may hold secrets, so they must be neither in an argv, which everybody can read, nor in a file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment_of(pid: int) -> dict[bytes, bytes]:
    """The environment that a process of this user was started with (proc(5)).

    Raises:
        OSError: there is no such process, or it cannot be looked at.
    """
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (word.partition(b"=") for word in words if word)
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    os.execvpe(sys.argv[2], sys.argv[2:], environment_of(int(sys.argv[1])))  # noqa: S606 - no shell is wanted
