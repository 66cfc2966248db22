# ruff: noqa: E501 - lines of logs are long
"""How fast logs are searched for signals, against a loop that tries each pattern on each line.

    python benchmarks/log_scan.py [MEGABYTES]        three big logs
    python benchmarks/log_scan.py small [FILES]      many small ones

**Big.** Twenty patterns, three logs of 200 MB: a mix as training writes it (a metric on every 50th line, something to
act on on every 1,000th), one where every line is a metric, one where matches are rare (every 20,000th line). A
log is a seeded piece of 25 MB, repeated; it is read through `LogWatcher.look`, cursor by cursor, as the loop
does, from the page cache. The peers search the first 4 MB of the same file: `each pattern` is one `re` search
per pattern and line, with the groups of every match; `one alternation` tries all patterns at once, and on the
lines where one matches each of them.

What was found is compared with what `each pattern` finds on the whole piece, shifted for each repetition: rule,
byte offset and fields of every match. Memory is the peak of the resident set of a fresh process above the one
before its scan. Every speed is CPU time, the best of three passes.

**Small.** A thousand logs of 4 kB, in each of which three lines come in each of ten ticks, the same twenty
patterns, every match. The reference keeps the offset of each file, reads what is new, and tries each pattern on
each line; the floor opens and reads, and searches nothing. Then a tick in which nothing has come. What was found
is compared with what the reference found.
"""

from __future__ import annotations

import gc
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from table import Table, number, peak_mb, resident_mb  # noqa: F401 - `memory` uses it in another process

from oellm_autoexp.core.model import Cursor
from oellm_autoexp.core.signals import SignalRule
from oellm_autoexp.monitor.scan import LogWatcher

PIECE, PEER_BYTES, PASSES = 25_000_000, 4_000_000, 3

PATTERNS = {
    "iteration": (
        r"iteration +(?P<iteration>\d+)/ *(?P<total>\d+) \| consumed samples: +(?P<samples>\d+) \| "
        r"elapsed time per iteration \(ms\): (?P<ms>[\d.]+) \| learning rate: (?P<lr>\S+) \| "
        r"global batch size: +\d+ \| lm loss: (?P<loss>\S+)"
    ),
    "saved": r"successfully saved checkpoint from iteration +(?P<step>\d+) to (?P<path>\S+)",
    "loading": r"loading checkpoint from (?P<path>\S+) at iteration (?P<step>\d+)",
    "validation": r"validation loss at iteration (?P<step>\d+) \| lm loss value: (?P<loss>\S+)",
    "nan": r"(?i)\bloss(?: is|:)? (?:nan|inf)\b",
    "oom": r"CUDA out of memory|torch\.OutOfMemoryError|HIP out of memory",
    "host_oom": r"(?i)oom[-_ ]kill|out of memory: killed process",
    "nccl": r"NCCL (?:error|WARN Timeout)|ncclSystemError|ncclRemoteError",
    "watchdog": r"Watchdog caught collective operation timeout: (?P<what>.*)",
    "traceback": r"^(?:\[rank(?P<rank>\d+)\]: )?Traceback \(most recent call last\)",
    "time_limit": r"CANCELLED AT \S+ DUE TO TIME LIMIT",
    "preempted": r"DUE TO PREEMPTION",
    "node": r"(?i)node failure|slurmstepd: error: .*node (?P<node>\S+)",
    "exit_code": r"exited with exit code (?P<code>\d+)",
    "segfault": r"Segmentation fault|Bus error|core dumped",
    "disk": r"No space left on device|Disk quota exceeded",
    "ecc": r"(?i)uncorrectable ecc error|xid (?P<xid>\d+)",
    "module": r"ModuleNotFoundError: No module named '(?P<name>[^']+)'",
    "connection": r"ConnectionRefusedError|connection reset by peer",
    "done": r"^training finished after (?P<steps>\d+) iterations",
}
#: No word is in every match: it is tried on each line.
WORDLESS = {"epoch": r"^\s*(?P<percent>\d+)%.*?(?P<done>\d+)/(?P<total>\d+)$"}
#: A mode without an action counts once, a rule of metrics is a gauge; actions want each match.
MODES = {
    "nan": "crash.nan",
    "oom": "crash.oom",
    "host_oom": "crash.oom",
    "nccl": "crash.nccl",
    "watchdog": "crash.nccl",
    "traceback": "crash",
    "time_limit": "timeout",
    "preempted": "preempted",
    "node": "crash.node_failure",
    "exit_code": "crash",
    "segfault": "crash",
    "disk": "crash.disk",
    "ecc": "crash.node_failure",
    "module": "crash.config",
    "connection": "crash",
    "done": "success",
}


