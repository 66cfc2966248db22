"""The grammar of sweep filters: comparisons, and/or/not/in, arithmetic, literals, len/min/max. Nothing else.

The text is parsed as a Python expression, every construct must be in a list of allowed ones, and what
remains becomes closures: nothing is ever evaluated by Python itself. Sizes are bounded, so no filter can
take long or need much memory whatever it says.
"""

from __future__ import annotations

import ast
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import kind_of

MAX_LENGTH = 2000
MAX_DEPTH = 50
#: Bits of the largest integer that arithmetic may give.
MAX_BITS = 4096

Values = Mapping[str, Any]
_Code = Callable[[Values], Any]

#: YAML's words, which Python would take for names.
_WORDS = {"true": True, "false": False, "null": None}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: _contains(container, item),
    ast.NotIn: lambda item, container: not _contains(container, item),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"len": len, "min": min, "max": max}
_REFUSED = {
    ast.Call: "a call (only len, min and max may be called)",
    ast.Subscript: "indexing with [...]",
    ast.Lambda: "lambda",
    ast.IfExp: "if/else (write `a and b or c`)",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "an f-string",
    ast.Dict: "a mapping",
    ast.Set: "a set (write a list)",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Starred: "unpacking with *",
    ast.Is: "`is` (write ==)",
    ast.IsNot: "`is not` (write !=)",
}


