"""What a template makes of experiments: the script that each of them runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.errors import Fault, UsageError, ValidationError
from oellm_autoexp.rendering import batch_template
from oellm_autoexp.services.batch_script import wrapped_text
from oellm_autoexp.services.experiments.plan import Named
from oellm_autoexp.services.experiments.sbatch_template import SBATCHTemplateEngine, TemplateContext
from oellm_autoexp.store.git import Git
from oellm_autoexp.sweep.names import legalize


class ExperimentScripts:
    """Scripts of the template at `template_path`; None: experiments have none."""

    def __init__(self, project_root: Path, template_path: Path | None) -> None:
        self._root = project_root
        self._has_template = template_path is not None
        self.engine = SBATCHTemplateEngine(template_path)

    def of(self, experiment: Named, base: Path, script: Path) -> Named:
        """An experiment with its script. Its directory is in `base`, and `script` is what trains it.

        Raises:
            ConfigError: the template cannot be rendered.
            UsageError: what it makes is no batch script, or none of one job.
        """
        if not self._has_template:
            _refuse_idle(experiment.config)
            return experiment
        text = self.engine.preview_rendered_script(self.context(experiment.config, base, script, {}))
        where = self.engine.where
        made = wrapped_text(text, self._root, name=f"{experiment.job}.sbatch", where=where)
        if "sweep" in made.sections:
            hint = "leave --array out: each experiment is one job, and max_concurrent bounds them"
            raise UsageError("an experiment is no array", where=where, hint=hint)
        return replace(experiment, script=made)

    def context(
        self, config: ExperimentConfig, base: Path, script: Path, more: Mapping[str, Any]
    ) -> TemplateContext:
        """The variables of an experiment's template, of which `more` replaces some, and adds others."""
        job = legalize(config.experiment_name)
        own = config.slurm.job_name if config.slurm is not None else None
        given = {key.lower(): value for key, value in more.items()}
        known = {each.name for each in fields(TemplateContext)} - {"extra_args"}
        inside = script.is_relative_to(self._root)
        made = TemplateContext.of(
            config,
            **{
                "job_name": own or job,
                "experiment_name": job,
                # In a working tree of its own a job finds the script of that.
                "script_path": str(script.relative_to(self._root) if inside else script),
                "config_name": str(base / job / "config.yaml"),
                "python_executable": sys.executable,
                **self._git_facts,
                **{key: value for key, value in given.items() if key in known},
            },
        )
        extra = given.pop("extra_args", {})
        others = {key: value for key, value in given.items() if key not in known}
        return replace(made, extra_args={**made.extra_args, **extra, **others})

    @cached_property
    def _git_facts(self) -> dict[str, str | None]:
        """The commit and the branch that are checked out, where the template asks for them."""
        if not {"branch_name", "commit_hash"} & batch_template.names(self.engine.source()):
            return {}
        git = Git()
        return {
            "branch_name": git.ask(self._root, "symbolic-ref", "--quiet", "--short", "HEAD"),
            "commit_hash": git.ask(self._root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"),
        }


def _refuse_idle(config: ExperimentConfig) -> None:
    """Names of a job and its logs are those of the session, unless a template has them."""
    for name in ("job_name", "output", "error"):
        if config.slurm is not None and getattr(config.slurm, name) is not None:
            what = "does nothing without a template: jobs and logs have the names of their session"
            fault = Fault(key=f"slurm.{name}", what=what, hint="leave it out, or give a template")
            raise ValidationError(fault)
