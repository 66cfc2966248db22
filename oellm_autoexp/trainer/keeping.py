"""When checkpoints are written, and where: what the config says of them, above what `saving` does."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oellm_autoexp.checkpoints.local import LocalStore
from oellm_autoexp.checkpoints.record import ALIASES, CommitRecord, Kind, NameTemplate
from oellm_autoexp.core.experiment import CheckpointConfig
from oellm_autoexp.errors import CheckpointError, CheckpointTimeoutError, PreemptionTimeoutError
from oellm_autoexp.trainer import state
from oellm_autoexp.trainer.config import GenericTrainerConfig
from oellm_autoexp.trainer.engine import Engine
from oellm_autoexp.trainer.loggers import Logger
from oellm_autoexp.trainer.phases import TrainerPhase
from oellm_autoexp.trainer.saving import Saver
from oellm_autoexp.trainer.sharded import Like, spread

if TYPE_CHECKING:
    from oellm_autoexp.trainer.boundaries import Boundaries

_log = logging.getLogger("oellm_autoexp.trainer")

#: Seconds before a time limit that are left free whatever else is known of steps and saves.
_MARGIN_S = 5.0


class Keeper:
    """The checkpoints of one training, in `<root_dir>/<experiment_name>`."""

    def __init__(self, config: GenericTrainerConfig, engine: Engine) -> None:
        self._config, self._engine = config, engine
        self.directory = root(config.checkpoint) / config.directory_name
        self._template = NameTemplate(config.checkpoint.filename_template)
        self._made: Saver | None = None
        self._logger = Logger()
        self._wanted = False
        self._last: dict[str, Any] | None = None
        self._path = self.directory
        self._saved_at = self._looked_at = time.monotonic()
        self._slowest_save = self._slowest_look = 0.0
        self._deadline = _deadline()
        self._granted = math.inf if self._deadline is None else max(0.0, self._deadline - time.time())

    @property
    def _saver(self) -> Saver:
        if self._made is None:
            checkpoint = self._config.checkpoint
            metric = (checkpoint.monitor_metric or "val/loss") if checkpoint.save_best else None
            self._made = Saver(
                LocalStore(self.directory, lock_wait_s=10.0),
                keep=checkpoint.max_checkpoints,
                metric=metric.replace("_", "/", 1) if metric and "/" not in metric else metric,
                mode=checkpoint.monitor_mode,
                shards=self._engine.sharded,
                rank=self._engine.rank,
                on_saved=lambda record, path: self._logger.log_checkpoint(path, record.step),
            )
        return self._made

    # ------------------------------------------------------------ when

    def claim(self) -> None:
        """Nobody else may write there from now on; every rank has to call it.

        Raises:
            CheckpointError: somebody does already, or nobody can.
        """
        self._engine.agreed(lambda: self._saver.claim())

    def begin(self, logger: Logger) -> None:
        """Training begins: complete checkpoints are told to the logger from now on."""
        self._logger = logger
        self._saved_at = self._looked_at = time.monotonic()

    def due_at_step(self, step: int) -> bool:
        """Whether a checkpoint is due behind this optimizer step."""
        every = self._config.checkpoint.save_every_n_steps
        return self._wanted or (every is not None and step % every == 0)

    def due_at_epoch(self, epoch: int) -> bool:
        """Whether one is due behind this epoch (0-based)."""
        every = self._config.checkpoint.save_every_n_epochs
        return every is not None and (epoch + 1) % every == 0

    @property
    def by_clock(self) -> bool:
        """Whether time makes anything due, at any time."""
        return self._deadline is not None or self._config.checkpoint.save_every_n_minutes is not None

    def due_by_clock(self) -> bool:
        """Whether the last one is as old as the config allows."""
        minutes = self._config.checkpoint.save_every_n_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save_at_next_step(self) -> None:
        """One is due, as all ranks agreed."""
        self._wanted = True

    def must_leave(self) -> bool:
        """Whether the time limit is so near that there is just time for a checkpoint."""
        if self._deadline is None:
            return False
        now = time.monotonic()
        self._slowest_look = max(self._slowest_look, now - self._looked_at)
        self._looked_at = now
        margin = _MARGIN_S + 2 * self._slowest_save + 2 * self._slowest_look
        return time.time() >= self._deadline - min(margin, self._granted / 4)

    # ------------------------------------------------------------ writing

    def save(self, trainer: Boundaries, kind: Kind, phase: TrainerPhase, limit_s: float) -> Path:
        """Write a checkpoint; every rank has to call it. Nothing is written where nothing has changed since
        the last one. An emergency has `limit_s` seconds.

        One that could not be written in the background is told of when the next one is due, which is waited
        for: training ends where that fails, too.

        Raises:
            PreemptionTimeoutError, CheckpointTimeoutError: it took too long.
            CheckpointError: it could not be written.
        """
        self._wanted = False
        began = time.monotonic()
        if kind != "emergency":
            limit_s = self._config.fault_tolerance.checkpoint_timeout_sec
        failed = False
        try:
            self._wait(kind, limit_s)
        except CheckpointError as error:
            failed = True
            _log.error("%s\nthis one is tried now", error)
        position = asdict(trainer.at)
        if failed or position != self._last:
            payload = state.capture(trainer, phase, time.time())
            written = self._engine.agreed(lambda: self._written(payload, kind, trainer))
            self._path = self._engine.told(written)
            # What hooks keep may be other than this when all of them have been told.
            self._last = None if trainer.hook_manager.state_unsettled else position
        if failed or kind != "regular":
            self._wait(kind, limit_s - (time.monotonic() - began))
            self._engine.barrier()
        self._saved_at = time.monotonic()
        self._slowest_save = max(self._slowest_save, self._saved_at - began)
        return self._path

    def _written(self, payload: dict[str, Any], kind: Kind, trainer: Boundaries) -> Path:
        at, saved_at = trainer.at, float(payload["save_timestamp"])
        record = CommitRecord(
            name=self._template.name(epoch=at.epoch, step=at.global_step, saved_at=saved_at),
            step=at.global_step,
            epoch=at.epoch,
            kind=kind,
            # Those of weights before are none of these.
            metrics=at.val_metrics if at.validated_at == at.global_step else {},
            saved_at=saved_at,
            world_size=self._engine.world_size,
            extra={"phase": payload["resume_state"]["phase"], "epoch_batches": at.epoch_batches},
        )
        return self._saver.save(payload, record)

    def _wait(self, kind: Kind, limit_s: float) -> None:
        done = self._engine.agreed(lambda: self._saver.wait(max(0.0, limit_s)))
        if self._engine.highest([not done])[0]:
            what = f"the checkpoint was not on disk after {limit_s:.0f} s"
            if kind == "emergency":
                hint = "raise preemption.max_checkpoint_sec, or give the job more time between signal and end"
                raise PreemptionTimeoutError(what, where=str(self.directory), hint=hint)
            hint = "raise fault_tolerance.checkpoint_timeout_sec, or look at the file system"
            raise CheckpointTimeoutError(what, where=str(self.directory), hint=hint)

    def close(self) -> None:
        """Wait for what is being written, and let others write.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._made is not None:
            self._made.close()

    # ------------------------------------------------------------ reading

    def latest(self) -> Path | None:
        """The file of the newest complete checkpoint; None where there is none."""
        link = self.directory / ALIASES[0]
        return link.resolve() if link.exists() else None

    def newest(self) -> tuple[CommitRecord, dict[str, Any]] | None:
        """The newest checkpoint that is complete and undamaged, and what it holds; all ranks have to call it.

        Raises:
            CheckpointError: there are some, and none can be used.
        """
        like = state.likeness(self._engine)
        found = self._saver.restore(_skipped, like=like)
        return (found[0], self._fitting(found[1], like)) if found is not None else None

    def load(self, path: Path) -> dict[str, Any]:
        """What a checkpoint holds; all ranks have to call it.

        Raises:
            CheckpointError: it cannot be read, or is damaged.
        """
        like = state.likeness(self._engine)
        return self._fitting(self._saver.load(path, like=like), like)

    def _fitting(self, payload: dict[str, Any], like: Like) -> dict[str, Any]:
        return spread(payload, like) if self._engine.sharded else payload


def root(config: CheckpointConfig) -> Path:
    """Where the config says, else where the orchestrator wants a job's checkpoints: the points of a sweep
    that run one script must not go on from each other's.
    """
    if config.root_dir == CheckpointConfig.root_dir:
        return Path(os.environ.get("AUTOEXP_CHECKPOINT_DIR") or config.root_dir)
    return Path(config.root_dir)


def _skipped(name: str, problem: str) -> None:
    _log.warning("the checkpoint %s is passed over: %s", name, problem)


def _deadline() -> float | None:
    """When the job is ended, in seconds since 1970 (UTC): as the orchestrator says, else Slurm."""
    for name in ("AUTOEXP_DEADLINE", "SLURM_JOB_END_TIME"):
        try:
            return float(os.environ[name])
        except (KeyError, ValueError):
            continue
    return None
