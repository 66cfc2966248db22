"""From a config reference and overrides to a composed config, and from there to the typed config of a point.

A YAML file without `defaults` is the config; with `defaults`, or as a config name, Hydra composes it once
from the groups in the file's directory, `-C`, and the groups shipped with this package. References are
resolved afterwards by `config.tree`, never by Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compoconf import parse_config, registered

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.config.schema import JobConfig, ProjectConfig, RootConfig, SlurmConfig
from oellm_autoexp.config.sockets import (
    ActionInterface,
    BackendInterface,
    ConditionInterface,
    MonitorInterface,
    RestartPolicyInterface,
    SchedulerInterface,
)
from oellm_autoexp.config.tree import Tree
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.grid import Grid, Point
from oellm_autoexp.sweep.names import Namer

SECTIONS = (*(item.name for item in fields(RootConfig)), "sweep", "restart")
_SCHEDULERS = {"slurm": "SlurmClient", "local": "LocalScheduler", "fake": "FakeSlurmClient"}
_PLUGINS: Mapping[str, type] = {
    "backend": BackendInterface,
    "monitoring": MonitorInterface,
    "scheduler": SchedulerInterface,
}
_ENTRIES: Mapping[str, type] = {
    "restart_policies": RestartPolicyInterface,
    "actions": ActionInterface,
    "conditions": ConditionInterface,
}
_PATHS = (
    ("project", "base_output_dir"),
    ("project", "state_dir"),
    ("slurm", "script_dir"),
    ("slurm", "log_dir"),
    ("slurm", "template_path"),
    ("slurm", "env_file"),
)


@dataclass(frozen=True, kw_only=True)
class PointConfig:
    """The config of one point: typed, and as the plain mapping it was parsed from."""

    root: RootConfig
    raw: Mapping[str, Any]


class Composed:
    """A composed config, ready to be asked for its points."""

    def __init__(
        self, raw: dict[str, Any], *, file: Path | None, directory: Path, overrides: Sequence[str]
    ) -> None:
        self.file = file
        self.directory = directory
        self.overrides = tuple(overrides)
        self._overridden = {text.partition("=")[0].lstrip("+"): text for text in overrides}
        self._typed: dict[tuple[int, ...], tuple[RootConfig, Any]] = {}
        try:
            self.grid = Grid(raw.pop("sweep", None))
            self.tree = Tree(raw, self.grid.keys)
            self._check_sections(self.tree.folded)
            self.project = self._project()
            self.namer = Namer(self.grid.name_template, self.project.name, self.grid.keys, self.grid.labels)
            self._check_reads()
        except ConfigError as error:
            raise self.placed(error) from error.__cause__

    @property
    def reads_job(self) -> bool:
        """Whether any value depends on `job.*`."""
        return any(name.split(".")[0] == "job" for name in self._reads)

    @cached_property
    def _reads(self) -> frozenset[str]:
        texts = [self.tree.reads_of(text) for text in _texts(self.grid)]
        return self.tree.reads.union(*texts)

    def points(self) -> Iterator[Point]:
        return self.grid.points()

    def resolved(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The point's own values with their references resolved."""
        return self.tree.at(values, {}).point_values()

    def point(self, values: Mapping[str, Any], job: Mapping[str, Any]) -> PointConfig:
        """The config of one point.

        Raises:
            ConfigError: what is wrong, with the place where it was written.
        """
        try:
            raw = self.tree.point(values, job)
            return PointConfig(root=self._parsed(raw), raw=raw)
        except ConfigError as error:
            raise self.placed(error) from error.__cause__

    @property
    def shown(self) -> Mapping[str, Any]:
        """The resolved config for people: secrets by name, and what differs between points as its text."""
        return _shown(self.tree.folded)  # type: ignore[no-any-return]

    # ---- typed

    def _project(self) -> ProjectConfig:
        section = self.tree.folded.get("project")
        if not isinstance(section, Mapping):
            hint = "write `project: {name: tiny, base_output_dir: ./outputs}`"
            raise ConfigError(Fault(key="project", what="the section is missing", hint=hint))
        for path in self.tree.dynamic_paths:
            if path.startswith("project."):
                what = "must be the same for every point"
                raise ConfigError(Fault(key=path, what=what, hint="sweep something else"))
        made: ProjectConfig = _part(ProjectConfig, dict(section), "project")
        return made

    def _parsed(self, raw: Mapping[str, Any]) -> RootConfig:
        """Constant sections are the same objects at every point, so most points parse little or nothing."""
        key = tuple(id(raw.get(section)) for section in SECTIONS)
        found = self._typed.get(key)
        if found is None:
            root = parse_root(raw)
            if len(self._typed) > 64:
                self._typed.clear()
            # What `id` was taken of must live on, or another object may get the same number.
            self._typed[key] = found = (root, [raw.get(section) for section in SECTIONS])
        return found[0]

    # ---- checks

    def _check_sections(self, raw: Mapping[str, Any]) -> None:
        unknown = [key for key in raw if key not in SECTIONS]
        if unknown:
            raise ConfigError(
                *(Fault(key=key, what="unknown section", hint=did_you_mean(key, SECTIONS)) for key in unknown)
            )

    def _check_reads(self) -> None:
        """A swept variable that nothing reads is a typo, and would make jobs that compute the same."""
        read = self._reads | self.grid.reads | self.namer.reads
        unread = [key for key in self.tree.free if key not in read and key not in _LIFECYCLE]
        known = list(_leaves(self.tree.folded))
        if unread:
            raise ConfigError(
                *(
                    Fault(
                        key=f"sweep: {key}",
                        what="nothing reads this variable",
                        hint=did_you_mean(key, known) or f"use it as ${{{key}}} in the command, or remove it",
                    )
                    for key in sorted(unread)
                )
            )

    def placed(self, error: ConfigError) -> ConfigError:
        """The error with file and line, or the override, that the value came from."""
        return ConfigError(*(self._placed(fault) for fault in error.faults))

    def _placed(self, fault: Fault) -> Fault:
        if fault.file or not fault.key:
            return fault
        for key, text in self._overridden.items():
            if fault.key == key or fault.key.startswith(f"{key}."):
                return replace(fault, file=f"-o {text}")
        if self.file is None:
            return fault
        key = fault.key.removeprefix("sweep: ")
        try:
            text = self.file.read_text()
        except OSError:
            return fault
        line = yaml_loader.line_of(text, key)
        return replace(fault, file=str(self.file), line=line)


