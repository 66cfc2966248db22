"""How a model is run: by Lightning Fabric, or by PyTorch alone. The loop knows only `Engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from oellm_autoexp.core.experiment import DDPConfig, PerformanceConfig
from oellm_autoexp.errors import AutoexpError, SetupError, TrainerError

T = TypeVar("T")

_NOTHING = nullcontext()


class Engine:
    """PyTorch alone: one process, or several whose process group and wrapped model the program has made.

    `model` is what is called, `module` what was given, whose state is saved. `sharded`: each rank has a part
    of the parameters (FSDP2, tensor parallelism).

    Raises:
        TrainerError: model and optimizers do not fit together, or are wrapped in FSDP1.
    """

    fabric: Any = None

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], config: PerformanceConfig, fabric: Any = None
    ) -> None:
        self.fabric = fabric
        self.config = config
        self.module: nn.Module = _innermost(model)
        self.model, self.optimizers = self._set_up(model, list(optimizers))
        parameter = next(iter(self.module.parameters()), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.on_cpu = self.device.type == "cpu"
        distributed = torch.distributed
        self.distributed = distributed.is_available() and distributed.is_initialized()
        self.world_size = distributed.get_world_size() if self.distributed else 1
        self.rank = distributed.get_rank() if self.distributed else 0
        self.parameters = [
            [each for group in optimizer.param_groups for each in group["params"]]
            for optimizer in self.optimizers
        ]
        self.sharded = any(isinstance(each, DTensor) for each in self.module.parameters())
        self._check_shards()

    def _check_shards(self) -> None:
        if any(type(each).__name__ == "FullyShardedDataParallel" for each in self.model.modules()):
            what = "the model is wrapped in FullyShardedDataParallel (FSDP1), whose states are not saved"
            hint = "use FSDP2: torch.distributed.fsdp.fully_shard, or ddp.strategy: fsdp in a config"
            raise TrainerError(what, hint=hint)
        known = set(map(id, self.module.parameters()))
        if self.sharded and not all(id(each) in known for own in self.parameters for each in own):
            what = "an optimizer was made before the model was sharded, and would step what nothing uses"
            hint = (
                "shard the model (fully_shard, fabric.setup_module), then make optimizers of its parameters"
            )
            raise TrainerError(what, hint=hint)

    def _set_up(self, model: nn.Module, optimizers: list[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        return compiled(model, self.config), optimizers

    # ------------------------------------------------------------ one micro-step

    def autocast(self) -> AbstractContextManager[Any]:
        """Around forward and loss."""
        if self.on_cpu or not self.config.use_amp:
            return _NOTHING
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def without_sync(self, skip: bool) -> AbstractContextManager[Any]:
        """Around a micro-step; `skip`: gradients are not exchanged yet."""
        if not skip or self.world_size == 1:
            return _NOTHING
        if hasattr(self.model, "no_sync"):
            no_sync: Any = self.model.no_sync
            manager: AbstractContextManager[Any] = no_sync()
            return manager
        if hasattr(self.model, "set_requires_gradient_sync"):
            return _unsynced(self.model)
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def clip(self, number: int, max_norm: float) -> Tensor:
        """Clip the gradients of an optimizer's parameters; their norm before that."""
        return whole(nn.utils.clip_grad_norm_(self.parameters[number], max_norm))

    def to_device(self, data: Any) -> Any:
        """A batch where the model is."""
        return data if self.on_cpu else _moved(data, self.device)

    def scaler_state(self) -> dict[str, Any]:
        return {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if state:
            what = "the checkpoint was made with 16-mixed precision, which scales gradients"
            raise TrainerError(what, hint="give the trainer a Fabric with the same precision")

    # ------------------------------------------------------------ among ranks

    def highest(self, values: Sequence[float]) -> list[float]:
        """Of each value the highest among all ranks."""
        return self._reduced(values, "MAX")

    def total(self, values: Sequence[float]) -> list[float]:
        """Of each value the sum over all ranks."""
        return self._reduced(values, "SUM")

    def _reduced(self, values: Sequence[float], operation: str) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, op=getattr(torch.distributed.ReduceOp, operation))
        reduced: list[float] = tensor.tolist()
        return reduced

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on each of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def told(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def agreed(self, act: Callable[[], T]) -> T:
        """What `act` gives, on every rank; where it fails on one, all of them fail, and none waits for it.

        Raises:
            AutoexpError: of this rank, else of the first that failed.
        """
        result, mine = None, None
        try:
            result = act()
        except AutoexpError as error:
            mine = error
        failed = [each for each in self.gathered(mine) if each is not None]
        if failed:
            raise mine or failed[0]
        return cast(T, result)

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


class FabricEngine(Engine):
    """Lightning Fabric: devices, strategies and precision. A model that is set up already stays as it is."""

    def _set_up(self, model: nn.Module, optimizers: list[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer

        if isinstance(model, _FabricModule):
            bare = [each for each in optimizers if not isinstance(each, _FabricOptimizer)]
            if bare:
                what = "the model was set up with Fabric, and an optimizer was not"
                hint = "hand over what `fabric.setup(model, optimizer)` returned, or neither"
                raise TrainerError(what, hint=hint)
            return model, optimizers
        self._check_launched()
        made = self.fabric.setup(compiled(model, self.config), *optimizers)
        model, *optimizers = made if isinstance(made, tuple) else (made,)
        return model, optimizers

    def _check_launched(self) -> None:
        """Several processes that all believe to be alone would each train the whole."""
        import os

        meant = int(os.environ.get("WORLD_SIZE", "1"))
        if meant > 1 and self.fabric.world_size != meant:
            what = f"Fabric has {self.fabric.world_size} process(es), and WORLD_SIZE says {meant}"
            hint = "give Fabric `devices`, `num_nodes` and a `strategy`, and call fabric.launch()"
            raise TrainerError(what, hint=hint)

    def autocast(self) -> AbstractContextManager[Any]:
        return _NOTHING  # the module that Fabric made does it

    def without_sync(self, skip: bool) -> AbstractContextManager[Any]:
        if not skip or self.world_size == 1:
            return _NOTHING
        manager: AbstractContextManager[Any] = self.fabric.no_backward_sync(self.model)
        return manager

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, number: int, max_norm: float) -> Tensor:
        norm: Tensor = self.fabric.clip_gradients(
            self.model, self.optimizers[number], max_norm=max_norm, error_if_nonfinite=False
        )
        return whole(norm)

    def to_device(self, data: Any) -> Any:
        return data if self.on_cpu else self.fabric.to_device(data)

    def scaler_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.fabric.strategy.precision.state_dict()
        return state

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        self.fabric.strategy.precision.load_state_dict(state)


def asked_of_fabric(ddp: DDPConfig, performance: PerformanceConfig) -> list[str]:
    """The keys that only a Fabric acts on."""
    asked = {
        "ddp.devices": ddp.devices not in (None, 1),
        "ddp.strategy": ddp.strategy != "auto",
        "ddp.num_nodes": ddp.num_nodes != 1,
        "ddp.accelerator": ddp.accelerator not in ("auto", "cpu"),
        "performance.precision": performance.precision is not None,
    }
    return [key for key, is_set in asked.items() if is_set]


def engine(
    model: nn.Module, optimizers: Iterable[Optimizer], config: PerformanceConfig, ddp: DDPConfig, fabric: Any
) -> Engine:
    """The engine that fits: Fabric's where there is a Fabric.

    Raises:
        SetupError: the config asks for what only a Fabric does, and there is none.
    """
    wanted = [] if fabric is not None else asked_of_fabric(ddp, config)
    if wanted:
        how = "fabric=oellm_autoexp.trainer.launching.fabric_of(config.ddp, config.performance)"
        raise SetupError(f"{wanted[0]} is set, which needs a Fabric, and none was given: pass {how}")
    kind = Engine if fabric is None else FabricEngine
    return kind(model, list(optimizers), config, fabric)


def compiled(model: nn.Module, config: PerformanceConfig) -> nn.Module:
    """The model, compiled where the config says so."""
    if not config.compile_model:
        return model
    options = {"backend": config.compile_backend} if config.compile_backend else {}
    try:
        faster: nn.Module = torch.compile(model, **options)  # type: ignore[call-overload]
    except RuntimeError as error:
        raise SetupError(str(error).splitlines()[0], where="performance.compile_backend") from error
    return faster


@contextmanager
def _unsynced(model: Any) -> Iterator[None]:
    """As `no_sync`, for a model of `fully_shard`."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(norm: Tensor) -> Tensor:
    """A figure of all shards; every rank has to call it."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _innermost(model: nn.Module) -> nn.Module:
    """The module within wrappers of Fabric, of DistributedDataParallel and of torch.compile."""
    while True:
        for name in ("_orig_mod", "_original_module", "module"):
            inner = model.__dict__.get("_modules", {}).get(name)
            if inner is not None and _wraps(model):
                model = inner
                break
        else:
            return model


def _wraps(model: nn.Module) -> bool:
    return type(model).__name__ in (
        "OptimizedModule",
        "_FabricModule",
        "DistributedDataParallel",
        "DataParallel",
    )


def _moved(data: Any, device: torch.device) -> Any:
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: _moved(value, device) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_moved(value, device) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(_moved(value, device) for value in data)
    return data
