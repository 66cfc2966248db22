"""The loop where people live: started in tmux or behind the terminal, found, stopped.

Nothing is remembered here: who leads is what the journal says, the name of a tmux session follows from the
state directory, and that nobody is to lead is a command that the journal has answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import StateError
from oellm_autoexp.monitor.loop import Loop, RealClock
from oellm_autoexp.services import inherit
from oellm_autoexp.services.lead import ANSWER_S, command
from oellm_autoexp.services.session import replay
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Child, Effects, Ran

#: How long a loop in the background may take to begin, and how often it is looked for.
START_S, LOOK_S = 60.0, 0.05
#: tmux answers at once or not at all.
TMUX_S = 10.0

State = Literal["running", "silent", "stopped", "ended", "down"]


def name_of(paths: SessionPaths, session: Session) -> str:
    """What the loop of a session is called by tmux, systemd and Slurm: the project's name made legal for all.

    A few digits tell two sessions of one project apart; `tmux attach -t PROJECT` needs none.
    """
    project = session.opened.project if session.opened is not None else ""
    legal = re.sub(r"[^A-Za-z0-9_-]+", "-", project).strip("-")[:100] or "autoexp"
    return f"{legal}-{hashlib.sha256(os.fsencode(paths.state_dir)).hexdigest()[:6]}"


def program(*words: str) -> list[str]:
    """This program as an argv that works without its directory on PATH."""
    return [sys.executable, "-m", "oellm_autoexp.cli.main", *words]


# ---------------------------------------------------------------- how it stands


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Who leads a session. `silent`: a leader on another host that may be dead. Ages are seconds.

    A leader's own clock dates its heartbeat: on another host an age is as good as both clocks.
    """

    state: State
    leader: journal.Leader | None = None
    age_s: float | None = None
    heartbeat_age_s: float | None = None
    #: The tmux session that can be attached to.
    tmux: str = ""

    @property
    def runs(self) -> bool:
        return self.state == "running"


def standing(paths: SessionPaths, session: Session, now: float) -> Standing:
    """How the loop of a session stands, as far as it can be seen from here.

    Raises:
        StateError: the journal is damaged or unreadable.
    """
    leader = journal.leader_alive(paths)
    if leader is None:
        rests = resting(session)
        return Standing(state=rests or "down")
    beat = journal.heartbeat(paths)
    beat_s = max(0.0, now - beat.at) if beat is not None and beat.pid == leader.pid else None
    age_s = max(0.0, now - leader.started_at)
    here = leader.alive_here()
    last_s = beat_s if beat_s is not None else age_s
    name = name_of(paths, session)
    return Standing(
        state="running" if here or last_s < journal.DEAD_AFTER_S else "silent",
        leader=leader,
        age_s=age_s,
        heartbeat_age_s=beat_s,
        tmux=name if here and has_tmux(name, Effects()) else "",
    )


def resting(session: Session) -> Literal["stopped", "ended"] | None:
    """Why nobody needs to lead a session; None: somebody should."""
    if session.stopped:
        return "stopped"
    return "ended" if session.ended is not None else None


# ---------------------------------------------------------------- start


class Begun(Protocol):
    """A loop that was started, and that may end before it leads."""

    def ended(self) -> str:
        """How it has ended; "" while it has not."""
        ...

    def leave(self) -> None:
        """It goes on without us."""
        ...


class _Process:
    def __init__(self, child: Child) -> None:
        self._child = child

    def ended(self) -> str:
        code = self._child.poll()
        return "" if code is None else f"ended with exit code {code}"

    def leave(self) -> None:
        self._child.returncode = 0  # Not waited for: it outlives this process.


@dataclass(frozen=True)
class _Pane:
    id: str
    effects: Effects

    def ended(self) -> str:
        found = _tmux(self.effects, "list-panes", "-a", "-F", "#{pane_id} #{pane_dead}")
        return "" if f"{self.id} 0" in found.output.splitlines() else "ended"

    def leave(self) -> None:
        pass


def behind(paths: SessionPaths, session: Session) -> Begun:  # noqa: ARG001 - as `in_tmux`
    """A process of its own, in a session of its own (setsid(2)), that writes to the daemon's log."""
    argv = program("daemon", "run", str(paths.state_dir))
    effects = Effects.of(paths.state_dir)
    return _Process(effects.spawn(argv, env=os.environ, output=paths.daemon_log, private=True))


