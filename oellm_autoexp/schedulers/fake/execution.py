"""What happens on the nodes of the fake cluster: commands run, their guards claim and end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oellm_autoexp.core.verdict import EXIT_CLAIM_LOST
from oellm_autoexp.schedulers.fake.queue import FakeJob
from oellm_autoexp.schedulers.fake.run import (
    KILLED,
    TERMINATED,
    Files,
    Kind,
    Run,
    Step,
    steps,
    symptoms,
    total_work,
)
from oellm_autoexp.schedulers.fake.scenario import Symptom

if TYPE_CHECKING:
    from oellm_autoexp.schedulers.fake.cluster import FakeCluster

#: A guard sees at its next heartbeat that a later start has taken over.
HEARTBEAT_S = 30.0


class Execution:
    """The commands of the jobs over time. The controller is told of their ends, and may not hear it."""

    def __init__(self, cluster: FakeCluster, files: Files, done_lines: Sequence[str]) -> None:
        self._cluster = cluster
        self._files = files
        self._done_lines = tuple(done_lines)
        #: The work that each job has saved, in seconds.
        self._saved: dict[str, float] = {}
        self._owners: dict[str, Run] = {}
        #: The latest start of each job that has a claim, by the directory of its attempts.
        self._latest: dict[str, Run] = {}
        self._begun: list[Run] = []

    @property
    def running(self) -> list[Run]:
        """The commands that run, also those that the controller has lost."""
        self._begun = [run for run in self._begun if run.alive]
        return self._begun

    def begin(self, job: FakeJob) -> bool:
        """Run the guard of a job on its nodes; whether it may run the command."""
        cluster, request = self._cluster, job.request
        scenario = cluster.scenario
        play = scenario.play_of(request.name)
        work = self._saved.get(request.name, 0.0)
        total = total_work(play, scenario.stream("work", request.name))
        stream = scenario.stream("run", request.name, request.attempt, job.restarts)
        run = job.run = Run(
            job=job.id,
            request=request,
            play=play,
            restarts=job.restarts,
            nodes=job.nodes,
            started_at=cluster.now,
            generation=0,
            steps=steps(play, request, work, total, stream, self._done_lines),
            total=total,
            work=work,
        )
        owner = self._owners.get(request.attempt_dir)
        other = owner is not None and (owner.job != job.id or owner.restarts >= job.restarts)
        if other or (owner is None and self._files.withdrawn(request.attempt_dir)):
            who = f"{owner.job} on {owner.nodes[0]}" if owner is not None else "nobody"
            said = f"autoexp guard: attempt is owned by {who}; this copy ends\n"
            self._files.append(request.log_path, said)
            cluster.at(cluster.now, self._exits, run, EXIT_CLAIM_LOST, False)
            return False
        if owner is not None:
            run.generation = owner.generation + 1
        attempts = request.attempt_dir.rpartition("/")[0]
        before = self._latest.get(attempts)
        if before is not None and before.alive:
            cluster.at(cluster.now + HEARTBEAT_S, self._superseded, before)
        self._owners[request.attempt_dir] = self._latest[attempts] = run
        self._begun.append(run)
        self._files.write(run.path("claim"), run.claim_text(job.token))
        self._files.write(run.path("start"), run.start_text(job.token))
        self._plan(run)
        return True

    # ---- steps

    def _plan(self, run: Run) -> None:
        run.next = next(run.steps, None)
        if run.next is not None:
            self._plan_in(run.next.after_s, run, run.next)

    def _plan_in(self, after_s: float, run: Run, step: Step) -> None:
        run.next_at = self._cluster.now + after_s
        self._cluster.at(run.next_at, self._step, run, step)

    def _step(self, run: Run, step: Step) -> None:
        if not run.alive or run.next is not step:
            return
        run.work, run.since, run.working = step.work, self._cluster.now, step.working
        if step.lines:
            self._files.append(run.request.log_path, run.text(step.lines, step.work))
        if step.kind is Kind.SAVE:
            self._save(run)
        if step.kind is Kind.END:
            self._exits(run, step.code, step.killed, step.oom)
        else:
            self._plan(run)

    def strike(self, run: Run, symptom: Symptom, node: str) -> None:
        """Something on a node breaks: from now on the command there does what the symptom says."""
        if run.alive and not run.order and run.paused is None:
            run.culprit = node
            run.work, run.since, run.working = run.work_at(self._cluster.now), self._cluster.now, False
            run.steps = symptoms(symptom, 0.0, run.work)
            self._plan(run)

    def _save(self, run: Run) -> None:
        name = run.request.name
        self._saved[name] = max(run.work, self._saved.get(name, 0.0))

    def go_on(self, run: Run) -> None:
        """Let a command go on that was stopped by `Run.pause`."""
        if run.alive and run.paused is not None:
            step, left_s = run.go_on(self._cluster.now)
            if step is not None:
                self._plan_in(left_s, run, step)

    # ---- ends

    def stop(self, run: Run, order: str) -> None:
        """SIGTERM; SIGKILL to what has not ended after `kill_wait`."""
        cluster, play = self._cluster, run.play
        run.order, run.cause, run.next = order, "signal:TERM", None
        run.work, run.working = run.work_at(cluster.now), False
        wait = cluster.scenario.cluster.kill_wait
        takes = play.stop_takes + (play.checkpoint_takes if play.saves_when_stopped else 0.0)
        cluster.at(cluster.now + min(takes, wait), self._stopped, run, takes <= wait)

    def _stopped(self, run: Run, in_time: bool) -> None:
        if not run.alive:
            return
        if in_time and run.play.saves_when_stopped:
            self._files.append(run.request.log_path, run.text((run.play.lines.saved,), run.work))
            self._save(run)
        self._exits(run, TERMINATED if in_time else KILLED, not in_time)

    def _superseded(self, run: Run) -> None:
        if run.alive:
            run.cause = "superseded"
            self._exits(run, TERMINATED, False)

    def _exits(self, run: Run, code: int, killed: bool, oom: bool = False) -> None:
        """A command has ended, and its guard with it."""
        if not run.alive:
            return
        run.alive, run.working, run.next = False, False, None
        if not killed and code != EXIT_CLAIM_LOST:
            self._files.write(run.path("exit"), run.exit_text(code, self._cluster.now))
        self._cluster.heard(run, code, killed, oom)
