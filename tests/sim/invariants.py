"""The invariants of a session, checked while it is played: what it wrote, against what really ran.

An `Audit` outlives the loops. It reads the journal as any other process does, is told of every call of the
scheduler and of every answer, and sees the cluster itself, also the jobs that the controller has lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import (
    PARENT,
    Attempt,
    JobState,
    Phase,
    SchedulerFact,
    SchedulerRef,
    SchedulerState,
)
from oellm_autoexp.core.session import Session
from oellm_autoexp.reactions.policies import in_force
from oellm_autoexp.schedulers.fake.cluster import FakeCluster
from oellm_autoexp.schedulers.fake.execution import HEARTBEAT_S
from oellm_autoexp.schedulers.fake.run import Run
from oellm_autoexp.store.journal import Follower, read

#: The bucket of scheduler calls: so many at once, and so many a second.
BURST, PER_S = 30.0, 2.0
#: A full replay is compared after so many ticks, beside the one that grows with the journal.
REPLAY_EVERY = 50
#: What a cancel may rest on that is a measurement of ours, and so needs an answer of the same tick.
MEASURED = ("inactivity_threshold_seconds", "progress_threshold_seconds")


def check_indexes(session: Session) -> None:
    """6: what a session keeps by name says the same as a look at every job."""
    jobs = session.jobs
    alive = {name for name, job in jobs.items() if job.live is not None}
    waiting = {name for name, job in jobs.items() if job.live is None and not job.state.ended}
    assert set(session.alive) == alive, "6: who is alive"
    assert set(session.waiting) == waiting, "6: who waits"
    assert set(session.queued) == {name for name, job in jobs.items() if job.successor}, "6: who is queued"
    assert set(session.orphans) == {name for name, job in jobs.items() if job.orphaned}, "6: orphans"


class Audit:
    """Fails with an AssertionError where an invariant is broken; its message begins with the number."""

    def __init__(self, paths: SessionPaths, cluster: FakeCluster) -> None:
        self.session = Session()
        self.events: list[ev.Event] = []
        self._paths = paths
        self._cluster = cluster
        self._follower = Follower(paths)
        #: What was answered at a moment; to several leaders, where one was stopped within its tick.
        self._facts: dict[float, dict[SchedulerRef, list[SchedulerFact]]] = {}
        self._level, self._called_at = BURST, 0.0
        self._ticks = 0
        self._limits: Mapping[str, Any] = {}
        #: Of each job: numbers of the attempts that were submitted, or ran, and how many it was allowed.
        self._numbers: dict[str, set[int]] = {}
        self._allowed: Counter[str] = Counter()
        self._charged: Counter[tuple[str, str]] = Counter()
        #: What waits behind other attempts, and is no attempt of its job yet; what has run; what never may.
        self._waiting: set[tuple[str, int]] = set()
        self._ran: set[tuple[str, int]] = set()
        self._never: set[tuple[str, int]] = set()
        #: What was seen to begin though nobody had told it to.
        self._by_itself: set[tuple[str, int]] = set()
        self._ended_actions: Counter[str] = Counter()
        #: Byte offsets of the lines that the pattern finds in the log of an attempt, when it was concluded.
        self.occurrences: dict[tuple[str, int], list[int]] = {}
        self.pattern = re.compile(rb"Checkpoint saved: \S+ at step \d+")

    # ---- what it is told

    def answered(self, now: float, facts: Mapping[SchedulerRef, SchedulerFact]) -> None:
        """The scheduler has answered a leader whose clock shows `now`."""
        told = self._facts.setdefault(now, {})
        for ref, fact in facts.items():
            told.setdefault(ref, []).append(fact)

    def called(self, command: str, now: float) -> None:
        """7: scheduler calls stay within the rate bucket (30 burst, 2 per second)."""
        self._level = min(BURST, self._level + PER_S * (now - self._called_at))
        self._called_at = now
        self._level -= 1.0
        assert self._level >= 0.0, f"7: {command} is one call too many"

    def look_at_the_cluster(self) -> None:
        """1: at most one attempt of a job able to run at a time.

        A copy that the controller has lost (a cut-off node, a crash that it has forgotten) cannot be ended
        by anybody but its own guard: it may go on until that has seen, at its next heartbeat, the claim of
        the one that came after it.
        """
        running: dict[str, Run] = {}
        for run in sorted(self._cluster.running, key=lambda run: run.started_at):
            pair = run.request.name, run.request.attempt
            self._ran.add(pair)
            assert pair not in self._never, f"1: {_shown(run)} runs, which was never to begin"
            if pair in self._waiting:
                self._begins_by_itself(*pair)
            else:
                self._try(*pair)
            before = running.get(run.request.name)
            running[run.request.name] = run
            if before is None:
                continue
            text = f"1: {_shown(before)} and {_shown(run)} run at {self._cluster.now}"
            assert self._lost(before), text
            assert self._cluster.now - run.started_at <= HEARTBEAT_S, f"{text}, longer than a heartbeat"

    def look_at_the_journal(self, memory: Session | None = None) -> None:
        """What was committed since the last look; `memory`: the state of the leader, if all is committed."""
        for event in self._follower.new_events():
            self._before(event)
            self.session.apply(event)
            self.events.append(event)
        if memory is not None:
            self._ticks += 1
            self._replay_is_memory(memory)

    def _before(self, event: ev.Event) -> None:
        self._an_intent_has_one_outcome(event)
        self._nothing_on_unknown(event)
        self._within_budgets(event)
        self._an_action_ends_once(event)
        self._what_is_dropped_never_ran(event)
        self._a_verdict_stays(event)
        self._parents_come_first(event)
        if isinstance(event, ev.AttemptEnded):
            self._note_occurrences(event)

    # ---- the invariants

    def _begins_by_itself(self, name: str, number: int) -> None:
        """10: where nobody has told it to, a job begins behind exits of all its parents that say success."""
        job = self.session.jobs[name]
        if job.live is not None or (name, number) in self._by_itself:
            return
        self._by_itself.add((name, number))
        for parent in job.spec.parents:
            before = self.session.jobs[parent.job]
            place = str(self._paths.attempt(parent.job, before.attempts[-1].number))
            run = self._cluster._execution._owners.get(place)
            exited = run is not None and (run.recorded, run.cause) == (0, "exit")
            assert before.state is JobState.SUCCEEDED or exited, f"10: {name} by itself before {parent.job}"

    def _parents_come_first(self, event: ev.Event) -> None:
        """10: a job begins when what it waits for has succeeded, and ends with it only before that."""
        jobs, asked = self.session.jobs, ()
        if isinstance(event, ev.SubmitRequested) and not event.after:
            asked = event.jobs
        elif isinstance(event, ev.SuccessorTaken) and (event.job, event.attempt) not in self._ran:
            asked = ((event.job, event.attempt),)
        for name, _ in asked:
            for parent in () if jobs[name].begun else jobs[name].spec.parents:
                assert jobs[parent.job].state is JobState.SUCCEEDED, f"10: {name} before {parent.job}"
        if isinstance(event, ev.SubmitRequested) and event.after:
            assert len(event.jobs) == 1, f"10: {event} is no single job"
        if isinstance(event, ev.EndWished) and event.by == PARENT:
            job = jobs[event.job]
            lost = (JobState.FAILED, JobState.CANCELLED)
            assert not job.begun, f"10: {event.job} is its own"
            assert any(jobs[parent.job].state in lost for parent in job.spec.parents), f"10: {event.job}"

    def _an_intent_has_one_outcome(self, event: ev.Event) -> None:
        """2: each submit intent ends as exactly one of submitted(id) or proven-not-submitted."""
        if isinstance(event, ev.SubmitRequested):
            assert event.token not in self.session.submissions, f"2: {event.token} is asked for twice"
        elif isinstance(event, (ev.SubmitSpawned, ev.SubmitAccepted, ev.SubmitRefused)):
            assert event.token in self.session.submissions, f"2: {event} without an intent"
        if isinstance(event, ev.SubmitAccepted):
            tasks = Counter(job.task for job in self._cluster.jobs.values() if job.token == event.token)
            assert event.refs, f"2: {event.token} is submitted as nothing"
            assert set(tasks.values()) <= {1}, f"2: {event.token} is submitted more than once"
        if isinstance(event, ev.SubmitRefused):
            there = [job.id for job in self._cluster.jobs.values() if job.token == event.token]
            assert not there, f"2: {event.token} counts as not submitted, and is {there}: {event.reason}"

    def _nothing_on_unknown(self, event: ev.Event) -> None:
        """3: no cancel or restart on unknown."""
        if isinstance(event, ev.AttemptEnded):
            attempt = self._attempt(event.job, event.attempt)
            facts = [fact for fact in self._told(attempt, event.at) if fact.state.ended]
            assert facts, f"3: {event} rests on {self._told(attempt, event.at)}"
            gone = all(fact.state is SchedulerState.GONE for fact in facts)
            if gone and "no exit record" in event.evidence:
                assert attempt.gone_since is not None, f"3: {event} rests on one look"
        elif isinstance(event, ev.CancelRequested) and event.by in MEASURED:
            attempt = self._attempt(event.job, event.attempt)
            facts = self._told(attempt, event.at)
            # One that had no effect is asked for again, whatever it is doing now.
            again = attempt.cancel is not None and facts
            runs = any(fact.state is SchedulerState.RUNNING for fact in facts)
            assert runs or again, f"3: {event} rests on {facts}"
        elif isinstance(event, (ev.RestartScheduled, ev.JobEnded)):
            live = self.session.jobs[event.job].live
            assert live is None, f"3: {event} though attempt {live} is alive"

    def _within_budgets(self, event: ev.Event) -> None:
        """4: attempts never exceed the budget, across daemons."""
        if isinstance(event, ev.RulesSet):
            self._limits = in_force(event.config.get("restart_policies", {}))
        elif isinstance(event, ev.JobAdded):
            self._allowed[event.spec.name] += 1
        elif isinstance(event, ev.JobRetried) or (isinstance(event, ev.JobUpdated) and event.again):
            self._allowed[event.job] += 1
            self._charged.update({key: -n for key, n in self._charged.items() if key[0] == event.job})
        elif isinstance(event, ev.RestartScheduled):
            self._allowed[event.job] += 1
            key = (event.job, event.entry)
            if self._attempt(event.job, event.attempt).progressed:
                # Whatever ended the attempt: the job has got ahead.
                for job, entry in list(self._charged):
                    if job == event.job and self._limits.get(entry, {}).get("refilled_by_progress"):
                        self._charged[job, entry] = 0
            self._charged[key] += event.charged
            if event.successor:
                self._waiting.discard((event.job, event.successor))
                self._try(event.job, event.successor)
            limit = self._limits.get(event.entry, {}).get("max_retries")
            assert limit is None or self._charged[key] <= limit, f"4: restart {self._charged[key]}: {event}"
        elif isinstance(event, ev.SuccessorTaken):
            self._waiting.discard((event.job, event.attempt))
            self._try(event.job, event.attempt)
        elif isinstance(event, ev.SubmitRequested):
            for name, number in event.jobs:
                if event.after:
                    self._waiting.add((name, number))
                else:
                    self._try(name, number)
        elif isinstance(event, ev.SubmitRefused):
            for name, number in self.session.submissions[event.token].jobs:
                self._numbers.get(name, set()).discard(number)
                self._waiting.discard((name, number))

    def _try(self, name: str, number: int) -> None:
        numbers = self._numbers.setdefault(name, set())
        numbers.add(number)
        assert len(numbers) <= self._allowed[name], f"4: {name} is tried {len(numbers)} times"

    def _what_is_dropped_never_ran(self, event: ev.Event) -> None:
        """1: what waited behind an attempt, and was given up, neither has run nor ever does."""
        if isinstance(event, ev.SuccessorSettled) and not event.begun:
            pair = event.job, event.attempt
            self._never.add(pair)
            assert pair not in self._ran, f"1: {event}, but it has run"

    def _an_action_ends_once(self, event: ev.Event) -> None:
        """5: each signal occurrence leads to exactly one action attempt that completes."""
        if isinstance(event, ev.ActionEnded):
            self._ended_actions[event.key] += 1
            assert self._ended_actions[event.key] == 1, f"5: {event} is the second end"

    def _replay_is_memory(self, memory: Session) -> None:
        """6: state after replay equals state in memory."""
        assert self.session == memory, "6: the journal and the memory of its leader differ"
        check_indexes(memory)
        if self._ticks % REPLAY_EVERY == 0:
            self.replay()

    def replay(self) -> None:
        """6, from the first record on."""
        again = Session()
        for event in read(self._paths).events:
            again.apply(event)
        assert again == self.session, "6: another replay gives another state"

    def _a_verdict_stays(self, event: ev.Event) -> None:
        """8: a terminal verdict changes only by an explicit command."""
        name = getattr(event, "job", "")
        job = self.session.jobs.get(name)
        if job is None or not job.state.ended:
            return
        changes = (ev.AttemptRequeued, ev.AttemptStarted, ev.AttemptPending, ev.AttemptGone, ev.AttemptEnded)
        decides = (ev.JobEnded, ev.RestartScheduled)
        assert not isinstance(event, (*changes, *decides)), f"8: {name} is {job.state.value}, and {event}"

    def at_the_end(self) -> None:
        """What must be so when a session has come to its end; 2 and 5 in full, and 9: all have a verdict."""
        self.replay()
        session = self.session
        assert not session.submissions, f"2: no outcome of {session.submissions}"
        assert not session.open_actions, f"5: not carried out: {list(session.open_actions)}"
        unended = [name for name, job in session.jobs.items() if not job.state.ended]
        assert not unended, f"9: no verdict of {unended}"
        left = [_shown(run) for run in self._cluster.running if not self._lost(run)]
        assert not left, f"9: still running: {left}"

    # ---- helpers

    def _lost(self, run: Run) -> bool:
        """Whether the controller has lost a copy, so that nobody but its guard can end it."""
        job = self._cluster.jobs.get(run.job)
        return run.lost or job is None or job.run is not run

    def _told(self, attempt: Attempt, at: float) -> list[SchedulerFact]:
        """What the scheduler answered about an attempt at a moment."""
        return self._facts.get(at, {}).get(attempt.ref, []) if attempt.ref is not None else []

    def _attempt(self, job: str, number: int) -> Attempt:
        return next(each for each in self.session.jobs[job].attempts if each.number == number)

    def _note_occurrences(self, event: ev.AttemptEnded) -> None:
        attempt = self._attempt(event.job, event.attempt)
        assert attempt.phase is not Phase.ENDED, f"3: {event} ends it twice"
        try:
            data = Path(attempt.log_path).read_bytes()
        except FileNotFoundError:
            data = b""
        found, offset = [], 0
        for line in data.splitlines(keepends=True):
            if self.pattern.search(line):
                found.append(offset)
            offset += len(line)
        self.occurrences[event.job, event.attempt] = found

    def actions(self, action: str) -> dict[tuple[str, int], list[int]]:
        """Where the occurrences were found for which an action was asked for, by job and attempt."""
        found: dict[tuple[str, int], list[int]] = {pair: [] for pair in self.occurrences}
        for key, state in self.session.actions.items():
            if state.request.action == action:
                # The key ends in file:generation:offset:rule:action.
                offset = int(key.split(":")[-3])
                found.setdefault((state.request.job, state.request.attempt), []).append(offset)
        return {pair: sorted(offsets) for pair, offsets in found.items()}


def _shown(run: Run) -> str:
    return f"{run.request.name} attempt {run.request.attempt} (job {run.job}, from {run.started_at})"
