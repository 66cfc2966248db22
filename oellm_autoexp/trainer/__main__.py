"""`python -m oellm_autoexp.trainer CONFIG.json`: train what an experiment's config describes.

Exit codes: 0 trained, or trained before; 128 + signal when it had to leave and is to be run again;
2 a mistake in the config; 3 it cannot go on; 1 the code of the model, the data or the step has failed, with
its traceback.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.errors import AutoexpError, Fault, UsageError, ValidationError
from oellm_autoexp.trainer.reading import read_file, read_text
from oellm_autoexp.trainer.signals import Preempted


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a training."""
    parser = argparse.ArgumentParser(
        prog="python -m oellm_autoexp.trainer",
        description="Train what an experiment's config describes, going on from its newest checkpoint.",
        epilog="examples: python -m oellm_autoexp.trainer examples/lm/config.json\n"
        "          torchrun --nproc-per-node 4 -m oellm_autoexp.trainer config.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="a JSON file, or a YAML file where PyYAML is installed")
    parser.add_argument("--json", metavar="TEXT", help="the config itself, as JSON")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        config = _config(given.config, given.json)
        # Dotted paths are found from where the training was started, and beside its config.
        _find_from(Path.cwd(), *([Path(given.config).resolve().parent] if given.config else []))
        train(config)
    except Preempted as left:
        return int(left.code)  # type: ignore[arg-type]
    except AutoexpError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _config(path: str | None, text: str | None) -> ExperimentConfig:
    if (path is None) == (text is None):
        raise UsageError("give a config file, or --json", hint="see --help")
    return read_text(text, "--json") if text is not None else read_file(Path(path or ""))


def _find_from(*directories: Path) -> None:
    """Let dotted paths be found in these directories, in this order."""
    for directory in reversed(directories):
        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))


def train(config: ExperimentConfig) -> None:
    """Train to the end; dotted paths are found on `sys.path`.

    Raises:
        Preempted, AutoexpError: as `GenericTrainer.fit`.
    """
    from oellm_autoexp.trainer import launching
    from oellm_autoexp.trainer.config import trainer_config
    from oellm_autoexp.trainer.trainer import GenericTrainer

    try:
        told = trainer_config(config)
    except ValueError as error:
        raise ValidationError(Fault(what=str(error))) from None
    fabric = launching.fabric_of(told.ddp, told.performance)
    try:
        GenericTrainer.from_config(config, fabric).fit_configured()
    except Preempted:
        launching.part()
        raise
    launching.part()


if __name__ == "__main__":
    sys.exit(main())
