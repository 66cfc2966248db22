"""A Slurm cluster that only exists in virtual time: `submit --fake` plays a config on it.

Nothing of the user's is executed. Jobs do what a scenario says (`scenario`), and the guards' files and
logs are written as a real cluster's jobs would leave them. The clock moves when somebody waits.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compoconf import register

from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.config.limits import ClusterLimits
from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission, Task
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.times import parse_time
from oellm_autoexp.errors import (
    SchedulerUnavailable,
    StateError,
    SubmitDeferred,
    SubmitRejected,
    SubmitUnclear,
    UsageError,
)
from oellm_autoexp.rendering import guard_files
from oellm_autoexp.schedulers.fake import eligibility
from oellm_autoexp.schedulers.fake.cluster import FakeCluster, Record, by_token
from oellm_autoexp.schedulers.fake.files import VERSION, Inputs, JobFiles
from oellm_autoexp.schedulers.fake.queue import FakeJob, partition_of, size_of
from oellm_autoexp.schedulers.fake.run import JobRequest
from oellm_autoexp.schedulers.fake.scenario import ClusterFault, Scenario, quiet
from oellm_autoexp.schedulers.slurm import states as slurm_states
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.store.effects import Effects

CLUSTER = "fake"
#: From so many jobs on the loop's turns are further apart than the scenario's pace.
MANY_JOBS = 200
_CHECKPOINTS = re.compile(r"^\s*export AUTOEXP_CHECKPOINT_DIR=(.*)$", re.MULTILINE)


@dataclass(kw_only=True)
class FakeSlurmClientConfig(ClusterLimits):
    """`scenario`: the file that says what happens (None: a quiet cluster on which every job works).

    `done_lines`: what every job writes when its work is done, beside the scenario's own line. `shortest_s`:
    the shortest time that the config waits for something to happen, in seconds; the loop turns at least
    twice as often, and jobs that no scenario describes live so much faster that they never are too slow.
    """

    scenario: str | None = None
    done_lines: list[str] = field(default_factory=list)
    shortest_s: float | None = None


class HorizonReached(StateError):
    """Something goes on for ever."""


class VirtualClock:
    """The time of a fake cluster, which passes while somebody waits for it."""

    def __init__(self, client: FakeSlurmClient) -> None:
        self._client = client

    def now(self) -> float:
        return self._client.played.now

    def monotonic(self) -> float:
        return self._client.played.now

    def wait(self, seconds: float) -> None:
        """Let so much time pass, and on to the next event within the scenario's `pace` and `stride`.

        Raises:
            HorizonReached: not everything has ended within the scenario's horizon.
        """
        self._client.pass_time(seconds)


@register
class FakeSlurmClient(SchedulerInterface):
    """Talks to a cluster that it plays itself; the next process finds it as the last one left it."""

    config: FakeSlurmClientConfig
    config_class = FakeSlurmClientConfig

    def __init__(self, config: FakeSlurmClientConfig, *, effects: Effects, state_dir: Path) -> None:
        super().__init__(config)
        self._path = state_dir / "cluster.jsonl"
        self._inputs = Inputs(self._path, effects)
        self._files = JobFiles(effects)
        self._played: FakeCluster | None = None
        #: How many records of the history have been played.
        self._known = 0
        #: What was told last of each job, by id, with what of the job it was made from.
        self._told: dict[str, tuple[tuple[object, ...], SchedulerRef, SchedulerFact]] = {}
        #: Which job a log is of.
        self._names: dict[str, str] = {}
        if config.scenario is not None:
            self.scenario = scenarios.load(Path(config.scenario), Scenario).turning(config.shortest_s)
        else:
            self.scenario = quiet(config.shortest_s)
        self.clock = VirtualClock(self)
        self.longest_s = self.scenario.stride
        self.awaited_at = math.inf
        #: How often each command was called.
        self.calls: Counter[str] = Counter()
        self.cluster = CLUSTER
        habits = self.scenario.cluster
        self.capabilities = Capabilities(
            max_array_size=habits.max_array_size,
            throttles=habits.max_array_size > 1,
            find_grace_s=2 * self.scenario.pace,
            gone_grace_s=2 * self.scenario.pace,
            poll_interval_s=self.scenario.pace,
            successors=True,
        )

    def render(self, request: ScriptRequest) -> str:
        return slurm_text.job_script(request)

    # ---- the cluster and its time

    def fit(self, nodes: int) -> None:
        """Have a cluster on which so many nodes can be had at once, if the scenario leaves that open."""
        habits = self.scenario.cluster
        self.scenario = self.scenario.of_size(nodes + max(1, math.ceil(nodes * habits.spare)))

    @property
    def played(self) -> FakeCluster:
        """The cluster as it is now, or, where another process plays it, as it was at the first look.

        Raises:
            StateError: its history is damaged.
            UsageError: it began with another scenario.
        """
        if self._played is None:
            self._played = self._resumed()
        return self._played

    def _resumed(self) -> FakeCluster:
        """The cluster that the history gives. Only what came last may not have been written to its end."""
        records = self._inputs.read()
        head = records[0] if records else None
        if head is not None:
            # Where the scenario leaves the number of nodes open, it was found when the jobs were planned.
            self.scenario = self.scenario.of_size(head["scenario"]["cluster"]["nodes"])
        cluster = FakeCluster(self.scenario, self._files, done_lines=self.config.done_lines)
        self._replay(cluster, records)
        return cluster

    def _replay(self, cluster: FakeCluster, records: Sequence[Mapping[str, Any]]) -> None:
        """Play what has not been played of a history."""
        if records and records[0]["scenario"] != self._head["scenario"]:
            hint = "remove that directory to begin anew, or give the scenario that it began with"
            what = "this rehearsal began with another scenario"
            raise UsageError(what, where=str(self._path.parent.parent), hint=hint)
        for record in records[max(1, self._known) :]:
            self._files.skip()
            cluster.advance(record["at"])
            _apply(cluster, record)
        self._known = len(records)

    def prepare(self) -> None:
        """Play the cluster from now on; whoever did before is kept from it.

        Raises:
            LeadershipLost: yet another process has begun to.
            StateError: the history is damaged, or cannot be written.
            UsageError: it began with another scenario.
        """
        cluster = self.played
        try:
            self._inputs.open(self._head)
        except OSError as error:
            raise StateError(error.strerror or str(error), where=str(error.filename or self._path)) from error
        self._replay(cluster, self._inputs.read())
        self._flush()

    @property
    def _head(self) -> dict[str, Any]:
        told = {**asdict(self.scenario), "done_lines": self.config.done_lines}
        return {"version": VERSION, "scenario": json.loads(json.dumps(told))}

    def _ask_for(self, **record: Any) -> None:
        """Put into the history what is about to be asked.

        Raises:
            LeadershipLost: another process plays the cluster by now.
            OSError: it cannot be written.
        """
        if not self._inputs.is_open:
            self.prepare()
        self._inputs.add({"at": self.played.now, **record})

    def pass_time(self, seconds: float) -> None:
        """Let time pass; see `VirtualClock.wait`."""
        cluster, scenario = self.played, self.scenario
        # With many jobs a turn of the loop costs more, and there are fewer of them.
        pace = scenario.pace * max(1.0, len(cluster.jobs) / MANY_JOBS)
        until = cluster.now + max(seconds, pace)
        if cluster.next_at > until:
            until = max(until, min(cluster.next_at, cluster.now + scenario.stride))
        if cluster.now < self.awaited_at < until:
            until = self.awaited_at
        if until - scenario.start > scenario.horizon:
            days = scenario.horizon / 86400
            what = f"the rehearsal has not come to an end within {days:g} days of virtual time"
            hint = "`status` shows what goes on for ever; `horizon` in the scenario allows more"
            raise HorizonReached(what, where=str(self._path.parent.parent), hint=hint)
        try:
            self._pass_words_on()
            self._ask_for(until=until)
        except OSError as error:
            raise StateError(error.strerror or str(error), where=str(error.filename or self._path)) from error
        cluster.advance(until)
        self._flush()

    def _pass_words_on(self) -> None:
        """Guards that wait to be told to begin look for the word; when they find it, the history keeps."""
        for directory in self.played.awaiting_word:
            withdrawn = self._files.withdrawn(directory)
            if withdrawn or guard_files.go_file(Path(directory)).exists():
                self._ask_for(word=directory, withdrawn=withdrawn)
                self.played.word(directory, withdrawn=withdrawn)

    def _flush(self) -> None:
        try:
            self._files.flush()
        except OSError:
            # The jobs' disk is full: what they write comes later, as from the cache of a file system.
            return

    def befall(self, fault: ClusterFault) -> None:
        """A fault beside those of the scenario, now."""
        self._ask_for(fault=asdict(fault))
        self.played.befall(fault)

    # ---- the socket

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        self.calls["sbatch"] += 1
        requests = [_request(task, submission, self.played.now) for task in submission.tasks]
        try:
            bound = {} if submission.at_once is None else {"at_once": submission.at_once}
            jobs = [asdict(request) for request in requests]
            self._ask_for(submit=submission.token, jobs=jobs, **bound)
        except OSError as error:
            raise SchedulerUnavailable(error.strerror or str(error), where=str(self._path)) from error
        taken = self.played.submit(submission.token, requests, submission.at_once)
        return [_ref(job) for job in taken]

    def identify(self, identity: str) -> SchedulerRef | None:
        self.calls["squeue"] += 1
        self.played.ask()
        job = self.played.jobs.get(identity)
        return None if job is None else replace(_ref(job), token="", task=0)

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        self.calls["squeue"] += 1
        self.played.ask()
        found = by_token(self.played.jobs, frozenset(tokens))
        missing = [token for token in tokens if token not in found]
        if missing and self.scenario.cluster.accounting:
            self.calls["sacct"] += 1
            past: dict[str, FakeJob] = {
                f"{number}": record.job
                for number, record in enumerate(self._records())
                if record.token in missing
            }
            found.update(by_token(past, frozenset(missing)))
        return {token: [_ref(job) for job in found[token]] for token in tokens if token in found}

    def _records(self) -> Iterable[Record]:
        for records in self.played.records.values():
            yield from (record for record in records if record.known_at <= self.played.now)

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        self.calls["squeue"] += 1
        self.played.ask()
        return _Answer(refs, self._fact)

    def _fact(self, ref: SchedulerRef) -> SchedulerFact:
        job = self.played.jobs.get(ref.id)
        if job is None:
            self._told.pop(ref.id, None)
            return self._accounted(ref)
        key = (job.state, job.reason, job.life, job.ended_at, job.submitted_at)
        told = self._told.get(ref.id)
        if told is None or told[0] != key:
            told = self._told[ref.id] = key, _ref(job), _fact(job)
        return told[2] if _means(ref, told[1]) else self._accounted(ref)

    def news(self) -> Iterable[str]:
        """The jobs whose state or log has changed since the last call."""
        grown, names = self._files.grown, self._names
        if not grown <= names.keys():
            names.update({job.request.log_path: job.request.name for job in self.played.jobs.values()})
        found = self.played.news.union(names[path] for path in grown if path in names)
        self.played.news.clear()
        grown.clear()
        return found

    def _accounted(self, ref: SchedulerRef) -> SchedulerFact:
        """What sacct says of a job that the controller has forgotten."""
        for record in self.played.records.get(ref.id, ()):
            if _means(ref, _ref(record.job)) and record.known_at <= self.played.now:
                return _fact(record.job)
        return SchedulerFact(state=SchedulerState.GONE)

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        self.calls["scancel"] += 1
        self.played.ask()
        known = [(ref, self.played.jobs.get(ref.id)) for ref in refs]
        ids = [ref.id for ref, job in known if job is not None and _means(ref, _ref(job))]
        if ids:
            self._ask_for(cancel=ids)
            self.played.cancel(ids)

    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        self.calls["scontrol"] += 1
        self.played.ask()
        if not changes.keys() <= {"time_limit_s", "exclude", "at_once"}:
            raise SubmitRejected(f"cannot change {changes}")
        refused = []
        for ref in refs:
            try:
                self._change(ref, changes)
            except SubmitRejected as error:
                refused.append(error)
        if len(refused) == len(refs):
            raise refused[0]

    def _change(self, ref: SchedulerRef, changes: Mapping[str, Any]) -> None:
        job = self.played.jobs.get(ref.id)
        if job is None or not _means(ref, _ref(job)):
            raise SubmitRejected(f"Invalid job id specified for job {ref.id}")
        if "time_limit_s" in changes:
            seconds = float(changes["time_limit_s"])
            self._ask_for(limit=ref.id, seconds=seconds)
            self.played.limit(ref.id, seconds)
        if "at_once" in changes:
            self._ask_for(throttle=ref.id, at_once=changes["at_once"])
            self.played.throttle(ref.id, changes["at_once"])
        if "exclude" in changes:
            nodes = sorted({*changes["exclude"], *job.request.own_exclude})
            self._ask_for(exclude=ref.id, nodes=nodes)
            self.played.exclude(ref.id, nodes)

    def eligible_nodes(self, script_path: str) -> frozenset[str] | None:
        try:
            options = slurm_text.options_of(Path(script_path).read_text(errors="replace"))
        except OSError:
            return None
        names, habits = list(self.played.nodes), self.scenario.cluster
        partition = partition_of(habits, options.get("partition", ""))
        own = expand(options.get("exclude", ""))
        return frozenset(names[: size_of(habits, partition)] if partition else ()).difference(own)


class _Answer(Mapping[SchedulerRef, SchedulerFact]):
    """What squeue and sacct say at one moment, put together for those that are looked at."""

    def __init__(self, refs: Sequence[SchedulerRef], fact: Callable[[SchedulerRef], SchedulerFact]) -> None:
        self._refs = refs
        self._fact = fact

    def __getitem__(self, ref: SchedulerRef) -> SchedulerFact:
        return self._fact(ref)

    def __iter__(self) -> Iterator[SchedulerRef]:
        return iter(dict.fromkeys(self._refs))

    def __len__(self) -> int:
        return len(dict.fromkeys(self._refs))


def _apply(cluster: FakeCluster, record: Mapping[str, Any]) -> None:
    """What was asked once, again; an answer that was an error then is one now."""
    try:
        if "until" in record:
            cluster.advance(record["until"])
        elif "submit" in record:
            requests = [_requested(each) for each in record["jobs"]]
            cluster.submit(record["submit"], requests, record.get("at_once"))
        elif "cancel" in record:
            cluster.cancel(record["cancel"])
        elif "limit" in record:
            cluster.limit(record["limit"], record["seconds"])
        elif "throttle" in record:
            cluster.throttle(record["throttle"], record["at_once"])
        elif "exclude" in record:
            cluster.exclude(record["exclude"], record["nodes"])
        elif "word" in record:
            cluster.word(record["word"], withdrawn=record["withdrawn"])
        elif "fault" in record:
            cluster.befall(ClusterFault(**record["fault"]))
    except (SchedulerUnavailable, SubmitRejected, SubmitDeferred, SubmitUnclear):
        return


def _requested(told: Mapping[str, Any]) -> JobRequest:
    lists = {key: tuple(told.get(key, ())) for key in ("exclude", "own_exclude")}
    return JobRequest(**{**told, **lists})


def _means(ref: SchedulerRef, of_job: SchedulerRef) -> bool:
    """Whether a reference is of this job; that of a foreign one has no token."""
    return ref == (of_job if ref.token else replace(of_job, token="", task=0))


def _ref(job: FakeJob) -> SchedulerRef:
    return SchedulerRef(
        id=job.id, cluster=CLUSTER, token=job.token, task=job.task, submitted_at=job.submitted_at
    )


def _fact(job: FakeJob) -> SchedulerFact:
    return slurm_states.fact(
        job.state,
        reason=job.reason,
        exit_code=job.exit_code,
        signal=job.signal,
        started_at=job.started_at,
        ended_at=job.ended_at,
        nodes=",".join(job.nodes),
        failed_nodes=",".join(job.failed_nodes),
        restart_count=job.restarts,
    )


def _request(task: Task, submission: Submission, now: float) -> JobRequest:
    """What sbatch makes of a task: the directives of its script, and what is given beside it.

    Raises:
        SubmitRejected: the script cannot be read, or an option cannot be understood.
    """
    try:
        script = Path(task.script_path).read_text(errors="replace")
    except OSError as error:
        what = f"sbatch: error: Unable to open file {task.script_path}"
        raise SubmitRejected(what) from error
    options = slurm_text.options_of(script)
    try:
        limit = float(task.time_limit_s) if task.time_limit_s is not None else None
        if limit is None and "time" in options:
            seconds = parse_time(options["time"])
            limit = None if seconds is None else float(seconds)
        nodes = int(options.get("nodes", "1").partition("-")[0])
        deadline = eligibility.deadline(options["deadline"], now) if "deadline" in options else None
    except ValueError as error:
        raise SubmitRejected(f"sbatch: error: {error}") from error
    own_exclude = expand(options.get("exclude", ""))
    found = _CHECKPOINTS.search(script)
    return JobRequest(
        name=task.name,
        log_path=task.log_path,
        attempt_dir=task.attempt_dir,
        attempt=int(task.environment.get("AUTOEXP_ATTEMPT", "1")),
        checkpoint_dir=shlex.split(found[1])[0] if found else "",
        nodes=max(1, nodes),
        time_limit=limit,
        partition=options.get("partition", ""),
        requeue=True if "requeue" in options else False if "no-requeue" in options else None,
        exclude=tuple(sorted({*submission.exclude, *own_exclude})),
        own_exclude=own_exclude,
        dependency=slurm_text.dependency(submission, options),
        after_dir=task.environment.get("AUTOEXP_AFTER_DIR", ""),
        after_wait=float(task.environment.get("AUTOEXP_AFTER_WAIT_S", "0")),
        after_zero=bool(task.environment.get("AUTOEXP_AFTER_ZERO")),
        after_end=task.environment.get("AUTOEXP_AFTER_END", "limit"),
        deadline=deadline,
    )
