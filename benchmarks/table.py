"""Markdown tables that can be read on a terminal too: what `benchmarks/run.py` puts into the docs."""

from __future__ import annotations

import math
from pathlib import Path


class Table:
    """Prints each row when it is known. The first columns are texts as wide as `left`, the others figures."""

    def __init__(self, *heads: str, left: tuple[int, ...] = (0,)) -> None:
        self._left = len(left)
        self._widths = [max(pair) for pair in zip(map(len, heads), (*left, *[6] * len(heads)), strict=False)]
        self.row(*heads)
        rules = ["-" * (width + 2) for width in self._widths]
        rules[self._left :] = [f"{rule[1:]}:" for rule in rules[self._left :]]
        print(f"|{'|'.join(rules)}|", flush=True)

    def row(self, *cells: str) -> None:
        shown = []
        for index, (cell, width) in enumerate(zip(cells, self._widths, strict=True)):
            shown.append(cell.ljust(width) if index < self._left else cell.rjust(width))
        print(f"| {' | '.join(shown)} |", flush=True)


def number(value: float, digits: int = 3) -> str:
    """So many digits that count, and thousands apart: 0.0321, 1.52, 74.0, 1,098."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def resident_mb() -> float:
    """The memory that this process has now, in MB."""
    return _status("VmRSS:")


def peak_mb() -> float:
    """The most memory that this process has had, in MB; getrusage(2) would count its parent's before exec."""
    return _status("VmHWM:")


def _status(wanted: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise SystemExit("this needs Linux")
