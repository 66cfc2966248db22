"""From a config to jobs: names, ids, places, scripts, rules, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.planning.plan import PlannedJob
from oellm_autoexp.services import plan as service
from oellm_autoexp.store.effects import Effects

Planned = Callable[..., list[PlannedJob]]

TINY: dict[str, Any] = {
    "project": {"name": "tiny", "base_output_dir": "./outputs"},
    "backend": {
        "class_name": "CommandBackend",
        "command": ["train", "--lr", "${lr}", "--seed", "${seed}", "--out", "${job.output_dir}"],
    },
    "sweep": {"axes": {"lr": [1e-3, 3e-4], "seed": [0, 1]}},
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return {key: value for key, value in out.items() if value is not None}


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """Plans TINY with some sections changed; a value of None removes a key."""

    def plan(known: Mapping[str, str] | None = None, overrides: tuple[str, ...] = (), **changes: Any) -> Any:
        return list(result(tmp_path, changes, overrides, known).jobs)

    return plan


def result(
    tmp_path: Path,
    changes: Mapping[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
    known: Mapping[str, str] | None = None,
) -> service.PlanResult:
    config = merged(TINY, changes or {})
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    loaded = service.load(str(path), overrides=overrides, scheduler="local", cwd=tmp_path)
    return service.plan(loaded, known)


def ids(jobs: list[PlannedJob]) -> dict[str, str]:
    return {job.spec.id: job.spec.name for job in jobs}


# ---------------------------------------------------------------- what a job is


def test_a_job_has_its_name_command_and_places(planned: Planned, tmp_path: Path) -> None:
    """The printed layout: outputs/<name>, its checkpoints, outputs/scripts, a log for each attempt."""
    job = planned()[0]
    out = tmp_path / "outputs"
    assert job.spec.name == "tiny_lr0.001_seed0"
    assert job.spec.argv == ("train", "--lr", "0.001", "--seed", "0", "--out", str(out / job.spec.name))
    assert job.spec.parameters == {"lr": 0.001, "seed": 0}
    assert job.spec.output_dir == str(out / job.spec.name)
    assert job.spec.checkpoint_dir == str(out / job.spec.name / "checkpoints")
    assert job.spec.script_path == str(out / "scripts" / "tiny_lr0.001_seed0.sbatch")
    assert job.spec.log_of(2) == str(out / "logs" / "tiny_lr0.001_seed0.2.log")
    environment = job.request.job_environment
    assert environment["AUTOEXP_JOB_NAME"] == job.spec.name
    assert environment["AUTOEXP_SESSION"] == str(out / ".oellm-autoexp")
    assert job.request.cwd == str(tmp_path)


def test_the_same_config_gives_the_same_plan(planned: Planned) -> None:
    """Names, ids, order and bytes do not depend on when or how often one plans."""
    assert planned() == planned()


def test_what_differs_between_attempts_is_not_in_the_script(planned: Planned) -> None:
    """The attempt's number reaches the command as a variable; people see its name."""
    command = ["train", "--try", "${job.attempt}", "${job.log_path}", "${lr}${seed}"]
    job = planned(backend={"command": command})[0]
    assert '--try "$AUTOEXP_ATTEMPT"' in job.script
    assert job.spec.argv[2] == "${AUTOEXP_ATTEMPT}"
    assert job.spec.argv[3].endswith(".${AUTOEXP_ATTEMPT}.log")


def test_a_job_of_this_machine_has_no_job_step(planned: Planned) -> None:
    """A config that was written for a cluster runs here without `srun`; its launcher stays."""
    slurm = {"srun": {"cpu-bind": "none"}, "launcher_cmd": "nice", "sbatch": {"nodes": 4}}
    script = planned(slurm=slurm)[0].script
    assert "exec nice train" in script
    assert "srun" not in script


# ---------------------------------------------------------------- ids and names


def test_a_swept_text_is_resolved_once(planned: Planned) -> None:
    """An escaped reference is text, within a list or a mapping too, and stays it."""
    command = ["echo", "${a}", "${b.0}", "${c.x}", "${d}"]
    axes = {"lr": None, "seed": None, "a": [r"\${HOME}"], "b": [[r"\${x}"]], "d": ["${a}-"]}
    sweep = {"axes": axes, "base_values": {"c.x": r"\${y}"}}
    (job,) = planned(backend={"command": command}, sweep=sweep)
    assert list(job.spec.argv) == ["echo", "${HOME}", "${x}", "${y}", "${HOME}-"]


