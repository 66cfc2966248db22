"""The command `adopt`: a job that runs already comes under signals and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from oellm_autoexp.cli import submit
from oellm_autoexp.cli.arguments import AsJson, ConfigDir, Local, Override, scheduler_flag


def adopt(
    identity: Annotated[str, typer.Argument(metavar="JOBID", help="What squeue calls it: 4711, or 4711_3.")],
    log: Annotated[Path, typer.Option("--log", metavar="PATH", help="The log that it writes.")],
    config: Annotated[
        Optional[str],
        typer.Option("--config", metavar="CONFIG_REF", help="Signals, policies, what to run again."),
    ] = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    name: Annotated[
        Optional[str], typer.Option("--name", help="The job of the config that it is; or what to call it.")
    ] = None,
    local: Local = False,
    no_watch: Annotated[
        bool, typer.Option("--no-watch", help="Only note it down; `monitor` watches.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a job that was submitted by hand, as if it had been submitted from here.

    Signals, actions and policies are those of --config. If that says what to run, a restart is an attempt of
    the config's job; else the job can only be watched, acted upon and ended. Done twice it changes nothing.
    """
    from oellm_autoexp.services.adopt import adopt as service
    from oellm_autoexp.services.session import leader_of

    paths, text = service(
        identity,
        log,
        config,
        config_dir,
        override or [],
        name=name,
        scheduler=scheduler_flag(local, fake=False),
    )
    leader = leader_of(paths)
    if not as_json:
        typer.echo(text)
    if leader is None and not no_watch:
        submit.monitor(str(paths.state_dir), as_json)
    elif not as_json:
        who = (
            f"Process {leader.pid} on {leader.host} watches." if leader is not None else "Nobody watches yet:"
        )
        typer.echo(
            f"{who}\n  oellm-autoexp {'status' if leader is not None else 'monitor'} {paths.state_dir}"
        )
    else:
        from oellm_autoexp.cli.watching import print_status
        from oellm_autoexp.services.session import history

        past = history(paths)
        print_status(past, paths, list(past.session.jobs.values()), as_json)
