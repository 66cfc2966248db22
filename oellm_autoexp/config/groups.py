"""Config groups, and their composition by Hydra: once, unresolved, in our own YAML dialect.

Hydra reads files through `hydra_source`. References stay hidden from OmegaConf, which would check and
resolve them. Hydra is imported only where a config has groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oellm_autoexp.config import files, yaml_loader
from oellm_autoexp.config.files import SUFFIXES
from oellm_autoexp.config.origins import Source, found
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import kind_of

#: Stands for `$` before a `{` while OmegaConf holds a text. A private-use character has no other meaning.
_DOLLAR = "\ue00f"
#: A choice on the command line replaces what a file itself says of these.
_EXCLUSIVE = ("backend", "monitoring", "scheduler", "sweep")


def shipped() -> Path:
    """The config groups that come with this package."""
    inside = Path(__file__).resolve().parents[1] / "_config"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "config"


def options(directories: Sequence[Path], group: str) -> list[str]:
    """The options of a group, sorted."""
    found = {
        file.stem
        for directory in directories
        for suffix in SUFFIXES
        for file in (directory / group).glob(f"*{suffix}")
    }
    return sorted(found)


def _groups(directories: Sequence[Path]) -> list[str]:
    """The groups beside each other in these directories, sorted."""
    found = {path.name for directory in directories for path in directory.iterdir() if path.is_dir()}
    return sorted(name for name in found if options(directories, name))


@dataclass
class Composition:
    """What Hydra is to compose: the primary config, where groups are looked for, which options are chosen."""

    primary: Path
    directories: Sequence[Path]
    #: Where relative paths start: in the primary config and what lies below its directory, and elsewhere.
    directory: Path
    cwd: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    #: Chosen groups that the primary's defaults do not have: they are put before them.
    added: dict[str, str] = field(default_factory=dict)
    #: What was read, by config path; and the mistakes in it.
    read: dict[str, Source] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.primary.stem

    def base_of(self, file: Path) -> Path:
        """Where relative paths of a file start."""
        path = file.resolve()
        is_own = path.is_relative_to(self.primary.parent) and not path.is_relative_to(shipped().resolve())
        return self.directory if is_own or path == self.primary else self.cwd

    def load(self, path: str, file: Path, package: tuple[str, ...]) -> dict[str, Any]:
        """One file, as Hydra is to see it."""
        self.read[path] = (file, package)
        try:
            data = files.read(file, package, self.base_of(file))
        except ConfigError as error:
            self.faults += error.faults
            return {}
        if path == self.name:
            self._choose(data)
        hydra = {key: data.pop(key) for key in files.HYDRA_KEYS if key in data}
        return {**hydra, **_hidden(data)}

    def _choose(self, data: dict[str, Any]) -> None:
        defaults = data.get("defaults") or []
        before = [{group: option} for group, option in self.added.items()]
        if not isinstance(defaults, list):
            hint = "write `defaults: [slurm: lumi, _self_]`"
            what = f"must be a list, not a {kind_of(defaults)}"
            raise ConfigError(files.placed(Fault(key="defaults", what=what, hint=hint), self.primary))
        # What a config says itself wins over what it is based on, unless it says where it comes in.
        last = [] if "_self_" in defaults else ["_self_"]
        data["defaults"] = [*before, *defaults, *last]
        for group in _EXCLUSIVE:
            own = data.get(group) if group in self.choices else None
            if isinstance(own, Mapping) and (group == "sweep" or "class_name" in own):
                del data[group]

    # ---- with Hydra

    def compose(self) -> dict[str, Any]:
        """The composed config.

        Raises:
            ConfigError: every mistake in the files, or what Hydra has to say.
        """
        from hydra import compose
        from hydra.errors import ConfigCompositionException, HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        while True:
            self.faults.clear()
            try:
                with self._hydra():
                    config = compose(config_name=self.name, overrides=self._overrides())
                if self.faults:
                    raise ConfigError(*dict.fromkeys(self.faults))
                raw: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
                return _revealed(raw)  # type: ignore[no-any-return]
            except ConfigCompositionException as error:
                if not self._add(str(error)):
                    raise self._told(error) from error
            except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
                raise self._told(error) from error

    def merged(self) -> Sequence[Source]:
        """The files in the order in which they were merged."""
        from hydra.core.global_hydra import GlobalHydra
        from hydra.types import RunMode

        with self._hydra():
            loader = GlobalHydra.instance().config_loader()
            order = loader.compute_defaults_list(self.name, self._overrides(), RunMode.RUN).defaults
        sources = []
        for default in order:
            known = self.read.get(default.config_path or "")
            if known is not None:
                package = default.package if default.package is not None else ".".join(known[1])
                sources.append((known[0], tuple(part for part in package.split(".") if part)))
        return sources

    def _overrides(self) -> list[str]:
        return [f'{group}="{option}"' for group, option in self.choices.items() if group not in self.added]

    def _add(self, message: str) -> bool:
        """Whether Hydra refused a choice because no defaults list has the group; it is added then."""
        for group, option in self.choices.items():
            if group not in self.added and f"Could not override '{group}'" in message:
                self.added[group] = option
                return True
        return False

    @contextmanager
    def _hydra(self) -> Iterator[None]:
        """Hydra with our source, whatever else this process uses Hydra for."""
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        from oellm_autoexp.config import hydra_source

        hydra_source.register()
        running = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        token = hydra_source.ACTIVE.set(self)
        try:
            with initialize_config_dir(config_dir=str(self.primary.parent.resolve()), version_base="1.3"):
                yield
        finally:
            hydra_source.ACTIVE.reset(token)
            GlobalHydra.instance().hydra = running

    def _told(self, error: Exception) -> ConfigError:
        """What Hydra says, in short, with the line of the `defaults` that it is about."""
        if self.faults:
            return ConfigError(*dict.fromkeys(self.faults))
        from hydra.errors import MissingConfigException

        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = lines[0] if lines else type(error).__name__
        missing = error.missing_cfg_file if isinstance(error, MissingConfigException) else None
        hint = ""
        if what.startswith("Multiple values for "):
            what = what.split(". ")[0].replace("Multiple values", "two options")
            hint = "choose one option"
        if missing:
            group, _, name = str(missing).rpartition("/")
            known = options(self.directories, group)
            what = f"there is no option `{name}` in the group `{group}`" if group else f"no config `{name}`"
            hint = did_you_mean(name, known)
            if not known:
                what, hint = f"there is no group `{group}`", did_you_mean(group, _groups(self.directories))
        for file, _ in reversed(list(self.read.values())):
            line = _line_of_default(file, str(missing or ""), what)
            if line:
                return ConfigError(Fault(what=what, key="defaults", file=str(file), line=line, hint=hint))
        return ConfigError(Fault(what=what, key="defaults", file=str(self.primary), hint=hint))


def _line_of_default(file: Path, missing: str, what: str) -> int:
    """The line of the last entry of `defaults` that names a missing config, or that a message is about."""
    defaults = yaml_loader.load(file).get("defaults") or []
    last = None
    for number, item in enumerate(defaults if isinstance(defaults, list) else []):
        pairs = item.items() if isinstance(item, Mapping) else [("", item)]
        for group, name in pairs:
            path = f"{str(group).split()[-1].split('@')[0]}/{name}" if group else str(name)
            named = group and (f"'{group}" in what or what.endswith(f" for {group}"))
            if path.lstrip("/") == missing or (not missing and named):
                last = number
    return 0 if last is None else found(yaml_loader.read(file), f"defaults.{last}")[1]


# ---------------------------------------------------------------- texts that OmegaConf must not read


def _hidden(value: Any) -> Any:
    return _replaced(value, "${", _DOLLAR + "{")


def _revealed(value: Any) -> Any:
    return _replaced(value, _DOLLAR + "{", "${")


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value
