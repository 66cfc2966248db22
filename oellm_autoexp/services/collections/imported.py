"""Batch scripts that are there already come into a collection, with the jobs that run them."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.core.collection import Collection, Origin, ScriptJob
from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.errors import ConfigError, Fault, UsageError, did_you_mean
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.services import adopt, batch_script
from oellm_autoexp.services.collections import generate
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections import plan as batch_plan
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.sweep.grid import fixed
from oellm_autoexp.sweep.names import legalize

_KEYS = ("script", "name", "parameters", "job_id", "log")
_PATTERN = re.compile(r"%(\d*)([%AajJxuNn])")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A script to import. `job_id` is what Slurm calls the job that runs it ("": none does)."""

    script: Path
    name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    job_id: str = ""
    log: str = ""


def of_words(words: Sequence[str], cwd: Path) -> list[Found]:
    """Scripts as typed: `SCRIPT`, or `SCRIPT=JOBID` for one that runs."""
    found = []
    for word in words:
        script, _, number = word.rpartition("=")
        is_pair = bool(script) and not (cwd / word).is_file()
        found.append(Found(script=cwd / (script if is_pair else word), job_id=number if is_pair else ""))
    return found


def listed(file: Path, cwd: Path) -> list[Found]:
    """Scripts from a YAML file: `jobs:`, a list of `script`, `name`, `parameters`, `job_id` and `log`.

    Raises:
        ConfigError: every mistake in it.
    """
    data = yaml_loader.load(file)
    faults = [
        Fault(key=key, what="unknown key", file=str(file), hint=did_you_mean(key, ["jobs"]))
        for key in data
        if key != "jobs"
    ]
    rows = data.get("jobs")
    if not isinstance(rows, list):
        hint = "write `jobs: [{script: a.sbatch, job_id: 4711, parameters: {lr: 0.1}}]`"
        raise ConfigError(*faults, Fault(key="jobs", what="must be a list", file=str(file), hint=hint))
    found = []
    for number, row in enumerate(rows):
        key = f"jobs.{number}"
        if not isinstance(row, Mapping) or not isinstance(row.get("script"), str):
            faults.append(Fault(key=key, what="must be a mapping with `script`", file=str(file)))
            continue
        faults += [
            Fault(key=f"{key}.{name}", what="unknown key", file=str(file), hint=did_you_mean(name, _KEYS))
            for name in row
            if name not in _KEYS
        ]
        parameters = row.get("parameters") or {}
        try:
            if not isinstance(parameters, Mapping):
                raise ConfigError(Fault(key=f"{key}.parameters", what="must be a mapping"))
            fixed(parameters, f"{key}.parameters")
        except ConfigError as error:
            faults += error.faults
            continue
        texts = {name: str(row[name]) for name in ("name", "job_id", "log") if row.get(name) is not None}
        found.append(Found(script=cwd / row["script"], parameters=parameters, **texts))
    if faults:
        raise ConfigError(*faults)
    return found


def into(place: Place, wanted: Sequence[Found], terms: batch_plan.Terms, effects: Effects) -> list[str]:
    """Take scripts in, and watch the jobs that run them; a sentence for each.

    Raises:
        UsageError: a script is none, or another job has its name; the scheduler does not know a job.
        StateError, SchedulerUnavailable: it could not be done; the same call goes on.
    """
    collections.check(place)
    jobs = {_name(each): _job(each, place) for each in wanted}
    if len(jobs) < len(wanted):
        names = [_name(each) for each in wanted]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two of the scripts would be called {twice}", hint="name them in --list FILE")

    logs = {_name(each): _log(each, place) for each in wanted if each.job_id}

    def add(collection: Collection) -> None:
        for name, job in jobs.items():
            there = collection.jobs.get(name)
            if there is not None and there.script != job.script:
                hint = "give it another `name` in --list FILE"
                raise UsageError(f"{name} is another script already: {there.script}", hint=hint)
            if there is not None and there.origin:
                raise UsageError(f"{name} was generated, and is in the collection", where=there.script)
            if there is not None:
                job = replace(
                    job, overrides=there.overrides, parameters={**there.parameters, **job.parameters}
                )
            collection.add([job], "", Origin(description="imported"))

    # Before anything is kept: a script whose job is not found would be submitted later, and run twice.
    collection = collections.read(place)
    add(collection)
    found = {}
    for each, name in zip(wanted, jobs, strict=True):
        if each.job_id:
            result = batch_plan.planned(place, terms, {name}, collection).result
            found[name] = result, adopt.known(result.loaded, each.job_id)
    collections.change(place, effects, add)
    collections.register(place)
    return [
        adopt.adopt_as(*found[name], logs[name]) if name in found else f"{name} can be submitted"
        for name in jobs
    ]


def _name(found: Found) -> str:
    name = legalize(found.name or found.script.name.rpartition(".")[0] or found.script.name)
    if name in RESERVED_JOB_NAMES:
        raise UsageError(f"`{name}` is a name of a directory of ours", hint="name it in --list FILE")
    return name


def _job(found: Found, place: Place) -> ScriptJob:
    # What could not be submitted is refused.
    if "sweep" in batch_script.wrapped(found.script, place.cwd).sections:
        raise batch_plan.array(str(found.script))
    return ScriptJob(
        name=_name(found),
        script=str(found.script.resolve()),
        digest=generate.digest(found.script.read_bytes()),
        parameters=dict(found.parameters),
    )


def _log(found: Found, place: Place) -> Path:
    """The log of a job: the one that is named, or what `--output` of its script says (sbatch(1)).

    Raises:
        UsageError: it is not there.
    """
    if found.log:
        path = place.cwd / found.log
    else:
        options = slurm_text.options_of(found.script.read_text(encoding="utf-8"))
        pattern = options.get("output") or "slurm-%j.out"
        main, _, task = found.job_id.partition("_")
        name = options.get("job-name") or found.script.name
        values = {
            "A": main,
            "a": task,
            "j": found.job_id,
            "J": found.job_id,
            "x": name,
            "u": getpass.getuser(),
        }

        def filled(match: re.Match[str]) -> str:
            text = "%" if match[2] == "%" else values.get(match[2], "*")
            return text.zfill(int(match[1])) if match[1] and text.isdigit() else text

        path = place.cwd / options.get("chdir", "") / _PATTERN.sub(filled, pattern)
        if "*" in path.name:
            path = next(iter(sorted(path.parent.glob(path.name))), path)
    if not path.is_file():
        hint = "name it: --list FILE with `log`, or `scontrol show job` says where it is"
        raise UsageError("there is no such log", where=str(path), hint=hint)
    return path
