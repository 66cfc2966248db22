"""What happens on the fake cluster: its size and habits, its faults, and how each job behaves.

Times are seconds. Everything random is drawn from streams that are named by the seed and by what they are
for, so that another decision about one job changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from random import Random
from typing import Literal

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What a job writes. `{name}`, `{step}`, `{loss}`, `{attempt}`, `{node}`, `{checkpoint}` are filled."""

    started: str = "training begins at step 0"
    resumed: str = "resumed at step {step}"
    progress: str = '@autoexp {"progress": {"step": {step}}, "metrics": {"loss": {loss}}}'
    saved: str = '@autoexp {"checkpoint": "{checkpoint}", "step": {step}}'
    done: str = "training is done after step {step}"


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """How a job shows that something is wrong; `lines` are the last that it writes.

    `exit` ends it with `code`, `kill` by SIGKILL (no exit record), `oom` likewise, as the site shows it; with
    `hang` it does nothing more and says nothing, or ends with `code` when it has hung for `ends_after` (as
    the watchdog of a collective has it).
    """

    kind: Literal["exit", "kill", "oom", "hang"] = "exit"
    code: int = 1
    lines: list[str] = field(default_factory=list)
    ends_after: float | None = None

    def __post_init__(self) -> None:
        if self.ends_after is not None and (self.kind != "hang" or self.ends_after < 0):
            raise ValueError("ends_after is for a hang, and must not be negative")

    @property
    def killed(self) -> bool:
        return self.kind in ("kill", "oom")


