"""A Fabric as an experiment's config and whoever started the process say: devices, strategy, precision."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oellm_autoexp.core.experiment import DDPConfig, PerformanceConfig
from oellm_autoexp.errors import SetupError
from oellm_autoexp.trainer.config import is_set
from oellm_autoexp.trainer.engine import asked_of_fabric

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def fabric_of(ddp: DDPConfig, performance: PerformanceConfig) -> Any:
    """A Fabric as the config and the launcher say, launched; None where Lightning is not installed and one
    process is enough.

    Raises:
        SetupError: Lightning is needed and missing, or cannot do what the config says on this machine.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.utilities.exceptions import MisconfigurationException
    except ImportError:
        if asked_of_fabric(ddp, performance) or _tasks() > 1:
            hint = "pip install 'oellm-autoexp[fabric]'"
            raise SetupError("Lightning is not installed here", where="ddp", hint=hint) from None
        return None
    # With Slurm's programs on the PATH this is said of every process that srun has not started.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    devices, nodes = _processes(ddp)
    try:
        fabric = Fabric(
            accelerator=ddp.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(ddp, devices * nodes),
            precision=precision_of(ddp, performance),  # type: ignore[arg-type]
            plugins=_plugins(),
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        # As Lightning refuses devices that are not here, and what does not go together.
        what, hint = f"Fabric cannot be set up: {error}", "look at ddp and at performance.precision"
        raise SetupError(what, where="ddp", hint=hint) from error
    fabric.launch()
    return fabric


def part() -> None:
    """End the process group, behind all that ranks do together.

    A thread of gloo's that is still alive when the interpreter ends may abort the process, and its exit code
    is lost. A rank that has failed does not wait for the others so.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def precision_of(ddp: DDPConfig, performance: PerformanceConfig) -> str:
    """The precision of Fabric: what is named, else mixed on a GPU where `use_amp`."""
    if performance.precision:
        return performance.precision
    if not performance.use_amp or ddp.accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    if torch.cuda.is_bf16_supported():
        return "bf16-mixed"
    # FSDP2 has no scaler of gradients in Fabric.
    return "32-true" if ddp.strategy == "fsdp" else "16-mixed"


def _launcher() -> str:
    """Who has started this process beside others: torchrun, srun, or "" where nobody has.

    The script of a Slurm job has the variables of its tasks, too, but for the number of a step.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:
        return "torchrun"
    return "srun" if "SLURM_STEP_ID" in os.environ else ""


def _tasks() -> int:
    """How many processes a launcher has started."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS", "1")) if _launcher() == "srun" else 1


def _processes(ddp: DDPConfig) -> tuple[int, int]:
    """On how many devices of how many nodes: as the launcher has it, which may use fewer than the job has."""
    launcher = _launcher()
    if launcher == "torchrun":
        found = int(os.environ["LOCAL_WORLD_SIZE"])
        return ddp.devices or found, max(ddp.num_nodes, _tasks() // found)
    if launcher == "srun" and _tasks() > 1:
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return ddp.devices or max(1, _tasks() // nodes), max(ddp.num_nodes, nodes)
    if ddp.devices is not None:
        return ddp.devices, ddp.num_nodes
    return 1 if ddp.accelerator == "cpu" else max(1, torch.cuda.device_count()), ddp.num_nodes


def _plugins() -> list[Any]:
    """In the script of a Slurm job processes start each other, where Lightning would wait for srun's."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [LightningEnvironment()] if SLURMEnvironment.detect() and not _launcher() else []


def _strategy(ddp: DDPConfig, processes: int) -> Any:
    from datetime import timedelta

    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    sharding = ddp.strategy == "fsdp"
    of_ddp = (
        ("find_unused_parameters",) if sharding else ("backend", "find_unused_parameters", "timeout_seconds")
    )
    own = [name for name in of_ddp if is_set(ddp, name)]
    if own and ddp.strategy not in ("auto", "ddp"):
        what = f"{', '.join(own)} is for the strategy ddp, and the strategy is {ddp.strategy}"
        raise SetupError(what, where="ddp", hint="leave it out, or give a Fabric of your own")
    if sharding:
        return ModelParallelStrategy(
            _shard,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            process_group_backend=ddp.backend,
            timeout=timedelta(seconds=ddp.timeout_seconds),
        )
    if ddp.strategy == "ddp" or (ddp.strategy == "auto" and processes > 1):
        return DDPStrategy(
            process_group_backend=ddp.backend,
            timeout=timedelta(seconds=ddp.timeout_seconds),
            find_unused_parameters=ddp.find_unused_parameters,
        )
    return ddp.strategy


def spreads(fabric: Any) -> bool:
    """Whether a Fabric gives each process a part of the model: then what is optimized are the parts."""
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2: the blocks that lists and sequences of the model consist of, one by one; then the rest."""
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"]
    for block in _blocks(model, within_list=isinstance(model, nn.Sequential)):
        fully_shard(block, mesh=data)
    try:
        fully_shard(model, mesh=data)
    except ValueError as error:
        raise SetupError(f"the model cannot be sharded: {error}", where="ddp.strategy: fsdp") from error
    return model


def _blocks(module: nn.Module, *, within_list: bool) -> dict[nn.Module, None]:
    """Parts with parts of their own that are items of the outermost lists, each once; a list or a mapping is
    none itself, since it is never called."""
    found: dict[nn.Module, None] = {}
    for part in module.children():
        called = not isinstance(part, (nn.ModuleList, nn.ModuleDict))
        if within_list and called and any(True for _ in part.children()):
            found[part] = None
        elif not (within_list and called):
            listed = within_list or isinstance(part, (nn.ModuleList, nn.Sequential))
            found.update(_blocks(part, within_list=listed))
    return found
