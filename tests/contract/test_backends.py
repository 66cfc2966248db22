"""What every backend does, whichever it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from compoconf import parse_config, registered

from oellm_autoexp.config.sockets import (
    BackendConfig,
    BackendInterface,
    BackendJobSpec,
    LaunchCommand,
    made,
)
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.services import plugins

plugins.load_builtin()

#: A config of each backend of this package.
CONFIGS: dict[str, dict[str, Any]] = {
    "CommandBackend": {"command": ["train", "a b", 1e-3, True, [1, 2]], "environment": {"N": 1}, "cwd": "/x"},
    "FabricBackend": {
        "experiment": {"model": {"type": "my.Model"}, "ddp": {"devices": 2}},
        "launcher": "torchrun",
        "environment": {"N": 1},
    },
    "NullBackend": {"base_command": ["echo", "-n"], "extra_cli_args": ["--x"], "environment": {"ON": True}},
}
SPEC = BackendJobSpec(
    parameters={"lr": 1e-3, "name": "it's", "none": None}, name="job", output_dir="/out", checkpoint_dir="/ck"
)


@dataclass(kw_only=True)
class _Root:
    backend: BackendConfig


def backend(name: str, **changes: Any) -> BackendInterface:
    config = {"class_name": name, **CONFIGS[name], **changes}
    root = parse_config(_Root, {"backend": config}, strict_types=True)
    found: BackendInterface = made(BackendInterface, root.backend)
    return found


def test_every_backend_of_this_package_is_in_this_suite() -> None:
    own = {
        name
        for name in registered(BackendInterface)
        if _module_of(name).startswith("oellm_autoexp.backends.")
    }
    assert own == set(CONFIGS)


def _module_of(name: str) -> str:
    from compoconf.compoconf import Registry

    return str(Registry.get_class(BackendInterface, name).__module__)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_command_is_texts_and_the_same_every_time(name: str) -> None:
    """Pure: the same job gives the same argv and environment, all of it text."""
    first = backend(name)
    first.validate(SPEC)
    command = first.build_launch_command(SPEC)
    assert command == backend(name).build_launch_command(SPEC)
    assert all(isinstance(word, str) for word in command.argv)
    assert all(isinstance(value, str) for value in command.environment.values())


def test_a_command_is_run_as_it_is_written() -> None:
    """Words stay words; values have the one text that names have."""
    command = backend("CommandBackend").build_launch_command(SPEC)
    assert command == LaunchCommand(["train", "a b", "0.001", "true", "1,2"], {"N": "1"}, "/x")
    text = backend("CommandBackend", command="python -m 'my train' --x=\"a b\" $HOME")
    assert text.build_launch_command(SPEC).argv == ("python", "-m", "my train", "--x=a b", "$HOME")


def test_the_null_backend_shows_the_values_it_was_given() -> None:
    """Null is left out, since it has no text."""
    command = backend("NullBackend").build_launch_command(SPEC)
    assert command.argv == ("echo", "-n", "--lr=0.001", "--name=it's", "--x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": []}, "names no program"),
        ({"command": "  "}, "names no program"),
        ({"command": ["", "x"]}, "names no program"),
        ({"command": "it's"}, "cannot be split"),
        ({"command": ["x", None]}, r"backend\.command\.1: null has no text"),
        ({"command": ["x", {"a": 1}]}, r"backend\.command\.1"),
        ({"environment": {"A": None}}, r"backend\.environment\.A: null"),
    ],
)
def test_a_command_that_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    """The error names the key."""
    with pytest.raises(ConfigError, match=message):
        backend("CommandBackend", **changes).build_launch_command(SPEC)


def test_the_fabric_backend_gives_the_experiment_to_the_trainer() -> None:
    """In its command line, under the job's name, by the launcher that is chosen."""
    command = backend("FabricBackend").build_launch_command(SPEC)
    assert command.argv[:5] == (
        "python3",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    )
    assert command.argv[5:8] == ("-m", "oellm_autoexp.trainer", "--json")
    said = json.loads(command.argv[8])
    assert said == {"experiment_name": "job", "model": {"type": "my.Model"}, "ddp": {"devices": 2}}
    mine = {"experiment_name": "mine", "ddp": {"devices": 4, "num_nodes": 3}}
    argv = backend("FabricBackend", experiment=mine, launcher="srun").build_launch_command(SPEC).argv
    tasks = ("--nodes=3", "--ntasks=12", "--ntasks-per-node=4")
    assert argv[:6] == ("srun", *tasks, "--kill-on-bad-exit=1", "python3")
    assert json.loads(argv[-1])["experiment_name"] == "mine"


def test_torchrun_hands_on_the_signals_that_a_training_leaves_by() -> None:
    """And gives it the time for its checkpoint; what a config says counts more."""
    told = backend("FabricBackend").build_launch_command(SPEC).environment
    assert {"SIGUSR1", "SIGUSR2", "SIGTERM"} <= set(told.pop("PET_SIGNALS_TO_HANDLE").split(","))
    assert told == {"PET_SHUTDOWN_TIMEOUT": "310", "N": "1"}
    own = {"environment": {"PET_SHUTDOWN_TIMEOUT": 60}}
    told = backend("FabricBackend", **own).build_launch_command(SPEC).environment
    assert told["PET_SHUTDOWN_TIMEOUT"] == "60"
    assert (
        not backend("FabricBackend", launcher="python", environment={}).build_launch_command(SPEC).environment
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": {"optimiser": {}}}, r"backend\.experiment\.optimiser: unknown key"),
        ({"experiment": {"optimizer": {"lr": -1}}}, r"backend\.experiment\.optimizer\.lr: must be above 0"),
        ({"experiment": {"ddp": {"num_nodes": 2}}}, r"backend\.launcher: starts processes on one node"),
        ({"experiment": {"slurm": {"mem": "7G"}}}, r"backend\.experiment\.slurm: does nothing here"),
        ({"experiment": {}}, r"backend\.experiment\.ddp\.devices: is missing"),
        ({"experiment": {}, "launcher": "srun"}, r"ddp\.devices: is missing for srun"),
        (
            {
                "experiment": {
                    "training": {"max_grad_norm": 2.0},
                    "performance": {"clip_grad_norm": 3.0},
                    "ddp": {"devices": 1},
                }
            },
            r"backend\.experiment: performance\.clip_grad_norm is 3\.0 and training\.max_grad_norm is 2\.0",
        ),
    ],
)
def test_an_experiment_that_cannot_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is submitted, with the key."""
    with pytest.raises(ConfigError, match=message):
        backend("FabricBackend", **changes).validate(SPEC)
