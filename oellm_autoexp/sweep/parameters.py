"""A sweep that a program declares key by key, with what a config cannot say: functions of a point."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault, ValidationError, did_you_mean
from oellm_autoexp.sweep.filters import compile_filter
from oellm_autoexp.sweep.grid import alternatives
from oellm_autoexp.sweep.nodes import (
    Alternatives,
    Computed,
    Conditional,
    Fixed,
    Group,
    Node,
    Values,
    called,
    placed,
    product,
    union,
)

#: A filter as text (`lr < 0.1`), values that a point must have, or a function of the point.
Condition = str | Mapping[str, Any] | Callable[[Values], Any]
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("low", "high"),
    "loguniform": ("low", "high"),
    "normal": ("mean", "std"),
    "choice": ("choices",),
}
_FORMAT_KEYS = (
    "name",
    "description",
    "parameters",
    "linked",
    "drawn",
    "conditional",
    "constraints",
    "excluded",
)
_ABSENT = object()


class ParameterGrid:
    """A space of parameters: the product of all that is added, made one point at a time.

    Keys are dotted (`optimizer.lr`). Points are in the order of declaration, the last key changing fastest:
    plain parameters, then linked and drawn ones; conditional and computed ones see what stands before them;
    constraints and exclusions see the whole point. Adding a key again replaces it.

        grid = ParameterGrid("search").add_parameter("optimizer.lr", [1e-3, 1e-4])
        grid.add_constraint("optimizer.lr < 1e-3 or model.hidden_size < 512")
    """

    def __init__(self, name: str, description: str = "") -> None:
        self.name = name
        self.description = description
        #: The values of each plain parameter.
        self.parameters: dict[str, list[Any]] = {}
        self._linked: list[list[Values]] = []
        self._drawn: dict[str, dict[str, Any]] = {}
        self._conditional: dict[str, tuple[list[Any], Condition]] = {}
        self._computed: dict[str, Callable[[Values], Any]] = {}
        self._constraints: list[Condition] = []
        self._excluded: list[Condition] = []
        self._made: Node | None = None

    # ---- declaring

    def add_parameter(self, key: str, values: Sequence[Any]) -> ParameterGrid:
        """Sweep a key over values.

        Raises:
            ValidationError: a key or a value that cannot be swept, or no value.
        """
        self.parameters[key] = list(self._checked(key, values).values)
        return self._changed()

    def add_nested_parameter(self, key_path: str, values: Sequence[Any]) -> ParameterGrid:
        """`add_parameter`, whose keys may be dotted."""
        return self.add_parameter(key_path, values)

    def add_linked_parameters(
        self, keys: Sequence[str], rows: Sequence[Sequence[Any] | Mapping[str, Any]]
    ) -> ParameterGrid:
        """Sweep several keys together: each row holds a value for every key. Further calls add alternatives.

        Raises:
            ValidationError: a row of another length or with other keys.
        """
        made = []
        for number, row in enumerate(rows):
            given = list(row) if isinstance(row, Mapping) else None
            if len(row) != len(keys) or (given is not None and set(given) != set(keys)):
                what = f"needs a value for each of {', '.join(keys)}"
                raise ValidationError(Fault(key=f"{self.name}.{number}", what=what, value=repr(row)[:200]))
            values = [row[key] for key in keys] if isinstance(row, Mapping) else list(row)
            made.append({key: self._one(key, value) for key, value in zip(keys, values, strict=True)})
        if not made or not keys:
            raise ValidationError(Fault(key=self.name, what="linked parameters need keys and rows"))
        self._linked.append(made)
        return self._changed()

    def add_conditional_parameter(self, key: str, values: Sequence[Any], when: Condition) -> ParameterGrid:
        """Sweep a key over values at the points where `when` holds; the others do not have it.

        Raises:
            ValidationError: as `add_parameter`.
        """
        self._conditional[key] = (list(self._checked(key, values).values), when)
        return self._changed()

    def add_computed_parameter(self, key: str, function: Callable[[Values], Any]) -> ParameterGrid:
        """Give a key a value that follows from the point; what the function raises is an error."""
        self._checked(key, [None])
        self._computed[key] = function
        return self._changed()

    def add_parameter_distribution(
        self, key: str, distribution: str, n_samples: int, seed: int = 0, **bounds: Any
    ) -> ParameterGrid:
        """Sweep a key over values that are drawn: the same ones for the same seed, on every machine.

        `uniform` and `loguniform` take `low` and `high`, `normal` takes `mean` and `std`, `choice` takes
        `choices`.

        Raises:
            ValidationError: an unknown distribution, missing or impossible bounds.
        """
        drawn = {"distribution": distribution, "n_samples": n_samples, "seed": seed, **bounds}
        self._checked(key, _draw(key, drawn))
        self._drawn[key] = drawn
        return self._changed()

    def add_constraint(self, constraint: Condition) -> ParameterGrid:
        """Keep only the points for which it holds."""
        self._constraints.append(constraint)
        return self._changed()

    def exclude_combinations(self, combinations: Sequence[Condition]) -> ParameterGrid:
        """Leave out the points for which one of these holds."""
        if isinstance(combinations, (str, Mapping)) or callable(combinations):
            combinations = [combinations]
        self._excluded += combinations
        return self._changed()

    # ---- points

    def get_parameter_count(self) -> int:
        """How many points there are: at once, unless functions or conditions decide, which are asked then.

        Raises:
            ValidationError: a mistake in what was added, or a function that fails on a point.
        """
        node = self._node()
        if node is None:
            return 0
        return sum(1 for _ in self.generate_permutations()) if node.filtered else node.size

    def generate_permutations(self) -> Iterator[Values]:
        """The points, one at a time; a grid without parameters has none.

        Raises:
            ValidationError: as `get_parameter_count`.
        """
        node = self._node()
        points = iter(()) if node is None else node.points()
        with _validation():
            yield from points

    def sample(self, count: int, seed: int = 0) -> list[Values]:
        """Different points, drawn evenly and without building the grid; all of them where there are fewer.

        Raises:
            ValidationError: as `get_parameter_count`.
        """
        node = self._node()
        found: list[Values] = []
        if node is None or count < 1:
            return found
        with _validation():
            for number in _shuffled(node.size, seed):
                point = node.at(number)
                if point is not None:
                    found.append(point)
                    if len(found) == count:
                        break
        return found

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that a point may have, in order."""
        node = self._node()
        return node.keys if node is not None else ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The keys that tell points apart: all but the computed ones."""
        node = self._node()
        return node.labels if node is not None else ()

    # ---- as data

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads.

        Raises:
            ValidationError: it has a function, which no file can hold.
        """
        for where, function in self._functions():
            what = f"the function {placed(function)} cannot be saved"
            hint = "write it as text, such as 'lr < 0.1'" if where != "computed" else "add it after loading"
            raise ValidationError(Fault(key=f"{self.name}.{where}", what=what, hint=hint))
        made = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "linked": self._linked,
            "drawn": self._drawn,
            "conditional": {
                key: {"values": values, "when": when} for key, (values, when) in self._conditional.items()
            },
            "constraints": self._constraints,
            "excluded": self._excluded,
        }
        return {key: value for key, value in made.items() if value or key == "name"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParameterGrid:
        """A grid of `to_dict`.

        Raises:
            ValidationError: what it holds is no grid.
        """
        unknown = [key for key in data if key not in _FORMAT_KEYS]
        if unknown:
            hint = did_you_mean(str(unknown[0]), _FORMAT_KEYS)
            raise ValidationError(Fault(key=str(unknown[0]), what="unknown key of a grid", hint=hint))
        try:
            grid = cls(str(data["name"]), str(data.get("description", "")))
            for key, values in data.get("parameters", {}).items():
                grid.add_parameter(key, values)
            for rows in data.get("linked", ()):
                grid.add_linked_parameters(list(rows[0]), rows)
            for key, drawn in data.get("drawn", {}).items():
                grid.add_parameter_distribution(key, **drawn)
            for key, given in data.get("conditional", {}).items():
                grid.add_conditional_parameter(key, given["values"], given["when"])
            for constraint in data.get("constraints", ()):
                grid.add_constraint(constraint)
            grid.exclude_combinations(data.get("excluded", ()))
        except (LookupError, TypeError, AttributeError) as error:
            what = f"is no grid: {type(error).__name__} {error}"
            raise ValidationError(Fault(what=what, hint="save one with save_grid_config")) from None
        return grid

    def _functions(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        conditions = [("conditional", when) for _, when in self._conditional.values()]
        conditions += [("constraints", each) for each in self._constraints]
        conditions += [("excluded", each) for each in self._excluded]
        conditions += [("computed", each) for each in self._computed.values()]
        for where, each in conditions:
            if not isinstance(each, (str, Mapping)):
                yield where, each

    # ---- as a tree of nodes

    def _changed(self) -> ParameterGrid:
        self._made = None
        return self

    def _checked(self, key: str, values: Sequence[Any]) -> Alternatives:
        with _validation():
            return alternatives(key, values, f"{self.name}.{key}")

    def _one(self, key: str, value: Any) -> Any:
        return self._checked(key, [value]).values[0]

    def _node(self) -> Node | None:
        if not (self.parameters or self._linked or self._drawn):
            if self._conditional or self._computed:
                what = "has only parameters that depend on others"
                raise ValidationError(Fault(key=self.name, what=what, hint="add a parameter to depend on"))
            return None
        if self._made is None:
            with _validation():
                self._made = self._built()
        return self._made

    def _built(self) -> Node:
        parts: list[Node] = [self._checked(key, values) for key, values in self.parameters.items()]
        if self._linked:
            rows = [row for group in self._linked for row in group]
            parts.append(union([Fixed(keys=tuple(row), labels=tuple(row), values=row) for row in rows]))
        parts += [self._checked(key, _draw(key, drawn)) for key, drawn in self._drawn.items()]
        keys = [key for part in parts for key in part.keys]
        for key in (*keys, *self._conditional, *self._computed):
            if [*keys, *self._conditional, *self._computed].count(key) > 1:
                raise ConfigError(Fault(key=f"{self.name}.{key}", what="is declared in two ways"))
        node = product(parts)
        for key, (values, when) in self._conditional.items():
            holds = self._holds(when, node.keys, f"{self.name}.{key}.when")
            names = (*node.keys, key)
            size = node.size * len(values)
            node = Conditional(names, names, size, True, body=node, values=values, when=holds)
        for key, function in self._computed.items():
            place = f"{self.name}.{key}"
            value = self._computing(function, key, place)
            names = (*node.keys, key)
            # What follows from the other keys tells no points apart.
            node = Computed(names, node.labels, node.size, node.filtered, body=node, value=value)
        filters = [
            self._holds(each, node.keys, f"{self.name}.constraints.{number}")
            for number, each in enumerate(self._constraints)
        ]
        for number, each in enumerate(self._excluded):
            filters.append(_negated(self._holds(each, node.keys, f"{self.name}.excluded.{number}")))
        if not filters:
            return node
        return Group(
            node.keys, node.labels, node.size, True, body=node, below={}, defaults={}, filters=filters
        )

    def _computing(self, function: Callable[[Values], Any], key: str, place: str) -> Callable[[Values], Any]:
        call = called(function, place)
        return lambda values: alternatives(key, [call(values)], place).values[0]

    def _holds(self, condition: Condition, keys: Sequence[str], place: str) -> Callable[[Values], bool]:
        if isinstance(condition, str):
            return compile_filter(condition, keys, key=place)
        if isinstance(condition, Mapping):
            for key in condition:
                if key not in keys:
                    raise ConfigError(
                        Fault(key=f"{place}.{key}", what="is not swept", hint=did_you_mean(key, keys))
                    )
            wanted = dict(condition)
            return lambda values: all(values.get(key, _ABSENT) == value for key, value in wanted.items())
        if not callable(condition):
            raise ConfigError(
                Fault(key=place, what="must be text, a mapping or a function", value=repr(condition))
            )
        call = called(condition, place)
        return lambda values: bool(call(values))


def _negated(holds: Callable[[Values], bool]) -> Callable[[Values], bool]:
    return lambda values: not holds(values)


class _validation:
    """What the engine says of a config is a mistake of a program here."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ConfigError) and not isinstance(error, ValidationError):
            raise ValidationError(*error.faults) from error.__cause__


# ---------------------------------------------------------------- chance


def _uniform(seed: Any, number: int) -> float:
    """A number of at least 0 and below 1 that follows from seed and number."""
    digest = hashlib.sha256(f"{seed}\0{number}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _draw(key: str, drawn: Mapping[str, Any]) -> list[Any]:
    """The values of a distribution.

    Raises:
        ValidationError: there is no such distribution, or its bounds cannot be.
    """
    kind, count, seed = drawn["distribution"], drawn["n_samples"], f"{drawn['seed']}\0{key}"
    wanted = _DISTRIBUTIONS.get(kind)
    if wanted is None:
        hint = did_you_mean(str(kind), _DISTRIBUTIONS)
        raise ValidationError(Fault(key=key, what="unknown distribution", value=str(kind)[:200], hint=hint))
    given = {
        name: value for name, value in drawn.items() if name not in ("distribution", "n_samples", "seed")
    }
    if set(given) != set(wanted):
        what = f"{kind} takes {' and '.join(wanted)}, not {', '.join(given) or 'nothing'}"
        raise ValidationError(Fault(key=key, what=what))
    if type(count) is not int or count < 1:
        raise ValidationError(
            Fault(key=key, what="n_samples must be a number above 0", value=repr(count)[:200])
        )
    if kind == "choice":
        choices = given["choices"]
        if not isinstance(choices, (list, tuple)) or not choices:
            raise ValidationError(
                Fault(key=key, what="choices must be a list with items", value=repr(choices))
            )
        return [choices[int(_uniform(seed, number) * len(choices))] for number in range(count)]
    low, high = given[wanted[0]], given[wanted[1]]
    numbers = all(type(each) in (int, float) and math.isfinite(each) for each in (low, high))
    if not numbers or (kind != "normal" and low >= high) or (kind == "loguniform" and low <= 0):
        what = f"{wanted[0]} and {wanted[1]} must be numbers in this order"
        what += ", above 0" if kind == "loguniform" else ""
        raise ValidationError(Fault(key=key, what=what, value=f"{low!r}, {high!r}"[:200]))
    if kind == "normal" and high < 0:
        raise ValidationError(Fault(key=key, what="std must not be negative", value=repr(high)))
    return [_drawn(kind, low, high, seed, number) for number in range(count)]


def _drawn(kind: str, low: float, high: float, seed: str, number: int) -> float:
    share = _uniform(seed, number)
    if kind == "uniform":
        return low + share * (high - low)
    if kind == "loguniform":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    # Box and Muller.
    radius = math.sqrt(-2 * math.log(1 - share))
    return low + high * radius * math.cos(2 * math.pi * _uniform(f"{seed}\0angle", number))


def _shuffled(size: int, seed: int) -> Iterator[int]:
    """Every number below `size` once, in an order that follows from the seed, without keeping them.

    A Feistel network permutes the next power of four; what lies beyond `size` is sent through it again.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1

    def permuted(number: int) -> int:
        left, right = number >> half, number & mask
        for turn in range(4):
            digest = hashlib.sha256(f"{seed}\0{turn}\0{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest[:16], "big") & mask)
        return left << half | right

    for start in range(size):
        number = permuted(start)
        while number >= size:
            number = permuted(number)
        yield number
