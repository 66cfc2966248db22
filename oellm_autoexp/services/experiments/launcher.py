"""Experiments become jobs: written, planned, submitted and watched as any other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oellm_autoexp.config import experiments as configs
from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.core.layout import STATE_DIR_NAME, SessionPaths
from oellm_autoexp.core.model import Job
from oellm_autoexp.errors import Fault, UsageError, ValidationError
from oellm_autoexp.services import calls
from oellm_autoexp.services.experiments.grid_search import write
from oellm_autoexp.services.experiments.launch_results import (
    DRY_RUN_ID,
    ExperimentResult,
    GridSearchResult,
    standing,
)
from oellm_autoexp.services.experiments.plan import Named, config_of, named
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.services.session import replay
from oellm_autoexp.services.submit import Terms, preview
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.sweep.names import legalize


class ExecutionMode(str, Enum):
    """Where experiments run: as processes here, on Slurm, or nowhere (the plan alone)."""

    LOCAL = "local"
    SLURM = "slurm"
    DRY_RUN = "dry_run"


class ExperimentLauncher:
    """Runs experiments as `python SCRIPT CONFIG`, each in a directory of its own with its config.yaml.

    `script` and `experiments_dir` start at `project_root`. `cluster` is a group `slurm/NAME` that comes with
    this package or lies in `config/` of the project; `overrides` are those of the command line.
    """

    def __init__(
        self,
        project_root: str | Path,
        *,
        script: str | Path = "train.py",
        experiments_dir: str | Path = "experiments",
        cluster: str | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.project_root = Path(project_root).resolve()
        self.script = self.project_root / script
        self.experiments_dir = self.project_root / experiments_dir
        self._cluster = cluster
        self._overrides = tuple(overrides)

    def launch(
        self,
        points: Iterable[tuple[Mapping[str, Any], ExperimentConfig]],
        mode: ExecutionMode,
        *,
        search: str | None = None,
        wait: bool | None = None,
        update: bool = False,
        yes: bool = False,
    ) -> GridSearchResult:
        """Submit experiments, each with the parameters that tell it from the others; what is done stays done.

        `search` names their common directory; None: a single one has its own. `wait` until every job has a
        verdict (None: in mode LOCAL). `update` takes experiments that have changed, `yes` agrees to what they
        may cost.

        Raises:
            ValidationError: two experiments with one name, or a name that is ours.
            ConfigError: experiments that have changed.
            UsageError: no script, no Slurm, a name that the common session has, or what must be agreed to.
        """
        mode = ExecutionMode(mode)
        found = named(points)
        if not found:
            raise ValidationError(Fault(what="there are no experiments", hint="add parameters to the grid"))
        if not self.script.is_file():
            hint = "name it: ModelTrainingFramework(root, script='train.py')"
            raise UsageError("there is no such script", where=str(self.script), hint=hint)
        if search is None and len(found) > 1:
            raise ValidationError(Fault(what="several experiments need the name of their search"))
        name = legalize(search) if search is not None else found[0].job
        home = self.experiments_dir / name
        self._require_free(name)
        base = home if search is not None else self.experiments_dir
        if mode is not ExecutionMode.LOCAL:
            found = self._scripted(found, base)
        text = configs.to_yaml(self._config(name, home, base, found))
        if mode is ExecutionMode.DRY_RUN:
            with TemporaryDirectory(prefix="autoexp-") as directory:
                path = Path(directory, "autoexp.yaml")
                path.write_text(text)
                plan = self._planned(path, "slurm")
            return GridSearchResult(name=name, results=[_planned_result(plan, each) for each in found])
        path = home / "autoexp.yaml"
        write(path, text)
        plan = self._planned(path, mode.value)
        # What is refused is refused before a config changes that a live job may read.
        preview(plan, Terms(update=update))
        self._write_configs(found, base)
        until_end = mode is ExecutionMode.LOCAL if wait is None else wait
        session = calls.submit_jobs(plan, update=update, yes=yes, wait=until_end)
        return GridSearchResult(
            name=name, results=[_result(plan, each, session.jobs) for each in found], config_path=path
        )

    def _scripted(self, found: Sequence[Named], base: Path) -> list[Named]:  # noqa: ARG002
        """The experiments with the script that each runs, where that is not the common command."""
        return list(found)

    def _write_configs(self, found: Iterable[Named], base: Path) -> None:
        for each in found:
            for kind in ("yaml", "json"):
                text = configs.dumped(each.config, kind)
                write(base / each.job / f"config.{kind}", text, durable=False)
        Effects().sync(base)

    @property
    def session_paths(self) -> SessionPaths:
        """The session of the experiments that have none of their own."""
        return SessionPaths(self.experiments_dir / STATE_DIR_NAME)

    def _require_free(self, name: str) -> None:
        """Refuse to run under a name what the common session runs.

        Raises:
            UsageError: it has such a job.
        """
        paths = self.session_paths
        if paths.journal.is_dir() and name in replay(paths).jobs:
            hint = "submit_single_experiment goes on with it; or give the experiment another name"
            raise UsageError(
                f"`{name}` was submitted with others already", where=str(paths.state_dir), hint=hint
            )

    def _planned(self, path: Path, scheduler: str) -> PlanResult:
        config_dir = self.project_root / "config"
        return calls.planned(
            path, config_dir if config_dir.is_dir() else None, self._overrides, scheduler=scheduler
        )

    def _config(self, name: str, home: Path, base: Path, found: Sequence[Named]) -> dict[str, Any]:
        """The config of this package that stands for the experiments."""
        is_search = base == home
        project = {"name": name, "base_output_dir": str(base), "state_dir": str(home / STATE_DIR_NAME)}
        slurm = {} if is_search else {"script_dir": str(home), "log_dir": str(home)}
        return config_of(
            found,
            project=configs.escaped(project),
            slurm=configs.escaped(slurm),
            command=[sys.executable, str(self.script)],
            cwd=self.project_root,
            cluster=self._cluster,
            store_sweep_json=is_search,
        )


def _planned_result(plan: PlanResult, each: Named) -> ExperimentResult:
    job = next(job for job in plan.jobs if job.spec.name == each.job)
    return ExperimentResult(
        experiment_name=each.config.experiment_name,
        success=True,
        job_id=DRY_RUN_ID,
        sbatch_script_path=Path(job.spec.script_path),
        output_dir=Path(job.spec.output_dir),
        script=job.script,
    )


def _result(plan: PlanResult, each: Named, jobs: Mapping[str, Job]) -> ExperimentResult:
    return replace(_planned_result(plan, each), **standing(jobs[each.job]))
