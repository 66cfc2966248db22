"""A collection: batch scripts under one name, with what they were made from. Its session knows their jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What scripts of a collection were made from, by absolute paths; "" where there is none.

    `spec` is the file that was read; without one the scripts came from a program, or were there before.
    """

    spec: str = ""
    description: str = ""
    template: str = ""
    logs_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptJob:
    """One script. `digest` is the sha256 of its text as it was written; another text is a person's edit.

    Of a job that a person has started again with `extra` parameters, `replaced_by` is the script that runs.
    """

    name: str
    script: str
    digest: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    #: Overrides (`key=value`) that a person gave for this job alone.
    overrides: tuple[str, ...] = ()
    #: The key of its origin.
    origin: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    replaced_by: str = ""

    @property
    def runs(self) -> str:
        """The path of the script that runs."""
        return self.replaced_by or self.script

    @property
    def given(self) -> dict[str, Any]:
        """The parameters of what runs."""
        return {**self.parameters, **self.extra}


class Collection:
    """The scripts of a collection, by the names of their jobs, in the order in which they came.

    `cwd` is the absolute path of the directory where its jobs run: where the collection was made.
    """

    def __init__(
        self,
        name: str,
        cwd: str,
        jobs: Iterable[ScriptJob] = (),
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        self.name = name
        self.cwd = cwd
        self.jobs: dict[str, ScriptJob] = {job.name: job for job in jobs}
        self.origins: dict[str, Origin] = dict(origins or {})

    def add(self, jobs: Iterable[ScriptJob], origin: str, about: Origin) -> None:
        """Take scripts in; one of a known name replaces that."""
        self.origins[origin] = about
        self.jobs.update({job.name: job for job in jobs})

    def of(self, origin: str) -> list[ScriptJob]:
        """The scripts that came from an origin."""
        return [job for job in self.jobs.values() if job.origin == origin]

    def __len__(self) -> int:
        return len(self.jobs)


def encoded(collection: Collection) -> str:
    """A collection as the text of a file, a line for each job.

    Raises:
        ValueError: a parameter that JSON does not have.
    """
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    head = {
        "version": VERSION,
        "name": collection.name,
        "cwd": collection.cwd,
        "origins": {key: asdict(about) for key, about in collection.origins.items()},
    }
    lines = ",\n".join(encode(_body(job)) for job in collection.jobs.values())
    return f'{encode(head)[:-1]}, "jobs": [\n{lines}\n]}}\n'


def _body(job: ScriptJob) -> dict[str, Any]:
    body = {each.name: getattr(job, each.name) for each in fields(job)}
    return {key: value for key, value in body.items() if value or key in ("name", "script", "digest")}


def decoded(text: str) -> Collection:
    """The collection that a file holds.

    Raises:
        ValueError: it is none, or of a later version.
    """
    try:
        body = json.loads(text)
        if body["version"] != VERSION:
            raise ValueError(f"is of version {body['version']}, not {VERSION}")
        jobs = [ScriptJob(**{**job, "overrides": tuple(job.get("overrides", ()))}) for job in body["jobs"]]
        origins = {key: Origin(**about) for key, about in body["origins"].items()}
        return Collection(str(body["name"]), str(body["cwd"]), jobs, origins)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no collection: {error}") from None
