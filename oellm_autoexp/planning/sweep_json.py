"""sweep.json: what was planned, one entry a point, for people and for `run_sweep_entry`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from oellm_autoexp.core import symbols
from oellm_autoexp.core.model import JobSpec
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.sweep.scalars import format_scalar


def sweep_json(project: str, jobs: Iterable[tuple[JobSpec, ScriptRequest]]) -> Iterator[str]:
    """The text of the file in pieces, a line for each job; secrets are shown as `${NAME}`."""
    yield f'{{"project": {json.dumps(project)}, "jobs": ['
    separator = "\n"
    for spec, request in jobs:
        yield separator + _encoded(spec, request)
        separator = ",\n"
    yield "\n]}\n"


def _encoded(spec: JobSpec, request: ScriptRequest) -> str:
    """The JSON of an entry; most hold no reference, which is seen in the text of them all."""
    text = json.dumps(_entry(spec, request), ensure_ascii=False)
    return text if symbols.OPEN not in text else json.dumps(entry(spec, request), ensure_ascii=False)


def text_of(value: Any) -> str:
    """The text of a parameter for people: total, where `format_scalar` refuses."""
    return format_scalar(value) if isinstance(value, (str, bool, int, float)) else json.dumps(value)


def entry(spec: JobSpec, request: ScriptRequest) -> dict[str, Any]:
    """One job. `launch.references` says which words and variables hold a reference, not a plain `${NAME}`."""
    found = _entry(spec, request)
    launch = found["launch"]
    references = _references(launch["argv"], launch["environment"])
    launch["argv"] = [symbols.shown(word) for word in launch["argv"]]
    launch["environment"] = {name: symbols.shown(value) for name, value in launch["environment"].items()}
    if references:
        launch["references"] = references
    return found


def _entry(spec: JobSpec, request: ScriptRequest) -> dict[str, Any]:
    launch: dict[str, Any] = {
        "argv": request.argv,
        "environment": {**request.job_environment, **request.environment},
    }
    if request.cwd:
        launch["cwd"] = request.cwd
    return {
        "name": spec.name,
        "output_dir": spec.output_dir,
        "log_path": spec.log_of(1),
        "parameters": {key: text_of(value) for key, value in spec.parameters.items()},
        "launch": launch,
        "id": spec.id,
        "script_path": spec.script_path,
    }


def _references(argv: Iterable[str], environment: Mapping[str, str]) -> dict[str, list[Any]]:
    words = [number for number, word in enumerate(argv) if symbols.shown(word) != word]
    names = [name for name, value in environment.items() if symbols.shown(value) != value]
    return {key: places for key, places in (("argv", words), ("environment", names)) if places}
