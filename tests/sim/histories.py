"""Write histories for later versions to read: `python tests/sim/histories.py tests/data/histories/VERSION`.

VERSION is a journal of two leaders, the first of which dies; VERSION-chain is one of attempts that wait
behind others; VERSION-stages is one of jobs that wait for others, VERSION-early one of such jobs that do so
in the queue, too; VERSION-cluster is one of a sweep on the fake cluster that meets all the rest of what a
journal can say. Beside each stands what it adds up to. Hosts, processes, paths in them are made up. A version
that changes the form of records, or has new kinds of them, adds a history and keeps the older ones.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from played import Played, Setup
from world import FOREVER, Script, Stage, World

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import CONDITION, JobState, Parent
from oellm_autoexp.core.session import Session
from oellm_autoexp.schedulers.fake.scenario import ClusterFault
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.leader import Leader

ROOT = Path("/tmp/history")
SCRIPTS: dict[tuple[str, int], Script] = {
    ("steady", 1): ((1.0, "step 10"), (2.0, "saved /data/steady/10"), (30.0, "step 20"), (31.0, 0)),
    ("crashes", 1): ((1.0, "step 10"), (2.0, "RuntimeError: NCCL timeout"), (3.0, 1)),
    ("crashes", 2): ((1.0, "step 20"), (2.0, "saved /data/crashes/20"), (3.0, 0)),
    ("hangs", 1): ((1.0, "step 10"),),
    ("hangs", 2): ((1.0, "step 20"), (2.0, 0)),
    ("mistyped", 1): ((0.5, "train.py: error: unrecognized arguments: --lrr"), (1.0, 2)),
    ("unlucky", 1): ((1.0, "step 10"), (2.0, "loss nan"), (50.0, 0)),
    ("unwanted", 1): FOREVER,
}
RULES: dict[str, Any] = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "startup_grace_seconds": 0,
        "inactivity_threshold_seconds": 40,
        "log_signals": {
            "step": {"pattern": r"step (?P<step>\d+)", "counter": "step"},
            "saved": {
                "pattern": r"saved (?P<path>\S+)",
                "action": "note",
                "metadata": {"kind": "checkpoint"},
            },
            "nan": {"pattern": "loss nan", "mode": "crash.nan", "grace_seconds": 5},
        },
    },
    "actions": {"note": {"class_name": "AppendAction", "path": f"{ROOT}/notes", "text": "{path}"}},
    "restart_policies": {
        "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2, "backoff_seconds": 2},
        "crash.nan": {"class_name": "NoRestartPolicy", "message": "look at the learning rate"},
    },
}


class Died(BaseException):
    """The first leader's end."""


def summary(session: Session) -> dict[str, Any]:
    """What a history adds up to."""
    return {
        "jobs": {
            name: {
                "state": job.state.value,
                "mode": job.mode,
                "reason": job.reason,
                "high_water": dict(job.high_water),
                "attempts": [
                    {"mode": past.mode, "decision": past.decision, "exit_code": past.exit_code}
                    for past in job.attempts
                ],
            }
            for name, job in session.jobs.items()
        },
        "actions": {key: state.ended.ok if state.ended else None for key, state in session.actions.items()},
        "answered": len(session.answered),
        "ended": session.ended.reason if session.ended else None,
    }


def played() -> Stage:
    """A session that has come to its end."""
    names = tuple(dict.fromkeys(name for name, _ in SCRIPTS))
    world = World(lambda name, attempt: SCRIPTS[name, attempt], outages=[(1010.0, 1014.0)])
    stage = Stage(ROOT, world, RULES, names)
    loop = stage.submit()

    def die() -> None:
        if world.now >= 1006.0:
            raise Died

    try:
        stage.run(loop, on_tick=die)
    except Died:
        inbox.drop(stage.paths, Effects(), "cancel", {"jobs": ["unwanted"]}, now=world.now)
    stage.run(stage.lead())
    return stage


