"""A real `submit` is killed with SIGKILL again and again: nothing runs twice, nothing is lost."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import Cli

JOB = """
import os, sys, time
name = os.environ["AUTOEXP_JOB_NAME"]
with open(sys.argv[1], "a+") as file:
    file.seek(0)
    is_first = name + " " not in file.read()
    file.write(name + " " + os.environ["AUTOEXP_ATTEMPT"] + "\\n")
for step in range(3):
    print(f"Checkpoint saved: {name}-{step}", flush=True)
    time.sleep(0.15)
if name.endswith("i2") and is_first:
    sys.exit("RuntimeError: only once")
"""


def config(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    ran, done = tmp_path / "ran.txt", tmp_path / "done.txt"
    path = tmp_path / "sweep.yaml"
    path.write_text(
        json.dumps(
            {
                "project": {"name": "kill", "base_output_dir": "./outputs"},
                "backend": {
                    "class_name": "CommandBackend",
                    "command": [sys.executable, str(tmp_path / "job.py"), str(ran)],
                    "environment": {"POINT": "${i}"},
                },
                "sweep": {"axes": {"i": [0, 1, 2, 3]}},
                "monitoring": {
                    "class_name": "SlurmLogMonitor",
                    "log_signals": {
                        "saved": {"pattern": "Checkpoint saved: (?P<path>\\S+)", "action": "convert"}
                    },
                },
                "actions": {"convert": {"command": f"echo {{path}} >> {done}"}},
                "restart_policies": {
                    "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2, "backoff_seconds": 0}
                },
                "scheduler": {"class_name": "local", "max_jobs": 2},
            }
        )
    )
    return path


def written(tmp_path: Path) -> int:
    """How many bytes the journal has by now."""
    return sum(
        part.stat().st_size for part in tmp_path.glob("outputs/.oellm-autoexp/monitor/journal/*.jsonl")
    )


#: For each of the seeds: sixty in all.
KILLS = 12


@pytest.mark.kill9
@pytest.mark.parametrize("seed", range(5))
def test_a_killed_submit_loses_nothing_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    """Killed each time the journal has grown by some bytes: every attempt and action happens once."""
    moments, kills, sessions = random.Random(seed), 0, 0
    while kills < KILLS:
        place = tmp_path / f"session{sessions}"
        place.mkdir()
        kills += survived(place, moments, KILLS - kills)
        sessions += 1


def survived(place: Path, moments: random.Random, most: int) -> int:
    """Lead a session to its end over at most so many deaths, and look at what it did; how many there were."""
    path, cli = config(place), Cli(place)
    kills = 0
    while True:
        with (place / "submit.log").open("ab") as log:
            daemon = cli.start("submit", str(path), stdout=log, stderr=log)
        enough = written(place) + moments.randint(1, 1500) if kills < most else float("inf")
        while (code := daemon.poll()) is None and written(place) < enough:
            time.sleep(0.01)
        if code is not None:
            break
        daemon.kill()
        kills += daemon.wait() == -signal.SIGKILL
    assert code == 0, (place / "submit.log").read_text()
    ran = (place / "ran.txt").read_text().splitlines()
    # The number of a submission that was given up is not used again.
    assert len(ran) == len(set(ran))
    times = Counter(line.split()[0] for line in ran)
    assert times == {"kill_i0": 1, "kill_i1": 1, "kill_i2": 2, "kill_i3": 1}
    done = Counter((place / "done.txt").read_text().splitlines())
    expected = Counter({f"kill_i{i}-{step}": 2 if i == 2 else 1 for i in range(4) for step in range(3)})
    assert done == expected
    return kills
