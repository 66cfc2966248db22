"""What `${oc.NAME:…}` can compute: arithmetic, joins, slices. Strict: nothing is silently zero or left out.

The prefix `oc.` may be left out. Numbers may be given as text, since that is what an environment
variable holds. The variants that give integers count in exact decimals: `oc.muli:0.29,100` is 29.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.core.verdict import format_duration
from oellm_autoexp.sweep.scalars import format_scalar, kind_of

_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}


def number(value: Any) -> int | float:
    """A number, or text that is one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        raise ValueError(f"`{symbols.shown(value)}` is not a number")
    raise ValueError(f"a {kind_of(value)} is not a number")


def exact(value: Any) -> Fraction:
    """A number as the decimal that a person reads, without the rounding of binary fractions."""
    return Fraction(value if type(value) is int else repr(number(value)))


def _flat(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(tuple(value))
        else:
            yield value


def _add(first: Any, *more: Any) -> Any:
    return sum(number(value) for value in _flat((first, *more)))


def _mul(first: Any, *more: Any) -> Any:
    return math.prod(number(value) for value in _flat((first, *more)))


def _sub(first: Any, second: Any, *more: Any) -> Any:
    return reduce(lambda left, right: left - number(right), (second, *more), number(first))


def _div(first: Any, second: Any) -> float:
    return number(first) / number(second)


def _addi(first: Any, *more: Any) -> int:
    return int(sum(exact(value) for value in _flat((first, *more))))


def _muli(first: Any, *more: Any) -> int:
    return int(math.prod(exact(value) for value in _flat((first, *more))))


def _subi(first: Any, second: Any, *more: Any) -> int:
    return int(reduce(lambda left, right: left - exact(right), (second, *more), exact(first)))


def _divi(first: Any, second: Any) -> int:
    return exact(first) // exact(second)


def _cdivi(first: Any, second: Any) -> int:
    return -(-exact(first) // exact(second))


def _mul_round_int(first: Any, second: Any, multiple: Any) -> int:
    step = exact(multiple)
    return int(round(exact(first) * exact(second) / step) * step)


def _int(value: Any) -> int:
    return int(value) if isinstance(value, bool) else int(number(value))


def _sqrt(value: Any) -> float:
    return math.sqrt(number(value))


def _min(first: Any, *more: Any) -> Any:
    return min(number(value) for value in _flat((first, *more)))


def _max(first: Any, *more: Any) -> Any:
    return max(number(value) for value in _flat((first, *more)))


def _len(value: Any) -> int:
    if isinstance(value, (str, list, tuple, dict)):
        return len(value)
    raise ValueError(f"a {kind_of(value)} has no length")


def _slice(value: Any, start: Any, end: Any = None) -> Any:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"a {kind_of(value)} cannot be sliced")
    return value[_int(start) : None if end is None else _int(end)]


def _concat(first: Any, *more: Any) -> Any:
    values = (first, *more)
    if all(isinstance(value, (list, tuple)) for value in values):
        return [item for value in values for item in value]
    return "".join(format_scalar(value) for value in values)


def _join(separator: Any, *values: Any) -> str:
    return format_scalar(separator).join(format_scalar(value) for value in _flat(values))


def _dict_merge(first: Any, *more: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for value in (first, *more):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"a {kind_of(value)} is not a mapping")
        merged.update(value or {})
    return merged


def _create(value: Any) -> Any:
    return value


def _format_time(value: Any, unit: Any = "seconds") -> str:
    if unit not in _UNITS:
        raise ValueError(f"unknown unit `{unit}`, give one of {', '.join(_UNITS)}")
    seconds = exact(value) * _UNITS[unit]
    if seconds < 0:
        raise ValueError("a time cannot be negative")
    # Rounded up: a limit of half a second must not become none.
    return format_duration(math.ceil(seconds))


#: Each function with how it is written.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "add": (_add, "oc.add:NUMBER,NUMBER,…"),
    "addi": (_addi, "oc.addi:NUMBER,NUMBER,…"),
    "sub": (_sub, "oc.sub:NUMBER,NUMBER,…"),
    "subi": (_subi, "oc.subi:NUMBER,NUMBER,…"),
    "mul": (_mul, "oc.mul:NUMBER,NUMBER,…"),
    "muli": (_muli, "oc.muli:NUMBER,NUMBER,…"),
    "mul_round_int": (_mul_round_int, "oc.mul_round_int:NUMBER,NUMBER,MULTIPLE"),
    "div": (_div, "oc.div:NUMBER,NUMBER"),
    "divi": (_divi, "oc.divi:NUMBER,NUMBER (rounded down)"),
    "cdivi": (_cdivi, "oc.cdivi:NUMBER,NUMBER (rounded up)"),
    "sqrt": (_sqrt, "oc.sqrt:NUMBER"),
    "int": (_int, "oc.int:NUMBER"),
    "min": (_min, "oc.min:NUMBER,NUMBER,… or a list"),
    "max": (_max, "oc.max:NUMBER,NUMBER,… or a list"),
    "len": (_len, "oc.len:${list, mapping or text}"),
    "slice": (_slice, "oc.slice:${list},START,END"),
    "concat": (_concat, "oc.concat:${list},${list} or texts"),
    "join": (_join, "oc.join:SEPARATOR,${list} or values"),
    "dict_merge": (_dict_merge, "oc.dict_merge:${mapping},${mapping},…"),
    "create": (_create, "oc.create:VALUE"),
    "format_time": (_format_time, "oc.format_time:NUMBER,seconds|minutes|hours"),
}

NAMES = tuple(_FUNCTIONS)


def usage(name: str) -> str:
    """How a function is written, e.g. `${oc.slice:${list},START,END}`."""
    return "${" + _FUNCTIONS[name][1] + "}"


def function(name: str, arguments: int) -> Callable[..., Any]:
    """The function behind `${oc.NAME:…}`.

    Raises:
        KeyError: there is none of that name.
        ValueError: it does not take that number of arguments.
    """
    found = _FUNCTIONS[name][0]
    try:
        inspect.signature(found).bind(*range(arguments))
    except TypeError:
        raise ValueError(f"`oc.{name}` does not take {arguments} values") from None
    return found
