"""The command `monitor`: watch a session or, with `--log`, any files."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from oellm_autoexp.cli import complete, submit
from oellm_autoexp.cli.arguments import ConfigDir, Fake, Override
from oellm_autoexp.errors import UsageError

Reference = Annotated[
    Optional[str],
    typer.Argument(
        metavar="[SESSION]",
        help="A session; with --log a config (autoexp).",
        autocompletion=complete.sessions,
    ),
]


def monitor(
    reference: Reference = None,
    config_dir: ConfigDir = None,
    override: Override = None,
    fake: Fake = False,
    log: Annotated[
        Optional[list[str]],
        typer.Option("--log", metavar="JOB=PATH", help="Watch a file, without a session."),
    ] = None,
    action: Annotated[
        Optional[list[str]],
        typer.Option("--action", metavar="NAME=COMMAND", help="What a signal's action runs: 'cmd {field}'."),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="With --log: go on until Ctrl-C.")] = False,
    interval: Annotated[
        Optional[float], typer.Option("--interval", metavar="S", help="With --loop: seconds between looks.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --log: show what would be done; change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", "--json-output", help="Print JSON.")] = False,
) -> None:
    """Watch a session until everything has a verdict, restarting and acting as its rules say.

    With --log there is no session: the config's signals are looked for in the files, and their actions run.
    """
    if not log:
        _watch_session(reference, config_dir, override, fake, as_json, alone=bool(action or loop or dry_run))
        return
    from oellm_autoexp.services import log_watch as service

    if interval is not None and interval <= 0:
        raise UsageError("must be more than 0 seconds", where="--interval")
    if loop and dry_run:
        raise UsageError("--loop and --dry-run exclude each other", hint="leave one out")
    paths, jobs, default, effects = service.watched(
        reference or "autoexp", config_dir, override or [], log, action or []
    )
    out = _Output(as_json=as_json, lines=loop)
    watch = service.LogWatch(
        paths, jobs, report=out.report, warn=lambda text: typer.echo(text, err=True), effects=effects
    )
    if dry_run:
        watch.preview()
        out.finish()
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if loop:
            watch.follow(interval or default)
        else:
            watch.once()
    except KeyboardInterrupt:
        going_on = f" {watch.running} action(s) go on running." if watch.running else ""
        typer.echo(f"\nStopped watching.{going_on} The same command takes up where this one ended.", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        watch.close()
    out.finish()
    raise typer.Exit(1 if watch.failed else 0)


def _watch_session(
    reference: str | None,
    config_dir: Path | None,
    override: list[str] | None,
    fake: bool,
    as_json: bool,
    *,
    alone: bool,
) -> None:
    if alone:
        raise UsageError("--action, --loop and --dry-run need --log", hint="add --log JOB=PATH")
    if config_dir is not None or override or fake:
        from oellm_autoexp.services import plan

        loaded = plan.load(
            reference or "autoexp", config_dir, override or [], scheduler="fake" if fake else None
        )
        reference = str(loaded.paths.state_dir)
    submit.monitor(reference, as_json)


class _Output:
    """Text or JSON lines as it happens, or one JSON document at the end."""

    def __init__(self, *, as_json: bool, lines: bool) -> None:
        self._json, self._lines = as_json, lines
        self._rows: dict[str, list[dict[str, Any]]] = {"signal": [], "action": []}

    def report(self, kind: str, row: dict[str, Any]) -> None:
        self._rows[kind].append(row)
        if self._json and self._lines:
            self._rows[kind].clear()
            typer.echo(json.dumps({"type": kind, **row}))
        elif not self._json:
            self._rows[kind] = self._rows[kind][-1:]
            typer.echo(_signal_line(row) if kind == "signal" else _action_line(row))

    def finish(self) -> None:
        if self._json:
            body = {"signals": self._rows["signal"], "actions": self._rows["action"]}
            typer.echo(json.dumps(body, indent=2))
        elif not any(self._rows.values()):
            typer.echo("Nothing new.")


def _signal_line(row: dict[str, Any]) -> str:
    mode = f" [{row['mode']}]" if row["mode"] else ""
    return f"{row['job']}: signal {row['signal']}{mode}: {row['line'].strip()}"


def _action_line(row: dict[str, Any]) -> str:
    line = f"{row['job']}: action {row['action']} {row['state']}: {row['command']}"
    if row["state"] == "left out":
        return f"{row['job']}: action {row['action']} {row['reason']}"
    return f"{line} ({row['reason']})" if row["reason"] else line
