"""What must fit together across sections: signals and actions, conditions, modes, files, sbatch options."""

from __future__ import annotations

import grp
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from compoconf import parse_config

from oellm_autoexp.config.files import is_text_option, not_text
from oellm_autoexp.config.schema import FILES, PATHS, option
from oellm_autoexp.config.sockets import ActionInterface, made
from oellm_autoexp.config.typed import HINTS, faults_of, is_open, shown
from oellm_autoexp.core.model import MODES, mode_root
from oellm_autoexp.core.signals import CHECKPOINT_REPORT, SignalRule
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

#: What an action may name of any job, beside the job's parameters and what its signal provides.
JOB_FIELDS = frozenset(
    {
        "project",
        "session",
        "job",
        "job_name",
        "name",
        "job_id",
        "attempt",
        "output_dir",
        "checkpoint_dir",
        "log_path",
        "state",
        "mode",
        "reason",
        "signal",
    }
)
#: The sections that `rules` looks at.
RULES = ("monitoring", "restart_policies", "actions", "conditions", "job")


def rules(raw: Mapping[str, Any], parameters: Collection[str] = ()) -> Iterator[Fault]:
    """Every mistake that no section of RULES shows by itself. `parameters`: the keys of the sweep.

    Values that only a point knows are passed over, and so is what is no mapping where one is needed.
    """
    sections = {name: raw[name] if isinstance(raw.get(name), Mapping) else {} for name in RULES}
    found = {}
    signals = sections["monitoring"].get("log_signals")
    for name, signal in (signals if isinstance(signals, Mapping) else {}).items():
        key = f"monitoring.log_signals.{name}"
        if isinstance(signal, Mapping):
            try:
                rule = _rule(name, signal, key)
            except ConfigError as error:
                yield from error.faults
                continue
            if rule is not None:
                found[name] = rule
                yield from _actions_of(rule, signal, key, sections["actions"])
    yield from _placeholders(sections["actions"], found, parameters)
    yield from _modes(sections)
    yield from _conditions(sections["job"], sections["conditions"])
    kept = {name: rule.silent for name, rule in found.items()}
    known = {**dict.fromkeys(signals if isinstance(signals, Mapping) else (), False), **kept}
    yield from _awaited({"job": sections["job"], "conditions": sections["conditions"]}, known, "")


# ---------------------------------------------------------------- signals and actions


def _rule(name: str, signal: Mapping[str, Any], key: str) -> SignalRule | None:
    """The rule of a signal; None where a value is of the wrong type, which is said elsewhere.

    Raises:
        ConfigError: a pattern that cannot work.
    """
    pattern = signal.get("pattern")
    if not isinstance(pattern, str) or is_open(pattern) or any(is_open(value) for value in signal.values()):
        return None
    control = next((char for char in pattern if ord(char) < 32 and char != "\t"), None)
    if control is not None:
        what = f"the pattern holds a control character ({control!r}) that no line has"
        hint = r"in double quotes \b is a backspace: put patterns in single quotes"
        raise ConfigError(Fault(key=f"{key}.pattern", what=what, value=repr(pattern), hint=hint))
    try:
        return SignalRule.from_config(name, signal)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _actions_of(
    rule: SignalRule, signal: Mapping[str, Any], key: str, actions: Mapping[str, Any]
) -> Iterator[Fault]:
    for action in rule.actions:
        if action not in actions:
            hint = did_you_mean(action, actions) or f"add `actions: {{{action}: {{command: …}}}}`"
            yield Fault(key=f"{key}.action", what=f"there is no action `{action}`", value=action, hint=hint)
    useful = rule.actions or rule.mode or rule.metrics or rule.counter or signal.get("metadata")
    if not useful:
        hint = "give it an `action`, a `mode`, `metrics` or a `counter`"
        yield Fault(key=key, what="the signal has no effect", hint=hint)


def _placeholders(
    actions: Mapping[str, Any], rules: Mapping[str, SignalRule], parameters: Collection[str]
) -> Iterator[Fault]:
    """An action may name only what every signal that fires it provides."""
    for name, entry in actions.items():
        read = _read_by(entry)
        fired_by = [rule for rule in rules.values() if name in rule.actions]
        provided = [(rule.provided(), f"the signal `{rule.name}`") for rule in fired_by]
        if not fired_by and isinstance(entry, Mapping) and entry.get("on"):
            provided = [(frozenset(), "a happening")]
        for fields, who in provided:
            known = fields | JOB_FIELDS | set(parameters)
            for field in sorted(read - known):
                what = f"`{{{field}}}` is not a field that {who} provides"
                hint = did_you_mean(field, sorted(fields) or sorted(known))
                key = f"actions.{name}"
                place = next((f"{key}.{inner}" for inner, text in entry.items() if _holds(text, field)), key)
                yield Fault(key=place, what=what, value=shown(entry.get(place.rpartition(".")[2])), hint=hint)


def _holds(text: Any, field: str) -> bool:
    parts = text if isinstance(text, list) else [text]
    return any(isinstance(part, str) and f"{{{field}}}" in part for part in parts)


