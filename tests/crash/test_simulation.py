"""Whole campaigns under seeded faults, held to the invariants at every step; `make soak` plays more."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter

import pytest
from played import LINES, Setup, stage
from simulation import play, repeat_line

BLOCK, BLOCKS = 10, 20


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_fault_breaks_an_invariant(block: int) -> None:
    """Outages, lost answers, dead nodes, deaths and stops of the loop, clocks that jump: 200 seeds."""
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            play(seed)
        except Exception as error:
            raise AssertionError(f"to repeat it: {repeat_line(seed)}") from error


def test_a_seed_gives_the_same_campaign_each_time() -> None:
    """Event by event, so that a failure can be repeated."""
    one, two = play(11), play(11)
    kinds = [(event.kind, event.at) for event in one.played.audit.events]
    assert kinds == [(event.kind, event.at) for event in two.played.audit.events]
    assert len(kinds) > 50


def test_the_seeds_reach_what_they_are_for() -> None:
    """Deaths, stops, adopted and withdrawn submissions, lost copies, restarts, every verdict."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        campaign = play(seed)
        seen["death"] += campaign.deaths
        seen["stop"] += campaign.stops
        for event in campaign.played.audit.events:
            seen[event.kind] += 1
            seen["adopted"] += getattr(event, "adopted", False)
            seen["withdrawn"] += getattr(event, "withdrawn", False)
            seen["orphaned"] += event.kind == "end_wished" and getattr(event, "by", "") == "parent"
        seen.update(job.state.value for job in campaign.played.audit.session.jobs.values())
    wanted = [
        "canary_proved",
        "throttle_set",
        "death",
        "stop",
        "adopted",
        "withdrawn",
        "orphaned",
        "successor_taken",
        "blinded",
        "restart_scheduled",
        "cancel_sent",
        "attempt_gone",
    ]
    missing = [
        name for name in [*wanted, "succeeded", "failed", "cancelled", "job_retried"] if not seen[name]
    ]
    assert not missing, seen


def test_twenty_four_days_need_no_more_memory_or_files_than_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One loop for 24 days of virtual time: what it holds at the end is what it held after the first days."""
    days = 24
    play = {"work": f"{days}d", "startup": 60, "log_every": 1200, "checkpoint_every": 7200, "lines": LINES}
    signals = {
        "step": {"pattern": r"step (?P<step>\d+) loss (?P<loss>\S+)", "metrics": True, "counter": "step"}
    }
    setup = Setup(
        jobs=["one", "two"],
        rules={"monitoring": {"class_name": "SlurmLogMonitor", "log_signals": signals}},
        scenario={"jobs": [play], "cluster": {"default_time": f"{days + 2}d"}},
    )
    with stage(setup) as played:
        # The audit remembers every answer; the loop must not.
        monkeypatch.setattr(played.audit, "answered", lambda _now, _facts: None)
        loop = played.submit()
        files, blocks = [], []
        for _ in range(days):
            for _ in range(72):
                loop.tick()
                played.client.pass_time(1200.0)
            gc.collect()
            files.append(len(os.listdir("/proc/self/fd")))
            blocks.append(sys.getallocatedblocks())
        assert loop.session.jobs["one"].high_water["step"] > 23 * 8640
        assert files[-1] == files[2]
        # Days with a few more numbers in flight than others differ by that.
        assert blocks[-1] - blocks[2] < 500, blocks
