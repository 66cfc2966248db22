"""Over the fake cluster the loop is killed at every effect; the nine invariants are asked of what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from deaths import Fatal, Killed
from played import LINES, Played, Setup, stage
from simulation import RULES, check_actions

from oellm_autoexp.schedulers.fake.scenario import ClusterFault

#: Steps at which what was written may be lost or torn.
UNSAFE = ("write_at:after", "fsync:before", "append:after", "submit:after", "cancel:after")
PLAY = {"startup": 5.0, "log_every": 60.0, "checkpoint_takes": 5.0, "stop_takes": 1.0, "lines": LINES}
ENDS = {"saves": "succeeded", "breaks": "failed", "unwanted": "cancelled"}
#: What waits for these, in the setup that has it.
FAMILY = {"child": "saves", "orphan": "breaks"}
FAMILY_ENDS = {"saves": "succeeded", "child": "succeeded", "breaks": "failed", "orphan": "cancelled"}


def befall(played: Played, kind: Any, **fault: Any) -> None:
    played.client.befall(ClusterFault(kind=kind, at=0.0, **fault))


def scenario(*, max_array_size: int, **cluster: Any) -> dict[str, Any]:
    breaks = {"kind": "exit", "after": 20.0, "lines": ["RuntimeError: boom"]}
    return {
        "cluster": {"nodes": 3, "max_array_size": max_array_size, "min_job_age": 60.0, **cluster},
        "jobs": [
            {**PLAY, "match": "saves", "work": 150.0, "checkpoint_every": 60.0},
            {**PLAY, "match": "breaks", "work": 300.0, "checkpoint_every": None, "mishaps": [breaks]},
            {**PLAY, "match": "unwanted", "work": 86400.0, "checkpoint_every": None},
            {**PLAY, "match": "child", "work": 100.0, "checkpoint_every": 60.0},
            {**PLAY, "match": "orphan", "work": 60.0, "checkpoint_every": None},
        ],
    }


#: What befalls the cluster, and what a person does, at which second.
Plan = dict[float, Callable[[Played], None]]
ARRAY: Plan = {
    0.0: lambda played: befall(played, "lost_answer"),
    70.0: lambda played: befall(played, "outage", lasts=30.0),
    120.0: lambda played: played.drop("cancel", "unwanted"),
}
NODES: Plan = {
    40.0: lambda played: befall(played, "node_fail", node="node1", lasts=100.0, runs_on=True),
    60.0: lambda played: befall(played, "frozen", lasts=30.0),
    130.0: lambda played: befall(played, "requeue", job="unwanted"),
    200.0: lambda played: played.drop("cancel", "unwanted"),
}
CHAIN: Plan = {
    0.0: lambda _played: None,
    100.0: lambda played: befall(played, "lost_answer"),
    330.0: lambda played: befall(played, "outage", lasts=40.0),
    400.0: lambda played: played.drop("cancel", "unwanted"),
}
EARLY: Plan = {
    0.0: lambda played: befall(played, "lost_answer"),
    110.0: lambda played: befall(played, "outage", lasts=40.0),
}
SETUPS = {
    "array": (ARRAY, scenario(max_array_size=10, accounting=True)),
    "nodes": (NODES, scenario(max_array_size=1, accounting=False, requeue=False, slurmd_timeout=20.0)),
    "chain": (CHAIN, scenario(max_array_size=1, accounting=False)),
    "early": (EARLY, scenario(max_array_size=1, accounting=False)),
}
#: Of each: the time limit, how long what waits behind other attempts waits for the word, and for how long
#: nobody leads after a death.
HABITS: dict[str, tuple[int | None, float | None, float]] = {
    "array": (None, None, 5.0),
    "nodes": (None, None, 5.0),
    "chain": (120, 30.0, 200.0),
    "early": (None, 30.0, 200.0),
}


def play(name: str, fatal: Fatal) -> int:
    """A setup to its end, killed as told; how often it was."""
    plan, told = SETUPS[name]
    rules = {
        **RULES,
        "restart_policies": {
            "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 5}
        },
    }
    limit, wait, away = HABITS[name]
    ends, early = (FAMILY_ENDS, wait) if name == "early" else (ENDS, None)
    if early is not None:
        # Nothing but the exit status tells of success: without a leader it is enough.
        signals = {key: rule for key, rule in RULES["monitoring"]["log_signals"].items() if key != "nan"}
        rules["monitoring"] = {**RULES["monitoring"], "log_signals": signals}
    elif wait is not None:
        rules["monitoring"] = {**RULES["monitoring"], "startup_grace_seconds": 10}
    setup = Setup(
        jobs=list(ends),
        rules=rules,
        scenario=told,
        time_limit=limit,
        successor_wait=wait if early is None else None,
        early_wait=early,
        parents={} if early is None else {child: [parent] for child, parent in FAMILY.items()},
        pace=20.0,
        stride=40.0,
    )
    with stage(setup) as played:
        fatal._now = lambda: played.client.played.now
        start, left, killed = played.client.played.now, dict(plan), 0

        def on_tick() -> None:
            assert played.client.played.now - start < 3 * 3600.0, "9: no end within hours"
            for at in [at for at in left if played.client.played.now - start >= at]:
                left.pop(at)(played)

        on_tick()
        for effects in (fatal, Fatal()):
            try:
                played.run(played.submit(effects), on_tick)
                break
            except Killed:
                killed += 1
                played.bury()
                played.pass_time(away)
        assert not left
        played.audit.look_at_the_journal()
        played.audit.at_the_end()
        check_actions(played)
        jobs = played.audit.session.jobs
        assert {job: jobs[job].state.value for job in jobs} == ends
        return killed


@pytest.mark.parametrize("left", ["all", "synced", "torn"])
@pytest.mark.parametrize("name", SETUPS)
def test_a_death_at_any_effect_breaks_no_invariant(name: str, left: str) -> None:
    """Killed before and after each effect, with all, the synced, or a torn half of the last writing left."""
    whole = Fatal()
    assert play(name, whole) == 0
    assert {"submit:before", "cancel:before", "append:before", "queue:before"} <= set(whole.names)
    previous, earlier = "", 0.0
    for at, (step, now) in enumerate(zip(whole.names, whole.times, strict=True), start=1):
        same = previous.endswith(":after") and step.endswith(":before") and now == earlier
        previous, earlier = step, now
        if same if left == "all" else step not in UNSAFE:
            continue  # Nothing happened since the step before, or all is synced: the same death again.
        try:
            assert play(name, Fatal(at, lost=left == "synced", torn=left == "torn")) == 1
        except Exception as error:
            raise AssertionError(f"killed at step {at}, {step}") from error
