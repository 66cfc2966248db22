"""`doctor` finds what would go wrong, says how to mend it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Cli

from oellm_autoexp.monitor.loop import RealClock
from oellm_autoexp.services.calls import planned
from oellm_autoexp.services.doctor import CHECKS, Examined, Site, examine
from oellm_autoexp.services.doctor.site import Finding, ok
from oellm_autoexp.store.effects import Effects

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "slurm" / "site"
CONFIG = """
project: {name: tiny, base_output_dir: ./outputs}
slurm: {sbatch: {partition: gpu, time: "01:00:00", gres: "gpu:4"}}
backend: {class_name: CommandBackend, command: [sh, -c, "true"]}
"""
#: Slurm's commands as a cluster answers them; `sbatch --test-only` takes what names a partition it has.
ANSWERS = {
    "scontrol": """case "$2" in config) cat {at}/config.txt;; *) cat {at}/partitions.txt;; esac""",
    "sinfo": "cat {at}/nodes.txt",
    "sacctmgr": "cat {at}/associations.txt",
    "sacct": "exit 0",
    "sbatch": """if grep -q 'partition=gpu$' "$2"; then echo 'Job 7 to start' >&2; else exit 1; fi""",
    "squeue": "exit 0",
    "scancel": "exit 0",
}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with nothing of a cluster."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("python3", "sh", "bash", "cat", "grep", "sleep"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory


@pytest.fixture
def cluster(tools: Path) -> Path:
    for name, answer in ANSWERS.items():
        command(tools, name, answer.replace("{at}", str(CAPTURES)))
    return tools


def command(tools: Path, name: str, answer: str) -> None:
    path = tools / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)


Look = Callable[..., list[Examined]]


@pytest.fixture
def look(tmp_path: Path, tools: Path) -> Look:
    """What is found with the jobs of a config."""

    def found(
        *overrides: str, text: str = CONFIG, environ: dict[str, str] | None = None, **given: Any
    ) -> Any:
        (tmp_path / "sweep.yaml").write_text(text)
        plan = planned(tmp_path / "sweep.yaml", None, overrides)
        variables = {"PATH": str(tools), "XDG_STATE_HOME": str(tmp_path / "home"), **(environ or {})}
        return list(examine(Site(plan=plan, environ=variables, **given)))

    return found


def said(found: list[Examined], level: str, check: str | None = None) -> str:
    return "\n".join(
        f"{each.finding.what} -> {each.finding.fix}"
        for each in found
        if each.finding.level == level and check in (None, each.check)
    )


# ---------------------------------------------------------------- the command


def test_the_machine_alone_is_looked_at_without_a_config(tmp_path: Path, tools: Path) -> None:
    run = Cli(tmp_path, PATH=str(tools))
    done = run.within("doctor", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["faults"]) == (0, 0)
    checks = {each["check"] for each in told["findings"]}
    assert {"versions", "disk", "file system", "space", "commands"} <= checks
    assert "login node" in "".join(each["what"] for each in told["findings"])


def test_faults_make_the_exit_code_1_and_each_has_a_fix(tmp_path: Path, cluster: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    run = Cli(tmp_path, PATH=str(cluster))
    assert run.within("doctor", "sweep.yaml").returncode == 0
    done = run.within(
        "doctor", "sweep.yaml", "-o", "slurm.sbatch.partition=gpuu", "-o", "scheduler.class_name=slurm"
    )
    assert done.returncode == 1
    assert "there is no partition gpuu: tiny" in done.stdout
    assert "-> did you mean `gpu`?" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 faults, ")
    assert not (tmp_path / "outputs").exists()


def test_a_mistake_in_the_config_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("project: {name: a/b}\n")
    assert Cli(tmp_path).within("doctor", "sweep.yaml").returncode == 2


# ---------------------------------------------------------------- the cluster


def test_a_cluster_that_has_what_the_jobs_ask_for_shows_no_faults(look: Look, cluster: Path) -> None:
    found = look()
    assert said(found, "fault") == ""
    fine = said(found, "ok")
    for part in ("Slurm 22.05.8", "sacct answers", "partition gpu takes tiny", "nodes of gpu have", "Job 7"):
        assert part in fine


@pytest.mark.parametrize(
    ("override", "check", "words"),
    [
        ("slurm.sbatch.time='8-00:00:00'", "partitions", "allows 7-00:00:00; tiny asks for 8-00:00:00"),
        ("slurm.sbatch.nodes=4", "partitions", "at most 3 nodes; tiny asks for 4"),
        ("slurm.sbatch.gres='gpu:8'", "hardware", "has gpu:8: tiny -> its nodes have gpu:4"),
        ("slurm.sbatch.gres='gpu:a100:4'", "hardware", "has gpu:4, gpu:a100:4: tiny"),
        ("slurm.sbatch.constraint=ib", "hardware", "no node has the constraint ib"),
        ("slurm.sbatch.partition=debug", "scripts", "sbatch --test-only of tiny"),
        ("slurm.submit_cmd=nosuch", "commands", "no `nosuch` on PATH"),
    ],
)
def test_what_the_cluster_lacks_is_a_fault(
    look: Look, cluster: Path, override: str, check: str, words: str
) -> None:
    assert words in said(look(override), "fault", check)


def test_one_of_several_partitions_is_enough(look: Look, cluster: Path) -> None:
    assert said(look("slurm.sbatch.partition='debug,gpu'"), "fault", "partitions") == ""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("slurm.sbatch.account=proj2", "account proj2 of tiny is none of yours -> did you mean `proj1`?"),
        ("slurm.sbatch.qos=long", "qos long of tiny is not open to you"),
    ],
)
def test_what_accounting_does_not_enforce_is_only_a_warning(
    look: Look, cluster: Path, override: str, words: str
) -> None:
    assert words in said(look(override), "warning", "accounts")


def test_more_jobs_than_an_association_takes_are_told_of(look: Look, cluster: Path) -> None:
    text = CONFIG.replace('[sh, -c, "true"]', '[echo, "${n}"]') + "sweep: {axes: {n: [1, 2, 3, 4, 5, 6]}}\n"
    account = "slurm.sbatch.account=proj1"
    assert "your association takes 5" in said(look(account, text=text), "warning", "accounts")
    assert said(look(account, "scheduler.max_jobs=5", text=text), "warning", "accounts") == ""


def test_a_silent_controller_is_one_fault_and_nothing_is_concluded(look: Look, cluster: Path) -> None:
    command(cluster, "scontrol", "exec sleep 600")
    found = look(command_s=0.1)
    assert "slurmctld: it does not answer" in said(found, "fault", "controller")
    for check in ("partitions", "hardware", "scripts", "accounts"):
        assert not [each for each in found if each.check == check]


def test_a_config_that_runs_on_this_machine_asks_no_cluster(
    look: Look, cluster: Path, tmp_path: Path
) -> None:
    command(cluster, "scontrol", f"touch {tmp_path}/asked; exit 1")
    found = look("scheduler.class_name=local")
    assert not [each for each in found if each.check in ("controller", "partitions")]
    assert not (tmp_path / "asked").exists()


def test_commands_are_asked_without_what_the_shell_would_add(
    look: Look, cluster: Path, tmp_path: Path
) -> None:
    command(cluster, "sinfo", f'echo "$SINFO_ALL-$SLURM_CONF-$LC_ALL" > {tmp_path}/seen')
    look(environ={"SINFO_ALL": "1", "SLURM_CONF": "/etc/s.conf", "SBATCH_PARTITION": "x"})
    assert (tmp_path / "seen").read_text().strip() == "-/etc/s.conf-C"


def test_variables_of_the_shell_are_named(look: Look, cluster: Path) -> None:
    environ = {"SBATCH_TIMELIMIT": "1", "SBATCH_GRES": "gpu:1", "SLURM_JOB_ID": "5", "SLURM_CONF": "/x"}
    told = said(look(environ=environ), "warning", "shell")
    assert "inside job 5" in told
    assert "write slurm.sbatch.time" in told
    assert "write slurm.sbatch.gres" in told
    assert "SLURM_CONF" not in told


# ---------------------------------------------------------------- disks


class NoLinks(Effects):
    """A file system without hard links, such as exFAT or some FUSE ones."""

    def step(self, name: str, target: str) -> None:
        if name == "link:link":
            raise PermissionError(1, "Operation not permitted", target)


def test_a_file_system_without_hard_links_is_a_fault(look: Look) -> None:
    told = said(look("scheduler.class_name=local", effects=NoLinks()), "fault", "disk")
    assert "knows no hard links" in told
    assert "project.state_dir" in told


class FarAway(RealClock):
    """A machine whose clock is an hour ahead of its file server's."""

    def now(self) -> float:
        return super().now() + 3600


