"""Talks to Slurm's commands: argv only, a clean environment, a time limit on each, and not too often."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oellm_autoexp.errors import SchedulerUnavailable
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.schedulers.slurm.answers import TIME_FORMAT, plain
from oellm_autoexp.store.effects import Effects, Ran
from oellm_autoexp.store.rate import Bucket

#: The pause after a call that nobody answered grows from and to this many seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Commands:
    """Slurm's commands, one call at a time.

    When one was not answered, the next ones fail at once until a pause is over, which doubles up to a minute:
    a controller that comes back is not met by a storm.
    """

    def __init__(
        self,
        effects: Effects,
        home: Path | None,
        *,
        timeout_s: float,
        burst: float,
        per_s: float,
    ) -> None:
        self._effects = effects
        self._timeout_s = timeout_s
        cluster = hashlib.sha256(os.environ.get("SLURM_CONF", "").encode()).hexdigest()[:8]
        path = home / "slurm" / f"{cluster}.rate" if home is not None else None
        self._bucket = Bucket(path, effects, burst=burst, per_s=per_s)
        self._failures = 0
        self._silent_until = 0.0
        self._why = ""
        #: How many calls were made, by the name of the command.
        self.calls: dict[str, int] = {}
        #: How long the last query took.
        self.took_s = 0.0

    def query(self, *argv: str) -> Ran:
        """A call that changes nothing, with its answer whatever its exit status.

        Raises:
            SchedulerUnavailable: it did not end in time, or cannot be run.
        """
        environment = {
            **clean_environment(),
            "LC_ALL": "C",
            "SLURM_TIME_FORMAT": TIME_FORMAT,
            # sacct cuts a list of tasks after 64 characters otherwise.
            "SLURM_BITSTR_LEN": "0",
        }
        started = time.monotonic()
        ran = self._run(argv, environment, None)
        self.took_s = time.monotonic() - started
        if ran.status is None:
            raise self.silent(argv[0], f"no answer within {self._timeout_s:g} s")
        return ran

    def answer(self, *argv: str) -> str:
        """What a query printed.

        Raises:
            SchedulerUnavailable: it failed.
        """
        ran = self.query(*argv)
        if ran.status != 0:
            raise self.silent(argv[0], plain(ran.errors) or f"exit {ran.status}")
        self.heard()
        return ran.output

    def act(self, argv: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> Ran:
        """A call with an effect; how it ended is for the caller to judge.

        Raises:
            SchedulerUnavailable: it was not made.
        """
        return self._run(argv, {**clean_environment(), **environment}, cwd)

    def _run(self, argv: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> Ran:
        if time.monotonic() < self._silent_until:
            raise SchedulerUnavailable(self._why)
        self._bucket.take()
        name = Path(argv[0]).name
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            return self._effects.run(argv, env=environment, cwd=cwd, timeout_s=self._timeout_s)
        except OSError as error:
            raise self.silent(argv[0], error.strerror or str(error)) from error

    def silent(self, name: str, why: str) -> SchedulerUnavailable:
        """Note that nobody answered; the error to raise."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        # Not all sessions of all users at the same moment.
        self._silent_until = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._why = f"{Path(name).name}: {why}"
        return SchedulerUnavailable(self._why)

    def heard(self) -> None:
        """Note that the controller answers."""
        self._failures, self._silent_until = 0, 0.0
