"""Everything about a project's experiments in one place: described, searched, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.services.experiments.files import ConfigurationManager
from oellm_autoexp.services.experiments.grid_search import NamingStrategy, ParameterGrid, ParameterGridSearch
from oellm_autoexp.services.experiments.launch_results import (
    ExperimentResult,
    GridSearchResult,
)
from oellm_autoexp.services.experiments.launcher import ExecutionMode, ExperimentLauncher
from oellm_autoexp.services.experiments.slurm_launcher import SLURMLauncher


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

    `script` trains one experiment: it is given the path of a config. `template_path`, `cluster`, `overrides`
    and `experiments_dir` are those of `SLURMLauncher`.

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
        template_path: str | Path | None = None,
        cluster: str | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.project_root = Path(project_root)
        self.config_manager = ConfigurationManager(project_root)
        self.launcher = SLURMLauncher(
            template_path,
            project_root,
            experiments_dir,
            script=script,
            cluster=cluster,
            overrides=overrides,
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
