"""The recipes that users of the contract know: the two scripts, list forms, plug-ins, the state file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, Cli, path_without_cluster, until

from oellm_autoexp.services import plan


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line in a directory that has the shipped `config` and `scripts`, as a clone does."""
    for name in ("config", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    elsewhere = tmp_path_factory.mktemp("path") / "bin"
    return Cli(tmp_path, PATH=path_without_cluster(elsewhere))


# ---------------------------------------------------------------- the scripts


def test_a_job_is_rendered_looked_at_and_run_without_a_scheduler(tmp_path: Path, cli: Cli) -> None:
    """The dry run names what it wrote; an entry of it is shown, then runs here, with the shipped groups."""
    words = ("autoexp", "-C", "config", "-o", "project=default", "-o", "backend.base_command=[echo, hello]")
    done = cli.run(sys.executable, "scripts/run_autoexp.py", *words, "--dry-run")
    script, sweep = tmp_path / "outputs/scripts/autoexp.sbatch", tmp_path / "outputs/sweep.json"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Generated: {script}\nSweep JSON: {sweep}\n"
    entry = (sys.executable, "scripts/run_sweep_entry.py", "--sweep", "outputs/sweep.json", "--index", "0")
    shown = cli.run(*entry, "--dry-run")
    assert shown.returncode == 0 and shown.stdout.startswith("Command: echo hello\nEnvironment overrides: {")
    assert not (tmp_path / "outputs/autoexp").exists()
    ran = cli.run(*entry)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "hello\n", "")
    assert (tmp_path / "outputs/autoexp").is_dir()
    assert json.loads(sweep.read_bytes())


def test_a_cluster_is_chosen_by_its_groups(tmp_path: Path, cli: Cli) -> None:
    """`-o project=juwels -o slurm=juwels` renders for that cluster; submitting says what is not there."""
    groups = ("--config-dir", "config", "-o", "project=juwels", "-o", "slurm=juwels")
    done = cli.within("plan", "autoexp", *groups, "-o", "slurm.sbatch.account=acct")
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.rglob("juwels.sbatch")
    assert "#SBATCH --partition=booster\n" in script.read_text()
    refused = cli.within("submit", "autoexp", *groups)
    assert refused.returncode == 2, refused.stdout
    assert "Slurm" in refused.stderr and "--local" in refused.stderr


# ---------------------------------------------------------------- list forms

HEAD = """\
project: {name: forms}
backend: {class_name: NullBackend}
scheduler: {class_name: local}
"""
MAPPING = """\
monitoring:
  class_name: SlurmLogMonitor
  log_signals:
    checkpoint_ready:
      pattern: 'Checkpoint saved: (?P<path>.+\\.pt)'
      pattern_type: regex
      action: convert_checkpoint
      metadata: {kind: checkpoint}
    nan: {pattern: loss nan, pattern_type: substring, mode: crash.nan}
actions:
  convert_checkpoint: {command: 'python convert.py {checkpoint_path}'}
restart_policies:
  stall: {class_name: AlwaysRestartPolicy, max_retries: 2}
  timeout: {class_name: AdjustTimeLimitPolicy, minutes: 30}
  crash: {class_name: NoRestartPolicy, message: somebody has to look}
"""
LISTS = """\
monitoring:
  class_name: SlurmLogMonitor
  log_signals:
    - name: checkpoint_ready
      pattern: "Checkpoint saved: (?P<path>.+\\\\.pt)"
      pattern_type: regex
      action: convert_checkpoint
      metadata:
        kind: checkpoint
    - {name: nan, pattern: loss nan, pattern_type: substring, mode: crash.nan}
actions:
  - {name: convert_checkpoint, command: 'python convert.py {checkpoint_path}'}
restart_policies:
  - mode: stall
    implementation:
      class_name: AlwaysRestartPolicy
      max_retries: 2
  - mode: timeout
    implementation:
      class_name: AdjustTimeLimitPolicy
      minutes: 30
  - mode: crash
    implementation:
      class_name: NoRestartPolicy
      message: "somebody has to look"
"""


