"""What a config may say in several ways, and where the paths in it start."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Cli

from oellm_autoexp.config import compose
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.services import plan as service
from oellm_autoexp.services import plugins

BASE = """\
project: {name: tiny}
backend: {class_name: CommandBackend, command: [python, train.py, "${size}"]}
sweep: {axes: {size: [a, b]}}
"""


def load(path: Path, text: str, overrides: Sequence[str] = (), **more: Any) -> compose.Composed:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    more.setdefault("cwd", path.parent)
    return compose.load(str(path), overrides=overrides, load_plugins=plugins.load, **more)


def points(composed: compose.Composed) -> list[Any]:
    return [composed.point(point.values, {"name": "x"}).raw for point in composed.points()]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("slurm.sbatch.nodes", [1, 4]),
        ("slurm.environment.SEED", [1, 2]),
        ("slurm.setup", [["a"], ["b"]]),
        ("backend.environment.SEED", [1, 2]),
        ("metadata.note", ["a", "b"]),
        ("job.termination_string", ["a", "b"]),
        ("monitoring.inactivity_threshold_seconds", [10, 20]),
        ("actions.convert.command", ["a", "b"]),
    ],
)
def test_a_swept_key_needs_no_section(tmp_path: Path, key: str, values: list[Any]) -> None:
    """As an override, a dotted key of the sweep makes the sections above it."""
    composed = load(tmp_path / "s.yaml", f"{BASE.replace('size: [a, b]', f'size: [a], {key}: {values}')}")
    for raw, value in zip(points(composed), values, strict=True):
        for part in key.split("."):
            raw = raw[part]
        assert raw == value


# ---------------------------------------------------------------- schedulers

SHORTHANDS = {
    "scheduler: {class_name: slurm}": "SlurmClient",
    "scheduler: {class_name: local}": "LocalScheduler",
    "scheduler: {class_name: SlurmClient}": "SlurmClient",
    "scheduler: {class_name: RealSlurmClient}": "SlurmClient",
    "scheduler: {max_jobs: 2}": "SlurmClient",
    "slurm: {client: {class_name: SlurmClient}}": "SlurmClient",
    "slurm: {client: {class_name: RealSlurmClient}}": "SlurmClient",
    "slurm: {client: {class_name: SlurmClient}}\nscheduler: {class_name: local}": "LocalScheduler",
    "slurm: {client: null}": "SlurmClient",
    "": "SlurmClient",
}


@pytest.mark.parametrize(("text", "expected"), SHORTHANDS.items())
def test_a_scheduler_has_several_names(tmp_path: Path, text: str, expected: str) -> None:
    """Short names and class names mean the same, in `scheduler` and in `slurm.client`."""
    composed = load(tmp_path / "s.yaml", BASE + text)
    raw = points(composed)[0]
    assert raw["scheduler"]["class_name"] == expected
    assert "client" not in raw.get("slurm", {})


def test_a_client_brings_its_own_settings(tmp_path: Path) -> None:
    """What stands beside the class name is the scheduler's; `scheduler` itself wins over it."""
    client = "{class_name: SlurmClient, max_jobs: 3, breaker: 5, persist_artifacts: true}"
    text = BASE + f"slurm: {{client: {client}}}\nscheduler: {{breaker: 7}}"
    section = points(load(tmp_path / "s.yaml", text))[0]["scheduler"]
    assert section == {"class_name": "SlurmClient", "max_jobs": 3, "breaker": 7}


@pytest.mark.parametrize("override", ["slurm.client.class_name=nonsense", "slurm.client=nonsense"])
def test_a_client_may_be_an_override(tmp_path: Path, override: str) -> None:
    """It counts where the scheduler is Slurm, whether a group or nobody says so."""
    for text in (BASE, BASE + "scheduler: {class_name: slurm}"):
        with pytest.raises(ConfigError) as error:
            load(tmp_path / "s.yaml", text, [override])
        assert "there is no scheduler `nonsense`" in str(error.value)
    composed = load(tmp_path / "s.yaml", BASE + "scheduler: {class_name: local}", [override])
    assert points(composed)[0]["scheduler"]["class_name"] == "LocalScheduler"


def test_a_flag_wins_over_a_client(tmp_path: Path) -> None:
    """`--local` runs a config for a cluster on this machine."""
    path = tmp_path / "s.yaml"
    load(path, BASE + "slurm: {client: {class_name: SlurmClient, max_jobs: 1}}")
    loaded = service.load(str(path), scheduler="local", cwd=tmp_path)
    assert loaded.scheduler_config == {"class_name": "LocalScheduler"}


# ---------------------------------------------------------------- defaults


def test_a_config_wins_over_its_defaults_without_saying_so(tmp_path: Path) -> None:
    """Without `_self_` a config comes last, and nobody is warned (warnings are errors here)."""
    composed = load(tmp_path / "s.yaml", BASE + "defaults: [{slurm: lumi}]\nslurm: {sbatch: {nodes: 3}}")
    sbatch = points(composed)[0]["slurm"]["sbatch"]
    assert (sbatch["nodes"], sbatch["gpus-per-node"]) == (3, 8)


def test_a_config_may_come_in_earlier(tmp_path: Path) -> None:
    """What stands behind `_self_` in `defaults` wins over the config."""
    text = BASE + "defaults: [_self_, {slurm: lumi}]\nslurm: {sbatch: {nodes: 3}}"
    assert points(load(tmp_path / "s.yaml", text))[0]["slurm"]["sbatch"]["nodes"] == 1


