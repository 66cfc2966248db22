"""`--sweep KEY=VALUES`: an axis in Hydra's grammar of overrides, as its multirun takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oellm_autoexp.errors import UsageError

_QUOTE = "put other texts in quotes: --sweep \"note='a; b','c, d'\""
_EXAMPLE = "for example --sweep lr=1e-3,3e-4, or --sweep 'seed=range(0,4)'"


def axis(text: str) -> tuple[str, list[Any]]:
    """The key and its alternatives; `[…]` is one value, a list.

    Raises:
        UsageError: it is no axis.

    >>> axis("lr=1e-3,3e-4"), axis("seed=range(0,4,2)"), axis("betas=[0.9,0.95]")
    (('lr', [0.001, 0.0003]), ('seed', [0, 2]), ('betas', [[0.9, 0.95]]))
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, IntervalSweep, OverrideType, Sweep
    from hydra.errors import HydraException

    place = f"--sweep {text}"
    try:
        given = OverridesParser.create().parse_override(text)
        value = given.value()
        if given.type is not OverrideType.CHANGE or given.package is not None:
            raise UsageError("an axis is KEY=VALUES", where=place, hint=_EXAMPLE)
        if isinstance(value, (Glob, IntervalSweep)):
            raise UsageError("only choices and ranges can be counted", where=place, hint=_EXAMPLE)
        if isinstance(value, Sweep) and getattr(value, "shuffle", False):
            what = "a plan has one order, so nothing is shuffled"
            raise UsageError(what, where=place, hint="leave `shuffle` out")
        found = list(given.sweep_iterator()) if given.is_sweep_override() else [value]
    except HydraException as error:
        what = f"cannot be read: {str(error).splitlines()[0]}"
        raise UsageError(what, where=place, hint=_QUOTE if "=" in text else _EXAMPLE) from None
    if not found:
        raise UsageError("has no values, so there would be no jobs", where=place, hint=_EXAMPLE)
    return given.key_or_group, [_plain(item) for item in found]


def _plain(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
