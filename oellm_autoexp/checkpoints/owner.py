"""Whose a half-written checkpoint is: a process by an identity that is never reused, in the file's name."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. `start` is its start time in clock ticks since boot (proc(5)); both texts may be ""."""

    pid: int
    start: str
    boot: str
    host: str

    @classmethod
    def this_process(cls) -> Owner:
        return cls(os.getpid(), _start_of(os.getpid()) or "", _boot(), socket.gethostname())

    def __str__(self) -> str:
        return f"{self.pid}.{self.start}.{self.boot}.{self.host}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The inverse of `str`; None where the text is something else."""
        parts = text.split(".", 3)
        if len(parts) != 4 or not parts[0].isdecimal():
            return None
        return cls(int(parts[0]), *parts[1:])

    def alive(self) -> bool | None:
        """None where the processes of this host cannot tell: it ran on another one."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False
        return _start_of(self.pid) == self.start


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat; None for what is dead, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
