"""Experiments as batch scripts of a template: the first documents' samples, and what becomes of the jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until

import oellm_autoexp
from oellm_autoexp import (
    ExecutionMode,
    ExperimentConfig,
    JobSubmissionError,
    ModelTrainingFramework,
    ParameterGrid,
    ParameterGridSearch,
    SLURMError,
    SLURMLauncher,
)
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import UsageError
from oellm_autoexp.services.session import history, replay

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{JOB_NAME}}
#SBATCH --account={{ACCOUNT}}
#SBATCH --nodes={{NODES}}
#SBATCH --time={{TIME}}
#SBATCH --output=experiments/{{EXPERIMENT_NAME}}/slurm_%j.out
#SBATCH --open-mode=append  # Preserve logs across requeues
#SBATCH --signal=USR1@60  # Signal 60s before timeout
#SBATCH --requeue

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK}
files=(a b c)
echo "${#files[@]} $(echo files)"

# Run training
python {{SCRIPT_PATH}} {{CONFIG_NAME}}
"""
#: Says what it was given; waits for a gate, where there is one; ends as it is told to.
TRAIN = """\
import json, os, pathlib, sys, time
place = pathlib.Path(sys.argv[1])
config = json.loads(place.with_suffix(".json").read_text())
assert place.read_text().startswith("experiment_name")
with place.with_name("times.txt").open("a") as times:
    times.write("x")
custom = config["custom_params"]
while custom.get("gate") and not pathlib.Path(custom["gate"]).exists():
    time.sleep(0.02)
print("cwd", os.getcwd(), sys.argv)
sys.exit(custom.get("code", 0))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a template and a script, where `python` is one, in a registry of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "registry"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    root = tmp_path / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN)
    for name in ("slurm_template.txt", "template.txt"):
        (root / name).write_text(TEMPLATE)
    monkeypatch.chdir(root)
    return root


def local(**more: Any) -> SLURMLauncher:
    options = {"template_path": "slurm_template.txt", "project_root": ".", "scheduler": "local"}
    return SLURMLauncher(**{**options, **more})


def experiment(name: str = "base", **more: Any) -> ExperimentConfig:
    framework = ModelTrainingFramework(".")
    return framework.create_experiment({"experiment_name": name, **more})


def finished(root: Path, experiments: str = "experiments") -> SessionPaths:
    paths = SessionPaths(root / experiments / ".oellm-autoexp")
    until(lambda: replay(paths).ended is not None, "the end of the session")
    return paths


def states(paths: SessionPaths) -> dict[str, str]:
    return {name: job.state.value for name, job in replay(paths).jobs.items()}


# ---------------------------------------------------------------- the samples, as they were first written


def test_samples_of_the_launcher(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One, then some; each runs once, by the template, with its config."""
    SLURMLauncher = partial(oellm_autoexp.SLURMLauncher, scheduler="local")
    base_config = {"experiment_name": "base", "slurm": {"time": "1:00:00"}}
    config = experiment(**base_config)  # type: ignore[arg-type]

    launcher = SLURMLauncher(
        template_path="slurm_template.txt",
        project_root=".",
        experiments_dir="./experiments",
    )

    result = launcher.submit_single_experiment(
        config=config,
        script_path="train.py",
        use_git_branch=False,
        dry_run=False,  # Set True to preview without submitting
    )

    if result.success:
        print(f"Job ID: {result.job_id}")

    assert result.error is None and result.job_id and str(result) == result.job_id
    assert capsys.readouterr().out == f"Job ID: {result.job_id}\n"
    assert result.submission_time is not None and result.submission_time.tzinfo is not None

    # Generate experiments
    gs = ParameterGridSearch(base_config)
    gs.add_grid(ParameterGrid("search").add_parameter("optimizer.lr", [1e-3, 1e-4]))
    experiments = list(gs.generate_experiments())

    # Submit batch
    result = launcher.submit_experiment_batch(
        experiments=experiments,
        script_path="train.py",
        max_concurrent=10,
        use_git_branch=False,
        dry_run=False,
    )

    print(f"Submitted {result.success_count}/{result.total_experiments} jobs")

    # Check results
    for job in result.job_results:
        if job.success:
            print(f"{job.experiment_name}: Job {job.job_id}")
        else:
            print(f"{job.experiment_name}: Failed - {job.error}")

    ids = result.successful_jobs
    assert len(set(ids)) == 2 and result.failed_jobs == {} and result.success_rate == 100.0
    assert capsys.readouterr().out.splitlines() == [
        "Submitted 2/2 jobs",
        *(f"{each.experiment_name}: Job {each.job_id}" for each in result.job_results),
    ]
    assert set(states(finished(project)).values()) == {"succeeded"}
    for name in ("base", *(each.experiment_name for each in experiments)):
        home = project / "experiments" / name
        assert (home / "times.txt").read_text() == "x"
        files = {each.name for each in home.iterdir()}
        assert {f"{name}.sbatch", "config.yaml", "config.json"} <= files
        log = (home / f"{name}.1.log").read_text()
        assert "3 files\n" in log and f"cwd {project} ['train.py', '{home}/config.yaml']" in log


