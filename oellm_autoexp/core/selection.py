"""Which jobs a word chooses: a state, an error mode, or that nothing of them was submitted yet."""

from __future__ import annotations

from collections.abc import Iterable

from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.errors import UsageError, did_you_mean

ALL, UNSUBMITTED, ENDED = "all", "unsubmitted", "ended"
#: Other words for states and error modes.
ALIASES = {
    "completed": "succeeded",
    "success": "succeeded",
    "canceled": "cancelled",
    "oom": "crash.oom",
    "out_of_memory": "crash.oom",
    "node_fail": "crash.node_failure",
    "nan": "crash.nan",
}
_STATES = tuple(state.value for state in JobState)
#: Error modes that jobs end with; finer ones are dotted.
MODES = ("crash", "timeout", "stall", "preempted", "cancelled")
WORDS = (ALL, UNSUBMITTED, ENDED, *_STATES, *MODES, *ALIASES)


def checked(word: str, jobs: Iterable[Job] = ()) -> str:
    """A word of `--filter` as it is compared.

    Raises:
        UsageError: it means nothing; an error mode of a config's own is known where a job has it.
    """
    given = word.strip().lower().replace("-", "_")
    meant = ALIASES.get(given, given)
    if meant in WORDS or meant.partition(".")[0] in MODES or any(job.mode == meant for job in jobs):
        return meant
    hint = did_you_mean(word, dict.fromkeys(WORDS))
    raise UsageError(f"no state and no error mode is called {word!r}", where="--filter", hint=hint)


def chosen(job: Job | None, word: str) -> bool:
    """Whether a checked word chooses a job; None is one that was never submitted.

    An error mode chooses jobs that ended with it, or with a finer one.
    """
    if word == ALL:
        return True
    if job is None:
        return word == UNSUBMITTED
    if word == ENDED:
        return job.state.ended
    if word in _STATES and job.state.value == word:
        return True
    return job.state.ended and (job.mode == word or job.mode.startswith(f"{word}."))
