"""Run the benchmarks and put their tables into docs/benchmarks.md.

    python benchmarks/run.py [NAME …]              all of them, or some; on a machine that does nothing else
    python benchmarks/run.py --quick [NAME …]      small sizes, to see that they work; no page is changed

A table stands in the page between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
#: By the name of its table: the script with its arguments, and those of a quick run.
BENCHMARKS = {
    "log_scan": ("log_scan.py", ("200",), ("2",)),
    "small_logs": ("log_scan.py", ("small", "1000"), ("small", "100")),
    "idle_tick": ("idle_tick.py", ("1000", "5000"), ("100",)),
    "simulation": ("simulation.py", ("1000",), ("30",)),
    "policies": ("policies.py", (), ("--days", "5", "--seeds", "2")),
    "reattach": ("reattach.py", ("5000", "50000"), ("100", "2000")),
    "journal": ("journal.py", ("5000", "100000"), ("100", "2000")),
    "startup": ("startup.py", ("15",), ("2",)),
    "plan": ("plan.py", ("1000", "10000"), ("20",)),
    "grid": ("grid.py", ("1000", "10000"), ("100",)),
    "loaders": ("loaders.py", ("4000",), ("64",)),
    "trainer": ("trainer.py", ("2000", "7"), ("20", "1")),
    "generate": ("generate.py", ("100", "1000"), ("100",)),
    "checkpoints": ("checkpoints.py", ("302", "15"), ("2", "1")),
    "slurm_submit": ("slurm.py", ("submit", "1000", "100"), ("submit", "20", "5")),
    "slurm_poll": ("slurm.py", ("poll", "1", "100", "1000"), ("poll", "1", "120")),
}


def filled(page: str, name: str, rows: str) -> str:
    """The page with other rows between the marks of a table.

    Raises:
        ValueError: it has no such marks.
    """
    marked = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    text, times = marked.subn(lambda found: f"{found[1]}\n{rows}\n", page)
    if times != 1:
        raise ValueError(f"the page has {times} tables named {name}")
    return text


def output_of(name: str, *, quick: bool) -> str:
    """What a benchmark prints, which is also shown."""
    script, full, short = BENCHMARKS[name]
    argv = [sys.executable, str(HERE / script), *(short if quick else full)]
    print(f"== {' '.join(argv[1:])}", flush=True)
    lines = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if child.returncode != 0:
        raise SystemExit(f"{script} ended with {child.returncode}")
    return "".join(lines)


def rows_of(output: str) -> str:
    """The lines of its table."""
    return "".join(f"{line}\n" for line in output.splitlines() if line.startswith("|"))


def machine() -> str:
    """A table of one row, that says what the others were measured on."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model = found[1] if found else platform.machine()
    cells = (platform.python_version(), f"{len(os.sched_getaffinity(0))} × {model}", platform.release())
    return f"| Python | CPUs | Linux |\n|---|---|---|\n| {' | '.join(cells)} |\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    options.add_argument("--quick", action="store_true")
    chosen = options.parse_args()
    unknown = set(chosen.names) - BENCHMARKS.keys()
    if unknown:
        options.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    busy = os.getloadavg()[0]
    if busy > 0.5 and not chosen.quick:
        print(
            f"other work keeps this machine busy (load {busy:.1f}): the figures will be too bad", flush=True
        )
    for name in chosen.names or BENCHMARKS:
        rows = rows_of(output_of(name, quick=chosen.quick))
        if not chosen.quick:
            page = filled(PAGE.read_text(), name, rows)
            PAGE.write_text(filled(page, "machine", machine()))


if __name__ == "__main__":
    main()
