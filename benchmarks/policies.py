"""The shipped restart policies on a failure trace: ETTR over seeds, and that of others with the same luck.

    python benchmarks/policies.py [--days 54] [--seeds 60] [--nodes 2048] [--without]

One job on `--nodes` nodes with so many days of work, under config/faults/llama3.yaml. The peers know nothing
of nodes (scheduler.node_exclusion=null); requeue-only reads no log either. `--without` plays our defaults
with one thing switched off at a time instead. Prints the median (lowest – highest), and the difference seed
by seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from oellm_autoexp.services import comparison, rehearse

CONFIG = """\
defaults: [monitoring: default, restart: default, _self_]
project: {{name: large, base_output_dir: ./outputs, confirm_gpu_hours: null}}
slurm: {{sbatch: {{nodes: {nodes}, gpus-per-node: 8, time: "24:00:00"}}}}
backend: {{class_name: CommandBackend, command: [python, train.py]}}
"""
BLIND = "scheduler.node_exclusion=null"
DEAF = "monitoring.inactivity_threshold_seconds=null"
PEERS = {
    "requeue only": f"restart=requeue_only {BLIND} {DEAF}",
    "upstream, Oct 2025": f"restart=upstream {BLIND} {DEAF.replace('null', '900')}",
    "upstream, Aug 2026": f"restart=upstream_auto_restart {BLIND} {DEAF.replace('null', '1200')}",
}
WITHOUT = {
    "no node exclusion": BLIND,
    "no hang detection": DEAF,
    "budgets not refilled": " ".join(
        f"restart_policies.{mode}.refilled_by_progress=false"
        for mode in ("crash", "stall", "crash.node_failure", "crash.lost")
    ),
    "back-off of 10 minutes": " ".join(
        f"restart_policies.{mode}.backoff_seconds=600"
        for mode in ("crash", "stall", "crash.node_failure", "crash.lost")
    ),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--days", type=float, default=54.0)
    options.add_argument("--seeds", type=int, default=60)
    options.add_argument("--nodes", type=int, default=2048)
    options.add_argument("--without", action="store_true")
    chosen = options.parse_args()
    named = WITHOUT if chosen.without else PEERS
    scenario = rehearse.scenario_of(faults="llama3", scenario=None, days=chosen.days, config_dir=None)
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "large.yaml"
        config.write_text(CONFIG.format(nodes=chosen.nodes))
        rehearsal = rehearse.Rehearsal(
            config_ref=str(config),
            scenario=scenario,
            seeds=range(chosen.seeds),
            against=tuple(named.values()),
        )
        began = time.perf_counter()
        runs = rehearse.rehearse(rehearsal, _progress)
        took = time.perf_counter() - began
    days = sum(run.took_s for run in runs) / 86400
    print(f"{len(runs)} runs, {days:,.0f} days of virtual time in {took:.0f} s")
    print("| | shipped defaults | " + " | ".join(f"{name} | difference" for name in named) + " |")
    print("|---" * (2 + 2 * len(named)) + "|")
    for row in comparison.rows(rehearsal, runs):
        print("| " + " | ".join(comparison.texts(row)) + " |")


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of}", end="" if done < of else "\r", file=sys.stderr)


if __name__ == "__main__":
    main()
