"""`run` and `wrap`: a command with its sweep, or a batch script, as the config that it stands for."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import compose, overrides, sweeps, yaml_writer
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault, UsageError, did_you_mean
from oellm_autoexp.services import calls, starter
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services.plan import Loaded, PlanResult
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.sweep.grid import Grid

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
#: What a command may name beside the variables of its sweep.
JOB_FIELDS = ("job.name", "job.output_dir", "job.checkpoint_dir", "job.log_path", "job.attempt")
_LAST_BACKSLASHES = re.compile(r"\\+$")
#: Sections as people read them.
_ORDER = ("defaults", "project", "slurm", "backend", "sweep", "scheduler")
_GROUPS = {"monitoring": "default", "restart": "default"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one line says. `command` may hold `{name}`; `before` stands in front of it, word by word."""

    command: Sequence[str]
    before: Sequence[str] = ()
    name: str
    sweep: Sequence[str] = ()
    overrides: Sequence[str] = ()
    scheduler: str | None = None
    scenario: Path | None = None
    config_dir: Path | None = None
    #: Sections below those that `overrides` set.
    sections: Mapping[str, Any] = field(default_factory=dict)


def config_of(line: Line, cwd: Path) -> dict[str, Any]:
    """The config that a line stands for.

    Raises:
        UsageError: an axis or a word that cannot be read.
        ConfigError: an override, or a sweep, that cannot be used.
    """
    raw = based(line, cwd)
    known = (*Grid(raw.get("sweep")).keys, *JOB_FIELDS)
    words = [*map(yaml_writer.literal, line.before), *(filled(word, known) for word in line.command)]
    raw["backend"]["command"] = words
    return {key: raw[key] for key in sorted(raw, key=_place)}


def based(line: Line, cwd: Path) -> dict[str, Any]:
    """The config without the command.

    Raises:
        UsageError, ConfigError: as `config_of`.
    """
    given = overrides.parse(line.overrides, directories(line.config_dir, cwd))
    groups = {**_GROUPS, **{each.key: each.option for each in given if each.option is not None}}
    raw: dict[str, Any] = {
        "defaults": [*({group: option} for group, option in groups.items()), "_self_"],
        "project": {"name": line.name, "base_output_dir": str(cwd / "outputs" / line.name)},
        "backend": {"class_name": "CommandBackend"},
        **{key: dict(value) for key, value in line.sections.items()},
    }
    raw["backend"] = {"class_name": "CommandBackend", **raw["backend"]}
    axes = _axes(line.sweep, raw.get("sweep", {}).get("axes", {}))
    if axes:
        # With more axes than a script's own, its name for the tasks of its array would not tell jobs apart.
        raw["sweep"] = {**({} if line.sweep else raw.get("sweep", {})), "axes": axes}
    if line.scheduler is not None:
        raw["scheduler"] = {**raw.get("scheduler", {}), "class_name": line.scheduler}
        # Another scheduler than the one whose clusters a script names.
        raw["scheduler"].pop("clusters", None)
    if line.scenario is not None:
        raw["scheduler"]["scenario"] = str(cwd / line.scenario)
    for each in given:
        if each.option is None:
            check_override(each)
            overrides.apply(raw, each, cwd)
    return raw


def _place(section: str) -> int:
    return _ORDER.index(section) if section in _ORDER else len(_ORDER)


def directories(config_dir: Path | None, cwd: Path) -> list[Path]:
    """Where groups are, in the order in which a config in `cwd` finds them."""
    return [cwd, cwd / (config_dir or compose.DEFAULT_CONFIG_DIR), compose.shipped()]


