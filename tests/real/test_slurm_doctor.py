"""`doctor` on a real cluster: what it reads is what Slurm says."""

from __future__ import annotations

from pathlib import Path

import pytest
from dev_slurm import Cluster

from oellm_autoexp.services.calls import planned
from oellm_autoexp.services.doctor import Site, examine

pytestmark = pytest.mark.slurm

CONFIG = """
project: {name: tiny, base_output_dir: ./outputs}
slurm: {sbatch: {partition: main, time: "01:00:00"}}
backend: {class_name: CommandBackend, command: [sh, -c, "true"]}
"""


def said(tmp_path: Path, *overrides: str) -> dict[str, list[str]]:
    """What is found, by level."""
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    found: dict[str, list[str]] = {"ok": [], "warning": [], "fault": []}
    for each in examine(Site(plan=planned(tmp_path / "sweep.yaml", None, overrides))):
        found[each.finding.level].append(f"{each.check}: {each.finding.what}")
    return found


def test_a_config_that_fits_has_no_faults(slurm_with_accounting: Cluster, tmp_path: Path) -> None:
    found = said(tmp_path)
    assert found["fault"] == []
    fine = "\n".join(found["ok"])
    for part in ("cluster dev: Slurm ", "sacct answers", "partition main takes tiny", "tiny: Job "):
        assert part in fine


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("slurm.sbatch.partition=mian", "partitions: there is no partition mian"),
        ("slurm.sbatch.time='8-00:00:00'", "partitions: partition main allows 7-00:00:00"),
        ("slurm.sbatch.nodes=4", "partitions: partition main gives a job at most 3 nodes"),
        ("slurm.sbatch.constraint=ib", "hardware: no node has the constraint ib"),
        ("slurm.sbatch.gres='gpu:1'", "hardware: no node of main has gpu:1"),
        ("slurm.sbatch.cpus-per-task=9", "scripts: sbatch --test-only of tiny"),
    ],
)
def test_what_does_not_fit_is_a_fault(slurm: Cluster, tmp_path: Path, override: str, what: str) -> None:
    assert what in "\n".join(said(tmp_path, override)["fault"])


def test_nothing_is_submitted(slurm: Cluster, tmp_path: Path) -> None:
    said(tmp_path)
    assert slurm.run("squeue", "-h", "-t", "all", "-n", "tiny") == ""


def test_a_dead_controller_is_one_fault(slurm: Cluster, tmp_path: Path) -> None:
    slurm.kill("slurmctld")
    try:
        (fault,) = said(tmp_path)["fault"]
    finally:
        slurm.start("slurmctld")
        slurm.wait_for_controller()
    assert fault.startswith("controller: slurmctld: ")
    assert "Unable to contact slurm controller" in fault
