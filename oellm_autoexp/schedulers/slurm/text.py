"""The text that goes to Slurm. Pure: directives of a job script, options of sbatch. Source: sbatch(1)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from oellm_autoexp.config.schema import option
from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.core.times import format_time, parse_signal
from oellm_autoexp.errors import ConfigError, Fault, SubmitRejected
from oellm_autoexp.rendering import templates
from oellm_autoexp.sweep.scalars import format_scalar

#: Options that would change what is submitted, or whether sbatch comes back.
_OURS = {
    "array": "write `slurm: {array: true}`",
    "clusters": "write `scheduler: {clusters: [NAME]}`",
    "wait": "leave it out: the session waits",
    "test-only": "`oellm-autoexp plan --dry-run` shows what would be submitted",
    "wrap": "write the command into `backend`",
    "output": "logs go to slurm.log_dir, or where monitoring.log_path_template says",
    "error": "both streams go to one log, so that what Slurm says stands there too",
    "export": "write `slurm: {export: …}`",
}
#: What a job is told by variables of sbatch's environment.
EXPORTED = (
    "AUTOEXP_TOKEN",
    "AUTOEXP_ATTEMPT",
    "AUTOEXP_ATTEMPT_DIR",
    "AUTOEXP_LOG_PATH",
    "AUTOEXP_KILL_GRACE_S",
    "AUTOEXP_LIMIT_KEPT_OUTSIDE",
    "AUTOEXP_SIGNAL",
    "AUTOEXP_TIME_LIMIT_S",
    "AUTOEXP_AFTER_DIR",
    "AUTOEXP_AFTER_WAIT_S",
    "AUTOEXP_AFTER_ZERO",
    "AUTOEXP_AFTER_END",
)


#: Since Slurm 22.05 srun takes no `--cpus-per-task` over from sbatch; this it does (srun(1)).
_CPUS_OF_STEPS = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'


def job_script(request: ScriptRequest) -> str:
    """The script of a job of Slurm's: its directives, and steps that have the CPUs which the job asked for.

    Raises:
        ConfigError: a value that no directive can hold, or that a shell cannot carry.
    """
    lines = directives(request.name, request.slurm)
    if any(line.startswith(("#SBATCH --cpus-per-task=", "#SBATCH -c ")) for line in lines):
        request = replace(request, setup=(_CPUS_OF_STEPS, *request.setup))
    return templates.render_job_script(request, directives=lines)


def directives(name: str, slurm: Mapping[str, Any]) -> list[str]:
    """The `#SBATCH` lines of a resolved `slurm` section; `sbatch_overrides` win over `sbatch`.

    A key is an option with `-` or `_`; true is a flag, false and null leave the option out. A `signal` goes
    to the batch script (`B:`): the guard hands it on.

    Raises:
        ConfigError: a value that no directive can hold.
    """
    given: dict[str, tuple[str, Any]] = {"job-name": ("", name)}
    for section in ("sbatch", "sbatch_overrides"):
        for key, value in (slurm.get(section) or {}).items():
            given[str(key).replace("_", "-")] = (f"slurm.{section}.{key}", value)
    for each, (key, _) in given.items():
        instead = _OURS.get(option(each))
        if instead is not None:
            raise ConfigError(Fault(key=key, what="is not for a job of a session", hint=instead))
    key, early = given.get("signal", ("", None))
    if early is not None:
        given["signal"] = (key, _signal(str(early), key))
    if slurm.get("export"):
        given["export"] = ("slurm.export", _exported(str(slurm["export"])))
    lines = [f"#SBATCH {each}" for each in _options(given)]
    for number, line in enumerate(slurm.get("sbatch_extra_directives") or ()):
        text = _one_line(str(line).strip(), f"slurm.sbatch_extra_directives.{number}")
        lines.append(text if text.startswith("#") else f"#SBATCH {text}")
    return lines


def _signal(text: str, key: str) -> str:
    try:
        return parse_signal(text)
    except ValueError as error:
        raise ConfigError(Fault(key=key, what=str(error))) from None


def _exported(text: str) -> str:
    """The variables that sbatch hands on, with ours."""
    if text.upper() == "ALL":
        return "ALL"
    names = [] if text.upper() in ("NONE", "NIL") else [text]
    return ",".join([*names, *EXPORTED])


def head(script: str) -> list[str]:
    """The directives of a script: the `#SBATCH` lines before its first command."""
    lines = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            lines.append(line)
        elif line.strip() and not line.startswith("#"):
            break
    return lines


def options_of(script: str) -> dict[str, str]:
    """The options that the directives of a script give, by their long names; "" for those without a value."""
    found: dict[str, str] = {}
    for line in head(script):
        last = ""
        for word in shlex.split(line.removeprefix("#SBATCH"), comments=True):
            if word.startswith("-"):
                name, _, value = word.lstrip("-").partition("=")
                if not word.startswith("--") and len(name) > 1:
                    # A short option and its value may be one word: -N2.
                    name, value = word[1], word[2:]
                last = option(name)
                found[last] = value
            elif last and not found[last]:
                found[last] = word
    return found


#: Slurm counts time limits in minutes, and refuses what could not even begin.
_MINUTE_S = 60


def left_until_deadline(script: str, now: float) -> int | None:
    """Whole minutes, in seconds, until the `--deadline` of a script; None: none, in another form, or past.

    sbatch refuses a job that asks for more, and one that waits leaves the queue once it has less left.
    """
    text = options_of(script).get("deadline", "")
    try:
        at = datetime.fromisoformat(text).timestamp() if "T" in text else 0.0
    except ValueError:
        return None
    left = int((at - now) // _MINUTE_S) * _MINUTE_S
    return left if left >= _MINUTE_S else None


def shared_directives(script: str) -> list[str]:
    """What a script has in common with others that may be tasks of one array: all but its name."""
    own = ("#SBATCH --job-name", "#SBATCH -J")
    return [line for line in head(script) if not line.startswith(own)]


def literal_path(path: str) -> str:
    """A path for `--output`, in which `%` begins a pattern."""
    return path.replace("%", "%%")


#: Variables of sbatch(1) that are not named after their option.
_VARIABLES = {
    "ARRAY_INX": "array",
    "CPU_FREQ_REQ": "cpu-freq",
    "DEBUG": "verbose",
    "MEM_PER_NODE": "mem",
    "REQ_SWITCH": "switches",
    "TIMELIMIT": "time",
    "WAIT4SWITCH": "switches",
}


def options_of_shell(environ: Mapping[str, str]) -> dict[str, str]:
    """What variables `SBATCH_…` would set for each job that is submitted: the option, by the variable's name.

    To sbatch(1) they count more than the directives of a script.

    >>> options_of_shell({"SBATCH_TIMELIMIT": "1:00", "SBATCH_EXCLUSIVE": "", "HOME": "/root"})
    {'SBATCH_EXCLUSIVE': '--exclusive', 'SBATCH_TIMELIMIT': '--time=1:00'}
    """
    found = {}
    for variable in sorted(environ):
        start, _, name = variable.partition("_")
        if start == "SBATCH" and name:
            option = "--" + _VARIABLES.get(name, name.lower().replace("_", "-"))
            found[variable] = f"{option}={environ[variable]}" if environ[variable] else option
    return found


def _options(given: Mapping[str, tuple[str, Any]]) -> Iterator[str]:
    for name, (key, value) in given.items():
        start = f"-{name}" if len(name) == 1 else f"--{name}"
        if value is True:
            yield start
        elif value is not None and value is not False:
            text = shlex.quote(_one_line(_text(value, key), key))
            yield f"{start} {text}" if len(name) == 1 else f"{start}={text}"


def _text(value: Any, key: str) -> str:
    try:
        return format_scalar(value)
    except ValueError as error:
        raise ConfigError(Fault(key=key, what=str(error))) from None


def _one_line(text: str, key: str) -> str:
    if "\n" in text or "\r" in text:
        raise ConfigError(Fault(key=key, what="a directive is one line", value=repr(text)))
    return text


# ---------------------------------------------------------------- what differs between attempts


def joined(own: str, nodes: Iterable[str]) -> str:
    """Nodes to exclude, beside those that a script excludes itself."""
    return ",".join([*([own] if own else []), *nodes])


def environment(token: str, task: Task, kill_wait_s: float) -> dict[str, str]:
    """What a job is told of its attempt, see EXPORTED; `kill_wait_s` is Slurm's from SIGTERM to SIGKILL."""
    told = {
        **task.environment,
        "AUTOEXP_TOKEN": token,
        "AUTOEXP_ATTEMPT_DIR": task.attempt_dir,
        "AUTOEXP_LOG_PATH": task.log_path,
        # The guard's own end must come before Slurm's SIGKILL, or it writes no record.
        "AUTOEXP_KILL_GRACE_S": f"{0.7 * kill_wait_s:g}",
        # An administrator may extend the limit of a running job, which the guard would not hear of.
        "AUTOEXP_LIMIT_KEPT_OUTSIDE": "1",
    }
    if task.signal:
        told["AUTOEXP_SIGNAL"] = task.signal
    if task.time_limit_s is not None:
        told["AUTOEXP_TIME_LIMIT_S"] = str(task.time_limit_s)
    return told


