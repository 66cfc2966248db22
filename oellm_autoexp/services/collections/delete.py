"""Forgetting a collection, or scripts of it that were never submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oellm_autoexp.core.collection import Collection, ScriptJob
from oellm_autoexp.errors import StateError, UsageError, did_you_mean
from oellm_autoexp.services import cleanup
from oellm_autoexp.services.collections import generate
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.services.session import replay
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.lock import FileLock
from oellm_autoexp.store.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to go. `kept`: how many scripts were edited by hand, and stay."""

    jobs: Sequence[str]
    scripts: Sequence[Path] = ()
    kept: int = 0
    #: The session that goes too.
    session: cleanup.Candidate | None = None
    whole: bool = True


def planned(place: Place, names: Sequence[str], *, scripts: bool) -> Plan:
    """What would go: these jobs of a collection, or all of it.

    Raises:
        UsageError: there is no such job, it was submitted, or jobs have not ended.
    """
    collection, session = collections.read(place), replay(place.paths)
    for name in names:
        if name not in collection.jobs:
            hint = did_you_mean(name, list(collection.jobs))
            raise UsageError(f"{place.name} has no job {name!r}", hint=hint)
        if name in session.jobs:
            hint = f"its history stays with the session: oellm-autoexp cancel {place.name} {name}"
            raise UsageError(f"{name} was submitted ({session.jobs[name].state.value})", hint=hint)
    found = None
    if not names and session.opened is not None:
        (found,) = cleanup.candidates([str(place.paths.state_dir)], Path, unsubmitted_too=True)
        live = [job.spec.name for job in session.jobs.values() if not job.state.ended]
        if live:
            hint = f"cancel them first: oellm-autoexp cancel {place.name} --yes"
            raise UsageError(f"{len(live)} of its jobs have not ended, such as {live[0]}", hint=hint)
        if found.refused:
            raise UsageError(found.refused, where=str(place.paths.state_dir), hint="nothing was removed")
    jobs = [collection.jobs[name] for name in names] if names else list(collection.jobs.values())
    ours, kept = _generated(jobs) if scripts else ([], 0)
    return Plan(jobs=[job.name for job in jobs], scripts=ours, kept=kept, session=found, whole=not names)


def _generated(jobs: Sequence[ScriptJob]) -> tuple[list[Path], int]:
    """The scripts that are as we wrote them, and how many are not."""
    ours, kept = [], 0
    for job in jobs:
        path = Path(job.script)
        if job.origin and path.is_file():
            if generate.digest(path.read_bytes()) == job.digest:
                ours.append(path)
            else:
                kept += 1
    return ours, kept


def carry_out(place: Place, plan: Plan, effects: Effects | None = None) -> None:
    """Remove it. Killed on the way, the same again goes on.

    Raises:
        StateError: something cannot be removed.
    """
    effects = effects or Effects.of(place.paths.state_dir)
    try:
        for path in plan.scripts:
            effects.unlink(path)
    except OSError as error:
        raise StateError(f"cannot be removed: {error.strerror}", where=str(error.filename)) from error

    def forget(collection: Collection) -> None:
        for name in plan.jobs:
            collection.jobs.pop(name, None)

    collections.change(place, effects, forget)
    if not plan.whole:
        return
    if plan.session is not None:
        (candidate,) = cleanup.candidates([str(place.paths.state_dir)], Path)
        cleanup.remove(candidate, logs=False, effects=effects)
        return
    try:
        with FileLock(place.paths.collection_lock):
            if len(collections.read(place)):
                what, hint = "jobs were added in the meantime", "the same again removes them too"
                raise StateError(what, where=str(place.paths.collection), hint=hint)
            cleanup.remove_unsubmitted(place.paths, effects)
        effects.remove_empty(place.base_output_dir)
    except OSError as error:
        raise StateError(f"cannot be removed: {error.strerror}", where=str(error.filename)) from error
    Registry().forget(Effects(), place.paths.state_dir)
