"""`cleanup`: remove what ended sessions have left, and nothing that is not known to be ours.

Ours is what the journal says that we wrote: a script with the very bytes that a plan rendered, the log of an
attempt, a state directory in which nothing else lies. The journal goes last, by one rename, so that a cleanup
that is killed can be done again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import STATE_DIR_NAME, SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import AutoexpError, NotLeader, StateError, UsageError
from oellm_autoexp.monitor.loop import Clock, RealClock
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.session import locate
from oellm_autoexp.store import journal
from oellm_autoexp.store import source as sources
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry

_Read = Callable[[SessionPaths], "tuple[Session, dict[str, set[str]]]"]
#: All that we ever put into a state directory.
_OURS = frozenset(
    {
        "monitor",
        "attempts",
        "metrics",
        "actions",
        "scheduler",
        "standalone",
        "guard.py",
        "source",
        "config.yaml",
        "collection.json",
        "collection.lock",
    }
)
#: What a state directory is called while it is being removed.
_REMOVED = ".removed"


@dataclass(frozen=True, slots=True)
class Found:
    """Files with their sizes in bytes, and the directories where such files were written."""

    sizes: dict[Path, int] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A session, and what would go with it."""

    name: str
    paths: SessionPaths
    #: How many jobs are in which state.
    states: dict[str, int] = field(default_factory=dict)
    #: Why it may not be removed; "": it may.
    refused: str = ""
    state_bytes: int = 0
    scripts: Found = field(default_factory=Found)
    logs: Found = field(default_factory=Found)
    #: Scripts that are no longer as we wrote them: they stay.
    changed: Sequence[Path] = ()
    #: Only the registry, or a removal that was interrupted, still knows it.
    gone: bool = False


def candidates(
    references: Sequence[str], load: Callable[[str], Path], *, unsubmitted_too: bool = False
) -> list[Candidate]:
    """What a person means; every session that the registry knows where nothing is named.

    `unsubmitted_too`: also what a collection has that was never submitted may go.

    Raises:
        UsageError: a reference that means no session.
    """
    known = Registry().list_all()
    if references:
        wanted = [_located(reference, known, load) for reference in references]
    else:
        wanted = [SessionPaths(Path(entry.state_dir)) for entry in known]
    read = cache(_history)
    return [_of(paths, known, read, unsubmitted_too) for paths in dict.fromkeys(wanted)]


def _located(reference: str, known: Sequence[Entry], load: Callable[[str], Path]) -> SessionPaths:
    for entry in known:
        if entry.gone and reference in (entry.name, entry.state_dir):
            return SessionPaths(Path(entry.state_dir))
    # Not through a link: what is removed must be what was named.
    for path in (Path(reference), Path(reference) / STATE_DIR_NAME):
        if path.is_symlink() and path.is_dir() and (path / "monitor").is_dir():
            raise UsageError("is a symbolic link", where=str(path), hint=f"name {path.resolve()} itself")
    return locate(reference, load)


def _of(paths: SessionPaths, known: Sequence[Entry], read: _Read, unsubmitted_too: bool) -> Candidate:
    name = next((entry.name for entry in known if entry.state_dir == str(paths.state_dir)), "")
    if not paths.state_dir.is_dir():
        # Where even the parent is missing, it may just not be mounted here.
        seen = paths.state_dir.parent.is_dir()
        refused = "" if seen else "it cannot be seen from here (not mounted?)"
        return Candidate(name=name, paths=paths, gone=True, refused=refused)
    try:
        session, specs = read(paths)
        refused = ("" if unsubmitted_too else _unsubmitted(paths, session)) or _refusal(paths, session)
        states: dict[str, int] = {}
        for job in session.jobs.values():
            states[job.state.value] = states.get(job.state.value, 0) + 1
        others, complete = _of_others(paths, known, read)
        scripts, changed = _scripts(specs, others)
        return Candidate(
            name=name or (session.opened.project if session.opened else ""),
            paths=paths,
            states=states,
            refused=refused,
            state_bytes=_size(paths.state_dir),
            scripts=scripts,
            logs=_logs(session, others) if complete else Found(),
            changed=changed,
        )
    except (AutoexpError, OSError) as error:
        return Candidate(name=name, paths=paths, refused=str(error))


