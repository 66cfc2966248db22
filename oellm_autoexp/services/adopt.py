"""`adopt`: put a job that runs already, and was not submitted from here, under signals and policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, SchedulerRef
from oellm_autoexp.errors import NotLeader, StateError, UsageError, did_you_mean
from oellm_autoexp.monitor.loop import RealClock
from oellm_autoexp.planning.identity import digest
from oellm_autoexp.planning.plan import RULES, PlannedJob
from oellm_autoexp.reactions.policies import in_force
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services.lead import clock_of, command, lead
from oellm_autoexp.services.log_watch import point_of
from oellm_autoexp.services.plan import Loaded, PlanResult, guard_source, require_group, require_submitting
from oellm_autoexp.services.session import replay
from oellm_autoexp.services.submit import check_belongs, opened_by
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry

#: Where jobs are watched that no config is named for.
ALONE = ("project.name=adopted", "project.base_output_dir=outputs/adopted")
_NOTHING_TO_RUN = {
    "class_name": "NoRestartPolicy",
    "message": "nothing says how to run it again: `adopt --config` names what does",
}


def adopt(
    identity: str,
    log: Path,
    config_ref: str | None = None,
    config_dir: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    scheduler: str | None = None,
    cwd: Path | None = None,
) -> tuple[SessionPaths, str]:
    """Make a job that somebody submitted by hand the first attempt of a job of a session.

    Its signals, actions and policies are those of the config. Where the config says what to run, `name` is
    the job that it stands for, and a restart is an attempt like any other; else policies can only end it.
    The answer is the session, and a sentence. Asked again it changes nothing.

    Raises:
        ConfigError: every mistake in the config.
        UsageError: the scheduler does not know the job, or it cannot be told which job of the config it is.
        StateError: the session has refused it, or cannot be written.
        SchedulerUnavailable: the scheduler does not answer.
    """
    where = cwd if cwd is not None else Path.cwd()
    given = list(overrides) if config_ref is not None else [*ALONE, *overrides]
    loaded = planning.load(config_ref or "autoexp", config_dir, given, scheduler=scheduler, cwd=where)
    _check(loaded)
    log_path = where / log.expanduser()
    if not log_path.is_file():
        raise UsageError("there is no such file", where=f"--log {log}", hint="`scontrol show job` names it")
    ref = _identified(loaded, identity)
    spec, rules = _spec(loaded, ref, name, log_path)
    return loaded.paths, _handed_over(loaded, ref, spec, rules, log_path)


def adopt_as(result: PlanResult, ref: SchedulerRef, log_path: Path) -> str:
    """Make a `known` job the first attempt of the one job of a plan; a sentence.

    Raises:
        StateError: the session has refused it, or cannot be written.
        SchedulerUnavailable: the scheduler does not answer.
    """
    loaded, (job,) = result.loaded, result.jobs
    planning.write(result, loaded.effects)
    return _handed_over(loaded, ref, job.spec, job.rules, log_path)


def known(loaded: Loaded, identity: str) -> SchedulerRef:
    """The job that the scheduler of a session knows by an id.

    Raises:
        UsageError: it knows none, or cannot be used; or the session is another's.
        StateError: the session's journal is damaged.
        SchedulerUnavailable: the scheduler does not answer.
    """
    _check(loaded)
    return _identified(loaded, identity)


def _check(loaded: Loaded) -> None:
    require_submitting(loaded)
    require_group(loaded)
    check_belongs(replay(loaded.paths), loaded)


def _identified(loaded: Loaded, identity: str) -> SchedulerRef:
    ref = loaded.scheduler.identify(identity)
    if ref is None:
        hint = "`squeue --me` lists yours; one that has ended is gone from there soon"
        raise UsageError(f"the scheduler does not know a job {identity!r}", hint=hint)
    return ref


# ---------------------------------------------------------------- what it stands for


def _spec(
    loaded: Loaded, ref: SchedulerRef, name: str | None, log_path: Path
) -> tuple[JobSpec, Mapping[str, Any]]:
    backend = loaded.composed.tree.folded.get("backend") or {}
    if backend.get("class_name", "NullBackend") == "NullBackend":
        return _rules_alone(loaded, ref, name or f"job_{ref.id}", log_path)
    result = planning.plan(loaded, {job.spec.id: key for key, job in replay(loaded.paths).jobs.items()})
    job = _chosen(result.jobs, name)
    planning.write(result, loaded.effects)
    return job.spec, job.rules


def _chosen(jobs: Sequence[PlannedJob], name: str | None) -> PlannedJob:
    if name is None and len(jobs) == 1:
        return jobs[0]
    found = next((job for job in jobs if job.spec.name == name), None)
    if found is None:
        names = [job.spec.name for job in jobs]
        what = (
            f"the config has {len(jobs)} jobs: which one is it?"
            if name is None
            else f"no job is named {name}"
        )
        raise UsageError(what, where="--name", hint=did_you_mean(name or "", names))
    return found


def _rules_alone(
    loaded: Loaded, ref: SchedulerRef, name: str, log_path: Path
) -> tuple[JobSpec, Mapping[str, Any]]:
    """A job that only has rules, with policies that cannot restart what nobody can run."""
    composed = loaded.composed
    output_dir = str(loaded.base_output_dir / name)
    facts = {
        "name": name,
        "output_dir": output_dir,
        "checkpoint_dir": f"{output_dir}/checkpoints",
        "log_path": str(log_path),
        "attempt": "1",
    }
    parameters, values, sibling = point_of(composed, name)
    raw = composed.point(values, facts, sibling).raw
    rules: dict[str, Any] = {section: raw.get(section) or {} for section in RULES}
    rules["restart_policies"] = {
        mode: {"class_name": "NoRestartPolicy"} if mode == "success" else _NOTHING_TO_RUN
        for mode in in_force(rules["restart_policies"])
    }
    spec = JobSpec(
        name=name,
        id=digest(["adopted", ref.cluster, ref.id, ref.submitted_at]),
        index=0,
        parameters=parameters,
        argv=(),
        output_dir=output_dir,
        checkpoint_dir=facts["checkpoint_dir"],
        script_path="",
        script_digest="",
        log_path=str(log_path),
        rules=digest(rules),
    )
    loaded.effects.mkdir(loaded.paths.state_dir)
    # Actions run within it.
    loaded.effects.write(loaded.paths.guard, guard_source(), mode=0o700)
    return spec, rules


# ---------------------------------------------------------------- handing it over


def _handed_over(
    loaded: Loaded, ref: SchedulerRef, spec: JobSpec, rules: Mapping[str, Any], log_path: Path
) -> str:
    """Have the leader take it in, or do so as the leader."""
    paths, clock = loaded.paths, clock_of(loaded.scheduler)
    now = clock.now()
    events: Sequence[ev.Event] = (
        opened_by(loaded, now, replay(paths)),
        ev.RulesSet(at=now, rules=spec.rules, config=rules),
        ev.JobAdded(at=now, spec=spec),
        ev.SubmitAccepted(at=now, token="", refs=(ref,), adopted=True),
    )
    args = {"events": [[event.kind, ev.encode(event)] for event in events], "log_path": str(log_path)}
    entry = Entry(
        name=loaded.project,
        state_dir=str(paths.state_dir),
        project=loaded.project,
        config_ref=str(loaded.source.get("config", "")),
        created=RealClock().now(),
    )
    Registry().register(Effects(), entry)
    done, text = _taken(loaded, args, now)
    if not done:
        raise StateError(text, where=str(paths.state_dir))
    return text


def _taken(loaded: Loaded, args: Mapping[str, Any], now: float) -> tuple[bool, str]:
    paths = loaded.paths
    if journal.leader_alive(paths) is None:
        try:
            loop = lead(paths, loaded.scheduler, effects=loaded.effects, clock=clock_of(loaded.scheduler))
        except NotLeader:
            # Another process was quicker, and is told.
            pass
        else:
            try:
                return loop.commands.obey("adopt", args, now)
            finally:
                loop.close()
    return command(paths, "adopt", args)