def test_sample_of_the_whole_workflow(project: Path) -> None:
    SLURMLauncher = partial(oellm_autoexp.SLURMLauncher, scheduler="local")
    # 1. Configure experiments
    base_config = {"experiment_name": "base"}
    gs = ParameterGridSearch(base_config)
    grid = ParameterGrid("search").add_parameter("optimizer.lr", [1e-3, 1e-4])
    gs.add_grid(grid)
    experiments = list(gs.generate_experiments())

    # 2. Submit to SLURM
    launcher = SLURMLauncher("template.txt", ".", "./experiments")
    result = launcher.submit_experiment_batch(experiments, "train.py")

    assert result.success_count == 2
    assert set(states(finished(project)).values()) == {"succeeded"}
    assert launcher.submit_experiment_batch([]).total_experiments == 0


def test_the_framework_has_this_launcher_and_runs_by_the_template(project: Path) -> None:
    """Its searches go by the project's template where they go to Slurm; a name runs in one way only."""
    framework = ModelTrainingFramework(project)
    assert isinstance(framework.launcher, SLURMLauncher)
    config = framework.create_experiment({"experiment_name": "one", "slurm": {"time": "0:10:00"}})
    script = framework.run_single_experiment(config, ExecutionMode.DRY_RUN).script
    assert "${#files[@]}" in script and "#SBATCH --time=0:10:00" in script
    assert framework.run_experiment(config, local=True).success
    refused = local().submit_single_experiment(config)
    assert not refused.success and "a session of its own" in str(refused.error)
    other = experiment("two")
    assert local().submit_single_experiment(other).success
    with pytest.raises(UsageError, match="was submitted with others already"):
        framework.run_single_experiment(other, ExecutionMode.LOCAL)
    assert local().submit_experiments([other]) == [local().list_user_jobs()[0].job_id]
    finished(project)


def test_the_page_does_what_it_says(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks, one after the other."""
    text = (ROOT / "docs/howto/launcher.md").read_text()
    (project / "slurm_template.txt").unlink()
    (project / "slurm").mkdir()
    template = re.search(r"```bash\n(#!/bin/bash.*?)```", text, re.DOTALL)
    assert template is not None
    (project / "slurm" / "template.sbatch").write_text(template[1])
    given: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace('project_root="."', 'project_root=".", scheduler="local"'), given)
    printed = capsys.readouterr().out
    assert "Submitted 3/3" in printed and "#SBATCH --job-name=" in printed
    assert set(states(finished(project)).values()) <= {"succeeded", "cancelled"}


# ---------------------------------------------------------------- what is asked of the scheduler


def test_the_directives_of_the_template_are_what_the_job_asks_for(project: Path) -> None:
    """A dry run writes the files and submits nothing; the script is guarded, with the template's options."""
    config = experiment("a", slurm={"account": "acc", "time": "2:00:00", "nodes": 3, "job_name": "other"})
    result = local(scheduler="slurm").submit_single_experiment(config, "train.py", dry_run=True)
    assert (result.success, result.job_id, str(result)) == (True, "DRY_RUN", "DRY_RUN")
    assert result.sbatch_script_path == project / "experiments/a/a.sbatch"
    script = result.sbatch_script_path.read_text()
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "#SBATCH --job-name=a",
        "#SBATCH --account=acc",
        "#SBATCH --nodes=3",
        "#SBATCH --time=2:00:00",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:USR1@60",
        "#SBATCH --requeue",
    ]
    assert script == result.script and "guard.py" in script
    assert f"python train.py {project}/experiments/a/config.yaml" in script
    assert any("--output is left out" in notice for notice in result.notices)
    assert json.loads((project / "experiments/a/config.json").read_text()) == config.to_dict()
    assert local().list_user_jobs() == []


