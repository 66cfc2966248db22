"""Nodes that are left out, in the loop: what ends of attempts say, submissions, and queued attempts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from oellm_autoexp.config.sockets import SchedulerInterface
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import Attempt, Job, Phase, SchedulerFact
from oellm_autoexp.core.nodes import NodeExclusion, Suspect, after_end, left_out_in_words
from oellm_autoexp.core.quick import replace
from oellm_autoexp.core.session import OpenSubmission, Session
from oellm_autoexp.errors import SchedulerUnavailable, SubmitRejected
from oellm_autoexp.store.effects import Effects

#: Queued attempts that are told of another list in one turn: each is a call to the scheduler.
UPDATES = 10
#: Slurm's reason for a job that cannot do without the nodes that are excluded (seen on 22.05.8).
BAD_CONSTRAINTS = "BadConstraints"


class Exclusion:
    """Keeps jobs off nodes that fail, as far as the scheduler's config wants it and the scheduler can."""

    def __init__(
        self,
        session: Session,
        scheduler: SchedulerInterface,
        effects: Effects,
        *,
        record: Callable[[ev.Event], None],
        trouble: Callable[[str, str], None] = lambda _what, _text: None,
    ) -> None:
        self._session = session
        self._scheduler = scheduler
        self._effects = effects
        self._record = record
        self._trouble = trouble
        config = scheduler.config
        #: Whether there are nodes to choose from.
        self.possible = hasattr(config, "node_exclusion")
        self._rules: NodeExclusion | None = getattr(config, "node_exclusion", None)
        #: Which nodes were excluded, and which suspected, when a queued attempt was last looked at.
        self._looked_at: dict[tuple[str, int], tuple[frozenset[str], frozenset[str]]] = {}

    # ---- ends of attempts

    def learn(self, ended: ev.AttemptEnded, fact: SchedulerFact | None) -> None:
        """Record what an end says of its nodes."""
        if self._rules is not None:
            job = self._session.jobs[ended.job]
            for event in after_end(job, fact, self._session.nodes, ended.at):
                self._record(event)

    def explained(self, decision: ev.RestartScheduled) -> ev.RestartScheduled:
        """The decision to start again, with which of the last attempt's nodes the next one will not have."""
        job = self._session.jobs[decision.job]
        mine = frozenset(expand(job.attempt.nodes)) if job.attempt is not None else frozenset()
        found = [each for each in self._left_out([job], decision.at) if each.node in mine]
        return replace(decision, why=f"{decision.why}; {left_out_in_words(found)}") if found else decision

    def allows(self, job: Job, waits: Attempt, fact: SchedulerFact | None, now: float) -> bool:
        """Whether an attempt that waits already may follow the end of a job's latest, as for its nodes."""
        blames = self._rules is not None and any(
            isinstance(event, ev.NodesSuspected) for event in after_end(job, fact, self._session.nodes, now)
        )
        return not blames and self.fits(job, waits, now)

    def fits(self, job: Job, waits: Attempt, now: float) -> bool:
        """Whether an attempt that waits already will be given none of the nodes that are left out."""
        return frozenset(self.of([job], now)) <= frozenset(waits.exclude)

    # ---- submissions

    def of(self, jobs: Sequence[Job], now: float) -> tuple[str, ...]:
        """The nodes that a submission of these jobs is not to be given, worst first."""
        return tuple(each.node for each in self._left_out(jobs, now))

    def _left_out(self, jobs: Sequence[Job], now: float) -> tuple[Suspect, ...]:
        ledger = self._session.nodes
        if not self.possible or not (ledger.evidence or ledger.by_user):
            return ()
        found = [self._scheduler.eligible_nodes(path) for path in {job.spec.script_path for job in jobs}]
        known = [nodes for nodes in found if nodes is not None]
        return ledger.left_out(
            now,
            self._rules,
            wanted=max((job.spec.resources.nodes for job in jobs), default=1),
            # What all of them could be given: in an array each has the same list.
            eligible=frozenset.intersection(*known) if known else None,
            seen=0 if known else self._seen(),
        )

    def _seen(self) -> int:
        """How many nodes attempts have been given so far."""
        lists = {attempt.nodes for job in self._session.jobs.values() for attempt in job.attempts}
        return len({node for text in lists for node in expand(text)})

    def forgive_for(self, submission: OpenSubmission, why: str, now: float) -> bool:
        """A submission was refused: whether that may be for nodes that no person excluded; they are forgiven.

        A partition may be smaller than thought, or a node may be no more.
        """
        return self._forgive(submission.exclude, why, now)

    def _forgive(self, exclude: Sequence[str], why: str, now: float) -> bool:
        nodes = tuple(node for node in exclude if node not in self._session.nodes.by_user)
        if nodes:
            self._record(ev.NodesForgiven(at=now, nodes=nodes, by="scheduler", why=why))
        return bool(nodes)

    # ---- queued attempts

    def update_queued(self, now: float) -> None:
        """Tell the scheduler where queued attempts must not start, since that has changed meanwhile."""
        jobs = self._session.jobs
        tries = [
            *((name, jobs[name].attempts[-1]) for name in self._session.alive),
            *((name, jobs[name].successor) for name in self._session.queued),
        ]
        queued = [(name, each) for name, each in tries if each is not None and _is_queued(each)]
        if not self.possible or not queued:
            return
        ledger = self._session.nodes
        excluded = ledger.excluded(now, self._rules)
        standing = excluded, frozenset(ledger.evidence)
        #: One call is for the tasks of one submission that are to leave out the same.
        calls: dict[tuple[str, tuple[str, ...]], list[tuple[str, Attempt]]] = {}
        for name, attempt in queued:
            job = jobs[name]
            if attempt.exclude and attempt.pending_reason == BAD_CONSTRAINTS:
                self._forgive(attempt.exclude, f"the scheduler says {BAD_CONSTRAINTS}", now)
            key = name, attempt.number
            if self._looked_at.get(key) == standing:
                continue
            # Most often nothing can differ, and nobody need be asked what the job could be given.
            may_differ = self._differs(attempt, excluded)
            wanted = self.of([job], now) if may_differ else ()
            if may_differ and self._differs(attempt, wanted):
                calls.setdefault((attempt.token, wanted), []).append((name, attempt))
            else:
                self._looked_at[key] = standing
        for (_, wanted), alike in list(calls.items())[:UPDATES]:
            if not self._update(alike, wanted, now):
                return
            self._looked_at.update({(name, attempt.number): standing for name, attempt in alike})

    def _differs(self, attempt: Attempt, wanted: Collection[str]) -> bool:
        """A node came to the list, or was forgiven. One whose score has only faded is not worth a call.

        It is for arrays that wait for their own tasks, perhaps for weeks.
        """
        ledger = self._session.nodes
        faded = attempt.token in self._session.throttles
        gone = [
            node
            for node in attempt.exclude
            if (faded and node not in wanted) or (node not in ledger.evidence and node not in ledger.by_user)
        ]
        return bool(gone) or not frozenset(wanted) <= frozenset(attempt.exclude)

    def _update(self, alike: Sequence[tuple[str, Attempt]], wanted: tuple[str, ...], now: float) -> bool:
        """One call for attempts by their jobs; whether it was answered."""
        refs = [attempt.ref for _, attempt in alike if attempt.ref is not None]
        update = partial(self._scheduler.update, refs, {"exclude": list(wanted)})
        try:
            self._effects.call("update", refs[0].id, update)
        except SchedulerUnavailable:
            return False
        except SubmitRejected as error:
            if not _has_started(str(error)):
                self._trouble("exclude", f"queued jobs may still get nodes that are left out: {error}")
            return True
        for name, attempt in alike:
            self._record(ev.ExclusionUpdated(at=now, job=name, attempt=attempt.number, exclude=wanted))
        return True


def _is_queued(attempt: Attempt) -> bool:
    return attempt.phase is Phase.ACCEPTED and attempt.cancel is None


def _has_started(text: str) -> bool:
    """Whether a job has merely left the queue since it was asked about (scontrol of 22.05.8)."""
    return "no longer pending" in text or "Invalid job id" in text
