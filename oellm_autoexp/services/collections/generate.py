"""`generate`: batch scripts from a job spec, written once and kept in step with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from oellm_autoexp.core.collection import Collection, Origin, ScriptJob
from oellm_autoexp.errors import StateError, UsageError
from oellm_autoexp.planning import jobspec
from oellm_autoexp.planning.functions import function_of
from oellm_autoexp.planning.jobspec import JobSpecFile
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.store.effects import Effects

SUFFIX = ".job"
_DIR_MODE, _FILE_MODE = 0o755, 0o755


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The scripts of a spec beside those that are there. Names are in the order of the spec."""

    jobs: Sequence[ScriptJob]
    texts: Mapping[str, str]
    added: Sequence[str] = ()
    #: The spec or its template says something else now.
    changed: Sequence[str] = ()
    unchanged: Sequence[str] = ()
    #: Files that hold neither what was written nor what would be: a person's, and left alone.
    edited: Sequence[str] = ()
    #: What the collection has of this spec, and the spec has no more.
    missing: Sequence[str] = ()


class JobGenerator:
    """Makes the scripts of jobs from a template and parameters.

        generator = JobGenerator(
            template_path="train.job.j2",
            parameters={"mode": "grid", "values": {"lr": [0.001, 0.01]}},
            slurm_defaults={"partition": "gpu", "time": "24:00:00"},
            job_name_pattern="lr{{ lr }}",
        )
        print(generator.preview(0))

    Relative paths start where the process runs. `slurm_logic_file` holds a function (params, defaults) that
    returns what a job asks of Slurm.

    Raises:
        ConfigError: every mistake in it, or none of its combinations is kept.
    """

    def __init__(
        self,
        template_path: str | Path,
        parameters: Mapping[str, Any],
        slurm_defaults: Mapping[str, Any] | None = None,
        slurm_logic_file: str | Path | None = None,
        slurm_logic_function: str = "get_slurm_args",
        job_name_pattern: str | None = None,
        logs_dir: str | Path | None = None,
    ) -> None:
        base = Path.cwd()
        given = {"file": str(slurm_logic_file), "function": slurm_logic_function}
        logic = given if slurm_logic_file is not None else None
        self._set(
            JobSpecFile(
                template=(base / template_path).resolve(),
                parameters=jobspec.parameters_of(parameters, base),
                slurm_defaults=dict(slurm_defaults or {}),
                slurm_logic=function_of(logic, "get_slurm_args", base, "slurm_logic_file"),
                job_name_pattern=job_name_pattern,
                logs_dir=str(logs_dir) if logs_dir is not None else "",
                output_dir=base,
            )
        )

    @classmethod
    def from_spec(cls, spec: str | Path | JobSpecFile) -> JobGenerator:
        """The generator of a spec file.

        Raises:
            ConfigError: every mistake in it.
        """
        made = cls.__new__(cls)
        made._set(spec if isinstance(spec, JobSpecFile) else jobspec.read(Path(spec)))
        return made

    def _set(self, spec: JobSpecFile) -> None:
        self.spec = spec
        self._planned = jobspec.planned(spec)

    @cached_property
    def _texts(self) -> list[str]:
        return [jobspec.rendered(self.spec, job) for job in self._planned]

    def count_jobs(self) -> int:
        """How many jobs there are."""
        return len(self._planned)

    def list_job_names(self) -> list[str]:
        """The names of all jobs, in order."""
        return [job.name for job in self._planned]

    def preview(self, index: int = 0) -> str:
        """The script of one job, by its number from 0; nothing is written.

        Raises:
            IndexError: there is no such job.
            ConfigError: the template asks for what there is not.
        """
        return jobspec.rendered(self.spec, self._planned[index])

    def generate(
        self,
        output_dir: str | Path | None = None,
        collection: Collection | None = None,
        dry_run: bool = False,
        *,
        force: bool = False,
    ) -> list[dict[str, Any]]:
        """Write the scripts (None: where the spec says); one mapping a job.

        What is there as it should be stays untouched. `collection` takes the jobs in. With `force` a file
        that a person has edited is overwritten.

        Raises:
            ConfigError: the template asks for what there is not.
            UsageError: a job of another spec has the name, or a file would be overwritten.
            StateError: a file cannot be written.
        """
        target = Path(output_dir).resolve() if output_dir is not None else self.spec.output_dir
        made = self.compared(target, collection)
        if made.edited and not force:
            refuse(made, target)
        if not dry_run:
            write(made, self.spec, target, Effects(), force=force)
        if collection is not None:
            collection.add(made.jobs, self.origin, self.about)
        return _rows(made)

    @property
    def origin(self) -> str:
        """What scripts of this generator are known by in a collection."""
        return str(self.spec.file or self.spec.template)

    @property
    def about(self) -> Origin:
        return Origin(
            spec=str(self.spec.file or ""),
            description=self.spec.description,
            template=str(self.spec.template),
            logs_dir=self.spec.logs_dir,
        )

    def compared(self, output_dir: Path, collection: Collection | None = None) -> Generated:
        """The scripts beside the files and the collection that are there.

        Raises:
            ConfigError: the template asks for what there is not.
            UsageError: a job of another spec has the name.
        """
        known = collection.jobs if collection is not None else {}
        jobs, texts = [], {}
        sorts: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": [], "edited": []}
        for each, text in zip(self._planned, self._texts, strict=True):
            before = known.get(each.name)
            if before is not None and before.origin != self.origin:
                other = before.origin or f"the script {before.script}, which was imported"
                what = f"another spec has a job `{each.name}` in this collection: {other}"
                hint = "give the jobs other names (job_name_pattern), or generate into another collection"
                raise UsageError(what, where=self.origin, hint=hint)
            job = ScriptJob(
                name=each.name,
                script=str(output_dir / f"{each.name}{SUFFIX}"),
                digest=digest(text.encode()),
                parameters=each.parameters,
                slurm=each.slurm,
                origin=self.origin,
            )
            kind = _sort(job, text, before)
            sorts[kind].append(job.name)
            if before is not None:
                # What a person has changed for it alone stays, as long as its script does.
                job = before if kind == "unchanged" else replace(job, overrides=before.overrides)
            jobs.append(job)
            texts[job.name] = text
        names = {job.name for job in jobs}
        mine = collection.of(self.origin) if collection is not None else []
        missing = [job.name for job in mine if job.name not in names]
        return Generated(jobs=jobs, texts=texts, missing=missing, **sorts)


