"""Logs of a job that no session leads: signals, and actions that happen once whatever is killed in between.

Each job has a journal of its own, written like a session's: the signals and the cursor behind them are one
record, and what a record asks for is carried out by the same `Performer`. One process watches a job.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config.sockets import AppendText, Deed, EndJob, PostJson, RestartJob, RunCommand
from oellm_autoexp.core import events as ev
from oellm_autoexp.core import symbols
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import Cursor, JobSpec, LogSignal
from oellm_autoexp.core.session import ActionState, Session
from oellm_autoexp.core.signals import SignalRule
from oellm_autoexp.errors import AutoexpError, NotLeader, StateError
from oellm_autoexp.monitor import rules as rule_sets
from oellm_autoexp.monitor.checks import Executor
from oellm_autoexp.monitor.exclusion import Exclusion
from oellm_autoexp.monitor.loop import PERFORM_S, Clock
from oellm_autoexp.monitor.perform import Performer
from oellm_autoexp.monitor.rules import RuleSet
from oellm_autoexp.monitor.scan import LogWatcher
from oellm_autoexp.schedulers.local import LocalScheduler, LocalSchedulerConfig
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Effects

#: A cursor goes to the journal at least this often; what is read again without a record says the same.
JOURNAL_EVERY_BYTES = 16 * 1024 * 1024
_LEFT_OUT = "left out: only within a session can a job be ended or restarted"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A job as the command line names it. `spec.rules` is the identity of `rules`."""

    spec: JobSpec
    files: Sequence[Path]
    #: The sections `monitoring` and `actions`, as the journal keeps them.
    rules: Mapping[str, Any]
    signals: Sequence[SignalRule]
    project: str


