"""Checkpoints that are complete or do not count: a directory per iteration, its manifest written last.

    checkpoints/step_000200/model.json       the weights
                            training.json    optimizer, random numbers, how far the training is
                            manifest.json    sizes and SHA-256 of the two

A directory is filled under a temporary name, synchronised and renamed, so a reader sees a whole one or none.
Should a disk tear one all the same, its manifest no longer fits, and the one before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d+)")


def save(directory: Path, iteration: int, parts: Mapping[str, Any]) -> Path:
    """Save the parts (file name without ending -> what JSON can hold) as the checkpoint of an iteration.

    Floats are written so that they are read back bit for bit (`repr`).
    """
    final = directory / f"step_{iteration:06d}"
    temporary = directory / f".{final.name}.{os.getpid()}.tmp"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    manifest = {}
    for name, content in parts.items():
        data = json.dumps(content).encode()
        write_durably(temporary / f"{name}.json", data)
        manifest[f"{name}.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_durably(temporary / MANIFEST, json.dumps({"iteration": iteration, "files": manifest}).encode())
    _sync(temporary)
    if final.exists():
        # Only an incomplete one can stand in the way: a complete one would have been resumed from.
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(directory)
    return final


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the manifest names is there with the bytes that were written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        return all(
            hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == expected["sha256"]
            for name, expected in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = sorted(_numbered(directory), reverse=True)
    return next((path for _, path in found if is_complete(path)), None)


def discard_unfinished(directory: Path) -> None:
    """Remove what a killed attempt left half written. Nobody else may be saving there."""
    for path in directory.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load(checkpoint: Path, name: str) -> Any:
    return json.loads((checkpoint / f"{name}.json").read_bytes())


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _numbered(directory: Path) -> Iterator[tuple[int, Path]]:
    if directory.is_dir():
        for path in directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                yield int(match.group(1)), path


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
