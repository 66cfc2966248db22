"""Who leads a session: a process by an identity that is never reused, and whether it lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The process that wrote a segment. `started_at` is UTC epoch seconds."""

    host: str
    boot_id: str
    pid: int
    pid_start: str
    started_at: float = 0.0

    @classmethod
    def this_process(cls, now: float) -> Leader:
        return cls(
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or "",
            started_at=now,
        )

    def alive_here(self) -> bool | None:
        """Whether the process lives; None when that cannot be told by looking at this host's processes."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id != boot_id():
            return False
        start = process_start(self.pid)
        if start is None and _hidden(self.pid):
            return None
        return start == self.pid_start


def boot_id() -> str:
    """Changes at every boot of this host; "" where the kernel does not tell (random(4))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """The start time of a live process (field 22 of /proc/PID/stat, proc(5)); None if dead or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _hidden(pid: int) -> bool:
    """Whether a process of this id exists that /proc does not show (another user's, with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False
