"""Rules over blocks of bytes: one search for the words that matches must contain, `re` only where one is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from oellm_autoexp.core.model import LogSignal
from oellm_autoexp.core.signals import (
    CHECKPOINT_REPORT,
    MAX_LINE,
    SHOWN_LINE,
    Findings,
    SignalRule,
    as_number,
)

try:
    import ahocorasick_rs
except ImportError:  # no wheel for this platform: the same results, more slowly
    ahocorasick_rs = None  # type: ignore[assignment]

_END = re.compile(rb"[\n\r\0]")
_ODD = (b"\r", b"\0")

Search = Callable[[bytes], Iterable[tuple[int, bytes]]]


class Block:
    """Whole lines of a file. Lines end at `\\n`, `\\r`, NUL, or after MAX_LINE bytes."""

    def __init__(self, data: bytes, base: int) -> None:
        self.data = data
        #: Byte offset in the file of the first byte of `data`.
        self.base = base
        self._odd = any(char in data for char in _ODD)
        self._lower: bytes | None = None

    @property
    def lower(self) -> bytes:
        if self._lower is None:
            self._lower = self.data.lower()
        return self._lower

    def line_at(self, position: int) -> tuple[int, int]:
        """Where the line with this byte starts and ends."""
        data = self.data
        start = data.rfind(b"\n", 0, position) + 1
        end = data.find(b"\n", position)
        end = len(data) if end < 0 else end
        if self._odd:
            for char in _ODD:
                start = max(start, data.rfind(char, start, position) + 1)
                other = data.find(char, position, end)
                end = other if other >= 0 else end
        if end - start > MAX_LINE:
            start += (position - start) // MAX_LINE * MAX_LINE
            end = min(end, start + MAX_LINE)
        return start, end

    def lines(self) -> Iterator[tuple[int, int]]:
        """Every line that is not empty."""
        start, size = 0, len(self.data)
        while start < size:
            found = _END.search(self.data, start)
            end = found.start() if found is not None else size
            for piece in range(start, end, MAX_LINE):
                yield piece, min(end, piece + MAX_LINE)
            start = end + 1


class Matcher:
    """The rules that watch one file. `file` is its name in rules, such as "log"."""

    def __init__(self, rules: Sequence[SignalRule], file: str, *, fast: bool = True) -> None:
        watching = [rule for rule in rules if rule.watches(file)]
        self._file = file
        self._fast = fast
        #: A user's rule about checkpoints speaks in place of ours.
        self._told = any(rule.report == "checkpoint" for rule in watching)
        ordered = sorted(watching, key=lambda rule: -rule.priority)
        self._gauges = [rule for rule in ordered if rule.gauge]
        self._rules = [*(rule for rule in ordered if not rule.gauge), CHECKPOINT_REPORT]
        self._searches: dict[tuple[str, ...], list[_Words]] = {}

    def match(self, block: Block, generation: int, matches: Mapping[str, int]) -> Findings:
        """What a block says. `matches` are the counts so far in this attempt.

        A rule that only feeds metrics or a counter is a gauge: its last match in the block counts.
        """
        out = Findings(matches=dict(matches))
        active = [rule for rule in self._rules if not _retired(rule, out.matches)]
        for (start, end), names in sorted(self._candidates(block, active).items()):
            line = block.data[start:end].decode("utf-8", "replace")
            if CHECKPOINT_REPORT.name in names:
                out.report(line)
            for rule in active:
                if rule.slow or rule.name in names:
                    self._apply(rule, line, block.base + start, generation, out)
        for rule in self._gauges:
            self._read_gauge(rule, block, out)
        return out

    def _candidates(
        self, block: Block, active: Sequence[SignalRule]
    ) -> dict[tuple[int, int], frozenset[str]]:
        """The lines that need a look, with the rules that their words lead to."""
        out: dict[tuple[int, int], frozenset[str]] = {}
        if any(rule.slow for rule in active):
            out = dict.fromkeys(block.lines(), frozenset[str]())
        key = tuple(rule.name for rule in active)
        if key not in self._searches:
            self._searches[key] = _searches(active, fast=self._fast)
        for words in self._searches[key]:
            line = (0, 0)
            for position, names in words.hits(block):
                if not line[0] <= position < line[1]:
                    line = block.line_at(position)
                known = out.get(line)
                out[line] = names if known is None else known | names
        return out

    def _apply(self, rule: SignalRule, line: str, offset: int, generation: int, out: Findings) -> None:
        if _retired(rule, out.matches):
            return
        fields = rule.find(line)
        if fields is None or (rule is CHECKPOINT_REPORT and self._told):
            return
        out.matches[rule.name] = out.matches.get(rule.name, 0) + 1
        _numbers(rule, fields, out)
        if rule.saves:
            out.checkpoints += 1
        if rule.silent:
            return
        out.signals.append(
            LogSignal(
                rule=rule.name,
                file=self._file,
                generation=generation,
                offset=offset,
                line=line[:SHOWN_LINE],
                fields=fields,
                mode=rule.mode,
                priority=rule.priority,
                actions=rule.actions,
            )
        )

    def _read_gauge(self, rule: SignalRule, block: Block, out: Findings) -> None:
        for start, end in _backwards(rule, block):
            fields = rule.find(block.data[start:end].decode("utf-8", "replace"))
            if fields is not None:
                _numbers(rule, fields, out)
                return


def _retired(rule: SignalRule, matches: Mapping[str, int]) -> bool:
    return rule.limit is not None and matches.get(rule.name, 0) >= rule.limit


def _numbers(rule: SignalRule, fields: Mapping[str, Any], out: Findings) -> None:
    if rule.metrics:
        out.metrics.append({name: as_number(fields[name]) for name in rule.metrics})
    if rule.counter:
        out.count(rule.counter, fields[rule.counter])


def _backwards(rule: SignalRule, block: Block) -> Iterator[tuple[int, int]]:
    """The lines that a rule might match, from the last to the first."""
    if rule.slow:
        yield from reversed(list(block.lines()))
        return
    needed = rule.literals[0]
    data = block.lower if needed.fold else block.data
    end = len(data)
    while end > 0:
        position = max(data.rfind(word, 0, end) for word in needed.words)
        if position < 0:
            return
        line = block.line_at(position)
        yield line
        # A word across a cut belongs to no line; the search must still come to an end.
        end = min(position + max(map(len, needed.words)) - 1, max(line[0], 0))


# ---------------------------------------------------------------- words


class _Words:
    """One search for the words of many rules."""

    def __init__(self, owners: Mapping[bytes, frozenset[str]], *, fold: bool, fast: bool) -> None:
        self._fold = fold
        words = tuple(owners)
        # The automaton reports the first of words that overlap: what may hide behind a word counts with it.
        self._names = {
            word: frozenset[str]().union(*(owners[other] for other in words if _hides(word, other)))
            for word in words
        }
        self._search = _automaton(words) if fast and ahocorasick_rs is not None else _each(words)

    def hits(self, block: Block) -> Iterator[tuple[int, frozenset[str]]]:
        names = self._names
        for position, word in self._search(block.lower if self._fold else block.data):
            yield position, names[word]


def _searches(rules: Sequence[SignalRule], *, fast: bool) -> list[_Words]:
    owners: dict[bool, dict[bytes, frozenset[str]]] = {False: {}, True: {}}
    for rule in rules:
        if rule.slow:
            continue
        best = rule.literals[0]
        for word in best.words:
            found = owners[best.fold]
            found[word] = found.get(word, frozenset()) | {rule.name}
    return [_Words(words, fold=fold, fast=fast) for fold, words in owners.items() if words]


def _hides(word: bytes, other: bytes) -> bool:
    """Whether an occurrence of `other` can begin within one of `word`."""
    return any(other.startswith(word[i : i + len(other)]) for i in range(len(word)))


def _automaton(words: tuple[bytes, ...]) -> Search:
    # Only this kind of match uses SIMD.
    kind = ahocorasick_rs.MatchKind.LeftmostFirst
    automaton = ahocorasick_rs.BytesAhoCorasick(list(words), matchkind=kind)

    def search(data: bytes) -> Iterable[tuple[int, bytes]]:
        return ((start, words[which]) for which, start, _ in automaton.find_matches_as_indexes(data))

    return search


def _each(words: tuple[bytes, ...]) -> Search:
    def search(data: bytes) -> Iterator[tuple[int, bytes]]:
        for word in words:
            position = data.find(word)
            while position >= 0:
                yield position, word
                position = data.find(word, position + 1)

    return search
