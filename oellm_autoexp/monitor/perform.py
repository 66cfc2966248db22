"""From open intents to effects to outcomes. Nothing starts before its intent is on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from oellm_autoexp.config.sockets import (
    AppendText,
    Deed,
    EndJob,
    PostJson,
    RestartJob,
    RunCommand,
    SchedulerInterface,
    Submission,
    Task,
)
from oellm_autoexp.core import early, symbols
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import (
    Attempt,
    Job,
    JobState,
    Phase,
    Scalar,
    SchedulerFact,
    SchedulerRef,
    SchedulerState,
)
from oellm_autoexp.core.session import ActionState, OpenSubmission, Session
from oellm_autoexp.errors import (
    AutoexpError,
    GitOperationError,
    SchedulerUnavailable,
    SubmitDeferred,
    SubmitRejected,
    SubmitUnclear,
)
from oellm_autoexp.monitor.checks import Executor
from oellm_autoexp.monitor.exclusion import Exclusion
from oellm_autoexp.monitor.observe import fields_of
from oellm_autoexp.monitor.rules import RuleSet
from oellm_autoexp.monitor.sources import Sources
from oellm_autoexp.rendering import guard_files, shell
from oellm_autoexp.store.effects import Effects

#: Command actions that run at once.
MAX_ACTIONS = 4
#: How long a deferred submission waits, and an unanswered one.
DEFER_S = 30.0
#: How long an append waits after a full disk.
AGAIN_S = 5.0
#: Bytes that others may have appended while a text's outcome was not known.
APPENDED_SINCE = 1024 * 1024
#: Errors of a file system that pass: what could not be written is tried again.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})


@dataclass(slots=True)
class _Running:
    """A command action that runs on this machine."""

    deed: RunCommand
    ref: SchedulerRef
    run: int


class Performer:
    """Carries out what the journal says is outstanding."""

    def __init__(
        self,
        session: Session,
        scheduler: SchedulerInterface,
        local: SchedulerInterface,
        paths: SessionPaths,
        effects: Effects,
        executor: Executor,
        *,
        record: Callable[[ev.Event], None],
        commit: Callable[[], None],
        clock: Callable[[], float],
        rules_of: Callable[[str], RuleSet],
        exclusion: Exclusion,
        trouble: Callable[[str, str], None] = lambda _what, _text: None,
        rehearsal: bool = False,
    ) -> None:
        self._session = session
        self._scheduler = scheduler
        self._local = local
        self._paths = paths
        self._effects = effects
        self._executor = executor
        self._record = record
        self._commit = commit
        self._clock = clock
        self._rules_of = rules_of
        self._exclusion = exclusion
        self._trouble = trouble
        self._rehearsal = rehearsal
        self._sources = Sources(session, paths, effects, trouble)
        #: When an answered look-up first did not find a submission.
        self._not_found: dict[str, float] = {}
        #: How many tasks of an array at once the scheduler was last told of.
        self._throttles: dict[str, int] = {}
        #: The attempts that this process has told to begin.
        self._told: set[tuple[str, int]] = set()
        self._running: dict[str, _Running] = {}
        self._posts: dict[str, Future[int]] = {}
        #: Files that cannot be appended to, and until when nobody tries: texts stay in their order.
        self._full: dict[str, float] = {}

    def perform(self, deadline: float) -> None:
        """Everything outstanding, until `deadline`; the rest waits for the next tick."""
        self._cancels()
        self._let_go()
        self._recover()
        self._drop_successors()
        self._exclusion.update_queued(self._clock())
        self._throttle()
        # What is to run comes before what is to wait.
        for submission in sorted(self._session.submissions.values(), key=lambda each: bool(each.after)):
            if self._clock() >= deadline:
                break
            if submission.spawned_at is None:
                self._submit(submission)
        self._actions(deadline)

    @property
    def running(self) -> int:
        """How many actions are under way here."""
        return len(self._running) + len(self._posts)

    # ---- submissions

    def _submit(self, submission: OpenSubmission) -> None:
        token = submission.token
        if not self._rehearsal:
            try:
                self._sources.ready(submission.jobs, self._clock())
            except (GitOperationError, OSError) as error:
                self._refuse(token, f"their source is not there: {error}", permanent=False)
                return
        self._record(ev.SubmitSpawned(at=self._clock(), token=token))
        self._commit()
        tasks = [self._task(name, number) for name, number in submission.jobs]
        try:
            whole = Submission(
                token=token,
                tasks=tasks,
                exclude=submission.exclude,
                at_once=submission.at_once,
                after=submission.after,
                keeps_dependency=any(self._session.jobs[name].live is None for name, _ in submission.jobs),
            )
            refs = self._effects.call("submit", token, lambda: self._scheduler.submit(whole))
        except SubmitRejected as error:
            why, now = str(error), self._clock()
            if self._exclusion.forgive_for(submission, why, now):
                self._record(ev.SubmitRefused(at=now, token=token, reason=why, permanent=False, retry_at=now))
            else:
                self._refuse(token, why, permanent=True)
        except (SubmitDeferred, SchedulerUnavailable) as error:
            self._refuse(token, str(error), permanent=False)
        except SubmitUnclear:
            return
        else:
            self._trouble("submit", "")
            self._record(ev.SubmitAccepted(at=self._clock(), token=token, refs=tuple(refs)))

    def _throttle(self) -> None:
        """Tell the scheduler of bounds that have changed; a new leader may do so again, which is harmless."""
        for name in self._session.alive if self._session.throttles else ():
            attempt = self._session.jobs[name].attempts[-1]
            throttle = self._session.throttles.get(attempt.token)
            if throttle is None or attempt.ref is None:
                continue
            if self._throttles.get(attempt.token, throttle.first) == throttle.now:
                continue
            update = partial(self._scheduler.update, [attempt.ref], {"at_once": throttle.now})
            try:
                self._effects.call("update", attempt.ref.id, update)
            except SchedulerUnavailable:
                return
            except SubmitRejected as error:
                self._trouble("throttle", f"scheduler.max_jobs may not be kept to exactly: {error}")
            self._throttles[attempt.token] = throttle.now

    def _refuse(self, token: str, reason: str, *, permanent: bool) -> None:
        now = self._clock()
        submission = self._session.submissions[token]
        retry_at = now + DEFER_S
        if submission.after:
            self._trouble("successor", f"nothing waits in the queue behind what runs: {reason}")
        elif not permanent:
            self._trouble("submit", f"jobs wait to be submitted: {reason}")
        self._record(
            ev.SubmitRefused(at=now, token=token, reason=reason, permanent=permanent, retry_at=retry_at)
        )
        if permanent and not submission.after:
            why = f"the scheduler refused it: {reason}"
            for name, _ in submission.jobs:
                state = JobState.FAILED.value
                self._record(ev.JobEnded(at=now, job=name, state=state, mode="crash.config", reason=why))

    def _task(self, name: str, number: int) -> Task:
        job = self._session.jobs[name]
        attempt = job.numbered(number)
        environment = {"AUTOEXP_ATTEMPT": str(number)}
        if attempt.after:
            wait_s = getattr(self._scheduler.config, "successor_wait_seconds", 600.0)
            environment |= {"AUTOEXP_AFTER_WAIT_S": f"{wait_s:g}"}
            environment |= self._behind_parents(job, attempt) if job.live is None else self._behind_own(job)
        return Task(
            name=name,
            script_path=job.spec.script_path,
            log_path=attempt.log_path,
            attempt_dir=str(self._paths.attempt(name, number)),
            environment=environment,
            time_limit_s=attempt.time_limit_s,
            signal=job.spec.resources.signal,
        )

    def _behind_own(self, job: Job) -> dict[str, str]:
        """What the guard of an attempt is told that waits behind the live one of its job."""
        rules = self._rules_of(job.spec.rules).lifecycle
        return {
            "AUTOEXP_AFTER_DIR": str(self._paths.attempt(job.spec.name, job.attempts[-1].number)),
            # Where exit 0 alone is no success, only the log tells whether there is more to do.
            "AUTOEXP_AFTER_ZERO": "" if rules.success_needs_signal else "1",
        }

    def _behind_parents(self, job: Job, attempt: Attempt) -> dict[str, str]:
        """What the guard of an attempt is told that waits behind those of its job's parents."""
        found, now = early.attempts_before(self._session, job, attempt), self._clock()
        # What may end the job before it begins, only a loop looks at.
        certain = not self._rules_of(job.spec.rules).gated and all(
            early.exit_tells(parent, self._rules_of(parent.spec.rules).lifecycle, now) for parent, _ in found
        )
        places = [str(self._paths.attempt(parent.spec.name, each.number)) for parent, each in found]
        return {
            "AUTOEXP_AFTER_DIR": "\n".join(places),
            "AUTOEXP_AFTER_END": "success" if certain else "unknown",
        }

    def _recover(self) -> None:
        """Submissions without an outcome (a crash, an unclear answer) are looked up, never repeated."""
        tokens = [token for token, open_ in self._session.submissions.items() if open_.spawned_at is not None]
        if not tokens:
            return
        try:
            found = self._scheduler.find(tokens)
        except SchedulerUnavailable:
            return
        now = self._clock()
        for token in tokens:
            refs = found.get(token, ())
            since = self._not_found.setdefault(token, now)
            if refs or now - since >= self._scheduler.capabilities.find_grace_s:
                try:
                    self._settle(token, refs, now)
                except (OSError, ValueError) as error:
                    self._trouble("submit", f"whether jobs were submitted is not known: {error}")

    def _settle(self, token: str, refs: Sequence[SchedulerRef], now: float) -> None:
        """Conclude from an answered look-up. What it did not find has run and is forgotten, or never will.

        Raises:
            OSError, ValueError: it cannot be told.
        """
        known = {ref.task: ref for ref in refs}
        submission = self._session.submissions[token]
        for task, (name, number) in enumerate(submission.jobs):
            if task not in known:
                owner = self._withdraw(self._paths.attempt(name, number))
                if owner is not None:
                    known[task] = SchedulerRef(
                        id=owner.scheduler_id,
                        cluster=self._scheduler.cluster,
                        token=token,
                        task=task,
                        submitted_at=submission.spawned_at or submission.requested_at,
                    )
        del self._not_found[token]
        if known:
            self._record(ev.SubmitAccepted(at=now, token=token, refs=tuple(known.values()), adopted=True))
            return
        reason = "the scheduler never had it"
        self._record(
            ev.SubmitRefused(
                at=now, token=token, reason=reason, permanent=False, retry_at=now, withdrawn=True
            )
        )

    def _withdraw(self, attempt_dir: Path) -> guard_files.Claim | None:
        """Take the claim of an attempt, so that it never runs; whoever had it before.

        A submission may come to be long after it was looked for: by a frozen controller, or by a leader that
        was stopped in the middle of it.
        """
        self._effects.mkdir(attempt_dir)
        mine = guard_files.withdrawal(socket.gethostname())
        if self._effects.write_new(guard_files.claim_file(attempt_dir), mine):
            return None
        owner = guard_files.read_claim(attempt_dir)
        if owner is None:
            raise ValueError(f"{guard_files.claim_file(attempt_dir)} cannot be read")
        return None if owner.scheduler_id == guard_files.WITHDRAWN else owner

    # ---- what waits behind others

    def _let_go(self) -> None:
        """Tell attempts that were queued behind others to begin. Told again, it means the same."""
        for name in self._session.alive:
            job = self._session.jobs[name]
            attempt = job.attempts[-1]
            key = name, attempt.number
            if not attempt.after or attempt.ref is None or key in self._told:
                continue
            if attempt.cancel is not None or job.end_wish is not None:
                continue
            directory = self._paths.attempt(name, attempt.number)
            try:
                self._effects.mkdir(directory)
                self._effects.write(guard_files.go_file(directory), b"go\n")
            except OSError as error:
                self._trouble("go", f"attempt {attempt.number} of {name} is not told to begin: {error}")
            else:
                self._told.add(key)

    def _drop_successors(self) -> None:
        """Take the claims of those that are not to begin, and then their places in the queue, in one call."""
        settled: list[tuple[str, Attempt]] = []
        for name in list(self._session.queued):
            waits = self._session.jobs[name].successor
            if waits is None or waits.cancel is None or waits.phase is Phase.RUNNING:
                continue
            submission = self._session.submissions.get(waits.token)
            if submission is not None:
                # Without an answer the look-up by its token decides.
                if submission.spawned_at is None:
                    now, why = self._clock(), waits.cancel.why
                    self._record(
                        ev.SubmitRefused(at=now, token=waits.token, reason=why, permanent=False, retry_at=now)
                    )
                continue
            try:
                owner = self._withdraw(self._paths.attempt(name, waits.number))
            except (OSError, ValueError) as error:
                self._trouble("successor", f"whether attempt {waits.number} of {name} runs: {error}")
                continue
            if owner is None:
                settled.append((name, waits))
            else:
                now = self._clock()
                self._record(ev.SuccessorSettled(at=now, job=name, attempt=waits.number, begun=True))
        refs = [waits.ref for _, waits in settled if waits.ref is not None]
        try:
            if refs:
                self._effects.call("cancel", refs[0].id, lambda: self._scheduler.cancel(refs))
        except SchedulerUnavailable:
            return
        for name, waits in settled:
            self._record(ev.SuccessorSettled(at=self._clock(), job=name, attempt=waits.number))

    # ---- cancels

    def _cancels(self) -> None:
        """One call for all cancels that have not been sent since they were asked for."""
        wanted = []
        for name in self._session.alive:
            attempt = self._session.jobs[name].attempts[-1]
            if attempt.cancel is None or attempt.ref is None:
                continue
            if attempt.cancel.sent_at is None or attempt.cancel.sent_at < attempt.cancel.at:
                wanted.append((name, attempt.number, attempt.ref))
        if not wanted:
            return
        refs = [ref for _, _, ref in wanted]
        try:
            self._effects.call("cancel", refs[0].id, lambda: self._scheduler.cancel(refs))
        except SchedulerUnavailable:
            return
        for name, number, _ in wanted:
            self._record(ev.CancelSent(at=self._clock(), job=name, attempt=number))

    # ---- actions

    def _actions(self, deadline: float) -> None:
        self._finish_running()
        self._finish_posts()
        for key in list(self._session.open_actions):
            if self._clock() >= deadline:
                return
            if key not in self._running and key not in self._posts:
                self._start(key, self._session.actions[key])

    def _start(self, key: str, state: ActionState) -> None:
        try:
            deed = self.deed(state.request)
        except (KeyError, AutoexpError, ValueError) as error:
            missing = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
            self._end(key, ok=False, reason=f"cannot be carried out: {missing}")
            return
        if self._rehearsal and isinstance(deed, (RunCommand, AppendText, PostJson)):
            self._end(key, ok=True, reason="played")
        elif isinstance(deed, RunCommand):
            if len(self._running) < MAX_ACTIONS:
                self._run(key, state, deed)
        elif isinstance(deed, AppendText):
            self._append(key, state, deed)
        elif isinstance(deed, PostJson):
            self._spawned(key, state.runs + 1)
            self._posts[key] = self._executor.submit(lambda: post(deed, self._effects))
        else:
            self._change_job(key, state.request, deed)

    def deed(self, request: ev.ActionRequested) -> Deed:
        """What an action is to do for an occurrence.

        Raises:
            KeyError: a field that its signal did not bring.
            ConfigError: the rules no longer parse.
        """
        action = self._rules_of(request.rules).actions[request.action]
        opened = self._session.opened
        fields: dict[str, Scalar] = {"signal": request.rule, "job": "", "state": "", "reason": ""}
        if request.job:
            fields.update(fields_of(self._session.jobs[request.job], request.attempt))
        if opened is not None:
            fields.update(project=opened.project, session=str(self._paths.state_dir))
        return action.deed({**fields, **request.fields})

    def _run(self, key: str, state: ActionState, deed: RunCommand) -> None:
        """A local attempt of its own, found again by a token after a crash of this program."""
        run = max(1, state.runs)
        if state.runs:
            try:
                found = self._local.find([_token(key, run)])
            except SchedulerUnavailable as error:
                # It may run on the host of an earlier leader: it is neither repeated nor given up.
                self._waits(key, str(error))
                return
            if found:
                self._running[key] = _Running(deed, found[_token(key, run)][0], run)
                return
        self._submit_run(key, deed, run, known=bool(state.runs))

    def _submit_run(self, key: str, deed: RunCommand, run: int, *, known: bool = False) -> None:
        directory = self._paths.action(key, run)
        script = directory / "action.sh"
        try:
            self._effects.mkdir(directory)
            self._effects.write(script, _script(deed, self._paths.guard).encode())
            if not known:
                self._spawned(key, run)
            task = Task(
                name=self._session.actions[key].request.action,
                script_path=str(script),
                log_path=str(directory / "log"),
                attempt_dir=str(directory),
                time_limit_s=None if deed.timeout_s is None else max(1, round(deed.timeout_s)),
            )
            refs = self._local.submit(Submission(token=_token(key, run), tasks=[task]))
        except (OSError, SubmitDeferred, SubmitUnclear, SchedulerUnavailable) as error:
            # Full disk, no process to be had: it stays open and is tried again.
            self._waits(key, str(error))
            return
        self._running[key] = _Running(deed, refs[0], run)

    def _finish_running(self) -> None:
        for key, running in list(self._running.items()):
            try:
                # One by one: what ran on another host says nothing, and must not silence the others.
                fact = self._local.poll([running.ref])[running.ref]
            except SchedulerUnavailable as error:
                self._waits(key, str(error))
                continue
            if not fact.state.ended:
                continue
            del self._running[key]
            self._conclude(key, running, fact)

    def _conclude(self, key: str, running: _Running, fact: SchedulerFact) -> None:
        log = self._paths.action(key, running.run) / "log"
        if fact.state is SchedulerState.COMPLETED:
            self._end(key, ok=True, exit_code=0)
        elif fact.state in (SchedulerState.GONE, SchedulerState.NODE_FAIL):
            if running.deed.on_interrupt == "retry":
                self._submit_run(key, running.deed, running.run + 1)
            else:
                self._end(key, ok=False, reason="it was interrupted")
        elif fact.state is SchedulerState.TIMEOUT:
            self._end(key, ok=False, reason=f"ended after {running.deed.timeout_s:g} s, see {log}")
        elif running.run <= running.deed.retries:
            self._submit_run(key, running.deed, running.run + 1)
        else:
            reason = f"exit {fact.exit_code}, see {log}"
            self._end(key, ok=False, reason=reason, exit_code=fact.exit_code)

    def _append(self, key: str, state: ActionState, deed: AppendText) -> None:
        path, data = Path(deed.path), symbols.shown(deed.text).encode()
        if self._clock() < self._full.get(deed.path, 0.0):
            return
        try:
            there = 0 if state.position is None else _appended(path, state.position, data)
            if there == 0:
                position = path.stat().st_size if path.exists() else 0
                self._record(
                    ev.ActionSpawned(at=self._clock(), key=key, run=state.runs + 1, position=position)
                )
                self._commit()
            if there < len(data):
                self._effects.append(path, data[there:])
        except OSError as error:
            why = f"{path}: {error.strerror}"
            if error.errno in _PASSING:
                self._full[deed.path] = self._clock() + AGAIN_S
                self._waits(key, why)
            else:
                self._end(key, ok=False, reason=why)
        else:
            self._end(key, ok=True)

    def _finish_posts(self) -> None:
        for key, future in list(self._posts.items()):
            if not future.done():
                continue
            del self._posts[key]
            try:
                status = future.result()
            except (OSError, ValueError) as error:
                self._end(key, ok=False, reason=str(error))
            else:
                self._end(key, ok=status < 400, reason=f"HTTP {status}")

    def _change_job(self, key: str, request: ev.ActionRequested, deed: EndJob | RestartJob) -> None:
        now, why = self._clock(), symbols.shown(deed.why)
        job = self._session.jobs.get(request.job)
        if job is not None and not job.state.ended:
            if isinstance(deed, EndJob):
                self._record(
                    ev.EndWished(
                        at=now,
                        job=request.job,
                        why=why,
                        by=request.action,
                        mode=deed.mode,
                    )
                )
            elif job.live is not None and job.live.number == request.attempt and job.live.cancel is None:
                self._record(
                    ev.CancelRequested(
                        at=now,
                        job=request.job,
                        attempt=request.attempt,
                        why=why,
                        by=request.action,
                        mode=deed.mode,
                    )
                )
        self._end(key, ok=True)

    def _waits(self, key: str, why: str) -> None:
        """Say why an action is not done yet; it stays open."""
        request = self._session.actions[key].request
        of = f" of {request.job}" if request.job else ""
        self._trouble(f"action {key}", f"the action {request.action}{of} waits: {why}")

    def _spawned(self, key: str, run: int) -> None:
        self._record(ev.ActionSpawned(at=self._clock(), key=key, run=run))
        self._commit()

    def _end(self, key: str, *, ok: bool, reason: str = "", exit_code: int | None = None) -> None:
        self._trouble(f"action {key}", "")
        self._record(ev.ActionEnded(at=self._clock(), key=key, ok=ok, reason=reason, exit_code=exit_code))


