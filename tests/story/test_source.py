"""`project.git_isolation`: jobs run from what they were planned from; a person's clone is only read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Cli, until
from deaths import Fatal, Killed

from oellm_autoexp import GitOperationLock
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.source import PlannedSource
from oellm_autoexp.errors import GitOperationError
from oellm_autoexp.monitor import perform
from oellm_autoexp.services.session import replay
from oellm_autoexp.store import source as store
from oellm_autoexp.store.effects import Effects

#: A person who may commit, whose configuration says nothing else.
PERSON = {
    **{
        f"GIT_{who}_{what}": "somebody@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(where: Path, *words: str) -> str:
    """As the person runs it."""
    options = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(
        ["git", *options, "-C", str(where), *words],
        env={**environment, **PERSON},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@dataclass
class Clone:
    """A repository with a program that prints a tracked file, and a config that runs it."""

    root: Path
    #: Where the session is; outside of the repository unless a test wants it within.
    base: Path
    config: Path
    cli: Cli
    paths: SessionPaths = field(init=False)

    def __post_init__(self) -> None:
        self.paths = SessionPaths(self.base / ".oellm-autoexp")

    def configure(self, command: list[str] | None = None, *, cwd: str = "", **project: object) -> None:
        """Write the config; two jobs."""
        body = {
            "project": {
                "name": "tiny",
                "base_output_dir": str(self.base),
                "git_isolation": "worktree",
                **project,
            },
            "backend": {
                "class_name": "CommandBackend",
                "command": command or ["sh", "-c", "cat value; pwd # ${i}"],
                "cwd": cwd or str(self.root),
            },
            "sweep": {"axes": {"i": [0, 1]}},
            "scheduler": {"class_name": "local"},
            "restart_policies": {
                "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2, "backoff_seconds": 0}
            },
        }
        self.config.write_text(json.dumps(body))

    def submit(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        done = self.cli.within("submit", str(self.config), *words, env=env)
        return done.returncode, done.stdout, done.stderr

    def log(self, job: int = 0, attempt: int = 1) -> list[str]:
        return (self.base / "logs" / f"tiny_i{job}.{attempt}.log").read_text().splitlines()

    def trees(self) -> list[Path]:
        return sorted(path for path in self.paths.sources.iterdir() if path.is_dir())

    def mine(self) -> dict[str, object]:
        """What a person has in the repository, and must find again."""
        folder = self.root / git(self.root, "rev-parse", "--git-path", "index").strip()
        return {
            "status": git(self.root, "--no-optional-locks", "status", "--porcelain", "--ignored"),
            "head": git(self.root, "rev-parse", "--symbolic-full-name", "HEAD"),
            "commit": git(self.root, "rev-parse", "HEAD"),
            "index": folder.read_bytes() if folder.exists() else None,
            "stash": git(self.root, "stash", "list"),
            "refs": git(self.root, "for-each-ref"),
        }


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    for name, value in PERSON.items():
        if name.startswith("GIT_CONFIG"):
            monkeypatch.setenv(name, value)
    root = tmp_path / "clone"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "value").write_text("one\n")
    (root / ".gitignore").write_text("data\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    made = Clone(root=root, base=tmp_path / "out", config=tmp_path / "sweep.yaml", cli=Cli(tmp_path))
    made.configure()
    return made


def change(clone: Clone, value: str) -> None:
    (clone.root / "value").write_text(f"{value}\n")


def committed(clone: Clone, value: str) -> str:
    change(clone, value)
    git(clone.root, "commit", "-q", "-a", "-m", value)
    return git(clone.root, "rev-parse", "HEAD").strip()


def found(clone: Clone, *, record: bool = False) -> PlannedSource:
    return store.find(clone.root, mode="worktree", record=record, ours=[clone.base], effects=Effects())


# ---------------------------------------------------------------- what jobs see


def test_jobs_run_in_one_working_tree_of_the_commit(clone: Clone) -> None:
    """Both in the same one, below the session; the person's repository is otherwise as it was."""
    before = clone.mine()
    code, _, errors = clone.submit()
    assert (code, errors) == (0, "")
    (place,) = clone.trees()
    assert [clone.log(0), clone.log(1)] == [["one", str(place)]] * 2
    assert clone.mine() == before
    assert git(place, "rev-parse", "--abbrev-ref", "HEAD").strip() == "HEAD"
    assert str(place) in git(clone.root, "worktree", "list")


