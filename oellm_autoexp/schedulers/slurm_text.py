"""The text that goes to Slurm. Pure: directives of a job script. Source: sbatch(1)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.sweep.scalars import format_scalar


def directives(name: str, slurm: Mapping[str, Any]) -> list[str]:
    """The `#SBATCH` lines of a resolved `slurm` section; `sbatch_overrides` win over `sbatch`.

    A key is an option with `-` or `_`; true is a flag, false and null leave the option out.

    Raises:
        ConfigError: a value that no directive can hold.
    """
    given: dict[str, tuple[str, Any]] = {"job-name": ("", name)}
    for section in ("sbatch", "sbatch_overrides"):
        for key, value in (slurm.get(section) or {}).items():
            given[str(key).replace("_", "-")] = (f"slurm.{section}.{key}", value)
    lines = [f"#SBATCH {option}" for option in _options(given)]
    for number, line in enumerate(slurm.get("sbatch_extra_directives") or ()):
        text = _one_line(str(line).strip(), f"slurm.sbatch_extra_directives.{number}")
        lines.append(text if text.startswith("#") else f"#SBATCH {text}")
    return lines


def _options(given: Mapping[str, tuple[str, Any]]) -> Iterator[str]:
    for option, (key, value) in given.items():
        start = f"-{option}" if len(option) == 1 else f"--{option}"
        if value is True:
            yield start
        elif value is not None and value is not False:
            text = shlex.quote(_one_line(_text(value, key), key))
            yield f"{start} {text}" if len(option) == 1 else f"{start}={text}"


def _text(value: Any, key: str) -> str:
    try:
        return format_scalar(value)
    except ValueError as error:
        raise ConfigError(Fault(key=key, what=str(error))) from None


def _one_line(text: str, key: str) -> str:
    if "\n" in text or "\r" in text:
        raise ConfigError(Fault(key=key, what="a directive is one line", value=repr(text)))
    return text
