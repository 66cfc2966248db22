"""How git is run: by argv, in a clean environment, without hooks, prompts or optional locks, within a time.

Also the lock that serialises what changes a repository.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from oellm_autoexp.errors import GitOperationError
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.lock import FileLock

#: A repository on a slow network file system must not hold a loop up.
GLANCE_S = 10.0
#: For a look at a large tree, and for making one.
LOOK_S, MAKE_S = 120.0, 1800.0
#: What a person says of git as a whole. Any other GIT_* variable names a repository, an index or a work tree.
_KEPT = frozenset(
    {
        "GIT_CEILING_DIRECTORIES",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_NOSYSTEM",
        "GIT_CONFIG_SYSTEM",
        "GIT_DISCOVERY_ACROSS_FILESYSTEM",
        "GIT_EXEC_PATH",
    }
)
#: Nothing that a repository or a person has configured to run beside git's own work.
_QUIET = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false")


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which git knows no repository but the one it is shown, and asks nobody."""
    kept = {name: value for name, value in environ.items() if not name.startswith("GIT_") or name in _KEPT}
    # Optional locks: looking must not take the lock that a person's git needs, nor write their index.
    return {**kept, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat"}


class Git:
    """Runs git."""

    def __init__(self, effects: Effects | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self._effects = effects or Effects()
        self._environment = clean_environment(environ)

    def run(
        self, where: Path, *words: str, env: Mapping[str, str] | None = None, timeout_s: float = LOOK_S
    ) -> str:
        """What git prints, with bytes that are no UTF-8 as surrogates.

        Raises:
            GitOperationError: in git's own words.
        """
        options = [word for option in _QUIET for word in ("-c", option)]
        try:
            ran = self._effects.run(
                ["git", *options, "-C", str(where), *words],
                env={**self._environment, **(env or {})},
                cwd=None,
                timeout_s=timeout_s,
                errors="surrogateescape",
            )
        except OSError as error:
            hint = "load a module that has git, or leave project.git_isolation out"
            raise GitOperationError(f"git cannot be started: {error.strerror}", hint=hint) from error
        if ran.status is None:
            raise GitOperationError(f"git has no answer within {timeout_s:g} s", where=str(where))
        if ran.status != 0:
            lines = [line for line in ran.errors.splitlines() if line.strip()]
            said = next((line for line in lines if line.startswith(("fatal:", "error:"))), "".join(lines[:1]))
            raise GitOperationError(said or f"git ended with {ran.status}", where=str(where))
        return ran.output

    def ask(self, where: Path, *words: str, timeout_s: float = LOOK_S) -> str | None:
        """The same without the last newline; None where git refuses."""
        try:
            return self.run(where, *words, timeout_s=timeout_s).removesuffix("\n")
        except GitOperationError:
            return None

    def common_dir(self, where: Path) -> Path:
        """The directory of the repository that all its working trees share.

        Raises:
            GitOperationError: there is no repository.
        """
        found = self.run(where, "rev-parse", "--git-common-dir").removesuffix("\n")
        # Older versions of git know no absolute form.
        return Path(os.path.realpath(where / found))


class GitOperationLock(FileLock):
    """Serialises what processes do to a repository.

        with GitOperationLock(repository / ".git" / "slurm_checkout.lock", timeout=60.0):
            ...

    Raises:
        GitOperationError: on entering; another holds it for longer than `timeout` seconds, or the file
            system has no such locks.
    """

    #: The file within a repository's directory that `oellm-autoexp` itself locks.
    NAME = "slurm_checkout.lock"
    _MEND = "the repository must be yours"

    def _error(self, what: str, hint: str) -> GitOperationError:
        return GitOperationError(what, where=str(self.lock_file_path), hint=hint)
