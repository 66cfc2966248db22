"""The source that jobs run from where `project.git_isolation` keeps it apart: what it is, not how it is made.

A source is known by its tree, which commit and uncommitted changes add up to. So it stays the same source
when a message is amended, when a rebase changes nothing, and when recorded changes are committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

#: Digits of a tree's name that tell the sources of one session apart.
_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is kept of a source beside its working tree; `complete` only when all of that is there."""

    #: The top of the person's working tree, where submodules are found.
    root: str
    #: The directory that holds the repository itself, whichever of its working trees `root` is.
    git_dir: str
    commit: str
    tree: str
    #: "worktree" or "branch".
    mode: str
    branch: str = ""
    #: The file with the uncommitted changes, and its sha256; "": there are none.
    diff: str = ""
    diff_digest: str = ""
    complete: bool = False

    @property
    def key(self) -> str:
        return self.tree[:_KEY]

    def begun(self, branch: str) -> Source:
        return replace(self, branch=branch, complete=False)

    def with_diff(self, path: str) -> Source:
        return replace(self, diff=path)

    def done(self) -> Source:
        return replace(self, complete=True)


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A source as a plan found it."""

    source: Source
    changes: bytes = b""
    #: The top of the working tree by every path that it was reached by.
    roots: tuple[str, ...]

    def moved(self, path: str, place: Path) -> str:
        """A path of the person's working tree as one of the working tree at `place`; any other as it is."""
        for root in self.roots:
            if PurePosixPath(path).is_relative_to(root):
                return str(place / PurePosixPath(path).relative_to(root))
        return path


class Change(NamedTuple):
    """A path that differs from the commit."""

    path: str
    unmerged: bool = False
    #: What is in a submodule differs from the submodule's own commit.
    within_submodule: bool = False


def changes(status: str) -> Iterator[Change]:
    """What `git status --porcelain=v2 -z --no-renames` tells of tracked files (git-status(1))."""
    for entry in status.split("\0"):
        if entry.startswith("1 "):
            fields = entry.split(" ", 8)
            yield Change(fields[8], within_submodule="M" in fields[2] or "U" in fields[2])
        elif entry.startswith("u "):
            yield Change(entry.split(" ", 10)[10], unmerged=True)


class Submodule(NamedTuple):
    path: str
    commit: str


def submodules(listing: str) -> list[Submodule]:
    """What `git ls-files -s -z` tells of commits of other repositories."""
    found = []
    for entry in listing.split("\0"):
        facts, _, path = entry.partition("\t")
        if facts.startswith("160000 "):
            found.append(Submodule(path, facts.split(" ")[1]))
    return found


def is_byproduct(path: str) -> bool:
    """Whether a file is one that Python writes beside what it imports: nobody's output."""
    return path.endswith((".pyc", ".pyo")) or "__pycache__" in PurePosixPath(path).parts
