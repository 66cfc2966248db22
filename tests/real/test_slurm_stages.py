"""A staged sweep on a real cluster: an array for each stage, a start condition, an arm that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Cli
from dev_slurm import Cluster

pytestmark = pytest.mark.slurm

STAGE = """\
#!/bin/bash
mkdir -p "$2" && echo "$1" >> "$2/ran"
case $1 in
  stable) [ "$4" != 3 ] ;;
  decay1) [ -e "$3/ran" ] ;;
  decay2) echo "warmup done"; until [ -e "$3/go" ]; do sleep 0.1; done ;;
  follow) touch "$3/go" ;;
esac
"""
CONFIG = """\
project: {name: arms, base_output_dir: ./outputs}
slurm: {array: true, sbatch: {time: "0:10:00"}}
backend:
  class_name: CommandBackend
  command: [bash, stage.sh, "${part}", "${job.output_dir}", "${arm}", "${lr}"]
monitoring:
  poll_interval_seconds: 1
  log_signals: {ready: {pattern: "warmup done", metadata: {kind: milestone}}}
restart_policies: {crash: {class_name: NoRestartPolicy}}
scheduler: {class_name: slurm, breaker: null, calls_per_second: 50, call_burst: 100}
sweep:
  groups:
    - params: {lr: [1, 2, 3]}
    - type: list
      groups:
        - {stage: stable, defaults: {part: stable, arm: none}}
        - stage: decay
          repeat: 2
          defaults: {part: "decay${repeat}", arm: "${sibling.stable.output_dir}"}
        - stage: follow
          defaults:
            part: follow
            arm: "${sibling.stable.output_dir}"
            job.start_condition: {class_name: SignalCondition, sibling: decay, signal: ready}
"""


def test_stages_follow_each_other_on_a_cluster(slurm: Cluster, tmp_path: Path) -> None:
    """Each arm by itself; what waits for a failed job is never submitted; a condition may hold early."""
    (tmp_path / "stage.sh").write_text(STAGE)
    (tmp_path / "arms.yaml").write_text(CONFIG)
    cli = Cli(tmp_path)
    done = cli("submit", "arms.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    ok, never = ("succeeded", 1), ("cancelled", 0)
    assert cli.states() == {
        **{f"arms_lr{lr}_stable": ok for lr in (1, 2)},
        **{f"arms_lr{lr}_decay_repeat{part}": ok for lr in (1, 2) for part in (1, 2)},
        **{f"arms_lr{lr}_follow": ok for lr in (1, 2)},
        "arms_lr3_stable": ("failed", 1),
        "arms_lr3_decay_repeat1": never,
        "arms_lr3_decay_repeat2": never,
        "arms_lr3_follow": never,
    }
