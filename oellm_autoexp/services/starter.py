"""`init`: a commented first config for a command that a person has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oellm_autoexp.config import compose, yaml_writer
from oellm_autoexp.config.groups import options
from oellm_autoexp.core.layout import project_name
from oellm_autoexp.errors import UsageError, did_you_mean
from oellm_autoexp.store.effects import Effects

_WIDTH = 96


def config_text(command: Sequence[str], *, name: str | None = None, slurm: str | None = None) -> str:
    """A first config, with comments, that runs exactly `command`. `slurm`: a group of that name.

    Raises:
        UsageError: a command or a name that no config can hold.
    """
    if not command or not command[0]:
        raise no_command("init")
    project = project_name(command, name)
    defaults = f"defaults: [slurm: {slurm}, _self_]\n" if slurm else ""
    parts = [
        _HEAD.format(name=_scalar(project), project=project, defaults=defaults),
        f"\nbackend:\n  class_name: CommandBackend\n{_command(command)}",
        _SWEEP,
        _SLURM.format(group=slurm) if slurm else _LOCAL,
        _RULES,
    ]
    return "".join(parts)


def no_command(verb: str) -> UsageError:
    """That a command is missing behind `init` or `run`."""
    hint = f"write it behind `--`: oellm-autoexp {verb} -- python train.py"
    return UsageError("there is no command", hint=hint)


def check_group(slurm: str, directories: Sequence[Path]) -> None:
    """Refuse a Slurm group that is in none of the directories and does not come with the package.

    Raises:
        UsageError: with the nearest one that exists.
    """
    known = options([*directories, compose.shipped()], "slurm")
    if slurm not in known:
        what = f"there is no option `{slurm}` in the group `slurm`"
        raise UsageError(what, where="--slurm", hint=did_you_mean(slurm, known))


def write(path: Path, text: str, effects: Effects) -> None:
    """Write a config where there is none.

    Raises:
        UsageError: something of that name exists, or it cannot be written.
    """
    hint = "write another: --output FILE, or look at it first: --print"
    try:
        made = not path.is_symlink() and effects.write_new(path, text.encode(), mode=0o644)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    if not made:
        raise UsageError("exists already, and is not overwritten", where=str(path), hint=hint)


# ---------------------------------------------------------------- pieces


def _command(command: Sequence[str]) -> str:
    words = [_scalar(word) for word in command]
    line = f"  command: [{', '.join(words)}]\n"
    if len(line) <= _WIDTH:
        return line
    return "  command:\n" + "".join(f"    - {word}\n" for word in words)


def _scalar(word: str) -> str:
    """A word as YAML that every reader takes for this very text.

    Raises:
        UsageError: it cannot be written.
    """
    return yaml_writer.scalar(yaml_writer.literal(word))


_HEAD = """\
# What to run, and how to get it finished. Check it: oellm-autoexp plan FILE
{defaults}project:
  name: {name}
  base_output_dir: ./outputs/{project}   # relative to this file; holds logs, scripts, and what jobs write
"""

_SWEEP = """
# Each word is handed over as it stands. ${…} is filled in: variables of the sweep, or "${job.output_dir}",
# "${job.checkpoint_dir}", directories that belong to one job alone. In […] put them in quotes: "${lr}".

# What to vary: each combination is a job. Names of your own must be read by the command as ${lr}, ${seed}.
# sweep:
#   axes: {lr: [1e-3, 3e-4], seed: [0, 1]}
"""

_LOCAL = """
scheduler:
  class_name: local     # jobs are processes of this machine; `init --slurm NAME` writes one for a cluster
  max_jobs: 1           # at once
"""

_SLURM = """
# Options of sbatch by their long names; they win over those of the group `{group}`. Try it here with --local.
slurm:
  sbatch:
    # account: my_project
    nodes: 1
    time: "01:00:00"    # times, accounts and partitions are text: in quotes
  # setup: ["module load my_modules", "source ~/envs/train/bin/activate"]
"""

_RULES = """
# What counts as a fact in a log, and what follows. Named groups are fields of the action.
# monitoring:
#   class_name: SlurmLogMonitor
#   inactivity_threshold_seconds: 3600
#   log_signals:
#     saved: {pattern: 'Checkpoint saved: (?P<path>\\S+)', action: convert}
# actions:
#   convert: {command: 'python convert.py {path}'}

# What follows when a job ends too early; `plan` prints what holds for all that is not named here.
# restart_policies:
#   crash: {class_name: AlwaysRestartPolicy, max_retries: 2}
"""
