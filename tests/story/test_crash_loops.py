"""Jobs that only crash stop by themselves, and a sweep of them stops after a few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaign import Campaign
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import events as ev

#: Ends that come again and again, at once or after a while, with a last line or without.
ENDS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["exit", "exit", "kill", "oom"]), "after": st.floats(0, 3000)},
    optional={
        "code": st.integers(1, 255),
        "lines": st.lists(
            st.sampled_from(
                ["ValueError: bad shape", "RuntimeError: NCCL timeout", "Killed", "loss nan", "all is well"]
            ),
            max_size=2,
        ),
    },
)
PLAYS = st.fixed_dictionaries(
    {
        "work": st.just("300d"),
        "startup": st.floats(0, 600),
        "mishaps": st.lists(ENDS, min_size=1, max_size=2),
    },
    optional={"log_every": st.floats(200, 5000), "checkpoint_every": st.none()},
)
#: Does its work at once, says nothing of success, and exits with 0.
IDLE = {"work": 0, "startup": 5, "lines": {"progress": "at work", "done": "nothing to do"}}
CONFIG = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "inactivity_threshold_seconds": 7200,
        "log_signals": {"done": {"pattern": "training is (?P<what>done)", "mode": "success"}},
    }
}
QUIET = {"lines": {"progress": "at work"}, "checkpoint_every": None}


@given(play=st.one_of(PLAYS, st.just(IDLE)), seed=st.integers(0, 99), signals=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_crash_loop_stops_within_three_attempts(
    tmp_path_factory: pytest.TempPathFactory, play: dict[str, Any], seed: int, signals: bool
) -> None:
    """However it dies, with the shipped policies; a job that gets nowhere is not kept alive by anything."""
    scenario = {"seed": seed, "horizon": "40d", "jobs": [{**QUIET, **play}], "cluster": {"nodes": 2}}
    config = CONFIG if signals or play is IDLE else {}
    made = Campaign(tmp_path_factory.mktemp("loop"), scenario, config=config)
    (job,) = made.run().jobs.values()
    assert job.state.ended and len(job.attempts) <= 3, [(a.mode, a.reason) for a in job.attempts]


def started(made: Campaign) -> dict[str, float]:
    """When each job first ran."""
    times: dict[str, float] = {}
    for event in made.of(ev.AttemptStarted):
        times.setdefault(event.job, event.started_at)
    return times


BAD = {"work": "9d", "startup": 60, "mishaps": [{"kind": "exit", "after": 120, "lines": ["KeyError: 'lr'"]}]}


@pytest.mark.parametrize("config", [{}, {"scheduler": {"class_name": "fake", "max_jobs": 5}}])
def test_a_bad_sweep_stops_after_a_few_jobs(tmp_path: Path, config: dict[str, Any]) -> None:
    """Only those have run that were running when the third death was seen; the queue is empty again."""
    made = Campaign(tmp_path, {"cluster": {"nodes": 8}, "jobs": [BAD]}, jobs=100, config=config)
    session = made.run()
    (tripped,) = made.of(ev.BreakerTripped)
    times = started(made)
    assert max(times.values()) <= tripped.at
    assert 3 <= len(times) <= 16
    assert all(len(job.attempts) <= 3 for job in session.jobs.values())
    waiting = [job for job in session.jobs.values() if job.spec.name not in times]
    assert {job.state.value for job in waiting} == {"waiting"}
    assert all(job.hold.endswith("jobs died early of `crash: KeyError: 'lr'`") for job in waiting)
    assert session.ended is not None and session.ended.reason == "breaker"


def test_the_breaker_opens_again_when_one_of_the_dead_gets_ahead_after_all(tmp_path: Path) -> None:
    """All start at once while a file system is away; the second attempts work, and the rest follows."""
    play = {
        "work": "2h",
        "startup": 60,
        "mishaps": [{"kind": "exit", "after": 5, "lines": ["OSError: no /data"]}],
    }
    bad = {**play, "mishaps": [{**play["mishaps"][0], "attempts": 1}], "match": "j[0-4]"}
    scenario = {"cluster": {"nodes": 5}, "jobs": [bad, {"work": "1h"}]}
    made = Campaign(tmp_path, scenario, jobs=20)
    session = made.run()
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}
    (tripped,), (reset,) = made.of(ev.BreakerTripped), made.of(ev.BreakerReset)
    assert reset.by in tripped.jobs
    withdrawn = [job for job in session.jobs.values() if any(attempt.withdrawn for attempt in job.attempts)]
    assert withdrawn and all(job.spent == {} for job in withdrawn)


def test_deaths_on_one_node_are_no_reason_to_hold_a_sweep(tmp_path: Path) -> None:
    """Three jobs die on the same broken node: it is left out, and everything gets done."""
    breaks = [{"kind": "node_fail", "node": "node1", "at": f"{at}min", "lasts": "1min"} for at in (10, 30)]
    cluster = {"nodes": 4, "requeue": False, "slurmd_timeout": 30}
    made = Campaign(tmp_path, {"cluster": cluster, "jobs": [{"work": "3h"}], "faults": breaks}, jobs=12)
    session = made.run()
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}
    assert made.of(ev.BreakerTripped) == []
