"""Nodes that fail are left out, for a while and within bounds; a person can say so, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from campaign import Campaign, ran_on

HOUR = 3600.0
#: Jobs of ten hours on a cluster that hands a failed job back, as sbatch --no-requeue asks.
CLUSTER = {"nodes": 8, "requeue": False}
WORK = {"work": "10h", "checkpoint_every": "1h", "checkpoint_takes": 0}
FAILS = {"kind": "node_fail", "node": "node1", "at": "2h", "lasts": "20min"}


def campaign(root: Path, *faults: dict[str, Any], jobs: int = 1, **more: Any) -> Campaign:
    scenario = {"cluster": CLUSTER, "jobs": [WORK], "faults": list(faults)}
    return Campaign(root, {**scenario, **more.pop("scenario", {})}, jobs, **more)


def test_a_restart_stays_off_the_node_that_failed(tmp_path: Path) -> None:
    """Though it is back and would be the first to be given; the decision says which node and why."""
    made = campaign(tmp_path / "with", FAILS)
    job = made.run().jobs["j0"]
    assert [attempt.mode for attempt in job.attempts] == ["crash.node_failure", "success"]
    assert ran_on(job) == ["node1", "node2"] and job.attempts[1].exclude == ("node1",)
    assert job.attempts[0].decision.endswith("; node node1 left out: 1 node failure")
    off = ("scheduler.node_exclusion=null", "restart_policies={crash.node_failure: {class_name: AlwaysRestartPolicy, backoff_seconds: 7200, backoff_max_seconds: 7200}}")  # fmt: skip  # noqa: E501
    without = campaign(tmp_path / "without", FAILS, overrides=off)
    assert ran_on(without.run().jobs["j0"]) == ["node1", "node1"]
