"""The tick: inbox, observe, decide, journal, perform. The only reader of the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from oellm_autoexp.config.limits import NATIVE, OURS
from oellm_autoexp.config.sockets import SchedulerInterface
from oellm_autoexp.core import early, holds, parents, successor
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.admission import admit, rethrottle
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.lifecycle import Gate, Rules, follow
from oellm_autoexp.core.model import Job, SchedulerFact, SchedulerRef
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import LeadershipLost, SchedulerUnavailable, StateError
from oellm_autoexp.monitor import rules as rule_sets
from oellm_autoexp.monitor.agenda import Agenda, LiveJobs, NewsOnly, Rehearsal, undecided
from oellm_autoexp.monitor.checks import Checks, Executor, Known, PlayedChecks
from oellm_autoexp.monitor.commands import Commands
from oellm_autoexp.monitor.exclusion import Exclusion
from oellm_autoexp.monitor.observe import Observer, fields_of
from oellm_autoexp.monitor.perform import Performer
from oellm_autoexp.monitor.rules import RuleSet
from oellm_autoexp.monitor.wake import Alarm, Rest
from oellm_autoexp.store import inbox, snapshot
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import HEARTBEAT_S, Journal
from oellm_autoexp.store.series import Series

#: A tick's performing is cut here, so that heartbeat, inbox and Ctrl-C never wait for a thousand submissions.
PERFORM_S = 5.0
SNAPSHOT_INTERVAL_S = 10.0
#: An hour of virtual time passes in less than that; the losses of a played job are nobody's.
VIRTUAL_HEARTBEAT_S = 3600.0
VIRTUAL_SERIES_S = 3600.0
#: The longest pause between questions to a scheduler that does not answer.
MAX_BACKOFF_S = 60.0


class Clock(Protocol):
    def now(self) -> float: ...

    def monotonic(self) -> float: ...

    def wait(self, seconds: float) -> None: ...


class RealClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class Loop:
    """Leads a session until everything has a verdict.

    In a `rehearsal` nothing of the user's is run: commands, texts and messages of actions are recorded as
    done without having been done, start conditions hold, and cancel and finish conditions do not. Time passes
    in leaps, and a leap is no blindness.
    """

    def __init__(
        self,
        session: Session,
        journal: Journal,
        scheduler: SchedulerInterface,
        local: SchedulerInterface,
        paths: SessionPaths,
        effects: Effects,
        clock: Clock,
        executor: Executor,
        *,
        alarm: Alarm | None = None,
        rehearsal: Rehearsal | None = None,
        listener: Callable[[ev.Event], None] = lambda _event: None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.session = session
        self._journal = journal
        self._scheduler = scheduler
        self._paths = paths
        self._effects = effects
        self._clock = clock
        self._listener = listener
        self._warn = warn
        self._rules: dict[str, RuleSet] = {}
        self._alarm = alarm
        self._rest = Rest(scheduler.capabilities.poll_interval_s)
        known = Known(job=session.jobs.get, series=paths.series)
        checks = (Checks if rehearsal is None else PlayedChecks)(executor, effects, known)
        series = Series(effects, interval_s=1.0 if rehearsal is None else VIRTUAL_SERIES_S)
        self._observer = Observer(scheduler, paths, checks, series)
        self._exclusion = Exclusion(session, scheduler, effects, record=self.record, trouble=self._trouble)
        self.commands = Commands(session, self.record, has_nodes=self._exclusion.possible)
        self._performer = Performer(
            session,
            scheduler,
            local,
            paths,
            effects,
            executor,
            record=self.record,
            commit=self._commit,
            clock=clock.now,
            rules_of=self.rules_of,
            exclusion=self._exclusion,
            trouble=self._trouble,
            rehearsal=rehearsal is not None,
        )
        self._rehearsal = rehearsal
        #: The snapshot is for other programs; nobody reads it while virtual time flies.
        self._snapshot_interval_s = SNAPSHOT_INTERVAL_S if rehearsal is None else math.inf
        self._heartbeat_s = HEARTBEAT_S if rehearsal is None else VIRTUAL_HEARTBEAT_S
        self._agenda: Agenda = LiveJobs(session, self.rules_of)
        if rehearsal is not None:
            self._agenda = NewsOnly(session, rehearsal)
        self._poll_at = 0.0
        self._failures = 0
        self._snapshot_at = 0.0
        self._changed = True
        #: Files in the inbox that are no commands: said once.
        self._strange: set[Path] = set()
        self._recorded = 0
        #: What does not work at the moment, by what it is: each is said once.
        self._troubles: dict[str, str] = {}

    # ---- recording

    def record(self, event: ev.Event) -> None:
        """Take an event in and put it into the journal's next commit."""
        self.session.apply(event)
        self._journal.append(event)
        self._changed = True
        self._recorded += 1
        if isinstance(event, (ev.JobRetried, ev.JobUpdated)):
            self._observer.forget(event.job)
        self._listener(event)
        self._occasion(event)

    def _commit(self) -> None:
        self._journal.commit()

    def rules_of(self, identity: str) -> RuleSet:
        """The rules of a job, built once."""
        found = self._rules.get(identity)
        if found is None:
            found = self._rules[identity] = rule_sets.build(self.session.rules[identity])
        return found

    # ---- the tick

    def tick(self) -> None:
        """One turn.

        Raises:
            LeadershipLost: a newer leader exists.
        """
        now = self._clock.now()
        try:
            before = self.session.stopped
            commands = self._inbox(now)
            told_to_stop = self.session.stopped and not before
            if not told_to_stop:
                facts = self._poll(now)
                for job in self._agenda.due(now):
                    self._job(job, facts, now)
                    self._agenda.looked(job.spec.name, facts, now)
                self._across(facts, now)
            self._commit()
            for command in commands:
                inbox.acknowledge(self._effects, command)
            if not told_to_stop:
                self._performer.perform(now + PERFORM_S)
                self._commit()
        except (StateError, OSError) as error:
            # Until what was decided is on disk, no effect may follow from it.
            self._trouble("journal", str(error))
        else:
            self._trouble("journal", "")
        self._observer.settle(now)
        self._journal.heartbeat(now, self._heartbeat_s)
        self._snapshot(now)

    def _trouble(self, what: str, text: str) -> None:
        """Say that something does not work, once; "" when it works again."""
        if not text:
            self._troubles.pop(what, None)
        elif text != self._troubles.get(what):
            self._troubles[what] = text
            self._warn(text)

    def _job(self, job: Job, facts: Mapping[SchedulerRef, SchedulerFact], now: float) -> None:
        name = job.spec.name
        rules = self.rules_of(job.spec.rules)
        was_undecided = undecided(job)
        seen = self._observer.observe(job, rules, facts, now, self.record, lambda key: self.session.jobs[key])
        job = self.session.jobs[name]
        events = successor.decide(
            job,
            seen,
            rules.lifecycle,
            lambda after, waits: self._exclusion.allows(after, waits, seen.fact, now),
        )
        if was_undecided and not events:
            events = (follow(job, rules.lifecycle, now),)
        for event in events:
            if isinstance(event, ev.RestartScheduled):
                event = self._exclusion.explained(event)
            self.record(event)
            if isinstance(event, ev.AttemptEnded):
                self._exclusion.learn(event, seen.fact)

    def _across(self, facts: Mapping[SchedulerRef, SchedulerFact], now: float) -> None:
        """What is decided across jobs: the breaker, and who may start."""
        config = self._scheduler.config
        for event in holds.breaker(self.session, getattr(config, "breaker", 3), now):
            self.record(event)
        for cancel in holds.withdrawals(self.session, now):
            self.record(cancel)
        self._prove_canaries(now)
        for follows in (*parents.revived(self.session, now), *parents.orphaned(self.session, now)):
            self.record(follows)
        held = holds.holds(self.session)
        limit = self._max_jobs() or self._scheduler.capabilities.default_max_jobs
        # What is in the queue already goes first.
        for follows in early.decide(
            self.session,
            facts,
            now,
            held=held,
            max_jobs=limit,
            fits=lambda job, waits: self._exclusion.fits(job, waits, now),
        ):
            self.record(follows)
        ready = []
        for name in list(self.session.waiting):
            job = self.session.jobs[name]
            if job.end_wish is not None or now < job.not_before:
                continue
            why = held.of(job) or parents.waits(self.session, job, played=self._rehearsal is not None)
            if not why:
                over = parents.over(self.session, job)
                gate, said, settled = self._observer.start_gate(
                    job, self.rules_of(job.spec.rules), now, over=over
                )
                if settled:
                    self.record(parents.too_late(job, said, now))
                    continue
                why = "" if gate is Gate.OPEN else f"start condition: {said}"
            if why != job.hold:
                self.record(ev.JobHeld(at=now, job=name, why=why))
            if not why and job.successor is None:
                ready.append(self.session.jobs[name])
        for change in rethrottle(self.session, ready, now, max_jobs=limit):
            self.record(change)
        for request in admit(
            self.session,
            ready,
            now,
            max_jobs=limit,
            throttles=self._scheduler.capabilities.throttles,
            max_array_size=self._scheduler.capabilities.max_array_size,
            submit_rate_limit_s=getattr(config, "submit_rate_limit_seconds", None),
            left_out=lambda block: self._exclusion.of(block, now),
        ):
            self.record(request)
        if self._scheduler.capabilities.successors:
            self._ask_behind_others(held, limit, now)

    def _ask_behind_others(self, held: holds.Holds, limit: int | None, now: float) -> None:
        """What is to wait in the queue behind attempts that live: of the same job, or of its parents."""
        config = self._scheduler.config
        rate_s = getattr(config, "submit_rate_limit_seconds", None)
        if getattr(config, "successor", False):
            for request in successor.wanted(
                self.session,
                now,
                rules_of=self._rules_of_chain,
                left_out=lambda block: self._exclusion.of(block, now),
                submit_rate_limit_s=rate_s,
            ):
                self.record(request)
        if getattr(config, "dependency", OURS) == NATIVE:
            for request in early.wanted(
                self.session,
                now,
                held=held,
                may_have_one=lambda job: self._rules_of_chain(job) is not None,
                max_jobs=limit,
                left_out=lambda block: self._exclusion.of(block, now),
                submit_rate_limit_s=rate_s,
            ):
                self.record(request)

    def _max_jobs(self) -> int | None:
        """How many jobs may live at once: as whoever came to the session last has said."""
        at_first: int | None = getattr(self._scheduler.config, "max_jobs", None)
        opened = self.session.opened
        given = opened.scheduler.get("max_jobs", at_first) if opened is not None else at_first
        return given if isinstance(given, int) else at_first

    def _rules_of_chain(self, job: Job) -> Rules | None:
        """The rules of a job whose next attempt may wait in the queue; None if a condition lets it start."""
        rules = self.rules_of(job.spec.rules)
        return rules.lifecycle if rules.start is None else None

    def _prove_canaries(self, now: float) -> None:
        if self.session.blind:
            return
        for job in holds.canaries(self.session):
            rules = self.rules_of(job.spec.rules).lifecycle
            grace_s, known = rules.startup_grace_s, rules.progress_known
            why = holds.proof(job, now, startup_grace_s=grace_s, progress_known=known)
            if why:
                self.record(ev.CanaryProved(at=now, job=job.spec.name, why=why))

    def _poll(self, now: float) -> Mapping[SchedulerRef, SchedulerFact]:
        """The scheduler's answer if one is due; nothing is concluded from silence."""
        if now < self._poll_at:
            return {}
        interval = self._poll_interval()
        try:
            facts = self._observer.poll(self.session)
        except SchedulerUnavailable as error:
            self._failures += 1
            self._poll_at = now + min(MAX_BACKOFF_S, interval * 2.0 ** min(self._failures, 30))
            if not self.session.blind:
                self.record(ev.Blinded(at=now, reason=str(error)))
                self._session_occasion("blind", str(error), now)
            return {}
        self._failures = 0
        interval = self._poll_interval()
        self._poll_at = now + interval
        self._observer.expect(interval if self._rehearsal is None else math.inf)
        if self.session.blind:
            self.record(ev.Sighted(at=now))
        return facts

    def _due(self) -> float:
        """When the scheduler is to be asked, or a log to be read, next."""
        return min(self._poll_at, self._observer.due(self.session))

    def _poll_interval(self) -> float:
        """The shortest that the rules of a live job ask for; the scheduler's own where none does."""
        jobs = self.session.jobs
        live = {jobs[name].spec.rules for name in self.session.alive}
        asked = [self.rules_of(identity).poll_interval_s for identity in live]
        named = [interval for interval in asked if interval is not None]
        return min(named, default=self._scheduler.capabilities.poll_interval_s)

    # ---- occasions

    def _occasion(self, event: ev.Event) -> None:
        """Actions that a happening fires; in the same commit as the happening."""
        match event:
            case ev.AttemptStarted():
                occasion, number = "job_started", event.attempt
            case ev.RestartScheduled():
                occasion, number = "job_restarted", event.attempt
            case ev.JobEnded():
                occasion, number = f"job_{event.state}", len(self.session.jobs[event.job].attempts)
            case _:
                return
        job = self.session.jobs[event.job]
        for action in self.rules_of(job.spec.rules).occasions.get(occasion, ()):
            self.record(
                ev.ActionRequested(
                    at=event.at,
                    # The time, since a job may end, be retried and end again before any attempt.
                    key=f"{event.job}:{number}:{occasion}:{event.at}:{action}",
                    action=action,
                    job=event.job,
                    attempt=number,
                    rule=occasion,
                    rules=job.spec.rules,
                    fields={k: v for k, v in fields_of(job).items() if k in ("state", "mode", "reason")},
                )
            )

    def _session_occasion(self, occasion: str, reason: str, now: float) -> None:
        for identity in {job.spec.rules for job in self.session.jobs.values()}:
            for action in self.rules_of(identity).occasions.get(occasion, ()):
                key = f":{occasion}:{now}:{action}"
                if key not in self.session.actions:
                    self.record(
                        ev.ActionRequested(
                            at=now,
                            key=key,
                            action=action,
                            rule=occasion,
                            rules=identity,
                            fields={"job": "session", "state": occasion, "reason": reason},
                        )
                    )

    # ---- commands of other processes

    def _inbox(self, now: float) -> list[inbox.Command]:
        commands = inbox.pending(self._paths, self._report)
        for command in commands:
            if command.id not in self.session.answered:
                ok, text = self.commands.obey(command.verb, command.args, now)
                self.record(
                    ev.CommandAnswered(at=now, command=command.id, verb=command.verb, ok=ok, text=text)
                )
        return commands

    def _report(self, path: Path, why: str) -> None:
        if path not in self._strange:
            self._strange.add(path)
            self._warn(f"{path}: {why}; it is left alone")

    # ---- running

    @property
    def finished(self) -> bool:
        """Every job has a verdict and every action an outcome, or nothing can go on without a person."""
        session = self.session
        if session.open_actions or session.submissions or session.queued or self._journal.dirty:
            return False
        return session.all_ended or holds.halt(session) != ""

    def start(self) -> None:
        """Say that a person wants the session led; only what was stopped has to be told."""
        if self.session.stopped:
            now = self._clock.now()
            text = "a person has it led again"
            self.record(ev.CommandAnswered(at=now, command=f"start-{now}", verb="start", ok=True, text=text))

    def run(self, on_tick: Callable[[Session], None] = lambda _session: None) -> None:
        """Tick until the session has come to its end, or somebody stops the loop (`session.stopped`).

        Raises:
            LeadershipLost: a newer leader exists; nothing more is done here.
        """
        self.start()
        while True:
            recorded = self._recorded
            self.tick()
            on_tick(self.session)
            if self.session.stopped and not self._journal.dirty:
                return
            if self.finished and not inbox.pending(self._paths):
                now = self._clock.now()
                if self.session.ended is None:
                    reason = holds.halt(self.session) or "every job has a verdict"
                    self.record(ev.SessionEnded(at=now, reason=reason))
                    self._session_occasion("session_ended", reason, now)
                    continue
                self._snapshot(now, force=True)
                return
            rest_s = self._rest.after(
                changed=self._recorded > recorded, due_s=self._due() - self._clock.now()
            )
            if self._rehearsal is not None:
                self._rehearsal.awaited_at = self._next_start()
            if self._alarm is None:
                self._clock.wait(rest_s)
            else:
                self._alarm.watch([self._paths.inbox, *self._observer.places])
                if self._alarm.rest(rest_s):
                    self._observer.hurry()

    def _next_start(self) -> float:
        """When the next of the jobs that wait may start."""
        now, jobs = self._clock.now(), self.session.jobs
        times = (jobs[name].not_before for name in self.session.waiting)
        return min((at for at in times if at > now), default=math.inf)

    def close(self) -> None:
        """Say goodbye in the journal; jobs go on."""
        if self._alarm is not None:
            self._alarm.stop()
        self._observer.settle(self._clock.now(), every=True)
        self._snapshot(self._clock.now(), force=True)
        try:
            self._journal.close(self._clock.now())
        except (StateError, LeadershipLost, OSError) as error:
            self._warn(str(error))

    def _snapshot(self, now: float, *, force: bool = False) -> None:
        if not self._changed or (now - self._snapshot_at < self._snapshot_interval_s and not force):
            return
        try:
            snapshot.write(self.session, self._paths, self._effects, now)
        except OSError as error:
            self._trouble("snapshot", f"{self._paths.snapshot}: {error.strerror}")
        else:
            self._trouble("snapshot", "")
            self._snapshot_at, self._changed = now, False
