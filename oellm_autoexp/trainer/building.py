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
from collections.abc import Callable, Container, Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, StepLR

from oellm_autoexp.core.experiment import ExperimentConfig, SchedulerConfig
from oellm_autoexp.errors import SetupError
from oellm_autoexp.trainer import rng
from oellm_autoexp.trainer.builtin_hooks import found
from oellm_autoexp.trainer.config import is_set, trainer_config
from oellm_autoexp.trainer.engine import compiled
from oellm_autoexp.trainer.launching import spreads

if TYPE_CHECKING:
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
    kind, sharding = type(model), fabric is not None and spreads(fabric)
    if sharding:
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
    called = str(getattr(factory, "__qualname__", factory))
    extras = dict(getattr(part, "extras", None) or getattr(part, "custom_params", None) or {})
    usual = {
        key: value for key, value in vars(part).items() if key not in ("extras", "custom_params", "type")
    }
    any_keyword = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    taken = {key: value for key, value in usual.items() if key in parameters}
    unknown = [key for key in extras if key not in parameters]
    if any_keyword:
        taken = {key: value for key, value in usual.items() if key in parameters or is_set(part, key)}
    elif unknown:
        what = f"{called} does not take {', '.join(unknown)}"
        raise SetupError(what, where=section, hint=f"it takes {', '.join(parameters)}")
    else:
        _refuse_idle(part, parameters, section, called)
    try:
        return factory(*arguments, **taken, **extras)
    except TypeError as error:
        raise SetupError(str(error), where=section) from error


def _refuse_idle(part: Any, used: Container[str], section: str, called: str) -> None:
    """Refuse keys that are set and that what the config names does nothing with: a sweep of such a key would
    train the same again and again.

    Raises:
        SetupError: with these keys.
    """
    names = [each.name for each in fields(part) if each.name not in ("type", "dataset_name")]
    names = [name for name in names if name not in ("extras", "custom_params") and name not in used]
    idle = [name for name in names if is_set(part, name)]
    if idle:
        what = f"{called} does nothing with {', '.join(idle)}"
        raise SetupError(what, where=section, hint="leave out what does not act")


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
    if wanted.type == "sgd":
        _refuse_idle(wanted, ("lr", "weight_decay"), "optimizer", "sgd")
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
    if wanted.type in _SCHEDULER_KEYS:
        _refuse_idle(wanted, _SCHEDULER_KEYS[wanted.type], "scheduler", wanted.type)
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


#: Which keys the schedulers act on that come along.
_SCHEDULER_KEYS: Mapping[str, Container[str]] = {
    "step": ("step_size", "gamma"),
    "multistep": ("milestones", "gamma"),
    "cosine": ("warmup_steps", "max_steps", "min_lr"),
    "linear": ("warmup_steps", "max_steps", "min_lr"),
    "constant": ("warmup_steps",),
}

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
