"""How fast campaigns are played on the fake cluster: jobs, and days of virtual time, a second of CPU.

    python benchmarks/simulation.py [JOBS]

About a week on 64 nodes: each job has ten hours of work, writes a line every ten minutes, saves every hour,
and may crash, hang, or lose its node; the controller is away now and then. Everything is as in `submit
--fake`: the loop, its journal, logs that are written and read. The same loop that looks at every live job in
every turn is the naive reference; the bare cluster, whose jobs nobody watches or starts again, is the floor.
Memory is what the process has after a quarter of the turns and at the end.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from table import Table, number, resident_mb

from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.agenda import LiveJobs
from oellm_autoexp.schedulers.fake.cluster import FakeCluster
from oellm_autoexp.schedulers.fake.run import JobRequest
from oellm_autoexp.schedulers.fake.scenario import Scenario
from oellm_autoexp.services import calls, submit

CONFIG = """\
project: {{name: bench, base_output_dir: ./outputs}}
slurm: {{sbatch: {{nodes: 1, time: "12:00:00"}}}}
backend: {{class_name: CommandBackend, command: [python, train.py, --seed, "${{seed}}"]}}
monitoring: {{class_name: SlurmLogMonitor, inactivity_threshold_seconds: 3600}}
restart_policies: {{crash: {{class_name: AlwaysRestartPolicy, max_retries: 20}}}}
sweep: {{axes: {{seed: {seeds}}}}}
"""
SCENARIO = """\
cluster: {nodes: 64}
jobs:
- {work: 10h, spread: 0.3, mishaps: [{every: 2d}, {kind: hang, every: 8d}]}
faults:
- {kind: node_fail, every: 60d, lasts: 2h}
- {kind: outage, every: 3d, lasts: 20min}
"""


def campaign(home: Path, jobs: int, *, whole: bool) -> tuple[float, float, float, float]:
    """(CPU s, virtual days, MB after a quarter, MB at the end) of a campaign that is played to its end."""
    home.mkdir()
    (home / "sweep.yaml").write_text(CONFIG.format(seeds=list(range(jobs))))
    (home / "week.yaml").write_text(SCENARIO)
    plan = calls.planned(home / "sweep.yaml", scheduler="fake", scenario=home / "week.yaml")
    _, loop = submit.submit(plan)
    assert loop is not None
    if whole:
        loop._agenda = LiveJobs(loop.session, loop.rules_of)
    sizes: list[float] = []
    turns = count()

    def weigh(_session: Session) -> None:
        if next(turns) % 20 == 0:
            sizes.append(resident_mb())

    clock = plan.loaded.scheduler.clock  # type: ignore[attr-defined]
    start, begin = clock.now(), time.process_time()
    loop.run(weigh)
    spent = time.process_time() - begin
    loop.close()
    if not all(job.state.ended for job in loop.session.jobs.values()):
        raise SystemExit("the campaign has not come to its end")
    return spent, (clock.now() - start) / 86400, sizes[len(sizes) // 4], sizes[-1]


class Nothing:
    """Files that nobody keeps."""

    def append(self, path: str, text: str) -> None: ...

    def write(self, path: str, text: str) -> None: ...

    def withdrawn(self, attempt_dir: str) -> bool:
        return False


def floor(home: Path, jobs: int) -> tuple[float, float]:
    """(CPU s, virtual days) of the cluster alone: each job runs once."""
    cluster = FakeCluster(scenarios.load(home / "week.yaml", Scenario), Nothing())
    begin = time.process_time()
    for index in range(jobs):
        places = {"log_path": f"/logs/{index}", "attempt_dir": f"/attempts/{index}/1"}
        cluster.submit(f"{index}", [JobRequest(name=f"job{index}", time_limit=43200.0, **places)])
    while any(not job.ended for job in cluster.jobs.values()):
        cluster.advance(cluster.now + 3600.0)
    return time.process_time() - begin, (cluster.now - cluster.scenario.start) / 86400


def main(words: Sequence[str]) -> None:
    jobs = int(words[0]) if words else 1000
    table = Table(
        "played", "jobs", "days", "CPU s", "jobs/s", "days/s", "MB at ¼", "MB at end", "ratio", left=(28,)
    )
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
        home = Path(directory)
        os.environ["XDG_STATE_HOME"] = str(home / "registry")
        ours = campaign(home / "ours", jobs, whole=False)
        naive = campaign(home / "naive", jobs, whole=True)
        least = floor(home / "ours", jobs)
        for name, (spent, days, *sizes) in (
            ("ours", ours),
            ("every job in every turn", naive),
            ("the cluster, unwatched", least),
        ):
            memory = [f"{size:.0f}" for size in sizes] or ["", ""]
            speeds = number(jobs / spent), number(days / spent)
            table.row(
                name, f"{jobs:,}", f"{days:.1f}", number(spent), *speeds, *memory, number(spent / ours[0])
            )
    print("\nratio: CPU beside ours")


if __name__ == "__main__":
    main(sys.argv[1:])
