"""Experiments submitted from Python as batch scripts of a template: jobs of one session that `status` shows.

A call returns when the scheduler has what may start. A process in the background, as with `submit --detach`,
watches all experiments of a directory: it submits those that wait for their turn, restarts, and ends when
all have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from oellm_autoexp.config import experiments as configs
from oellm_autoexp.core.experiment import ExperimentConfig
from oellm_autoexp.core.layout import STATE_DIR_NAME
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.core.reconcile import difference
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import (
    AutoexpError,
    ConfigError,
    JobSubmissionError,
    SLURMError,
    UsageError,
)
from oellm_autoexp.planning.resources import resources_of
from oellm_autoexp.services import calls
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services import session as sessions
from oellm_autoexp.services.daemon import hand_over
from oellm_autoexp.services.experiments.launch_results import (
    DRY_RUN_ID,
    BatchSubmissionResult,
    SLURMJobResult,
    failed_result,
    result_of,
)
from oellm_autoexp.services.experiments.launcher import ExperimentLauncher
from oellm_autoexp.services.experiments.plan import Named, config_of, named_one, same_name
from oellm_autoexp.services.experiments.sbatch_template import (
    SBATCHTemplateEngine,
    TemplateContext,
    project_template,
)
from oellm_autoexp.services.experiments.scripts import ExperimentScripts
from oellm_autoexp.services.experiments.settled import settled
from oellm_autoexp.services.lead import command
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.services.source import exposed
from oellm_autoexp.sweep.names import legalize

_CHANGED = "update=True takes the new one; another experiment_name keeps both"

Experiment = ExperimentConfig | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """How experiments are to be submitted."""

    script_path: str | Path | None = None
    max_concurrent: int | None = None
    use_git_branch: bool = False
    dry_run: bool = False
    update: bool = False


class SLURMLauncher(ExperimentLauncher):
    """Submits experiments to Slurm, each as the script that a template makes of it.

    `template_path` None: the template that the project has (`sbatch_template.TEMPLATES`); without one each
    experiment runs `python SCRIPT CONFIG`, with what its section `slurm` asks for. Paths start at
    `project_root`. `scheduler="local"` runs them as processes of this machine, by the same script. The rest
    is as for `ExperimentLauncher`.

        launcher = SLURMLauncher("slurm_template.txt", project_root=".")
        result = launcher.submit_single_experiment(config, "train.py")
        print(result.job_id if result.success else result.error)
    """

    def __init__(
        self,
        template_path: str | Path | None = None,
        project_root: str | Path = ".",
        experiments_dir: str | Path | None = None,
        *,
        script: str | Path = "train.py",
        cluster: str | None = None,
        overrides: Sequence[str] = (),
        scheduler: Literal["slurm", "local"] = "slurm",
    ) -> None:
        super().__init__(
            project_root,
            script=script,
            experiments_dir=experiments_dir if experiments_dir is not None else "experiments",
            cluster=cluster,
            overrides=overrides,
        )
        self._scheduler = scheduler
        given = self._found(template_path) if template_path is not None else None
        self.template_path = given or project_template(self.project_root)

    # ---- submit

    def submit_single_experiment(
        self,
        config: Experiment,
        script_path: str | Path | None = None,
        use_git_branch: bool = False,
        dry_run: bool = False,
        *,
        update: bool = False,
    ) -> SLURMJobResult:
        """Submit an experiment; what was submitted before goes on or stays done, and is not submitted again.

        `script_path` None: the `script` of the launcher. `use_git_branch`: it runs in a working tree of its
        own, at the commit that is checked out. `dry_run` writes the files and submits nothing. `update` takes
        an experiment that has changed. It never raises: `success` and `error` say what became of it.
        """
        wish = _Wish(script_path=script_path, use_git_branch=use_git_branch, dry_run=dry_run, update=update)
        return self._submit([config], wish)[0]

    def submit_experiment_batch(
        self,
        experiments: Iterable[Experiment],
        script_path: str | Path | None = None,
        *,
        max_concurrent: int | None = None,
        use_git_branch: bool = False,
        dry_run: bool = False,
        update: bool = False,
    ) -> BatchSubmissionResult:
        """Submit experiments, as `submit_single_experiment` does each; one that cannot be stops no other.

        `max_concurrent`: at most so many jobs of `experiments_dir` are queued or running at once, from now on
        and until another number is given; the others count as submitted and follow by themselves. None: as
        before while jobs are left, else without a bound.
        """
        wish = _Wish(
            script_path=script_path,
            max_concurrent=max_concurrent,
            use_git_branch=use_git_branch,
            dry_run=dry_run,
            update=update,
        )
        return BatchSubmissionResult(job_results=self._submit(experiments, wish))

    def submit_experiments(
        self, configs: Iterable[Experiment], script_path: str | Path | None = None
    ) -> list[str]:
        """Submit experiments; the ids of their jobs, or the name of one that waits for its turn.

        Raises:
            JobSubmissionError: not all could be submitted; says which, and why. The others are.
        """
        results = self._submit(configs, _Wish(script_path=script_path))
        failed = [f"{each.experiment_name}: {each.error}" for each in results if not each.success]
        if failed:
            what = f"{len(failed)} of {len(results)} experiments were not submitted\n" + "\n".join(failed)
            raise JobSubmissionError(what, hint="mend that, and submit all again: none runs twice")
        return [str(each) or each.experiment_name for each in results]

    def generate_sbatch_script(
        self, config: ExperimentConfig, context: TemplateContext | Mapping[str, Any] | None = None
    ) -> Path:
        """Write what the template makes of an experiment to `experiments/NAME/NAME.rendered.sbatch`.

        It is for people, or to be submitted by hand; what a session runs stands beside it. `context` replaces
        variables, or adds some.

        Raises:
            ConfigurationError, ConfigError: as `SBATCHTemplateEngine.generate_sbatch_script`.
        """
        job = legalize(config.experiment_name)
        if not isinstance(context, TemplateContext):
            context = self._scripts.context(config, self.experiments_dir, self.script, context or {})
        path = self.experiments_dir / job / f"{job}.rendered.sbatch"
        return self.template_engine.generate_sbatch_script(context, path)

    @property
    def template_engine(self) -> SBATCHTemplateEngine:
        """Of the template that the project has, or of the one that comes along."""
        return self._scripts.engine

    # ---- look, steer

    def get_job_status(self, job: SLURMJobResult | str) -> JobState:
        """How a job stands, which is given by its result, its id or the experiment's name.

        Raises:
            SLURMError: there is no such job.
        """
        return self._job(job).state

    def cancel_job(self, job: SLURMJobResult | str) -> bool:
        """Cancel a job; whether it had not ended. It stays cancelled until it is retried.

        Raises:
            SLURMError: there is no such job.
        """
        found = self._job(job)
        if found.state.ended:
            return False
        paths = self.session_paths
        done, _ = command(paths, "cancel", {"jobs": [found.spec.name]})
        if sessions.replay(paths).ended is None:
            hand_over(paths, None)
        return done

    def list_user_jobs(self) -> list[SLURMJobResult]:
        """Every job of the directory's session, oldest first."""
        paths = self.session_paths
        found = sessions.replay(paths).jobs.values() if paths.journal.is_dir() else ()
        return [result_of(job) for job in found]

    def validate_slurm_environment(self) -> list[str]:
        """What stands in the way of jobs on the cluster of this machine, with what to do; nothing: []."""
        from oellm_autoexp.services import doctor

        wanted = ("commands", "controller", "accounting")
        checks = [check for check in doctor.CHECKS if check[0] in wanted]
        found = [each.finding for each in doctor.examine(doctor.Site(plan=None), checks=checks)]
        return [f"{each.what}\n  -> {each.fix}" for each in found if each.level != "ok"]

    def _job(self, wanted: SLURMJobResult | str) -> Job:
        word = wanted if isinstance(wanted, str) else legalize(wanted.experiment_name)
        paths = self.session_paths
        session = sessions.replay(paths) if paths.journal.is_dir() else Session()
        if legalize(word) in session.jobs:
            return session.jobs[legalize(word)]
        try:
            (found,) = sessions.chosen(session, [word])
        except (UsageError, ValueError) as error:
            hint = error.hint if isinstance(error, UsageError) else "give an id or a name"
            raise SLURMError(
                f"there is no job {word!r}", where=str(self.experiments_dir), hint=hint
            ) from None
        return found

    # ---- from experiments to scripts

    def _found(self, path: str | Path) -> Path:
        """A path that starts at the project, or else where the process runs."""
        places = (self.project_root / path, Path.cwd() / path)
        return next((place for place in places if place.is_file()), places[0])

    def _script(self, script_path: str | Path | None) -> Path:
        script = self._found(script_path) if script_path is not None else self.script
        if not script.is_file():
            hint = "script_path starts at the project's root"
            raise UsageError("there is no such script", where=str(script), hint=hint)
        return script

    def _scripted(self, found: Sequence[Named], base: Path) -> list[Named]:
        scripts = self._scripts
        return [scripts.of(each, base, self.script) for each in found]

    @property
    def _scripts(self) -> ExperimentScripts:
        """The template as it is now, in the project as it is now."""
        return ExperimentScripts(self.project_root, self.template_path)

    # ---- from scripts to jobs

    def _submit(self, given: Iterable[Experiment], wish: _Wish) -> list[SLURMJobResult]:
        experiments = list(given)
        done: dict[str, SLURMJobResult] = {}
        found: dict[str, Named] = {}
        order: list[str | SLURMJobResult] = []
        scripts = self._scripts
        for each in experiments:
            try:
                named = self._prepared(each, wish, scripts)
                if named.job in found:
                    raise same_name(named.config)
            except (AutoexpError, OSError) as error:
                order.append(failed_result(_name_of(each), str(error)))
            else:
                found[named.job] = named
                order.append(named.job)
        if found:
            try:
                done = self._carried_out(list(found.values()), wish)
            except (AutoexpError, OSError) as error:
                done = {
                    job: failed_result(each.config.experiment_name, str(error)) for job, each in found.items()
                }
        return [done[each] if isinstance(each, str) else each for each in order]

    def _prepared(self, given: Experiment, wish: _Wish, scripts: ExperimentScripts) -> Named:
        """An experiment that can be planned.

        Raises:
            AutoexpError: why not.
        """
        named = named_one(configs.experiment(given), {})
        own = self.experiments_dir / named.job / STATE_DIR_NAME
        if own.is_dir():
            hint = f"oellm-autoexp status {own.parent}; or give the experiment another name"
            raise UsageError("has a session of its own already", where=str(own), hint=hint)
        named = scripts.of(named, self.experiments_dir, self._script(wish.script_path))
        # What it asks for is refused for itself, not for all.
        resources_of({"sbatch": dict(named.sbatch)})
        return named

    def _carried_out(self, found: Sequence[Named], wish: _Wish) -> dict[str, SLURMJobResult]:
        plan = self._plan(found, wish)
        paths = plan.loaded.paths
        jobs: Mapping[str, Job] = sessions.replay(paths).jobs if paths.journal.is_dir() else {}
        changed = {} if wish.update else _changed(plan, jobs)
        names = {each.job: each.config.experiment_name for each in found}
        taken = [each for each in found if each.job not in changed]
        plan = replace(plan, jobs=[job for job in plan.jobs if job.spec.name not in changed])
        if taken and wish.dry_run:
            # What a session has stays; nor is a source made for what does not run.
            shown = replace(plan, source=None, loaded=replace(plan.loaded, text=None))
            planning.write(shown, plan.loaded.effects, leave=jobs.keys())
            self._write_configs((each for each in taken if each.job not in jobs), self.experiments_dir)
        elif taken:
            planning.require_submitting(plan.loaded)
            self._write_configs(taken, self.experiments_dir)
            # What no scheduler has taken yet, one may take now.
            again = [job.spec.name for job in plan.jobs if _was_refused(jobs.get(job.spec.name))]
            calls.submit_jobs(replace(plan, part=True), update=wish.update, again=again, wait=False)
            jobs = settled(plan)
        said = exposed(plan)
        results = {
            job: failed_result(names[job], f"has changed: {what}\n  -> {_CHANGED}")
            for job, what in changed.items()
        }
        for each, planned in zip(taken, plan.jobs, strict=True):
            name = names[each.job]
            if wish.dry_run:
                made = SLURMJobResult(experiment_name=name, success=True, job_id=DRY_RUN_ID)
            else:
                made = replace(result_of(jobs[planned.spec.name]), experiment_name=name)
            results[each.job] = replace(
                made,
                script=planned.script,
                sbatch_script_path=Path(planned.spec.script_path),
                output_dir=Path(planned.spec.output_dir),
                notices=(*(each.script.notices if each.script is not None else ()), *said),
            )
        return results

    def _plan(self, found: Sequence[Named], wish: _Wish) -> PlanResult:
        home = self.experiments_dir
        script = self._script(wish.script_path)
        project = {
            "name": legalize(f"{home.parent.name}-{home.name}".lstrip("-")),
            "base_output_dir": str(home),
            "state_dir": str(self.session_paths.state_dir),
            # That a program calls is its agreement.
            "confirm_gpu_hours": None,
            "git_isolation": "branch" if wish.use_git_branch else None,
        }
        places = f"{configs.escaped(str(home))}/${{experiment}}"
        raw = config_of(
            found,
            project=configs.escaped(project),
            slurm={"script_dir": places, "log_dir": places},
            command=[sys.executable, str(script)],
            cwd=self.project_root,
            cluster=self._cluster,
            store_sweep_json=False,
        )
        bound = self._bound(wish.max_concurrent)
        if bound is not None:
            raw["scheduler"] = {**raw.get("scheduler", {}), "max_jobs": bound}
        text = configs.to_yaml(raw)
        with tempfile.TemporaryDirectory(prefix="oellm-autoexp-") as place:
            file = Path(place).resolve() / "config.yaml"
            file.write_text(text, encoding="utf-8")
            try:
                loaded = planning.load(
                    str(file),
                    overrides=self._overrides,
                    scheduler=self._scheduler,
                    cwd=self.project_root,
                    directory=self.project_root,
                )
                source = {**loaded.source, "config": str(loaded.paths.config)}
                return calls.planned_of(replace(loaded, source=source, text=text))
            except ConfigError as error:
                # Nobody has seen that file.
                faults = [
                    replace(each, file="", line=0) if each.file == str(file) else each
                    for each in error.faults
                ]
                raise ConfigError(*faults) from error.__cause__

    def _bound(self, max_concurrent: int | None) -> int | None:
        """How many jobs may be queued or running at once; None: no bound."""
        if max_concurrent is not None:
            if max_concurrent < 1:
                raise UsageError(f"max_concurrent must be at least 1, got {max_concurrent}")
            return max_concurrent
        paths = self.session_paths
        session = sessions.replay(paths) if paths.journal.is_dir() else Session()
        if session.opened is None or session.all_ended:
            return None
        bound: int | None = session.opened.scheduler.get("max_jobs")
        return bound


def _name_of(given: Any) -> str:
    if isinstance(given, Mapping):
        return str(given.get("experiment_name", ""))
    return str(getattr(given, "experiment_name", ""))


def _was_refused(job: Job | None) -> bool:
    return job is not None and job.state is JobState.FAILED and not job.attempts


def _changed(plan: PlanResult, jobs: Mapping[str, Job]) -> dict[str, str]:
    """What has changed about experiments that the session has, in words, by the names of their jobs."""
    found = {}
    for planned in plan.jobs:
        known = jobs.get(planned.spec.name)
        current = (known.next_spec or known.spec) if known is not None else planned.spec
        if current.id != planned.spec.id:
            found[planned.spec.name] = difference(current, planned.spec)
    return found