def _read_by(entry: Any) -> frozenset[str]:
    """The fields that an action reads; none where its config is not yet right."""
    annotation = HINTS["actions"]
    if not isinstance(entry, Mapping) or list(faults_of(annotation, {"action": entry}, "actions")):
        return frozenset()
    if any(is_open(value) for value in entry.values()):
        return frozenset()
    try:
        config = parse_config(annotation, {"action": entry}, strict_types=True)["action"]
        return made(ActionInterface, config).placeholders()
    except (ValueError, TypeError, KeyError):
        return frozenset()


# ---------------------------------------------------------------- modes, conditions, slurm


def _modes(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    named = [(f"restart_policies.{mode}", mode) for mode in sections["restart_policies"]]
    for name, entry in sections["actions"].items():
        if isinstance(entry, Mapping) and entry.get("class_name") == "RestartAction" and "mode" in entry:
            named.append((f"actions.{name}.mode", entry["mode"]))
    for key, mode in named:
        if isinstance(mode, str) and not is_open(mode) and mode_root(mode) not in MODES:
            what = f"`{mode}` is not an error mode"
            hint = did_you_mean(mode_root(mode), MODES) + "; finer ones are dotted, as crash.oom"
            yield Fault(key=key, what=what, hint=hint)


def _conditions(job: Mapping[str, Any], conditions: Mapping[str, Any]) -> Iterator[Fault]:
    for name in ("start_condition", "cancel_condition", "finish_condition"):
        wanted, key = job.get(name), f"job.{name}"
        if isinstance(wanted, str) and not is_open(wanted) and wanted not in conditions:
            hint = did_you_mean(wanted, conditions) or f"add `conditions: {{{wanted}: …}}`"
            yield Fault(key=key, what=f"there is no condition `{wanted}`", value=wanted, hint=hint)


def _awaited(value: Any, silent: Mapping[str, bool], key: str) -> Iterator[Fault]:
    """A condition may wait only for a signal that is kept; `silent`: all signals, and which are not kept."""
    if not isinstance(value, Mapping):
        items = enumerate(value) if isinstance(value, list) else ()
        for number, item in items:
            yield from _awaited(item, silent, f"{key}.{number}")
        return
    name = value.get("signal")
    if value.get("class_name") == "SignalCondition" and isinstance(name, str) and not is_open(name):
        place = f"{key}.signal"
        if name not in silent and name != CHECKPOINT_REPORT.name:
            hint = did_you_mean(name, silent) or "add it to `monitoring: {log_signals: …}`"
            yield Fault(key=place, what=f"there is no log signal `{name}`", value=name, hint=hint)
        elif silent.get(name):
            what = f"the log signal `{name}` is not kept: it only feeds metrics or a counter"
            hint = "wait for it with a MetricCondition, or give it `metadata: {kind: milestone}`"
            yield Fault(key=place, what=what, value=name, hint=hint)
    for inner, item in value.items():
        yield from _awaited(item, silent, f"{key}.{inner}" if key else str(inner))


def group(section: Any) -> Iterator[Fault]:
    """A Unix group that does not exist, or to which nobody but root could give a file: chown(2)."""
    name = section.get("group") if isinstance(section, Mapping) else None
    if not isinstance(name, str) or is_open(name):
        return
    key = "project.group"
    own = sorted({_group_name(number) for number in (*os.getgroups(), os.getegid())} - {""})
    try:
        number = grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        hint = did_you_mean(name, own)
        yield Fault(key=key, what=f"there is no group `{name}` on this machine", value=name, hint=hint)
        return
    if os.geteuid() != 0 and number not in (*os.getgroups(), os.getegid()):
        what = f"you are not a member of the group `{name}`"
        yield Fault(key=key, what=what, value=name, hint=f"yours are {', '.join(own)}")


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return ""


def slurm(section: Any) -> Iterator[Fault]:
    """Options that are spelled twice or are no text, files that do not exist, paths that stayed relative."""
    slurm = section if isinstance(section, Mapping) else {}
    for name in ("sbatch", "sbatch_overrides", "srun"):
        yield from _options(slurm.get(name), f"slurm.{name}")
    for where, name in PATHS:
        path = slurm.get(name) if where == "slurm" else None
        if not isinstance(path, str) or not path or is_open(path):
            continue
        if not path.startswith("/"):
            hint = "write ./… for a path that starts at this file"
            yield Fault(
                key=f"slurm.{name}", what="is not an absolute path once resolved", value=path, hint=hint
            )
        elif (where, name) in FILES and not Path(path).is_file():
            hint = "relative paths start at the file that names them; those of -o where you are"
            yield Fault(key=f"slurm.{name}", what="there is no such file", value=path, hint=hint)


def _options(options: Any, section: str) -> Iterator[Fault]:
    spelled: dict[str, str] = {}
    for name, value in (options if isinstance(options, Mapping) else {}).items():
        key = f"{section}.{name}"
        other = spelled.setdefault(option(name), name)
        if other != name:
            what = f"`{other}` and `{name}` are the same option"
            yield Fault(key=key, what=what, hint=f"write `{option(name)}` in both places")
        if is_text_option(key.split(".")) and not is_open(value):
            fault = not_text(value, key)
            if fault is not None:
                yield fault