class _Refused(Exception):
    """A construct that is not in the grammar, or a value that an operation does not take."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True)
class Filter:
    """A compiled filter; calling it says whether a point stays. `reads`: the keys it looks at."""

    text: str
    key: str
    reads: frozenset[str]
    code: _Code

    def __call__(self, values: Values) -> bool:
        """True keeps the point.

        Raises:
            ConfigError: the filter cannot be applied to this point.
        """
        try:
            result = self.code(values)
            if isinstance(result, bool):
                return result
            raise _Refused(f"gives a {kind_of(result)}, not true or false", "compare it with something")
        except (_Refused, TypeError, ValueError, ArithmeticError) as error:
            point = ", ".join(f"{name}={value!r:.60}" for name, value in values.items())
            fault = Fault(
                key=self.key,
                what=f"{error} (at the point {point or 'without values'})",
                value=self.text,
                hint=error.hint if isinstance(error, _Refused) else "",
            )
            raise ConfigError(fault) from error


def compile_filter(text: Any, names: Iterable[str], *, key: str = "sweep.filter") -> Filter:
    """Compile a filter over the swept keys `names` (dotted ones too; `key`: where the text was written).

    Raises:
        ConfigError: it is not text, not in the grammar, or names a key that is not swept.
    """
    try:
        if not isinstance(text, str):
            raise _Refused(f"a filter must be text, not a {kind_of(text)}", "write filter: 'lr < 0.1'")
        compiler = _Compiler(tuple(names))
        code = compiler.compile(text)
    except _Refused as refused:
        shown = text if isinstance(text, str) else repr(text)
        raise ConfigError(Fault(key=key, what=str(refused), value=shown[:300], hint=refused.hint)) from None
    return Filter(text=text, key=key, reads=frozenset(compiler.reads), code=code)


class _Compiler:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.reads: set[str] = set()
        #: Stand-ins for keys that are no Python names (`gpus-per-node`, `lambda`).
        self.stand_ins: dict[str, str] = {}

    def compile(self, text: str) -> _Code:
        if len(text) > MAX_LENGTH:
            raise _Refused(f"longer than {MAX_LENGTH} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.readable(" ".join(text.split("\n")).strip()), mode="eval")
        except SyntaxError as error:
            raise _Refused(f"not an expression: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise _Refused(f"not an expression: {error or 'nested too deep'}") from None
        return self.node(tree.body, 0)

    def readable(self, text: str) -> str:
        """The text with stand-ins for the keys that Python would read as something else."""
        odd = [name for name in self.names if not _python_name(name)]
        if not odd:
            return text
        longest_first = "|".join(re.escape(name) for name in sorted(odd, key=len, reverse=True))
        pattern = re.compile(rf"'[^']*'|\"[^\"]*\"|(?<![\w.])(?:{longest_first})(?![\w.])")

        def stand_in(match: re.Match[str]) -> str:
            name = match.group()
            if name[0] in "'\"":
                return name
            made = f"key_{len(self.stand_ins)}_"
            while made in self.names:
                made += "_"
            self.stand_ins[made] = name
            return made

        return pattern.sub(stand_in, text)

    def node(self, node: ast.AST, depth: int) -> _Code:
        if depth > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        made: Callable[[Any, int], _Code] | None = getattr(self, f"on_{type(node).__name__}", None)
        if made is None:
            _refuse(node)
        return made(node, depth + 1)

    def on_Constant(self, node: ast.Constant, _depth: int) -> _Code:
        value = node.value
        if value is not None and not isinstance(value, (str, int, float)):
            raise _Refused(f"{type(value).__name__} literals are not part of filters")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise _Refused("a number is too large")
        return lambda _values: value

    def on_Tuple(self, node: ast.Tuple | ast.List, depth: int) -> _Code:
        items = [self.node(item, depth) for item in node.elts]
        return lambda values: [item(values) for item in items]

    on_List = on_Tuple

    def on_Name(self, node: ast.Name | ast.Attribute, _depth: int) -> _Code:
        name = self.stand_ins.get(_dotted(node), _dotted(node))
        if name in self.names:
            self.reads.add(name)
            return lambda values: _value(values, name)
        if name in _WORDS:
            word = _WORDS[name]
            return lambda _values: word
        raise _Refused(f"unknown name `{name}`: it is not swept", did_you_mean(name, self.names))

    on_Attribute = on_Name

    def on_BoolOp(self, node: ast.BoolOp, depth: int) -> _Code:
        items = [self.node(item, depth) for item in node.values]
        stop = isinstance(node.op, ast.Or)

        def code(values: Values) -> Any:
            result: Any = None
            for item in items:
                result = item(values)
                if bool(result) is stop:
                    break
            return result

        return code

    def on_UnaryOp(self, node: ast.UnaryOp, depth: int) -> _Code:
        item = self.node(node.operand, depth)
        if isinstance(node.op, ast.Not):
            return lambda values: not item(values)
        if isinstance(node.op, ast.USub):
            return lambda values: -_number(item(values), "-")
        if isinstance(node.op, ast.UAdd):
            return lambda values: _number(item(values), "+")
        return _refuse(node.op)

    def on_BinOp(self, node: ast.BinOp, depth: int) -> _Code:
        operation = _ARITHMETIC.get(type(node.op))
        if operation is None:
            _refuse(node.op)
        left, right, sign = self.node(node.left, depth), self.node(node.right, depth), type(node.op)
        return lambda values: _bounded(sign, operation, left(values), right(values))

    def on_Compare(self, node: ast.Compare, depth: int) -> _Code:
        first = self.node(node.left, depth)
        steps = []
        for sign, operand in zip(node.ops, node.comparators, strict=True):
            compare = _COMPARISONS.get(type(sign))
            if compare is None:
                _refuse(sign)
            steps.append((compare, self.node(operand, depth)))
        if len(steps) == 1:
            only, second = steps[0]
            return lambda values: only(first(values), second(values))

        def code(values: Values) -> bool:
            left = first(values)
            for compare, operand in steps:
                right = operand(values)
                if not compare(left, right):
                    return False
                left = right
            return True

        return code

    def on_Call(self, node: ast.Call, depth: int) -> _Code:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            _refuse(node)
        name = node.func.id
        if not node.args:
            raise _Refused(f"{name}() needs something between its brackets")
        function, items = _FUNCTIONS[name], [self.node(item, depth) for item in node.args]
        return lambda values: function(*(item(values) for item in items))


def _refuse(node: ast.AST) -> NoReturn:
    what = _REFUSED.get(type(node), type(node).__name__)
    raise _Refused(
        f"{what} is not part of filters",
        "use comparisons, and/or/not/in, + - * / // % **, literals, len(), min(), max()",
    )


def _python_name(key: str) -> bool:
    """Whether Python's parser reads the dotted key as names joined by dots."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in key.split("."))


def _dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise _Refused("a dot behind something that is not a name")
    return ".".join([node.id, *reversed(parts)])


def _value(values: Values, name: str) -> Any:
    try:
        return values[name]
    except KeyError:
        raise _Refused(f"the point has no `{name}`", "give it a value in base_values or defaults") from None


def _contains(container: Any, item: Any) -> bool:
    if not isinstance(container, (str, list, tuple)):
        raise _Refused(f"`in` needs a list or text on its right, not a {kind_of(container)}")
    return item in container


def _number(value: Any, sign: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused(f"`{sign}` needs numbers, not a {kind_of(value)}")
    return value


def _bounded(sign: type[ast.operator], operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Arithmetic on numbers whose result is a number of bounded size."""
    _number(left, sign.__name__), _number(right, sign.__name__)
    if isinstance(left, int) and isinstance(right, int):
        bits = 0
        if sign is ast.Mult:
            bits = left.bit_length() + right.bit_length()
        elif sign is ast.Pow and right > 0:
            bits = left.bit_length() * right
        if bits > MAX_BITS:
            raise _Refused("a number would become too large")
    try:
        result = operation(left, right)
    except OverflowError:
        raise _Refused("a number would become too large") from None
    if isinstance(result, complex):
        raise _Refused("a root of a negative number is not a number")
    return result
