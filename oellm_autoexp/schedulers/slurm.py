"""Slurm as a scheduler. So far it renders scripts, so that they can be looked at; it submits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compoconf import register

from oellm_autoexp.config.limits import ClusterLimits
from oellm_autoexp.config.sockets import Capabilities, SchedulerInterface, Submission
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import UsageError
from oellm_autoexp.rendering import templates
from oellm_autoexp.schedulers import slurm_text
from oellm_autoexp.store.effects import Effects


@dataclass(kw_only=True)
class SlurmClientConfig(ClusterLimits):
    """`max_jobs` None: no bound of ours."""


@register
class SlurmClient(SchedulerInterface):
    """Renders job scripts with their directives."""

    config: SlurmClientConfig
    config_class = SlurmClientConfig

    def __init__(self, config: SlurmClientConfig, *, effects: Effects, state_dir: Path) -> None:  # noqa: ARG002
        super().__init__(config)
        self.cluster = "slurm"
        self.capabilities = Capabilities()

    def render(self, request: ScriptRequest) -> str:
        lines = slurm_text.directives(request.name, request.slurm)
        return templates.render_job_script(request, directives=lines)

    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:  # noqa: ARG002
        refuse()

    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:  # noqa: ARG002
        refuse()

    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:  # noqa: ARG002
        refuse()

    def cancel(self, refs: Sequence[SchedulerRef]) -> None:  # noqa: ARG002
        refuse()

    def update(self, ref: SchedulerRef, changes: Mapping[str, Any]) -> None:  # noqa: ARG002
        refuse()


def refuse() -> NoReturn:
    """Say that Slurm cannot be used for more than rendering."""
    hint = "use --local to run the jobs on this machine, or `plan` to write the scripts"
    raise UsageError("this version does not submit to Slurm yet", hint=hint)
