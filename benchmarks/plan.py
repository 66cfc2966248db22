"""What it costs to plan a sweep: CPU and memory of the whole command, process start and files included.

    python benchmarks/plan.py [POINTS …]

The reference composes the same config with Hydra once per point, as a multirun does; 50 points are measured
in this run and extrapolated. Every figure is of a fresh process in a fresh directory; bytecode is compiled
before, as it is where the package is installed. Of three processes the middle one is shown: what the system
takes for 10,000 new files differs with what the disk has to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml
from table import Table, number

REFERENCE_POINTS = 50
REPEATS = 3

ROOT = {
    "defaults": [{"slurm": "big"}, {"monitoring": "watch"}, {"backend": "train"}, "_self_"],
    "project": {"name": "bench", "base_output_dir": "./outputs"},
    "restart_policies": {
        "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2},
        "timeout": {"class_name": "AdjustTimeLimitPolicy", "minutes": 30},
    },
    "actions": {"convert": {"class_name": "CommandAction", "command": "convert {path} ${project.name}"}},
}
SLURM = {
    "sbatch": {"account": "a", "partition": "p", "nodes": 2, "gpus-per-node": 4, "time": "12:00:00"},
    "environment": {f"VARIABLE_{n}": f"${{project.name}}-{n}" for n in range(60)},
    "setup": ["module load x", "source env/bin/activate"],
}
WATCH = {
    "class_name": "SlurmLogMonitor",
    "inactivity_threshold_seconds": 3600,
    "log_signals": {
        f"signal_{n}": {"pattern": f"something {n}: (?P<value>.+)", "mode": f"crash.kind_{n}"}
        for n in range(15)
    },
}
BACKEND = {
    "class_name": "CommandBackend",
    "command": [
        *["python", "train.py", "--lr", "${lr}", "--seed", "${seed}", "--out", "${job.output_dir}"],
        *[
            "--warmup",
            "${oc.muli:${seed},10}",
            "--name",
            "run-${lr}-${seed}",
            "--ckpt",
            "${job.checkpoint_dir}",
        ],
        *(f"--constant-{n}" for n in range(20)),
    ],
    "environment": {"RUN": "${job.name}", "SEED": "${seed}"},
}


def directory(home: Path, points: int) -> Path:
    """A Hydra directory of about 140 keys, of which nine differ between points."""
    config = home / "config"
    root = {
        **ROOT,
        "sweep": {"axes": {"lr": [n / 1000 for n in range(1, 11)], "seed": list(range(points // 10))}},
    }
    files = {"bench": root, "slurm/big": SLURM, "monitoring/watch": WATCH, "backend/train": BACKEND}
    for name, content in files.items():
        path = config / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return config


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir(), f"autoexp-bench-{os.getuid()}"))}


def measured(argv: list[str], cwd: Path) -> tuple[float, float, float]:
    """(user s, system s, peak MB) of one process."""
    child = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{argv} ended with {child.returncode}")
    return usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024


def ours(points: int, home: Path) -> tuple[float, float, float]:
    directory(home, points)
    argv = [sys.executable, "-m", "oellm_autoexp.cli.main", "plan", "bench", "-C", "config", "--local"]
    return measured(argv, home)


def reference(home: Path) -> float:
    """CPU seconds of one point when Hydra composes it."""
    program = textwrap.dedent(
        """
        import sys, time
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf
        OmegaConf.register_new_resolver("oc.muli", lambda a, b: int(a) * int(b))
        with initialize_config_dir(config_dir=sys.argv[1], version_base=None):
            start = time.process_time()
            for n in range(int(sys.argv[2])):
                facts = [f"+job.{key}=x" for key in ("name", "output_dir", "checkpoint_dir")]
                config = compose(config_name="bench", overrides=[f"+lr={n}", f"+seed={n}", *facts])
                OmegaConf.to_container(config, resolve=True)
            print((time.process_time() - start) / int(sys.argv[2]))
        """
    )
    config = directory(home, REFERENCE_POINTS)
    argv = [sys.executable, "-c", program, str(config), str(REFERENCE_POINTS)]
    return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def compare(sizes: Sequence[int], home: Path) -> None:
    each = reference(home / "reference")
    ours(10, home / "warm")
    table = Table("points", "CPU s", "of it system", "MB", "Hydra once a point, s", "ratio")
    for points in sizes:
        runs = [ours(points, home / f"{points}-{turn}") for turn in range(REPEATS)]
        user, system, memory = sorted(runs, key=lambda run: run[0] + run[1])[REPEATS // 2]
        whole = user + system
        theirs = each * points
        table.row(
            f"{points:,}",
            number(whole),
            number(system),
            f"{memory:.0f}",
            number(theirs),
            f"{theirs / whole:.0f}",
        )
    print(f"\nHydra: {each * 1000:.1f} ms a point, measured over {REFERENCE_POINTS} points")


def main() -> None:
    # Nothing is removed before the end: ext4 searches long for an inode where many have just become free.
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as home:
        compare([int(word) for word in sys.argv[1:]] or [10, 1000, 10000], Path(home))


if __name__ == "__main__":
    main()
