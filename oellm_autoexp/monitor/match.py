"""Rules over blocks of bytes: one search for the words that matches must contain, `re` only where one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
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

#: Where words are: which one, and the bytes that it takes.
Search = Callable[[bytes], Iterable[tuple[int, int, int]]]
#: Where a line starts and ends, and the bits of the rules that may match it.
_Line = tuple[int, int, int]


class Block:
    """Whole lines of a file. Lines end at `\\n`, `\\r`, NUL, or after MAX_LINE bytes."""

    def __init__(self, data: bytes, base: int) -> None:
        # With one kind of line end, lines are found by one search, and no byte moves.
        for odd in (b"\r", b"\0"):
            if odd in data:
                data = data.replace(odd, b"\n")
        self.data = data
        #: Byte offset in the file of the first byte of `data`.
        self.base = base
        self._lower: bytes | None = None
        self._texts: list[str] | None = None
        self._places: list[tuple[int, int]] | None = None

    @property
    def lower(self) -> bytes:
        if self._lower is None:
            self._lower = self.data.lower()
        return self._lower

    def line_at(self, position: int) -> tuple[int, int]:
        """Where the line with this byte starts and ends."""
        start = self.data.rfind(b"\n", 0, position) + 1
        end = self.data.find(b"\n", position)
        end = len(self.data) if end < 0 else end
        if end - start > MAX_LINE:
            start += (position - start) // MAX_LINE * MAX_LINE
            end = min(end, start + MAX_LINE)
        return start, end

    def text(self, line: tuple[int, int]) -> str:
        return self.data[line[0] : line[1]].decode("utf-8", "replace")

    @property
    def texts(self) -> list[str]:
        """Every line, decoded; empty ones too."""
        if self._texts is None:
            # No byte of a character is a line end: what is decoded as a whole is split as each line would be.
            self._texts = self.data.decode("utf-8", "replace").split("\n")
            # A character is at most four bytes.
            if max(map(len, self._texts)) > MAX_LINE // 4:
                self._texts = [self.text(line) for line in self.places]
        return self._texts

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where each of `texts` starts and ends."""
        if self._places is None:
            self._places, start = [], 0
            for line in self.data.split(b"\n"):
                end = start + len(line)
                if len(line) <= MAX_LINE:
                    self._places.append((start, end))
                else:
                    cuts = range(start, end, MAX_LINE)
                    self._places += [(cut, min(end, cut + MAX_LINE)) for cut in cuts]
                start = end + 1
        return self._places

    def matching(self, rule: SignalRule, *, last: bool = False) -> Iterator[tuple[int, int]]:
        """The lines that a rule without words matches; with `last` from the last to the first."""
        texts, numbers = self.texts, range(len(self.texts))
        # In one expression: a loop costs more than most patterns do.
        tried = map(rule.regex.search, reversed(texts) if last else texts)
        for number in compress(reversed(numbers) if last else numbers, tried):
            yield self.places[number]


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
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def match(self, block: Block, generation: int, matches: Mapping[str, int]) -> Findings:
        """What a block says. `matches` are the counts so far in this attempt.

        A rule that only feeds metrics or a counter is a gauge: its last match in the block counts.
        """
        out = Findings(matches=dict(matches))
        active = [rule for rule in self._rules if not _retired(rule, out.matches)]
        key = tuple(rule.name for rule in active)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(active, fast=self._fast)
        for start, end, rules in plan.candidates(block):
            line = block.data[start:end].decode("utf-8", "replace")
            for rule in rules:
                if rule is CHECKPOINT_REPORT and (not out.report(line) or self._told):
                    continue
                self._apply(rule, line, block.base + start, generation, out)
        for rule in self._gauges:
            self._read_gauge(rule, block, out)
        return out

    def _apply(self, rule: SignalRule, line: str, offset: int, generation: int, out: Findings) -> None:
        if rule.limit is not None and _retired(rule, out.matches):
            return
        fields = rule.find(line)
        if fields is None:
            return
        out.matches[rule.name] = out.matches.get(rule.name, 0) + 1
        if rule.measures:
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
        for place in block.matching(rule, last=True) if rule.slow else _backwards(rule, block):
            fields = rule.find(block.text(place))
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
    """The lines with a word of the rule, from the last to the first."""
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


