"""One start of a job on the fake cluster: the guard's part, and what the command writes and when.

Nothing is executed. What would be written goes to `Files`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from random import Random
from typing import Protocol

from oellm_autoexp.core.model import ExitRecord
from oellm_autoexp.rendering.guard_files import Claim
from oellm_autoexp.schedulers.fake.scenario import Play, Symptom, chosen_mishap

#: As of a shell: ended by SIGKILL, SIGTERM.
KILLED, TERMINATED = 137, 143
_PLACE = re.compile(r"\{(name|step|loss|attempt|node|checkpoint)\}")


class Files(Protocol):
    """Where the jobs of the cluster write."""

    def append(self, path: str, text: str) -> None: ...

    def write(self, path: str, text: str) -> None: ...

    def withdrawn(self, attempt_dir: str) -> bool:
        """Whether the leader has given the attempt up, and taken its claim."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What sbatch is told of one task: its options, and where it writes. Times are seconds."""

    name: str
    log_path: str
    attempt_dir: str
    attempt: int = 1
    checkpoint_dir: str = ""
    nodes: int = 1
    time_limit: float | None = None
    partition: str = ""
    requeue: bool | None = None
    #: The nodes that it may not be given, and those of them that its own script names.
    exclude: tuple[str, ...] = ()
    own_exclude: tuple[str, ...] = ()
    #: As sbatch(1) takes it: "afterok:12,afterany:13".
    dependency: str = ""
    #: It is not begun where it could not end before; UTC epoch seconds.
    deadline: float | None = None
    #: What the guard is told of those that it was queued behind: AUTOEXP_AFTER_DIR, _WAIT_S, _ZERO, _END.
    after_dir: str = ""
    after_wait: float = 0.0
    after_zero: bool = False
    after_end: str = "limit"


class Kind(Enum):
    """What a step of a command does."""

    SAY = "say"
    SAVE = "save"
    END = "end"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Step:
    """What happens `after_s` after the step before. `work` is what has been done by then, in seconds."""

    after_s: float
    kind: Kind
    work: float
    lines: tuple[str, ...] = ()
    code: int = 0
    #: A death by SIGKILL leaves no exit record; `oom`: for want of memory.
    killed: bool = False
    oom: bool = False
    #: Whether it works from here on.
    working: bool = True


