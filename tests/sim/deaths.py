"""Deaths at a step of the effects, for what runs within the test."""

from __future__ import annotations

from oellm_autoexp.store.effects import Effects


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Dying(Effects):
    """Dies before its n-th step, and does nothing more."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, name: str, target: str) -> None:
        if self.left == 0:
            raise Killed(f"{name} {target}")
        self.left -= 1
