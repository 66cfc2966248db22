"""From a composed config to jobs: names, ids, places, commands, scripts, rules. Pure: the same config gives
the same plan, order and bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config.compose import Composed, PointConfig
from oellm_autoexp.config.scope import Scope
from oellm_autoexp.config.sockets import (
    BackendInterface,
    BackendJobSpec,
    LaunchCommand,
    SchedulerInterface,
    made,
)
from oellm_autoexp.config.typed import shown
from oellm_autoexp.core import symbols
from oellm_autoexp.core.latest import Latest
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, Parent, Resources, Scalar
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.source import PlannedSource
from oellm_autoexp.errors import AutoexpError, ConfigError, Fault
from oellm_autoexp.planning.family import Edge, Family, Kin
from oellm_autoexp.planning.identity import (
    LIFECYCLE_ALIASES,
    SYMBOLIC_JOB,
    digest,
    identity_of,
    is_lifecycle,
)
from oellm_autoexp.planning.job_names import JobNames
from oellm_autoexp.planning.places import JobPlaces, Places
from oellm_autoexp.planning.resources import resources_of
from oellm_autoexp.planning.sweep_json import text_of
from oellm_autoexp.rendering import shell
from oellm_autoexp.sweep.grid import Point
from oellm_autoexp.sweep.scalars import format_scalar

#: What the monitor is told of a job.
RULES = ("monitoring", "restart_policies", "actions", "conditions", "job")


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job as it would be submitted. `spec` shows secrets as `${NAME}`; `request` carries references."""

    spec: JobSpec
    script: str
    request: ScriptRequest
    #: Plain resolved mapping of the sections in RULES; shared between jobs where equal.
    rules: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rules_id(self) -> str:
        return self.spec.rules


def plan(
    composed: Composed,
    scheduler: SchedulerInterface,
    paths: SessionPaths,
    *,
    cwd: Path,
    known: Mapping[str, str] | None = None,
    source: PlannedSource | None = None,
) -> Iterator[PlannedJob]:
    """The jobs of a config, one at a time.

    `paths` is the session that the jobs will belong to; `cwd` is where commands run that name no directory
    of their own. `known` are the names of jobs that the session has, by id: they keep them, so that a point
    inserted before `{index}` moves nobody. `source` is what they run from, if that is kept apart: another
    source makes them other jobs.

    Raises:
        ConfigError: what is wrong with which point.
    """
    planner = _Planner(composed, scheduler, paths, cwd, source, known or {})
    for point in composed.points():
        yield planner.job(point)


