"""Where a key was written: the file and line, the override, or the sweep that it came from.

Looked up only for a mistake: the texts are read and parsed again for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import yaml

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.errors import ConfigError, Fault

#: A file and where its keys go in the whole config.
Source = tuple[Path, tuple[str, ...]]


@dataclass
class Origins:
    """What a composed config was made of.

    `merged`: the files in the order in which they were merged; `given`: overrides by the key they set, as
    a person wrote them; `swept`: the keys of the sweep.
    """

    merged: Callable[[], Sequence[Source]]
    given: Mapping[str, str] = field(default_factory=dict)
    swept: Iterable[str] = ()

    def placed(self, error: ConfigError) -> ConfigError:
        """The error with a place for each of its faults."""
        faults = dict.fromkeys(self.place(fault) for fault in error.faults)
        return ConfigError(*faults)

    def place(self, fault: Fault) -> Fault:
        """The fault with the place that its value came from."""
        if fault.file or not fault.key:
            return fault
        for key in sorted(self.given, key=len, reverse=True):
            if _within(fault.key, key):
                return replace(fault, file=self.given[key])
        for key in self.swept:
            if _within(fault.key, key):
                for path in (f"sweep.base_values.{key}", f"sweep.axes.{key}"):
                    for override, text in self.given.items():
                        if _within(path, override):
                            return replace(fault, key=f"{path} ({fault.key})", file=text)
                for text, file, package in reversed(self._texts):
                    path, line = swept_line(text, key, package)
                    if line:
                        return replace(fault, key=f"{path} ({fault.key})", file=str(file), line=line)
        place, line = self._nearest(fault.key)
        below = [key for key in self.swept if key.startswith(f"{fault.key}.")]
        if not line and below:
            # What is wrong exists only because the sweep sets something in it.
            return replace(self.place(replace(fault, key=below[0])), key=fault.key)
        return replace(fault, file=place, line=line)

    def _nearest(self, key: str) -> tuple[str, int]:
        """The last file that has most of the key."""
        best, place = 0, ("", 0)
        for text, file, package in self._texts:
            for spelling in _spellings(key):
                parts = spelling.split(".")
                if parts[: len(package)] != list(package):
                    continue
                depth, line = found(text, ".".join(parts[len(package) :]))
                depth += len(package)
                if depth >= best and (line or not place[0]):
                    best, place = depth, (str(file), line)
        if not place[0] and self._texts:
            place = (str(self._texts[-1][1]), 0)
        return place

    @cached_property
    def _texts(self) -> Sequence[tuple[str, Path, tuple[str, ...]]]:
        return [(yaml_loader.read(file), file, package) for file, package in self.merged()]


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _spellings(key: str) -> Iterator[str]:
    yield key
    if key.startswith("restart_policies"):
        yield key.replace("restart_policies", "restart.policies", 1)
    if key.startswith("scheduler."):
        yield key.replace("scheduler", "slurm.client", 1)


def found(text: str, key: str) -> tuple[int, int]:
    """How many parts of a dotted key stand in a YAML text, and the line (from 1) of the last of them.

    Keys with dots count as the parts they have; items of a list are found by number, or by their `name` or
    `mode`; an `implementation` stands for what is in it.
    """
    return _walked(yaml_loader.tree(text), key.split("."), 0, 0)


def _walked(node: yaml.Node | None, parts: Sequence[str], done: int, line: int) -> tuple[int, int]:
    best = (done, line)
    for child, at, used in _children(node, parts):
        deeper = _walked(child, parts[used:], done + used, at)
        if deeper[0] > best[0]:
            best = deeper
    return best


def _children(node: yaml.Node | None, parts: Sequence[str]) -> Iterator[tuple[yaml.Node, int, int]]:
    """The nodes that a path may go on in: each with its line and the number of parts it takes."""
    if not parts:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            used = name.count(".") + 1 if name else 0
            if name and parts[:used] == name.split("."):
                yield value, key.start_mark.line + 1, used
            elif name == "implementation":
                yield value, key.start_mark.line + 1, 0
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            line = item.start_mark.line + 1
            if parts[0] == str(number):
                yield item, line, 1
            for name in _named(item):
                used = name.count(".") + 1
                if parts[:used] == name.split("."):
                    yield item, line, used


def _named(item: yaml.Node) -> Iterator[str]:
    if isinstance(item, yaml.MappingNode):
        for key, value in item.value:
            if key.value in ("name", "mode") and isinstance(value, yaml.ScalarNode):
                yield value.value


def swept_line(text: str, key: str, package: Sequence[str] = ()) -> tuple[str, int]:
    """Where the sweep in this text declares a dotted key: its path and line; ("", 0) where it does not."""
    node = yaml_loader.tree(text)
    for part in ("sweep",)[len(package) :]:
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for name, value in entries if name.value == part), None)
    if node is not None and (not package or tuple(package) == ("sweep",)):
        for path, name, line in _declared(node, "sweep", ""):
            if name == key:
                return path, line
    return "", 0


_STRUCTURE = ("axes", "base_values", "params", "configs", "groups", "defaults")


def _declared(node: yaml.Node | None, path: str, name: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}"
            if not name and key.value in _STRUCTURE:
                yield from _declared(value, inner, "")
            else:
                joined = f"{name}.{key.value}" if name else str(key.value)
                yield inner, joined, key.start_mark.line + 1
                yield from _declared(value, inner, joined)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _declared(item, f"{path}.{number}", name)
