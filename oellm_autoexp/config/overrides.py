"""`-o KEY=VALUE`: options of groups go to Hydra, everything else is set in the composed config by us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.config import files, yaml_loader
from oellm_autoexp.config.groups import options
from oellm_autoexp.config.schema import FINER_MODES
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Override:
    """One override. `text` is what a person wrote; `option` is set where it chooses an option of a group."""

    key: str
    value: Any
    text: str
    option: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"-o {self.text}"


def parse(texts: Sequence[str], directories: Sequence[Path]) -> list[Override]:
    """The overrides, with group choices told apart by the groups that exist in `directories`.

    Raises:
        ConfigError: every one that cannot be read, or that chooses an option that does not exist.
    """
    made: list[Override] = []
    faults: list[Fault] = []
    for text in texts:
        try:
            made.append(_parsed(text, directories))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return made


def _parsed(text: str, directories: Sequence[Path]) -> Override:
    place = f"-o {text}"
    key, equals, written = text.partition("=")
    key = key.strip()
    if key.startswith("~"):
        hint = f"set it to null: -o {key[1:]}=null"
        raise ConfigError(Fault(what="a key cannot be deleted", file=place, hint=hint))
    key = key.lstrip("+")
    if not equals or not key or " " in key:
        what = "an override is KEY=VALUE"
        raise ConfigError(Fault(what=what, file=place, hint="for example -o slurm.sbatch.nodes=2"))
    known = options(directories, key) if "." not in key and not key.startswith(("/", "-")) else []
    if known and not written.startswith(("{", "[")):
        name = written.strip().strip("'\"")
        if name not in known and not _nested(directories, key, name):
            what = f"the group `{key}` has no option `{name}`"
            hint = did_you_mean(name, known)
            raise ConfigError(Fault(what=what, key=key, value=name, file=place, hint=hint))
        return Override(key=key, value=None, text=text, option=name)
    return Override(key=key, value=_value(key, written, place), text=text)


def _nested(directories: Sequence[Path], group: str, name: str) -> bool:
    return any(files.config_file(directory / group, name) for directory in directories)


def _value(key: str, written: str, place: str) -> Any:
    """A value as YAML, in which only brackets, braces and quotes make it more than one scalar."""
    if files.is_text_option(key.split(".")):
        return written.strip("'\"")
    if written.startswith("{"):
        return _mapping(written, place)
    if written.startswith(("[", '"', "'")):
        return yaml_loader.parse(written, place)
    try:
        return yaml_loader.scalar(written)
    except ConfigError as error:
        fault = error.faults[0]
        raise ConfigError(Fault(what=fault.what, key=key, file=place, hint=fault.hint)) from None


def _mapping(written: str, place: str) -> Any:
    """A mapping; Hydra's notation `{a:1}` needs no blank behind the colon."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={written}").value()
    except HydraException:
        return yaml_loader.parse(written, place)


# ---------------------------------------------------------------- setting


def apply(raw: dict[str, Any], override: Override, cwd: Path) -> str:
    """Set a value in the composed config; the key that was set.

    At each level the longest existing key wins, so `crash.nan` stays one key. A key that the sweep has as an
    axis fixes that axis.
    """
    key, value = override.key, override.value
    axes = (raw.get("sweep") or {}).get("axes") if isinstance(raw.get("sweep"), Mapping) else None
    if isinstance(axes, Mapping) and key in axes:
        key = f"sweep.axes.{key}"
    if files.is_path(key.split(".")) and isinstance(value, str) and value:
        value = files.path_of(key.split("."), value, cwd)
    if key == "plugins" and isinstance(value, list):
        value = [files.plugin_path(item, cwd) for item in value]
    _set(raw, key, value)
    return key


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    node: Any = raw
    rest = key
    while True:
        if isinstance(node, list):
            name = rest.partition(".")[0]
            if not name.isdigit() or int(name) >= len(node):
                what = f"there is no item `{name}` in a list of {len(node)}"
                raise ConfigError(Fault(key=key, what=what, hint="items are counted from 0"))
            name_or_index: Any = int(name)
        else:
            finer = FINER_MODES if node is raw.get("restart_policies") else ()
            known = [each for each in (*node, *finer) if rest == each or rest.startswith(f"{each}.")]
            name = max(known, key=len, default=rest.partition(".")[0])
            name_or_index = name
        rest = rest[len(name) + 1 :]
        if not rest:
            node[name_or_index] = value
            return
        inner = node[name_or_index] if isinstance(node, list) else node.get(name)
        # Copied, since a file's anchors may have put one object in two places.
        node[name_or_index] = node = _copy(inner)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else {}
