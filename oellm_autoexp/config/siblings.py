"""What `${sibling.STAGE.…}` means at each point of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from oellm_autoexp.config.expressions import Missing, Problem
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.sweep.stages import MissingSibling, Trail

if TYPE_CHECKING:
    from oellm_autoexp.config.composed import Composed

#: What a sibling has beside its values and its config.
FACTS = ("name", "id", "output_dir", "checkpoint_dir", "log_path", "params")
#: What is known of the job of a point, by the stage that a reference names and the point's index.
JobFacts = Callable[[str, int], Mapping[str, Any]]


class Siblings:
    """The siblings of all points. Which point refers to which is recorded on the way.

    `facts`: the job of a sibling, asked for at each first reference to it.
    """

    def __init__(self, composed: Composed, facts: JobFacts) -> None:
        assert composed.stages is not None
        self._composed = composed
        self._stages = composed.stages
        self._points = composed.listed
        self._facts = facts
        self._of: dict[int, _Stages] = {}
        self._values: dict[int, Mapping[str, Any]] = {}
        self._configs: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._values_trail, self._config_trail = Trail(self._stages), Trail(self._stages)

    def of(self, index: int) -> Mapping[str, Any]:
        """The siblings of a point by stage, to resolve its values with."""
        if index not in self._of:
            self._of[index] = _Stages(self, index)
        return self._of[index]

    def referred(self, index: int) -> Mapping[str, int]:
        """The points that a point has referred to so far, by stage."""
        return self._of[index].found if index in self._of else {}

    def values(self, index: int) -> Mapping[str, Any]:
        """The resolved values of a point.

        Raises:
            ConfigError: one of them leads nowhere, or in a circle.
        """
        if index not in self._values:
            with self._values_trail.at(index):
                self._values[index] = self._composed.resolved(self._points[index].values, self.of(index))
        return self._values[index]

    def config(self, stage: str, index: int) -> Mapping[str, Any]:
        """The resolved config of a point, as a reference that names `stage` sees it.

        Raises:
            ConfigError: as for `values`.
        """
        if (stage, index) not in self._configs:
            with self._config_trail.at(index):
                scope = self._composed.scope(self.values(index), self._facts(stage, index), self.of(index))
                self._configs[stage, index] = scope.config()
        return self._configs[stage, index]

    def find(self, index: int, stage: str) -> tuple[int, Mapping[str, Any]]:
        """The sibling of a point, and its facts.

        Raises:
            Problem: it has none, or several.
            ConfigError: what is wrong with the sibling itself.
        """
        try:
            found = self._stages.sibling(index, stage)
        except ConfigError as error:
            fault = error.faults[0]
            what = f"{fault.what} (point {index}{': ' + fault.value if fault.value else ''})"
            kind = Missing if isinstance(error, MissingSibling) else Problem
            raise kind(what, fault.hint) from None
        return found, self._facts(stage, found)

    def section(self, key: str) -> bool:
        """Whether the config has a section of this name."""
        return key in self._composed.tree.folded


class _Stages(Mapping[str, Any]):
    """The siblings of one point, by stage."""

    def __init__(self, siblings: Siblings, index: int) -> None:
        self._siblings = siblings
        self._index = index
        self._made: dict[str, _Sibling] = {}
        self.found: dict[str, int] = {}

    def __getitem__(self, stage: str) -> _Sibling:
        if stage not in self._made:
            index, facts = self._siblings.find(self._index, stage)
            self.found[stage] = index
            self._made[stage] = _Sibling(self._siblings, stage, index, facts)
        return self._made[stage]

    def __contains__(self, stage: object) -> bool:
        # Also one that does not exist: what is wrong is said when it is looked up.
        return isinstance(stage, str) and "." not in stage

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class _Sibling(Mapping[str, Any]):
    """One sibling: facts of its job first, then its values, then its config."""

    def __init__(self, siblings: Siblings, stage: str, index: int, facts: Mapping[str, Any]) -> None:
        self._siblings = siblings
        self._stage = stage
        self._index = index
        self._facts = facts

    def __getitem__(self, key: str) -> Any:
        if key in self._facts:
            return self._facts[key]
        values = self._siblings.values(self._index)
        if key == "params":
            return values
        return values[key] if key in values else self._siblings.config(self._stage, self._index)[key]

    def __contains__(self, key: object) -> bool:
        if key in self._facts or key == "params":
            return True
        return key in self._siblings.values(self._index) or self._siblings.section(str(key))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*FACTS, *self._siblings.values(self._index)]))

    def __len__(self) -> int:
        return sum(1 for _ in self)
