"""`daemon`: a loop that goes on without a terminal, and comes back after a reboot."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete, submit
from oellm_autoexp.cli.arguments import (
    AsJson,
    ConfigDir,
    Fake,
    Local,
    Override,
    Scenario,
    SessionRef,
    Yes,
    scheduler_flag,
)
from oellm_autoexp.cli.finding import find_session
from oellm_autoexp.errors import NotLeader, UsageError

#: Lines of the daemon's log that `attach` begins with.
LINES = 40

Reference = Annotated[
    Optional[str],
    typer.Argument(
        metavar="[SESSION|CONFIG_REF]",
        help="A session that is there, or a config to submit first.",
        autocompletion=complete.sessions,
    ),
]


def start(
    reference: Reference = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    scenario: Scenario = None,
    update: Annotated[bool, typer.Option("--update", help="Take changed jobs.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Cancel jobs that the plan no longer has.")] = False,
    yes: Yes = False,
    revive: Annotated[
        bool, typer.Option("--revive", help="For cron: only what has died, not what was stopped; say little.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have a session led in a tmux session; without tmux, by a process behind the terminal.

    Where one leads already, nothing happens. A config is submitted first.
    """
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services.session import known_as

    about_a_config = config_dir is not None or override or local or fake or scenario or update or prune
    there = reference is None or (not about_a_config and known_as(reference) is not None)
    if there and not about_a_config:
        _start_session(reference, revive, as_json)
        return
    if revive:
        raise UsageError("--revive is for a session that is there already", hint="name the session alone")
    result = submit.planned(
        reference or "autoexp", config_dir, override, scheduler_flag(local, fake, scenario), scenario
    )
    submit.hand_in(result, update=update, prune=prune, yes=yes, as_json=as_json, begin=service.in_tmux)


def _start_session(reference: str | None, revive: bool, as_json: bool) -> None:
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services import lead as leading
    from oellm_autoexp.services import session as sessions

    paths, state = find_session(reference)
    if not state.jobs:
        raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
    leader = sessions.leader_of(paths)
    if leader is None or not leader.alive_here():
        rests = service.resting(state)
        if rests == "ended" or (revive and rests):
            if not revive:
                _print(paths, state, as_json)
            return
        try:
            watch = leading.Watch(warn=lambda text: None if revive else typer.echo(text, err=True))
            leader = service.hand_over(paths, leading.lead(paths, watch=watch), service.in_tmux)
        except NotLeader:
            # Another one was faster; or one lives on another host, where it cannot be attached to from here.
            leader = sessions.leader_of(paths)
            if revive:
                return
            if leader is None or not leader.alive_here():
                raise
    elif revive:
        return
    if leader is None:
        _print(paths, sessions.replay(paths), as_json)
    else:
        submit.print_leader(paths, leader, as_json)


def run(session: SessionRef = None, as_json: AsJson = False) -> None:
    """Lead a session here: what tmux, cron, systemd and jobs start. Ends at once where it was stopped.

    Exit code 0: nothing is left to do. How the jobs ended is for `status` to say.
    """
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services.session import replay

    paths, state = find_session(session)
    if service.resting(state):
        _print(paths, state, as_json)
        return
    try:
        submit.monitor(str(paths.state_dir), as_json)
    except typer.Exit as ended:
        if ended.exit_code in (0, 1) or replay(paths).stopped:
            raise typer.Exit(0) from None
        raise


