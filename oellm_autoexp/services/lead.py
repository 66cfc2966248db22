"""Leading a session, and having commands carried out by whoever leads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compoconf import parse_config

from oellm_autoexp.config.sockets import SchedulerConfig, SchedulerInterface, made
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import NotLeader, StateError, UsageError
from oellm_autoexp.monitor.checks import InlineExecutor
from oellm_autoexp.monitor.loop import Clock, Loop, RealClock
from oellm_autoexp.monitor.wake import Alarm
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.schedulers.local import LocalScheduler, LocalSchedulerConfig
from oellm_autoexp.services import plugins
from oellm_autoexp.store import inbox, journal
from oellm_autoexp.store.effects import Effects

#: How long a command waits for a leader's answer.
ANSWER_S = 60.0


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
    leader, dead = journal.leader_alive(paths), None
    if leader is not None:
        follower.new_events()
    identity = inbox.drop(paths, effects, verb, args, now=clock.now())
    while True:
        if leader is None:
            try:
                return _led_command(paths, effects, identity, follower, dead)
            except NotLeader:
                # Another process was quicker, and takes the command from the inbox.
                leader = journal.leader_alive(paths)
        else:
            answer = _awaited(paths, clock, identity, follower, leader)
            if answer is not None:
                return answer.ok, answer.text
            leader, dead = None, leader


def _awaited(
    paths: SessionPaths, clock: Clock, identity: str, follower: journal.Follower, leader: journal.Leader
) -> ev.CommandAnswered | None:
    """A leader's answer to a command; None where it leads no more.

    Raises:
        StateError: it leads, and does not answer.
    """
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
    if answer is None and leads():
        raise StateError(
            f"the leader on host {leader.host} (pid {leader.pid}) did not answer within {ANSWER_S:.0f} s",
            where=str(paths.state_dir),
            hint="the command stays in its inbox and is carried out when it is able to",
        )
    return answer


def _led_command(
    paths: SessionPaths,
    effects: Effects,
    identity: str,
    follower: journal.Follower,
    dead: journal.Leader | None,
) -> tuple[bool, str]:
    """Lead for one tick, which takes the command from the inbox like any leader, and find its answer.

    Raises:
        NotLeader: another process leads.
        StateError: it could not be carried out.
    """
    loop = lead(paths, effects=effects, dead=dead)
    try:
        loop.tick()
    finally:
        loop.close()
    # It may also be that of a leader that came and went before.
    for event in follower.new_events():
        if isinstance(event, ev.CommandAnswered) and event.command == identity:
            return event.ok, event.text
    raise StateError("the command could not be carried out", where=str(paths.state_dir))
