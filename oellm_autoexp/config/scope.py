"""What references mean at one point of a sweep, and where no point is known yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from oellm_autoexp.config.expressions import Missing, Path, Problem, has_reference
from oellm_autoexp.config.nodes import ABSENT, DYNAMIC, UNKNOWN, Hit, Leaf, Node, Override
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

if TYPE_CHECKING:
    from oellm_autoexp.config.tree import Tree

#: Sections that exist per job only.
FACTS = ("job", "sibling")
#: What must be set by whoever uses a config.
MISSING = "???"


class Scope:
    """What references mean: point values first, then facts of the job, then the config.

    Values that were computed are kept, so a scope belongs to one point. `resolved`: the point's values are
    `point_values` already, so that a `${` in them is text.
    """

    def __init__(
        self,
        tree: Tree,
        values: Mapping[str, Any],
        facts: Mapping[str, Mapping[str, Any]],
        resolved: bool = False,
    ) -> None:
        self._tree = tree
        self._resolved = resolved
        self.values = values
        self._facts = facts
        self._memo: dict[Node, Any] = {}
        self._active: dict[Node, None] = {}
        #: Nodes whose value depends on facts.
        self._factual: set[Node] = set()
        self.environment = tree.environment
        self.timestamp = tree.timestamp

    # ---- for callers

    def config(self) -> Mapping[str, Any]:
        """The resolved config of the point. Constant parts are shared between points: read only.

        Raises:
            ConfigError: with the dotted path and the text of the value that cannot be resolved.
        """
        resolved: Mapping[str, Any] = self.value(self._tree.root)
        return resolved

    def point_values(self) -> dict[str, Any]:
        """The point's own values with their references resolved, in their order.

        Raises:
            ConfigError: as for `config`.
        """
        return {key: self.swept(key, self._tree.places.get(key, (key,))) for key in self.values}

    def with_job(self, job: Mapping[str, Any]) -> Scope:
        """The same point where `job.*` means something else; only what depends on it is computed again."""
        scope = Scope(self._tree, self.values, {**self._facts, "job": job}, self._resolved)
        scope._memo = {node: value for node, value in self._memo.items() if node not in self._factual}
        return scope

    # ---- for nodes and expressions

    def value(self, node: Node) -> Any:
        static = node.static
        if static is not DYNAMIC and static is not UNKNOWN:
            return static
        if node in self._memo:
            if node in self._factual:
                self._factual.update(self._active)
            return self._memo[node]
        if node in self._active:
            self._cycle(node)
        self._active[node] = None
        try:
            value = self._memo[node] = node.compute(self)
        except Problem as problem:
            raise _fault(node, problem) from None
        finally:
            del self._active[node]
        return value

    def swept(self, key: str, path: Path) -> Any:
        value = self.values[key]
        if self._resolved:
            return value
        if isinstance(value, str):
            return self.value(self._tree.node_of(path, value)) if has_reference(value) else value
        return self.value(self._tree.node_of(path, value)) if isinstance(value, (list, dict)) else value

    def get(self, path: Path) -> Any:
        """The value at a path.

        Raises:
            Missing: there is none.
        """
        free = self._tree.free
        for end in range(len(path), 0, -1) if free else ():
            name = ".".join(path[:end])
            if name in free:
                return self._free(name, path[end:])
        if path[0] in FACTS:
            found = self._fact(path)
            if found is not ABSENT:
                return found
        node, rest = self._tree.located(path)
        return self._at(node, rest, path)

    def _free(self, name: str, rest: Path) -> Any:
        if name not in self.values:
            raise Missing(f"the point has no `{name}`", "give it a value in sweep.base_values or defaults")
        if not rest:
            return self.swept(name, (name,))
        if self._resolved:
            return descended(self.values[name], rest, (name, *rest))
        node, rest = self._tree.located(rest, self._tree.node_of((name,), self.values[name]), (name, *rest))
        return self._at(node, rest, (name, *rest))

    def _fact(self, path: Path) -> Any:
        self._factual.update(self._active)
        section, *rest = path
        facts = self._facts.get(section, {})
        if section == "sibling" and len(rest) == 1:
            what = f"`{'.'.join(path)}` is a sibling, and no value"
            raise Missing(what, f"name what of it is meant: ${{{'.'.join(path)}.output_dir}}")
        if not rest:
            return facts
        name = ".".join(rest)
        if name in facts:
            return facts[name]
        if rest[0] in facts and len(rest) > 1:
            return descended(facts[rest[0]], tuple(rest[1:]), path)
        if self._tree.has(path):
            return ABSENT
        known = [f"{section}.{name}" for name in facts]
        raise Missing(f"`{'.'.join(path)}` does not exist", did_you_mean(".".join(path), known))

    def _at(self, node: Node, rest: Path, path: Path) -> Any:
        while rest and isinstance(node, Override):
            # Into what the point sets there, or else into what stands there: never a container as a whole,
            # of which another part may be what is being computed.
            if self._resolved and node.key in self.values:
                break
            if node.key in self.values:
                below: Node | None = self._tree.node_of(node.path, self.values[node.key])
            else:
                below = node.original
            if below is None:
                break
            node, rest = self._tree.located(rest, below, path)
        value = self.value(node)
        if value is ABSENT:
            raise Missing(f"`{'.'.join(path)}` does not exist at this point")
        value = descended(value, rest, path) if rest else value
        if isinstance(value, str) and value == MISSING:
            raise Missing(f"`{'.'.join(path)}` must be set")
        return value

    def _cycle(self, node: Node) -> NoReturn:
        chain = [*self._active, node]
        names = [".".join(each.path) or "the whole config" for each in chain[chain.index(node) :]]
        raise Problem("refers to itself: " + " -> ".join(names), "break the circle with a value")


class NoPoint(Scope):
    """The scope in which constants are folded."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, {}, {})
        self.failed: dict[Node, ConfigError] = {}

    def value(self, node: Node) -> Any:
        if node.static is DYNAMIC:
            raise Hit
        if node in self.failed:
            raise self.failed[node]
        try:
            value = super().value(node)
        except Hit:
            node.static = DYNAMIC
            raise
        except ConfigError as error:
            self.failed[node] = error
            raise
        node.static = value
        return value

    def _free(self, *_: Any) -> Any:
        raise Hit

    def _fact(self, *_: Any) -> Any:
        raise Hit

    def _at(self, node: Node, rest: Path, path: Path) -> Any:
        if isinstance(node, Override):
            raise Hit
        return super()._at(node, rest, path)


def descended(value: Any, rest: Path, path: Path) -> Any:
    """What stands below a computed value."""
    while rest:
        for end in range(len(rest), 0, -1):
            key = ".".join(rest[:end])
            if isinstance(value, Mapping) and key in value:
                value, rest = value[key], rest[end:]
                break
            if isinstance(value, (list, tuple)) and end == 1 and key.isdigit() and int(key) < len(value):
                value, rest = value[int(key)], rest[1:]
                break
        else:
            known = list(value) if isinstance(value, Mapping) else []
            raise Missing(f"`{'.'.join(path)}` does not exist", did_you_mean(rest[0], known) if known else "")
    return value


def _fault(node: Node, problem: Problem) -> ConfigError:
    text = symbols.shown(node.text) if isinstance(node, Leaf) else ""
    return ConfigError(Fault(key=".".join(node.path), what=str(problem), value=text, hint=problem.hint))
