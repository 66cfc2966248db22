"""The declaration of a sweep and its points, one after the other.

Two ways to write the same thing. `axes`: a mapping is the product of its keys, a list holds alternatives
(values, or mappings that are expanded in turn), nesting joins keys with dots. Groups: `params` are read
like axes, `configs` are alternatives of several keys at once, `groups` nest; `type: product` multiplies
these parts, `type: list` puts one after the other. A list *within* a list of alternatives is a value.
`stage` names the stage of a group's points, `repeat: N` makes N segments of each (see `stages`).

Points are made on demand: a product of a million points costs no memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.filters import Filter, compile_filter
from oellm_autoexp.sweep.nodes import (
    Alternatives,
    Fixed,
    Group,
    Node,
    Product,
    Union,
    Values,
    merged,
    product,
    union,
)
from oellm_autoexp.sweep.scalars import kind_of
from oellm_autoexp.sweep.stages import REPEAT, STAGE

#: Deeper nesting is a mistake (and would exhaust the stack).
MAX_DEPTH = 40

_PARTS = ("params", "configs", "groups")
_GROUP_KEYS = ("type", *_PARTS, "defaults", "filter", STAGE, REPEAT)
_SWEEP_KEYS = ("axes", "base_values", *_GROUP_KEYS, "name_template", "store_sweep_json", "siblings_by")
_STAGE = re.compile(r"[A-Za-z0-9_-]+")
_KEY = re.compile(r"[^\s.{}$:!,\[\]\"']+(\.[^\s.{}$:!,\[\]\"']+)*")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination. `values` are in the order of their declaration and belong to the receiver."""

    index: int
    values: Values


# ---------------------------------------------------------------- reading a declaration


