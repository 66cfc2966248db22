"""Saves that are killed at any moment, files that are damaged: what was said to be saved can be read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deaths import Killed
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kept import Fatal, described, hold, save

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.owner import Owner
from oellm_autoexp.checkpoints.record import CommitRecord
from oellm_autoexp.errors import CheckpointError

EXAMPLES = int(os.environ.get("AUTOEXP_EXAMPLES", "60"))


def skipped(store: LocalStore) -> tuple[CommitRecord | None, list[str]]:
    said: list[str] = []
    return store.newest(lambda name, problem: said.append(f"{name}: {problem}")), said


def temporary(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def seen(root: Path) -> dict[str, bytes]:
    """The content of each checkpoint that a reader would find, which must be complete."""
    store = LocalStore(root)
    assert store.damage() == []
    records = store.records()
    for record in records:
        assert store.problems(record) == ""
    return {record.name: content(root / record.name) for record in records}


def content(path: Path) -> bytes:
    """All bytes of a checkpoint."""
    return b"".join(each.read_bytes() for each in (sorted(path.iterdir()) if path.is_dir() else [path]))


# ---------------------------------------------------------------- killed


def first(root: Path, disk: Disk) -> None:
    """Nothing is there before."""
    with LocalStore(root, disk=disk) as store:
        save(store, 1, b"one")


def again(root: Path, disk: Disk) -> None:
    """A step is saved once more, as a training that went back does."""
    with LocalStore(root, disk=disk) as store:
        save(store, 1, b"another", shards=2)


def kept(root: Path, disk: Disk) -> None:
    """The next step, and retention."""
    with LocalStore(root, disk=disk) as store:
        save(store, 2, b"two")
        store.link("002.ckpt", "best.ckpt")
        store.retain(1)


@pytest.mark.parametrize("act", [first, again, kept])
def test_a_death_at_any_change_loses_nothing_and_leaves_nothing(act: Any, tmp_path: Path) -> None:
    """Killed before and after each change: the checkpoints are those of before or of after, each complete."""
    before, whole = tmp_path / "before", tmp_path / "whole"
    if act is not first:
        with LocalStore(before) as store:
            save(store, 0, b"zero", shards=2)
            save(store, 1, b"one")
    else:
        before.mkdir()
    old = seen(before)
    shutil.copytree(before, whole, symlinks=True)
    count = Fatal()
    act(whole, count)
    new = seen(whole)
    assert new != old
    assert temporary(whole) == []
    outcomes = set()
    for at in range(1, len(count.names) + 1):
        root = tmp_path / str(at)
        shutil.copytree(before, root, symlinks=True)
        with pytest.raises(Killed):
            act(root, Fatal(at))
        found = seen(root)
        outcomes.add(frozenset(found.values()))
        latest = root / "latest.ckpt"
        assert not latest.is_symlink() or content(latest) in {*old.values(), *new.values()}
        # Each of the old ones is there, unless what replaces it is; what is there of the new ones is whole.
        assert set(found.values()) <= {*old.values(), *new.values()}, count.names[at - 1]
        if act is not kept:
            assert found in (old, new), count.names[at - 1]
        assert set(new.values()) & set(old.values()) <= set(found.values())
        with LocalStore(root) as store:
            save(store, 9, b"later")
        assert temporary(root) == []
        assert seen(root) == {**found, "009.ckpt": b"later"}
        # Nothing is left that no record tells of.
        data = {path.name for path in root.iterdir() if path.suffix == ".ckpt" and not path.is_symlink()}
        assert data == {record.name for record in LocalStore(root).records()}
    assert len(outcomes) > 1


def test_a_save_reaches_the_disk_in_the_order_that_power_cuts_need(tmp_path: Path) -> None:
    """Data before its name, its name before the record, the record before anything goes."""
    with LocalStore(tmp_path) as store:
        save(store, 1, b"one")
    disk = Fatal()
    with LocalStore(tmp_path, disk=disk) as store:
        staged = store.stage("1.ckpt")
        staged.write_bytes(b"other")
        store.commit(staged, described(staged, "1.ckpt", 1))
    root = tmp_path.name
    order = [
        "sync:after 1.ckpt",
        "write:after record.json",
        "rename:before 1.ckpt",
        f"sync:after {root}",
        "rename:before record.json",
        f"sync:after {root}",
        "remove:before 001.ckpt",
    ]
    names = iter(disk.names)
    assert all(step in names for step in order), disk.names


def trainer(root: str, ready: Any) -> None:
    """Saves, forks a worker, and waits for its death in the middle of the next save."""
    store = LocalStore(root)
    save(store, 1, b"one")
    store.stage("2.ckpt").write_bytes(b"hal")
    worker = os.fork()
    if worker == 0:
        ready.send(os.getpid())
    signal.pause()


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """A trainer that lives, and whose worker goes on living when it is killed."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=trainer, args=(str(tmp_path), there))
    process.start()
    worker = here.recv()
    yield process
    process.kill()
    process.join()
    os.kill(worker, signal.SIGKILL)


