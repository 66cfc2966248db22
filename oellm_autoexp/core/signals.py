"""What counts as a fact in a log: signal rules, the `@autoexp` line, error lines. Pure text.

Any program may print a line `@autoexp {json}` to report, whatever its training framework:

    @autoexp {"metrics": {"loss": 2.31, "lr": 0.001}}
    @autoexp {"progress": {"iteration": 1200}}
    @autoexp {"checkpoint": "/path/of/a/complete/checkpoint"}

The keys may stand in one line together. Where no JSON object follows, it is an ordinary line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from oellm_autoexp.core.model import MODES, LogSignal, Scalar, mode_root
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

#: Lines are cut here, so that cutting never depends on how the bytes came in.
MAX_LINE = 8192
#: What is kept of a line in the journal.
SHOWN_LINE = 400

REPORT = "@autoexp "
#: The counter that a reported checkpoint moves.
CHECKPOINTS = "checkpoints"
_TYPES = {"int": int, "float": float, "str": str}


@dataclass(frozen=True, kw_only=True)
class SignalRule:
    """One rule: a pattern, and what a match means."""

    name: str
    regex: re.Pattern[str]
    mode: str = ""
    actions: tuple[str, ...] = ()
    #: Matches that count within an attempt; None: every one.
    limit: int | None = None
    priority: int = 0
    #: Globs on the file ("log" is the job's log); empty: all watched files.
    files: tuple[str, ...] = ()
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    extract: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    #: Groups that go to the metrics series.
    metrics: tuple[str, ...] = ()
    #: The group whose high-water mark is progress.
    counter: str = ""
    #: After this long a live attempt with this error mode is ended; None: it only explains the end.
    grace_s: float | None = None

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> SignalRule:
        """A rule from its plain config.

        Raises:
            ConfigError: a pattern that cannot work, a group or a mode that does not exist.
        """
        key = f"monitoring.log_signals.{name}"
        regex = _compiled(f"{key}.pattern", str(config["pattern"]), config.get("pattern_type", "regex"))
        mode = config.get("mode") or ""
        if mode and mode_root(mode) not in MODES:
            what = f"{mode!r} is not an error mode"
            raise ConfigError(Fault(key=f"{key}.mode", what=what, hint=did_you_mean(mode_root(mode), MODES)))
        action = config.get("action") or ()
        actions = (action,) if isinstance(action, str) else tuple(action)
        metrics = config.get("metrics") or ()
        groups = tuple(regex.groupindex)
        named = groups if metrics is True else tuple(metrics)
        counter = config.get("counter") or ""
        extract = dict(config.get("extract_groups") or {})
        types = dict(config.get("types") or {})
        wanted = [
            *named,
            *types,
            *([counter] if counter else []),
            *(g for g in extract.values() if g != "match"),
        ]
        for group in wanted:
            if group not in groups:
                what = f"the pattern has no group named {group!r}"
                raise ConfigError(Fault(key=key, what=what, hint=did_you_mean(group, groups)))
        match = config.get("match")
        limit = {"once": 1, "every": None}.get(match, match) if match is not None else None
        if match is None and mode and not actions:
            limit = 1
        return cls(
            name=name,
            regex=regex,
            mode=mode,
            actions=actions,
            limit=limit,
            priority=config.get("priority") or 0,
            files=tuple(config.get("files") or ()),
            metadata=dict(config.get("metadata") or {}),
            extract=extract,
            types=types,
            metrics=named,
            counter=counter,
            grace_s=config.get("grace_seconds", 30.0) if mode else None,
        )

    def watches(self, file: str) -> bool:
        return not self.files or any(fnmatchcase(file, glob) for glob in self.files)

    @property
    def silent(self) -> bool:
        """Matches leave no signal behind: they only feed metrics or a counter."""
        return not self.mode and not self.actions

    def provided(self) -> frozenset[str]:
        """The fields that a match has for actions."""
        kind = self.metadata.get("kind")
        groups = self.regex.groupindex
        aliases = [f"{kind}_{group}" for group in groups] if kind else []
        return frozenset([*groups, *aliases, *self.metadata, *self.extract])

    def fields(self, match: re.Match[str]) -> dict[str, Scalar]:
        """The typed fields of a match: metadata, named groups, `<kind>_<group>` aliases, extracted groups."""
        found: dict[str, Scalar] = dict(self.metadata)
        kind = self.metadata.get("kind")
        for group, text in match.groupdict().items():
            value = _typed(text, self.types.get(group, "str"))
            found[group] = value
            if kind:
                found[f"{kind}_{group}"] = value
        for name, group in self.extract.items():
            found[name] = match.group() if group == "match" else found.get(group)
        return found


def _compiled(key: str, pattern: str, kind: str) -> re.Pattern[str]:
    try:
        regex = re.compile(re.escape(pattern) if kind == "substring" else pattern, re.ASCII)
    except re.error as error:
        what = f"the pattern does not compile: {error}"
        raise ConfigError(Fault(key=key, what=what, value=pattern)) from error
    if regex.search("") is not None:
        what = "the pattern matches an empty line, and so every line"
        raise ConfigError(Fault(key=key, what=what, value=pattern))
    return regex


def _typed(text: str | None, kind: str) -> Scalar:
    if text is None:
        return None
    try:
        return _TYPES[kind](text)  # type: ignore[no-any-return]
    except ValueError:
        return text


# ---------------------------------------------------------------- matching


@dataclass(slots=True)
class Findings:
    """What lines of one file say."""

    signals: list[LogSignal] = field(default_factory=list)
    matches: dict[str, int] = field(default_factory=dict)
    metrics: list[dict[str, Scalar]] = field(default_factory=list)
    #: The highest value of each declared counter.
    counters: dict[str, float] = field(default_factory=dict)
    checkpoints: int = 0


def match_lines(
    rules: Sequence[SignalRule],
    file: str,
    generation: int,
    lines: Iterable[tuple[int, str]],
    matches: Mapping[str, int],
) -> Findings:
    """Apply rules to (byte offset, line) pairs. `matches` are the counts so far in this attempt."""
    out = Findings(matches=dict(matches))
    watching = sorted((rule for rule in rules if rule.watches(file)), key=lambda rule: -rule.priority)
    for offset, line in lines:
        if line.startswith(REPORT):
            _report(line, out)
        for rule in watching:
            seen = out.matches.get(rule.name, 0)
            if rule.limit is not None and seen >= rule.limit:
                continue
            match = rule.regex.search(line)
            if match is None:
                continue
            out.matches[rule.name] = seen + 1
            fields = rule.fields(match)
            _numbers(rule, fields, out)
            if not rule.silent:
                out.signals.append(
                    LogSignal(
                        rule=rule.name,
                        file=file,
                        generation=generation,
                        offset=offset,
                        line=line[:SHOWN_LINE],
                        fields=fields,
                        mode=rule.mode,
                        priority=rule.priority,
                        actions=rule.actions,
                    )
                )
            if rule.metadata.get("kind") == "checkpoint":
                out.checkpoints += 1
    return out


def _numbers(rule: SignalRule, fields: Mapping[str, Scalar], out: Findings) -> None:
    if rule.metrics:
        out.metrics.append({name: _number(fields[name]) for name in rule.metrics})
    if rule.counter:
        value = _number(fields[rule.counter])
        if isinstance(value, (int, float)):
            out.counters[rule.counter] = max(float(value), out.counters.get(rule.counter, float("-inf")))


def _number(value: Scalar) -> Scalar:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _report(line: str, out: Findings) -> None:
    try:
        said = json.loads(line[len(REPORT) :])
    except ValueError:
        return
    if not isinstance(said, dict):
        return
    metrics, progress = said.get("metrics"), said.get("progress")
    if isinstance(metrics, dict):
        plain: dict[str, Scalar] = {
            str(k): v for k, v in metrics.items() if isinstance(v, (int, float, str, bool))
        }
        out.metrics.append(plain)
    if isinstance(progress, dict):
        for name, value in progress.items():
            if isinstance(value, (int, float)):
                out.counters[str(name)] = max(float(value), out.counters.get(str(name), float("-inf")))
    if isinstance(said.get("checkpoint"), str):
        out.checkpoints += 1


# ---------------------------------------------------------------- error lines

_ROOT = re.compile(
    r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?::|$)"
    r"|(?i:\b(?:error|fatal|fehler)\b\s*[:\]])"
    r"|(?i:command not found|no such file or directory|permission denied|out of memory|segmentation fault)"
)
_CASCADE = re.compile(
    r"(?i:received by pid|watchdog|sigterm|broken pipe|connection reset|traceback \(most recent)"
)
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?|/[^\s'\":,]+")


def error_lines(lines: Iterable[str]) -> tuple[str, str]:
    """The first root error line and the last error line ("" for none); cascade noise comes last."""
    first = last = noise = ""
    for line in lines:
        text = line.strip()[:SHOWN_LINE]
        if not text or _ROOT.search(text) is None:
            continue
        if _CASCADE.search(text):
            noise = noise or text
            continue
        first = first or text
        last = text
    return first or noise, last or noise


def normalise_error(text: str) -> str:
    """The line without what changes from one death to the next: numbers, addresses, paths."""
    return _VARIABLE.sub("#", text)
