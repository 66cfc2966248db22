"""How Hydra reads our files: a `ConfigSource` for the YAML dialect, and a `SearchPathPlugin` that puts it in
front. Both are public plug-in interfaces of Hydra; outside a composition of ours they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from oellm_autoexp.config.files import SUFFIXES, config_file

_SCHEME = "autoexp"


class Composition(Protocol):
    """Who asks Hydra."""

    @property
    def directories(self) -> Sequence[Path]:
        """Where configs are looked for, the first one first."""

    def load(self, path: str, file: Path, package: tuple[str, ...]) -> dict[str, Any]:
        """The content of a file that stands at a config path."""


#: What is being composed.
ACTIVE: ContextVar[Composition | None] = ContextVar("composition", default=None)


class AutoexpSource(ConfigSource):
    """Files in our YAML dialect."""

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        path = _bare(config_path)
        file, composition = config_file(Path(self.path), path), ACTIVE.get()
        if file is None or composition is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        header = self._header(file)
        data = composition.load(path, file, _package(header, path))
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(data),
            header={"package": header},
        )

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return config_file(Path(self.path), _bare(config_path)) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names: list[str] = []
        for file in sorted(Path(self.path, config_path).iterdir()):
            self._list_add_result(names, str(Path(config_path, file.name)), file.name, results_filter)
        return sorted(set(names))

    def _header(self, file: Path) -> str | None:
        try:
            return self._get_header_dict(file.read_text(encoding="utf-8")[:512])["package"]
        except (OSError, ValueError):
            return None


class AutoexpSearchPath(SearchPathPlugin):
    """Puts the directories of what is being composed in front."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        composition = ACTIVE.get()
        for directory in reversed(composition.directories if composition is not None else ()):
            search_path.prepend(_SCHEME, f"{_SCHEME}://{directory}")


@cache
def register() -> None:
    """Make both known to Hydra."""
    Plugins.instance().register(AutoexpSource)
    Plugins.instance().register(AutoexpSearchPath)


def _bare(path: str) -> str:
    for suffix in SUFFIXES:
        path = path.removesuffix(suffix)
    return path


def _package(header: str | None, path: str) -> tuple[str, ...]:
    """Where the keys of a file go, unless the defaults list that names it says otherwise."""
    group = path.split("/")[:-1]
    if header is None:
        return tuple(group)
    named = header.replace("_group_", ".".join(group)).replace("_name_", path.split("/")[-1])
    return tuple(part for part in named.split(".") if part and part != "_global_")
