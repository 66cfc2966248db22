"""What counts as a fact in a log: signal rules, and what programs report with `@autoexp`. Pure text.

Any program may print a line that holds `@autoexp` and one JSON object, whatever its training framework:

    @autoexp {"metrics": {"loss": 2.31, "lr": 0.001}}
    @autoexp {"progress": {"iteration": 1200}}
    @autoexp {"checkpoint": "/path/of/a/complete/checkpoint", "step": 1200}
    @autoexp {"signal": "evaluated", "score": 0.71}

- `metrics` (name → number, text or boolean) go to the job's series, with the counters of the same line.
- `progress` (counter → number): a new high-water mark of a counter is progress.
- `checkpoint`: a checkpoint that is complete on disk, and so is progress; with `step` (number), only where
  that is a new high.
- `signal`: something the program wants to be acted on by rules; the other keys are its fields.

The keys may stand together in one line. Text may stand before `@autoexp` (a rank, a time stamp) and after
the object. A rule with `pattern_type: report` and the pattern `checkpoint`, or the name of a signal, attaches
a mode or actions; the plain values of the object are its fields, the checkpoint's path is `path`. Where no
JSON object follows, where a value has another type, or where the line is longer than MAX_LINE bytes, it is
ordinary text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from oellm_autoexp.core.literals import Literals, NeverMatches, required
from oellm_autoexp.core.model import MODES, LogSignal, Scalar, mode_root
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

#: Lines are cut after so many bytes, so that cutting never depends on how the bytes came in.
MAX_LINE = 8192
#: Characters of a line that are kept in the journal.
SHOWN_LINE = 400
#: Characters of one field: a path fits, a line of garbage does not.
MAX_FIELD = 4096

#: The counter of reported checkpoints, and the one of their steps where these are told.
CHECKPOINTS = "checkpoints"
CHECKPOINT_STEP = "checkpoint_step"

#: What a signal's metadata say of it that names a node without saying what ended the attempt.
FAILED_NODE = "failed_node"
#: What a signal's metadata say of it for which only conditions wait.
MILESTONE = "milestone"
#: Kinds of signals that are kept though they have neither a mode nor an action.
TELLING = ("checkpoint", FAILED_NODE, MILESTONE)

_TYPES = {"int": int, "float": float, "str": str}
_REPORT = re.compile(r"@autoexp\s*(?=\{)", re.ASCII)
_JSON = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class SignalRule:
    """One rule: a pattern, and what a match means."""

    name: str
    regex: re.Pattern[str]
    #: What each match must contain; empty: the rule is slow, for it is tried on every line.
    literals: tuple[Literals, ...] = ()
    #: Not a pattern but what a program reports: "checkpoint", or the name of a signal.
    report: str = ""
    mode: str = ""
    actions: tuple[str, ...] = ()
    #: Matches that count within an attempt; None: every one.
    limit: int | None = None
    priority: int = 0
    #: Globs on the file ("log" is the job's log); empty: all watched files.
    files: tuple[str, ...] = ()
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    #: Further fields, each from a group or, with "match", from the whole match.
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
        pattern, kind = str(config["pattern"]), config.get("pattern_type") or "regex"
        report = pattern if kind == "report" else ""
        regex, literals = (
            (_REPORT, _REPORT_LITERALS) if report else _compiled(f"{key}.pattern", pattern, kind)
        )
        faults = [*_wrong_mode(key, config), *_wrong_groups(key, config, regex, report)]
        if faults:
            raise ConfigError(*faults)
        mode, action = config.get("mode") or "", config.get("action") or ()
        actions = (action,) if isinstance(action, str) else tuple(action)
        match = config.get("match")
        if match is None:
            is_milestone = (config.get("metadata") or {}).get("kind") == MILESTONE
            limit = 1 if (mode or is_milestone) and not actions else None
        else:
            limit = {"once": 1, "every": None}.get(match, match)
        return cls(
            name=name,
            regex=regex,
            literals=literals,
            report=report,
            mode=mode,
            actions=actions,
            limit=limit,
            priority=config.get("priority") or 0,
            files=tuple(config.get("files") or ()),
            metadata=dict(config.get("metadata") or {}),
            extract=dict(config.get("extract_groups") or {}),
            types=dict(config.get("types") or {}),
            metrics=_named(config, regex),
            counter=config.get("counter") or "",
            grace_s=config.get("grace_seconds", 30.0) if mode else None,
        )

    @cached_property
    def _as_they_are(self) -> bool:
        """The groups of a short line are its fields: nothing is converted, renamed or added."""
        return not (self.types or self.extract or self.metadata.get("kind"))

    def watches(self, file: str) -> bool:
        return not self.files or any(fnmatchcase(file, glob) for glob in self.files)

    @cached_property
    def slow(self) -> bool:
        """Nothing tells the lines apart that it might match."""
        return not self.literals

    @cached_property
    def saves(self) -> bool:
        """A match tells of a checkpoint that nothing else tells of."""
        return self.metadata.get("kind") == "checkpoint" and not self.report and not self.counter

    @cached_property
    def silent(self) -> bool:
        """Matches leave no signal behind: they only feed metrics or a counter."""
        return not (self.mode or self.actions or self.report or self.metadata.get("kind") in TELLING)

    @cached_property
    def measures(self) -> bool:
        return bool(self.metrics or self.counter)

    @cached_property
    def gauge(self) -> bool:
        """Only recent matches are of interest, so that not every one need be looked at."""
        return self.silent and self.limit is None

    def provided(self) -> frozenset[str]:
        """The fields that a match has for actions. A report may bring more than can be known here."""
        groups = [*self.regex.groupindex, *self.types]
        if self.report == "checkpoint":
            groups += ["path", "step"]
        kind = self.metadata.get("kind")
        aliases = [f"{kind}_{group}" for group in groups] if kind else []
        return frozenset([*groups, *aliases, *self.metadata, *self.extract])

    def find(self, line: str) -> dict[str, Scalar] | None:
        """The typed fields of a match: metadata, groups, `<kind>_<group>` aliases, extracted ones."""
        if self.report:
            said = parse_report(line)
            groups = _reported(said, self.report) if said is not None else None
            if groups is None:
                return None
            groups = {**dict.fromkeys(self.provided() - set(self.metadata)), **groups}
            whole = line
        else:
            match = self.regex.search(line)
            if match is None:
                return None
            if self._as_they_are and len(line) <= MAX_FIELD:
                plain: dict[str, Scalar] = match.groupdict()
                return {**self.metadata, **plain} if self.metadata else plain
            groups, whole = match.groupdict(), match.group()
        found: dict[str, Scalar] = dict(self.metadata)
        kind = self.metadata.get("kind")
        for group, text in groups.items():
            value = _typed(text, self.types.get(group, "str"))
            found[group] = value
            if kind:
                found[f"{kind}_{group}"] = value
        for name, group in self.extract.items():
            found[name] = whole[:MAX_FIELD] if group == "match" else found.get(group)
        return found


def _compiled(key: str, pattern: str, kind: str) -> tuple[re.Pattern[str], tuple[Literals, ...]]:
    try:
        regex = re.compile(re.escape(pattern) if kind == "substring" else pattern, re.ASCII)
        literals = required(regex)
    except NeverMatches as error:
        raise ConfigError(Fault(key=key, what=str(error), value=repr(pattern))) from error
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        what = f"the pattern does not compile: {error}"
        raise ConfigError(Fault(key=key, what=what, value=pattern)) from error
    if regex.search("") is not None:
        what = "the pattern matches an empty line, and so every line"
        raise ConfigError(Fault(key=key, what=what, value=pattern))
    return regex, literals


_REPORT_LITERALS = required(_REPORT)


def _named(config: Mapping[str, Any], regex: re.Pattern[str]) -> tuple[str, ...]:
    metrics = config.get("metrics") or ()
    return tuple(regex.groupindex) if metrics is True else tuple(metrics)


def _wrong_mode(key: str, config: Mapping[str, Any]) -> Iterator[Fault]:
    mode = config.get("mode") or ""
    if mode and mode_root(mode) not in MODES:
        what = f"{mode!r} is not an error mode"
        yield Fault(key=f"{key}.mode", what=what, hint=did_you_mean(mode_root(mode), MODES))


def _wrong_groups(
    key: str, config: Mapping[str, Any], regex: re.Pattern[str], report: str
) -> Iterator[Fault]:
    if report:
        for name in ("metrics", "counter"):
            if config.get(name):
                what = "a program reports its metrics and progress by itself"
                yield Fault(
                    key=f"{key}.{name}", what=what, hint='`@autoexp {"metrics": {…}, "progress": {…}}`'
                )
        return
    groups = tuple(regex.groupindex)
    extract = config.get("extract_groups") or {}
    wanted = [
        *(("metrics", group) for group in _named(config, regex)),
        *(("types", group) for group in config.get("types") or {}),
        *(("extract_groups", group) for group in extract.values() if group != "match"),
        *(("counter", group) for group in [config.get("counter")] if group),
    ]
    for name, group in wanted:
        if group not in groups:
            hint = did_you_mean(group, groups) or f"name it in the pattern: (?P<{group}>…)"
            yield Fault(key=f"{key}.{name}", what=f"the pattern has no group named {group!r}", hint=hint)


def _typed(value: Scalar, kind: str) -> Scalar:
    """A group's text as its declared type; text that is no such (finite) number stays text."""
    if value is None:
        return None
    if kind != "str":
        try:
            number = _TYPES[kind](value)
        except (ValueError, OverflowError):
            return value[:MAX_FIELD] if isinstance(value, str) else value
        if math.isfinite(number):
            return number  # type: ignore[no-any-return]
    return value[:MAX_FIELD] if isinstance(value, str) else value


