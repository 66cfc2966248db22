"""This machine as a scheduler: detached processes that outlive their submitter and are found again.

A task's process waits for its *go* until its identity (host, boot id, pid, start time) is on disk; if the
submitter dies before, it ends without having run anything. So a look-up by token is exact at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compoconf import ConfigInterface, register

from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission, Task
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import SchedulerUnavailable, SubmitDeferred, SubmitRejected
from oellm_autoexp.rendering import guard, guard_files, templates
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import boot_id, process_start

#: The submitter's environment reaches a job without what belongs to another scheduler's job.
_FOREIGN = re.compile(r"(SLURM|SBATCH|SQUEUE|SRUN|AUTOEXP)_")


@dataclass(kw_only=True)
class LocalSchedulerConfig(ConfigInterface):
    """`max_jobs`: live attempts at once (None: one per processor).

    `kill_grace_seconds`: from SIGTERM to SIGKILL.
    """

    max_jobs: int | None = None
    submit_rate_limit_seconds: float | None = None
    breaker: int | None = 3
    kill_grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.max_jobs is not None and self.max_jobs < 1:
            raise ValueError(f"max_jobs must be at least 1, got {self.max_jobs}")


@dataclass(frozen=True, slots=True)
class _Process:
    """A process by an identity that is never reused."""

    host: str
    boot_id: str
    pid: int
    pid_start: str

    @property
    def alive(self) -> bool:
        return self.boot_id == boot_id() and process_start(self.pid) == self.pid_start


@register
class LocalScheduler(SchedulerInterface):
    """Runs every task as a process of this machine."""

    config: LocalSchedulerConfig
    config_class = LocalSchedulerConfig

    def __init__(self, config: LocalSchedulerConfig, *, effects: Effects, state_dir: Path) -> None:
        super().__init__(config)
        self._effects = effects
        self._dir = state_dir
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._records: dict[tuple[str, int], dict[str, Any]] = {}
        self.cluster = socket.gethostname()
        self.capabilities = Capabilities(
            max_array_size=1,
            find_grace_s=0.0,
            gone_grace_s=0.0,
            poll_interval_s=0.5,
            default_max_jobs=os.cpu_count() or 1,
        )

    def render(self, request: ScriptRequest) -> str:
        return templates.render_job_script(request)

    # ---- submit

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        try:
            self._effects.mkdir(self._dir / submission.token)
            return [self._start(submission.token, index, task) for index, task in enumerate(submission.tasks)]
        except BlockingIOError as error:
            raise SubmitDeferred(f"no process could be started: {error.strerror}") from error
        except OSError as error:
            where = str(error.filename or self._dir)
            raise SubmitDeferred(f"{error.strerror}", where=where) from error

    def _start(self, token: str, index: int, task: Task) -> SchedulerRef:
        identity = f"{token}.{index}"
        environment = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        environment.update(task.environment)
        environment.update(
            AUTOEXP_TOKEN=token,
            AUTOEXP_SCHEDULER_ID=identity,
            AUTOEXP_ATTEMPT_DIR=task.attempt_dir,
            AUTOEXP_LOG_PATH=task.log_path,
            AUTOEXP_KILL_GRACE_S=str(self.config.kill_grace_seconds),
        )
        if task.time_limit_s is not None:
            environment["AUTOEXP_TIME_LIMIT_S"] = str(task.time_limit_s)
        log = Path(task.log_path)
        self._effects.mkdir(log.parent, mode=0o755)
        child = self._effects.spawn(
            [sys.executable, "-I", guard.__file__, "--await-go", "bash", task.script_path],
            env=environment,
            output=log,
            stdin=subprocess.PIPE,
        )
        self._children[child.pid] = child
        submitted_at = self._now()
        record = {
            "host": self.cluster,
            "boot_id": boot_id(),
            "pid": child.pid,
            "pid_start": process_start(child.pid),
            "attempt_dir": task.attempt_dir,
            "submitted_at": submitted_at,
        }
        self._effects.write(self._dir / token / f"{index}.json", json.dumps(record).encode())
        self._records[token, index] = record
        assert child.stdin is not None
        with child.stdin:
            self._effects.call("go", identity, lambda: os.write(child.stdin.fileno(), b"g"))  # type: ignore[union-attr]
        return SchedulerRef(
            id=identity, cluster=self.cluster, token=token, task=index, submitted_at=submitted_at
        )

    @staticmethod
    def _now() -> float:
        return time.time()  # noqa: TID251 - when a process was started is a fact of this machine

    # ---- find, poll

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        found: dict[str, Sequence[SchedulerRef]] = {}
        for token in tokens:
            refs = []
            for path in sorted((self._dir / token).glob("[0-9]*.json"), key=lambda path: int(path.stem)):
                index = int(path.stem)
                record = self._record(token, index)
                if record is not None and (self._process(record).alive or self._claimed(record)):
                    refs.append(
                        SchedulerRef(
                            id=f"{token}.{index}",
                            cluster=record["host"],
                            token=token,
                            task=index,
                            submitted_at=record["submitted_at"],
                        )
                    )
            if refs:
                found[token] = refs
        return found

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        elsewhere = next((ref for ref in refs if ref.cluster != self.cluster), None)
        if elsewhere is not None:
            raise SchedulerUnavailable(
                f"jobs of host {elsewhere.cluster} can be seen only there",
                hint=f"run this on {elsewhere.cluster}",
            )
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]
        try:
            return {ref: self._fact(ref) for ref in refs}
        except OSError as error:
            where = str(error.filename or self._dir)
            raise SchedulerUnavailable(str(error.strerror), where=where) from error

    def _fact(self, ref: SchedulerRef) -> SchedulerFact:
        record = self._record(ref.token, ref.task)
        if record is None:
            return SchedulerFact(state=SchedulerState.GONE, reason="never started here")
        process = self._process(record)
        attempt_dir = Path(record["attempt_dir"])
        if process.alive:
            started = record["submitted_at"]
            return SchedulerFact(state=SchedulerState.RUNNING, started_at=started, nodes=process.host)
        ended = guard_files.read_exit(attempt_dir)
        if ended is not None:
            state = SchedulerState.COMPLETED if ended.exit_code == 0 else SchedulerState.FAILED
            if ended.cause == "timeout":
                state = SchedulerState.TIMEOUT
            return SchedulerFact(
                state=state,
                exit_code=ended.exit_code,
                started_at=ended.started_at,
                ended_at=ended.ended_at,
                nodes=process.host,
            )
        if process.boot_id != boot_id():
            return SchedulerFact(state=SchedulerState.NODE_FAIL, reason=f"{process.host} was rebooted")
        if self._group(attempt_dir) is not None:
            return SchedulerFact(state=SchedulerState.COMPLETING, reason="its guard died, its processes live")
        return SchedulerFact(state=SchedulerState.GONE, reason="its guard was killed")

    def _record(self, token: str, index: int) -> dict[str, Any] | None:
        key = (token, index)
        if key not in self._records:
            try:
                self._records[key] = json.loads((self._dir / token / f"{index}.json").read_bytes())
            except FileNotFoundError:
                return None
        return self._records[key]

    @staticmethod
    def _process(record: Mapping[str, Any]) -> _Process:
        return _Process(record["host"], record["boot_id"], record["pid"], record["pid_start"])

    @staticmethod
    def _claimed(record: Mapping[str, Any]) -> bool:
        return guard_files.read_claim(Path(record["attempt_dir"])) is not None

    @staticmethod
    def _group(attempt_dir: Path) -> int | None:
        """The process group of a command whose guard is dead, while any process of it lives."""
        start = guard_files.read_start(attempt_dir)
        if start is None or start["boot_id"] != boot_id():
            return None
        pgid: int = start["pgid"]
        try:
            os.killpg(pgid, 0)
        except OSError:
            return None
        return pgid

    # ---- cancel, update

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        for ref in refs:
            record = self._record(ref.token, ref.task)
            if record is None:
                continue
            process = self._process(record)
            if process.alive:
                # The guard forwards TERM, and KILLs the command after the grace.
                self._effects.kill(process.pid, signal.SIGTERM)
            else:
                group = self._group(Path(record["attempt_dir"]))
                if group is not None:
                    self._effects.kill_group(group, signal.SIGKILL)

    def update(self, ref: SchedulerRef, changes: Mapping[str, Any]) -> None:
        raise SubmitRejected(
            f"the local scheduler cannot change {', '.join(changes)} of {ref.id}",
            hint="the change applies from the next attempt on",
        )
