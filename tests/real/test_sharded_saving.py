"""Processes that train together save their parts of one checkpoint, and find it again, also fewer of them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # Else each child imports it, for seconds.
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import CommitRecord
from oellm_autoexp.checkpoints.store import DamagedError
from oellm_autoexp.errors import CheckpointError
from oellm_autoexp.trainer import sharded
from oellm_autoexp.trainer.saving import Saver

#: What one process of a group does, with its rank; what it returns is compared.
Part = Callable[[int, Path], Any]


def record(step: int) -> CommitRecord:
    return CommitRecord(name=f"{step}.ckpt", step=step, epoch=0, world_size=2)


def whole(step: int) -> torch.Tensor:
    return torch.arange(4000, dtype=torch.float32).view(100, 40) * (step + 1)


def state(step: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "model": {"w": distribute_tensor(whole(step), mesh, [Shard(0)])},
        "step": step,
        "lrs": [0.1, step],
    }


def holds(loaded: dict[str, Any], step: int) -> bool:
    weights = loaded["model"]["w"]
    assert isinstance(weights, DTensor)
    return torch.equal(weights.full_tensor(), whole(step)) and loaded["lrs"] == [0.1, step]


def process(part: Part, rank: int, size: int, root: str, meeting: str, said: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        said.send(part(rank, Path(root)))
    except BaseException:  # noqa: BLE001 - the test is told
        said.send(AssertionError(traceback.format_exc()))
    finally:
        os._exit(0)


def together(part: Part, root: Path, size: int = 2) -> list[Any]:
    """What each of some processes returns."""
    fork = multiprocessing.get_context("fork")
    pipes, children = [], []
    # Where they met is of no use a second time.
    meeting = root.parent / f"meeting-{len(list(root.parent.iterdir()))}"
    for rank in range(size):
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=process, args=(part, rank, size, str(root), str(meeting), there))
        child.start()
        pipes.append(here)
        children.append(child)
    answers = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def saver(rank: int, root: Path, **options: Any) -> Saver:
    return Saver(LocalStore(root), shards=True, rank=rank, **options)


def restored(rank: int, root: Path) -> tuple[int, bool, list[str]]:
    said: list[str] = []
    weights = state(99)["model"]["w"]
    with saver(rank, root) as reader:
        found = reader.restore(
            lambda name, problem: said.append(f"{name}: {problem}"),
            like=lambda place: weights if place == ("model", "w") else None,
        )
        assert found is not None
        return found[0].step, holds(found[1], found[0].step), said


def save_two(rank: int, root: Path) -> list[str]:
    """One beside the training, whose state changes at once, and one that is waited for."""
    with saver(rank, root) as writer:
        first = state(1)
        writer.save(first, record(1))
        first["model"]["w"].to_local().zero_()
        path = writer.save(state(2), record(2), blocking=True)
        assert path.is_dir()
    return [file.path for each in LocalStore(root).records() for file in each.files]


def test_all_parts_are_saved_and_come_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    names = together(save_two, root)
    assert names[0] == names[1]
    assert sorted(names[0][:3]) == ["2.ckpt/.metadata", "2.ckpt/__0_0.distcp", "2.ckpt/__1_0.distcp"]
    store = LocalStore(root)
    assert [store.problems(each) for each in store.records()] == ["", ""]
    assert together(restored, root) == [(2, True, [])] * 2
    # Fewer processes, another time.
    assert together(restored, root, size=1) == [(2, True, [])]
    os.truncate(root / "2.ckpt" / "__1_0.distcp", 100)
    size = next(file.bytes for file in store.records()[0].files if "__1_0" in file.path)
    problem = f"2.ckpt: 2.ckpt/__1_0.distcp: 100 bytes in place of {size}"
    assert together(restored, root) == [(1, True, [problem]), (1, True, [])]
    for path in (root / "1.ckpt").glob("*.distcp"):
        path.unlink()
    assert all("none is complete and undamaged" in said for said in together(refused, root))


def refused(rank: int, root: Path) -> str:
    with saver(rank, root) as reader, pytest.raises(CheckpointError) as caught:
        reader.restore(lambda _name, _problem: None)
    return str(caught.value)


class Full(Disk):
    """Has no room for what is large."""

    def append(self, fd: int, data: memoryview, path: Path) -> None:
        if len(data) > 5000:
            raise OSError(28, "No space left on device")
        super().append(fd, data, path)


def run_out_of_space(rank: int, root: Path) -> list[str]:
    """Only the disk of rank 1 is full; both are told."""
    said = []
    with saver(rank, root, disk=Full() if rank else None) as writer:
        for blocking in (True, False):
            with pytest.raises(CheckpointError) as caught:
                writer.save(state(1), record(1), blocking=blocking)
                writer.wait()
            said.append(str(caught.value))
    return said


def test_where_one_process_fails_none_has_a_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for said in together(run_out_of_space, root):
        assert all("could not be saved: rank 1: [Errno 28] No space left on device" in each for each in said)
    assert LocalStore(root).records() == []
    assert [path.name for path in root.iterdir()] == [".lock"]


def whole_by_rank_0(rank: int, root: Path) -> tuple[int, int, list[str]]:
    """Without shards rank 0 writes, and all of them read."""
    said: list[str] = []
    with Saver(LocalStore(root), rank=rank) as one:
        for step in (1, 2):
            one.save({"step": step, "w": torch.ones(5)}, record(step))
        one.wait()
        dist.barrier()
        if rank == 0:
            os.truncate(root / "2.ckpt", 100)
        dist.barrier()
        found = one.restore(lambda name, _problem: said.append(name))
        assert found is not None
        return found[0].step, found[1]["step"], said


def test_all_ranks_use_the_same_checkpoint(tmp_path: Path) -> None:
    assert together(whole_by_rank_0, tmp_path / "root") == [(1, 1, ["2.ckpt"]), (1, 1, [])]


def save_one(rank: int, root: Path) -> None:
    with saver(rank, root) as writer:
        writer.save({**state(1), "plain": torch.ones(3)}, record(1))


def refused_objects(rank: int, root: Path) -> str:
    with saver(rank, root) as writer, pytest.raises(CheckpointError) as caught:
        writer.save({**state(1), "path": root}, record(1))
    return str(caught.value)


def test_a_process_alone_reads_what_is_whole(tmp_path: Path) -> None:
    """As a notebook does; but it writes no shards."""
    root = tmp_path / "root"
    together(save_one, root)
    with Saver(LocalStore(root)) as alone:
        found = alone.load("1.ckpt")
        assert type(found["model"]["w"]) is torch.Tensor
        assert torch.equal(found["model"]["w"], whole(1))
        assert (found["step"], found["lrs"], found["plain"].tolist()) == (1, [0.1, 1], [1, 1, 1])
        (root / "1.ckpt" / ".metadata").write_bytes(b"")
        with pytest.raises(DamagedError, match="0 bytes in place of"):
            alone.load("1.ckpt")
    with pytest.raises(CheckpointError, match="shards are written by processes that train together"):
        Saver(LocalStore(root), shards=True)


def test_shards_of_another_program_are_told(tmp_path: Path) -> None:
    """What torch alone has written lacks the rest of the state."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        save_state_dict({"w": torch.ones(3)}, storage_writer=FileSystemWriter(tmp_path / "torch"))
    with pytest.raises(CheckpointError, match="is no checkpoint of this program"):
        sharded.read(tmp_path / "torch", None, torch.load, sharded.whole)


def test_objects_that_only_code_makes_again_are_refused_by_all(tmp_path: Path) -> None:
    for said in together(refused_objects, tmp_path / "root"):
        assert "state['path']" in said


def spread_whole(_rank: int, _root: Path) -> list[Any]:
    """A state of whole tensors becomes one whose tensors are spread as wanted."""
    wanted = state(0)["model"]["w"]
    found = sharded.spread(
        {"model": {"w": whole(3), "other": torch.ones(2)}},
        lambda place: wanted if place == ("model", "w") else None,
    )["model"]
    return [
        type(found["w"]) is DTensor,
        torch.equal(found["w"].full_tensor(), whole(3)),
        type(found["other"]),
    ]


def test_whole_tensors_are_spread(tmp_path: Path) -> None:
    assert together(spread_whole, tmp_path / "root") == [[True, True, torch.Tensor]] * 2
