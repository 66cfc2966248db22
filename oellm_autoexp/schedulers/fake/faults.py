"""What befalls the fake cluster: nodes, the controller, and what an administrator does."""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING

from oellm_autoexp.schedulers.fake.queue import FakeJob, Node
from oellm_autoexp.schedulers.fake.scenario import HOUR, ClusterFault, Sticky

if TYPE_CHECKING:
    from oellm_autoexp.schedulers.fake.cluster import FakeCluster

#: A controller that is killed has forgotten what happened within this time (its state is saved so often).
FORGETS_S = 5.0


class Faults:
    """The faults of a scenario, planned and carried out."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        faults = cluster.scenario.faults
        self._streams = [cluster.scenario.stream("fault", number) for number in range(len(faults))]
        for number, fault in enumerate(faults):
            self._plan(number, fault, first=True)

    def _plan(self, number: int, fault: ClusterFault, *, first: bool = False) -> None:
        cluster = self._cluster
        if fault.at is not None:
            if first:
                cluster.at(cluster.scenario.start + fault.at, self._befall, number, fault)
            return
        assert fault.every is not None
        mean = fault.every
        if fault.of_a_node and not fault.node:
            mean /= len(cluster.nodes)
        cluster.at(cluster.now + self._streams[number].expovariate(1.0 / mean), self._befall, number, fault)

    def _befall(self, number: int, fault: ClusterFault) -> None:
        self._plan(number, fault)
        stream = self._streams[number]
        roll = stream.random()
        # A stream of its own for what follows from it: whether it happens depends on what policies do.
        self.happen(fault, roll, Random(stream.random()))  # noqa: S311 - it must be repeatable

    def happen(self, fault: ClusterFault, roll: float = 0.0, luck: Random | None = None) -> None:
        """A fault, now; `roll` in [0, 1) chooses among what it may hit, `luck` says how long it sticks."""
        cluster = self._cluster
        if fault.of_a_node:
            names = [fault.node] if fault.node else cluster.names
            node = cluster.nodes.get(names[int(roll * len(names))])
            if node is not None and node.up:
                self._hits(node, fault)
                self._may_stick(node, fault, luck or cluster.scenario.stream("luck", node.name, cluster.now))
            return
        if fault.kind in ("outage", "frozen", "crash"):
            cluster.tell(fault)
            if fault.kind == "crash":
                self._crash()
            cluster.silent = "frozen" if fault.kind == "frozen" else "down"
            cluster.silent_until = max(cluster.silent_until, cluster.now + fault.lasts)
            cluster.at(cluster.silent_until, self._answers_again)
        elif fault.kind == "lost_answer":
            cluster.tell(fault)
            cluster.lose_answer = True
        else:
            self._administer(fault, roll)

    def _answers_again(self) -> None:
        cluster = self._cluster
        if cluster.silent and cluster.now >= cluster.silent_until:
            cluster.silent = ""
            cluster.wake()

    def _administer(self, fault: ClusterFault, roll: float) -> None:
        cluster = self._cluster
        states = {
            "hold": ("PENDING",),
            "release": ("PENDING",),
            "cancel": ("PENDING", "RUNNING", "SUSPENDED"),
        }
        wanted = states.get(fault.kind, ("RUNNING",))
        jobs = [
            job
            for job in cluster.jobs.values()
            if job.state in wanted and fnmatchcase(job.request.name, fault.job)
        ]
        if fault.kind == "release":
            jobs = [job for job in jobs if job.held]
        if not jobs or cluster.silent:
            return
        job = jobs[int(roll * len(jobs))]
        cluster.tell(fault, job=job.request.name)
        if fault.kind == "cancel":
            cluster.cancel([job.id])
        elif fault.kind == "preempt":
            cluster.at(cluster.now + cluster.scenario.cluster.preempt_grace, self._preempt, job, job.life)
        elif fault.kind == "suspend":
            cluster.suspend(job)
            cluster.at(cluster.now + fault.lasts, self._resume, job, job.life)
        elif fault.kind == "requeue":
            cluster.end_run(job, "requeue", ("REQUEUED", "None"))
        else:
            job.held = "JobHeldAdmin" if fault.kind == "hold" else ""
            job.reason = job.held or job.reason
            cluster.news.add(job.request.name)
            cluster.wake()

    def _resume(self, job: FakeJob, life: int) -> None:
        cluster = self._cluster
        if cluster.silent:
            cluster.at(cluster.silent_until, self._resume, job, life)
        elif job.life == life and job.state == "SUSPENDED":
            cluster.resume(job)

    def _preempt(self, job: FakeJob, life: int) -> None:
        """The grace is over: only now the batch script hears of it."""
        cluster = self._cluster
        if job.life == life and job.state == "RUNNING":
            cluster.end_run(job, "preempt", ("PREEMPTED", "None"))

    # ---- nodes

    def _hits(self, node: Node, fault: ClusterFault) -> None:
        cluster = self._cluster
        job = cluster.jobs.get(node.job)
        cluster.tell(fault, node.name, job.request.name if job is not None and not job.ended else "")
        if fault.kind == "node_fail":
            self._node_fails(node, fault)
        elif fault.kind == "maintenance":
            if job is not None and job.state == "RUNNING":
                cluster.end_run(job, "requeue", ("REQUEUED", "None"))
            self._drain(node, fault.lasts)
        elif job is not None and job.run is not None:
            cluster.strike(job.run, fault.symptom, node.name)

    def _may_stick(self, node: Node, fault: ClusterFault, luck: Random) -> None:
        sticky = fault.sticky
        if sticky is None or node.broken is not None or luck.random() >= sticky.chance:
            return
        node.broken = fault
        drained_after = luck.expovariate(1.0 / sticky.drained_after)
        self._cluster.at(self._cluster.now + drained_after, self._is_drained, node, fault)
        self._plan_again(node, fault, sticky, luck)

    def _plan_again(self, node: Node, fault: ClusterFault, sticky: Sticky, luck: Random) -> None:
        after = luck.expovariate(1.0 / sticky.every)
        self._cluster.at(self._cluster.now + after, self._again, node, fault, sticky, luck)

    def _again(self, node: Node, fault: ClusterFault, sticky: Sticky, luck: Random) -> None:
        if node.broken is fault:
            if node.up:
                self._hits(node, fault)
            self._plan_again(node, fault, sticky, luck)

    def _is_drained(self, node: Node, fault: ClusterFault) -> None:
        assert fault.sticky is not None
        self._drain(node, fault.sticky.repair)

    def _drain(self, node: Node, lasts: float) -> None:
        """Nothing starts there any more; what runs goes on (scontrol update State=DRAIN)."""
        node.drained_until = max(node.drained_until, self._cluster.now + lasts)
        self._cluster.at(node.drained_until, self._repaired, node)

    def _repaired(self, node: Node) -> None:
        cluster = self._cluster
        if not node.drained_until or cluster.now < node.drained_until:
            return
        if node.job:
            # It can only be worked on when the job has left.
            node.drained_until = cluster.now + HOUR
            cluster.at(node.drained_until, self._repaired, node)
            return
        node.drained_until, node.broken = 0.0, None
        cluster.wake()

    def _node_fails(self, node: Node, fault: ClusterFault) -> None:
        cluster = self._cluster
        node.up, node.failures = False, node.failures + 1
        job = cluster.jobs.get(node.job)
        run = job.run if job is not None else None
        if run is not None and run.alive:
            if fault.runs_on:
                node.orphans.append(run)
            else:
                run.alive, run.working, run.lost = False, False, True
        noticed = cluster.now + min(cluster.scenario.cluster.slurmd_timeout, fault.lasts)
        cluster.at(noticed, self._noticed, node, node.failures, job, job.life if job is not None else 0)
        cluster.at(cluster.now + fault.lasts, self._node_returns, node, node.failures)

    def _noticed(self, node: Node, failure: int, job: FakeJob | None, life: int) -> None:
        cluster = self._cluster
        if cluster.silent:
            cluster.at(cluster.silent_until, self._noticed, node, failure, job, life)
            return
        if node.failures == failure and not node.up:
            node.known_up = False
            cluster.wake()
        if job is None or job.life != life or job.ended or job.pending:
            return
        if job.run is not None and job.run.alive and node.up:
            return  # It was back, and the job with it, before the controller could miss it.
        if job.run is not None:
            job.run.lost = True
        job.ended_at = cluster.now
        # It is the node that failed, whatever befell the job's other nodes since.
        job.failed_nodes = tuple(name for name in job.nodes if not cluster.nodes[name].up)
        verdict = job.verdict if job.verdict is not None else ("NODE_FAIL", "NodeDown")
        cluster.done(job, *verdict)

    def _node_returns(self, node: Node, failure: int) -> None:
        cluster = self._cluster
        if node.failures != failure:
            return
        node.up = node.known_up = True
        orphans, node.orphans = node.orphans, []
        for run in orphans:
            if run.lost:
                run.alive, run.working = False, False
        cluster.wake()

    def _crash(self) -> None:
        """The controller is killed: what it had not saved is forgotten, and its ids are given again."""
        cluster = self._cluster
        young = [job for job in cluster.jobs.values() if cluster.now - job.submitted_at < FORGETS_S]
        for job in young:
            cluster.news.add(job.request.name)
            cluster.release(job)
            if job.pending:
                job.life += 1
                del cluster.jobs[job.id]
            elif not job.ended:
                # It runs, but the controller remembers it as waiting, and starts it once more.
                job.state, job.reason, job.run = "PENDING", "Priority", None
                job.nodes, job.started_at, job.life = (), None, job.life + 1
        forgotten = [int(job.id.partition("_")[0]) for job in young if job.id not in cluster.jobs]
        if forgotten:
            cluster.next_id = min(forgotten)
