"""Describe experiments once; the orchestrator gets them finished.

    from oellm_autoexp import render_scripts, submit_jobs

Public names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

# Type checkers take this name for true; the module `typing` would be most of what the import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from oellm_autoexp.config.monitors import SlurmLogMonitor as SlurmLogMonitor
    from oellm_autoexp.core.experiment import CheckpointConfig as CheckpointConfig
    from oellm_autoexp.core.experiment import DataConfig as DataConfig
    from oellm_autoexp.core.experiment import DDPConfig as DDPConfig
    from oellm_autoexp.core.experiment import EpochLengthPolicy as EpochLengthPolicy
    from oellm_autoexp.core.experiment import ExperimentConfig as ExperimentConfig
    from oellm_autoexp.core.experiment import FaultToleranceConfig as FaultToleranceConfig
    from oellm_autoexp.core.experiment import HooksConfig as HooksConfig
    from oellm_autoexp.core.experiment import LoggingConfig as LoggingConfig
    from oellm_autoexp.core.experiment import ModelConfig as ModelConfig
    from oellm_autoexp.core.experiment import MultiDataLoaderConfig as MultiDataLoaderConfig
    from oellm_autoexp.core.experiment import OptimizerConfig as OptimizerConfig
    from oellm_autoexp.core.experiment import PerformanceConfig as PerformanceConfig
    from oellm_autoexp.core.experiment import PreemptionConfig as PreemptionConfig
    from oellm_autoexp.core.experiment import SamplingStrategy as SamplingStrategy
    from oellm_autoexp.core.experiment import SchedulerConfig as SchedulerConfig
    from oellm_autoexp.core.experiment import SLURMConfig as SLURMConfig
    from oellm_autoexp.core.experiment import TrainingConfig as TrainingConfig
    from oellm_autoexp.core.experiment import ValidationConfig as ValidationConfig
    from oellm_autoexp.core.experiment import WarmStartConfig as WarmStartConfig
    from oellm_autoexp.errors import CheckpointError as CheckpointError
    from oellm_autoexp.errors import CheckpointTimeoutError as CheckpointTimeoutError
    from oellm_autoexp.errors import ConfigurationError as ConfigurationError
    from oellm_autoexp.errors import GitOperationError as GitOperationError
    from oellm_autoexp.errors import JobSubmissionError as JobSubmissionError
    from oellm_autoexp.errors import NonFiniteLossError as NonFiniteLossError
    from oellm_autoexp.errors import PreemptionTimeoutError as PreemptionTimeoutError
    from oellm_autoexp.errors import SLURMError as SLURMError
    from oellm_autoexp.errors import TrainerError as TrainerError
    from oellm_autoexp.errors import ValidationError as ValidationError
    from oellm_autoexp.reactions.policies import AdjustTimeLimitPolicy as AdjustTimeLimitPolicy
    from oellm_autoexp.reactions.policies import AlwaysRestartPolicy as AlwaysRestartPolicy
    from oellm_autoexp.reactions.policies import NoRestartPolicy as NoRestartPolicy
    from oellm_autoexp.services.calls import render_scripts as render_scripts
    from oellm_autoexp.services.calls import submit_jobs as submit_jobs
    from oellm_autoexp.services.collections.generate import JobGenerator as JobGenerator
    from oellm_autoexp.services.collections.generate import generate_jobs_from_spec as generate_jobs_from_spec
    from oellm_autoexp.services.collections.places import CollectionManager as CollectionManager
    from oellm_autoexp.services.experiments.files import ConfigurationManager as ConfigurationManager
    from oellm_autoexp.services.experiments.framework import GridSearchExecutor as GridSearchExecutor
    from oellm_autoexp.services.experiments.framework import ModelTrainingFramework as ModelTrainingFramework
    from oellm_autoexp.services.experiments.grid_search import ExperimentNaming as ExperimentNaming
    from oellm_autoexp.services.experiments.grid_search import ParameterGridSearch as ParameterGridSearch
    from oellm_autoexp.services.experiments.launch_results import (
        BatchSubmissionResult as BatchSubmissionResult,
    )
    from oellm_autoexp.services.experiments.launch_results import ExperimentResult as ExperimentResult
    from oellm_autoexp.services.experiments.launch_results import GridSearchResult as GridSearchResult
    from oellm_autoexp.services.experiments.launch_results import SLURMJobResult as SLURMJobResult
    from oellm_autoexp.services.experiments.launcher import ExecutionMode as ExecutionMode
    from oellm_autoexp.services.experiments.launcher import ExperimentLauncher as ExperimentLauncher
    from oellm_autoexp.services.experiments.sbatch_template import (
        SBATCHTemplateEngine as SBATCHTemplateEngine,
    )
    from oellm_autoexp.services.experiments.sbatch_template import TemplateContext as TemplateContext
    from oellm_autoexp.services.experiments.slurm_launcher import SLURMLauncher as SLURMLauncher
    from oellm_autoexp.services.experiments.validation import ClusterProfile as ClusterProfile
    from oellm_autoexp.services.experiments.validation import ConfigValidator as ConfigValidator
    from oellm_autoexp.services.experiments.validation import ResourceCheck as ResourceCheck
    from oellm_autoexp.services.experiments.validation import ValidationResult as ValidationResult
    from oellm_autoexp.store.git import GitOperationLock as GitOperationLock
    from oellm_autoexp.sweep.experiment_names import NamingStrategy as NamingStrategy
    from oellm_autoexp.sweep.parameters import ParameterGrid as ParameterGrid
    from oellm_autoexp.trainer.config import GenericTrainerConfig as GenericTrainerConfig
    from oellm_autoexp.trainer.hooks import TrainerHooks as TrainerHooks
    from oellm_autoexp.trainer.metrics import AggregationStrategy as AggregationStrategy
    from oellm_autoexp.trainer.metrics import MetricsManager as MetricsManager
    from oellm_autoexp.trainer.phases import ResumeState as ResumeState
    from oellm_autoexp.trainer.phases import TrainerPhase as TrainerPhase
    from oellm_autoexp.trainer.signals import Preempted as Preempted
    from oellm_autoexp.trainer.trainer import GenericTrainer as GenericTrainer

__version__ = "0.1.0"

#: Where each public name is at home.
_HOMES = {
    "AdjustTimeLimitPolicy": "oellm_autoexp.reactions.policies",
    "AggregationStrategy": "oellm_autoexp.trainer.metrics",
    "AlwaysRestartPolicy": "oellm_autoexp.reactions.policies",
    "BatchSubmissionResult": "oellm_autoexp.services.experiments.launch_results",
    "CheckpointConfig": "oellm_autoexp.core.experiment",
    "CheckpointError": "oellm_autoexp.errors",
    "CheckpointTimeoutError": "oellm_autoexp.errors",
    "ClusterProfile": "oellm_autoexp.services.experiments.validation",
    "CollectionManager": "oellm_autoexp.services.collections.places",
    "ConfigValidator": "oellm_autoexp.services.experiments.validation",
    "ConfigurationError": "oellm_autoexp.errors",
    "ConfigurationManager": "oellm_autoexp.services.experiments.files",
    "DDPConfig": "oellm_autoexp.core.experiment",
    "DataConfig": "oellm_autoexp.core.experiment",
    "EpochLengthPolicy": "oellm_autoexp.core.experiment",
    "ExecutionMode": "oellm_autoexp.services.experiments.launcher",
    "ExperimentConfig": "oellm_autoexp.core.experiment",
    "ExperimentLauncher": "oellm_autoexp.services.experiments.launcher",
    "ExperimentNaming": "oellm_autoexp.services.experiments.grid_search",
    "ExperimentResult": "oellm_autoexp.services.experiments.launch_results",
    "FaultToleranceConfig": "oellm_autoexp.core.experiment",
    "GenericTrainer": "oellm_autoexp.trainer.trainer",
    "GenericTrainerConfig": "oellm_autoexp.trainer.config",
    "GitOperationError": "oellm_autoexp.errors",
    "GitOperationLock": "oellm_autoexp.store.git",
    "GridSearchExecutor": "oellm_autoexp.services.experiments.framework",
    "GridSearchResult": "oellm_autoexp.services.experiments.launch_results",
    "HooksConfig": "oellm_autoexp.core.experiment",
    "JobGenerator": "oellm_autoexp.services.collections.generate",
    "JobSubmissionError": "oellm_autoexp.errors",
    "LoggingConfig": "oellm_autoexp.core.experiment",
    "MetricsManager": "oellm_autoexp.trainer.metrics",
    "ModelConfig": "oellm_autoexp.core.experiment",
    "ModelTrainingFramework": "oellm_autoexp.services.experiments.framework",
    "MultiDataLoaderConfig": "oellm_autoexp.core.experiment",
    "NamingStrategy": "oellm_autoexp.sweep.experiment_names",
    "NoRestartPolicy": "oellm_autoexp.reactions.policies",
    "NonFiniteLossError": "oellm_autoexp.errors",
    "OptimizerConfig": "oellm_autoexp.core.experiment",
    "ParameterGrid": "oellm_autoexp.sweep.parameters",
    "ParameterGridSearch": "oellm_autoexp.services.experiments.grid_search",
    "PerformanceConfig": "oellm_autoexp.core.experiment",
    "Preempted": "oellm_autoexp.trainer.signals",
    "PreemptionConfig": "oellm_autoexp.core.experiment",
    "PreemptionTimeoutError": "oellm_autoexp.errors",
    "ResourceCheck": "oellm_autoexp.services.experiments.validation",
    "ResumeState": "oellm_autoexp.trainer.phases",
    "SBATCHTemplateEngine": "oellm_autoexp.services.experiments.sbatch_template",
    "SLURMConfig": "oellm_autoexp.core.experiment",
    "SLURMError": "oellm_autoexp.errors",
    "SLURMJobResult": "oellm_autoexp.services.experiments.launch_results",
    "SLURMLauncher": "oellm_autoexp.services.experiments.slurm_launcher",
    "SamplingStrategy": "oellm_autoexp.core.experiment",
    "SchedulerConfig": "oellm_autoexp.core.experiment",
    "SlurmLogMonitor": "oellm_autoexp.config.monitors",
    "TemplateContext": "oellm_autoexp.services.experiments.sbatch_template",
    "TrainerError": "oellm_autoexp.errors",
    "TrainerHooks": "oellm_autoexp.trainer.hooks",
    "TrainerPhase": "oellm_autoexp.trainer.phases",
    "TrainingConfig": "oellm_autoexp.core.experiment",
    "ValidationConfig": "oellm_autoexp.core.experiment",
    "ValidationError": "oellm_autoexp.errors",
    "ValidationResult": "oellm_autoexp.services.experiments.validation",
    "WarmStartConfig": "oellm_autoexp.core.experiment",
    "generate_jobs_from_spec": "oellm_autoexp.services.collections.generate",
    "render_scripts": "oellm_autoexp.services.calls",
    "submit_jobs": "oellm_autoexp.services.calls",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        what = f"module {__name__!r} has no attribute {name!r}"
        if name.startswith("__"):
            raise AttributeError(what)
        from oellm_autoexp.errors import did_you_mean

        raise AttributeError(f"{what}: {did_you_mean(name, _HOMES)}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([name for name in globals() if name.startswith("__")] + list(_HOMES))
