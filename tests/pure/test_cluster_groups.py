"""The shipped groups for clusters: each composes, renders, and says where its values come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oellm_autoexp.services import plan as service

GROUPS = Path(__file__).resolve().parents[2] / "config" / "slurm"
CLUSTERS = sorted(path.stem for path in GROUPS.glob("*.yaml") if path.stem != "base")
STEPS = [name for name in CLUSTERS if name.endswith("_srun")]
CONFIG = """
defaults: [slurm: {group}, _self_]
project: {{name: tiny}}
slurm: {{sbatch: {{account: project1, qos: normal, time: "01:00:00", nodes: 2}}, {more}}}
backend: {{class_name: CommandBackend, command: [torchrun, train.py]}}
"""


def planned(tmp_path: Path, group: str, more: str = "", scheduler: str | None = None) -> Any:
    (tmp_path / "c.yaml").write_text(CONFIG.format(group=group, more=more))
    (job,) = service.plan(service.load(str(tmp_path / "c.yaml"), scheduler=scheduler, cwd=tmp_path)).jobs
    return job


@pytest.mark.parametrize("group", CLUSTERS)
def test_a_job_has_all_accelerators_of_its_nodes(group: str, tmp_path: Path) -> None:
    job = planned(tmp_path, group)
    assert job.spec.resources.nodes == 2
    assert job.spec.resources.gpus == (16 if group.startswith("lumi") else 8)
    assert "\n#SBATCH --account=project1\n" in job.script


@pytest.mark.parametrize("group", CLUSTERS)
def test_values_have_their_source_and_nothing_is_personal(group: str) -> None:
    text = (GROUPS / f"{group}.yaml").read_text()
    assert "https://" in text or (
        group.endswith("_srun") and f"see {group.removesuffix('_srun')}.yaml" in text
    )
    assert "account:" not in text


@pytest.mark.parametrize("group", STEPS)
def test_one_task_a_node_starts_through_srun_with_all_its_cores(group: str, tmp_path: Path) -> None:
    script = planned(tmp_path, group).script
    (line,) = [line for line in script.splitlines() if line.startswith("exec srun ")]
    assert line.startswith("exec srun --cpu-bind=none ")
    assert line.endswith(" --kill-on-bad-exit=1 torchrun train.py")
    assert "\n#SBATCH --ntasks-per-node=1\n" in script
    assert '\nexport SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"\n' in script


@pytest.mark.parametrize("group", sorted(set(CLUSTERS) - set(STEPS)))
def test_without_srun_the_command_stands_alone(group: str, tmp_path: Path) -> None:
    assert planned(tmp_path, group).script.endswith("\nexec torchrun train.py\n")


def test_srun_stands_before_the_container(tmp_path: Path) -> None:
    more = "launcher_cmd: apptainer exec --rocm image.sif, launcher_env_passthrough: true"
    line = planned(tmp_path, "lumi_srun", more).script.splitlines()[-1]
    assert line == (
        "exec srun --cpu-bind=none --kill-on-bad-exit=1 apptainer exec "
        '--env NCCL_SOCKET_IFNAME="$NCCL_SOCKET_IFNAME" --env NCCL_NET_GDR_LEVEL="$NCCL_NET_GDR_LEVEL" '
        "--rocm image.sif torchrun train.py"
    )


def test_an_option_of_srun_is_left_out_or_replaced(tmp_path: Path) -> None:
    more = "srun: {cpu-bind: null, kill-on-bad-exit: 0, label: true}"
    line = planned(tmp_path, "lumi_srun", more).script.splitlines()[-1]
    assert line == "exec srun --kill-on-bad-exit=0 --label torchrun train.py"


def test_this_machine_has_no_steps(tmp_path: Path) -> None:
    script = planned(tmp_path, "lumi_srun", scheduler="local").script
    assert "srun" not in script.lower().replace("lumi_srun", "")
