"""`monitor/state.json` for people and other programs."""

from __future__ import annotations

import json

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, SchedulerRef
from oellm_autoexp.core.session import Session
from oellm_autoexp.store import snapshot
from oellm_autoexp.store.effects import Effects

RULES = {
    "monitoring": {"inactivity_threshold_seconds": 60, "termination_string": "done"},
    "job": {
        "termination_string": "all done",
        "start_condition_cmd": "",
        "inactivity_threshold_seconds": None,
    },
}


def session(*scheduler_ids: str) -> Session:
    out = Session()
    out.apply(ev.SessionOpened(at=1.0, project="p", session="s", nonce="n", scheduler={}))
    out.apply(ev.RulesSet(at=1.0, rules="r", config=RULES))
    for index, identity in enumerate(scheduler_ids):
        name = f"job{index}"
        spec = JobSpec(
            name=name,
            id=name,
            index=index,
            parameters={"lr": 0.1},
            argv=("true",),
            output_dir="/o",
            checkpoint_dir="/c",
            script_path="/s.sh",
            script_digest="d",
            log_path="/logs/x.{attempt}.log",
            output_paths=("/extra.log",),
            rules="r",
        )
        out.apply(ev.JobAdded(at=1.0, spec=spec))
        if identity:
            token = f"t{index}"
            out.apply(ev.SubmitRequested(at=2.0, token=token, jobs=((name, 1),)))
            out.apply(ev.SubmitSpawned(at=2.0, token=token))
            ref = SchedulerRef(id=identity, cluster="c", token=token)
            out.apply(ev.SubmitAccepted(at=2.0, token=token, refs=(ref,)))
    return out


def test_the_snapshot_has_the_fields_that_others_read(tmp_path):
    """One entry for each job that has not ended; what a job says of itself wins over the section."""
    paths = SessionPaths(tmp_path)
    paths.monitor.mkdir()
    snapshot.write(session("123", "123_4", ""), paths, Effects(), 77.5)
    body = json.loads(paths.snapshot.read_bytes())
    assert body["timestamp"] == 77.5
    assert [job["job_id"] for job in body["jobs"]] == [123, "123_4", None]
    assert body["jobs"][0] == {
        "job_id": 123,
        "name": "job0",
        "state": "submitted",
        "script_path": "/s.sh",
        "log_path": "/logs/x.1.log",
        "attempts": 1,
        "metadata": {"parameters": {"lr": 0.1}},
        "output_paths": ["/extra.log"],
        "termination_string": "all done",
        "termination_command": None,
        "inactivity_threshold_seconds": 60,
        "start_condition_cmd": None,
        "start_condition_interval_seconds": None,
    }
    assert body["jobs"][2]["attempts"] == 0


def test_the_snapshot_goes_with_the_last_job(tmp_path):
    """Ended jobs are left out; when all have ended there is no file."""
    paths = SessionPaths(tmp_path)
    paths.monitor.mkdir()
    state = session("1", "2")
    for index in range(2):
        snapshot.write(state, paths, Effects(), 1.0)
        assert len(json.loads(paths.snapshot.read_bytes())["jobs"]) == 2 - index
        state.apply(ev.JobEnded(at=3.0, job=f"job{index}", state="succeeded", mode="success", reason=""))
    snapshot.write(state, paths, Effects(), 2.0)
    assert not paths.snapshot.exists()