def test_jobs_keep_to_their_directory_within_the_repository(clone: Clone) -> None:
    """A cwd within it is mapped, one that git does not have is refused, one outside of it stays."""
    (clone.root / "sub").mkdir()
    (clone.root / "sub" / "value").write_text("deep\n")
    git(clone.root, "add", ".")
    git(clone.root, "commit", "-q", "-m", "sub")
    clone.configure(cwd=str(clone.root / "sub"))
    assert clone.submit()[0] == 0
    assert clone.log() == ["deep", str(clone.trees()[0] / "sub")]
    (clone.root / "data").mkdir()
    clone.configure(cwd=str(clone.root / "data"))
    code, _, errors = clone.submit("--update")
    assert code == 2 and "the source has no directory data" in errors
    assert len(replay(clone.paths).jobs["tiny_i0"].attempts) == 1


def test_a_repository_is_known_through_a_symbolic_link(clone: Clone) -> None:
    link = clone.root.parent / "link"
    link.symlink_to(clone.root)
    clone.configure(cwd=str(link))
    assert clone.submit()[0] == 0
    assert clone.log() == ["one", str(clone.trees()[0])]


@pytest.mark.parametrize(
    "afterwards",
    [
        lambda clone: change(clone, "two"),
        lambda clone: committed(clone, "two"),
        lambda clone: (git(clone.root, "switch", "-q", "-c", "other"), committed(clone, "two")),
        lambda clone: (
            git(clone.root, "commit", "-q", "--amend", "-m", "rewritten", "--date=2001-01-01T00:00:00"),
            git(clone.root, "reflog", "expire", "--expire=now", "--all"),
            git(clone.root, "gc", "-q", "--prune=now"),
            git(clone.root, "worktree", "prune"),
        ),
    ],
    ids=["edit", "commit", "branch", "rewrite and prune"],
)
def test_what_a_person_does_meanwhile_reaches_no_job(
    clone: Clone, afterwards: Callable[[Clone], object]
) -> None:
    """A job that waits reads the old file, also at its restart."""
    go = clone.root.parent / "go"
    command = (
        f'until test -e {go}; do read -r _ < {go}.pipe || :; done; cat value; test -n "$AUTOEXP_ATTEMPT"'
    )
    os.mkfifo(f"{go}.pipe")
    clone.configure(["sh", "-c", command + " && test $AUTOEXP_ATTEMPT = 2 # ${i}"])
    with clone.cli.leader("submit", str(clone.config), "--json") as leader:
        until(clone.paths.source_record(found(clone).source.key).exists, "the source is made")
        until(lambda: list(clone.paths.state_dir.glob("attempts/*/1/start*")), "jobs have started")
        afterwards(clone)
        go.touch()

        def let_go() -> bool:
            with open(os.open(f"{go}.pipe", os.O_RDWR | os.O_NONBLOCK), "w") as pipe:
                pipe.write("\n\n")
            return leader.poll() is not None

        until(let_go, "both jobs have ended")
    logs = sorted((clone.base / "logs").iterdir())
    assert [path.read_text() for path in logs] == ["one\n"] * 4


def test_another_commit_is_another_computation(clone: Clone) -> None:
    """Refused with the difference, taken with --update; a reworded commit is none."""
    assert clone.submit()[0] == 0
    git(clone.root, "commit", "-q", "--amend", "-m", "the same, in other words")
    code, output, _ = clone.submit()
    assert code == 0 and "2 already done" in output and len(clone.trees()) == 1
    committed(clone, "two")
    code, _, errors = clone.submit()
    assert code == 2 and "source: tree " in errors and "--update" in errors
    assert len(clone.trees()) == 1
    assert clone.submit("--update")[0] == 0
    assert clone.log(attempt=1)[0] == "one" and clone.log(attempt=2)[0] == "two"
    assert len(clone.trees()) == 2


