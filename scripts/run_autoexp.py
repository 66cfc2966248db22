"""Plan and submit a config: `[CONFIG_REF] -C DIR -o KEY=VALUE --dry-run --use-fake-slurm`.

`--dry-run` writes the scripts and sweep.json, so that they can be looked at or run by hand
(`scripts/run_sweep_entry.py`), and submits nothing. Everything else is `oellm-autoexp submit`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oellm_autoexp.errors import AutoexpError
from oellm_autoexp.services import calls


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config_ref", nargs="?", default="autoexp", help="a YAML file or the name of a config"
    )
    parser.add_argument("-C", "--config-dir", type=Path, help="where configs and groups are")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="write the scripts, submit nothing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--use-fake-slurm", "--fake", dest="scheduler", action="store_const", const="fake")
    where.add_argument("--local", dest="scheduler", action="store_const", const="local")
    options = parser.parse_args()
    return render(options) if options.dry_run else submit(options)


def render(options: argparse.Namespace) -> int:
    # Slurm's scripts can be rendered anywhere; without a scheduler of its own the config's is taken.
    scheduler = None if options.scheduler == "fake" else options.scheduler
    try:
        result = calls.render_scripts(
            options.config_ref,
            config_dir=options.config_dir,
            overrides=options.override,
            scheduler=scheduler,
        )
    except AutoexpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for job in result.jobs:
        print(f"Generated: {job.spec.script_path}")
    if result.sweep_json is not None:
        print(f"Sweep JSON: {result.sweep_json}")
    return 0


def submit(options: argparse.Namespace) -> int:
    from oellm_autoexp.cli.main import main as command

    words = ["submit", options.config_ref]
    if options.config_dir is not None:
        words += ["-C", str(options.config_dir)]
    words += [word for text in options.override for word in ("-o", text)]
    if options.scheduler is not None:
        words.append(f"--{options.scheduler}")
    sys.argv = ["oellm-autoexp", *words]
    command()
    return 0


if __name__ == "__main__":
    sys.exit(main())
