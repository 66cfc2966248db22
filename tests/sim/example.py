"""The shipped example (`examples/lm`), small enough for a test: alone, as a sweep, and what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "lm"


def experiment() -> dict[str, Any]:
    """Its config; a test may change it as it likes."""
    config: dict[str, Any] = json.loads((EXAMPLE / "config.json").read_text())
    config["model"].update(hidden_size=16, num_layers=1, heads=2, context=16)
    config["data"].update(context=16, path="lm.py", batch_size=8)
    config["training"].update(max_steps=30, log_frequency=5, save_frequency=10)
    config["logging"].update(log_scalars_every_n_steps=5)
    config["validation"].update(every_n_steps=15)
    config["scheduler"].update(warmup_steps=2)
    config["optimizer"].update(lr=0.02)
    return config


def environment(**more: str) -> dict[str, str]:
    """For a training that neither Slurm nor a session knows of."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOEXP_", "SLURM_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT), **more}


def start(
    config: Mapping[str, Any] | Path, checkpoints: Path, cwd: Path = EXAMPLE, **more: str
) -> subprocess.Popen[str]:
    """The trainer as a program; a config may be a file."""
    given = [str(config)] if isinstance(config, Path) else ["--json", json.dumps(config)]
    return subprocess.Popen(
        [sys.executable, "-m", "oellm_autoexp.trainer", *given],
        cwd=cwd,
        env=environment(AUTOEXP_CHECKPOINT_DIR=str(checkpoints), **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What a training has said, once it has come to its end."""
    try:
        out, err = process.communicate(timeout=250)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sweep(config: Mapping[str, Any], axes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A config of trainings with the shipped backend, signals and policies; `more`: sections, defaults."""
    backend = {
        "python": sys.executable,
        "cwd": str(EXAMPLE),
        "experiment": {key: value for key, value in config.items() if key != "experiment_name"},
        **more.pop("backend", {}),
    }
    groups = {"project": "default", "backend": "fabric", "monitoring": "fabric", "restart": "fabric"}
    groups.update(more.pop("defaults", {}))
    return {
        "defaults": [*({group: option} for group, option in groups.items()), "_self_"],
        "project": {"name": "lm", "base_output_dir": "./outputs"},
        "backend": backend,
        "sweep": {"axes": dict(axes)},
        **more,
    }


def told(output: str, name: str) -> dict[int, float]:
    """The curve of a metric in what a training said; a step that was repeated counts as it was said last."""
    curve = {}
    for line in output.splitlines():
        if "@autoexp" in line:
            said = json.loads(line.partition("@autoexp")[2])
            if name in said.get("metrics", {}):
                curve[said["progress"]["step"]] = said["metrics"][name]
    return curve


#: What else a checkpoint says: when it was written, and of which training.
_OCCASION = ("save_timestamp", "resume_state", "experiment_name", "config")


def final(directory: Path) -> dict[str, Any]:
    """What the newest checkpoint below a directory holds, with tensors as bytes: `==` compares bit by bit."""
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype, value.shape, value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return value

    (path,) = directory.rglob("latest.ckpt")
    held = torch.load(path, weights_only=False)
    return {key: plain(value) for key, value in held.items() if key not in _OCCASION}
