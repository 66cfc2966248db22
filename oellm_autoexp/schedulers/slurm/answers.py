"""What Slurm's commands print, understood. Pure. How they print it: tests/data/slurm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import SchedulerFact
from oellm_autoexp.schedulers.slurm import site as slurm_site
from oellm_autoexp.schedulers.slurm import states as slurm_states
from oellm_autoexp.schedulers.slurm.site import settings

#: Between fields: a character that no name or comment holds.
SEPARATOR = "\x1f"
_QUEUE_FIELDS = (
    "ArrayJobID",
    "ArrayTaskID",
    "JobID",
    "State",
    "exit_code",
    "RestartCnt",
    "Reason",
    "StartTime",
    "EndTime",
    "NodeList",
    "Cluster",
    "Comment",
    "Name",
)
#: `squeue -O`: `-o` knows neither exit codes nor restarts.
QUEUE_FORMAT = ",".join(f"{name}:{SEPARATOR}" for name in _QUEUE_FIELDS)
#: `sacct -o`. Its Comment is often empty, so that the name must tell.
ACCOUNT_FORMAT = "JobID,State,ExitCode,Reason,Start,End,NodeList,Cluster,JobName"
#: What sacct calls the tasks of an array that never began.
_TASKS = re.compile(r"(\d+_\[[\d,-]+)(?:%\d+)?\]")
#: Asked for by SLURM_TIME_FORMAT: seconds since 1970, whatever the time zone.
TIME_FORMAT = "%s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job, or one task of an array, as squeue or sacct tells it."""

    #: `123`, or `123_4` for a task.
    id: str
    cluster: str
    name: str
    fact: SchedulerFact
    comment: str = ""

    @property
    def task(self) -> int:
        number = self.id.partition("_")[2]
        return int(number) if number.isdigit() else 0

    @property
    def array(self) -> str:
        """The id of the array, or of the job that is none."""
        return self.id.partition("_")[0]

    def carries(self, token: str) -> bool:
        """Whether it was submitted under a token. A site's plug-in may rewrite one of the two places."""
        return self.comment == token or self.name.endswith(f".{token}")


def queue_rows(text: str, cluster: str) -> Iterator[Row]:
    """The rows of `squeue -h -r -O QUEUE_FORMAT`, of `cluster` where they name none."""
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) < len(_QUEUE_FIELDS):
            continue  # The rest of a foreign job's name with a line break in it.
        array, task, number, state, status, restarts, reason, start, end, nodes, where, comment, name = (
            fields[: len(_QUEUE_FIELDS)]
        )
        raw = int(status) if status.isdigit() else 0
        yield Row(
            id=f"{array}_{task}" if task.isdigit() else number,
            cluster=where or cluster,
            name=name,
            comment=comment,
            fact=slurm_states.fact(
                state,
                reason=reason,
                exit_code=raw >> 8,
                signal=raw & 0x7F,
                started_at=_seconds(start),
                ended_at=_seconds(end),
                nodes=nodes,
                restart_count=int(restarts) if restarts.isdigit() else 0,
            ),
        )


def account_rows(text: str, cluster: str) -> Iterator[Row]:
    """The rows of `sacct -n -P -X -D -o ACCOUNT_FORMAT`, oldest first: a requeued job has several.

    Tasks that never began are one row of sacct's, `7_[0-2,5%2]`; a row of a task's own wins.
    """
    rows = []
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) < 9:
            continue
        number, state, status, reason, start, end, nodes, where, name = fields[:9]
        code, _, signal = status.partition(":")
        began = _seconds(start)
        fact = slurm_states.fact(
            state,
            reason=reason,
            exit_code=int(code) if code.isdigit() else 0,
            signal=int(signal) if signal.isdigit() else 0,
            started_at=began,
            ended_at=_seconds(end),
            nodes="" if nodes == "None assigned" else nodes,
        )
        tasks = _TASKS.fullmatch(number)
        ids = expand(tasks[1] + "]") if tasks else (number,)
        for each in ids:
            row = Row(id=each, cluster=where or cluster, name=name, fact=fact)
            rows.append((began or 0.0, tasks is None, row))
    yield from (row for *_, row in sorted(rows, key=lambda each: each[:2]))


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() and text != "0" else None


# ---------------------------------------------------------------- sbatch