def _rows(made: Generated) -> list[dict[str, Any]]:
    keys = ("name", "script", "parameters", "slurm")
    names = ("job_name", "script_path", "parameters", "slurm_args")
    return [{name: getattr(job, key) for name, key in zip(names, keys, strict=True)} for job in made.jobs]


def _sort(job: ScriptJob, text: str, before: ScriptJob | None) -> str:
    """How a job compares with what was written before, and with what is on disk."""
    try:
        with open(job.script, "rb") as file:  # noqa: PTH123 - a Path for each would be most of the time
            data = file.read()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise StateError(f"cannot be read: {error.strerror}", where=job.script) from None
    there = digest(data)
    if there != job.digest and text.encode().startswith(data):
        # None, or what a full disk or a death has left of it.
        there = ""
    if there and there != job.digest and (before is None or there != before.digest):
        return "edited"
    if before is None:
        return "added"
    same = replace(before, overrides=(), extra={}, replaced_by="") == job
    return "unchanged" if same and there else "changed"


def digest(data: bytes) -> str:
    """What a text is known by: its sha256."""
    return hashlib.sha256(data).hexdigest()


def refuse(made: Generated, output_dir: Path) -> None:
    """Refuse to overwrite what a person has written.

    Raises:
        UsageError: always.
    """
    name, more = made.edited[0], len(made.edited) - 1
    what = f"{name}{SUFFIX}{f' and {more} more' if more else ''} was edited, or made by something else"
    raise UsageError(what, where=str(output_dir), hint="--force overwrites it; nothing was written")


def write(made: Generated, spec: JobSpecFile, output_dir: Path, effects: Effects, *, force: bool) -> None:
    """Write the scripts that are new or changed, and make the directories of scripts and logs.

    Raises:
        StateError: something cannot be written.
    """
    wanted = {*made.added, *made.changed, *(made.edited if force else ())}
    try:
        effects.mkdir(output_dir, mode=_DIR_MODE)
        if spec.logs_dir:
            # sbatch(1) makes no directory for a log: its output would be lost.
            effects.mkdir(Path(spec.logs_dir), mode=_DIR_MODE)
        for job in made.jobs:
            data = made.texts[job.name].encode()
            if job.name in wanted and not effects.create(Path(job.script), data, mode=_FILE_MODE):
                effects.write(Path(job.script), data, mode=_FILE_MODE, durable=False)
        if wanted:
            effects.sync(output_dir)
    except OSError as error:
        hint = "make room or mend the rights, then do the same again: it goes on where it stopped"
        where = str(error.filename or output_dir)
        raise StateError(f"cannot be written: {error.strerror}", where=where, hint=hint) from error


def into(
    generator: JobGenerator, place: Place, output_dir: Path, effects: Effects, *, force: bool = False
) -> Generated:
    """Write the scripts of a spec, and take them into a collection, while no other process changes it.

    Raises:
        ConfigError, UsageError, StateError: as `JobGenerator.generate`; nothing was written.
    """
    found: list[Generated] = []
    collections.check(place)
    if not place.there and (made := generator.compared(output_dir)).edited and not force:
        # Before a new collection has left anything.
        refuse(made, output_dir)

    def add(collection: Collection) -> None:
        made = generator.compared(output_dir, collection)
        if made.edited and not force:
            refuse(made, output_dir)
        write(made, generator.spec, output_dir, effects, force=force)
        collection.add(made.jobs, generator.origin, generator.about)
        found.append(made)

    collections.change(place, effects, add)
    collections.register(place)
    return found[0]


def generate_jobs_from_spec(
    spec_path: str | Path,
    output_dir: str | Path | None = None,
    collection_name: str | None = None,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """The scripts of a spec, as `oellm-autoexp generate` writes them; one mapping a job.

        for job in generate_jobs_from_spec("job_spec.yaml", collection_name="my_experiment"):
            print(job["job_name"], job["script_path"], job["parameters"], job["slurm_args"])

    Without a collection, and with `dry_run`, none is changed; with `dry_run` nothing is written.

    Raises:
        ConfigError: every mistake in the spec.
        UsageError: a job of another spec has the name, or a file would be overwritten.
        StateError: a file cannot be written.
    """
    generator = JobGenerator.from_spec(spec_path)
    if collection_name is None:
        return generator.generate(output_dir, dry_run=dry_run)
    place = collections.place_of(collection_name, Path.cwd())
    if dry_run:
        return generator.generate(output_dir, collections.read(place), dry_run=True)
    target = Path(output_dir).resolve() if output_dir is not None else generator.spec.output_dir
    return _rows(into(generator, place, target, Effects.of(place.paths.state_dir)))
