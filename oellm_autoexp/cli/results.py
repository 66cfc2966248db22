"""`results`: which points won, as a table, a file for other programs, or a drawing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli.arguments import Jobs, SessionRef
from oellm_autoexp.cli.finding import find_history
from oellm_autoexp.errors import UsageError

FORMS = ("table", "md", "csv", "json", "svg")
_SUFFIXES = {".md": "md", ".markdown": "md", ".csv": "csv", ".json": "json", ".svg": "svg", ".txt": "table"}
_BLOCKS = "▁▂▃▄▅▆▇█"
#: Characters of a small curve.
_SPARK = 12


def results(
    session: SessionRef = None,
    jobs: Jobs = None,
    metric: Annotated[
        Optional[str], typer.Option("--metric", help="What is compared; without it, the metrics are listed.")
    ] = None,
    by: Annotated[
        Optional[str],
        typer.Option("--by", metavar="KEYS", help="A row for each value of swept keys, by commas."),
    ] = None,
    low: Annotated[bool, typer.Option("--min", help="The least value of each job; less is better.")] = False,
    high: Annotated[
        bool, typer.Option("--max", help="The greatest value of each job; more is better.")
    ] = False,
    last: Annotated[bool, typer.Option("--last", help="The last value of each job.")] = False,
    mean: Annotated[bool, typer.Option("--mean", help="The mean of the values of each job.")] = False,
    better: Annotated[
        Optional[str], typer.Option("--better", help="low or high; by default what the metric's name says.")
    ] = None,
    step: Annotated[
        Optional[str],
        typer.Option("--step", metavar="NAME", help="The metric that says how far a job is; step, … else."),
    ] = None,
    form: Annotated[
        Optional[str],
        typer.Option("--format", help="table, md, csv, json or svg; by default what the file's name says."),
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="Write a file instead of printing.")
    ] = None,
) -> None:
    """Say which points won: a metric of each job, best first, or by the values of swept keys."""
    from oellm_autoexp.core.metrics import Better, Statistic
    from oellm_autoexp.services import report
    from oellm_autoexp.services import results as service
    from oellm_autoexp.services import session as sessions

    if form is None:
        form = _SUFFIXES.get(output.suffix.lower(), "table") if output is not None else "table"
    if form not in FORMS:
        raise UsageError(f"--format is {', '.join(FORMS[:-1])} or {FORMS[-1]}, not {form!r}")
    if better not in (None, "low", "high"):
        raise UsageError(f"--better is low or high, not {better!r}")
    flags = {Statistic.MIN: low, Statistic.MAX: high, Statistic.LAST: last, Statistic.MEAN: mean}
    given = [statistic for statistic, wanted in flags.items() if wanted]
    if len(given) > 1:
        raise UsageError(f"--{given[0].value} and --{given[1].value} exclude each other")
    keys = [key.strip() for key in by.split(",") if key.strip()] if by is not None else []
    if metric is None and (keys or given or form == "svg" or better):
        raise UsageError("results of what?", hint="name it with --metric; `results` alone lists the metrics")
    paths, past = find_history(session)
    chosen = sessions.chosen(past.session, jobs or [])
    if metric is None:
        text = _metrics(service.metrics(past, paths, chosen), len(chosen), form, str(paths.state_dir))
    else:
        points = 0
        if form == "svg" and not keys:
            points = service.points_to_draw(len(chosen))
        elif form == "table" and output is None and sys.stdout.isatty():
            points = _SPARK
        found = service.results(
            past,
            paths,
            chosen,
            metric=metric,
            by=list(dict.fromkeys(keys)),
            statistic=given[0] if given else None,
            better=Better(better) if better is not None else None,
            step=step,
            points=points,
        )
        if form == "table" and output is None:
            _print(found)
            return
        text = _written(found, form)
    if output is None:
        typer.echo(_sayable(text), nl=False)
        return
    report.write(text, output)
    typer.echo(f"Written: {output.absolute()}")


def _sayable(text: str) -> str:
    """Text without the halves of characters that JSON can hold and no terminal can."""
    return text.encode(errors="replace").decode()


def _metrics(found: Sequence[tuple[str, int]], jobs: int, form: str, session: str) -> str:
    from oellm_autoexp.cli.render import flat
    from oellm_autoexp.core.metrics import better_by_name
    from oellm_autoexp.rendering import markdown
    from oellm_autoexp.rendering.document import Table
    from oellm_autoexp.services.results_text import shown

    directions = {name: better_by_name(name) for name, _ in found}
    rows = [[name, count, side.value if (side := directions[name]) else ""] for name, count in found]
    header = ["metric", "jobs", "better"]
    if form == "json":
        listed = [{"name": name, "jobs": count, "better": side or None} for name, count, side in rows]
        return json.dumps({"session": session, "metrics": listed}, indent=2) + "\n"
    if form == "csv":
        return flat(header, rows, "csv")
    if form == "md":
        cells = [[str(cell) for cell in row] for row in rows]
        return markdown.page("Metrics", [Table(header=header, rows=cells, right=(1,))])
    if not rows:
        said = 'No metrics have been kept yet. A program tells them by `@autoexp {"metrics": {"loss": 2.3}}`.'
        return said + "\n"
    width = max(len(shown(str(name))) for name, _, _ in rows)
    lines = [
        f"{shown(str(name)):{width}}  {count} of {jobs} jobs" + (f"  {side} is better" if side else "")
        for name, count, side in rows
    ]
    return "\n".join([*lines, "Compare: oellm-autoexp results SESSION --metric NAME"]) + "\n"


def _written(found: Any, form: str) -> str:
    from oellm_autoexp.cli.render import flat
    from oellm_autoexp.rendering import markdown
    from oellm_autoexp.services import results as service
    from oellm_autoexp.services import results_text

    if form == "json":
        return json.dumps(service.as_json(found), indent=2, allow_nan=False) + "\n"
    if form == "csv":
        return flat(*service.flat(found), "csv")
    if form == "svg":
        return results_text.drawn(found)
    if form == "md":
        return markdown.page(f"Results: {found.metric}", results_text.blocks(found)).rstrip() + "\n"
    return _plain(found)


def _print(found: Any) -> None:
    """On a terminal with colours and small curves; elsewhere plain."""
    from oellm_autoexp.cli.render import console
    from oellm_autoexp.services import results_text

    terminal = console()
    if not terminal.is_terminal:
        typer.echo(_sayable(_plain(found)), nl=False)
        return
    typer.echo(_sayable(results_text.headline(found)))
    terminal.print(_table(found, curves=any(len(row.curve) > 2 for row in results_text.table(found).rows)))
    for remark in results_text.remarks(found):
        typer.echo(_sayable(remark))


def _plain(found: Any) -> str:
    """The same for a file or a program: no colour, no cut, the winner marked by a star."""
    import io

    from rich.console import Console

    from oellm_autoexp.services import results_text

    text = io.StringIO()
    # As wide as it takes: a line that is folded can be read by no program.
    Console(file=text, width=10_000, color_system=None, highlight=False).print(_table(found, curves=False))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([results_text.headline(found), *lines, *results_text.remarks(found)]) + "\n"


def _table(found: Any, *, curves: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    from oellm_autoexp.services import results_text

    what = results_text.table(found)
    out = Table(header_style="bold", box=None, pad_edge=False)
    for at, name in enumerate(what.header):
        out.add_column(
            Text(_sayable(name)),
            justify="right" if at in what.figures else "left",
            no_wrap=at in what.figures,
        )
    if curves:
        out.add_column("curve", no_wrap=True)
    bounds = _bounds([value for row in what.rows for value in row.curve], found.better.value == "low")
    for row in what.rows:
        cells = [f"{cell} *" if row.best and at == 0 else cell for at, cell in enumerate(row.cells)]
        shown = [Text(_sayable(cell)) for cell in cells]
        if curves:
            shown.append(Text(_spark(row.curve, bounds), style="cyan"))
        out.add_row(*shown, style="bold green" if row.best else None)
    return out


def _bounds(values: Sequence[float], low_wins: bool) -> tuple[float, float]:
    """What the small curves have in common; the first, bad values of a training may be out of it."""
    finite = sorted(value for value in values if abs(value) < float("inf"))
    most = len(finite) - 1
    if not finite:
        return 0.0, 0.0
    return (finite[0], finite[int(0.9 * most)]) if low_wins else (finite[most - int(0.9 * most)], finite[-1])


def _spark(values: Sequence[float], bounds: tuple[float, float]) -> str:
    low, high = bounds
    step = max(1.0, len(values) / _SPARK)
    thinned = [values[int(at * step)] for at in range(min(_SPARK, len(values)))]
    return "".join(_block(value, low, high) for value in thinned)


def _block(value: float, low: float, high: float) -> str:
    if not abs(value) < float("inf"):
        return "×"
    share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
    return _BLOCKS[min(len(_BLOCKS) - 1, max(0, int(share * len(_BLOCKS))))]
