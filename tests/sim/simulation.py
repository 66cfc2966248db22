"""Whole campaigns under seeded faults; `python tests/sim/simulation.py --seed 4711` repeats one.

A seed draws the jobs and how they go wrong, the rules, the habits of the cluster, what befalls it, when the
loop is killed and its clock is set, and what a person does. For some hours of virtual time all of it happens;
then nothing more does, and every job must come to its verdict.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

from deaths import Fatal, Killed
from played import LINES, SAVED, Played, Setup, stage

from oellm_autoexp.core import events as ev
from oellm_autoexp.errors import LeadershipLost
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.scenario import ClusterFault

MINUTE, HOUR = 60.0, 3600.0
#: Once the faults have stopped, so many ticks are enough for every job.
CALM_TICKS = 4000

RULES: dict[str, Any] = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "startup_grace_seconds": 60,
        "log_signals": {
            "step": {"pattern": r"step (?P<step>\d+) loss", "counter": "step"},
            "saved": {"pattern": SAVED, "action": ["convert", "note"]},
            "nan": {"pattern": "loss nan", "mode": "crash.nan", "grace_seconds": 30},
        },
    },
    "actions": {
        "convert": {"class_name": "CommandAction", "command": "convert {path}"},
        "note": {"class_name": "AppendAction", "path": "ROOT/notes", "text": "{job} {attempt} {path} {step}"},
        "tell": {
            "class_name": "AppendAction",
            "path": "ROOT/told",
            "text": "{job} {attempt} {signal}",
            "on": ["job_succeeded", "job_failed", "job_cancelled", "job_restarted"],
        },
    },
}


def setup_of(rng: Random) -> Setup:
    """What a seed draws before anything begins."""
    names = [f"job{number:02d}" for number in range(rng.choice([1, 2, 4, 6, 9]))]
    rules: dict[str, Any] = {name: dict(section) for name, section in RULES.items()}
    monitoring = rules["monitoring"]
    if rng.random() < 0.8:
        monitoring["inactivity_threshold_seconds"] = rng.choice([400, 900])
    if rng.random() < 0.3:
        monitoring["termination_string"] = "training is done"
    if rng.random() < 0.7:
        policy = {"class_name": "AlwaysRestartPolicy", "backoff_seconds": rng.choice([0, 30])}
        rules["restart_policies"] = {
            "crash": {**policy, "max_retries": rng.choice([0, 1, 3])},
            "stall": {**policy, "max_retries": rng.choice([1, 2])},
        }
        if rng.random() < 0.5:
            rules["restart_policies"]["timeout"] = {"class_name": "AdjustTimeLimitPolicy", "minutes": 10}
    habits = {
        "nodes": rng.choice([1, 2, 4, 16]),
        "default_time": 2 * HOUR,
        "accounting": rng.random() < 0.6,
        "accounting_lag": rng.choice([0.0, 10.0, 300.0]),
        "min_job_age": rng.choice([30.0, 300.0]),
        "max_array_size": rng.choice([1, 2, 1001]),
        "requeue": rng.random() < 0.5,
        "requeue_delay": rng.choice([2.0, 120.0]),
        "slurmd_timeout": rng.choice([30.0, 300.0]),
        "queue_wait": rng.choice([0.0, 0.0, 300.0]),
        "max_submit_jobs": rng.choice([None, None, 3]),
        "shows_out_of_memory": rng.random() < 0.5,
        "preempt_grace": rng.choice([0.0, 60.0]),
    }
    if habits["max_submit_jobs"] is not None:
        habits["max_array_size"] = min(habits["max_array_size"], habits["max_submit_jobs"])
    pace = rng.choice([5.0, 20.0, 50.0])
    setup = Setup(
        jobs=names,
        rules=rules,
        scenario={
            "seed": rng.randrange(2**32),
            "cluster": habits,
            "jobs": [_play(rng, f"{name}") for name in names],
            # Far away: it tells the cluster that ids may be given again.
            "faults": [{"kind": "crash", "at": "365d"}],
        },
        max_jobs=rng.choice([None, 1, 3]),
        breaker=rng.choice([None, 2, 3]),
        time_limit=rng.choice([None, 20 * 60, 60 * 60]),
        pace=pace,
        stride=max(pace, rng.choice([20.0, 60.0])),
        rehearsal=rng.random() < 0.3,
        canary=rng.choice([0, 0, 0, 1, 2]),
        successor_wait=rng.choice([None, None, 0.0, 100.0, 600.0]),
    )
    if setup.successor_wait is not None:
        # Chains, which are what these are for.
        setup.time_limit = rng.choice([5 * 60, 20 * 60])
        rules.get("restart_policies", {}).pop("timeout", None)
    apart = Random(setup.scenario["seed"])
    setup.parents = _parents(apart, names)
    if setup.parents:
        setup.early_wait = apart.choice([None, 0.0, 100.0, 600.0])
    if setup.early_wait is not None and apart.random() < 0.6:
        # Nothing but the exit status tells of success, so that who waits may go on without a leader.
        monitoring["log_signals"] = {k: v for k, v in monitoring["log_signals"].items() if k != "nan"}
        monitoring.pop("termination_string", None)
    return setup


def _parents(rng: Random, names: list[str]) -> dict[str, list[str]]:
    """Of some sweeps some jobs wait for others, in an order that is not that of the plan."""
    if rng.random() < 0.7:
        return {}
    order = rng.sample(names, len(names))
    return {
        name: rng.sample(order[:at], min(at, rng.choice([1, 1, 2])))
        for at, name in enumerate(order)
        if at and rng.random() < 0.6
    }


def _play(rng: Random, name: str) -> dict[str, Any]:
    play: dict[str, Any] = {
        "match": name,
        "work": rng.choice([5, 20, 40]) * MINUTE,
        "startup": rng.choice([5.0, 90.0]),
        "log_every": rng.choice([60.0, 200.0]),
        "checkpoint_every": rng.choice([None, 240.0, 600.0]),
        "checkpoint_takes": rng.choice([0.0, 20.0]),
        "stop_takes": rng.choice([0.0, 2.0, 60.0]),
        "saves_when_stopped": rng.random() < 0.3,
        "code": rng.choice([0] * 9 + [1]),
        "lines": LINES,
        "mishaps": [],
    }
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        kind = rng.choice(["exit", "kill", "oom", "hang"])
        lines = rng.choice([[], ["RuntimeError: boom"], ["step 7 loss nan"]])
        mishap = {
            "kind": kind,
            "lines": lines,
            "attempts": rng.choice([1, 2, 3]),
            "code": rng.choice([1, 2, 78]),
        }
        mishap[rng.choice(["after", "at_work", "every"])] = rng.choice([1.0, 100.0, 500.0, 1000.0])
        play["mishaps"].append(mishap)
    return play


#: What may befall the cluster, and how often beside the others.
FAULTS = {
    "node_fail": 4,
    "preempt": 2,
    "suspend": 2,
    "cancel": 1,
    "hold": 1,
    "release": 1,
    "requeue": 2,
    "outage": 2,
    "frozen": 3,
    "crash": 2,
    "lost_answer": 4,
}


#: Where a leader is stopped (SIGSTOP) while others lead; it wakes in the middle of what it was doing.
STOPS = ("submit:before", "submit:after", "cancel:before", "write_at:before", "fsync:before", "queue:before")


@dataclass
class Campaign:
    """One seed, played."""

    played: Played
    rng: Random
    calm: bool = False
    ticks_of_calm: int = 0
    deaths: int = 0
    stops: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        rng = self.rng
        start = self.played.client.played.now
        #: When everything has befallen that does.
        self.calm_at = start + rng.choice([0.5, 1.0, 2.0]) * HOUR
        self.fault_rate = rng.choice([0.0, 1.0, 4.0, 12.0]) / HOUR
        self.death_rate = rng.choice([0.0, 0.3, 1.0])
        self.jump_rate = rng.choice([0.0, 0.0, 0.5]) / HOUR
        self.person_rate = rng.choice([0.0, 1.0, 4.0]) / HOUR
        self.stop_rate = rng.choice([0.0, 0.3])
        self.forget_rate = rng.choice([0.0, 0.2])
        self._looked_at = start

    def run(self) -> None:
        """To the end."""
        played = self.played
        while True:
            loop = None
            try:
                loop = played.submit(self._effects())
                self._lead(loop)
                break
            except (Killed, LeadershipLost):
                self.deaths += 1
                played.bury()
                if self.rng.random() < 0.5:
                    played.pass_time(self.rng.choice([1.0, 60.0, 600.0]))
        self._check(loop)

    def _effects(self) -> Fatal:
        rng = self.rng
        at = 0
        if not self.calm and rng.random() < self.death_rate:
            at = rng.choice([20, 100, 400]) + rng.randrange(100)
        left, where = rng.randrange(1, 6), rng.choice(STOPS)
        stops = rng.random() < self.stop_rate

        def on_step(name: str, _target: str) -> None:
            nonlocal left
            if stops and name == where and not self.stopped and not self.calm:
                left -= 1
                if left == 0:
                    self._others_lead()

        return Fatal(at, lost=rng.random() < 0.4, torn=rng.random() < 0.4, on_step=on_step)

    def _others_lead(self) -> None:
        """While a leader is stopped another one takes over, and may die before the first wakes."""
        self.stopped, self.stops = True, self.stops + 1
        other = self.played.submit()
        for _ in range(self.rng.choice([1, 3, 10, 30])):
            other.tick()
            self.played.audit.look_at_the_journal(other.session)
            self._on_tick()
            self.played.clock.wait(1.0)
        self.stopped = False

    def _lead(self, loop: Loop) -> None:
        """Lead to the end; where the breaker or a canary holds jobs back for ever, a person gives them up."""
        while True:
            self.played.run(loop, self._on_tick)
            # It may have been stopped while it said goodbye, and others have led since.
            self.played.audit.look_at_the_journal()
            if all(job.state.ended for job in self.played.audit.session.jobs.values()):
                return
            waiting = [name for name, job in loop.session.jobs.items() if not job.state.ended]
            if waiting:
                self.played.drop("cancel", *waiting)
            loop = self.played.submit(self._effects())

    def _on_tick(self) -> None:
        cluster, rng = self.played.client.played, self.rng
        passed, self._looked_at = cluster.now - self._looked_at, cluster.now
        if self.calm:
            self.ticks_of_calm += 1
            assert self.ticks_of_calm < CALM_TICKS, "9: no end, though nothing more befalls the cluster"
            return
        if cluster.now >= self.calm_at:
            self._calm_down()
            return
        if rng.random() < self.fault_rate * passed:
            self._befall()
        if isinstance(self.played.audit.events[-1], ev.SubmitAccepted) and rng.random() < self.forget_rate:
            self.played.pass_time(rng.choice([0.1, 3.5, 4.5]))
            self.played.client.befall(ClusterFault(kind="crash", at=0.0, lasts=rng.choice([5.0, 300.0])))
        if rng.random() < self.person_rate * passed:
            job = rng.choice(list(self.played.setup.jobs))
            self.played.drop(rng.choice(["cancel", "retry", "retry"]), job)
        if rng.random() < self.jump_rate * passed:
            self.played.clock.skew += rng.choice([-HOUR, HOUR, 1.0, -1.0])

    def _befall(self) -> None:
        rng = self.rng
        kind = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
        lasts = rng.choice([5.0, 60.0, 400.0, 900.0])
        fault = ClusterFault(kind=kind, at=0.0, lasts=lasts, runs_on=rng.random() < 0.5)  # type: ignore[arg-type]
        self.played.client.played._faults.happen(fault, rng.random())

    def _calm_down(self) -> None:
        """Nothing more befalls anybody; what an administrator holds is released."""
        self.calm = True
        for job in self.played.client.played.jobs.values():
            job.held = ""
        self.played.client.played.wake()

    # ---- the end

    def _check(self, loop: Loop) -> None:
        played, audit = self.played, self.played.audit
        audit.look_at_the_journal()
        audit.at_the_end()
        check_actions(played)


def check_actions(played: Played) -> None:
    """5, of the RULES: each line of a log that announces a checkpoint is acted on exactly once, and told."""
    audit = played.audit
    for action in ("convert", "note"):
        found = audit.actions(action)
        assert found == audit.occurrences, f"5: {action} for {found}, but the logs say {audit.occurrences}"
    if played.setup.rehearsal:
        return
    done = sum(len(offsets) for offsets in audit.occurrences.values())
    ran = [process for process in played.world.processes if process.task.name == "convert"]
    once = Counter(each.task.attempt_dir for each in ran if each.ended and not each.ended.exit_code)
    assert len(once) == done and set(once.values()) <= {1}, f"5: {done} occurrences, {once} conversions"
    told = sum(1 for event in audit.events if isinstance(event, (ev.RestartScheduled, ev.JobEnded)))
    for name, number in (("notes", done), ("told", told)):
        path = played.root / name
        lines = path.read_text().splitlines() if path.exists() else []
        assert len(lines) == number, f"5: {number} are due in {name}, {len(lines)} are there"


def play(seed: int) -> Campaign:
    """A campaign to its end.

    Raises:
        AssertionError: an invariant is broken.
    """
    rng = Random(seed)
    with stage(setup_of(rng)) as played:
        campaign = Campaign(played, rng)
        campaign.run()
        return campaign


def repeat_line(seed: int) -> str:
    return f"python tests/sim/simulation.py --seed {seed}"


def _attempt(seed: int) -> tuple[int, str, int, int, Counter[str]]:
    try:
        campaign = play(seed)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be told
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {where.filename.rpartition('/')[2]}:{where.lineno}: {error}"
        return seed, what[:500], 0, 0, Counter()
    audit = campaign.played.audit
    states = Counter(job.state.value for job in audit.session.jobs.values())
    return seed, "", len(audit.events), campaign.deaths, states


def soak(first: int, seeds: int, processes: int) -> int:
    """Many seeds, with progress and a sum; the number of those that failed."""
    started, failed, events, deaths = time.monotonic(), 0, 0, 0
    states: Counter[str] = Counter()
    with multiprocessing.Pool(processes) as pool:
        results = pool.imap_unordered(_attempt, range(first, first + seeds), chunksize=4)
        for number, (seed, what, seen, died, ended) in enumerate(results, 1):
            events, deaths = events + seen, deaths + died
            states += ended
            if what:
                failed += 1
                print(f"{repeat_line(seed)}  # {what}", flush=True)
            if number % max(1, seeds // 20) == 0:
                print(
                    f"{number} of {seeds} seeds, {time.monotonic() - started:.0f} s, {failed} failed",
                    flush=True,
                )
    verdicts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    print(f"{seeds} seeds: {failed} failed; {events} events, {deaths} deaths of the loop; jobs: {verdicts}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="play this one, and show where it fails")
    parser.add_argument("--seeds", type=int, default=10_000, help="play so many")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if given.seed is not None:
        campaign = play(given.seed)
        for name, job in campaign.played.audit.session.jobs.items():
            print(f"{name}: {job.state.value}, {len(job.attempts)} attempts, {job.reason}")
        return 0
    return 1 if soak(given.first, given.seeds, given.processes) else 0


if __name__ == "__main__":
    sys.exit(main())