def test_a_clock_that_differs_from_the_file_servers_is_told_of(look: Look) -> None:
    told = said(look("scheduler.class_name=local", clock=FarAway()), "warning", "disk")
    assert "3600 s behind this machine's" in told


def test_nothing_is_left_where_it_was_tried(look: Look, cluster: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    look()
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "sweep.yaml") == before


# ---------------------------------------------------------------- what a config names


def test_launcher_image_and_env_file_are_looked_for(look: Look, tmp_path: Path) -> None:
    (tmp_path / "secrets.env").write_text("A=1\n")
    (tmp_path / "secrets.env").chmod(0o644)
    found = look(
        "scheduler.class_name=local",
        "slurm.launcher_cmd='apptainer exec image.sif'",
        f"slurm.env_file={tmp_path}/secrets.env",
    )
    assert "no `apptainer` on this machine" in said(found, "warning", "launcher")
    assert "there is no image" in said(found, "fault", "launcher")
    assert "has mode 0644 -> chmod 600" in said(found, "warning", "env_file")


def test_a_program_that_is_not_here_is_told_of(look: Look) -> None:
    text = CONFIG.replace("[sh, -c", "[nosuchprogram, -c")
    assert "no `nosuchprogram`" in said(look("scheduler.class_name=local", text=text), "warning", "launcher")


# ---------------------------------------------------------------- checks


def test_a_check_that_hangs_is_a_fault_and_the_others_go_on(tmp_path: Path) -> None:
    def hangs(site: Site) -> Iterator[Finding]:
        os.read(read, 1)
        yield ok("never")

    read, write = os.pipe()
    checks = [("hangs", hangs), ("after", lambda _site: iter([ok("done")]))]
    try:
        found = list(examine(Site(), checks=checks, limit_s=0.05))
    finally:
        os.close(write)
    assert [each.finding.level for each in found] == ["fault", "ok"]


def test_every_check_has_a_name_of_its_own() -> None:
    assert len({name for name, _ in CHECKS}) == len(CHECKS)
