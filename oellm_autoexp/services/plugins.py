"""The only registrar: what must be imported so that every `class_name` of a config is known."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from compoconf.compoconf import Registry

from oellm_autoexp.config import sockets
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

ENTRY_POINTS = "oellm_autoexp.plugins"

_BUILT_IN = (
    "oellm_autoexp.backends.command",
    "oellm_autoexp.backends.fabric",
    "oellm_autoexp.config.monitors",
    "oellm_autoexp.reactions.actions",
    "oellm_autoexp.reactions.conditions",
    "oellm_autoexp.reactions.policies",
    "oellm_autoexp.schedulers.fake.client",
    "oellm_autoexp.schedulers.local",
    "oellm_autoexp.schedulers.slurm.client",
)

SOCKETS: tuple[type[sockets.Plugin], ...] = (
    sockets.BackendInterface,
    sockets.SchedulerInterface,
    sockets.MonitorInterface,
    sockets.RestartPolicyInterface,
    sockets.ConditionInterface,
    sockets.ActionInterface,
)


@cache
def load_builtin() -> None:
    """Register the plug-ins of this package."""
    for name in _BUILT_IN:
        importlib.import_module(name)


def load(plugins: Sequence[str] = (), base_dir: Path | None = None) -> None:
    """Register everything: built in, by entry points, and the `plugins` of a config.

    Each of `plugins` is a module (looked for in `base_dir`, the directory of the config, too) or the path of
    a Python file, relative to `base_dir`. What is loaded already stays.

    Raises:
        ConfigError: one that does not exist, fails, or takes a name that another plug-in has.
    """
    load_builtin()
    _load_entry_points()
    base = base_dir if base_dir is not None else Path.cwd()
    for number, plugin in enumerate(plugins):
        key = f"plugins.{number}"
        try:
            module = _file(plugin, base) if _is_path(plugin) else _module(plugin, base)
        except ConfigError:
            raise
        except FileNotFoundError as error:
            hint = f"relative paths start at {base}"
            what = f"no such file: {error.filename}"
            raise ConfigError(Fault(key=key, what=what, value=plugin, hint=hint)) from None
        except ModuleNotFoundError as error:
            raise ConfigError(_missing(key, plugin, error, base)) from error
        except Exception as error:
            raise ConfigError(_failed(key, plugin, error)) from error
        _check_names(module, key)


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        owner = point.dist.name if point.dist else "an installed distribution"
        key = f"entry point {ENTRY_POINTS}:{point.name} of {owner}"
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigError(
                _failed(key, point.value, error, hint=f"repair or uninstall {owner}")
            ) from error
        module = loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]
        _check_names(module, key)


def _is_path(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin


def _file(plugin: str, base: Path) -> ModuleType:
    path = (base / Path(plugin).expanduser()).resolve()
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    # The name is made from the path: the same file is one module, and two files of one name are two.
    name = f"oellm_autoexp_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(plugin: str, base: Path) -> ModuleType:
    # A console script does not look where the user stands or where the config lies, as `python -m` does.
    for folder in (str(base), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()
    return importlib.import_module(plugin)


def _check_names(module: ModuleType, key: str) -> None:
    """Refuse a plug-in that a registered one of the same name hides (compoconf only logs it)."""
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__:
            continue
        for socket in SOCKETS:
            if not issubclass(cls, socket):
                continue
            known = {each.__name__: each for each in Registry.registered_classes(socket)}
            other = known.get(cls.__name__, cls)
            if other is not cls:
                what = f"`{cls.__name__}` is the name of a plug-in already ({other.__module__})"
                raise ConfigError(Fault(key=key, what=what, hint="give the class another name"))


def _missing(key: str, plugin: str, error: ModuleNotFoundError, base: Path) -> Fault:
    if error.name is not None and plugin.split(".")[0] == error.name.split(".")[0]:
        files = [path.stem for path in base.glob("*.py")]
        near = did_you_mean(plugin, files) if files else ""
        hint = near or f"install it, or put it into {base}; for a file write ./{plugin}.py"
        return Fault(key=key, what="there is no such module", value=plugin, hint=hint)
    return _failed(key, plugin, error, hint=f"install `{error.name}` in this environment")


def _failed(key: str, plugin: str, error: Exception, hint: str = "") -> Fault:
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = last.filename, last.lineno or 0
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
    what = f"the plug-in cannot be loaded: {type(error).__name__}: {error}"
    return Fault(what=what, key=key, value=plugin, file=file, line=line, hint=hint or "repair the plug-in")
