"""A Slurm cluster over virtual time: a heap of what happens next, and nothing else that moves.

Deterministic: the same scenario and the same calls at the same times give the same states and the same
bytes. Nothing is executed, and no clock is read. Words and habits are those of Slurm 22.05.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected, SubmitUnclear
from oellm_autoexp.schedulers.fake import eligibility
from oellm_autoexp.schedulers.fake.execution import Execution
from oellm_autoexp.schedulers.fake.faults import Faults
from oellm_autoexp.schedulers.fake.queue import PRIORITY, FakeJob, Node, partition_of, size_of, starts
from oellm_autoexp.schedulers.fake.run import Files, JobRequest, Run
from oellm_autoexp.schedulers.fake.scenario import ClusterFault, Scenario, Symptom

_REFUSED = "sbatch: error: Batch job submission failed"
#: What keeps the controller from answering, and what its clients say then.
_SILENT = {
    "down": "Unable to contact slurm controller (connect failure)",
    "frozen": "Socket timed out on send/recv operation",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What sacct knows of a job that has ended."""

    token: str
    task: int
    known_at: float
    job: FakeJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Befallen:
    """That something happened; `node` and `job` are "" where it happened to none."""

    at: float
    kind: str
    name: str
    node: str = ""
    job: str = ""


