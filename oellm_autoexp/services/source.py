"""`project.git_isolation`: the source that the jobs of a plan run from, found and made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.core.source import PlannedSource
from oellm_autoexp.errors import ConfigError, Fault, GitOperationError
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.store import source as store
from oellm_autoexp.store.effects import Effects

if TYPE_CHECKING:
    from oellm_autoexp.services.plan import Loaded, PlanResult

_KEY = "project.git_isolation"


def planned(loaded: Loaded) -> PlannedSource | None:
    """What the jobs of a config would run from; None where that is not kept apart, or they are only played.

    Raises:
        ConfigError: there is no repository, or it is in no state to be taken.
    """
    project = loaded.composed.project
    if project.git_isolation is None or isinstance(loaded.scheduler, FakeSlurmClient):
        return None
    try:
        return store.find(
            where(loaded),
            mode=project.git_isolation,
            record=project.git_dirty == "record",
            ours=list(_ours(loaded)),
            effects=Effects(),
        )
    except GitOperationError as error:
        fault = Fault(
            key=_KEY, what=f"{error.where}: {error.what}" if error.where else error.what, hint=error.hint
        )
        raise loaded.composed.placed(ConfigError(fault)) from error


def where(loaded: Loaded) -> Path:
    """Where all jobs run; where that differs, where they run that say nothing."""
    cwd = (loaded.composed.tree.folded.get("backend") or {}).get("cwd")
    return Path(loaded.composed.directory, cwd) if isinstance(cwd, str) and "${" not in cwd else loaded.cwd


def _ours(loaded: Loaded) -> Iterator[Path]:
    """Where this program and its jobs write: what is new there is no change of the source."""
    base = loaded.base_output_dir
    yield base
    # Where the outputs are not below the repository's top, but right in it.
    yield from (base / name for name in sorted(RESERVED_JOB_NAMES))
    yield loaded.paths.state_dir
    slurm = loaded.composed.tree.folded.get("slurm") or {}
    for key in ("script_dir", "log_dir"):
        if isinstance(slurm.get(key), str):
            yield Path(slurm[key])


def make(result: PlanResult, effects: Effects) -> None:
    """Make what the jobs run from, with the diff beside their scripts.

    Raises:
        GitOperationError: git cannot make it.
        ConfigError: a directory that jobs run in is not part of it.
        OSError: it cannot be written.
    """
    if result.source is None or not result.jobs:
        return
    # What a plan without a source need not load.
    from oellm_autoexp.monitor.loop import RealClock

    paths, source = result.loaded.paths, result.source.source
    if source.diff_digest:
        folder = Path(result.jobs[0].spec.script_path).parent
        source = source.with_diff(str(folder / f"source-{source.key}.diff"))
    place = store.make(
        source,
        paths,
        effects,
        experiment=result.loaded.project,
        now=RealClock().now(),
        changes=result.source.changes,
    )
    for cwd in dict.fromkeys(job.request.cwd or "" for job in result.jobs):
        if Path(cwd).is_relative_to(place) and not Path(cwd).is_dir():
            what = f"the source has no directory {Path(cwd).relative_to(place)}, in which jobs are to run"
            raise ConfigError(
                Fault(key="backend.cwd", what=what, hint="git keeps directories that have files")
            )


def exposed(result: PlanResult) -> list[str]:
    """What commands name in your own working tree: there they see what you change later."""
    if result.source is None:
        return []
    roots = [Path(root) for root in result.source.roots]
    ours = [path for path in _ours(result.loaded) if path not in roots]
    found: dict[str, str] = {}
    for job in result.jobs:
        values = (
            *job.request.argv,
            *job.request.environment.values(),
            *job.request.shared_environment.values(),
        )
        for word in dict.fromkeys(part for value in values for part in value.split(os.pathsep)):
            if any(Path(word).is_relative_to(root) for root in roots) and not any(
                Path(word).is_relative_to(path) for path in ours
            ):
                found.setdefault(word, job.spec.name)
    return [
        f"{word} of {name} lies in your working tree, so {_KEY} does not keep it apart: "
        "name it relative to where the job runs"
        for word, name in found.items()
    ]
