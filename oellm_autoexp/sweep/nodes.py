"""What a sweep is made of: a tree whose leaves are values and whose points are made one at a time.

Each node has its points in order (`points`) and by number (`at`), so that a space of millions of points can
be counted and sampled without being built.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from oellm_autoexp.errors import AutoexpError, ConfigError, Fault

Values = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A part of a sweep: its keys in order, those of them that tell its points apart, how many it has.

    `size` counts the numbers that `at` takes. Where `filtered`, some of these have no point.
    """

    keys: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    size: int = 1
    filtered: bool = False

    def points(self) -> Iterator[Values]:
        yield {}

    def at(self, _number: int) -> Values | None:
        """The point with a number; None where a filter leaves it out, or another number has it already."""
        return {}


@dataclass(frozen=True)
class Alternatives(Node):
    """The values of one key."""

    values: Sequence[Any] = ()

    def points(self) -> Iterator[Values]:
        key = self.keys[0]
        for value in self.values:
            yield {key: value}

    def at(self, number: int) -> Values | None:
        return {self.keys[0]: self.values[number]}


@dataclass(frozen=True)
class Fixed(Node):
    """Several keys with one value each."""

    values: Mapping[str, Any] = ()  # type: ignore[assignment]

    def points(self) -> Iterator[Values]:
        yield dict(self.values)

    def at(self, _number: int) -> Values | None:
        return dict(self.values)


@dataclass(frozen=True)
class Product(Node):
    """Every combination of its parts, the last of which changes fastest."""

    parts: Sequence[Node] = ()

    def points(self) -> Iterator[Values]:
        return self._from(0, {})

    def _from(self, start: int, before: Values) -> Iterator[Values]:
        last = start == len(self.parts) - 1
        for values in self.parts[start].points():
            joined = {**before, **values}
            if last:
                yield joined
            else:
                yield from self._from(start + 1, joined)

    def at(self, number: int) -> Values | None:
        found = []
        for part in reversed(self.parts):
            number, inner = divmod(number, part.size)
            values = part.at(inner)
            if values is None:
                return None
            found.append(values)
        joined: Values = {}
        for values in reversed(found):
            joined.update(values)
        return joined


@dataclass(frozen=True)
class Union(Node):
    """The points of one part after those of the other."""

    parts: Sequence[Node] = ()

    def points(self) -> Iterator[Values]:
        for part in self.parts:
            yield from part.points()

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part.size for part in self.parts))

    def at(self, number: int) -> Values | None:
        index = bisect_right(self._ends, number)
        return self.parts[index].at(number - (self._ends[index - 1] if index else 0))


@dataclass(frozen=True)
class Group(Node):
    """A part with values under it, and filters that see these and what lies further below."""

    body: Node = Node()
    below: Mapping[str, Any] = ()  # type: ignore[assignment]
    defaults: Mapping[str, Any] = ()  # type: ignore[assignment]
    filters: Sequence[Callable[[Values], bool]] = ()

    def points(self) -> Iterator[Values]:
        for values in self.body.points():
            own = {**self.defaults, **values}
            if not self.filters or self._holds(own):
                yield own

    def at(self, number: int) -> Values | None:
        values = self.body.at(number)
        if values is None:
            return None
        own = {**self.defaults, **values}
        return own if not self.filters or self._holds(own) else None

    def _holds(self, own: Values) -> bool:
        seen = {**self.below, **own}
        return all(holds(seen) for holds in self.filters)


@dataclass(frozen=True)
class Conditional(Node):
    """The points of a part; those for which `when` holds are multiplied with the values of one more key."""

    body: Node = Node()
    values: Sequence[Any] = ()
    when: Callable[[Values], bool] = bool

    def points(self) -> Iterator[Values]:
        key = self.keys[-1]
        for point in self.body.points():
            if self.when(point):
                for value in self.values:
                    yield {**point, key: value}
            else:
                yield point

    def at(self, number: int) -> Values | None:
        number, inner = divmod(number, len(self.values))
        point = self.body.at(number)
        if point is None:
            return None
        if self.when(point):
            return {**point, self.keys[-1]: self.values[inner]}
        return point if inner == 0 else None


@dataclass(frozen=True)
class Computed(Node):
    """The points of a part, with one more key that follows from them."""

    body: Node = Node()
    value: Callable[[Values], Any] = dict

    def points(self) -> Iterator[Values]:
        key = self.keys[-1]
        for point in self.body.points():
            yield {**point, key: self.value(point)}

    def at(self, number: int) -> Values | None:
        point = self.body.at(number)
        return None if point is None else {**point, self.keys[-1]: self.value(point)}


def merged(names: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


def product(parts: Sequence[Node]) -> Node:
    if len(parts) < 2:
        return parts[0] if parts else Node()
    size = 1
    for part in parts:
        size *= part.size
    return Product(**_about(parts), size=size, parts=parts)


def union(parts: Sequence[Node]) -> Node:
    if len(parts) == 1:
        return parts[0]
    return Union(**_about(parts), size=sum(part.size for part in parts), parts=parts)


def _about(parts: Sequence[Node]) -> dict[str, Any]:
    return {
        "keys": merged(part.keys for part in parts),
        "labels": merged(part.labels for part in parts),
        "filtered": any(part.filtered for part in parts),
    }


def called(function: Callable[[Values], Any], key: str) -> Callable[[Values], Any]:
    """A function of a person, called with a copy of each point; what it raises names it and the point.

    `key`: where the function was given.
    """

    def call(values: Values) -> Any:
        try:
            return function(dict(values))
        except AutoexpError:
            raise
        except Exception as error:
            what = f"{placed(function)} raised {type(error).__name__}: {error}"
            point = ", ".join(f"{name}={value!r:.60}" for name, value in values.items())
            raise ConfigError(Fault(key=key, what=what, value=point[:300])) from error

    return call


def placed(function: Callable[..., Any]) -> str:
    """A function by its name, file and line."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name