def test_a_job_is_the_same_in_whatever_company_it_is_submitted(project: Path) -> None:
    """What it asks of Slurm is no part of what it is, whether others ask for the same or not."""
    (project / "there").mkdir()
    where = "{% if NODES > 1 %}\n#SBATCH --chdir=there\n{% endif %}\n#SBATCH --requeue"
    (project / "slurm_template.txt").write_text(TEMPLATE.replace("#SBATCH --requeue", where))
    launcher = local()
    small, large = experiment("small"), experiment("large", slurm={"nodes": 4, "account": "a"})
    alone = launcher.submit_single_experiment(small)
    both = launcher.submit_experiment_batch([large, small])
    assert both.failed_jobs == {} and both.successful_jobs[1] == alone.job_id
    shown = local(scheduler="slurm").submit_experiment_batch([large, small], dry_run=True).job_results
    assert "--nodes=4" in shown[0].script and "--account=a" in shown[0].script
    assert "--nodes=1" in shown[1].script and "--account" not in shown[1].script
    assert f"cd -- {project}/there" in shown[0].script
    mine = experiment("small", slurm={"time": "1:00"})
    assert launcher.submit_single_experiment(mine).job_id == alone.job_id
    finished(project)


def test_without_a_template_the_section_slurm_is_what_is_asked(project: Path) -> None:
    """As for any experiment; a cluster's group and overrides count too."""
    (project / "slurm_template.txt").unlink()
    launcher = SLURMLauncher(project_root=".", cluster="lumi", overrides=["slurm.sbatch.nodes=5"])
    config = experiment("a", slurm={"account": "p1", "time": "1:00:00"})
    script = launcher.submit_single_experiment(config, dry_run=True).script
    assert "--partition=standard-g" in script and "--account=p1" in script and "--nodes=5" in script
    path = launcher.generate_sbatch_script(config, {"PARTITION": "debug", "qos": "x"})
    assert path == project / "experiments/a/a.rendered.sbatch"
    text = path.read_text()
    assert "#SBATCH --partition=debug\n" in text and "#SBATCH --qos=x\n" in text
    subprocess.run(["bash", "-n", path], check=True)


def test_at_most_so_many_are_active_and_the_rest_follow(project: Path, tmp_path: Path) -> None:
    """Those that wait are submitted by the loop in the background; another number counts at once."""
    launcher, gate = local(), tmp_path / "gate"
    five = [experiment(f"e{n}", custom_params={"gate": str(gate)}) for n in range(5)]
    result = launcher.submit_experiment_batch(five, "train.py", max_concurrent=2)
    assert (result.success_count, result.failure_count) == (5, 0)
    assert len(result.successful_jobs) == 2
    assert result.waiting_experiments == ["e2", "e3", "e4"]
    assert [each.state for each in result.job_results][2:] == ["waiting"] * 3
    assert launcher.get_job_status("e4") == "waiting"
    # Others of the directory wait behind them.
    assert launcher.submit_single_experiment(experiment("f")).job_id is None
    gate.touch()
    paths = finished(project)
    assert states(paths) == dict.fromkeys(["e0", "e1", "e2", "e3", "e4", "f"], "succeeded")
    assert most_active(paths) == 2
    again = launcher.submit_experiment_batch(five, "train.py")
    assert sorted(again.successful_jobs) == sorted(
        each.job_id or "" for each in launcher.list_user_jobs()[:5]
    )
    assert {(project / f"experiments/e{n}/times.txt").read_text() for n in range(5)} == {"x"}
    # All have ended, so the bound is gone with them.
    gate.unlink()
    free = [experiment(f"g{n}", custom_params={"gate": str(gate)}) for n in range(2)]
    one = launcher.submit_experiment_batch(free, max_concurrent=1)
    assert len(one.successful_jobs) == 1
    assert len(launcher.submit_experiment_batch(free, max_concurrent=2).successful_jobs) == 2
    gate.touch()
    finished(project)


