"""What is asked of a real Slurm cluster, which this starts (as root, with `scripts/dev_slurm.py install
--accounting`); the peer is submitit (`pip install -e '.[bench]'`).

    python benchmarks/slurm.py submit [POINTS] [SINGLES]     POINTS as one array, SINGLES jobs one by one
    python benchmarks/slurm.py poll [JOBS …]                 a turn of watching so many jobs

Each figure is of a fresh process, commands included. Calls are counted where they are made: the commands on
PATH are wrappers that write a line and become the command, for both. The partition is down, so that no job
begins.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from table import Table, number, peak_mb

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import dev_slurm

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sacctmgr", "sinfo", "scancel")
TURNS = 10
#: An array may have 1,001 tasks here (MaxArraySize); above this many jobs they are an array.
SINGLE_JOBS = 100
#: So much time lies between turns.
PACE_S = 1.0
#: For watching: submitting is not measured, and nobody waits for what Slurm has forgotten.
QUICK = {
    "scheduler": {
        "class_name": "slurm",
        "calls_per_second": 100,
        "call_burst": 5000,
        "grace_seconds": 3,
        "breaker": None,
    },
    "monitoring": {"class_name": "SlurmLogMonitor", "poll_interval_seconds": PACE_S},
    "restart_policies": {"crash.lost": {"class_name": "NoRestartPolicy"}},
}


class Spent:
    """CPU seconds of this process, and of the commands that it has waited for; calls by name."""

    def __init__(self) -> None:
        own, commands = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self.cpu = own.ru_utime + own.ru_stime
        self.commands = commands.ru_utime + commands.ru_stime
        self.wall = time.monotonic()
        self.calls = Counter(Path(os.environ["BENCH_CALLS"]).read_text().split())


def told(before: Spent, over: int = 1, **more: Any) -> None:
    """Print what a turn has cost since then, for the process that asked."""
    now = Spent()
    print(
        json.dumps(
            {
                "wall": (now.wall - before.wall) / over,
                "cpu": (now.cpu - before.cpu + now.commands - before.commands) / over,
                "commands": (now.commands - before.commands) / over,
                "calls": {name: count / over for name, count in (now.calls - before.calls).items()},
                "memory": peak_mb(),
                **more,
            }
        )
    )


def watch(turn: Callable[[], tuple[int, bool]], until_ended: str) -> None:
    """Turns until all have ended, at most TURNS; or just TURNS, after one that learns what later ones know.

    A turn returns how many jobs it knows the state of, and whether they have all ended.
    """
    if not until_ended:
        turn()
        time.sleep(PACE_S)
    before, turns, known, ended = Spent(), 0, 0, False
    while turns < TURNS and not ended:
        known, ended = turn()
        turns += 1
        time.sleep(PACE_S)
    told(before, 1 if until_ended else turns, turns=turns, known=known)


# ---------------------------------------------------------------- ours


def config(home: Path, jobs: int, *, array: bool, **more: Any) -> Path:
    home.mkdir()
    path = home / "bench.yaml"
    content = {
        "project": {"name": "bench", "base_output_dir": str(home / "outputs")},
        "backend": {"class_name": "CommandBackend", "command": ["sleep", "6${n}"]},
        "slurm": {"array": array, "sbatch": {"time": "00:10:00"}},
        "sweep": {"axes": {"n": list(range(jobs))}},
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def submit_ours(path: str) -> None:
    """Plan, journal and submit, until every job has its id; they are printed."""
    from oellm_autoexp.services import calls, submit

    before = Spent()
    _, loop = submit.submit(calls.render_scripts(path))
    assert loop is not None
    jobs = loop.session.jobs
    while any(job.live is None or job.live.ref is None for job in jobs.values()):
        loop.tick()
    refs = [job.live.ref for job in jobs.values() if job.live is not None]
    loop.close()
    told(before, ids=[ref.id for ref in refs if ref is not None])


def watch_ours(home: str, until_ended: str) -> None:
    """Lead the session."""
    from oellm_autoexp.core.layout import SessionPaths
    from oellm_autoexp.services import lead as service

    loop = service.lead(SessionPaths(Path(home) / "outputs" / ".oellm-autoexp"))
    jobs = loop.session.jobs

    def turn() -> tuple[int, bool]:
        loop.tick()
        known = sum(job.state != "submitted" for job in jobs.values())
        return known, loop.session.all_ended

    watch(turn, until_ended)
    loop.close()


# ---------------------------------------------------------------- the peer


def submit_peer(folder: str, jobs: str, array: str) -> None:
    before = Spent()
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(timeout_min=10)
    if array:
        executor.map_array(abs, range(int(jobs)))
    else:
        for index in range(int(jobs)):
            executor.submit(abs, index)
    told(before)


def watch_peer(folder: str, ids: str, until_ended: str) -> None:
    """What `submitit.helpers.monitor_jobs` does in each of its turns."""
    from submitit.slurm.slurm import SlurmJob

    jobs = [SlurmJob(folder=folder, job_id=each) for each in Path(ids).read_text().split()]

    def turn() -> tuple[int, bool]:
        jobs[0].get_info(mode="force")
        states = [job.state.upper() for job in jobs]
        done = [job.done() for job in jobs]
        return len(jobs) - states.count("UNKNOWN"), all(done)

    watch(turn, until_ended)


# ---------------------------------------------------------------- the cluster


class Bench:
    """A cluster whose jobs wait. Each side runs in a process and a home of its own, one after the other."""

    def __init__(self, home: Path, cluster: dev_slurm.Cluster) -> None:
        self._home = home
        self._cluster = cluster
        self._count = 0
        wrappers, search = home / "bin", cluster.environment["PATH"]
        wrappers.mkdir()
        for name in COMMANDS:
            path = shutil.which(name, path=search)
            (wrappers / name).write_text(f'#!/bin/sh\necho {name} >>"$BENCH_CALLS"\nexec {path} "$@"\n')
            (wrappers / name).chmod(0o755)
        self._environment = {
            **cluster.environment,
            "PATH": f"{wrappers}:{search}",
            "BENCH_CALLS": str(home / "calls"),
        }
        (home / "calls").touch()

    def place(self) -> Path:
        self._count += 1
        return self._home / str(self._count)

    def run(self, does: Callable[..., None], *args: object) -> dict[str, Any]:
        # A state home of its own: a full bucket of calls.
        environment = {**self._environment, "XDG_STATE_HOME": str(self.place())}
        argv = [sys.executable, __file__, f"--{does.__name__}", *map(str, args)]
        child = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if child.returncode != 0:
            raise SystemExit(f"{does.__name__} ended with {child.returncode}: {child.stderr}")
        found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        return found

    def empty(self) -> None:
        """Cancel everything, and wait until the controller has forgotten it."""
        self._cluster.run("scancel", f"--user={os.getuid()}")
        is_empty = partial(self._cluster.run, "squeue", "-h", "--states=all")
        dev_slurm.wait_until(lambda: not is_empty(), "squeue shows nothing any more")


@contextmanager
def bench(accounting: str) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
        home = Path(directory)
        home.chmod(0o755)  # the daemons' sockets are for all
        cluster = dev_slurm.Cluster(home / "c")
        argv = [sys.executable, dev_slurm.__file__, "stop-after", str(os.getpid()), str(cluster.directory)]
        watcher = subprocess.Popen(argv, start_new_session=True)
        try:
            cluster.create(nodes=1, accounting=accounting == "yes", options={})
            cluster.run("scontrol", "update", "partitionname=main", "state=down")
            yield Bench(home, cluster)
        finally:
            if cluster.settings:
                cluster.stop()
            watcher.kill()
            watcher.wait()


def shown(calls: dict[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in sorted(calls.items())) or "none"


# ---------------------------------------------------------------- what is measured


def submit(points: int, singles: int) -> None:
    heads = ("accounting", "points", "how", "sbatch", "other calls", "wall s", "CPU s", "ratio", "MB")
    table = Table(*heads, left=(10, 6, 22))
    cases = (
        (points, "array", "ours, slurm.array", "submitit, map_array"),
        (singles, "", "ours, one by one", "submitit, submit"),
    )
    for accounting in ("no", "yes"):
        with bench(accounting) as it:
            for count, array, *hows in cases:
                ours = it.run(submit_ours, config(it.place(), count, array=bool(array)))
                it.empty()
                peer = it.run(submit_peer, it.place(), count, array)
                it.empty()
                for how, spent in zip(hows, (ours, peer), strict=True):
                    sbatch = spent["calls"].pop("sbatch")
                    figures = (spent["wall"], spent["cpu"], spent["cpu"] / peer["cpu"])
                    table.row(
                        *(accounting, f"{count:,}", how, f"{sbatch:g}", f"{sum(spent['calls'].values()):g}"),
                        *(*map(number, figures), f"{spent['memory']:.0f}"),
                    )
    print("\nthe whole process, imports and the commands' own CPU included; ratio: CPU beside submitit's")


def poll(sizes: Sequence[int]) -> None:
    heads = ("accounting", "jobs", "which", "who asks", "calls")
    table = Table(*heads, "turns", "CPU s", "commands", "ratio", "MB", "known", left=(10, 17, 16, 8, 18))
    for accounting in ("no", "yes"):
        with bench(accounting) as it:
            for jobs in sizes:
                place, folder, ids = it.place(), it.place(), it.place()
                folder.mkdir()
                is_array = jobs > SINGLE_JOBS
                path = config(place, jobs, array=is_array, **QUICK)
                ids.write_text("\n".join(it.run(submit_ours, path)["ids"]))
                for which, until_ended in (("wait", ""), ("have left squeue", "yes")):
                    if until_ended:
                        it.empty()
                    peer = it.run(watch_peer, folder, ids, until_ended)
                    ours = it.run(watch_ours, place, until_ended)
                    for who, spent in (("ours", ours), ("submitit", peer)):
                        figures = (spent["cpu"], spent["commands"], spent["cpu"] / peer["cpu"])
                        table.row(
                            *(accounting, f"{jobs:,}" + (" in an array" if is_array else ""), which, who),
                            *(shown(spent["calls"]), str(spent["turns"]), *map(number, figures)),
                            *(f"{spent['memory']:.0f}", f"{spent['known']:,}"),
                        )
    print("\nthey wait: one turn, the mean of ten; they have left: all turns until every end is known")


def main() -> None:
    what, args = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    parts = {f"--{part.__name__}": part for part in (submit_ours, watch_ours, submit_peer, watch_peer)}
    if what in parts:
        parts[what](*args)
        return
    if what not in ("submit", "poll"):
        raise SystemExit(__doc__)
    if importlib.util.find_spec("submitit") is None:
        raise SystemExit("the peer is missing: pip install -e '.[bench]'")
    if not dev_slurm.is_possible() or dev_slurm.missing(accounting=True):
        raise SystemExit("this needs root and Slurm: python3 scripts/dev_slurm.py install --accounting")
    sizes = [int(word) for word in args]
    if what == "submit":
        submit(*(sizes or [1000, 100]))
    else:
        poll(sizes or [1, 100, 1000])


if __name__ == "__main__":
    main()
