"""The command `doctor`: what stands between you and finished jobs, with a fix for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli.arguments import AsJson, ConfigDir, Fake, Local, Override, scheduler_flag

_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "fault": typer.colors.RED}
_WIDTH = 12

Reference = Annotated[
    Optional[str],
    typer.Argument(
        metavar="[CONFIG_REF]", help="A YAML file, or the name of a config; none: the machine alone."
    ),
]


def doctor(
    config_ref: Reference = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    local: Local = False,
    fake: Fake = False,
    as_json: AsJson = False,
) -> None:
    """Look for what would go wrong: on this machine, its cluster, with a config's jobs. Nothing is submitted.

    It exits with 1 where it finds faults; warnings do not count.
    """
    from oellm_autoexp.services.calls import planned
    from oellm_autoexp.services.doctor import Site, examine

    named = config_ref is not None or config_dir is not None or bool(override) or local or fake
    plan = None
    if named:
        flag = scheduler_flag(local, fake)
        # What stands in the way of isolation is one finding among others.
        plan = planned(config_ref or "autoexp", config_dir, override or [], flag, isolated=False)
    found = []
    with _Line(shown=not as_json) as line:
        for each in examine(Site(plan=plan), begins=line.show):
            found.append(each)
            if not as_json:
                line.clear()
                _print(each, first=len(found) == 1 or found[-2].check != each.check)
    counts = {level: sum(each.finding.level == level for each in found) for level in _COLOURS}
    if as_json:
        rows = [{"check": each.check, **_row(each.finding)} for each in found]
        typer.echo(
            json.dumps({"faults": counts["fault"], "warnings": counts["warning"], "findings": rows}, indent=2)
        )
    else:
        typer.echo(f"{_many(counts['fault'], 'fault')}, {_many(counts['warning'], 'warning')}")
    raise typer.Exit(1 if counts["fault"] else 0)


def _row(finding: Any) -> dict[str, str]:
    return {"level": finding.level, "what": finding.what, "fix": finding.fix}


def _print(each: Any, *, first: bool) -> None:
    finding = each.finding
    level = typer.style(f"{finding.level:8}", fg=_COLOURS[finding.level])
    typer.echo(f"{level} {each.check if first else '':{_WIDTH}} {finding.what}")
    if finding.fix:
        typer.echo(f"{'':{_WIDTH + 9}} -> {finding.fix}")


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class _Line:
    """On a terminal: which check is under way, in a line that is written over."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._write: Callable[[str], object] = sys.stderr.write

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.clear()

    def show(self, check: str) -> None:
        if self._shown:
            self._write(f"\r\x1b[Klooking at: {check} …")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            sys.stderr.flush()