# ---------------------------------------------------------------- may it go?


def _unsubmitted(paths: SessionPaths, session: Session) -> str:
    waiting = collections.unsubmitted(paths, session.jobs)
    where = paths.state_dir.parent
    text = f"{len(waiting)} of its jobs were never submitted: `collections delete {where}` removes all"
    return text if waiting else ""


def _refusal(paths: SessionPaths, session: Session) -> str:
    """Why a session may not be removed; "" when it may."""
    state_dir = paths.state_dir
    if session.opened is None:
        return "it has no journal of a session"
    if state_dir.is_symlink() or Path(session.opened.session).resolve() != state_dir.resolve():
        return f"its journal belongs to {session.opened.session}: it was moved or copied; remove it by hand"
    foreign = _foreign(state_dir)
    if foreign:
        return foreign
    for job in session.jobs.values():
        for place in (job.spec.output_dir, job.spec.checkpoint_dir):
            if Path(place).resolve().is_relative_to(state_dir.resolve()):
                return f"outputs of jobs lie in it: {place}"
        for attempt in job.attempts:
            log = Path(attempt.log_path)
            if log.resolve().is_relative_to(state_dir.resolve()):
                return f"logs of jobs lie in it: {log}"
    for each in (paths, *_standalone(paths)):
        leader = journal.leader_alive(each)
        if leader is not None:
            return f"process {leader.pid} on host {leader.host} is at work on it"
    unfinished = [job.spec.name for job in session.jobs.values() if not job.state.ended]
    if unfinished:
        return f"{len(unfinished)} of its jobs have not ended, such as {unfinished[0]}"
    if session.submissions or session.open_actions:
        return f"{len(session.open_actions) or len(session.submissions)} of its actions have no outcome"
    return _written(paths)


def _foreign(state_dir: Path) -> str:
    names = sorted(name for name in os.listdir(state_dir) if name not in _OURS and not _is_temporary(name))  # noqa: PTH208
    return f"something lies in it that is not ours: {names[0]}" if names else ""


def _written(paths: SessionPaths) -> str:
    """Jobs that run in a source of their own may have left results in it."""
    for source in sources.recorded(paths):
        path = sources.written(source, paths, Effects.of(paths.state_dir))
        if path:
            return f"its jobs have written into their source: {path}"
    return ""


def _standalone(paths: SessionPaths) -> Iterator[SessionPaths]:
    folder = paths.standalone("x").state_dir.parent
    if folder.is_dir():
        yield from (SessionPaths(path) for path in sorted(folder.iterdir()))


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


# ---------------------------------------------------------------- what is ours


def _history(paths: SessionPaths) -> tuple[Session, dict[str, set[str]]]:
    """The session, and the digests of every script that it ever had, by path.

    Raises:
        StateError: its journal is damaged.
    """
    return _replayed(journal.read(paths).events)


def _replayed(events: Iterable[ev.Event]) -> tuple[Session, dict[str, set[str]]]:
    session, scripts = Session(), dict[str, set[str]]()
    for event in events:
        session.apply(event)
        if isinstance(event, (ev.JobAdded, ev.JobUpdated)):
            scripts.setdefault(event.spec.script_path, set()).add(event.spec.script_digest)
    return session, scripts


def _of_others(paths: SessionPaths, known: Sequence[Entry], read: _Read) -> tuple[set[str], bool]:
    """Scripts and logs of the other sessions that can be seen, and whether all of them can be read.

    A script holds its session's name, so its bytes are enough to know whose it is; a log does not.
    """
    found: set[str] = set()
    complete = True
    for entry in known:
        other = SessionPaths(Path(entry.state_dir))
        if not entry.gone and other.state_dir.resolve() != paths.state_dir.resolve():
            try:
                session, scripts = read(other)
            except AutoexpError:
                complete = False
                continue
            found.update(scripts)
            found.update(attempt.log_path for job in session.jobs.values() for attempt in job.attempts)
    return found, complete


