"""The queue of the fake cluster: who starts now, on which nodes, and why the others wait.

First come, first served; a job behind the first that does not fit may start where that
delays it by nothing (backfill). The words are those of squeue(1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType

from oellm_autoexp.schedulers.fake.run import JobRequest, Run
from oellm_autoexp.schedulers.fake.scenario import ClusterFault, ClusterHabits, Partition

PRIORITY, RESOURCES, BEGIN_TIME = "Priority", "Resources", "BeginTime"
#: As many tasks of its array run as may at once.
TASK_LIMIT = "JobArrayTaskLimit"
#: More nodes are excluded than the job can do without.
BAD_CONSTRAINTS = "BadConstraints"
NO_NODES = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"


#: Partition, nodes, time limit and excluded nodes of a job.
_Wish = tuple[str, int, float, frozenset[str]]


@dataclass(slots=True)
class FakeJob:
    """A task as the controller knows it; `state` and `reason` are its words."""

    id: str
    token: str
    task: int
    request: JobRequest
    submitted_at: float
    time_limit: float
    state: str = "PENDING"
    reason: str = PRIORITY
    #: The nodes that it may not be given, as it stands now.
    exclude: frozenset[str] = frozenset()
    eligible_at: float = 0.0
    #: "JobHeldUser" or "JobHeldAdmin"; "" for not.
    held: str = ""
    #: For which other jobs it waits: "Dependency", "DependencyNeverSatisfied"; "" for none.
    blocked: str = ""
    restarts: int = 0
    nodes: tuple[str, ...] = ()
    #: Those of its nodes for whose failure it ended.
    failed_nodes: tuple[str, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int = 0
    signal: int = 0
    run: Run | None = None
    #: Counts its starts and ends: what was planned for an earlier life is void.
    life: int = 0
    #: Since when it is suspended; how long it was so before, which is no part of its time limit.
    suspended_at: float | None = None
    suspended: float = 0.0
    #: How it will end once its processes are gone: state and reason.
    verdict: tuple[str, str] | None = None
    #: Its place in the queue.
    order: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        number, _, task = self.id.partition("_")
        self.order = int(number), int(task or 0)

    @property
    def pending(self) -> bool:
        return self.state == "PENDING"

    @property
    def ended(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")


@dataclass(slots=True)
class Node:
    """A node; `up` as it is, `known_up` as the controller believes."""

    name: str
    up: bool = True
    known_up: bool = True
    #: Until when the site has it out of service: what runs there goes on, nothing else starts. 0: it is in.
    drained_until: float = 0.0
    #: What is broken in it and comes again.
    broken: ClusterFault | None = None
    job: str = ""
    #: Counts its failures.
    failures: int = 0
    #: Starts that are beyond the controller's reach, and go on.
    orphans: list[Run] = field(default_factory=list)

    @property
    def free(self) -> bool:
        return self.up and self.in_service and not self.job

    @property
    def in_service(self) -> bool:
        """Whether the controller would start something there."""
        return self.known_up and not self.drained_until


_ORDER = attrgetter("order")


def partition_of(habits: ClusterHabits, name: str) -> Partition | None:
    """The partition of a name, the default one for "" (sbatch(1)); None: there is none."""
    if not habits.partitions:
        return Partition()
    return habits.partitions.get(name or next(iter(habits.partitions)))


def never(habits: ClusterHabits, job: FakeJob, partition: Partition, names: Sequence[str]) -> str:
    """Why a job can never start as things are; "" if it can. `names` are the cluster's nodes."""
    wanted = job.request.nodes
    if partition.down:
        return "PartitionDown"
    if partition.max_time is not None and job.time_limit > partition.max_time:
        return "PartitionTimeLimit"
    if wanted > (partition.max_nodes if partition.max_nodes is not None else wanted):
        return "PartitionNodeLimit"
    size = size_of(habits, partition)
    if wanted > size:
        return "PartitionConfig"
    return BAD_CONSTRAINTS if wanted > _allowed(names[:size], job.exclude) else ""


def _allowed(names: Sequence[str], exclude: frozenset[str]) -> int:
    return len(names) - sum(1 for name in names if name in exclude) if exclude else len(names)


