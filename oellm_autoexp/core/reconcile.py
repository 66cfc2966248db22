"""A plan meets a session, like a controller: what goes on, what is new, what has changed, what is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job, JobSpec
from oellm_autoexp.core.session import Session


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """The outcome, by job name. `events` is what to journal; empty where `changed` refuses it."""

    added: tuple[str, ...] = ()
    #: Nothing to do: it goes on, or is done.
    unchanged: tuple[str, ...] = ()
    #: Same computation, other resources: they apply from the next attempt.
    resources: tuple[str, ...] = ()
    #: Same computation, other rules: they apply at once.
    rules: tuple[str, ...] = ()
    #: Another computation under a known name, with the difference in words.
    changed: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    events: tuple[ev.Event, ...] = ()
    refused: bool = False


def reconcile(
    session: Session,
    opened: ev.SessionOpened,
    specs: Sequence[JobSpec],
    rules: Mapping[str, Mapping[str, Any]],
    *,
    now: float,
    update: bool = False,
    prune: bool = False,
    whole: bool = True,
    again: Collection[str] = (),
) -> Reconciled:
    """Compare a plan with the session. Jobs are matched by content id, then by name.

    A changed job is refused unless `update`; a job that the plan no longer has is reported, and cancelled
    with `prune`. With `whole` False the plan is a part of what there is, and nothing is missing from it. What
    has ended of the jobs in `again` starts anew.
    """
    by_id = {job.spec.id: job for job in session.jobs.values()}
    added, unchanged, resources, new_rules = [], [], [], []
    changed: dict[str, str] = {}
    seen: set[str] = set()
    out: list[ev.Event] = []
    for spec in specs:
        known = by_id.get(spec.id) or session.jobs.get(spec.name)
        if known is None:
            added.append(spec.name)
            seen.add(spec.name)
            out.append(ev.JobAdded(at=now, spec=spec))
            continue
        name = known.spec.name
        seen.add(name)
        current = known.next_spec or known.spec
        spec = replace(spec, name=name, index=spec.index)
        restarts = known.state.ended and name in again
        if spec.id != current.id:
            changed[name] = difference(current, spec)
            out.append(ev.JobUpdated(at=now, job=name, spec=spec, again=known.state.ended))
        elif (known.state.ended and not restarts) or spec == current:
            unchanged.append(name)
            out += [ev.JobRetried(at=now, job=name)] if restarts else []
        else:
            # Same id: paths stay those of the first plan, so that a checkpoint is found again.
            kept = replace(spec, output_dir=current.output_dir, checkpoint_dir=current.checkpoint_dir)
            if kept == current:
                unchanged.append(name)
                out += [ev.JobRetried(at=now, job=name)] if restarts else []
                continue
            if kept.script_digest != current.script_digest or kept.resources != current.resources:
                resources.append(name)
            elif kept.rules != current.rules:
                new_rules.append(name)
            else:
                unchanged.append(name)
            out.append(ev.JobUpdated(at=now, job=name, spec=kept, again=restarts))
    absent = session.jobs.values() if whole else ()
    missing = [job for job in absent if job.planned and job.spec.name not in seen]
    out += [event for job in missing for event in _gone(job, now, prune)]
    refused = bool(changed) and not update
    if again and session.breaker is not None:
        out.append(ev.BreakerReset(at=now, by="retry"))
    needed = {spec.rules for spec in specs}
    fresh = [
        ev.RulesSet(at=now, rules=identity, config=config)
        for identity, config in rules.items()
        if identity in needed and identity not in session.rules
    ]
    return Reconciled(
        added=tuple(added),
        unchanged=tuple(unchanged),
        resources=tuple(resources),
        rules=tuple(new_rules),
        changed=changed,
        missing=tuple(job.spec.name for job in missing),
        events=() if refused else (*opening(session, opened), *fresh, *out),
        refused=refused,
    )


def opening(session: Session, opened: ev.SessionOpened) -> tuple[ev.Event, ...]:
    """A session that is opened again by the same source needs no new record."""
    before = session.opened
    if before is None:
        return (opened,)
    same = (before.source, before.scheduler, before.provenance) == (
        opened.source,
        opened.scheduler,
        opened.provenance,
    )
    return () if same else (replace(opened, nonce=before.nonce),)


def _gone(job: Job, now: float, prune: bool) -> tuple[ev.Event, ...]:
    name = job.spec.name
    if not prune:
        return (ev.JobUnplanned(at=now, job=name),)
    if job.state.ended:
        return (ev.JobUnplanned(at=now, job=name),)
    why = "the plan no longer has it"
    return (
        ev.JobUnplanned(at=now, job=name),
        ev.EndWished(at=now, job=name, why=why, by="user", mode="cancelled"),
    )


def difference(old: JobSpec, new: JobSpec) -> str:
    """What differs between two specs of one name, in words."""
    parts = []
    for key in sorted(old.parameters.keys() | new.parameters.keys()):
        before, after = old.parameters.get(key, "(none)"), new.parameters.get(key, "(none)")
        if before != after:
            parts.append(f"{key}: {before} -> {after}")
    if old.argv != new.argv:
        at = next(
            (i for i, (a, b) in enumerate(zip(old.argv, new.argv, strict=False)) if a != b),
            min(len(old.argv), len(new.argv)),
        )
        parts.append(_command(old.argv, new.argv, at))
    parts += _parents(old, new)
    if old.source != new.source:
        parts.append(f"source: {_source(old.source)} -> {_source(new.source)}")
    return "; ".join(parts) or "the environment or the backend differs"


def _parents(old: JobSpec, new: JobSpec) -> list[str]:
    """What has changed about the jobs that it waits for, in words."""
    before, after = ({parent.stage: parent for parent in spec.parents} for spec in (old, new))
    return [
        *(f"does not wait for {gone.called}" for stage, gone in before.items() if stage not in after),
        *(f"waits for {added.called}" for stage, added in after.items() if stage not in before),
        *(
            f"{parent.called}, which it waits for, has changed"
            for stage, parent in after.items()
            if stage in before and before[stage].id != parent.id
        ),
    ]


def _source(key: str) -> str:
    return f"tree {key}" if key else "not isolated"


def _command(old: Sequence[str], new: Sequence[str], at: int) -> str:
    """What differs from a word on; of a word that is a script, the first line."""
    before, after = ("".join(argv[at : at + 1]).splitlines() for argv in (old, new))
    if len(before) < 2 or len(after) < 2:
        return f"command, from word {at + 1}: {_words(old, at)} -> {_words(new, at)}"
    pairs = enumerate(zip_longest(before, after, fillvalue="(nothing)"), 1)
    line, texts = next(((n, pair) for n, pair in pairs if pair[0] != pair[1]), (1, ("", "")))
    return f"command, line {line} of word {at + 1}: {texts[0].strip()} -> {texts[1].strip()}"


def _words(argv: Sequence[str], start: int) -> str:
    return " ".join(argv[start : start + 3]) or "(nothing)"