def test_ids_do_not_change_with_what_changes_no_result(planned: Planned, tmp_path: Path) -> None:
    """Order, notation, project, directories, resources, watching and policies are not the computation."""
    before = set(ids(planned()))
    variants: list[dict[str, Any]] = [
        {"sweep": {"axes": {"seed": [1, 0], "lr": [0.0003, 0.001]}}},
        {"sweep": {"axes": None, "type": "product", "groups": [{"params": TINY["sweep"]["axes"]}]}},
        {"project": {"name": "other", "base_output_dir": str(tmp_path / "elsewhere")}},
        {"slurm": {"sbatch": {"nodes": 4, "time": "1:00:00"}}},
        {"restart_policies": {"crash": {"class_name": "NoRestartPolicy"}}},
        {"monitoring": {"class_name": "SlurmLogMonitor", "inactivity_threshold_seconds": 10}},
        {"scheduler": {"max_jobs": 2}},
        {"sweep": {"name_template": "x_{index}"}},
    ]
    for variant in variants:
        assert set(ids(planned(**variant))) == before, variant


def test_ids_change_with_what_is_computed(planned: Planned) -> None:
    """Another value, another word of the command, another variable: another job."""
    before = set(ids(planned()))
    command = [*TINY["backend"]["command"], "--fast"]
    for variant in (
        {"backend": {"command": command}},
        {"backend": {"environment": {"MODE": "x"}}},
        {"slurm": {"environment": {"MODE": "x"}}},
        {"sweep": {"axes": {"lr": [0.5, 0.25], "seed": [0, 1]}}},
    ):
        assert before.isdisjoint(ids(planned(**variant))), variant


def test_an_inserted_point_moves_nobody(planned: Planned) -> None:
    """With numbers for names, those that the session knows keep theirs and new points go on behind them."""
    sweep = {"name_template": "{project}_{index}"}
    before = ids(planned(sweep=sweep))
    wider = {**sweep, "axes": {"lr": [0.1, 1e-3, 3e-4], "seed": [0, 1]}}
    after = ids(planned(before, sweep=wider))
    assert {key: after[key] for key in before} == before
    assert sorted(after.values()) == [f"tiny_{n}" for n in range(6)]


def test_a_changed_point_keeps_its_number(planned: Planned) -> None:
    """A number whose job is no longer planned goes to the point at its place: a change, not an addition."""
    sweep = {"name_template": "{project}_{index}"}
    before = ids(planned(sweep=sweep))
    changed = {**sweep, "axes": {"lr": [2e-3, 3e-4], "seed": [0, 1]}}
    after = ids(planned(before, sweep=changed))
    assert list(after.values()) == list(before.values())
    assert len(set(after) & set(before)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": {"name_template": "{project}_{lr}"}}, "two points have the name"),
        ({"sweep": {"name_template": "scripts", "axes": {"lr": [1], "seed": [0]}}}, "directory of ours"),
        ({"backend": None}, "backend"),
        ({"backend": {"command": ["train", None, "${lr}${seed}"]}}, r"backend\.command\.1: null has no text"),
        ({"backend": {"command": "it's ${lr}${seed}"}}, r"cannot be split into words"),
        ({"slurm": {"environment": {"HF_TOKEN": "hf_abc"}}}, r"HF_TOKEN.*\n.*oc\.env:HF_TOKEN"),
        ({"slurm": {"environment": {"A-B": "x"}}}, "A-B"),
        ({"slurm": {"sbatch": {"time": "soon"}}}, r"slurm\.sbatch\.time"),
        ({"monitoring": {"class_name": "SlurmLogMonitor", "log_path_template": "{nam}"}}, "`{name}`|`name`"),
        ({"monitoring": {"class_name": "SlurmLogMonitor", "log_path_template": "x.%j"}}, "attempt"),
    ],
)
def test_a_mistake_is_refused(planned: Planned, changes: dict[str, Any], message: str) -> None:
    """One clear message; nothing is planned."""
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        planned(**changes)


# ---------------------------------------------------------------- lifecycle keys, rules, logs


def test_lifecycle_keys_reach_the_rules_and_not_the_backend(planned: Planned) -> None:
    """A swept threshold changes how a job is watched, not its command or its id."""
    null = {"class_name": "NullBackend", "command": None}
    watched = {"class_name": "SlurmLogMonitor", "inactivity_threshold_seconds": 100}
    plain = planned(backend=null, monitoring=watched, sweep={"axes": {"lr": [1], "seed": None}})
    sweep = {"axes": {"lr": [1], "seed": None}, "base_values": {"monitoring.inactivity_threshold_seconds": 7}}
    job = planned(backend=null, monitoring=watched, sweep=sweep)[0]
    assert job.spec.argv == ("echo", "--lr=1")
    assert job.spec.id == plain[0].spec.id
    assert job.rules["monitoring"]["inactivity_threshold_seconds"] == 7
    assert job.rules_id != plain[0].rules_id


