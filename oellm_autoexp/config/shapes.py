"""The composed config in its one shape: older spellings moved, class names filled in where one is meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compoconf import registered

from oellm_autoexp.config.schema import FINER_MODES, RootConfig
from oellm_autoexp.config.sockets import SchedulerInterface
from oellm_autoexp.config.typed import plugin_class, shown
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

_SECTIONS = frozenset(item.name for item in dataclasses.fields(RootConfig))
#: What a config may say for the class of a scheduler.
SCHEDULERS = {
    "slurm": "SlurmClient",
    "local": "LocalScheduler",
    "fake": "FakeSlurmClient",
    "kubernetes": "KubernetesScheduler",
    "RealSlurmClient": "SlurmClient",
    "RealSlurm": "SlurmClient",
    "FakeSlurm": "FakeSlurmClient",
}
#: Sections of named plug-ins.
_ENTRIES = ("restart_policies", "actions", "conditions")


def rooted(raw: Mapping[str, Any], base_output_dir: Path) -> dict[str, Any]:
    """The config with everything in its place; what is no mapping where one is needed stays for the types.

    Raises:
        ConfigError: a key of `restart` that means nothing.
    """
    out = dict(raw)
    _restart(out)
    project = out.get("project")
    if isinstance(project, Mapping) and project.get("base_output_dir") is None:
        out["project"] = {**project, "base_output_dir": str(base_output_dir.resolve())}
    monitoring = out.get("monitoring")
    if monitoring is None or isinstance(monitoring, Mapping):
        out["monitoring"] = {"class_name": "SlurmLogMonitor", **(monitoring or {})}
    actions = out.get("actions")
    if isinstance(actions, Mapping):
        out["actions"] = {name: _action(action) for name, action in actions.items()}
    return out


def _restart(out: dict[str, Any]) -> None:
    """The group `restart` holds `policies`; the section `restart_policies` wins over it, mode by mode."""
    restart = out.pop("restart", None)
    if restart is None:
        return
    if not isinstance(restart, Mapping):
        raise ConfigError(Fault(key="restart", what="must be a mapping", hint="write `restart_policies: …`"))
    unknown = [name for name in restart if name != "policies"]
    if unknown:
        hint = did_you_mean(unknown[0], ["policies"])
        raise ConfigError(Fault(key=f"restart.{unknown[0]}", what="unknown key", hint=hint))
    policies, own = restart.get("policies"), out.get("restart_policies")
    if not isinstance(policies, Mapping) or not isinstance(own, Mapping):
        out["restart_policies"] = policies if own is None else own
        return
    merged = dict(policies)
    for mode, entry in own.items():
        known = merged.get(mode)
        refines = isinstance(entry, Mapping) and isinstance(known, Mapping) and "class_name" not in entry
        merged[mode] = {**known, **entry} if refines else entry  # type: ignore[dict-item]
    out["restart_policies"] = merged


def _action(action: Any) -> Any:
    if isinstance(action, Mapping) and "class_name" not in action and "command" in action:
        return {"class_name": "CommandAction", **action}
    return action


def plugins(raw: Mapping[str, Any]) -> list[str]:
    """The plug-ins that a config names.

    Raises:
        ConfigError: something else than a list of texts.
    """
    given = raw.get("plugins") or []
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        hint = "write `plugins: [./my_backend.py]`"
        raise ConfigError(Fault(key="plugins", what="must be a list of texts", value=shown(given), hint=hint))
    return given


def choose_scheduler(raw: dict[str, Any], *, by_flag: bool) -> None:
    """The registered class for a short name. A flag that changes the class drops keys of the other class.

    `slurm.client` says which Slurm, and so counts where the scheduler is Slurm.

    Raises:
        ConfigError: there is no such scheduler.
    """
    client = _client(raw)
    section = raw.get("scheduler", {})
    if section is None:
        section = {}
    if not isinstance(section, Mapping):
        return
    name = section.get("class_name")
    if name is None or (not by_flag and SCHEDULERS.get(name, name) == "SlurmClient"):
        section = {**client, **section, "class_name": client.get("class_name") or name or "slurm"}
        name = section["class_name"]
    known = registered(SchedulerInterface)
    if not isinstance(name, str):
        return
    chosen = SCHEDULERS.get(name, name)
    if chosen not in known:
        short = [word for word, full in SCHEDULERS.items() if full in known and word.islower()]
        there = [*short, *(full for full in known if full not in SCHEDULERS.values())]
        if chosen in SCHEDULERS.values():
            what = f"the scheduler `{name}` is not part of this version yet"
            hint = f"there are {', '.join(there)}"
        else:
            what = f"there is no scheduler `{name}`"
            hint = did_you_mean(name, there)
        raise ConfigError(Fault(key="scheduler.class_name", what=what, value=name, hint=hint))
    raw["scheduler"] = {**section, "class_name": chosen}
    if by_flag:
        # Only keys that some other scheduler has: what none has is a mistake, and must be seen as one.
        foreign = {key for other in known for key in _keys_of(other)} - _keys_of(chosen)
        raw["scheduler"] = {key: value for key, value in raw["scheduler"].items() if key not in foreign}


def _keys_of(scheduler: str) -> set[str]:
    config = plugin_class(SchedulerInterface, scheduler).config_class
    return {item.name for item in dataclasses.fields(config)} - {"class_name"}


def _client(raw: dict[str, Any]) -> Mapping[str, Any]:
    """What `slurm.client` says, taken out of its section."""
    slurm = raw.get("slurm")
    if not isinstance(slurm, Mapping) or "client" not in slurm:
        return {}
    raw["slurm"] = {key: value for key, value in slurm.items() if key != "client"}
    client = slurm["client"]
    if isinstance(client, str):
        return {"class_name": client}
    if client is not None and not isinstance(client, Mapping):
        hint = "write `client: {class_name: SlurmClient}`"
        raise ConfigError(Fault(key="slurm.client", what="must be a mapping", value=str(client), hint=hint))
    # It kept the files of a fake client; here every scheduler keeps what it needs.
    return {key: value for key, value in (client or {}).items() if key != "persist_artifacts"}


def lacks_class(name: str, value: Any) -> bool:
    """Whether an entry of a section for plug-ins has no class name."""
    if name in _ENTRIES and isinstance(value, Mapping):
        return any(isinstance(entry, Mapping) and "class_name" not in entry for entry in value.values())
    return (
        name in ("backend", "monitoring", "scheduler")
        and isinstance(value, Mapping)
        and not value.get("class_name")
    )


class Room(dict[str, Any]):
    """A mapping that only the keys of some points make: at the others it is not there."""


def make_room(raw: dict[str, Any], swept: Sequence[str]) -> None:
    """Mappings above swept config keys, so that `slurm.sbatch.nodes` may be swept where none is written."""
    for key in swept:
        section, dot, rest = key.partition(".")
        if not dot or section not in _SECTIONS:
            continue
        node: Any = raw
        parts = [section, *rest.split(".")]
        while len(parts) > 1 and isinstance(node, dict):
            finer = FINER_MODES if node is raw.get("restart_policies") else ()
            name = _longest(parts, (*node, *finer))
            if name is None:
                name = parts[0]
            parts = parts[name.count(".") + 1 :]
            if not parts:
                break
            if node.get(name) is None:
                node[name] = Room()
            node = node[name]
    actions: Any = raw.get("actions")
    for name, action in actions.items() if isinstance(actions, dict) else ():
        # What is swept is not there yet, but means the same as where it is written.
        if isinstance(action, Mapping) and f"actions.{name}.command" in swept:
            actions[name] = {"class_name": "CommandAction", **action}


def _longest(parts: Sequence[str], names: Sequence[str]) -> str | None:
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in names:
            return ".".join(parts[:end])
    return None
