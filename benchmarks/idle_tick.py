"""What a tick costs when nothing happens: CPU, calls to the scheduler, bytes written.

    python benchmarks/idle_tick.py [JOBS …]

Every job runs and has a log that does not grow; the scheduler is in memory and answers RUNNING. The reference
asks what a tick cannot do without, for each job: `stat` of its log.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from table import Table, number, peak_mb

from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.checks import InlineExecutor
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.services.plugins import load_builtin
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Journal

RULES = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "inactivity_threshold_seconds": 3600,
        "log_signals": {
            "step": {"pattern": r"iteration +(?P<step>\d+)/.*lm loss: (?P<loss>\S+)", "metrics": True},
            "oom": {"pattern": "out of memory", "mode": "crash.oom"},
            "saved": {"pattern": r"saved: (?P<path>\S+)", "action": "convert"},
        },
    },
    "actions": {"convert": {"class_name": "CommandAction", "command": "true {path}"}},
}
LINE = b" iteration       10/  500000 | elapsed time per iteration (ms): 512.3 | lm loss: 2.345678E+00\n"
TICKS, PASSES = 10, 3


class Cluster(SchedulerInterface):
    """Answers for everything that it was told of, from memory."""

    capabilities = Capabilities(max_array_size=1000, poll_interval_s=0.0)
    cluster = "memory"

    def __init__(self) -> None:
        super().__init__(None)
        self.reads = self.writes = 0

    def render(self, request: ScriptRequest) -> str:
        raise NotImplementedError

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        self.writes += 1
        return [
            SchedulerRef(id=f"{submission.token}_{task}", cluster="memory", token=submission.token, task=task)
            for task in range(len(submission.tasks))
        ]

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        self.reads += 1
        return {}

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        self.reads += 1
        running = SchedulerFact(state=SchedulerState.RUNNING, started_at=1_700_000_000.0)
        return dict.fromkeys(refs, running)

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        self.writes += 1

    def update(self, ref: SchedulerRef, changes: Mapping[str, Any]) -> None:
        self.writes += 1


class Counted(Effects):
    """Counts the effects, and the bytes they write."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def step(self, name: str, target: str) -> None:
        self.count += name.endswith(":before")

    def write(self, path: Path, data: bytes, **how: Any) -> None:
        self.bytes += len(data)
        super().write(path, data, **how)

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        self.bytes += len(data)
        super().write_at(fd, data, offset, target)


class Stepped:
    """A clock that is moved by hand: a minute before each tick."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds


def specs(home: Path, jobs: int) -> Iterator[JobSpec]:
    for index in range(jobs):
        name = f"job{index:05}"
        yield JobSpec(
            name=name,
            id=f"{index:012x}",
            index=index,
            parameters={"lr": 0.001, "seed": index},
            argv=("python", "train.py", "--seed", str(index)),
            output_dir=str(home / name),
            checkpoint_dir=str(home / name / "checkpoints"),
            script_path=str(home / f"{name}.sh"),
            script_digest="a" * 64,
            log_path=str(home / "logs" / f"{name}.{{attempt}}.log"),
            rules="r",
        )


def started(home: Path, jobs: int, clock: Stepped) -> tuple[Loop, Cluster, Counted, Session]:
    """A session whose jobs have all been submitted, and their logs."""
    load_builtin()
    (home / "logs").mkdir()
    paths, effects, cluster, session = SessionPaths(home / "state"), Counted(), Cluster(), Session()
    journal, _ = Journal.lead(paths, effects, now=clock.now(), monotonic=clock.monotonic, wait=clock.wait)
    loop = Loop(session, journal, cluster, cluster, paths, effects, clock, InlineExecutor())
    at = clock.now()
    scheduler = {"class_name": "Memory"}
    loop.record(ev.SessionOpened(at=at, project="bench", session="s", nonce="n", scheduler=scheduler))
    loop.record(ev.RulesSet(at=at, rules="r", config=RULES))
    for spec in specs(home, jobs):
        loop.record(ev.JobAdded(at=at, spec=spec))
        Path(spec.log_of(1)).write_bytes(LINE * 50)
    while any(job.live is None or job.live.ref is None for job in session.jobs.values()):
        tick(loop, clock)
    for _ in range(3):  # the logs are read, the snapshot is written
        tick(loop, clock)
    return loop, cluster, effects, session


def tick(loop: Loop, clock: Stepped) -> None:
    clock.time += 60.0
    loop.tick()


def ticks(loop: Loop, clock: Stepped) -> None:
    for _ in range(TICKS):
        tick(loop, clock)


def stat(paths: Sequence[Path]) -> None:
    for path in paths:
        path.stat()


def main() -> None:
    table = Table("live jobs", "CPU s a tick", "floor", "ratio", "calls", "writes", "bytes", "MB")
    for jobs in [int(word) for word in sys.argv[1:]] or [1000, 5000]:
        with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
            clock = Stepped()
            loop, cluster, effects, session = started(Path(directory), jobs, clock)
            reads, count, size = cluster.reads, effects.count, effects.bytes
            spent = best(partial(ticks, loop, clock)) / TICKS
            times = TICKS * PASSES
            reads, count, size = cluster.reads - reads, effects.count - count, effects.bytes - size
            logs = [Path(job.spec.log_of(1)) for job in session.jobs.values()]
            floor = best(partial(stat, logs))
            table.row(
                f"{jobs:,}",
                number(spent),
                number(floor),
                f"{spent / floor:.1f}",
                f"{reads / times:.1f}",
                f"{count / times:.1f}",
                f"{size / times:.0f}",
                number(peak_mb()),
            )
    print(
        "\ncalls to the scheduler, writes (a heartbeat is one) and bytes are of one tick; the best of three"
    )


def best(work: Callable[[], object]) -> float:
    """CPU seconds, the least of PASSES."""
    found = []
    for _ in range(PASSES):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


if __name__ == "__main__":
    main()
