"""What ranks agree on between two optimizer steps, so that all of them stop, save and end at the same one."""

from __future__ import annotations

import time
from typing import NamedTuple

from oellm_autoexp.trainer.engine import Engine

#: Ranks talk about twice a second, and never less often than every so many steps.
_SECONDS, _MOST_STEPS = 0.5, 64


class Wishes(NamedTuple):
    """What one rank wants, or all of them together: of each the highest."""

    #: The number of a signal that came; 0: none.
    signum: float = 0
    #: The loss was no number.
    nonfinite: float = 0
    #: A checkpoint is due by the clock.
    save: float = 0
    #: The time limit is near.
    leave: float = 0
    #: A hook has set `should_stop`.
    stop: float = 0


class Agreement:
    """Says between which steps ranks talk, and what comes of it.

    A process that is alone hears itself at each step. Several exchange a few numbers, and among them after
    how many steps they talk again, which no rank can tell by its own clock. With `each_step` they always do.
    """

    def __init__(self, engine: Engine, *, each_step: bool = False) -> None:
        self._engine = engine
        #: One process, which waits for no device: it hears itself at each step.
        self.alone = engine.world_size == 1 and engine.on_cpu
        self._each = each_step or self.alone
        self._left = 1
        self._interval = 1
        self._since = time.monotonic()

    def due(self) -> bool:
        """Called once between two steps: whether they talk now. The same answer on every rank."""
        if self._each:
            return True
        self._left -= 1
        return self._left <= 0

    def reached(self, wishes: Wishes) -> Wishes:
        """The wishes of all ranks together; every rank has to call it."""
        if self._engine.world_size == 1 and self._each:
            return wishes
        now = time.monotonic()
        step_s = max((now - self._since) / self._interval, 1e-6)
        wanted = 1 if self._each else max(1, min(_MOST_STEPS, int(_SECONDS / step_s)))
        *together, fewest = self._engine.highest((*wishes, -wanted))
        self._interval = self._left = int(-fewest)
        self._since = now
        return Wishes(*together)