def in_tmux(paths: SessionPaths, session: Session) -> Begun:
    """A tmux session, or a window of the one that is there, where tmux is; else `behind`.

    What the loop says is seen there and stands in the daemon's log.

    Raises:
        StateError: tmux is there and does not do it.
    """
    if shutil.which("tmux") is None:
        return behind(paths, session)
    effects = Effects.of(paths.state_dir)
    # With our mode and group; tee(1) would make it with those of the umask.
    effects.append(paths.daemon_log, b"", private=True)
    loop = shlex.join(program("daemon", "run", str(paths.state_dir)))
    text = f"{loop} 2>&1 | tee -ia {shlex.quote(str(paths.daemon_log))}"
    argv = [sys.executable, "-I", inherit.__file__, str(os.getpid()), "sh", "-c", text]
    name = name_of(paths, session)
    new = ("new-session", "-d", "-s", name, "-x", "160", "-y", "48")
    window = ("new-window", "-d", "-t", f"={name}:", "-n", "loop")
    for place in (window, new, window) if has_tmux(name, effects) else (new, window):
        done = _tmux(effects, *place, "-P", "-F", "#{pane_id}", *argv)
        if done.status == 0:
            return _Pane(done.output.strip(), effects)
    why = done.errors.strip() or f"no answer within {TMUX_S:.0f} s"
    hint = f"oellm-autoexp submit CONFIG --detach needs no tmux; or look: tmux attach -t {name}"
    raise StateError(f"tmux does not start the loop: {why}", where=str(paths.state_dir), hint=hint)


def has_tmux(name: str, effects: Effects) -> bool:
    """Whether there is a tmux session of this name."""
    return shutil.which("tmux") is not None and _tmux(effects, "has-session", "-t", f"={name}").status == 0


def _tmux(effects: Effects, *words: str) -> Ran:
    try:
        return effects.run(["tmux", *words], env=os.environ, cwd=None, timeout_s=TMUX_S)
    except OSError as error:
        return Ran(None, "", error.strerror or str(error))


def hand_over(
    paths: SessionPaths, loop: Loop | None, begin: Callable[[SessionPaths, Session], Begun] = behind
) -> journal.Leader | None:
    """Have a process of its own lead the session, whatever becomes of this one and its terminal.

    `loop` is handed over: what it has recorded is on disk before the other begins. None: a leader exists.
    The answer is the leader, or None where there was so little to do that it has come to its end.

    Raises:
        StateError: the process did not come to lead; its log says why.
    """
    if loop is not None:
        loop.start()
        loop.close()
    clock = RealClock()
    started, begun = clock.monotonic(), None
    while True:
        leader = journal.leader_alive(paths)
        if leader is not None:
            if begun is not None:
                begun.leave()
            return leader
        # Asked before the journal: one that has come to its end has said so.
        how = "" if begun is None else begun.ended()
        if begun is None:
            begun = begin(paths, replay(paths))
        elif how and replay(paths).ended:
            return None
        elif how:
            what, hint = f"the loop in the background {how}", f"oellm-autoexp monitor {paths.state_dir}"
            raise StateError(what, where=str(paths.daemon_log), hint=hint)
        if clock.monotonic() - started > START_S:
            what = f"the loop in the background did not begin within {START_S:.0f} s"
            raise StateError(what, where=str(paths.daemon_log), hint="look there; the jobs are not lost")
        clock.wait(LOOK_S)


# ---------------------------------------------------------------- stop, attach


def stop(paths: SessionPaths, warn: Callable[[str], None] = lambda _text: None) -> journal.Leader | None:
    """Have nobody lead a session, until a person starts it again; its jobs go on. Who led until now.

    Raises:
        StateError: the leader does not answer, or does not end.
    """
    clock, leader = RealClock(), journal.leader_alive(paths)
    if leader is None and replay(paths).stopped:
        return None
    if leader is not None and leader.alive_here() is None:
        warn(f"asking the loop on host {leader.host} (pid {leader.pid}) to end")
    command(paths, "stop", {})
    asked = clock.monotonic()
    while leader is not None and journal.leader_alive(paths) == leader:
        if clock.monotonic() - asked > ANSWER_S:
            raise StateError(
                f"the loop on host {leader.host} (pid {leader.pid}) was told to end, and has not yet",
                where=str(paths.state_dir),
                hint=f"look at it; it may be ended at any moment: kill {leader.pid} (on {leader.host})",
            )
        clock.wait(LOOK_S)
    return leader


def attaching(name: str) -> list[str]:
    """The argv that brings a tmux session to this terminal."""
    # One tmux within another is refused; its client can show the other session instead.
    verb = "switch-client" if os.environ.get("TMUX") else "attach-session"
    return ["tmux", verb, "-t", f"={name}"]


def tail_of(path: Path, lines: int) -> tuple[str, int]:
    """The last lines of a file and the byte behind them; "" where there is none."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 200 * lines))
        text = file.read(200 * lines).decode(errors="replace")
        return "".join(text.splitlines(keepends=True)[-lines:]), file.tell()
    return "", 0
