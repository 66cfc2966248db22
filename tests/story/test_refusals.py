"""A mistake that is submitted: one message, exit code 2, and a directory that is as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Cli

from oellm_autoexp.services import plan, space
from oellm_autoexp.services.space import Room

CONFIG = """\
project: {name: tiny, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command: [python, train.py, "${lr}"]
sweep: {axes: {lr: [0.1, 0.2]}}
"""


@dataclass(frozen=True)
class Refusal:
    """`text` is appended to the config; `said` must all be in the message."""

    name: str
    said: tuple[str, ...]
    text: str = ""
    words: tuple[str, ...] = ("sweep.yaml",)


PATTERN = "monitoring: {log_signals: {a: {pattern: %s, mode: crash}}}"
FIELD = (
    "monitoring: {log_signals: {a: {pattern: 'x(?P<path>y)', action: go}}}\nactions: {go: {command: '{pth}'}}"
)
REFUSALS = [
    Refusal("unknown key", ("sweep.yaml:6: slurm.arry", "value: true", "`array`"), "slurm: {arry: true}"),
    Refusal("wrong type", ("sweep.yaml:6: slurm.array", "value: yes", "true"), "slurm: {array: yes}"),
    Refusal(
        "unknown class",
        ("sweep.yaml:6: restart_policies.crash.class_name", "value: NoRestart", "`NoRestartPolicy`"),
        "restart_policies: {crash: {class_name: NoRestart}}",
    ),
    Refusal(
        "missing variable of the environment",
        ("sweep.yaml:6: metadata.a", "value: ${oc.env:NOT_SET_HERE}", "export NOT_SET_HERE="),
        "metadata: {a: '${oc.env:NOT_SET_HERE}'}",
    ),
    Refusal(
        "impossible value", ("sweep.yaml:6: slurm.sbatch.nodes", "at least 1"), "slurm: {sbatch: {nodes: 0}}"
    ),
    Refusal(
        "one name for two jobs",
        ("sweep.name_template", "two points have the name `x`", "x_{lr}"),
        words=("sweep.yaml", "-o", "sweep.name_template=x"),
    ),
    Refusal("missing file", ("swep.yaml", "no such file", "`sweep.yaml`"), words=("swep.yaml",)),
    Refusal(
        "missing file of the environment",
        ("sweep.yaml:6: slurm.env_file", "no such file", "secrets.env"),
        "slurm: {env_file: ./secrets.env}",
    ),
    Refusal("missing name", ("there is no config of this name", "autoexp"), words=("sweep",)),
    Refusal("pattern", ("sweep.yaml:6: monitoring.log_signals.a.pattern", "value: x("), PATTERN % "'x('"),
    Refusal("escape", ("sweep.yaml:6:", "single quotes"), PATTERN % r'"\S"'),
    Refusal("field", ("sweep.yaml:7: actions.go.command", "value: {pth}", "`path`"), FIELD),
    Refusal(
        "variable that nothing reads",
        ("-o sweep.axes.seed=[1,2]: sweep.axes.seed", "nothing reads this variable", "${seed}"),
        words=("sweep.yaml", "-o", "sweep.axes.seed=[1,2]"),
    ),
    Refusal(
        "unknown key behind a flag",
        ("sweep.yaml:6: scheduler.max_jobz", "value: 4", "`max_jobs`"),
        "scheduler: {max_jobz: 4}",
    ),
    Refusal(
        "unknown option",
        ("-o slurm=lummi", "no option `lummi`", "`lumi`"),
        words=("sweep.yaml", "-o", "slurm=lummi"),
    ),
    Refusal("no override", ("-o lr", "KEY=VALUE"), words=("sweep.yaml", "-o", "lr")),
    Refusal("no such directory", ("nowhere", "no such directory"), words=("sweep.yaml", "-C", "nowhere")),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_mistake_is_refused_before_anything_is_written(tmp_path: Path, refusal: Refusal) -> None:
    """`submit` says file, key, value and repair in one message, and leaves no trace."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "sweep.yaml").write_text(CONFIG + refusal.text + "\n")
    done = Cli(home, home=tmp_path / "state").within("submit", *refusal.words, "--local")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert [part for part in refusal.said if part not in done.stderr] == [], done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert [path.name for path in home.iterdir()] == ["sweep.yaml"]
    assert not (tmp_path / "state").exists()


def test_what_the_shell_would_tell_sbatch_is_named_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not used, since a plan is its config's; on this machine it means nothing."""
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    cli = Cli(tmp_path, SBATCH_TIMELIMIT="1:00", SBATCH_MY_TOKEN="hidden")
    planned = cli.within("plan", "sweep.yaml", "--dry-run", "-o", "scheduler.class_name=slurm")
    assert planned.returncode == 0
    assert "SBATCH_TIMELIMIT is set in this shell and is not used" in planned.stderr
    assert "--time=1:00" in planned.stderr and "slurm.sbatch" in planned.stderr
    assert "hidden" not in planned.stderr
    assert "SBATCH" not in cli.within("plan", "sweep.yaml", "--dry-run", "--local").stderr
    for name, value in cli.variables.items():
        monkeypatch.setenv(name, value)
    for scheduler, recorded in (
        ("slurm", {"SBATCH_TIMELIMIT": "1:00", "SBATCH_MY_TOKEN": "(secret)"}),
        ("local", None),
    ):
        loaded = plan.load(str(tmp_path / "sweep.yaml"), scheduler=scheduler)
        assert plan.provenance_of(loaded).get("unused") == recorded


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with little room is a warning; what is done already needs none."""
    (tmp_path / "sweep.yaml").write_text(CONFIG.replace("[python, train.py", "['true'"))
    left = 1024**2
    monkeypatch.setattr(space, "rooms", lambda place: [Room(where=str(place), what="disk", bytes_free=left)])
    cli = Cli(tmp_path)
    refused = cli.within("submit", "sweep.yaml", "--local")
    assert refused.returncode == 3
    assert f"{tmp_path}: disk leaves room for 1.0 MB; 2 new jobs need 16.9 MB" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
    left = 100 * 1024**2
    done = cli.within("submit", "sweep.yaml", "--local")
    assert done.returncode == 0
    assert f"warning: {tmp_path}: disk leaves room for 104.9 MB" in done.stderr
    left = 0
    again = cli.within("submit", "sweep.yaml", "--local")
    assert again.returncode == 0 and not again.stderr
