"""The facts of a tick: what the scheduler, the exit records, the logs and the conditions say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from oellm_autoexp.config.sockets import ConditionInterface, SchedulerInterface
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.error_lines import normalise_error
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.lifecycle import Gate, Observation
from oellm_autoexp.core.model import (
    Attempt,
    Cursor,
    Job,
    Scalar,
    SchedulerFact,
    SchedulerRef,
    SchedulerState,
)
from oellm_autoexp.core.quick import replace
from oellm_autoexp.core.session import Session
from oellm_autoexp.core.signals import CHECKPOINTS, Findings
from oellm_autoexp.errors import SchedulerUnavailable
from oellm_autoexp.monitor.checks import Checks, of_jobs
from oellm_autoexp.monitor.rules import RuleSet
from oellm_autoexp.monitor.scan import errors_at_end
from oellm_autoexp.rendering import guard_files
from oellm_autoexp.store.series import Series

#: A longer gap between two looks is blind time: it counts neither as silence nor as anything else.
BLIND_GAP_S = 120.0
#: Logs are looked at this often, or as often as the scheduler is asked, where the config names no time.
CHECK_INTERVAL_S = 5.0
#: Progress goes to the journal at most this often per job (the end of an attempt always sees it).
PROGRESS_INTERVAL_S = 10.0
#: A cursor goes to the journal at least this often, so that a new daemon need not read all again.
JOURNAL_EVERY_BYTES = 16 * 1024 * 1024
#: So much of a job that gets ahead is watched before it is said to be usually no quieter.
LEARN_S = 3600.0


@dataclass(slots=True)
class _Watch:
    """What is remembered of a live attempt between looks; a new daemon begins anew."""

    attempt: int
    requeues: int
    files: Mapping[str, Path]
    series: Path
    looked_at: float | None = None
    #: When the files are due to be read again.
    check_at: float = 0.0
    quiet_s: float = 0.0
    still_s: float = 0.0
    #: Whether it has got ahead in this attempt; the longest silence since it last did, and their sum.
    got_ahead: bool = False
    longest_s: float = 0.0
    silences_s: float = 0.0
    progress_at: float | None = None
    #: How far files are read. Bytes without a signal need no record: read again, they say the same.
    cursors: dict[str, Cursor] = field(default_factory=dict)
    matches: Mapping[str, int] = field(default_factory=dict)
    #: The cursors that the journal has.
    journaled: dict[str, Cursor] = field(default_factory=dict)


@dataclass(slots=True)
class _Rhythm:
    """How a job writes while it gets ahead, over all attempts that this process has watched."""

    longest_s: float = 0.0
    watched_s: float = 0.0

    @property
    def usual_s(self) -> float | None:
        return self.longest_s if self.watched_s >= LEARN_S else None


class Observer:
    """Looks at everything that can be looked at."""

    def __init__(
        self, scheduler: SchedulerInterface, paths: SessionPaths, checks: Checks, series: Series
    ) -> None:
        self._scheduler = scheduler
        self._paths = paths
        self._checks = checks
        self._series = series
        self._watches: dict[str, _Watch] = {}
        self._places: set[Path] = set()
        #: High-water marks of counters by job, and when one of them last moved.
        self._marks: dict[str, dict[str, float]] = {}
        self._rhythms: dict[str, _Rhythm] = {}
        self._moved_at: dict[str, float] = {}
        self._blind_gap_s = BLIND_GAP_S

    def expect(self, interval_s: float) -> None:
        """Be told how far apart the answers of the scheduler are meant to be: so long is no blindness."""
        self._blind_gap_s = max(BLIND_GAP_S, 2.0 * interval_s)

    # ---- the scheduler

    def poll(self, session: Session) -> Mapping[SchedulerRef, SchedulerFact]:
        """One answer about all live attempts.

        Raises:
            SchedulerUnavailable: no answer.
        """
        jobs = session.jobs
        tries = [
            *(jobs[name].attempts[-1] for name in session.alive),
            *(jobs[name].successor for name in session.queued),
        ]
        refs = [each.ref for each in tries if each is not None and each.ref is not None]
        try:
            return self._scheduler.poll(refs) if refs else {}
        except SchedulerUnavailable:
            # Whether anything ran until the next answer nobody will know.
            for watch in self._watches.values():
                watch.looked_at = None
            raise

    @property
    def places(self) -> Set[Path]:
        """The directories where the logs that were looked at grow."""
        return self._places

    def due(self, session: Session) -> float:
        """When the next log is to be read."""
        watches = self._watches
        return min((watches[name].check_at for name in session.alive if name in watches), default=math.inf)

    def hurry(self) -> None:
        """Look at all logs at the next turn: one of them has grown."""
        for watch in self._watches.values():
            watch.check_at = 0.0

    def settle(self, now: float, *, every: bool = False) -> None:
        """Write the metrics that have become due, or all that are held."""
        self._series.settle(now, every=every)

    # ---- one job

    def observe(
        self,
        job: Job,
        rules: RuleSet,
        facts: Mapping[SchedulerRef, SchedulerFact],
        now: float,
        record: Callable[[ev.Event], None],
        current: Callable[[str], Job],
    ) -> Observation:
        """This tick's observation of a job. What its logs say is recorded on the way."""
        attempt, fact, ended, complete, quiet_s, still_s = job.live, None, False, False, 0.0, 0.0
        rhythm = self._rhythms.get(job.spec.name)
        if attempt is not None and attempt.ref is not None:
            fact = facts.get(attempt.ref)
            ended = fact is not None and fact.state.ended
            complete = self._logs(job, attempt, rules, fact, now, ended, record)
            watch = self._watches[job.spec.name]
            quiet_s, still_s = watch.quiet_s, watch.still_s
        waits = job.successor
        seen = Observation(
            now=now,
            fact=fact,
            successor=facts.get(waits.ref) if waits is not None and waits.ref is not None else None,
            quiet_s=quiet_s,
            still_s=still_s,
            usual_s=rhythm.usual_s if rhythm is not None else None,
            cancel_gate=self._gate(job, "cancel", rules.cancel, rules, now),
            finish_gate=self._gate(job, "finish", rules.finish, rules, now),
            gone_grace_s=self._scheduler.capabilities.gone_grace_s,
        )
        if attempt is None or not ended:
            return seen
        self._series.settle(now, only=self._watches[job.spec.name].series)
        return self._ending(current(job.spec.name), attempt, rules, seen, complete)

    def _ending(
        self, job: Job, attempt: Attempt, rules: RuleSet, seen: Observation, complete: bool
    ) -> Observation:
        try:
            record = guard_files.read_exit(self._paths.attempt(job.spec.name, attempt.number))
        except OSError:
            return seen
        first, last = errors_at_end(Path(attempt.log_path))
        success = Gate.CLOSED
        if rules.success is not None:
            success = self._gate(job, f"success.{attempt.number}", rules.success, rules, seen.now)
        return replace(
            seen,
            exit=record,
            drained=complete and success is not Gate.UNKNOWN,
            confirmed=success is Gate.OPEN,
            first_error=first,
            last_error=normalise_error(last),
        )

    def _logs(
        self,
        job: Job,
        attempt: Attempt,
        rules: RuleSet,
        fact: SchedulerFact | None,
        now: float,
        ended: bool,
        record: Callable[[ev.Event], None],
    ) -> bool:
        """Read what is new in all files of the job; whether everything was read to its end."""
        watch = self._watches.get(job.spec.name)
        if watch is None or watch.attempt != attempt.number:
            watch = self._watches[job.spec.name] = _Watch(
                attempt=attempt.number,
                requeues=attempt.requeues,
                files=files_of(job, attempt),
                series=self._paths.series(job.spec.name),
                cursors=dict(job.cursors),
                matches=job.matches,
                journaled=dict(job.cursors),
            )
            self._places.add(watch.files["log"].parent)
        if watch.requeues != attempt.requeues:
            # It has started again: how often rules have matched, and how long it was silent, begins anew.
            watch.requeues, watch.matches = attempt.requeues, job.matches
            watch.quiet_s = watch.still_s = watch.longest_s = watch.silences_s = 0.0
            watch.got_ahead = False
        asked = rules.check_interval_s
        interval = self._check_interval() if asked is None else asked
        # With an answer of the scheduler the logs are looked at too: silence is counted between the two.
        if fact is None and now < watch.check_at <= now + interval:
            return False
        watch.check_at = now + interval
        grown, complete, moved = 0, True, False
        for name, path in watch.files.items():
            while True:
                found = rules.watcher.look(
                    name, path, watch.cursors.get(name, Cursor()), watch.matches, drain=ended
                )
                grown += found.grown_bytes
                complete = complete and not found.unknown
                # The cursor travels with what was found before it: neither lost nor repeated.
                keep = bool(found.findings.signals) or _is_far(name, found.cursor, watch, ended)
                moved = self._take(job, attempt, found.findings, now, keep or ended, watch, record) or moved
                watch.cursors[name] = found.cursor
                if keep:
                    watch.journaled[name] = found.cursor
                    record(
                        ev.SignalsFound(
                            at=now,
                            job=job.spec.name,
                            attempt=attempt.number,
                            file=name,
                            cursor=found.cursor,
                            signals=tuple(found.findings.signals),
                            matches=found.findings.matches,
                        )
                    )
                watch.matches = found.findings.matches
                if not (ended and found.more):
                    complete = complete and not found.more
                    break
        counted = rules.lifecycle.progress_known or job.high_water or self._marks.get(job.spec.name)
        silence_s = self._count(watch, fact, grown, moved or not counted, complete, now)
        self._learn(job.spec.name, watch, silence_s, moved)
        return complete

    def _learn(self, job: str, watch: _Watch, silence_s: float, moved: bool) -> None:
        """Take a silence for usual once the job has got ahead after it: the last one of a hang never is."""
        if watch.got_ahead:
            watch.longest_s = max(watch.longest_s, silence_s)
            watch.silences_s += silence_s
        if moved:
            rhythm = self._rhythms.setdefault(job, _Rhythm())
            rhythm.longest_s = max(rhythm.longest_s, watch.longest_s)
            rhythm.watched_s += watch.silences_s
            watch.got_ahead, watch.longest_s, watch.silences_s = True, 0.0, 0.0

    def _check_interval(self) -> float:
        return min(CHECK_INTERVAL_S, self._scheduler.capabilities.poll_interval_s)

    def _take(
        self,
        job: Job,
        attempt: Attempt,
        findings: Findings,
        now: float,
        settle: bool,
        watch: _Watch,
        record: Callable[[ev.Event], None],
    ) -> bool:
        """Metrics to the series, counters to high-water marks; whether a counter moved ahead.

        With `settle` the marks go to the journal, however recent the last ones are.
        """
        name = job.spec.name
        if findings.metrics:
            self._series.add(watch.series, attempt.number, findings.metrics, now)
        marks = self._marks.setdefault(name, {})
        moved = False
        new = dict(findings.counters)
        if findings.checkpoints:
            before = max(marks.get(CHECKPOINTS, 0.0), job.high_water.get(CHECKPOINTS, 0.0))
            new[CHECKPOINTS] = before + findings.checkpoints
        for counter, value in new.items():
            if value > max(marks.get(counter, float("-inf")), job.high_water.get(counter, float("-inf"))):
                marks[counter] = value
                self._moved_at[name] = now
                moved = True
        due = watch.progress_at is None or now - watch.progress_at >= PROGRESS_INTERVAL_S or settle
        if due:
            for counter, value in marks.items():
                if value > job.high_water.get(counter, float("-inf")):
                    watch.progress_at = now
                    record(
                        ev.ProgressMade(
                            at=now,
                            job=name,
                            attempt=attempt.number,
                            counter=counter,
                            value=value,
                            seen_at=self._moved_at[name] if self._moved_at[name] != now else None,
                        )
                    )
        return moved

    def _count(
        self, watch: _Watch, fact: SchedulerFact | None, grown: int, moved: bool, complete: bool, now: float
    ) -> float:
        """Silence is what was observed: between two answered looks, never across a blind gap.

        How long it had been when it ended now.
        """
        if fact is None and not grown:
            return 0.0
        running = fact is not None and fact.state is SchedulerState.RUNNING
        gap = now - watch.looked_at if watch.looked_at is not None else 0.0
        if not (running and complete) or gap < 0 or gap > self._blind_gap_s:
            gap = 0.0
        silence_s = watch.quiet_s + gap
        watch.quiet_s = 0.0 if grown else silence_s
        watch.still_s = 0.0 if moved else watch.still_s + gap
        watch.looked_at = now
        return silence_s if grown else 0.0

    # ---- conditions

    def forget(self, job: str) -> None:
        """A job begins anew: what its conditions said before means nothing."""
        self._checks.forget(job)

    def start_gate(
        self, job: Job, rules: RuleSet, now: float, *, over: bool = False
    ) -> tuple[Gate, str, bool]:
        """Whether a waiting job may start, why, and whether it never will.

        `over`: the jobs that it waits for have ended, so that what they have said is asked for once more.
        """
        if rules.start is None:
            return Gate.OPEN, "", False
        kind = f"start.{len(job.attempts)}{'.over' if over else ''}"
        check = rules.start.check(fields_of(job))
        gate, said = self._checks.value(
            job.spec.name, kind, check, interval_s=rules.start_interval_s, now=now
        )
        return gate, said, over and gate is Gate.CLOSED and of_jobs(check)

    def _gate(
        self, job: Job, kind: str, condition: ConditionInterface | None, rules: RuleSet, now: float
    ) -> Gate:
        if condition is None:
            return Gate.CLOSED
        check = condition.check(fields_of(job))
        value, _ = self._checks.value(job.spec.name, kind, check, interval_s=rules.start_interval_s, now=now)
        return value


