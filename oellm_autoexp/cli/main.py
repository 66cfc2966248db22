"""The command line: every command, with an example, and what an error looks like."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from oellm_autoexp import __version__
from oellm_autoexp.cli import (
    adopt,
    cleanup,
    collections,
    daemon,
    doctor,
    generate,
    init,
    log_watch,
    look,
    nodes,
    rehearse,
    report,
    results,
    run,
    steer,
    submit,
)
from oellm_autoexp.cli.watching import to_nobody
from oellm_autoexp.errors import AutoexpError

EXIT_CODES = """\
\b
Exit codes:
  0    done; submit, run, wrap, monitor: every job succeeded
  1    submit, run, wrap, monitor: some jobs did not succeed
  2    a mistake in the config or in usage; nothing was changed
  3    it could not do its work
  130  Ctrl-C: running jobs go on"""

app = typer.Typer(
    name="oellm-autoexp",
    help="Describe experiments once; the orchestrator gets them finished.",
    epilog=f"COMMAND --help has examples of each.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: In the order of `--help`: each command and examples of its use.
COMMANDS: tuple[tuple[Callable[..., None], Sequence[str]], ...] = (
    (
        init.init,
        ["init -- python train.py --lr 0.1", "init --slurm lumi --output lumi.yaml -- python train.py"],
    ),
    (
        submit.plan,
        [
            "plan sweep.yaml --local",
            "plan sweep.yaml --dry-run -o 'sweep.axes.lr=[1e-3]'",
            "plan sweep.yaml --graph",
            "plan sweep.yaml --graph-file stages.svg",
        ],
    ),
    (
        rehearse.rehearse,
        [
            "rehearse sweep.yaml --faults llama3 --days 30 --seeds 8",
            "rehearse sweep.yaml --faults llama3 --against restart=requeue_only --plot policies.svg",
        ],
    ),
    (
        submit.submit,
        [
            "submit sweep.yaml --local",
            "submit sweep.yaml --local --detach",
            "submit sweep.yaml --canary 2",
            "submit --collection exp1 --filter failed",
        ],
    ),
    (
        run.run,
        [
            "run --local -- python train.py",
            "run --name tiny --sweep lr=1e-3,3e-4 --sweep 'seed=range(0,4)' -- "
            "python train.py --lr {lr} --seed {seed}",
            "run --name tiny --sweep lr=1e-3,3e-4 --save-config tiny.yaml -- python train.py --lr {lr}",
            "run -o slurm=lumi -o slurm.sbatch.time=4:00:00 --detach -- python train.py",
        ],
    ),
    (run.wrap, ["wrap job.sbatch", "wrap job.sbatch --detach -o slurm.sbatch.time=4:00:00 -- --lr 0.1"]),
    (
        generate.generate,
        [
            "generate job_spec.yaml --collection exp1",
            "generate job_spec.yaml --dry-run",
            "generate --template train.job.j2 --params params.yaml --output-dir scripts --collection exp1",
        ],
    ),
    (
        log_watch.monitor,
        ["monitor outputs", "monitor sweep.yaml --log train=train.out --action convert='python c.py {path}'"],
    ),
    (
        adopt.adopt,
        ["adopt 4711 --log slurm-4711.out", "adopt 4711_3 --log train.out --config sweep.yaml --name tiny_3"],
    ),
    (look.status, ["status outputs", "status outputs --columns lr,loss --sort loss --format csv"]),
    (look.show, ["show outputs tiny_lr0.001_seed0"]),
    (look.logs, ["logs outputs tiny_lr0.001_seed0 -f"]),
    (
        results.results,
        [
            "results outputs",
            "results outputs --metric loss --by lr",
            "results outputs --metric loss -o loss.svg",
            "results outputs --metric score --last --better high --format csv",
        ],
    ),
    (report.report, ["report outputs", "report outputs -o report.md"]),
    (
        steer.cancel,
        ["cancel outputs 'tiny_*' --yes", "cancel outputs lr=0.001", "cancel outputs --filter pending"],
    ),
    (
        steer.retry,
        [
            "retry outputs",
            "retry outputs tiny_lr0.001_seed0",
            "retry outputs --filter timeout -o slurm.sbatch.time=48:00:00",
            "retry exp1 --filter oom --select choose.py:should_resubmit --param batch_size=32",
        ],
    ),
    (
        nodes.nodes,
        [
            "nodes outputs",
            "nodes outputs exclude n17 'n[20-23]' --why 'slow network'",
            "nodes outputs forgive n17",
        ],
    ),
    (look.sessions, ["sessions", "sessions --json"]),
    (cleanup.cleanup, ["cleanup", "cleanup --yes"]),
    (doctor.doctor, ["doctor", "doctor sweep.yaml", "doctor sweep.yaml --json"]),
)
#: The same of `daemon`.
DAEMON_COMMANDS: tuple[tuple[Callable[..., None], Sequence[str]], ...] = (
    (daemon.start, ["daemon start sweep.yaml --local", "daemon start outputs"]),
    (daemon.attach, ["daemon attach outputs"]),
    (daemon.status, ["daemon status outputs", "daemon status outputs --json"]),
    (daemon.stop, ["daemon stop outputs"]),
    (
        daemon.install,
        ["daemon install outputs --cron", "daemon install outputs --in-job --sbatch partition=serial"],
    ),
    (daemon.uninstall, ["daemon uninstall outputs"]),
    (daemon.run, ["daemon run outputs"]),
)
#: The same of `collections`.
COLLECTION_COMMANDS: tuple[tuple[Callable[..., None], Sequence[str]], ...] = (
    (collections.list_, ["collections list", "collections list --json"]),
    (collections.show, ["collections show exp1", "collections show exp1 --json"]),
    (
        collections.import_,
        ["collections import old run1.sbatch run2.sbatch=4711", "collections import old --list jobs.yaml"],
    ),
    (
        collections.analyze,
        ["collections analyze outputs", "collections analyze outputs --by lr --min-support 5 --json"],
    ),
    (collections.delete, ["collections delete exp1 --yes", "collections delete exp1 --scripts"]),
)
#: What leaves its work undone when nobody reads its output any more.
WATCHING = (submit.submit, run.run, run.wrap, log_watch.monitor, daemon.run, adopt.adopt)


def _outlives_its_reader(command: Callable[..., None]) -> Callable[..., None]:
    """The command, ending quietly where its output goes to a program that has read enough (`| head`)."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            try:
                command(*args, **options)
            finally:
                sys.stdout.flush()
        except BrokenPipeError as error:
            to_nobody(sys.stdout)
            ended = error.__context__
            code = ended.exit_code if isinstance(ended, typer.Exit) else 3 if command in WATCHING else 0
            raise typer.Exit(code) from None
        except OSError as error:
            # Full disks and missing rights are no faults of this program: the place and the reason will do.
            if error.filename is None:
                to_nobody(sys.stdout)
            raise AutoexpError(error.strerror or str(error), where=str(error.filename or "output")) from error

    return run