def staged() -> Stage:
    """Three jobs in a row, the first of which fails and is retried; one that starts on a signal of it."""
    scripts: dict[tuple[str, int], Script] = {
        ("stable", 1): ((1.0, "step 10"), (2.0, "KeyError: 'lr'"), (3.0, 1)),
        ("stable", 2): ((1.0, "step 10"), (2.0, "saved /data/stable/10"), (9.0, 0)),
    }
    works: Script = ((1.0, "step 10"), (2.0, 0))
    world = World(lambda name, attempt: scripts.get((name, attempt), works))
    rules = {**RULES, "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}}}
    early = Parent(job="stable", id="id-stable", stage="stable", gate=CONDITION)
    start = {"class_name": "SignalCondition", "sibling": "stable", "signal": "saved"}
    stage = Stage(
        ROOT,
        world,
        rules,
        ("stable", "decay", "eval", "early"),
        parents={"decay": ["stable"], "eval": ["decay"], "early": [early]},
        own_rules={"early": {**rules, "job": {"start_condition": start}}},
    )
    stage.run(stage.submit())
    inbox.drop(stage.paths, Effects(), "retry", {"jobs": ["stable"]}, now=world.now)
    stage.run(stage.lead())
    return stage


#: Kinds that are recorded as they are, at the end of the sweep.
MADE_UP: tuple[ev.Event, ...] = (
    ev.JobUnplanned(at=0.0, job="long"),
    ev.CanaryProved(at=0.0, job="long", why="it succeeded"),
    ev.NodesSuspected(at=0.0, nodes=("node2",), weight=1.0, what="node failure", job="long", attempt=1),
    ev.NodesTrusted(at=0.0, nodes=("node2",), job="long", attempt=2),
    ev.NodesForgiven(at=0.0, nodes=("node2",)),
    ev.ExclusionUpdated(at=0.0, job="long", attempt=2, exclude=("node2",)),
)


def swept() -> Played:
    """A sweep that is held back, fails, is retried, updated, and loses sight of a job."""
    lines = ["KeyError: 'lr'"]
    dies = {"work": 600, "startup": 1, "mishaps": [{"kind": "exit", "after": 1, "lines": lines}]}
    lost = {"work": 600, "startup": 1, "mishaps": [{"kind": "kill", "after": 30, "attempts": 1}]}
    habits = {
        "nodes": 2,
        "queue_wait": 60,
        "accounting": False,
        "min_job_age": 1,
        "max_array_size": 3,
        "requeue": False,
    }
    setup = Setup(
        jobs=["long", "bad1", "bad2", "bad3"],
        rules={
            "actions": {
                "tell": {
                    "class_name": "AppendAction",
                    "path": f"{ROOT}/told",
                    "text": "{job}",
                    "on": ["job_failed"],
                }
            }
        },
        scenario={"cluster": habits, "jobs": [{"match": "bad*", **dies}, {"match": "long", **lost}]},
        max_jobs=2,
        breaker=2,
    )
    ROOT.mkdir()
    played = Played(ROOT, setup)
    played.client.befall(ClusterFault(kind="outage", at=0.0, lasts=30.0))
    loop = played.submit()

    def requeue() -> None:
        job = loop.session.jobs["long"]
        if job.state is JobState.RUNNING and len(job.attempts) == 2 and not job.attempts[1].requeues:
            played.client.befall(ClusterFault(kind="requeue", job="long", at=0.0))

    played.run(loop, requeue)
    loop = played.lead()
    inbox.drop(
        played.paths, Effects(), "exclude", {"nodes": ["node9"], "why": "smokes"}, now=played.clock.now()
    )
    inbox.drop(played.paths, Effects(), "forgive", {"nodes": ["node9"]}, now=played.clock.now())
    played.client.befall(ClusterFault(kind="node_fail", node="node1", at=0.0, lasts=90.0))
    played.drop("retry", "bad2")
    played.run(loop)
    loop = played.lead()
    spec = replace(loop.session.jobs["bad1"].spec, id="id-mended", parameters={"point": "mended"})
    loop.record(ev.JobUpdated(at=played.clock.now(), job="bad1", spec=spec, again=True))
    played.drop("retry", "bad1")
    played.run(loop)
    loop = played.lead()
    for event in MADE_UP:
        loop.record(replace(event, at=played.clock.now()))
    played.run(loop)
    return played


def chained() -> Played:
    """A chain of time limits; what waits behind the last segment never begins."""
    saves = {"work": 200, "startup": 5, "checkpoint_every": 60, "checkpoint_takes": 5, "stop_takes": 1}
    setup = Setup(
        jobs=["chain"],
        rules={"monitoring": {"class_name": "SlurmLogMonitor", "startup_grace_seconds": 10}},
        scenario={"cluster": {"nodes": 2}, "jobs": [{"match": "chain", **saves}]},
        time_limit=150,
        successor_wait=60.0,
    )
    ROOT.mkdir()
    played = Played(ROOT, setup)
    played.run(played.submit())
    return played


def queued() -> Played:
    """What waits for a job that is restarted, and for one that fails, in the queue as well."""
    dies = {"kind": "exit", "after": 20, "lines": ["RuntimeError: boom"]}
    works = {"work": 100, "startup": 5}
    setup = Setup(
        jobs=["parent", "child", "lost", "orphan"],
        rules={"restart_policies": {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1}}},
        scenario={
            "cluster": {"nodes": 4, "max_array_size": 1},
            "jobs": [
                {**works, "match": "parent", "mishaps": [{**dies, "attempts": 1}]},
                {**works, "match": "lost", "mishaps": [dies]},
                works,
            ],
        },
        early_wait=60.0,
        parents={"child": ["parent"], "orphan": ["lost"]},
    )
    ROOT.mkdir()
    played = Played(ROOT, setup)
    played.run(played.submit())
    return played


def main(target: Path) -> None:
    """Write the journals and their sums."""
    made_up = Leader(host="login1", boot_id="boot", pid=1000, pid_start="1", started_at=1000.0)
    shutil.rmtree(ROOT, ignore_errors=True)
    with (
        mock.patch.object(Leader, "this_process", lambda _now: made_up),
        mock.patch.object(Leader, "alive_here", lambda _self: False),
    ):
        stage = played()
        told = {event.kind for event in stage.events}
        write(target, stage.paths, stage.replayed())
        shutil.rmtree(ROOT)
        arms = staged()
        write(target.with_name(f"{target.name}-stages"), arms.paths, arms.replayed())
        shutil.rmtree(ROOT)
        chain = chained()
        write(target.with_name(f"{target.name}-chain"), chain.paths, chain.audit.session)
        shutil.rmtree(ROOT)
        told |= {event.kind for event in chain.audit.events}
        early = queued()
        write(target.with_name(f"{target.name}-early"), early.paths, early.audit.session)
        shutil.rmtree(ROOT)
        told |= {event.kind for event in early.audit.events}
        sweep = swept()
        write(target.with_name(f"{target.name}-cluster"), sweep.paths, sweep.audit.session)
        shutil.rmtree(ROOT)
        told |= {event.kind for event in sweep.audit.events}
        assert told == ev.KINDS.keys(), f"not in them: {sorted(ev.KINDS.keys() - told)}"


def write(target: Path, paths: SessionPaths, session: Session) -> None:
    """One history and its sum."""
    target.mkdir(parents=True)
    shutil.copytree(paths.journal, target / "journal")
    text = json.dumps(summary(session), indent=2, ensure_ascii=False)
    (target / "summary.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
