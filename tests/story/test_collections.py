"""Collections: generated or imported scripts are submitted, watched, started again and forgotten by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, until
from deaths import Fatal

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.services.collections import delete
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.session import replay

#: Says what it runs with; fails as long as a file with its lr is there.
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --time={{ slurm.time }}
echo "{{ job_name }} bs{{ bs }} epochs{{ epochs | default(1) }}" >> ran
if [ -e "fails-{{ lr }}" ]; then echo "RuntimeError: lr {{ lr }}"; exit 3; fi
"""
NAMES = ("lr0.1", "lr0.2", "lr0.3")
ONCE = ("-o", "restart_policies.crash.class_name=NoRestartPolicy")
SUBMIT = ("submit", "--collection", "exp1", "--local", *ONCE)


class Bench:
    """A directory with a spec of three jobs, which are generated into the collection exp1."""

    def __init__(self, root: Path) -> None:
        self.root = root / "work"
        self.root.mkdir()
        self.cli = Cli(self.root, home=root / "state")
        (self.root / "train.job.j2").write_text(TEMPLATE)
        self.generated()

    def generated(self, **changes: Any) -> None:
        spec = {
            "description": "three of them",
            "template": "train.job.j2",
            "output_dir": "job_scripts",
            "parameters": {"values": {"lr": [0.1, 0.2, 0.3], "bs": [8]}},
            "slurm_args": {"defaults": {"time": "1:00:00"}},
            "job_name_pattern": "lr{{ lr }}",
            **changes,
        }
        (self.root / "spec.yaml").write_text(json.dumps(spec))
        self.does("generate", "spec.yaml", "--collection", "exp1")

    def does(self, *words: str, code: int = 0) -> str:
        """What a command prints that ends with a code."""
        done = self.cli.within(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def refused(self, *words: str) -> str:
        """What is said of a command that is refused, and changes nothing."""
        before = self.record
        done = self.cli.within(*words)
        assert (done.returncode, self.record) == (2, before), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def fail(self, *rates: float) -> None:
        for rate in (0.1, 0.2, 0.3):
            (self.root / f"fails-{rate}").unlink(missing_ok=True)
        for rate in rates:
            (self.root / f"fails-{rate}").touch()

    @property
    def ran(self) -> list[str]:
        file = self.root / "ran"
        return sorted(file.read_text().splitlines()) if file.exists() else []

    @property
    def paths(self) -> SessionPaths:
        return SessionPaths(self.root / "outputs/exp1/.oellm-autoexp")

    @property
    def record(self) -> dict[str, Any]:
        if not self.paths.collection.exists():
            return {}
        jobs = json.loads(self.paths.collection.read_text())["jobs"]
        return {job["name"]: job for job in jobs}

    @property
    def states(self) -> dict[str, str]:
        return {name: state for name, (state, _) in self.cli.states("exp1").items()}

    def time_of(self, name: str) -> int | None:
        """The time limit of a job's next attempt, in seconds."""
        job = replay(self.paths).jobs[name]
        return (job.next_spec or job.spec).resources.time_limit_s


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def lines(*names: str, bs: int = 8, epochs: int = 1) -> list[str]:
    return [f"{name} bs{bs} epochs{epochs}" for name in names]


# ---------------------------------------------------------------- submitted and watched


def test_a_collection_is_submitted_once_and_goes_on_with_what_is_new(bench: Bench) -> None:
    """Each script runs once; its parameters are those of the job; the name is the session's."""
    told = bench.does(*SUBMIT, "--json")
    jobs = {job["name"]: job for job in json.loads(told)["jobs"]}
    assert {name: job["state"] for name, job in jobs.items()} == dict.fromkeys(NAMES, "succeeded")
    assert jobs["lr0.2"]["parameters"] == {"lr": 0.2, "bs": 8}
    assert bench.ran == lines(*NAMES)
    assert "3 already done: nothing is submitted again" in bench.does(*SUBMIT)
    bench.generated(parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    assert json.loads(bench.does("status", "exp1", "--json"))["unsubmitted"] == ["lr0.4"]
    assert "1 new; 3 already done" in bench.does(*SUBMIT)
    assert bench.ran == lines(*NAMES, "lr0.4")
    assert "exit 0" in bench.does("show", "exp1", "lr0.4")
    assert bench.does("logs", "exp1", "lr=0.4") == ""


def test_what_was_not_submitted_is_known_by_name_to_every_command(bench: Bench) -> None:
    """Each says that it was generated only, and what submits it; none fails with a traceback."""
    next_step = f"oellm-autoexp submit --collection {bench.root}/outputs/exp1"
    for words in (("status", "exp1"), ("show", "exp1"), ("status", "outputs/exp1")):
        assert "3 generated and not submitted: lr0.1, lr0.2, lr0.3" in (shown := bench.does(*words))
        assert next_step in shown
    body = json.loads(bench.does("status", "exp1", "--json"))
    assert (body["jobs"], body["unsubmitted"]) == ([], [*NAMES])
    for words in (("logs", "exp1", "lr0.1"), ("show", "exp1", "lr0.1"), ("cancel", "exp1", "lr0.1", "--yes")):
        said = bench.refused(*words)
        assert "lr0.1 was generated, and not submitted yet" in said and next_step in said
    assert "was generated" in bench.refused("retry", "exp1", "lr0.1", "-o", "slurm.sbatch.time=2:00:00")
    assert "nothing has been submitted here yet" in bench.refused("monitor", "exp1")
    assert "3 of its jobs were never submitted: `collections delete" in bench.does("cleanup", "exp1")
    assert "exp1" in bench.does("sessions") and bench.ran == []


def test_a_filter_chooses_what_is_submitted(bench: Bench) -> None:
    """By what was never submitted, by state and by error mode; what has ended so starts again."""
    bench.does(*SUBMIT, "--filter", "unsubmitted")
    bench.generated(parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    bench.fail(0.2)
    bench.does(*SUBMIT, "--filter", "success", code=1)
    assert bench.states == {"lr0.1": "succeeded", "lr0.2": "failed", "lr0.3": "succeeded"}
    assert bench.ran == sorted(lines(*NAMES) * 2)
    assert bench.does(*SUBMIT, "--filter", "oom") == "No job of exp1 is oom.\n"
    bench.fail()
    assert "0 new" in bench.does(*SUBMIT, "--filter", "crash")
    assert bench.states["lr0.2"] == "succeeded" and Counter(bench.ran)["lr0.2 bs8 epochs1"] == 3
    assert "1 new" in bench.does(*SUBMIT, "--filter", "unsubmitted")
    assert bench.does(*SUBMIT, "--filter", "failed") == "No job of exp1 is failed.\n"
    assert json.loads(bench.does(*SUBMIT, "--filter", "failed", "--json"))["unsubmitted"] == []
    assert "did you mean `failed`?" in bench.refused(*SUBMIT, "--filter", "faild")
    assert "--filter needs --collection" in bench.refused("submit", "x.yaml", "--filter", "failed")
    assert "without a config" in bench.refused("submit", "x.yaml", "--collection", "exp1")
    assert "did you mean `exp1`?" in bench.refused("submit", "--collection", "exp2", "--local")


def test_a_dry_run_shows_the_plan_of_the_scripts(bench: Bench) -> None:
    """Nothing is written and nothing runs."""
    shown = bench.does(*SUBMIT, "--dry-run")
    assert "Nothing was written." in shown and "lr0.3" in shown
    assert not bench.paths.journal.exists() and bench.ran == []


def test_a_script_that_was_edited_is_another_computation(bench: Bench) -> None:
    """Refused with the line that differs until it is taken; only resources are no such change."""
    bench.does(*SUBMIT)
    script = bench.root / "job_scripts/lr0.1.job"
    script.write_text(script.read_text().replace("1:00:00", "2:00:00"))
    bench.does(*SUBMIT)
    script.write_text(script.read_text().replace("bs8", "bs9"))
    said = bench.refused(*SUBMIT)
    assert "lr0.1: has changed" in said and "bs9" in said and "--update" in said
    bench.does(*SUBMIT, "--update")
    assert bench.ran == sorted([*lines(*NAMES), *lines("lr0.1", bs=9)])


def test_a_script_that_sbatch_would_not_take_is_named(bench: Bench) -> None:
    """Gone, no script, or an array: exit 2 and which job it is."""
    script = bench.root / "job_scripts/lr0.2.job"
    text = script.read_text()
    for body, said in (
        (None, "(job lr0.2): cannot be read"),
        ("echo\n", "(job lr0.2): is no batch script"),
        (text.replace("#SBATCH", "#SBATCH --array=1-3\n#SBATCH", 1), "an array cannot be one job"),
    ):
        script.unlink(missing_ok=True)
        if body is not None:
            script.write_text(body)
        assert said in bench.refused(*SUBMIT)
    assert bench.ran == [] and not bench.paths.journal.exists()


def test_another_scheduler_than_the_first_is_refused_with_its_flag(bench: Bench) -> None:
    bench.does(*SUBMIT)
    said = bench.refused("submit", "--collection", "exp1", "-o", "scheduler.class_name=slurm")
    assert "its jobs run on LocalScheduler, not on SlurmClient" in said and "--local" in said


# ---------------------------------------------------------------- started again


def failed(bench: Bench, *rates: float) -> None:
    """Submitted; those of these rates have failed, and would not fail again."""
    bench.fail(*rates)
    bench.does(*SUBMIT, code=1 if rates else 0)
    bench.fail()


def test_other_resources_hold_for_the_chosen_alone_and_stay(bench: Bench) -> None:
    """In later retries and submits, and when the spec is generated again; the others are as they were."""
    failed(bench, 0.1, 0.2)
    assert "1 would start again" in bench.does("retry", "exp1", "lr0.1", "--dry-run")
    told = bench.does("retry", "exp1", "lr0.1", "--filter", "failed", "-o", "slurm.sbatch.time=48:00:00")
    assert "starting again: lr0.1; 1 with other resources" in told
    bench.does("monitor", "exp1", code=1)
    times = {name: bench.time_of(name) for name in NAMES}
    assert times == {"lr0.1": 48 * 3600, "lr0.2": 3600, "lr0.3": 3600}
    assert bench.states == {"lr0.1": "succeeded", "lr0.2": "failed", "lr0.3": "succeeded"}
    bench.does("retry", "exp1", "lr0.2", "-o", "slurm.sbatch.nodes=2", "-o", "slurm.sbatch.time=2:00:00")
    bench.does("monitor", "exp1")
    assert {name: bench.time_of(name) for name in NAMES} == {**times, "lr0.2": 7200}
    assert "3 already done" in bench.does(*SUBMIT)
    bench.generated(description="four", parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    assert bench.record["lr0.1"]["overrides"] == ["slurm.sbatch.time=48:00:00"]
    bench.does(*SUBMIT, "--filter", "all")
    assert {name: bench.time_of(name) for name in NAMES} == {**times, "lr0.2": 7200}
    bench.does("retry", "exp1", "lr0.1", "--filter", "all", "-o", "slurm.sbatch.time=3:00:00")
    assert bench.record["lr0.1"]["overrides"] == ["slurm.sbatch.time=3:00:00"]


def test_other_parameters_make_another_script_and_keep_the_first(bench: Bench) -> None:
    """What ran stays on disk; the record and the status have the new ones; a second run of generate too."""
    failed(bench, 0.1, 0.2)
    scripts = bench.root / "job_scripts"
    first = (scripts / "lr0.1.job").read_text()
    told = bench.does("retry", "exp1", "--filter", "crash", "--param", "bs=4", "--param", "epochs=20")
    assert "starting again: lr0.1, lr0.2" in told and "2 with another computation" in told
    bench.does("monitor", "exp1")
    assert bench.ran == sorted([*lines(*NAMES), *lines("lr0.1", "lr0.2", bs=4, epochs=20)])
    assert (scripts / "lr0.1.job").read_text() == first
    assert "bs4 epochs20" in (scripts / "lr0.1.retry-1.job").read_text()
    (shown,) = (job for job in bench.cli.jobs("exp1") if job["name"] == "lr0.1")
    assert shown["parameters"] == {"lr": 0.1, "bs": 4, "epochs": 20}
    before = bench.record
    assert "3 unchanged" in bench.does("generate", "spec.yaml", "--collection", "exp1")
    assert bench.record == before and "3 already done" in bench.does(*SUBMIT)
    bench.does("retry", "exp1", "lr0.1", "--param", "epochs=30", "--filter", "ended")
    assert bench.record["lr0.1"]["replaced_by"] == str(scripts / "lr0.1.retry-2.job")
    assert bench.record["lr0.1"]["extra"] == {"bs": 4, "epochs": 30}
    # With the parameters of the first again, it is the first.
    bench.does("retry", "exp1", "lr0.2", "--param", "bs=8", "--param", "epochs=1", "--filter", "ended")
    assert "replaced_by" not in bench.record["lr0.2"]


FUNCTIONS = """\
def should_resubmit(job):
    job["name"] = "not mine"
    if job["parameters"]["lr"] > 0.1:
        return True
    return False, "too small"

def get_extra_params(job):
    print("asked")
    return {"epochs": int(job["parameters"]["lr"] * 100)}

def junk(job):
    return "yes"

def broken(job):
    return job["no_such"]
"""


def test_functions_choose_jobs_and_give_parameters(bench: Bench) -> None:
    """They are given what `status --json` says; their reasons are told; their mistakes have a line."""
    failed(bench, 0.1, 0.2)
    (bench.root / "f.py").write_text(FUNCTIONS)
    words = ("retry", "exp1", "--filter", "failed")
    shown = bench.cli.within(*words, "--select", "f.py", "--dry-run")
    assert shown.stdout == "lr0.2\n1 would start again\n" and "left out: lr0.1: too small" in shown.stderr
    assert "f.py:11: --select: junk returned 'yes'" in bench.refused(*words, "--select", "f.py:junk")
    assert "f.py:11: --extra-params: junk returned" in bench.refused(*words, "--extra-params", "f.py:junk")
    assert "f.py:15: --select: broken raised KeyError" in bench.refused(*words, "--select", "f.py:broken")
    assert "did you mean `junk`?" in bench.refused(*words, "--select", "f.py:jnk")
    told = bench.does(*words, "--select", "f.py:should_resubmit", "--extra-params", "f.py")
    assert "starting again: lr0.2" in told and "lr0.1" not in told
    bench.does("monitor", "exp1", code=1)
    assert "lr0.2 bs8 epochs20" in bench.ran and bench.states["lr0.1"] == "failed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "slurm.sbtch.time=1:00:00"], "slurm.sbtch"),
        (["-o", "slurm=lumi"], "a group is chosen for all jobs"),
        (["-o", "slurm.sbatch.time"], "an override is KEY=VALUE"),
        (["-o", "slurm.environment.MY_TOKEN=x"], "a secret"),
        (["-o", "backend.command=[true]"], "backend.command"),
        (["--param", "epoch"], "write --param epochs=20"),
        (["--param", "bz=4"], "the template makes nothing of it"),
        (["--param", "job_name=x"], "names of the template's own"),
        (["--filter", "timout", "-o", "slurm.sbatch.time=1"], "did you mean `timeout`?"),
        (["nobody", "-o", "slurm.sbatch.time=2:00:00"], "no job is meant by 'nobody'"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_and_not_kept(
    words: list[str], said: str, bench: Bench
) -> None:
    """The next submit finds the collection as it was."""
    failed(bench, 0.1)
    assert said in bench.refused("retry", "exp1", *words)
    assert "3 already done" in bench.does(*SUBMIT, code=1)
    assert len([*(bench.root / "job_scripts").iterdir()]) == 3 and bench.ran == lines(*NAMES)


def test_a_filter_that_chooses_nothing_does_nothing(bench: Bench) -> None:
    """It asks nothing either, and a breaker that holds the others stays."""
    failed(bench)
    assert bench.does("retry", "exp1", "--filter", "oom") == "No job is oom: nothing starts again\n"
    assert bench.does("cancel", "exp1", "--filter", "pending") == "No job is pending: nothing is cancelled\n"
    assert "0 would start again" in bench.does("retry", "exp1", "--filter", "failed", "--dry-run")


def test_cancel_takes_a_filter(bench: Bench) -> None:
    """What waits is cancelled, what runs goes on."""
    wait = 'until [ -e go ]; do sleep 0.02; done\necho "{{ job_name }} {{ bs }}" >> ran\n'
    (bench.root / "train.job.j2").write_text("#!/bin/bash\n" + wait)
    bench.does("generate", "spec.yaml", "--collection", "exp1")
    with bench.cli.leader(*SUBMIT, "-o", "scheduler.max_jobs=1"):
        until(lambda: "running" in bench.states.values(), "one runs")
        assert "lr0.2" in bench.does("cancel", "exp1", "--filter", "waiting", "--yes")
        (bench.root / "go").touch()
        until(lambda: bench.states["lr0.1"] == "succeeded", "it has ended")
    assert bench.states == {"lr0.1": "succeeded", "lr0.2": "cancelled", "lr0.3": "cancelled"}
    assert bench.ran == ["lr0.1 8"]


CONFIG = """\
project: {name: swept, base_output_dir: ./outputs/swept}
backend:
  class_name: CommandBackend
  command: [sh, -c, 'echo ${n} >> ran; [ ! -e fails ]']
sweep: {axes: {n: [1, 2, 3]}}
slurm: {sbatch: {time: "1:00:00"}}
restart_policies: {crash: {class_name: NoRestartPolicy}}
scheduler: {class_name: local, breaker: null}
"""


def test_jobs_of_a_config_are_started_again_with_other_resources(bench: Bench) -> None:
    """The chosen alone: sweep.json and the others stay; what was given for one is not for the next."""
    (bench.root / "sweep.yaml").write_text(CONFIG)
    (bench.root / "fails").touch()
    bench.does("submit", "sweep.yaml", code=1)
    (bench.root / "fails").unlink()
    sweep = bench.root / "outputs/swept/sweep.json"
    before = (sweep.read_bytes(), sweep.stat().st_mtime_ns)
    told = bench.does("retry", "swept", "swept_n1", "--filter", "crash", "-o", "slurm.sbatch.time=9:00:00")
    assert "starting again: swept_n1; 1 with other resources" in told
    bench.does("retry", "swept", "swept_n2", "-o", "slurm.sbatch.nodes=2")
    jobs = replay(SessionPaths(bench.root / "outputs/swept/.oellm-autoexp")).jobs
    found = {name: (job.next_spec or job.spec).resources for name, job in jobs.items()}
    assert [found[f"swept_n{n}"].time_limit_s for n in (1, 2, 3)] == [9 * 3600, 3600, 3600]
    assert [found[f"swept_n{n}"].nodes for n in (1, 2, 3)] == [1, 2, 1]
    assert (sweep.read_bytes(), sweep.stat().st_mtime_ns) == before
    bench.does("monitor", "swept", code=1)
    assert bench.cli.states("swept")["swept_n3"] == ("failed", 1)
    assert bench.ran == ["1", "1", "2", "2", "3"]
    said = bench.refused("retry", "swept", "swept_n3", "--param", "n=4")
    assert "only scripts of a collection have a template" in said


def test_a_command_without_a_config_is_started_again_with_other_resources(bench: Bench) -> None:
    words = ("run", "--local", "--name", "line", *ONCE, "--", "sh", "-c", "echo x >> ran; [ -e mended ]")
    bench.does(*words, code=1)
    (bench.root / "mended").touch()
    assert "1 with other resources" in bench.does("retry", "line", "-o", "slurm.sbatch.time=2:00:00")
    bench.does("monitor", "line")
    assert bench.ran == ["x", "x"]


# ---------------------------------------------------------------- listed, shown, forgotten


def test_collections_are_listed_and_shown(bench: Bench) -> None:
    """With how their jobs stand; one that is damaged does not hide the others."""
    bench.does(*SUBMIT)
    bench.generated(parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    bench.does("generate", "spec.yaml", "--collection", "other", "--output-dir", "elsewhere")
    rows = {row["name"]: row for row in json.loads(bench.does("collections", "list", "--json"))}
    assert rows["exp1"]["states"] == {"unsubmitted": 1, "succeeded": 3} and rows["exp1"]["jobs"] == 4
    assert "exp1  1 unsubmitted, 3 succeeded" in bench.does("collections", "list")
    body = json.loads(bench.does("collections", "show", "exp1", "--json"))
    assert [job["state"] for job in body["jobs"]] == ["succeeded"] * 3 + ["unsubmitted"]
    assert body["jobs"][0]["slurm_args"] == {"time": "1:00:00"} and body["cwd"] == str(bench.root)
    shown = bench.does("collections", "show", "exp1")
    assert "| lr0.4 | unsubmitted | 0.4 | 8 |" in shown and "4 from " in shown
    (bench.root / "outputs/other/.oellm-autoexp/collection.json").write_text("{")
    listed = bench.does("collections", "list")
    assert "exp1  1 unsubmitted" in listed and "other" in listed and "collection.json" in listed
    damaged = bench.cli.within("collections", "show", "other")
    assert damaged.returncode == 3 and "collection.json" in damaged.stderr
    assert "did you mean `exp1`?" in bench.refused("collections", "show", "exp")


def test_a_collection_is_forgotten_with_its_state_and_only_its_own_scripts(bench: Bench) -> None:
    """It asks first; what has not ended is cancelled first; edited scripts and outputs stay."""
    bench.does(*SUBMIT)
    bench.generated(parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    scripts = bench.root / "job_scripts"
    (scripts / "lr0.2.job").write_text("#!/bin/sh\nmine\n")
    assert "lr0.1 was submitted (succeeded)" in bench.refused("collections", "delete", "exp1", "lr0.1")
    assert "did you mean `lr0.4`" in bench.refused("collections", "delete", "exp1", "lr0.44", "--yes")
    assert "add --yes" in bench.refused("collections", "delete", "exp1")
    bench.does("collections", "delete", "exp1", "lr0.4", "--yes")
    assert list(bench.record) == [*NAMES] and (scripts / "lr0.4.job").is_file()
    told = bench.does("collections", "delete", "exp1", "--scripts", "--yes")
    assert "Removed the collection exp1 and 2 script(s); 1 that were edited stay." in told
    assert sorted(path.name for path in scripts.iterdir()) == ["lr0.2.job", "lr0.4.job"]
    assert not bench.paths.state_dir.exists() and "exp1" not in bench.does("collections", "list")
    assert (bench.root / "outputs/exp1/logs").is_dir()


def test_what_may_not_be_forgotten_stays_whole(bench: Bench) -> None:
    """Jobs that live, or a file that is not ours in the state: refused before a script is removed."""
    (bench.root / "train.job.j2").write_text(
        "#!/bin/bash\n: {{ lr }}\nuntil [ -e go ]; do sleep 0.02; done\n"
    )
    bench.does("generate", "spec.yaml", "--collection", "exp1")
    words = ("collections", "delete", "exp1", "--scripts", "--yes")
    with bench.cli.leader(*SUBMIT, "--filter", "unsubmitted") as submitting:
        until(lambda: "running" in bench.states.values(), "one runs")
        assert "have not ended" in bench.refused(*words)
        (bench.root / "go").touch()
        submitting.wait()
    bench.generated(parameters={"values": {"lr": [0.4], "bs": [8]}})
    (bench.paths.state_dir / "notes.txt").write_text("mine")
    assert "something lies in it that is not ours: notes.txt" in bench.refused(*words)
    assert len([*(bench.root / "job_scripts").iterdir()]) == 4


@pytest.mark.parametrize("submitted", [False, True])
def test_killed_while_it_forgets_the_same_again_ends_alike(
    bench: Bench, submitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step: in the end nothing is left of it, or the command says that it is gone."""
    monkeypatch.chdir(bench.root)
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.root.parent / "state"))
    if submitted:
        bench.does(*SUBMIT)
        bench.generated(parameters={"values": {"lr": [0.1, 0.2, 0.3, 0.4], "bs": [8]}})
    shutil.copytree(bench.root, bench.root.parent / "kept", symlinks=True)
    shutil.copytree(bench.root.parent / "state", bench.root.parent / "kept-state")
    at = 1
    while died(at):
        if bench.cli.within("collections", "delete", "exp1", "--scripts", "--yes").returncode:
            # Of what has no collection any more, the rest is removed like that of any session.
            bench.cli.within("cleanup", "exp1", "--yes")
        left = [path for path in bench.root.rglob("*") if ".oellm-autoexp" in str(path)]
        assert left == [] and [*(bench.root / "job_scripts").iterdir()] == [], f"killed at step {at}"
        for name, kept in (("work", "kept"), ("state", "kept-state")):
            shutil.rmtree(bench.root.parent / name)
            shutil.copytree(bench.root.parent / kept, bench.root.parent / name, symlinks=True)
        monkeypatch.chdir(bench.root)
        # Those of a cleanup, which are most of a submitted one's, are tried where that is.
        at += 3 if submitted else 1
    assert at > 5


def died(at: int) -> bool:
    """Whether a process that forgets the collection comes to the step at which it dies."""
    effects = Fatal(at)
    with warnings.catch_warnings():
        # About threads of the test runner, none of which the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            place = collections.existing("exp1", Path.cwd())
            delete.carry_out(place, delete.planned(place, [], scripts=True), effects)
        finally:
            os._exit(effects.count >= at)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# ---------------------------------------------------------------- imported


BY_HAND = """\
#!/bin/bash
#SBATCH --job-name=by-hand
#SBATCH --output=run.%j.out
echo "$1$(basename "$PWD")" >> ran
until [ -e go ]; do sleep 0.02; done
"""


@pytest.fixture
def by_hand(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """A script that somebody has started, with its log."""
    (bench.root / "a.sbatch").write_text(BY_HAND)
    line = "exec > run.$$.out 2>&1; exec bash a.sbatch"
    with subprocess.Popen(["bash", "-c", line], cwd=bench.root) as process:
        until(lambda: bench.ran, "it runs")
        yield process
        process.kill()


def test_a_script_that_runs_already_is_watched_and_not_run_again(
    bench: Bench, by_hand: subprocess.Popen[bytes]
) -> None:
    """It is the first attempt of its job; the other script that came with it can be submitted."""
    (bench.root / "b.sbatch").write_text(BY_HAND)
    words = ("collections", "import", "old", f"a.sbatch={by_hand.pid}", "b.sbatch", "--local", *ONCE)
    told = bench.does(*words)
    assert f"{by_hand.pid} is watched as a" in told and "b can be submitted" in told
    assert {name: state for name, (state, _) in bench.cli.states("old").items()} == {"a": "submitted"}
    assert json.loads(bench.does("status", "old", "--json"))["unsubmitted"] == ["b"]
    assert "is watched already" in bench.does(*words)
    (bench.root / "go").touch()
    by_hand.wait()
    # Only its parent learns how a process ends.
    lost = ("-o", "restart_policies.crash.lost.class_name=NoRestartPolicy")
    bench.does("submit", "--collection", "old", "--local", *ONCE, *lost, code=1)
    assert bench.ran == ["work"] * 2
    assert bench.cli.states("old") == {"a": ("failed", 1), "b": ("succeeded", 1)}


def test_scripts_are_imported_with_names_and_parameters_from_a_list(bench: Bench) -> None:
    """Again with other parameters the later count; generated scripts are in their collection already."""
    (bench.root / "a.sbatch").write_text("#!/bin/bash\necho imported >> ran\n")
    rows = [{"script": "a.sbatch", "name": "first", "parameters": {"lr": 0.1, "layers": [1, 2]}}]
    (bench.root / "jobs.yaml").write_text(json.dumps({"jobs": rows}))
    told = bench.does("collections", "import", "old", "--list", "jobs.yaml", "--json")
    assert json.loads(told)["imported"] == ["first can be submitted"]
    bench.does("submit", "--collection", "old", "--local")
    (job,) = bench.cli.jobs("old")
    assert (job["name"], job["parameters"]) == ("first", {"lr": 0.1, "layers": "[1, 2]"})
    assert bench.ran == ["imported"]
    said = bench.refused("collections", "import", "exp1", "job_scripts/lr0.1.job")
    assert "lr0.1 was generated, and is in the collection" in said
    bench.does("collections", "delete", "old", "--scripts", "--yes")
    assert (bench.root / "a.sbatch").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a script, or --list FILE"),
        (["none.sbatch"], "cannot be read"),
        (["a.sbatch", "sub/a.sbatch"], "two of the scripts would be called a"),
        (["array.sbatch"], "an array cannot be one job of a collection"),
        (["logs.sbatch"], "`logs` is a name of a directory of ours"),
        (["a.sbatch=99999999"], "there is no such log"),
        (["--list", "unknown.yaml"], "jobs.0.nmae: unknown key"),
        (["--list", "nolist.yaml"], "write `jobs: [{script: a.sbatch"),
        (["--list", "gone.yaml"], "the scheduler does not know a job '99999999'"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_not_kept(words: list[str], said: str, bench: Bench) -> None:
    """Else a script whose job was not found would be submitted, and run twice."""
    (bench.root / "sub").mkdir()
    for name in ("a", "sub/a", "array", "logs"):
        more = "#SBATCH --array=0-1\n" if name == "array" else ""
        (bench.root / f"{name}.sbatch").write_text(f"#!/bin/bash\n{more}true\n")
    (bench.root / "some.out").touch()
    for name, text in (
        ("unknown", '{"jobs": [{"script": "a.sbatch", "nmae": "x"}]}'),
        ("nolist", "jobs: a.sbatch"),
        ("gone", "jobs: [{script: a.sbatch, job_id: 99999999, log: some.out}]"),
    ):
        (bench.root / f"{name}.yaml").write_text(text)
    assert said in bench.refused("collections", "import", "old", *words, "--local")
    assert not (bench.root / "outputs/old").exists() and "old" not in bench.does("collections", "list")


# ---------------------------------------------------------------- crowds

#: Children of one process: each is a process of its own, and none waits for its imports.
CROWD = """
import os, sys
from oellm_autoexp.cli import main
from oellm_autoexp.services import daemon, submit
from oellm_autoexp.services.collections import plan as batch_plan
number, words = int(sys.argv[1]), sys.argv[2:]
sys.argv = ["oellm-autoexp", *words, "--dry-run", "--json"]
try:
    main.main()
except SystemExit as ended:
    assert not ended.code
null = os.open(os.devnull, os.O_WRONLY)
children = []
for at in range(number):
    pid = os.fork()
    if pid == 0:
        os.dup2(null, 1)
        code = 3
        try:
            sys.argv = ["oellm-autoexp", *words, *(["--filter", "unsubmitted"] if at % 3 == 0 else [])]
            main.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)
    children.append(pid)
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def test_a_hundred_submits_at_once_lose_no_job_and_double_none(bench: Bench) -> None:
    """One of them leads; each of the others hands its plan over, or finds everything done."""
    rates = [number / 10 for number in range(1, 6)]
    bench.generated(parameters={"values": {"lr": rates, "bs": [8]}})
    done = bench.cli.run(sys.executable, "-c", CROWD, "100", *SUBMIT)
    codes = done.stdout.splitlines()[-1].split()
    assert len(codes) == 100 and {*codes} <= {"0", "1"}, done.stdout + done.stderr[-3000:]
    bench.does("monitor", "exp1")
    assert bench.ran == sorted(lines(*(f"lr{rate}" for rate in rates)))
    assert {job["attempts"] for job in bench.cli.jobs("exp1")} == {1}