def test_what_a_killed_process_was_writing_is_removed_by_the_next_save(
    killed: multiprocessing.process.BaseProcess, tmp_path: Path
) -> None:
    """While it lives nobody else may write; its death gives the lock back, whatever its workers do."""
    store = LocalStore(tmp_path)
    with pytest.raises(CheckpointError, match=rf"another training \(process {killed.pid} on .*\) writes"):
        store.stage("3.ckpt")
    assert len(temporary(tmp_path)) == 1
    killed.kill()
    killed.join()
    save(store, 3, b"three")
    store.close()
    assert temporary(tmp_path) == []
    assert seen(tmp_path) == {"001.ckpt": b"one", "003.ckpt": b"three"}


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as one, LocalStore(tmp_path) as two:
        record = save(one, 1, b"one")
        for change in (
            lambda: two.stage("2.ckpt"),
            lambda: two.delete(record),
            lambda: two.link("001.ckpt", "best.ckpt"),
        ):
            with pytest.raises(CheckpointError, match="another training"):
                change()
        assert two.records() == [record]


@pytest.mark.parametrize(("host", "boot", "stays"), [("elsewhere", "b", True), (None, "before", False)])
def test_only_what_the_dead_have_left_is_removed(
    host: str | None, boot: str, stays: bool, tmp_path: Path
) -> None:
    """Of another host nothing is known until it has not changed for long; a boot ends every process."""
    owner = Owner(1, "7", boot, host or Owner.this_process().host)
    left = tmp_path / f".saving-abcd.{owner}"
    left.mkdir()
    (left / "x.ckpt").write_bytes(b"half")
    with LocalStore(tmp_path) as store:
        save(store, 1, b"one")
    assert left.exists() is stays
    for path in (left / "x.ckpt", left):
        if stays:
            os.utime(path, (1.0, 1.0))
    with LocalStore(tmp_path) as store:
        save(store, 2, b"two")
    assert temporary(tmp_path) == []


# ---------------------------------------------------------------- damaged


@pytest.fixture
def three(tmp_path: Path) -> LocalStore:
    with LocalStore(tmp_path) as store:
        for step in (1, 2, 3):
            save(store, step, b"x" * 1000 + bytes([step]), shards=2 if step == 2 else 0)
    return store


def test_the_newest_that_is_whole_is_used_and_the_others_are_named(three: LocalStore) -> None:
    root = three.root
    assert skipped(three)[0] == three.records()[0]
    data = bytearray((root / "003.ckpt").read_bytes())
    data[500] ^= 4
    (root / "003.ckpt").write_bytes(data)
    found, said = skipped(three)
    assert found is not None
    assert (found.step, said) == (2, ["003.ckpt: 003.ckpt: its checksum is wrong"])
    (root / "002.ckpt" / "1.part").unlink()
    found, said = skipped(three)
    assert found is not None
    assert (found.step, said[1]) == (1, "002.ckpt: 002.ckpt/1.part: No such file or directory")


def test_a_truncated_file_is_passed_over_without_being_read(three: LocalStore) -> None:
    os.truncate(three.root / "003.ckpt", 900)
    assert skipped(three)[1] == ["003.ckpt: 003.ckpt: 900 bytes in place of 1001"]


def test_a_damaged_record_is_told_of(three: LocalStore) -> None:
    os.truncate(three.root / "step-000003.json", 40)
    (three.root / "step-000002.json").write_bytes(
        (three.root / "step-000002.json").read_bytes().replace(b'"epoch": 0', b'"epoch": 1')
    )
    shutil.copy(three.root / "step-000001.json", three.root / "step-000007.json")
    found, said = skipped(three)
    assert found is not None
    assert found.step == 1
    assert said == [
        "step-000002.json: its checksum is wrong",
        "step-000003.json: it is no commit record (JSONDecodeError)",
        "step-000007.json: it is the record of '001.ckpt', step 1",
    ]