def most_active(paths: SessionPaths) -> int:
    """The most attempts that could run at one time."""
    active, most = 0, 0
    for event in history(paths).events:
        if isinstance(event, ev.SubmitRequested):
            active += len(event.jobs)
        elif isinstance(event, ev.AttemptEnded):
            active -= 1
        most = max(most, active)
    return most


def test_status_shows_restarts_and_cancels_its_jobs(project: Path, tmp_path: Path) -> None:
    """They are jobs like any other."""
    policy = "{class_name: AlwaysRestartPolicy, max_retries: 1, backoff_seconds: 0}"
    launcher = local(overrides=[f"restart_policies.crash={policy}"])
    held = launcher.submit_single_experiment(experiment("held", custom_params={"gate": str(tmp_path / "no")}))
    dies = launcher.submit_single_experiment(experiment("dies", custom_params={"code": 3}))
    assert held.success and dies.success and held.job_id and dies.job_id
    until(lambda: launcher.get_job_status("dies") == "failed", "the end of what dies")
    cli = Cli(project, home=tmp_path / "registry")
    rows = {row["name"]: row for row in cli.jobs("experiments")}
    assert rows["dies"]["attempts"] == 2 and rows["held"]["scheduler_id"] == held.job_id
    failed = launcher.submit_single_experiment(experiment("dies", custom_params={"code": 3}))
    assert not failed.success and failed.state == "failed" and "3" in str(failed.error)
    assert launcher.cancel_job(held.job_id) is True
    finished(project)
    assert launcher.get_job_status(held) == "cancelled" and launcher.cancel_job(held) is False
    with pytest.raises(SLURMError, match="there is no job 'nobody'"):
        launcher.get_job_status("nobody")


# ---------------------------------------------------------------- what cannot be


HOSTILE = "it's $(touch pwned) `touch pwned` \"; touch pwned #"


