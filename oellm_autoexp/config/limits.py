"""What a scheduler's config says of how jobs are let in, whichever scheduler it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from compoconf import ConfigInterface

from oellm_autoexp.core.nodes import NodeExclusion

#: Where jobs wait for others: here, or in the queue of the scheduler too.
OURS, NATIVE = "ours", "native"


@dataclass(kw_only=True)
class SchedulerLimits(ConfigInterface):
    """How jobs are let in.

    `max_jobs`: live attempts at once (None: the scheduler's own bound); of an array, tasks that run at once.
    `submit_rate_limit_seconds`: least time between two submissions.
    `breaker`: so many jobs that died early of one cause hold the rest (None: never).
    `canary`: the first so many jobs go first; the others wait until these have shown that they work (None, 0:
    nobody waits).
    `dependency`: "ours": a job that waits for others is submitted when these have succeeded; "native": while
    they run, behind them, where the scheduler has a queue (Slurm).
    """

    max_jobs: int | None = None
    submit_rate_limit_seconds: float | None = None
    breaker: int | None = 3
    canary: int | None = None
    dependency: str = OURS

    def __post_init__(self) -> None:
        for name, least in (("max_jobs", 1), ("breaker", 1), ("canary", 0), ("submit_rate_limit_seconds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.dependency not in (OURS, NATIVE):
            raise ValueError(f"dependency must be {OURS} or {NATIVE}, got {self.dependency!r}")


@dataclass(kw_only=True)
class ClusterLimits(SchedulerLimits):
    """The same where there are nodes to choose from: `node_exclusion` says when one is left out.

    `successor`: while an attempt runs towards its time limit, the next one waits in the queue behind its end.
    `successor_wait_seconds`: how long that one, or one that was queued behind other jobs, waits to be told
    to go once it has started; then it goes on by itself if the time limit was what ended the one before, or
    if these have surely succeeded.
    """

    node_exclusion: NodeExclusion | None = field(default_factory=NodeExclusion)
    successor: bool = False
    successor_wait_seconds: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.successor_wait_seconds < 0:
            raise ValueError(f"successor_wait_seconds cannot be negative, got {self.successor_wait_seconds}")