def _axes(texts: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    axes = dict(known)
    for text in texts:
        key, values = sweeps.axis(text)
        if key in axes:
            raise UsageError(f"`{key}` is swept already", where=f"--sweep {text}", hint="keep one of the two")
        axes[key] = [_literal(value) for value in values]
    return axes


def _literal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return yaml_writer.literal(value) if isinstance(value, str) else value


def check_override(given: overrides.Override) -> None:
    """Refuse what has a place of its own in a line, and secrets, which would be kept.

    Raises:
        UsageError: it is such.
    """
    if given.key == "backend.command":
        raise UsageError("the command stands behind `--`", where=given.place, hint="leave this override out")
    text = given.value if isinstance(given.value, str) else ""
    if text and "${" not in text and symbols.is_secret(given.key.rpartition(".")[2]):
        what = "a secret would stand in the config that is kept of this line"
        hint = "export it, and refer to it by `${oc.env:NAME}`, or set it in a file named by slurm.env_file"
        raise UsageError(what, where=f"-o {given.key}=…", hint=hint)


def filled(word: str, known: Collection[str]) -> str:
    """A word of the command as it stands in a config: `{lr}` refers to a variable, all else is text.

    Raises:
        UsageError: a brace that means nothing; names what there is.

    >>> filled("--lr={lr}", ["lr"]), filled("{{}}", []), filled("${{HOME}}", [])
    ('--lr=${lr}', '{}', '\\${HOME}')
    """
    yaml_writer.check(word)
    made, text, end = "", "", 0
    for match in _BRACES.finditer(word):
        text += word[end : match.start()]
        end = match.end()
        if match.group() in ("{{", "}}"):
            text += match.group()[0]
        elif match.group(1) in known:
            # A backslash before a reference would take its meaning away.
            before = _LAST_BACKSLASHES.sub(lambda found: found.group() * 2, yaml_writer.escaped(text))
            made, text = f"{made}{before}${{{match.group(1)}}}", ""
        else:
            raise _unknown(match.group(), match.group(1), word, known)
    return made + yaml_writer.escaped(text + word[end:])


def _unknown(brace: str, name: str | None, word: str, known: Collection[str]) -> UsageError:
    near = did_you_mean(name, known) if name else ""
    doubled = word.replace("{", "{{").replace("}", "}}")
    hint = "; ".join(part for part in (near, f"braces that are text are doubled: {doubled}") if part)
    return UsageError(f"`{brace}` names no variable of the sweep", where=f"the word {word}", hint=hint)


# ---------------------------------------------------------------- planned, saved


def planned(line: Line, cwd: Path, canary: int | None = None) -> PlanResult:
    """The plan of the config that a line stands for, as if that lay in `cwd`. Nothing is written there.

    Raises:
        ConfigError, UsageError, StateError: as for any config.
    """
    with loaded(config_of(line, cwd), line, cwd, canary) as found:
        return calls.planned_of(found)


@contextlib.contextmanager
def loaded(
    raw: Mapping[str, Any],
    line: Line,
    cwd: Path,
    canary: int | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Iterator[Loaded]:
    """The config of a line, loaded as if it lay in `cwd`; `sweep` is one that no line has.

    Raises:
        ConfigError, UsageError, StateError: as for any config, also within the `with`, in terms of the line.
    """
    text = yaml_writer.dump(raw)
    more = [f"scheduler.canary={canary}"] if canary is not None else []
    with tempfile.TemporaryDirectory(prefix="oellm-autoexp-run-") as place:
        file = Path(place).resolve() / "config.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            found = planning.load(str(file), line.config_dir, more, cwd=cwd, directory=cwd, sweep=sweep)
            source = {**found.source, "config": str(found.paths.config)}
            yield replace(found, source=source, text=text)
        except ConfigError as error:
            raise ConfigError(*(_as_typed(fault, file) for fault in error.faults)) from error.__cause__


def _as_typed(fault: Fault, file: Path) -> Fault:
    """The fault in terms of the line: there is no file to look into."""
    hint = re.sub(r"use it as \$(\{[^{}]*\})", r"use it as \1", fault.hint)
    if fault.file != str(file):
        return replace(fault, hint=hint)
    return replace(fault, file="", line=0, hint=hint)


def saved(line: Line, cwd: Path, file: Path, effects: Effects) -> None:
    """Write the config that a line stands for where there is none, or this very one.

    Raises:
        UsageError: another file is there, or it cannot be written.
    """
    raw = config_of(line, cwd)
    base = Path(raw["project"]["base_output_dir"])
    folder = (cwd / file).resolve().parent
    if base.is_relative_to(folder):
        raw["project"]["base_output_dir"] = f"./{base.relative_to(folder)}"
    text = yaml_writer.dump(raw)
    if not (file.is_file() and file.read_bytes() == text.encode()):
        starter.write(file, text, effects)