def rules(*, wordless: bool, limits: bool) -> list[SignalRule]:
    out = []
    for name, pattern in {**PATTERNS, **(WORDLESS if wordless else {})}.items():
        config: dict[str, Any] = {"pattern": pattern}
        if not limits:
            config["action"] = "tell"
        elif name in MODES:
            config["mode"] = MODES[name]
        elif name in ("iteration", "validation", "epoch"):
            config["metrics"] = True
        else:
            config |= {"action": "tell", "match": 100}
        out.append(SignalRule.from_config(name, config))
    return out


# ---------------------------------------------------------------- logs


def metric(rng: random.Random, step: int) -> str:
    return (
        f" [2026-01-12 10:{step // 60 % 60:02}:{step % 60:02}] iteration {step:8}/  500000 | consumed samples: "
        f"{step * 512:12} | elapsed time per iteration (ms): {rng.uniform(400, 900):.1f} | learning rate: "
        f"{rng.random() / 1e4:.6E} | global batch size:   512 | lm loss: {rng.uniform(2, 9):.6E} | loss scale: "
        f"1.0 | grad norm: {rng.random():.3f} | number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def event(rng: random.Random, step: int) -> str:
    return rng.choice(
        [
            f"  successfully saved checkpoint from iteration {step:7} to /scratch/project/run{step % 7}/checkpoints",
            f" validation loss at iteration {step} | lm loss value: {rng.uniform(2, 9):.6E} | lm loss PPL: 12.1",
            "[rank3]: Traceback (most recent call last):",
            "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total",
            "nid001234:8123:8222 [0] transport/net.cc:111 NCCL WARN Timeout waiting for connection reset by peer",
            f"srun: error: nid00{step % 9999:04}: task 7: Exited with exit code 1, exited with exit code 1",
            "step 12: loss is NaN, skipped; Loss: nan",
            f"kernel: NVRM: Xid {step % 120} (PCI:0000:c1:00): uncorrectable ECC error",
        ]
    )


def other(rng: random.Random, step: int) -> str:
    node = f"nid{rng.randrange(1000, 9999):06}"
    return rng.choice(
        [
            f"{node}:{rng.randrange(90000)}:{rng.randrange(90000)} [{step % 8}] NCCL INFO Channel {step % 32:02}/0 : "
            f"{step % 64}[{step % 8}] -> {(step + 1) % 64}[{(step + 1) % 8}] via P2P/IPC/read",
            f"2026-01-12 10:11:{step % 60:02},{rng.randrange(1000):03} INFO [trainer.data] shard {step % 977:05} of 00977: "
            f"{rng.randrange(10**6)} documents, {rng.randrange(10**9)} tokens, cache hit, prefetch depth {step % 16}",
            f"    (mlp.{step % 48}): ColumnParallelLinear(in_features=4096, out_features=16384, bias=False, tp={step % 8})",
            f"  adam_beta{step % 3} " + "." * rng.randrange(20, 40) + f" {rng.random():.4f}",
            f"{node}: (min, max) time across ranks (ms): forward-backward ......: ({rng.uniform(300, 400):.2f}, "
            f"{rng.uniform(400, 500):.2f}) optimizer ......: ({rng.uniform(3, 4):.2f}, {rng.uniform(4, 5):.2f})",
            f"site-packages/torch/distributed/c10d_logger.py:{step % 99}: FutureWarning: `torch.library."
            f"impl_abstract` was renamed to `torch.library.register_fake` [rank {step % 64}]",
            f"[{node}:{step % 8}] gpu mem {rng.uniform(10, 60):.1f} GiB allocated, größter Block {rng.uniform(1, 9):.2f} GiB",
        ]
    )


def piece(mix: str, most: int) -> bytes:
    """Whole lines of about so many bytes."""
    rng = random.Random(mix)
    lines, size, step = [], 0, 0
    while size < most:
        step += 1
        if mix == "metrics":
            line = metric(rng, step)
        elif mix == "rare":
            line = event(rng, step) if step % 20_000 == 0 else other(rng, step)
        else:
            line = (
                metric(rng, step)
                if step % 50 == 0
                else event(rng, step)
                if step % 1000 == 1
                else other(rng, step)
            )
        lines.append(line)
        size += len(line) + 1
    return "\n".join([*lines, ""]).encode()


# ---------------------------------------------------------------- peers

Found = tuple[int, str, Mapping[str, Any]]


def each_pattern(data: bytes, watched: Sequence[SignalRule]) -> Iterator[Found]:
    """Every match of every pattern on every line."""
    offset = 0
    for line in data.split(b"\n"):
        text = line.decode("utf-8", "replace")
        for rule in watched:
            match = rule.regex.search(text)
            if match is not None:
                yield offset, rule.name, match.groupdict()
        offset += len(line) + 1


def one_alternation(data: bytes, watched: Sequence[SignalRule]) -> Iterator[Found]:
    """All patterns at once; on the lines where one matches, each of them."""
    parts = [re.sub(r"\(\?P<\w+>", "(?:", rule.regex.pattern) for rule in watched]
    parts = [f"(?i:{part[4:]})" if part.startswith("(?i)") else f"(?:{part})" for part in parts]
    anything = re.compile("|".join(parts), re.ASCII).search
    offset = 0
    for line in data.split(b"\n"):
        text = line.decode("utf-8", "replace")
        if anything(text) is not None:
            for rule in watched:
                match = rule.regex.search(text)
                if match is not None:
                    yield offset, rule.name, match.groupdict()
        offset += len(line) + 1


def timed(
    peer: Callable[[bytes, Sequence[SignalRule]], Iterator[Found]], data: bytes, watched: list[SignalRule]
) -> float:
    """MB/s of CPU time, the best of PASSES."""
    best = 0.0
    for _ in range(PASSES):
        begin = time.process_time()
        for _ in peer(data, watched):
            pass
        best = max(best, len(data) / 1e6 / (time.process_time() - begin))
    return best


# ---------------------------------------------------------------- ours


def scan(path: Path, watched: list[SignalRule], take: Callable[[Any], None]) -> float:
    """MB/s of CPU time."""
    watcher, cursor, matches = LogWatcher(watched), Cursor(), dict[str, int]()
    spent, more = 0.0, True
    gc.collect()
    gc.freeze()  # the oracle's findings are none of the scan's business
    while more:
        begin = time.process_time()
        seen = watcher.look("log", path, cursor, matches, drain=True)
        spent += time.process_time() - begin
        cursor, matches, more = seen.cursor, seen.findings.matches, seen.more
        take(seen.findings)
    gc.unfreeze()
    return path.stat().st_size / 1e6 / spent


def memory(path: Path, *, wordless: bool, limits: bool) -> float:
    """Megabytes that a scan takes on top, in a process of its own."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import log_scan as it; from pathlib import Path;"
        f"watched = it.rules(wordless={wordless}, limits={limits}); before = it.resident_mb();"
        "it.scan(Path(sys.argv[2]), watched, lambda found: None); print(it.peak_mb() - before)"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(path)]
    return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


class Checked:
    """Compares signals, as they come in, with the oracle's, repetition by repetition."""

    def __init__(self, oracle: Sequence[Found], size: int, times: int, watched: Sequence[SignalRule]) -> None:
        self._expected = self._walk(oracle, size, times, watched)
        self.count = 0

    @staticmethod
    def _walk(
        oracle: Sequence[Found], size: int, times: int, watched: Sequence[SignalRule]
    ) -> Iterator[Found]:
        by_name = {rule.name: rule for rule in watched if not rule.gauge}
        counts = dict.fromkeys(by_name, 0)
        for repetition in range(times):
            for offset, name, fields in oracle:
                rule = by_name.get(name)
                if rule is not None and (rule.limit is None or counts[name] < rule.limit):
                    counts[name] += 1
                    yield offset + repetition * size, name, fields

    def __call__(self, findings: Any) -> None:
        for signal in findings.signals:
            self.count += 1
            expected = next(self._expected, None)
            if expected != (signal.offset, signal.rule, signal.fields):
                raise SystemExit(f"not what the oracle found:\n{signal}\n{expected}")

    def end(self) -> None:
        missing = next(self._expected, None)
        if missing is not None:
            raise SystemExit(f"missed: {missing}")


def big(megabytes: int) -> None:
    """Three logs of so many MB."""
    table = Table(
        "log",
        "rules",
        "ours MB/s",
        "each pattern",
        "ratio",
        "alternation",
        "ratio",
        "memory MB",
        "signals",
        left=(8, 28),
    )
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
        for mix in ("training", "metrics", "rare"):
            data = piece(mix, min(PIECE, megabytes * 1_000_000))
            times = -(-megabytes * 1_000_000 // len(data))
            path = Path(directory) / mix
            with path.open("wb") as file:
                for _ in range(times):
                    file.write(data)
            part = data[: data.rfind(b"\n", 0, PEER_BYTES) + 1]
            for wordless in (False, True):
                watched = rules(wordless=wordless, limits=False)
                oracle = list(each_pattern(data, watched))
                naive, combined = timed(each_pattern, part, watched), timed(one_alternation, part, watched)
                for limits in (False, True):
                    watched = rules(wordless=wordless, limits=limits)
                    speed = 0.0
                    for _ in range(PASSES):
                        checked = Checked(oracle, len(data), times, watched)
                        speed = max(speed, scan(path, watched, checked))
                        checked.end()
                    extra = memory(path, wordless=wordless, limits=limits)
                    which = "limits and gauges" if limits else "every match"
                    which += ", 1 wordless" if wordless else ""
                    table.row(
                        mix,
                        which,
                        number(speed),
                        number(naive),
                        number(speed / naive),
                        number(combined),
                        number(speed / combined),
                        f"{extra:.1f}",
                        f"{checked.count:,}",
                    )
            path.unlink()
    print("\nevery signal is the oracle's, in order")


# ---------------------------------------------------------------- many small logs

SMALL, LINES, TICKS = 4_000, 3, 10


class Watched:
    """So many logs, each looked at by `LogWatcher`, and what was found."""

    def __init__(self, paths: Sequence[Path], watched: list[SignalRule]) -> None:
        self._watcher = LogWatcher(watched)
        self._at = {path: (Cursor(), dict[str, int]()) for path in paths}
        self.found: list[Found] = []

    def look(self) -> None:
        for path, (cursor, matches) in self._at.items():
            seen = self._watcher.look("log", path, cursor, matches)
            self._at[path] = seen.cursor, seen.findings.matches
            self.found += [(signal.offset, signal.rule, signal.fields) for signal in seen.findings.signals]


class Naive:
    """The same by offset, line and pattern; with no rules it only reads."""

    def __init__(self, paths: Sequence[Path], watched: list[SignalRule]) -> None:
        self._rules = watched
        self._at = dict.fromkeys(paths, 0)
        self.found: list[Found] = []

    def look(self) -> None:
        for path, offset in self._at.items():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            self._at[path] = offset + len(data)
            if self._rules and data:
                found = each_pattern(data[:-1], self._rules)
                self.found += [(offset + at, name, fields) for at, name, fields in found]


def small(files: int) -> None:
    """So many logs that grow a little."""
    rng, watched = random.Random("small"), rules(wordless=False, limits=False)
    table = Table(
        "a tick over small logs", "ours ms", "each pattern", "ratio", "floor", "memory MB", left=(32,)
    )
    with tempfile.TemporaryDirectory(prefix="autoexp-bench-") as directory:
        paths = [Path(directory) / f"{index}.log" for index in range(files)]
        step = 0

        def grow(least: int) -> None:
            nonlocal step
            for path in paths:
                lines, size = [], 0
                while size < least or len(lines) < LINES:
                    step += 1
                    lines.append(
                        metric(rng, step)
                        if step % 50 == 0
                        else event(rng, step)
                        if step % 1000 == 1
                        else other(rng, step)
                    )
                    size += len(lines[-1]) + 1
                with path.open("ab") as file:
                    file.write("\n".join([*lines, ""]).encode())

        grow(SMALL)
        gc.collect()
        before = resident_mb()
        ours = Watched(paths, watched)
        spent = [cpu(ours.look)]
        extra = resident_mb() - before
        naive, floor = Naive(paths, watched), Naive(paths, [])
        theirs, least = [cpu(naive.look)], [cpu(floor.look)]
        for _ in range(TICKS):
            grow(0)
            for times, each in ((spent, ours), (theirs, naive), (least, floor)):
                times.append(cpu(each.look))
        still = [min(cpu(each.look) for _ in range(TICKS)) for each in (ours, naive, floor)]
        if ours.found != naive.found:
            raise SystemExit("not what the reference found")
        for name, (mine, his, floor_s), memory_mb in (
            (f"{files:,} new, {SMALL // 1000} kB each", (spent[0], theirs[0], least[0]), number(extra)),
            (f"{LINES} lines more in each", (min(spent[1:]), min(theirs[1:]), min(least[1:])), ""),
            ("nothing more", (still[0], still[1], still[2]), ""),
        ):
            times_ms = (number(seconds * 1000) for seconds in (mine, his))
            table.row(name, *times_ms, f"{his / mine:.1f}", number(floor_s * 1000), memory_mb)
    print(f"\n{len(ours.found):,} signals, the same as the reference's; CPU, of ten ticks the best")


def cpu(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main(words: Sequence[str]) -> None:
    if words[:1] == ["small"]:
        small(int(words[1]) if len(words) > 1 else 1000)
    else:
        big(int(words[0]) if words else 200)


if __name__ == "__main__":
    main(sys.argv[1:])
