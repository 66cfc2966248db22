"""Partial evaluation of a config: what no sweep changes is resolved once, the rest for each point.

The raw config becomes a tree of nodes. Every node is evaluated once in a scope that knows no point: one
that asks for a swept key, a free variable, `job.*` or `sibling.*` is *dynamic*, all others are constant
from then on. (An expression evaluates all its parts, so one that got through has asked for nothing that
could change.) A point then copies the containers above dynamic nodes and shares everything else.

One rule for dotted keys: at each mapping the longest existing key that the path begins with.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from oellm_autoexp.config.expressions import (
    Missing,
    Path,
    Problem,
    compile_text,
    has_reference,
    is_shell_name,
    shell_hint,
)
from oellm_autoexp.config.nodes import Container, Hit, Leaf, Node, Override, dynamic_places, walked
from oellm_autoexp.config.scope import FACTS, NoPoint, Scope
from oellm_autoexp.config.shapes import Room
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import kind_of


class Tree:
    """A composed config, partially evaluated.

    `raw`: plain nested mappings and lists with `${…}` unresolved (without the sweep section);
    `dynamic`: the keys that points set: dotted config keys, or free names that exist nowhere in it;
    `environment`: for `${oc.env:…}` (None: the process's); `timestamp`: for `${oc.timestring:}`.

    `free`: the keys among `dynamic` that are variables; `root` and the rest belong to this module.

    Raises:
        ConfigError: every constant value that cannot be resolved, every swept key that has no place.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        dynamic: Collection[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        timestamp: str | None = None,
    ) -> None:
        self.environment: Mapping[str, str] = os.environ if environment is None else environment
        self.timestamp = timestamp
        self.free: frozenset[str] = frozenset()
        #: Where each swept config key stands.
        self.places: dict[str, Path] = {}
        self._dynamic = tuple(dict.fromkeys(dynamic))
        self._faults: dict[Fault, None] = {}
        self._reads: set[str] = set()
        self._located: dict[Path, tuple[Node, Path]] = {}
        self._values: dict[tuple[Path, str], Node] = {}
        root = self._built(raw, (), self._faults)
        assert isinstance(root, Container)
        self.root = root
        # Shorter keys first, so that a key below another swept one is noticed whatever their order.
        for key in sorted(self._dynamic, key=lambda name: (name.count("."), name)):
            self._place(key)
        self._fold(self.root, NoPoint(self), self._faults)
        if self._faults:
            raise ConfigError(*self._faults)

    # ---- results

    @property
    def folded(self) -> Mapping[str, Any]:
        """The config with every constant resolved and `DYNAMIC` where points differ. Read only."""
        folded: Mapping[str, Any] = self.root.folded
        return folded

    @property
    def dynamic_parts(self) -> tuple[Path, ...]:
        """The places whose values differ between points, as paths (a key may hold a dot itself)."""
        return tuple(dynamic_places(self.root))

    @property
    def dynamic_paths(self) -> tuple[str, ...]:
        """`dynamic_parts` as dotted keys."""
        return tuple(".".join(path) for path in self.dynamic_parts)

    @property
    def reads(self) -> frozenset[str]:
        """The swept keys and the `job.*` and `sibling.*` names that some value of the config refers to."""
        return self._named(self._reads)

    def reads_of(self, text: str) -> frozenset[str]:
        """As `reads`, for one text (such as a swept value).

        Raises:
            ConfigError: the text is broken.
        """
        try:
            return self._named(compile_text(text, ("",)).reads) if has_reference(text) else frozenset()
        except Problem as problem:
            raise ConfigError(Fault(what=str(problem), value=text, hint=problem.hint)) from None

    def at(
        self,
        values: Mapping[str, Any],
        job: Mapping[str, Any],
        *,
        sibling: Mapping[str, Any] | None = None,
        resolved: bool = False,
    ) -> Scope:
        """One point. `job` is looked at when a value asks for it, so it may be filled in until then.

        `resolved`: the values are those of `point_values`.
        """
        return Scope(self, values, {"job": job, "sibling": {} if sibling is None else sibling}, resolved)

    def point(self, values: Mapping[str, Any], job: Mapping[str, Any]) -> Mapping[str, Any]:
        """The resolved config of one point. Constant parts are shared between points: read only.

        Raises:
            ConfigError: with the dotted path and the text of the value that cannot be resolved.
        """
        return self.at(values, job).config()

    # ---- building

    def _built(self, value: Any, path: Path, faults: dict[Fault, None]) -> Node:
        if isinstance(value, Mapping):
            node = Container(path, dict, optional=isinstance(value, Room))
            for key, item in value.items():
                node.children[str(key)] = self._built(item, (*path, str(key)), faults)
            return node
        if isinstance(value, (list, tuple)):
            node = Container(path, list)
            for index, item in enumerate(value):
                node.children[str(index)] = self._built(item, (*path, str(index)), faults)
            return node
        if isinstance(value, str) and has_reference(value):
            try:
                expression = compile_text(value, path)
            except Problem as problem:
                faults[Fault(key=".".join(path), what=str(problem), value=value, hint=problem.hint)] = None
                return Node(path, value)
            self._reads |= expression.reads
            return Leaf(path, value, expression)
        return Node(path, value)

    def _place(self, key: str) -> None:
        """Put an override where the key stands in the config; a name that stands nowhere is free."""
        parts = tuple(key.split("."))
        node, rest = walked(self.root, parts)
        if node is self.root and rest and parts[0] not in self.root.children:
            self.free |= {key}
            return
        if isinstance(node, Override):
            self._misplaced(key, f"`{node.key}` is swept too", "sweep only one of the two")
        elif not rest:
            self._override(self._parent(node.path), node.path, key, node)
        elif not isinstance(node, Container) or node.kind is list:
            where = ".".join(node.path)
            self._misplaced(key, f"`{where}` is not a mapping, so nothing below it can be swept", "")
        elif len(rest) > 1:
            wanted = ".".join((*node.path, rest[0]))
            known = [".".join((*node.path, name)) for name in node.children]
            self._misplaced(key, f"`{wanted}` does not exist", did_you_mean(wanted, known))
        else:
            self._override(node, (*node.path, *rest), key, None)

    def _misplaced(self, key: str, what: str, hint: str) -> None:
        self._faults[Fault(key=key, what=what, hint=hint)] = None

    def _override(self, parent: Node, where: Path, key: str, original: Node | None) -> None:
        assert isinstance(parent, Container)
        parent.children[where[-1]] = Override(where, key, original)
        self.places[key] = where

    def _parent(self, where: Path) -> Node:
        node: Node = self.root
        for part in where[:-1]:
            assert isinstance(node, Container)
            node = node.children[part]
        return node

    def _fold(self, node: Node, scope: NoPoint, faults: dict[Fault, None]) -> None:
        if isinstance(node, Override):
            if node.original is not None:
                # What stands below a swept key may never be needed: it is complained about when it is.
                self._fold(node.original, scope, {})
            return
        if isinstance(node, Container):
            for child in node.children.values():
                self._fold(child, scope, faults)
            node.settle()
            return
        try:
            scope.value(node)
        except Hit:
            pass
        except ConfigError as error:
            faults.update(dict.fromkeys(error.faults))

    def node_of(self, path: Path, value: Any) -> Node:
        """The node of a swept value, made once."""
        key = (path, value if isinstance(value, str) else repr(value))
        node = self._values.get(key)
        if node is None:
            faults: dict[Fault, None] = {}
            node = self._built(value, path, faults)
            if faults:
                raise ConfigError(*faults)
            self._fold(node, NoPoint(self), {})
            self._values[key] = node
        return node

    # ---- looking up

    def located(self, path: Path, start: Node | None = None, whole: Path | None = None) -> tuple[Node, Path]:
        """The node at a path, and what remains of the path below it (within a computed value).

        Raises:
            Missing: there is none.
        """
        if start is None and path in self._located:
            return self._located[path]
        node, rest = walked(self.root if start is None else start, path)
        if rest and not isinstance(node, (Leaf, Override)):
            self._missing(node, rest, whole or path)
        if start is None:
            self._located[path] = (node, rest)
        return node, rest

    def has(self, path: Path) -> bool:
        """Whether a path exists in the config itself."""
        node, rest = walked(self.root, path)
        return not rest or isinstance(node, (Leaf, Override))

    def _missing(self, node: Node, rest: Path, path: Path) -> NoReturn:
        dotted = ".".join(path)
        if not isinstance(node, Container):
            kind = kind_of(node.static)
            raise Missing(f"`{dotted}` does not exist: `{'.'.join(node.path)}` is a {kind}")
        known = [".".join((*node.path, key)) for key in node.children]
        if node is self.root:
            known += [*self.free, *(f"{name}.…" for name in FACTS)]
        hint = did_you_mean(".".join((*node.path, rest[0])), known)
        if node is self.root and is_shell_name(rest[0]):
            hint = shell_hint("${" + rest[0])
        raise Missing(f"`{dotted}` does not exist", hint)

    def _named(self, paths: Collection[str]) -> frozenset[str]:
        found = {path for path in paths if path.split(".")[0] in FACTS}
        for name in self._dynamic:
            if any(_overlap(path, name) for path in paths):
                found.add(name)
        return frozenset(found)


def _overlap(path: str, name: str) -> bool:
    """Whether a reference to `path` (a beginning, if it ends in ".") reads the key `name` or a part of it."""
    if path.endswith(".") or not path:
        return name.startswith(path) or path.startswith(f"{name}.")
    return path == name or name.startswith(f"{path}.") or path.startswith(f"{name}.")
