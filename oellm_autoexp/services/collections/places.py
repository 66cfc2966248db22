"""Collections where they lie: found by name, read, and changed by one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from oellm_autoexp.core.collection import Collection, decoded, encoded
from oellm_autoexp.core.layout import SessionPaths, default_state_dir, project_name
from oellm_autoexp.errors import StateError, UsageError, did_you_mean
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.lock import FileLock
from oellm_autoexp.store.registry import Entry, Registry

OUTPUTS = "outputs"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a collection is, or would be made."""

    name: str
    paths: SessionPaths
    #: Where the jobs of a new one would run.
    cwd: Path

    @property
    def there(self) -> bool:
        return self.paths.collection.is_file()

    @property
    def base_output_dir(self) -> Path:
        """Where the outputs of its jobs go."""
        return self.paths.state_dir.parent


def place_of(reference: str, cwd: Path) -> Place:
    """The collection that a person means: a name, or its output directory or state directory.

    A name means `outputs/NAME` in `cwd`.

    Raises:
        UsageError: it cannot be a name.
    """
    if "/" in reference or reference in (".", ".."):
        given = (cwd / Path(reference).expanduser()).resolve()
        state_dir = given if SessionPaths(given).collection.is_file() else default_state_dir(given)
        return Place(name=checked_name(state_dir.parent.name), paths=SessionPaths(state_dir), cwd=cwd)
    name = checked_name(reference)
    return Place(name=name, paths=SessionPaths(default_state_dir(cwd / OUTPUTS / name)), cwd=cwd)


def checked_name(name: str) -> str:
    """A name that a collection may have.

    Raises:
        UsageError: it may not.
    """
    try:
        return project_name([name], name)
    except UsageError as error:
        raise UsageError(error.what, where="--collection", hint=error.hint) from None


def existing(reference: str, cwd: Path) -> Place:
    """As `place_of`, of a collection that is there; a name that is not in `cwd` means the one known by it.

    Raises:
        UsageError: there is none, or there are several elsewhere.
    """
    place = place_of(reference, cwd)
    known = None if place.there or "/" in reference else Registry().find(place.name)
    if known is not None:
        place = replace(place, paths=SessionPaths(Path(known.state_dir)))
    if not place.there:
        names = [entry.name for entry in Registry().list_all()]
        hint = did_you_mean(reference, names) if names else ""
        hint = hint if hint.startswith("did you") else "`oellm-autoexp generate` makes one"
        where = str(place.base_output_dir)
        raise UsageError(f"there is no collection {reference!r}", where=where, hint=hint)
    return place


def check(place: Place) -> None:
    """Refuse a place that a session has which is no collection.

    Raises:
        UsageError: it is one.
        StateError: its journal is damaged.
    """
    if place.there or not place.paths.journal.is_dir():
        return
    # The machinery of sessions takes a tenth of a second to import.
    from oellm_autoexp.services.session import replay

    if replay(place.paths).opened is not None:
        what = f"{place.name} is a session that was submitted from a config, and no collection"
        hint = "give the collection another name: --collection NAME"
        raise UsageError(what, where=str(place.paths.state_dir), hint=hint)


def read(place: Place) -> Collection:
    """A collection; an empty one where none was made yet.

    Raises:
        StateError: its file is damaged, or cannot be read.
    """
    return _read(place)[0]


def _read(place: Place) -> tuple[Collection, str]:
    """A collection, and the text of its file."""
    file = place.paths.collection
    try:
        text = file.read_text(encoding="utf-8")
        return decoded(text), text
    except FileNotFoundError:
        return Collection(place.name, str(place.cwd)), ""
    except OSError as error:
        raise StateError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except ValueError as error:
        hint = "a version of this program that wrote it reads it; its scripts are where they were"
        raise StateError(str(error), where=str(file), hint=hint) from None


def change(place: Place, effects: Effects, changed: Callable[[Collection], None]) -> Collection:
    """Read a collection, change it, and write it, while no other process does.

    Raises:
        StateError: it is damaged, or cannot be written.
    """
    try:
        effects.mkdir(place.paths.state_dir)
        with FileLock(place.paths.collection_lock):
            collection, before = _read(place)
            changed(collection)
            text = encoded(collection)
            if text != before:
                effects.write(place.paths.collection, text.encode(), mode=0o600)
    except OSError as error:
        what, hint = f"cannot be written: {error.strerror}", "make room or mend the rights, then do it again"
        raise StateError(what, where=str(error.filename or place.paths.collection), hint=hint) from error
    return collection


def unsubmitted(paths: SessionPaths, known: Container[str]) -> list[str]:
    """The names of the jobs of a session's collection that were not submitted yet; [] where it is none.

    Raises:
        StateError: its file is damaged.
    """
    if not paths.collection.is_file():
        return []
    place = Place(name=paths.state_dir.parent.name, paths=paths, cwd=Path.cwd())
    return [name for name in read(place).jobs if name not in known]


def register(place: Place) -> None:
    """Make a collection known by its name, also before anything of it is submitted."""
    entry = Entry(
        name=place.name,
        state_dir=str(place.paths.state_dir),
        project=place.name,
        config_ref="",
        created=time.time(),  # noqa: TID251 - when it was made is a fact for people
    )
    Registry().register(Effects(), entry)


class CollectionManager:
    """The collections in a directory (None: where the process runs), for Python programs.

    manager = CollectionManager()
    collection = manager.get_or_create("my_experiment")
    generator.generate(output_dir="scripts", collection=collection)
    manager.save(collection)
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory).resolve() if directory is not None else Path.cwd()

    def exists(self, name: str) -> bool:
        """Whether there is a collection of this name.

        Raises:
            UsageError: it cannot be a name.
        """
        return place_of(name, self.directory).there

    def load(self, name: str) -> Collection:
        """A collection.

        Raises:
            UsageError: there is none.
            StateError: its file is damaged.
        """
        return read(existing(name, self.directory))

    def get_or_create(self, name: str) -> Collection:
        """A collection, or a new one, which is on disk when it is saved.

        Raises:
            UsageError: it cannot be a name.
            StateError: its file is damaged.
        """
        return read(place_of(name, self.directory))

    def save(self, collection: Collection) -> None:
        """Write a collection. What others have added to it meanwhile stays.

        Raises:
            StateError: it cannot be written.
        """
        place = place_of(collection.name, self.directory)
        check(place)

        def add(there: Collection) -> None:
            there.origins.update(collection.origins)
            there.jobs.update(collection.jobs)

        change(place, Effects.of(place.paths.state_dir), add)
        register(place)

    def list(self) -> list[str]:
        """The names of the collections of this user that can be seen from here, oldest first."""
        return [place.name for place in every()]


def every() -> Iterable[Place]:
    """The collections of this user that can be seen from here, oldest first."""
    for entry in Registry().list_all():
        place = Place(name=entry.name, paths=SessionPaths(Path(entry.state_dir)), cwd=Path.cwd())
        if place.there:
            yield place
