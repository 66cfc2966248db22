"""Logs: the same signals however the bytes came in, whatever engine finds them."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.literals import NeverMatches, required
from oellm_autoexp.core.model import Cursor
from oellm_autoexp.core.signals import CHECKPOINT_STEP, MAX_LINE, SignalRule
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.monitor.match import Block, Matcher
from oellm_autoexp.monitor.scan import LogWatcher


def rule(name: str, pattern: str, **config: Any) -> SignalRule:
    return SignalRule.from_config(name, {"pattern": pattern, **config})


RULES = [
    rule("saved", r"saved: (?P<path>\S+)", action="convert"),
    rule("oom", r"(?i)out of memory", mode="crash.oom"),
    rule("first", r"error", match=2, action="tell"),
    rule("slow", r"^\d+ \w$", action="slow"),
    rule("over", r"ved: a|memor", action="overlap"),
]

BYTES = [
    b"saved: a/b\n",
    b"saved: \xff\n",
    b"12 x\n",
    b"Out Of MEMORY",
    b"error",
    b"\r",
    b"\n",
    b"\0",
    b"noise ",
    b"sav",
    b"ed: ab",
    "größe\n".encode(),
    b"\xe2\x82",
    b"\xf0\x9f\x99",
    b"x" * (MAX_LINE - 3),
    b"x" * (MAX_LINE - 1),
]
PIECES = st.sampled_from(BYTES)
LOGS = st.lists(PIECES, max_size=25).map(b"".join)


def oracle(data: bytes, counts: dict[str, int] | None = None) -> list[tuple[int, str]]:
    """Every match of every rule on every line, by `re` alone; `counts`: of the matches in earlier files."""
    found = []
    counts = {} if counts is None else counts
    start = 0
    for line in re.split(rb"[\n\r\0]", data):
        for cut in range(0, len(line), MAX_LINE):
            text = line[cut : cut + MAX_LINE].decode("utf-8", "replace")
            for each in RULES:
                if each.regex.search(text) and (each.limit is None or counts.get(each.name, 0) < each.limit):
                    counts[each.name] = counts.get(each.name, 0) + 1
                    found.append((start + cut, each.name))
        start += len(line) + 1
    return sorted(found)


def found_in(result: Any) -> list[tuple[int, str]]:
    return sorted((signal.offset, signal.rule) for signal in result)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LOGS, st.booleans())
def test_a_block_gives_what_re_finds_line_by_line(data: bytes, fast: bool) -> None:
    """The search for words, with and without its library, loses and invents nothing."""
    out = Matcher(RULES, "log", fast=fast).match(Block(data, 0), 0, {})
    assert found_in(out.signals) == oracle(data)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(LOGS, st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 20000))
def test_however_the_bytes_come_in_the_signals_are_the_same(
    tmp_path: Path, data: bytes, sizes: list[int], budget: int
) -> None:
    """Any chunks, any times of reading, any budget: once each, in the end the same as of the whole file."""
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    watcher, cursor, matches = LogWatcher(RULES), Cursor(), dict[str, int]()
    signals, position = [], 0
    budget = max(budget, MAX_LINE + 1)
    with path.open("ab", buffering=0) as file:
        for size in [*sizes, len(data)]:
            file.write(data[position : position + size])
            position += size
            for _ in range(3):
                seen = watcher.look("log", path, cursor, matches, max_bytes=budget)
                cursor, matches = seen.cursor, seen.findings.matches
                signals += seen.findings.signals
        while True:
            seen = watcher.look("log", path, cursor, matches, max_bytes=budget, drain=True)
            cursor, matches = seen.cursor, seen.findings.matches
            signals += seen.findings.signals
            if not seen.more:
                break
    assert found_in(signals) == oracle(data)
    assert cursor.generation == 0


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(["append", "truncate", "rotate", "rewrite"]), LOGS), max_size=6))
def test_truncation_and_rotation_start_a_generation(tmp_path: Path, steps: list[tuple[str, bytes]]) -> None:
    """Each file is read from its start to its end: what is in it at a look is found once per generation."""
    path = tmp_path / "log"
    path.write_bytes(b"saved: zero\n")
    watcher, cursor = LogWatcher([RULES[0]]), Cursor()
    content, found, expected = b"saved: zero\n", [], []

    def look() -> None:
        nonlocal cursor
        seen = watcher.look("log", path, cursor, {})
        found.extend((signal.generation, signal.offset) for signal in seen.findings.signals)
        cursor = seen.cursor

    def lines(data: bytes) -> set[int]:
        whole = data[: max(data.rfind(end) for end in (b"\n", b"\r", b"\0")) + 1]
        return {offset for offset, name in oracle(whole) if name == "saved"}

    look()
    expected.append(lines(content))
    for kind, data in steps:
        if kind == "append":
            content += data
            with path.open("ab") as file:
                file.write(data)
        elif kind == "rotate":
            content = b"new file " + data
            fresh = tmp_path / "fresh"
            fresh.write_bytes(content)
            os.replace(fresh, path)
            expected.append(set())
        elif kind == "truncate":
            content = b"s\n"
            path.write_bytes(content)
            expected.append(set())
        else:
            content = b"R" + content[1:] if content[:1] != b"R" else b"Q" + content[1:]
            path.write_bytes(content)
            expected.append(set())
        look()
        expected[-1] |= lines(content)
    # A change that leaves no trace in what was read (nothing was) starts no generation of its own.
    merged = {(offset) for offsets in expected for offset in offsets}
    assert {offset for _, offset in found} <= merged
    assert len(found) == len(set(found))
    assert found[0] == (0, 0)


SHORT = [piece for piece in BYTES if len(piece) < 100]


def whole(data: bytes) -> bytes:
    """The lines that have an end, and the parts that a line is cut into while it has none."""
    start = max(data.rfind(end) for end in (b"\n", b"\r", b"\0")) + 1
    return data[: start + (len(data) - start) // MAX_LINE * MAX_LINE]


@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_lives_of_a_log_give_the_signals_of_its_whole_files(tmp_path: Path, block: int) -> None:
    """Any bytes in any chunks, read at any times with any budget; rotated, cut and rewritten at will."""
    watcher = LogWatcher(RULES)
    for seed in range(block * 1000, (block + 1) * 1000):
        rng, path = random.Random(seed), tmp_path / "log"
        path.unlink(missing_ok=True)
        cursor, matches, counts = Cursor(), dict[str, int](), dict[str, int]()
        files = rng.choice([1, 1, 2, 3])
        for number in range(files):
            pieces = [rng.choice(SHORT) for _ in range(rng.randrange(30))]
            if rng.random() < 0.03:
                pieces.insert(rng.randrange(len(pieces) + 1), b"x" * (MAX_LINE - rng.choice([1, 3])))
            # A file that begins as the one before did, and is as long, cannot be told from it.
            data = b"".join([f"file {number}\n".encode(), *pieces])
            budget = rng.choice([MAX_LINE + 1, 1 << 20])
            signals: list[Any] = []
            if rng.random() < 0.5:
                path.unlink(missing_ok=True)
            with path.open("wb", buffering=0) as file:
                position, last = 0, number == files - 1
                while position < len(data):
                    size = rng.choice([1, 7, 40, 400, len(data)])
                    file.write(data[position : position + size])
                    position += size
                    looks = rng.choice([0, 1, 2]) if position < len(data) else 1
                    while looks:
                        drain = last and position >= len(data)
                        seen = watcher.look("log", path, cursor, matches, max_bytes=budget, drain=drain)
                        cursor, matches = seen.cursor, seen.findings.matches
                        signals += seen.findings.signals
                        looks -= not seen.more
            assert found_in(signals) == oracle(data if last else whole(data), counts), seed


@pytest.mark.parametrize("fast", [True, False])
def test_a_word_across_a_cut_hides_nothing_behind_it(fast: bool) -> None:
    """A line is cut within one word; another that begins within it stands whole on the other side."""
    data = b"x" * (MAX_LINE - 2) + b"saved: a\n"
    out = Matcher(RULES, "log", fast=fast).match(Block(data, 0), 0, {})
    assert found_in(out.signals) == oracle(data) == [(MAX_LINE, "over")]


def test_a_look_ends_where_it_has_found_much(tmp_path: Path) -> None:
    """Memory is bounded by what is found too: the rest is for the next look, nothing is lost."""
    path = tmp_path / "log"
    lines = 100_000
    path.write_bytes(b"saved: a\n" * lines)
    watcher, cursor, matches = LogWatcher([RULES[0]]), Cursor(), dict[str, int]()
    offsets, looks, more = [], 0, True
    while more:
        seen = watcher.look("log", path, cursor, matches)
        cursor, matches, more = seen.cursor, seen.findings.matches, seen.more
        offsets += [signal.offset for signal in seen.findings.signals]
        looks += 1
    assert offsets == [9 * number for number in range(lines)]
    assert looks > 2


def test_an_unfinished_line_counts_when_the_job_is_dead(tmp_path: Path) -> None:
    """At death the last line counts without its end, and not again when it grows."""
    path = tmp_path / "log"
    path.write_bytes(b"saved: last")
    watcher = LogWatcher([RULES[0]])
    assert not watcher.look("log", path, Cursor(), {}).findings.signals
    drained = watcher.look("log", path, Cursor(), {}, drain=True)
    assert len(drained.findings.signals) == 1
    path.write_bytes(b"saved: last one\n")
    again = watcher.look("log", path, drained.cursor, {})
    assert not again.findings.signals


def test_a_file_that_cannot_be_read_is_unknown_not_quiet(tmp_path: Path) -> None:
    """A directory in place of a log is an error that is said; a missing file is no news."""
    watcher = LogWatcher(RULES)
    assert watcher.look("log", tmp_path / "none", Cursor(), {}).unknown == ""
    (tmp_path / "log").mkdir()
    assert watcher.look("log", tmp_path / "log", Cursor(), {}).unknown


# ---------------------------------------------------------------- rules

TEXT = st.text(alphabet="abcx1 .:-\n", max_size=12)
ATOMS = st.sampled_from(
    [
        "a",
        "bc",
        "ab",
        r"\d",
        ".",
        "[ab]",
        "(?:a|bc)",
        "(?:ab)+",
        "x?",
        "c{2,3}",
        "(?i:AB)",
        r"\b",
        "(?=a)",
        "^",
        "$",
    ]
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(ATOMS, min_size=1, max_size=6).map("".join), TEXT, st.booleans())
def test_what_a_match_must_contain_it_contains(pattern: str, text: str, upper: bool) -> None:
    """Required words are in every line that matches."""
    regex = re.compile(pattern, re.ASCII)
    line = text.replace("\n", "")
    line = line.upper() if upper else line
    try:
        sets = required(regex)
    except NeverMatches:
        assert regex.search(line) is None
        return
    if regex.search(line) is not None:
        for literals in sets:
            data = line.lower().encode() if literals.fold else line.encode()
            assert any(word in data for word in literals.words), (pattern, line, literals)


@pytest.mark.parametrize(
    ("pattern", "config", "says"),
    [
        ("(", {}, "does not compile"),
        ("x*", {}, "empty line"),
        ("a\\nb", {}, "line end"),
        ("a", {"mode": "crush"}, "crash"),
        ("a(?P<x>b)", {"counter": "y"}, "no group named 'y'"),
        ("a", {"types": {"z": "int"}}, "no group named 'z'"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(pattern: str, config: dict[str, Any], says: str) -> None:
    """With the key and the repair."""
    with pytest.raises(ConfigError) as error:
        rule("bad", pattern, **config)
    assert says in str(error.value)
    assert "monitoring.log_signals.bad" in str(error.value)


def test_fields_are_typed_and_have_aliases() -> None:
    """Groups as declared types, `<kind>_<group>`, metadata, extracted groups."""
    saved = rule(
        "saved",
        r"saved (?P<path>\S+) at (?P<step>\d+)",
        action="x",
        metadata={"kind": "checkpoint"},
        types={"step": "int"},
        extract_groups={"whole": "match"},
    )
    fields = saved.find("saved a/b at 12")
    assert fields == {
        "kind": "checkpoint",
        "path": "a/b",
        "checkpoint_path": "a/b",
        "step": 12,
        "checkpoint_step": 12,
        "whole": "saved a/b at 12",
    }
    assert set(fields) <= saved.provided()


def test_a_gauge_takes_the_last_match_and_high_water() -> None:
    """A rule that feeds metrics leaves no signal; its last match of a block counts."""
    gauge = rule("step", r"step (?P<step>\d+) loss (?P<loss>\S+)", metrics=True, counter="step")
    data = b"step 1 loss 3\nstep 2 loss 2.5\nother\nstep x\n"
    out = Matcher([gauge], "log").match(Block(data, 0), 0, {})
    assert out.signals == []
    assert out.metrics == [{"step": 2.0, "loss": 2.5}]
    assert out.counters == {"step": 2.0}


def test_a_program_reports_by_the_autoexp_line() -> None:
    """Metrics, progress and checkpoints of any program; what is no JSON object is ordinary text."""
    data = (
        b'[rank0] @autoexp {"metrics": {"loss": 2.0}, "progress": {"it": 5}}\n'
        b"@autoexp {broken\n"
        b'@autoexp {"checkpoint": "/c/5", "step": 5}\n'
    )
    out = Matcher([], "log").match(Block(data, 0), 0, {})
    assert out.metrics == [{"it": 5, "loss": 2.0}]
    assert out.counters == {"it": 5.0, CHECKPOINT_STEP: 5.0}
    assert [signal.rule for signal in out.signals] == ["autoexp.checkpoint"]
    user = rule("mine", "checkpoint", pattern_type="report", action="convert")
    mine = Matcher([user], "log").match(Block(data, 0), 0, {})
    assert [(signal.rule, signal.fields["path"]) for signal in mine.signals] == [("mine", "/c/5")]


def test_order_is_priority_then_the_config() -> None:
    """On one line the higher priority comes first."""
    rules = [rule("low", "boom", mode="crash"), rule("high", "boom", mode="crash.oom", priority=5)]
    out = Matcher(rules, "log").match(Block(b"boom\n", 0), 0, {})
    assert [signal.rule for signal in out.signals] == ["high", "low"]


def test_rules_can_name_their_files() -> None:
    """`files` are globs on the watched file; "log" is the job's own."""
    only = rule("only", "boom", action="x", files=["*/err.txt"])
    assert not Matcher([only], "log").match(Block(b"boom\n", 0), 0, {}).signals
    assert Matcher([only], "a/err.txt").match(Block(b"boom\n", 0), 0, {}).signals