class FakeCluster:
    """The cluster at one moment; `advance` moves it."""

    def __init__(self, scenario: Scenario, files: Files, *, done_lines: Sequence[str] = ()) -> None:
        self.scenario = scenario
        self.now = scenario.start
        self.jobs: dict[str, FakeJob] = {}
        size = scenario.cluster.size
        self.names = tuple(f"node{number:0{len(str(size))}d}" for number in range(1, size + 1))
        self.nodes = {name: Node(name) for name in self.names}
        #: How many tasks of an array may run at once, by its number; absent: all.
        self.throttles: dict[int, int] = {}
        #: What befell jobs, nodes and the controller, in order.
        self.befallen: list[Befallen] = []
        #: Ended jobs by id; a reused id has several.
        self.records: dict[str, list[Record]] = {}
        #: Names of the jobs of which the controller has had something else to say since this was emptied.
        self.news: set[str] = set()
        #: "" if the controller answers, else "down" or "frozen".
        self.silent = ""
        self.silent_until = 0.0
        self._files = files
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self.next_id = 1
        self._reuses = any(fault.kind == "crash" for fault in scenario.faults)
        self.lose_answer = False
        self._scheduling = False
        self._execution = Execution(self, files, done_lines)
        self._faults = Faults(self)

    # ---- time

    def advance(self, until: float) -> None:
        """Let everything happen up to a moment; an earlier one than now changes nothing."""
        while self._heap and self._heap[0][0] <= until:
            at, _, what, arguments = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            what(*arguments)
        self.now = max(self.now, until)

    @property
    def next_at(self) -> float:
        """When something happens next; infinity for never."""
        return self._heap[0][0] if self._heap else math.inf

    def at(self, at: float, what: Callable[..., object], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(at, self.now), self._count, what, arguments))

    # ---- what clients ask

    def ask(self) -> None:
        """Whether the controller answers.

        Raises:
            SchedulerUnavailable: it does not, in the words of Slurm's commands.
        """
        if self.silent:
            raise SchedulerUnavailable(f"slurm_load_jobs error: {_SILENT[self.silent]}")

    def submit(self, token: str, requests: Sequence[JobRequest], at_once: int | None = None) -> list[FakeJob]:
        """sbatch: one job, or an array, of which at most so many tasks run at once.

        Raises:
            SubmitRejected, SubmitDeferred, SchedulerUnavailable: it was not taken.
            SubmitUnclear: it was, or will be, and nobody is told.
        """
        habits = self.scenario.cluster
        if self.silent == "down":
            raise SchedulerUnavailable(f"{_REFUSED}: {_SILENT['down']}")
        if len(requests) > habits.max_array_size:
            raise SubmitRejected(f"{_REFUSED}: Invalid job array specification")
        for request in requests:
            self._check(request)
        if self.silent == "frozen":
            self.at(self.silent_until, self._take, token, tuple(requests), at_once)
            raise SubmitUnclear(f"{_REFUSED}: {_SILENT['frozen']}")
        alive = sum(1 for job in self.jobs.values() if not job.ended)
        if habits.max_submit_jobs is not None and alive + len(requests) > habits.max_submit_jobs:
            what = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
            raise SubmitDeferred(f"{_REFUSED}: {what}")
        jobs = self._take(token, requests, at_once)
        if self.lose_answer:
            self.lose_answer = False
            raise SubmitUnclear(f"{_REFUSED}: {_SILENT['frozen']}")
        return jobs

    def _check(self, request: JobRequest) -> None:
        """What the controller refuses at once. It takes a job that is too wide, which then waits for ever."""
        partition = partition_of(self.scenario.cluster, request.partition)
        if partition is None:
            raise SubmitRejected(f"{_REFUSED}: Invalid partition name specified")
        if not all(name in self.nodes for name in request.exclude):
            raise SubmitRejected(f"{_REFUSED}: Invalid node name specified")
        size = size_of(self.scenario.cluster, partition)
        if request.dependency:
            try:
                eligibility.terms(request.dependency)
            except ValueError as error:
                raise SubmitRejected(f"{_REFUSED}: {error}") from error
        left = [name for name in list(self.nodes)[:size] if name not in request.exclude]
        if request.exclude and len(left) < request.nodes <= size:
            raise SubmitRejected(f"{_REFUSED}: Requested node configuration is not available")

    def _take(self, token: str, requests: Sequence[JobRequest], at_once: int | None) -> list[FakeJob]:
        habits, number = self.scenario.cluster, self.next_id
        used = {job.id.partition("_")[0] for job in self.jobs.values()} if self._reuses else ()
        while str(number) in used:
            number += 1
        self.next_id = number + len(requests)
        self.throttles.pop(number, None)
        if at_once is not None and len(requests) > 1:
            self.throttles[number] = at_once
        taken = []
        for task, request in enumerate(requests):
            limit = request.time_limit if request.time_limit is not None else habits.default_time
            job = FakeJob(
                id=f"{number}_{task}" if len(requests) > 1 else str(number),
                token=token,
                task=task,
                request=request,
                submitted_at=self.now,
                time_limit=limit,
                exclude=frozenset(request.exclude),
            )
            if habits.queue_wait:
                stream = self.scenario.stream("wait", request.name, request.attempt)
                job.eligible_at = self.now + stream.expovariate(1.0 / habits.queue_wait)
                self.at(job.eligible_at, self.wake)
            if request.deadline is not None:
                self.at(request.deadline - limit + 1.0, self.wake)
            self.jobs[job.id] = job
            taken.append(job)
        self.wake()
        return taken

    def cancel(self, ids: Iterable[str]) -> None:
        """scancel; unknown and ended ones are fine.

        Raises:
            SchedulerUnavailable: nobody answered, and nothing was done.
        """
        if self.silent:
            raise SchedulerUnavailable(f"scancel: error: Kill job error: {_SILENT[self.silent]}")
        for identity in ids:
            job = self.jobs.get(identity)
            if job is not None and job.pending:
                # The reason stays, as squeue shows it.
                self._conclude(job, "CANCELLED", job.reason)
            elif job is not None and job.state in ("RUNNING", "SUSPENDED"):
                self.end_run(job, "cancel", ("CANCELLED", "None"))

    def _changeable(self, identity: str) -> FakeJob:
        """The job that scontrol update is about, as long as it has not ended."""
        self.ask()
        job = self.jobs.get(identity)
        if job is None or job.ended:
            raise SubmitRejected(f"Invalid job id specified for job {identity}")
        return job

    def limit(self, identity: str, seconds: float) -> None:
        """scontrol update TimeLimit.

        Raises:
            SchedulerUnavailable: nobody answered.
            SubmitRejected: there is no such job, or it has ended.
        """
        job = self._changeable(identity)
        job.time_limit = seconds
        if job.state == "RUNNING":
            self._plan_limit(job)
        self.wake()

    def throttle(self, identity: str, at_once: int) -> None:
        """scontrol update ArrayTaskThrottle.

        Raises:
            SchedulerUnavailable: nobody answered.
            SubmitRejected: there is no such job, or it has ended.
        """
        job = self._changeable(identity)
        self.throttles[job.order[0]] = at_once
        self.wake()

    def exclude(self, identity: str, nodes: Sequence[str]) -> None:
        """scontrol update ExcNodeList.

        Raises:
            SchedulerUnavailable: nobody answered.
            SubmitRejected: there is no such job, it no longer waits, or there is no such node.
        """
        job = self._changeable(identity)
        if not job.pending:
            raise SubmitRejected(f"Job is no longer pending execution for job {identity}")
        if not all(name in self.nodes for name in nodes):
            raise SubmitRejected(f"Invalid node name specified for job {identity}")
        job.exclude = frozenset(nodes)
        self.wake()

    def befall(self, fault: ClusterFault) -> None:
        """A fault beside those of the scenario, now."""
        self._faults.happen(fault)

    @property
    def awaiting_word(self) -> list[str]:
        """The directories of the attempts whose guards wait to be told to begin."""
        return self._execution.awaiting_word

    def word(self, attempt_dir: str, *, withdrawn: bool) -> None:
        """The guards of an attempt find that they are to begin, or never to."""
        self._execution.word(attempt_dir, withdrawn=withdrawn)

    def tell(self, fault: ClusterFault, node: str = "", job: str = "") -> None:
        """Keep that a fault has happened."""
        what = Befallen(at=self.now, kind=fault.kind, name=fault.name or fault.kind, node=node, job=job)
        self.befallen.append(what)

    # ---- the queue

    def wake(self) -> None:
        if not self._scheduling:
            self._scheduling = True
            self.at(self.now + self.scenario.cluster.scheduling_delay, self._schedule)

    def _schedule(self) -> None:
        self._scheduling = False
        if self.silent:
            return  # It is made up for when the controller is back.
        pending = [job for job in self.jobs.values() if job.state == "PENDING" and self._may_wait(job)]
        running = [job for job in self.jobs.values() if job.nodes and not job.ended]
        reasons = [job.reason for job in pending]
        found = starts(self.scenario.cluster, pending, running, self.nodes, self.now, self.throttles)
        for job, nodes in found:
            self._start(job, nodes)
            if any(other.blocked for other in pending):
                self.wake()  # Some may only wait for a start.
        for job, reason in zip(pending, reasons, strict=True):
            if job.reason != reason:
                self.news.add(job.request.name)

    def _may_wait(self, job: FakeJob) -> bool:
        """Whether a pending job stays in the queue; which others it waits for."""
        if eligibility.is_too_late(job, self.now):
            job.signal = 1
            self._conclude(job, "DEADLINE", "DeadLine")
            return False
        blocked = eligibility.dependency(job, self._states)
        if blocked == eligibility.NEVER and self.scenario.cluster.kill_invalid_depend:
            self._conclude(job, "CANCELLED", blocked)
            return False
        if blocked != job.blocked:
            job.blocked, job.reason = blocked, blocked or PRIORITY
            self.news.add(job.request.name)
        return True

    def _states(self, identity: str) -> list[str]:
        """The states of the tasks that an id means, as far as they are known."""
        tasks = f"{identity}_"
        found = {key: job.state for key, job in self.jobs.items() if key == identity or key.startswith(tasks)}
        for key, records in self.records.items():
            if key not in found and (key == identity or key.startswith(tasks)):
                found[key] = records[-1].job.state
        return list(found.values())

    def _start(self, job: FakeJob, nodes: tuple[str, ...]) -> None:
        for name in nodes:
            self.nodes[name].job = job.id
        job.state, job.reason, job.nodes = "RUNNING", "None", nodes
        job.started_at, job.ended_at, job.life = self.now, None, job.life + 1
        if self._execution.begin(job):
            self._plan_limit(job)

    def _plan_limit(self, job: FakeJob) -> None:
        assert job.started_at is not None
        at = job.started_at + job.time_limit + job.suspended + self.scenario.cluster.over_time
        self.at(at, self._over_time, job, job.life)

    def _over_time(self, job: FakeJob, life: int) -> None:
        limit = self.scenario.cluster.over_time + job.time_limit + job.suspended
        if job.life != life or job.state != "RUNNING" or self.now < (job.started_at or 0.0) + limit:
            return
        if self.silent:
            self.at(self.silent_until, self._over_time, job, life)
            return
        at = f"CANCELLED AT {self.now:.0f} DUE TO TIME LIMIT"
        text = f"slurmstepd: error: *** JOB {job.id} ON {job.nodes[0]} {at} ***\n"
        self._files.append(job.request.log_path, text)
        self.end_run(job, "timeout", ("TIMEOUT", "TimeLimit"))

    # ---- orders to what runs

    @property
    def running(self) -> list[Run]:
        """The commands that run, also those that the controller has lost."""
        return self._execution.running

    def strike(self, run: Run, symptom: Symptom, node: str) -> None:
        """Something on a node breaks: from now on the command there does what the symptom says."""
        self._execution.strike(run, symptom, node)

    def suspend(self, job: FakeJob) -> None:
        """scontrol suspend: a running job keeps its nodes, and its time limit stands still."""
        job.state, job.suspended_at = "SUSPENDED", self.now
        if job.run is not None and job.run.alive:
            job.run.pause(self.now)
        self.news.add(job.request.name)

    def resume(self, job: FakeJob) -> None:
        """scontrol resume."""
        assert job.suspended_at is not None
        job.state, job.suspended = "RUNNING", job.suspended + self.now - job.suspended_at
        if job.run is not None:
            self._execution.go_on(job.run)
        self._plan_limit(job)
        self.news.add(job.request.name)

    def end_run(self, job: FakeJob, order: str, verdict: tuple[str, str]) -> None:
        """SIGTERM to a job, which goes on for it if it is suspended; SIGKILL after `kill_wait`."""
        if job.state == "SUSPENDED":
            self.resume(job)
        job.verdict = verdict
        run = job.run
        if run is None or run.lost or not run.alive:
            self.done(job, *verdict)
            return
        if run.order:
            return
        job.state, job.ended_at = "COMPLETING", self.now
        self.news.add(job.request.name)
        self._execution.stop(run, order)

    def heard(self, run: Run, code: int, killed: bool, oom: bool) -> None:
        """A node says that a command has ended."""
        job = self.jobs.get(run.job)
        if job is None or job.run is not run or run.lost:
            return
        if not all(self.nodes[name].up for name in run.nodes):
            return  # Nobody hears of it; the job will count as lost with its node.
        if self.silent:
            # It is told when the controller is back, with the time of the telling.
            self.at(self.silent_until, self._reported, job, job.life, code, killed, oom)
        else:
            self._reported(job, job.life, code, killed, oom)

    def _reported(self, job: FakeJob, life: int, code: int, killed: bool, oom: bool) -> None:
        if job.life != life or job.ended or job.pending:
            return
        if job.verdict is None:
            shows = self.scenario.cluster.shows_out_of_memory
            job.exit_code, job.signal = (0, 9) if killed else (code, 0)
            if oom and shows:
                job.verdict, job.exit_code, job.signal = ("OUT_OF_MEMORY", "OutOfMemory"), 0, 125
            elif killed:
                job.verdict = ("FAILED", "JobLaunchFailure")
            else:
                job.verdict = ("FAILED", "NonZeroExitCode") if code else ("COMPLETED", "None")
        elif job.verdict[0] in ("CANCELLED", "TIMEOUT"):
            job.exit_code, job.signal = 0, 9 if killed else 15
        job.state, job.ended_at = "COMPLETING", self.now
        self.news.add(job.request.name)
        self.at(self.now + self.scenario.cluster.completing, self.done, job, *job.verdict, life)

    # ---- ends

    def done(self, job: FakeJob, state: str, reason: str, life: int | None = None) -> None:
        """The processes of a job are gone."""
        if job.ended or (life is not None and job.life != life):
            return
        self.release(job)
        requeue = job.request.requeue if job.request.requeue is not None else self.scenario.cluster.requeue
        if (state in ("PREEMPTED", "NODE_FAIL") and requeue) or state == "REQUEUED":
            self._requeue(job)
        else:
            self._conclude(job, state, reason)

    def _requeue(self, job: FakeJob) -> None:
        self.news.add(job.request.name)
        job.state, job.reason, job.run, job.verdict = "PENDING", "BeginTime", None, None
        job.nodes, job.failed_nodes, job.started_at, job.ended_at = (), (), None, None
        job.suspended = 0.0
        job.exit_code = job.signal = 0
        job.restarts, job.life = job.restarts + 1, job.life + 1
        job.eligible_at = self.now + self.scenario.cluster.requeue_delay
        self.at(job.eligible_at, self.wake)

    def release(self, job: FakeJob) -> None:
        for name in job.nodes:
            if self.nodes[name].job == job.id:
                self.nodes[name].job = ""
        self.wake()

    def _conclude(self, job: FakeJob, state: str, reason: str) -> None:
        habits = self.scenario.cluster
        self.news.add(job.request.name)
        job.state, job.reason, job.life = state, reason, job.life + 1
        job.ended_at = job.ended_at if job.ended_at is not None else self.now
        if habits.accounting:
            known_at = self.now + habits.accounting_lag
            record = Record(token=job.token, task=job.task, known_at=known_at, job=replace(job, run=None))
            self.records.setdefault(job.id, []).append(record)
        self.at(self.now + habits.min_job_age, self._forget, job)

    def _forget(self, job: FakeJob) -> None:
        if self.jobs.get(job.id) is job:
            del self.jobs[job.id]


def by_token(jobs: Mapping[str, FakeJob], wanted: frozenset[str]) -> dict[str, list[FakeJob]]:
    """The jobs of each token, in the order of their tasks."""
    found: dict[str, list[FakeJob]] = {}
    for job in jobs.values():
        if job.token in wanted:
            found.setdefault(job.token, []).append(job)
    return {token: sorted(mine, key=lambda job: job.task) for token, mine in found.items()}
