"""From the journaled rules of a job to the objects that apply them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oellm_autoexp.config.schema import RulesConfig, parse_rules
from oellm_autoexp.config.sockets import (
    ActionInterface,
    ConditionInterface,
    RestartPolicyInterface,
    made,
)
from oellm_autoexp.core.lifecycle import Rules
from oellm_autoexp.core.model import EndedAttempt, Restart, Stop
from oellm_autoexp.core.signals import SignalRule
from oellm_autoexp.monitor.scan import LogWatcher
from oellm_autoexp.reactions.conditions import CommandCondition, CommandConditionConfig
from oellm_autoexp.reactions.policies import in_force

#: Seconds between two looks at a condition where the config names none.
CONDITION_INTERVAL_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """Everything in force for a job, ready to be applied."""

    lifecycle: Rules
    watcher: LogWatcher
    actions: Mapping[str, ActionInterface] = field(default_factory=dict)
    #: Actions by the happening that fires them ("job_failed", …).
    occasions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    start: ConditionInterface | None = None
    cancel: ConditionInterface | None = None
    finish: ConditionInterface | None = None
    #: Must hold for exit 0 to be a success.
    success: ConditionInterface | None = None
    start_interval_s: float = CONDITION_INTERVAL_S
    #: Seconds between looks at the logs / at the scheduler; None: the scheduler's default.
    check_interval_s: float | None = None
    poll_interval_s: float | None = None

    @property
    def gated(self) -> bool:
        """Whether a condition may end a job that waits."""
        return self.cancel is not None or self.finish is not None


def build(config: Mapping[str, Any]) -> RuleSet:
    """The rule set of a journaled rules mapping.

    Raises:
        ConfigError: it no longer parses (a plug-in is missing, say).
    """
    parsed = parse_rules(config)
    signals = _signals(parsed)
    policies = {
        mode: _Safe(made(RestartPolicyInterface, entry)) for mode, entry in parsed.policies(in_force).items()
    }
    actions = {name: made(ActionInterface, entry) for name, entry in parsed.actions.items()}
    occasions: dict[str, tuple[str, ...]] = {}
    for name, entry in parsed.actions.items():
        for occasion in getattr(entry, "on", ()):
            occasions[occasion] = (*occasions.get(occasion, ()), name)
    watch, silence = parsed.monitoring, parsed.either("inactivity_threshold_seconds")
    lifecycle = Rules(
        policies=policies,
        success_needs_signal=bool(
            any(rule.mode.split(".")[0] == "success" for rule in signals)
            or parsed.either("termination_command")
        ),
        acting={rule.name: rule.grace_s for rule in signals if rule.mode and rule.grace_s is not None},
        stall_after_s=None if silence == "auto" else silence,
        stall_learned=silence == "auto",
        counter_after_s=getattr(watch, "progress_threshold_seconds", None),
        startup_grace_s=getattr(watch, "startup_grace_seconds", 900.0),
        progress_known=any(rule.counter or rule.metadata.get("kind") == "checkpoint" for rule in signals),
    )
    start = _command(parsed.either("start_condition_cmd")) or _condition(parsed, parsed.job.start_condition)
    return RuleSet(
        lifecycle=lifecycle,
        watcher=LogWatcher(signals),
        actions=actions,
        occasions=occasions,
        start=start,
        cancel=_condition(parsed, parsed.job.cancel_condition),
        finish=_condition(parsed, parsed.job.finish_condition),
        success=_command(parsed.either("termination_command")),
        start_interval_s=parsed.either("start_condition_interval_seconds") or CONDITION_INTERVAL_S,
        check_interval_s=getattr(watch, "check_interval_seconds", None),
        poll_interval_s=getattr(watch, "poll_interval_seconds", None),
    )


@dataclass(frozen=True)
class _Safe:
    """A policy whose mistake ends one job with the reason, and not the loop that leads them all."""

    policy: RestartPolicyInterface

    def decide(self, ended: EndedAttempt) -> Restart | Stop:
        try:
            decision = self.policy.decide(ended)
        except Exception as error:  # noqa: BLE001 - whatever a plug-in raises
            return Stop(why=f"{type(self.policy).__name__} failed: {type(error).__name__}: {error}")
        if not isinstance(decision, (Restart, Stop)):
            return Stop(why=f"{type(self.policy).__name__} answered {decision!r}, not Restart or Stop")
        return decision


def _signals(parsed: RulesConfig) -> list[SignalRule]:
    rules = [SignalRule.from_config(name, entry) for name, entry in parsed.log_signals.items()]
    text = parsed.either("termination_string")
    if text:
        found = {"pattern": text, "pattern_type": "substring", "mode": "success"}
        rules.append(SignalRule.from_config("termination_string", found))
    return rules


def _command(command: str | None) -> ConditionInterface | None:
    return CommandCondition(CommandConditionConfig(command=command)) if command else None


def _condition(parsed: RulesConfig, wanted: Any) -> ConditionInterface | None:
    """A condition by the name of an entry under `conditions`, or written in place."""
    if wanted is None:
        return None
    return made(ConditionInterface, parsed.conditions[wanted] if isinstance(wanted, str) else wanted)
