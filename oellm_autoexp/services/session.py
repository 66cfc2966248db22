"""Sessions as a person names them, and what their journals tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.goodput import Ledger
from oellm_autoexp.core.layout import STATE_DIR_NAME, SessionPaths
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import UsageError, did_you_mean
from oellm_autoexp.store import journal
from oellm_autoexp.store.registry import Entry, Registry


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


def exit_code(session: Session) -> int:
    """0 when every job succeeded, 1 when some did not."""
    return 0 if all(job.state is JobState.SUCCEEDED for job in session.jobs.values()) else 1
