"""Checks of this machine and of what a config names on it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from oellm_autoexp import __version__
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import ConfigError, StateError
from oellm_autoexp.planning.provenance import redacted
from oellm_autoexp.rendering import templates
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.schedulers.slurm.text import options_of_shell
from oellm_autoexp.services import source as sources
from oellm_autoexp.services.doctor.site import Finding, Site, fault, ok, warning
from oellm_autoexp.services.plan import require_group
from oellm_autoexp.services.session import known_sessions
from oellm_autoexp.store.journal import leader_alive

_IMAGE = re.compile(r"\S+\.(?:sif|img|sqsh|squashfs)")


def versions(site: Site) -> Iterator[Finding]:
    """The versions that a report of a mistake needs."""
    yield ok(f"oellm-autoexp {__version__}, Python {platform.python_version()}, Linux {platform.release()}")
    if site.path_of("python3") is None:
        fix = "load a module that has one, in slurm.setup and here"
        yield fault("no `python3` on PATH: jobs run within a guard that needs 3.6 or newer", fix)


def shell(site: Site) -> Iterator[Finding]:
    """Variables of this shell that would change what Slurm's commands do."""
    dropped = site.environ.keys() - clean_environment(site.environ).keys()
    names = sorted(name for name in dropped if name.startswith("S"))
    job = site.environ.get("SLURM_JOB_ID")
    if job:
        yield warning(
            f"this shell is inside job {job}: when that ends, so does a loop that is started here",
            "start it on a login node; what is submitted gets none of the job's SLURM_* variables",
        )
    for name, option in options_of_shell(site.environ).items():
        taken = redacted(option, name)
        what = f"{name} is set in this shell; sbatch would take it as {taken}, a session does not"
        key = option.removeprefix("--").partition("=")[0]
        yield warning(what, f"where it is wanted, write slurm.sbatch.{key}")
    others = [name for name in names if not name.startswith(("SBATCH_", "SLURM_"))]
    if others:
        what = f"{', '.join(others)} of this shell have no effect on a session"
        yield warning(what, "nothing needs to be done; `unset` them to see what a session sees")
    if not names:
        yield ok("no SBATCH_* or SLURM_* variables in this shell")


def rights(site: Site) -> Iterator[Finding]:
    """Who may read what: the umask, and the group that the state is open to."""
    mask = os.umask(0o077)
    os.umask(mask)
    group = site.plan.loaded.composed.project.group if site.plan is not None else None
    if group is None:
        yield ok(f"umask {mask:04o}; the state of sessions is readable by you alone")
        return
    assert site.plan is not None
    try:
        require_group(site.plan.loaded)
    except StateError as error:
        yield fault(f"{error.where} {error.what}", error.hint)
    else:
        yield ok(f"the session's state is open to the group {group}")
    if mask & 0o050:
        what = f"umask {mask:04o}: what the jobs write is closed to the group {group}"
        yield warning(what, "put `umask 0027` into slurm.setup")


def staying(site: Site) -> Iterator[Finding]:
    """What keeps a loop going when you leave."""
    if site.path_of("tmux") is None:
        yield warning("no tmux here", "`submit --detach` watches in the background without it")
    else:
        yield ok("tmux is here")
    if site.path_of("crontab") is None:
        yield warning(
            "no crontab here: nothing starts a loop again after a reboot", "`monitor` does so by hand"
        )
    else:
        yield ok("crontab is here")


def sessions(site: Site) -> Iterator[Finding]:
    """Who watches what has not come to its end."""
    if site.plan is not None:
        found = [(site.plan.loaded.project, site.plan.loaded.paths)]
    else:
        entries = [entry for entry in known_sessions() if not entry.gone]
        found = [(entry.name, SessionPaths(Path(entry.state_dir))) for entry in entries]
    for name, paths in found:
        if not paths.journal.is_dir():
            continue
        leader = leader_alive(paths)
        if leader is not None:
            yield ok(f"process {leader.pid} on {leader.host} watches the session {name}")
        elif paths.snapshot.exists():
            # It is removed when every job has ended.
            fix = f"oellm-autoexp monitor {shlex.quote(str(paths.state_dir))}"
            yield warning(f"nobody watches the session {name}, which has jobs without a verdict", fix)


# ---------------------------------------------------------------- what a config names


def launchers(site: Site) -> Iterator[Finding]:
    """What stands before the command is on this machine, and so are the images it names."""
    seen: set[str] = set()
    for request in site.requests:
        launch = templates.launcher(request.slurm)
        if launch.whole in seen:
            continue
        seen.add(launch.whole)
        yield from _launcher(site, request, launch.whole)


def _launcher(site: Site, request: ScriptRequest, text: str) -> Iterator[Finding]:
    words = _words(text)
    programs = [word for word in words[:1] if "$" not in word]
    programs += [word for word in words[1:] if word in ("apptainer", "singularity", "torchrun", "srun")]
    if not text and not request.setup:
        programs = [request.argv[0]]
    for program in dict.fromkeys(programs):
        if site.path_of(program) is not None or Path(request.cwd or ".", program).is_file():
            yield ok(f"`{program}` is here")
        else:
            what = f"no `{program}` on this machine, with which {request.name} begins"
            yield warning(what, "where compute nodes have it, all is well; else load it in slurm.setup")
    for image in _IMAGE.findall(text):
        path = Path(request.cwd or ".", image)
        if "$" not in image and ":" not in image:
            if path.is_file():
                yield ok(f"the image {image} is there")
            else:
                yield fault(f"there is no image {path}", "build or copy it, or mend slurm.launcher_cmd")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def source(site: Site) -> Iterator[Finding]:
    """What the jobs run from, where it is kept apart from the person's own working tree."""
    if site.plan is None:
        return
    try:
        planned = sources.planned(site.plan.loaded)
    except ConfigError as error:
        for each in error.faults:
            yield fault(f"{each.key}: {each.what}", each.hint)
        return
    if planned is None:
        return
    found = f"jobs run from {planned.source.root} at {planned.source.commit[:8]}"
    yield ok(f"{found}, with {len(planned.changes)} bytes of changes" if planned.changes else found)
    for text in sources.exposed(replace(site.plan, source=planned)):
        yield warning(text, "or leave project.git_isolation out")


def env_files(site: Site) -> Iterator[Finding]:
    """Files with secrets are readable by their owner alone."""
    for name in dict.fromkeys(str(request.slurm.get("env_file") or "") for request in site.requests):
        if not name:
            continue
        try:
            mode = stat.S_IMODE(Path(name).stat().st_mode)
        except OSError as error:
            yield fault(f"slurm.env_file {name}: {error.strerror}", "write it, or leave the key out")
            continue
        if mode & 0o077:
            yield warning(f"slurm.env_file {name} has mode {mode:04o}", f"chmod 600 {shlex.quote(name)}")
        else:
            yield ok(f"slurm.env_file {name} is readable by you alone")
