"""Where in its loop a training is: the phases, which may follow which, and what a checkpoint says of it.

    INIT → TRAIN_START_EPOCH → { TRAIN_BATCH_LOAD → FORWARD → BACKWARD → OPTIM_STEP → SCHEDULER_BATCH_STEP
    → TRAIN_BATCH_END } → SCHEDULER_EPOCH_STEP → [ VAL_START_EPOCH → { VAL_BATCH_LOAD → FORWARD → END } ]
    → EPOCH_END → … → TRAINING_COMPLETE

A batch that does not end a window of accumulated gradients goes from BACKWARD to TRAIN_BATCH_END; one that is
passed over, its loss not being finite, from FORWARD. Validation every so many steps goes from TRAIN_BATCH_END
and back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from oellm_autoexp.errors import Fault, PhaseError, ValidationError

#: The version of the states that this program writes and reads.
STATE_VERSION = 1


class TrainerPhase(str, Enum):
    """What a training is doing."""

    INIT = "init"
    TRAIN_START_EPOCH = "train_start_epoch"
    TRAIN_BATCH_LOAD = "train_batch_load"
    TRAIN_BATCH_FORWARD = "train_batch_forward"
    TRAIN_BATCH_BACKWARD = "train_batch_backward"
    TRAIN_BATCH_OPTIM_STEP = "train_batch_optim_step"
    TRAIN_BATCH_END = "train_batch_end"
    VAL_START_EPOCH = "val_start_epoch"
    VAL_BATCH_LOAD = "val_batch_load"
    VAL_BATCH_FORWARD = "val_batch_forward"
    VAL_BATCH_END = "val_batch_end"
    SCHEDULER_EPOCH_STEP = "scheduler_epoch_step"
    SCHEDULER_BATCH_STEP = "scheduler_batch_step"
    CHECKPOINT_SAVE_START = "checkpoint_save_start"
    CHECKPOINT_SAVE_END = "checkpoint_save_end"
    EPOCH_END = "epoch_end"
    TRAINING_COMPLETE = "training_complete"
    ERROR_RECOVERABLE = "error_recoverable"
    ERROR_FATAL = "error_fatal"

    # Enum's own hash is a function in Python; phases are looked up several times a step.
    __hash__ = str.__hash__


_P = TrainerPhase

#: A checkpoint may be cut here: every batch is fully used, and nothing is half done.
BOUNDARIES = frozenset(
    {
        _P.TRAIN_START_EPOCH,
        _P.TRAIN_BATCH_END,
        _P.SCHEDULER_EPOCH_STEP,
        _P.VAL_BATCH_END,
        _P.EPOCH_END,
        _P.TRAINING_COMPLETE,
    }
)

_AFTER_VALIDATION = {_P.EPOCH_END, _P.TRAIN_BATCH_LOAD, _P.SCHEDULER_EPOCH_STEP}

_NEXT: dict[TrainerPhase, set[TrainerPhase]] = {
    # A training that is complete already goes to its end at once.
    _P.INIT: {_P.TRAIN_START_EPOCH, _P.TRAINING_COMPLETE},
    # An epoch that was left behind its last batch has none left.
    _P.TRAIN_START_EPOCH: {_P.TRAIN_BATCH_LOAD, _P.SCHEDULER_EPOCH_STEP},
    _P.TRAIN_BATCH_LOAD: {_P.TRAIN_BATCH_FORWARD},
    _P.TRAIN_BATCH_FORWARD: {_P.TRAIN_BATCH_BACKWARD, _P.TRAIN_BATCH_END},
    _P.TRAIN_BATCH_BACKWARD: {_P.TRAIN_BATCH_OPTIM_STEP, _P.TRAIN_BATCH_END},
    _P.TRAIN_BATCH_OPTIM_STEP: {_P.SCHEDULER_BATCH_STEP},
    _P.SCHEDULER_BATCH_STEP: {_P.TRAIN_BATCH_END},
    # The last step that was asked for may lie in the middle of an epoch.
    _P.TRAIN_BATCH_END: {
        _P.TRAIN_BATCH_LOAD,
        _P.SCHEDULER_EPOCH_STEP,
        _P.VAL_START_EPOCH,
        _P.TRAINING_COMPLETE,
    },
    _P.SCHEDULER_EPOCH_STEP: {_P.VAL_START_EPOCH, _P.EPOCH_END},
    _P.VAL_START_EPOCH: {_P.VAL_BATCH_LOAD, *_AFTER_VALIDATION},
    _P.VAL_BATCH_LOAD: {_P.VAL_BATCH_FORWARD},
    _P.VAL_BATCH_FORWARD: {_P.VAL_BATCH_END},
    _P.VAL_BATCH_END: {_P.VAL_BATCH_LOAD, *_AFTER_VALIDATION, _P.TRAINING_COMPLETE},
    _P.CHECKPOINT_SAVE_START: {_P.CHECKPOINT_SAVE_END},
    _P.CHECKPOINT_SAVE_END: set(),
    _P.EPOCH_END: {_P.TRAIN_START_EPOCH, _P.TRAINING_COMPLETE},
    _P.TRAINING_COMPLETE: set(),
    # Passed over, rolled back to a checkpoint, or gone on without one.
    _P.ERROR_RECOVERABLE: {_P.TRAIN_BATCH_LOAD, *BOUNDARIES},
    _P.ERROR_FATAL: set(),
}


def _allowed(phase: TrainerPhase) -> set[TrainerPhase]:
    if phase in (_P.CHECKPOINT_SAVE_END, _P.ERROR_FATAL):
        return set()
    saved = {_P.CHECKPOINT_SAVE_START} if phase in BOUNDARIES else set()
    failed = {_P.ERROR_FATAL} if phase is _P.TRAINING_COMPLETE else {_P.ERROR_FATAL, _P.ERROR_RECOVERABLE}
    return _NEXT[phase] | saved | failed


#: By phase: those that may follow it. Behind a checkpoint come those of the phase that it was cut in.
TRANSITIONS: Mapping[TrainerPhase, frozenset[TrainerPhase]] = {
    phase: frozenset(_allowed(phase)) for phase in TrainerPhase
}


@dataclass(frozen=True, slots=True)
class _Node:
    """A phase, and the nodes that may follow it; a step passes several."""

    phase: TrainerPhase
    next: dict[TrainerPhase, _Node] = field(default_factory=dict)


_NODES = {phase: _Node(phase) for phase in TrainerPhase}
for _phase, _node in _NODES.items():
    _node.next.update({each: _NODES[each] for each in TRANSITIONS[_phase]})


class PhaseMachine:
    """The phase that a training is in; it moves only along `TRANSITIONS`.

    A training that goes on from a checkpoint begins in the phase of its `ResumeState`, a boundary. `history`
    has the latest phases, at most `remembered`, the current one last.
    """

    def __init__(self, phase: TrainerPhase = TrainerPhase.INIT, *, remembered: int = 64) -> None:
        self.phase = phase
        self.history: deque[TrainerPhase] = deque([phase], maxlen=remembered)
        self._cut_in: TrainerPhase = phase
        self._next = _NODES[phase].next

    @property
    def boundary(self) -> TrainerPhase:
        """What a checkpoint says: the phase that it is cut in, also while it is being written."""
        saving = self.phase in (_P.CHECKPOINT_SAVE_START, _P.CHECKPOINT_SAVE_END)
        return self._cut_in if saving else self.phase

    def follows(self) -> frozenset[TrainerPhase]:
        """The phases that may come next."""
        return frozenset(self._next)

    def advance(self, phase: TrainerPhase) -> None:
        """Go on to a phase.

        Raises:
            PhaseError: it cannot follow the current one; the message names both, and those that can.
        """
        node = self._next.get(phase)
        if node is None:
            known = ", ".join(sorted(each.name for each in self._next)) or "nothing"
            what = f"{phase.name} cannot follow {self.phase.name}"
            raise PhaseError(what, hint=f"after {self.phase.name} comes {known}")
        self._next = node.next
        if not node.next:
            self._next = self._behind(phase)
        elif phase is _P.CHECKPOINT_SAVE_START:
            self._cut_in = self.boundary
        self.phase = phase
        self.history.append(phase)

    def _behind(self, phase: TrainerPhase) -> dict[TrainerPhase, _Node]:
        return _NODES[self._cut_in].next if phase is _P.CHECKPOINT_SAVE_END else {}


# ---------------------------------------------------------------- what a checkpoint says


@dataclass(frozen=True, kw_only=True)
class TrainMicroState:
    """The place within an epoch of training.

    `micro_step` counts the batches of an accumulation window that have had their backward pass (0 at a
    boundary: a window that was not finished is done again), `schedule_position` the batches of the epoch,
    `batches_done` those of the whole training. `loaders` is the state of the loaders.
    """

    micro_step: int = 0
    active_loader: int | None = None
    schedule_position: int = 0
    batches_done: int = 0
    loaders: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ValMicroState:
    """The place within a validation: the batches that are done, and what they have added up to."""

    active_loader: int | None = None
    schedule_position: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    loaders: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """Where a training goes on.

    `epoch` is counted from 0, `global_step` counts optimizer steps, `timestamp` is when the state was taken,
    in seconds since 1970 (0: not said).
    """

    phase: TrainerPhase = TrainerPhase.INIT
    epoch: int = 0
    global_step: int = 0
    version: int = STATE_VERSION
    train: TrainMicroState | None = None
    val: ValMicroState | None = None
    timestamp: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, but for what the loaders keep; `from_dict` reads them back."""
        return {
            **vars(self),
            "phase": self.phase.value,
            "train": None if self.train is None else dict(vars(self.train)),
            "val": None if self.val is None else dict(vars(self.val)),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ResumeState:
        """The state that was written.

        Raises:
            ValidationError: it is of another version, or has unknown or wrong parts.
        """
        version = state.get("version")
        if version != STATE_VERSION:
            what = f"the state has version {version!r}, this program reads {STATE_VERSION}"
            raise ValidationError(Fault(what=what, hint="use the version of oellm-autoexp that wrote it"))
        try:
            return cls(
                **{
                    **state,
                    "phase": TrainerPhase(state["phase"]),
                    "train": None if state.get("train") is None else TrainMicroState(**state["train"]),
                    "val": None if state.get("val") is None else ValMicroState(**state["val"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"the state cannot be read: {error}"
            raise ValidationError(Fault(what=what, hint="use an older checkpoint")) from None
