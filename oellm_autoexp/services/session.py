"""Sessions as a person names them, and what is done to them: leading, commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compoconf import parse_config

from oellm_autoexp.config.sockets import SchedulerConfig, SchedulerInterface, made
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.goodput import Ledger
from oellm_autoexp.core.layout import STATE_DIR_NAME, SessionPaths
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import NotLeader, StateError, UsageError, did_you_mean
from oellm_autoexp.monitor.checks import InlineExecutor
from oellm_autoexp.monitor.loop import Clock, Loop, RealClock
from oellm_autoexp.monitor.wake import Alarm
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.schedulers.local import LocalScheduler, LocalSchedulerConfig
from oellm_autoexp.services import plugins
from oellm_autoexp.store import inbox, journal
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry

#: How long a command waits for a leader's answer.
ANSWER_S = 60.0


def replay(paths: SessionPaths) -> Session:
    """The state of a session, from its journal alone.

    Raises:
        StateError: the journal is damaged.
    """
    session = Session()
    for event in journal.read(paths).events:
        session.apply(event)
    return session


@dataclass(frozen=True, kw_only=True)
class History:
    """A session, how it came about, and where its time went."""

    session: Session
    events: Sequence[ev.Event]
    ledger: Ledger


def history(paths: SessionPaths) -> History:
    """Everything that the journal of a session tells.

    Raises:
        StateError: the journal is damaged.
    """
    found = History(session=Session(), events=journal.read(paths).events, ledger=Ledger())
    for event in found.events:
        found.session.apply(event)
        found.ledger.apply(event)
    return found


def leader_of(paths: SessionPaths) -> journal.Leader | None:
    """Who leads a session, as far as can be seen from here.

    Raises:
        StateError: the journal is damaged or unreadable.
    """
    return journal.leader_alive(paths)


def check_project(session: Session, project: str, paths: SessionPaths) -> None:
    """Refuse the state directory of another project.

    Raises:
        UsageError: names the project that it belongs to.
    """
    if session.opened is not None and session.opened.project != project:
        what = f"it belongs to project {session.opened.project!r}"
        hint = f"give {project!r} another base_output_dir or state_dir"
        raise UsageError(what, where=str(paths.state_dir), hint=hint)


# ---------------------------------------------------------------- names


def known_sessions() -> list[Entry]:
    """The sessions of this user, oldest first."""
    return Registry().list_all()


def locate(reference: str | None, load: Callable[[str], Path]) -> SessionPaths:
    """The session that a person means: a state directory, an output directory, a name, or a config.

    Without a reference it is the one below `./outputs`, or the only one there is.

    Raises:
        UsageError: there is none, or it cannot be told which.
    """
    known = [entry for entry in known_sessions() if not entry.gone]
    names = [entry.name for entry in known]
    if reference is None:
        here = Path("outputs") / STATE_DIR_NAME
        if (here / "monitor").is_dir():
            return SessionPaths(here.resolve())
        if len(known) == 1:
            return SessionPaths(Path(known[0].state_dir))
        raise UsageError("which session?", hint=f"name one: {', '.join(names) or 'none is known'}")
    found = known_as(reference)
    if found is not None:
        return found
    path, named = Path(reference), Registry().find(reference)
    if named is not None and path.suffix not in (".yaml", ".yml"):
        hint = "a session in another place is named by its directory"
        raise UsageError(f"the session {reference!r} is gone", where=named.state_dir, hint=hint)
    if path.suffix in (".yaml", ".yml"):
        paths = SessionPaths(load(reference))
        if paths.journal.is_dir():
            return paths
        raise UsageError("nothing has been submitted from this config yet", where=reference)
    hint = did_you_mean(reference, names) or "`oellm-autoexp sessions` lists them"
    raise UsageError(f"there is no session {reference!r}", hint=hint)


def known_as(reference: str) -> SessionPaths | None:
    """The session that a state directory, an output directory or a name means; None: there is none.

    Raises:
        UsageError: several sessions have the name.
    """
    for candidate in (Path(reference), Path(reference) / STATE_DIR_NAME):
        paths = SessionPaths(candidate.resolve())
        if paths.monitor.is_dir() or paths.collection.is_file():
            return paths
    named = Registry().find(reference)
    return None if named is None or named.gone else SessionPaths(Path(named.state_dir))


def chosen(session: Session, wanted: Sequence[str]) -> list[Job]:
    """The jobs that words mean: a name, a unique prefix, a glob, key=value, or a scheduler id; all for none.

    Raises:
        UsageError: a word that means no job, or a prefix that means several.
    """
    if not wanted:
        return list(session.jobs.values())
    found: dict[str, Job] = {}
    for word in wanted:
        jobs = _meant(session, word)
        if not jobs:
            hint = did_you_mean(word, list(session.jobs)) or "`oellm-autoexp status` lists the jobs"
            raise UsageError(f"no job is meant by {word!r}", hint=hint)
        found.update({job.spec.name: job for job in jobs})
    return list(found.values())


def _meant(session: Session, word: str) -> list[Job]:
    if word in session.jobs:
        return [session.jobs[word]]
    jobs = list(session.jobs.values())
    if "=" in word:
        key, _, value = word.partition("=")
        same = [job for job in jobs if str(job.spec.parameters.get(key)) == value]
        if same:
            return same
    by_id = [job for job in jobs if any(a.ref is not None and a.ref.id == word for a in job.attempts)]
    if by_id:
        return by_id
    if any(char in word for char in "*?["):
        return [job for job in jobs if fnmatchcase(job.spec.name, word)]
    prefixed = [job for job in jobs if job.spec.name.startswith(word)]
    if len(prefixed) > 1:
        raise UsageError(
            f"{word!r} begins the names of {len(prefixed)} jobs", hint=f"write {word}* for all of them"
        )
    return prefixed


# ---------------------------------------------------------------- leading


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told what while a session is led."""

    on_tick: Callable[[Session], None] = lambda _session: None
    on_event: Callable[[ev.Event], None] = lambda _event: None
    warn: Callable[[str], None] = lambda _text: None