def test_equal_rules_are_one(planned: Planned) -> None:
    """Rules that do not differ between points are one object with one identity."""
    jobs = planned(actions={"convert": {"command": "convert {path}"}})
    assert len({job.rules_id for job in jobs}) == 1
    assert all(job.rules is jobs[0].rules for job in jobs)
    json.dumps(jobs[0].rules)


@pytest.mark.parametrize(
    ("template", "log"),
    [
        ("{output_dir}/slurm.out", "outputs/tiny_lr0.001_seed0/slurm.3.out"),
        ("{output_dir}/a{attempt}", "outputs/tiny_lr0.001_seed0/a3"),
        ("{job_name}.txt", "outputs/logs/tiny_lr0.001_seed0.3.txt"),
        ("${job.output_dir}/log", "outputs/tiny_lr0.001_seed0/log.3"),
    ],
)
def test_a_log_path_of_ones_own_has_a_file_for_each_attempt(
    planned: Planned, tmp_path: Path, template: str, log: str
) -> None:
    """A restart never writes into the log of the attempt before it."""
    job = planned(monitoring={"class_name": "SlurmLogMonitor", "log_path_template": template})[0]
    assert job.spec.log_of(3) == str(tmp_path / log)


# ---------------------------------------------------------------- secrets


def test_a_secret_is_a_name_everywhere(
    tmp_path: Path, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file and no field of the plan holds the value, and another value is the same plan."""
    changes: dict[str, Any] = {
        "slurm": {"environment": {"HF_TOKEN": "${oc.env:HF_TOKEN}"}},
        "backend": {"command": ["train", "--key", "k=${oc.env:HF_TOKEN}", "${lr}", "${seed}"]},
    }
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    first = result(tmp_path, changes)
    monkeypatch.setenv("HF_TOKEN", "another")
    assert ids(list(result(tmp_path, changes).jobs)) == ids(list(first.jobs))
    texts = [file.data.decode() for file in service.files(first)]
    assert not any("s3cret" in text for text in [*texts, repr(first.jobs), repr(first.loaded.source)])
    assert first.jobs[0].spec.argv[2] == "k=${HF_TOKEN}"
    assert 'k="${HF_TOKEN:?' in first.jobs[0].script


def test_the_provenance_of_a_sweep_holds_no_secret(tmp_path: Path) -> None:
    """A value under a dotted key that ends with a secret's name is left out."""
    sweep = {"axes": {"slurm.environment.TOKEN": ["hf_plain"], "lr": [1], "seed": [2]}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, {"sweep": sweep})))
    config = service.provenance_of(service.load(str(path), scheduler="local", cwd=tmp_path))["config"]
    assert config["sweep"]["axes"]["slurm.environment.TOKEN"] == ["(secret)"]
    assert "hf_plain" not in repr(config)


# ---------------------------------------------------------------- relative paths


def test_what_stands_before_a_relative_path_means_itself(tmp_path: Path) -> None:
    """No placeholder and no pattern begins in the name of the config's directory."""
    condition = {"class_name": "FileExistsCondition", "path": "./go"}
    changes: dict[str, Any] = {
        "actions": {
            "a": {"command": "x", "cwd": "./tools"},
            "b": {"class_name": "AppendAction", "path": "notes/{job}.txt", "text": "t"},
            "c": {"class_name": "AppendAction", "path": "{output_dir}/x", "text": "t"},
        },
        "conditions": {"ready": {"class_name": "GlobCondition", "pattern": "d/*.pt"}},
        "job": {"start_condition": {"class_name": "NotCondition", "condition": condition}},
    }
    home, other = tmp_path / "a[1]{b}", tmp_path / "a[1]{{b}}"
    home.mkdir()
    overrides = ("conditions.late={class_name: GlobCondition}", "conditions.late.pattern=e/*")
    rules = result(home, changes, overrides).jobs[0].rules
    assert rules["actions"]["a"]["cwd"] == f"{home}/tools"
    assert rules["actions"]["b"]["path"] == f"{other}/notes/{{job}}.txt"
    assert rules["actions"]["c"]["path"] == "{output_dir}/x"
    assert rules["job"]["start_condition"]["condition"]["path"] == f"{other}/go"
    patterns = [rules["conditions"][name]["pattern"] for name in ("ready", "late")]
    assert patterns == [f"{tmp_path}/a[[]1]{{{{b}}}}/{end}" for end in ("d/*.pt", "e/*")]


