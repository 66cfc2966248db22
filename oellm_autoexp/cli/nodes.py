"""`nodes`: which nodes are left out and why, and a person's word about them."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete
from oellm_autoexp.cli.arguments import AsJson, SessionRef
from oellm_autoexp.cli.finding import find_session
from oellm_autoexp.errors import UsageError

VERBS = ("exclude", "forgive")


def nodes(
    session: SessionRef = None,
    verb: Annotated[
        Optional[str],
        typer.Argument(help="exclude or forgive; without, list.", autocompletion=complete.verbs),
    ] = None,
    names: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="Names, or lists as n[01-08].", metavar="[NODES]...", autocompletion=complete.nodes
        ),
    ] = None,
    why: Annotated[str, typer.Option("--why", help="A note, shown beside an excluded node.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show nodes that jobs are kept off, or suspected; exclude or forgive some."""
    from oellm_autoexp.services import session as service
    from oellm_autoexp.services import views
    from oellm_autoexp.services.lead import command

    if session in VERBS:
        # `nodes exclude n17`: the session is the one here.
        names, verb, session = [*([verb] if verb else []), *(names or [])], session, None
    if verb is None:
        _list(session, as_json)
        return
    if verb not in VERBS:
        raise UsageError(f"`nodes` can {' and '.join(VERBS)}, not {verb!r}")
    if not names:
        raise UsageError(f"{verb} which nodes?", hint=f"oellm-autoexp nodes SESSION {verb} n17 'n[20-23]'")
    paths, _ = find_session(session)
    ok, text = command(paths, verb, {"nodes": names, "why": why})
    if as_json:
        state = service.replay(paths)
        found = views.suspects(state, views.moment(state, time.time()))
        typer.echo(json.dumps({"ok": ok, "answer": text, "nodes": found}, indent=2))
    else:
        typer.echo(text, err=not ok)
    raise typer.Exit(0 if ok else 3)


def _list(session: str | None, as_json: bool) -> None:
    from oellm_autoexp.services import views

    paths, state = find_session(session)
    found = views.suspects(state, views.moment(state, time.time()))
    if as_json:
        typer.echo(json.dumps({"session": str(paths.state_dir), "nodes": found}, indent=2))
        return
    if not found:
        typer.echo("Nothing speaks against any node.")
        return
    from oellm_autoexp.cli.render import flat

    shown = [[row["node"], row["state"], f"{row['score']:.2f}", _until(row), row["why"]] for row in found]
    typer.echo(flat(["node", "state", "score", "until", "why"], shown, "md"), nl=False)


def _until(row: dict[str, Any]) -> str:
    if row["state"] != "excluded":
        return ""
    if row["until"] is None:
        return "it is forgiven"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(row["until"]))
