"""Trainings of this program's own trainer, on one process or many."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compoconf import ConfigInterface, register

from oellm_autoexp.backends.base import BackendJobSpec, BaseBackend, LaunchCommand, environment
from oellm_autoexp.config.experiments import experiment
from oellm_autoexp.core.experiment import DDPConfig, ExperimentConfig
from oellm_autoexp.errors import ConfigError, Fault, ValidationError

_KEY = "backend.experiment"
#: Signals that torchrun hands on to its processes.
_HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
#: Seconds that a process may need to leave, beside those of its checkpoint.
_LEAVING_S = 10


@dataclass(kw_only=True)
class FabricBackendConfig(ConfigInterface):
    """`experiment` is an experiment's config, as in `python -m oellm_autoexp.trainer CONFIG.json`; without a
    name it has that of the job.

    `launcher`: `python` (one node, the processes start each other), `torchrun` (one node) or `srun` (any
    number of nodes); `experiment.ddp` says how many processes and nodes there are. `python`: the interpreter.
    `environment`: variables for the training; `cwd`: where dotted paths are looked for.
    """

    experiment: dict[str, Any] = field(default_factory=dict)
    launcher: Literal["python", "torchrun", "srun"] = "python"
    python: str = "python3"
    environment: dict[str, Any] = field(default_factory=dict)
    cwd: str | None = None


@register
class FabricBackend(BaseBackend):
    """Runs `python -m oellm_autoexp.trainer` with the experiment in its command line."""

    config: FabricBackendConfig
    config_class = FabricBackendConfig
    reads_parameters = False

    def validate(self, spec: BackendJobSpec) -> None:
        """Refuse an experiment that the trainer would refuse, and processes that the launcher cannot start.

        Raises:
            ConfigError: with the keys.
        """
        config, found = self.config, self._experiment(spec)
        if found.slurm is not None:
            what = "does nothing here: what a job asks of Slurm stands in the config's own section"
            raise ConfigError(Fault(key=f"{_KEY}.slurm", what=what, hint="move it to slurm.sbatch"))
        ddp = found.ddp or DDPConfig()
        if config.launcher != "srun" and ddp.num_nodes > 1:
            what = f"starts processes on one node, and there are {ddp.num_nodes}"
            hint = "set backend.launcher=srun"
            raise ConfigError(Fault(key="backend.launcher", what=what, value=config.launcher, hint=hint))
        one = config.launcher == "srun" and ddp.accelerator == "cpu"
        if config.launcher != "python" and ddp.devices is None and not one:
            what = f"is missing for {config.launcher}"
            hint = "say how many processes a node has: how many GPUs of it are used"
            raise ConfigError(Fault(key=f"{_KEY}.ddp.devices", what=what, hint=hint))

    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
        config, found = self.config, self._experiment(spec)
        ddp = found.ddp or DDPConfig()
        said = {"experiment_name": found.experiment_name, **config.experiment}
        trainer = ["-m", "oellm_autoexp.trainer", "--json", json.dumps(said)]
        argv = [config.python, *trainer]
        if config.launcher == "torchrun":
            run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ddp.devices or 1}"]
            argv = [config.python, *run, *trainer]
        elif config.launcher == "srun":
            # All numbers, since srun takes what is not said from the job.
            each = ddp.devices or 1
            tasks = [f"--nodes={ddp.num_nodes}", f"--ntasks={ddp.num_nodes * each}"]
            argv = ["srun", *tasks, f"--ntasks-per-node={each}", "--kill-on-bad-exit=1", *argv]
        given = environment(config.environment, "backend.environment")
        return LaunchCommand(argv, {**self._defaults(found), **given}, config.cwd)

    def _defaults(self, found: ExperimentConfig) -> dict[str, str]:
        """What torchrun is told by variables, which an older one that does not know them passes over.

        By itself it dies of SIGUSR1 and SIGUSR2, and gives its processes 30 s after other signals.
        """
        if self.config.launcher != "torchrun":
            return {}
        seconds = math.ceil(found.preemption.max_checkpoint_sec) + _LEAVING_S
        return {"PET_SIGNALS_TO_HANDLE": _HANDED_ON, "PET_SHUTDOWN_TIMEOUT": str(seconds)}

    def _experiment(self, spec: BackendJobSpec) -> ExperimentConfig:
        try:
            return experiment({"experiment_name": spec.name or "experiment", **self.config.experiment})
        except ValidationError as error:
            faults = (replace(each, key=f"{_KEY}.{each.key}".rstrip(".")) for each in error.faults)
            raise ConfigError(*faults) from None
