"""What it costs to make the experiments of a grid: CPU and memory, of a fresh process each.

    python benchmarks/grid.py [CONFIGS …]

The reference is `itertools.product` with a dictionary for each point. Of three processes the middle one is
shown; memory is what the process has in addition once all experiments are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from table import Table, number

REPEATS = 3
PROGRAM = """
import itertools, json, resource, sys, time
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
begin = time.process_time()
if sys.argv[1] != "floor":
    from oellm_autoexp import ParameterGridSearch
imported, before, begin = time.process_time() - begin, peak(), time.process_time()
side = int(sys.argv[2]) // 100
values = {"optimizer.lr": [(n + 1) / 1000 for n in range(100)], "seed": list(range(side))}
if sys.argv[1] == "floor":
    made = [dict(zip(values, each)) for each in itertools.product(*values.values())]
else:
    search = ParameterGridSearch({"experiment_name": "bench"}).add_grid("grid", values)
    if sys.argv[1] == "made":
        made = list(search.generate_experiments())
    else:
        made = search.sample_experiments(100)
        assert search.get_total_experiments() == int(sys.argv[2])
used = time.process_time() - begin
print(json.dumps([used, round(imported, 3), peak() - before, peak(), len(made)]))
"""


def measured(what: str, configs: int) -> list[float]:
    """[CPU s, of imports, MB in addition, MB, configs] of the middle process."""
    argv = [sys.executable, "-c", PROGRAM, what, str(configs)]
    runs = [
        json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    middle: list[float] = sorted(runs)[REPEATS // 2]
    return middle


def compare(sizes: Sequence[int]) -> None:
    table = Table("what", "configs", "CPU s", "µs each", "import, s", "MB more", "MB", left=(26,))
    cases = [(f"{size:,}", what, size) for size in sizes for what in ("floor", "made")]
    for shown, what, size in [*cases, ("1,000,000", "sampled", 1_000_000)]:
        used, imported, more, peak, made = measured(what, size)
        name = {"floor": "itertools.product", "made": "generate_experiments"}.get(what, "count, sample 100")
        table.row(
            name,
            shown,
            number(used),
            number(used / made * 1e6),
            number(imported),
            f"{more:.0f}",
            f"{peak:.0f}",
        )


def main() -> None:
    compare([int(word) for word in sys.argv[1:]] or [1000, 10000])


if __name__ == "__main__":
    main()
