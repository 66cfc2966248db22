"""What a Python program calls: plan with `render_scripts`, submit and watch with `submit_jobs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from oellm_autoexp.errors import UsageError
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services.plan import Loaded, PlanResult

if TYPE_CHECKING:
    from oellm_autoexp.core.events import Event
    from oellm_autoexp.core.session import Session
    from oellm_autoexp.monitor.loop import Loop

#: Each is time-boxed; together they begin some thousand submissions.
_BEGINNING_TICKS = 100


def planned(
    config_ref: str | Path,
    config_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    scheduler: str | None = None,
    scenario: str | Path | None = None,
    *,
    isolated: bool = True,
) -> PlanResult:
    """The plan of a config; jobs that its session has keep their names. Nothing is written.

    `isolated`: as for `services.plan.plan`.

    Raises:
        ConfigError: every mistake in the config, with file, key and repair.
        UsageError: a scheduler that cannot be used, or the state directory of another project.
        StateError: the session's journal is damaged.
    """
    directory = Path(config_dir) if config_dir is not None else None
    loaded = planning.load(
        str(config_ref),
        directory,
        list(overrides),
        scheduler=scheduler,
        scenario=Path(scenario) if scenario is not None else None,
    )
    return planned_of(loaded, isolated=isolated)


def planned_of(loaded: Loaded, *, isolated: bool = True) -> PlanResult:
    """The plan of a config that is loaded.

    `isolated`: as for `services.plan.plan`.

    Raises:
        ConfigError, UsageError, StateError: as `planned`.
    """
    if not loaded.paths.journal.is_dir():
        return planning.plan(loaded, isolated=isolated)
    # The machinery of sessions takes a tenth of a second to import; the first plan does without.
    from oellm_autoexp.services.session import check_project, replay

    session = replay(loaded.paths)
    check_project(session, loaded.project, loaded.paths)
    there = session.jobs
    known = {job.spec.id: name for name, job in there.items()}
    result = planning.plan(loaded, known, isolated=isolated)
    digests = {job.spec.name: job.spec.script_digest for job in result.jobs}
    held = frozenset(
        name for name in digests.keys() & there if there[name].spec.script_digest != digests[name]
    )
    return replace(result, held=held)


def render_scripts(
    config_ref: str | Path,
    *,
    config_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    scheduler: str | None = None,
    dry_run: bool = False,
) -> PlanResult:
    """Write the scripts and sweep.json of a config, as `oellm-autoexp plan` does; the plan.

    `config_ref` is a YAML file or the name of a config in `config_dir` (None: `./config`, then the shipped
    groups). `overrides` are `key=value`. `scheduler` ("local", "slurm") wins over the config. With `dry_run`
    nothing is written. What is on disk as planned stays untouched, and so do the scripts of jobs that the
    session has in another form (`held`): it may run them again.

        plan = render_scripts("sweep.yaml", overrides=["sweep.axes.lr=[1e-3]"], scheduler="local")
        for job in plan.jobs:
            print(job.spec.name, job.spec.script_path)

    Raises:
        ConfigError: every mistake in the config; nothing was written.
        UsageError: a scheduler that cannot be used.
        StateError: a file that cannot be written.
    """
    result = planned(config_ref, config_dir, overrides, scheduler)
    if not dry_run:
        planning.write(result, result.loaded.effects, leave=result.held)
    return result


def submit_jobs(
    config: str | Path | PlanResult,
    *,
    config_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    scheduler: str | None = None,
    update: bool = False,
    prune: bool = False,
    again: Sequence[str] = (),
    yes: bool = False,
    wait: bool = True,
    on_event: Callable[[Event], None] = lambda _event: None,
) -> Session:
    """Submit what is not done yet, as `oellm-autoexp submit` does; the state of the session.

    `config` is a plan of `render_scripts`, or what that takes, with `config_dir`, `overrides`, `scheduler`.
    `update` takes jobs that have changed, `prune` cancels those that the plan no longer has, `again` names
    jobs that start anew where they have ended, `yes` agrees to what the command line would ask
    (`project.confirm_gpu_hours`, and what `prune` cancels).

    With `wait` this call watches, restarts and acts until every job has a verdict, and `on_event` is told of
    each event; if it is interrupted, the jobs go on. Without, it returns when the scheduler has what may
    start, and a process in the background does the rest. Where another process watches the session already,
    it takes the jobs over, and the call returns at once.

        session = submit_jobs("sweep.yaml", scheduler="local")
        failed = [name for name, job in session.jobs.items() if job.state != "succeeded"]

    Raises:
        ConfigError: every mistake in the config, or jobs that have changed; nothing was submitted.
        UsageError: something must be agreed to, or the scheduler cannot submit; nothing was submitted.
        StateError: the state directory cannot be written, or belongs to something else.
        LeadershipLost: another process has taken the session over.
    """
    from oellm_autoexp.services import submit as service
    from oellm_autoexp.services.daemon import hand_over
    from oellm_autoexp.services.lead import Watch
    from oellm_autoexp.services.session import replay

    result = config if isinstance(config, PlanResult) else planned(config, config_dir, overrides, scheduler)
    terms = service.Terms(update=update, prune=prune, again=again)
    done = service.preview(result, terms)
    service.check_room(result, done)
    cost = service.to_confirm(result, done)
    if not yes and cost:
        raise UsageError(f"{len(done.added)} new jobs may use {cost}", hint="pass yes=True to submit them")
    if not yes and prune and done.missing:
        what = f"{len(done.missing)} jobs that the plan no longer has would be cancelled"
        raise UsageError(what, hint="pass yes=True to cancel them")
    paths = result.loaded.paths
    _, loop = service.submit(result, terms, watch=Watch(on_event=on_event))
    if not wait:
        if loop is not None:
            _begin(loop)
        hand_over(paths, loop)
    elif loop is not None:
        try:
            loop.run()
        finally:
            loop.close()
    return replay(paths)


def _begin(loop: Loop) -> None:
    """Tick until what may start has been submitted; an unclear submission is left to whoever leads next."""
    loop.start()
    for _ in range(_BEGINNING_TICKS):
        before = len(loop.session.submissions)
        loop.tick()
        if len(loop.session.submissions) in (0, before):
            return
