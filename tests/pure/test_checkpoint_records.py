"""A commit record comes back as it was, bad names are refused early, and retention keeps what matters."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.checkpoints.record import CommitRecord, FileRecord, NameTemplate
from oellm_autoexp.checkpoints.retention import best, superseded
from oellm_autoexp.core.experiment import CheckpointConfig
from oellm_autoexp.errors import CheckpointError

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)
FILES = st.builds(FileRecord, path=TEXT, bytes=st.integers(0), sha256=TEXT, quick=TEXT)
RECORDS = st.builds(
    CommitRecord,
    name=TEXT,
    step=st.integers(0),
    epoch=st.integers(0),
    kind=st.sampled_from(["regular", "emergency", "final"]),
    files=st.lists(FILES, max_size=3).map(tuple),
    metrics=st.dictionaries(TEXT, st.floats(allow_nan=False)),
    saved_at=st.floats(0, 1e10),
    world_size=st.integers(1),
    extra=st.dictionaries(TEXT, JSON),
    number=st.integers(0),
)


def record(number: int, step: int | None = None, kind: str = "regular", **metrics: float) -> CommitRecord:
    step = number if step is None else step
    return CommitRecord(name=f"{number}.ckpt", step=step, epoch=0, number=number, kind=kind, metrics=metrics)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(written: CommitRecord) -> None:
    assert CommitRecord.from_json(written.to_json()) == written


def test_a_value_that_is_no_number_comes_back() -> None:
    read = CommitRecord.from_json(record(1, loss=math.nan, top=math.inf).to_json())
    assert math.isnan(read.metrics["loss"])
    assert read.metrics["top"] == math.inf


@given(RECORDS, st.data())
def test_any_changed_or_missing_byte_is_noticed(written: CommitRecord, data: st.DataObject) -> None:
    text = written.to_json().encode()
    cut = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(ValueError, match="it"):
        CommitRecord.from_json(text[:cut])
    changed = bytearray(text)
    changed[data.draw(st.integers(0, len(text) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ValueError):
        assert CommitRecord.from_json(bytes(changed)) == written


def test_a_record_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2, and this program knows those up to 1"):
        CommitRecord.from_json(replace(record(1), format=2).to_json())


def test_what_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        record(1, kind="big")
    with pytest.raises(ValueError, match="must not be negative"):
        record(1, step=-1)


def test_the_default_name_is_that_of_the_config() -> None:
    template = NameTemplate(CheckpointConfig().filename_template)
    assert template.name(epoch=3, step=456, saved_at=0.0) == "epoch_003_step_000456.ckpt"
    assert NameTemplate("{timestamp}.ckpt").name(epoch=0, step=0, saved_at=1.7e9) == "1700000000.ckpt"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("s{steps}.ckpt", "there is no field {steps}\n  -> did you mean `step`?"),
        ("{step.real}", "there is no field {step.real}"),
        ("{step:q}", "makes no name"),
        ("{step", "written twice"),
        ("{}", "there is no field {}"),
        ("a/{step}", "is no name of a file"),
        (".{step}", "is hidden"),
        ("step-{step}.json", "is used for something else"),
        ("{step}" + "x" * 300, "is too long"),
        ("model.ckpt", "every checkpoint would have the same name"),
    ],
)
def test_a_template_that_makes_no_names_is_refused(text: str, what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        NameTemplate(text)
    assert what in str(caught.value)


def gone(records: list[CommitRecord], keep: int, *protect: str) -> list[str]:
    return [each.name for each in superseded(records, keep, protect)]


def test_the_last_ones_stay_and_what_is_protected() -> None:
    records = [record(n) for n in range(1, 6)]
    assert gone(records, 2) == ["1.ckpt", "2.ckpt", "3.ckpt"]
    assert gone(records, 2, "1.ckpt") == ["2.ckpt", "3.ckpt"]
    assert gone(records, 0) == ["1.ckpt", "2.ckpt", "3.ckpt", "4.ckpt"]
    assert gone([], 2) == []


def test_the_newest_is_the_last_one_that_was_saved_whatever_its_step() -> None:
    """A training that went back to step 10 goes on from what it saved then."""
    assert gone([record(1, step=10), record(2, step=30), record(3, step=20)], 1) == ["1.ckpt", "2.ckpt"]


def test_an_emergency_checkpoint_stays_until_a_regular_one_of_a_later_step() -> None:
    regular, emergency = record(1, step=10), record(2, step=15, kind="emergency")
    assert gone([regular, emergency], 1) == []
    assert gone([regular, emergency, record(3, step=12)], 2) == []
    assert gone([regular, emergency, record(3, step=20)], 2) == ["2.ckpt"]
    assert gone([regular, emergency, record(3, step=20, kind="final")], 2) == ["2.ckpt"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["regular", "emergency", "final"]))),
    st.integers(0, 4),
)
def test_the_newest_stays_always_and_enough_of_the_others(saves: list[tuple[int, str]], keep: int) -> None:
    records = [record(number, step, kind) for number, (step, kind) in enumerate(saves)]
    going = set(gone(records, keep))
    assert not records or records[-1].name not in going
    steady = [each for each in records if each.kind != "emergency"]
    assert len([each for each in steady if each.name not in going]) >= min(len(steady), max(1, keep))


def test_the_best_has_the_best_value_and_is_the_newest_of_equals() -> None:
    records = [
        record(1, loss=2.0),
        record(2, loss=1.0),
        record(3, loss=1.0),
        record(4, loss=math.nan),
        record(5),
    ]
    found, top = best(records, "loss"), best(records, "loss", "max")
    assert found is not None
    assert top is not None
    assert (found.name, top.name) == ("3.ckpt", "1.ckpt")
    assert best(records, "accuracy") is None