def _token(key: str, run: int) -> str:
    return hashlib.sha256(f"{key}#{run}".encode()).hexdigest()[:16]


def _script(deed: RunCommand, guard: Path) -> str:
    """The action as a script under the guard, like any attempt."""
    argv = ["/bin/sh", "-c", deed.command] if isinstance(deed.command, str) else list(deed.command)
    inner = shell.exports(deed.environment)
    if deed.cwd:
        inner.append(f"cd {shell.quote(deed.cwd)}")
    lines = [
        "#!/bin/bash",
        'if [ "${1:-}" != --claimed ]; then',
        f'  exec python3 -I {shlex.quote(str(guard))} -- bash "$0" --claimed',
        "fi",
        "set -e",
        *inner,
        f"exec {shell.join(argv)}",
    ]
    return "\n".join(lines) + "\n"


def _appended(path: Path, position: int, data: bytes) -> int:
    """How many of the bytes stand in the file already, from `position` on where an earlier try began.

    All of them, perhaps behind what others have appended since; or, at the file's end, the first ones.
    """
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(position)
        found = file.read(len(data) + APPENDED_SINCE)
    if data in found:
        return len(data)
    return len(found) if data.startswith(found) else 0


def post(deed: PostJson, effects: Effects) -> int:
    """Send it; the HTTP status.

    Raises:
        OSError: nobody answered.
    """
    if not deed.url.startswith(("http://", "https://")):
        raise ValueError(f"{symbols.shown(deed.url)} is not an http address")
    url = symbols.expanded(deed.url, os.environ)
    body = json.dumps({str(key): _sent(value) for key, value in deed.body.items()}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310

    def call() -> int:
        try:
            with urllib.request.urlopen(request, timeout=deed.timeout_s) as answer:  # noqa: S310
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return error.code

    return effects.call("post", symbols.shown(deed.url), call)


def _sent(value: Any) -> Any:
    """A value as JSON takes it: it has no word for what is no finite number, which is sent as text."""
    if isinstance(value, str):
        return symbols.expanded(value, os.environ)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
