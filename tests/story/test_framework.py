"""A project's experiments from Python: the samples of its first documents, and what becomes of the jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Cli, until

from oellm_autoexp import (
    ClusterProfile,
    ConfigurationManager,
    ConfigValidator,
    ExecutionMode,
    ExperimentConfig,
    ExperimentNaming,
    GridSearchExecutor,
    ModelTrainingFramework,
    NamingStrategy,
    ParameterGrid,
    ParameterGridSearch,
    SLURMConfig,
    ValidationError,
)
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import ConfigError, UsageError
from oellm_autoexp.services.experiments.launcher import ExperimentLauncher
from oellm_autoexp.services.session import replay

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "grid-search.md"
TRAIN = """\
import json, pathlib, sys
from oellm_autoexp import ConfigurationManager
config = ConfigurationManager(".").load_config(sys.argv[1])
pathlib.Path(sys.argv[1]).with_name("seen.json").write_text(json.dumps(config))
with pathlib.Path(sys.argv[1]).with_name("times.txt").open("a") as times:
    times.write("x")
sys.exit(config["custom_params"].get("code", 0))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a script that says what it was given, in a registry of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "registry"))
    root = tmp_path / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN)
    monkeypatch.chdir(root)
    return root


def base(**more: Any) -> dict[str, Any]:
    return {"experiment_name": "base", **more}


# ---------------------------------------------------------------- the samples, as they were first written


def test_sample_of_a_grid_search(capsys: pytest.CaptureFixture[str]) -> None:
    # Base configuration
    base = {
        "experiment_name": "baseline",
        "model": {"type": "transformer", "hidden_size": 256},
        "optimizer": {"type": "adamw", "lr": 1e-3},
        "training": {"max_epochs": 50},
    }

    # Create grid search
    gs = ParameterGridSearch(base)
    gs.set_naming_strategy(NamingStrategy.PARAMETER_BASED)

    # Define search space
    grid = (
        ParameterGrid("hyperparameters")
        .add_parameter("optimizer.lr", [1e-4, 5e-4, 1e-3])
        .add_parameter("model.hidden_size", [256, 512, 1024])
        .add_parameter("training.gradient_accumulation_steps", [1, 2, 4])
    )

    gs.add_grid(grid)

    # Generate and save
    experiments = list(gs.generate_experiments())
    gs.save_grid_config(Path("grid.json"))
    gs.save_summary(Path("summary.txt"))

    print(f"Generated {len(experiments)} experiments")

    assert capsys.readouterr().out == "Generated 27 experiments\n"
    assert len({each.experiment_name for each in experiments}) == 27
    assert {each.optimizer.lr for each in experiments} == {1e-4, 5e-4, 1e-3}
    assert all(each.model.type == "transformer" and each.training.max_epochs == 50 for each in experiments)
    assert list(ParameterGridSearch.load_grid_config("grid.json").generate_experiments()) == experiments
    assert "27 experiments" in Path("summary.txt").read_text()


def test_samples_of_parameters_and_permutations(capsys: pytest.CaptureFixture[str]) -> None:
    grid = (
        ParameterGrid("search")
        .add_parameter("optimizer.lr", [1e-3, 1e-4, 1e-5])
        .add_parameter("model.hidden_size", [128, 256, 512])
    )
    count = grid.get_parameter_count()  # e.g., 9 for 3x3 grid
    for params in grid.generate_permutations():
        print(params)  # {"optimizer.lr": 1e-3, "model.hidden_size": 128}
    assert count == 9
    assert capsys.readouterr().out.splitlines()[0] == "{'optimizer.lr': 0.001, 'model.hidden_size': 128}"


def test_both_forms_of_adding_a_grid() -> None:
    gs = ParameterGridSearch(base())
    gs.add_grid("named", {"optimizer.lr": [1e-3, 1e-4]})
    grid = ParameterGrid("hyperparameter_search")
    grid.add_parameter("optimizer.weight_decay", [0.0, 0.1])
    gs.add_grid(grid)
    assert gs.get_total_experiments() == 4


