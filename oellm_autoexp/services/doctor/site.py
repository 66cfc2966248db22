"""What `doctor` looks at: this machine, a config's plan, the cluster. Each question is asked once."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from oellm_autoexp.config.schema import option
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.monitor.loop import Clock, RealClock
from oellm_autoexp.planning.plan import PlannedJob
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.schedulers.slurm import site as slurm_site
from oellm_autoexp.schedulers.slurm.client import SlurmClient
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.store.effects import Effects, Ran
from oellm_autoexp.store.registry import Registry
from oellm_autoexp.sweep.scalars import format_scalar

#: Seconds that a command of Slurm's may take: more than its own time-outs, MessageTimeout (10) twice.
COMMAND_S = 25.0
#: Commands of Slurm's, and the key of the config that names another.
COMMANDS = {
    "sbatch": "submit_cmd",
    "squeue": "squeue_cmd",
    "scancel": "cancel_cmd",
    "scontrol": "",
    "sinfo": "",
    "sacct": "",
}
Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found; `fix` says what to do about it."""

    level: Level
    what: str
    fix: str = ""


def ok(what: str) -> Finding:
    return Finding(level="ok", what=what)


def warning(what: str, fix: str) -> Finding:
    return Finding(level="warning", what=what, fix=fix)


def fault(what: str, fix: str) -> Finding:
    return Finding(level="fault", what=what, fix=fix)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Options of sbatch that some jobs of a plan share, by their long names, and how many jobs these are."""

    options: Mapping[str, str]
    #: One of them.
    job: PlannedJob
    jobs: int

    @property
    def whom(self) -> str:
        return self.job.spec.name + (f" (and {self.jobs - 1} more)" if self.jobs > 1 else "")


@dataclass
class Site:
    """What the checks are given. Without a plan they look at the machine alone."""

    plan: PlanResult | None = None
    effects: Effects = field(default_factory=Effects)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    clock: Clock = field(default_factory=RealClock)
    command_s: float = COMMAND_S

    # ---- the config

    @property
    def requests(self) -> Iterator[ScriptRequest]:
        yield from (job.request for job in self.plan.jobs) if self.plan is not None else ()

    @cached_property
    def asked(self) -> tuple[Asked, ...]:
        """What the jobs of the plan ask of the scheduler, in plan order."""
        found: dict[tuple[tuple[str, str], ...], list[PlannedJob]] = {}
        for job in self.plan.jobs if self.plan is not None else ():
            options = _options(job.request.slurm)
            found.setdefault(tuple(sorted(options.items())), []).append(job)
        return tuple(
            Asked(options=dict(options), job=jobs[0], jobs=len(jobs)) for options, jobs in found.items()
        )

    @cached_property
    def places(self) -> Mapping[Path, tuple[str, ...]]:
        """Directories that are there, and what will be in them; what is to be made counts for its parent."""
        found: dict[Path, list[str]] = {}
        for label, wanted in self._wanted_places():
            place = next(each for each in (wanted, *wanted.parents) if each.is_dir())
            labels = found.setdefault(place, [])
            if label not in labels:
                labels.append(label)
        return {place: tuple(labels) for place, labels in found.items()}

    def _wanted_places(self) -> Iterator[tuple[str, Path]]:
        if self.plan is None:
            yield "this directory", Path.cwd()
            home = Registry(self.environ).directory
            if home is not None:
                yield "your sessions", home
            return
        yield "state", self.plan.loaded.paths.state_dir
        yield "outputs", self.plan.loaded.base_output_dir
        specs = [job.spec for job in self.plan.jobs]
        yield from (("scripts", place) for place in dict.fromkeys(Path(s.script_path).parent for s in specs))
        yield from (("logs", place) for place in dict.fromkeys(Path(s.log_path).parent for s in specs))

    # ---- the cluster

    @cached_property
    def on_slurm(self) -> bool:
        """Whether a cluster is to be looked at: the config runs on Slurm, or its commands are here."""
        if self.plan is not None:
            return isinstance(self.plan.loaded.scheduler, SlurmClient)
        return self.path_of("sbatch") is not None

    def command(self, name: str) -> list[str]:
        """A command of Slurm's as the config names it."""
        scheduler = self.plan.loaded.scheduler if self.plan is not None else None
        key = COMMANDS.get(name, "")
        return shlex.split(getattr(scheduler.config, key)) if key and scheduler is not None else [name]

    def path_of(self, program: str) -> str | None:
        return shutil.which(program, path=self.environ.get("PATH"))

    def ask(self, name: str, *words: str) -> Ran:
        """What a command says; a status of None where it said nothing in time.

        Raises:
            OSError: it cannot be run.
        """
        environment = {**clean_environment(self.environ), "LC_ALL": "C"}
        argv = [*self.command(name), *words]
        return self.effects.run(argv, env=environment, cwd=None, timeout_s=self.command_s)

    def told(self, name: str, *words: str) -> str:
        """What a command prints; "" where it has no answer."""
        try:
            ran = self.ask(name, *words)
        except OSError:
            return ""
        return ran.output if ran.status == 0 else ""

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """`scontrol show config`; empty where slurmctld does not answer, and nothing else is asked then."""
        return slurm_site.settings(self.told("scontrol", "show", "config")) if self.on_slurm else {}

    @property
    def answers(self) -> bool:
        return bool(self.settings)

    @cached_property
    def partitions(self) -> Mapping[str, slurm_site.Partition]:
        text = self.told("scontrol", "show", "partition", "--all", "-o") if self.answers else ""
        return slurm_site.partitions(text)

    @cached_property
    def nodes(self) -> tuple[slurm_site.Nodes, ...]:
        text = self.told("sinfo", "--all", "-h", "-o", slurm_site.NODES_FORMAT) if self.answers else ""
        return slurm_site.nodes(text)

    @cached_property
    def has_accounting(self) -> bool:
        return self.settings.get("AccountingStorageType", "").endswith("slurmdbd")

    @cached_property
    def associations(self) -> tuple[slurm_site.Association, ...]:
        """What accounting lets this user do; empty where it does not say."""
        if not self.has_accounting:
            return ()
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return ()
        words = ("-n", "-P", "show", "associations", "where", f"user={user}")
        cluster = f"cluster={self.settings.get('ClusterName', '')}"
        text = self.told("sacctmgr", *words, cluster, f"format={slurm_site.ASSOCIATION_FIELDS}")
        return slurm_site.associations(text)

    def partitions_of(self, asked: Asked) -> list[slurm_site.Partition]:
        """The partitions that jobs may run in, as far as they exist; Slurm's default where none is named."""
        named = asked.options.get("partition")
        if named:
            return [self.partitions[name] for name in named.split(",") if name in self.partitions]
        return [partition for partition in self.partitions.values() if partition.is_default]


Look: TypeAlias = Callable[[Site], Iterator[Finding]]


def _options(slurm: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in ("sbatch", "sbatch_overrides"):
        given = slurm.get(section)
        for key, value in given.items() if isinstance(given, Mapping) else ():
            name = option(str(key))
            if value is None or value is False:
                found.pop(name, None)
            else:
                found[name] = "" if value is True else format_scalar(value)
    return found
