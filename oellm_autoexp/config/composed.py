"""A composed config, and from it the typed config of each point.

References are resolved by `config.tree`: constant values once, the others for each point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from oellm_autoexp.config import checks, files, reads, shapes
from oellm_autoexp.config.nodes import DYNAMIC, Container, Leaf, Node
from oellm_autoexp.config.origins import Origins
from oellm_autoexp.config.schema import PATHS, ProjectConfig, RootConfig
from oellm_autoexp.config.scope import Scope
from oellm_autoexp.config.siblings import Siblings
from oellm_autoexp.config.tree import Tree
from oellm_autoexp.config.typed import HINTS, faults_of, parse_section
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.grid import Grid, Point
from oellm_autoexp.sweep.names import Namer
from oellm_autoexp.sweep.stages import REPEAT, STAGE, Stages, refers

SECTIONS = tuple(item.name for item in fields(RootConfig))
_MISSING = "???"
#: What `${job.…}` means where a config is checked before its jobs have names.
_ANY_JOB = {key: f"/job/{key}" for key in ("name", "output_dir", "checkpoint_dir", "log_path", "attempt")}


@dataclass(frozen=True, kw_only=True)
class PointConfig:
    """The config of one point: typed, and as the plain mapping it was parsed from."""

    root: RootConfig
    raw: Mapping[str, Any]


class Composed:
    """A composed config in which every mistake that can be seen without naming jobs has been refused.

    `grid` and `namer` are its sweep; `tree` its values; `project` its typed project, the same at every point;
    `file` the primary file, `files` all that were read, `directory` where relative things of it start.

    Raises:
        ConfigError: every mistake, with its place.
    """

    def __init__(
        self,
        raw: dict[str, Any],
        *,
        file: Path,
        directory: Path,
        overrides: Sequence[str] = (),
        origins: Origins | None = None,
        files: Sequence[Path] = (),
        timestamp: str | None = None,
    ) -> None:
        self.file = file
        self.files = tuple(files) or (file,)
        self.directory = directory
        self.overrides = tuple(overrides)
        self._origins = origins or Origins(merged=lambda: [(file, ())])
        #: The section objects that were parsed last, with what they became.
        self._typed: dict[str, tuple[Any, Any]] = {}
        self._checked: dict[str, tuple[Any, ...]] = {}
        try:
            self._compose(raw, timestamp)
            self._check_first_point()
        except ConfigError as error:
            raise self.placed(error) from error.__cause__

    def _compose(self, raw: dict[str, Any], timestamp: str | None) -> None:
        self._sweep = sweep = raw.pop("sweep", None)
        found: list[Fault] = []
        tree = None
        try:
            self.grid = Grid(sweep)
            self._origins.swept = self.grid.keys
            shapes.make_room(raw, self.grid.keys)
            tree = _tree(raw, self.grid.keys, self.directory, timestamp)
        except ConfigError as error:
            found += error.faults
        found += self._static_faults(tree.folded if tree is not None else raw)
        if tree is not None:
            found += _varying(tree, "project")
        if found or tree is None:
            raise ConfigError(*dict.fromkeys(found))
        self.tree = tree
        self.project: ProjectConfig = parse_section("project", tree.folded["project"])
        texts = list(reads.texts(sweep))
        self._reads = tree.reads.union(*(tree.reads_of(text) for text in texts if "${" in text))
        self.staged = self.grid.staged or any(name.startswith("sibling.") for name in self._reads)
        bare = (STAGE,) if self.staged else ()
        self.namer = Namer(self.grid.name_template, self.project.name, self.grid.keys, self.grid.labels, bare)
        escaped = next((text for text in texts if r"\${sibling." in text), None)
        if escaped is not None:
            what = "the reference to a sibling is escaped, so it would stay text"
            hint = "write it without the backslash: a sibling is looked up for each point"
            raise ConfigError(Fault(key="sweep", what=what, value=escaped, hint=hint))

    # ---- results

    def points(self) -> Iterator[Point]:
        """The points of the sweep, one at a time."""
        return self.grid.points()

    @cached_property
    def listed(self) -> list[Point]:
        """All points of the sweep."""
        return list(self.points())

    @cached_property
    def stages(self) -> Stages | None:
        """The stages of the sweep; None where no point refers to another, and none follows another."""
        if not self.staged:
            return None
        declared = [point.values for point in self.listed]
        return Stages(declared, chained=self.grid.chained, by=self.grid.siblings_by)

    def name(self, point: Point, values: Mapping[str, Any], index: int) -> str:
        """The name of a point's job; `values` are its resolved ones.

        What refers to a sibling is shown only where the template names it: it follows from the rest.

        Raises:
            ConfigError: the point lacks a key of the template, or a format does not fit its value.
        """
        named, declared = self.namer.named, point.values
        shown = {k: v for k, v in values.items() if k in named or not refers(declared.get(k))}
        return self.namer.name(shown, index)

    def any_siblings(self, point: Point) -> Mapping[str, Any]:
        """What stands for the siblings of a point where jobs have no names; as `Tree.at` takes it."""
        return (
            Siblings(self, lambda stage, _index: _any_sibling(stage)).of(point.index) if self.staged else {}
        )

    def resolved(
        self, values: Mapping[str, Any], sibling: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """The point's own values with their references resolved; `sibling` are those of the point, by stage.

        Raises:
            ConfigError: a reference that leads nowhere, with the place where it was written.
        """
        try:
            return self.tree.at(values, {}, sibling=sibling).point_values()
        except ConfigError as error:
            raise self.placed(error) from error.__cause__

    def point(
        self,
        values: Mapping[str, Any],
        job: Mapping[str, Any],
        sibling: Mapping[str, Any] | None = None,
    ) -> PointConfig:
        """The config of one point by its `resolved` values; `job` is what `${job.…}` means.

        Read only: points share what is constant.

        Raises:
            ConfigError: what is wrong, with the place where it was written.
        """
        return self.typed(self.scope(values, job, sibling))

    def scope(
        self,
        values: Mapping[str, Any],
        job: Mapping[str, Any],
        sibling: Mapping[str, Any] | None = None,
    ) -> Scope:
        """One point by its `resolved` values: `.config()` is its plain config, `.with_job` names another job.

        Raises:
            ConfigError: a value that cannot be resolved, with the place where it was written.
        """
        scope = self.tree.at(values, job, sibling=sibling, resolved=True)
        try:
            scope.config()
        except ConfigError as error:
            raise self.placed(error) from error.__cause__
        return scope

    def typed(self, scope: Scope) -> PointConfig:
        """The typed config of a point; as `point`."""
        try:
            raw = scope.config()
            return PointConfig(root=self._parsed(raw), raw=raw)
        except ConfigError as error:
            raise self.placed(error) from error.__cause__

    @property
    def shown(self) -> Mapping[str, Any]:
        """The resolved config for people: secrets by name, and what differs between points as its text."""
        sweep = {} if self._sweep is None else {"sweep": _safe(self._sweep, "")}
        return {**_shown(self.tree.root), **sweep}

    def placed(self, error: ConfigError) -> ConfigError:
        """The error with file and line, or the override, that each value came from."""
        return self._origins.placed(error)

    # ---- typed

    def _parsed(self, raw: Mapping[str, Any]) -> RootConfig:
        """Constant sections are the same objects at every point, so they are parsed once."""
        typed: dict[str, Any] = {}
        faults: list[Fault] = []
        for name in SECTIONS:
            value = raw.get(name)
            if value is None:
                continue
            known = self._typed.get(name)
            if known is not None and known[0] is value:
                typed[name] = known[1]
                continue
            try:
                typed[name] = _section(name, value)
            except ConfigError as error:
                faults += error.faults
            else:
                self._typed[name] = (value, typed[name])
        faults += self._fitting(raw)
        if faults:
            raise ConfigError(*faults)
        return RootConfig(**typed)

    def _fitting(self, raw: Mapping[str, Any]) -> list[Fault]:
        """What does not fit together, for sections that have not been looked at."""
        faults: list[Fault] = []
        if self._is_new("rules", tuple(raw.get(name) for name in checks.RULES)):
            faults += checks.rules(raw, self.grid.keys)
        if self._is_new("slurm", (raw.get("slurm"),)):
            faults += checks.slurm(raw.get("slurm"))
        return faults

    def _is_new(self, what: str, sections: tuple[Any, ...]) -> bool:
        known = self._checked.get(what)
        if known is not None and all(one is other for one, other in zip(known, sections, strict=True)):
            return False
        self._checked[what] = sections
        return True

    # ---- mistakes

    def _static_faults(self, static: Mapping[str, Any]) -> Iterator[Fault]:
        """What is wrong whatever the point; values that differ between points are passed over."""
        for key in static:
            if key not in SECTIONS:
                hint = did_you_mean(key, (*SECTIONS, "sweep", "defaults"))
                yield Fault(key=key, what="unknown section", hint=f"{hint}; variables go under `metadata`")
        if not isinstance(static.get("project"), Mapping):
            hint = "write `project: {name: tiny, base_output_dir: ./outputs}`"
            yield Fault(key="project", what="the section is missing", hint=hint)
        unset = list(_unset(static))
        for key in unset:
            yield Fault(key=key, what="must be set", value=_MISSING, hint=f"write it there, or -o {key}=…")
        for name in SECTIONS:
            value = static.get(name)
            if value is None or (name == "project" and not isinstance(value, Mapping)):
                continue
            yield from (fault for fault in faults_of(HINTS[name], value, name) if fault.key not in unset)
        swept = self.grid.keys if hasattr(self, "grid") else ()
        yield from checks.rules(static, swept)
        yield from checks.slurm(static.get("slurm"))
        yield from checks.group(static.get("project"))

    def _check_first_point(self) -> None:
        first = next(self.points(), None)
        if first is None:
            what, hint = "the filters leave no point", "loosen a filter, or sweep more values"
            raise ConfigError(Fault(key="sweep", what=what, hint=hint))
        sibling = self.any_siblings(first)
        root = self.point(self.resolved(first.values, sibling), _ANY_JOB, sibling).root
        known = {*self._reads, STAGE, REPEAT} if self.staged else self._reads
        unread = reads.unread(self.tree, self.grid, self.namer, known, root)
        if unread:
            raise ConfigError(*unread)


def _any_sibling(stage: str) -> dict[str, str]:
    return {**{key: f"/{stage}/{key}" for key in _ANY_JOB}, "id": "0" * 12}


def _tree(raw: dict[str, Any], swept: Sequence[str], directory: Path, timestamp: str | None) -> Tree:
    """The values; paths that are relative once resolved start at `directory`."""
    tree = Tree(raw, swept, timestamp=timestamp)
    relative = False
    for section, key in PATHS:
        given, value = raw.get(section), tree.folded.get(section)
        path = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(given, dict) and isinstance(path, str) and path and not path.startswith("/"):
            given[key] = files.absolute(path, directory)
            relative = True
    return Tree(raw, swept, timestamp=timestamp) if relative else tree


def _varying(tree: Tree, section: str) -> list[Fault]:
    """What differs between points in a section that may not."""
    hint = "sweep something else; the places of jobs differ by their names"
    return [
        Fault(key=path, what="must be the same for every point", hint=hint)
        for path in tree.dynamic_paths
        if path == section or path.startswith(f"{section}.")
    ]


def _unset(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _unset(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unset(item, f"{key}.{number}")
    elif isinstance(value, str) and value == _MISSING:
        yield key


def _section(name: str, value: Any) -> Any:
    """A typed section; an entry without a class name is refused, which compoconf does not."""
    faults = list(faults_of(HINTS[name], value, name)) if shapes.lacks_class(name, value) else []
    if faults:
        raise ConfigError(*faults)
    return parse_section(name, value)


def parse_root(raw: Mapping[str, Any]) -> RootConfig:
    """The typed sections of a plain mapping.

    Raises:
        ConfigError: every mistake in them.
    """
    typed: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in raw.items():
        if name not in SECTIONS:
            faults.append(Fault(key=name, what="unknown section", hint=did_you_mean(name, SECTIONS)))
        elif value is not None:
            try:
                typed[name] = _section(name, value)
            except ConfigError as error:
                faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return RootConfig(**typed)


def _shown(node: Node, name: str = "") -> Any:
    if isinstance(node, Container):
        if node.kind is list:
            return [_shown(child, name) for child in node.children.values()]
        return {key: _shown(child, key) for key, child in node.children.items()}
    value = node.text if isinstance(node, Leaf) and node.static is DYNAMIC else node.static
    return _safe(value, name)


def _safe(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        # The last part: a sweep has dotted keys.
        return {key: _safe(item, str(key).rpartition(".")[2]) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(item, name) for item in value]
    if isinstance(value, str):
        return (
            "(secret)"
            if value and symbols.is_secret(name) and symbols.OPEN not in value
            else symbols.shown(value)
        )
    return value if value is None or isinstance(value, (bool, int, float)) else "(differs between points)"