@dataclass(slots=True)
class Run:
    """A process of a job: what it has done, and how it is being ended."""

    job: str
    token: str
    request: JobRequest
    play: Play
    restarts: int
    nodes: tuple[str, ...]
    started_at: float
    generation: int
    steps: Iterator[Step]
    total: float
    work: float
    #: Since when `work` grows, if `working`.
    since: float = 0.0
    working: bool = False
    alive: bool = True
    #: The guard waits to be told to begin, or has made its claim and runs the command.
    waits: bool = False
    claimed: bool = False
    #: What the guard will write as the cause of the end; with which status it has.
    cause: str = "exit"
    recorded: int | None = None
    #: Why the scheduler ends it: "cancel", "timeout", "preempt", "requeue"; "" for not.
    order: str = ""
    #: The node died, or the scheduler gave it up: nobody hears of its end.
    lost: bool = False
    #: The step that comes next.
    next: Step | None = field(default=None)
    #: The node that its lines speak of; "": the first.
    culprit: str = ""
    #: When the step that comes next is due; the step that waits, and how long, while it is suspended.
    next_at: float = 0.0
    paused: tuple[Step | None, float, bool] | None = None

    def work_at(self, now: float) -> float:
        grown = now - self.since if self.working else 0.0
        return min(self.total, self.work + grown)

    def pause(self, now: float) -> None:
        """SIGSTOP: nothing is done from now on, and nothing is forgotten."""
        self.paused = self.next, self.next_at - now, self.working
        self.work, self.working, self.next = self.work_at(now), False, None

    def go_on(self, now: float) -> tuple[Step | None, float]:
        """SIGCONT: the step that comes next, and how soon."""
        assert self.paused is not None
        step, left, self.working = self.paused
        self.since, self.paused = now, None
        # Another one: what was planned for the first is void.
        self.next = None if step is None else replace(step)
        return self.next, left

    def text(self, lines: tuple[str, ...] | list[str], work: float) -> str:
        """Lines of its log, with their newlines."""
        step = int(work / self.play.step_takes)
        values = {
            "name": self.request.name,
            "step": str(step),
            # It falls like a loss does, and is the same wherever the job is at the same step.
            "loss": f"{2.0 + 8.0 / math.sqrt(1.0 + step):.4f}",
            "attempt": str(self.request.attempt),
            "node": self.culprit or (self.nodes[0] if self.nodes else ""),
            "checkpoint": f"{self.request.checkpoint_dir}/step_{step}",
        }
        return "".join(_PLACE.sub(lambda match: values[match[1]], line) + "\n" for line in lines)

    # ---- the guard's files

    def claim_text(self, token: str) -> str:
        claim = Claim(
            generation=self.generation,
            scheduler_id=self.job,
            restart_count=self.restarts,
            host=self.nodes[0] if self.nodes else "",
            boot_id="fake",
            pid=1,
            pid_start="1",
            token=token,
            nonce=f"{self.job}.{self.restarts}",
        )
        return json.dumps(asdict(claim))

    def start_text(self, token: str) -> str:
        return json.dumps({**json.loads(self.claim_text(token)), "pgid": 1, "started_at": self.started_at})

    def exit_text(self, code: int, now: float) -> str:
        record = ExitRecord(
            exit_code=code,
            cause=self.cause,
            started_at=self.started_at,
            ended_at=now,
            host=self.nodes[0] if self.nodes else "",
            generation=self.generation,
        )
        return json.dumps(asdict(record))

    def path(self, what: str) -> str:
        return f"{self.request.attempt_dir}/{what}.{self.generation}.json"


def total_work(play: Play, stream: Random) -> float:
    """How much work a job is."""
    return play.work * (1.0 + play.spread * (2.0 * stream.random() - 1.0))


def steps(
    play: Play, request: JobRequest, work: float, total: float, stream: Random, done: tuple[str, ...] = ()
) -> Iterator[Step]:
    """What a command does that goes on from so much work, to its end; `done`: what it writes last, too."""
    lines = play.lines
    chosen = chosen_mishap(play, request.attempt, work, stream)
    yield Step(play.startup, Kind.SAY, work, (lines.resumed if work else lines.started,))
    left, mishap = chosen if chosen is not None else (math.inf, None)
    while True:
        until = min(_beyond(work, play.log_every), _beyond(work, play.checkpoint_every), total)
        if mishap is not None and left <= until - work:
            yield from symptoms(mishap, left, work + left)
            return
        if until >= total:
            last = (lines.progress, lines.done, *done)
            yield Step(total - work, Kind.END, total, last, code=play.code)
            return
        saves = until == _beyond(work, play.checkpoint_every)
        yield Step(until - work, Kind.SAY, until, (lines.progress,), working=not saves)
        left -= until - work
        if saves:
            if mishap is not None and left <= play.checkpoint_takes:
                yield from symptoms(mishap, left, until)
                return
            yield Step(play.checkpoint_takes, Kind.SAVE, until, (lines.saved,))
            left -= play.checkpoint_takes
        work = until


def _beyond(work: float, every: float | None) -> float:
    """The next multiple of `every`."""
    return math.inf if every is None else (math.floor(work / every + 1e-9) + 1) * every


def symptoms(mishap: Symptom, after_s: float, work: float) -> Iterator[Step]:
    """How a job that has done so much work shows that something is wrong, `after_s` from now on."""
    last = Step(
        after_s,
        Kind.END,
        work,
        tuple(mishap.lines),
        code=KILLED if mishap.killed else mishap.code,
        killed=mishap.killed,
        oom=mishap.kind == "oom",
    )
    if mishap.kind != "hang":
        yield last
        return
    yield Step(after_s, Kind.HANG, work, last.lines if mishap.ends_after is None else (), working=False)
    if mishap.ends_after is not None:
        yield replace(last, after_s=mishap.ends_after)
