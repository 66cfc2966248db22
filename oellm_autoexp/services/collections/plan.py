"""A collection as a plan: each of its batch scripts is a job, as `wrap` makes one of a single script."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import overrides, yaml_writer
from oellm_autoexp.core.collection import Collection, ScriptJob
from oellm_autoexp.core.model import Scalar
from oellm_autoexp.errors import AutoexpError, UsageError
from oellm_autoexp.planning.identity import job_id
from oellm_autoexp.planning.plan import PlannedJob
from oellm_autoexp.planning.sweep_json import text_of
from oellm_autoexp.services import batch_script, calls, one_line
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.services.one_line import Line
from oellm_autoexp.services.plan import PlanResult

#: What tells the points of a collection apart.
_KEY = "script"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How the jobs of a collection are run, beside what their scripts say."""

    overrides: Sequence[str] = ()
    scheduler: str | None = None
    scenario: Path | None = None
    config_dir: Path | None = None
    canary: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """A plan of scripts, and what is different from sbatch, for people."""

    result: PlanResult
    notices: Sequence[str]


def planned(place: Place, terms: Terms, names: Names[str], collection: Collection | None = None) -> Scripts:
    """The plan of some jobs of a collection (None: as it is on disk). Nothing is written.

    Raises:
        UsageError: a script is gone, or cannot be wrapped.
        ConfigError, StateError: as for any config.
    """
    collection = collections.read(place) if collection is None else collection
    cwd = Path(collection.cwd)
    jobs = [job for job in collection.jobs.values() if job.name in names]
    line = Line(
        command=(),
        name=place.name,
        overrides=terms.overrides,
        scheduler=terms.scheduler,
        scenario=terms.scenario,
        config_dir=terms.config_dir,
        sections={"project": {"name": place.name, "base_output_dir": str(place.base_output_dir)}},
    )
    directories = one_line.directories(line.config_dir, cwd)
    given = _values(terms.overrides, directories)
    raw = one_line.based(line, cwd)
    points, notices = [], {}
    for job in jobs:
        values, said = _point(job, collection, cwd)
        values = {key: value for key, value in values.items() if key not in given}
        points.append({**values, **_values(job.overrides, directories)})
        notices.update(dict.fromkeys(said))
    sweep = {"type": "list", "configs": points, "name_template": f"{{{_KEY}}}"}
    with one_line.loaded(raw, line, cwd, terms.canary, sweep) as loaded:
        source = {**loaded.source, "collection": place.name, "overrides": list(terms.overrides)}
        result = calls.planned_of(replace(loaded, source=source))
    order = {name: index for index, name in enumerate(collection.jobs)}
    made = [_as_generated(job, collection.jobs[job.spec.name], order[job.spec.name]) for job in result.jobs]
    return Scripts(result=replace(result, jobs=made, part=True), notices=tuple(notices))


def _values(texts: Sequence[str], directories: Sequence[Path]) -> dict[str, Any]:
    """Overrides as values of a point; groups are none."""
    found = overrides.parse(texts, directories)
    return {each.key: each.value for each in found if each.option is None}


def _point(job: ScriptJob, collection: Collection, cwd: Path) -> tuple[dict[str, Any], Sequence[str]]:
    try:
        wrapped = batch_script.wrapped(Path(job.runs), cwd)
    except AutoexpError as error:
        hint = error.hint or "`oellm-autoexp generate` writes it again"
        raise UsageError(error.what, where=f"{error.where} (job {job.name})", hint=hint) from None
    if "sweep" in wrapped.sections:
        raise array(job.runs)
    values: dict[str, Any] = {_KEY: job.name, "backend.command": _words(wrapped.words)}
    logs = collection.origins[job.origin].logs_dir if job.origin in collection.origins else ""
    if logs:
        values["slurm.log_dir"] = yaml_writer.literal(logs)
    for section, keys in wrapped.sections.items():
        for key, value in keys.items():
            if section == "slurm" and key == "sbatch":
                values.update({f"slurm.sbatch.{name}": _literal(each) for name, each in value.items()})
            else:
                values[f"{section}.{key}"] = value
    return values, wrapped.notices


def array(script: str) -> UsageError:
    """An error about a script that stands for several jobs."""
    hint = "give its tasks a parameter of their own, or submit it by `oellm-autoexp wrap`"
    return UsageError("an array cannot be one job of a collection", where=script, hint=hint)


def _words(words: Sequence[str]) -> list[str]:
    return [yaml_writer.literal(word) for word in words]


def _literal(value: Any) -> Any:
    return yaml_writer.literal(value) if isinstance(value, str) else value


def _as_generated(job: PlannedJob, script: ScriptJob, index: int) -> PlannedJob:
    """The job with the parameters that its script was made from, known by what the script computes."""
    request = job.request
    backend = {"argv": list(request.argv), "environment": dict(request.environment)}
    identity = job_id({_KEY: script.name}, backend, dict(request.shared_environment), job.spec.source)
    given = script.given
    parameters = {key: _shown(value) for key, value in given.items()}
    spec = replace(job.spec, id=identity, index=index, parameters=parameters)
    return replace(job, spec=spec, request=replace(request, parameters=given))


def _shown(value: Any) -> Scalar:
    return value if value is None or isinstance(value, (bool, int, float)) else text_of(value)
