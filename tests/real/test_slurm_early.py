"""On a real cluster jobs are in the queue while those run that they wait for; each command runs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until
from dev_slurm import Cluster

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.store.journal import read

pytestmark = pytest.mark.slurm

STAGE = """\
#!/bin/bash
echo "$1 $2" >> ran
env | grep AUTOEXP_AFTER && exit 1
case $1-$AUTOEXP_ATTEMPT in
  stable-1) until [ -e "go.$2.1" ]; do sleep 0.1; done; [ "$2" = ok ] ;;
  stable-*) until [ -e "go.$2.2" ]; do sleep 0.1; done; [ "$2" != lost ] ;;
esac
"""
CONFIG = """\
project: {{name: arms, base_output_dir: ./outputs}}
slurm: {{sbatch: {{time: "0:10:00"}}}}
backend: {{class_name: CommandBackend, command: [bash, stage.sh, "${{part}}", "${{arm}}", "${{from}}"]}}
monitoring: {{class_name: SlurmLogMonitor, poll_interval_seconds: 1}}
restart_policies: {{crash: {{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}}}}
scheduler:
  class_name: slurm
  dependency: native
  successor_wait_seconds: {wait}
  breaker: null
  grace_seconds: 3
  calls_per_second: 50
  call_burst: 100
sweep:
  groups:
    - params: {{arm: [{arms}]}}
    - type: list
      groups:
        - {{stage: stable, defaults: {{part: stable, from: none}}}}
        - {{stage: other, defaults: {{part: other, from: none}}}}
        - stage: both
          defaults: {{part: both, from: "${{sibling.stable.output_dir}} ${{sibling.other.output_dir}}"}}
"""


class Arms:
    """A session of some arms on a real cluster."""

    def __init__(self, root: Path, *arms: str, wait: int = 600) -> None:
        self.root, self.cli = root, Cli(root)
        (root / "stage.sh").write_text(STAGE)
        (root / "arms.yaml").write_text(CONFIG.format(arms=", ".join(arms), wait=wait))

    @property
    def ran(self) -> list[str]:
        """Part and arm of every start of the command."""
        path = self.root / "ran"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def events(self) -> list[ev.Event]:
        return read(SessionPaths(self.root / "outputs" / ".oellm-autoexp")).events

    def job(self, name: str) -> dict[str, Any]:
        return next((job for job in self.cli.jobs() if job["name"] == f"arms_arm{name}"), {})

    def waits(self, arm: str, number: int) -> str:
        """The id of what is in the queue behind the arm's first stages, once it is this attempt."""
        found = self.job(f"{arm}_both").get("successor") or {}
        return str(found["scheduler_id"]) if found.get("number") == number else ""


def in_queue(slurm: Cluster) -> list[str]:
    return slurm.run("squeue", "-h", "-o", "%i").split()


def test_a_staged_sweep_is_in_the_queue_before_its_time(slurm: Cluster, tmp_path: Path) -> None:
    """An arm that succeeds, one whose first stage is restarted, one that is lost."""
    arms = Arms(tmp_path, "ok", "again", "lost")
    with arms.cli.leader("submit", "arms.yaml", "--yes") as leader:
        ids = [until(lambda arm=arm: arms.waits(arm, 1), f"{arm} waits") for arm in ("ok", "again", "lost")]  # type: ignore[misc]
        until(lambda: sum(line.startswith("other") for line in arms.ran) == 3, "one of two parents is done")
        assert set(ids) <= set(in_queue(slurm)) and not [line for line in arms.ran if "both" in line]
        for arm in ("ok", "again", "lost"):
            (tmp_path / f"go.{arm}.1").touch()
        again = until(lambda: arms.waits("again", 2), "behind the restarted one")
        until(lambda: arms.waits("lost", 2), "behind the other")
        assert again not in ids
        for arm in ("again", "lost"):
            (tmp_path / f"go.{arm}.2").touch()
        assert leader.wait(120) == 1
    states = {name: state for name, (state, _) in arms.cli.states().items()}
    parts = ("stable", "other", "both")
    assert states == {
        **{f"arms_arm{arm}_{part}": "succeeded" for arm in ("ok", "again") for part in parts},
        "arms_armlost_stable": "failed",
        "arms_armlost_other": "succeeded",
        "arms_armlost_both": "cancelled",
    }
    taken = {event.job: event.attempt for event in arms.events if isinstance(event, ev.SuccessorTaken)}
    assert taken == {"arms_armok_both": 1, "arms_armagain_both": 2}
    assert sorted(line for line in arms.ran if "both" in line) == ["both again", "both ok"]
    until(lambda: not in_queue(slurm), "the queue is empty")


def test_without_a_leader_it_begins_behind_two_successes(slurm: Cluster, tmp_path: Path) -> None:
    """And not behind a failure; whoever leads next finds the one and says what becomes of the other."""
    arms = Arms(tmp_path, "ok", "lost", wait=1)
    with arms.cli.leader("submit", "arms.yaml", "--yes"):
        for arm in ("ok", "lost"):
            until(lambda arm=arm: arms.waits(arm, 1), f"{arm} waits")  # type: ignore[misc]
    for arm in ("ok", "lost"):
        (tmp_path / f"go.{arm}.1").touch()
    until(lambda: not in_queue(slurm), "all have ended, and nobody leads")
    assert [line for line in arms.ran if "both" in line] == ["both ok"]
    (tmp_path / "go.lost.2").touch()
    assert arms.cli("submit", "arms.yaml", "--yes").returncode == 1
    assert arms.job("ok_both")["state"] == "succeeded" and arms.job("ok_both")["attempts"] == 1
    assert arms.job("lost_both")["state"] == "cancelled" and arms.job("lost_both")["attempts"] == 0
    assert [line for line in arms.ran if "both" in line] == ["both ok"]
