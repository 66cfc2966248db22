"""Checkpoints of which each process writes its part: torch.distributed.checkpoint into one directory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.record import FileRecord
from oellm_autoexp.errors import CheckpointError
from oellm_autoexp.trainer.summing import CheckingFile, SummingFile


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


def read(into: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> None:
    """Fill the tensors of a state, and replace its other values.

    Raises:
        CheckpointError: the checkpoint is of another form.
    """
    reader = FileSystemReader(path)
    with _named(f"{path.name} cannot be loaded"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(into, storage_reader=reader, process_group=group, no_dist=not dist.is_initialized())


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
