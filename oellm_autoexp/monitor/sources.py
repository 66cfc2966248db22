"""What jobs run from, looked at before they start again: is it there, and is it what was planned?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import GitOperationError
from oellm_autoexp.store import source as store
from oellm_autoexp.store.effects import Effects

#: A look is good for this long: a thousand restarts in one tick are one.
GOOD_S = 60.0


class Sources:
    """The sources of a session's jobs. One that has been taken away is made again."""

    def __init__(
        self, session: Session, paths: SessionPaths, effects: Effects, trouble: Callable[[str, str], None]
    ) -> None:
        self._session = session
        self._paths = paths
        self._effects = effects
        self._trouble = trouble
        self._looked: dict[str, float] = {}

    def ready(self, attempts: Sequence[tuple[str, int]], now: float) -> None:
        """Called before attempts are submitted; warns where a restart meets another source than was planned.

        Raises:
            GitOperationError, OSError: a source is gone and cannot be made again.
        """
        again: dict[str, bool] = {}
        for name, number in attempts:
            key = self._session.jobs[name].spec.source
            again[key] = again.get(key, False) or number > 1
        for key, restarts in again.items():
            if key and not store.is_there(self._paths, key):
                self._make(key, now)
            if restarts and now >= self._looked.get(key, 0.0):
                self._looked[key] = now + GOOD_S
                found = self._drift(key)
                self._trouble(
                    f"source {key}", f"a restart runs from another source: {found}" if found else ""
                )

    def _make(self, key: str, now: float) -> None:
        known = store.read(self._paths, key)
        if known is None:
            what = "there is no record of it"
            hint = "`submit` makes it again"
            raise GitOperationError(what, where=str(self._paths.source_record(key)), hint=hint)
        project = self._session.opened.project if self._session.opened is not None else ""
        store.make(known, self._paths, self._effects, experiment=project, now=now)

    def _drift(self, key: str) -> str:
        if key:
            return store.drift(self._paths, key, self._effects)
        opened = self._session.opened
        before = opened.provenance.get("git") if opened is not None else None
        if opened is None or not before or not opened.source.get("cwd"):
            return ""
        directory = str(opened.source["cwd"])
        found = store.state(Path(directory), self._effects)
        if found and found["commit"] != before["commit"]:
            return f"{directory} is at commit {str(found['commit'])[:8]}, planned at {before['commit'][:8]}"
        if found.get("dirty") and before.get("dirty") is False:
            return f"{directory} has uncommitted changes, and had none when it was planned"
        return ""
