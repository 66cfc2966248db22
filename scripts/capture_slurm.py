#!/usr/bin/env python3
"""Writes tests/data/slurm anew: what a real cluster says of jobs in every state that one can be brought to.

  capture_slurm.py [DIR]      as root, with Debian's packages and accounting (scripts/dev_slurm.py install)

Each job is named after its case; `queue.txt` and `account.txt` are squeue and sacct as the client asks them.
`states.txt`, `reasons.txt` and `errors.txt` are the lists that Slurm's own library has.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dev_slurm import Cluster, wait_until

from oellm_autoexp.schedulers.slurm.answers import ACCOUNT_FORMAT, QUEUE_FORMAT, SEPARATOR, TIME_FORMAT

ROOT = Path(__file__).resolve().parents[1]
HOLD = "sleep 600"


class Capture:
    """A cluster that jobs of all kinds are brought to."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def submit(self, name: str, command: str, *options: str) -> str:
        given = [f"--job-name={name}.{name}", f"--comment={name}", "--output=/dev/null", *options]
        return self.cluster.run("sbatch", "--parsable", *given, f"--wrap={command}").strip()

    def state(self, job: str) -> str:
        return self.cluster.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job, check=False).strip()

    def until(self, job: str, *states: str, within_s: float = 60.0) -> None:
        wait_until(lambda: self.state(job) in states, f"{job} is {states}", within_s)

    def run(self) -> None:
        control, run = self.cluster.run, self.cluster.run
        timeout = self.submit("timeout", HOLD, "--time=1")
        held = self.submit("held", HOLD, "--hold")
        self.submit("begin", HOLD, "--begin=now+1hour")
        self.submit("too-long", HOLD, "--partition=short", "--time=60")
        self.submit("too-many-nodes", HOLD, "--nodes=9")
        for name, command in {
            "completed": "true",
            "exit3": "exit 3",
            "exit143": "exit 143",
            "killed": "kill -9 $$",
        }.items():
            self.until(self.submit(name, command), "COMPLETED", "FAILED")
        self.until(self.submit("no-log", "true", "--output=/nowhere/x"), "FAILED")
        failed = self.submit("fails", "false")
        self.until(failed, "FAILED")
        self.submit("never", HOLD, f"--dependency=afterok:{failed}")
        cancelled = self.submit("cancelled", HOLD)
        self.until(cancelled, "RUNNING")
        run("scancel", cancelled)
        waiting = self.submit("cancelled-pending", HOLD, "--hold")
        run("scancel", waiting)
        suspended = self.submit("suspended", HOLD)
        self.until(suspended, "RUNNING")
        control("scontrol", "suspend", suspended)
        requeued = self.submit("requeued", HOLD, "--requeue")
        self.until(requeued, "RUNNING")
        control("scontrol", "requeue", requeued)
        self.until(requeued, "RUNNING")
        special = self.submit("special", HOLD, "--requeue")
        self.until(special, "RUNNING")
        control("scontrol", "requeuehold", "State=SpecialExit", special)
        lost = self.submit("node-fail", HOLD, "--no-requeue", "--nodelist=node3")
        self.until(lost, "RUNNING")
        control("scontrol", "update", "nodename=node3", "state=down", "reason=test")
        self.until(lost, "NODE_FAIL")
        control("scontrol", "update", "nodename=node3", "state=resume", check=False)
        self.submit(
            "array", "sleep $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID / 9))", "--array=0,9,600%2"
        )
        preempted = self.submit(
            "preempted", HOLD, "--partition=preempt", "--no-requeue", "--exclusive", "--nodelist=node2"
        )
        self.until(preempted, "RUNNING")
        self.submit("preempting", HOLD, "--exclusive", "--nodelist=node2")
        self.until(preempted, "PREEMPTED")
        self.submit("strange|name\nof two lines", "true")
        running = self.submit("running", HOLD)
        self.until(running, "RUNNING")
        self.until(held, "PENDING")
        self.until(timeout, "TIMEOUT", within_s=150.0)
        time.sleep(5.0)  # slurmdbd is told later.


def listed(function: Callable[[int], bytes], numbers: Iterator[int], unknown: re.Pattern[str]) -> list[str]:
    texts = (function(number).decode() for number in numbers)
    return list(dict.fromkeys(text for text in texts if not unknown.fullmatch(text)))


def library() -> dict[str, list[str]]:
    """The states, reasons and errors that Slurm's library has a text for."""
    lib = ctypes.CDLL(str(next(Path("/usr/lib").glob("*/slurm-wlm/libslurmfull.so"))))
    found = {}
    for name in ("job_state_string", "job_reason_string", "strerror"):
        getattr(lib, f"slurm_{name}").restype = ctypes.c_char_p
    states = iter([*range(64), *(1 << bit for bit in range(8, 31))])
    found["states"] = listed(lib.slurm_job_state_string, states, re.compile(r"\?"))
    found["reasons"] = listed(lib.slurm_job_reason_string, iter(range(1000)), re.compile(r"\d+"))
    found["errors"] = listed(lib.slurm_strerror, iter(range(1000, 8000)), re.compile(r"Unknown.*"))
    return found


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests" / "data" / "slurm"
    target.mkdir(parents=True, exist_ok=True)
    for name, texts in library().items():
        (target / f"{name}.txt").write_text("\n".join(texts) + "\n")
    with tempfile.TemporaryDirectory(prefix="autoexp-slurm.") as directory:
        cluster = Cluster(Path(directory))
        cluster.create(nodes=3, accounting=True, options={}, job_age_s=600)
        try:
            Capture(cluster).run()
            times = ("env", f"SLURM_TIME_FORMAT={TIME_FORMAT}")
            queue = ("squeue", "--noheader", "--array", "--states=all", f"--Format={QUEUE_FORMAT}")
            account = ("sacct", "-n", "-P", "-X", "-D", "-a", f"--delimiter={SEPARATOR}", "-S", "now-1hours")
            (target / "queue.txt").write_text(cluster.run(*times, *queue))
            (target / "account.txt").write_text(cluster.run(*times, *account, "-o", ACCOUNT_FORMAT))
            wanted = re.compile(
                r"(ClusterName|SLURM_VERSION|Accounting\w*Type|Max\w+|\w*Timeout|KillWait)\s*=.*"
            )
            lines = [
                line for line in cluster.run("scontrol", "show", "config").splitlines() if wanted.match(line)
            ]
            (target / "config.txt").write_text("\n".join(lines) + "\n")
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