@dataclass(frozen=True, kw_only=True)
class Mishap(Symptom):
    """What may befall a job, at most once an attempt.

    When: `after` so long, when `at_work` has been done, or on average `every` so long. Only in the first
    `attempts` attempts, with this `chance`.
    """

    after: float | None = None
    at_work: float | None = None
    every: float | None = None
    attempts: int | None = None
    chance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [value for value in (self.after, self.at_work, self.every) if value is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of after, at_work and every")
        if given[0] < 0 or self.every == 0:
            raise ValueError("a time must not be negative, and `every` must be more than 0")
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be between 0 and 1, got {self.chance:g}")


@dataclass(frozen=True, kw_only=True)
class Play:
    """How the jobs behave whose name matches. `work` is done when nothing goes wrong in between.

    It needs `startup` before its first step, saves every `checkpoint_every` of work (null: never; it stands
    still for `checkpoint_takes`), and goes on from its newest checkpoint when it is started again. `spread`
    varies the work between jobs by up to this part. Told to stop it ends after `stop_takes`, having saved
    where `saves_when_stopped`; what takes longer than the cluster's `kill_wait` is killed.
    """

    match: str = "*"
    work: float = 6 * HOUR
    spread: float = 0.0
    startup: float = 2 * MINUTE
    step_takes: float = 10.0
    log_every: float = 10 * MINUTE
    checkpoint_every: float | None = HOUR
    checkpoint_takes: float = 20.0
    stop_takes: float = 2.0
    saves_when_stopped: bool = False
    code: int = 0
    lines: Lines = field(default_factory=Lines)
    mishaps: list[Mishap] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("work", "startup", "checkpoint_takes", "stop_takes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("step_takes", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be more than 0")
        if not 0 <= self.spread < 1:
            raise ValueError("spread must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The first `nodes` nodes (null: all), for jobs of at most `max_time` and `max_nodes`."""

    nodes: int | None = None
    max_time: float | None = None
    max_nodes: int | None = None
    down: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterHabits:
    """Size and settings; the names are those of slurm.conf(5) where it has one.

    `nodes`: null for as many as the jobs want at once, and `spare` of that (a part, at least one node) more.
    Jobs get whole nodes. Without `partitions` every partition exists and has no limits; the first is the
    default. `requeue`: Slurm itself starts again what lost its node or was preempted (false: only where the
    script has `--requeue`, for the client asks it not to). `queue_wait`: the mean time that others are served
    first. `accounting_lag`: until sacct knows.
    """

    nodes: int | None = 64
    spare: float = 0.02
    partitions: dict[str, Partition] = field(default_factory=dict)
    default_time: float = DAY
    queue_wait: float = 0.0
    scheduling_delay: float = 3.0
    completing: float = 1.0
    requeue: bool = False
    requeue_delay: float = 2 * MINUTE
    slurmd_timeout: float = 5 * MINUTE
    kill_wait: float = 30.0
    preempt_grace: float = MINUTE
    over_time: float = 30.0
    min_job_age: float = 5 * MINUTE
    accounting: bool = True
    accounting_lag: float = 0.0
    max_array_size: int = 1001
    max_submit_jobs: int | None = None
    shows_out_of_memory: bool = True
    kill_invalid_depend: bool = False

    def __post_init__(self) -> None:
        if (self.nodes is not None and self.nodes < 1) or self.max_array_size < 1:
            raise ValueError("nodes and max_array_size must be at least 1")
        if self.spare < 0:
            raise ValueError("spare must not be negative")

    @property
    def size(self) -> int:
        """The number of nodes, once it is known."""
        assert self.nodes is not None, "sized before it is played"
        return self.nodes


@dataclass(frozen=True, kw_only=True)
class Sticky:
    """With this `chance` what broke stays broken: the fault comes again, on average `every` so long, until
    the site drains the node, on average `drained_after` so long. It is then out of service for `repair`.
    """

    every: float
    drained_after: float
    chance: float = 1.0
    repair: float = DAY

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be between 0 and 1, got {self.chance:g}")
        if self.every <= 0 or self.drained_after <= 0 or self.repair < 0:
            raise ValueError("a time must not be negative; `every` and `drained_after` must be more than 0")


@dataclass(frozen=True, kw_only=True)
class ClusterFault:
    """What befalls the cluster, once `at` so long after the start, or on average `every` so long.

    `node_fail`: a `node` (default: any) dies for `lasts`; where it `runs_on`, only its connection is cut and
    the first copy of a job goes on. `node_error`: something on a node breaks; the node stays in service, and
    the job on it has the `symptom` (`{node}` in its lines is the node). `maintenance`: a node is taken out of
    service for `lasts`, and the job on it is requeued. For these `every` is the mean time of one node, and
    what broke may be `sticky`. `preempt`, `suspend` (for `lasts`), `cancel` (by an administrator), `hold`,
    `release` and `requeue` take one of the jobs whose name matches `job`. `outage`: the controller is down;
    `frozen`: it answers nothing, and what is submitted is taken in afterwards; `crash`: it forgets what was
    submitted within 5 s, and is down. `lost_answer`: the next submission is taken in, but nobody is told.
    `name`: what people call it.
    """

    kind: Literal[
        "node_fail",
        "node_error",
        "maintenance",
        "preempt",
        "suspend",
        "cancel",
        "hold",
        "release",
        "requeue",
        "outage",
        "frozen",
        "crash",
        "lost_answer",
    ]
    at: float | None = None
    every: float | None = None
    lasts: float = HOUR
    name: str = ""
    node: str = ""
    job: str = "*"
    runs_on: bool = False
    symptom: Symptom = field(default_factory=Symptom)
    sticky: Sticky | None = None

    def __post_init__(self) -> None:
        if (self.at is None) == (self.every is None):
            raise ValueError("give either at or every")
        if self.lasts < 0 or (self.at or 0) < 0 or (self.every is not None and self.every <= 0):
            raise ValueError("a time must not be negative, and `every` must be more than 0")
        if self.sticky is not None and not self.of_a_node:
            raise ValueError("only what befalls a node is sticky")

    @property
    def of_a_node(self) -> bool:
        return self.kind in ("node_fail", "node_error", "maintenance")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A whole scenario; the default one is a quiet cluster on which every job works.

    `start`: the first moment, UTC epoch seconds (2026-01-01). The loop's turns are at least `pace` and at
    most `stride` apart, and everything must have ended within `horizon`. `attended`: a person looks so often,
    and starts again what has failed (only `rehearse` plays that; null: nobody does).
    """

    seed: int = 0
    start: float = 1_767_225_600.0
    pace: float = MINUTE
    stride: float = 10 * MINUTE
    horizon: float = 366 * DAY
    attended: float | None = None
    cluster: ClusterHabits = field(default_factory=ClusterHabits)
    faults: list[ClusterFault] = field(default_factory=list)
    jobs: list[Play] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.pace <= self.stride:
            raise ValueError("pace must be more than 0 and at most stride")
        if self.attended is not None and self.attended <= 0:
            raise ValueError("attended must be more than 0")

    def of_size(self, nodes: int) -> Scenario:
        """The scenario on so many nodes, if it leaves their number open."""
        if self.cluster.nodes is not None:
            return self
        return replace(self, cluster=replace(self.cluster, nodes=nodes))

    def turning(self, shortest: float | None) -> Scenario:
        """The scenario with turns of the loop so close that `shortest` is told apart from half of it."""
        if not shortest or shortest / 2 >= self.pace:
            return self
        return replace(self, pace=shortest / 2)

    def play_of(self, name: str) -> Play:
        """How a job behaves: the first entry that matches."""
        return next((play for play in self.jobs if fnmatchcase(name, play.match)), _QUIET)

    def stream(self, *what: object) -> Random:
        """Random numbers of their own for one purpose."""
        return Random("|".join(map(str, (self.seed, *what))))  # noqa: S311 - it must be repeatable


_QUIET = Play()


def quiet(shortest: float | None = None) -> Scenario:
    """A cluster on which every job works, and writes at least four times within `shortest`.

    Where a config is so quick that this is not so by itself, its jobs are taken for quick ones: all that they
    do takes so much less time.
    """
    scenario = Scenario()
    if not shortest or shortest >= 4 * _QUIET.log_every:
        return scenario
    factor = shortest / (4 * _QUIET.log_every)
    times = (
        "work",
        "startup",
        "step_takes",
        "log_every",
        "checkpoint_every",
        "checkpoint_takes",
        "stop_takes",
    )
    play = replace(_QUIET, **{name: getattr(_QUIET, name) * factor for name in times})
    return replace(scenario, jobs=[play], pace=scenario.pace * factor, stride=scenario.stride * factor)


def chosen_mishap(play: Play, attempt: int, work: float, stream: Random) -> tuple[float, Mishap] | None:
    """The first mishap of an attempt that starts with so much work done, in seconds after its first step."""
    found: list[tuple[float, int, Mishap]] = []
    for number, mishap in enumerate(play.mishaps):
        drawn, roll = stream.expovariate(1.0), stream.random()
        if (mishap.attempts is not None and attempt > mishap.attempts) or roll >= mishap.chance:
            continue
        if mishap.every is not None:
            found.append((drawn * mishap.every, number, mishap))
        elif mishap.after is not None:
            found.append((mishap.after, number, mishap))
        elif mishap.at_work is not None and mishap.at_work >= work:
            found.append((mishap.at_work - work + _stands_still(play, work, mishap.at_work), number, mishap))
    first: Sequence[tuple[float, int, Mishap]] = sorted(found, key=lambda item: item[:2])[:1]
    return (first[0][0], first[0][2]) if first else None


def _stands_still(play: Play, work: float, until: float) -> float:
    """The time that checkpoints take between two amounts of work."""
    if play.checkpoint_every is None:
        return 0.0
    return play.checkpoint_takes * (until // play.checkpoint_every - work // play.checkpoint_every)
