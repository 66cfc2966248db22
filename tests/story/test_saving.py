"""States of trainings come back bit for bit, whatever happens while they are written or to their files."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deaths import Killed
from hypothesis import given, settings
from hypothesis import strategies as st
from kept import Fatal

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import CommitRecord, FileRecord
from oellm_autoexp.checkpoints.store import DamagedError
from oellm_autoexp.errors import CheckpointError
from oellm_autoexp.trainer.saving import Saver
from oellm_autoexp.trainer.snapshot import Snapshots
from oellm_autoexp.trainer.summing import WIDTH, CheckingFile, ColumnSums, SummingFile


def record(step: int, kind: str = "regular", **metrics: float) -> CommitRecord:
    return CommitRecord(name=f"{step}.ckpt", step=step, epoch=0, kind=kind, metrics=metrics)


def state(step: int, size: int = 1000) -> dict[str, Any]:
    weights = torch.full((size,), float(step))
    return {"model": {"w": weights, "tied": weights.view(-1, 10)}, "step": step, "rng": torch.get_rng_state()}


def ignored(_name: str, _problem: str) -> None:
    """Where a test does not ask what is passed over."""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.requires_grad == other.requires_grad
            and torch.equal(bits(one), bits(other))
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    with Saver(LocalStore(tmp_path)) as made:
        yield made


def restored(root: Path, **options: Any) -> tuple[int, dict[str, Any], list[str]]:
    said: list[str] = []
    with Saver(LocalStore(root), **options) as reader:
        found = reader.restore(lambda name, problem: said.append(f"{name}: {problem}"))
    assert found is not None
    return found[0].step, found[1], said


# ---------------------------------------------------------------- what comes back

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any kind; also empty ones, scalars, transposed ones and views of others."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    made = torch.randint(0, 2, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()) and made.dim() > 1:
        made = made.transpose(0, 1)
    if draw(st.booleans()) and made.dim() and made.shape[0] > 1:
        made = made[1:]
    if made.is_floating_point() and draw(st.booleans()):
        return torch.nn.Parameter(made) if draw(st.booleans()) else made.requires_grad_()
    return made


LEAVES = (
    tensors()
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
STATES = st.dictionaries(
    st.text(),
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text() | st.integers(), inner)
            | st.dictionaries(st.text(), inner).map(OrderedDict)
        ),
        max_leaves=10,
    ),
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(STATES)
def test_any_state_comes_back_bit_for_bit(written: dict[str, Any]) -> None:
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as directory, Saver(LocalStore(directory)) as saver:
        for step, blocking in enumerate((False, True)):
            path = saver.save(written, record(step), blocking=blocking)
            saver.wait()
            assert same(saver.load(saver.store.records()[0]), written)
            assert same(torch.load(path, weights_only=False), written)
            assert saver.store.problems(saver.store.records()[0]) == ""


@settings(deadline=None, max_examples=40, derandomize=True)
@given(STATES)
def test_a_copy_is_the_same_and_shares_nothing(written: dict[str, Any]) -> None:
    copier = Snapshots()
    for _ in range(2):
        assert same(copier.take(written), written)


def test_tensors_that_share_memory_share_it_in_the_file(saver: Saver, tmp_path: Path) -> None:
    written = state(1, 100_000)
    for blocking in (False, True):
        loaded = saver.load(_saved(saver, written, blocking=blocking))
        loaded["model"]["w"][0] = 7.0
        assert loaded["model"]["tied"][0, 0] == 7.0
    torch.save(written, tmp_path / "raw")
    sizes = [each.size for each in saver.store.records()]
    assert max(sizes) < 1.01 * (tmp_path / "raw").stat().st_size


def _saved(saver: Saver, written: dict[str, Any], *, blocking: bool = False, step: int = 1) -> CommitRecord:
    saver.save(written, record(step), blocking=blocking)
    saver.wait()
    return saver.store.records()[0]


def test_large_tensors_at_odd_places_come_back(saver: Saver) -> None:
    """Read by several threads in chunks, beside small ones that are read with the rest of the file."""
    generator = torch.Generator().manual_seed(1)
    written = {
        name: torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        for name, size in [
            ("a", 3),
            ("b", 9_000_001),
            ("c", 2_000_003),
            ("d", 1 << 20),
            ("e", 4 << 20),
            ("f", 1),
        ]
    }
    found = saver.load(_saved(saver, written))
    assert all(torch.equal(found[name], value) for name, value in written.items())


def test_what_was_killed_in_the_middle_is_passed_over_in_silence(tmp_path: Path) -> None:
    """Killed at each write and rename of a save of some megabytes."""
    with Saver(LocalStore(tmp_path)) as saver:
        saver.save(state(1), record(1))
    at, deaths = 1, 0
    while True:
        disk = Fatal(at)
        dying = Saver(LocalStore(tmp_path, disk=disk), disk=disk, asynchronous=False)
        try:
            dying.save(state(2, 700_000), record(2))
            break
        except Killed:
            deaths += 1
        finally:
            dying.store.close()
        step, found, said = restored(tmp_path)
        assert (found["step"], said) == (step, [])
        assert same(found, state(step, 1000 if step == 1 else 700_000))
        at += 1
    assert deaths > 20


# ---------------------------------------------------------------- beside the training


class Held(Disk):
    """Waits before it writes, until it is let go; then does what it is told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.full = False

    def append(self, fd: int, data: memoryview, path: Path) -> None:
        assert self.go.wait(60)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(fd, data, path)


