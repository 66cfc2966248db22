"""What a person waits for before anything happens: the import of the package, and `--help`.

    python benchmarks/startup.py [TIMES]

Each figure is the best and the median of fresh processes, wall clock and CPU, with the peak of memory. The
reference is the interpreter that starts and ends.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from table import Table, number

CASES = {
    "reference: python": ["-c", "pass"],
    "import oellm_autoexp": ["-c", "import oellm_autoexp"],
    "from oellm_autoexp import submit_jobs": ["-c", "from oellm_autoexp import submit_jobs"],
    "oellm-autoexp --help": ["-m", "oellm_autoexp.cli.main", "--help"],
    "oellm-autoexp submit --help": ["-m", "oellm_autoexp.cli.main", "submit", "--help"],
}


def measured(argv: list[str]) -> tuple[float, float, float]:
    """(wall s, CPU s, peak MB) of one process."""
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{argv} ended with {child.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    table = Table("fresh process", "wall s", "median", "CPU s", "median", "ratio", "MB", left=(40,))
    floor = 0.0
    for name, argv in CASES.items():
        measured(argv)  # fills the page cache, and compiles what is not compiled yet
        found = [measured(argv) for _ in range(times)]
        walls, cpus = [each[0] for each in found], [each[1] for each in found]
        floor = floor or min(cpus)
        table.row(
            name,
            number(min(walls)),
            number(statistics.median(walls)),
            number(min(cpus)),
            number(statistics.median(cpus)),
            f"{min(cpus) / floor:.1f}",
            f"{max(each[2] for each in found):.0f}",
        )
    print("\nthe best of each; ratio: CPU beside that of the interpreter")


if __name__ == "__main__":
    main()
