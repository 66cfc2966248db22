"""The jobs of a staged sweep as relatives: each is known by what it refers to, before its script is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oellm_autoexp.config.compose import Composed
from oellm_autoexp.config.expressions import Problem
from oellm_autoexp.config.scope import Scope
from oellm_autoexp.config.siblings import Siblings
from oellm_autoexp.core.model import CONDITION, SUCCESS
from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.planning.identity import SYMBOLIC_JOB
from oellm_autoexp.planning.places import ATTEMPT, JobPlaces
from oellm_autoexp.sweep.stages import Trail

_STAGE = re.compile(r"\$\{sibling\.([A-Za-z0-9_-]+)\.")
_CONDITIONS = ("start_condition", "cancel_condition", "finish_condition")
#: Stands for the number of an attempt in the path of a sibling's log: which one is meant nobody knows yet.
_ANY_ATTEMPT = "*"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A point that another one waits for: its index, its stage, and what lets the other one start."""

    stage: str
    index: int
    gate: str


@dataclass(frozen=True, kw_only=True)
class Kin:
    """A point's job: its id, and what it waits for."""

    id: str
    parents: tuple[Edge, ...] = ()


class Family:
    """All points of a staged sweep.

    `identify`: the id of a job by its values, its config (both with siblings and `job.*` left open) and the
    ids of its parents by stage. `placed`: the name and the places of a point.
    """

    def __init__(
        self,
        composed: Composed,
        identify: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]], str],
        placed: Callable[[int], tuple[str, JobPlaces]],
    ) -> None:
        assert composed.stages is not None
        self._composed = composed
        self._stages = composed.stages
        self._identify = identify
        self._placed = placed
        # A job is the same wherever its siblings write: in an id they stand by their names.
        self._symbolic = Siblings(composed, self._open_facts)
        self._real = Siblings(composed, self._job_facts)
        self._kin: dict[int, Kin] = {}
        self._trail = Trail(self._stages)

    def kin(self, index: int) -> Kin:
        """Who a point's job is.

        Raises:
            ConfigError: what is wrong with it, or with what it refers to.
        """
        # In their order: a long chain needs no deep stack.
        for each in [*reversed(list(self._unknown_before(index))), index]:
            if each not in self._kin:
                with self._trail.at(each):
                    self._kin[each] = self._found(each)
        return self._kin[index]

    def resolved(self, index: int) -> tuple[Mapping[str, Any], Scope]:
        """The values of a point, and its config with `job.*` left open.

        Raises:
            ConfigError: as for `kin`.
        """
        values = self._real.values(index)
        return values, self._composed.scope(values, SYMBOLIC_JOB, self._real.of(index))

    def _unknown_before(self, index: int) -> Iterator[int]:
        before = self._stages.before(index)
        while before is not None and before not in self._kin:
            yield before
            before = self._stages.before(before)

    def _found(self, index: int) -> Kin:
        siblings = self._symbolic.of(index)
        values = self._symbolic.values(index)
        config = self._composed.scope(values, SYMBOLIC_JOB, siblings).config()
        gated = set(start_stages(config, values))
        named = {stage for key in _CONDITIONS for stage in _stages_in(_condition(config, key))}
        for stage in sorted(gated | named):
            self._looked_up(siblings, stage)
        referred = dict(self._symbolic.referred(index))
        before = self._stages.before(index)
        if before is not None:
            referred.setdefault(self._stages.of(index), before)
        parents = tuple(
            Edge(stage=stage, index=parent, gate=CONDITION if stage in gated else SUCCESS)
            for stage, parent in sorted(referred.items())
        )
        ids = {edge.stage: self.kin(edge.index).id for edge in parents}
        return Kin(id=self._identify(values, config, ids), parents=parents)

    def _looked_up(self, siblings: Mapping[str, Any], stage: str) -> None:
        try:
            siblings[stage]
        except Problem as problem:
            raise ConfigError(Fault(key="job", what=str(problem), hint=problem.hint)) from None

    def _open_facts(self, stage: str, index: int) -> Mapping[str, Any]:
        return {key: f"${{sibling.{stage}.{key}}}" for key in SYMBOLIC_JOB} | {"id": self.kin(index).id}

    def _job_facts(self, _stage: str, index: int) -> Mapping[str, Any]:
        name, places = self._placed(index)
        return {
            "name": name,
            "id": self.kin(index).id,
            "output_dir": places.output_dir,
            "checkpoint_dir": places.checkpoint_dir,
            "log_path": places.log_path.replace(ATTEMPT, _ANY_ATTEMPT),
            "attempt": _ANY_ATTEMPT,
        }


def start_stages(config: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """The stages that the start condition of a job speaks of; `config` with siblings left open."""
    sections = (config.get("job") or {}, values, config.get("monitoring") or {})
    commands = (each.get("start_condition_cmd") for each in sections)
    # Where both are given the command is what counts.
    yield from _stages_in(
        next((each for each in commands if each), None) or _condition(config, "start_condition")
    )


def _condition(config: Mapping[str, Any], key: str) -> Any:
    """A condition of a job, in place or by its name."""
    found = (config.get("job") or {}).get(key)
    return (config.get("conditions") or {}).get(found) if isinstance(found, str) else found


def _stages_in(value: Any) -> Iterator[str]:
    """The stages that texts refer to, and those that conditions name."""
    if isinstance(value, Mapping):
        stage = value.get("sibling")
        if isinstance(stage, str) and "class_name" in value:
            yield stage
        for item in value.values():
            yield from _stages_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _stages_in(item)
    elif isinstance(value, str):
        yield from _STAGE.findall(value)
