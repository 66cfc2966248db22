"""How soon a session is led again after its daemon was killed.

    python benchmarks/reattach.py [JOBS] [RECORDS]

A process submits the jobs to a scheduler in memory, journals their starts and progress, and is killed with
SIGKILL in the middle of it. A fresh process then takes the lead: replay, one look at the scheduler and every
log, one command (a retry of a live job, which changes nothing) answered. Its time counts from its start,
imports included. The reference parses the same journal with `json.loads` alone, in a fresh process too.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Table, number

REFERENCE = """
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).iterdir():
    for line in path.read_bytes().splitlines():
        json.loads(line)
"""


def write(home: Path, jobs: int, records: int) -> None:
    """What the daemon does until it is killed."""
    import idle_tick

    from oellm_autoexp.core import events as ev

    clock = idle_tick.Stepped()
    loop, _, _, session = idle_tick.started(home, jobs, clock)
    names, at = list(session.jobs), clock.now()
    for record in range(records - 5 * jobs):
        turn, index = divmod(record, jobs)
        loop.record(
            ev.ProgressMade(at=at, job=names[index], attempt=1, counter="iteration", value=float(turn))
        )
    loop.tick()
    print("ready", flush=True)
    while True:
        loop.record(ev.ProgressMade(at=at, job=names[0], attempt=1, counter="iteration", value=1e6))


def attach(home: Path) -> None:
    """Take the lead, look at everything once, answer a command; print what it was."""
    import idle_tick

    from oellm_autoexp.core import events as ev
    from oellm_autoexp.core.layout import SessionPaths
    from oellm_autoexp.monitor.loop import RealClock
    from oellm_autoexp.services import lead as service
    from oellm_autoexp.services import plugins
    from oellm_autoexp.store import inbox
    from oellm_autoexp.store.effects import Effects

    plugins.load_builtin()
    paths, cluster, answers = SessionPaths(home / "state"), idle_tick.Cluster(), list[ev.CommandAnswered]()
    inbox.drop(paths, Effects(), "retry", {"jobs": ["job00000"]}, now=RealClock().now())

    def hear(event: ev.Event) -> None:
        if isinstance(event, ev.CommandAnswered):
            answers.append(event)

    loop = service.lead(paths, cluster, watch=service.Watch(on_event=hear))
    loop.tick()
    live = sum(job.live is not None for job in loop.session.jobs.values())
    print(
        json.dumps(
            {
                "live": live,
                "answer": answers[0].text,
                "reads": cluster.reads,
                "writes": cluster.writes,
                "cpu": time.process_time(),
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        ),
        flush=True,
    )
    os._exit(0)  # not a goodbye: only what came before is measured


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--attach"]:
        attach(Path(sys.argv[2]))
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
        home = Path(directory)
        me = [sys.executable, __file__]
        writer = subprocess.Popen(
            [*me, "--write", str(home), str(jobs), str(records)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        if writer.stdout.readline() != "ready\n":
            raise SystemExit("the session could not be made")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        journal = home / "state" / "monitor" / "journal"
        size = sum(path.stat().st_size for path in journal.iterdir())
        print(f"{jobs:,} live jobs, {records:,} records, {size / 1e6:.1f} MB; the daemon was killed\n")

        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", REFERENCE, str(journal)], check=True)
        floor = time.perf_counter() - begin
        begin = time.perf_counter()
        done = subprocess.run([*me, "--attach", str(home)], stdout=subprocess.PIPE, text=True, check=True)
        wall = time.perf_counter() - begin
        said = json.loads(done.stdout)
        if said["live"] != jobs:
            raise SystemExit(f"{said['live']} of {jobs} live jobs were found")
        table = Table("after kill -9", "wall s", "CPU s", "ratio", "MB", "calls", left=(44,))
        table.row("reference: json.loads of each line", number(floor), "", "1.0", "", "")
        table.row(
            "leads again, has looked, has answered",
            number(wall),
            number(said["cpu"]),
            f"{wall / floor:.1f}",
            f"{said['memory']:.0f}",
            f"{said['reads']} + {said['writes']}",
        )
        print(f"\n{said['live']:,} live jobs found, answer: {said['answer']!r}; calls: read + written")


if __name__ == "__main__":
    main()
