"""Starting jobs again, with other resources or parameters: their source is planned anew, for them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import overrides
from oellm_autoexp.core.collection import Collection, ScriptJob
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import Job
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import StateError, UsageError, did_you_mean
from oellm_autoexp.planning import jobspec
from oellm_autoexp.planning.functions import UserFunction
from oellm_autoexp.planning.provenance import REDACTED
from oellm_autoexp.planning.values import plain
from oellm_autoexp.services import calls, one_line, submit
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services.collections import generate
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections import plan as batch_plan
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.services.lead import command
from oellm_autoexp.services.plan import SCHEDULERS, PlanResult
from oellm_autoexp.store.effects import Effects


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is different from now on for jobs that start again.

    `overrides` are `key=value`; `parameters` go into the template of a collection's script, by job.
    """

    overrides: Sequence[str] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.overrides or any(self.parameters.values()))


def selected(rows: Sequence[Mapping[str, Any]], function: UserFunction) -> tuple[list[str], list[str]]:
    """The names of the rows that a function chooses, and its reasons for the others.

    It is called with each row (as in `status --json`), and returns a bool, or a bool and a reason.

    Raises:
        ConfigError: it fails, or returns something else.
    """
    names, reasons = [], []
    for row in rows:
        answer = function(dict(row))
        verdict, why = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, "")
        if type(verdict).__name__ not in ("bool", "bool_"):
            hint = "return True or False, or one of them and the reason: (False, 'why')"
            raise function.fault(f"returned {answer!r:.200}", hint)
        if verdict:
            names.append(str(row["name"]))
        elif why:
            reasons.append(f"{row['name']}: {why}")
    return names, reasons


def extra_parameters(rows: Sequence[Mapping[str, Any]], function: UserFunction) -> dict[str, dict[str, Any]]:
    """What a function adds to the parameters of each row's job.

    Raises:
        ConfigError: it fails, or returns no mapping.
    """
    found = {}
    for row in rows:
        answer = function(dict(row))
        if not isinstance(answer, Mapping) or not all(isinstance(key, str) for key in answer):
            raise function.fault(f"returned {answer!r:.200}", "return a mapping of parameters, {} for none")
        found[str(row["name"])] = dict(answer)
    return found


def again(paths: SessionPaths, session: Session, names: Sequence[str], changes: Changes) -> tuple[bool, str]:
    """Start jobs again; whether it was done, and a sentence about it.

    Raises:
        UsageError: their source cannot be planned again, or has no such job any more.
        ConfigError: a change that it cannot take.
        StateError: something cannot be written, or a leader does not answer.
    """
    if not changes or not names:
        return command(paths, "retry", {"jobs": list(names)})
    result = _replanned(paths, session, names, changes)
    terms = submit.Terms(update=True, again=tuple(names))
    done, loop = submit.submit(result, terms)
    if loop is not None:
        try:
            loop.tick()
        finally:
            loop.close()
    started = [name for name in names if session.jobs[name].state.ended]
    later = len(names) - len(started)
    parts = [f"starting again: {', '.join(started)}"] if started else []
    parts += [f"{later} take it with the next attempt"] if later else []
    for label, changed in (("other resources", done.resources), ("another computation", tuple(done.changed))):
        if changed:
            parts.append(f"{len(changed)} with {label}")
    return True, "; ".join(parts)


def _replanned(paths: SessionPaths, session: Session, names: Sequence[str], changes: Changes) -> PlanResult:
    if session.opened is None:
        raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
    source = session.opened.source
    kinds = {name: kind for kind, name in SCHEDULERS.items()}
    scheduler = kinds.get(str(session.opened.scheduler.get("class_name")))
    config_dir = Path(source["config_dir"]) if source.get("config_dir") else None
    hidden = [text for text in source.get("overrides", ()) if str(text).endswith(f"={REDACTED}")]
    if hidden:
        hint = "submit again with all of its overrides, and --update"
        raise UsageError(f"a secret was given on the command line: {hidden[0]}", hint=hint)
    if source.get("collection"):
        place = Place(name=str(source["collection"]), paths=paths, cwd=Path.cwd())
        terms = batch_plan.Terms(
            overrides=[str(text) for text in source.get("overrides", ())],
            scheduler=scheduler,
            config_dir=config_dir,
        )
        result = _with_changed_scripts(place, names, changes, terms)
    elif any(changes.parameters.values()):
        hint = "edit the sweep of its config, and submit that with --update"
        raise UsageError("only scripts of a collection have a template to fill in again", hint=hint)
    else:
        loaded = planning.load(
            str(source["config"]),
            config_dir,
            [*(str(text) for text in source.get("overrides", ())), *changes.overrides],
            scheduler=scheduler,
            cwd=Path(str(source["cwd"])),
            directory=Path(str(source["directory"])),
        )
        # What is given for some jobs is no part of what all of them come from.
        result = calls.planned_of(replace(loaded, source=dict(source)))
    planned = {job.spec.name: job for job in result.jobs}
    gone = [name for name in names if name not in planned]
    if gone:
        hint = "leave the overrides out to start it as it is"
        raise UsageError(
            f"its source has no job {gone[0]!r} any more", where=str(source["config"]), hint=hint
        )
    return replace(result, jobs=[planned[name] for name in names], part=True)


