"""From a config reference and overrides to a composed config.

A YAML file without `defaults` is the config; with `defaults`, or as a config name, Hydra composes it once
from the groups in the file's directory, `-C`, and the groups shipped with this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.config import files, overrides, shapes
from oellm_autoexp.config.composed import Composed, PointConfig, parse_root
from oellm_autoexp.config.groups import Composition, options, shipped
from oellm_autoexp.config.origins import Origins
from oellm_autoexp.config.schema import DEFAULT_BASE_OUTPUT_DIR
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

__all__ = ["Composed", "PointConfig", "load", "parse_root", "shipped"]

#: Where `-C` points by default; it need not exist.
DEFAULT_CONFIG_DIR = Path("config")
Loader = Callable[[Sequence[str], Path], None]


def load(
    ref: str,
    *,
    config_dir: Path | None = None,
    overrides: Sequence[str] = (),
    shorthands: Mapping[str, Any] | None = None,
    load_plugins: Loader | None = None,
    cwd: Path | None = None,
    directory: Path | None = None,
    timestamp: str | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Composed:
    """Compose a config.

    `ref` is a YAML file, or the name of a config in `config_dir` or among the shipped groups. `overrides` are
    `key=value` with dotted keys, or `group=option`; `shorthands` are keys that a flag sets. `load_plugins` is
    called with the config's `plugins` and its directory before anything is parsed. Relative references and
    paths of overrides start at `cwd` (None: the process's). `directory`: where the file counts as standing
    (None: where it does). `sweep` is one that a program has made, in the place of the file's.

    Raises:
        ConfigError: every mistake found, each with its place, value and repair.
    """
    return _Load(ref, config_dir, overrides, shorthands or {}, cwd or Path.cwd(), directory).composed(
        load_plugins, timestamp, sweep
    )


class _Load:
    """One call of `load`."""

    def __init__(
        self,
        ref: str,
        config_dir: Path | None,
        given: Sequence[str],
        shorthands: Mapping[str, Any],
        cwd: Path,
        directory: Path | None,
    ) -> None:
        self._cwd = cwd
        self._texts = tuple(given)
        self._shorthands = shorthands
        directories = [*self._config_dir(config_dir), shipped()]
        self._file, self._by_name = self._primary(ref, directories)
        if not self._by_name:
            directories[:0] = [self._file.parent] if directory is None else [self._file.parent, directory]
        self._directories = list(dict.fromkeys(path.resolve() for path in directories))
        self._given = overrides.parse(given, self._directories)
        # A config by name is one of many in a directory: its paths start where the command is given.
        self.directory = directory or (cwd if self._by_name else self._file.parent)

    def _config_dir(self, config_dir: Path | None) -> list[Path]:
        if config_dir is None:
            return []
        path = self._cwd / config_dir.expanduser()
        if path.is_dir():
            return [path]
        if config_dir == DEFAULT_CONFIG_DIR:
            return []
        raise ConfigError(
            Fault(what="there is no such directory", file=str(config_dir), hint="give -C another")
        )

    def _primary(self, ref: str, directories: Sequence[Path]) -> tuple[Path, bool]:
        """The primary file, and whether it was given by name."""
        path = (self._cwd / Path(ref).expanduser()) if ref else self._cwd
        if path.is_file():
            return path.resolve(), False
        if not ref.endswith(files.SUFFIXES):
            for directory in directories:
                found = files.config_file(directory, ref)
                if found is not None:
                    return found.resolve(), True
        if ref.endswith(files.SUFFIXES) or "/" in ref:
            near = (
                sorted(str(file.name) for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
            )
            hint = did_you_mean(path.name, near) if near else ""
            raise ConfigError(Fault(what="there is no such file", file=ref, hint=hint))
        names = options(directories, ".")
        looked = " or ".join(str(directory) for directory in directories)
        meant = did_you_mean(ref, names)
        hint = f"{meant}{'' if meant.endswith('?') else '.'} A file is given by its path".strip(". ")
        raise ConfigError(Fault(what=f"there is no config of this name in {looked}", file=ref, hint=hint))

    def composed(
        self, load_plugins: Loader | None, timestamp: str | None, sweep: Mapping[str, Any] | None
    ) -> Composed:
        choices = {each.key: each.option for each in self._given if each.option is not None}
        composition = Composition(
            primary=self._file,
            directories=self._directories,
            directory=self.directory,
            cwd=self._cwd,
            choices=choices,
        )
        raw = files.read(self._file, (), composition.base_of(self._file))
        grouped = bool(choices or raw.get("defaults"))
        if grouped:
            raw = composition.compose()
        raw.pop("defaults", None)
        raw.pop("hydra", None)
        origins = Origins(merged=composition.merged if grouped else lambda: [(self._file, ())])
        try:
            raw = shapes.rooted(raw, self.directory / DEFAULT_BASE_OUTPUT_DIR)
            origins.given = self._set(raw)
            if sweep is not None:
                raw["sweep"] = sweep
            raw = shapes.rooted(raw, self.directory / DEFAULT_BASE_OUTPUT_DIR)
            if load_plugins is not None:
                load_plugins(shapes.plugins(raw), self.directory)
            shapes.choose_scheduler(raw, by_flag="scheduler.class_name" in self._shorthands)
        except ConfigError as error:
            raise origins.placed(error) from error.__cause__
        return Composed(
            raw,
            file=self._file,
            directory=self.directory,
            overrides=self._texts,
            origins=origins,
            files=[file for file, _ in composition.read.values()],
            timestamp=timestamp,
        )

    def _set(self, raw: dict[str, Any]) -> dict[str, str]:
        """Set what was given beside the files; the keys with where they were given."""
        given: dict[str, str] = {}
        for each in self._given:
            if each.option is None:
                given[overrides.apply(raw, each, self._cwd)] = each.place
        for key, value in self._shorthands.items():
            flag = overrides.Override(key=key, value=value, text=f"{key}={value}")
            given[overrides.apply(raw, flag, self._cwd)] = f"{key}={value}"
        return given
