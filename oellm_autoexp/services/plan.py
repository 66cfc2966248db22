"""From a config reference to a plan, and from a plan to files. What `submit` does first, and `plan` only."""

from __future__ import annotations

import grp
import io
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.config import compose
from oellm_autoexp.config.limits import NATIVE, OURS
from oellm_autoexp.config.sockets import SchedulerInterface, made
from oellm_autoexp.core.layout import REHEARSAL_DIR_NAME, SessionPaths, default_state_dir
from oellm_autoexp.core.source import PlannedSource
from oellm_autoexp.errors import ConfigError, Fault, StateError, UsageError
from oellm_autoexp.planning import plan as planning
from oellm_autoexp.planning.plan import PlannedJob
from oellm_autoexp.planning.provenance import provenance, redacted, redacted_override
from oellm_autoexp.planning.resources import Totals, totals
from oellm_autoexp.planning.sweep_json import sweep_json
from oellm_autoexp.reactions.policies import AdjustTimeLimitPolicyConfig, in_force
from oellm_autoexp.rendering import guard
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.schedulers.slurm.client import SlurmClient
from oellm_autoexp.services import plugins
from oellm_autoexp.services import source as sources
from oellm_autoexp.store.effects import Effects

#: Scripts, sweep.json and directories of output are for colleagues too; they hold no secret.
_DIR_MODE, _SCRIPT_MODE, _FILE_MODE = 0o755, 0o755, 0o644


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file that a plan writes."""

    path: Path
    data: bytes
    mode: int


@dataclass(frozen=True, kw_only=True)
class PolicyInForce:
    """A restart policy that applies, and whether the config named it."""

    mode: str
    config: Mapping[str, Any]
    configured: bool

    @property
    def max_restarts(self) -> int | None:
        """The most restarts that it allows; None: without bound."""
        if self.config.get("class_name") == "NoRestartPolicy":
            return 0
        if self.config.get("refilled_by_progress"):
            return None
        found = self.config.get("max_retries")
        return found if isinstance(found, int) else None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A config that parses, with the scheduler it names."""

    composed: compose.Composed
    scheduler: SchedulerInterface
    #: The scheduler's registered class name and resolved config, as the journal keeps it.
    scheduler_config: Mapping[str, Any]
    project: str
    base_output_dir: Path
    paths: SessionPaths
    #: As open as `project.group` wants the session's state.
    effects: Effects
    #: Where commands run that name no directory of their own.
    cwd: Path
    #: What to load again: reference, directory, overrides.
    source: Mapping[str, Any]
    #: The text of a config that is no file of a person's; it is kept beside the session's state.
    text: str | None = None


#: Keys of the section `slurm` that are the scheduler's.
SESSION_KEYS = ("array", "submit_cmd", "squeue_cmd", "cancel_cmd")
#: What a flag or `scheduler.class_name` may say for a registered class.
SCHEDULERS = {"local": "LocalScheduler", "slurm": "SlurmClient", "fake": FakeSlurmClient.__name__}


