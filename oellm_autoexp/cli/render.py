"""Rows as tables for a terminal, plain text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oellm_autoexp.services.views import behind, duration

COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "pending": "blue",
    "submitted": "blue",
    "waiting": "dim",
    "unknown": "magenta",
}


def table(rows: Sequence[dict[str, Any]], *, title: str = "") -> Table:
    """The jobs of a session."""
    out = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ("job", "state"):
        out.add_column(name, no_wrap=True)
    out.add_column("tries", justify="right")
    out.add_column("ended by")
    for name in ("loss", "actions", "wall", "lost"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("reason, restarts", overflow="fold")
    for row in rows:
        loss = row["metrics"].get("loss")
        waits = [behind(**row["successor"], waits=row["state"] == "waiting")] if row["successor"] else []
        why = "; ".join([*row["decisions"], *([row["reason"]] if row["reason"] else []), *waits])
        out.add_row(
            row["name"],
            Text(row["state"], style=COLOURS[row["state"]]),
            str(row["attempts"]),
            ", ".join(row["ended_by"]),
            f"{loss:.4g}" if isinstance(loss, (int, float)) else "",
            ", ".join(_action(name, counts) for name, counts in row["actions"]["by_name"].items()),
            duration(row["wall_s"]),
            duration(row["lost_s"]) if row["lost_s"] else "",
            why,
        )
    return out


def _action(name: str, counts: dict[str, int]) -> str:
    open_ = f" (+{counts['open']})" if counts["open"] else ""
    return f"{name} {counts['done']}{open_}" + (f" {counts['failed']} failed" if counts["failed"] else "")


def flat(header: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> str:
    """Columns as Markdown or CSV."""
    rows = [[_plain(value) for value in row] for row in rows]
    if form == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([header, *rows])
        return text.getvalue()
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join("" if v is None else _cell(v) for v in line) + " |" for line in lines)
        + "\n"
    )


def _cell(value: Any) -> str:
    """A value that neither ends its cell nor its row; else as it is, for it is read on a terminal, too."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _plain(value: Any) -> Any:
    """A value of a column as people write it: a series keeps every number as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def printed(rows: Sequence[dict[str, Any]], *, title: str) -> None:
    """Print the table of jobs; where it is piped, without the blanks that fill its lines."""
    out = console()
    if out.is_terminal:
        out.print(table(rows, title=title))
        return
    with out.capture() as captured:
        out.print(table(rows, title=title))
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], left: Sequence[str] = ()
) -> None:
    """Print columns of plain text: those of `right` to the right, but for the names in `left`."""
    out = console()
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for at, name in enumerate(header):
        aligned = at in right and name not in left
        shown.add_column(Text(name), justify="right" if aligned else "left", no_wrap=aligned)
    for row in rows:
        shown.add_row(*map(Text, row))
    if out.is_terminal:
        out.print(shown)
        return
    with out.capture() as captured:
        out.print(shown)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def console() -> Console:
    """The terminal; wide enough for whole lines when piped."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=200)
