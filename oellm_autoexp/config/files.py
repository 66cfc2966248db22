"""One config file, read into the shape in which files can be merged.

Lists of named entries become mappings (Hydra merges mappings, and replaces lists), relative paths become
absolute, and times and accounts without quotes are refused, all while the file is still known.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.config.origins import found
from oellm_autoexp.config.schema import ENTRY_PATHS, FILES, PATHS, TEXT_OPTIONS, option
from oellm_autoexp.config.typed import shown
from oellm_autoexp.config.yaml_loader import Bare
from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.sweep.scalars import kind_of

#: Sections whose list form names its entries, and by which key.
_NAMED: Mapping[tuple[str, ...], str] = {
    ("restart_policies",): "mode",
    ("restart", "policies"): "mode",
    ("monitoring", "log_signals"): "name",
    ("actions",): "name",
    ("conditions",): "name",
}
#: What Hydra reads for itself.
HYDRA_KEYS = ("defaults", "hydra")
SUFFIXES = (".yaml", ".yml")


def config_file(directory: Path, name: str) -> Path | None:
    """The file of a config, or of an option of a group, in one directory."""
    for suffix in SUFFIXES:
        file = directory / f"{name}{suffix}"
        if file.is_file():
            return file
    return None


def read(file: Path, package: Sequence[str], base: Path) -> dict[str, Any]:
    """The content of a config file.

    `package`: where its keys go in the whole config; `base`: where relative paths start. What is read (a
    template, a plug-in) may also lie beside the file.

    Raises:
        ConfigError: every mistake, each with file and line.
    """
    data = yaml_loader.load(file)
    kept = {key: data.pop(key) for key in HYDRA_KEYS if key in data and not package}
    faults: list[Fault] = []
    whole = _wrapped(data, package)
    for path, name in _NAMED.items():
        _name_entries(whole, path, name, faults)
    _unwrap(whole)
    _check_bare(whole, (), faults)
    _make_absolute(whole, base, file.parent)
    if faults:
        raise ConfigError(*(placed(fault, file, package) for fault in faults))
    inner: Any = _plain(whole)
    for part in package:
        inner = inner[part]
    return {**kept, **inner}


def placed(fault: Fault, file: Path, package: Sequence[str] = ()) -> Fault:
    """The fault with the line of its key in a file that stands at `package`."""
    prefix = ".".join(package)
    key = fault.key.removeprefix(f"{prefix}.") if prefix else fault.key
    line = found(yaml_loader.read(file), key)[1]
    return Fault(
        what=fault.what, key=fault.key, value=fault.value, hint=fault.hint, file=str(file), line=line
    )


def _wrapped(data: dict[str, Any], package: Sequence[str]) -> dict[str, Any]:
    for part in reversed(package):
        data = {part: data}
    return data


def _at(whole: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = whole
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


# ---------------------------------------------------------------- shapes


def _name_entries(whole: dict[str, Any], path: tuple[str, ...], name: str, faults: list[Fault]) -> None:
    parent, entries = _at(whole, path[:-1]), _at(whole, path)
    if not isinstance(entries, list):
        return
    named: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        key = ".".join((*path, str(number)))
        if not isinstance(entry, Mapping):
            what = f"an entry of the list must be a mapping, not a {kind_of(entry)}"
            faults.append(Fault(key=key, what=what, hint=f"write `- {name}: …`"))
            continue
        label = entry.get(name)
        if not isinstance(label, str) or not label:
            what = f"an entry of the list needs a `{name}`"
            faults.append(Fault(key=key, what=what, hint=f"add `{name}: …`"))
        elif label in named:
            what = f"`{label}` stands twice"
            faults.append(Fault(key=key, what=what, hint="keep one of the two"))
        else:
            named[label] = {inner: value for inner, value in entry.items() if inner != name}
    parent[path[-1]] = named


def _unwrap(whole: dict[str, Any]) -> None:
    """`implementation: {…}` is an older way to write what is in it."""
    for section in ("backend", "monitoring"):
        _lift(whole, section)
    monitoring = whole.get("monitoring")
    if isinstance(monitoring, dict) and isinstance(monitoring.get("log_signals"), list):
        # It was a list within a wrapper.
        _name_entries(whole, ("monitoring", "log_signals"), "name", [])
    for entries in (whole.get("restart_policies"), _at(whole, ("restart", "policies"))):
        if isinstance(entries, dict):
            for mode in entries:
                _lift(entries, mode)


def _lift(parent: dict[str, Any], key: str) -> None:
    value = parent.get(key)
    if isinstance(value, Mapping) and isinstance(value.get("implementation"), Mapping):
        rest = {inner: item for inner, item in value.items() if inner != "implementation"}
        parent[key] = {**rest, **value["implementation"]}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Bare) else value


# ---------------------------------------------------------------- times, accounts, partitions


def _check_bare(value: Any, path: tuple[str, ...], faults: list[Fault]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_bare(item, (*path, key), faults)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_bare(item, (*path, str(number)), faults)
    elif is_text_option(path):
        fault = not_text(value, ".".join(path))
        if fault is not None:
            faults.append(fault)


def is_text_option(path: Sequence[str]) -> bool:
    """Whether a path leads to an option of sbatch that must be text, or to alternatives for it in a sweep."""
    parts = ".".join(path).split(".")
    while parts and parts[-1].isdigit():
        parts.pop()
    if len(parts) < 2 or option(parts[-1]) not in TEXT_OPTIONS:
        return False
    return parts[-2] in ("sbatch", "sbatch_overrides", "srun")


def not_text(value: Any, key: str) -> Fault | None:
    """What is wrong with a time, account or partition, if anything."""
    if value is None or (isinstance(value, str) and not isinstance(value, Bare)):
        return None
    what = "must be text" + (": YAML may read it as a number" if isinstance(value, Bare) else "")
    name, text = key.rpartition(".")[2], shown(value)
    quoted = f'"{text}"' if name.isdigit() else f'{name}: "{text}"'
    hint = "" if isinstance(value, (Mapping, list)) else f"write {quoted}"
    return Fault(key=key, what=what, value=text, hint=hint)


# ---------------------------------------------------------------- paths


def _make_absolute(whole: dict[str, Any], base: Path, beside: Path) -> None:
    """Relative paths become absolute. What begins with a reference is left: it is absolute once resolved."""
    for section, key in PATHS:
        value = _at(whole, (section, key))
        if isinstance(value, str) and value:
            is_beside = (section, key) in FILES and (beside / value).is_file()
            whole[section][key] = absolute(value, beside if is_beside else base)
    for path in ENTRY_PATHS:
        for parent in _parents(whole, path):
            value = parent.get(path[-1])
            if isinstance(value, str) and value:
                parent[path[-1]] = path_of(path, value, base)
    plugins = whole.get("plugins")
    if isinstance(plugins, list):
        whole["plugins"] = [_plugin_beside(item, base, beside) for item in plugins]


def _parents(node: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The mappings that may hold the last key of a path with `*` or `**` in it."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if path[0] == "**":
        for child in children:
            yield from _parents(child, path)
        path = path[1:]
    if not isinstance(node, dict):
        return
    if len(path) == 1:
        yield node
        return
    for child in children if path[0] == "*" else [node.get(path[0])]:
        yield from _parents(child, path[1:])


def is_path(parts: Sequence[str]) -> bool:
    """Whether a key of the whole config holds a path."""
    return tuple(parts) in PATHS or any(_matches(parts, path) for path in ENTRY_PATHS)


def _matches(parts: Sequence[str], path: Sequence[str]) -> bool:
    if "**" in path:
        return len(parts) > 1 and (parts[0], parts[-1]) == (path[0], path[-1])
    return len(parts) == len(path) and all(
        part == key or key == "*" for part, key in zip(parts, path, strict=True)
    )


def _plugin_beside(item: Any, base: Path, beside: Path) -> Any:
    is_beside = isinstance(item, str) and (beside / item).is_file()
    return plugin_path(item, beside if is_beside else base)


def path_of(parts: Sequence[str], value: str, base: Path) -> str:
    """The value of a key that `is_path`, as an absolute path."""
    if parts[-1] not in ("path", "pattern") or value.startswith(("/", "~", "${", "{")):
        return absolute(value, base)
    # It may hold `{field}`, or be a pattern: what is put before it means itself.
    head = str(base.resolve()).replace("{", "{{").replace("}", "}}")
    return f"{glob.escape(head) if parts[-1] == 'pattern' else head}/{value.removeprefix('./')}"


def absolute(value: str, base: Path) -> str:
    """A path of a config as an absolute one; what begins with a reference or a placeholder stays."""
    if value.startswith(("/", "${", "{")):
        return value
    path = Path(value).expanduser() if value.startswith("~") else base / value
    return str(path) if "${" in value else str(path.resolve())


def plugin_path(item: Any, base: Path) -> Any:
    """A plug-in given as a file by its absolute path; one given as a module as it is."""
    is_file = isinstance(item, str) and (item.endswith(".py") or "/" in item)
    return absolute(item, base) if is_file else item