def test_where_all_are_damaged_nothing_is_touched(three: LocalStore) -> None:
    for path in [three.root / "001.ckpt", three.root / "003.ckpt", *(three.root / "002.ckpt").iterdir()]:
        path.write_bytes(b"")
    names = sorted(three.root.rglob("*"))
    with pytest.raises(CheckpointError, match="none is complete and undamaged") as caught:
        skipped(three)
    assert caught.value.exit_code == 3
    assert sorted(three.root.rglob("*")) == names


def test_a_link_without_records_is_no_empty_directory(three: LocalStore) -> None:
    """Somebody has removed the records: to begin anew would lose the training."""
    for path in three.root.glob("step-*.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="none is complete"):
        skipped(three)
    assert skipped(LocalStore(three.root / "none")) == (None, [])


# ---------------------------------------------------------------- retention, links, readers


def test_what_is_being_read_is_not_removed(three: LocalStore) -> None:
    one = three.records()[-1]
    with LocalStore(three.root) as store:
        with three.reading(one) as path:
            assert [each.step for each in store.retain(1)] == [2]
            assert path.read_bytes()
        assert [each.step for each in store.retain(1)] == [1]
        with pytest.raises(CheckpointError, match="not there any more"), three.reading(one):
            pass


def test_what_is_replaced_while_it_is_read_goes_later(three: LocalStore) -> None:
    newest = three.records()[0]
    with LocalStore(three.root) as store:
        with three.reading(newest) as path:
            save(store, 3, b"again")
            assert path.read_bytes().startswith(b"xxx")
            assert store.linked("latest.ckpt") == "003-2.ckpt"
        save(store, 4, b"next")
        assert not path.exists()
        assert temporary(three.root) == []
        assert [each.name for each in store.records()][:2] == ["004.ckpt", "003-2.ckpt"]


def test_links_lead_to_what_is_there(three: LocalStore) -> None:
    with LocalStore(three.root) as store:
        store.link("001.ckpt", "best.ckpt")
        assert (three.root / "best.ckpt").read_bytes() == (three.root / "001.ckpt").read_bytes()
        assert [each.step for each in store.retain(1)] == [2]
        three_, one = store.records()
        assert store.delete(one)
        assert store.linked("best.ckpt") is None
        save(store, 4, b"four")
        store.delete(store.records()[0])
        assert store.linked("latest.ckpt") == three_.name
        with pytest.raises(ValueError, match="alias must be one of"):
            store.link("003.ckpt", "newest")


def test_without_symbolic_links_a_file_holds_the_name(tmp_path: Path) -> None:
    class Plain(Disk):
        def symlink(self, path: Path, target: str) -> None:
            raise PermissionError

    with LocalStore(tmp_path, disk=Plain()) as store:
        save(store, 1, b"one")
        save(store, 2, b"two")
        assert (tmp_path / "latest.ckpt").read_text() == "002.ckpt\n"
        assert store.linked("latest.ckpt") == "002.ckpt"


def test_two_checkpoints_with_one_name_are_both_kept(tmp_path: Path) -> None:
    """A template without {step} makes the same name for two steps of an epoch."""
    with LocalStore(tmp_path) as store:
        for step in (1, 2):
            staged = store.stage("epoch_0.ckpt")
            staged.write_bytes(bytes([step]))
            store.commit(staged, described(staged, "epoch_0.ckpt", step))
        assert [each.name for each in store.records()] == ["epoch_0-2.ckpt", "epoch_0.ckpt"]
        assert [hold(store, each)[""] for each in store.records()] == [b"\2", b"\1"]


def test_what_differs_from_its_record_is_not_committed(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        staged = store.stage("1.ckpt")
        staged.write_bytes(b"one")
        record = described(staged, "1.ckpt", 1)
        staged.write_bytes(b"on")
        with pytest.raises(CheckpointError, match="has 2 bytes, and 3 were written"):
            store.commit(staged, record)
        staged.unlink()
        with pytest.raises(CheckpointError, match=r"differ: 1\.ckpt"):
            store.commit(staged, record)
        store.abandon(staged)
        with pytest.raises(CheckpointError, match="was not staged here"):
            store.commit(staged, record)
        with pytest.raises(CheckpointError, match="is hidden"):
            store.stage(".x")
        assert store.records() == []
        assert temporary(tmp_path) == []


# ---------------------------------------------------------------- anything, in any order


class Trainings(RuleBasedStateMachine):
    """Trainings that save into one directory, die, and find it again, while files are damaged and read.

    `saved` is what was ever reported as saved and was not removed on purpose, by number of commit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
        self.store = LocalStore(self.root)
        self.saved: dict[int, tuple[CommitRecord, dict[str, bytes]]] = {}
        self.damaged: set[int] = set()
        self.readers: dict[int, contextlib.ExitStack] = {}
        self.count = 0

    def _next(self) -> bytes:
        self.count += 1
        return f"content {self.count} ".encode() * 20

    def _forget(self, *records: CommitRecord) -> None:
        for record in records:
            self.saved.pop(record.number, None)
            self.damaged.discard(record.number)

    def _note(self, record: CommitRecord) -> None:
        self._forget(*[old for old, _ in self.saved.values() if old.step == record.step])
        self.saved[record.number] = (record, hold(LocalStore(self.root), record))

    @rule(step=st.integers(0, 5), kind=st.sampled_from(["regular", "emergency"]), shards=st.integers(0, 2))
    def save(self, step: int, kind: str, shards: int) -> None:
        self._note(save(self.store, step, self._next(), kind, shards=shards))

    @rule(
        step=st.integers(0, 5),
        shards=st.integers(0, 2),
        at=st.integers(1, 40),
        keep=st.none() | st.integers(1, 3),
    )
    def die(self, step: int, shards: int, at: int, keep: int | None) -> None:
        """A save, perhaps with retention, killed at some change; or the lock's holder dies between saves."""
        self.store.close()
        dying = LocalStore(self.root, disk=Fatal(at))
        before = {record.number for record in dying.records()}
        data = self._next()
        with contextlib.suppress(Killed):
            save(dying, step, data, shards=shards)
            if keep is not None:
                dying.retain(keep)
        dying.close()
        # What was not reported may be there or not; if so, it is what was to be saved.
        left = {record.number: record for record in dying.records()}
        for number in left.keys() - before:
            assert all(part.startswith(data) for part in hold(dying, left[number]).values())
            self._note(left[number])
        gone = [record for number, (record, _) in self.saved.items() if number not in left]
        assert not gone or keep is not None
        newest = max(self.saved, default=None)
        assert newest is None or newest in left
        self._forget(*gone)
        self.store = LocalStore(self.root)

    @rule(keep=st.integers(1, 3))
    def retain(self, keep: int) -> None:
        linked = self.store.linked("latest.ckpt")
        gone = self.store.retain(keep)
        assert all(record.number not in self.readers for record in gone)
        assert linked not in {record.name for record in gone}
        self._forget(*gone)

    @precondition(lambda self: self.saved.keys() - self.damaged - self.readers.keys())
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.saved.keys() - self.damaged - self.readers.keys())))
        record, _ = self.saved[number]
        path = self.root / data.draw(st.sampled_from([file.path for file in record.files]))
        how = data.draw(st.sampled_from(["flip", "cut", "lose"]))
        content = bytearray(path.read_bytes())
        if how == "lose":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
        self.damaged.add(number)

    @precondition(lambda self: self.saved.keys() - self.damaged - self.readers.keys())
    @rule(data=st.data())
    def begin_reading(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.saved.keys() - self.damaged - self.readers.keys())))
        stack = contextlib.ExitStack()
        stack.enter_context(LocalStore(self.root).reading(self.saved[number][0]))
        self.readers[number] = stack

    @precondition(lambda self: self.readers)
    @rule()
    def end_reading(self) -> None:
        self.readers.popitem()[1].close()

    @invariant()
    def what_was_saved_can_be_read(self) -> None:
        reader = LocalStore(self.root)
        records = {record.number: record for record in reader.records()}
        assert records.keys() == self.saved.keys()
        for number, (record, content) in self.saved.items():
            if number not in self.damaged:
                assert hold(reader, record) == content
        whole = sorted(self.saved.keys() - self.damaged)
        said: list[str] = []
        if whole:
            found = reader.newest(lambda name, _: said.append(name))
            assert found is not None
            assert found.number == whole[-1]
            assert said == [records[n].name for n in sorted(records, reverse=True) if n > whole[-1]]
        elif records:
            with pytest.raises(CheckpointError):
                reader.newest(lambda _name, _problem: None)

    @invariant()
    def latest_leads_to_one_that_was_committed(self) -> None:
        """Or, where a replacement died, to what it replaces, until the next save."""
        latest = self.root / "latest.ckpt"
        assert latest.exists() or self.damaged or not latest.is_symlink()

    def teardown(self) -> None:
        for stack in self.readers.values():
            stack.close()
        self.store.close()
        self._stack.close()


TestTrainings = Trainings.TestCase
TestTrainings.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="AUTOEXP_EXAMPLES" not in os.environ,
)
