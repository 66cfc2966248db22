"""Checkpoints of plain bytes in a local store, and disks that end the world at a change."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deaths import Killed

from oellm_autoexp.checkpoints.effects import Disk
from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import CommitRecord, FileRecord


class Fatal(Disk):
    """Dies at its step number `at` (0: never); `names` are those of all steps so far."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.names: list[str] = []

    def step(self, name: str, target: str) -> None:
        self.names.append(f"{name} {Path(target).name}")
        if len(self.names) == self.at:
            raise Killed(f"{name} {target}")


def described(path: Path, name: str, step: int, kind: str = "regular", **metrics: float) -> CommitRecord:
    """The record of what is at a path, with the sums that a writer would have made."""
    names = [path, *sorted(each for each in path.rglob("*") if each.is_file())][path.is_dir() :]
    files = tuple(
        FileRecord(
            path=str(Path(path.name, each.relative_to(path))),
            bytes=each.stat().st_size,
            sha256=hashlib.sha256(each.read_bytes()).hexdigest(),
        )
        for each in names
    )
    return CommitRecord(name=path.name, step=step, epoch=0, kind=kind, files=files, metrics=metrics)


def save(
    store: LocalStore, step: int, data: bytes, kind: str = "regular", *, shards: int = 0
) -> CommitRecord:
    """Save bytes, as one file or as a directory of some, and let `latest.ckpt` lead there."""
    staged = store.stage(f"{step:03d}.ckpt")
    if shards:
        staged.mkdir()
        for number in range(shards):
            (staged / f"{number}.part").write_bytes(data + bytes([number]))
    else:
        staged.write_bytes(data)
    path = store.commit(staged, described(staged, staged.name, step, kind))
    store.link(path.name, "latest.ckpt")
    return next(each for each in store.records() if each.name == path.name)


def hold(store: LocalStore, record: CommitRecord) -> dict[str, bytes]:
    """What a checkpoint holds."""
    with store.reading(record) as path:
        if path.is_dir():
            return {each.name: each.read_bytes() for each in path.iterdir()}
        return {"": path.read_bytes()}