_LIFECYCLE = frozenset(item.name for item in fields(JobConfig))


def load(
    ref: str,
    *,
    config_dir: Path | None = None,
    overrides: Sequence[str] = (),
    shorthands: Mapping[str, Any] | None = None,
    load_plugins: Callable[[Sequence[str], Path], None] | None = None,
    cwd: Path | None = None,
) -> Composed:
    """Compose a config.

    `ref` is a YAML file, or the name of a config in `config_dir` or among the shipped groups. `overrides` are
    `key=value` with dotted keys, or `group=option`. `load_plugins` is called with the config's `plugins` and
    its directory before anything is parsed.

    Raises:
        ConfigError: every mistake found, each with its place, value and repair.
    """
    cwd = cwd or Path.cwd()
    pairs = [_pair(text) for text in overrides]
    path = (cwd / ref) if ref.endswith((".yaml", ".yml")) or (cwd / ref).is_file() else None
    if path is not None and not path.is_file():
        raise ConfigError(Fault(what="there is no such file", file=str(path)))
    searched = [
        directory for directory in ((cwd / config_dir) if config_dir else None, shipped()) if directory
    ]
    groups = {name for directory in searched for name in _groups(directory)}
    chosen = [
        (key, value) for key, value, _ in pairs if key in groups and isinstance(value, (str, type(None)))
    ]
    if path is not None:
        raw = yaml_loader.load(path)
        if "defaults" in raw or chosen:
            raw = _hydra(path.parent, path.stem, chosen, searched, keep=raw)
        directory = path.parent
    else:
        home = next((found for found in searched if (found / f"{ref}.yaml").is_file()), None)
        if home is None:
            names = sorted(file.stem for found in searched for file in found.glob("*.yaml"))
            what = f"there is no config {ref!r} in {', '.join(map(str, searched))}"
            raise ConfigError(
                Fault(what=what, hint=did_you_mean(ref, names) or "give the path of a YAML file")
            )
        path = home / f"{ref}.yaml"
        raw = _hydra(home, ref, chosen, searched, keep=None)
        directory = cwd
    raw = _normalised(raw)
    _absolute(raw, directory)
    for key, value, text in pairs:
        if (key, value) not in chosen:
            _override(raw, key, value, text)
    for key, value in (shorthands or {}).items():
        _override(raw, key, value, f"{key}={value}")
    raw = _normalised(raw)
    _absolute(raw, cwd)
    if load_plugins is not None:
        load_plugins([str(item) for item in raw.get("plugins") or []], directory)
    return Composed(raw, file=path, directory=directory, overrides=overrides)


