"""`report`: one file about a session, to send to a colleague."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from oellm_autoexp.cli.arguments import SessionRef
from oellm_autoexp.cli.finding import find_history
from oellm_autoexp.errors import UsageError

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def report(
    session: SessionRef = None,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="The file; PROJECT-report.html by default.")
    ] = None,
    form: Annotated[
        Optional[str], typer.Option("--format", help="html or md; by default what the file's name says.")
    ] = None,
) -> None:
    """Write one file about a session: what was asked, what happened and why, where the time went."""
    from oellm_autoexp.services import report as service
    from oellm_autoexp.services import views

    if form is None:
        form = _SUFFIXES.get(output.suffix.lower(), "html") if output is not None else "html"
    if form not in service.FORMS:
        raise UsageError(f"--format is html or md, not {form!r}")
    paths, past = find_history(session)
    text = service.report(past, paths, form, views.moment(past.session, time.time()))
    path = output if output is not None else Path(f"{past.session.opened.project}-report.{form}")
    service.write(text, path)
    typer.echo(f"Written: {path.absolute()}")