daemon_app = typer.Typer(
    help="A loop that goes on without a terminal, and comes back after a reboot.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


collections_app = typer.Typer(
    help="Batch scripts under one name, which sessions know as theirs; and what sets parameters apart.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _offer(place: typer.Typer, commands: Sequence[tuple[Callable[..., None], Sequence[str]]]) -> None:
    for command, examples in commands:
        lines = "".join(f"\n  oellm-autoexp {example}" for example in examples)
        name = command.__name__.rstrip("_").replace("_", "-")
        place.command(name, epilog=f"\b\nExamples:{lines}\n\nExit codes: oellm-autoexp --help")(
            _outlives_its_reader(command)
        )


_offer(app, COMMANDS)
_offer(daemon_app, DAEMON_COMMANDS)
app.add_typer(daemon_app, name="daemon")
_offer(collections_app, COLLECTION_COMMANDS)
app.add_typer(collections_app, name="collections")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oellm-autoexp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Describe experiments once; the orchestrator gets them finished."""


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake is a message, never a traceback."""
    try:
        yield
    except AutoexpError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def main() -> None:
    """The entry point of `oellm-autoexp`."""
    with _plain_errors():
        words = spelled_out(sys.argv[1:])
        _needed(words)(args=words)


def _needed(words: Sequence[str]) -> typer.Typer:
    """The app with the command that is called alone: to prepare all of them takes longer than most work.

    All where none of them is called by its name, as where a shell asks what there is.
    """
    name = words[0] if words else ""
    made = copy.copy(app)
    made.registered_commands = [each for each in app.registered_commands if each.name == name]
    made.registered_groups = [each for each in app.registered_groups if each.name == name]
    return made if made.registered_commands or made.registered_groups else app


def spelled_out(words: Sequence[str]) -> list[str]:
    """`--graph` alone means `--graph text`: an option of this library has a value or none."""
    out = list(words)
    for at, word in enumerate(words):
        if word == "--graph" and words[at + 1 : at + 2] not in (["text"], ["mermaid"], ["svg"]):
            out[at] = "--graph=text"
    return out


if __name__ == "__main__":
    main()