def planned(home: Path, text: str, *overrides: str) -> plan.PlanResult:
    home.mkdir(exist_ok=True)
    (home / "sweep.yaml").write_text(HEAD + text)
    return plan.plan(plan.load("sweep.yaml", overrides=overrides, cwd=home))


def test_lists_and_mappings_mean_the_same(tmp_path: Path) -> None:
    """Signals, actions and policies written as lists are the same rules, with the same identity."""
    mapping = planned(tmp_path, MAPPING)
    for text in (LISTS, grouped()):
        listed = planned(tmp_path, text)
        assert listed.rules == mapping.rules
        assert [job.spec for job in listed.jobs] == [job.spec for job in mapping.jobs]
        assert listed.policies == mapping.policies
    changed = planned(tmp_path, LISTS, "restart_policies.stall.max_retries=5")
    (rules,) = changed.rules.values()
    assert rules["restart_policies"]["stall"]["max_retries"] == 5


def grouped() -> str:
    """LISTS with the policies where a group `restart` has them."""
    head, _, policies = LISTS.partition("restart_policies:\n")
    indented = "".join(f"  {line}" for line in policies.splitlines(keepends=True))
    return f"{head}restart:\n  policies:\n{indented}"


def test_a_pattern_in_double_quotes_is_refused_with_its_repair(tmp_path: Path, cli: Cli) -> None:
    r"""YAML has no `\.`: the pattern of the recipe, typed with one backslash, is one clear message."""
    (tmp_path / "sweep.yaml").write_text(HEAD + LISTS.replace("\\\\.pt", "\\.pt"))
    refused = cli.within("plan", "sweep.yaml")
    assert refused.returncode == 2
    assert f"{tmp_path / 'sweep.yaml'}:8:" in refused.stderr and "single quotes" in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_signal_of_a_list_fires_an_action_of_the_command_line(tmp_path: Path, cli: Cli) -> None:
    """Groups of the pattern reach the action as `<kind>_<group>`, once; a dry run only shows it."""
    home = tmp_path / "mine"
    home.mkdir()
    (home / "autoexp.yaml").write_text(HEAD + LISTS)
    log = tmp_path / "outputs/logs/train.out"
    log.parent.mkdir(parents=True)
    log.write_text("iteration 1\nCheckpoint saved: /data/a b.pt\n")
    words = ["monitor", "autoexp", "-C", "mine", "--log", f"train={log}"]
    words += ["--action", "convert_checkpoint=printf '%s\\n' {checkpoint_path} >> converted"]
    shown = cli(*words, "--dry-run", "--json-output")
    assert shown.returncode == 0, shown.stderr
    (action,) = json.loads(shown.stdout)["actions"]
    assert action["command"] == "printf '%s\\n' '/data/a b.pt' >> converted"
    assert not (tmp_path / "converted").exists()
    for _ in range(2):
        assert cli(*words).returncode == 0
    assert (tmp_path / "converted").read_text() == "/data/a b.pt\n"


# ---------------------------------------------------------------- plug-ins in one file

PLUGINS = """
from dataclasses import dataclass
from compoconf import ConfigInterface, register
from oellm_autoexp.backends.base import BaseBackend, BackendJobSpec, LaunchCommand
from oellm_autoexp.config.sockets import ActionInterface, AppendText, RestartPolicyInterface
from oellm_autoexp.core.model import Restart, Stop


@dataclass(kw_only=True)
class ExampleConfig(ConfigInterface):
    script: str = "exit 3"


@register
class ExampleBackend(BaseBackend):
    config: ExampleConfig

    def validate(self, spec: BackendJobSpec) -> None:
        ...

    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
        return LaunchCommand(argv=["bash", "-c", self.config.script], environment={})


@dataclass(kw_only=True)
class ThriceConfig(ConfigInterface):
    times: int = 3


@register
class ThricePolicy(RestartPolicyInterface):
    config: ThriceConfig

    def decide(self, ended):
        if ended.attempt < self.config.times:
            return Restart(why="third time lucky")
        return Stop(why="three times unlucky")


@dataclass(kw_only=True)
class NoteConfig(ConfigInterface):
    path: str


@register
class NoteAction(ActionInterface):
    config: NoteConfig

    def deed(self, fields):
        return AppendText(path=self.config.path, text=f"{fields['job_name']} saw {fields['word']}\\n")

    def placeholders(self):
        return frozenset({"word"})
"""
USER_ROOT = """\
defaults: [backend: "null", restart: default, _self_]
project: {name: mine, base_output_dir: ./outputs}
plugins: [./my_plugins.py]
scheduler: {class_name: local}
monitoring:
  log_signals: {said: {pattern: 'said (?P<word>\\w+)', action: note}}
actions:
  note: {class_name: NoteAction, path: ./notes}
"""


