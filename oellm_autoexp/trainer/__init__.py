"""Training that can be killed at any instruction and loses nothing. An island: it runs inside the job.

Names are loaded at their first use: configs and hooks need no torch.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from oellm_autoexp.core.experiment import CheckpointConfig as CheckpointConfig
    from oellm_autoexp.core.experiment import DDPConfig as DDPConfig
    from oellm_autoexp.core.experiment import EpochLengthPolicy as EpochLengthPolicy
    from oellm_autoexp.core.experiment import FaultToleranceConfig as FaultToleranceConfig
    from oellm_autoexp.core.experiment import HooksConfig as HooksConfig
    from oellm_autoexp.core.experiment import LoggingConfig as LoggingConfig
    from oellm_autoexp.core.experiment import MultiDataLoaderConfig as MultiDataLoaderConfig
    from oellm_autoexp.core.experiment import PerformanceConfig as PerformanceConfig
    from oellm_autoexp.core.experiment import PreemptionConfig as PreemptionConfig
    from oellm_autoexp.core.experiment import SamplingStrategy as SamplingStrategy
    from oellm_autoexp.core.experiment import ValidationAggregation as ValidationAggregation
    from oellm_autoexp.core.experiment import ValidationConfig as ValidationConfig
    from oellm_autoexp.core.experiment import ValidationFrequency as ValidationFrequency
    from oellm_autoexp.core.experiment import WarmStartConfig as WarmStartConfig
    from oellm_autoexp.errors import CheckpointError as CheckpointError
    from oellm_autoexp.errors import CheckpointTimeoutError as CheckpointTimeoutError
    from oellm_autoexp.errors import NonFiniteLossError as NonFiniteLossError
    from oellm_autoexp.errors import PreemptionTimeoutError as PreemptionTimeoutError
    from oellm_autoexp.errors import SetupError as SetupError
    from oellm_autoexp.errors import TrainerError as TrainerError
    from oellm_autoexp.trainer.beginning import WarmStartResult as WarmStartResult
    from oellm_autoexp.trainer.config import GenericTrainerConfig as GenericTrainerConfig
    from oellm_autoexp.trainer.hooks import TrainerHooks as TrainerHooks
    from oellm_autoexp.trainer.metrics import AggregationStrategy as AggregationStrategy
    from oellm_autoexp.trainer.metrics import MetricsManager as MetricsManager
    from oellm_autoexp.trainer.phases import ResumeState as ResumeState
    from oellm_autoexp.trainer.phases import TrainerPhase as TrainerPhase
    from oellm_autoexp.trainer.signals import Preempted as Preempted
    from oellm_autoexp.trainer.trainer import GenericTrainer as GenericTrainer

_CORE = "oellm_autoexp.core.experiment"
_ERRORS = "oellm_autoexp.errors"
#: Where each public name is at home.
_HOMES = {
    "AggregationStrategy": "oellm_autoexp.trainer.metrics",
    "CheckpointConfig": _CORE,
    "CheckpointError": _ERRORS,
    "CheckpointTimeoutError": _ERRORS,
    "DDPConfig": _CORE,
    "EpochLengthPolicy": _CORE,
    "FaultToleranceConfig": _CORE,
    "GenericTrainer": "oellm_autoexp.trainer.trainer",
    "GenericTrainerConfig": "oellm_autoexp.trainer.config",
    "HooksConfig": _CORE,
    "LoggingConfig": _CORE,
    "MetricsManager": "oellm_autoexp.trainer.metrics",
    "MultiDataLoaderConfig": _CORE,
    "NonFiniteLossError": _ERRORS,
    "PerformanceConfig": _CORE,
    "Preempted": "oellm_autoexp.trainer.signals",
    "PreemptionConfig": _CORE,
    "PreemptionTimeoutError": _ERRORS,
    "ResumeState": "oellm_autoexp.trainer.phases",
    "SamplingStrategy": _CORE,
    "SetupError": _ERRORS,
    "TrainerError": _ERRORS,
    "TrainerHooks": "oellm_autoexp.trainer.hooks",
    "TrainerPhase": "oellm_autoexp.trainer.phases",
    "ValidationAggregation": _CORE,
    "ValidationConfig": _CORE,
    "ValidationFrequency": _CORE,
    "WarmStartConfig": _CORE,
    "WarmStartResult": "oellm_autoexp.trainer.beginning",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([name for name in globals() if name.startswith("__")] + list(_HOMES))
