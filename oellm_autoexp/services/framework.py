"""Experiments become jobs: written, planned, submitted and watched as any other."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oellm_autoexp.config import experiments as configs
from oellm_autoexp.core.experiment import ExperimentConfig, plain
from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.core.model import JobState
from oellm_autoexp.errors import Fault, UsageError, ValidationError
from oellm_autoexp.services import calls
from oellm_autoexp.services.experiments import ConfigurationManager
from oellm_autoexp.services.grid_search import NamingStrategy, ParameterGrid, ParameterGridSearch, write
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.services.submit import Terms, preview
from oellm_autoexp.services.validation import sbatch_of
from oellm_autoexp.sweep.names import legalize, short_names

#: What stands for the id of a job that was only planned.
DRY_RUN_ID = "DRY_RUN"
#: Words of our own among the variables of a sweep.
_OWN = ("experiment", "config_digest", "project", "index", "params")
_TAKEN = frozenset(
    {*configs.HINTS, "sweep", "backend", "monitoring", "job", "project", "actions", "conditions"}
)


class ExecutionMode(str, Enum):
    """Where experiments run: as processes here, on Slurm, or nowhere (the plan alone)."""

    LOCAL = "local"
    SLURM = "slurm"
    DRY_RUN = "dry_run"


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """What has become of one experiment so far. As text it is the id of its job."""

    experiment_name: str
    success: bool
    job_id: str | None = None
    #: As `status` shows it; "planned" in a dry run.
    state: str = "planned"
    error_message: str | None = None
    sbatch_script_path: Path | None = None
    output_dir: Path | None = None
    #: The text of the script.
    script: str = ""

    @property
    def error(self) -> str | None:
        """`error_message`."""
        return self.error_message

    def __str__(self) -> str:
        return self.job_id or ""


@dataclass(frozen=True, kw_only=True)
class GridSearchResult:
    """What has become of a search so far; its items are the ids of its jobs."""

    name: str
    results: Sequence[ExperimentResult]
    #: What `oellm-autoexp status` takes.
    config_path: Path | None = None

    @property
    def total_experiments(self) -> int:
        return len(self.results)

    @property
    def submitted_jobs(self) -> list[str]:
        """The ids of the jobs that the scheduler has taken."""
        return [each.job_id for each in self.results if each.job_id is not None]

    @property
    def failed_submissions(self) -> dict[str, str]:
        """What went wrong, by experiment."""
        return {each.experiment_name: each.error_message or "" for each in self.results if not each.success}

    @property
    def success_rate(self) -> float:
        """Percent of the experiments."""
        good = sum(each.success for each in self.results)
        return 100.0 * good / len(self.results) if self.results else 0.0

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[str]:
        return iter(self.submitted_jobs)

    def save_summary(self, path: str | Path) -> None:
        """Save it as JSON.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        rows = [
            {
                "experiment_name": each.experiment_name,
                "job_id": each.job_id,
                "state": each.state,
                "error": each.error_message,
                "output_dir": str(each.output_dir) if each.output_dir is not None else None,
            }
            for each in self.results
        ]
        data = {"name": self.name, "total": len(rows), "success_rate": self.success_rate, "experiments": rows}
        write(Path(path), json.dumps(data, indent=2) + "\n")


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
            UsageError: no script, no Slurm, or something must be agreed to.
        """
        mode = ExecutionMode(mode)
        named = _named(points)
        if not named:
            raise ValidationError(Fault(what="there are no experiments", hint="add parameters to the grid"))
        if not self.script.is_file():
            hint = "name it: ModelTrainingFramework(root, script='train.py')"
            raise UsageError("there is no such script", where=str(self.script), hint=hint)
        if search is None and len(named) > 1:
            raise ValidationError(Fault(what="several experiments need the name of their search"))
        name = legalize(search) if search is not None else named[0][0]
        home = self.experiments_dir / name
        text = configs.to_yaml(self._config(name, home, named, is_search=search is not None))
        if mode is ExecutionMode.DRY_RUN:
            with TemporaryDirectory(prefix="autoexp-") as directory:
                path = Path(directory, "autoexp.yaml")
                path.write_text(text)
                plan = self._planned(path, "slurm")
            return GridSearchResult(name=name, results=[_planned_result(plan, each) for each in named])
        path = home / "autoexp.yaml"
        write(path, text)
        plan = self._planned(path, mode.value)
        # What is refused is refused before a config changes that a live job may read.
        preview(plan, Terms(update=update))
        places = {job.spec.name: job.spec.output_dir for job in plan.jobs}
        for job, _, config in named:
            write(Path(places[job], "config.yaml"), configs.dumped(config, "yaml"))
        until_end = mode is ExecutionMode.LOCAL if wait is None else wait
        session = calls.submit_jobs(plan, update=update, yes=yes, wait=until_end)
        return GridSearchResult(
            name=name, results=[_result(plan, each, session.jobs) for each in named], config_path=path
        )

    def _planned(self, path: Path, scheduler: str) -> PlanResult:
        config_dir = self.project_root / "config"
        return calls.planned(
            path, config_dir if config_dir.is_dir() else None, self._overrides, scheduler=scheduler
        )

    def _config(self, name: str, home: Path, named: Sequence[_Named], *, is_search: bool) -> dict[str, Any]:
        """The config of this package that stands for the experiments."""
        keys = dict.fromkeys(key for _, parameters, _ in named for key in parameters)
        variables = _variables(tuple(keys))
        rows = []
        asked = [sbatch_of(config) for _, _, config in named]
        options = dict.fromkeys(option for each in asked for option in each)
        common = {
            key for key in options if all(key in each and each[key] == asked[0].get(key) for each in asked)
        }
        for (job, parameters, config), own in zip(named, asked, strict=True):
            row = {name: _shown(parameters.get(key)) for key, name in variables.items()}
            row |= {f"slurm.sbatch.{key}": own.get(key) for key in options if key not in common}
            rows.append({"experiment": job, **configs.escaped(row), "config_digest": _digest(config)})
        base = home if is_search else self.experiments_dir
        slurm: dict[str, Any] = {"sbatch": configs.escaped({key: asked[0][key] for key in common})}
        if not is_search:
            slurm |= {"script_dir": str(home), "log_dir": str(home)}
        words = [sys.executable, str(self.script), "${job.output_dir}/config.yaml"]
        first = {"defaults": [{"slurm": self._cluster}, "_self_"]} if self._cluster else {}
        return {
            **first,
            "project": {
                "name": name,
                "base_output_dir": configs.escaped(str(base)),
                "state_dir": configs.escaped(str(home / ".oellm-autoexp")),
            },
            "backend": {
                "class_name": "CommandBackend",
                "command": [*configs.escaped(words[:2]), words[2]],
                "cwd": configs.escaped(str(self.project_root)),
            },
            "slurm": slurm,
            # A job is another one when its config is.
            "metadata": {name: f"${{{name}}}" for name in (*variables.values(), "config_digest")},
            "sweep": {
                "type": "list",
                "configs": rows,
                "name_template": "{experiment}",
                "store_sweep_json": is_search,
            },
        }


#: The name of a job, the parameters that tell it from the others, its config.
_Named = tuple[str, Mapping[str, Any], ExperimentConfig]


def _named(points: Iterable[tuple[Mapping[str, Any], ExperimentConfig]]) -> list[_Named]:
    named = []
    seen: dict[str, str] = {}
    for parameters, config in points:
        job = legalize(config.experiment_name)
        if job in seen:
            what = f"two experiments have the name `{config.experiment_name}`"
            raise ValidationError(Fault(key="experiment_name", what=what, hint="give them different names"))
        if job in RESERVED_JOB_NAMES:
            raise ValidationError(
                Fault(key="experiment_name", what=f"`{job}` is the name of a directory of ours")
            )
        seen[job] = config.experiment_name
        named.append((job, parameters, config))
    return named


def _variables(keys: Sequence[str]) -> dict[str, str]:
    """A free variable for each key: its last word where nothing else has that name."""
    made = {}
    for key, short in short_names(keys).items():
        is_free = short not in _OWN and short not in _TAKEN and "." not in short
        made[key] = short if is_free else f"parameter_{key.replace('.', '_')}"
    return made


def _shown(value: Any) -> Any:
    """A parameter as `status` shows it. A mapping would be several parameters."""
    data = plain(value)
    return json.dumps(data, sort_keys=True) if isinstance(data, Mapping) else data


def _digest(config: ExperimentConfig) -> str:
    """Of what an experiment computes: neither what it asks of Slurm nor what is said about it."""
    data = {key: value for key, value in config.to_dict().items() if key not in _SAID}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


_SAID = ("slurm", "description", "tags", "created_by", "created_at", "logging")


def _planned_result(plan: PlanResult, named: _Named) -> ExperimentResult:
    job = next(job for job in plan.jobs if job.spec.name == named[0])
    return ExperimentResult(
        experiment_name=named[2].experiment_name,
        success=True,
        job_id=DRY_RUN_ID,
        sbatch_script_path=Path(job.spec.script_path),
        output_dir=Path(job.spec.output_dir),
        script=job.script,
    )


def _result(plan: PlanResult, named: _Named, jobs: Mapping[str, Any]) -> ExperimentResult:
    planned = _planned_result(plan, named)
    job = jobs[named[0]]
    attempt = job.attempt
    failed = job.state in (JobState.FAILED, JobState.CANCELLED)
    return ExperimentResult(
        experiment_name=planned.experiment_name,
        success=not failed,
        job_id=attempt.ref.id if attempt is not None and attempt.ref is not None else None,
        state=job.state.value,
        error_message=job.reason if failed else None,
        sbatch_script_path=planned.sbatch_script_path,
        output_dir=planned.output_dir,
        script=planned.script,
    )


class GridSearchExecutor:
    """Runs grid searches: `launcher` runs the experiments, `config_manager` reads the base."""

    def __init__(self, launcher: ExperimentLauncher, config_manager: ConfigurationManager) -> None:
        self.launcher = launcher
        self.config_manager = config_manager

    def execute_grid_search(
        self,
        base_config: ExperimentConfig | Mapping[str, Any],
        parameter_grids: Sequence[ParameterGrid],
        execution_mode: ExecutionMode = ExecutionMode.SLURM,
        *,
        naming_strategy: NamingStrategy = NamingStrategy.PARAMETER_BASED,
        wait: bool | None = None,
        update: bool = False,
        yes: bool = False,
    ) -> GridSearchResult:
        """Run every point of the grids. Once more, it goes on: what is submitted is not submitted again.

        The search has the names of its grids, joined by `+`, and is a directory of this name. Names by
        timestamp make new experiments with each call.

        Raises:
            ValidationError: mistakes in base or grids; nothing was submitted.
            AutoexpError: as `ExperimentLauncher.launch`.
        """
        if not isinstance(base_config, ExperimentConfig):
            base_config = self.config_manager.create_experiment_config(base_config)
        search = ParameterGridSearch(base_config)
        search.set_naming_strategy(naming_strategy)
        for grid in parameter_grids:
            search.add_grid(grid)
        name = "+".join(grid.name for grid in parameter_grids)
        points = list(search.generate_points())
        result = self.launcher.launch(points, execution_mode, search=name, wait=wait, update=update, yes=yes)
        if result.config_path is not None:
            result.save_summary(result.config_path.parent / "results_summary.json")
        return result


class ModelTrainingFramework:
    """Everything about a project's experiments in one place.

    `script` trains one experiment: it is given the path of a config. `cluster`, `overrides` and
    `experiments_dir` are those of `ExperimentLauncher`.

        framework = ModelTrainingFramework("/path/to/project", cluster="lumi")
        config = framework.create_experiment({"experiment_name": "baseline", "optimizer": {"lr": 1e-3}})
        print(framework.run_single_experiment(config))
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
        self.project_root = Path(project_root)
        self.config_manager = ConfigurationManager(project_root)
        self.launcher = ExperimentLauncher(
            project_root, script=script, experiments_dir=experiments_dir, cluster=cluster, overrides=overrides
        )
        self.grid_search = GridSearchExecutor(self.launcher, self.config_manager)

    def create_experiment(self, config_dict: Mapping[str, Any]) -> ExperimentConfig:
        """A mapping as an experiment.

        Raises:
            ValidationError: every mistake in it.
        """
        return self.config_manager.create_experiment_config(config_dict)

    def run_single_experiment(
        self,
        config: ExperimentConfig,
        mode: ExecutionMode = ExecutionMode.SLURM,
        *,
        wait: bool | None = None,
        update: bool = False,
        yes: bool = False,
    ) -> ExperimentResult:
        """Run one experiment; what is done stays done.

        Raises:
            AutoexpError: as `ExperimentLauncher.launch`.
        """
        return self.launcher.launch([({}, config)], mode, wait=wait, update=update, yes=yes).results[0]

    def run_experiment(self, config: ExperimentConfig, local: bool = False) -> ExperimentResult:
        """`run_single_experiment`, here or on Slurm."""
        return self.run_single_experiment(config, ExecutionMode.LOCAL if local else ExecutionMode.SLURM)

    def run_grid_search(
        self,
        base_config: ExperimentConfig | Mapping[str, Any],
        parameter_grids: Sequence[ParameterGrid],
        execution_mode: ExecutionMode = ExecutionMode.SLURM,
        **options: Any,
    ) -> GridSearchResult:
        """`GridSearchExecutor.execute_grid_search`."""
        return self.grid_search.execute_grid_search(base_config, parameter_grids, execution_mode, **options)
