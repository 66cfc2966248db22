"""Markdown tables that can be read on a terminal too: what `benchmarks/run.py` puts into the docs."""

from __future__ import annotations

import resource
from pathlib import Path


class Table:
    """Prints each row when it is known. Columns are as wide as their heads, the first at least `first`."""

    def __init__(self, *heads: str, first: int = 0) -> None:
        self._widths = [max(first, len(heads[0])), *(len(head) for head in heads[1:])]
        self.row(*heads)
        print(f"|{'|'.join('-' * (width + 2) for width in self._widths)}|", flush=True)

    def row(self, *cells: str) -> None:
        shown = [cells[0].ljust(self._widths[0])]
        shown += [cell.rjust(width) for cell, width in zip(cells[1:], self._widths[1:], strict=True)]
        print(f"| {' | '.join(shown)} |", flush=True)


def number(value: float, digits: int = 3) -> str:
    """So many digits that count, and thousands apart: 0.0321, 1.52, 74.0, 1,098."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    decimals = max(0, digits - whole)
    if abs(value) < 0.1:
        decimals += 1
    return f"{value:,.{decimals}f}"


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """The memory that this process has now, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this needs Linux")