def dependency(submission: Submission, given: Mapping[str, str]) -> str:
    """What a submission depends on (`--dependency`), whose script gives these options."""
    after, own = f"afterany:{submission.after}" if submission.after else "", given.get("dependency", "")
    if not (after and own):
        return after or own
    if not submission.keeps_dependency:
        # The attempt before has waited for it.
        return after
    if "?" in own:
        # Slurm has no word for "this, and one of those".
        raise SubmitRejected(f"it cannot wait behind other jobs beside its own --dependency={own}")
    return f"{after},{own}"


def submission_options(submission: Submission, script: str) -> list[str]:
    """What differs between submissions of the same jobs, and what their script says nothing of."""
    limits = [task.time_limit_s for task in submission.tasks]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    options = [f"--time={format_time(longest)}"] if longest is not None else []
    given = options_of(script)
    if submission.exclude:
        # This option would replace that of the script.
        options.append(f"--exclude={joined(given.get('exclude', ''), submission.exclude)}")
    if submission.after:
        options.append(f"--dependency={dependency(submission, given)}")
    if "comment" not in given:
        options.append(f"--comment={submission.token}")
    if given.keys().isdisjoint(("requeue", "no-requeue")):
        # Restarts are decided here. Where a script asks for Slurm's own, they are taken over as attempts.
        options.append("--no-requeue")
    return options