def test_samples_of_the_configuration_manager(project: Path) -> None:
    (project / "config.yaml").write_text("experiment_name: x\noptimizer: {lr: 1e-3}\n")
    cm = ConfigurationManager(project_root=".")
    config = cm.load_config("config.yaml")
    experiment_config = cm.create_experiment_config(config)
    cm.save_config(experiment_config, "experiment.yaml")
    assert cm.create_experiment_config(cm.load_config("experiment.yaml")) == experiment_config
    assert yaml.safe_load(Path("experiment.yaml").read_text())["optimizer"]["lr"] == 1e-3


def test_sample_of_names_and_validation() -> None:
    name = ExperimentNaming.generate_name("base", {"lr": 1e-3}, naming_strategy=NamingStrategy.HASH_BASED)
    assert name.startswith("base_")
    assert ExperimentNaming.parse_experiment_name("base_lr=0.001") == {"lr": 1e-3}
    config = ExperimentConfig(experiment_name="x")
    assert ConfigValidator.validate_config(config).is_valid
    assert ConfigValidator.check_resource_requirements(config, ClusterProfile()).is_satisfiable


def test_a_key_without_its_section_is_refused_with_the_whole_key() -> None:
    """The last sample sweeps a bare `lr`, which would make two experiments that train the same."""
    gs = ParameterGridSearch(base())
    grid = ParameterGrid("search").add_parameter("lr", [1e-3, 1e-4])
    with pytest.raises(ValidationError, match=r"lr: unknown key\n  -> did you mean `optimizer.lr`\?"):
        gs.add_grid(grid)


def created(framework: ModelTrainingFramework) -> ExperimentConfig:
    return framework.create_experiment(
        {
            "experiment_name": "resnet_baseline",
            "model": {"type": "resnet50", "num_classes": 1000},
            "training": {"max_epochs": 100, "batch_size": 64},
            "optimizer": {"type": "adamw", "lr": 1e-3},
        }
    )


def test_sample_of_a_single_experiment(project: Path) -> None:
    """Its directory has config, script and log; the training was given that config."""
    framework = ModelTrainingFramework(project)
    config = created(framework)
    result = framework.run_single_experiment(config, ExecutionMode.LOCAL)
    assert (result.success, result.state, result.error) == (True, "succeeded", None)
    assert str(result) == result.job_id
    home = project / "experiments" / "resnet_baseline"
    assert result.output_dir == home
    assert {"config.yaml", "resnet_baseline.sbatch", "resnet_baseline.1.log"} <= {
        each.name for each in home.iterdir()
    }
    assert json.loads((home / "seen.json").read_text()) == config.to_dict()


def test_sample_of_a_simple_experiment_with_the_other_spelling(project: Path) -> None:
    framework = ModelTrainingFramework(project)
    config = framework.create_experiment(
        {
            "experiment_name": "resnet_baseline",
            "model": {"type": "resnet50", "hidden_size": 512},
            "optimizer": {"lr": 1e-3, "weight_decay": 0.01},
            "trainer": {"max_epochs": 100, "batch_size": 64},
        }
    )
    assert (config.training.max_epochs, config.data.batch_size) == (100, 64)
    assert framework.run_experiment(config, local=True).success


def test_sample_of_a_grid_search_that_runs(project: Path) -> None:
    """Each with a config of its own; `status` shows them with their parameters."""
    framework = ModelTrainingFramework(project)
    grid = ParameterGrid("learning_rate_search")
    grid.add_parameter("optimizer.lr", [1e-4, 5e-4])
    grid.add_parameter("training.batch_size", [32, 64])
    results = framework.run_grid_search(created(framework), [grid], ExecutionMode.LOCAL)
    assert len(results) == len(list(results)) == 4
    assert (results.total_experiments, results.success_rate, results.failed_submissions) == (4, 100.0, {})
    home = project / "experiments" / "learning_rate_search"
    summary = json.loads((home / "results_summary.json").read_text())
    assert [row["state"] for row in summary["experiments"]] == ["succeeded"] * 4
    seen = [json.loads(path.read_text()) for path in home.glob("*/seen.json")]
    assert {(each["optimizer"]["lr"], each["data"]["batch_size"]) for each in seen} == {
        (lr, size) for lr in (1e-4, 5e-4) for size in (32, 64)
    }
    shown = Cli(project)("status", str(home / "autoexp.yaml"), "--json")
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)["jobs"]
    assert {(row["parameters"]["lr"], row["parameters"]["batch_size"]) for row in rows} == {
        (lr, size) for lr in (1e-4, 5e-4) for size in (32, 64)
    }
    assert [row["scheduler_id"] for row in rows] == results.submitted_jobs


