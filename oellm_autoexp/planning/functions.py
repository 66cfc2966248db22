"""Functions from files of a person: `logic.py:get_slurm_args`. What goes wrong in one names its line."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault, did_you_mean

#: A function that looks at one job has long done so.
LIMIT_S = 30


@dataclass(frozen=True)
class UserFunction:
    """A function in a file. `key` is where it was named; `limit_s` how long one call may take, in seconds.

    The limit holds in the main thread, where signals arrive.
    """

    file: Path
    name: str
    key: str
    limit_s: float = LIMIT_S

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns for copies of the arguments.

        Raises:
            ConfigError: the file cannot be loaded, or the function raises or does not return.
        """
        function = self._function
        with self._guarded():
            return function(*copy.deepcopy(arguments))

    def fault(self, what: str, hint: str = "") -> ConfigError:
        """An error about what the function has returned."""
        code = getattr(self._function, "__code__", None)
        line = code.co_firstlineno if code is not None else 0
        return ConfigError(
            Fault(key=self.key, file=str(self.file), line=line, what=f"{self.name} {what}", hint=hint)
        )

    @cached_property
    def _function(self) -> Any:
        with self._guarded():
            module = _module(self.file)
        function = getattr(module, self.name, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
            what = f"has no function `{self.name}`"
            raise ConfigError(
                Fault(key=self.key, file=str(self.file), what=what, hint=did_you_mean(self.name, names))
            )
        return function

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            # What it prints is for a person; the output of this program may be JSON.
            with contextlib.redirect_stdout(sys.stderr), _limited(self.limit_s):
                yield
        except OSError as error:
            if error.filename == str(self.file):
                what = f"cannot be read: {error.strerror}"
                raise ConfigError(Fault(key=self.key, file=str(self.file), what=what)) from None
            raise self._told(error) from error
        except (Exception, SystemExit, _TooLong) as error:
            raise self._told(error) from error

    def _told(self, error: BaseException) -> ConfigError:
        file, line = str(self.file), 0
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
            file, line = error.filename, error.lineno or 0
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == file:
                line = frame.lineno or 0
        if isinstance(error, _TooLong):
            what = f"{self.name} did not return within {self.limit_s:g} s"
        else:
            what = f"{self.name} raised {type(error).__name__}: {error}"[:500]
        return ConfigError(Fault(key=self.key, file=file, line=line, what=what))


class _TooLong(BaseException):
    """Not an `Exception`, which a function might catch."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` in what takes longer; only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_modules: dict[Path, ModuleType] = {}


def _module(file: Path) -> ModuleType:
    """A file as a module, run once; modules beside it can be imported while it runs."""
    known = _modules.get(file)
    if known is not None:
        return known
    name = f"_autoexp_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = spec_from_loader(name, _Source(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses and pickles look their module up by its name.
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    _modules[file] = module
    return module


class _Source(SourceFileLoader):
    """Leaves no `__pycache__` in a directory of a person's."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None: ...


def function_of(given: Any, default: str, base: Path, key: str) -> UserFunction | None:
    """The function that a config names: `file.py:function`, `file.py`, or a mapping of `file` and `function`.

    `default` is the function's name where none is given, `base` where relative files start.

    Raises:
        ConfigError: it names none.
    """
    if given is None:
        return None
    hint = f"write `{{file: logic.py, function: {default}}}` or `logic.py:{default}`"
    if isinstance(given, Mapping):
        for name in given:
            if name not in ("file", "function"):
                near = did_you_mean(str(name), ("file", "function"))
                raise ConfigError(Fault(key=f"{key}.{name}", what="unknown key", hint=near))
        file, function = given.get("file"), given.get("function", default)
    else:
        file, colon, function = str(given).rpartition(":")
        if not colon:
            file, function = function, default
    if not isinstance(file, str) or not file or not isinstance(function, str) or not function.isidentifier():
        raise ConfigError(Fault(key=key, what="names no function", value=str(given)[:200], hint=hint))
    path = (base / Path(file).expanduser()).resolve()
    if not path.is_file():
        near = did_you_mean(path.name, sorted(each.name for each in path.parent.glob("*.py")))
        raise ConfigError(Fault(key=key, what=f"there is no file {path}", hint=near))
    return UserFunction(path, function, key)