class Effect(Enum):
    """What a call that failed has done."""

    #: Certainly nothing: nobody was reached.
    SILENT = "silent"
    #: Certainly nothing; asked again it may work.
    NONE = "none"
    #: Certainly nothing, and it will not work as it is.
    REFUSED = "refused"
    #: A limit on jobs: nothing, until others have ended.
    LIMIT = "limit"
    #: Nobody knows.
    UNKNOWN = "unknown"


#: Slurm's words (slurm_errno.c) for an answer that did not come: the request may have been heard.
_UNHEARD = re.compile(
    r"timed out|Zero Bytes were transmitted|Unexpected message received|Message (send|receive) failure|"
    r"Communication shutdown failure|\((send|receive|shutdown) failure\)|Failed to send entire message|"
    r"Received zero length message|Connection reset|Broken pipe|length < 0|Header lengths"
)
_SILENT = re.compile(
    r"Unable to contact slurm controller|Communication connection failure|standby mode|[Mm]unge|"
    r"Can't find an address|Unable to connect to database|DB index is being set|authentication error"
)
_LIMITS = re.compile(
    r"Job violates accounting/QOS policy|(Assoc|QOS)\w*Submit\w*Limit|MaxSubmitJobsPerAccount|"
    r"temporarily unable to accept job|Unable to create job record|Requested account has breached"
)
#: What is wrong with the request itself.
_WRONG = re.compile(
    r"Invalid (partition|node name|feature|account|qos|wckey|license|generic resource|job array|--|numeric|"
    r"Trackable|GRES|generic|time|directive|preferred|reservation)|invalid (partition|number)|"
    r"Requested (node configuration is not available|time limit is invalid|reservation is invalid|GRES)|"
    r"(Access|Access/permission|permission) denied|not permitted to use|No partition specified|"
    r"More processors requested|(Node|Task|CPU) count specification invalid|Job size specification|"
    r"parameter too long|Memory (specification can not|required by task)|Job dependency problem|"
    r"Circular job dependency|option|Batch script (is empty|contains)|does not look like a batch script|"
    r"Multiple partition job request|Requested nodes not in this partition|Time limit specification|"
    r"Invalid time-min|Job --batch option"
)
_JOB_ID = re.compile(r"(\d+)(?:;(\S+))?")


def submitted(text: str) -> tuple[str, str] | None:
    """The id, and the cluster where one is named, from `sbatch --parsable`; None: that is no answer."""
    for line in reversed(text.splitlines()):
        match = _JOB_ID.fullmatch(line.strip())
        if match:
            return match[1], match[2] or ""
    return None


def refusal(status: int | None, text: str) -> Effect:
    """What a command has done that ended with `status` (None: it was ended) and said `text`.

    What no rule knows counts as nothing done, and is asked again: a text is never a verdict by guess.
    """
    if status is None or status <= 0 or _UNHEARD.search(text):
        return Effect.UNKNOWN
    if _SILENT.search(text):
        return Effect.SILENT
    if _LIMITS.search(text):
        return Effect.LIMIT
    if status == 255 or _WRONG.search(text):
        return Effect.REFUSED
    return Effect.NONE


def plain(text: str) -> str:
    """An error of a command on one line, without its name before each."""
    lines = (re.sub(r"^(s\w+: )?(error|fatal): ", "", line.strip()) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))[:500]


# ---------------------------------------------------------------- what a cluster is like


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """What `scontrol show config` says of a cluster."""

    name: str
    version: str
    accounting: bool
    #: Tasks that an array may have: MaxArraySize is one more than the highest index.
    max_array_tasks: int
    message_timeout_s: float
    #: From SIGTERM to SIGKILL.
    kill_wait_s: float


def cluster_facts(text: str) -> ClusterFacts | None:
    """The facts of a cluster; None: that is no answer."""
    found = settings(text)
    if "ClusterName" not in found:
        return None
    return ClusterFacts(
        name=found["ClusterName"],
        version=found.get("SLURM_VERSION", ""),
        accounting=found.get("AccountingStorageType", "").endswith("slurmdbd"),
        max_array_tasks=max(1, slurm_site.number(found.get("MaxArraySize")) or 1001),
        message_timeout_s=float(slurm_site.number(found.get("MessageTimeout")) or 10),
        kill_wait_s=float(slurm_site.number(found.get("KillWait")) or 30),
    )
