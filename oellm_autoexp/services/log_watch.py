"""`monitor --log`: apply a config's log signals to files that are named by hand, without any session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from oellm_autoexp.config import compose
from oellm_autoexp.config.checks import JOB_FIELDS
from oellm_autoexp.config.sockets import ActionInterface, made
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths, default_state_dir
from oellm_autoexp.core.model import JobSpec, LogSignal
from oellm_autoexp.core.session import ActionState
from oellm_autoexp.core.signals import SignalRule
from oellm_autoexp.errors import ConfigError, Fault, StateError, UsageError, did_you_mean
from oellm_autoexp.monitor.loop import Clock, RealClock
from oellm_autoexp.monitor.standalone import LogJob, Watched
from oellm_autoexp.planning.identity import SYMBOLIC_JOB, digest
from oellm_autoexp.services import plugins
from oellm_autoexp.services.plan import effects_of, guard_source
from oellm_autoexp.store.effects import Effects

#: Seconds between two looks where neither `--interval` nor the config says.
INTERVAL_S = 10.0
#: Seconds between two looks at actions that run.
_BUSY_S = 0.2
#: How long a pass waits for actions that it can neither start nor find.
_STUCK_S = 30.0
_SECTIONS = ("monitoring", "actions")
#: Stands for an action of the command line while the config is checked: in a config `${…}` is a reference,
#: on the command line it is the shell's.
_STUB = {"class_name": "CommandAction", "command": "true"}

Row = dict[str, Any]


# ---------------------------------------------------------------- what was asked for


def pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """`NAME=VALUE` texts of an option.

    Raises:
        UsageError: one that is none.
    """
    found = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            example = (
                "train=outputs/logs/train.out" if option == "--log" else "convert='python convert.py {path}'"
            )
            raise UsageError(f"{text!r} is not NAME=VALUE", where=option, hint=f"write {option} {example}")
        found.append((name.strip(), value))
    return found


def watched(
    ref: str,
    config_dir: Path | None,
    overrides: Sequence[str],
    logs: Sequence[str],
    actions: Sequence[str],
    *,
    cwd: Path | None = None,
) -> tuple[SessionPaths, list[Watched], float, Effects]:
    """The jobs that `--log` names, with the config's rules; `--action` wins over the config's actions.

    Also the config's state directory, the seconds between two looks, and effects that are as open to a group
    as the config says.

    Raises:
        ConfigError: every mistake in the config.
        UsageError: an option that is malformed, or an action that no signal fires.
    """
    where = cwd if cwd is not None else Path.cwd()
    if config_dir is None and (where / "config").is_dir():
        config_dir = Path("config")
    commands = dict(pairs("--action", actions))
    files: dict[str, list[Path]] = {}
    for job, path in pairs("--log", logs):
        _check_name("--log", job)
        files.setdefault(job, []).append(where / Path(path).expanduser())
    for name in commands:
        _check_name("--action", name)
    composed = compose.load(
        ref,
        config_dir=config_dir,
        overrides=overrides,
        shorthands={f"actions.{name}": _STUB for name in commands},
        load_plugins=plugins.load,
        cwd=where,
    )
    given = {
        name: {"class_name": "CommandAction", "command": command, "cwd": str(where)}
        for name, command in commands.items()
    }
    project, base = composed.project, Path(composed.project.base_output_dir)
    found = [_watched(composed, job, paths, given, base) for job, paths in files.items()]
    state_dir = Path(project.state_dir) if project.state_dir else default_state_dir(base)
    interval = found[0].rules["monitoring"].get("check_interval_seconds")
    paths, seconds = SessionPaths(state_dir), INTERVAL_S if interval is None else float(interval)
    return paths, found, seconds, effects_of(project.group, paths)


def _check_name(option: str, name: str) -> None:
    if "/" in name or name.startswith(".") or not name.isprintable() or len(name) > 200:
        raise UsageError(f"{name!r} cannot be part of a path", where=option, hint="give it a simpler name")
    if option == "--action" and "." in name:
        raise UsageError(f"{name!r} holds a dot", where=option, hint="name the action without dots")


def _watched(
    composed: compose.Composed, job: str, files: Sequence[Path], given: Mapping[str, Row], base: Path
) -> Watched:
    output_dir = f"{base}/{job}"
    facts = {
        "name": job,
        "output_dir": output_dir,
        "checkpoint_dir": f"{output_dir}/checkpoints",
        "log_path": str(files[0]),
        "attempt": "0",
    }
    parameters, values, sibling = point_of(composed, job)
    raw = composed.point(values, facts, sibling).raw
    monitoring = raw.get("monitoring") or {}
    entries = monitoring.get("log_signals") or {}
    signals = [SignalRule.from_config(name, entry) for name, entry in entries.items()]
    if not signals:
        hint = "add `monitoring: {log_signals: …}`, or name another config"
        raise UsageError("the config has no log signals to look for", where=str(composed.file), hint=hint)
    fired = {name for signal in signals for name in signal.actions}
    for name in given:
        if name not in fired:
            hint = did_you_mean(name, sorted(fired)) or "a signal of the config names it: `action: …`"
            raise UsageError(f"no signal fires the action `{name}`", where="--action", hint=hint)
    rules = {"monitoring": monitoring, "actions": {**(raw.get("actions") or {}), **given}}
    _check_fields(signals, given, parameters)
    spec = JobSpec(
        name=job,
        id=job,
        index=0,
        parameters=parameters,
        argv=(),
        output_dir=output_dir,
        checkpoint_dir=facts["checkpoint_dir"],
        script_path="",
        script_digest="",
        log_path=str(files[0]),
        rules=digest(rules),
    )
    return Watched(spec=spec, files=tuple(files), rules=rules, signals=signals, project=composed.project.name)


def point_of(
    composed: compose.Composed, job: str
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """The parameters of the job of the sweep that has this name, and what to resolve the rules with.

    That is the values of its point, and what stands for its siblings.

    Raises:
        ConfigError: no job has it, and the rules differ between jobs.
    """
    points = []
    for point in composed.points():
        sibling = composed.any_siblings(point)
        points.append((point, composed.resolved(point.values, sibling), sibling))
    if len(points) == 1:
        return points[0][1], *points[0][1:]
    for point, values, sibling in points:
        if composed.name(point, values, point.index) == job:
            return values, values, sibling
    varying = [path for path in composed.tree.dynamic_paths if path.split(".")[0] in _SECTIONS]
    if varying:
        rules = (composed.scope(values, SYMBOLIC_JOB, sibling).config() for _, values, sibling in points)
        if len({digest([one.get(name) for name in _SECTIONS]) for one in rules}) > 1:
            point, values, _ = points[0]
            what = f"differs between the jobs of the sweep, and `{job}` is none of them"
            hint = f"write --log with the name of a job, such as {composed.name(point, values, 0)}=…"
            raise composed.placed(ConfigError(Fault(key=varying[0], what=what, hint=hint)))
    return {}, *points[0][1:]


def _check_fields(
    signals: Sequence[SignalRule], given: Mapping[str, Row], parameters: Mapping[str, Any]
) -> None:
    """As in a config: an action may name only what every signal that fires it provides."""
    for name, entry in given.items():
        read = made(ActionInterface, _parsed(entry)).placeholders()
        for signal in signals:
            fields = signal.provided() | {"line"}
            unknown = sorted(read - fields - JOB_FIELDS - set(parameters)) if name in signal.actions else []
            if unknown:
                what = f"`{{{unknown[0]}}}` is not a field that the signal `{signal.name}` provides"
                raise UsageError(
                    what, where=f"--action {name}", hint=did_you_mean(unknown[0], sorted(fields))
                )


def _parsed(entry: Row) -> Any:
    from oellm_autoexp.config.schema import parse_rules

    return parse_rules({"actions": {"given": entry}}).actions["given"]


# ---------------------------------------------------------------- watching


class LogWatch:
    """Watches the files of several jobs. `report` is told "signal" or "action", and a row of plain values."""

    def __init__(
        self,
        paths: SessionPaths,
        jobs: Sequence[Watched],
        *,
        report: Callable[[str, Row], None],
        warn: Callable[[str], None] = lambda _text: None,
        effects: Effects | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._effects, self._clock = effects or Effects.of(paths.state_dir), clock or RealClock()
        self._report, self._warn = report, warn
        self._warned: set[str] = set()
        self.failed = 0
        executor = ThreadPoolExecutor(max_workers=1)
        self._jobs = [
            LogJob(each, paths.standalone(each.spec.name), self._effects, self._clock, executor, self._heard)
            for each in jobs
        ]

    def preview(self) -> None:
        """Report what one look finds and would do. Writes nothing.

        Raises:
            UsageError: there is no such file.
            StateError: a file, or what earlier calls left, cannot be read.
        """
        self._require_files()
        for job in self._jobs:
            job.look()
            self._read(job, drain=True)
            for key in job.session.open_actions:
                self._report("action", _action(job, job.session.actions[key], "planned"))

    def once(self) -> None:
        """Read every file to its end and carry out what it asks for.

        Raises:
            UsageError: there is no such file.
            NotLeader: another process watches one of the jobs.
            StateError: something cannot be read or written.
        """
        self._require_files()
        self._lead()
        for job in self._jobs:
            self._read(job, drain=True)
        moved_at = self._clock.monotonic()
        while True:
            for job in self._jobs:
                job.act()
            if not self.running:
                return
            if any(job.running for job in self._jobs):
                moved_at = self._clock.monotonic()
            elif self._clock.monotonic() - moved_at > _STUCK_S:
                raise self._stuck()
            self._clock.wait(_BUSY_S)

    def _stuck(self) -> StateError:
        what = f"{self.running} action(s) can neither be started nor found"
        hint = "an earlier call began them on another host, or there is no room; do the same there, or later"
        return StateError(what, where=", ".join(str(job.paths.state_dir) for job in self._jobs), hint=hint)

    def follow(self, interval_s: float) -> None:
        """Look again and again. A file that is not there yet is waited for, and so is room on a full disk.

        Raises:
            NotLeader, LeadershipLost: another process watches one of the jobs.
        """
        self._lead()
        due = self._clock.monotonic()
        while True:
            if self._clock.monotonic() >= due:
                for job in self._jobs:
                    for problem in job.scan():
                        self._warn_once(problem)
                due = self._clock.monotonic() + interval_s
            for job in self._jobs:
                try:
                    job.act()
                except (StateError, OSError) as error:
                    # What was found is kept, and nothing is started until it is on disk.
                    self._warn_once(str(error))
            rest = max(0.0, due - self._clock.monotonic())
            self._clock.wait(min(rest, _BUSY_S) if self.running else rest)

    @property
    def running(self) -> int:
        """How many actions are without an outcome."""
        return sum(len(job.session.open_actions) for job in self._jobs)

    def close(self) -> None:
        """Say goodbye; actions that run go on, and are found by the next call."""
        for job in self._jobs:
            try:
                job.close()
            except StateError as error:
                self._warn(str(error))

    def _lead(self) -> None:
        try:
            for job in self._jobs:
                job.lead(
                    lambda leader: self._warn(f"waiting whether the watcher on {leader.host} still lives")
                )
                if not job.paths.guard.exists() or job.paths.guard.read_bytes() != guard_source():
                    self._effects.write(job.paths.guard, guard_source(), mode=0o700)
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise StateError(what, where=str(error.filename), hint="nothing was acted on") from error

    def _require_files(self) -> None:
        for job in self._jobs:
            for path in job.watched.files:
                if not path.exists():
                    hint = "with --loop it is waited for"
                    raise UsageError("there is no such file", where=f"--log {job.name}={path}", hint=hint)

    def _read(self, job: LogJob, *, drain: bool) -> None:
        problems = list(job.scan(drain=drain))
        if problems:
            raise StateError(f"cannot be read: {'; '.join(problems)}", where=f"--log {job.name}=…")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    def _heard(self, job: LogJob, event: ev.Event) -> None:
        if isinstance(event, ev.SignalsFound):
            for signal in event.signals:
                self._report("signal", _signal(job, signal))
        elif isinstance(event, ev.ActionEnded):
            self.failed += not event.ok
            state = (
                "failed" if not event.ok else "left out" if event.reason.startswith("left out") else "done"
            )
            self._report("action", _action(job, job.session.actions[event.key], state))


def _signal(job: LogJob, signal: LogSignal) -> Row:
    return {
        "job": job.name,
        "signal": signal.rule,
        "file": signal.file,
        "offset": signal.offset,
        "line": signal.line,
        "mode": signal.mode or None,
        "fields": {name: value for name, value in signal.fields.items() if name != "log_path"},
        "actions": list(signal.actions),
    }


def _action(job: LogJob, state: ActionState, is_now: str) -> Row:
    log = job.log_of(state)
    return {
        "job": job.name,
        "action": state.request.action,
        "signal": state.request.rule,
        "command": job.planned(state),
        "state": is_now,
        "reason": state.ended.reason if state.ended else "",
        "exit_code": state.ended.exit_code if state.ended else None,
        "log": str(log) if log else None,
    }
