"""What a checkpoint is: its commit record, and how its file is named."""

from __future__ import annotations

import hashlib
import json
import math
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from oellm_autoexp.errors import CheckpointError, did_you_mean

#: The version of records that this program writes.
FORMAT = 1
KINDS = ("regular", "emergency", "final")
Kind = Literal["regular", "emergency", "final"]
#: Names that always lead to a checkpoint, and so are those of none.
ALIASES = ("latest.ckpt", "best.ckpt")
FIELDS = ("epoch", "step", "timestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file. `path` is relative to the directory of all checkpoints, `sha256` as `sha256sum` prints it.

    `quick` is a second sum that is as fast as memory (`trainer.summing.ColumnSums`); "" where none was made.
    """

    path: str
    bytes: int
    sha256: str
    quick: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """That a checkpoint is complete, and what it consists of.

    `name` is that of its file (or directory) in the directory of all checkpoints, `saved_at` in UTC epoch
    seconds. `number` counts the commits of the directory: the newest checkpoint is the one that was
    committed last, also where a training went back to an earlier step. `extra` holds what JSON can.
    """

    name: str
    step: int
    epoch: int
    kind: Kind = "regular"
    files: tuple[FileRecord, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    saved_at: float = 0.0
    world_size: int = 1
    format: int = FORMAT
    extra: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.step < 0 or self.epoch < 0:
            raise ValueError(f"step and epoch must not be negative, got {self.step} and {self.epoch}")

    @property
    def file_name(self) -> str:
        """Of the record itself."""
        return f"step-{self.step:06d}.json"

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.bytes for file in self.files)

    def named(self, name: str) -> CommitRecord:
        """The same under another name, with paths that begin with it."""
        if name == self.name:
            return self
        files = tuple(replace(file, path=name + file.path[len(self.name) :]) for file in self.files)
        return replace(self, name=name, files=files)

    def to_json(self) -> str:
        """One document with a checksum of itself.

        Raises:
            TypeError, ValueError: `extra` holds what JSON cannot.
        """
        body = {
            "format": self.format,
            "number": self.number,
            "name": self.name,
            "step": self.step,
            "epoch": self.epoch,
            "kind": self.kind,
            "saved_at": self.saved_at,
            "world_size": self.world_size,
            "metrics": {key: _written(float(value)) for key, value in self.metrics.items()},
            "extra": dict(self.extra),
            "files": [
                {"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "quick": file.quick}
                for file in self.files
            ],
        }
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> CommitRecord:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is damaged, or of a later version.
        """
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            if checksum != _checksum(body):
                raise ValueError("its checksum is wrong")
            version = body["format"]
            if version > FORMAT:
                raise ValueError(f"it has format {version}, and this program knows those up to {FORMAT}")
            return cls(
                **{
                    **body,
                    "kind": cast(Kind, body["kind"]),
                    "files": tuple(FileRecord(**file) for file in body["files"]),
                    "metrics": {key: float(value) for key, value in body["metrics"].items()},
                }
            )
        except (LookupError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"it is no commit record ({type(error).__name__})") from None


def _written(value: float) -> float | str:
    """JSON has no nan and no infinity."""
    return value if math.isfinite(value) else str(value)


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class NameTemplate:
    """How files of checkpoints are called: `epoch_{epoch:03d}_step_{step:06d}.ckpt`.

    Fields are `epoch` and `step`, and `timestamp` (whole seconds since 1970, UTC).

    Raises:
        CheckpointError: when it is made; the text makes no name, one with a `/`, a hidden or a reserved one,
            or the same for different checkpoints.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        for name in self._fields():
            if name not in FIELDS:
                hint = did_you_mean(name, FIELDS)
                raise self._error(
                    f"there is no field {{{name}}}", hint or "fields are epoch, step, timestamp"
                )
        first, second = self.name(epoch=0, step=0, saved_at=0.0), self.name(epoch=1, step=1, saved_at=1.0)
        if first == second:
            raise self._error("every checkpoint would have the same name", "let it show {step}")

    def _fields(self) -> Iterator[str]:
        try:
            for _, name, _, _ in string.Formatter().parse(self.text):
                if name is not None:
                    yield name
        except ValueError as error:
            raise self._error(str(error), "a brace that is text is written twice: {{") from None

    def name(self, *, epoch: int, step: int, saved_at: float) -> str:
        """The name of a checkpoint; `saved_at` in UTC epoch seconds."""
        try:
            name = self.text.format(epoch=epoch, step=step, timestamp=int(saved_at))
        except (LookupError, ValueError, TypeError) as error:
            raise self._error(f"makes no name: {error}", "try {step:06d}") from None
        why = why_no_name(name)
        if why:
            raise self._error(f"makes the name `{name}`, which {why}", "it must be the name of a file")
        return name

    def _error(self, what: str, hint: str) -> CheckpointError:
        return CheckpointError(what, where=f"filename_template `{self.text}`", hint=hint)


def why_no_name(name: str) -> str:
    """Why a checkpoint cannot have this name; "" where it can."""
    if not name or "/" in name or "\0" in name:
        return "is no name of a file"
    if name.startswith("."):
        return "is hidden"
    # Room for a suffix, where the name is taken.
    if len(name.encode()) > 240:
        return "is too long"
    if name in ALIASES or (name.startswith("step-") and name.endswith(".json")):
        return "is used for something else"
    return ""