def test_a_session_that_goes_on_keeps_its_working_tree(clone: Clone) -> None:
    """Nothing is made again: not a file of it is another one."""
    assert clone.submit()[0] == 0
    inode = (clone.trees()[0] / "value").stat().st_ino
    assert clone.submit()[0] == 0
    assert (clone.trees()[0] / "value").stat().st_ino == inode


# ---------------------------------------------------------------- changes that are not committed


@pytest.mark.parametrize(
    "dirty, named",
    [
        (lambda root: (root / "value").write_text("two\n"), "value changed"),
        (lambda root: ((root / "value").write_text("two\n"), git(root, "add", ".")), "value changed"),
        (lambda root: (root / "value").unlink(), "value changed"),
        (lambda root: (root / "new.py").write_text(""), "new.py new and not ignored"),
    ],
    ids=["tree", "index", "removed", "new"],
)
def test_a_dirty_tree_is_refused_before_anything_is_written(
    clone: Clone, dirty: Callable[[Path], object], named: str
) -> None:
    dirty(clone.root)
    before = clone.mine()
    code, _, errors = clone.submit()
    assert code == 2 and named in errors and "git_dirty: record" in errors
    assert clone.mine() == before and not clone.base.exists()


def test_ignored_files_and_our_own_are_no_changes(clone: Clone) -> None:
    """The session may be within the repository, where nobody has ignored it."""
    (clone.root / "data").write_text("large")
    clone.base = clone.root / "my [runs]" / "out"
    clone.paths = SessionPaths(clone.base / ".oellm-autoexp")
    clone.configure()
    assert clone.submit()[0] == 0
    code, output, _ = clone.submit()
    assert code == 0 and "2 already done" in output
    assert git(clone.root, "status", "--porcelain").splitlines() == ['?? "my [runs]/"']


