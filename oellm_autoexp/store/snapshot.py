"""`monitor/state.json`: a snapshot of the live jobs for others to read. The journal is the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import Job
from oellm_autoexp.core.session import Session
from oellm_autoexp.store.effects import Effects

_RULE_KEYS = (
    "termination_string",
    "termination_command",
    "inactivity_threshold_seconds",
    "start_condition_cmd",
    "start_condition_interval_seconds",
)


def write(session: Session, paths: SessionPaths, effects: Effects, now: float) -> None:
    """Replace the snapshot; it is removed when every job has ended."""
    jobs = [
        _job(job, session.rules.get(job.spec.rules, {}))
        for job in session.jobs.values()
        if not job.state.ended
    ]
    if not jobs:
        effects.unlink(paths.snapshot)
        return
    effects.write(paths.snapshot, json.dumps({"timestamp": now, "jobs": jobs}).encode())


def _job(job: Job, rules: Mapping[str, Any]) -> dict[str, Any]:
    attempt = job.attempt
    watched = {**(rules.get("monitoring") or {}), **{k: v for k, v in (rules.get("job") or {}).items() if v}}
    return {
        "job_id": _number(attempt.ref.id) if attempt and attempt.ref else None,
        "name": job.spec.name,
        "state": job.state.value,
        "script_path": job.spec.script_path,
        "log_path": attempt.log_path if attempt else job.spec.log_of(1),
        "attempts": len(job.attempts),
        "metadata": {"parameters": dict(job.spec.parameters)},
        "output_paths": list(job.spec.output_paths),
        **{key: watched.get(key) for key in _RULE_KEYS},
    }


def _number(identity: str) -> int | str:
    """Plain scheduler ids are numbers there; `123_4` and the ids of other schedulers stay text."""
    return int(identity) if identity.isdecimal() else identity
