"""Signals that tell a training to leave: seen by any rank, obeyed by all of them at the same step."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_log = logging.getLogger("oellm_autoexp.trainer")

#: What schedulers, guards and people send. SIGINT counts once; the second one ends the program at once.
WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The training has left as it was told; what is needed to go on is on disk.

    Nobody has to catch it: a program that does not ends with the exit code 128 + `signum`, from which
    schedulers and the orchestrator see that the work is to be taken up again.
    """

    def __init__(self, signum: int, reason: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class SignalWatch:
    """While it is entered, a first signal is only noted.

    `pending`: the number of the first signal, 0 before it. Handlers can be set by the main thread alone;
    elsewhere nothing is watched, and that is said.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        self.pending = 0
        if threading.current_thread() is not threading.main_thread():
            _log.warning("signals are not watched: the training does not run in the main thread")
            return self
        for signum in WATCHED:
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        # Whoever saves by hand afterwards has all the time again.
        self.pending = 0

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - how handlers are called
        if not self.pending:
            self.pending, self._since = signum, time.monotonic()
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    @property
    def seconds_since(self) -> float:
        """How long ago the pending signal came; 0 without one."""
        return time.monotonic() - self._since if self.pending else 0.0