def shipped() -> Path:
    """The config groups that come with this package."""
    inside = Path(__file__).resolve().parents[1] / "_config"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "config"


def _groups(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []


def _pair(text: str) -> tuple[str, Any, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        what = f"an override is KEY=VALUE, got {text!r}"
        raise ConfigError(Fault(what=what, file=f"-o {text}"))
    return key.lstrip("+"), yaml_loader.parse(value, f"-o {text}"), text


def _hydra(
    home: Path, name: str, chosen: Sequence[tuple[str, Any]], searched: Sequence[Path], keep: Any
) -> dict[str, Any]:
    """Hydra's composition, unresolved.

    Raises:
        ConfigError: what Hydra has to say, in short.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = ",".join(f"file://{path}" for path in searched)
    in_defaults = _in_defaults(keep if keep is not None else yaml_loader.load(home / f"{name}.yaml"))
    choices = [
        f'{"" if key in in_defaults else "+"}{key}="{value if value is not None else "null"}"'
        for key, value in chosen
    ]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(home.resolve()), version_base=None):
            config = compose(config_name=name, overrides=[f"hydra.searchpath=[{where}]", *choices])
        out: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        what = str(error).strip().splitlines()[0]
        raise ConfigError(Fault(what=what, file=str(home / f"{name}.yaml"))) from error
    return out


def _in_defaults(raw: Mapping[str, Any]) -> set[str]:
    names: set[str] = set()
    for item in raw.get("defaults") or []:
        if isinstance(item, Mapping):
            names.update(str(key).split()[-1].split("@")[0] for key in item)
    return names


# ---------------------------------------------------------------- shapes


def _normalised(raw: dict[str, Any]) -> dict[str, Any]:
    """List forms as mappings, wrappers unwrapped, class names where one is meant."""
    out = dict(raw)
    restart = out.pop("restart", None)
    if isinstance(restart, Mapping) and restart.get("policies"):
        out.setdefault("restart_policies", restart["policies"])
    policies = out.get("restart_policies")
    if isinstance(policies, list):
        out["restart_policies"] = {
            item["mode"]: item.get("implementation", {k: v for k, v in item.items() if k != "mode"})
            for item in policies
        }
    for section in ("backend", "monitoring"):
        value = out.get(section)
        if isinstance(value, Mapping) and isinstance(value.get("implementation"), Mapping):
            out[section] = dict(value["implementation"])
    monitoring = out.get("monitoring")
    if isinstance(monitoring, Mapping):
        out["monitoring"] = monitoring = {"class_name": "SlurmLogMonitor", **monitoring}
        if isinstance(monitoring.get("log_signals"), list):
            monitoring["log_signals"] = _named(monitoring["log_signals"], "monitoring.log_signals")
    else:
        out["monitoring"] = {"class_name": "SlurmLogMonitor"}
    for section in ("actions", "conditions"):
        if isinstance(out.get(section), list):
            out[section] = _named(out[section], section)
    for name, action in (out.get("actions") or {}).items():
        if isinstance(action, Mapping) and "class_name" not in action and "command" in action:
            out["actions"] = {**out["actions"], name: {"class_name": "CommandAction", **action}}
    scheduler = dict(out.get("scheduler") or {})
    scheduler["class_name"] = _SCHEDULERS.get(
        scheduler.get("class_name", "slurm"), scheduler.get("class_name", "slurm")
    )
    out["scheduler"] = scheduler
    return out


def _named(items: Sequence[Any], key: str) -> dict[str, Any]:
    out = {}
    for index, item in enumerate(items):
        if not isinstance(item, Mapping) or "name" not in item:
            raise ConfigError(Fault(key=f"{key}.{index}", what="an entry of the list form needs a name"))
        out[str(item["name"])] = {k: v for k, v in item.items() if k != "name"}
    return out


def _absolute(raw: dict[str, Any], base: Path) -> None:
    """Relative paths of a file are relative to it."""
    project = raw.get("project")
    if isinstance(project, Mapping) and "base_output_dir" not in project:
        raw["project"] = {**project, "base_output_dir": "./outputs"}
    for section, key in _PATHS:
        value = (raw.get(section) or {}).get(key) if isinstance(raw.get(section), Mapping) else None
        if isinstance(value, str) and not value.startswith(("/", "$", "~")):
            raw[section] = {**raw[section], key: str((base / value).resolve())}
        elif isinstance(value, str) and value.startswith("~"):
            raw[section] = {**raw[section], key: str(Path(value).expanduser())}


def _override(raw: dict[str, Any], key: str, value: Any, text: str) -> None:
    """Set a dotted key; at each level the longest existing key wins, so `crash.nan` stays one key."""
    section = key.partition(".")[0]
    if section not in SECTIONS:
        what = "there is no such section"
        raise ConfigError(Fault(what=what, key=key, file=f"-o {text}", hint=did_you_mean(section, SECTIONS)))
    node, rest = raw, key
    while True:
        known = [name for name in node if rest == name or rest.startswith(f"{name}.")]
        name = max(known, key=len, default=rest.partition(".")[0])
        if rest == name or (not known and "." not in rest):
            node[name] = value
            return
        inner = node.get(name)
        node[name] = dict(inner) if isinstance(inner, Mapping) else {}
        node, rest = node[name], rest[len(name) + 1 :]


# ---------------------------------------------------------------- typing


def parse_root(raw: Mapping[str, Any]) -> RootConfig:
    """The typed config of a point.

    Raises:
        ConfigError: every mistake, found section by section.
    """
    faults: list[Fault] = []
    for section, socket in _PLUGINS.items():
        if isinstance(raw.get(section), Mapping):
            faults += _class_fault(raw[section], socket, section)
    for section, socket in _ENTRIES.items():
        for name, entry in (raw.get(section) or {}).items():
            if isinstance(entry, Mapping):
                faults += _class_fault(entry, socket, f"{section}.{name}")
    if faults:
        raise ConfigError(*faults)
    whole = {key: value for key, value in raw.items() if value is not None}
    try:
        return parse_config(RootConfig, whole, strict_types=True)  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError) as error:
        found = [fault for key, value in whole.items() for fault in _section_faults(key, value)]
        raise ConfigError(*(found or [Fault(what=_told(error))])) from error


def _class_fault(entry: Mapping[str, Any], socket: type, key: str) -> list[Fault]:
    names = sorted(registered(socket))
    name = entry.get("class_name")
    if name is None:
        return [Fault(key=key, what="class_name is missing", hint=f"one of {', '.join(names)}")]
    if name not in names:
        hint = did_you_mean(str(name), names) or f"one of {', '.join(names)}"
        return [Fault(key=f"{key}.class_name", what=f"there is no {name!r}", value=str(name), hint=hint)]
    return []


def _section_faults(section: str, value: Any) -> list[Fault]:
    """The mistakes of one section, entry by entry where it is a collection of plug-ins."""
    if section in _ENTRIES and isinstance(value, Mapping):
        parts = [({section: {name: entry}}, f"{section}.{name}") for name, entry in value.items()]
    else:
        parts = [({section: value}, section)]
    faults = []
    for part, key in parts:
        probe = {"project": {"name": "x"}, **part}
        try:
            parse_config(RootConfig, probe, strict_types=True)
        except (KeyError, TypeError, ValueError) as error:
            faults.append(_fault(key, error))
    return faults


def _fault(key: str, error: Exception) -> Fault:
    told = _told(error)
    hint = ""
    if "time" in told and "must be text" in told:
        hint = told.partition(": ")[2]
    return Fault(key=key, what=told, hint=hint)


def _told(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    return " ".join(text.split())[:400]


def _part(cls: type, value: dict[str, Any], key: str) -> Any:
    try:
        return parse_config(cls, value, strict_types=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(Fault(key=key, what=_told(error))) from error


def _texts(grid: Grid) -> Iterator[str]:
    """The texts of swept values: they may refer to other values."""
    for point in grid.points():
        for value in point.values.values():
            if isinstance(value, str) and "${" in value:
                yield value
        if point.index > 1000:
            return


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(inner) for inner in value]
    if isinstance(value, str):
        return symbols.shown(value)
    return value if value is None or isinstance(value, (bool, int, float)) else "(differs between points)"


__all__ = ["Composed", "PointConfig", "SlurmConfig", "load", "parse_root", "shipped"]
