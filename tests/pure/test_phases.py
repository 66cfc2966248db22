"""A training moves along its phases only, and what a checkpoint says of them reads back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.errors import PhaseError, ValidationError
from oellm_autoexp.trainer.phases import (
    BOUNDARIES,
    TRANSITIONS,
    PhaseMachine,
    ResumeState,
    TrainerPhase,
    TrainMicroState,
    ValMicroState,
)

P = TrainerPhase
STEP = [
    P.TRAIN_BATCH_LOAD,
    P.TRAIN_BATCH_FORWARD,
    P.TRAIN_BATCH_BACKWARD,
    P.TRAIN_BATCH_OPTIM_STEP,
    P.SCHEDULER_BATCH_STEP,
    P.TRAIN_BATCH_END,
]
MICRO_STEP = [P.TRAIN_BATCH_LOAD, P.TRAIN_BATCH_FORWARD, P.TRAIN_BATCH_BACKWARD, P.TRAIN_BATCH_END]
VALIDATION = [P.VAL_START_EPOCH, P.VAL_BATCH_LOAD, P.VAL_BATCH_FORWARD, P.VAL_BATCH_END]
SAVE = [P.CHECKPOINT_SAVE_START, P.CHECKPOINT_SAVE_END]


def walk(machine: PhaseMachine, *phases: TrainerPhase) -> None:
    for phase in phases:
        machine.advance(phase)


def test_a_whole_training_goes_through_its_phases() -> None:
    machine = PhaseMachine()
    walk(machine, P.TRAIN_START_EPOCH, *MICRO_STEP, *STEP, *SAVE, *STEP, P.SCHEDULER_EPOCH_STEP)
    walk(machine, *VALIDATION, P.EPOCH_END, *SAVE, P.TRAIN_START_EPOCH, *STEP, *VALIDATION, *STEP)
    walk(machine, P.SCHEDULER_EPOCH_STEP, P.EPOCH_END, P.TRAINING_COMPLETE, *SAVE)
    assert machine.phase is P.CHECKPOINT_SAVE_END
    assert machine.boundary is P.TRAINING_COMPLETE


def test_every_phase_can_be_reached_and_none_but_the_ends_is_a_trap() -> None:
    reached, waiting = set(), [P.INIT]
    while waiting:
        phase = waiting.pop()
        if phase not in reached:
            reached.add(phase)
            waiting += TRANSITIONS[phase]
    assert reached == set(P)
    assert not TRANSITIONS[P.ERROR_FATAL]
    assert not TRANSITIONS[P.TRAINING_COMPLETE] & set(STEP)


def test_a_step_that_cannot_follow_is_refused_with_both_phases() -> None:
    machine = PhaseMachine()
    with pytest.raises(PhaseError, match="TRAIN_BATCH_OPTIM_STEP cannot follow INIT") as caught:
        machine.advance(P.TRAIN_BATCH_OPTIM_STEP)
    assert "TRAIN_START_EPOCH" in caught.value.hint
    assert machine.phase is P.INIT


@pytest.mark.parametrize("phase", [*P])
def test_a_checkpoint_is_cut_only_where_nothing_is_half_done(phase: TrainerPhase) -> None:
    assert (P.CHECKPOINT_SAVE_START in TRANSITIONS[phase]) == (phase in BOUNDARIES)


@pytest.mark.parametrize("phase", sorted(BOUNDARIES))
def test_after_a_checkpoint_comes_what_could_have_come_without_it(phase: TrainerPhase) -> None:
    machine = PhaseMachine(phase)
    before = machine.follows()
    walk(machine, *SAVE)
    assert machine.follows() == before
    assert machine.boundary is phase
    if P.CHECKPOINT_SAVE_START in machine.follows():
        walk(machine, *SAVE)
        assert machine.boundary is phase


@given(st.data())
def test_whatever_way_a_training_goes_its_history_is_allowed_and_bounded(data: st.DataObject) -> None:
    machine = PhaseMachine(remembered=8)
    way = [machine.phase]
    for _ in range(data.draw(st.integers(0, 40))):
        following = sorted(machine.follows())
        if not following:
            break
        machine.advance(data.draw(st.sampled_from(following)))
        way.append(machine.phase)
    assert list(machine.history) == way[-8:]
    if machine.phase is not P.CHECKPOINT_SAVE_START:
        assert PhaseMachine(machine.boundary).follows() == machine.follows()


MICRO = st.builds(
    TrainMicroState,
    micro_step=st.integers(0, 9),
    active_loader=st.none() | st.integers(0, 3),
    schedule_position=st.integers(0, 10**9),
    batches_done=st.integers(0, 10**9),
    loaders=st.none() | st.just({"given": [1, 2]}),
)
VAL = st.builds(ValMicroState, schedule_position=st.integers(0, 9), metrics=st.just({"loss": [1.5, 3]}))


@given(
    st.builds(
        ResumeState,
        phase=st.sampled_from(P),
        epoch=st.integers(0, 10**6),
        global_step=st.integers(0, 10**9),
        train=st.none() | MICRO,
        val=st.none() | VAL,
        timestamp=st.floats(0, 1e10),
    )
)
def test_a_state_reads_back_as_it_was(state: ResumeState) -> None:
    assert ResumeState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"version 'v2\.0', this program reads 1"):
        ResumeState.from_dict({**ResumeState().to_dict(), "version": "v2.0"})


@pytest.mark.parametrize("wrong", [{"phase": "asleep"}, {"train": {"steps": 1}}, {"when": 0}])
def test_a_state_with_wrong_parts_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="cannot be read"):
        ResumeState.from_dict({**ResumeState().to_dict(), **wrong})
