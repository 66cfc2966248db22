"""Checkpoints of which each process writes its part: torch.distributed.checkpoint into one directory.

A state is taken apart: each tensor that is spread over processes (a DTensor) is written by all of them, under
its keys joined by `/`; the rest, with a note where each of these was, by rank 0.
"""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.record import FileRecord
from oellm_autoexp.errors import CheckpointError
from oellm_autoexp.trainer.summing import CheckingFile, SummingFile

#: The keys that lead to a value within a state.
Place = tuple[Any, ...]
#: The tensor of a training whose shape and spread a tensor of a state has; None where there is no such.
Like = Callable[[Place], Tensor | None]

#: What stands in the rest of a state for a tensor that is written by all processes.
_NOTE = "__shard__"
_REST = "rest"


def whole(_place: Place) -> Tensor | None:
    """For a reader that has no training: every tensor is whole."""
    return None


def _each(value: Any, change: Callable[[Any, Place], Any], place: Place = ()) -> Any:
    """A state in which `change` has replaced what it wanted; what it returns as it was is gone through."""
    changed = change(value, place)
    if changed is not value:
        return changed
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _each(item, change, (*place, key))) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_each(item, change, (*place, number)) for number, item in enumerate(value))
    return value


def apart(state: Mapping[str, Any]) -> tuple[dict[str, DTensor], dict[str, Any]]:
    """The tensors that are spread over processes, and the rest of a state."""
    parts: dict[str, DTensor] = {}

    def note(value: Any, place: Place) -> Any:
        if not isinstance(value, DTensor):
            return value
        key = "/".join(map(str, place))
        while key in parts or key == _REST:
            key += "'"
        parts[key] = value
        return {_NOTE: key, "size": list(value.shape), "dtype": value.dtype}

    return parts, _each(dict(state), note)


def as_written(parts: Mapping[str, DTensor], rest: bytes | None) -> dict[str, Tensor]:
    """What this process hands over to be written; `rest`: of rank 0, the rest of the state in bytes."""
    if rest is None:
        return dict(parts)
    return {**parts, _REST: torch.frombuffer(bytearray(rest), dtype=torch.uint8)}


def spread(state: dict[str, Any], like: Like) -> dict[str, Any]:
    """A state in which whole tensors are spread as those of the training are."""

    def change(value: Any, place: Place) -> Any:
        wanted = like(place) if isinstance(value, Tensor) and not isinstance(value, DTensor) else None
        if not isinstance(wanted, DTensor) or wanted.shape != value.shape:
            return value
        # Each process has the whole tensor, and keeps its part.
        return distribute_tensor(value, wanted.device_mesh, wanted.placements, src_data_rank=None)

    changed: dict[str, Any] = _each(state, change)
    return changed


class _SummingFileSystem(FileSystem):
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with SummingFile(Path(path), self._disk) as file:
            yield file
        self.records[Path(path).name] = file.record(Path(path).name)

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


class ShardWriter(FileSystemWriter):
    """Writes this process's files, and sums them meanwhile."""

    def __init__(self, path: Path, disk: Disk) -> None:
        # Files are synced when they are closed; before that some bytes are still in a buffer.
        super().__init__(path, sync_files=False, overwrite=False)
        self._summing = _SummingFileSystem(disk)
        self.fs = self._summing

    def records(self, name: str) -> list[FileRecord]:
        """Of the files that were written, below a directory that is to be called `name`."""
        return [replace(file, path=f"{name}/{own}") for own, file in self._summing.records.items()]


def write(state: dict[str, Any], writer: ShardWriter, group: dist.ProcessGroup | None) -> None:
    """Write a state together with the other processes of the group.

    Raises:
        CheckpointError: one of them could not; in all of them.
    """
    with _named("could not be saved"):
        save(state, storage_writer=writer, process_group=group)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Torch's error is no Exception, and holds the tracebacks of all processes."""
    try:
        yield
    except CheckpointException as error:
        why = "; ".join(f"rank {rank}: {each[0]}" for rank, each in sorted(error.failures.items()))
        raise CheckpointError(f"{what}: {why}") from error


def problem(root: Path, files: tuple[FileRecord, ...]) -> str:
    """What is wrong with some files of a checkpoint; "" where nothing is."""
    for file in files:
        try:
            with CheckingFile(root / file.path, file) as stream:
                found = stream.problem()
        except (OSError, EOFError) as error:
            return f"{file.path}: {error}"
        if found:
            return found
    return ""


def read(
    path: Path, group: dist.ProcessGroup | None, loads: Callable[[io.BytesIO], dict[str, Any]], like: Like
) -> dict[str, Any]:
    """The state; each tensor spread as `like` says. `loads` makes the rest from its bytes.

    Raises:
        CheckpointError: the checkpoint is of another form.
    """
    reader = FileSystemReader(path)
    sizes = reader.read_metadata().state_dict_metadata
    if _REST not in sizes:
        what = f"is no checkpoint of this program: it has no {_REST!r}"
        hint = (
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes a file of any such directory"
        )
        raise CheckpointError(what, where=str(path), hint=hint)
    packed = {_REST: torch.empty(sizes[_REST].size, dtype=torch.uint8)}  # type: ignore[union-attr]
    _fill(packed, reader, path, group)
    rest = loads(io.BytesIO(packed[_REST].numpy().tobytes()))
    parts: dict[str, Tensor] = {}

    def make(value: Any, place: Place) -> Any:
        if type(value) is not dict or _NOTE not in value:
            return value
        wanted, size = like(place), torch.Size(value["size"])
        if wanted is not None and wanted.shape == size:
            made = torch.empty_like(wanted.detach(), dtype=value["dtype"], requires_grad=False)
        else:
            made = torch.empty(size, dtype=value["dtype"])
        parts[value[_NOTE]] = made
        return made

    state: dict[str, Any] = _each(rest, make)
    if parts:
        _fill(parts, reader, path, group)
    return state


def _fill(
    tensors: dict[str, Tensor], reader: FileSystemReader, path: Path, group: dist.ProcessGroup | None
) -> None:
    with _named(f"{path.name} cannot be loaded"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(dict(tensors), storage_reader=reader, process_group=group, no_dist=not dist.is_initialized())


def gathered(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """The value of each process."""
    if not dist.is_available() or not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def told(value: Any, group: dist.ProcessGroup | None) -> Any:
    """The value of rank 0."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]
