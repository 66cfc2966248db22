"""Nodes that fail are left out, for a while and within bounds; a person can say so, too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from campaign import START, Campaign, ran_on
from commands import Cli

from oellm_autoexp.core import events as ev
from oellm_autoexp.services.session import replay

HOUR = 3600.0
CLUSTER = {"nodes": 8, "requeue": False, "slurmd_timeout": 60}
WORK = {"work": "10h", "checkpoint_every": "1h", "checkpoint_takes": 0}


def fails(node: str, at: str, lasts: str = "2min") -> dict[str, Any]:
    return {"kind": "node_fail", "node": node, "at": at, "lasts": lasts}


def campaign(root: Path, *faults: dict[str, Any], jobs: int = 1, play: Any = WORK, **more: Any) -> Campaign:
    cluster = {**CLUSTER, **more.pop("cluster", {})}
    scenario = {
        "cluster": cluster,
        "jobs": [play] if isinstance(play, dict) else play,
        "faults": list(faults),
    }
    return Campaign(root, scenario, jobs, **more)


def one_by_one(root: Path, *faults: dict[str, Any], at_once: int = 1, **more: Any) -> Campaign:
    """Without arrays: each job is submitted when a slot is free."""
    overrides = [f"scheduler.max_jobs={at_once}", *more.pop("overrides", ())]
    return campaign(root, *faults, cluster={"max_array_size": 1}, overrides=overrides, **more)


def test_a_restart_stays_off_the_node_that_failed(tmp_path: Path) -> None:
    """Though it is back and would be the first to be given; the decision says which node and why."""
    slow = "restart_policies={crash: {class_name: AlwaysRestartPolicy, backoff_seconds: 600}}"
    made = campaign(tmp_path / "with", fails("node1", "2h"), overrides=[slow])
    job = made.run().jobs["j0"]
    assert [attempt.mode for attempt in job.attempts] == ["crash.node_failure", "success"]
    assert ran_on(job) == ["node1", "node2"] and job.attempts[1].exclude == ("node1",)
    assert job.attempts[0].decision.endswith("; node node1 left out: 1 node failure")
    off = [slow, "scheduler.node_exclusion=null"]
    without = campaign(tmp_path / "without", fails("node1", "2h"), overrides=off)
    assert ran_on(without.run().jobs["j0"]) == ["node1", "node1"]


def test_only_the_node_that_failed_is_left_out_of_a_wide_job(tmp_path: Path) -> None:
    """The scheduler knows which of the six it was; the others are beyond suspicion."""
    wide = {"slurm": {"sbatch": {"nodes": 6}}}
    made = campaign(tmp_path, fails("node3", "2h"), config=wide)
    job = made.run().jobs["j0"]
    assert job.attempts[1].exclude == ("node3",)
    assert "node3" not in ran_on(job)[1].split(",")
    assert [event.nodes for event in made.of(ev.NodesSuspected)] == [("node3",)]


def test_no_more_are_left_out_than_the_job_can_do_without(tmp_path: Path) -> None:
    """Eight nodes, a job of seven: the worst one is left out, the other not; the job is never stuck."""
    faults = [fails("node1", "2h"), fails("node2", "4h"), fails("node2", "6h")]
    seven = {"slurm": {"sbatch": {"nodes": 7}}}
    overrides = ["scheduler.node_exclusion={max_fraction: 1.0}"]
    made = campaign(tmp_path, *faults, config=seven, overrides=overrides)
    job = made.run().jobs["j0"]
    assert job.state.value == "succeeded"
    assert [attempt.exclude for attempt in job.attempts] == [(), ("node1",), ("node2",)]


def test_suspicion_fades_and_the_node_is_used_again(tmp_path: Path) -> None:
    """A half-life after one failure the next submission may have it."""
    made = one_by_one(tmp_path, fails("node1", "2h"), jobs=30, play={"work": "5h"})
    made.run()
    asked = [(event.at - START, event.exclude) for event in made.of(ev.SubmitRequested)]
    out = [at for at, exclude in asked if exclude == ("node1",)]
    assert min(out) > 2 * HOUR and 44 * HOUR < max(out) < 51 * HOUR
    assert all(exclude == ("node1",) for at, exclude in asked if min(out) <= at <= max(out))
    assert [exclude for at, exclude in asked if at > max(out)][:1] == [()]


def test_an_array_that_waits_for_its_own_tasks_is_told_with_one_call_each(tmp_path: Path) -> None:
    """When the node is left out, and when it may be used again: its tasks may wait for weeks."""
    overrides = ["scheduler.max_jobs=1"]
    made = campaign(tmp_path, fails("node1", "2h"), jobs=30, overrides=overrides, play={"work": "5h"})
    loop = made.submit()
    asked = loop._scheduler.calls
    made.run()
    told = made.of(ev.ExclusionUpdated)
    assert list(dict.fromkeys(event.exclude for event in told)) == [("node1",), ()]
    assert 44 * HOUR < next(event.at for event in told if not event.exclude) - START < 51 * HOUR
    bounds = made.of(ev.ThrottleSet)
    assert (asked["sbatch"], asked["scontrol"]) == (2, 2 + len(bounds)) and len(told) > 20
    runs = sorted((a.started_at, a.ended_at) for job in loop.session.jobs.values() for a in job.attempts)
    assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(runs))


def test_quick_deaths_on_one_node_move_jobs_elsewhere(tmp_path: Path) -> None:
    """Nobody names the node, but job after job dies on it at once."""
    dies = [{"after": 60, "attempts": 1, "lines": ["CUDA error"]}]
    wait = "restart_policies={crash: {class_name: AlwaysRestartPolicy, backoff_seconds: 600}}"
    play = [{"match": "j[0-2]", "startup": 5, "mishaps": dies}, {"work": "1h"}]
    made = one_by_one(tmp_path, play=play, jobs=5, overrides=[wait])
    session = made.run()
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}
    suspected = made.of(ev.NodesSuspected)
    assert [(event.nodes, event.what, event.weight) for event in suspected] == [
        (("node1",), "quick death", 0.2)
    ] * 3
    assert [event.exclude for event in made.of(ev.SubmitRequested)][:4] == [(), (), (), ("node1",)]
    assert made.of(ev.BreakerTripped) == []


def test_queued_jobs_are_kept_off_a_node_that_fails_meanwhile(tmp_path: Path) -> None:
    """They were submitted before; the scheduler is told, and they run elsewhere."""
    made = campaign(tmp_path, fails("node1", "2h", "1min"), jobs=20, cluster={"nodes": 4})
    session = made.run()
    updated = {event.job for event in made.of(ev.ExclusionUpdated)}
    assert len(updated) == 16
    for name in updated:
        assert "node1" not in ran_on(session.jobs[name])
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}


def test_a_named_node_is_left_out_and_a_cascade_is_not(tmp_path: Path) -> None:
    """A signal's `node` field counts; of all that one log names, the first three."""
    config = {
        "slurm": {"sbatch": {"nodes": 8}},
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "log_signals": {
                "xid": {"pattern": "Xid 79 on (?P<node>\\S+)", "mode": "crash.gpu", "match": "every"},
                "gone": {"pattern": "JOB \\d+ ON (?P<host>\\S+) CANCELLED", "mode": "crash.gone"},
            },
        },
    }
    notice = "slurmstepd: error: *** JOB 7 ON node08 CANCELLED AT 2026-11-26T16:07:44 DUE TO NODE FAILURE ***"
    lines = [notice, *(f"Xid 79 on node{number:02d}.cluster.local" for number in range(5, 30))]
    play = {**WORK, "mishaps": [{"after": "2h", "attempts": 1, "lines": lines}]}
    made = campaign(tmp_path, play=play, config=config, cluster={"nodes": 99})
    made.run()
    (found,) = made.of(ev.NodesSuspected)
    assert found.nodes == ("node05", "node06", "node07") and not found.share


