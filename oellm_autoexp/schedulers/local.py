"""This machine as a scheduler: detached processes that outlive their submitter and are found again.

The processes of a submission wait for one word, the *go*, which is written into their common pipe when all
of them are on record (host, boot id, pid, start time). If the submitter dies before that, the pipe ends and
so do they, without having run anything. So a submission starts whole or not at all, and a look-up by token
is exact at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from compoconf import register

from oellm_autoexp.config.limits import SchedulerLimits
from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission, Task
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected
from oellm_autoexp.rendering import guard, guard_files, templates
from oellm_autoexp.schedulers import processes
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Effects

#: Most tasks of one submission: their words fit into one write that is all or nothing (PIPE_BUF, pipe(7)).
_MAX_TASKS = min(1000, select.PIPE_BUF)
#: How long a look-up waits for a process whose submitter has died to see that.
_DECIDE_S = 5.0
_AWAIT_GO = "--await-go"
#: When a process was started is reckoned from the boot, whose time moves a little when the clock is set.
_SAME_START_S = 2.0


@dataclass(kw_only=True)
class LocalSchedulerConfig(SchedulerLimits):
    """Processes of this machine; `max_jobs` None: one per processor.

    `kill_grace_seconds`: from SIGTERM to SIGKILL.
    """

    kill_grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kill_grace_seconds < 0:
            raise ValueError(f"kill_grace_seconds cannot be negative, got {self.kill_grace_seconds}")


@cache
def _boot_id() -> str:
    return journal.boot_id()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A task's process, by an identity that is never reused, and where its guard writes."""

    id: str
    host: str
    boot_id: str
    pid: int
    pid_start: str
    attempt_dir: str
    submitted_at: float

    @property
    def here(self) -> bool:
        """Whether this machine can tell what became of it."""
        return self.boot_id == _boot_id() or self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        return self.boot_id == _boot_id() and journal.process_start(self.pid) == self.pid_start

    @property
    def claimed(self) -> bool:
        claim = guard_files.read_claim(Path(self.attempt_dir))
        return claim is not None and claim.scheduler_id == self.id


