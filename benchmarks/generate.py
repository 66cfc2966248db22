"""What it costs to generate job scripts and to look at them, as whole processes; the peer is slurmkit 0.1.7
(`pip install -e '.[bench]'`).

    python benchmarks/generate.py [JOBS …]

Both render one template for the same grid, into an empty directory and once more. For `status` all jobs of
the largest grid have ended: ours were played on the fake cluster, the peer's were submitted to a `sbatch`
that prints a number, and its `sacct` prints that they have completed. The two take turns; the middle one of
the runs is shown. The ratio is of CPU seconds, the peer's over ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from table import Table, number

RUNS = 5
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --partition={{ slurm.partition }}
#SBATCH --time={{ slurm.time }}
#SBATCH --output={{ logs_dir }}/{{ job_name }}.%j.out

python train.py --lr {{ lr }} --seed {{ seed }}
"""
SPEC = """\
name: bench
template: train.job.j2
{places}
parameters:
  mode: grid
  values:
    lr: {rates}
    seed: {seeds}
slurm_args:
  defaults: {{partition: gpu, time: "24:00:00"}}
job_name_pattern: "lr{{{{ lr }}}}_s{{{{ seed }}}}"
"""
OURS, PEER = "oellm-autoexp", "slurmkit"
PLACES = {OURS: "output_dir: scripts\nlogs_dir: logs", PEER: "job_subdir: bench"}
SBATCH = """\
#!/bin/sh
n=$(cat "$COUNTER" 2>/dev/null || echo 1000); n=$((n + 1)); echo $n > "$COUNTER"
echo "Submitted batch job $n"
"""
#: Fields are asked for by `--format`; the answer has those of them that say how a job ended.
SACCT = """\
#!/usr/bin/env python3
import sys
given = {"State": "COMPLETED", "ExitCode": "0:0", "Start": "2026-01-01T00:00:00"}
given["End"] = "2026-01-01T01:00:00"
fields = next(word for word in sys.argv if word.startswith("--format=")).removeprefix("--format=").split(",")
for job in sys.argv[sys.argv.index("-j") + 1].split(","):
    for name in (job, job + ".batch"):
        print("|".join(name if field == "JobID" else given.get(field, "") for field in fields))
"""

#: A minute each, all at once.
SCENARIO = """\
jobs: [{work: 60, startup: 1, log_every: 600, checkpoint_every: null}]
cluster: {nodes: null}
"""

Cost = tuple[float, float]


class Bench:
    """A directory for each program and size; what runs in it is timed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        commands = root / "bin"
        commands.mkdir()
        for name, text in (("sbatch", SBATCH), ("sacct", SACCT)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        own = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": f"{commands}:{own}:{os.environ['PATH']}",
            "COUNTER": str(root / "counter"),
            "XDG_STATE_HOME": str(root / "state"),
        }

    def place(self, program: str, jobs: int) -> Path:
        """An empty directory with a template and a spec."""
        where = self.root / f"{program}-{jobs}"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        (where / "train.job.j2").write_text(TEMPLATE)
        rates = [round((each + 1) * 1e-4, 6) for each in range(100)]
        text = SPEC.format(places=PLACES[program], rates=rates, seeds=list(range(jobs // 100)))
        (where / "spec.yaml").write_text(text)
        return where

    def run(self, where: Path, *words: str) -> Cost:
        """CPU seconds and MB of a command."""
        with (where / "output").open("wb") as output:
            child = subprocess.Popen(
                words, cwd=where, env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
            _, status, spent = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)}: {(where / 'output').read_text()[-2000:]}")
        return spent.ru_utime + spent.ru_stime, spent.ru_maxrss / 1024


def generate(program: str) -> tuple[str, ...]:
    flag = "--collection" if program == OURS else "--into"
    return (program, "generate", "spec.yaml", flag, "bench")


def middle(runs: Sequence[Cost]) -> Cost:
    return sorted(runs)[len(runs) // 2]


def told(table: Table, what: str, jobs: int, costs: dict[str, Sequence[Cost]]) -> None:
    peer = middle(costs[PEER])[0]
    for program in (OURS, PEER):
        cpu, memory = middle(costs[program])
        table.row(what, f"{jobs:,}", program, number(cpu), f"{memory:.0f}", number(peer / cpu))


def compare(sizes: Sequence[int], bench: Bench) -> None:
    table = Table("what", "jobs", "program", "CPU s", "MB", "ratio", left=(16, 6, 14))
    for jobs in sizes:
        first: dict[str, list[Cost]] = {OURS: [], PEER: []}
        again: dict[str, list[Cost]] = {OURS: [], PEER: []}
        for _ in range(RUNS):
            for program in (OURS, PEER):
                where = bench.place(program, jobs)
                first[program].append(bench.run(where, *generate(program)))
                again[program].append(bench.run(where, *generate(program)))
        told(table, "generate", jobs, first)
        told(table, "generate again", jobs, again)
    ended = {program: _ended(bench, program, max(sizes)) for program in (OURS, PEER)}
    commands: dict[str, Callable[[], Cost]] = {
        OURS: lambda: bench.run(ended[OURS], OURS, "status", "bench.fake", "--json"),
        PEER: lambda: bench.run(ended[PEER], PEER, "status", "bench", "--json"),
    }
    status: dict[str, list[Cost]] = {OURS: [], PEER: []}
    for _ in range(RUNS):
        for program in (OURS, PEER):
            status[program].append(commands[program]())
    told(table, "status", max(sizes), status)
    help_ = {
        program: [bench.run(bench.root, program, "--help") for _ in range(RUNS)] for program in (OURS, PEER)
    }
    told(table, "--help", 0, help_)


def _ended(bench: Bench, program: str, jobs: int) -> Path:
    """A collection all of whose jobs have ended."""
    where = bench.place(program, jobs)
    bench.run(where, *generate(program))
    if program == OURS:
        (where / "scenario.yaml").write_text(SCENARIO)
        bench.run(where, OURS, "submit", "--collection", "bench", "--scenario", "scenario.yaml", "--yes")
    else:
        bench.run(where, PEER, "submit", "bench", "--yes")
    return where


def main() -> None:
    for program in (OURS, PEER):
        if shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
            raise SystemExit(f"{program} is not installed: pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as root:
        compare([int(word) for word in sys.argv[1:]] or [100, 1000], Bench(Path(root)))


if __name__ == "__main__":
    main()