class _Reader:
    """Reads a declaration and gathers every mistake in it."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        #: Whether a group names a stage, whether one is repeated, and where a variable is called `repeat`.
        self.staged = self.chained = False
        self._repeats = ""

    def fault(self, key: str, what: str, value: Any = "", hint: str = "") -> None:
        text = "" if value == "" else repr(value)[:200]
        self.faults.append(Fault(key=key, what=what, value=text, hint=hint))

    def unknown(self, section: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
        for key in section:
            if key not in known:
                self.fault(f"{place}.{key}", "unknown key", hint=did_you_mean(str(key), known))

    def mapping(self, section: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
        """The mapping under `key`; null and a missing key are an empty one."""
        value = section.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.fault(f"{place}.{key}", f"must be a mapping, not a {kind_of(value)}", value)
            return {}
        return value

    def items(self, section: Mapping[str, Any], key: str, place: str) -> Sequence[Any]:
        """The list under `key`; null and a missing key are an empty one, an empty list is a mistake."""
        value = section.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.fault(f"{place}.{key}", f"must be a list, not a {kind_of(value)}", value)
            return ()
        if not value:
            self.fault(f"{place}.{key}", "is empty, so the sweep would have no points")
        return value

    def key(self, key: Any, prefix: str, place: str) -> str:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            self.fault(
                place, "not usable as a key of a sweep", key, "use names such as lr or slurm.sbatch.nodes"
            )
            return f"{prefix}.invalid" if prefix else "invalid"
        if key == REPEAT and not prefix:
            self._repeats = place
        return f"{prefix}.{key}" if prefix else key

    def value(self, value: Any, place: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.value(item, place) for item in value]
        if isinstance(value, Mapping):
            return {key: self.value(item, place) for key, item in value.items()}
        if value is not None and not isinstance(value, (str, int, float, bool)):
            self.fault(place, f"a {kind_of(value)} cannot be swept", value, "quote it to make it text")
        return value

    # ---- axes

    def axes(self, axes: Any, place: str, prefix: str = "", apart: bool = False, depth: int = 0) -> Node:
        """Axes under `prefix`; `apart`: they lie within alternatives, so every key tells points apart."""
        if depth > MAX_DEPTH:
            self.fault(place, f"nested more than {MAX_DEPTH} deep")
            return Node()
        if isinstance(axes, Mapping):
            parts = []
            for key, below in axes.items():
                inner = f"{place}.{key}"
                parts.append(self.axes(below, inner, self.key(key, prefix, inner), apart, depth + 1))
            return self.product(parts, place)
        if isinstance(axes, (list, tuple)):
            return self.alternatives(axes, place, prefix, depth)
        if not prefix:
            if axes is not None:
                self.fault(place, f"must be a mapping of keys to values, not a {kind_of(axes)}", axes)
            return Node()
        value = self.value(axes, place)
        return Alternatives(keys=(prefix,), labels=(prefix,) if apart else (), values=(value,))

    def alternatives(self, items: Sequence[Any], place: str, prefix: str, depth: int) -> Node:
        if not items:
            self.fault(place, "has no values, so the sweep would have no points")
            return Node()
        if not any(isinstance(item, Mapping) for item in items) and prefix:
            values = [self.value(item, place) for item in items]
            return Alternatives(keys=(prefix,), labels=(prefix,), size=len(values), values=values)
        parts = []
        for number, item in enumerate(items):
            inner = f"{place}.{number}"
            if isinstance(item, Mapping) or not prefix:
                parts.append(self.axes(item, inner, prefix, True, depth + 1))
            else:
                value = self.value(item, inner)
                parts.append(Alternatives(keys=(prefix,), labels=(prefix,), values=(value,)))
        return union(parts)

    def product(self, parts: Sequence[Node], place: str) -> Node:
        seen: set[str] = set()
        for part in parts:
            for key in part.keys:
                if key in seen:
                    self.fault(
                        place,
                        f"`{key}` is swept twice in one product",
                        hint="keep one of the two declarations",
                    )
            seen.update(part.keys)
        return product(parts)

    # ---- groups

    def fixed(self, mapping: Mapping[Any, Any], place: str, prefix: str = "", depth: int = 0) -> Values:
        """Nested mappings with their keys joined; every other value stands as it is."""
        if depth > MAX_DEPTH:
            self.fault(place, f"nested more than {MAX_DEPTH} deep")
            return {}
        flat: Values = {}
        for key, value in mapping.items():
            inner = f"{place}.{key}"
            dotted = self.key(key, prefix, inner)
            if isinstance(value, Mapping) and value:
                added = self.fixed(value, inner, dotted, depth + 1)
            else:
                added = {dotted: self.value(value, inner)}
            for name in added.keys() & flat.keys():
                self.fault(inner, f"`{name}` is given twice", hint="keep one of the two")
            flat.update(added)
        return flat

    def group(self, group: Any, place: str, below: Mapping[str, Any], depth: int = 0) -> Node:
        if not isinstance(group, Mapping):
            self.fault(
                place,
                f"a group must be a mapping, not a {kind_of(group)}",
                group,
                "write `- params: {lr: [1, 2]}`",
            )
            return Node()
        if depth > MAX_DEPTH:
            self.fault(place, f"nested more than {MAX_DEPTH} deep")
            return Node()
        self.unknown(group, _SWEEP_KEYS if depth == 0 else _GROUP_KEYS, place)
        defaults = self.fixed(self.mapping(group, "defaults", place), f"{place}.defaults")
        under = {**below, **defaults}
        parts = []
        if depth == 0 and group.get("axes") is not None:
            parts.append(self.axes(group["axes"], f"{place}.axes"))
        if group.get("params") is not None:
            parts.append(self.axes(self.mapping(group, "params", place), f"{place}.params"))
        if group.get("configs") is not None:
            parts.append(self.configs(group, place))
        inner = [
            self.group(item, f"{place}.groups.{number}", under, depth + 1)
            for number, item in enumerate(self.items(group, "groups", place))
        ]
        body = self.segments(group, self.composed(group, [*parts, *inner], place), place)
        keys = merged(iter([tuple(defaults), body.keys]))
        filters = self.filters(group, place, (*below, *keys))
        return Group(
            keys=keys,
            labels=body.labels,
            size=body.size,
            filtered=body.filtered or bool(filters),
            body=body,
            below=below,
            defaults=defaults,
            filters=filters,
        )

    def configs(self, group: Mapping[str, Any], place: str) -> Node:
        parts = []
        for number, item in enumerate(self.items(group, "configs", place)):
            inner = f"{place}.configs.{number}"
            if item is not None and not isinstance(item, Mapping):
                self.fault(inner, f"must be a mapping of keys to values, not a {kind_of(item)}", item)
                continue
            values = self.fixed(item or {}, inner)
            parts.append(Fixed(keys=tuple(values), labels=tuple(values), values=values))
        return union(parts) if parts else Node()

    def composed(self, group: Mapping[str, Any], parts: Sequence[Node], place: str) -> Node:
        kind = group.get("type", "product")
        if kind == "list":
            return union(parts) if parts else Node()
        if kind != "product":
            self.fault(f"{place}.type", "must be product or list", kind)
        return self.product(parts, place)

    def segments(self, group: Mapping[str, Any], body: Node, place: str) -> Node:
        """The points of a group with its stage, as many times as it is repeated."""
        parts, stage, times = [body], group.get(STAGE), group.get(REPEAT)
        if stage is not None and not (isinstance(stage, str) and _STAGE.fullmatch(stage)):
            hint = "quote it if it looks like a number"
            self.fault(f"{place}.stage", "must be a word of letters, digits, - and _", stage, hint)
        elif stage is not None:
            self.staged = True
            parts.insert(0, Alternatives(keys=(STAGE,), labels=(STAGE,), values=(stage,)))
        if times is not None and (type(times) is not int or times < 1):
            self.fault(f"{place}.repeat", "must be a number of segments, at least 1", times)
        elif times is not None:
            self.staged = self.chained = True
            numbers = range(1, times + 1)
            parts.append(Alternatives(keys=(REPEAT,), labels=(REPEAT,), size=times, values=numbers))
        return self.product(parts, place)

    def settle(self) -> None:
        """Refuse what only the whole declaration shows."""
        if self.chained and self._repeats:
            hint = "give the variable another name"
            self.fault(self._repeats, "a variable has the name that counts segments of a group", hint=hint)

    def filters(self, group: Mapping[str, Any], place: str, names: Sequence[str]) -> Sequence[Filter]:
        given = group.get("filter")
        texts = given if isinstance(given, list) else [] if given is None else [given]
        filters = []
        for number, text in enumerate(texts):
            key = f"{place}.filter.{number}" if isinstance(given, list) else f"{place}.filter"
            try:
                filters.append(compile_filter(text, names, key=key))
            except ConfigError as error:
                self.faults += error.faults
        return filters


def alternatives(key: str, values: Sequence[Any], place: str) -> Alternatives:
    """The values of one key. What stands in the list is a value, also a list or a mapping.

    `place`: where they were given.

    Raises:
        ConfigError: a key or a value that cannot be swept, or no value at all.
    """
    reader = _Reader()
    dotted = reader.key(key, "", place)
    if not isinstance(values, (list, tuple, range)):
        hint = f"write [{values!r:.80}]"
        reader.fault(place, f"must be a list of values, not a {kind_of(values)}", values, hint)
        values = ()
    elif not values:
        reader.fault(place, "has no values, so the sweep would have no points")
    checked = [reader.value(value, place) for value in values]
    if reader.faults:
        raise ConfigError(*reader.faults)
    return Alternatives(keys=(dotted,), labels=(dotted,), size=len(checked), values=checked)


def fixed(values: Mapping[Any, Any], place: str) -> Fixed:
    """One combination of keys with a value each; a mapping in it is a value.

    `place`: where it was given.

    Raises:
        ConfigError: a key or a value that cannot be swept.
    """
    reader = _Reader()
    checked = {
        reader.key(key, "", place): reader.value(value, f"{place}.{key}") for key, value in values.items()
    }
    if reader.faults:
        raise ConfigError(*reader.faults)
    return Fixed(keys=tuple(checked), labels=tuple(checked), values=checked)


class Grid:
    """A sweep that was read and found well-formed.

    `keys`: every key that a point may have, in order; `labels`: those that tell points apart (declared with
    alternatives, even if only one), which the default name shows; `size`: the points before filters;
    `reads`: the keys that filters look at.

    Raises:
        ConfigError: every mistake in the declaration.
    """

    def __init__(self, sweep: Mapping[str, Any] | None) -> None:
        reader = _Reader()
        section = sweep if sweep is not None else {}
        base: Values = {}
        if isinstance(section, Mapping):
            base = reader.fixed(reader.mapping(section, "base_values", "sweep"), "sweep.base_values")
            self._check(reader, section)
        self._base = base
        self._root = reader.group(section, "sweep", base)
        reader.settle()
        if reader.faults:
            raise ConfigError(*reader.faults)
        self.keys = merged(iter([tuple(base), self._root.keys]))
        self.labels = self._root.labels
        self.size = self._root.size
        self.filtered = self._root.filtered
        self.reads = frozenset(_reads(self._root))
        self.name_template: str | None = section.get("name_template")
        self.store_sweep_json: bool = section.get("store_sweep_json", True)
        #: Whether a group names a stage or is repeated, and whether one is repeated.
        self.staged, self.chained = reader.staged, reader.chained
        self.siblings_by: list[str] | None = section.get("siblings_by")

    @staticmethod
    def _check(reader: _Reader, section: Mapping[str, Any]) -> None:
        parts = [part for part in _PARTS if section.get(part) is not None]
        if parts and section.get("axes") is not None:
            hint = "move the axes into a group: `groups: [{params: {…}}, …]`"
            reader.fault("sweep.axes", f"cannot stand beside `{parts[0]}`", hint=hint)
        expected: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
            ("name_template", lambda value: value is None or isinstance(value, str), "text"),
            ("store_sweep_json", lambda value: isinstance(value, bool), "true or false"),
            ("siblings_by", _are_names, "a list of keys"),
        )
        for key, fits, kind in expected:
            if key in section and not fits(section[key]):
                reader.fault(f"sweep.{key}", f"must be {kind}", section[key])

    def points(self) -> Iterator[Point]:
        """The points that the filters keep, numbered without gaps.

        Raises:
            ConfigError: a filter cannot be applied to a point.
        """
        base = self._base
        for index, values in enumerate(self._root.points()):
            yield Point(index, {**base, **values})

    def count(self) -> int:
        """How many points there are: at once without filters, by making them otherwise."""
        return sum(1 for _ in self._root.points()) if self.filtered else self.size


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _reads(node: Node) -> Iterator[str]:
    if isinstance(node, Group):
        for each in node.filters:
            if isinstance(each, Filter):
                yield from each.reads
        yield from _reads(node.body)
    elif isinstance(node, (Product, Union)):
        for part in node.parts:
            yield from _reads(part)


def expand(sweep: Mapping[str, Any] | None) -> Iterator[Point]:
    """The points of a sweep section, one at a time.

    Raises:
        ConfigError: every mistake in the declaration (at once), or a filter that fails on a point.
    """
    return Grid(sweep).points()


def count(sweep: Mapping[str, Any] | None) -> int:
    return Grid(sweep).count()


def keys(sweep: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Every key that a point may have, in order of declaration."""
    return Grid(sweep).keys
