"""The sessions of a user, by name: small files under the user's state home, so that `status NAME` finds them.

A convenience: a home that cannot be written, or a broken entry, never stops a command.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

from oellm_autoexp.errors import UsageError
from oellm_autoexp.store.effects import Effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a session lives. `created` is UTC epoch seconds."""

    name: str
    state_dir: str
    project: str
    config_ref: str
    created: float

    @property
    def gone(self) -> bool:
        """The state directory cannot be seen from here (removed, or not mounted on this host)."""
        return not Path(self.state_dir).is_dir()


def state_home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a user's own state lies: below `$XDG_STATE_HOME` (default `~/.local/state`); None: no home."""
    # A relative path there is invalid and to be ignored (XDG Base Directory Specification).
    home = environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "oellm-autoexp"


class Registry:
    """The registry of one user, in the user's state home."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        home = state_home(environ)
        self.directory = home / "sessions" if home is not None else None

    @property
    def home(self) -> Path | None:
        """Where else this program keeps things of this user; None: there is no home directory."""
        return None if self.directory is None else self.directory.parent

    def register(self, effects: Effects, entry: Entry) -> bool:
        """Remember a session; False when the home cannot be written."""
        if self.directory is None:
            return False
        try:
            for directory in (self.directory.parent, self.directory):
                effects.mkdir(directory)
            place = self._place(entry)
            known = _read(place)
            if known is not None:
                entry = replace(entry, created=known.created)
            effects.write(place, json.dumps(asdict(entry)).encode(), durable=False)
        except OSError:
            return False
        return True

    def _place(self, entry: Entry) -> Path:
        """`<name>.json`; a name that another state directory has taken gets a short hash of its own."""
        assert self.directory is not None
        digest = hashlib.sha256(os.fsencode(entry.state_dir)).hexdigest()[:8]
        # Names are limited to 255 bytes on every common file system.
        name = quote(entry.name, safe="")[:200]
        other = _read(self.directory / f"{name}.json")
        mine = other is None or (other.name, other.state_dir) == (entry.name, entry.state_dir)
        return self.directory / (f"{name}.json" if mine else f"{name}~{digest}.json")

    def list_all(self) -> list[Entry]:
        """Every session that is known, oldest first. Broken entries are passed over."""
        unique = {(entry.name, entry.state_dir): entry for entry in self._entries().values()}
        return sorted(unique.values(), key=lambda entry: (entry.created, entry.state_dir))

    def _entries(self) -> dict[Path, Entry]:
        if self.directory is None:
            return {}
        try:
            places = sorted(self.directory.glob("[!.]*.json"))
        except OSError:
            return {}
        found = {place: _read(place) for place in places}
        return {place: entry for place, entry in found.items() if entry is not None}

    def find(self, name: str) -> Entry | None:
        """The session of this name; where all of them are gone, the last one.

        Raises:
            UsageError: several visible state directories have it.
        """
        entries = [entry for entry in self.list_all() if entry.name == name]
        visible = [entry for entry in entries if not entry.gone] or entries[-1:]
        if len(visible) > 1:
            places = ", ".join(entry.state_dir for entry in visible)
            hint = f"give the state directory instead: {places}"
            raise UsageError(f"{len(visible)} sessions are named {name!r}", hint=hint)
        return visible[0] if visible else None

    def forget(self, effects: Effects, state_dir: Path) -> None:
        """Forget the session in a state directory, if it is known."""
        for place, entry in self._entries().items():
            if entry.state_dir == str(state_dir):
                with contextlib.suppress(OSError):
                    effects.unlink(place)


def _read(place: Path) -> Entry | None:
    try:
        body = json.loads(place.read_bytes())
        return Entry(
            name=str(body["name"]),
            state_dir=str(body["state_dir"]),
            project=str(body["project"]),
            config_ref=str(body["config_ref"]),
            created=float(body["created"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