def test_what_happens_to_the_state_after_the_call_does_not_show(tmp_path: Path) -> None:
    disk = Held()
    with Saver(LocalStore(tmp_path), disk=disk) as saver:
        live = {**state(1), "list": [1, {"a": 2}]}
        before = {**state(1), "rng": live["rng"].clone(), "list": [1, {"a": 2}]}
        path = saver.save(live, record(1))
        live["model"]["w"].zero_()
        live["rng"].zero_()
        live["list"][1]["a"] = 3
        live["step"] = 5
        assert not saver.wait(timeout_s=0.0)
        assert not path.exists()
        disk.go.set()
        assert saver.wait()
        assert same(saver.load(path), before)


def test_the_next_save_waits_and_takes_over_the_memory(tmp_path: Path) -> None:
    disk = Held()
    told: list[int] = []
    with Saver(LocalStore(tmp_path), disk=disk, on_saved=lambda done, _: told.append(done.step)) as saver:
        saver.save(state(1), record(1))
        threading.Timer(0.05, disk.go.set).start()
        saver.save(state(2), record(2))
        assert told[:1] == [1]
    assert told == [1, 2]
    copier = Snapshots()
    first = copier.take(state(1))["model"]["w"].data_ptr()
    assert copier.take(state(2))["model"]["w"].data_ptr() == first


def test_a_full_disk_is_told_of_at_the_next_call_and_nothing_is_lost(tmp_path: Path) -> None:
    disk = Held()
    disk.go.set()
    with Saver(LocalStore(tmp_path), disk=disk) as saver:
        saver.save(state(1), record(1))
        saver.wait()
        disk.full = True
        saver.save(state(2), record(2))
        with pytest.raises(CheckpointError, match=r"2\.ckpt: could not be saved: No space left"):
            saver.save(state(3), record(3))
        with pytest.raises(CheckpointError, match=r"4\.ckpt: could not be saved"):
            saver.save(state(4), record(4), blocking=True)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".saving")] == []
        disk.full = False
        saver.save(state(5), record(5))
        saver.wait()
        disk.full = True
        saver.save(state(6), record(6))
        with pytest.raises(CheckpointError, match="could not be saved"):
            saver.close()
    assert restored(tmp_path)[0] == 5


def test_only_rank_0_writes(tmp_path: Path) -> None:
    with Saver(LocalStore(tmp_path), rank=1) as other:
        assert other.save(state(1), record(1)) == tmp_path / "1.ckpt"
    assert list(tmp_path.iterdir()) == []