def size_of(habits: ClusterHabits, partition: Partition) -> int:
    return min(habits.size, partition.nodes if partition.nodes is not None else habits.size)


def _outlook(
    habits: ClusterHabits, job: FakeJob, nodes: Mapping[str, Node], names: Sequence[str]
) -> tuple[str, int]:
    """Why a job cannot start, however many nodes are free ("" if it can); how many it may choose from."""
    partition = partition_of(habits, job.request.partition)
    assert partition is not None
    size = size_of(habits, partition)
    reason = never(habits, job, partition, names)
    if not reason:
        believed = sum(1 for name in names[:size] if name not in job.exclude and nodes[name].in_service)
        reason = NO_NODES if believed < job.request.nodes else ""
    return reason, size


def starts(
    habits: ClusterHabits,
    pending: Iterable[FakeJob],
    running: Sequence[FakeJob],
    nodes: Mapping[str, Node],
    now: float,
    throttles: Mapping[int, int] = MappingProxyType({}),
) -> list[tuple[FakeJob, tuple[str, ...]]]:
    """The jobs that start now, each with its nodes. The reasons of the others are set.

    `throttles`: how many tasks of an array may run at once, by its number.
    """
    room = {array: most - sum(job.order[0] == array for job in running) for array, most in throttles.items()}
    names = list(nodes)
    free = [name for name in names if nodes[name].free]
    position = {name: number for number, name in enumerate(names)}
    #: By what jobs ask for: why they cannot start whatever becomes free, and how many nodes they choose from.
    known: dict[_Wish, tuple[str, int]] = {}
    #: By how many of the first nodes a job may have, without which: those that are free.
    free_of: dict[tuple[int, frozenset[str]], list[str]] = {}
    found: list[tuple[FakeJob, tuple[str, ...]]] = []
    #: Of the first that did not fit, by its partition: until when, and how many nodes it leaves over.
    shadows: dict[str, tuple[float, int]] = {}
    for job in sorted(pending, key=_ORDER):
        if job.held or job.blocked or now < job.eligible_at:
            job.reason = job.held or job.blocked or (BEGIN_TIME if job.restarts else PRIORITY)
            continue
        if room.get(job.order[0], 1) <= 0:
            job.reason = TASK_LIMIT
            continue
        wanted = job.request.nodes
        wish = job.request.partition, wanted, job.time_limit, job.exclude
        if wish not in known:
            known[wish] = _outlook(habits, job, nodes, names)
        reason, size = known[wish]
        if reason:
            job.reason = reason
            continue
        shadow = shadows.get(job.request.partition)
        if not free and shadow is not None:
            job.reason = PRIORITY
            continue
        key = size, job.exclude
        if key not in free_of:
            free_of[key] = [name for name in free if position[name] < size and name not in job.exclude]
        mine = free_of[key]
        fits = wanted <= len(mine)
        if fits and shadow is not None:
            fits = now + job.time_limit <= shadow[0] or wanted <= shadow[1]
            if fits and now + job.time_limit > shadow[0]:
                shadows[job.request.partition] = (shadow[0], shadow[1] - wanted)
        if fits:
            taken = tuple(mine[:wanted])
            gone = frozenset(taken)
            free = [name for name in free if name not in gone]
            free_of.clear()
            found.append((job, taken))
            if job.order[0] in room:
                room[job.order[0]] -= 1
        elif shadow is None:
            job.reason = RESOURCES
            ends = [(started.time_limit + now, _allowed(on, job.exclude)) for started, on in found]
            shadows[job.request.partition] = _shadow(wanted, len(mine), running, ends, job.exclude)
        else:
            job.reason = PRIORITY
    return found


def _shadow(
    wanted: int,
    free: int,
    running: Sequence[FakeJob],
    more: Sequence[tuple[float, int]],
    exclude: frozenset[str],
) -> tuple[float, int]:
    """When so many nodes will be free at the latest, and how many will then be left over."""
    ends = [((job.started_at or 0.0) + job.time_limit, _allowed(job.nodes, exclude)) for job in running]
    for at, number in sorted([*ends, *more]):
        free += number
        if free >= wanted:
            return at, free - wanted
    return float("inf"), 0
