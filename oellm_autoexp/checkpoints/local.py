"""Checkpoints in a directory of this host's file systems.

epoch_001_step_000456.ckpt     a checkpoint: one file, or a directory of shards
step-000456.json               its commit record, written last: without it there is no checkpoint
latest.ckpt, best.ckpt         links to checkpoints
.saving-…/                     what is being saved, with the process that does it in its name
.removing-….json               the record of a checkpoint that is being removed
.lock                          held by the one that writes
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.locks import WriterLock, held
from oellm_autoexp.checkpoints.owner import Owner
from oellm_autoexp.checkpoints.record import ALIASES, CommitRecord, FileRecord, why_no_name
from oellm_autoexp.checkpoints.retention import newest_first, superseded
from oellm_autoexp.checkpoints.store import Check, DamagedError, OnSkip
from oellm_autoexp.errors import CheckpointError

_SAVING, _REMOVING, _TEMP = ".saving-", ".removing-", ".new-"
#: The record within what is being saved: once it is there, the data may have its own name already.
_INTENT = "record.json"
_BLOCK = 1 << 20


class LocalStore:
    """The directory `root`. Whoever changes something holds its lock until `close`; reading needs none.

    `lock_wait_s`: for how long another writer is waited for. `foreign_age_s`: what a process of another host
    has not touched for so long counts as left behind.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        lock_wait_s: float = 0.0,
        foreign_age_s: float = 3600.0,
        disk: Disk | None = None,
    ) -> None:
        self.root = Path(root).absolute()
        self._disk = disk or Disk()
        self._wait_s = lock_wait_s
        self._foreign_age_s = foreign_age_s
        self._lock = WriterLock(self.root / ".lock")
        self._staged: set[Path] = set()

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        self._lock.release()
        self._staged.clear()

    def path(self, name: str) -> Path:
        return self.root / name

    # ---- writing

    def claim(self) -> None:
        self._take()

    def stage(self, name: str) -> Path:
        why = why_no_name(name)
        if why:
            raise CheckpointError(f"`{name}` {why}", where=str(self.root), hint="see filename_template")
        self.clean()
        nonce = secrets.token_hex(4)
        holder = self.root / f"{_SAVING}{nonce}.{Owner.this_process()}"
        self._disk.mkdir(holder)
        staged = holder / self._free(name)
        self._staged.add(staged)
        return staged

    def _free(self, name: str) -> str:
        """The name, with a suffix where it is taken: until the new record is there, the old one counts."""
        taken = {record.name for record in self.records()}
        stem, dot, ending = name.rpartition(".") if "." in name else (name, "", "")
        number = 1
        found = name
        while found in taken or os.path.lexists(self.root / found):
            number += 1
            found = f"{stem}-{number}{dot}{ending}"
        return found

    def commit(self, staged: Path, record: CommitRecord) -> Path:
        if staged not in self._staged:
            raise CheckpointError("was not staged here", where=str(staged), hint="call stage first")
        records = self.records()
        number = 1 + max((each.number for each in records), default=0)
        record = replace(record.named(staged.name), number=number)
        self._sync_staged(staged, record)
        holder, target, final = staged.parent, self.root / record.file_name, self.root / record.name
        self._disk.write(holder / _INTENT, record.to_json().encode())
        self._disk.sync(holder)
        self._disk.rename(staged, final)
        self._disk.sync(self.root)
        earlier = next((each for each in records if each.file_name == record.file_name), None)
        if earlier is not None:
            self._write(self.root / f"{_REMOVING}{secrets.token_hex(4)}.json", earlier.to_json().encode())
        self._disk.rename(holder / _INTENT, target)
        self._disk.sync(self.root)
        self._staged.discard(staged)
        self._disk.remove(holder)
        self.clean()
        return final

    def _sync_staged(self, staged: Path, record: CommitRecord) -> None:
        """What is there is what the record tells of, and on disk."""
        found, folders = {}, []
        if staged.is_dir():
            for folder, _, names in os.walk(staged):
                folders.append(Path(folder))
                for each in names:
                    path = Path(folder, each)
                    found[f"{staged.name}/{path.relative_to(staged).as_posix()}"] = path
        elif staged.exists():
            found[staged.name] = staged
        told = {file.path: file.bytes for file in record.files}
        if not told or told.keys() != found.keys():
            odd = ", ".join(sorted(told.keys() ^ found.keys())) or "nothing was written"
            raise CheckpointError(f"its record and its files differ: {odd}", where=str(staged))
        for name, path in found.items():
            size = path.stat().st_size
            if size != told[name]:
                raise CheckpointError(f"has {size} bytes, and {told[name]} were written", where=str(path))
            self._disk.sync(path)
        for path in reversed(folders):
            self._disk.sync(path)

    def abandon(self, staged: Path) -> None:
        self._staged.discard(staged)
        self._undo(staged.parent, {record.name for record in self.records()})

    def link(self, name: str, alias: str) -> None:
        """A relative symbolic link; where there are none, a file that holds the name."""
        if alias not in ALIASES:
            raise ValueError(f"alias must be one of {', '.join(ALIASES)}, got {alias!r}")
        self._take()
        if self.linked(alias) == name:
            return
        temp = self.root / f"{_TEMP}{secrets.token_hex(4)}"
        try:
            self._disk.symlink(temp, name)
        except OSError:
            self._disk.write(temp, f"{name}\n".encode())
        self._disk.rename(temp, self.root / alias)
        self._disk.sync(self.root)

    def delete(self, record: CommitRecord) -> bool:
        self._take()
        path = self.root / record.file_name
        try:
            known = CommitRecord.from_json(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return True
        if known.number != record.number:
            return True
        with self._unread(record) as unread:
            if not unread:
                return False
            # From here on there is no such checkpoint, and `clean` knows which files are left of it.
            self._disk.rename(path, self.root / f"{_REMOVING}{secrets.token_hex(4)}.json")
            self._disk.sync(self.root)
            self.clean(ignore_readers=record.name)
        return True

    def retain(self, keep: int, protect: Collection[str] = ()) -> list[CommitRecord]:
        linked = {name for alias in ALIASES if (name := self.linked(alias))}
        return [
            record for record in superseded(self.records(), keep, {*protect, *linked}) if self.delete(record)
        ]

    # ---- what the dead have left

    def _take(self) -> None:
        try:
            if not self.root.is_dir():
                self._disk.mkdir(self.root)
                self._disk.sync(self.root.parent)
            self._lock.take(self._wait_s)
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise CheckpointError(what, where=str(self.root), hint="see checkpoint.root_dir") from error

    def clean(self, *, ignore_readers: str = "") -> None:
        """Remove what saves and removals that were killed have left, as far as their processes are dead."""
        self._take()
        records = self.records()
        names = {record.name for record in records}
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(_SAVING):
                if self._left_behind(path):
                    self._undo(path, names)
            elif path.name.startswith(_REMOVING):
                self._finish_removing(path, records, ignore_readers)
            elif path.name.startswith(_TEMP):
                self._disk.unlink(path)

    def _left_behind(self, holder: Path) -> bool:
        if any(staged.parent == holder for staged in self._staged):
            return False
        owner = Owner.parse(holder.name[len(_SAVING) :].partition(".")[2])
        if owner == Owner.this_process():
            # Another store of this process, which no longer holds the lock.
            return self._lock.exclusive
        alive = owner.alive() if owner else None
        if alive is None:
            touched = max(path.lstat().st_mtime for path in (holder, *holder.rglob("*")))
            return self._lock.now() - touched > self._foreign_age_s
        return not alive

    def _undo(self, holder: Path, committed: Collection[str]) -> None:
        """A save that was killed; its data may have left the holder, and then has no record."""
        with contextlib.suppress(OSError, ValueError):
            name = CommitRecord.from_json((holder / _INTENT).read_bytes()).name
            if name not in committed and not why_no_name(name):
                self._disk.remove(self.root / name)
        self._disk.remove(holder)

    def _finish_removing(self, path: Path, records: list[CommitRecord], ignore_readers: str) -> None:
        try:
            record = CommitRecord.from_json(path.read_bytes())
        except (OSError, ValueError):
            return
        if not why_no_name(record.name) and all(each.name != record.name for each in records):
            with self._unread(record) as unread:
                self._redirect(record, records)
                if not unread and record.name != ignore_readers:
                    return
                self._disk.remove(self.root / record.name)
        self._disk.unlink(path)

    def _redirect(self, gone: CommitRecord, records: list[CommitRecord]) -> None:
        """No alias leads to what goes: rather to what replaces it, and the latest to the newest."""
        replaced = next((each for each in records if each.step == gone.step), None)
        for alias in ALIASES:
            if self.linked(alias) == gone.name:
                other = replaced or (records[0] if records and alias == ALIASES[0] else None)
                if other is None:
                    self._disk.unlink(self.root / alias)
                else:
                    self.link(other.name, alias)

    @contextlib.contextmanager
    def _unread(self, record: CommitRecord) -> Iterator[bool]:
        try:
            with held(self.root / record.name, shared=False) as free:
                yield free
        except FileNotFoundError:
            yield True

    def _write(self, path: Path, data: bytes) -> None:
        temp = self.root / f"{_TEMP}{secrets.token_hex(4)}"
        self._disk.write(temp, data)
        self._disk.rename(temp, path)

    # ---- reading

    def records(self) -> list[CommitRecord]:
        return newest_first([found for _, found in self._read() if isinstance(found, CommitRecord)])

    def damage(self) -> list[tuple[str, str]]:
        return [(name, found) for name, found in self._read() if isinstance(found, str)]

    def _read(self) -> Iterator[tuple[str, CommitRecord | str]]:
        try:
            paths = sorted(self.root.glob("step-*.json"))
        except OSError:
            return
        for path in paths:
            try:
                record = CommitRecord.from_json(path.read_bytes())
                if record.file_name != path.name or why_no_name(record.name):
                    yield path.name, f"it is the record of {record.name!r}, step {record.step}"
                else:
                    yield path.name, record
            except FileNotFoundError:
                # Retention was quicker.
                continue
            except (OSError, ValueError) as error:
                yield path.name, str(error)

    def problems(self, record: CommitRecord) -> str:
        if not record.files:
            return f"{record.file_name}: it names no files"
        for file in record.files:
            try:
                size = (self.root / file.path).stat().st_size
            except OSError as error:
                return f"{file.path}: {error.strerror}"
            if size != file.bytes:
                return f"{file.path}: {size} bytes in place of {file.bytes}"
        with ThreadPoolExecutor(min(len(record.files), os.cpu_count() or 1)) as pool:
            return next(filter(None, pool.map(self._difference, record.files)), "")

    def _difference(self, file: FileRecord) -> str:
        try:
            digest = hashlib.sha256()
            with (self.root / file.path).open("rb", buffering=0) as stream:
                block = memoryview(bytearray(_BLOCK))
                while size := stream.readinto(block):
                    digest.update(block[:size])
        except OSError as error:
            return f"{file.path}: {error.strerror}"
        return "" if digest.hexdigest() == file.sha256 else f"{file.path}: its checksum is wrong"

    def verified(self, record: CommitRecord) -> bool:
        return not self.problems(record)

    @contextlib.contextmanager
    def reading(self, record: CommitRecord) -> Iterator[Path]:
        path = self.root / record.name
        with contextlib.ExitStack() as stack:
            try:
                free = stack.enter_context(held(path, shared=True))
            except FileNotFoundError:
                free = False
            # Who removes it holds a lock that excludes this one until its name is gone.
            if not free or not path.exists():
                raise DamagedError("is not there any more", where=str(path))
            yield path

    def newest(self, on_skip: OnSkip, check: Check | None = None) -> CommitRecord | None:
        damage, records = self.damage(), self.records()
        for name, problem in damage:
            on_skip(name, problem)
        for record in records:
            problem = (check or self.problems)(record)
            if not problem:
                return record
            on_skip(record.name, problem)
        # A link without records: somebody has removed them. To begin anew then would lose a training.
        if damage or records or any(map(self.linked, ALIASES)):
            raise CheckpointError(
                "there are checkpoints, and none is complete and undamaged; nothing was changed",
                where=str(self.root),
                hint="restore one from a copy, or move the directory away to begin anew",
            )
        return None

    def linked(self, alias: str) -> str | None:
        path = self.root / alias
        try:
            return str(path.readlink())
        except FileNotFoundError:
            return None
        except OSError:
            # Where there are no symbolic links.
            try:
                return path.read_text().strip()
            except (OSError, UnicodeDecodeError):
                return None
