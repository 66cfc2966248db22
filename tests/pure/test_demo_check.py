"""The demo's own verdict: it passes what is right, and names what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECK = Path(__file__).resolve().parents[2] / "examples" / "demo" / "check.py"
CASES = [
    "plain_0",
    "plain_1",
    "plain_2",
    "plain_3",
    "crashes-once_4",
    "stalls-once_5",
    "over-time_6",
    "mistyped_7",
]
Jobs = dict[str, dict[str, Any]]


def spent(hang: float) -> dict[str, Any]:
    hours = {"queue": 0.1, "start_up": 0.1, "productive": 0.7, "hang": hang}
    return {"ettr": 0.7 / sum(hours.values()), "wall_hours": sum(hours.values()), "hours": hours}


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """What a demo that went well leaves, with two checkpoints a job."""
    found: Jobs = {}
    (tmp_path / "logs").mkdir()
    for name in CASES:
        restarts = 0 if name.startswith(("plain", "mistyped")) else 1
        out = tmp_path / name
        found[name] = {
            "name": name,
            "state": "succeeded",
            "restarts": restarts,
            "error_mode": "success",
            "reason": "exit 0",
            "output_dir": str(out),
            "log_path": str(tmp_path / "logs" / f"{name}.{restarts + 1}.log"),
            "metrics": {"loss": 1.5},
            "goodput": spent(hang=0.1 if name.startswith("stalls-once") else 0.0),
        }
        (out / "checkpoints").mkdir(parents=True)
        (out / "result.json").write_text("{}")
        steps = ["step_000100", "step_000200"]
        log = "".join(f"Checkpoint saved: {out}/checkpoints/{step}\n" for step in steps)
        Path(found[name]["log_path"]).write_text(f"{log}iteration 200/200 | loss 1.5000 | 10 chars/s\n")
        record = "".join(json.dumps({"checkpoint": step}) + "\n" for step in steps)
        (out / "checkpoints" / "conversions.jsonl").write_text(record)
    found["mistyped_7"].update(state="failed", error_mode="crash.config", reason="invalid choice: 'adagard'")
    return found


def check(jobs: Jobs, submit_exit_code: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECK), "--submit-exit-code", str(submit_exit_code)],
        input=json.dumps({"jobs": list(jobs.values())}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_demo_that_went_well_passes(jobs: Jobs) -> None:
    done = check(jobs)
    assert done.returncode == 0, done.stderr
    assert "7 trainings finished (3 restarts)" in done.stdout
    assert "16 checkpoints converted, each exactly once" in done.stdout


def converted_twice(jobs: Jobs) -> None:
    record = Path(jobs["plain_0"]["output_dir"]) / "checkpoints" / "conversions.jsonl"
    record.write_text(record.read_text() + json.dumps({"checkpoint": "step_000200"}) + "\n")


def never_converted(jobs: Jobs) -> None:
    (Path(jobs["plain_0"]["output_dir"]) / "checkpoints" / "conversions.jsonl").write_text("")


def other_loss(jobs: Jobs) -> None:
    jobs["plain_0"]["metrics"]["loss"] = 1.6


def one_job_less(jobs: Jobs) -> None:
    del jobs["plain_3"]


def never_restarted(jobs: Jobs) -> None:
    jobs["stalls-once_5"]["restarts"] = 0


def restarted_for_nothing(jobs: Jobs) -> None:
    jobs["mistyped_7"]["restarts"] = 2


def unexplained(jobs: Jobs) -> None:
    jobs["mistyped_7"]["reason"] = "exit 2"


def failed(jobs: Jobs) -> None:
    jobs["crashes-once_4"].update(state="failed", reason="OSError")


def hang_not_told(jobs: Jobs) -> None:
    jobs["stalls-once_5"]["goodput"] = spent(hang=0.0)


def time_left_out(jobs: Jobs) -> None:
    jobs["plain_0"]["goodput"]["wall_hours"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (converted_twice, "step_000200 was saved 1 times and converted 2 times"),
        (never_converted, "step_000100 was saved 1 times and converted 0 times"),
        (other_loss, "the loss shown is 1.6"),
        (one_job_less, "there are 7 jobs, not 8"),
        (never_restarted, "stalls-once_5 was never restarted"),
        (restarted_for_nothing, "mistyped_7 was restarted 2 times"),
        (unexplained, "does not say what is wrong: exit 2"),
        (failed, "crashes-once_4 is failed: OSError"),
        (hang_not_told, "stalls-once_5: 0.0 hours of its time are called a hang"),
        (time_left_out, "plain_0: the parts of its time do not add up"),
    ],
)
def test_what_went_wrong_is_named(jobs: Jobs, change: Callable[[Jobs], None], message: str) -> None:
    change(jobs)
    done = check(jobs)
    assert done.returncode == 1
    assert message in done.stderr


def test_the_exit_code_of_submit_belongs_to_it(jobs: Jobs) -> None:
    """One job fails by design, so `submit` must say 1."""
    assert check(jobs, submit_exit_code=0).returncode == 1


def test_a_last_attempt_with_nothing_left_to_do_is_no_fault(jobs: Jobs) -> None:
    """On a slow machine the time limit may come with the last step; what then follows prints no loss."""
    job = jobs["over-time_6"]
    job["restarts"], job["log_path"] = 2, job["log_path"].replace(".2.log", ".3.log")
    Path(job["log_path"]).write_text("nothing is left to do\n")
    assert check(jobs).returncode == 0
