"""Silence is seen however seldom the scheduler is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import FOREVER, Stage, World

from oellm_autoexp.config.sockets import Capabilities


@pytest.mark.parametrize("interval", [0.5, 60.0, 300.0, 1800.0])
def test_a_quiet_job_is_a_stall_at_any_interval(tmp_path: Path, interval: float) -> None:
    """The time between two answers that were meant to be so far apart is no blindness."""
    world = World(lambda _name, _attempt: FOREVER)
    rules = {
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "inactivity_threshold_seconds": 3600.0,
            "startup_grace_seconds": 0.0,
        },
        "restart_policies": {"stall": {"class_name": "NoRestartPolicy"}},
    }
    asks = Capabilities(find_grace_s=1.0, gone_grace_s=1.0, poll_interval_s=interval)
    stage = Stage(tmp_path, world, rules, ["one"], capabilities=asks)
    stage.run(stage.submit(), ticks=20_000)
    (job,) = stage.replayed().jobs.values()
    assert (job.state.value, job.mode) == ("failed", "stall")
    (attempt,) = job.attempts
    assert attempt.ended_at is not None and attempt.started_at is not None
    assert 3600 <= attempt.ended_at - attempt.started_at <= 3600 + 2 * interval + 10