def _is_far(name: str, cursor: Cursor, watch: _Watch, ended: bool) -> bool:
    """Whether a cursor goes to the journal though it stands behind no signal.

    At the end of an attempt it does where the file (any but the log) goes on in the next one, which must
    not find again what was counted in this one.
    """
    saved = watch.journaled.get(name, Cursor())
    return (
        cursor.offset - saved.offset >= JOURNAL_EVERY_BYTES
        or cursor.generation != saved.generation
        or (ended and name != "log" and cursor != saved)
    )


def files_of(job: Job, attempt: Attempt) -> dict[str, Path]:
    """The watched files of an attempt, by the name that rules know them by."""
    return {"log": Path(attempt.log_path), **{path: Path(path) for path in job.spec.output_paths}}


def fields_of(job: Job, number: int = 0) -> dict[str, Scalar]:
    """What actions and conditions may say of a job: its parameters, places and state.

    `number`: the attempt that is meant, for an action may come when a later one has begun; 0: the latest.
    """
    attempt = next((each for each in job.attempts if each.number == number), job.attempt)
    return {
        **job.spec.parameters,
        **{f"sibling.{parent.stage}": parent.job for parent in job.spec.parents},
        "job": job.spec.name,
        "job_name": job.spec.name,
        "name": job.spec.name,
        "output_dir": job.spec.output_dir,
        "checkpoint_dir": job.spec.checkpoint_dir,
        "log_path": attempt.log_path if attempt else "",
        "attempt": attempt.number if attempt else 0,
        "job_id": attempt.ref.id if attempt and attempt.ref else "",
        "state": job.state.value,
        "mode": job.mode,
        "reason": job.reason,
    }


__all__ = ["BLIND_GAP_S", "Observer", "SchedulerUnavailable", "fields_of", "files_of"]