def test_texts_mean_themselves_wherever_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the project, of the script and of the experiment, and values of options and variables."""
    root = tmp_path / "pro'ject $(touch pwned)"
    root.mkdir()
    (root / "my train;.py").write_text(TRAIN)
    lines = TEMPLATE.replace("{{ACCOUNT}}", "{{COMMENT}}").replace("--account", "--comment").splitlines()
    lines.append('printf "%s|" "{{NOTE}}" {{NOTE}} \'{{NOTE}}\' > note  # {{NOTE}}')
    (root / "slurm_template.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(root)
    extra = {"comment": HOSTILE, "note": HOSTILE}
    config = experiment(f"../${{x}} {HOSTILE}"[:60], slurm={"extra_args": extra}, model={"x": "${y}"})
    result = local().submit_single_experiment(config, "my train;.py")
    assert result.success, result.error
    assert result.experiment_name == config.experiment_name
    (only,) = states(finished(root)).items()
    assert only[1] == "succeeded"
    assert (root / "note").read_text() == f"{HOSTILE}|" * 3
    assert result.output_dir is not None and result.output_dir.parent == root / "experiments"
    assert not list(tmp_path.rglob("pwned"))


def test_one_that_cannot_be_submitted_stops_no_other(project: Path) -> None:
    """Each has its own reason, in the order given; nothing is raised."""
    launcher = local()
    assert launcher.submit_single_experiment(experiment("changed", seed=1)).success
    mixed: list[Any] = [
        experiment("good"),
        experiment("good", seed=2),
        {"experiment_name": "bad", "optimizer": {"lrr": 1}},
        experiment("logs"),
        experiment("time", slurm={"time": "soon"}),
        experiment("changed", seed=2),
        None,
    ]
    result = launcher.submit_experiment_batch(mixed, "train.py")
    assert [each.success for each in result.job_results] == [True, *[False] * 6]
    errors = [str(each.error) for each in result.job_results[1:]]
    says = [
        "two experiments have the name `good`",
        "lrr: unknown key",
        "a directory of ours",
        "soon",
        "has changed: config_digest",
        "must be a mapping",
    ]
    assert all(part in error for part, error in zip(says, errors, strict=True)), errors
    assert (result.success_count, result.failure_count, round(result.success_rate)) == (1, 6, 14)
    with pytest.raises(JobSubmissionError, match="1 of 2 experiments were not submitted\nlogs: "):
        launcher.submit_experiments([experiment("good"), experiment("logs")])
    assert launcher.submit_single_experiment(experiment("changed", seed=2), update=True).success
    assert states(finished(project)) == {"changed": "succeeded", "good": "succeeded"}


@pytest.mark.parametrize(
    ("template", "given", "says"),
    [
        (TEMPLATE.replace("{{TIME}}", "{{TIEM}}"), {}, r"slurm_template\.txt.*\n  -> did you mean `TIME`"),
        ("echo\n", {}, "is no batch script"),
        (TEMPLATE.replace("--requeue", "--array=1-3"), {}, "an experiment is no array"),
        ("#!/bin/bash\n{% for %}\n", {}, r"slurm_template\.txt:2: broken template"),
        (TEMPLATE, {"script_path": "trian.py"}, "there is no such script"),
        (TEMPLATE, {"use_git_branch": True}, "no working tree of git"),
        (None, {}, "the template cannot be read: No such file"),
    ],
)
def test_what_stands_in_the_way_is_told_in_the_result(
    template: str | None, given: dict[str, Any], says: str, project: Path
) -> None:
    """And nothing is written."""
    (project / "slurm_template.txt").unlink()
    if template is not None:
        (project / "slurm_template.txt").write_text(template)
    result = local().submit_single_experiment(experiment("a"), **{"script_path": "train.py", **given})
    assert not result.success and result.job_id is None and str(result) == ""
    assert result.experiment_name == "a"
    assert re.search(says, str(result.error)), result.error
    assert not (project / "experiments" / "a").exists()


def test_a_machine_without_slurm_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "empty").mkdir()
    monkeypatch.setenv("PATH", str(project / "empty"))
    launcher = local(scheduler="slurm")
    result = launcher.submit_single_experiment(experiment("a"))
    assert not result.success and "no `sbatch`" in str(result.error)
    assert any("no sbatch here" in each for each in launcher.validate_slurm_environment())
    bound = launcher.submit_experiment_batch([experiment("a")], max_concurrent=0)
    assert "at least 1" in bound.failed_jobs["a"]


def test_two_programs_at_once_neither_lose_nor_double(project: Path) -> None:
    """They share half of their experiments, and none knows of the other."""
    program = (
        "import sys\n"
        "from oellm_autoexp import ExperimentConfig, SLURMLauncher\n"
        "launcher = SLURMLauncher('slurm_template.txt', '.', scheduler='local')\n"
        "for name in sys.argv[1:]:\n"
        "    batch = [ExperimentConfig(experiment_name=part) for part in name.split('+')]\n"
        "    result = launcher.submit_experiment_batch(batch, 'train.py')\n"
        "    assert not result.failed_jobs, result.failed_jobs\n"
    )

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(run, [["a+b", "c", "d+e"], ["b+c", "e", "f+a"]]))
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    paths = finished(project)
    assert states(paths) == dict.fromkeys("abcdef", "succeeded")
    assert {(project / f"experiments/{name}/times.txt").read_text() for name in "abcdef"} == {"x"}


def test_a_job_may_run_from_a_branch_of_its_own(project: Path) -> None:
    """The person's tree stays as it is; what it becomes reaches no job."""

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *identity, *words], cwd=project, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    (project / "slurm_template.txt").write_text(TEMPLATE + "echo {{BRANCH_NAME}} {{COMMIT_HASH}}\n")
    git("init", "-q", "-b", "trunk")
    git("add", "-A")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD")
    dirty = local().submit_single_experiment(experiment("a"), use_git_branch=True, dry_run=True)
    assert dirty.success, dirty.error
    result = local().submit_single_experiment(experiment("a"), "train.py", use_git_branch=True)
    assert result.success, result.error
    assert states(finished(project)) == {"a": "succeeded"}
    log = (project / "experiments/a/a.1.log").read_text()
    assert f"cwd {project}/experiments/.oellm-autoexp/source/" in log and f"trunk {commit}" in log
    assert git("branch", "--show-current") == "trunk"
    assert git("branch", "--list", "slurm-job/*").count("slurm-job/") == 1
