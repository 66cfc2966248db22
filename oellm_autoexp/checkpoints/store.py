"""The socket of places for checkpoints; `local.LocalStore` is the one there is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from oellm_autoexp.checkpoints.record import CommitRecord
from oellm_autoexp.errors import CheckpointError

#: Is told the name of what is passed over, and what is wrong with it.
OnSkip = Callable[[str, str], None]
#: What is wrong with a checkpoint; "" where nothing is.
Check = Callable[[CommitRecord], str]


class DamagedError(CheckpointError):
    """A checkpoint is not what its record says."""


class CheckpointStore(Protocol):
    """Where checkpoints are: one writer at a time, any number of readers.

    What a writer calls it calls from one thread at a time.
    """

    def claim(self) -> None:
        """Be the one that writes, until `close`.

        Raises:
            CheckpointError: another process writes here, or nobody can.
        """
        ...

    def stage(self, name: str) -> Path:
        """A path for a new file or directory, that nobody else uses; its last part is the checkpoint's name.

        That is `name`, or `name` with a suffix where there is one already. What earlier writers left half
        done is removed first.

        Raises:
            CheckpointError: another process writes here, or it is no name for a checkpoint.
        """
        ...

    def commit(self, staged: Path, record: CommitRecord) -> Path:
        """Make what was staged a checkpoint, durably; where it is now. It replaces one of the same step.

        `record.files` are the files below `staged`, with the checksums of what was meant to be written.

        Raises:
            CheckpointError: the files are not those of the record.
        """
        ...

    def abandon(self, staged: Path) -> None:
        """Remove what was staged."""
        ...

    def records(self) -> list[CommitRecord]:
        """Of all checkpoints that were committed, newest first."""
        ...

    def damage(self) -> list[tuple[str, str]]:
        """Records that cannot be read, by name, and what is wrong with them."""
        ...

    def problems(self, record: CommitRecord) -> str:
        """The file that differs from its record, and how; "" where sizes and checksums are right.

        All of it is read.
        """
        ...

    def verified(self, record: CommitRecord) -> bool:
        """Whether there are no `problems`."""
        ...

    def reading(self, record: CommitRecord) -> AbstractContextManager[Path]:
        """Where it is. Meanwhile nobody removes it.

        Raises:
            DamagedError: it is not there.
        """
        ...

    def delete(self, record: CommitRecord) -> bool:
        """Remove a checkpoint and the names that lead to it; False where it is being read."""
        ...

    def retain(self, keep: int, protect: Collection[str] = ()) -> list[CommitRecord]:
        """Delete what is superseded (`retention.superseded`); what was deleted."""
        ...

    def newest(self, on_skip: OnSkip, check: Check | None = None) -> CommitRecord | None:
        """The newest one that `check` (else `problems`) finds in order; None where there was never one.

        Raises:
            CheckpointError: there are some, and none verifies. They stay as they are.
        """
        ...

    def link(self, name: str, alias: str) -> None:
        """Let `latest.ckpt` or `best.ckpt` lead to a checkpoint."""
        ...

    def linked(self, alias: str) -> str | None:
        """The name of the checkpoint that an alias leads to."""
        ...

    def path(self, name: str) -> Path:
        """Where the checkpoint of this name is, or would be."""
        ...

    def close(self) -> None:
        """Let others write."""
        ...
