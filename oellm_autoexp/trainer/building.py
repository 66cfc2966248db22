"""From an experiment's config to a trainer: models, data, optimizers and schedulers by name or dotted path.

    @register("model", "tiny")
    def tiny(config: ExperimentConfig) -> nn.Module: ...

A name that is not registered is a dotted path. What it leads to is called with the whole config where it has
a parameter `config`, else with those keys of its section that it takes.

- `model.type` gives a module. `training_step` and `validation_step` of its class (static methods) are the
  step functions, where `custom_params.training_step` and `.validation_step` name no others.
- `data.dataset_name` gives the training loaders, or a pair: training loaders, validation loaders.
- `optimizer.type` and `scheduler.type` know the usual ones; a path is called with what is optimized, too.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, StepLR

from oellm_autoexp.core.experiment import DDPConfig, ExperimentConfig, PerformanceConfig, SchedulerConfig
from oellm_autoexp.errors import SetupError
from oellm_autoexp.trainer import rng
from oellm_autoexp.trainer.builtin_hooks import found
from oellm_autoexp.trainer.config import trainer_config
from oellm_autoexp.trainer.engine import compiled

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from oellm_autoexp.trainer.trainer import GenericTrainer

F = TypeVar("F", bound=Callable[..., Any])

_REGISTERED: dict[tuple[str, str], Callable[..., Any]] = {}
KINDS = ("model", "data", "optimizer", "scheduler")


def register(kind: str, name: str) -> Callable[[F], F]:
    """Register something under a name that configs may use.

    Raises:
        ValueError: no such kind, or the name is taken.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")

    def keep(made: F) -> F:
        if _REGISTERED.setdefault((kind, name), made) is not made:
            raise ValueError(f"the {kind} {name!r} is registered already")
        return made

    return keep


def named(kind: str, name: str, where: str) -> Callable[..., Any]:
    """What a name of a config stands for.

    Raises:
        SetupError: nothing.
    """
    if (kind, name) in _REGISTERED:
        return _REGISTERED[kind, name]
    if "." not in name:
        known = sorted(each for of, each in _REGISTERED if of == kind)
        hint = f"known: {', '.join(known) or 'none'}; or write a dotted path, such as my_package.module.name"
        raise SetupError(f"no {kind} is registered as `{name}`", where=where, hint=hint)
    made = found(name, where)
    if not callable(made):
        raise SetupError(f"`{name}` is {made!r:.60}, which cannot be called", where=where)
    called: Callable[..., Any] = made
    return called


def trainer(
    cls: Callable[..., GenericTrainer], config: ExperimentConfig, fabric: Any = None
) -> GenericTrainer:
    """A trainer with everything that the config names; `GenericTrainer.fit_configured` trains it.

    Everything is made with the config's seed, the same on every rank.

    Raises:
        SetupError: something that the config names cannot be found or made.
    """
    if config.seed is not None:
        rng.seed_all(config.seed)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = config.benchmark
    model = made(named("model", config.model.type, "model.type"), config, "model")
    if not isinstance(model, nn.Module):
        raise SetupError(
            f"gives no module but {type(model).__name__}", where=f"model.type: {config.model.type}"
        )
    kind, sharding = type(model), fabric is not None and _shards(fabric.strategy)
    if sharding:
        # What is optimized are the shards.
        model = fabric.setup_module(compiled(model, trainer_config(config).performance))
    optimizer = optimizer_of(config, model)
    schedulers = scheduler_of(config, optimizer)
    stepped = fabric.setup_optimizers(optimizer) if sharding else optimizer
    built = cls(config, model, [stepped], schedulers, fabric)
    for name in ("training_step", "validation_step"):
        path = config.custom_params.get(name)
        step = found(path, f"custom_params.{name}") if path else getattr(kind, name, None)
        if step is not None:
            getattr(built, f"set_{name}")(step)
        elif name == "training_step":
            hint = "give its class a static method `training_step`, or set custom_params.training_step"
            raise SetupError("the model says nothing of its loss", where=config.model.type, hint=hint)
    loaders = made(named("data", config.data.dataset_name, "data.dataset_name"), config, "data")
    train, val = loaders if isinstance(loaders, tuple) and len(loaders) == 2 else (loaders, None)
    if train is None:
        hint = "it is to return loaders, or a pair: training loaders, validation loaders"
        raise SetupError(
            "gives no loaders", where=f"data.dataset_name: {config.data.dataset_name}", hint=hint
        )
    built.configure_loaders(train, val)
    return built


def made(factory: Callable[..., Any], config: ExperimentConfig, section: str, *arguments: Any) -> Any:
    """What a factory makes of a section of the config.

    Raises:
        SetupError: it wants what the section does not have, or does not take what is given there.
    """
    parameters = inspect.signature(factory).parameters
    if "config" in parameters:
        return factory(*arguments, config=config)
    part = getattr(config, section)
    extras = dict(getattr(part, "extras", None) or getattr(part, "custom_params", None) or {})
    usual = {
        key: value for key, value in vars(part).items() if key not in ("extras", "custom_params", "type")
    }
    any_keyword = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    taken = {key: value for key, value in usual.items() if key in parameters}
    unknown = [key for key in extras if key not in parameters]
    if unknown and not any_keyword:
        what = f"{getattr(factory, '__qualname__', factory)} does not take {', '.join(unknown)}"
        raise SetupError(what, where=section, hint=f"it takes {', '.join(parameters)}")
    try:
        return factory(*arguments, **taken, **extras)
    except TypeError as error:
        raise SetupError(str(error), where=section) from error


