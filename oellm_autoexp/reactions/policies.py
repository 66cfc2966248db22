"""What follows the end of an attempt: the restart policies, and the defaults where a config names none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compoconf import ConfigInterface, register

from oellm_autoexp.config.sockets import RestartPolicyInterface
from oellm_autoexp.core.model import EndedAttempt, Restart, Stop, mode_root
from oellm_autoexp.core.verdict import format_duration


@dataclass(kw_only=True)
class RestartBudget(ConfigInterface):
    """Restart within budgets.

    `max_retries`: N is N restarts in all; None: no such limit. With `refilled_by_progress` they are counted
    since a counter or a checkpoint last moved ahead, and nothing else is counted: a job that gets ahead has
    them all again, one that does not, or that reports nothing, ends after N.
    `max_retries_without_progress`: restarts since a counter or a checkpoint last moved ahead; it counts only
    where a job declares or reports one of them; None: no such limit.
    `backoff_seconds`: the wait before a restart, times `backoff_factor` for each earlier one without
    progress, at most `backoff_max_seconds`.
    """

    max_retries: int | None = None
    refilled_by_progress: bool = False
    max_retries_without_progress: int | None = 3
    backoff_seconds: float = 10.0
    backoff_factor: float = 2.0
    backoff_max_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_retries", "max_retries_without_progress", "backoff_seconds", "backoff_max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative or infinite, got {value}")
        if not 1 <= self.backoff_factor < math.inf:
            raise ValueError(f"backoff_factor must be at least 1, got {self.backoff_factor}")


@dataclass(kw_only=True)
class AlwaysRestartPolicyConfig(RestartBudget):
    """The budgets and the back-off."""


@register
class AlwaysRestartPolicy(RestartPolicyInterface):
    """Restart until a budget is used up."""

    config: AlwaysRestartPolicyConfig
    config_class = AlwaysRestartPolicyConfig

    def decide(self, ended: EndedAttempt) -> Restart | Stop:
        return within(self.config, ended)


def within(budget: RestartBudget, ended: EndedAttempt) -> Restart | Stop:
    """Restart while the budget lasts."""
    limit = budget.max_retries
    counted = ended.restarts_without_progress if budget.refilled_by_progress else ended.restarts
    if limit is not None and counted >= limit:
        used_up = f"all {limit} restarts for {ended.mode} are used up"
        if ended.restarts > counted:
            used_up += " since it last got ahead"
        return Stop(why=used_up if limit else "no restarts allowed")
    fruitless = None if budget.refilled_by_progress else budget.max_retries_without_progress
    if ended.progress_known and fruitless is not None and ended.restarts_without_progress >= fruitless:
        return Stop(why=f"{fruitless} restarts for {ended.mode} in a row made no progress")
    used = f"{counted + 1}" + (f" of {limit}" if limit is not None else "")
    delay = _delay(budget, ended.restarts_without_progress)
    wait = f" in {delay:g} s" if delay else ""
    return Restart(why=f"restart {used} after {ended.mode}{wait}", delay_s=delay)


def _delay(budget: RestartBudget, earlier: int) -> float:
    try:
        delay = budget.backoff_seconds * budget.backoff_factor**earlier
    except OverflowError:
        delay = math.inf if budget.backoff_seconds else 0.0
    return min(delay, budget.backoff_max_seconds)


@dataclass(kw_only=True)
class AdjustTimeLimitPolicyConfig(RestartBudget):
    """As AlwaysRestartPolicy, and each restart gets `minutes` more, up to `max_minutes` (None: unbounded)."""

    minutes: float = 30.0
    max_minutes: float | None = None
    backoff_seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"minutes must not be negative or infinite, got {self.minutes}")
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise ValueError(f"max_minutes must be positive, got {self.max_minutes}")


@register
class AdjustTimeLimitPolicy(RestartPolicyInterface):
    """Restart with a longer time limit."""

    config: AdjustTimeLimitPolicyConfig
    config_class = AdjustTimeLimitPolicyConfig

    def decide(self, ended: EndedAttempt) -> Restart | Stop:
        decision = within(self.config, ended)
        if isinstance(decision, Stop) or ended.time_limit_s is None:
            return decision
        limit = ended.time_limit_s + round(self.config.minutes * 60)
        if self.config.max_minutes is not None:
            limit = max(ended.time_limit_s, min(limit, round(self.config.max_minutes * 60)))
        why = f"{decision.why}, time limit now {format_duration(limit)}"
        return Restart(why=why, delay_s=decision.delay_s, time_limit_s=limit)


@dataclass(kw_only=True)
class NoRestartPolicyConfig(ConfigInterface):
    """`message` tells the person who finds the job what to do."""

    message: str = ""


@register
class NoRestartPolicy(RestartPolicyInterface):
    """The job ends."""

    config: NoRestartPolicyConfig
    config_class = NoRestartPolicyConfig

    def decide(self, ended: EndedAttempt) -> Restart | Stop:
        return Stop(why=self.config.message or f"no restart after {ended.mode}")


#: In force whatever a config says, unless it has an entry of that very name.
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "success": {"class_name": "NoRestartPolicy"},
    "crash.config": {"class_name": "NoRestartPolicy", "message": "a restart cannot mend this"},
    "cancelled": {"class_name": "NoRestartPolicy"},
    "preempted": {
        "class_name": "AlwaysRestartPolicy",
        "max_retries_without_progress": None,
        "backoff_seconds": 0.0,
    },
}


def _refilled(most: int) -> Mapping[str, Any]:
    """So many restarts in a row without progress, however far the job has come: each kind of end has its own.

    A month on thousands of nodes has hundreds of interruptions, and each of them may be survived.
    """
    return {"class_name": "AlwaysRestartPolicy", "max_retries": most, "refilled_by_progress": True}


#: In force for the modes whose root a config says nothing about.
DEFAULT_POLICIES: Mapping[str, Mapping[str, Any]] = {
    "timeout": {"class_name": "AlwaysRestartPolicy", "backoff_seconds": 0.0},
    "stall": _refilled(2),
    "crash": _refilled(2),
    "crash.node_failure": _refilled(10),
    "crash.lost": _refilled(10),
    "crash.oom": {"class_name": "NoRestartPolicy", "message": "it needs more memory or a smaller batch"},
    "crash.nan": {"class_name": "NoRestartPolicy", "message": "the loss is not a number"},
}


def in_force(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Every policy entry that applies, by mode: the configured ones over the defaults.

    A configured `crash` also stands for the finer kinds that have no entry of their own; only BUILT_IN
    entries yield to nothing but their own name.
    """
    roots = {mode_root(mode) for mode in configured if "." not in mode}
    defaults = {mode: entry for mode, entry in DEFAULT_POLICIES.items() if mode_root(mode) not in roots}
    return {**defaults, **BUILT_IN, **configured}
