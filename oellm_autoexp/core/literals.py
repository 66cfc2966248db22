"""The words that every match of a pattern must contain, so that most lines need not be tried at all.

A pattern's parse tree is walked once. What cannot be told costs speed, never matches.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    from re import _constants as sre
    from re import _parser as parser
else:
    import sre_constants as sre
    import sre_parse as parser

#: What ends a line; no line contains one.
LINE_ENDS = frozenset("\n\r\0")
#: More alternatives than this are not followed.
MAX_WORDS = 16
#: Repetitions that are written out.
MAX_REPEAT = 8
#: Shorter words are on nearly every line.
MIN_BYTES = 2


@dataclass(frozen=True, slots=True)
class Literals:
    """Each match contains one of `words` (UTF-8); with `fold` they are lower case and case is ignored."""

    words: tuple[bytes, ...]
    fold: bool = False


class NeverMatches(ValueError):
    """The pattern needs a character that ends lines."""


class _Word(NamedTuple):
    text: str
    fold: bool = False


class _Facts(NamedTuple):
    #: Every text that the node can match, where these are few.
    exact: frozenset[_Word] | None = None
    #: Every match contains a word of each of these sets; an empty set: the node matches no line.
    needed: tuple[frozenset[_Word], ...] = ()


_EMPTY = frozenset([_Word("")])
_UNKNOWN = _Facts()


def required(regex: re.Pattern[str]) -> tuple[Literals, ...]:
    """What every match must contain: one word of each set, the most telling set first; () when unknown.

    The pattern must have been compiled with re.ASCII.

    Raises:
        NeverMatches: no line can match, because lines contain no line end.

    >>> [found.words for found in required(re.compile(r"(?P<kind>[Ww]arn|error): \\d+ in", re.ASCII))]
    [(b'Warn: ', b'error: ', b'warn: '), (b' in',)]
    """
    nodes: Any = parser.parse(regex.pattern, regex.flags)
    sets = _sequence(nodes, regex.flags).needed
    if frozenset() in sets:
        raise NeverMatches("the pattern needs a line end, and is tried on single lines")
    found = [_literals(words) for words in sorted(sets, key=_worth, reverse=True)]
    return tuple(dict.fromkeys(item for item in found if min(map(len, item.words)) >= MIN_BYTES))


def _literals(needed: frozenset[_Word]) -> Literals:
    fold = any(word.fold for word in needed)
    encoded = {word.text.encode() for word in needed}
    words = {word.lower() for word in encoded} if fold else encoded
    # Where `inf` must be looked for, `-inf` need not be.
    shortest = [word for word in words if not any(other in word for other in words if other != word)]
    return Literals(tuple(sorted(shortest)), fold)


def _sequence(nodes: Iterable[tuple[Any, Any]], flags: int) -> _Facts:
    run, whole = _EMPTY, True
    needed: list[frozenset[_Word]] = []
    for op, argument in nodes:
        facts = _node(op, argument, flags)
        if facts.exact is not None and len(run) * len(facts.exact) <= MAX_WORDS:
            run = _joined(run, facts.exact)
        else:
            needed += [*_usable(run), *facts.needed]
            run, whole = facts.exact if facts.exact is not None else _EMPTY, False
    return _Facts(run if whole else None, (*needed, *_usable(run)))


def _node(op: Any, argument: Any, flags: int) -> _Facts:
    if op is sre.LITERAL:
        return _characters([argument], flags)
    if op is sre.IN:
        return _class(argument, flags)
    if op in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
        return _Facts(_EMPTY)
    if op is sre.BRANCH:
        return _branch([_sequence(branch, flags) for branch in argument[1]])
    if op is sre.SUBPATTERN:
        _, added, removed, inner = argument
        if added & (re.UNICODE | re.LOCALE):
            return _UNKNOWN
        return _sequence(inner, (flags | added) & ~removed)
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, getattr(sre, "POSSESSIVE_REPEAT", None)):
        least, most, inner = argument
        return _repeat(least, most, _sequence(inner, flags))
    if op is getattr(sre, "ATOMIC_GROUP", None):
        return _sequence(argument, flags)
    return _UNKNOWN


def _characters(codes: Sequence[int], flags: int) -> _Facts:
    words = set()
    for code in codes:
        # These stand for bytes that are not UTF-8: what the bytes were is not known.
        if code == 0xFFFD or 0xD800 <= code <= 0xDFFF:
            return _UNKNOWN
        char = chr(code)
        fold = bool(flags & re.IGNORECASE) and char.isascii() and char.isalpha()
        words.add(_Word(char.lower() if fold else char, fold))
    return _Facts(frozenset(words))


def _class(items: Sequence[tuple[Any, Any]], flags: int) -> _Facts:
    codes: list[int] = []
    for op, argument in items:
        if op is sre.LITERAL:
            codes.append(argument)
        elif op is sre.RANGE and argument[1] - argument[0] < MAX_WORDS:
            codes += range(argument[0], argument[1] + 1)
        else:
            return _UNKNOWN
    return _characters(codes, flags) if len(codes) <= MAX_WORDS else _UNKNOWN


def _branch(branches: Sequence[_Facts]) -> _Facts:
    exact: frozenset[_Word] | None = frozenset()
    needed: frozenset[_Word] | None = frozenset()
    for branch in branches:
        exact = None if exact is None or branch.exact is None else exact | branch.exact
        best = max(branch.needed, key=_worth, default=None)
        needed = None if needed is None or best is None else needed | best
    if exact is not None and len(exact) > MAX_WORDS:
        exact = None
    return _Facts(exact, (needed,) if needed is not None and len(needed) <= MAX_WORDS else ())


def _repeat(least: int, most: int, inner: _Facts) -> _Facts:
    needed = inner.needed if least else ()
    if inner.exact is None:
        return _Facts(None, needed)
    powers = [_EMPTY]
    while len(powers) <= min(most, MAX_REPEAT) and len(powers[-1]) * len(inner.exact) <= MAX_WORDS:
        powers.append(_joined(powers[-1], inner.exact))
    needed = (*needed, *_usable(powers[min(least, len(powers) - 1)]))
    exact = frozenset[_Word]().union(*powers[least:]) if len(powers) > most else None
    return _Facts(exact if exact is None or len(exact) <= MAX_WORDS else None, needed)


def _joined(first: frozenset[_Word], second: frozenset[_Word]) -> frozenset[_Word]:
    return frozenset(_Word(a.text + b.text, a.fold or b.fold) for a, b in product(first, second))


def _usable(run: frozenset[_Word]) -> tuple[frozenset[_Word], ...]:
    """The words of a run that a line can contain; () where a match need not contain any."""
    words = frozenset(word for word in run if LINE_ENDS.isdisjoint(word.text))
    return () if any(not word.text for word in words) else (words,)


def _worth(words: frozenset[_Word]) -> tuple[int, int, int]:
    """Long words are rare; an empty set (no line at all) says most."""
    if not words:
        return (sys.maxsize, 0, 0)
    shortest = min(len(word.text) for word in words)
    return (min(shortest, 8), -len(words), shortest)
