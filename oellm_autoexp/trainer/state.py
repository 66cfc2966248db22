"""What a checkpoint holds: everything that the rest of a training depends on, and nothing else.

It is cut between two optimizer steps, where no gradient and no batch is half used. What differs between ranks
(random numbers, places of loaders, figures) is gathered, so that one file holds it all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from oellm_autoexp.errors import TrainerError
from oellm_autoexp.trainer import rng
from oellm_autoexp.trainer.engine import Engine
from oellm_autoexp.trainer.phases import PhaseMachine, ResumeState, TrainerPhase, TrainMicroState
from oellm_autoexp.trainer.sharded import Like, Place, whole

if TYPE_CHECKING:
    from oellm_autoexp.trainer.boundaries import Boundaries

_log = logging.getLogger("oellm_autoexp.trainer")

#: The version of payloads that this program writes, and the only one it reads.
FORMAT_VERSION = 1

#: What each rank has for itself, and how many there are.
_OF_RANKS = ("rng_states", "loader_states", "metrics", "hooks", "seconds", "buffers", "world_size")


@dataclass
class Position:
    """Where a training is.

    `global_step` counts optimizer steps, `epoch` from 0. `epoch_batches`: batches of the epoch that are used.
    `batches_done`: it has no more. `validation_due`: that comes first. `finished`: why training has ended.
    `nonfinite`: optimizer steps in a row whose loss was no number. `validated_at`: the step of `val_metrics`,
    which are `val_fresh` until the end of the epoch.
    """

    epoch: int = 0
    epoch_batches: int = 0
    global_step: int = 0
    batches_done: bool = False
    validation_due: bool = False
    finished: str = ""
    nonfinite: int = 0
    validated_at: int = -1
    val_metrics: dict[str, float] = field(default_factory=dict)
    val_fresh: bool = False

    def take(self, state: Mapping[str, Any]) -> None:
        for each in fields(self):
            if each.name in state:
                setattr(self, each.name, state[each.name])
        self.val_metrics = dict(self.val_metrics)

    def end_epoch(self) -> None:
        """Go where the next epoch begins."""
        self.epoch, self.epoch_batches, self.batches_done, self.val_fresh = self.epoch + 1, 0, False, False


def capture(trainer: Boundaries, phase: TrainerPhase, saved_at: float) -> dict[str, Any]:
    """The payload of a checkpoint, in plain types and tensors. Every rank has to call it; whole on rank 0.

    The tensors are those of the training: whoever writes later has to copy them first.
    """
    config, engine, at = trainer.config, trainer._engine, trainer.at
    loaders = None
    if trainer._train is not None:
        trainer._train.consumed()
        loaders = trainer._train.state_dict()
    own = {
        "rng": rng.capture() if config.checkpoint.save_rng else None,
        "loaders": loaders if config.fault_tolerance.save_sampler_state else None,
        "metrics": trainer.metrics.state_dict(),
        "hooks": trainer.hook_manager.state_dict(),
        "seconds": dict(trainer._seconds),
        "buffers": _own_buffers(engine),
    }
    ranks = engine.gathered(own)
    schedulers = trainer._scheduled if config.checkpoint.save_scheduler else ()
    optimizers = trainer.optimizers if config.checkpoint.save_optimizer else ()
    micro = TrainMicroState(schedule_position=at.epoch_batches)
    resume = ResumeState(
        phase=phase, epoch=at.epoch, global_step=at.global_step, train=micro, timestamp=saved_at
    )
    return {
        "format_version": FORMAT_VERSION,
        "save_timestamp": saved_at,
        "epoch": at.epoch,
        "global_step": at.global_step,
        "model_state_dict": engine.module.state_dict(),
        "optimizer_state_dicts": [each.state_dict() for each in optimizers],
        "scheduler_state_dicts": [each.scheduler.state_dict() for each in schedulers],
        "amp_scaler_state": engine.scaler_state(),
        "rng_states": [each["rng"] for each in ranks],
        "loader_states": [each["loaders"] for each in ranks],
        "resume_state": resume.to_dict(),
        "position": asdict(at),
        "metrics": [each["metrics"] for each in ranks],
        "early_stopping": trainer.early_stopping.state_dict() if trainer.early_stopping else None,
        "hooks": [each["hooks"] for each in ranks],
        "seconds": [each["seconds"] for each in ranks],
        "buffers": [each["buffers"] for each in ranks],
        "seed": trainer._seed,
        "world_size": engine.world_size,
        "experiment_name": config.experiment_name,
        "config": config.to_dict(),
        # What was loaded, and not gone on from yet, is handed on.
        **{key: value for key, value in (trainer._pending or {}).items() if key in _OF_RANKS},
    }


def _own_buffers(engine: Engine) -> dict[str, torch.Tensor]:
    """What a model in shards keeps whole on each rank, where it differs from that of rank 0."""
    if not engine.sharded or engine.world_size == 1:
        return {}
    known = {name for name, _ in engine.module.named_buffers()}
    mine = {
        name: each.detach().cpu()
        for name, each in engine.module.state_dict().items()
        if name in known and not isinstance(each, DTensor)
    }
    first = engine.told(mine)
    return {name: each.clone() for name, each in mine.items() if not torch.equal(each, first[name])}


def likeness(engine: Engine) -> Like:
    """Which tensor of a training one of a payload is like: the same weight, or the one that is optimized."""
    if not engine.sharded:
        return whole
    weights = engine.module.state_dict()

    def like(place: Place) -> torch.Tensor | None:
        match place:
            case ("model_state_dict", name):
                return weights.get(name)
            case ("optimizer_state_dicts", int(number), "state", int(index), _):
                parameters = engine.parameters[number] if number < len(engine.parameters) else []
                return parameters[index] if index < len(parameters) else None
            case _:
                return None

    return like


def restore(trainer: Boundaries, payload: Mapping[str, Any]) -> None:
    """Put everything back. Random numbers and loaders follow when `fit` has its loaders (`restore_ranks`).

    Raises:
        TrainerError: another version, model or set-up.
    """
    version = payload.get("format_version")
    if version != FORMAT_VERSION:
        what = f"the checkpoint has format {version}, and this program reads format {FORMAT_VERSION}"
        raise TrainerError(what, hint="use the version of the program that wrote it")
    restore_weights(trainer, payload)
    trainer.at.take(payload["position"])
    rank = min(trainer._engine.rank, payload["world_size"] - 1)
    if trainer._engine.world_size == payload["world_size"]:
        trainer.metrics.load_state_dict(payload["metrics"][rank])
    elif trainer._engine.rank == 0:
        # Among other processes, the first one keeps the figures of all that there were.
        trainer.metrics.load_merged(payload["metrics"])
    if trainer.early_stopping is not None and payload["early_stopping"] is not None:
        trainer.early_stopping.load_state_dict(payload["early_stopping"])
    trainer.hook_manager.load_state_dict(payload["hooks"][rank])
    if "seconds" in payload:
        # Of the running interval, as are the figures.
        trainer._seconds = dict(payload["seconds"][rank])
    trainer._seed = payload["seed"]
    trainer._phases = PhaseMachine(ResumeState.from_dict(payload["resume_state"]).phase)
    trainer._pending = payload


def restore_weights(trainer: Boundaries, payload: Mapping[str, Any]) -> None:
    """Model, optimizers, schedulers and the scaler of gradients.

    Raises:
        TrainerError: they are not those that the checkpoint was made with.
    """
    try:
        trainer._engine.module.load_state_dict(payload["model_state_dict"])
    except RuntimeError as error:
        raise TrainerError(
            f"the checkpoint holds another model: {error}",
            hint="build the model that was trained, or give the experiment another name",
        ) from None
    if trainer._engine.world_size == payload["world_size"] and "buffers" in payload:
        trainer._engine.module.load_state_dict(payload["buffers"][trainer._engine.rank], strict=False)
    _each("optimizer", trainer.optimizers, payload["optimizer_state_dicts"])
    _each("scheduler", [each.scheduler for each in trainer._scheduled], payload["scheduler_state_dicts"])
    trainer._engine.load_scaler_state(payload["amp_scaler_state"])


def _each(kind: str, those: Sequence[Any], states: Sequence[Any]) -> None:
    if not states:
        if those:
            _log.warning("the checkpoint holds no %ss: they begin anew", kind)
        return
    if len(those) != len(states):
        what = f"the checkpoint holds {len(states)} {kind}s, and there are {len(those)}"
        raise TrainerError(what, hint=f"give the {kind}s that it was made with")
    for each, state in zip(those, states, strict=True):
        needed = {name for group in getattr(each, "param_groups", ()) for name in group}
        given = _rates(each)
        try:
            each.load_state_dict(state)
            lacking = _lacking(each, needed)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            lacking = f"{error} ({type(error).__name__})"
        if lacking:
            what = f"the checkpoint holds another {kind} than {_bare_name(each)}: {lacking}"
            hint = f"give the {kind} that it was made with, or the experiment another name"
            raise TrainerError(what, hint=hint)
        for name, before, now in zip(_RATES, given, _rates(each), strict=True):
            if before != now:
                what = "%s goes on with %s %s of the checkpoint, and not with %s"
                _log.warning(what, _bare_name(each), name, now, before)


#: What people change between two attempts.
_RATES = ("lr", "weight_decay")


def _rates(given: Any) -> list[list[Any]]:
    """What an optimizer began with, by group: a scheduler has kept its learning rate."""
    groups = getattr(given, "param_groups", ())
    return [[group.get(f"initial_{name}", group.get(name)) for group in groups] for name in _RATES]


def _lacking(loaded: Any, needed: set[str]) -> str:
    """What an optimizer had in its groups, and did not find in the state of another one."""
    groups = getattr(loaded, "param_groups", ())
    # Schedulers add this one; a checkpoint may be of a time before there was any.
    missing = sorted({name for group in groups for name in needed - set(group)} - {"initial_lr"})
    return f"its groups have no {', '.join(missing)}" if missing else ""


def _bare_name(given: Any) -> str:
    return type(getattr(given, "optimizer", given) if hasattr(given, "_strategy") else given).__name__


def restore_ranks(trainer: Boundaries, payload: Mapping[str, Any]) -> None:
    """What each rank has for itself: the places of its loaders, and last its random numbers."""
    rank, world_size = trainer._engine.rank, trainer._engine.world_size
    assert trainer._train is not None
    loaders = payload["loader_states"]
    state = loaders[min(rank, len(loaders) - 1)]
    if state is not None:
        trainer._train.load_state_dict(state)
    elif trainer.at.epoch_batches and not trainer.at.batches_done:
        _log.warning("the checkpoint holds no places of loaders: epoch %s begins anew", trainer.at.epoch)
        trainer.at.epoch_batches = 0
    states = payload["rng_states"]
    if world_size == payload["world_size"] and states[rank] is not None:
        rng.restore(states[rank])
    else:
        why = "was made without random numbers" if states[0] is None else f"is of {len(states)} processes"
        _log.warning("the checkpoint %s: random numbers of this one begin anew", why)
        rng.seed_all((trainer._seed or 0) + 7919 * trainer.at.global_step, rank)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two payloads differ, bit by bit; NaN equals NaN."""
    one, other = (each.to_local() if isinstance(each, DTensor) else each for each in (one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        same = (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and torch.equal(one.cpu().nan_to_num(), other.cpu().nan_to_num())
        )
        return [] if same else [place]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if set(one) != set(other):
            return [f"{place}.{key}" for key in set(one) ^ set(other)]
        return [each for key in one for each in differences(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [place]
        pairs = enumerate(zip(one, other, strict=True))
        return [each for number, (a, b) in pairs for each in differences(a, b, f"{place}.{number}")]
    return [] if one == other or (one != one and other != other) else [place]


#: Keys of a trainer's config from which other weights follow.
_DECISIVE = (
    *(".experiment_config.model", ".experiment_config.data", ".experiment_config.optimizer"),
    *(".experiment_config.scheduler", ".performance", ".train_loader_config", ".seed"),
    *(".loss_weights_per_loader", ".per_loader_optimizer_id", ".scheduler_interval"),
)


def changed(payload: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The keys of a config that say what is trained, and said something else when a checkpoint was made."""
    found = differences(payload.get("config") or config, config)
    return sorted(each[1:].removeprefix("experiment_config.") for each in found if each.startswith(_DECISIVE))


#: What is the same before a checkpoint was written and after it was read.
VERIFIED = (
    *("model_state_dict", "optimizer_state_dicts", "scheduler_state_dicts", "amp_scaler_state"),
    *("rng_states", "position", "metrics", "early_stopping"),
)
