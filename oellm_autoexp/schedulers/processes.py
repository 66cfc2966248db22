"""Processes of this machine: what they do, whose they are, and how to signal exactly one (proc(5)).

Also what of our own environment a process that we start may see.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import process_start

#: Set by Slurm in its jobs, or for its commands by a person, and what an attempt of ours is told.
_FOREIGN = re.compile(
    r"(SLURM|SLURMD|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO|SRUN|SALLOC|AUTOEXP|PMI|PMIX)_"
)
#: Where the cluster is, and who asks.
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CONF_SERVER"})


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for what is started here, whichever job or shell this process was started from.

    `SLURM_CPU_BIND` of an outer job, for one, would bind every job that is submitted within it.
    """
    return {name: value for name, value in environ.items() if name in _KEPT or not _FOREIGN.match(name)}


def argv(pid: int) -> list[bytes]:
    """The arguments a process was started with; empty when it ends or has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return text.split(b"\0") if text else []


def started_at(pid: int) -> float | None:
    """When a live process was started, in UTC epoch seconds (proc(5)); None: there is none."""
    ticks = process_start(pid)
    if ticks is None:
        return None
    lines = Path("/proc/stat").read_text().splitlines()
    boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return boot + int(ticks) / os.sysconf("SC_CLK_TCK")


def wait_for_end(pid: int, at_most_s: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        time.sleep(at_most_s)
        return
    try:
        # Not select(2), which knows no descriptor above 1023.
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        waiting.poll(at_most_s * 1000)
    finally:
        os.close(handle)


def send(effects: Effects, pid: int, start: str, number: signal.Signals) -> None:
    """Signal exactly the process that started at `start`, never a later one of the same pid."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        # Linux before 5.3: a pid is not used again within the moment between look and signal.
        if process_start(pid) == start:
            effects.kill(pid, number)
        return
    try:
        if process_start(pid) == start:
            with suppress(ProcessLookupError):
                effects.call("kill", str(pid), lambda: signal.pidfd_send_signal(handle, number))
    finally:
        os.close(handle)


def of_attempt(attempt_dir: str, identity: str, group: tuple[int, int] | None) -> list[tuple[int, str]]:
    """Live processes of an attempt, with their start times.

    They are known by (session id, process group id), of which one alone might be in use again, and by their
    environment, for those that went into a session of their own (workers of torchrun, for one): the
    directory tells attempts of different sessions of ours apart, the id those that shared a directory.
    """
    marks = {f"AUTOEXP_ATTEMPT_DIR={attempt_dir}".encode(), f"AUTOEXP_SCHEDULER_ID={identity}".encode()}
    found = []
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        since = process_start(pid) if pid != os.getpid() else None
        if since is not None and (_group(pid) == group or marks.issubset(_environ(pid))):
            found.append((pid, since))
    return found


def _group(pid: int) -> tuple[int, int]:
    try:
        return os.getsid(pid), os.getpgid(pid)
    except OSError:
        return -1, -1


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
