"""Stages of a sweep: which point of another stage is a point's sibling, and which segment it follows. Pure.

A point belongs to the stage that its key `stage` names. Its sibling in another stage is the one point there
with the same values for the keys that pair the two stages: those that points of both have, with at least one
value in common. (`steps: 1000` in one stage and `steps: 200` in the other pair nothing.) Of a group that is
repeated the sibling is the last segment; within it each segment follows the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import label

#: The keys of a point that name its stage, and count the segments of a group that is repeated.
STAGE, REPEAT = "stage", "repeat"

Values = Mapping[str, Any]
_ABSENT = object()
_SHOWN = 3


class MissingSibling(ConfigError):
    """There is no such stage, or no point of it belongs to this one."""


class Stages:
    """The stages of the points of a sweep.

    `points`: the declared values of each, with references as they were written. `chained`: the key `repeat`
    counts segments. `by`: the keys that pair points, where they are not to be found by their values.
    """

    def __init__(
        self, points: Sequence[Values], *, chained: bool = False, by: Sequence[str] | None = None
    ) -> None:
        self._points = points
        self._chained = chained
        self._by = by
        self._members: dict[str, list[int]] = {}
        for index in range(len(points)):
            self._members.setdefault(self.of(index), []).append(index)
        self._pairing: dict[tuple[str, str], tuple[str, ...]] = {}
        self._found: dict[tuple[str, tuple[str, ...]], dict[tuple[Any, ...], list[int]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stages in the order of their first points; "" is that of points without one."""
        return tuple(self._members)

    def of(self, index: int) -> str:
        """The stage of a point."""
        return str(self._points[index].get(STAGE) or "")

    def before(self, index: int) -> int | None:
        """The segment that a point follows; None for a first one, and where nothing is repeated."""
        return self._chains[0].get(index)

    def sibling(self, index: int, stage: str) -> int:
        """The sibling of a point in a stage; in its own, the segment that it follows.

        Raises:
            MissingSibling: there is none.
            ConfigError: there are several, or the stage refers to itself.
        """
        own = self.of(index)
        if stage not in self._members or not stage:
            known = [name for name in self._members if name]
            hint = did_you_mean(stage, known) or "give a group of the sweep `stage: NAME`"
            raise MissingSibling(Fault(what=f"there is no stage `{stage}`", hint=hint))
        if stage == own:
            return self._earlier(index, stage)
        keys = self.paired_by(own, stage)
        mine = self._key(index, keys)
        found = self._last_segments(self._by_key(stage, keys).get(mine, []))
        if len(found) == 1:
            return found[0]
        raise self._several(index, stage, found, keys) if found else self._none(index, stage, keys)

    def paired_by(self, one: str, other: str) -> tuple[str, ...]:
        """The keys by which the points of two stages belong together."""
        key = (min(one, other), max(one, other))
        if key not in self._pairing:
            ours, theirs = self._values_of(key[0]), self._values_of(key[1])
            shared = [name for name in ours if name in theirs and name not in (STAGE, REPEAT)]
            if self._by is None:
                pairing = [name for name in shared if not ours[name].isdisjoint(theirs[name])]
            else:
                pairing = [name for name in shared if name in self._by]
            self._pairing[key] = tuple(pairing)
        return self._pairing[key]

    def shown(self, index: int) -> str:
        """A point for a person."""
        return _shown(self._points[index], [key for key in self._points[index] if key != STAGE])

    # ---- looking up

    def _values_of(self, stage: str) -> dict[str, set[Any]]:
        """Every value of every key in a stage; what refers to a sibling pairs nothing."""
        found: dict[str, set[Any]] = {}
        for index in self._members[stage]:
            for key, value in self._points[index].items():
                if not refers(value):
                    found.setdefault(key, set()).add(_hashable(value))
        return found

    def _key(self, index: int, keys: tuple[str, ...]) -> tuple[Any, ...]:
        values = self._points[index]
        return tuple(_hashable(values.get(key, _ABSENT)) for key in keys)

    def _by_key(self, stage: str, keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
        found = self._found.get((stage, keys))
        if found is None:
            found = self._found[stage, keys] = {}
            for index in self._members[stage]:
                found.setdefault(self._key(index, keys), []).append(index)
        return found

    # ---- segments

    def _is_segment(self, index: int) -> bool:
        return self._chained and REPEAT in self._points[index]

    @cached_property
    def _chains(self) -> tuple[dict[int, int], frozenset[int]]:
        """Of each segment the one before it; and which segments are the last of their chain."""
        chains: dict[tuple[Any, ...], list[int]] = {}
        for index, values in enumerate(self._points):
            if self._is_segment(index):
                key = tuple((name, _hashable(values[name])) for name in sorted(values) if name != REPEAT)
                chains.setdefault(key, []).append(index)
        before: dict[int, int] = {}
        last: set[int] = set()
        for members in chains.values():
            members.sort(key=lambda index: int(self._points[index][REPEAT]))
            before.update(zip(members[1:], members, strict=False))
            last.add(members[-1])
        return before, frozenset(last)

    def _last_segments(self, indexes: Sequence[int]) -> list[int]:
        last = self._chains[1]
        return [index for index in indexes if not self._is_segment(index) or index in last]

    def _earlier(self, index: int, stage: str) -> int:
        if not self._is_segment(index):
            what = f"the stage `{stage}` refers to itself"
            hint = "let only values of other stages refer to it, or give its group `repeat: N`"
            raise ConfigError(Fault(what=what, hint=hint))
        before = self.before(index)
        if before is None:
            what = f"the first segment of `{stage}` follows none"
            hint = f"say what it has instead: ${{oc.select:sibling.{stage}.output_dir,none}}"
            raise MissingSibling(Fault(what=what, hint=hint))
        return before

    # ---- what is wrong

    def _none(self, index: int, stage: str, keys: Sequence[str]) -> ConfigError:
        mine, there = self._points[index], self._values_of(stage)
        lacking = [
            f"none has {key}={label(mine.get(key))} (there is {self._some(stage, key)})"
            for key in keys
            if _hashable(mine.get(key, _ABSENT)) not in there[key]
        ]
        told = "; ".join(lacking) or f"none has {_shown(mine, keys)} together"
        what = f"has no sibling in the stage `{stage}`: {told}"
        hint = (
            f"give `{stage}` such a point, or name the keys that pair points, "
            "such as `sweep: {siblings_by: [seed]}`"
        )
        return MissingSibling(Fault(what=what, value=self.shown(index), hint=hint))

    def _some(self, stage: str, key: str) -> str:
        texts = list(dict.fromkeys(label(self._points[index].get(key)) for index in self._members[stage]))
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return ", ".join(texts[:_SHOWN]) + more

    def _several(self, index: int, stage: str, found: Sequence[int], keys: Sequence[str]) -> ConfigError:
        first = self._points[found[0]]
        differ = [
            key
            for key in dict.fromkeys(name for other in found for name in self._points[other])
            if any(self._points[other].get(key) != first.get(key) for other in found)
        ]
        points = " and ".join(f"({_shown(self._points[other], differ)})" for other in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        by = f" with {_shown(self._points[index], keys)}" if keys else ""
        what = f"has {len(found)} siblings in the stage `{stage}`{by}: {points}{more}"
        named, own = ", ".join(f"`{key}`" for key in differ[:_SHOWN]), self.of(index) or "this one"
        hint = f"sweep {named} in the stage `{own}` too, or not in `{stage}`"
        return ConfigError(Fault(what=what, value=self.shown(index), hint=hint))


class Trail:
    """The points that are being worked out, each for the one before it: none may come twice."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._at: list[int] = []

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Work a point out.

        Raises:
            ConfigError: it is being worked out already.
        """
        if index in self._at:
            circle = [*self._at[self._at.index(index) :], index]
            what = "stages refer to each other in a circle: " + " -> ".join(map(self._stages.of, circle))
            hint = "let one of them stand without the other"
            raise ConfigError(Fault(what=what, value=self._stages.shown(index), hint=hint))
        self._at.append(index)
        try:
            yield
        finally:
            self._at.pop()


def refers(value: Any) -> bool:
    """Whether a value, or a part of it, refers to a sibling."""
    if isinstance(value, str):
        return "${" in value and "sibling." in value
    if isinstance(value, Mapping):
        return any(refers(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(refers(item) for item in value)


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    # True is 1 to Python, and to nobody else.
    return (bool, value) if isinstance(value, bool) else value


def _shown(values: Values, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={label(values.get(key))}"[:80] for key in keys if key in values) or "no values"
