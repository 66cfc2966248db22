"""What one attempt asks for, read from `slurm.sbatch`, and what a plan may cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from oellm_autoexp.config.schema import option
from oellm_autoexp.core.model import Resources
from oellm_autoexp.core.times import parse_signal, parse_time
from oellm_autoexp.errors import ConfigError, Fault

T = TypeVar("T")

_GRES_GPU = re.compile(r"(?:gres[/:])?gpu(?:[:=][A-Za-z_][^:=(]*)?(?:[:=](\d+))?(?:\(.*\))?", re.ASCII)


def resources_of(slurm: Mapping[str, Any]) -> Resources:
    """Nodes, GPUs (of all nodes together), time limit and signal before it, of a resolved `slurm` section.

    Keys are long options with `-` or `_`, or short ones; `sbatch_overrides` win. Source: sbatch(1).

    Raises:
        ConfigError: a number, a time or a signal that cannot be read.
    """
    given: dict[str, tuple[str, Any]] = {}
    for section in ("sbatch", "sbatch_overrides"):
        for key, value in (slurm.get(section) or {}).items():
            given[option(str(key))] = (f"slurm.{section}.{key}", value)

    def read(name: str, reader: Callable[[str], T], default: T) -> T:
        key, value = given.get(name, ("", None))
        if value is None:
            return default
        try:
            return reader(str(value))
        except ValueError as error:
            raise ConfigError(Fault(key=key, what=str(error))) from None

    nodes = read("nodes", _nodes, 1)
    gpus = read("gpus", _counted, 0)
    if not gpus:
        gpus = read("gpus-per-node", _counted, 0) * nodes
    if not gpus:
        tasks = read("ntasks", _most, 0) or read("ntasks-per-node", _most, 1) * nodes
        gpus = read("gpus-per-task", _counted, 0) * tasks
    if not gpus:
        gpus = read("gres", _gres, 0) * nodes
    if not gpus:
        gpus = read("tres-per-node", _gres, 0) * nodes
    limit_s, early = read("time", parse_time, None), read("signal", parse_signal, "")
    return Resources(nodes=nodes, gpus=gpus, time_limit_s=limit_s, signal=early)


def _most(text: str) -> int:
    """A number, or the upper end of a range such as 2-4."""
    match = re.fullmatch(r"(?:\d+-)?(\d+)", text, re.ASCII)
    if not match:
        raise ValueError(f"`{text}` is not a number")
    return int(match.group(1))


def _nodes(text: str) -> int:
    count = _most(text)
    if count < 1:
        raise ValueError(f"must be at least 1, not {count}")
    return count


def _counted(text: str) -> int:
    """A number behind an optional type: `4`, `a100:4`, `a100:2,v100:2`."""
    total = 0
    for item in text.split(","):
        count = item.rpartition(":")[2]
        if not count.isdecimal():
            raise ValueError(f"`{text}` is not a number of GPUs: write 4 or TYPE:4")
        total += int(count)
    return total


def _gres(text: str) -> int:
    """The GPUs among generic resources: `gpu:4`, `gpu:a100:4(S:0-1)`, `gpu`."""
    total = 0
    for item in re.split(r",(?![^()]*\))", text):
        match = _GRES_GPU.fullmatch(item.strip())
        if match:
            total += int(match.group(1) or 1)
    return total


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a plan asks for at most; `None`: without bound (a job has no time limit, a policy no budget)."""

    jobs: int = 0
    nodes: int = 0
    gpus: int = 0
    #: All jobs, one attempt each.
    gpu_hours: float | None = 0.0
    #: All jobs, with every restart that their policies allow.
    gpu_hours_with_retries: float | None = 0.0

    @property
    def cost(self) -> str:
        """The GPU-hours in words."""
        if not self.gpus:
            return "no GPUs"
        if self.gpu_hours is None:
            return "GPU-hours without bound: a job with GPUs has no time limit"
        retries = self.gpu_hours_with_retries
        most = "without bound" if retries is None else hours(retries)
        return f"at most {hours(self.gpu_hours)} GPU-hours in one attempt each, {most} with counted restarts"


def hours(value: float) -> str:
    """GPU-hours for people, to a tenth.

    >>> hours(2880.0), hours(2.33778)
    ('2880', '2.3')
    """
    return f"{value:.1f}".removesuffix(".0")


def totals(jobs: Iterable[tuple[Resources, float | None]]) -> Totals:
    """Add up (resources, seconds of all restarts together) of jobs; None: without bound.

    Jobs without GPUs cost no GPU-hours.
    """
    count = nodes = gpus = 0
    once: float | None = 0.0
    most: float | None = 0.0
    for resources, retries_s in jobs:
        count += 1
        nodes += resources.nodes
        gpus += resources.gpus
        if not resources.gpus:
            continue
        limit = resources.time_limit_s
        cost = None if limit is None else resources.gpus * limit / 3600
        again = None if retries_s is None else resources.gpus * retries_s / 3600
        once = None if once is None or cost is None else once + cost
        most = None if most is None or cost is None or again is None else most + cost + again
    return Totals(jobs=count, nodes=nodes, gpus=gpus, gpu_hours=once, gpu_hours_with_retries=most)