def _scripts(specs: dict[str, set[str]], others: Collection[str]) -> tuple[Found, list[Path]]:
    ours, changed = Found(), list[Path]()
    for text, digests in specs.items():
        path = Path(text)
        ours.folders.add(path.parent)
        size = _plain_file(path)
        if size is None:
            continue
        if text in others or hashlib.sha256(path.read_bytes()).hexdigest() not in digests:
            changed.append(path)
        else:
            ours.sizes[path] = size
    return ours, changed


def _logs(session: Session, others: Collection[str]) -> Found:
    found = Found()
    for job in session.jobs.values():
        for attempt in job.attempts:
            path = Path(attempt.log_path)
            found.folders.add(path.parent)
            size = _plain_file(path)
            if size is not None and attempt.log_path not in others:
                found.sizes[path] = size
    return found


def _plain_file(path: Path) -> int | None:
    """The size of a regular file; None for a link, or where there is none."""
    try:
        seen = path.lstat()
    except OSError:
        return None
    return seen.st_size if stat.S_ISREG(seen.st_mode) else None


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            total += _plain_file(Path(root, name)) or 0
    return total


# ---------------------------------------------------------------- removing


def remove(
    candidate: Candidate, *, logs: bool, effects: Effects | None = None, clock: Clock | None = None
) -> None:
    """Remove the state, our scripts and, with `logs`, the logs of a session that may go.

    Raises:
        StateError: it may not go (any more), or something cannot be removed; the same call goes on.
    """
    paths = candidate.paths
    effects, clock = effects or Effects.of(paths.state_dir), clock or RealClock()
    if candidate.refused:
        raise StateError(candidate.refused, where=str(paths.state_dir), hint="nothing was removed")
    try:
        if not candidate.gone:
            _remove_led(candidate, logs, effects, clock)
        effects.remove_tree(_tombstone(paths))
    except OSError as error:
        what = f"cannot be removed: {error.strerror}"
        raise StateError(
            what, where=str(error.filename or paths.state_dir), hint="mend that, then do the same again"
        ) from error
    Registry().forget(effects, paths.state_dir)


def _remove_led(candidate: Candidate, logs: bool, effects: Effects, clock: Clock) -> None:
    """As the leader: nobody can submit to a session that is going.

    Raises:
        GitOperationError: a source cannot be removed.
    """
    paths = candidate.paths
    try:
        led, history = journal.Journal.lead(
            paths, effects, now=clock.now(), monotonic=clock.monotonic, wait=clock.wait
        )
    except NotLeader as error:
        raise StateError(error.what, where=str(paths.state_dir), hint="nothing was removed") from error
    moved = False
    try:
        session, _ = _replayed(history.events)
        if any(not job.state.ended for job in session.jobs.values()) or session.open_actions:
            what = "jobs were added in the meantime"
            raise StateError(what, where=str(paths.state_dir), hint="nothing was removed")
        written = _written(paths)
        if written:
            raise StateError(written, where=str(paths.state_dir), hint="nothing was removed")
        for source in sources.recorded(paths):
            sources.remove(source, paths, effects)
        for found in (candidate.scripts, candidate.logs) if logs else (candidate.scripts,):
            for path in found.sizes:
                effects.unlink(path)
            # Also where an interrupted removal has left nothing in them.
            for folder in sorted(found.folders):
                effects.remove_empty(folder)
        effects.remove_tree(_tombstone(paths))
        effects.rename(paths.state_dir, _tombstone(paths))
        moved = True
    finally:
        try:
            led.close(clock.now())
        except StateError:
            # Its goodbye has no place any more where the directory has gone.
            if not moved:
                raise


def remove_unsubmitted(paths: SessionPaths, effects: Effects) -> None:
    """Remove the state of a collection of which nothing was submitted, while its lock is held.

    Raises:
        StateError: something lies in it that is not ours.
        OSError: it cannot be removed; the same call goes on, and so does `remove`.
    """
    foreign = _foreign(paths.state_dir)
    if foreign:
        raise StateError(foreign, where=str(paths.state_dir), hint="move it, then do the same again")
    effects.remove_tree(_tombstone(paths))
    effects.rename(paths.state_dir, _tombstone(paths))
    effects.remove_tree(_tombstone(paths))


def _tombstone(paths: SessionPaths) -> Path:
    return paths.state_dir.with_name(paths.state_dir.name + _REMOVED)
