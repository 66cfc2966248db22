"""Sources of jobs on disk: found in a person's working tree, made below a session, compared, removed.

The person's branch, index, stash and tree are only read. What is made is one working tree for each source,
known to the repository (`git worktree list`) and locked there, so that `git worktree prune` leaves it alone.
Its record is written before, and again when everything is on disk; what has no complete record is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.source import (
    Change,
    PlannedSource,
    Source,
    changes,
    is_byproduct,
    submodules,
)
from oellm_autoexp.errors import GitOperationError
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.git import GLANCE_S, MAKE_S, Git, GitOperationLock
from oellm_autoexp.sweep.names import branch_name

#: New files that are recorded together: source is smaller, and what is larger is data.
MOST_NEW_BYTES = 10 * 1024 * 1024
#: A binary diff that is the same whatever a person has configured.
_DIFF = (
    *("diff", "--cached", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--no-renames", "--submodule=short", "--ignore-submodules=none", "--src-prefix=a/", "--dst-prefix=b/"),
)


# ---------------------------------------------------------------- finding


def find(where: Path, *, mode: str, record: bool, ours: Sequence[Path], effects: Effects) -> PlannedSource:
    """The source in the working tree around the directory `where`; nothing of the person's is changed.

    With `record` uncommitted changes are part of it, and refused without. What is new below `ours` is not
    looked at.

    Raises:
        GitOperationError: there is none, it is in no state to be taken, or it has changes.
    """
    git = Git(effects)
    if shutil.which("git") is None:
        hint = "load a module that has it, or leave project.git_isolation out"
        raise GitOperationError("there is no `git` on this machine", hint=hint)
    try:
        root = Path(git.run(where, "rev-parse", "--show-toplevel").removesuffix("\n"))
    except GitOperationError as error:
        hint = "run it within a clone that has files, or leave project.git_isolation out"
        raise GitOperationError(
            f"there is no working tree of git ({error.what})", where=str(where), hint=hint
        ) from None
    prefix = git.run(where, "rev-parse", "--show-prefix").removesuffix("\n")
    commit = git.ask(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if commit is None:
        raise GitOperationError(
            "the repository has no commit yet", where=str(root), hint="`git commit` makes one"
        )
    differing = _differing(git, root)
    new = _new(git, root, ours)
    _require_whole(root, differing)
    source = Source(
        root=str(root), git_dir=str(git.common_dir(root)), commit=commit, tree=_tree(git, root), mode=mode
    )
    roots = (str(root), _logical(where, prefix))
    if not differing and not new:
        return PlannedSource(source=source, roots=roots)
    if not record:
        raise _dirty(root, [change.path for change in differing], new)
    tree, diff = _recorded(git, effects, source, new)
    digest = hashlib.sha256(diff).hexdigest()
    return PlannedSource(
        source=replace(source, tree=tree, diff_digest=digest if diff else ""), changes=diff, roots=roots
    )


def _tree(git: Git, root: Path) -> str:
    return git.run(root, "rev-parse", "HEAD^{tree}").removesuffix("\n")


def _logical(where: Path, prefix: str) -> str:
    """The top of the working tree by the path that `where` has, which may lead through links."""
    parts = Path(prefix).parts
    return str(where.parents[len(parts) - 1]) if parts and where.parts[-len(parts) :] == parts else str(where)


def _differing(git: Git, root: Path) -> list[Change]:
    words = ("--porcelain=v2", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=none")
    return list(changes(git.run(root, "status", *words)))


def _new(git: Git, root: Path, ours: Sequence[Path]) -> list[str]:
    """Files that git neither tracks nor ignores; directories of ours are not even entered."""
    words = []
    for path in ours:
        real = Path(os.path.realpath(path))
        if real != root and real.is_relative_to(root):
            words.append("--exclude=/" + re.sub(r"([\\*?\[\] ])", r"\\\1", str(real.relative_to(root))))
    listed = git.run(root, "ls-files", "--others", "--exclude-standard", "-z", *words)
    return [path for path in listed.split("\0") if path]


def _require_whole(root: Path, differing: Sequence[Change]) -> None:
    """Refuse what cannot be told by one tree.

    Raises:
        GitOperationError: a merge that is not finished, a submodule with changes of its own.
    """
    for change in differing:
        if change.unmerged:
            what = f"a merge is not finished: {_printable(change.path)}"
            raise GitOperationError(what, where=str(root), hint="finish it or abort it")
        if change.within_submodule:
            what = f"the submodule {_printable(change.path)} has changes of its own"
            raise GitOperationError(what, where=str(root), hint="commit them in the submodule")


def _dirty(root: Path, differing: Sequence[str], new: Sequence[str]) -> GitOperationError:
    parts = []
    for names, what in ((differing, "changed"), (new, "new and not ignored")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{', '.join(map(_printable, names[:3]))}{more} {what}")
    hint = "commit or ignore them, or write `git_dirty: record` to have them recorded"
    return GitOperationError(f"there are uncommitted changes: {'; '.join(parts)}", where=str(root), hint=hint)


def _printable(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _recorded(git: Git, effects: Effects, source: Source, new: Sequence[str]) -> tuple[str, bytes]:
    """The tree with all changes, and these as a diff: by an index and an object store that are thrown away.

    Raises:
        GitOperationError: new files that are too large, or a repository.
    """
    root, size = Path(source.root), 0
    for path in new:
        if path.endswith("/"):
            what = f"{_printable(path)} is a repository of its own"
            raise GitOperationError(what, where=str(root), hint="ignore it, or make it a submodule")
        size += (root / path).lstat().st_size
    if size > MOST_NEW_BYTES:
        what = f"{len(new)} new files have {size} bytes together; at most {MOST_NEW_BYTES} are recorded"
        raise GitOperationError(what, where=str(root), hint="ignore what is data")
    folder = Path(tempfile.gettempdir(), f"oellm-autoexp-{secrets.token_hex(8)}")
    index, listed, diff = folder / "index", folder / "new", folder / "diff"
    effects.mkdir(folder / "objects")
    try:
        _copy_index(git, effects, root, index)
        env = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(f"{source.git_dir}/objects"),
            "GIT_LITERAL_PATHSPECS": "1",
        }
        git.run(root, "add", "--update", env=env)
        if new:
            effects.write(listed, "\0".join(new).encode(errors="surrogateescape"), durable=False)
            git.run(root, "add", f"--pathspec-from-file={listed}", "--pathspec-file-nul", env=env)
        tree = git.run(root, "write-tree", env=env).removesuffix("\n")
        git.run(root, *_DIFF, f"--output={diff}", source.commit, env=env)
        return tree, diff.read_bytes()
    finally:
        with contextlib.suppress(OSError):
            effects.remove_tree(folder)


def _copy_index(git: Git, effects: Effects, root: Path, copy: Path) -> None:
    index = root / git.run(root, "rev-parse", "--git-path", "index").removesuffix("\n")
    if not index.exists():
        return
    effects.write(copy, index.read_bytes(), durable=False)
    # By the index's own time git knows which files may have changed since within the same tick of the clock.
    times = index.stat()
    effects.call("utime", str(copy), lambda: os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns)))


def _quoted(path: str) -> str:
    """As git(1) wants a path among several."""
    if ":" not in path and not path.startswith('"'):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---------------------------------------------------------------- records


def read(paths: SessionPaths, key: str) -> Source | None:
    """The record of a source; None where there is none that can be read."""
    try:
        return Source(**json.loads(paths.source_record(key).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def recorded(paths: SessionPaths) -> list[Source]:
    """All sources of a session, complete or not."""
    if not paths.sources.is_dir():
        return []
    keys = sorted(path.stem for path in paths.sources.glob("*.json"))
    return [source for source in (read(paths, key) for key in keys) if source is not None]


def _write(effects: Effects, paths: SessionPaths, source: Source) -> None:
    data = json.dumps(asdict(source), indent=2) + "\n"
    effects.write(paths.source_record(source.key), data.encode())


def is_there(paths: SessionPaths, key: str) -> bool:
    """Whether a source was made to its end, and its working tree has not been taken away since."""
    source = read(paths, key)
    return source is not None and source.complete and (paths.source(key) / ".git").exists()


# ---------------------------------------------------------------- making


def make(
    wanted: Source,
    paths: SessionPaths,
    effects: Effects,
    *,
    experiment: str,
    now: float,
    changes: bytes = b"",
) -> Path:
    """The working tree of a source, which is made unless it is there. `changes` are those of its diff.

    Raises:
        GitOperationError: git cannot make it.
        OSError: it cannot be written.
    """
    key = wanted.key
    place = paths.source(key)
    if is_there(paths, key):
        return place
    effects.mkdir(paths.sources)
    git = Git(effects)
    with GitOperationLock(Path(wanted.git_dir, GitOperationLock.NAME), timeout=MAKE_S):
        if is_there(paths, key):
            return place
        # What another has left half-made: nothing runs from it.
        begun = read(paths, key)
        if begun is not None:
            _delete_branch(git, begun)
        effects.remove_tree(place)
        branch = _free_branch(git, wanted, experiment, int(now)) if wanted.mode == "branch" else ""
        source = wanted.begun(branch)
        if source.diff and not _holds(source):
            effects.mkdir(Path(source.diff).parent, mode=0o755)
            effects.write(Path(source.diff), changes)
        _write(effects, paths, source)
        _check_out(git, source, place, paths)
        effects.sync(place)
        _write(effects, paths, source.done())
    return place


def _free_branch(git: Git, source: Source, experiment: str, at: int) -> str:
    """Under the lock: the first second that no branch of this experiment has."""
    while True:
        name = branch_name(experiment, at, source.commit)
        if git.ask(Path("/"), *_of(source), "rev-parse", "--verify", "--quiet", f"refs/heads/{name}") is None:
            return name
        at += 1


def _repository(git_dir: str | Path) -> tuple[str, ...]:
    """Options that show git a repository, whatever has become of its own working tree."""
    return (f"--git-dir={git_dir}", "--work-tree=/")


def _of(source: Source) -> tuple[str, ...]:
    return _repository(source.git_dir)


def _holds(source: Source) -> bool:
    try:
        return hashlib.sha256(Path(source.diff).read_bytes()).hexdigest() == source.diff_digest
    except OSError:
        return False


def _check_out(git: Git, source: Source, place: Path, paths: SessionPaths) -> None:
    how = ("-b", source.branch) if source.branch else ("--detach",)
    # Twice: also where it was known and locked before, and was taken away.
    add = ("worktree", "add", "--force", "--force", "--no-checkout", *how, str(place), source.commit)
    git.run(Path("/"), *_of(source), *add, timeout_s=MAKE_S)
    git.run(place, "read-tree", source.commit, timeout_s=MAKE_S)
    if source.diff:
        if not _holds(source):
            raise GitOperationError("is not the diff that was recorded", where=source.diff)
        git.run(place, "apply", "--cached", "--whitespace=nowarn", source.diff, timeout_s=MAKE_S)
    tree = git.run(place, "write-tree").removesuffix("\n")
    if tree != source.tree:
        raise GitOperationError(f"the recorded changes gave the tree {tree}, not {source.tree}")
    git.run(place, "read-tree", "--reset", "-u", tree, timeout_s=MAKE_S)
    _check_out_submodules(git, Path(source.root), place)
    why = f"the jobs of {paths.state_dir} run from it"
    # Locked already where it was made again.
    git.ask(Path("/"), *_of(source), "worktree", "lock", f"--reason={why}", str(place))


def _check_out_submodules(git: Git, original: Path, place: Path) -> None:
    """From the clones that the person has: nothing is fetched. What they have not set up stays empty."""
    for path, commit in submodules(git.run(place, "ls-files", "-s", "-z")):
        clone, inner = original / path, place / path
        if (clone / ".git").exists():
            add = ("worktree", "add", "--force", "--force", "--no-checkout", "--detach", str(inner), commit)
            git.run(clone, *add, timeout_s=MAKE_S)
            git.run(inner, "read-tree", "--reset", "-u", commit, timeout_s=MAKE_S)
            _check_out_submodules(git, clone, inner)


# ---------------------------------------------------------------- comparing


def drift(paths: SessionPaths, key: str, effects: Effects) -> str:
    """How the files of a source differ from what was planned, in words; "" where they do not."""
    place, source, git = paths.source(key), read(paths, key), Git(effects)
    if source is None:
        return f"nothing is recorded of the source {place}"
    words = ("diff", "--name-only", "-z", "--no-ext-diff", "--ignore-submodules=untracked")
    listed = git.ask(place, *words, timeout_s=GLANCE_S)
    tree = git.ask(place, "write-tree", timeout_s=GLANCE_S)
    if listed is None or tree is None:
        return f"the source {place} cannot be compared with what was planned"
    names = [_printable(name) for name in listed.split("\0") if name]
    if names:
        return f"{names[0]} of the source {place} is not as it was planned" + (
            f", nor are {len(names) - 1} more files" if len(names) > 1 else ""
        )
    if tree != source.tree:
        return f"the source {place} has the tree {tree[:16]}, not {key}"
    return ""


def state(directory: Path, effects: Effects | None = None) -> dict[str, object]:
    """Commit, branch and whether there are changes; empty where there is no repository or no git."""
    git = Git(effects)
    commit = git.ask(directory, "rev-parse", "HEAD", timeout_s=GLANCE_S)
    if commit is None:
        return {}
    listed = git.ask(directory, "status", "--porcelain", "--untracked-files=no", timeout_s=GLANCE_S)
    return {
        "commit": commit,
        "branch": git.ask(directory, "rev-parse", "--abbrev-ref", "HEAD", timeout_s=GLANCE_S),
        "dirty": None if listed is None else bool(listed),
    }


# ---------------------------------------------------------------- removing


def written(source: Source, paths: SessionPaths, effects: Effects) -> str:
    """A file that jobs have made or changed in their source; "" where there is none.

    Raises:
        GitOperationError: it cannot be told.
    """
    place = paths.source(source.key)
    if not source.complete or not place.is_dir():
        return ""
    if not Path(source.git_dir).is_dir():
        what = f"its repository {source.git_dir} is gone, so what jobs have written into it cannot be told"
        raise GitOperationError(what, where=str(place), hint="take what you need, and remove it by hand")
    git = Git(effects)
    for tree in _trees(git, place):
        others = git.run(tree, "ls-files", "--others", "-z")
        changed = git.run(tree, "diff", "--name-only", "-z", "--no-ext-diff", "--ignore-submodules=all")
        for path in (others + changed).split("\0"):
            if path and not is_byproduct(path):
                return str(tree / _printable(path))
    return ""


def _trees(git: Git, place: Path) -> Iterator[Path]:
    """The working trees of submodules, the innermost first, then `place`."""
    for path, _ in submodules(git.run(place, "ls-files", "-s", "-z")):
        if (place / path / ".git").exists():
            yield from _trees(git, place / path)
    yield place


def remove(source: Source, paths: SessionPaths, effects: Effects) -> None:
    """Remove a source and what the repository knows of it. What is gone already is fine.

    Raises:
        GitOperationError: git refuses.
        OSError: something cannot be removed.
    """
    git, place = Git(effects), paths.source(source.key)
    if Path(source.git_dir).is_dir():
        with GitOperationLock(Path(source.git_dir, GitOperationLock.NAME)):
            if (place / ".git").exists():
                for tree in list(_trees(git, place)):
                    common = git.common_dir(tree)
                    forget = ("worktree", "remove", "--force", "--force", str(tree))
                    git.run(Path("/"), *_repository(common), *forget, timeout_s=MAKE_S)
            else:
                # Known still, where a removal was interrupted.
                git.ask(Path("/"), *_of(source), "worktree", "remove", "--force", "--force", str(place))
            _drop_branch(git, source)
    effects.remove_tree(place)
    if source.diff and _holds(source):
        effects.unlink(Path(source.diff))
    effects.unlink(paths.source_record(source.key))


def _drop_branch(git: Git, source: Source) -> None:
    """Remove our branch while it is as we made it, and others keep its commit."""
    if not source.branch:
        return
    ours = f"refs/heads/{source.branch}"
    words = ("for-each-ref", "--format=%(refname)", f"--contains={source.commit}")
    holders = (git.ask(Path("/"), *_of(source), *words) or "").splitlines()
    if [ref for ref in holders if ref != ours]:
        _delete_branch(git, source)


def _delete_branch(git: Git, source: Source) -> None:
    if source.branch:
        words = ("update-ref", "-d", f"refs/heads/{source.branch}", source.commit)
        git.ask(Path("/"), *_of(source), *words)