# ---------------------------------------------------------------- optimizers and schedulers


def optimizer_of(config: ExperimentConfig, model: nn.Module) -> Optimizer:
    """The optimizer of a config, over all parameters that have a gradient; biases and norms do not decay."""
    wanted = config.optimizer
    trained = [each for each in model.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": wanted.weight_decay},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise SetupError("has no parameter that wants a gradient", where=f"model.type: {config.model.type}")
    adam = {"lr": wanted.lr, "betas": wanted.betas, "eps": wanted.eps, "amsgrad": wanted.amsgrad}
    more = wanted.custom_params
    usual: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
        "adamw": (torch.optim.AdamW, adam),
        "adam": (torch.optim.Adam, adam),
        "sgd": (torch.optim.SGD, {"lr": wanted.lr}),
    }
    optimizer: Optimizer
    if wanted.type not in usual:
        factory = named("optimizer", wanted.type, "optimizer.type")
        optimizer = made(factory, config, "optimizer", groups)
        return optimizer
    kind, given = usual[wanted.type]
    try:
        optimizer = kind(groups, **{**given, **more})
    except (TypeError, ValueError) as error:
        raise SetupError(str(error), where="optimizer.custom_params") from error
    return optimizer


def scheduler_of(config: ExperimentConfig, optimizer: Optimizer) -> list[Any]:
    """The scheduler of a config, which steps with the optimizer; none where there is none."""
    wanted = config.scheduler
    if wanted is None:
        return []
    if wanted.type == "step":
        return [StepLR(optimizer, wanted.step_size, wanted.gamma)]
    if wanted.type == "multistep":
        return [MultiStepLR(optimizer, list(wanted.milestones), wanted.gamma)]
    if wanted.type in _SHAPES:
        steps = wanted.max_steps or config.training.max_steps
        if steps is None and wanted.type != "constant":
            hint = "set scheduler.max_steps or training.max_steps"
            raise SetupError("nobody says when the learning rate is down", where="scheduler", hint=hint)
        return [warmed(optimizer, wanted, steps or 0, _SHAPES[wanted.type])]
    return [made(named("scheduler", wanted.type, "scheduler.type"), config, "scheduler", optimizer)]


#: From progress (0 to 1) to what is left of the learning rate (1 to 0).
_SHAPES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda _: 1.0,
}


def warmed(
    optimizer: Optimizer, wanted: SchedulerConfig, steps: int, shape: Callable[[float], float]
) -> LRScheduler:
    """Up over `warmup_steps`, then down to `min_lr` at `steps`; without steps it stays up."""
    warmup = wanted.warmup_steps
    peaks = [group["lr"] for group in optimizer.param_groups]

    def factor(step: int, peak: float) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup)) if steps else 0.0
        floor = min(wanted.min_lr / peak, 1.0)
        return floor + (1 - floor) * shape(done)

    return LambdaLR(optimizer, [partial(factor, peak=peak) for peak in peaks])


# ---------------------------------------------------------------- Fabric


def fabric_of(ddp: DDPConfig, performance: PerformanceConfig) -> Any:
    """A Fabric as the config and the launcher say, launched; None where Lightning is not installed and one
    process is enough.

    Raises:
        SetupError: Lightning is needed and missing.
    """
    try:
        from lightning.fabric import Fabric
    except ImportError:
        wanted = ddp.devices not in (None, 1) or ddp.strategy != "auto" or _tasks() > 1
        if wanted or performance.precision:
            hint = "pip install 'oellm-autoexp[fabric]'"
            raise SetupError("Lightning is not installed here", where="ddp", hint=hint) from None
        return None
    # With Slurm's programs on the PATH this is said of every process that srun has not started.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    devices, nodes = _devices(ddp), int(os.environ.get("SLURM_NNODES") or ddp.num_nodes)
    try:
        fabric = Fabric(
            accelerator=ddp.accelerator,
            devices=devices,
            num_nodes=max(nodes, ddp.num_nodes) if _tasks() > 1 else ddp.num_nodes,
            strategy=_strategy(ddp, devices * nodes),
            precision=precision_of(ddp, performance),  # type: ignore[arg-type]
        )
    except Exception as error:  # Lightning has many ways to refuse what it is told
        hint = "look at ddp and performance.precision"
        raise SetupError(f"Fabric cannot be made: {error}", where="ddp", hint=hint) from error
    fabric.launch()
    return fabric


def precision_of(ddp: DDPConfig, performance: PerformanceConfig) -> str:
    """The precision of Fabric: what is named, else mixed on a GPU where `use_amp`."""
    if performance.precision:
        return performance.precision
    if not performance.use_amp or ddp.accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def _tasks() -> int:
    """How many processes a launcher has started."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in os.environ else 1


def _devices(ddp: DDPConfig) -> int:
    if ddp.devices is not None:
        return ddp.devices
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if _tasks() > 1:
        return max(1, _tasks() // int(os.environ.get("SLURM_NNODES", "1")))
    if ddp.accelerator == "cpu":
        return 1
    return max(1, torch.cuda.device_count())


def _strategy(ddp: DDPConfig, processes: int) -> Any:
    from datetime import timedelta

    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    if ddp.strategy == "fsdp":
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


def _shards(strategy: Any) -> bool:
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(strategy, ModelParallelStrategy)


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
