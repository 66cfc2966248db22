"""A plug-in in a module of one's own: found, selected by an override, planned; and what goes wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from commands import ROOT as CLONE
from commands import Cli

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.services import plan, plugins

BACKEND = """
from dataclasses import dataclass
from compoconf import ConfigInterface, register
from oellm_autoexp.backends.base import BaseBackend, BackendJobSpec, LaunchCommand

@dataclass(kw_only=True)
class {name}Config(ConfigInterface):
    steps: int = 10

@register
class {name}(BaseBackend):
    config: {name}Config

    def validate(self, spec: BackendJobSpec) -> None:
        if self.config.steps < 1:
            raise ValueError("steps must be at least 1")

    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
        lr = spec.parameters["lr"]
        return LaunchCommand(argv=["python", "train.py", f"--steps={{self.config.steps}}", f"--lr={{lr}}"],
                             environment={{"OMP_NUM_THREADS": "1"}})
"""
ROOT = """\
defaults: [backend: other, _self_]
project: {name: tiny, base_output_dir: ./outputs}
plugins: [%s]
sweep: {axes: {lr: [0.1, 0.2]}}
"""


def project(tmp_path: Path, plugin: str, name: str) -> Path:
    """A directory with a root config and two backends to choose from."""
    groups = tmp_path / "config" / "backend"
    groups.mkdir(parents=True)
    (tmp_path / "config" / "autoexp.yaml").write_text(ROOT % plugin)
    (groups / "other.yaml").write_text("class_name: NullBackend\n")
    (groups / "example.yaml").write_text(f"class_name: {name}\nsteps: 3\n")
    return tmp_path


def planned(home: Path, *overrides: str) -> list[tuple[str, ...]]:
    loaded = plan.load("autoexp", Path("config"), overrides, scheduler="local", cwd=home)
    return [job.spec.argv for job in plan.plan(loaded).jobs]


def test_a_backend_in_a_file_is_selected_by_an_override(tmp_path: Path) -> None:
    """Recipe 7 of the contract: a file, a group entry, `-o backend=example`."""
    home = project(tmp_path, "./my_backends.py", "FileBackend")
    (home / "my_backends.py").write_text(BACKEND.format(name="FileBackend"))
    assert planned(home)[0][:2] == ("echo", "--lr=0.1")
    assert planned(home, "backend=example") == [
        ("python", "train.py", "--steps=3", "--lr=0.1"),
        ("python", "train.py", "--steps=3", "--lr=0.2"),
    ]
    assert planned(home, "backend=example", "backend.steps=5")[0][2] == "--steps=5"
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        planned(home, "backend=example", "backend.steps=0")


def test_a_backend_in_a_module_beside_the_config_is_found(tmp_path: Path) -> None:
    """A module needs no installation where it lies beside the config."""
    home = project(tmp_path, "my_own_module", "ModuleBackend")
    (home / "my_own_module.py").write_text(
        "from __future__ import annotations\n" + BACKEND.format(name="ModuleBackend")
    )
    assert planned(home, "backend=example")[0][2] == "--steps=3"


def test_a_backend_of_an_installed_distribution_is_found(tmp_path: Path) -> None:
    """An entry point of the group oellm_autoexp.plugins is enough: the config names no plug-in."""
    home = project(tmp_path, "", "InstalledBackend")
    site = tmp_path / "site"
    about = site / "example_backend-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "example_backend.py").write_text(BACKEND.format(name="InstalledBackend"))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: example-backend\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[oellm_autoexp.plugins]\nexample = example_backend\n")
    cli = Cli(home, PYTHONPATH=os.pathsep.join([str(site), str(CLONE)]))
    cli.program = (sys.executable, str(CLONE / "scripts" / "run_autoexp.py"))
    words = ("--local", "--dry-run", "-o", "backend=example")
    done = cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Generated: ") == 2
    text = (home / "outputs" / "scripts" / "tiny_lr0.2.sbatch").read_text()
    assert "exec python train.py --steps=3 --lr=0.2" in text
    assert "export OMP_NUM_THREADS=1" in text
    (site / "example_backend.py").write_text("import no_such_thing\n")
    done = cli(*words)
    assert done.returncode == 2
    assert "no_such_thing" in done.stderr
    assert "example-backend" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("plugin", "content", "message"),
    [
        ("./none.py", None, r"plugins\.0: no such file: .*none\.py.*\n.*relative paths start at"),
        ("no_such_module", None, r"plugins\.0: there is no such module \(value: no_such_module\)\n"),
        ("./p.py", "x = (", r"p\.py:1: plugins\.0: the plug-in cannot be loaded: SyntaxError"),
        ("./p.py", "\nx = 1 / 0", r"p\.py:2: plugins\.0: the plug-in cannot be loaded: ZeroDivisionError"),
        ("./p.py", "import no_such_dependency", r"no_such_dependency"),
        (
            "./p.py",
            BACKEND.format(name="CommandBackend"),
            r"`CommandBackend` is the name of a plug-in already",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_a_mistake_in_the_config(
    tmp_path: Path, plugin: str, content: str | None, message: str
) -> None:
    """What, where, and what to do: never a traceback."""
    if content is not None:
        (tmp_path / "p.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        plugins.load([plugin], tmp_path)
    assert error.value.exit_code == 2


def test_a_plugin_is_loaded_once(tmp_path: Path) -> None:
    """The same file under two spellings is one module."""
    count = "from pathlib import Path\nwith Path(__file__ + '.n').open('a') as file:\n    file.write('x')\n"
    (tmp_path / "once.py").write_text(count)
    plugins.load(["./once.py", "once.py", str(tmp_path / "once.py")], tmp_path)
    assert (tmp_path / "once.py.n").read_text() == "x"


def test_a_policy_that_fails_ends_its_job_and_not_the_session(tmp_path: Path) -> None:
    """The mistake of a plug-in is the reason of the job that met it."""
    from oellm_autoexp.core.model import EndedAttempt
    from oellm_autoexp.monitor import rules

    module = tmp_path / "broken.py"
    module.write_text(
        "from dataclasses import dataclass\n"
        "from compoconf import ConfigInterface, register\n"
        "from oellm_autoexp.config.sockets import RestartPolicyInterface\n"
        "@dataclass(kw_only=True)\n"
        "class BrokenPolicyConfig(ConfigInterface):\n"
        "    answer: bool = False\n"
        "@register\n"
        "class BrokenPolicy(RestartPolicyInterface):\n"
        "    config: BrokenPolicyConfig\n"
        "    config_class = BrokenPolicyConfig\n"
        "    def decide(self, ended):\n"
        "        return 'again' if self.config.answer else [][ended.attempt]\n"
    )
    plugins.load([str(module)], tmp_path)
    ended = EndedAttempt(
        job="a", mode="crash", reason="", attempt=1, restarts=0, restarts_without_progress=0, progressed=False
    )
    said = []
    for answer in (False, True):
        entry = {"class_name": "BrokenPolicy", "answer": answer}
        made = rules.build({"restart_policies": {"crash": entry}})
        said.append(made.lifecycle.policies["crash"].decide(ended).why)
    assert said == [
        "BrokenPolicy failed: IndexError: list index out of range",
        "BrokenPolicy answered 'again', not Restart or Stop",
    ]
