"""A config is played on a fake cluster, from many seeds and under several policies.

Each run is a session of its own in a directory of its own, in a process of its own; nothing of the user's is
touched. The same seed brings the same luck to whatever policy is played.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import groups
from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.goodput import Goodput, Ledger
from oellm_autoexp.core.model import JobState
from oellm_autoexp.core.spans import Part
from oellm_autoexp.errors import AutoexpError, StateError, UsageError, did_you_mean
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient, HorizonReached
from oellm_autoexp.schedulers.fake.scenario import DAY, Play, Scenario
from oellm_autoexp.services import calls, submit
from oellm_autoexp.services.lead import Watch
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.services.views import is_routine, told
from oellm_autoexp.store.effects import Effects

#: The group of fault models: `config/faults/NAME.yaml`.
FAULTS = "faults"
#: A policy that has not finished in so many times the work is not going to.
PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What is to be played. `against`: further sets of overrides, each played from the same seeds."""

    config_ref: str
    config_dir: str | None = None
    overrides: Sequence[str] = ()
    scenario: Scenario = field(default_factory=Scenario)
    seeds: Sequence[int] = (0,)
    against: Sequence[str] = ()
    #: The words that chose the scenario, to be typed again.
    words: Sequence[str] = ()
    #: Where the sessions stay; None: nowhere.
    keep: Path | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """The config as it is, "", and what it is compared with."""
        return ("", *self.against)

    def again(self, seed: int, variant: str) -> str:
        """The line that plays one run again."""
        words = ["oellm-autoexp", "rehearse", self.config_ref]
        words += ["-C", self.config_dir] if self.config_dir else []
        for override in (*self.overrides, *shlex.split(variant)):
            words += ["-o", override]
        return shlex.join([*words, *self.words, "--seed", str(seed)])


@dataclass(frozen=True, kw_only=True)
class Told:
    """One line of the timeline: when (seconds after the start), about which job ("" for none), and what."""

    at_s: float
    job: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one config, played from one seed. Times are seconds."""

    variant: str
    seed: int
    #: How many jobs are in each state at the end.
    states: Mapping[str, int]
    #: The sum over jobs of each part of their time.
    parts: Mapping[str, float]
    #: From the first submission to the last end.
    took_s: float
    gpu_hours: float
    #: How often an attempt ended in each error mode, and how often each fault befell a job.
    ends: Mapping[str, int]
    faults: Mapping[str, int]
    #: How often a person had to start a job again.
    retries: int
    timeline: Sequence[Told]
    directory: str = ""

    @property
    def ettr(self) -> float:
        """Productive time over all of it."""
        whole = sum(self.parts.values())
        return self.parts[Part.PRODUCTIVE.value] / whole if whole else 0.0

    @property
    def succeeded(self) -> bool:
        return set(self.states) <= {JobState.SUCCEEDED.value}


def fault_models(directories: Sequence[Path]) -> list[str]:
    """The names of the fault models in these directories, and of the shipped ones."""
    return groups.options([*directories, groups.shipped()], FAULTS)


def scenario_of(
    *, faults: str | None, scenario: Path | None, days: float | None, config_dir: Path | None
) -> Scenario:
    """The scenario that the arguments mean; with `days` each job has so many days of work.

    Raises:
        UsageError: both are given, or there is no such fault model.
        ConfigError: every mistake in the file.
    """
    if faults is not None and scenario is not None:
        raise UsageError("--faults excludes --scenario", hint="a fault model is a scenario: name one of them")
    if faults is not None:
        places = [config_dir] if config_dir is not None else []
        found = [place / FAULTS / f"{faults}.yaml" for place in (*places, groups.shipped())]
        scenario = next((path for path in found if path.is_file()), None)
        if scenario is None:
            known = fault_models(places)
            raise UsageError(
                f"there is no fault model {faults!r}", hint=did_you_mean(faults, known) or ", ".join(known)
            )
    played = scenarios.load(scenario, Scenario) if scenario is not None else Scenario()
    if days is None:
        return played
    plays = [replace(play, work=days * DAY) for play in played.jobs or [Play()]]
    return replace(played, jobs=plays, horizon=max(PATIENCE * days, 1.0) * DAY)


def check(rehearsal: Rehearsal) -> None:
    """Plan the config under every policy, and play nothing.

    Raises:
        AutoexpError: it cannot be planned.
    """
    with tempfile.TemporaryDirectory(prefix="oellm-autoexp-rehearsal-") as place:
        for variant in rehearsal.variants:
            _planned(rehearsal, rehearsal.seeds[0], variant, Path(place))


def _planned(rehearsal: Rehearsal, seed: int, variant: str, directory: Path) -> PlanResult:
    path = directory / "scenario.json"
    path.write_text(json.dumps(asdict(replace(rehearsal.scenario, seed=seed))))
    here = f"project.base_output_dir={directory / 'outputs'}"
    overrides = [*rehearsal.overrides, *shlex.split(variant), here]
    return calls.planned(
        rehearsal.config_ref, rehearsal.config_dir, overrides, scheduler="fake", scenario=path
    )


# ---------------------------------------------------------------- one run


def play(rehearsal: Rehearsal, seed: int, variant: str) -> Run:
    """Play one config from one seed.

    Raises:
        AutoexpError: it cannot be played.
    """
    if rehearsal.keep is not None:
        number = rehearsal.variants.index(variant)
        directory = rehearsal.keep / f"policy{number}" / f"seed{seed}"
        if (directory / "scenario.json").exists():
            raise UsageError("there is a rehearsal already", where=str(directory), hint="remove it")
        directory.mkdir(parents=True, exist_ok=True)
        return _played(rehearsal, seed, variant, directory)
    with tempfile.TemporaryDirectory(prefix="oellm-autoexp-rehearsal-") as place:
        return replace(_played(rehearsal, seed, variant, Path(place)), directory="")


def _played(rehearsal: Rehearsal, seed: int, variant: str, directory: Path) -> Run:
    result = _planned(rehearsal, seed, variant, directory)
    diary = _Diary()
    _, loop = submit.submit(result, watch=Watch(on_event=diary.take), register=False)
    scheduler = result.loaded.scheduler
    assert loop is not None and isinstance(scheduler, FakeSlurmClient)
    try:
        diary.retries = _attended(loop, scheduler)
    finally:
        loop.close()
    return diary.told(loop, scheduler, seed=seed, variant=variant, directory=str(directory))


def _attended(loop: Loop, scheduler: FakeSlurmClient) -> int:
    """Run a loop to its end; what has failed is started again by a person who looks now and then.

    How often that was needed.
    """
    looks, retries = scheduler.scenario.attended, 0
    try:
        while True:
            loop.run()
            failed = [job.spec.name for job in loop.session.jobs.values() if job.state is JobState.FAILED]
            if not looks or not (failed or loop.session.breaker):
                return retries
            now, start = scheduler.clock.now(), scheduler.scenario.start
            scheduler.clock.wait(looks - (now - start) % looks)
            loop.commands.obey("retry", {"jobs": failed}, scheduler.clock.now())
            retries += len(failed)
    except HorizonReached:
        return retries


class _Diary:
    """What is kept of a run while it is played: its events are many, and most of them are routine."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._lines: list[tuple[float, str, str]] = []
        self._ends: Counter[str] = Counter()
        self.retries = 0

    def take(self, event: ev.Event) -> None:
        self._ledger.apply(event)
        if isinstance(event, ev.AttemptEnded):
            self._ends[event.mode] += 1
        if is_routine(event) or isinstance(event, (ev.AttemptStarted, ev.AttemptPending, ev.SignalsFound)):
            return  # What a signal says comes with the end that it explains.
        text, about = told(event), getattr(event, "job", "")
        if text and about:
            self._lines.append((event.at, about, text.partition("  [scheduler: ")[0]))

    def told(self, loop: Loop, scheduler: FakeSlurmClient, **about: Any) -> Run:
        """The account of the run at its end."""
        cluster, jobs = scheduler.played, loop.session.jobs
        start, now = scheduler.scenario.start, scheduler.clock.now()
        spent: Goodput = self._ledger.total(jobs, now)
        for what in cluster.befallen:
            if what.job or not what.node:
                place = f" on {what.node}" if what.node else ""
                self._lines.append((what.at, what.job, f"! {what.name}{place}"))
        last = [job.attempts[-1].ended_at or now if job.attempts else now for job in jobs.values()]
        return Run(
            states=dict(Counter(job.state.value for job in jobs.values())),
            parts={part.value: ms / 1000 for part, ms in spent.ms.items()},
            took_s=max(last, default=start) - start,
            gpu_hours=round(spent.held_gpu_ms / 3.6e6, 1),
            ends=dict(self._ends),
            faults=dict(Counter(what.name for what in cluster.befallen if what.job)),
            retries=self.retries,
            timeline=[Told(at_s=at - start, job=job, what=what) for at, job, what in sorted(self._lines)],
            **about,
        )


