"""Fit a small language model to a text: a real training, with what a training on a cluster does.

It prints iterations with loss and throughput, saves complete checkpoints, goes on from the newest one bit
for bit, and on SIGTERM or SIGUSR1 saves and leaves. `--fault` rehearses a failure on the first attempt.
Standard library only.

    python3 train.py --lr 0.3 --out outputs/mine
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoints
from model import OPTIMIZERS, Model, Rows, Text, digest

HERE = Path(__file__).resolve().parent


def at_least(kind: type, least: float) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, got {text}")
        return value

    number.__name__ = kind.__name__
    return number


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = at_least(int, 1)
    parser.add_argument("--text", type=Path, default=HERE / "text.txt", help="the text to learn")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument("--checkpoint-dir", type=Path, help="default: OUT/checkpoints")
    parser.add_argument("--lr", type=at_least(float, 0), default=0.1)
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adagrad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=count, default=600, help="iterations in all")
    parser.add_argument("--batch", type=count, default=32, help="characters an iteration")
    parser.add_argument("--context", type=count, default=3, help="characters that the model looks back")
    parser.add_argument("--hidden", type=count, default=24, help="hidden units")
    parser.add_argument("--save-every", type=count, default=100, metavar="STEPS")
    parser.add_argument("--log-every", type=count, default=20, metavar="STEPS")
    parser.add_argument(
        "--pace",
        type=at_least(float, 0),
        default=0.0,
        metavar="S",
        help="least seconds of an iteration",
    )
    parser.add_argument(
        "--fault",
        choices=["none", "crash", "stall"],
        default="none",
        help="fail in the middle of the first attempt (AUTOEXP_ATTEMPT=1)",
    )
    return parser


@dataclass
class Training:
    """How far it is; with the model, everything that a checkpoint holds."""

    model: Model
    rng: random.Random
    memory: Rows = field(default_factory=dict)
    iteration: int = 0
    #: Losses since the last printed line.
    losses: list[float] = field(default_factory=list)
    saved_at: int = 0

    def save(self, directory: Path, settings: dict[str, Any]) -> None:
        version, numbers, gauss = self.rng.getstate()
        state = {
            "settings": settings,
            "iteration": self.iteration,
            "losses": self.losses,
            "memory": self.memory,
            "rng": [version, numbers, gauss],
        }
        path = checkpoints.save(directory, self.iteration, {"model": self.model.rows, "training": state})
        self.saved_at = self.iteration
        say(f"Checkpoint saved: {path}")

    @classmethod
    def resumed(cls, checkpoint: Path, settings: dict[str, Any]) -> Training:
        """The training as it was saved.

        Raises:
            ValueError: the checkpoint belongs to a training with other settings.
        """
        state = checkpoints.load(checkpoint, "training")
        for name, value in settings.items():
            if state["settings"][name] != value:
                raise ValueError(
                    f"{checkpoint} was made with {name} {state['settings'][name]}, not {value}: "
                    "give another --out, or remove it"
                )
        version, numbers, gauss = state["rng"]
        rng = random.Random()
        rng.setstate((version, tuple(numbers), gauss))
        return cls(
            model=Model(checkpoints.load(checkpoint, "model")),
            rng=rng,
            memory=state["memory"],
            iteration=state["iteration"],
            losses=state["losses"],
            saved_at=state["iteration"],
        )


class Interrupt:
    """Notes SIGTERM and SIGUSR1; the training looks between two iterations."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.number = number


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    interrupt = Interrupt()
    directory = options.checkpoint_dir or options.out / "checkpoints"
    try:
        text = Text(options.text.read_text(encoding="utf-8").lower(), options.context)
    except OSError as error:
        parser.error(f"argument --text: {error.filename}: {error.strerror}")
    if not text.usable:
        parser.error(f"argument --text: {options.text} is too short for a context of {options.context}")
    # What the numbers depend on; how long the training is may change between attempts.
    names = ("lr", "optimizer", "seed", "batch", "context", "hidden", "log_every")
    settings = {"text": text.digest, **{name: getattr(options, name) for name in names}}
    checkpoints.discard_unfinished(directory)
    newest = checkpoints.newest(directory)
    if newest is None:
        rng = random.Random(options.seed)
        model = Model.random(len(text.alphabet), options.context, options.hidden, rng)
        training = Training(model=model, rng=rng)
    else:
        try:
            training = Training.resumed(newest, settings)
        except ValueError as error:
            parser.error(str(error))
        say(f"resuming from {newest}")
    code = run(training, text, options, directory, settings, interrupt)
    if code == 0:
        finish(training, text, options.out)
    return code


def run(
    training: Training,
    text: Text,
    options: argparse.Namespace,
    directory: Path,
    settings: dict[str, Any],
    interrupt: Interrupt,
) -> int:
    """Iterate to the end or to a signal; the exit status."""
    step = OPTIMIZERS[options.optimizer]
    # Between two checkpoints, so that a failure costs something.
    fault_at = options.steps * 9 // 20 if os.environ.get("AUTOEXP_ATTEMPT", "1") == "1" else 0
    window_started, window_chars = time.monotonic(), 0
    while training.iteration < options.steps:
        started = time.monotonic()
        loss, gradients = training.model.gradients(text.batch(training.rng, options.batch))
        step(training.model, gradients, training.memory, options.lr)
        training.iteration += 1
        training.losses.append(loss)
        window_chars += options.batch
        if options.pace:
            time.sleep(max(0.0, started + options.pace - time.monotonic()))
        if training.iteration % options.log_every == 0:
            mean = sum(training.losses) / len(training.losses)
            rate = window_chars / max(1e-9, time.monotonic() - window_started)
            say(f"iteration {training.iteration}/{options.steps} | loss {mean:.4f} | {rate:.0f} chars/s")
            training.losses = []
            window_started, window_chars = time.monotonic(), 0
        if training.iteration % options.save_every == 0 or training.iteration == options.steps:
            training.save(directory, settings)
        if interrupt.number:
            return leave(training, directory, settings, interrupt.number)
        if training.iteration == fault_at:
            fail(options.fault)
    return 0


def leave(training: Training, directory: Path, settings: dict[str, Any], number: int) -> int:
    if training.saved_at != training.iteration:
        training.save(directory, settings)
    say(f"left at iteration {training.iteration} because of {signal.Signals(number).name}")
    return 128 + number


def fail(fault: str) -> None:
    """What goes wrong on clusters: a file system that fails for a moment, or a wait that never ends."""
    if fault == "crash":
        raise OSError(5, "Input/output error", "/scratch/corpus/shard-0003.bin")
    while fault == "stall":
        # As in a lost collective: alive, silent, and deaf to a polite request to end.
        signal.pause()


def finish(training: Training, text: Text, out: Path) -> None:
    loss = training.model.loss(text.held_out())
    weights = digest(training.model.rows)
    say("@autoexp " + json.dumps({"metrics": {"held_out_loss": round(loss, 4)}}))
    say(f"done: held-out loss {loss:.4f}, weights {weights[:12]}")
    result = {"iteration": training.iteration, "held_out_loss": loss, "weights_sha256": weights}
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".result.{os.getpid()}.tmp"
    checkpoints.write_durably(temporary, (json.dumps(result, indent=1) + "\n").encode())
    temporary.rename(out / "result.json")


if __name__ == "__main__":
    sys.exit(main())