def scheduler_of(config: Mapping[str, Any], paths: SessionPaths, effects: Effects) -> SchedulerInterface:
    """The scheduler of a journaled config."""
    plugins.load_builtin()

    parsed = parse_config(_Scheduler, {"entry": dict(config)}, strict_types=True)
    return made(SchedulerInterface, parsed.entry, effects=effects, state_dir=paths.scheduler)


@dataclass(kw_only=True)
class _Scheduler:
    entry: SchedulerConfig


def clock_of(scheduler: SchedulerInterface) -> Clock:
    """The time in which the jobs of a scheduler live."""
    return scheduler.clock if isinstance(scheduler, FakeSlurmClient) else RealClock()


def lead(
    paths: SessionPaths,
    scheduler: SchedulerInterface | None = None,
    *,
    effects: Effects | None = None,
    clock: Clock | None = None,
    watch: Watch | None = None,
    dead: journal.Leader | None = None,
) -> Loop:
    """Take the lead of a session; `dead` is a leader on another host that is known not to live.

    Raises:
        NotLeader: another process leads it.
    """
    effects, watch = effects or Effects.of(paths.state_dir), watch or Watch()
    # Who leads is a matter of this machine's time, whatever time the jobs live in.
    real = RealClock()
    written, history = journal.Journal.lead(
        paths,
        effects,
        now=real.now(),
        monotonic=real.monotonic,
        wait=real.wait,
        on_wait=lambda leader: watch.warn(_waiting_for(leader)),
        dead=dead,
    )
    session = Session()
    for event in history.events:
        session.apply(event)
    if scheduler is None:
        if session.opened is None:
            raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
        source = session.opened.source
        plugins.load([str(item) for item in source.get("plugins", [])], Path(source.get("directory", ".")))
        scheduler = scheduler_of(session.opened.scheduler, paths, effects)
    scheduler.prepare()
    clock = clock or clock_of(scheduler)
    if isinstance(scheduler, FakeSlurmClient):
        return Loop(
            session,
            written,
            scheduler,
            scheduler,
            paths,
            effects,
            clock,
            InlineExecutor(),
            rehearsal=scheduler,
            listener=watch.on_event,
            warn=watch.warn,
        )
    local = LocalScheduler(
        LocalSchedulerConfig(), effects=effects, state_dir=paths.state_dir / "actions" / "scheduler"
    )
    return Loop(
        session,
        written,
        scheduler,
        local,
        paths,
        effects,
        clock,
        ThreadPoolExecutor(max_workers=4),
        alarm=Alarm(clock.wait),
        listener=watch.on_event,
        warn=watch.warn,
    )


def _waiting_for(leader: journal.Leader) -> str:
    return (
        f"a loop on host {leader.host} (pid {leader.pid}) led this session last, and cannot be seen here; "
        f"waiting up to {journal.DEAD_AFTER_S:.0f} s for a sign of life"
    )


def command(paths: SessionPaths, verb: str, args: Mapping[str, Any]) -> tuple[bool, str]:
    """Have a command carried out: by the leader, or by leading for one tick.

    A leader on another host that shows no sign of life meanwhile is dead, and is taken over from.

    Raises:
        StateError: a leader exists and does not answer.
    """
    clock, effects = RealClock(), Effects.of(paths.state_dir)
    follower = journal.Follower(paths)
    leader = journal.leader_alive(paths)
    if leader is not None:
        follower.new_events()
    identity = inbox.drop(paths, effects, verb, args, now=clock.now())
    if leader is None:
        try:
            return _led_command(paths, effects, identity)
        except NotLeader:
            # Another process was quicker, and takes the command from the inbox.
            leader = journal.leader_alive(paths)
            if leader is None:
                raise
    vigil = journal.Vigil(paths, clock.monotonic) if leader.alive_here() is None else None

    def leads() -> bool:
        found = journal.leader_alive(paths)
        return found is not None and not (found == leader and vigil is not None and vigil.dead)

    answer = inbox.await_answer(
        identity,
        follower,
        monotonic=clock.monotonic,
        wait=clock.wait,
        timeout_s=ANSWER_S if vigil is None else ANSWER_S + journal.DEAD_AFTER_S,
        still_led=leads,
    )
    if answer is not None:
        return answer.ok, answer.text
    if leads():
        raise StateError(
            f"the leader on host {leader.host} (pid {leader.pid}) did not answer within {ANSWER_S:.0f} s",
            where=str(paths.state_dir),
            hint="the command stays in its inbox and is carried out when it is able to",
        )
    return _led_command(paths, effects, identity, dead=leader)


def _led_command(
    paths: SessionPaths, effects: Effects, identity: str, dead: journal.Leader | None = None
) -> tuple[bool, str]:
    """Lead for one tick, which takes the command from the inbox like any leader, and find its answer."""
    answers: list[ev.CommandAnswered] = []

    def hear(event: ev.Event) -> None:
        if isinstance(event, ev.CommandAnswered) and event.command == identity:
            answers.append(event)

    loop = lead(paths, effects=effects, watch=Watch(on_event=hear), dead=dead)
    try:
        loop.tick()
    finally:
        loop.close()
    if not answers:
        raise StateError("the command could not be carried out", where=str(paths.state_dir))
    return answers[0].ok, answers[0].text


def exit_code(session: Session) -> int:
    """0 when every job succeeded, 1 when some did not."""
    return 0 if all(job.state is JobState.SUCCEEDED for job in session.jobs.values()) else 1
