"""On a real cluster the next attempt waits in the queue behind the one that runs; each command runs once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until
from dev_slurm import Cluster

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.store.journal import read

pytestmark = pytest.mark.slurm

TRAIN = """\
#!/bin/bash
echo "$AUTOEXP_ATTEMPT" >> "$RAN"
case $1-$AUTOEXP_ATTEMPT in
  chain-[123]) while [ ! -e "$RAN.$AUTOEXP_ATTEMPT" ]; do sleep 0.1; done; exit 0 ;;
  limit-1) sleep 300 & wait ;;
  *) while [ ! -e "$RAN.go" ]; do sleep 0.1; done ;;
esac
echo ALL DONE
"""
CONFIG = """\
project: {{name: real, base_output_dir: ./outputs}}
backend: {{class_name: CommandBackend, command: [bash, {train}, {kind}], environment: {{RAN: {ran}}}}}
slurm: {{sbatch: {{time: "{limit}"}}}}
monitoring:
  class_name: SlurmLogMonitor
  startup_grace_seconds: 1
  poll_interval_seconds: 1
  termination_string: ALL DONE
scheduler:
  class_name: slurm
  successor: true
  successor_wait_seconds: {wait}
  grace_seconds: 3
  calls_per_second: 50
  call_burst: 100
"""


class Chain:
    """A session of one job on a real cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cli = Cli(root)
        (root / "train.sh").write_text(TRAIN)

    def config(self, kind: str, *, limit: str = "00:10:00", wait: int = 600) -> None:
        places = {"train": self.root / "train.sh", "ran": self.root / "ran"}
        text = CONFIG.format(kind=kind, limit=limit, wait=wait, **places)
        (self.root / "job.yaml").write_text(text)

    @property
    def ran(self) -> list[str]:
        """The attempt of every start of the command, in order."""
        path = self.root / "ran"
        return path.read_text().split() if path.exists() else []

    @property
    def job(self) -> dict[str, Any]:
        return next(iter(self.cli.jobs()), {})

    def waits(self, number: int) -> str:
        """The id of the attempt that waits in the queue, once it is this one."""
        found = self.job.get("successor") or {}
        return str(found["scheduler_id"]) if found.get("number") == number else ""

    @property
    def events(self) -> list[ev.Event]:
        return read(SessionPaths(self.root / "outputs" / ".oellm-autoexp")).events


@pytest.fixture
def chain(slurm: Cluster, tmp_path: Path) -> Iterator[Chain]:
    yield Chain(tmp_path)


def in_queue(slurm: Cluster) -> list[str]:
    return slurm.run("squeue", "-h", "-o", "%i").split()


def test_each_next_attempt_is_in_the_queue_before_it_is_due(chain: Chain) -> None:
    """Three ends with more to do: what follows each of them was submitted while it ran."""
    chain.config("chain")
    with chain.cli.leader("submit", "job.yaml", "--yes") as leader:
        for number in (1, 2, 3):
            until(lambda number=number: chain.waits(number + 1), "the next one waits")  # type: ignore[misc]
            assert chain.ran == [str(each) for each in range(1, number + 1)]
            (chain.root / f"ran.{number}").touch()
        (chain.root / "ran.go").touch()
        assert leader.wait(120) == 0
    assert (chain.job["state"], chain.job["ended_by"]) == ("succeeded", ["timeout"] * 3 + ["success"])
    assert chain.ran == ["1", "2", "3", "4"]
    taken = [event.successor for event in chain.events if isinstance(event, ev.RestartScheduled)]
    assert taken == [2, 3, 4]
    shown = chain.cli("show", "outputs", chain.job["name"]).stdout
    assert "with attempt 2, which waited in the queue" in shown, shown


def test_the_chain_goes_one_segment_further_without_a_leader(chain: Chain) -> None:
    """Killed during the first segment: the second begins by itself at the limit, and is found running."""
    chain.config("limit", limit="00:00:30", wait=1)
    with chain.cli.leader("submit", "job.yaml", "--yes"):
        until(lambda: chain.waits(2), "the next one waits")
    until(lambda: "2" in chain.ran, "the second segment runs, and nobody leads")
    assert chain.job["attempts"] == 1
    with chain.cli.leader("submit", "job.yaml", "--yes") as leader:
        until(lambda: chain.waits(3), "the second is taken over, and a third waits")
        (chain.root / "ran.go").touch()
        assert leader.wait(120) == 0
    assert (chain.job["state"], chain.job["ended_by"]) == ("succeeded", ["timeout", "success"])
    assert chain.ran == ["1", "2"]


def test_what_waits_behind_a_success_never_runs(slurm: Cluster, chain: Chain) -> None:
    """It leaves the queue before the verdict is told."""
    chain.config("wait")
    with chain.cli.leader("submit", "job.yaml", "--yes") as leader:
        until(lambda: chain.waits(2), "the next one waits")
        (chain.root / "ran.go").touch()
        assert leader.wait(120) == 0
    assert (chain.job["state"], chain.job["ended_by"]) == ("succeeded", ["success"])
    until(lambda: not in_queue(slurm), "the queue is empty")
    assert chain.ran == ["1"]


def test_a_success_that_nobody_sees_starts_nothing(slurm: Cluster, chain: Chain) -> None:
    """What waits is begun by the scheduler, is told nothing, and ends without having run its command."""
    chain.config("wait", wait=1)
    with chain.cli.leader("submit", "job.yaml", "--yes"):
        until(lambda: chain.waits(2), "the next one waits")
    (chain.root / "ran.go").touch()
    until(lambda: not in_queue(slurm), "both have ended")
    done = chain.cli("submit", "job.yaml", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (chain.job["state"], chain.job["ended_by"]) == ("succeeded", ["success"])
    assert chain.ran == ["1"]


def test_cancel_ends_both(slurm: Cluster, chain: Chain) -> None:
    """The one that runs, and the one that waits behind it."""
    chain.config("wait")
    with chain.cli.leader("submit", "job.yaml", "--yes") as leader:
        until(lambda: chain.waits(2), "the next one waits")
        assert "attempt 2 waits in the queue behind it" in chain.cli("status", "outputs").stdout
        cancelled = chain.cli("cancel", "outputs", chain.job["name"], "--yes")
        assert cancelled.returncode == 0, cancelled.stderr
        assert leader.wait(120) == 1
    assert (chain.job["state"], chain.job["ended_by"]) == ("cancelled", ["cancelled"])
    until(lambda: not in_queue(slurm), "the queue is empty")
    assert chain.ran == ["1"]
