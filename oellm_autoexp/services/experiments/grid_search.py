"""Experiments from a base and grids of parameters, one at a time, each with a name of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.config import experiments
from oellm_autoexp.config.experiments import Variations
from oellm_autoexp.core.experiment import ExperimentConfig, plain
from oellm_autoexp.errors import ConfigurationError, Fault, ValidationError, did_you_mean
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.sweep.experiment_names import ExperimentNamer, NamingStrategy, parsed_name
from oellm_autoexp.sweep.parameters import ParameterGrid

__all__ = ["ExperimentNaming", "NamingStrategy", "ParameterGrid", "ParameterGridSearch"]

_FILE_KEYS = ("base_config", "naming_strategy", "grids")
#: Experiments that a summary lists.
_LISTED = 100


class ExperimentNaming:
    """Names of experiments: legal as a path, a git ref and the name of a Slurm job, different for others."""

    @staticmethod
    def generate_name(
        base_name: str,
        parameters: Mapping[str, Any],
        naming_strategy: NamingStrategy = NamingStrategy.PARAMETER_BASED,
        *,
        keys: Sequence[str] | None = None,
    ) -> str:
        """The name of an experiment; `keys` are those of the whole sweep, which are then shown in short."""
        strategy = NamingStrategy(naming_strategy)
        return ExperimentNamer(base_name, strategy, keys=keys, timestamp=_timestamp()).name(parameters)

    @staticmethod
    def parse_experiment_name(
        name: str, known: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """The parameters of a name: those of `known` names first, else what the name shows.

        A name that ends in a hash does not show all exactly.
        """
        if known is not None and name in known:
            return dict(known[name])
        return parsed_name(name)


class ParameterGridSearch:
    """A base config and grids, whose points follow one another.

        gs = ParameterGridSearch({"experiment_name": "baseline", "model": {"type": "transformer"}})
        gs.add_grid("search", {"optimizer.lr": [1e-3, 1e-4]})
        for config in gs.generate_experiments():
            print(config.experiment_name)

    Raises:
        ValidationError: every mistake in the base.
    """

    def __init__(self, base_config: Mapping[str, Any] | ExperimentConfig) -> None:
        self.base_config = experiments.experiment(base_config)
        self.parameter_grids: list[ParameterGrid] = []
        self.naming_strategy = NamingStrategy.PARAMETER_BASED
        self._timestamp = _timestamp()

    # ---- declaring

    def add_grid(
        self, grid: ParameterGrid | str, parameters: Mapping[str, Sequence[Any]] | None = None
    ) -> ParameterGridSearch:
        """Add a grid, or a name with the values of each key.

        Raises:
            ValidationError: a key that no experiment has, or a grid of this name is there.
        """
        if isinstance(grid, str):
            made = ParameterGrid(grid)
            for key, values in (parameters or {}).items():
                made.add_parameter(key, values)
            grid = made
        if any(other.name == grid.name for other in self.parameter_grids):
            raise ValidationError(Fault(key=grid.name, what="there is a grid of this name"))
        Variations(self.base_config).check(grid.keys)
        self.parameter_grids.append(grid)
        return self

    def set_naming_strategy(self, strategy: NamingStrategy) -> None:
        """How experiments are named."""
        self.naming_strategy = NamingStrategy(strategy)

    # ---- experiments

    def get_total_experiments(self) -> int:
        """How many there are; as lazy as `ParameterGrid.get_parameter_count`."""
        return sum(grid.get_parameter_count() for grid in self.parameter_grids)

    def generate_experiments(self) -> Iterator[ExperimentConfig]:
        """The experiments, one at a time, each valid and with a name that no other has.

        Raises:
            ValidationError: a value that an experiment does not take, a point that is declared twice.
        """
        return (config for _, config in self.generate_points())

    def generate_points(self) -> Iterator[tuple[dict[str, Any], ExperimentConfig]]:
        """The experiments with the parameters of each.

        Raises:
            ValidationError: as `generate_experiments`.
        """
        make = self._maker()
        seen: dict[str, str] = {}
        for grid in self.parameter_grids:
            for point in grid.generate_permutations():
                made = make(point)
                name = made.experiment_name
                if name in seen:
                    what = f"the grids `{seen[name]}` and `{grid.name}` have the same point"
                    if seen[name] == grid.name:
                        what = f"the grid `{grid.name}` has a point twice"
                    hint = "remove one of them, or exclude it: exclude_combinations([{…}])"
                    raise ValidationError(Fault(key=grid.name, what=what, value=_shown(point), hint=hint))
                seen[name] = grid.name
                yield point, made

    def sample_experiments(self, count: int, seed: int = 0) -> list[ExperimentConfig]:
        """Some experiments of each grid, drawn evenly and without building the grids.

        Raises:
            ValidationError: as `generate_experiments`.
        """
        make = self._maker()
        return [make(point) for grid in self.parameter_grids for point in grid.sample(count, seed)]

    def get_experiment_name(self, config: ExperimentConfig) -> str:
        """The name that this search gives a config: its own where it has been named already."""
        if config.experiment_name != self.base_config.experiment_name:
            return config.experiment_name
        data = config.to_dict()
        values = {key: _at(data, Variations.place(key)) for key in self.labels}
        return self._namer().name({key: value for key, value in values.items() if value is not None})

    @property
    def labels(self) -> tuple[str, ...]:
        """Every key that tells experiments apart, in order: names show them."""
        return tuple(dict.fromkeys(key for grid in self.parameter_grids for key in grid.labels))

    def _maker(self) -> Callable[[Mapping[str, Any]], ExperimentConfig]:
        variations, namer, labels = Variations(self.base_config), self._namer(), self.labels

        def made(point: Mapping[str, Any]) -> ExperimentConfig:
            shown = {key: point[key] for key in labels if key in point}
            return variations.made(point, namer.name(shown))

        return made

    def _namer(self) -> ExperimentNamer:
        base, strategy = self.base_config.experiment_name, self.naming_strategy
        return ExperimentNamer(base, strategy, keys=self.labels, timestamp=self._timestamp)

    # ---- files

    def save_grid_config(self, path: str | Path) -> None:
        """Save base, naming and grids as JSON.

        Raises:
            ValidationError: a grid has a function.
            ConfigurationError: a value that JSON does not have.
        """
        data = {
            "base_config": self.base_config.to_dict(),
            "naming_strategy": self.naming_strategy.value,
            "grids": [plain(grid.to_dict()) for grid in self.parameter_grids],
        }
        write(Path(path), experiments.as_json(data))

    @classmethod
    def load_grid_config(cls, path: str | Path) -> ParameterGridSearch:
        """What `save_grid_config` has saved.

        Raises:
            ConfigurationError: the file cannot be read.
            ValidationError: every mistake in what it holds.
        """
        data = experiments.read(Path(path))
        for key in data:
            if key not in _FILE_KEYS:
                raise ValidationError(Fault(key=key, what="unknown key", hint=did_you_mean(key, _FILE_KEYS)))
        strategy, grids = data.get("naming_strategy", NamingStrategy.PARAMETER_BASED.value), data.get("grids")
        names = [each.value for each in NamingStrategy]
        if strategy not in names:
            hint = did_you_mean(str(strategy), names)
            raise ValidationError(
                Fault(key="naming_strategy", what="is none", value=str(strategy), hint=hint)
            )
        if not isinstance(grids, list) or not all(isinstance(grid, Mapping) for grid in grids):
            raise ValidationError(Fault(key="grids", what="must be a list of grids"))
        search = cls(data.get("base_config", {}))
        search.set_naming_strategy(NamingStrategy(strategy))
        for grid in grids:
            search.add_grid(ParameterGrid.from_dict(grid))
        return search

    def save_summary(self, path: str | Path) -> None:
        """Save what is swept, for people: the first 100 experiments by name, and all values.

        Raises:
            ValidationError: as `generate_experiments`.
        """
        lines = [
            f"Grid search from {self.base_config.experiment_name}",
            f"{self.get_total_experiments()} experiments, named by {self.naming_strategy.value}",
        ]
        for grid in self.parameter_grids:
            about = f": {grid.description}" if grid.description else ""
            lines += ["", f"{grid.name}{about} ({grid.get_parameter_count()} experiments)"]
            lines += [f"  {key}: {_listed(values)}" for key, values in grid.parameters.items()]
            lines += [f"  {key}" for key in grid.keys if key not in grid.parameters]
        lines.append("")
        for number, config in enumerate(self.generate_experiments()):
            if number == _LISTED:
                lines.append(f"… and {self.get_total_experiments() - _LISTED} more")
                break
            lines.append(config.experiment_name)
        write(Path(path), "\n".join(lines) + "\n")


def write(path: Path, text: str, mode: int = 0o644, *, durable: bool = True) -> None:
    """Write a file of the user's, at once or not at all; where not `durable`, a power cut may take it back.

    Raises:
        ConfigurationError: it cannot be written.
    """
    effects = Effects()
    try:
        effects.mkdir(path.parent, mode=0o755)
        effects.write(path, text.encode(), mode=mode, durable=durable)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigurationError(Fault(what=what, file=str(path))) from None


def _timestamp() -> str:
    return time.strftime("%Y%m%d_%H%M%S")


def _at(data: Any, place: Sequence[str]) -> Any:
    for part in place:
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _shown(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r:.60}" for key, value in point.items())[:300]


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(f"{value!r:.60}" for value in values[:20])
    return shown + (f", … ({len(values)})" if len(values) > 20 else "")
