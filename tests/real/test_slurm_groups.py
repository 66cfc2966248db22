"""The shipped groups for clusters meet a real sbatch, on a cluster with nodes and partitions as theirs."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev_slurm import Cluster

from oellm_autoexp.services import plan as service

pytestmark = pytest.mark.slurm

#: Cores, memory (MiB) and accelerators of a node, as the pages say that the groups name.
NODES = {
    "booster": (96, 512000, 4),  # 48 cores with two threads each
    "boost_usr_prod": (32, 494000, 4),
    "standard-g": (56, 480000, 8),
    "acc": (80, 512000, 4),
    "booster_of_jupiter": (288, 480000, 4),  # whose partition has the name of that of JUWELS
}
GROUPS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parents[2] / "config" / "slurm").glob("*.yaml")
    if path.stem != "base"
)
CONFIG = """
defaults: [slurm: {group}, _self_]
project: {{name: tiny}}
slurm: {{sbatch: {{account: project1, time: "24:00:00"}}}}
backend: {{class_name: CommandBackend, command: [torchrun, train.py]}}
"""


class Sites(Cluster):
    """A cluster with one node of each of them."""

    def _conf(self) -> Iterator[str]:
        nodes = iter(NODES.values())
        for line in super()._conf():
            if line.startswith("NodeName="):
                cpus, memory, gpus = next(nodes)
                name_and_place = line.partition(" CPUs=")[0]
                yield f"{name_and_place} CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}"
            else:
                yield line
        for number, partition in enumerate(NODES, 1):
            yield f"PartitionName={partition} Nodes=node{number} MaxTime=1-00:00:00"

    def declare_gpus(self) -> None:
        """slurmd wants a character device for each."""
        lines = []
        for number, (_, _, gpus) in enumerate(NODES.values(), 1):
            for gpu in range(gpus):
                device = self.directory / f"gpu{number}.{gpu}"
                os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
                lines.append(f"NodeName=node{number} Name=gpu File={device}")
        (self.directory / "gres.conf").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def sites() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="autoexp-slurm."))
    cluster = Sites(directory)
    try:
        cluster.declare_gpus()
        options = {"GresTypes": "gpu", "EnforcePartLimits": "ALL"}
        cluster.create(nodes=len(NODES), accounting=False, options=options)
        yield cluster
    finally:
        if cluster.settings:
            cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def tried(cluster: Cluster, script: Path) -> str:
    return cluster.run("sbatch", "--test-only", str(script), check=False)


@pytest.mark.parametrize("group", GROUPS)
def test_sbatch_takes_what_a_group_renders(group: str, sites: Cluster, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(group=group))
    other = ["slurm.sbatch.partition=booster_of_jupiter"] if group.startswith("jupiter") else []
    (job,) = service.plan(service.load(str(tmp_path / "c.yaml"), overrides=other, cwd=tmp_path)).jobs
    script = tmp_path / "job.sbatch"
    script.write_text(job.script)
    partition = next(line for line in job.script.splitlines() if "--partition=" in line).partition("=")[2]
    assert f" in partition {partition}" in tried(sites, script)


@pytest.mark.parametrize("more", ["--cpus-per-task=81", "--time=25:00:00", "--nodes=2", "--gres=gpu:5"])
def test_sbatch_refuses_what_the_nodes_do_not_have(more: str, sites: Cluster, tmp_path: Path) -> None:
    """The acceptance above means something."""
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --partition=acc {more}\ntrue\n")
    assert "allocation failure" in tried(sites, script)