def test_plugins_of_one_file_are_selected_and_take_part(tmp_path: Path, cli: Cli) -> None:
    """A backend by `-o backend=example`, a policy by `-o restart=thrice`, an action by its class name."""
    home = tmp_path / "mine"
    for group, text in (
        ("backend/example", "class_name: ExampleBackend\nscript: echo said hello; exit 3\n"),
        ("restart/thrice", "policies:\n  crash: {class_name: ThricePolicy}\n"),
    ):
        (home / group).parent.mkdir(parents=True)
        (home / f"{group}.yaml").write_text(text)
    (home / "autoexp.yaml").write_text(USER_ROOT)
    (tmp_path / "my_plugins.py").write_text(PLUGINS)
    done = cli("submit", "autoexp", "-C", "mine", "-o", "backend=example", "-o", "restart=thrice")
    assert done.returncode == 1, done.stdout + done.stderr
    (job,) = cli.jobs()
    assert (job["state"], job["attempts"], job["restarts"]) == ("failed", 3, 2)
    assert "three times unlucky" in job["reason"]
    assert (tmp_path / "notes").read_text() == "mine saw hello\n" * 3
    shown = cli.within("show", "outputs").stdout
    assert "third time lucky" in shown
    typo = cli("plan", "autoexp", "-C", "mine", "-o", "backend=exampel")
    assert typo.returncode == 2 and "did you mean `example`?" in typo.stderr


# ---------------------------------------------------------------- the state file

GATED = """\
project: {name: gated, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command: [bash, -c, 'until [ -e gate ]; do sleep 0.05; done', "${n}"]
sweep: {axes: {n: [1, 2]}}
monitoring: {class_name: SlurmLogMonitor, inactivity_threshold_seconds: 900, termination_string: null}
scheduler: {class_name: local, max_jobs: 2}
"""


def test_the_state_file_is_there_while_jobs_run_and_gone_at_the_end(tmp_path: Path, cli: Cli) -> None:
    """It has the fields that others read; submitting again beside it starts nothing twice."""
    (tmp_path / "sweep.yaml").write_text(GATED)
    assert cli("submit", "sweep.yaml", "--detach").returncode == 0
    state = tmp_path / "outputs/.oellm-autoexp/monitor/state.json"
    body = until(lambda: both_running(state), "both run")
    assert set(body) == {"timestamp", "jobs"}
    assert isinstance(body["timestamp"], float)
    for number, job in enumerate(body["jobs"], 1):
        name = f"gated_n{number}"
        assert job["name"] == name
        assert job["script_path"] == str(tmp_path / f"outputs/scripts/{name}.sbatch")
        assert Path(job["log_path"]).is_file() and job["attempts"] == 1
        assert job["metadata"] == {"parameters": {"n": number}}
        assert job["inactivity_threshold_seconds"] == 900 and job["output_paths"] == []
        unset = ("termination_string", "termination_command", "start_condition_cmd")
        assert all(job[key] is None for key in (*unset, "start_condition_interval_seconds"))
    again = cli("submit", "sweep.yaml", "--detach")
    assert again.returncode == 0 and "2 go on" in again.stdout
    assert {job["attempts"] for job in json.loads(state.read_text())["jobs"]} == {1}
    (tmp_path / "gate").touch()
    until(lambda: not state.exists(), "the session has ended")
    assert list(cli.states("sweep.yaml").values()) == [("succeeded", 1)] * 2


def both_running(state: Path) -> dict[str, Any] | None:
    """What the state file says, once both jobs run."""
    body = json.loads(state.read_text()) if state.exists() else {"jobs": []}
    return body if [job["state"] for job in body["jobs"]] == ["running", "running"] else None
