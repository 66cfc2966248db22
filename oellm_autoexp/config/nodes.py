"""The tree that a config becomes: constants, texts with `${…}`, containers, and keys that points set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from oellm_autoexp.config.expressions import Expression, Path

if TYPE_CHECKING:
    from oellm_autoexp.config.scope import Scope


class Dynamic:
    """Stands in `Tree.folded` where the value differs between points."""

    def __repr__(self) -> str:
        return "<differs between points>"


DYNAMIC: Final = Dynamic()
#: Not evaluated yet, and: not there at this point.
UNKNOWN: Final = object()
ABSENT: Final = object()


class Hit(Exception):
    """The scope without a point was asked for something that only a point knows."""


class Node:
    """A place in the config. `static`: its value at every point, DYNAMIC, or UNKNOWN before folding."""

    __slots__ = ("path", "static")

    def __init__(self, path: Path, static: Any = UNKNOWN) -> None:
        self.path = path
        self.static = static

    def compute(self, scope: Scope) -> Any:
        raise NotImplementedError

    @property
    def folded(self) -> Any:
        return self.static


class Leaf(Node):
    """A text with `${…}`."""

    __slots__ = ("expression", "text")

    def __init__(self, path: Path, text: str, expression: Expression) -> None:
        super().__init__(path)
        self.text = text
        self.expression = expression

    def compute(self, scope: Scope) -> Any:
        return self.expression.code(scope)


class Container(Node):
    """A mapping or a list: children by key, list items by their number."""

    __slots__ = ("children", "dynamic", "kind", "optional", "template")

    def __init__(
        self, path: Path, kind: type[dict[str, Any]] | type[list[Any]], *, optional: bool = False
    ) -> None:
        super().__init__(path)
        self.kind = kind
        #: Not there where none of its children is.
        self.optional = optional
        self.children: dict[str, Node] = {}
        #: What a point's copy starts from, and what is replaced in it.
        self.template: Any = None
        self.dynamic: list[tuple[Any, Node]] = []

    def compute(self, scope: Scope) -> Any:
        if self.template is None:
            values = [(key, scope.value(child)) for key, child in self.children.items()]
            there = [pair for pair in values if pair[1] is not ABSENT]
            return ABSENT if self.optional and not there else self.made(there)
        copy = self.template.copy()
        for key, child in self.dynamic:
            value = scope.value(child)
            if value is ABSENT:
                del copy[key]
            else:
                copy[key] = value
        return ABSENT if self.optional and not copy else copy

    def made(self, pairs: Sequence[tuple[str, Any]]) -> Any:
        return dict(pairs) if self.kind is dict else [value for _, value in pairs]

    @property
    def folded(self) -> Any:
        return self.template if self.static is DYNAMIC else self.static

    def settle(self) -> None:
        """Become constant, or prepare the copying, once all children are folded."""
        dynamic = {key for key, child in self.children.items() if child.static in (DYNAMIC, UNKNOWN)}
        if not dynamic:
            if self.static in (DYNAMIC, UNKNOWN):
                self.static = self.made([(key, child.static) for key, child in self.children.items()])
            return
        self.static = DYNAMIC
        folded = [(key, child.folded) for key, child in self.children.items()]
        self.template = self.made([(key, DYNAMIC if value is UNKNOWN else value) for key, value in folded])
        self.dynamic = [
            (key if self.kind is dict else index, child)
            for index, (key, child) in enumerate(self.children.items())
            if key in dynamic
        ]


class Override(Node):
    """A key that points may set; `original` is what stands there otherwise."""

    __slots__ = ("key", "original")

    def __init__(self, path: Path, key: str, original: Node | None) -> None:
        super().__init__(path, DYNAMIC)
        self.key = key
        self.original = original

    def compute(self, scope: Scope) -> Any:
        if self.key in scope.values:
            return scope.swept(self.key, self.path)
        return ABSENT if self.original is None else scope.value(self.original)


def walked(node: Node, path: Path) -> tuple[Node, Path]:
    """As far down as the path leads: by the longest existing key first, back where that does not lead on."""
    if not path or not isinstance(node, Container):
        return node, path
    best: tuple[Node, Path] = (node, path)
    for end in range(len(path), 0, -1):
        child = node.children.get(".".join(path[:end]))
        if child is not None:
            found = walked(child, path[end:])
            if not found[1] or isinstance(found[0], (Leaf, Override)):
                return found
            if best[0] is node:
                best = found
    return best


def dynamic_places(node: Node) -> Iterator[Path]:
    if node.static is not DYNAMIC:
        return
    if isinstance(node, Container):
        for child in node.children.values():
            yield from dynamic_places(child)
    else:
        yield node.path