# ---------------------------------------------------------------- all of them


def write(path: Path, data: bytes) -> None:
    """Write a picture for people.

    Raises:
        StateError: it cannot be written.
    """
    try:
        Effects().write(path, data, mode=0o644)
    except OSError as error:
        raise StateError(f"cannot be written: {error.strerror}", where=str(path)) from error


def rehearse(rehearsal: Rehearsal, on_run: Callable[[int, int], None] = lambda _done, _of: None) -> list[Run]:
    """Every seed under every policy, as many at a time as there are CPUs, in the order of policies and seeds.

    `on_run` is told how many of how many have been played.

    Raises:
        AutoexpError: one of them cannot be played; the message has its seed, and the line that repeats it.
    """
    wanted = [(seed, variant) for variant in rehearsal.variants for seed in rehearsal.seeds]
    workers = min(len(wanted), len(os.sched_getaffinity(0)))
    if workers == 1:
        return list(_one_by_one(rehearsal, wanted, on_run))
    # A fresh process each: a fork would take threads and open files along.
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[int, str], Run] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_deaf) as pool:
        open_: dict[Future[Run], tuple[int, str]] = {}
        for seed, variant in wanted:
            open_[pool.submit(play, rehearsal, seed, variant)] = seed, variant
        try:
            while open_:
                done, _ = wait(open_, return_when=FIRST_COMPLETED)
                for future in done:
                    which = open_.pop(future)
                    found[which] = _result(rehearsal, which, future.result)
                    on_run(len(found), len(wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[which] for which in wanted]


def _one_by_one(
    rehearsal: Rehearsal, wanted: Sequence[tuple[int, str]], on_run: Callable[[int, int], None]
) -> Iterator[Run]:
    for number, which in enumerate(wanted, 1):
        yield _result(rehearsal, which, lambda which=which: play(rehearsal, *which))  # type: ignore[misc]
        on_run(number, len(wanted))


def _deaf() -> None:
    """Ctrl-C is for the process that the user sees."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _result(rehearsal: Rehearsal, which: tuple[int, str], ask: Callable[[], Run]) -> Run:
    try:
        return ask()
    except AutoexpError:
        # A mistake in the config says itself where it is; no seed has to do with it.
        raise
    except Exception as error:
        what = f"seed {which[0]} could not be played: {type(error).__name__}: {error}"
        raise StateError(what, hint=f"once more: {rehearsal.again(*which)}") from error
