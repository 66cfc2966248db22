"""sweep.json: what was planned, one entry a point, for people and for `run_sweep_entry`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.core.latest import Latest
from oellm_autoexp.core.model import JobSpec
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.sweep.scalars import format_scalar


def sweep_json(project: str, jobs: Iterable[tuple[JobSpec, ScriptRequest]]) -> Iterator[str]:
    """The text of the file in pieces, a line for each job; secrets are shown as `${NAME}`."""
    yield f'{{"project": {json.dumps(project)}, "jobs": ['
    separator = "\n"
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for spec, request in jobs:
        yield separator + encode(entry(spec, request))
        separator = ",\n"
    yield "\n]}\n"


def text_of(value: Any) -> str:
    """The text of a parameter for people: total, where `format_scalar` refuses."""
    return format_scalar(value) if isinstance(value, (str, bool, int, float)) else json.dumps(value)


def entry(spec: JobSpec, request: ScriptRequest) -> dict[str, Any]:
    """One job. `launch.references` says which words and variables hold a reference, not a plain `${NAME}`."""
    argv = list(map(symbols.shown, request.argv))
    parts = [
        _shown(request.job_environment),
        _shared(request.shared_environment),
        _shown(request.environment),
    ]
    environment = {name: text for shown, _ in parts for name, text in shown.items()}
    launch: dict[str, Any] = {"argv": argv, "environment": environment}
    if request.cwd:
        launch["cwd"] = request.cwd
    found = {
        "argv": [n for n, (word, text) in enumerate(zip(request.argv, argv, strict=True)) if word != text],
        "environment": [name for _, references in parts for name in references],
    }
    if any(found.values()):
        launch["references"] = {key: places for key, places in found.items() if places}
    return {
        "name": spec.name,
        "output_dir": spec.output_dir,
        "log_path": spec.log_of(1),
        "parameters": {key: text_of(value) for key, value in spec.parameters.items()},
        "launch": launch,
        "id": spec.id,
        "script_path": spec.script_path,
    }


def _shown(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Variables for people, and the names of those that hold a reference."""
    shown = {name: symbols.shown(value) for name, value in environment.items()}
    return shown, [name for name, value in environment.items() if shown[name] != value]


_shared = Latest(_shown)
