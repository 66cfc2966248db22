"""States of trainings in files: written beside the training, and read with their checksums compared."""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

import torch
import torch.distributed as dist

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import ALIASES, CommitRecord
from oellm_autoexp.checkpoints.retention import best
from oellm_autoexp.checkpoints.store import CheckpointStore, DamagedError, OnSkip
from oellm_autoexp.errors import AutoexpError, CheckpointError
from oellm_autoexp.trainer import sharded
from oellm_autoexp.trainer.snapshot import Snapshots, refuse_unsafe
from oellm_autoexp.trainer.summing import CheckingFile, SummingFile

LATEST, BEST = ALIASES


class Saver:
    """Saves and restores states in a store, which is its own until `close`.

    `keep`: so many checkpoints stay. `metric`, `mode`: the checkpoint with the best value stays too, and
    `best.ckpt` leads to it. `asynchronous`: only the copy of the state is waited for. `shards`: each process
    writes its part, and all of them call `save`; else rank 0 writes, and the others' calls do nothing.
    `on_saved` is told of each complete checkpoint, in the thread that wrote it. `allow_pickle`: states may
    hold any objects, and loading a file may run code that is in it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        keep: int = 5,
        metric: str | None = None,
        mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
        shards: bool = False,
        allow_pickle: bool = False,
        rank: int = 0,
        on_saved: Callable[[CommitRecord, Path], None] | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.store = store
        self._keep, self._metric, self._mode = keep, metric, mode
        self._asynchronous, self._shards = asynchronous, shards
        self._allow_pickle = allow_pickle
        self._rank = rank
        self._on_saved = on_saved
        self._disk = disk or Disk()
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # What is said in the background must not meet what the training says meanwhile.
        if shards and not _distributed():
            hint = "call torch.distributed.init_process_group (or fabric.launch) first"
            raise CheckpointError("shards are written by processes that train together", hint=hint)
        self._group = dist.new_group(backend="gloo") if shards else None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- writing

    def claim(self) -> None:
        """Keep others from writing, before there is anything to write.

        Raises:
            CheckpointError: another process writes here, or nobody can.
        """
        if self._rank == 0:
            self.store.claim()

    def save(self, state: Mapping[str, Any], record: CommitRecord, *, blocking: bool = False) -> Path:
        """Save a state; where the checkpoint is, or will be. `record.files` and its `number` are filled in.

        The save before is waited for. With `blocking`, or without `asynchronous`, the checkpoint is on disk
        when this returns; else the state may be changed, and the checkpoint is there some time later.

        Raises:
            CheckpointError: this save, or the one before, could not be done.
        """
        self.wait()
        if self._rank != 0 and not self._shards:
            return self.store.path(record.name)
        try:
            record.to_json()
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the record cannot be written: {error}", where=record.name) from None
        if self._shards:
            return self._save_shards(state, record, blocking)
        if not self._allow_pickle:
            refuse_unsafe(dict(state))
        staged = self._staged(record.name)
        later = self._asynchronous and not blocking
        copied = self._snapshots.take(state) if later else state
        return self._run(lambda: self._write(copied, staged, record), staged, later)

    def _staged(self, name: str) -> Path:
        try:
            return self.store.stage(name)
        except OSError as error:
            raise _failure(error, self.store.path(name)) from error

    def _write(self, state: Mapping[str, Any], staged: Path, record: CommitRecord) -> None:
        with SummingFile(staged, self._disk) as file:
            try:
                torch.save(dict(state), cast(IO[bytes], file))
            except RuntimeError:
                # Torch then tells of a position that it did not expect.
                if file.failure is not None:
                    raise file.failure from None
                raise
        self._commit(staged, replace(record.named(staged.name), files=(file.record(staged.name),)))

    def _commit(self, staged: Path, record: CommitRecord) -> None:
        path = self.store.commit(staged, record)
        self.store.link(record.name, LATEST)
        records = self.store.records()
        top = best(records, self._metric, self._mode) if self._metric else None
        if top is not None:
            self.store.link(top.name, BEST)
        self.store.retain(self._keep)
        if self._on_saved is not None:
            self._on_saved(next(each for each in records if each.name == record.name), path)

    def _save_shards(self, state: Mapping[str, Any], record: CommitRecord, blocking: bool) -> Path:
        failure: CheckpointError | None = None
        staged = packed = None
        parts, rest = sharded.apart(state)
        if self._rank == 0:
            try:
                packed = self._packed(rest)
                staged = self._staged(record.name)
            except CheckpointError as error:
                failure = error
        staged, failure = sharded.told((staged, failure), self._group)
        if failure is not None:
            raise failure
        assert staged is not None
        writer = sharded.ShardWriter(staged, self._disk)
        later = self._asynchronous and not blocking
        tensors = sharded.as_written(parts, packed)
        copied = writer.stage(tensors) if later else tensors
        return self._run(lambda: self._write_shards(copied, staged, record, writer), staged, later)

    def _packed(self, rest: dict[str, Any]) -> bytes:
        if not self._allow_pickle:
            refuse_unsafe(rest)
        packed = io.BytesIO()
        torch.save(rest, packed)
        return packed.getvalue()

    def _write_shards(
        self, tensors: dict[str, Any], staged: Path, record: CommitRecord, writer: sharded.ShardWriter
    ) -> None:
        sharded.write(tensors, writer, self._group)
        parts = sharded.gathered(writer.records(staged.name), self._group)
        failure: CheckpointError | None = None
        if self._rank == 0:
            files = tuple(file for part in parts for file in part)
            try:
                self._commit(staged, replace(record.named(staged.name), files=files))
            except Exception as error:  # noqa: BLE001 - whatever it is, the others must be told
                failure = _failure(error, staged)
        # No process goes on as if it had a checkpoint that it has not.
        failure = sharded.told(failure, self._group)
        if failure is not None:
            raise failure

    def _run(self, write: Callable[[], None], staged: Path, later: bool) -> Path:
        def attempt() -> None:
            try:
                write()
            except Exception as error:
                if self._rank == 0:
                    self._abandon(staged)
                raise _failure(error, staged) from error

        def in_background() -> None:
            try:
                attempt()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the training must be told
                self._error = error

        if later:
            # No daemon: a program that ends waits for it.
            self._thread = threading.Thread(target=in_background, name="checkpoint-writer")
            self._thread.start()
        else:
            attempt()
        return self.store.path(staged.name)

    def _abandon(self, staged: Path) -> None:
        try:
            self.store.abandon(staged)
        except (OSError, AutoexpError) as error:
            # What is left is removed by the next save.
            warnings.warn(f"{staged}: cannot be removed: {error}", stacklevel=2)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until nothing is being written; False where that lasts longer than `timeout_s`.

        Raises:
            CheckpointError: what was being written could not be.
        """
        ended = self._join(timeout_s)
        if ended:
            self._raise()
        return ended

    def _join(self, timeout_s: float | None = None) -> bool:
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, and let others write into the store.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            if self._rank == 0:
                self.store.close()

    # ---- reading

    def restore(
        self, on_skip: OnSkip, *, like: sharded.Like = sharded.whole, map_location: Any = "cpu"
    ) -> tuple[CommitRecord, dict[str, Any]] | None:
        """The newest complete and undamaged checkpoint, with its state; None where there was never one.

        It is read once. Where processes train together all of them call this, and one is used that all of
        them can read. `on_skip` is told (on rank 0) what was passed over, and why.

        Raises:
            CheckpointError: there are checkpoints, and none can be used.
        """
        self._join()
        loaded: list[dict[str, Any]] = []

        def check(record: CommitRecord) -> str:
            sharded.told(record, self._group)
            return self._tried(record, loaded, like, map_location)

        if self._rank != 0 and _distributed():
            return self._follow(loaded, like, map_location)
        try:
            found = self.store.newest(on_skip, check)
        except CheckpointError as error:
            sharded.told(error, self._group)
            raise
        sharded.told(None, self._group)
        return (found, loaded[-1]) if found is not None else None

    def _follow(
        self, loaded: list[dict[str, Any]], like: sharded.Like, map_location: Any
    ) -> tuple[CommitRecord, dict[str, Any]] | None:
        """What the other ranks do while rank 0 looks for a checkpoint."""
        record: CommitRecord | None = None
        while (said := sharded.told(None, self._group)) is not None:
            if isinstance(said, CheckpointError):
                raise said
            record = said
            # Where it cannot be used at all, rank 0 says so.
            with contextlib.suppress(CheckpointError):
                self._tried(said, loaded, like, map_location)
        return (record, loaded[-1]) if record is not None else None

    def _tried(
        self,
        record: CommitRecord,
        loaded: list[dict[str, Any]],
        like: sharded.Like,
        map_location: Any,
    ) -> str:
        """What is wrong with it for any of the processes."""
        loaded.clear()
        mine: CheckpointError | None = None
        try:
            loaded.append(self.load(record, like=like, map_location=map_location))
        except CheckpointError as error:
            mine = error
        errors: list[CheckpointError] = [each for each in sharded.gathered(mine, self._group) if each]
        for each in errors:
            if not isinstance(each, DamagedError):
                raise each
        return errors[0].what if errors else ""

    def load(
        self,
        source: CommitRecord | str | Path,
        *,
        like: sharded.Like = sharded.whole,
        map_location: Any = "cpu",
    ) -> dict[str, Any]:
        """The state of a checkpoint: of a record, or of a path (also of a link, and in another directory).

        Its checksums are compared in the same pass. A file without a record is read as it is. What consists
        of shards is read by all processes together, each tensor spread as the one that `like` names for its
        keys; one that it names none for is whole.

        Raises:
            DamagedError: it is not what its record says.
            CheckpointError: it is not there, or cannot be loaded safely.
        """
        self._join()
        store, record, path = self._found(source)
        if record is None:
            return self._loaded(path, path, map_location)
        try:
            with store.reading(record) as place:
                if place.is_dir():
                    return self._load_shards(place, record, like, map_location)
                return self._load_checked(place, record, map_location)
        except OSError as error:
            raise DamagedError(f"cannot be read: {error.strerror}", where=str(path)) from error

    def _found(self, source: CommitRecord | str | Path) -> tuple[CheckpointStore, CommitRecord | None, Path]:
        if isinstance(source, CommitRecord):
            return self.store, source, self.store.path(source.name)
        path = Path(source)
        if not path.exists() and not path.is_absolute():
            path = self.store.path(str(source))
        store: CheckpointStore = LocalStore(path.absolute().parent)
        if path.absolute().parent.resolve() == self.store.path("x").parent.resolve():
            store = self.store
        name = (store.linked(path.name) if path.name in ALIASES else None) or path.name
        record = next((each for each in store.records() if each.name == name), None)
        path = store.path(name)
        if not path.exists():
            raise DamagedError("is not there", where=str(path))
        return store, record, path

    def _load_checked(self, path: Path, record: CommitRecord, map_location: Any) -> dict[str, Any]:
        if len(record.files) != 1 or not record.files[0].quick:
            problem = self.store.problems(record)
            if problem:
                raise DamagedError(problem, where=str(path))
            return self._loaded(path, path, map_location)
        with CheckingFile(path, record.files[0]) as file:
            problem = file.size_problem()
            if problem:
                raise DamagedError(problem, where=str(path))
            try:
                state = self._loaded(file, path, map_location)
            except Exception:
                # Damage shows as any error at all; the sums tell it from a file that is as it was written.
                problem = file.problem()
                if problem:
                    raise DamagedError(problem, where=str(path)) from None
                raise
            problem = file.problem()
        if problem:
            raise DamagedError(problem, where=str(path))
        return state

    def _loaded(self, file: Any, path: Path, map_location: Any) -> dict[str, Any]:
        try:
            # Torch knows how to make bytes again, unless they are none.
            with torch.serialization.safe_globals([bytes]):
                state = torch.load(file, map_location=map_location, weights_only=not self._allow_pickle)
        except (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            hint = "" if self._allow_pickle else "if you trust the file, say allow_pickle=True"
            raise CheckpointError(f"cannot be loaded: {why}", where=str(path), hint=hint) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"holds a {type(state).__name__} in place of a state", where=str(path))
        return state

    def _load_shards(
        self, path: Path, record: CommitRecord, like: sharded.Like, map_location: Any
    ) -> dict[str, Any]:
        size = dist.get_world_size(self._group) if _distributed() else 1
        mine = record.files[self._rank :: size]
        found = next(filter(None, sharded.gathered(sharded.problem(path.parent, mine), self._group)), "")
        if found:
            raise DamagedError(found, where=str(path))
        return sharded.read(path, self._group, lambda rest: self._loaded(rest, path, map_location), like)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _failure(error: Exception, path: Path) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    why = (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    hint = "the checkpoints before it are as they were"
    return CheckpointError(f"could not be saved: {why}", where=path.name, hint=hint)