class _Planner:
    """What all points of a plan share."""

    def __init__(
        self,
        composed: Composed,
        scheduler: SchedulerInterface,
        paths: SessionPaths,
        cwd: Path,
        source: PlannedSource | None,
        known: Mapping[str, str],
    ) -> None:
        self._composed = composed
        self._scheduler = scheduler
        self._cwd = str(cwd)
        self._source = source
        self._source_key = source.source.key if source is not None else ""
        self._source_place = paths.source(self._source_key)
        self._rules: dict[tuple[Any, ...], tuple[str, Mapping[str, Any]]] = {}
        self._by_digest: dict[str, Mapping[str, Any]] = {}
        self._kept: list[Any] = []
        self._state_dir, self._guard = str(paths.state_dir), str(paths.guard)
        self._places = Latest(self._places_in)
        self._resources = Latest(resources_of)
        self._shared = Latest(_shared)
        #: Names and places of points that others refer to, by their indexes.
        self._relatives: dict[int, tuple[str, JobPlaces]] = {}
        staged = composed.stages is not None
        self._family = Family(composed, self._identity, self._relative) if staged else None
        self._names = self._job_names(known)

    # ---- names and places

    def _job_names(self, known: Mapping[str, str]) -> JobNames:
        """Where names count points, ids are looked at first: only names of jobs still planned are in use."""
        taken: set[str] = set()
        if known and self._composed.namer.uses_index:
            for point in self._composed.points():
                name = known.get(self._kin(point).id)
                if name is not None:
                    taken.add(name)
        return JobNames(self._composed, known, frozenset(taken))

    def _kin(self, point: Point) -> Kin:
        if self._family is not None:
            return self._family.kin(point.index)
        values, scope = self._resolved(point)
        return Kin(id=self._identity(values, scope.config(), {}))

    def _resolved(self, point: Point) -> tuple[Mapping[str, Any], Scope]:
        """The values of a point and its config, with `job.*` left open: what id and places are made from."""
        if self._family is not None:
            return self._family.resolved(point.index)
        values = self._composed.resolved(point.values)
        return values, self._composed.scope(values, SYMBOLIC_JOB)

    def _relative(self, index: int) -> tuple[str, JobPlaces]:
        """The name and the places of a point that others refer to."""
        if index not in self._relatives:
            point = self._composed.listed[index]
            values, scope = self._resolved(point)
            try:
                self._relatives[index] = self._placed(point, values, scope.config())
            except ConfigError as error:
                raise self._composed.placed(_about(f"point {index}", error)) from error.__cause__
        return self._relatives[index]

    def _placed(
        self, point: Point, values: Mapping[str, Any], config: Mapping[str, Any], kin: Kin | None = None
    ) -> tuple[str, JobPlaces]:
        if point.index in self._relatives:
            return self._relatives[point.index]
        name = self._names.of((kin or self._kin(point)).id, values, point)
        found = self._places(config.get("slurm"), config.get("monitoring"))
        return name, found.of(name, self._composed.project.name, _parameters(values))

    # ---- jobs

    def job(self, point: Point) -> PlannedJob:
        """One job.

        Raises:
            ConfigError: what is wrong with it.
        """
        composed, name = self._composed, f"point {point.index}"
        values, scope = self._resolved(point)
        symbolic = scope.config()
        try:
            if self._family is None:
                kin = Kin(id=self._identity(values, symbolic, {}))
            else:
                kin = self._family.kin(point.index)
            name, places = self._placed(point, values, symbolic, kin)
            config = composed.typed(scope.with_job(places.facts(name)))
            resources = self._resources(config.raw.get("slurm") or {})
            request = self._request(config, name, values, places, resources)
            script = self._scheduler.render(request)
        except ConfigError as error:
            raise composed.placed(_about(name, error)) from error.__cause__
        if self._family is not None:
            self._relatives[point.index] = name, places
        rules_id, rules = self._rules_of(config.raw, values)
        spec = JobSpec(
            name=name,
            id=kin.id,
            index=point.index,
            parameters=_parameters(values),
            argv=tuple(symbols.shown(word) for word in request.argv),
            output_dir=places.output_dir,
            checkpoint_dir=places.checkpoint_dir,
            script_path=places.script_path,
            script_digest=hashlib.sha256(script.encode()).hexdigest(),
            log_path=places.log_path,
            output_paths=places.output_paths,
            resources=resources,
            batch=self._batch(script),
            rules=rules_id,
            source=self._source_key,
            parents=tuple(self._parent(edge) for edge in kin.parents),
        )
        return PlannedJob(spec=spec, script=script, request=request, rules=rules)

    def _parent(self, edge: Edge) -> Parent:
        assert self._family is not None
        name, _ = self._relative(edge.index)
        return Parent(job=name, id=self._family.kin(edge.index).id, stage=edge.stage, gate=edge.gate)

    def _identity(
        self, values: Mapping[str, Any], symbolic: Mapping[str, Any], parents: Mapping[str, str]
    ) -> str:
        return identity_of(values, symbolic, self._composed.directory, self._source_key, parents)

    def _batch(self, script: str) -> str:
        key = self._scheduler.batch_key(script)
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""

    def _places_in(self, slurm: Mapping[str, Any] | None, monitoring: Mapping[str, Any] | None) -> Places:
        """The places that sections name, which are not typed yet: a wrong type is reported when they are."""
        slurm, monitoring = slurm or {}, monitoring or {}
        base = Path(self._composed.project.base_output_dir)
        template, outputs = monitoring.get("log_path_template"), monitoring.get("output_paths")
        return Places(
            base_output_dir=base,
            script_dir=Path(slurm.get("script_dir") or base / "scripts"),
            log_dir=Path(slurm.get("log_dir") or base / "logs"),
            log_template=template if isinstance(template, str) else None,
            output_paths=tuple(map(str, outputs)) if isinstance(outputs, list) else (),
        )

    def _request(
        self,
        config: PointConfig,
        name: str,
        values: Mapping[str, Any],
        places: JobPlaces,
        resources: Resources,
    ) -> ScriptRequest:
        slurm = config.raw.get("slurm") or {}
        visible = {key: value for key, value in values.items() if not is_lifecycle(key)}
        spec = BackendJobSpec(
            parameters=visible,
            name=name,
            output_dir=places.output_dir,
            checkpoint_dir=places.checkpoint_dir,
            resources=resources,
        )
        launch = _launched(config.root.backend, spec)
        shared = self._shared(slurm.get("environment"))
        own = _environment(launch.environment, "backend.environment")
        if not own.keys().isdisjoint(shared):
            shared = {key: value for key, value in shared.items() if key not in own}
        return ScriptRequest(
            name=name,
            argv=launch.argv,
            environment=own,
            shared_environment=shared,
            setup=tuple(slurm.get("setup") or ()),
            cwd=self._cwd_of(launch),
            slurm=slurm,
            job_environment={
                "AUTOEXP_PROJECT": config.root.project.name,
                "AUTOEXP_SESSION": self._state_dir,
                "AUTOEXP_JOB_NAME": name,
                "AUTOEXP_OUTPUT_DIR": places.output_dir,
                "AUTOEXP_CHECKPOINT_DIR": places.checkpoint_dir,
            },
            guard_path=self._guard,
            parameters=visible,
        )

    def _cwd_of(self, launch: LaunchCommand) -> str:
        # What is swept, or made by a backend, is relative to the config like what stands in it.
        cwd = str(Path(self._composed.directory, launch.cwd)) if launch.cwd else self._cwd
        return cwd if self._source is None else self._source.moved(cwd, self._source_place)

    # ---- rules

    def _rules_of(self, raw: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Constant sections are the same objects at every point, so most plans look at them once."""
        sections = [raw.get(section) for section in RULES]
        bare = {key: value for key, value in values.items() if key in LIFECYCLE_ALIASES}
        key = (*map(id, sections), *bare.values())
        found = self._rules.get(key)
        if found is None:
            rules = {name: section or {} for name, section in zip(RULES, sections, strict=True)}
            rules["job"] = {**rules["job"], **bare}
            identity = digest(rules)
            found = (identity, self._by_digest.setdefault(identity, rules))
            # What `id` was taken of must live on, or another object may get the same number.
            self._kept.append(sections)
            self._rules[key] = found
        return found


def _parameters(values: Mapping[str, Any]) -> dict[str, Scalar]:
    return {key: _scalar(value) for key, value in values.items()}


def _scalar(value: Any) -> Scalar:
    """A parameter for people and for the journal: secrets shown by name, lists as text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return symbols.shown(text_of(value))


def _launched(config: Any, spec: BackendJobSpec) -> LaunchCommand:
    """What the backend makes of a job.

    Raises:
        ConfigError: there is none, it refuses the job, or it failed.
    """
    if config is None:
        hint = "name one, e.g. `backend: {class_name: CommandBackend, command: [python, train.py]}`"
        raise ConfigError(Fault(key="backend", what="there is none", hint=hint))
    try:
        backend = made(BackendInterface, config)
        backend.validate(spec)
        launch = backend.build_launch_command(spec)
    except AutoexpError:
        raise
    except ValueError as error:
        raise ConfigError(Fault(key="backend", what=str(error))) from error
    except Exception as error:
        what = f"{type(config).__name__} failed: {type(error).__name__}: {error}"
        raise ConfigError(Fault(key="backend", what=what)) from error
    if not launch.argv or not all(isinstance(word, str) for word in launch.argv):
        what = f"{type(backend).__name__} gave an argv that is not a list of texts"
        raise ConfigError(Fault(key="backend", what=what, value=shown(launch.argv)))
    for word in launch.argv:
        if "\0" in word or not word.isascii():
            _carried("backend", "argv", word)
    return launch


def _shared(environment: Mapping[str, Any] | None) -> dict[str, str]:
    return _environment(environment or {}, "slurm.environment")


def _environment(values: Mapping[str, Any], key: str) -> dict[str, str]:
    """An environment as text.

    Raises:
        ConfigError: a value without a text; a secret that stands in the config.
    """
    made: dict[str, str] = {}
    for name, value in values.items():
        try:
            text = format_scalar(value)
        except ValueError as error:
            raise ConfigError(Fault(key=f"{key}.{name}", what=str(error))) from None
        if text and symbols.is_secret(name) and symbols.OPEN not in text:
            what = "a secret stands in the config, and would stand in scripts and in the journal"
            hint = f"write `${{oc.env:{name}}}` and export it, or set it in a file named by slurm.env_file"
            raise ConfigError(Fault(key=f"{key}.{name}", what=what, hint=hint))
        _carried(f"{key}.{name}", name, text)
        made[name] = text
    return made


def _carried(key: str, name: str, text: str) -> None:
    """Refuse what no process can be given.

    Raises:
        ConfigError: a name that a shell cannot assign to, a NUL byte.
    """
    try:
        shell.check_name(name)
        shell.check_text(text)
    except ConfigError as error:
        raise ConfigError(*(replace(fault, key=key) for fault in error.faults)) from None


def _about(name: str, error: ConfigError) -> ConfigError:
    """The error with the job that it was found in."""
    return ConfigError(*(replace(fault, what=f"{fault.what} (job {name})") for fault in error.faults))
