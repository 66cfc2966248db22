"""Slurm as a scheduler. Who a job is, its token says: ids are reused, and one token may have two jobs.

A poll is one squeue for all jobs of the user, and at most one sacct for those that left it. What was not
answered is unknown: nothing is ever concluded from a command that failed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from compoconf import register

from oellm_autoexp.config.limits import ClusterLimits
from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission, Task
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.times import format_time
from oellm_autoexp.core.verdict import EXIT_CLAIM_LOST
from oellm_autoexp.errors import (
    SchedulerUnavailable,
    SubmitDeferred,
    SubmitRejected,
    SubmitUnclear,
    UsageError,
)
from oellm_autoexp.rendering import guard_files
from oellm_autoexp.schedulers.slurm import answers
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.schedulers.slurm.answers import ClusterFacts, Effect, Row
from oellm_autoexp.schedulers.slurm.cluster import SlurmCluster
from oellm_autoexp.schedulers.slurm.commands import Commands
from oellm_autoexp.schedulers.slurm.records import Record, Records
from oellm_autoexp.store.effects import Effects, Ran
from oellm_autoexp.store.registry import state_home

#: A limit on jobs is not tried again before this long.
LIMIT_S = 30.0
#: sacct is asked about so many jobs and arrays at a time; the others have their turn at the next poll.
ACCOUNTED = 200
#: sacct is asked for what happened since so long before a submission: hosts' clocks differ.
BEFORE_S = 3600.0
#: From and to so many seconds lie between polls; squeue takes at most a fiftieth of them.
BUSY_S, CALM_S, SHARE = 5.0, 30.0, 50.0
#: Ids in one scancel, whose arguments must fit into one exec(2).
CANCELLED_AT_ONCE = 500


@dataclass(kw_only=True)
class SlurmClientConfig(ClusterLimits):
    """`max_jobs` None: no bound of ours.

    `array`: jobs with the same options go as one array (`slurm.array`).
    `clusters`: other clusters than this one, as of `sbatch --clusters`.
    `grace_seconds`: how long an answered "not known" must last; None: by the cluster's own time-outs.
    `call_timeout_seconds`: of each command.
    `calls_per_second`, `call_burst`: of all sessions of the user together.
    """

    array: bool = False
    clusters: list[str] = field(default_factory=list)
    grace_seconds: float | None = None
    call_timeout_seconds: float = 60.0
    calls_per_second: float = 2.0
    call_burst: int = 30
    submit_cmd: str = "sbatch"
    squeue_cmd: str = "squeue"
    cancel_cmd: str = "scancel"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("call_timeout_seconds", "calls_per_second", "call_burst"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.grace_seconds is not None and self.grace_seconds < 0:
            raise ValueError(f"grace_seconds cannot be negative, got {self.grace_seconds}")
        for name in ("submit_cmd", "squeue_cmd", "cancel_cmd"):
            if not shlex.split(getattr(self, name)):
                raise ValueError(f"{name} is empty")


@register
class SlurmClient(SchedulerInterface):
    """Talks to the Slurm cluster that this host belongs to."""

    config: SlurmClientConfig
    config_class = SlurmClientConfig

    def __init__(self, config: SlurmClientConfig, *, effects: Effects, state_dir: Path) -> None:
        super().__init__(config)
        self._records = Records(effects, state_dir)
        self._commands = Commands(
            effects,
            state_home(),
            timeout_s=config.call_timeout_seconds,
            burst=config.call_burst,
            per_s=config.calls_per_second,
        )
        self._site = SlurmCluster(self._commands, config.clusters, limits=config.array)
        #: The last squeue, and when it was answered; as good as new for as long as a call may take its turn.
        self._queue: tuple[float, list[Row]] | None = None
        self._fresh_s = 1.0 / config.calls_per_second
        #: Submissions of more tasks than this have met a limit.
        self._most_tasks: int | None = None
        self._limit: tuple[float, str] = (0.0, "")
        self._last: Mapping[SchedulerRef, SchedulerFact] = {}
        self._interval_s = BUSY_S
        self.cluster = ""
        self.capabilities = self._capabilities()

    def render(self, request: ScriptRequest) -> str:
        return slurm_text.job_script(request)

    def batch_key(self, script: str) -> str:
        return "\n".join(slurm_text.shared_directives(script))

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each command was called."""
        return self._commands.calls

    @property
    def missing_command(self) -> str:
        """A command of Slurm's that is not on this machine; "" when all are."""
        commands = [shlex.split(command)[0] for command in (self.config.submit_cmd, self.config.squeue_cmd)]
        return next((command for command in commands if shutil.which(command) is None), "")

    # ---- what the cluster can do

    def prepare(self) -> None:
        try:
            self._cluster_facts()
        except SchedulerUnavailable:
            return

    def _cluster_facts(self) -> ClusterFacts:
        """What the cluster says of itself.

        Raises:
            SchedulerUnavailable: it has never answered.
        """
        before, found = self._site.known, self._site.facts()
        if found is not before:
            self.cluster = self._site.name
            self.capabilities = self._capabilities()
        return found

    def eligible_nodes(self, script_path: str) -> frozenset[str] | None:
        try:
            return self._site.eligible_nodes(_text(script_path))
        except OSError:
            return None

    def _capabilities(self) -> Capabilities:
        facts, config = self._site.known, self.config
        grace_s = config.grace_seconds
        if grace_s is None:
            # A call that was cut short may have been heard, and be acted upon this much later.
            answer_s = facts.message_timeout_s if facts is not None else 100.0
            grace_s = config.call_timeout_seconds + 2 * answer_s
        tasks = 1
        if config.array:
            tasks = facts.max_array_tasks if facts is not None else 1000
            tasks = min(tasks, self._most_tasks or tasks, self._site.most_submitted or tasks)
        return Capabilities(
            max_array_size=tasks,
            throttles=config.array,
            find_grace_s=grace_s,
            gone_grace_s=grace_s,
            poll_interval_s=self._interval_s,
            # An id means nothing on another cluster, and which one takes a job is not known before.
            successors=not config.clusters,
        )

    # ---- submit

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        count, known = len(submission.tasks), self._site.known is not None
        facts = self._cluster_facts()
        if count > self.capabilities.max_array_size:
            what = f"{count} tasks are more than an array may have here ({self.capabilities.max_array_size})"
            raise SubmitRejected(what) if known else SubmitDeferred(what)
        until, why = self._limit
        if time.monotonic() < until:
            raise SubmitDeferred(why)
        now = time.time()  # noqa: TID251 - when it was submitted is a fact that sacct is asked with
        try:
            text = _text(submission.tasks[0].script_path)
            # A policy may have asked for more than the partition gives; sbatch would refuse that for good.
            tasks = [self._within(task, text, now) for task in submission.tasks]
            submission = replace(submission, tasks=tasks)
            environments = [
                slurm_text.environment(submission.token, task, facts.kill_wait_s) for task in tasks
            ]
            record, script, output = self._records.write(submission, environments, now)
        except FileNotFoundError as error:
            raise SubmitRejected(error.strerror or str(error), where=str(error.filename)) from error
        except OSError as error:
            raise SubmitDeferred(error.strerror or str(error), where=str(error.filename)) from error
        argv = [
            *shlex.split(self.config.submit_cmd),
            "--parsable",
            f"--job-name={record.name}",
            f"--output={output}",
            f"--error={output}",
            "--open-mode=append",
            *self._site.option,
            *slurm_text.submission_options(submission, text),
        ]
        environment: Mapping[str, str] = environments[0]
        if count > 1:
            argv.append(f"--array=0-{count - 1}" + (f"%{submission.at_once}" if submission.at_once else ""))
            environment = {}
        ran = self._commands.act([*argv, script], environment, Path(script).parent)
        self._queue = None
        return self._submitted(ran, record, count)

    def _within(self, task: Task, script: str, now: float) -> Task:
        if task.time_limit_s is None:
            return task
        return replace(task, time_limit_s=self._site.within(task.time_limit_s, script, now))

    def _submitted(self, ran: Ran, record: Record, count: int) -> Sequence[SchedulerRef]:
        found = answers.submitted(ran.output) if ran.status == 0 else None
        if found is not None:
            self._commands.heard()
            self._limit = (0.0, "")
            if self._most_tasks is not None and count == self._most_tasks > 1:
                self._most_tasks *= 2
                self.capabilities = self._capabilities()
            number, cluster = found
            return self._refs(record, number, cluster or self.cluster)
        text = f"{ran.errors}\n{ran.output}"
        why = answers.plain(text) or f"exit {ran.status}"
        effect = answers.refusal(ran.status, text)
        if effect is Effect.REFUSED:
            raise SubmitRejected(f"sbatch: {why}")
        if effect is Effect.LIMIT:
            if count > 1:
                self._most_tasks = max(1, count // 2)
                self.capabilities = self._capabilities()
            self._limit = (time.monotonic() + LIMIT_S, f"sbatch: {why}")
            raise SubmitDeferred(f"sbatch: {why}")
        if effect is Effect.NONE:
            raise SubmitDeferred(f"sbatch: {why}")
        silent = self._commands.silent("sbatch", why)
        raise silent if effect is Effect.SILENT else SubmitUnclear(str(silent))

    def _refs(self, record: Record, number: str, cluster: str) -> list[SchedulerRef]:
        count = len(record.attempt_dirs)
        return [
            SchedulerRef(
                id=f"{number}_{task}" if count > 1 else number,
                cluster=cluster,
                token=record.token,
                task=task,
                submitted_at=record.submitted_at,
            )
            for task in range(count)
        ]

    # ---- ask

    def _rows(self) -> list[Row]:
        """All jobs of the user that the controller knows, each task of an array for itself.

        Raises:
            SchedulerUnavailable: no answer.
        """
        now = time.monotonic()
        if self._queue is not None and now - self._queue[0] < self._fresh_s:
            return self._queue[1]
        facts = self._cluster_facts()
        text = self._commands.answer(
            *shlex.split(self.config.squeue_cmd),
            *("--noheader", "--array", "--states=all", f"--user={os.getuid()}", *self._site.option),
            f"--Format={answers.QUEUE_FORMAT}",
        )
        rows = list(answers.queue_rows(text, facts.name))
        self._queue = (time.monotonic(), rows)
        return rows

    def _accounted(self, since: float, *which: str) -> list[Row]:
        """What sacct knows of some jobs; nothing where there is no accounting, or it does not answer.

        The controller has answered: that it knows a job no more stands, whatever sacct says.
        """
        facts = self._cluster_facts()
        if not facts.accounting:
            return []
        try:
            ran = self._commands.query(
                *("sacct", "-n", "-P", "-X", "-D", f"--delimiter={answers.SEPARATOR}", *self._site.option),
                *("-S", _before(since)),
                *("-o", answers.ACCOUNT_FORMAT, *which),
            )
        except SchedulerUnavailable:
            return []
        return list(answers.account_rows(ran.output, facts.name)) if ran.status == 0 else []

    def identify(self, identity: str) -> SchedulerRef | None:
        """A job of this user that carries no token of ours: `123`, or `123_4` for a task of an array.

        Raises:
            SchedulerUnavailable: no answer.
            UsageError: an array, which is as many jobs as it has tasks.
        """
        rows = self._rows()
        row = next((row for row in rows if row.id == identity), None)
        if row is None:
            tasks = [each.id for each in rows if each.array == identity]
            if tasks:
                raise UsageError(f"{identity} is an array", hint=f"name a task of it, such as {tasks[0]}")
            return None
        text = self._commands.answer("scontrol", *self._site.option, "show", "job", "-o", identity)
        submitted = re.search(r"\bSubmitTime=(\d+)", text)
        if submitted is None:
            raise SchedulerUnavailable(f"scontrol show job {identity}: it tells no time of submission")
        return SchedulerRef(id=identity, cluster=row.cluster, token="", submitted_at=float(submitted[1]))

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        if not tokens:
            return {}
        rows = self._rows()
        records = self._read(tokens)
        found = {token: self._of(token, rows) for token in tokens}
        missing = [records[token] for token in tokens if not found[token] and token in records]
        if missing:
            since = min(record.submitted_at for record in missing)
            names = ",".join(record.name for record in missing)
            past = self._accounted(since, f"--user={os.getuid()}", f"--name={names}")
            found.update({record.token: self._of(record.token, past) for record in missing})
        refs: dict[str, Sequence[SchedulerRef]] = {}
        for token, mine in found.items():
            if mine:
                # Without a record (a power cut): what can be seen is all that is known.
                dirs = ("",) * (1 + max(row.task for row in mine))
                blank = Record(token=token, name="", submitted_at=0.0, attempt_dirs=dirs)
                record = records.get(token, blank)
                owner = self._owner(record, mine)
                refs[token] = self._refs(record, owner.array, owner.cluster)
        return refs

    def _read(self, tokens: Iterable[str]) -> dict[str, Record]:
        try:
            found = {token: self._records.read(token) for token in tokens}
        except OSError as error:
            raise SchedulerUnavailable(error.strerror or str(error), where=str(error.filename)) from error
        return {token: record for token, record in found.items() if record is not None}

    @staticmethod
    def _of(token: str, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if row.carries(token)]

    def _owner(self, record: Record, rows: Sequence[Row]) -> Row:
        """The job that is the attempt: of several with one token the one that has claimed it."""
        if len({(row.cluster, row.array) for row in rows}) > 1:
            for row in rows:
                if self._claimed_by(record, row.task) == row.id:
                    return row
        return rows[0]

    @staticmethod
    def _claimed_by(record: Record, task: int) -> str:
        """The id of the job that runs, or ran, the attempt; "" for none yet."""
        directory = record.attempt_dirs[task] if task < len(record.attempt_dirs) else ""
        try:
            claim = guard_files.read_claim(Path(directory)) if directory else None
        except OSError as error:
            raise SchedulerUnavailable(error.strerror or str(error), where=str(error.filename)) from error
        return claim.scheduler_id if claim is not None else ""

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        if not refs:
            return {}
        rows = self._rows()
        self._require_own(refs)
        by_token = _by_token(rows)
        facts: dict[SchedulerRef, SchedulerFact] = {}
        missing = []
        for ref in refs:
            row = self._chosen(ref, by_token.get(_key(ref), ()))
            if row is None:
                missing.append(ref)
            else:
                facts[ref] = row.fact
        if missing:
            facts.update(self._gone(missing))
        self._name_failed_nodes(facts)
        self._adapt(facts)
        return facts

    def _name_failed_nodes(self, facts: dict[SchedulerRef, SchedulerFact]) -> None:
        """Which nodes of jobs that ended with NODE_FAIL have failed, which neither squeue nor sacct tell."""
        hit = [ref for ref, fact in facts.items() if fact.state is SchedulerState.NODE_FAIL]
        if not hit:
            return
        down = self._site.failed_nodes([facts[ref].nodes for ref in hit])
        for ref in hit:
            mine = [node for node in expand(facts[ref].nodes) if node in down]
            facts[ref] = replace(facts[ref], failed_nodes=",".join(mine))

    def _require_own(self, refs: Sequence[SchedulerRef]) -> None:
        foreign = {ref.cluster for ref in refs} - self._site.names
        if foreign:
            where = ", ".join(sorted(foreign))
            what = f"jobs are on the cluster {where}; this host belongs to {self.cluster}"
            raise SchedulerUnavailable(what, hint="go on where they were submitted, or set SLURM_CONF")

    def _chosen(self, ref: SchedulerRef, rows: Sequence[Row]) -> Row | None:
        """The row that tells of an attempt; None where none does."""
        if not rows:
            return None
        own = next((row for row in rows if row.id == ref.id), rows[0])
        lost = ref.token and own.fact.exit_code == EXIT_CLAIM_LOST
        if len(rows) == 1 and own.id == ref.id and not lost:
            return own
        record = self._read([ref.token]).get(ref.token)
        owner = self._claimed_by(record, ref.task) if record is not None else ""
        if not owner or owner == own.id:
            return own
        # It lost the claim to another job of the same token, which is the attempt.
        return next((row for row in rows if row.id == owner), None)

    def _gone(self, missing: Sequence[SchedulerRef]) -> dict[SchedulerRef, SchedulerFact]:
        """What sacct says of those that the controller knows no more; those not asked about are absent."""
        if not self._cluster_facts().accounting:
            return {ref: SchedulerFact(state=SchedulerState.GONE) for ref in missing}
        numbers = dict.fromkeys(ref.id.partition("_")[0] for ref in missing)
        asked = list(islice(numbers, ACCOUNTED))
        now = [ref for ref in missing if ref.id.partition("_")[0] in asked]
        since = min(ref.submitted_at for ref in now)
        past = {
            (row.id, token): row
            for row in self._accounted(since, f"--jobs={','.join(asked)}")
            for token in (row.name.rpartition(".")[2], "")
        }
        told = {}
        for ref in now:
            row = past.get((ref.id, ref.token))
            # That sacct still calls it running means nothing: the controller knows better.
            ended = row is not None and row.fact.state.ended
            told[ref] = row.fact if row is not None and ended else SchedulerFact(state=SchedulerState.GONE)
        return told

    def _adapt(self, facts: Mapping[SchedulerRef, SchedulerFact]) -> None:
        """Ask sooner while things happen, later while they do not or where asking is dear."""
        changed = any(self._last.get(ref) != fact for ref, fact in facts.items())
        self._last = facts
        calm = BUSY_S if changed else min(CALM_S, 1.5 * self._interval_s)
        self._interval_s = max(calm, SHARE * self._commands.took_s)
        self.capabilities = self._capabilities()

    # ---- cancel, update

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        if not refs:
            return
        rows = self._rows()
        self._require_own(refs)
        by_token = _by_token(rows)
        # By token, for an id may be another's by now; and every job that carries it.
        ids = {
            row.id: row.cluster
            for ref in refs
            for row in by_token.get(_key(ref), ())
            if not row.fact.state.ended
        }
        numbers = iter(ids)
        while chunk := list(islice(numbers, CANCELLED_AT_ONCE)):
            argv = [*shlex.split(self.config.cancel_cmd), *self._site.option, *chunk]
            # What it says of single jobs (ended already, say) is for the next poll to tell.
            self._require_heard("scancel", self._commands.act(argv, {}))
        self._queue = None

    def _require_heard(self, name: str, ran: Ran) -> None:
        unheard = answers.refusal(ran.status, ran.errors) in (Effect.SILENT, Effect.UNKNOWN)
        if ran.status != 0 and unheard:
            raise self._commands.silent(name, answers.plain(ran.errors) or f"exit {ran.status}")

    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        unknown = changes.keys() - {"time_limit_s", "exclude", "at_once"}
        if unknown:
            raise SubmitRejected(f"Slurm is not asked to change {', '.join(sorted(unknown))}")
        by_token = _by_token(self._rows())
        records = self._read({ref.token for ref in refs}) if "exclude" in changes else {}
        #: One call is for tasks of one array whose script excludes the same nodes itself.
        alike: dict[tuple[str, str], list[Row]] = {}
        for ref in refs:
            row = self._chosen(ref, by_token.get(_key(ref), ()))
            if row is not None and not row.fact.state.ended:
                own = records[ref.token].exclude if ref.token in records else ""
                alike.setdefault((row.array, own), []).append(row)
        if not alike:
            raise SubmitRejected(f"Invalid job id specified for job {refs[0].id}")
        refusals = [why for (_, own), rows in alike.items() if (why := self._change(rows, own, changes))]
        if len(refusals) == len(alike):
            raise SubmitRejected(f"scontrol: {refusals[0]}")

    def _change(self, rows: Sequence[Row], own: str, changes: Mapping[str, Any]) -> str:
        """One call for tasks of one array; why none of them was changed, "" if one was."""
        first = rows[0]
        words = []
        if "time_limit_s" in changes:
            words.append(f"TimeLimit={format_time(changes['time_limit_s'])}")
        if "exclude" in changes:
            words.append(f"ExcNodeList={slurm_text.joined(own, changes['exclude'])}")
        identity = first.id
        if "at_once" in changes:
            words.append(f"ArrayTaskThrottle={changes['at_once']}")
            identity = first.array
        elif len(rows) > 1:
            identity = f"{first.array}_[{','.join(str(row.task) for row in rows)}]"
        ran = self._commands.act(["scontrol", *self._site.option, "update", f"JobId={identity}", *words], {})
        self._queue = None
        self._require_heard("scontrol", ran)
        # Of several tasks it names each that could not be changed, and then the others: "1_4-5: No error".
        changed = ran.status == 0 or "No error" in f"{ran.output}{ran.errors}"
        return "" if changed else answers.plain(ran.errors) or str(ran.status)


def _before(since: float) -> str:
    """A time for sacct, well before a submission; of one whose time is not known, long ago."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(86400.0, since - BEFORE_S)))


def _text(script: str) -> str:
    return Path(script).read_text(encoding="utf-8", errors="replace")


def _key(ref: SchedulerRef) -> tuple[str, int | str]:
    """What finds the jobs of a reference in `_by_token`; a foreign one has only its id."""
    return (ref.token, ref.task) if ref.token else ("", ref.id)


def _by_token(rows: Iterable[Row]) -> dict[tuple[str, int | str], list[Row]]:
    """The jobs of each token and task, and each job by its id."""
    found: dict[tuple[str, int | str], list[Row]] = {}
    for row in rows:
        found.setdefault(("", row.id), []).append(row)
        for token in {row.comment, row.name.rpartition(".")[2]}:
            if token:
                found.setdefault((token, row.task), []).append(row)
    return found
