"""Each id of a plan has one name, and each name one id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oellm_autoexp.config.compose import Composed
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.planning.sweep_json import text_of
from oellm_autoexp.sweep.grid import Point
from oellm_autoexp.sweep.names import UniqueNames


class JobNames:
    """Gives each id one name and each name to one id."""

    def __init__(self, composed: Composed, known: Mapping[str, str], taken: frozenset[str]) -> None:
        self._composed = composed
        self._known = known
        self._taken = taken
        self._unique = UniqueNames(composed.namer.template)
        self._ids: dict[str, int] = {}
        self._given: set[str] = set()
        self._next = len(taken)

    def of(self, identity: str, values: Mapping[str, Any], point: Point) -> str:
        """The name of a job; `values` are the resolved ones of its point.

        Raises:
            ConfigError: another point has this name, or is the same job.
        """
        index = point.index
        other = self._ids.setdefault(identity, index)
        if other != index:
            each = (f"{key}={symbols.shown(text_of(value))}" for key, value in values.items())
            told = ", ".join(each) or "no values"
            what = f"points {other} and {index} would compute the same"
            hint = "remove one of them, or sweep something that the command or its environment reads"
            raise ConfigError(Fault(key="sweep", what=what, value=told, hint=hint))
        name = self._known.get(identity)
        if name is None:
            name = self._fresh(values, point)
        self._unique.add(name, values)
        return name

    def _fresh(self, values: Mapping[str, Any], point: Point) -> str:
        name = self._composed.name(point, values, point.index)
        if self._composed.namer.uses_index and self._taken:
            # Numbers that are in use stay where they are; new points go on behind them.
            while name in self._taken or name in self._given:
                name = self._composed.name(point, values, self._next)
                self._next += 1
            self._given.add(name)
        return name
