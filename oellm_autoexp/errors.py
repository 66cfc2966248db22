"""Every error a user can meet: what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class AutoexpError(Exception):
    """The base of all errors that are shown to a person without a traceback.

    `exit_code` is the process exit code the command line uses for it:
    2 for a mistake in a config or in usage, 3 where the program could not do its work.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.hint:
            lines.append(f"  -> {self.hint}")
        return "\n".join(lines)


class UsageError(AutoexpError):
    """A command was called in a way that cannot work."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One mistake in a config.

    `key` is the dotted key path, `value` the offending value as text ("" when there is none to show),
    `file`/`line` where it was written (1-based; 0 when unknown), `hint` the repair.
    """

    what: str
    key: str = ""
    value: str = ""
    file: str = ""
    line: int = 0
    hint: str = ""

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.file and self.line else "")
        head = ": ".join(part for part in (place, self.key, self.what) if part)
        if self.value:
            head += f" (value: {self.value})"
        return head + (f"\n  -> {self.hint}" if self.hint else "")


class ConfigError(AutoexpError):
    """One or more mistakes in a config; nothing was written or submitted."""

    exit_code = 2

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults: Sequence[Fault] = faults


class ConfigurationError(ConfigError):
    """The config of an experiment cannot be found or read."""


class ValidationError(ConfigurationError, ValueError):
    """The config of an experiment, or a parameter of a grid, says what cannot be."""


class StateError(AutoexpError):
    """The state directory is damaged, belongs to something else, or cannot be written."""


class CheckpointError(AutoexpError):
    """A checkpoint cannot be written, or none of those that are there can be used."""


class GitOperationError(AutoexpError):
    """git refused something, did not answer in time, or another process holds the lock of the repository."""


class SLURMError(AutoexpError):
    """What was asked of the jobs of experiments cannot be done."""


class JobSubmissionError(SLURMError):
    """Experiments were not submitted; says which, and why."""


class LoaderError(AutoexpError):
    """A loader gives other batches than it said, or cannot go on where a checkpoint was cut."""


class PhaseError(AutoexpError):
    """A training went from one phase to another that cannot follow it."""


class NotLeader(AutoexpError):
    """Another process leads this session."""


class LeadershipLost(AutoexpError):
    """A newer leader has taken this session over; this process must stop at once."""


class SchedulerUnavailable(AutoexpError):
    """The scheduler did not answer. Nothing is known, so nothing may be concluded."""


class SubmitRejected(AutoexpError):
    """The scheduler refused a submission for good; repeating it cannot help."""


class SubmitDeferred(AutoexpError):
    """The scheduler refused a submission for the moment (a limit); it is tried again later."""


class SubmitUnclear(AutoexpError):
    """The submission may or may not have been accepted; it must be looked up by its token."""


class TrainerError(AutoexpError):
    """A training cannot begin or go on."""


class SetupError(TrainerError, ValueError):
    """What a training is made of cannot be found or made, or does not go together."""

    exit_code = 2


class NonFiniteLossError(TrainerError):
    """The loss is not a number, or infinite, and the config says to stop there."""


class CheckpointTimeoutError(TrainerError):
    """A checkpoint was not on disk within `fault_tolerance.checkpoint_timeout_sec`."""


class PreemptionTimeoutError(TrainerError):
    """The checkpoint of a training that must leave was not on disk within `preemption.max_checkpoint_sec`."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a mistyped one most likely means; "" when none is near.

    >>> nearest("slurm.sbatch.node", ["lr", "slurm.sbatch.nodes"]), nearest("nodes", ["slurm.sbatch.nodes"])
    ('slurm.sbatch.nodes', 'slurm.sbatch.nodes')
    """
    names = list(known)
    # `nodes` for `slurm.sbatch.nodes`: the end of a dotted key is what people remember.
    for other in names:
        if other.endswith(f".{name}"):
            return other
    lowered = {other.lower(): other for other in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, else the list of them (at most a dozen)."""
    names = list(known)
    near = nearest(name, names)
    if near:
        return f"did you mean `{near}`?"
    if not names:
        return ""
    return "known here: " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
