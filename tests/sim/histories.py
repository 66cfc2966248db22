"""Write a history for later versions to read: `python tests/sim/histories.py tests/data/histories/VERSION`.

A journal of two leaders, the first of which dies, and beside it what it adds up to. Hosts, processes,
paths in it are made up. A version that changes the form of records adds a history and keeps the older ones.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from world import FOREVER, Script, Stage, World

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.session import Session
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


def main(target: Path) -> None:
    """Write the journal and its sum."""
    made_up = Leader(host="login1", boot_id="boot", pid=1000, pid_start="1", started_at=1000.0)
    shutil.rmtree(ROOT, ignore_errors=True)
    with (
        mock.patch.object(Leader, "this_process", lambda _now: made_up),
        mock.patch.object(Leader, "alive_here", lambda _self: False),
    ):
        stage = played()
        target.mkdir(parents=True)
        shutil.copytree(stage.paths.journal, target / "journal")
        kinds = {event.kind for event in stage.events}
        print("not in it:", sorted(ev.KINDS.keys() - kinds))
        text = json.dumps(summary(stage.replayed()), indent=2, ensure_ascii=False)
        (target / "summary.json").write_text(text + "\n")
    shutil.rmtree(ROOT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
