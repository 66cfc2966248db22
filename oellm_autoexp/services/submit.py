"""A plan meets its session: what would be new, what it may cost, and handing it to a loop."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.reconcile import Reconciled, reconcile
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import ConfigError, Fault, NotLeader, StateError, UsageError
from oellm_autoexp.monitor.loop import Loop, RealClock
from oellm_autoexp.planning.resources import hours, totals
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.services import space
from oellm_autoexp.services.lead import Watch, clock_of, command, lead
from oellm_autoexp.services.plan import (
    Loaded,
    PlanResult,
    provenance_of,
    require_group,
    require_submitting,
    write,
)
from oellm_autoexp.services.session import check_project, replay
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a plan is taken: see `core.reconcile.reconcile`."""

    update: bool = False
    prune: bool = False
    again: Sequence[str] = ()


def preview(result: PlanResult, terms: Terms = Terms()) -> Reconciled:
    """What submitting a plan would change; nothing is written.

    Raises:
        ConfigError: jobs have changed and `update` is not given.
        UsageError: the scheduler can only render, or the session belongs to another project or scheduler.
        StateError: the journal is damaged.
    """
    require_submitting(result.loaded)
    require_group(result.loaded)
    session = replay(result.loaded.paths)
    check_belongs(session, result.loaded)
    opened = opened_by(result.loaded, 0.0, session)
    done = _reconciled(session, result, opened, terms)
    if done.refused:
        faults = [Fault(key=name, what=f"has changed: {what}") for name, what in done.changed.items()]
        hint = (
            "`--update` takes the new ones; another project.name (`run --name`) or base_output_dir keeps both"
        )
        raise ConfigError(*faults, Fault(what="nothing was submitted", hint=hint))
    return done


def check_room(result: PlanResult, done: Reconciled) -> list[str]:
    """Warnings where the new jobs would leave little room on a disk or of a quota.

    Raises:
        StateError: there is no room for their state.
    """
    if not done.added:
        return []
    loaded = result.loaded
    written = {Path(path).parent for job in result.jobs for path in (job.spec.script_path, job.spec.log_path)}
    return space.check([loaded.paths.state_dir, loaded.base_output_dir, *sorted(written)], len(done.added))


def to_confirm(result: PlanResult, done: Reconciled) -> str:
    """What the new jobs may use in one attempt each, in words; "" where that is not worth a question."""
    limit = result.loaded.composed.project.confirm_gpu_hours
    new = frozenset(done.added)
    wanted = totals((job.spec.resources, 0) for job in result.jobs if job.spec.name in new)
    if limit is None or not wanted.gpus:
        return ""
    if wanted.gpu_hours is None:
        return "GPU-hours without bound (a job with GPUs has no time limit)"
    if wanted.gpu_hours <= limit:
        return ""
    return f"{hours(wanted.gpu_hours)} GPU-hours in one attempt each (project.confirm_gpu_hours is {limit:g})"


def submit(
    result: PlanResult,
    terms: Terms = Terms(),
    *,
    watch: Watch | None = None,
    register: bool = True,
) -> tuple[Reconciled, Loop | None]:
    """Reconcile a plan with its session; the loop to run, or None where a leader took it over.

    `register`: make the session known by its name (see `sessions`).

    Raises:
        ConfigError, StateError, UsageError: as `preview`.
    """
    done = preview(result, terms)
    loaded = result.loaded
    is_fake = isinstance(loaded.scheduler, FakeSlurmClient)
    # A rehearsal that a power cut has taken is played again.
    effects = Effects(group=loaded.effects.group, durable=False) if is_fake else loaded.effects
    clock = clock_of(loaded.scheduler)
    paths, now = loaded.paths, clock.now()
    write(result, effects)
    entry = Entry(
        name=f"{loaded.project}.fake" if is_fake else loaded.project,
        state_dir=str(paths.state_dir),
        project=loaded.project,
        config_ref=str(loaded.source.get("config", "")),
        created=RealClock().now(),
    )
    if register:
        # In the user's own home, which is open to nobody.
        Registry().register(Effects(), entry)
    opened = opened_by(loaded, now, replay(paths))
    if journal.leader_alive(paths) is None:
        try:
            loop = lead(paths, loaded.scheduler, effects=effects, clock=clock, watch=watch)
        except NotLeader:
            # Another process was quicker, and is told the plan.
            pass
        else:
            done = _reconciled(loop.session, result, opened, terms)
            for event in done.events:
                loop.record(event)
            return done, loop
    events: list[ev.Event] = [
        opened,
        *(ev.RulesSet(at=now, rules=k, config=v) for k, v in result.rules.items()),
        *(ev.JobAdded(at=now, spec=job.spec) for job in result.jobs),
    ]
    body = [[event.kind, ev.encode(event)] for event in events]
    ok, text = command(paths, "reconcile", {"events": body, **asdict(terms), "whole": not result.part})
    if not ok:
        raise StateError(text, where=str(paths.state_dir))
    if journal.leader_alive(paths) is not None or replay(paths).ended:
        return done, None
    try:
        # The leader has died meanwhile, or was found dead.
        return done, lead(paths, loaded.scheduler, effects=effects, clock=clock, watch=watch)
    except NotLeader:
        # Another process was quicker once more; it has the plan.
        return done, None


def opened_by(loaded: Loaded, now: float, session: Session) -> ev.SessionOpened:
    """The record that a config opens a session with, or comes back to it with."""
    scheduler = dict(loaded.scheduler_config)
    if scheduler.get("canary") is None and session.opened is not None:
        # Whoever comes back without the flag has not said that the others need not wait any more.
        scheduler["canary"] = session.opened.scheduler.get("canary")
    return ev.SessionOpened(
        at=now,
        project=loaded.project,
        session=str(loaded.paths.state_dir),
        nonce=secrets.token_hex(8),
        scheduler={key: value for key, value in scheduler.items() if key != "canary" or value is not None},
        source=dict(loaded.source),
        provenance=provenance_of(loaded),
    )


def _reconciled(session: Session, result: PlanResult, opened: ev.SessionOpened, terms: Terms) -> Reconciled:
    specs = [job.spec for job in result.jobs]
    return reconcile(
        session, opened, specs, result.rules, now=opened.at, whole=not result.part, **asdict(terms)
    )


def check_belongs(session: Session, loaded: Loaded) -> None:
    """Refuse the session of another project or scheduler.

    Raises:
        UsageError: names what it belongs to.
    """
    opened = session.opened
    if opened is None:
        if loaded.paths.collection.is_file() and "collection" not in loaded.source:
            raise _of_another_kind(loaded, "it is a collection")
        return
    check_project(session, loaded.project, loaded.paths)
    theirs, ours = opened.scheduler.get("class_name"), loaded.scheduler_config.get("class_name")
    if opened.source.get("collection") != loaded.source.get("collection"):
        what = "it is a collection" if opened.source.get("collection") else "it is no collection"
        raise _of_another_kind(loaded, what)
    if theirs != ours:
        hint = "give this config another base_output_dir or state_dir"
        if "collection" in opened.source:
            hint = "its jobs stay where they were submitted first: leave --local out, or add it"
        where = str(loaded.paths.state_dir)
        raise UsageError(f"its jobs run on {theirs}, not on {ours}", where=where, hint=hint)


def _of_another_kind(loaded: Loaded, what: str) -> UsageError:
    hint = "collections are submitted by `submit --collection NAME`; give what is none another name"
    return UsageError(what, where=str(loaded.paths.state_dir), hint=hint)