# ---------------------------------------------------------------- findings


@dataclass(slots=True)
class Findings:
    """What lines of one file say."""

    signals: list[LogSignal] = field(default_factory=list)
    #: How often each rule that is no gauge has matched in this attempt.
    matches: dict[str, int] = field(default_factory=dict)
    metrics: list[dict[str, Scalar]] = field(default_factory=list)
    #: The highest value of each declared counter.
    counters: dict[str, float] = field(default_factory=dict)
    #: Checkpoints that were told of without a step.
    checkpoints: int = 0

    def count(self, counter: str, value: Scalar) -> None:
        """Raise a counter's high-water mark; what is no finite number does not count."""
        number = as_number(value)
        if isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < math.inf:
            self.counters[counter] = max(float(number), self.counters.get(counter, -math.inf))

    def report(self, line: str) -> bool:
        """Take over what an `@autoexp` line says of metrics and progress; True: it tells of a checkpoint."""
        said = parse_report(line)
        if said is None:
            return False
        metrics, progress = said.get("metrics"), said.get("progress")
        if isinstance(metrics, dict):
            plain = {name: value for name, value in metrics.items() if _plain(value)}
            if plain:
                # How far it is stands beside what was measured there.
                told = progress.items() if isinstance(progress, dict) else ()
                steps = {name: value for name, value in told if isinstance(value, (int, float))}
                self.metrics.append({**steps, **plain})
        if isinstance(progress, dict):
            for name, value in progress.items():
                self.count(name, value)
        if not isinstance(said.get("checkpoint"), str):
            return False
        if isinstance(said.get("step"), (int, float)):
            self.count(CHECKPOINT_STEP, said["step"])
        else:
            self.checkpoints += 1
        return True


