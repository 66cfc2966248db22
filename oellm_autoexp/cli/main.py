"""The command line: every command, with an example, and what an error looks like."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from oellm_autoexp.cli import cleanup, init, log_watch, look, steer, submit
from oellm_autoexp.errors import AutoexpError

app = typer.Typer(
    name="oellm-autoexp",
    help="Describe experiments once; the orchestrator gets them finished.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: In the order of `--help`: each command and an example of its use.
COMMANDS = (
    (init.init, "init -- python train.py --lr 0.1"),
    (submit.plan, "plan sweep.yaml --local -o sweep.axes.lr=[1e-3]"),
    (submit.submit, "submit sweep.yaml --local"),
    (log_watch.monitor, "monitor outputs"),
    (look.status, "status outputs --columns lr,loss --sort loss --format md"),
    (look.show, "show outputs tiny_lr0.001_seed0"),
    (look.logs, "logs outputs tiny_lr0.001_seed0 -f"),
    (steer.cancel, "cancel outputs 'tiny_*' --yes"),
    (steer.retry, "retry outputs tiny_lr0.001_seed0"),
    (look.sessions, "sessions --json"),
    (cleanup.cleanup, "cleanup --yes"),
)
for _command, _example in COMMANDS:
    app.command(epilog=f"Example: oellm-autoexp {_example}")(_command)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake is a message, never a traceback."""
    try:
        yield
    except AutoexpError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


def main() -> None:
    """The entry point of `oellm-autoexp`."""
    with _plain_errors():
        app()


if __name__ == "__main__":
    main()