def attach(session: SessionRef = None) -> None:
    """Bring the loop to this terminal; where it runs in no tmux session here, follow its log."""
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services.session import leader_of

    paths, state = find_session(session)
    shown = service.standing(paths, state, time.time())
    if shown.tmux and sys.stdin.isatty() and sys.stdout.isatty():
        argv = service.attaching(shown.tmux)
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    typer.echo(_sentence(shown, paths), err=True)
    text, position = service.tail_of(paths.daemon_log, LINES)
    typer.echo(text, nl=False)
    try:
        while True:
            # Asked before the log: what it wrote last is read once more.
            led = leader_of(paths) is not None
            with paths.daemon_log.open("rb") as file:
                file.seek(position)
                more = file.read()
            position += len(more)
            typer.echo(more.decode(errors="replace"), nl=False)
            if not led:
                return
            time.sleep(0.5)
    except FileNotFoundError:
        raise UsageError("no loop has run here in the background yet", where=str(paths.daemon_log)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def stop(session: SessionRef = None, as_json: AsJson = False) -> None:
    """End the loop of a session, and have it stay ended until `start`, `submit` or `monitor`. Jobs go on."""
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services.session import replay

    paths, _ = find_session(session)
    leader = service.stop(paths, warn=lambda text: typer.echo(text, err=True))
    state = replay(paths)
    if as_json:
        _print(paths, state, as_json)
        return
    who = f"Process {leader.pid} on {leader.host} has ended" if leader is not None else "Nobody led it"
    again = f"oellm-autoexp daemon start {paths.state_dir}"
    typer.echo(f"{who}. {state.live} job(s) go on running. Start it again: {again}")


def status(session: SessionRef = None, as_json: AsJson = False) -> None:
    """Say who leads a session, where, and since when.

    Exit code 0: it is led, or has ended; 1: nobody leads it, or a leader on another host is silent.
    """
    paths, state = find_session(session)
    shown = _print(paths, state, as_json)
    raise typer.Exit(0 if shown.runs or shown.state == "ended" else 1)


def install(
    session: SessionRef = None,
    cron: Annotated[bool, typer.Option("--cron", help="Lines in your crontab on this host.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="A unit of your systemd on this host.")] = False,
    in_job: Annotated[
        bool, typer.Option("--in-job", help="A one-core Slurm job that the next one follows.")
    ] = False,
    sbatch: Annotated[
        Optional[list[str]],
        typer.Option("--sbatch", metavar="OPTION=VALUE", help="With --in-job: partition=serial; repeat it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have the loop come back after a reboot. Installing it twice changes nothing."""
    from oellm_autoexp.services import install as service
    from oellm_autoexp.store.effects import Effects

    asked = [kind for kind, on in zip(service.KINDS, (cron, systemd, in_job), strict=True) if on]
    if len(asked) != 1:
        raise UsageError("choose one of --cron, --systemd and --in-job", hint="--dry-run shows what it does")
    if sbatch and not in_job:
        raise UsageError("--sbatch is for --in-job")
    paths, state = find_session(session)
    if not state.jobs:
        raise UsageError("nothing has been submitted here yet", where=str(paths.state_dir))
    done = service.install(asked[0], paths, state, Effects(), options=_options(sbatch or []), dry_run=dry_run)
    if as_json:
        files = {str(path): text for path, text in done.files.items()}
        row = {"kind": done.kind, "files": files, "said": done.said, "left": done.left, "dry_run": dry_run}
        typer.echo(json.dumps(row, indent=2))
        return
    if dry_run:
        for path, text in done.files.items():
            typer.echo(f"--- {path}\n{text}", nl=False)
        typer.echo("Nothing was written.")
        return
    typer.echo("\n".join(done.said))
    if done.left:
        typer.echo("Left for you to do:\n" + "\n".join(f"  {command}" for command in done.left))


def _options(words: list[str]) -> dict[str, str | bool]:
    """Options of sbatch(1) as they were typed: `partition=serial`, `exclusive`."""
    found: dict[str, str | bool] = {}
    for word in words:
        key, sign, value = word.lstrip("-").partition("=")
        if not key.replace("-", "").isalnum() or not value.isprintable():
            raise UsageError(f"{word!r} is no OPTION=VALUE", where="--sbatch")
        found[key] = value if sign else True
    return found


def uninstall(
    session: SessionRef = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what `install` has installed for a session, and nothing else. Its jobs go on."""
    from oellm_autoexp.services import install as service
    from oellm_autoexp.store.effects import Effects

    paths, state = find_session(session)
    found = service.uninstall(paths, state, Effects(), dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"removed": list(found), "dry_run": dry_run}, indent=2))
        return
    verb = "would be removed" if dry_run else "removed"
    typer.echo("\n".join(f"{verb}: {what}" for what in found) or "Nothing is installed for this session.")


def _print(paths: Any, state: Any, as_json: bool) -> Any:
    from oellm_autoexp.services import daemon as service
    from oellm_autoexp.services.install import installed
    from oellm_autoexp.store.effects import Effects

    shown = service.standing(paths, state, time.time())
    ways = installed(paths, state, Effects())
    if as_json:
        typer.echo(json.dumps(_row(shown, paths, ways), indent=2))
        return shown
    typer.echo(_sentence(shown, paths))
    if ways:
        typer.echo(f"It comes back by {', '.join(ways)}")
    return shown


def _row(shown: Any, paths: Any, ways: list[str]) -> dict[str, Any]:
    leader = shown.leader
    return {
        "session": str(paths.state_dir),
        "state": shown.state,
        "host": leader.host if leader else None,
        "pid": leader.pid if leader else None,
        "age_s": shown.age_s,
        "heartbeat_age_s": shown.heartbeat_age_s,
        "tmux": shown.tmux or None,
        "log": str(paths.daemon_log),
        "comes_back_by": ways,
    }


def _sentence(shown: Any, paths: Any) -> str:
    from oellm_autoexp.services.views import duration

    again = f"oellm-autoexp daemon start {paths.state_dir}"
    if shown.state == "ended":
        return "Nothing is left to do: every job has a verdict, or waits for `retry`"
    if shown.state == "stopped":
        return f"Stopped by a person; its jobs go on. Start it again: {again}"
    if shown.leader is None:
        return f"Nobody leads this session. Start it: {again}"
    leader = shown.leader
    parts = [f"Process {leader.pid} on {leader.host} leads for {duration(shown.age_s)}"]
    if shown.heartbeat_age_s is not None:
        parts.append(f"its last heartbeat is {duration(shown.heartbeat_age_s)} old")
    if shown.tmux:
        parts.append(f"in the tmux session {shown.tmux}")
    text = ", ".join(parts)
    if shown.state == "silent":
        text += (
            f"\nIt is probably dead, which cannot be told from here. `{again}` waits two minutes "
            "for a sign of life, and takes over where there is none"
        )
    return text
