"""`cleanup`: remove what ended sessions have left."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import AsJson, Yes
from oellm_autoexp.cli.finding import state_dir_of
from oellm_autoexp.errors import GitOperationError, StateError


def cleanup(
    sessions: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[SESSION]...", help="Which; all that are known.", autocompletion=complete.sessions
        ),
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="The logs of attempts, too.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List ended sessions with what they take up; with --yes remove their state and our scripts.

    Outputs and checkpoints stay, whatever is given.
    """
    from oellm_autoexp.services import cleanup as service

    found = service.candidates(sessions or [], state_dir_of)
    free = [each for each in found if not each.refused]
    if not as_json:
        for each in found:
            typer.echo(_line(each, logs))
        if not found:
            typer.echo("No session is known.")
        elif not free:
            typer.echo("Nothing to remove.")
    if free and not yes and not as_json:
        if sys.stdin.isatty():
            yes = typer.confirm(f"Remove {_sessions(len(free))}?")
        else:
            typer.echo(f"--yes removes {_sessions(len(free))}.")
    failed = [each for each in found if each.refused] if sessions and yes else []
    rows = [_row(each) for each in found]
    for each, row in zip(found, rows, strict=True):
        if yes and not each.refused:
            try:
                service.remove(each, logs=logs)
                row["removed"] = True
            except (StateError, GitOperationError) as error:
                failed.append(each)
                row["refused"] = error.what
                typer.echo(f"error: {error}", err=True)
    if as_json:
        typer.echo(json.dumps({"sessions": rows}, indent=2))
    elif any(row["removed"] for row in rows):
        typer.echo(f"Removed {_sessions(sum(row['removed'] for row in rows))}.")
    raise typer.Exit(3 if failed else 0)


def _sessions(number: int) -> str:
    return f"{number} session" + ("" if number == 1 else "s")


def _row(each: Any) -> dict[str, Any]:
    return {
        "name": each.name,
        "state_dir": str(each.paths.state_dir),
        "jobs": each.states,
        "gone": each.gone,
        "refused": each.refused,
        "state_bytes": each.state_bytes,
        "scripts": [str(path) for path in each.scripts.sizes],
        "scripts_bytes": each.scripts.total,
        "changed_scripts": [str(path) for path in each.changed],
        "logs": [str(path) for path in each.logs.sizes],
        "logs_bytes": each.logs.total,
        "removed": False,
    }


def _line(each: Any, logs: bool) -> str:
    from oellm_autoexp.services.space import size

    head = f"{each.name or '(no name)'}  {each.paths.state_dir}"
    if each.refused:
        return f"{head}\n  stays: {each.refused}"
    if each.gone:
        return f"{head}\n  only its name is left"
    states = ", ".join(f"{number} {state}" for state, number in each.states.items())
    parts = [f"state {size(each.state_bytes)}", f"{len(each.scripts)} scripts {size(each.scripts.total)}"]
    stay = "" if logs or not each.logs else " (stay without --logs)"
    parts.append(f"{len(each.logs)} logs {size(each.logs.total)}{stay}")
    if each.changed:
        parts.append(f"{len(each.changed)} scripts that are not as we wrote them stay")
    return f"{head}\n  {states}; {', '.join(parts)}"
