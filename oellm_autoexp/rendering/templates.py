"""The one Jinja2 engine, and the job script.

What a template names must exist (StrictUndefined), under its name in lower or upper case: `{{ job_name }}`
and `{{JOB_NAME}}`. Equal requests give equal bytes: what differs between attempts reaches a job by
environment variables.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from oellm_autoexp.core import symbols
from oellm_autoexp.core.latest import Latest
from oellm_autoexp.errors import AutoexpError, ConfigError, Fault, did_you_mean
from oellm_autoexp.rendering import shell
from oellm_autoexp.sweep.scalars import format_scalar

if TYPE_CHECKING:
    from oellm_autoexp.core.script import ScriptRequest

BUILT_IN = Path(__file__).with_name("job_script.sh.j2")

#: The first argument of a script that runs within the guard. An argument, unlike a variable, is not
#: inherited by what the job itself starts.
CLAIMED = "--claimed"

# Programs that start containers take options behind their subcommand, not behind the image.
_CONTAINER = re.compile(r"(?:^|(?<=[\s/]))(?:apptainer|singularity|podman|docker)\s+(?:exec|run)(?=\s|$)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SRUN = re.compile(r"(?:^|(?<=[\s/]))srun(?=\s|$)")


# ---------------------------------------------------------------- the engine


class Verbatim(str):
    """Text of the shell that a value holds: it stands in a script as it is."""

    __slots__ = ()


class _Engine(SandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
            finalize=_finalized,
        )
        self.filters["quote"] = lambda value: shell.quote(format_scalar(value))


def _finalized(value: Any) -> Any:
    """A reference to an environment variable that a template shows as it is: `${NAME}`."""
    return symbols.shown(value) if isinstance(value, str) and symbols.OPEN in value else value


@cache
def _engine() -> _Engine:
    return _Engine()


@cache
def _template(path: Path, _version: tuple[int, int]) -> jinja2.Template:
    try:
        return _engine().from_string(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(Fault(file=str(path), what="is not a text in UTF-8")) from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            Fault(file=str(path), line=error.lineno, what=f"broken template: {error.message}")
        ) from None


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    return _engine().from_string(source)


@cache
def _built_in() -> jinja2.Template:
    return _engine().from_string(BUILT_IN.read_text(encoding="utf-8"))


def render_file(path: Path, context: Mapping[str, Any], *, key: str = "") -> str:
    """A template file with `context` filled in; `key` is the config key that named it.

    Raises:
        ConfigError: the file is missing or broken, or asks for a name that `context` lacks.
    """
    try:
        stat = path.stat()
        template = _template(path, (stat.st_mtime_ns, stat.st_size))
    except OSError as error:
        what = f"the template cannot be read: {error.strerror}"
        raise ConfigError(Fault(key=key, what=what, value=str(path))) from None
    return _rendered(template, _either_case(context), Fault(what="", key=key, file=str(path)))


def render_text(source: str, context: Mapping[str, Any], *, key: str = "") -> str:
    """As `render_file`, for a template that stands in a config.

    Raises:
        ConfigError: it is broken, or asks for a name that `context` lacks.
    """
    try:
        template = _compiled(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(Fault(key=key, what=f"broken template: {error.message}", value=source)) from None
    return _rendered(template, _either_case(context), Fault(what="", key=key, value=source))


def render_shell(
    source: str, context: Mapping[str, Any], shown: Callable[[Any], str], *, file: str = ""
) -> str:
    """As `render_text`, for a template whose values are written by `shown`; `file` is where it stands.

    The filter `quote` changes nothing here, since `shown` is to quote; `verbatim` marks text of the shell.

    Raises:
        ConfigError: it is broken, or asks for a name that `context` lacks.
    """
    try:
        template = _shell_template(source, shown)
    except jinja2.TemplateSyntaxError as error:
        hint = "braces that are not for the engine: {{ '{{' | verbatim }}"
        what = f"broken template: {error.message}"
        raise ConfigError(Fault(file=file, line=error.lineno, what=what, hint=hint)) from None
    return _rendered(template, _either_case(context), Fault(what="", file=file))


@lru_cache(maxsize=8)
def _shell_template(source: str, shown: Callable[[Any], str]) -> jinja2.Template:
    engine = _engine().overlay(
        finalize=lambda value: value if isinstance(value, jinja2.Undefined) else shown(value)
    )
    engine.filters = {
        **engine.filters,
        "quote": lambda value: value,
        "verbatim": lambda value: Verbatim(value),
    }
    return engine.from_string(source)


def _either_case(context: Mapping[str, Any]) -> dict[str, Any]:
    upper = {name.upper(): value for name, value in context.items()}
    return {**context, **{name: value for name, value in upper.items() if name not in context}}


def _rendered(template: jinja2.Template, context: Mapping[str, Any], place: Fault) -> str:
    try:
        return template.render(context)
    except AutoexpError:
        raise
    except jinja2.UndefinedError as error:
        found = re.search(r"'([^']+)' is undefined", str(error))
        name = found.group(1) if found else ""
        same_case = sorted(context, key=lambda known: known.isupper() != name.isupper())
        hint = did_you_mean(name, same_case) if found else ""
        what = f"the template asks for what does not exist: {error.message}"
        raise ConfigError(replace(place, what=what, hint=hint, line=_line(place, error))) from None
    except Exception as error:  # noqa: BLE001 - a template runs whatever its author wrote
        what = f"the template failed: {type(error).__name__}: {error}"
        raise ConfigError(replace(place, what=what, line=_line(place, error))) from None


def _line(place: Fault, error: Exception) -> int:
    """The line of a template file where it failed: Jinja2 makes frames of its lines."""
    frames = traceback.extract_tb(error.__traceback__) if place.file else ()
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == "<template>"), 0)


# ---------------------------------------------------------------- the job script


def render_job_script(request: ScriptRequest, *, directives: Sequence[str] = ()) -> str:
    """The script of one job.

    `directives` are the scheduler's own lines (`#SBATCH …`). `slurm.template_path` replaces the built-in
    template; where it leaves the guard out, the guard is put in front of the first command.

    Raises:
        ConfigError: a value that a shell cannot carry, a broken template.
    """
    guard = _guard(request.guard_path)
    own = request.slurm.get("template_path")
    context = _context(request, directives, guard)
    if not own:
        return _rendered(_built_in(), context, Fault(what="", file=str(BUILT_IN)))
    text = render_file(Path(own), context, key="slurm.template_path")
    return text if guard in text else _guarded(text, guard)


def _guard(path: str) -> str:
    if not path:
        return ""
    # Under Slurm `$0` is the spooled copy: what runs is what was submitted, whatever a later plan wrote.
    return "\n".join(
        [
            f'if [ "${{1:-}}" != {CLAIMED} ]; then',
            f'  exec python3 -I {shell.quote(path)} -- bash "$0" {CLAIMED}',
            "fi",
        ]
    )


def _guarded(text: str, guard: str) -> str:
    """The text with the guard behind its head of comments and directives."""
    lines = text.splitlines(keepends=True)
    head = next(
        (n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")),
        len(lines),
    )
    return "".join([*lines[:head], guard + "\n", *lines[head:]])


def _context(request: ScriptRequest, directives: Sequence[str], guard: str) -> dict[str, Any]:
    """What a template may name. What ends in `_cmd`, `_flags`, `_opts`, `exports` is shell text."""
    launch = _launcher(request.slurm)
    command = shell.join(request.argv)
    facts = request.job_environment
    return {
        **request.parameters,
        "params": request.parameters,
        "slurm": request.slurm,
        "name": request.name,
        "job_name": request.name,
        "project": facts.get("AUTOEXP_PROJECT", ""),
        "output_dir": facts.get("AUTOEXP_OUTPUT_DIR", ""),
        "checkpoint_dir": facts.get("AUTOEXP_CHECKPOINT_DIR", ""),
        "log_path": "$AUTOEXP_LOG_PATH",
        "directives": directives,
        "sbatch_directives": "\n".join(directives),
        "guard": guard,
        "env_exports": "\n".join(_environment(request)),
        "setup": "\n".join(symbols.shown(line) for line in request.setup),
        "enter": "\n".join(_enter(request)),
        "srun_opts": launch.srun_opts,
        "launcher_prefix": launch.prefix,
        "launcher_env_flags": launch.env_flags,
        "backend_cmd": command,
        "launcher_cmd": f"{launch.prefix} {command}".lstrip(),
        "exec_cmd": _after_exec(f"{launch.whole} {command}".lstrip()),
    }


def _environment(request: ScriptRequest) -> list[str]:
    lines = shell.exports(request.job_environment)
    # From here on a line that fails ends the job: training with half an environment wastes its hours.
    lines.append("set -e")
    env_file = request.slurm.get("env_file")
    if env_file:
        lines += ["set -a", f". {shell.quote(str(env_file))}", "set +a"]
    return [*lines, *_shared_exports(request.shared_environment), *shell.exports(request.environment)]


def _enter(request: ScriptRequest) -> list[str]:
    facts = request.job_environment
    made = [facts[name] for name in ("AUTOEXP_OUTPUT_DIR", "AUTOEXP_CHECKPOINT_DIR") if facts.get(name)]
    lines = [f"mkdir -p -- {shell.join(made)}"] if made else []
    return [*lines, f"cd -- {shell.quote(request.cwd)}"] if request.cwd else lines


def _after_exec(line: str) -> str:
    """The line as arguments of `exec`, which takes options and knows no assignments."""
    if line.startswith(("-", "'-")):
        return f"-- {line}"
    return f"env {line}" if _ASSIGNMENT.match(line) else line


@dataclass(frozen=True)
class Launcher:
    """What stands before the command, as shell text.

    `whole`: everything, with an `srun` of ours where there are options for one and none in `prefix`.
    """

    prefix: str = ""
    env_flags: str = ""
    srun_opts: str = ""
    whole: str = ""


def launcher(slurm: Mapping[str, Any]) -> Launcher:
    """The launcher that a `slurm` section describes.

    `launcher_cmd` is taken as it stands (a list is quoted); `launcher_env_passthrough` adds `--env` flags
    for the keys of `slurm.environment`, behind the subcommand of a container program, else at the end. A
    bare `srun` gets none: it has no such option, and hands the whole environment on.

    Raises:
        ConfigError: a value that has no text, a name that no variable can have.
    """
    prefix = _text(slurm.get("launcher_cmd"))
    names = list(slurm.get("environment") or {}) if slurm.get("launcher_env_passthrough") else []
    flags = " ".join(f'--env {shell.check_name(name)}="${name}"' for name in names)
    container, srun = _CONTAINER.search(prefix), _SRUN.search(prefix)
    if srun and not container:
        flags = ""
    if flags and prefix:
        prefix = _inserted(prefix, container, flags)
        srun = _SRUN.search(prefix)
    options = _srun_options(slurm)
    whole = prefix
    if options and srun:
        whole = prefix = _inserted(prefix, srun, options)
    elif options:
        whole = f"srun {options} {prefix}".rstrip()
    return Launcher(prefix=prefix, env_flags=flags, srun_opts=options, whole=whole)


# The same section and the same variables serve most jobs of a plan.
_launcher = Latest(launcher)
_shared_exports = Latest(shell.exports)


def _inserted(text: str, behind: re.Match[str] | None, what: str) -> str:
    end = behind.end() if behind else len(text)
    return f"{text[:end]} {what}{text[end:]}"


def _srun_options(slurm: Mapping[str, Any]) -> str:
    parts = []
    for key, value in (slurm.get("srun") or {}).items():
        flag = str(key).replace("_", "-")
        short = len(flag) == 1
        if value is True:
            parts.append(f"-{flag}" if short else f"--{flag}")
        elif value is not None and value is not False:
            parts.append(
                shell.quote(f"-{flag}" if short else f"--{flag}=") + shell.quote(format_scalar(value))
            )
    return " ".join([*parts, _text(slurm.get("srun_opts"))]).strip()


def _text(given: str | Sequence[Any] | None) -> str:
    """Shell text of the user's own, or words to be quoted."""
    if isinstance(given, str):
        return symbols.shown(given.strip())
    return shell.join(format_scalar(word) for word in given or ())