# ---------------------------------------------------------------- a person's word


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path, home=tmp_path / "home")


def test_a_person_excludes_and_forgives(tmp_path: Path, cli: Cli) -> None:
    """Where nobody leads, the command is carried out at once; lists are written as Slurm writes them."""
    made = campaign(tmp_path, fails("node1", "2h"), jobs=5, overrides=["scheduler.max_jobs=2"])
    loop = made.submit()
    while loop.session.jobs["j0"].restarts == 0:
        loop.tick()
        loop._clock.wait(60)
    loop.close()
    state = str(made.paths.state_dir)
    shown = json.loads(cli.within("nodes", state, "--json").stdout)["nodes"]
    assert [(row["node"], row["state"], row["why"]) for row in shown] == [
        ("node1", "excluded", "1 node failure")
    ]
    assert shown[0]["until"] > START + 49 * HOUR
    done = cli.within("nodes", state, "exclude", "node[2-3]", "--why", "slow network")
    assert done.returncode == 0 and "node2, node3" in done.stdout, done.stderr
    text = cli.within("nodes", state).stdout
    assert "slow network" in text and text.index("node2") < text.index("node1")
    assert "Nodes left out: node2, node3, node1" in cli.within("status", state).stdout
    assert cli.within("nodes", state, "forgive", "node1", "node2").returncode == 0
    assert [row["node"] for row in json.loads(cli.within("nodes", state, "--json").stdout)["nodes"]] == [
        "node3"
    ]
    made.lead()
    session = made.run()
    assert session.nodes.by_user == {"node3": "slow network"}
    assert all("node3" not in ran_on(session.jobs[name])[-1] for name in ("j3", "j4"))
    assert {job.state.value for job in session.jobs.values()} == {"succeeded"}


