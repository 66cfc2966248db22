"""The heart: `decide` turns what was observed into events, `evolve` turns events into the next job.

Both are pure. An event that asks for an effect is an intent; the effect happens elsewhere, after the
event is on disk, and its outcome comes back as another event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import (
    Attempt,
    Cancel,
    EndedAttempt,
    ExitRecord,
    Job,
    JobState,
    LogSignal,
    Phase,
    Restart,
    SchedulerFact,
    SchedulerState,
    Spent,
    Stop,
    mode_root,
    most_specific,
)
from oellm_autoexp.core.nodes import named_nodes
from oellm_autoexp.core.quick import quick, replace
from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED, EXIT_CLAIM_LOST, Case, classify, format_duration

#: A cancel that had no effect is sent again after this long.
CANCEL_AGAIN_S = 60.0
#: An attempt that could not be claimed (a full disk, say) is tried again after this long, then twice as long.
UNCLAIMED_S = 30.0
UNCLAIMED_MAX_S = 600.0
#: A learned threshold of silence: see `learned_threshold`.
LEARNED_FLOOR_S, LEARNED_FACTOR, LEARNED_FROM = 1800.0, 5.0, 10


class Policy(Protocol):
    def decide(self, ended: EndedAttempt) -> Restart | Stop: ...


class Gate(Enum):
    """The value of a condition."""

    OPEN = "open"
    CLOSED = "closed"
    #: It has not answered (yet); an unknown gate holds, it never passes or kills.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is in force for a job."""

    policies: Mapping[str, Policy]
    success_needs_signal: bool = False
    #: Rules with an error mode that end a live attempt, and after how many seconds.
    acting: Mapping[str, float] = field(default_factory=dict)
    #: Silence, or a declared counter standing still, for this long is a stall; None: never.
    stall_after_s: float | None = None
    #: The threshold of silence is learned from the job itself (`Observation.usual_s`).
    stall_learned: bool = False
    counter_after_s: float | None = None
    startup_grace_s: float = 900.0
    progress_known: bool = False


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known of one job in this tick. Absent facts are absent, never invented."""

    now: float
    #: This tick's answer of the scheduler about the live attempt; None: not asked, or no answer.
    fact: SchedulerFact | None = None
    exit: ExitRecord | None = None
    #: The answer about the attempt that waits behind the live one.
    successor: SchedulerFact | None = None
    #: The log has been read to its end, and the success command has answered, after the end was seen.
    drained: bool = False
    #: The success command (`termination_command`) holds.
    confirmed: bool = False
    #: Seconds of observed silence / of a counter standing still, while RUNNING was answered.
    quiet_s: float = 0.0
    still_s: float = 0.0
    #: The longest silence while the job got ahead; None: not watched for long enough to tell.
    usual_s: float | None = None
    first_error: str = ""
    last_error: str = ""
    cancel_gate: Gate = Gate.CLOSED
    finish_gate: Gate = Gate.CLOSED
    gone_grace_s: float = 600.0


# ---------------------------------------------------------------- decide


def decide(job: Job, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    """What follows from this tick's observation of a job.

    Submission is not decided here: it depends on the other jobs (`core.session.admit`).
    """
    if job.state.ended:
        return ()
    attempt = job.live
    wish = _wish(job, seen)
    if attempt is None:
        return _decide_waiting(job, seen, wish)
    if attempt.phase in (Phase.REQUESTED, Phase.SPAWNED):
        return wish
    return wish + _decide_live(evolve_all(job, wish), attempt, seen, rules)


def _wish(job: Job, seen: Observation) -> tuple[ev.Event, ...]:
    """Conditions that end a job, whether it is alive or waiting."""
    if job.end_wish is not None:
        return ()
    if seen.finish_gate is Gate.OPEN:
        why = "the finish condition holds"
        return (ev.EndWished(at=seen.now, job=job.spec.name, why=why, by="finish_condition", mode="success"),)
    if seen.cancel_gate is Gate.OPEN:
        why = "the cancel condition holds"
        return (
            ev.EndWished(at=seen.now, job=job.spec.name, why=why, by="cancel_condition", mode="cancelled"),
        )
    return ()


def _decide_waiting(job: Job, seen: Observation, wish: tuple[ev.Event, ...]) -> tuple[ev.Event, ...]:
    job = evolve_all(job, wish)
    if job.end_wish is not None:
        return (*wish, _end_as_wished(job, seen.now))
    return wish


def _end_as_wished(job: Job, now: float) -> ev.JobEnded:
    wish = job.end_wish
    assert wish is not None
    state = {"success": JobState.SUCCEEDED, "cancelled": JobState.CANCELLED}.get(
        mode_root(wish.mode), JobState.FAILED
    )
    return ev.JobEnded(
        at=now, job=job.spec.name, state=state.value, mode=wish.mode, reason=wish.why, by=wish.by
    )


def _decide_live(job: Job, attempt: Attempt, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    fact = seen.fact
    if fact is None:
        return _cancel_if_wanted(job, attempt, seen, rules)
    # A copy that lost the claim says that another one runs, which will write how it ended.
    elsewhere = fact.state is SchedulerState.GONE or fact.exit_code == EXIT_CLAIM_LOST
    if elsewhere and seen.exit is None and not _confirmed_gone(attempt, seen):
        if attempt.gone_since is None:
            return (ev.AttemptGone(at=seen.now, job=job.spec.name, attempt=attempt.number),)
        return ()
    again = _requeued(job, attempt, fact, seen.now)
    if fact.state.ended:
        # The verdict waits for the log: a specific line in it wins over a generic state. Where it went on
        # unseen after a requeue, a line may be of either start, and still says more than none.
        return again + _ended(job, attempt, seen, rules) if seen.drained else ()
    job = evolve_all(job, again)
    moved = _follow_state(job, job.attempts[-1], fact, seen.now)
    job = evolve_all(job, moved)
    return again + moved + _cancel_if_wanted(job, job.attempts[-1], seen, rules)


def _confirmed_gone(attempt: Attempt, seen: Observation) -> bool:
    if seen.gone_grace_s <= 0:
        return True
    return attempt.gone_since is not None and seen.now - attempt.gone_since >= seen.gone_grace_s


def _requeued(job: Job, attempt: Attempt, fact: SchedulerFact, now: float) -> tuple[ev.Event, ...]:
    """The scheduler itself has started it again, or will: it counts more starts, or what ran waits."""
    is_back = attempt.phase is Phase.RUNNING and fact.state is SchedulerState.PENDING
    count = max(fact.restart_count, attempt.requeues + is_back)
    if count == attempt.requeues:
        return ()
    return (ev.AttemptRequeued(at=now, job=job.spec.name, attempt=attempt.number, requeues=count),)


def _follow_state(job: Job, attempt: Attempt, fact: SchedulerFact, now: float) -> tuple[ev.Event, ...]:
    name = job.spec.name
    if fact.state in (SchedulerState.PENDING, SchedulerState.HELD):
        is_news = job.state is not JobState.PENDING or attempt.pending_reason != fact.reason
        if attempt.phase is Phase.ACCEPTED and is_news:
            return (ev.AttemptPending(at=now, job=name, attempt=attempt.number, reason=fact.reason),)
        return ()
    if attempt.phase is not Phase.RUNNING:
        started = fact.started_at if fact.started_at is not None else now
        return (
            ev.AttemptStarted(at=now, job=name, attempt=attempt.number, started_at=started, nodes=fact.nodes),
        )
    return ()


def _cancel_if_wanted(job: Job, attempt: Attempt, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    """A reason to end the live attempt: a wish, an acting signal, a stall, or a cancel that had no effect."""
    if attempt.cancel is not None:
        overdue = attempt.cancel.sent_at is not None and seen.now - attempt.cancel.sent_at >= CANCEL_AGAIN_S
        if not overdue or seen.fact is None:
            return ()
        again = attempt.cancel
        return (_cancel(job, attempt, seen.now, why=again.why, by=again.by, mode=again.mode),)
    if job.end_wish is not None:
        wish = job.end_wish
        return (_cancel(job, attempt, seen.now, why=wish.why, by=wish.by, mode=wish.mode),)
    for found in attempt.signals:
        grace_s = rules.acting.get(found.rule)
        if grace_s is not None and mode_root(found.mode) != "success" and seen.now - found.at >= grace_s:
            why = f"{found.line.strip()} (signal {found.rule})"
            return (_cancel(job, attempt, seen.now, why=why, by=found.rule, mode=found.mode),)
    return _stalled(job, attempt, seen, rules)


def _stalled(job: Job, attempt: Attempt, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    running = seen.fact is not None and seen.fact.state is SchedulerState.RUNNING
    if not running or attempt.started_at is None or seen.now - attempt.started_at < rules.startup_grace_s:
        return ()
    silence_s = learned_threshold(job, seen.usual_s) if rules.stall_learned else rules.stall_after_s
    if silence_s is not None and seen.quiet_s >= silence_s:
        limit = f"threshold {format_duration(silence_s)}"
        if rules.stall_learned:
            limit += f", learned: it was never quiet for more than {format_duration(seen.usual_s or 0.0)}"
        why = f"no output for {format_duration(seen.quiet_s)} ({limit})"
        return (_stall(job, attempt, seen.now, seen.quiet_s, why, "inactivity_threshold_seconds"),)
    if rules.counter_after_s is not None and seen.still_s >= rules.counter_after_s:
        limit = format_duration(rules.counter_after_s)
        why = f"no progress for {format_duration(seen.still_s)} (threshold {limit})"
        return (_stall(job, attempt, seen.now, seen.still_s, why, "progress_threshold_seconds"),)
    return ()


def learned_threshold(job: Job, usual_s: float | None) -> float | None:
    """How long a job may be silent that was never silent for longer than `usual_s` while it got ahead.

    Five times that (the factor of NVIDIA's ft_launcher), and at least half an hour: watchdogs of collectives
    end a hang after 10 minutes by themselves and say where it was. It doubles with each stall among the last
    attempts, so that a job that works on in silence now and then is not ended there for ever.
    """
    if usual_s is None:
        return None
    stalls = sum(mode_root(past.mode) == "stall" for past in job.attempts[-LEARNED_FROM:])
    return max(LEARNED_FLOOR_S, LEARNED_FACTOR * usual_s) * 2.0**stalls


def _stall(job: Job, attempt: Attempt, now: float, silent_s: float, why: str, by: str) -> ev.CancelRequested:
    name, number = job.spec.name, attempt.number
    return ev.CancelRequested(
        at=now, job=name, attempt=number, why=why, by=by, mode="stall", silent_s=silent_s
    )


def _cancel(job: Job, attempt: Attempt, now: float, *, why: str, by: str, mode: str) -> ev.CancelRequested:
    return ev.CancelRequested(at=now, job=job.spec.name, attempt=attempt.number, why=why, by=by, mode=mode)


def _ended(job: Job, attempt: Attempt, seen: Observation, rules: Rules) -> tuple[ev.Event, ...]:
    exit_record = seen.exit
    ended_at = exit_record.ended_at if exit_record and exit_record.ended_at else None
    if ended_at is None:
        ended_at = seen.fact.ended_at if seen.fact and seen.fact.ended_at else seen.now
    case = Case(
        job=job,
        attempt=attempt,
        fact=seen.fact,
        exit=exit_record,
        first_error=seen.first_error,
        last_error=seen.last_error,
        ended_at=ended_at,
        success_needs_signal=rules.success_needs_signal,
        confirmed=seen.confirmed,
        acting=rules.acting.keys(),
        startup_grace_s=rules.startup_grace_s,
    )
    verdict = classify(case)
    started = exit_record.started_at if exit_record and exit_record.started_at else attempt.started_at
    if started is None and seen.fact is not None:
        started = seen.fact.started_at
    ended = ev.AttemptEnded(
        at=seen.now,
        job=job.spec.name,
        attempt=attempt.number,
        mode=verdict.mode,
        reason=verdict.reason,
        evidence=verdict.evidence,
        exit_code=verdict.exit_code,
        started_at=started,
        ended_at=ended_at,
        last_error=seen.last_error if mode_root(verdict.mode) == "crash" else "",
    )
    after = evolve(job, ended)
    if case.unclaimed and verdict.mode == "crash" and job.end_wish is None:
        return (ended, _unclaimed(after, seen.now))
    if attempt.withdrawn and verdict.mode != "success" and job.end_wish is None:
        return (ended, _free_restart(after, seen.now, "it may be submitted again later", 0.0))
    return (ended, follow(after, rules, seen.now, claim_lost=verdict.exit_code == EXIT_CLAIM_LOST))


def _unclaimed(job: Job, now: float) -> ev.RestartScheduled:
    """Nothing of the user's ran, so nothing is charged; it is tried until the disk is mended."""
    attempt = job.attempt
    assert attempt is not None
    row = 0
    for past in reversed(job.attempts):
        if past.exit_code != EXIT_CLAIM_FAILED:
            break
        row += 1
    delay = min(UNCLAIMED_S * 2 ** min(row - 1, 10), UNCLAIMED_MAX_S)
    return _free_restart(job, now, f"the command never began; tried again in {delay:g} s", delay)


def _free_restart(job: Job, now: float, why: str, delay_s: float) -> ev.RestartScheduled:
    """Another attempt that is charged to no budget, and that no policy is asked about."""
    attempt = job.attempt
    assert attempt is not None
    return ev.RestartScheduled(
        at=now,
        job=job.spec.name,
        attempt=attempt.number,
        mode=attempt.mode,
        entry=attempt.mode,
        why=why,
        not_before=now + delay_s,
        charged=False,
    )


def follow(job: Job, rules: Rules, now: float, *, claim_lost: bool = False) -> ev.Event:
    """What follows the end of the latest attempt: the verdict of the job, or another attempt."""
    attempt = job.attempt
    assert attempt is not None and not attempt.alive
    name = job.spec.name
    if job.end_wish is not None and attempt.mode != "success":
        return _end_as_wished(job, now)
    entry = most_specific(attempt.mode, rules.policies)
    if entry is None:
        state = JobState.SUCCEEDED if mode_root(attempt.mode) == "success" else JobState.FAILED
        return ev.JobEnded(at=now, job=name, state=state.value, mode=attempt.mode, reason=attempt.reason)
    spent = job.spent.get(entry, Spent())
    naming = next((found for found in attempt.signals if found.mode == attempt.mode), None)
    decision = rules.policies[entry].decide(
        EndedAttempt(
            job=name,
            mode=attempt.mode,
            reason=attempt.reason,
            attempt=attempt.number,
            restarts=spent.total,
            restarts_without_progress=0 if attempt.progressed else spent.without_progress,
            progressed=attempt.progressed,
            progress_known=rules.progress_known or bool(job.high_water),
            time_limit_s=attempt.time_limit_s,
            fields=dict(naming.fields) if naming else {},
        )
    )
    if isinstance(decision, Stop):
        state = {"success": JobState.SUCCEEDED, "cancelled": JobState.CANCELLED}.get(
            mode_root(attempt.mode), JobState.FAILED
        )
        reason = attempt.reason if state is JobState.SUCCEEDED else _join(attempt.reason, decision.why)
        return ev.JobEnded(at=now, job=name, state=state.value, mode=attempt.mode, reason=reason, by=entry)
    return ev.RestartScheduled(
        at=now,
        job=name,
        attempt=attempt.number,
        mode=attempt.mode,
        entry=entry,
        why=decision.why,
        not_before=now + max(0.0, decision.delay_s),
        charged=mode_root(attempt.mode) != "preempted" and not claim_lost,
        time_limit_s=decision.time_limit_s,
    )


def _join(reason: str, why: str) -> str:
    return f"{reason}; {why}" if why else reason


# ---------------------------------------------------------------- evolve


def evolve_all(job: Job, happened: tuple[ev.Event, ...]) -> Job:
    for event in happened:
        job = evolve(job, event)
    return job


def evolve(job: Job, event: ev.Event) -> Job:  # noqa: C901 - one case per event is the clearest form
    """The job after an event that concerns it."""
    # The two kinds that a long journal is full of come first.
    match event:
        case ev.ProgressMade():
            marks = {**job.high_water, event.counter: event.value}
            seen_at = event.at if event.seen_at is None else event.seen_at
            attempts = _changed(job, event.attempt, progressed_at=seen_at)
            return replace(job, high_water=marks, attempts=attempts)
        case ev.SignalsFound():
            return _signals(job, event)
        case ev.JobUpdated():
            return _updated(job, event)
        case ev.JobUnplanned():
            return replace(job, planned=False)
        case ev.JobHeld():
            return replace(job, hold=event.why)
        case ev.EndWished():
            wish = Cancel(why=event.why, by=event.by, mode=event.mode, at=event.at)
            return replace(job, end_wish=wish)
        case ev.JobRetried():
            return _again(job)
        case ev.RestartScheduled():
            return _restart(job, event)
        case ev.JobEnded():
            return replace(
                job,
                state=JobState(event.state),
                mode=event.mode,
                reason=event.reason,
                hold="",
                attempts=_with_decision(job, f"{event.state}" + (f" ({event.by})" if event.by else "")),
            )
        case ev.AttemptPending():
            attempts = _changed(
                job,
                event.attempt,
                phase=Phase.ACCEPTED,
                started_at=None,
                pending_reason=event.reason,
                gone_since=None,
            )
            return replace(job, state=JobState.PENDING, attempts=attempts)
        case ev.AttemptStarted():
            attempts = _changed(
                job,
                event.attempt,
                phase=Phase.RUNNING,
                started_at=event.started_at,
                nodes=event.nodes,
                pending_reason="",
                gone_since=None,
            )
            return replace(job, state=JobState.RUNNING, attempts=attempts)
        case ev.AttemptRequeued():
            return _back(job, event)
        case ev.SuccessorDropped() if job.successor is not None:
            cancel = Cancel(why=event.why, by="successor", mode="cancelled", at=event.at)
            return replace(job, successor=replace(job.successor, cancel=cancel))
        case ev.SuccessorSettled() if job.successor is not None:
            if event.begun:
                return replace(job, successor=replace(job.successor, phase=Phase.RUNNING))
            if job.live is None:
                after = job.successor.after
                return without_successor(replace(job, withdrawn=event.attempt, dropped_after=after))
            return without_successor(replace(job, withdrawn=event.attempt, successor_at=math.inf))
        case ev.SuccessorTaken() if job.successor is not None:
            taken = replace(job.successor, phase=Phase.ACCEPTED, cancel=None)
            return begin(without_successor(job), taken)
        case ev.ExclusionUpdated():
            waits = job.successor
            if waits is not None and waits.number == event.attempt:
                return replace(job, successor=replace(waits, exclude=event.exclude))
            return replace(job, attempts=_changed(job, event.attempt, exclude=event.exclude))
        case ev.CanaryProved():
            return replace(job, proved=True)
        case ev.AttemptGone():
            attempts = _changed(job, event.attempt, gone_since=event.at)
            return replace(job, state=JobState.UNKNOWN, attempts=attempts)
        case ev.AttemptEnded():
            attempts = _changed(
                job,
                event.attempt,
                phase=Phase.ENDED,
                mode=event.mode,
                reason=event.reason,
                exit_code=event.exit_code,
                started_at=event.started_at,
                ended_at=event.ended_at,
                last_error=event.last_error,
            )
            state = JobState.WAITING
            return replace(job, state=state, mode=event.mode, reason=event.reason, attempts=attempts)
        case ev.CancelRequested():
            before = job.live.cancel if job.live else None
            tries = before.tries + 1 if before else 1
            cancel = Cancel(why=event.why, by=event.by, mode=event.mode, at=event.at, tries=tries)
            return replace(job, attempts=_changed(job, event.attempt, cancel=cancel))
        case ev.CancelSent():
            live = job.live
            if live is None or live.cancel is None or live.number != event.attempt:
                return job
            cancel = replace(live.cancel, sent_at=event.at)
            return replace(job, attempts=_changed(job, event.attempt, cancel=cancel))
        case _:
            return job


def _back(job: Job, event: ev.AttemptRequeued) -> Job:
    """The attempt is to start again: what its log has said of failure is of a start that is over."""
    last = job.attempts[-1]
    attempts = _changed(
        job,
        event.attempt,
        phase=Phase.ACCEPTED,
        requeues=event.requeues,
        started_at=None,
        pending_reason="",
        gone_since=None,
        signals=tuple(found for found in last.signals if mode_root(found.mode) == "success"),
    )
    return replace(job, state=JobState.PENDING, attempts=attempts, matches={})


def _changed(job: Job, number: int, **changes: object) -> tuple[Attempt, ...]:
    """The attempts of a job, that of this number with other fields."""
    if job.attempts and job.attempts[-1].number == number:
        # Nearly always it is the latest, and a job may have hundreds.
        return (*job.attempts[:-1], replace(job.attempts[-1], **changes))  # type: ignore[arg-type]
    return tuple(
        replace(attempt, **changes) if attempt.number == number else attempt  # type: ignore[arg-type]
        for attempt in job.attempts
    )


def _with_decision(job: Job, decision: str) -> tuple[Attempt, ...]:
    if not job.attempts:
        return ()
    return (*job.attempts[:-1], replace(job.attempts[-1], decision=decision))


def _updated(job: Job, event: ev.JobUpdated) -> Job:
    if job.live is not None or job.successor is not None:
        # Rules apply at once; what it computes and asks for, from the next attempt on.
        spec = replace(job.spec, rules=event.spec.rules)
        return replace(job, spec=spec, next_spec=event.spec, planned=True)
    job = replace(job, spec=event.spec, next_spec=None, planned=True)
    return _again(job) if event.again else job


def _again(job: Job) -> Job:
    """A fresh start: budgets, wishes and verdict begin anew; the history stays."""
    last = job.attempt
    return replace(
        job,
        state=JobState.WAITING,
        mode="",
        reason="",
        hold="",
        not_before=0.0,
        spent={},
        end_wish=None,
        time_limit_s=None,
        first_attempt=last.number + 1 if last else 1,
        proved=False,
        seen=frozenset(),
        successor_at=0.0,
        dropped_after="",
    )


def _restart(job: Job, event: ev.RestartScheduled) -> Job:
    spent, last = dict(job.spent), job.attempt
    if last is not None and last.progressed:
        # Whatever ended it: the job has got ahead, and every entry counts from here.
        spent = {entry: Spent(total=before.total) for entry, before in spent.items()}
    if event.charged:
        before = spent.get(event.entry, Spent())
        spent[event.entry] = Spent(total=before.total + 1, without_progress=before.without_progress + 1)
    job = replace(
        job,
        state=JobState.WAITING,
        spent=spent,
        not_before=event.not_before,
        time_limit_s=event.time_limit_s if event.time_limit_s is not None else job.time_limit_s,
        spec=job.next_spec or job.spec,
        next_spec=None,
        attempts=_with_decision(job, f"restart: {event.why}"),
        successor_at=0.0,
    )
    if job.successor is None or job.successor.number != event.successor:
        return job
    waits = replace(job.successor, phase=Phase.ACCEPTED, cancel=None)
    return begin(replace(job, successor=None), waits)


def without_successor(job: Job) -> Job:
    """The job with nothing that waits behind others."""
    if job.live is None and job.next_spec is not None:
        # What had been submitted kept to the plan as it was.
        return replace(job, successor=None, spec=job.next_spec, next_spec=None)
    return replace(job, successor=None)


def begin(job: Job, attempt: Attempt) -> Job:
    """The job with one more attempt: what its log will say counts from the first line on."""
    return replace(
        job,
        attempts=(*job.attempts, attempt),
        successor_at=0.0,
        state=JobState.SUBMITTED,
        hold="",
        cursors={file: cursor for file, cursor in job.cursors.items() if file != "log"},
        matches={},
    )


def _signals(job: Job, event: ev.SignalsFound) -> Job:
    attempt = job.attempt
    attempts = job.attempts
    if attempt is not None and attempt.number == event.attempt:
        known = {found.rule for found in attempt.signals}
        fresh: list[LogSignal] = []
        for found in event.signals:
            if found.mode and found.rule not in known:
                known.add(found.rule)
                fresh.append(replace(found, at=event.at))
        names = named_nodes(attempt.named_nodes, event.signals) if event.signals else attempt.named_nodes
        if fresh or names != attempt.named_nodes:
            signals = attempt.signals + tuple(fresh)
            attempts = _changed(job, event.attempt, signals=signals, named_nodes=names)
    rules = {found.rule for found in event.signals}
    return replace(
        job,
        seen=job.seen if rules <= job.seen else job.seen | rules,
        cursors={**job.cursors, event.file: event.cursor},
        matches={**job.matches, **event.matches},
        attempts=attempts,
    )
