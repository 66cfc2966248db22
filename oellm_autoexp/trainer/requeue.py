"""Asking Slurm to run a job again, where nobody else does."""

from __future__ import annotations

import logging
import os
import subprocess

_log = logging.getLogger("oellm_autoexp.trainer")


def requeue() -> bool:
    """Requeue the Slurm job that this process is part of; whether Slurm was asked and took it.

    Under the orchestrator nothing is asked: it sees the exit code and starts the next attempt itself.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or "AUTOEXP_ATTEMPT" in os.environ:
        return False
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning("Slurm did not requeue job %s: %s; submit it again by hand", job, said)
        return False
    return True
