"""What happens on the nodes of the fake cluster: commands run, their guards claim and end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED, EXIT_CLAIM_LOST
from oellm_autoexp.schedulers.fake.queue import FakeJob
from oellm_autoexp.schedulers.fake.run import (
    KILLED,
    TERMINATED,
    Files,
    JobRequest,
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
        self._waiting: list[Run] = []

    @property
    def running(self) -> list[Run]:
        """The commands that run, also those that the controller has lost."""
        self._begun = [run for run in self._begun if run.alive]
        return self._begun

    @property
    def awaiting_word(self) -> list[str]:
        """The directories of the attempts whose guards wait to be told to begin."""
        self._waiting = [run for run in self._waiting if run.alive and run.waits]
        return list(dict.fromkeys(run.request.attempt_dir for run in self._waiting))

    def word(self, attempt_dir: str, *, withdrawn: bool) -> None:
        """The guards of an attempt find that they are to begin, or never to."""
        for run in self._waiting:
            if run.alive and run.waits and run.request.attempt_dir == attempt_dir and run.paused is None:
                run.waits = False
                if withdrawn:
                    self._turned_away(run, "nobody")
                else:
                    self._claims(run)

    def _wait_over(self, run: Run) -> None:
        """Nobody has told it anything."""
        if not run.alive or not run.waits:
            return
        if run.paused is not None:
            self._cluster.at(self._cluster.now + run.request.after_wait, self._wait_over, run)
            return
        run.waits = False
        if self._goes_by_itself(run.request):
            self._claims(run)
        else:
            self._exits(run, EXIT_CLAIM_FAILED, False)

    def _goes_by_itself(self, request: JobRequest) -> bool:
        """Whether what the attempts before have left word of lets one begin that nobody tells anything."""
        before = [self._owners.get(place) for place in request.after_dir.split("\n")]
        ends = [(run.recorded, run.cause) if run is not None else (None, "") for run in before]
        if request.after_end == "success":
            return all(code == 0 and cause == "exit" for code, cause in ends)
        ((code, cause),) = ends if request.after_end == "limit" else ((None, ""),)
        return code is not None and cause == "timeout" and bool(code or request.after_zero)

    def begin(self, job: FakeJob) -> bool:
        """Run the guard of a job on its nodes; whether it may run the command, now or later."""
        cluster, request = self._cluster, job.request
        scenario = cluster.scenario
        play = scenario.play_of(request.name)
        work = self._saved.get(request.name, 0.0)
        total = total_work(play, scenario.stream("work", request.name))
        stream = scenario.stream("run", request.name, request.attempt, job.restarts)
        run = job.run = Run(
            job=job.id,
            token=job.token,
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
        if request.after_dir and request.attempt_dir not in self._owners:
            # That it is to go, or never to, it is told: then the history has it.
            run.waits = True
            self._waiting.append(run)
            cluster.at(cluster.now + request.after_wait, self._wait_over, run)
            return True
        return self._claims(run)

    def _turned_away(self, run: Run, who: str) -> None:
        said = f"autoexp guard: attempt is owned by {who}; this copy ends\n"
        self._files.append(run.request.log_path, said)
        self._cluster.at(self._cluster.now, self._exits, run, EXIT_CLAIM_LOST, False)

    def _claims(self, run: Run) -> bool:
        """The guard makes its claim; whether the command runs."""
        cluster, request = self._cluster, run.request
        owner = self._owners.get(request.attempt_dir)
        other = owner is not None and (owner.job != run.job or owner.restarts >= run.restarts)
        given_up = owner is None and not request.after_dir and self._files.withdrawn(request.attempt_dir)
        if other or given_up:
            self._turned_away(run, f"{owner.job} on {owner.nodes[0]}" if owner is not None else "nobody")
            return False
        run.claimed, run.started_at = True, cluster.now
        if owner is not None:
            run.generation = owner.generation + 1
        attempts = request.attempt_dir.rpartition("/")[0]
        before = self._latest.get(attempts)
        if before is not None and before.alive:
            cluster.at(cluster.now + HEARTBEAT_S, self._superseded, before)
        self._owners[request.attempt_dir] = self._latest[attempts] = run
        self._begun.append(run)
        self._files.write(run.path("claim"), run.claim_text(run.token))
        self._files.write(run.path("start"), run.start_text(run.token))
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
        if run.waits:
            run.waits, run.order = False, order
            self._exits(run, EXIT_CLAIM_FAILED, False)
            return
        # Where the guard knows the limit, its own comes first.
        limited = order == "timeout" and run.request.time_limit is not None
        cause = "timeout" if limited else "signal:TERM"
        run.order, run.cause, run.next = order, cause, None
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
        if not killed and run.claimed:
            run.recorded = code
            self._files.write(run.path("exit"), run.exit_text(code, self._cluster.now))
        self._cluster.heard(run, code, killed, oom)