# ---------------------------------------------------------------- provenance


def test_the_sweep_is_part_of_the_provenance(tmp_path: Path) -> None:
    """As it was written, with secrets hidden as everywhere."""
    swept = "size: [a, b], slurm.environment.MY_TOKEN: ['${oc.env:HOME}', plain]"
    composed = load(tmp_path / "s.yaml", BASE.replace("size: [a, b]", swept), ["slurm.array=false"])
    axes = composed.shown["sweep"]["axes"]
    assert axes["size"] == ["a", "b"]
    assert "plain" not in str(axes)


# ---------------------------------------------------------------- paths


def test_relative_paths_start_at_their_file(tmp_path: Path) -> None:
    """Also where a command of the backend or of an action runs, and what actions and conditions look at."""
    text = """
        project: {name: tiny}
        backend: {class_name: CommandBackend, command: [x], cwd: src}
        actions:
          convert: {command: c, cwd: ../tools, on: [job_failed]}
          note: {class_name: AppendAction, path: notes.txt, text: t, on: [job_failed]}
          job_note: {class_name: AppendAction, path: "{output_dir}/n.txt", text: t, on: [job_failed]}
        conditions:
          data: {class_name: FileExistsCondition, path: ./data.bin}
          shards: {class_name: GlobCondition, pattern: "data/*.bin"}
          done: {class_name: FileExistsCondition, path: "${job.output_dir}/done"}
          both:
            class_name: AllCondition
            conditions:
              - {class_name: FileExistsCondition, path: deep.bin}
              - {class_name: NotCondition, condition: {class_name: GlobCondition, pattern: "*.lock"}}
        job:
          start_condition: {class_name: FileExistsCondition, path: go}
        """
    home = tmp_path / "configs"
    composed = load(home / "s.yaml", text, cwd=tmp_path)
    raw = points_with_places(composed)
    assert raw["backend"]["cwd"] == str(home / "src")
    assert raw["actions"]["convert"]["cwd"] == str(tmp_path / "tools")
    assert raw["actions"]["note"]["path"] == str(home / "notes.txt")
    assert raw["actions"]["job_note"]["path"] == "{output_dir}/n.txt"
    assert raw["conditions"]["data"]["path"] == str(home / "data.bin")
    assert raw["conditions"]["shards"]["pattern"] == str(home / "data/*.bin")
    assert raw["conditions"]["done"]["path"] == "/out/done"
    first, second = raw["conditions"]["both"]["conditions"]
    assert first["path"] == str(home / "deep.bin")
    assert second["condition"]["pattern"] == str(home / "*.lock")
    assert raw["job"]["start_condition"]["path"] == str(home / "go")


def points_with_places(composed: compose.Composed) -> Any:
    return composed.point({}, {"name": "x", "output_dir": "/out"}).raw


def test_relative_paths_of_overrides_start_where_they_are_given(tmp_path: Path) -> None:
    """A person who types a path means it from where they are."""
    home = tmp_path / "configs"
    text = BASE + "actions: {convert: {command: c, on: [job_failed]}}"
    given = ["backend.cwd=src", "actions.convert.cwd=./tools"]
    given += [
        "job.start_condition={class_name: FileExistsCondition, path: /x}",
        "job.start_condition.path=go",
    ]
    raw = points(load(home / "s.yaml", text, given, cwd=tmp_path))[0]
    assert raw["backend"]["cwd"] == str(tmp_path / "src")
    assert raw["actions"]["convert"]["cwd"] == str(tmp_path / "tools")
    assert raw["job"]["start_condition"]["path"] == str(tmp_path / "go")


def test_a_command_runs_where_its_config_says(tmp_path: Path) -> None:
    """The directory that a backend names is the one in the script."""
    home = tmp_path / "configs"
    load(home / "s.yaml", BASE)
    loaded = service.load(
        str(home / "s.yaml"), overrides=["backend.cwd=work"], scheduler="local", cwd=tmp_path
    )
    assert {job.request.cwd for job in service.plan(loaded).jobs} == {str(tmp_path / "work")}


# ---------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scheduler: {class_name: kubernetes}", "there are slurm, local, fake"),
        ("slurm: {client: {class_name: KubernetesScheduler}}", "there are slurm, local, fake"),
        ("slurm: {arry: true}", "did you mean `array`?"),
        ("slurm: {sbatch: {time: 24:00:00}}", 'time: "24:00:00"'),
        ("slurm: {environment: {A: '${oc.env:AUTOEXP_NOT_SET}'}}", "AUTOEXP_NOT_SET"),
        ("sweep: {axes: {size: [a, b]}}", "`sweep` stands twice"),
    ],
)
def test_a_mistake_ends_a_command_with_2_and_writes_nothing(tmp_path: Path, text: str, says: str) -> None:
    """One message on stderr, no traceback, nothing on disk."""
    (tmp_path / "s.yaml").write_text(BASE + text + "\n")
    for verb in ("plan", "submit"):
        done = Cli(tmp_path).within(verb, "s.yaml")
        assert done.returncode == 2, done.stderr
        assert done.stdout == "" and says in done.stderr and "Traceback" not in done.stderr
        assert "s.yaml:4" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
