"""Configs of experiments as files: found, composed, resolved, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.config import experiments
from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.errors import ConfigError, ConfigurationError, Fault, ValidationError, did_you_mean
from oellm_autoexp.services.experiments.grid_search import write


class ConfigurationManager:
    """Loads, composes and saves configs of experiments.

    A name is looked for where the process runs, in `project_root`, and in `config_dir` (None: `configs` in
    the root), there also without its ending `.yaml`, `.yml` or `.json`.
    """

    def __init__(self, project_root: str | Path, config_dir: str | Path | None = None) -> None:
        self.project_root = Path(project_root).resolve()
        self.config_dir = self.project_root / (config_dir if config_dir is not None else "configs")

    def load_config(self, config_path: str | Path, validate: bool = True) -> dict[str, Any]:
        """The mapping in a file, with its references resolved; `${NAME}` may be of the environment.

        Raises:
            ConfigurationError: there is no such file, it cannot be read, or a reference leads nowhere.
            ValidationError: with `validate`, every mistake in it.
        """
        path = self._found(config_path)
        data = experiments.resolved(experiments.read(path))
        if validate:
            try:
                experiments.experiment(data)
            except ConfigError as error:
                raise ValidationError(*(_in_file(fault, path) for fault in error.faults)) from None
        return data

    def save_config(
        self, config: Mapping[str, Any] | ExperimentConfig, path: str | Path, format: str | None = None
    ) -> None:
        """Save a config as `yaml` or `json` (None: as the path ends), without tags; `load_config` reads it.

        Raises:
            ConfigurationError: an unknown format, a value that no file can hold, or it cannot be written.
        """
        target = Path(path)
        chosen = format if format is not None else "json" if target.suffix == ".json" else "yaml"
        write(target, experiments.dumped(config, chosen))

    def compose_configs(
        self,
        base: Mapping[str, Any] | str | Path,
        overrides: Sequence[Mapping[str, Any] | str | Path] = (),
        parameter_overrides: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Configs, or files, merged one over the other: mappings are merged, everything else is replaced.

        `parameter_overrides` are values by dotted key.

        Raises:
            ConfigurationError: a file that cannot be read; a dotted key that leads through a value.
        """
        made: dict[str, Any] = {}
        for each in (base, *overrides):
            given = each if isinstance(each, Mapping) else experiments.read(self._found(each))
            made = experiments.merged(made, experiments.canonical(given))
        for key, value in (parameter_overrides or {}).items():
            made = experiments.with_value(made, ".".join(experiments.Variations.place(key)), value)
        return experiments.resolved(made)

    def create_experiment_config(self, config: Mapping[str, Any]) -> ExperimentConfig:
        """A mapping as an experiment; what is left out has its default.

        Raises:
            ValidationError: every mistake in it.
        """
        return experiments.experiment(config)

    create_config = create_experiment_config

    def _found(self, config_path: str | Path) -> Path:
        given = Path(config_path).expanduser()
        places = [Path.cwd() / given, self.project_root / given, self.config_dir / given]
        places += [self.config_dir / f"{given}{suffix}" for suffix in experiments.SUFFIXES]
        for place in places:
            if place.is_file():
                if place.suffix in experiments.SUFFIXES:
                    return place
                what = "must be YAML or JSON by its name"
                raise ConfigurationError(Fault(what=what, file=str(place), hint="call it .yaml or .json"))
        known = [path.name for place in (self.config_dir, self.project_root) for path in _configs(place)]
        hint = did_you_mean(given.name, dict.fromkeys(known)) if known else ""
        looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
        raise ConfigurationError(
            Fault(what=f"there is no such config in {looked}", file=str(given), hint=hint)
        )


def _configs(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.suffix in experiments.SUFFIXES)


def _in_file(fault: Fault, path: Path) -> Fault:
    return Fault(what=fault.what, key=fault.key, value=fault.value, file=str(path), hint=fault.hint)
