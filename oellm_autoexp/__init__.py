"""Describe experiments once; the orchestrator gets them finished.

    from oellm_autoexp import render_scripts, submit_jobs

Public names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

# Type checkers take this name for true; the module `typing` would be most of what the import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from oellm_autoexp.config.monitors import SlurmLogMonitor as SlurmLogMonitor
    from oellm_autoexp.reactions.policies import AdjustTimeLimitPolicy as AdjustTimeLimitPolicy
    from oellm_autoexp.reactions.policies import AlwaysRestartPolicy as AlwaysRestartPolicy
    from oellm_autoexp.reactions.policies import NoRestartPolicy as NoRestartPolicy
    from oellm_autoexp.services.calls import render_scripts as render_scripts
    from oellm_autoexp.services.calls import submit_jobs as submit_jobs
    from oellm_autoexp.store.git import GitOperationLock as GitOperationLock

__version__ = "0.1.0"

#: Where each public name is at home.
_HOMES = {
    "AdjustTimeLimitPolicy": "oellm_autoexp.reactions.policies",
    "AlwaysRestartPolicy": "oellm_autoexp.reactions.policies",
    "GitOperationLock": "oellm_autoexp.store.git",
    "NoRestartPolicy": "oellm_autoexp.reactions.policies",
    "SlurmLogMonitor": "oellm_autoexp.config.monitors",
    "render_scripts": "oellm_autoexp.services.calls",
    "submit_jobs": "oellm_autoexp.services.calls",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        what = f"module {__name__!r} has no attribute {name!r}"
        if name.startswith("__"):
            raise AttributeError(what)
        from oellm_autoexp.errors import did_you_mean

        raise AttributeError(f"{what}: {did_you_mean(name, _HOMES)}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([name for name in globals() if name.startswith("__")] + list(_HOMES))