def load(
    ref: str,
    config_dir: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    scheduler: str | None = None,
    scenario: Path | None = None,
    cwd: Path | None = None,
    directory: Path | None = None,
    effects: Effects | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Loaded:
    """Compose a config, with every plug-in it names, and make its scheduler.

    `config_dir` (None: `./config` where there is one) is searched before the shipped groups. `scheduler`
    ("local", "slurm", "fake") wins over the config; `scenario` is what happens on the fake cluster. `cwd`
    (None: the process's) is where commands run, and where relative references start. `directory` is where the
    config counts as standing (None: where it does). `sweep` is one that a program has made, in the place of
    the config's.

    Raises:
        ConfigError: every mistake in the config.
        UsageError: a scheduler that cannot be used.
    """
    where = cwd if cwd is not None else Path.cwd()
    if config_dir is None and (where / "config").is_dir():
        config_dir = Path("config")
    shorthands = {"scheduler.class_name": SCHEDULERS[scheduler]} if scheduler else {}
    if scenario is not None:
        shorthands["scheduler.scenario"] = str(where / scenario)

    def composed_with(more: Mapping[str, Any]) -> compose.Composed:
        return compose.load(
            ref,
            config_dir=config_dir,
            overrides=overrides,
            shorthands={**shorthands, **more},
            load_plugins=plugins.load,
            cwd=where,
            directory=directory,
            sweep=sweep,
        )

    composed = composed_with({})
    section = _constant(composed, "scheduler")
    if section.get("class_name") == FakeSlurmClient.__name__:
        composed = composed_with(_apart(composed))
        section["done_lines"] = [*section.get("done_lines", ()), *_success_texts(composed)]
        section["shortest_s"] = _shortest_silence(composed)
    elif section.get("class_name") == SlurmClient.__name__:
        section = {**_slurm_keys(composed), **section}
    root = compose.parse_root({"project": {"name": composed.project.name}, "scheduler": section})
    project = composed.project
    base = Path(project.base_output_dir)
    paths = SessionPaths(Path(project.state_dir) if project.state_dir else default_state_dir(base))
    assert root.scheduler is not None
    if effects is None:
        effects = effects_of(project.group, paths)
    made_scheduler: SchedulerInterface = made(
        SchedulerInterface,
        root.scheduler,
        effects=effects,
        state_dir=paths.scheduler,
    )
    return Loaded(
        composed=composed,
        scheduler=made_scheduler,
        scheduler_config=section,
        project=project.name,
        base_output_dir=base,
        paths=paths,
        effects=effects,
        cwd=where,
        source={
            "config": str(composed.file) if composed.file is not None else ref,
            "config_dir": str(config_dir) if config_dir is not None else "",
            "overrides": [redacted_override(text) for text in overrides],
            "cwd": str(where),
            # For the one who leads this session later, in another process.
            "plugins": list(composed.tree.folded.get("plugins") or ()),
            "directory": str(composed.directory),
        },
    )


def effects_of(group: str | None, paths: SessionPaths) -> Effects:
    """Effects on a session's state: open to `group`, or to whom the state is open that is there already."""
    there = paths.state_dir.is_dir()
    return Effects.of(paths.state_dir) if there else Effects(group=_number(group))


def _number(group: str | None) -> int | None:
    return grp.getgrnam(group).gr_gid if group else None


def require_group(loaded: Loaded) -> None:
    """Refuse a state directory that was made before the config named this group.

    Raises:
        StateError: with the commands that open it.
    """
    group, where = loaded.composed.project.group, str(loaded.paths.state_dir)
    if group and loaded.effects.group != _number(group):
        place = shlex.quote(where)
        hint = (
            f"open it: chgrp -R {group} {place} && chmod -R g+rwX,o= {place} && "
            f"find {place} -type d -exec chmod 2770 {{}} +"
        )
        raise StateError(f"is not open to the group {group} (project.group)", where=where, hint=hint)


def _apart(composed: compose.Composed) -> dict[str, Any]:
    """Where a rehearsal has its state and its outputs: in a subtree of its own, whatever the config says."""
    base = Path(composed.project.base_output_dir) / REHEARSAL_DIR_NAME
    keys: dict[str, Any] = {"project.base_output_dir": str(base), "project.state_dir": None}
    for section, key in (("slurm", "script_dir"), ("slurm", "log_dir"), ("monitoring", "log_path_template")):
        if (composed.tree.folded.get(section) or {}).get(key) is not None:
            keys[f"{section}.{key}"] = None
    outputs = (composed.tree.folded.get("monitoring") or {}).get("output_paths")
    if outputs:
        keys["monitoring.output_paths"] = [path for path in outputs if not str(path).startswith("/")]
    return keys


def _success_texts(composed: compose.Composed) -> list[str]:
    """What the config wants to read in a log before an end is a success, as far as that is plain text."""
    folded = composed.tree.folded
    monitoring = folded.get("monitoring") or {}
    texts = [(folded.get(section) or {}).get("termination_string") for section in ("job", "monitoring")]
    for signal in (monitoring.get("log_signals") or {}).values():
        if isinstance(signal, Mapping) and signal.get("mode") == "success":
            pattern = str(signal.get("pattern", ""))
            if signal.get("pattern_type") == "substring" or re.escape(pattern) == pattern.replace(" ", r"\ "):
                texts.append(pattern)
    return [text for text in texts if isinstance(text, str) and text]


def _shortest_silence(composed: compose.Composed) -> float | None:
    """The shortest time without a sign of life that the config calls a stall, in seconds; None: none does."""
    names = ("inactivity_threshold_seconds", "progress_threshold_seconds")
    sections = (composed.tree.folded.get(section) or {} for section in ("job", "monitoring"))
    found = [section.get(name) for section in sections for name in names]
    return min((float(each) for each in found if isinstance(each, (int, float)) and each > 0), default=None)


def require_submitting(loaded: Loaded) -> None:
    """Refuse, before anything is written, a scheduler whose commands are not here.

    Raises:
        UsageError: names what can be done instead.
    """
    scheduler = loaded.scheduler
    if isinstance(scheduler, SlurmClient) and scheduler.missing_command:
        what = f"this machine has no `{scheduler.missing_command}`: it is no login node of a Slurm cluster"
        hint = "--local runs the jobs on this machine, --fake plays them, `plan` only writes the scripts"
        raise UsageError(what, hint=hint)


def _slurm_keys(composed: compose.Composed) -> dict[str, Any]:
    """What the section `slurm` says of the whole session, and not of one job."""
    found = _constant(composed, "slurm", only=SESSION_KEYS)
    return {key: found[key] for key in SESSION_KEYS if found.get(key) is not None}


def _constant(composed: compose.Composed, section: str, only: Collection[str] = ()) -> dict[str, Any]:
    """A section that is the same for every point, or those of its keys that have to be.

    Raises:
        ConfigError: it is not.
    """
    for path in composed.tree.dynamic_paths:
        first, _, key = path.partition(".")
        if first == section and (not only or key in only):
            what = "must be the same for every point"
            raise composed.placed(ConfigError(Fault(key=path, what=what, hint="sweep something else")))
    return dict(composed.tree.folded.get(section) or {})


def provenance_of(loaded: Loaded) -> dict[str, Any]:
    """What the plan is made from; the git state is that of the directory where commands run."""
    isolated = loaded.composed.project.git_isolation is not None
    directory = sources.where(loaded) if isolated else loaded.cwd
    unused = {name: os.environ[name] for name in _unused(loaded)}
    overrides = loaded.composed.overrides
    return provenance(loaded.composed.shown, overrides=overrides, directory=directory, unused=unused)


def _unused(loaded: Loaded) -> Mapping[str, str]:
    is_slurm = isinstance(loaded.scheduler, SlurmClient)
    return slurm_text.options_of_shell(os.environ) if is_slurm else {}


def unused_in_shell(loaded: Loaded) -> list[str]:
    """What this shell would have sbatch(1) do to every job, and what is not done: a plan is its config's."""
    return [
        f"{name} is set in this shell and is not used: it would give every job {redacted(option, name)}; "
        "what jobs need stands in the config (slurm.sbatch)"
        for name, option in _unused(loaded).items()
    ]


def without_queue(loaded: Loaded) -> list[str]:
    """That jobs wait here all the same, where the config wants them to wait in a queue that is not there."""
    wanted = getattr(loaded.scheduler.config, "dependency", OURS)
    if wanted != NATIVE or loaded.scheduler.capabilities.successors:
        return []
    if getattr(loaded.scheduler.config, "clusters", None):
        why = "an id means nothing on another of several clusters"
    else:
        why = f"{type(loaded.scheduler).__name__} has no queue"
    what = "jobs are submitted when those that they wait for have succeeded"
    return [f"scheduler.dependency: {NATIVE} is not used, for {why}: {what}"]


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A whole plan: everything that can be refused has been refused."""

    loaded: Loaded
    jobs: Sequence[PlannedJob]
    totals: Totals
    #: Of all jobs; the config's own and the defaults.
    policies: Sequence[PolicyInForce]
    #: Jobs whose script the session has in another form. It may run that one again, so only a submission
    #: that takes the plan may replace it.
    held: Collection[str] = ()
    #: What the jobs run from; None: where the config says, as it is then.
    source: PlannedSource | None = None
    #: It has some jobs of what it was made from: the others are not missing, and sweep.json stays.
    part: bool = False

    @property
    def cost(self) -> str:
        """What the plan may use at most, in words."""
        cost = self.totals.cost
        endless = dict.fromkeys(policy.mode for policy in self.policies if policy.max_restarts is None)
        if not self.totals.gpus or not endless:
            return cost
        return f"{cost}; restarts after {', '.join(endless)} are not counted"

    @property
    def rules(self) -> Mapping[str, Mapping[str, Any]]:
        """The rules of all jobs by their identity."""
        return {job.rules_id: job.rules for job in self.jobs}

    @property
    def sweep_json(self) -> Path | None:
        """Where sweep.json goes; None where the config wants none."""
        wanted = self.loaded.composed.grid.store_sweep_json and not self.part
        return self.loaded.base_output_dir / "sweep.json" if wanted else None


def plan(loaded: Loaded, known: Mapping[str, str] | None = None, *, isolated: bool = True) -> PlanResult:
    """Plan every job. `known` are names of the session's jobs by id.

    `isolated` False: as if the config did not ask for `project.git_isolation`, to look at the rest of it.

    Raises:
        ConfigError: what is wrong with which job.
    """
    source = sources.planned(loaded) if isolated else None
    jobs = list(
        planning.plan(
            loaded.composed, loaded.scheduler, loaded.paths, cwd=loaded.cwd, known=known, source=source
        )
    )
    policies = {job.rules_id: policies_in_force(job.rules) for job in jobs}
    if isinstance(loaded.scheduler, FakeSlurmClient):
        wanted = sorted((job.spec.resources.nodes for job in jobs), reverse=True)
        loaded.scheduler.fit(sum(wanted[: loaded.scheduler.config.max_jobs]))
    every = {(policy.mode, repr(policy.config)): policy for found in policies.values() for policy in found}
    return PlanResult(
        loaded=loaded,
        jobs=jobs,
        totals=totals(
            (job.spec.resources, _retries_s(policies[job.rules_id], job.spec.resources.time_limit_s))
            for job in jobs
        ),
        policies=tuple(every.values()),
        source=source,
    )


def policies_in_force(rules: Mapping[str, Any]) -> tuple[PolicyInForce, ...]:
    """The restart policies of a job, sorted by mode."""
    configured = rules.get("restart_policies") or {}
    found = in_force(configured)
    return tuple(
        PolicyInForce(mode=mode, config=config, configured=mode in configured)
        for mode, config in sorted(found.items())
    )


def _retries_s(policies: Sequence[PolicyInForce], limit_s: float | None) -> float | None:
    """The seconds that the counted restarts of a job may take: each as long as the longest of them.

    Policies without a bound count nothing; they are named beside it.
    """
    if limit_s is None:
        return None
    longest = limit_s
    for policy in policies:
        if policy.config.get("class_name") == "AdjustTimeLimitPolicy":
            longest = _raised(longest, policy)
    return longest * sum(policy.max_restarts or 0 for policy in policies)


def _raised(limit_s: float, policy: PolicyInForce) -> float:
    """The time limit after all restarts that a policy counts."""
    given = {key: value for key, value in policy.config.items() if key != "class_name"}
    config = AdjustTimeLimitPolicyConfig(**given)
    raised = limit_s + (policy.max_restarts or 0) * config.minutes * 60
    return raised if config.max_minutes is None else max(limit_s, min(raised, config.max_minutes * 60))


# ---------------------------------------------------------------- files


def files(result: PlanResult) -> Iterator[PlannedFile]:
    """Every file that `write` writes, in order. A dry run shows these, byte for byte."""
    loaded = result.loaded
    yield PlannedFile(path=loaded.paths.guard, data=guard_source(), mode=0o700)
    if loaded.text is not None:
        yield PlannedFile(path=loaded.paths.config, data=loaded.text.encode(), mode=0o600)
    for job in result.jobs:
        yield PlannedFile(path=Path(job.spec.script_path), data=job.script.encode(), mode=_SCRIPT_MODE)
    if result.sweep_json is not None:
        entries = ((job.spec, job.request) for job in result.jobs)
        text = io.BytesIO()
        for piece in sweep_json(result.loaded.project, entries):
            text.write(piece.encode())
        yield PlannedFile(path=result.sweep_json, data=text.getvalue(), mode=_FILE_MODE)


def guard_source() -> bytes:
    """The guard as it is copied beside the state: a compute node has no virtual environment of ours."""
    return Path(guard.__file__).read_bytes()


def write(result: PlanResult, effects: Effects, *, leave: Collection[str] = ()) -> None:
    """Write what changed, and make it durable with one synchronisation instead of one a file.

    The scripts of the jobs in `leave` stay as they are.

    Raises:
        StateError: a directory or a file that cannot be written.
        GitOperationError: the source of the jobs cannot be made.
    """
    require_group(result.loaded)
    try:
        effects.mkdir(result.loaded.paths.state_dir)
        # sbatch(1) makes no directory for a log: its output would be lost.
        paths = (path for job in result.jobs for path in (job.spec.script_path, job.spec.log_path))
        for folder in dict.fromkeys(map(os.path.dirname, paths)):
            effects.mkdir(Path(folder), mode=_DIR_MODE)
        # Before the scripts, which lead into it.
        sources.make(result, effects)
        changed = False
        left = {Path(job.spec.script_path) for job in result.jobs if job.spec.name in leave}
        for file in files(result):
            if file.path in left or _holds(file.path, file.data):
                continue
            if not effects.create(file.path, file.data, mode=file.mode):
                effects.write(file.path, file.data, mode=file.mode, durable=False)
            changed = True
        if changed:
            effects.sync(result.loaded.base_output_dir)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        hint = "nothing was submitted; make room or mend the rights, then do the same again"
        raise StateError(what, where=str(error.filename), hint=hint) from error


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file has this content; most files of a first plan do not exist."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