@register
class LocalScheduler(SchedulerInterface):
    """Runs every task as a process of this machine, each in a session of its own."""

    config: LocalSchedulerConfig
    config_class = LocalSchedulerConfig

    def __init__(self, config: LocalSchedulerConfig, *, effects: Effects, state_dir: Path) -> None:
        super().__init__(config)
        self._effects = effects
        self._dir = state_dir
        self._records: dict[str, dict[int, _Record]] = {}
        #: Processes that this program started and has to clear away, and the status they ended with.
        self._children: set[int] = set()
        self._statuses: dict[int, int] = {}
        #: When cancels were first sent, on the monotonic clock.
        self._cancelled: dict[str, float] = {}
        self.cluster = socket.gethostname()
        self.capabilities = Capabilities(
            max_array_size=_MAX_TASKS,
            find_grace_s=0.0,
            gone_grace_s=0.0,
            poll_interval_s=0.5,
            default_max_jobs=os.cpu_count() or 1,
        )

    def render(self, request: ScriptRequest) -> str:
        # There are no job steps here: options for `srun` would put it in front of the command.
        slurm = {key: value for key, value in request.slurm.items() if key not in ("srun", "srun_opts")}
        return templates.render_job_script(replace(request, slurm=slurm))

    # ---- processes that others have started

    def identify(self, identity: str) -> SchedulerRef | None:
        """A process of this machine by its pid. Only its parent learns how it ends."""
        started = processes.started_at(int(identity)) if identity.isdecimal() else None
        if started is None:
            return None
        return SchedulerRef(id=identity, cluster=self.cluster, token="", submitted_at=started)

    def _foreign(self, ref: SchedulerRef) -> str | None:
        """The start of a foreign process that lives (`journal.process_start`).

        Raises:
            SchedulerUnavailable: it is a process of another machine.
        """
        if ref.cluster != self.cluster:
            raise _elsewhere(ref.cluster)
        started = processes.started_at(int(ref.id))
        same = started is not None and abs(started - ref.submitted_at) < _SAME_START_S
        return journal.process_start(int(ref.id)) if same else None

    # ---- submit

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        """Start what has not been started: a token that is submitted again starts the rest."""
        token, tasks = submission.token, submission.tasks
        if len(tasks) > _MAX_TASKS:
            raise SubmitRejected(f"{len(tasks)} tasks are more than one submission takes ({_MAX_TASKS})")
        self._reap()
        known = self._started(token)
        missing = [index for index in range(len(tasks)) if index not in known]
        try:
            self._effects.mkdir(self._dir)
            if missing:
                self._start(token, {index: tasks[index] for index in missing}, known)
        except OSError as error:
            where = str(error.filename or self._dir)
            what = f"no process could be started: {error.strerror or error}"
            raise SubmitDeferred(what, where=where) from error
        return [_ref(token, index, self._records[token][index]) for index in range(len(tasks))]

    def _start(self, token: str, tasks: Mapping[int, Task], known: Mapping[int, _Record]) -> None:
        gate, go = os.pipe()
        try:
            started = {index: self._spawn(f"{token}.{index}", task, gate) for index, task in tasks.items()}
            records = {**known, **started}
            body = {str(index): asdict(record) for index, record in sorted(records.items())}
            self._effects.write(self._path(token), json.dumps(body).encode())
            self._records[token] = records
            self._effects.call("go", token, lambda: os.write(go, b"g" * len(started)))
        finally:
            os.close(gate)
            os.close(go)

    def _spawn(self, identity: str, task: Task, gate: int) -> _Record:
        log = Path(task.log_path)
        self._effects.mkdir(log.parent, mode=0o755)
        child = self._effects.spawn(
            [sys.executable, "-I", guard.__file__, _AWAIT_GO, "bash", task.script_path],
            env=self._environment(identity, task),
            output=log,
            stdin=gate,
        )
        # It may outlive this program, which clears it away by its pid; Popen must not wait or warn.
        child.returncode = 0
        self._children.add(child.pid)
        self._statuses.pop(child.pid, None)
        start = journal.process_start(child.pid)
        if start is None:
            raise OSError(None, "the process was killed as soon as it was started")
        return _Record(
            id=identity,
            host=self.cluster,
            boot_id=_boot_id(),
            pid=child.pid,
            pid_start=start,
            attempt_dir=task.attempt_dir,
            submitted_at=time.time(),  # noqa: TID251 - when a process was started is a fact of this machine
        )

    def _environment(self, identity: str, task: Task) -> dict[str, str]:
        environment = processes.clean_environment()
        environment.update(task.environment)
        environment.update(
            AUTOEXP_TOKEN=identity.rpartition(".")[0],
            AUTOEXP_SCHEDULER_ID=identity,
            AUTOEXP_ATTEMPT_DIR=task.attempt_dir,
            AUTOEXP_LOG_PATH=task.log_path,
            AUTOEXP_KILL_GRACE_S=str(self.config.kill_grace_seconds),
        )
        if task.time_limit_s is not None:
            environment["AUTOEXP_TIME_LIMIT_S"] = str(task.time_limit_s)
        if task.signal:
            environment["AUTOEXP_SIGNAL"] = task.signal
        return environment

    # ---- find

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        """The tasks that were started; one that is absent was not and never will be."""
        self._reap()
        found = {}
        for token in tokens:
            records = self._started(token)
            if records:
                found[token] = [_ref(token, index, record) for index, record in sorted(records.items())]
        return found

    def _started(self, token: str) -> dict[int, _Record]:
        with _answered(self._dir):
            return {index: found for index, found in self._tasks(token).items() if self._has_started(found)}

    def _has_started(self, record: _Record) -> bool:
        """Whether the process got its go: it is past waiting for it, or has come as far as the claim.

        One that ended before the claim ran nothing of the user's.
        """
        if record.claimed:
            return True
        if not record.here:
            raise _elsewhere(record.host)
        give_up = time.monotonic() + _DECIDE_S
        while record.alive:
            doing = processes.argv(record.pid)
            if doing and _AWAIT_GO.encode() not in doing:
                return True
            if time.monotonic() >= give_up:
                raise SchedulerUnavailable(
                    f"process {record.pid} has been started, and neither goes on nor ends",
                    where=str(self._path(record.id.rpartition(".")[0])),
                    hint=f"look at it (is it stopped?), or end it: kill -KILL {record.pid}",
                )
            processes.wait_for_end(record.pid, 0.02)
            self._reap()
        return record.claimed

    def _tasks(self, token: str) -> dict[int, _Record]:
        if token not in self._records:
            path = self._path(token)
            try:
                body = json.loads(path.read_bytes())
                self._records[token] = {int(index): _Record(**fields) for index, fields in body.items()}
            except FileNotFoundError:
                return {}
            except (AttributeError, TypeError, ValueError) as error:
                raise SchedulerUnavailable(
                    f"the record of a submission is damaged ({error})",
                    where=str(path),
                    hint="end its processes if there are any, then remove the file",
                ) from error
        return self._records[token]

    def _path(self, token: str) -> Path:
        return self._dir / f"{token}.json"

    # ---- poll

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        """What became of each, from /proc and the guards' files.

        Whom a guard that was killed has left behind, it ends, as slurmd(8) would.
        """
        self._reap()
        with _answered(self._dir):
            return {ref: self._fact(ref) for ref in refs}

    def _fact(self, ref: SchedulerRef) -> SchedulerFact:
        if not ref.token:
            if self._foreign(ref) is None:
                return SchedulerFact(state=SchedulerState.GONE, reason="only its parent knows how it ended")
            return SchedulerFact(state=SchedulerState.RUNNING, started_at=ref.submitted_at, nodes=ref.cluster)
        record = self._tasks(ref.token).get(ref.task)
        if record is None:
            if ref.cluster != self.cluster:
                raise _elsewhere(ref.cluster)
            return SchedulerFact(state=SchedulerState.GONE, reason="it was never started here")
        if record.alive:
            return SchedulerFact(
                state=SchedulerState.RUNNING, started_at=record.submitted_at, nodes=record.host
            )
        if record.pid in self._children:
            # It ended since the look at all children: its status must be known before a verdict.
            self._reap()
        # The exit record is written before the guard ends; whoever sees the guard dead sees the record.
        ended = guard_files.read_exit(Path(record.attempt_dir)) if record.claimed else None
        if ended is not None:
            return SchedulerFact(
                state=SchedulerState.TIMEOUT if ended.cause == "timeout" else _state(ended.exit_code),
                exit_code=ended.exit_code,
                started_at=ended.started_at,
                ended_at=ended.ended_at,
                nodes=record.host,
            )
        if not record.here:
            raise _elsewhere(record.host)
        if record.boot_id != _boot_id():
            return SchedulerFact(state=SchedulerState.NODE_FAIL, reason=f"{record.host} was rebooted")
        left = self._left_behind(record)
        if left:
            self._kill_all(left)
            return SchedulerFact(
                state=SchedulerState.COMPLETING,
                reason=f"its guard was killed, {len(left)} of its processes live on and are ended",
                nodes=record.host,
            )
        status = self._statuses.get(record.pid, -1)
        if status >= 0:
            # No record (a full disk, no claim), but this program is its parent and was told.
            return SchedulerFact(state=_state(status), exit_code=status, nodes=record.host)
        why = "its guard was killed" if record.claimed else "it ended before its command began"
        return SchedulerFact(state=SchedulerState.GONE, reason=why)

    def _reap(self) -> None:
        """Clear away children that have ended, so that no zombies are left."""
        for pid in list(self._children):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                self._children.discard(pid)
                continue
            if done:
                self._children.discard(pid)
                self._statuses[pid] = os.waitstatus_to_exitcode(status)

    # ---- cancel, update

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        """SIGTERM to the guard, which ends its command after the grace at the latest.

        Asked again after the grace, SIGKILL to everything of the attempt.
        """
        self._reap()
        with _answered(self._dir):
            for ref in refs:
                if not ref.token:
                    self._end_foreign(ref)
                    continue
                record = self._tasks(ref.token).get(ref.task)
                if record is None and ref.cluster != self.cluster:
                    raise _elsewhere(ref.cluster)
                if record is not None:
                    self._cancel(record)

    def _end_foreign(self, ref: SchedulerRef) -> None:
        start, now = self._foreign(ref), time.monotonic()
        if start is not None:
            overdue = now - self._cancelled.setdefault(ref.id, now) > self.config.kill_grace_seconds
            processes.send(self._effects, int(ref.id), start, signal.SIGKILL if overdue else signal.SIGTERM)

    def _cancel(self, record: _Record) -> None:
        if not record.here:
            raise _elsewhere(record.host)
        now = time.monotonic()
        first = self._cancelled.setdefault(record.id, now)
        overdue = now - first > self.config.kill_grace_seconds
        if record.alive and not overdue:
            processes.send(self._effects, record.pid, record.pid_start, signal.SIGTERM)
        elif record.boot_id == _boot_id():
            # The guard first: should it see its command end, it would call that the command's own doing.
            processes.send(self._effects, record.pid, record.pid_start, signal.SIGKILL)
            if not record.alive:
                self._kill_all(self._left_behind(record))

    @staticmethod
    def _left_behind(record: _Record) -> list[tuple[int, str]]:
        start = guard_files.read_start(Path(record.attempt_dir))
        ours = start is not None and start.scheduler_id == record.id and start.boot_id == record.boot_id
        group = (record.pid, start.pgid) if start is not None and ours else None
        return processes.of_attempt(record.attempt_dir, record.id, group)

    def _kill_all(self, left: Iterable[tuple[int, str]]) -> None:
        for pid, start in left:
            processes.send(self._effects, pid, start, signal.SIGKILL)

    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        raise SubmitRejected(
            f"the local scheduler cannot change {', '.join(changes)} of {', '.join(ref.id for ref in refs)}",
            hint="the change applies from the next attempt on",
        )


def _ref(token: str, index: int, record: _Record) -> SchedulerRef:
    return SchedulerRef(
        id=record.id, cluster=record.host, token=token, task=index, submitted_at=record.submitted_at
    )


def _state(exit_code: int) -> SchedulerState:
    return SchedulerState.COMPLETED if exit_code == 0 else SchedulerState.FAILED


def _elsewhere(host: str) -> SchedulerUnavailable:
    return SchedulerUnavailable(
        f"processes of host {host} can be seen only there", hint=f"do the same on {host}"
    )


class _answered:
    """Turns a file that cannot be read into "no answer"."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            where = str(error.filename or self._where)
            raise SchedulerUnavailable(error.strerror or str(error), where=where) from error