def dirty_in_every_way(root: Path) -> None:
    """Half of a change staged, a file removed, made executable, new, binary, a link, odd names."""
    (root / "gone").write_text("gone\n")
    (root / "crlf").write_bytes(b"a\r\nb\r\n")
    (root / "tool").write_text("#!/bin/sh\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "more")
    (root / "value").write_text("half\n")
    git(root, "add", "value")
    (root / "value").write_text("two\n")
    (root / "staged").write_text("staged\n")
    git(root, "add", "staged")
    (root / "gone").unlink()
    (root / "tool").chmod(0o755)
    (root / "crlf").write_bytes(b"a\r\nc\r\n")
    (root / "binary").write_bytes(bytes(range(256)))
    (root / "link").symlink_to("value")
    (root / "odd\n name \udcff*").write_text("odd")
    (root / "data").write_text("ignored")


def test_recorded_changes_stand_beside_the_script_and_are_in_the_source(clone: Clone) -> None:
    """Byte by byte what the person has; the index, which differs from both, is not touched."""
    dirty_in_every_way(clone.root)
    (clone.root / "kept").write_text("stashed\n")
    git(clone.root, "stash", "push", "-q", "--include-untracked", "--", "kept")
    before = clone.mine()
    clone.configure(git_dirty="record")
    code, _, errors = clone.submit()
    assert (code, errors) == (0, "")
    (place,) = clone.trees()
    assert clone.log() == ["two", str(place)]
    assert clone.mine() == before

    def content(root: Path) -> dict[str, object]:
        return {
            path.name: (path.is_symlink(), path.read_bytes(), path.stat().st_mode & 0o111)
            for path in root.iterdir()
            if path.is_file() and path.name not in (".git", "data")
        }

    assert content(place) == content(clone.root)
    (diff,) = (clone.base / "scripts").glob("*.diff")
    assert "+two" in diff.read_text() and diff.stat().st_mode & 0o777 == 0o600
    assert store.drift(clone.paths, place.name, Effects()) == ""


def test_recorded_changes_are_part_of_what_a_job_is(clone: Clone) -> None:
    """Another change is another job; the same one committed is the same job."""
    clone.configure(git_dirty="record")
    change(clone, "two")
    assert clone.submit()[0] == 0
    change(clone, "three")
    assert clone.submit()[0] == 2
    change(clone, "two")
    git(clone.root, "commit", "-q", "-a", "-m", "two")
    code, output, _ = clone.submit()
    assert code == 0 and "2 already done" in output


def test_what_no_diff_can_hold_is_refused(clone: Clone) -> None:
    """Files that are data by their size, a clone within the clone, a merge that is not finished."""
    (clone.root / "weights").write_bytes(b"0" * (store.MOST_NEW_BYTES + 1))
    with pytest.raises(GitOperationError, match="at most 10485760 are recorded"):
        found(clone, record=True)
    (clone.root / "weights").unlink()
    git(clone.root, "init", "-q", "inner")
    (clone.root / "inner" / "x").touch()
    git(clone.root / "inner", "add", ".")
    git(clone.root / "inner", "commit", "-q", "-m", "x")
    with pytest.raises(GitOperationError, match="inner/ is a repository of its own"):
        found(clone, record=True)
    shutil.rmtree(clone.root / "inner")
    git(clone.root, "switch", "-q", "-c", "other")
    committed(clone, "two")
    git(clone.root, "switch", "-q", "main")
    committed(clone, "three")
    with pytest.raises(subprocess.CalledProcessError):
        git(clone.root, "merge", "other")
    with pytest.raises(GitOperationError, match="a merge is not finished: value"):
        found(clone, record=True)


# ---------------------------------------------------------------- repositories of all kinds


def test_a_detached_head_a_linked_tree_and_a_bare_repository(clone: Clone, tmp_path: Path) -> None:
    """The source of a working tree is found wherever its repository is."""
    git(clone.root, "checkout", "-q", "--detach")
    before = clone.mine()
    assert clone.submit()[0] == 0
    assert clone.mine() == before
    git(tmp_path, "clone", "-q", "--bare", str(clone.root), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "-q", "--detach", str(tmp_path / "linked"), "HEAD")
    linked = Clone(
        root=tmp_path / "linked", base=tmp_path / "out2", config=tmp_path / "two.yaml", cli=clone.cli
    )
    linked.configure()
    before = linked.mine()
    assert linked.submit()[0] == 0
    assert linked.log() == ["one", str(linked.trees()[0])]
    assert linked.mine() == before
    git(tmp_path / "bare.git", "worktree", "remove", str(linked.root))
    assert linked.cli.within("cleanup", str(linked.base), "--yes").returncode == 0
    assert str(linked.base) not in git(tmp_path / "bare.git", "worktree", "list")


def test_submodules_come_from_the_clones_that_a_person_has(clone: Clone, tmp_path: Path) -> None:
    """At the commits of the source, nested ones too, offline; one that is not set up stays empty."""
    for name in ("inner", "outer", "absent"):
        git(tmp_path, "init", "-q", "-b", "main", name)
        (tmp_path / name / "value").write_text(f"{name}\n")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-q", "-m", name)
    git(tmp_path / "outer", "submodule", "--quiet", "add", str(tmp_path / "inner"), "inner")
    git(tmp_path / "outer", "commit", "-q", "-m", "inner")
    for name in ("outer", "absent"):
        git(clone.root, "submodule", "--quiet", "add", str(tmp_path / name), f"lib/{name}")
    git(clone.root, "submodule", "--quiet", "update", "--init", "--recursive")
    git(clone.root, "commit", "-q", "-m", "lib")
    git(clone.root, "submodule", "--quiet", "deinit", "--force", "lib/absent")
    for name in ("inner", "outer", "absent"):
        shutil.rmtree(tmp_path / name)
    before = clone.mine()
    clone.configure(["sh", "-c", "cat lib/outer/value lib/outer/inner/value; ls lib/absent # ${i}"])
    assert clone.submit()[0] == 0
    assert clone.log() == ["outer", "inner"]
    assert clone.mine() == before
    (clone.root / "lib" / "outer" / "value").write_text("edited\n")
    for project in ({}, {"git_dirty": "record"}):
        clone.configure(**project)
        code, _, errors = clone.submit()
        assert code == 2 and "the submodule lib/outer has changes of its own" in errors
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    for where in (clone.root, clone.root / "lib" / "outer", clone.root / "lib" / "outer" / "inner"):
        assert len(git(where, "worktree", "list").splitlines()) == 1


def test_where_there_is_no_source_the_config_is_refused(clone: Clone, tmp_path: Path) -> None:
    """No repository, no commit, no files (a bare repository), no git: each in words, and nothing written."""
    (tmp_path / "nothing").mkdir()
    git(tmp_path, "init", "-q", "empty")
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    for name, words in {
        "nothing": "there is no working tree of git (fatal: not a git repository",
        "empty": "the repository has no commit yet",
        "bare.git": "there is no working tree of git (fatal: this operation must be run in a work tree",
    }.items():
        clone.configure(cwd=str(tmp_path / name))
        code, _, errors = clone.submit()
        assert code == 2 and words in errors and "sweep.yaml" in errors and "project.git_isolation" in errors
    clone.configure()
    (tmp_path / "bin").mkdir()
    code, _, errors = clone.submit(env={"PATH": str(tmp_path / "bin")})
    assert code == 2 and "there is no `git` on this machine" in errors
    assert not clone.base.exists()


def test_the_environment_of_a_person_names_no_other_repository(clone: Clone, tmp_path: Path) -> None:
    """As within a hook, or in a shell that has set one of git's variables."""
    git(tmp_path, "init", "-q", "other")
    elsewhere = str(tmp_path / "other")
    variables = {
        "GIT_DIR": f"{elsewhere}/.git",
        "GIT_WORK_TREE": elsewhere,
        "GIT_INDEX_FILE": f"{elsewhere}/index",
        "GIT_OBJECT_DIRECTORY": f"{elsewhere}/objects",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "true",
    }
    before = clone.mine()
    code, _, errors = clone.submit(env=variables)
    assert (code, errors) == (0, "")
    assert clone.log()[0] == "one" and clone.mine() == before
    opened = replay(clone.paths).opened
    assert opened is not None and opened.provenance["git"]["commit"] == str(before["commit"]).strip()
    assert not (tmp_path / "other" / "index").exists() and not (tmp_path / "other" / "objects").exists()


def test_no_hook_runs_and_no_configured_diff_is_asked(clone: Clone, tmp_path: Path) -> None:
    """What a person has configured changes neither the diff nor what is made of it."""
    for name in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction"):
        hook = clone.root / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        hook.chmod(0o755)
    for key, value in {
        "diff.external": f"touch {tmp_path}/ran",
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.ignoreSubmodules": "all",
        "apply.whitespace": "fix",
        "core.autocrlf": "input",
        "status.showUntrackedFiles": "no",
        "color.ui": "always",
        "core.pager": f"touch {tmp_path}/ran",
    }.items():
        git(clone.root, "config", key, value)
    (clone.root / "value").write_text("two  \n")
    clone.configure(git_dirty="record")
    assert clone.submit()[0] == 0
    assert clone.log()[0] == "two  "
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- branches


def branches(clone: Clone) -> list[str]:
    return git(clone.root, "for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines()


def test_a_branch_of_its_own_holds_the_commit(clone: Clone) -> None:
    """One more branch, named after project, time and commit; the person's own is checked out as before."""
    clone.configure(git_isolation="branch", name="my runs: é")
    before = clone.mine()
    code = clone.submit()[0]
    assert code == 0
    ours, main = sorted(branches(clone), reverse=True)
    assert main == "main"
    kind, project, at, commit = ours.split("/")
    assert kind == "slurm-job" and project.startswith("my-runs-") and at.isdigit()
    assert str(before["commit"]).startswith(commit) and len(commit) == 8
    git(clone.root, "check-ref-format", f"refs/heads/{ours}")
    assert {**clone.mine(), "refs": ""} == {**before, "refs": ""}
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    assert branches(clone) == ["main"]


def test_a_branch_that_holds_what_nothing_else_holds_stays(clone: Clone) -> None:
    """Commits on it, or a commit that the person's own branches have lost: cleanup keeps them."""
    clone.configure(git_isolation="branch")
    assert clone.submit()[0] == 0
    git(clone.root, "commit", "-q", "--amend", "-m", "rewritten")
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    assert len(branches(clone)) == 2


def test_two_sessions_in_one_second_have_two_branches(clone: Clone, tmp_path: Path) -> None:
    source = store.find(clone.root, mode="branch", record=False, ours=[], effects=Effects()).source
    for number in range(3):
        paths = SessionPaths(tmp_path / f"session{number}")
        store.make(source, paths, Effects(), experiment="tiny", now=1_700_000_000.5)
    commit = source.commit[:8]
    assert branches(clone) == [
        "main",
        *(f"slurm-job/tiny/{at}/{commit}" for at in (1700000000, 1700000001, 1700000002)),
    ]


# ---------------------------------------------------------------- deaths, and several at once


@pytest.mark.parametrize("mode", ["worktree", "branch"])
def test_a_death_at_any_effect_leaves_nothing_that_is_used(clone: Clone, tmp_path: Path, mode: str) -> None:
    """Whatever is left is either complete or made again; the person's repository is the same throughout."""
    change(clone, "two")
    before = clone.mine()
    planned = store.find(clone.root, mode=mode, record=True, ours=[], effects=Effects())
    at, deaths = 0, 0
    while True:
        at += 1
        paths = SessionPaths(tmp_path / f"session{at}")
        source = planned.source.with_diff(str(tmp_path / f"{at}.diff"))
        dying = Fatal(at)
        try:
            store.make(source, paths, dying, experiment="tiny", now=0, changes=planned.changes)
        except Killed:
            deaths += 1
        else:
            break
        if store.is_there(paths, source.key):
            assert (paths.source(source.key) / "value").read_text() == "two\n"
        place = store.make(source, paths, Effects(), experiment="tiny", now=0, changes=planned.changes)
        assert (place / "value").read_text() == "two\n"
        assert store.drift(paths, source.key, Effects()) == ""
        removed = Fatal(1 + at % 8)
        with contextlib.suppress(Killed):
            store.remove(store.read(paths, source.key) or source, paths, removed)
        for left in store.recorded(paths):
            store.remove(left, paths, Effects())
        assert not place.exists() and str(paths.state_dir) not in git(clone.root, "worktree", "list")
        after = clone.mine()
        if mode == "branch":
            # The branch is only given up while another holds its commit, and main does.
            assert branches(clone) == ["main"]
        assert after == before
    assert deaths > 20


def test_submits_at_once_make_one_working_tree(clone: Clone) -> None:
    """Of one session: one of them leads. Of several on one repository: each has its own."""
    other = Clone(
        root=clone.root,
        base=clone.base.with_name("out2"),
        config=clone.config.with_name("b.yaml"),
        cli=clone.cli,
    )
    other.configure(name="tiny2")
    before = clone.mine()
    running = [
        clone.cli.start("submit", str(config), "--json", stderr=subprocess.PIPE)
        for config in (clone.config, other.config) * 3
    ]
    ended = [process.communicate(timeout=120) for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors
    assert len(clone.trees()) == len(other.trees()) == 1
    assert len(git(clone.root, "worktree", "list").splitlines()) == 3
    assert clone.mine() == before
    for each in (clone, other):
        session = replay(each.paths)
        assert [len(job.attempts) for job in session.jobs.values()] == [1, 1]


HOLD = """
import sys, time
from oellm_autoexp import GitOperationLock
with GitOperationLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_the_lock_waits_times_out_and_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    """Also by SIGKILL; it is not re-entrant, and the same object may be used again."""
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(GitOperationError, match=r"another process holds it for longer than 0\.1 s"):
            GitOperationLock(path, timeout=0.1).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock = GitOperationLock(str(path), timeout=60.0)
        for _ in range(2):
            with lock, pytest.raises(GitOperationError, match="this process holds it already"), lock:
                pass
        with GitOperationLock(path, timeout=0):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with (
        pytest.raises(GitOperationError, match="cannot be opened: No such file"),
        GitOperationLock(tmp_path / "none" / "lock"),
    ):
        pass


# ---------------------------------------------------------------- restarts


def test_a_restart_says_that_its_source_is_not_what_was_planned(clone: Clone) -> None:
    """Somebody has edited what jobs run from; the first attempt is told of nothing."""
    value = "chmod u+w value; echo edited > value; exit 3"
    clone.configure(["sh", "-c", f"test $AUTOEXP_ATTEMPT = 2 || {{ {value}; }} # ${{i}}"])
    code, _, errors = clone.submit()
    place = clone.trees()[0]
    assert code == 0
    assert errors.count("a restart runs from another source") == 1
    assert f"value of the source {place} is not as it was planned" in errors


def test_without_isolation_a_restart_says_that_the_clone_has_moved_on(clone: Clone) -> None:
    """Once, however many jobs start again."""
    commit = "git -c user.name=a -c user.email=b commit -q --allow-empty -m two"
    failing = f"cd {clone.root}; test $AUTOEXP_ATTEMPT = 2 || {{ test $0 = 1 || {commit}; exit 3; }}"
    clone.configure(["sh", "-c", failing, "${i}"], git_isolation=None)
    done = Cli(clone.root, home=clone.root.parent / "home").within("submit", str(clone.config))
    assert done.returncode == 0
    assert done.stderr.count("a restart runs from another source") == 1
    assert "is at commit" in done.stderr


def test_a_source_that_was_taken_away_is_made_again_for_a_restart(clone: Clone) -> None:
    """From its record and its diff, by whoever leads; jobs do not begin without it."""
    change(clone, "two")
    away = clone.base.parent / "away"
    command = f'cat value; test $AUTOEXP_ATTEMPT = 2 || {{ mkdir -p {away}; mv "$PWD" {away}/$0; exit 3; }}'
    clone.configure(["sh", "-c", command, "${i}"], git_dirty="record")
    body = json.loads(clone.config.read_text())
    body["sweep"]["axes"]["i"] = [0]
    clone.config.write_text(json.dumps(body))
    assert clone.submit()[0] == 0
    assert [clone.log(attempt=1), clone.log(attempt=2)] == [["two"], ["two"]]


def test_jobs_wait_while_their_source_cannot_be_made(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts and nothing is charged; then it goes on."""
    monkeypatch.setattr(perform, "DEFER_S", 0.0)
    assert clone.submit()[0] == 0
    key = clone.trees()[0].name
    git(clone.root, "worktree", "remove", "--force", "--force", str(clone.trees()[0]))
    clone.root.rename(clone.root.with_name("moved"))
    assert clone.cli.within("retry", str(clone.base), "tiny_i0", "--yes").returncode == 0
    job = replay(clone.paths).jobs["tiny_i0"]
    assert not job.state.ended and not list(clone.paths.state_dir.glob("attempts/tiny_i0/2/start*"))
    clone.root.with_name("moved").rename(clone.root)
    assert clone.cli.within("monitor", str(clone.base)).returncode == 0
    assert store.is_there(clone.paths, key) and clone.log(attempt=2)[0] == "one"


# ---------------------------------------------------------------- cleanup


def test_cleanup_leaves_what_a_live_attempt_uses(clone: Clone) -> None:
    clone.configure(["sh", "-c", "echo up; sleep 1000 # ${i}"])
    with clone.cli.leader("submit", str(clone.config), "--json"):
        until(lambda: list(clone.paths.state_dir.glob("attempts/*/1/start*")), "jobs have started")
    refused = clone.cli.within("cleanup", str(clone.base), "--yes")
    assert refused.returncode == 3 and "have not ended" in refused.stdout
    assert (clone.trees()[0] / "value").read_text() == "one\n"
    assert clone.cli.within("cancel", str(clone.base), "--yes").returncode in (0, 1)
    clone.cli.within("monitor", str(clone.base))
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    assert not clone.paths.sources.exists()
    assert len(git(clone.root, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("written", ["model.pt", "data", "value"])
def test_cleanup_leaves_what_jobs_have_written_into_their_source(clone: Clone, written: str) -> None:
    """New files, ignored files and changed ones: they may be results. What Python caches is nobody's."""
    clone.configure(
        ["sh", "-c", f"mkdir -p __pycache__; touch __pycache__/x.pyc; echo result > {written} # ${{i}}"]
    )
    assert clone.submit()[0] == 0
    refused = clone.cli.within("cleanup", str(clone.base), "--yes")
    path = clone.trees()[0] / written
    assert refused.returncode == 3 and f"its jobs have written into their source: {path}" in refused.stdout
    assert path.read_text() == "result\n"
    git(path.parent, "clean", "-q", "-d", "-f", "-x")
    git(path.parent, "checkout", "-q", ".")
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0


def test_cleanup_leaves_a_source_whose_repository_is_gone(clone: Clone) -> None:
    """What is in it cannot be told from results; once a person has removed it, the rest goes."""
    assert clone.submit()[0] == 0
    shutil.rmtree(clone.root)
    refused = clone.cli.within("cleanup", str(clone.base), "--yes")
    assert refused.returncode == 3 and "its repository" in refused.stdout and "is gone" in refused.stdout
    shutil.rmtree(clone.trees()[0])
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    assert not clone.paths.state_dir.exists()


def test_cleanup_takes_the_diff_with_the_scripts(clone: Clone) -> None:
    change(clone, "two")
    before = clone.mine()
    clone.configure(git_dirty="record")
    assert clone.submit()[0] == 0
    assert clone.cli.within("cleanup", str(clone.base), "--yes").returncode == 0
    assert not (clone.base / "scripts").exists() and clone.mine() == before


# ---------------------------------------------------------------- before anything is submitted


def test_doctor_names_what_stands_in_the_way(clone: Clone, tmp_path: Path) -> None:
    """And what of a command lies in the person's own tree."""
    assert clone.cli.within("doctor", str(clone.config), "--json").returncode == 0
    change(clone, "two")
    (tmp_path / "bin").mkdir()
    for name in ("python3", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    for env, words in (({}, "value changed"), ({"PATH": str(tmp_path / "bin")}, "there is no `git`")):
        done = clone.cli.within("doctor", str(clone.config), "--json", env=env)
        faults = [row["what"] for row in json.loads(done.stdout)["findings"] if row["check"] == "source"]
        assert done.returncode == 1 and len(faults) == 1 and words in faults[0]


def test_a_command_that_names_a_persons_own_tree_is_warned_of(clone: Clone) -> None:
    """Not where that is the place for outputs."""
    clone.configure(
        ["cat", str(clone.root / "value"), "${job.output_dir}", "${i}"],
        base_output_dir=str(clone.root / "runs"),
    )
    shown = clone.cli.within("plan", str(clone.config))
    assert shown.returncode == 0
    (warning,) = [line for line in shown.stderr.splitlines() if "does not keep it apart" in line]
    assert warning.startswith(f"warning: {clone.root / 'value'} of tiny_i0 lies in your working tree")


def test_what_is_only_played_or_shown_makes_nothing(clone: Clone) -> None:
    before = git(clone.root, "worktree", "list")
    assert clone.cli.within("submit", str(clone.config), "--fake", "--yes").returncode == 0
    assert clone.cli.within("plan", str(clone.config), "--dry-run").returncode == 0
    assert git(clone.root, "worktree", "list") == before