def test_a_directory_that_is_swept_or_worked_out_starts_at_the_config(tmp_path: Path) -> None:
    """Wherever the command is given: like one that is written."""
    home = tmp_path / "home"
    home.mkdir()
    path = home / "sweep.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, {"metadata": {"where": "src"}})))
    for given in ("sweep.base_values={backend.cwd: src}", "backend.cwd=${metadata.where}"):
        loaded = service.load(str(path), overrides=[given], scheduler="local", cwd=tmp_path)
        assert service.plan(loaded).jobs[0].request.cwd == f"{home}/src"


def test_a_job_is_the_same_wherever_its_project_lies(tmp_path: Path) -> None:
    """A directory below the config's is part of an id by its relative name only."""
    found = []
    for name, cwd in (("a", "src"), ("b", "./src"), ("c", "src/../src"), ("d", str(tmp_path / "d" / "src"))):
        (tmp_path / name).mkdir()
        found.append(set(ids(list(result(tmp_path / name, {"backend": {"cwd": cwd}}).jobs))))
    assert all(each == found[0] for each in found)
    assert found[0].isdisjoint(ids(list(result(tmp_path, {"backend": {"cwd": "other"}}).jobs)))


# ---------------------------------------------------------------- files


def test_what_a_dry_run_shows_is_what_is_written(tmp_path: Path) -> None:
    """The same bytes at the same places; the second time nothing is written."""
    found = result(tmp_path)
    shown = {file.path: file.data for file in service.files(found)}
    assert not (tmp_path / "outputs").exists()
    service.write(found, Effects())
    written = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    assert written == shown
    assert {path.name for path in shown} >= {"sweep.json", "guard.py", "tiny_lr0.001_seed0.sbatch"}
    assert (tmp_path / "outputs" / "logs").is_dir()

    class Refused(Effects):
        def step(self, name: str, target: str) -> None:
            raise AssertionError(f"{name} {target}")

    service.write(result(tmp_path), Refused())


def test_a_sweep_without_sweep_json_writes_none(tmp_path: Path) -> None:
    found = result(tmp_path, {"sweep": {"store_sweep_json": False}})
    assert found.sweep_json is None
    assert not any(file.path.name == "sweep.json" for file in service.files(found))


def test_the_plan_says_what_it_may_cost_and_what_follows_an_end(tmp_path: Path) -> None:
    """GPU-hours at most, and every policy in force with where it comes from."""
    slurm = {"sbatch": {"nodes": 2, "gpus-per-node": 4, "time": "01:00:00"}}
    policies = {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1}}
    found = result(tmp_path, {"slurm": slurm, "restart_policies": policies})
    assert found.totals.jobs == 4
    assert found.totals.gpu_hours == 32.0
    by_mode = {policy.mode: policy for policy in found.policies}
    assert by_mode["crash"].configured
    assert by_mode["crash"].max_restarts == 1
    assert not by_mode["timeout"].configured
    assert by_mode["timeout"].max_restarts is None
    # One restart for a crash; a stall has its restarts again whenever it gets ahead.
    assert found.totals.gpu_hours_with_retries == 32.0 * 2


@pytest.mark.parametrize(
    ("policy", "hours"),
    [
        ({"max_retries": 2}, 2.0),
        ({"max_retries": 2, "minutes": 60}, 3.0),
        ({"max_retries": 2, "minutes": 60, "max_minutes": 90}, 1.5),
        ({"max_retries": 2, "minutes": 60, "max_minutes": 30}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_cost_counts_restarts_that_take_longer(
    tmp_path: Path, policy: dict[str, Any], hours: float
) -> None:
    """Each restart as long as the longest may be; a policy without a bound is named instead."""
    timeout = {"class_name": "AdjustTimeLimitPolicy", **policy}
    stall = {"class_name": "AlwaysRestartPolicy", "max_retries": 1}
    policies = {"timeout": timeout, "crash": {"class_name": "NoRestartPolicy"}, "stall": stall}
    changes = {"slurm": {"sbatch": {"gpus": 1, "time": "1:00:00"}}, "restart_policies": policies}
    found = result(tmp_path, changes)
    restarts = 1 + policy.get("max_retries", 0)
    assert found.totals.gpu_hours_with_retries == 4 * (1 + restarts * hours)
    assert ("timeout" in found.cost) == ("max_retries" not in policy)