def test_the_page_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks, one after the other."""
    given: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, given)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7
    assert printed[0] == "baseline_lr=0.0001_hidden-size=256_num-layers=6_ba2 60" or printed[0].endswith(
        " 60"
    )
    assert printed[-2:] == ["True", f"{given['results'].submitted_jobs} 100.0 {{}}"]


# ---------------------------------------------------------------- what is not done twice, and what is refused


def search(project: Path, name: str = "s", **given: Any) -> Any:
    framework = ModelTrainingFramework(project)
    grid = ParameterGrid(name).add_parameter("seed", given.pop("seeds", [0, 1]))
    options = {"execution_mode": ExecutionMode.LOCAL, **given.pop("options", {})}
    return framework.run_grid_search(base(**given), [grid], **options)


def times(project: Path) -> list[str]:
    return [path.read_text() for path in sorted(project.glob("experiments/s/*/times.txt"))]


def test_a_search_that_is_run_again_goes_on(project: Path) -> None:
    """What has ended is not run again; what the grid has in addition is."""
    search(project)
    assert len(search(project, seeds=[0, 1, 2])) == 3
    assert times(project) == ["x"] * 3


def test_a_changed_experiment_is_refused_and_its_config_stays(project: Path) -> None:
    """Until the change is agreed to; what an experiment asks of Slurm, or is described as, is none."""
    search(project)
    config = project / "experiments" / "s" / "base_seed=0" / "config.yaml"
    before = config.read_text()
    with pytest.raises(ConfigError, match="has changed: config_digest"):
        search(project, optimizer={"lr": 0.5})
    assert config.read_text() == before
    search(project, description="other", slurm={"nodes": 1})
    assert times(project) == ["x", "x"]
    search(project, optimizer={"lr": 0.5}, options={"update": True})
    assert times(project) == ["xx", "xx"] and "lr: 0.5" in config.read_text()


def test_a_failed_experiment_is_told_with_its_reason(project: Path) -> None:
    framework = ModelTrainingFramework(
        project, overrides=["restart_policies.crash.class_name=NoRestartPolicy"]
    )
    grid = ParameterGrid("s").add_parameter("custom_params.code", [0, 3])
    results = framework.run_grid_search(base(), [grid], ExecutionMode.LOCAL)
    assert results.success_rate == 50.0
    assert list(results.failed_submissions) == ["base_code=3"]
    assert "3" in results.failed_submissions["base_code=3"]


def test_a_dry_run_writes_nothing_and_shows_the_scripts(project: Path) -> None:
    slurm = {"account": "a1", "time": "1:00:00", "gpus_per_node": 2}
    results = search(project, slurm=slurm, options={"execution_mode": ExecutionMode.DRY_RUN})
    assert [each.job_id for each in results.results] == ["DRY_RUN", "DRY_RUN"]
    assert "#SBATCH --account=a1" in results.results[0].script
    assert not (project / "experiments").exists()


def test_what_experiments_ask_of_slurm_may_differ(project: Path) -> None:
    """Also where one says something of which another says nothing."""
    grid = ParameterGrid("s").add_linked_parameters(
        ["model.num_layers", "slurm.nodes", "slurm.time"], [(2, 1, None), (24, 4, "2:00:00")]
    )
    framework = ModelTrainingFramework(project)
    results = framework.run_grid_search(base(slurm={"account": "a1"}), [grid], ExecutionMode.DRY_RUN)
    small, large = (each.script for each in results.results)
    assert "--nodes=4" in large and "--time=2:00:00" in large and "--account=a1" in large
    assert "--nodes=1" in small and "--time" not in small and "--account=a1" in small


def test_clusters_are_groups_of_configs(project: Path) -> None:
    framework = ModelTrainingFramework(project, cluster="lumi")
    config = framework.create_experiment(base(slurm={"account": "project_1", "time": "1:00:00", "nodes": 2}))
    script = framework.run_single_experiment(config, ExecutionMode.DRY_RUN).script
    assert "--partition=standard-g" in script and "--nodes=2" in script and "--account=project_1" in script


def test_without_waiting_the_ids_are_known_and_others_watch(project: Path) -> None:
    results = search(project, options={"wait": False})
    assert len(list(results)) == 2
    paths = SessionPaths(project / "experiments" / "s" / ".oellm-autoexp")
    until(lambda: replay(paths).ended is not None, "end of the session")
    assert times(project) == ["x", "x"]


HOSTILE = {
    "values": {"model": {"name": "$(touch pwned) `touch pwned` ; touch pwned", "path": "${oc.env:HOME}"}},
    "a name": {"experiment_name": "../../${x} $(touch pwned)\t'\"é"},
    "a description": {"description": "${job.name} {attempt} %j"},
    "slurm": {"slurm": {"extra_args": {"comment": "a b; $(touch pwned) ${HOME}"}}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_texts_mean_themselves_wherever_they_go(case: str, project: Path) -> None:
    """In configs, scripts, names and commands."""
    framework = ModelTrainingFramework(project)
    if case == "a name":
        with pytest.raises(ValidationError, match="printable"):
            framework.create_experiment(HOSTILE[case])
        HOSTILE[case] = {"experiment_name": "../../${x} $(touch pwned) '\"é"}
    config = framework.create_experiment({**base(), **HOSTILE[case]})
    result = framework.run_single_experiment(config, ExecutionMode.LOCAL)
    assert result.success, result.error
    assert result.output_dir is not None and result.output_dir.parent == project / "experiments"
    assert json.loads((result.output_dir / "seen.json").read_text()) == config.to_dict()
    assert not list(project.rglob("pwned"))


def refusals(project: Path) -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    launcher = ExperimentLauncher(project)
    executor = GridSearchExecutor(launcher, ConfigurationManager(project))
    one = ExperimentConfig(experiment_name="logs")
    twins = [({"seed": seed}, ExperimentConfig(experiment_name="x", seed=seed)) for seed in (0, 1)]
    local = ExecutionMode.LOCAL
    return {
        "no points": (lambda: executor.execute_grid_search(base(), []), ValidationError, "no experiments"),
        "no script": (
            lambda: ModelTrainingFramework(project, script="trian.py").run_experiment(twins[0][1]),
            UsageError,
            "no such script",
        ),
        "our name": (lambda: launcher.launch([({}, one)], local), ValidationError, "a directory of ours"),
        "one name": (lambda: launcher.launch(twins, local, search="s"), ValidationError, "have the name `x`"),
        "several": (
            lambda: launcher.launch([*twins[:1], ({}, ExperimentConfig(experiment_name="y"))], local),
            ValidationError,
            "the name of their search",
        ),
        "a log's name": (
            lambda: ModelTrainingFramework(project).run_experiment(
                ExperimentConfig(experiment_name="x", slurm=SLURMConfig(output="x.out"))
            ),
            ValidationError,
            "slurm.output: does nothing without a template",
        ),
        "a base": (
            lambda: executor.execute_grid_search({"experiment_name": "x", "lr": 1}, [ParameterGrid("g")]),
            ValidationError,
            "optimizer.lr",
        ),
    }


@pytest.mark.parametrize(
    "case", ["no points", "no script", "our name", "one name", "several", "a log's name", "a base"]
)
def test_what_cannot_run_is_refused_before_anything_is_written(case: str, project: Path) -> None:
    run, kind, says = refusals(project)[case]
    with pytest.raises(kind, match=says):
        run()
    assert not (project / "experiments").exists()