def test_links_and_retention_follow_each_save(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    with Saver(
        LocalStore(tmp_path), keep=2, metric="val/loss", on_saved=lambda r, p: told.append((r.step, p.name))
    ) as saver:
        for step, loss in enumerate([3.0, 1.0, 2.0, 2.0, 2.0]):
            saver.save(state(step), record(step, **{"val/loss": loss}))
        saver.wait()
        assert saver.load("latest.ckpt")["step"] == 4
        assert saver.load(tmp_path / "best.ckpt")["step"] == 1
        assert [each.step for each in saver.store.records()] == [4, 3, 1]
    assert told == [(step, f"{step}.ckpt") for step in range(5)]


# ---------------------------------------------------------------- safe loading


class Custom:
    """A class that a file names."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom)

    __hash__ = object.__hash__


@pytest.mark.parametrize("value", [Custom(), deque([1]), Path("x"), random.Random(1)])
def test_what_needs_code_from_the_file_is_refused_before_it_is_written(value: Any, saver: Saver) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)state\['hooks'\]\[0\]\['x'\]: is a .*allow_pickle"):
        saver.save({"hooks": [{"x": value}]}, record(1))
    assert saver.restore(ignored) is None


def test_with_pickle_anything_is_saved_and_only_then_loaded(tmp_path: Path) -> None:
    with Saver(LocalStore(tmp_path), allow_pickle=True) as saver:
        path = saver.save({"x": Custom(), "y": deque([1])}, record(1))
        saver.wait()
        assert saver.load(path) == {"x": Custom(), "y": deque([1])}
    with Saver(LocalStore(tmp_path)) as safe, pytest.raises(CheckpointError, match="allow_pickle") as caught:
        safe.restore(ignored)
    assert not isinstance(caught.value, DamagedError)


def test_a_record_that_cannot_be_written_is_refused_at_once(saver: Saver) -> None:
    with pytest.raises(CheckpointError, match="the record cannot be written"):
        saver.save(state(1), CommitRecord(name="1.ckpt", step=1, epoch=0, extra={"x": object()}))


# ---------------------------------------------------------------- damage


@pytest.fixture
def two(tmp_path: Path) -> Path:
    with Saver(LocalStore(tmp_path)) as saver:
        for step in (1, 2):
            saver.save({**state(step, 500_000), "more": torch.arange(100)}, record(step))
    return tmp_path


def test_a_flipped_bit_anywhere_is_noticed(two: Path) -> None:
    """In headers, pickles, padding, tensors and the directory of the file: the one before is used."""
    path = two / "2.ckpt"
    whole = path.read_bytes()
    chances = random.Random(4)
    places = [*range(0, 200, 23), *range(len(whole) - 800, len(whole), 97)]
    places += [chances.randrange(len(whole)) for _ in range(20)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << chances.randrange(8)
        path.write_bytes(data)
        step, found, said = restored(two)
        assert (step, found["step"]) == (1, 1), place
        assert said == ["2.ckpt: 2.ckpt: its checksum is wrong"], place


def test_a_truncated_or_missing_file_is_passed_over(two: Path) -> None:
    os.truncate(two / "2.ckpt", 1_000_000)
    size = LocalStore(two).records()[0].size
    assert restored(two)[2] == [f"2.ckpt: 2.ckpt: 1000000 bytes in place of {size}"]
    (two / "2.ckpt").unlink()
    assert restored(two)[2] == ["2.ckpt: is not there any more"]
    (two / "1.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none is complete and undamaged") as caught:
        restored(two)
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in two.glob("*.ckpt")) == ["1.ckpt", "latest.ckpt"]


def test_a_damaged_one_is_not_loaded_by_its_path(two: Path) -> None:
    data = bytearray((two / "2.ckpt").read_bytes())
    data[1_000_000] ^= 1
    (two / "2.ckpt").write_bytes(data)
    with Saver(LocalStore(two / "elsewhere")) as saver:
        assert saver.load(two / "1.ckpt")["step"] == 1
        for name in ("2.ckpt", "latest.ckpt"):
            with pytest.raises(DamagedError, match="its checksum is wrong"):
                saver.load(two / name)
        with pytest.raises(DamagedError, match="is not there"):
            saver.load(two / "3.ckpt")
        torch.save({"a": 1}, two / "foreign.pt")
        torch.save([1], two / "list.pt")
        assert saver.load(two / "foreign.pt") == {"a": 1}
        with pytest.raises(CheckpointError, match="holds a list in place of a state"):
            saver.load(two / "list.pt")
        (two / "text.pt").write_text("no tensors")
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            saver.load(two / "text.pt")


def test_without_the_quick_sum_the_other_one_is_compared(two: Path) -> None:
    """As in records that another program made."""
    store = LocalStore(two)
    newest = store.records()[0]
    plain = CommitRecord(
        name=newest.name,
        step=newest.step,
        epoch=0,
        number=2,
        files=tuple(
            FileRecord(path=file.path, bytes=file.bytes, sha256=file.sha256) for file in newest.files
        ),
    )
    (two / plain.file_name).write_text(plain.to_json())
    assert restored(two)[0] == 2
    with (two / "2.ckpt").open("r+b") as file:
        file.write(b"X")
    assert restored(two)[0] == 1


# ---------------------------------------------------------------- sums


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.binary(max_size=300), st.integers(0, 3 * 8 * WIDTH), st.data())
def test_sums_do_not_depend_on_how_a_file_is_cut(end: bytes, size: int, data: st.DataObject) -> None:
    content = random.Random(size).randbytes(size) + end
    whole = ColumnSums()
    whole.add(0, memoryview(content))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    pieces = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
    total = ColumnSums()
    for first, last in data.draw(st.permutations(pieces)):
        part = ColumnSums()
        part.add(first, memoryview(bytearray(content[first:last])))
        total.merge(part)
    assert total.digest() == whole.digest()


def test_moved_and_repeated_pages_change_the_sums(tmp_path: Path) -> None:
    pages = [random.Random(number).randbytes(4096) for number in range(64)]

    def digest(order: list[int]) -> str:
        sums = ColumnSums()
        sums.add(0, memoryview(b"".join(pages[number] for number in order)))
        return sums.digest()

    whole = list(range(64))
    seen = {digest(whole)}
    for one in range(64):
        for other in (one - 1, one - 8, one - 31):
            swapped, repeated = list(whole), list(whole)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            repeated[one] = other % 64
            seen |= {digest(swapped), digest(repeated)}
    # A pair may be swapped from both its ends: -1, -8 and -31 name each pair of pages once.
    assert len(seen) == 1 + 64 * 3 * 2


def test_a_file_knows_its_sums_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = random.Random(1).randbytes(3_000_000)
    with SummingFile(path) as file:
        for start in range(0, 100_000, 7):
            file.write(content[start : min(100_000, start + 7)])
        file.write(memoryview(content)[100_000:])
        assert file.tell() == len(content)
    told = file.record("x")
    assert path.read_bytes() == content
    with CheckingFile(path, told) as file:
        assert file.problem() == ""
        assert file.seek(-3, os.SEEK_END) == len(content) - 3
        assert (file.read(10), file.read(10)) == (content[-3:], b"")
        file.seek(0)
        assert file.read(2_000_000) == content[:2_000_000]