def as_number(value: Scalar) -> Scalar:
    """Text as a number where it is one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str, bool))


def parse_report(line: str) -> dict[str, Any] | None:
    """The JSON object of an `@autoexp` line; None where there is none.

    >>> parse_report('[rank0]: @autoexp {"progress": {"step": 3}} ok'), parse_report("@autoexp {oops")
    ({'progress': {'step': 3}}, None)
    """
    start = _REPORT.search(line)
    if start is None:
        return None
    try:
        said, _ = _JSON.raw_decode(line, start.end())
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _reported(said: Mapping[str, Any], wanted: str) -> dict[str, Scalar] | None:
    """The fields of a report of `wanted`; None when it reports something else."""
    fields = {name: value for name, value in said.items() if _plain(value)}
    path, signal = fields.pop("checkpoint", None), fields.pop("signal", None)
    if wanted == "checkpoint" and isinstance(path, str):
        return {**fields, "path": path}
    return fields if signal == wanted else None


#: What a reported checkpoint leaves in the journal where no rule of the user speaks of it.
CHECKPOINT_REPORT = SignalRule(
    name="autoexp.checkpoint",
    regex=_REPORT,
    literals=_REPORT_LITERALS,
    report="checkpoint",
    metadata={"kind": "checkpoint"},
)
