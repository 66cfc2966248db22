"""What the contract suites of policies, actions and conditions share: every registered name, and its config.

A plug-in that is registered later is in the suites without being named; where its config has a field without
a default it needs an example here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compoconf import parse_config, registered

from oellm_autoexp.config.sockets import (
    ActionConfig,
    ActionInterface,
    ConditionConfig,
    ConditionInterface,
    RestartPolicyConfig,
    RestartPolicyInterface,
    made,
)
from oellm_autoexp.services import plugins

plugins.load_builtin()

#: What a config needs beside its defaults, by class name.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "CommandAction": {"command": "convert {path} --to={out}"},
    "AppendAction": {"path": "/tmp/{job}.txt", "text": "{path} of {attempt}"},
    "NotifyAction": {"command": "mail -s {message} me"},
    "CommandCondition": {"command": "test -e {output_dir}/x"},
    "FileExistsCondition": {"path": "{output_dir}/x"},
    "GlobCondition": {"pattern": "{output_dir}/*.pt"},
    "SignalCondition": {"signal": "saved"},
    "MetricCondition": {"metric": "loss", "at_most": 2.0},
    "AllCondition": {"conditions": [{"class_name": "FileExistsCondition", "path": "{output_dir}/x"}]},
    "AnyCondition": {"conditions": [{"class_name": "FileExistsCondition", "path": "{output_dir}/x"}]},
    "NotCondition": {"condition": {"class_name": "FileExistsCondition", "path": "{output_dir}/x"}},
}

POLICIES = sorted(registered(RestartPolicyInterface))
ACTIONS = sorted(registered(ActionInterface))
CONDITIONS = sorted(registered(ConditionInterface))


@dataclass(kw_only=True)
class _Root:
    policy: RestartPolicyConfig | None = None
    action: ActionConfig | None = None
    condition: ConditionConfig | None = None


def _parsed(section: str, name: str, changes: Mapping[str, Any]) -> Any:
    config = {"class_name": name, **EXAMPLES.get(name, {}), **changes}
    return getattr(parse_config(_Root, {section: config}, strict_types=True), section)


def policy(name: str, **changes: Any) -> RestartPolicyInterface:
    return made(RestartPolicyInterface, _parsed("policy", name, changes))


def action(name: str, **changes: Any) -> ActionInterface:
    return made(ActionInterface, _parsed("action", name, changes))


def condition(name: str, **changes: Any) -> ConditionInterface:
    return made(ConditionInterface, _parsed("condition", name, changes))


# ---------------------------------------------------------------- purity

_sealed = False
#: Audit events (PEP 578) that are an effect or a look at the world.
_EFFECTS = ("open", "os.", "subprocess.", "socket.", "shutil.", "glob.", "urllib.", "time.sleep", "tempfile.")


def _watch(event: str, _args: object) -> None:
    if _sealed and event.startswith(_EFFECTS):
        raise AssertionError(f"{event} in what must be pure")


sys.addaudithook(_watch)


@contextmanager
def sealed() -> Iterator[None]:
    """Nothing in here may touch a file, a process, a socket, or wait."""
    global _sealed  # noqa: PLW0603 - an audit hook cannot be taken away
    _sealed = True
    try:
        yield
    finally:
        _sealed = False