class LogJob:
    """Watches the logs of one job.

    Until `lead` was called it only looks: nothing is written, and nothing may be acted on.
    """

    def __init__(
        self,
        watched: Watched,
        paths: SessionPaths,
        effects: Effects,
        clock: Clock,
        executor: Executor,
        listener: Callable[[LogJob, ev.Event], None],
    ) -> None:
        self.watched = watched
        self.paths = paths
        self.session = Session()
        self._effects = effects
        self._clock = clock
        self._listener = listener
        self._journal: journal.Journal | None = None
        self._watchers = {path: LogWatcher(_rules_for(watched.signals, path)) for path in watched.files}
        #: How far files are read, and how far the journal knows of it.
        self._cursors: dict[str, Cursor] = {}
        self._rules: dict[str, RuleSet] = {}
        local = LocalScheduler(LocalSchedulerConfig(), effects=effects, state_dir=paths.scheduler)
        self._performer = Performer(
            self.session,
            local,
            local,
            paths,
            effects,
            executor,
            record=self._record,
            commit=self._commit,
            clock=clock.now,
            rules_of=self._rules_of,
            exclusion=Exclusion(self.session, local, effects, record=self._record),
        )

    @property
    def name(self) -> str:
        return self.watched.spec.name

    # ---- what is known

    def look(self) -> None:
        """Take in what earlier calls have left, without taking the lead."""
        self._take_in(journal.read(self.paths))

    def lead(self, on_wait: Callable[[journal.Leader], None]) -> None:
        """Take in what earlier calls have left, and let nobody else act on this job.

        Raises:
            NotLeader: another process watches it.
        """
        clock = self._clock
        self._effects.mkdir(self.paths.state_dir.parents[1])
        self._effects.mkdir(self.paths.state_dir.parent)
        try:
            self._journal, history = journal.Journal.lead(
                self.paths,
                self._effects,
                now=clock.now(),
                monotonic=clock.monotonic,
                wait=clock.wait,
                on_wait=on_wait,
            )
        except NotLeader as error:
            hint = "end that process, or give this log another JOB"
            raise NotLeader(error.what, where=f"--log {self.name}=…", hint=hint) from error
        self._take_in(history)

    def _take_in(self, history: journal.History) -> None:
        for event in history.events:
            self.session.apply(event)
        now, spec = self._clock.now(), self.watched.spec
        if self.session.opened is None:
            opened = ev.SessionOpened(
                at=now,
                project=self.watched.project,
                session=str(self.paths.state_dir),
                nonce="",
                scheduler={"class_name": LocalScheduler.__name__},
            )
            self._record(opened)
        if spec.rules not in self.session.rules:
            self._record(ev.RulesSet(at=now, rules=spec.rules, config=self.watched.rules))
        known = self.session.jobs.get(spec.name)
        if known is None:
            self._record(ev.JobAdded(at=now, spec=spec))
        elif known.spec != spec:
            self._record(ev.JobUpdated(at=now, job=spec.name, spec=spec))
        self._cursors = dict(self.session.jobs[spec.name].cursors)

    # ---- reading

    def scan(self, *, drain: bool = False) -> Iterator[str]:
        """Read what is new in the files to their ends; why, for each that cannot be read.

        With `drain` an unfinished last line counts too.
        """
        for path, watcher in self._watchers.items():
            while True:
                job, file = self.session.jobs[self.name], str(path)
                before = self._cursors.get(file, Cursor())
                found = watcher.look("log", path, before, job.matches, drain=drain)
                if found.unknown:
                    yield found.unknown
                    break
                self._cursors[file] = found.cursor
                behind = found.cursor.offset - job.cursors.get(file, Cursor()).offset
                renewed = found.cursor.generation != before.generation
                if found.findings.signals or renewed or behind >= JOURNAL_EVERY_BYTES:
                    signals = tuple(self._ours(path, signal) for signal in found.findings.signals)
                    self._found(file, found.cursor, signals, found.findings.matches)
                if not found.more:
                    break

    def _found(
        self,
        file: str,
        cursor: Cursor,
        signals: Sequence[LogSignal] = (),
        matches: Mapping[str, int] | None = None,
    ) -> None:
        self._record(
            ev.SignalsFound(
                at=self._clock.now(),
                job=self.name,
                attempt=0,
                file=file,
                cursor=cursor,
                signals=tuple(signals),
                matches=matches or {},
            )
        )

    @staticmethod
    def _ours(path: Path, signal: LogSignal) -> LogSignal:
        """Files are known by their paths: another file under the same JOB has occurrences of its own."""
        return replace(signal, file=str(path), fields={"log_path": str(path), **signal.fields})

    # ---- acting

    @property
    def running(self) -> int:
        """How many of them are under way here."""
        return self._performer.running

    def act(self) -> None:
        """Make what was found durable, then carry on with what is outstanding.

        Raises:
            StateError: it cannot be written; nothing was started.
            LeadershipLost: another process has taken over.
        """
        assert self._journal is not None
        self._leave_out()
        self._journal.commit()
        self._performer.perform(self._clock.now() + PERFORM_S)
        self._journal.commit()
        self._journal.heartbeat(self._clock.now())

    def _leave_out(self) -> None:
        """What only a session can do is not done, and said."""
        for key in list(self.session.open_actions):
            deed = self._deed(self.session.actions[key])
            if isinstance(deed, (EndJob, RestartJob)):
                self._record(ev.ActionEnded(at=self._clock.now(), key=key, ok=True, reason=_LEFT_OUT))

    def _deed(self, state: ActionState) -> Deed | str:
        """What an action does, or why it cannot be carried out."""
        try:
            return self._performer.deed(state.request)
        except KeyError as error:
            return f"cannot be carried out: it has no field {error}"
        except (AutoexpError, ValueError) as error:
            return f"cannot be carried out: {error}"

    def close(self) -> None:
        """Say goodbye; actions that run go on, and the next call finds them."""
        if self._journal is None:
            return
        known = self.session.jobs[self.name].cursors
        for file, cursor in self._cursors.items():
            if cursor != known.get(file, Cursor()):
                self._found(file, cursor)
        self._journal.close(self._clock.now())

    def planned(self, state: ActionState) -> str:
        """What an action does, as a person reads it."""
        deed = self._deed(state)
        return deed if isinstance(deed, str) else _told(deed)

    def log_of(self, state: ActionState) -> Path | None:
        """Where the output of an action's latest run is, if it is a command that was started."""
        path = self.paths.action(state.request.key, max(1, state.runs)) / "log"
        return path if path.exists() else None

    # ---- recording

    def _record(self, event: ev.Event) -> None:
        self.session.apply(event)
        if self._journal is not None:
            self._journal.append(event)
        self._listener(self, event)

    def _commit(self) -> None:
        if self._journal is None:
            raise StateError("nothing may be done by who only looks")
        self._journal.commit()

    def _rules_of(self, identity: str) -> RuleSet:
        found = self._rules.get(identity)
        if found is None:
            found = self._rules[identity] = rule_sets.build(self.session.rules[identity])
        return found


def _rules_for(rules: Sequence[SignalRule], path: Path) -> list[SignalRule]:
    """The rules of a file that was given by hand: it is a job's log, and may be meant by its path too."""
    return [replace(rule, files=()) for rule in rules if rule.watches("log") or rule.watches(str(path))]


def _told(deed: Deed) -> str:
    if isinstance(deed, RunCommand):
        text = deed.command if isinstance(deed.command, str) else shlex.join(deed.command)
    elif isinstance(deed, AppendText):
        text = f"append to {deed.path}: {deed.text.rstrip()}"
    else:
        text = f"POST {deed.url}" if isinstance(deed, PostJson) else _LEFT_OUT
    return symbols.shown(text)
