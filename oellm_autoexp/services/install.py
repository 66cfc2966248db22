"""What brings a loop back: installed once, started by cron, systemd or Slurm, removed without a trace.

Everything is known by the session's name (`daemon.name_of`), so nothing has to be remembered.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import StateError, UsageError
from oellm_autoexp.rendering import supervisors
from oellm_autoexp.schedulers.local import LocalScheduler
from oellm_autoexp.schedulers.processes import clean_environment
from oellm_autoexp.services import daemon
from oellm_autoexp.store.effects import Effects, Ran
from oellm_autoexp.store.registry import Registry

CRON, SYSTEMD, IN_JOB = "cron", "systemd", "in-job"
KINDS = (CRON, SYSTEMD, IN_JOB)
#: How long one of their commands may take.
COMMAND_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the things of one session are; `log` is what the loop writes to."""

    name: str
    state_dir: Path
    log: Path
    script: Path
    job: Path
    unit: Path


@dataclass(kw_only=True)
class Done:
    """What was done, or would be: files by their text, sentences, and commands that are left to a person."""

    kind: str
    files: dict[Path, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def place_of(paths: SessionPaths, session: Session) -> Place:
    """Where the things of a session go.

    Raises:
        UsageError: this user has no home directory, or a path cannot stand in a line.
    """
    home = Registry().home
    if home is None:
        raise UsageError("this user has no home directory", hint="set XDG_STATE_HOME")
    config = os.environ.get("XDG_CONFIG_HOME", "")
    units = (Path(config) if config.startswith("/") else Path.home() / ".config") / "systemd" / "user"
    name = daemon.name_of(paths, session)
    for path in (home, units, paths.state_dir):
        if not str(path).isprintable():
            raise UsageError("has a character that no line of a crontab can hold", where=repr(str(path)))
    return Place(
        name=name,
        state_dir=paths.state_dir,
        log=paths.daemon_log,
        script=home / "daemon" / f"{name}.sh",
        job=home / "daemon" / f"{name}.sbatch",
        unit=units / f"oellm-autoexp-{name}.service",
    )


def install(
    kind: str,
    paths: SessionPaths,
    session: Session,
    effects: Effects,
    *,
    options: Mapping[str, str | bool] | None = None,
    dry_run: bool = False,
) -> Done:
    """Have a session led again after a reboot; twice is once. `options`: of sbatch(1), for a job.

    Raises:
        UsageError: this way is none for the session or on this machine.
        StateError: a command of cron or Slurm failed; what it said.
    """
    place = place_of(paths, session)
    done = Done(kind=kind)
    program = daemon.program()
    done.files[place.script] = supervisors.script(program, str(place.state_dir), os.environ)
    if kind == CRON:
        before = _crontab(effects)
        after = supervisors.with_lines(before, str(place.script), place.name)
        if dry_run:
            lines = "\n".join(supervisors.cron_lines(str(place.script), place.name))
            done.files[Path("crontab")] = lines + "\n"
            return done
        _write(done, effects)
        done.said.append("crontab: nothing to change" if before == after else "crontab: two lines added")
        if before != after:
            _set_crontab(after, place, effects)
    elif kind == SYSTEMD:
        done.files[place.unit] = supervisors.unit(str(place.script), place.name, str(place.log))
        if not dry_run:
            _write(done, effects)
            _open_log(paths)
            _enable(place, done, effects, now=not daemon.standing(paths, session, 0.0).leader)
    else:
        _require_slurm(session)
        wanted = {**_account(session), **(options or {})}
        text = supervisors.job(str(place.script), str(place.job), place.name, str(place.log), wanted)
        done.files[place.job] = text
        if not dry_run:
            _write(done, effects)
            _open_log(paths)
            _chain(place, done, effects)
    return done


def uninstall(
    paths: SessionPaths, session: Session, effects: Effects, *, dry_run: bool = False
) -> Sequence[str]:
    """Remove what `install` has installed, and nothing else; what was removed, or would be.

    A loop that systemd or Slurm has started ends with its unit or job; the session's jobs go on.

    Raises:
        StateError: a command of cron or Slurm failed; what it said.
    """
    place = place_of(paths, session)
    found = []
    if shutil.which("crontab"):
        before = _crontab(effects)
        after = supervisors.without_lines(before, place.name)
        if before != after:
            found.append("two lines of the crontab")
            if not dry_run:
                _set_crontab(after, place, effects)
    if place.unit.exists():
        found.append(str(place.unit))
        if not dry_run:
            if shutil.which("systemctl"):
                _run(effects, "systemctl", "--user", "disable", "--now", place.unit.name)
            effects.unlink(place.unit)
            if shutil.which("systemctl"):
                _run(effects, "systemctl", "--user", "daemon-reload")
    if place.job.exists():
        jobs = _queued(place, effects)
        found += [str(place.job), *(f"job {job}" for job in jobs)]
        if not dry_run:
            # The last one first: it waits for the others' end.
            for job in sorted(jobs, key=lambda job: (len(job), job), reverse=True):
                _expect(_run(effects, "scancel", job), "scancel")
            effects.unlink(place.job)
    if place.script.exists():
        found.append(str(place.script))
        if not dry_run:
            effects.unlink(place.script)
    return found


def installed(paths: SessionPaths, session: Session, effects: Effects) -> list[str]:
    """The ways in which a session comes back on this host, as far as can be seen without asking Slurm."""
    try:
        place = place_of(paths, session)
        with_cron = shutil.which("crontab") and supervisors.mark(place.name) in _crontab(effects)
    except (UsageError, StateError):
        return []
    there = {CRON: bool(with_cron), SYSTEMD: place.unit.exists(), IN_JOB: place.job.exists()}
    return [kind for kind in KINDS if there[kind]]


# ---------------------------------------------------------------- files and commands


def _write(done: Done, effects: Effects) -> None:
    for path, text in done.files.items():
        try:
            if path.is_file() and path.read_text() == text:
                continue
            effects.mkdir(path.parent)
            effects.write(path, text.encode(), mode=0o700 if path.suffix == ".sh" else 0o600)
        except OSError as error:
            raise StateError(f"cannot be written: {error.strerror}", where=str(path)) from error
        done.said.append(f"written: {path}")


def _open_log(paths: SessionPaths) -> None:
    """The log as open as the state, before somebody else makes it with a umask."""
    Effects.of(paths.state_dir).append(paths.daemon_log, b"", private=True)


def _run(effects: Effects, *argv: str) -> Ran:
    environment = {**clean_environment(), "LC_ALL": "C"}
    try:
        # Bytes that are no UTF-8 come back as they were.
        return effects.run(argv, env=environment, cwd=None, timeout_s=COMMAND_S, errors="surrogateescape")
    except OSError as error:
        return Ran(None, "", f"{argv[0]}: {error.strerror}")


def _expect(ran: Ran, what: str) -> str:
    if ran.status != 0:
        why = ran.errors.strip() or ran.output.strip() or f"no answer within {COMMAND_S:.0f} s"
        raise StateError(f"{what} failed: {why}", hint="nothing else was changed")
    return ran.output


def _crontab(effects: Effects) -> str:
    """The crontab of this user.

    Raises:
        UsageError: there is no cron, or this user may not use it.
    """
    ran = _run(effects, "crontab", "-l")
    if ran.status == 0:
        return ran.output
    if "no crontab for" in ran.errors:
        return ""
    why = ran.errors.strip() or "it does not answer"
    raise UsageError(f"cron cannot be used here: {why}", hint="try --systemd, or --in-job")


def _set_crontab(text: str, place: Place, effects: Effects) -> None:
    if not text:
        _expect(_run(effects, "crontab", "-r"), "crontab")
        return
    file = place.script.with_suffix(".crontab")
    effects.write(file, text.encode(errors="surrogateescape"))
    try:
        # Not as an argument: Debian's crontab(1) cuts the name of a file off behind 100 bytes.
        _expect(_run(effects, "sh", "-c", 'exec crontab - < "$1"', "sh", str(file)), "crontab")
    finally:
        effects.unlink(file)


def _enable(place: Place, done: Done, effects: Effects, *, now: bool) -> None:
    """Do what can be done about the unit; from the first command that fails on, it is left to a person."""
    start = ("--now",) if now else ()
    commands = [
        ("systemctl", "--user", "daemon-reload"),
        ("systemctl", "--user", "enable", *start, place.unit.name),
        # Without it, units of a user begin with the first login and end with the last logout.
        ("loginctl", "enable-linger"),
    ]
    for number, command in enumerate(commands):
        ran = _run(effects, *command)
        if ran.status != 0:
            done.said.append(f"{' '.join(command)}: {ran.errors.strip() or 'no answer'}")
            done.left = [shlex.join(each) for each in commands[number:]]
            return
        done.said.append(f"done: {' '.join(command)}")


def _require_slurm(session: Session) -> None:
    scheduler = session.opened.scheduler.get("class_name") if session.opened is not None else None
    if scheduler == LocalScheduler.__name__:
        what = "the jobs of this session are processes of this machine; those of a job would end with it"
        raise UsageError(what, hint="use --cron or --systemd")
    if session.stopped:
        what = "the session was stopped and stays so, so that the job would end at once"
        raise UsageError(what, hint="lead it again first (`oellm-autoexp monitor`, then Ctrl-C)")


def _account(session: Session) -> dict[str, str | bool]:
    """The account that the session's own jobs are charged to, where there is one for all."""
    made_from: Mapping[str, Any] = session.opened.provenance if session.opened is not None else {}
    slurm = (made_from.get("config") or {}).get("slurm") or {}
    account = (slurm.get("sbatch") or {}).get("account")
    return {"account": account} if isinstance(account, str) and account.isprintable() else {}


def _queued(place: Place, effects: Effects) -> list[str]:
    """The jobs of this name in the queue."""
    me = str(os.getuid())
    ran = _run(effects, "squeue", "--noheader", "--user", me, "--name", place.name, "--format", "%A")
    return _expect(ran, "squeue").split()


def _chain(place: Place, done: Done, effects: Effects) -> None:
    there = _queued(place, effects)
    if there:
        done.said.append(f"in the queue already: job {', '.join(there)}")
        return
    answer = _expect(_run(effects, "sbatch", "--parsable", str(place.job)), "sbatch")
    done.said.append(f"submitted: job {answer.strip().partition(';')[0]}")
