"""The rights of an ordinary user, for tests that root runs too: CI does."""

from __future__ import annotations

import ctypes

#: Of prctl(2), and of capabilities(7): what lets root pass over the permissions of files.
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def ordinary() -> None:
    """As `preexec_fn`: the program that follows is held to permissions, whoever it is."""
    libc = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