# ---------------------------------------------------------------- scripts


def _with_changed_scripts(
    place: Place, names: Sequence[str], changes: Changes, terms: batch_plan.Terms
) -> PlanResult:
    """Note the overrides of jobs, and render those again that have other parameters; the plan of them.

    A script with other parameters is another file, `NAME.retry-N.job`: the one that ran stays. What cannot be
    planned is not kept.
    """
    effects = Effects.of(place.paths.state_dir)
    found = []

    def change(collection: Collection) -> None:
        for name in names:
            job = collection.jobs.get(name)
            if job is None:
                raise UsageError(
                    f"the collection has no script of {name!r}", where=str(place.paths.collection)
                )
            kept = _merged(job.overrides, changes.overrides)
            job = replace(job, overrides=kept)
            more = changes.parameters.get(name)
            collection.jobs[name] = _rendered(collection, job, more, effects) if more else job

        found.append(batch_plan.planned(place, terms, frozenset(names), collection).result)

    directories = one_line.directories(terms.config_dir, Path(collections.read(place).cwd))
    for each in overrides.parse(changes.overrides, directories):
        if each.option is not None:
            hint = "set keys of it: -o slurm.sbatch.time=4:00:00"
            raise UsageError("a group is chosen for all jobs", where=each.place, hint=hint)
        one_line.check_override(each)
    collections.change(place, effects, change)
    return found[0]


def _merged(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Overrides by key, of which the last counts."""
    found = {text.partition("=")[0]: text for text in (*before, *after)}
    return tuple(found.values())


def _rendered(collection: Collection, job: ScriptJob, more: Mapping[str, Any], effects: Effects) -> ScriptJob:
    about = collection.origins.get(job.origin)
    if about is None or not about.template:
        hint = "leave --extra-params out, or change the script itself and use --update"
        raise UsageError("was made from no template", where=job.name, hint=hint)
    spec = _spec(about.spec, about.template, about.logs_dir)
    more = plain(more, "--param")
    if more.keys() & set(jobspec.RESERVED):
        hint = f"{', '.join(jobspec.RESERVED)} are names of the template's own"
        raise UsageError(
            f"cannot be a parameter of {job.name}", where=f"--param {next(iter(more))}", hint=hint
        )
    extra = {**job.extra, **more}
    parameters = {**job.parameters, **extra}
    slurm = jobspec.slurm_of(spec, parameters) if about.spec else job.slurm
    text = jobspec.rendered(spec, jobspec.Planned(name=job.name, parameters=parameters, slurm=slurm))
    folder, number = Path(job.script).parent, 1
    data = text.encode()
    try:
        new = [name for name in more if name not in job.given]
        if new and data == Path(job.runs).read_bytes():
            what, hint = "the template makes nothing of it", did_you_mean(new[0], list(job.given))
            raise UsageError(what, where=f"--param {new[0]}", hint=hint)
        if generate.digest(data) == job.digest:
            return replace(job, extra=extra, replaced_by="")
        while True:
            path = folder / f"{job.name}.retry-{number}{generate.SUFFIX}"
            if effects.write_new(path, data, mode=0o755) or path.read_bytes() == data:
                break
            number += 1
    except OSError as error:
        raise StateError(f"cannot be written: {error.strerror}", where=str(error.filename)) from error
    return replace(job, extra=extra, replaced_by=str(path))


def _spec(file: str, template: str, logs_dir: str) -> jobspec.JobSpecFile:
    """The spec that a script came from, as it is now; of a program's only the template is known."""
    if file:
        return jobspec.read(Path(file))
    none = jobspec.parameters_of({"mode": "list", "values": [{}]}, Path())
    return jobspec.JobSpecFile(template=Path(template), parameters=none, logs_dir=logs_dir)


def retryable(jobs: Sequence[Job]) -> list[Job]:
    """What `retry` starts where no job is named."""
    return [job for job in jobs if job.state.value in ("failed", "cancelled")]