def test_what_nodes_cannot_do_is_said(tmp_path: Path, cli: Cli) -> None:
    """A wrong verb, no node, a session without nodes: each with what to type."""
    made = campaign(tmp_path)
    made.run()
    state = str(made.paths.state_dir)
    assert "Nothing speaks against any node" in cli.within("nodes", state).stdout
    assert cli.within("nodes", state, "exclud", "n1").returncode == 2
    missing = cli.within("nodes", state, "exclude")
    assert missing.returncode == 2 and "which nodes" in missing.stderr
    odd = cli.within("nodes", state, "exclude", "n[1-")
    assert odd.returncode == 3 and "no node is meant" in odd.stderr
    assert "nothing to forgive" in cli.within("nodes", state, "forgive", "node7").stdout
    config = {"project": {"name": "l"}, "backend": {"class_name": "CommandBackend", "command": ["true"]}}
    (tmp_path / "l.yaml").write_text(json.dumps(config))
    assert cli.within("submit", "l.yaml", "--local").returncode == 0
    local = cli.within("nodes", "l", "exclude", "n1")
    assert local.returncode == 3 and "no nodes to choose from" in local.stderr


def test_a_scheduler_that_takes_no_job_without_a_node_gets_its_way(tmp_path: Path) -> None:
    """Excluded by a rule it is forgiven; excluded by a person, the job ends with Slurm's words."""
    made = campaign(tmp_path, cluster={"nodes": 1})
    loop = made.submit()
    loop.record(ev.NodesSuspected(at=START, nodes=("gone9",), weight=9, what="stall", job="j0", attempt=1))
    loop._scheduler.eligible_nodes = lambda _path: None  # type: ignore[method-assign]
    session = made.run()
    assert session.jobs["j0"].state.value == "succeeded" and session.nodes.evidence == {}
    (forgiven,) = made.of(ev.NodesForgiven)
    assert (forgiven.by, "Invalid node name" in forgiven.why) == ("scheduler", True)
    ordered = campaign(tmp_path / "ordered", cluster={"nodes": 1})
    loop = ordered.submit()
    loop.record(ev.NodesExcluded(at=START, nodes=("node1",)))
    job = ordered.run().jobs["j0"]
    assert job.state.value == "failed" and "Requested node configuration is not available" in job.reason
    assert replay(ordered.paths).nodes.by_user == {"node1": ""}


def test_the_next_leader_leaves_out_the_same_nodes(tmp_path: Path) -> None:
    """Killed every few turns, also between what was learnt and what follows from it: the same submissions."""
    faults = [fails(f"node{number % 4 + 1}", f"{2 + 3 * number}h") for number in range(6)]

    def asked(made: Campaign) -> list[tuple[Any, ...]]:
        return [(event.at, event.jobs, event.exclude) for event in made.of(ev.SubmitRequested)]

    whole = one_by_one(tmp_path / "whole", *faults, jobs=12, at_once=6)
    whole.run()
    assert len({exclude for _, _, exclude in asked(whole)}) > 1
    killed = one_by_one(tmp_path / "killed", *faults, jobs=12, at_once=6)
    loop = killed.submit()
    turns = 0
    while not loop.finished:
        loop.tick()
        loop._clock.wait(60)
        turns += 1
        if turns % 13 == 0:
            loop = killed.lead()
    killed.run()
    assert turns > 26
    assert [each[1:] for each in asked(killed)] == [each[1:] for each in asked(whole)]