class _Plan:
    """How to find the lines that need a look by some rules. Sets of rules are bits, in the rules' order."""

    def __init__(self, rules: Sequence[SignalRule], *, fast: bool) -> None:
        self._rules = rules
        self._slow = [(1 << number, rule) for number, rule in enumerate(rules) if rule.slow]
        owners: dict[bool, dict[bytes, int]] = {False: {}, True: {}}
        for number, rule in enumerate(rules):
            for literals in rule.literals[:1]:
                for word in literals.words:
                    known = owners[literals.fold]
                    known[word] = known.get(word, 0) | 1 << number
        self._searches = [_Words(words, fold=fold, fast=fast) for fold, words in owners.items() if words]
        self._chosen: dict[int, tuple[SignalRule, ...]] = {}

    def candidates(self, block: Block) -> Iterator[tuple[int, int, tuple[SignalRule, ...]]]:
        """Lines in order, each with the rules that may match it, in theirs."""
        found = [words.look(block) for words in self._searches]
        found += [[(start, end, bit) for start, end in block.matching(rule)] for bit, rule in self._slow]
        found = [lines for lines in found if lines]
        if not found:
            return
        for start, end, bits in found[0] if len(found) == 1 else _merged(found):
            rules = self._chosen.get(bits)
            if rules is None:
                rules = tuple(rule for number, rule in enumerate(self._rules) if bits >> number & 1)
                self._chosen[bits] = rules
            yield start, end, rules


def _merged(found: Iterable[Iterable[_Line]]) -> list[_Line]:
    """The same lines in order, each once."""
    whole: dict[tuple[int, int], int] = {}
    for start, end, bits in chain.from_iterable(found):
        whole[start, end] = whole.get((start, end), 0) | bits
    return [(start, end, whole[start, end]) for start, end in sorted(whole)]


class _Words:
    """One search for the words of many rules, each word with the bits of its rules."""

    def __init__(self, owners: Mapping[bytes, int], *, fold: bool, fast: bool) -> None:
        self._fold = fold
        words = tuple(owners)
        self._bits = list(owners.values())
        # The automaton reports the first of words that overlap. Those within it are there; those that begin
        # within it and go on behind may be.
        self._hidden: list[list[tuple[int, bytes, int]]] = [[] for _ in words]
        for number, word in enumerate(words):
            for other in words:
                for shift in range(len(word)):
                    if word.startswith(other, shift):
                        self._bits[number] |= owners[other]
                    elif other.startswith(word[shift:]):
                        self._hidden[number].append((shift, other, owners[other]))
        self._ordered = fast and ahocorasick_rs is not None
        self._search = _automaton(words) if self._ordered else _each(words)

    def look(self, block: Block) -> list[_Line]:
        """The lines with words, in order, with the bits of these words."""
        bits, hidden = self._bits, self._hidden
        data = block.lower if self._fold else block.data
        rfind, find = data.rfind, data.find
        out: list[_Line] = []
        start = end = here = 0
        for word, position, behind in self._search(data):
            if not start <= position < end:
                if here:
                    out.append((start, end, here))
                start, end, here = rfind(b"\n", 0, position) + 1, find(b"\n", position), 0
                if end < 0 or end - start > MAX_LINE:
                    start, end = block.line_at(position)
            here |= bits[word]
            for shift, other, more in hidden[word]:
                if data.startswith(other, position + shift):
                    here |= more
            if behind > end:
                # The line was cut within the word: what it hides may stand on the other side.
                out.append((start, end, here))
                start, end = block.line_at(end)
        if here:
            out.append((start, end, here))
        return out if self._ordered else _merged([out])


def _automaton(words: tuple[bytes, ...]) -> Search:
    # Only this kind of match uses SIMD.
    kind = ahocorasick_rs.MatchKind.LeftmostFirst
    automaton = ahocorasick_rs.BytesAhoCorasick(list(words), matchkind=kind)
    search: Search = automaton.find_matches_as_indexes
    return search


def _each(words: tuple[bytes, ...]) -> Search:
    def search(data: bytes) -> Iterator[tuple[int, int, int]]:
        for number, word in enumerate(words):
            position = data.find(word)
            while position >= 0:
                yield number, position, position + len(word)
                position = data.find(word, position + 1)

    return search
