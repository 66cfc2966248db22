"""Which variables of a sweep nothing reads: forgotten, they make jobs that compute the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from oellm_autoexp.config.schema import JobConfig, RootConfig
from oellm_autoexp.config.sockets import BackendInterface
from oellm_autoexp.config.tree import Tree
from oellm_autoexp.config.typed import plugin_class
from oellm_autoexp.errors import Fault, did_you_mean, nearest
from oellm_autoexp.sweep.grid import Grid
from oellm_autoexp.sweep.names import Namer

_SECTIONS = tuple(item.name for item in fields(RootConfig))
#: Sections whose texts may name a variable as `{name}`.
_FIELDS = ("monitoring", "actions", "conditions", "job")


def unread(tree: Tree, grid: Grid, namer: Namer, read: Collection[str], root: RootConfig) -> list[Fault]:
    """The variables that neither a value, a filter, a name template nor the backend looks at.

    The default name shows every key and so says nothing about whether one is used.
    """
    if root.backend is None or _reads_all(root):
        return []
    known = {*read, *grid.reads, *(item.name for item in fields(JobConfig))}
    if grid.name_template is not None:
        known |= namer.reads
    texts = [text for section in _FIELDS for text in texts_of(tree.folded.get(section))]
    faults = []
    for key in sorted(tree.free - known):
        if any(f"{{{key}}}" in text for text in texts):
            continue
        hint = did_you_mean(key, [*_in_section(key), *_leaves(tree.folded)])
        hint = hint if hint.startswith("did you mean") else ""
        use = f"use it as ${{{key}}} in the command, name it in sweep.name_template, or remove it"
        faults.append(
            Fault(key=key, what="nothing reads this variable", hint=f"{hint} Or {use}" if hint else use)
        )
    return faults


def _reads_all(root: RootConfig) -> bool:
    """Whether the backend is given every value, or a template of the user's is."""
    backend = plugin_class(BackendInterface, getattr(root.backend, "class_name", ""))
    return getattr(backend, "reads_parameters", True) or root.slurm.template_path is not None


def texts(sweep: Any) -> Iterator[str]:
    """The texts among the values of a sweep, which may refer to other values."""
    if isinstance(sweep, Mapping):
        for key, value in sweep.items():
            if key not in ("filter", "name_template"):
                yield from texts(value)
    else:
        yield from texts_of(sweep)


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str):
        yield value


def _in_section(key: str) -> list[str]:
    """A dotted key with the section that its beginning is nearest to; a sweep may set what none writes."""
    section, dot, rest = key.partition(".")
    meant = nearest(section, _SECTIONS) if dot else ""
    return [f"{meant}.{rest}"] if meant else []


def _leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [
            leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else key)
        ]
    return [path]
