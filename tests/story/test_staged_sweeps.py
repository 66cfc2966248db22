"""Jobs that wait for others: in order, cancelled with a parent that is lost, back when it is retried."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, Cli
from deaths import Dying, Killed
from world import FOREVER, Script, SimConfig, Stage, World

from oellm_autoexp.config.sockets import Capabilities
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import CONDITION, JobState, Parent
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.session import Session
from oellm_autoexp.services.views import conclusion, rows
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects

WORKS: Script = ((1.0, "step 1"), (3.0, 0))
FAILS: Script = ((1.0, "KeyError: 'lr'"), (2.0, 1))
ARM = {"decay": ["stable"], "eval": ["decay"]}
NO_RESTARTS = {"restart_policies": {"crash": {"class_name": "NoRestartPolicy"}}}


def stage(root: Path, scripts: dict[str, list[Script]] | None = None, **changes: Any) -> Stage:
    """An arm of three stages beside one of two; `scripts`: what the attempts of a job do, if not work."""

    def script(name: str, attempt: int) -> Script:
        given = (scripts or {}).get(name, [WORKS])
        return given[min(attempt, len(given)) - 1]

    jobs = ("eval", "decay", "stable", "other", "child")
    parents = {**ARM, "child": ["other"]}
    given = {"parents": parents, "rules": NO_RESTARTS, **changes}
    return Stage(root, World(script), jobs=jobs, **given)


def run(made: Stage) -> Session:
    """To its end; what is read back is what was in memory."""
    loop = made.submit()
    made.run(loop)
    loop.close()
    assert made.replayed() == loop.session
    assert made.warnings == []
    return loop.session


def states(session: Session) -> dict[str, str]:
    return {name: job.state.value for name, job in session.jobs.items()}


def started(made: Stage) -> dict[str, float]:
    """When each job first began, in seconds."""
    times: dict[str, float] = {}
    for process in made.world.processes:
        times.setdefault(process.owner[0], process.started_at - 1000.0)
    return times


def obey(made: Stage, verb: str, *jobs: str) -> None:
    inbox.drop(made.paths, Effects(), verb, {"jobs": list(jobs)}, now=made.world.now)


# ---------------------------------------------------------------- order


def test_a_job_starts_when_its_parent_has_succeeded(tmp_path: Path) -> None:
    """Each after the other, whatever their order in the plan; why it waits is on record."""
    made = stage(tmp_path)
    session = run(made)
    assert set(states(session).values()) == {"succeeded"}
    times = started(made)
    assert times["stable"] < 1 and 3 <= times["decay"] < 5 and 6 <= times["eval"] < 9
    held = [(event.job, event.why) for event in made.events if isinstance(event, ev.JobHeld) and event.why]
    assert ("eval", "waits until decay (stage decay) has succeeded") in held
    assert len(held) == 3


def test_a_job_with_several_parents_waits_for_all(tmp_path: Path) -> None:
    made = stage(
        tmp_path,
        {"other": [((9.0, 0),)]},
        parents={"child": ["other", "stable"]},
    )
    assert set(states(run(made)).values()) == {"succeeded"}
    assert started(made)["child"] >= 9


def test_a_parent_that_is_restarted_keeps_its_children_waiting(tmp_path: Path) -> None:
    """An end is not its end for good."""
    made = stage(tmp_path, {"stable": [FAILS, ((1.0, "KeyError: 0"), (2.0, 1)), WORKS]})
    made.rules = {
        "restart_policies": {
            "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 2, "backoff_seconds": 5.0}
        }
    }
    session = run(made)
    assert set(states(session).values()) == {"succeeded"}
    assert started(made)["decay"] >= 14


def test_arrays_and_slots_take_what_may_start(tmp_path: Path) -> None:
    """A job that waits for another takes no slot of it."""
    made = stage(
        tmp_path,
        config=SimConfig(max_jobs=1),
        capabilities=Capabilities(max_array_size=8, find_grace_s=1.0, gone_grace_s=1.0, poll_interval_s=0.5),
    )
    assert set(states(run(made)).values()) == {"succeeded"}
    assert made.world.overlaps() == []


def test_canaries_are_jobs_that_wait_for_none(tmp_path: Path) -> None:
    """Else each would wait for the other."""
    made = stage(tmp_path)
    loop = made.lead()
    scheduler = {"class_name": "sim", "canary": 2}
    opened = ev.SessionOpened(at=made.world.now, project="p", session="s", nonce="n", scheduler=scheduler)
    for event in reconcile(loop.session, opened, made.specs(), {"r": made.rules}, now=made.world.now).events:
        loop.record(event)
    made.run(loop)
    assert set(states(loop.session).values()) == {"succeeded"}


# ---------------------------------------------------------------- a parent that is lost


def test_what_waits_for_a_job_that_failed_is_cancelled_with_the_reason(tmp_path: Path) -> None:
    """Down to the last; other arms go on."""
    made = stage(tmp_path, {"stable": [FAILS]})
    session = run(made)
    assert states(session) == {
        "stable": "failed",
        "decay": "cancelled",
        "eval": "cancelled",
        "other": "succeeded",
        "child": "succeeded",
    }
    reason = session.jobs["decay"].reason
    assert reason == "stable (stage stable) failed: KeyError: 'lr' (exit 1); no restart after crash"
    assert session.jobs["eval"].reason == f"decay (stage decay) never began: {reason}"
    assert session.jobs["eval"].attempts == ()


def test_what_waits_for_a_cancelled_job_is_cancelled(tmp_path: Path) -> None:
    """A job that has begun is its own: a parent that is retried and fails ends it no more."""
    made = stage(tmp_path, {"stable": [WORKS, FAILS], "decay": [((30.0, 0),)], "other": [FOREVER]})
    made.world.alarms += [
        (1002.0, lambda: obey(made, "cancel", "other")),
        (1010.0, lambda: obey(made, "retry", "stable")),
    ]
    session = run(made)
    assert session.jobs["child"].reason == "other (stage other) was cancelled: cancelled by the user"
    assert states(session) == {
        "stable": "failed",
        "decay": "succeeded",
        "eval": "succeeded",
        "other": "cancelled",
        "child": "cancelled",
    }


def test_a_retry_brings_back_what_ended_because_of_the_job(tmp_path: Path) -> None:
    """And only that: what a person has cancelled stays so."""
    made = stage(tmp_path, {"stable": [FAILS, WORKS]}, parents={**ARM, "child": ["stable"]})
    made.world.alarms.append((1000.5, lambda: obey(made, "cancel", "child")))
    session = run(made)
    assert states(session)["eval"] == "cancelled"
    loop = made.lead()
    obey(made, "retry", "stable")
    made.run(loop)
    assert states(loop.session) == {
        "stable": "succeeded",
        "decay": "succeeded",
        "eval": "succeeded",
        "other": "succeeded",
        "child": "cancelled",
    }
    retried = [event for event in made.events if isinstance(event, ev.JobRetried)]
    assert {event.job: event.by for event in retried} == {
        "stable": "user",
        "decay": "parent",
        "eval": "parent",
    }
    assert loop.session.orphans == {}


def test_a_retry_of_a_child_alone_says_whom_to_retry(tmp_path: Path) -> None:
    """It would only be cancelled again."""
    made = stage(tmp_path, {"stable": [FAILS, WORKS]})
    run(made)
    loop = made.lead()
    ok, text = loop.commands.obey("retry", {"jobs": ["decay"]}, made.world.now)
    assert ok and text == "decay waits for stable (stage stable), which did not succeed: retry that one"
    ok, text = loop.commands.obey("retry", {"jobs": ["eval", "decay", "stable"]}, made.world.now)
    assert ok and text == "starting again: eval, decay, stable"
    made.run(loop)
    assert set(states(loop.session).values()) == {"succeeded"}


def test_what_waits_for_two_lost_jobs_comes_back_with_the_second(tmp_path: Path) -> None:
    made = stage(
        tmp_path, {"stable": [FAILS, WORKS], "other": [FAILS, WORKS]}, parents={"child": ["stable", "other"]}
    )
    run(made)
    loop = made.lead()
    obey(made, "retry", "stable")
    made.run(loop)
    assert states(loop.session)["child"] == "cancelled"
    obey(made, "retry", "other")
    made.run(loop)
    assert states(loop.session)["child"] == "succeeded"


def test_the_breaker_holds_children_too_and_lets_them_go_again(tmp_path: Path) -> None:
    """Several early deaths of one cause: what waits for the dead ends, and a retry brings all of it back."""
    names = tuple(f"j{number}" for number in range(5))
    children = {f"c{number}": [f"j{number}"] for number in range(5)}
    scripts = {name: [FAILS, WORKS] for name in names}

    def script(name: str, attempt: int) -> Script:
        return scripts.get(name, [WORKS])[min(attempt, 2) - 1]

    made = Stage(
        tmp_path,
        World(script),
        NO_RESTARTS,
        (*names, *children),
        parents=children,
        config=SimConfig(max_jobs=2, breaker=2),
    )
    loop = made.submit()
    made.run(loop)
    assert loop.session.breaker is not None
    assert made.world.now < 1100.0
    lost = [name for name, job in loop.session.jobs.items() if job.state is JobState.FAILED]
    obey(made, "retry", *lost)
    for name in names:
        scripts[name] = [WORKS, WORKS]
    made.run(loop)
    assert set(states(loop.session).values()) == {"succeeded"}


# ---------------------------------------------------------------- start conditions

TRAINS: Script = (
    *((float(second), f"step {second} loss {10.0 - second}") for second in range(1, 6)),
    (6.0, "warmup done"),
    (7.0, "step 7 loss 3.0"),
    (20.0, 0),
)
WATCHED = {
    **NO_RESTARTS,
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "log_signals": {
            "loss": {
                "pattern": r"step (?P<step>\d+) loss (?P<loss>\S+)",
                "types": {"step": "int", "loss": "float"},
                "metrics": ["loss"],
                "counter": "step",
            },
            "ready": {"pattern": "warmup done", "metadata": {"kind": "milestone"}},
        },
    },
}
CONDITIONS: dict[str, tuple[dict[str, Any], float]] = {
    "file": ({"class_name": "FileExistsCondition", "path": "FLAG"}, 4.0),
    "metric": ({"class_name": "MetricCondition", "sibling": "stable", "metric": "loss", "at_most": 6.0}, 4.0),
    "counter": (
        {"class_name": "MetricCondition", "sibling": "stable", "metric": "step", "at_least": 5.0},
        5.0,
    ),
    "signal": ({"class_name": "SignalCondition", "sibling": "stable", "signal": "ready"}, 6.0),
    "both": (
        {
            "class_name": "AllCondition",
            "conditions": [
                {"class_name": "SignalCondition", "sibling": "stable", "signal": "ready"},
                {"class_name": "MetricCondition", "sibling": "stable", "metric": "loss", "at_most": 3.0},
            ],
        },
        7.0,
    ),
}


def gated(root: Path, condition: dict[str, Any], stable: Script = TRAINS) -> Stage:
    """`decay` starts when a condition about `stable` holds; `eval` when `decay` has succeeded."""
    keys = {"start_condition": condition, "start_condition_interval_seconds": 1.0}
    return stage(
        root,
        {"stable": [stable, TRAINS]},
        rules=WATCHED,
        parents={**ARM, "decay": [Parent(job="stable", id="id-stable", stage="stable", gate=CONDITION)]},
        own_rules={"decay": {**WATCHED, "job": keys}},
    )


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_job_starts_when_a_condition_about_its_parent_holds(tmp_path: Path, kind: str) -> None:
    """A file, a metric, a counter, a signal: while the parent runs."""
    condition, at = CONDITIONS[kind]
    flag = tmp_path / "flag"
    if kind == "file":
        condition = {**condition, "path": str(flag)}
    made = gated(tmp_path, condition)
    made.world.alarms.append((1004.0, flag.touch))
    assert set(states(run(made)).values()) == {"succeeded"}
    times = started(made)
    assert at <= times["decay"] <= at + 3.0
    assert times["eval"] >= times["decay"] + 3.0
    held = [event.why for event in made.events if isinstance(event, ev.JobHeld) and event.job == "decay"]
    assert held[0].startswith("start condition: ")


def test_a_signal_of_an_earlier_attempt_still_counts(tmp_path: Path) -> None:
    """The parent dies right after it, and is restarted."""
    dies: Script = ((1.0, "warmup done"), (1.2, 1))
    slow: Script = ((30.0, 0),)
    made = gated(tmp_path, CONDITIONS["signal"][0])
    made.world.script_of = lambda name, attempt: {1: dies, 2: slow}[attempt] if name == "stable" else WORKS
    restarts = {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 10.0}}
    made.rules = {**WATCHED, "restart_policies": restarts}
    assert set(states(run(made)).values()) == {"succeeded"}
    assert started(made)["decay"] < 5


@pytest.mark.parametrize("kind", ["metric", "signal"])
def test_a_condition_that_can_no_longer_hold_cancels_the_job(tmp_path: Path, kind: str) -> None:
    """Its parent has succeeded without having said so: nobody waits for ever."""
    made = gated(tmp_path, CONDITIONS[kind][0], ((1.0, "step 1 loss 9.0"), (3.0, 0)))
    session = run(made)
    assert states(session)["decay"] == states(session)["eval"] == "cancelled"
    said = {
        "metric": "`loss` of stable was 9 at best (asked for: at most 6)",
        "signal": "stable has not said `ready`",
    }[kind]
    expected = f"its start condition will not hold any more: stable (stage stable) has succeeded, and {said}"
    assert session.jobs["decay"].reason == expected


def test_a_job_whose_parent_fails_before_its_condition_holds_is_cancelled(tmp_path: Path) -> None:
    """One that was let go before goes on by itself."""
    made = gated(tmp_path / "before", CONDITIONS["signal"][0], FAILS)
    assert states(run(made))["decay"] == "cancelled"
    later: Script = ((1.0, "warmup done"), (4.0, "KeyError: 'lr'"), (5.0, 1))
    made = gated(tmp_path / "after", CONDITIONS["signal"][0], later)
    made.world.script_of = lambda name, _: {"stable": later, "decay": ((9.0, 0),)}.get(name, WORKS)
    assert states(run(made)) == {
        "stable": "failed",
        "decay": "succeeded",
        "eval": "succeeded",
        "other": "succeeded",
        "child": "succeeded",
    }


# ---------------------------------------------------------------- changes of the plan


def test_a_changed_parent_starts_its_children_again(tmp_path: Path) -> None:
    """Their ids have changed with it; the difference says why, and the new ones wait for the new one."""
    made = stage(tmp_path)
    run(made)
    loop = made.lead()
    opened = loop.session.opened
    assert opened is not None

    def spec(each: Any) -> Any:
        new = {"stable", "decay"}
        parents = tuple(
            Parent(job=p.job, id=f"new-{p.job}", stage=p.stage) if p.job in new else p for p in each.parents
        )
        arm = each.name in ("stable", "decay", "eval")
        return replace(each, id=f"new-{each.name}" if arm else each.id, parents=parents)

    specs = [spec(each) for each in made.specs()]
    done = reconcile(loop.session, opened, specs, {"r": made.rules}, now=made.world.now, update=True)
    assert done.changed["decay"] == "stable (stage stable), which it waits for, has changed"
    before = len(made.world.processes)
    for event in done.events:
        loop.record(event)
    made.run(loop)
    again = made.world.processes[before:]
    assert [process.owner[0] for process in again] == ["stable", "decay", "eval"]


# ---------------------------------------------------------------- deaths


def test_the_gates_hold_wherever_the_leader_dies(tmp_path: Path) -> None:
    """Killed at one effect after the other: nothing starts before its parent has succeeded, or twice."""
    for number in range(0, 300, 7):
        made = stage(tmp_path / str(number), {"stable": [FAILS, WORKS]})
        made.world.alarms.append((1006.0, lambda made=made: obey(made, "retry", "stable")))
        with contextlib.suppress(Killed):
            loop = made.submit(Dying(number))
            made.run(loop)
            loop.close()
        if made.journal is not None and made.journal._fd >= 0:
            os.close(made.journal._fd)
            made.journal._fd = -1
        loop = made.submit()
        if made.world.now < 1006.0:
            # The retry comes after a death, too: whoever leads then finds it.
            made.run(loop)
            made.world.wait(max(0.0, 1006.5 - made.world.now))
        made.run(loop)
        loop.close()
        assert made.replayed() == loop.session
        assert set(states(loop.session).values()) == {"succeeded"}, number
        ends: dict[str, list[float]] = {}
        for process in made.world.processes:
            if process.ended is not None and process.ended.exit_code == 0:
                ends.setdefault(process.owner[0], []).append(process.ended.ended_at)
        for child, parents in {**ARM, "child": ["other"]}.items():
            begun = [process.started_at for process in made.world.processes if process.owner[0] == child]
            assert min(begun) >= min(ends[parents[0]]), number
        assert made.world.overlaps() == []


# ---------------------------------------------------------------- by the command line

CONFIG = """
project: {name: arms, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command:
    - sh
    - -c
    - mkdir -p "$0" && cat "$1" > "$0/x" && echo ${stage} >> "$0/x" && test ${lr} != 2
    - ${job.output_dir}
    - ${load}
restart_policies: {crash: {class_name: NoRestartPolicy}}
sweep:
  groups:
    - params: {lr: [1, 2]}
    - type: list
      groups:
        - {stage: stable, repeat: 2, defaults: {load: "${oc.select:sibling.stable.output_dir,.}/x"}}
        - {stage: decay, defaults: {load: "${sibling.stable.output_dir}/x"}}
        - {stage: eval, defaults: {load: "${sibling.decay.output_dir}/x"}}
"""


def test_a_staged_sweep_runs_on_this_machine(tmp_path: Path) -> None:
    """Three stages, the first in two segments; one arm fails, and the other is not touched by that."""
    cli = Cli(tmp_path)
    (tmp_path / "x").write_text("")
    (tmp_path / "arms.yaml").write_text(CONFIG)
    assert cli("submit", "arms.yaml", "--local").returncode == 1
    found = json.loads(cli("status", "arms.yaml", "--json").stdout)["jobs"]
    assert {job["name"]: job["state"] for job in found} == {
        "arms_lr1_stable_repeat1": "succeeded",
        "arms_lr1_stable_repeat2": "succeeded",
        "arms_lr1_decay": "succeeded",
        "arms_lr1_eval": "succeeded",
        "arms_lr2_stable_repeat1": "failed",
        "arms_lr2_stable_repeat2": "cancelled",
        "arms_lr2_decay": "cancelled",
        "arms_lr2_eval": "cancelled",
    }
    words = (tmp_path / "outputs" / "arms_lr1_eval" / "x").read_text().split()
    assert words == ["stable", "stable", "decay", "eval"]


def test_a_staged_sweep_can_be_rehearsed(tmp_path: Path) -> None:
    """Conditions are not looked at there: what they speak of has to have begun."""
    text = CONFIG.replace('defaults: {load: "${sibling.decay.output_dir}/x"}', "defaults: DEFAULTS")
    condition = '{class_name: FileExistsCondition, path: "${sibling.decay.output_dir}/x"}'
    text = text.replace("DEFAULTS", f"{{load: x, job.start_condition: {condition}}}")
    (tmp_path / "arms.yaml").write_text(text)
    cli = Cli(tmp_path)
    assert cli("submit", "arms.yaml", "--fake").returncode == 0
    found = json.loads(cli("status", "outputs/.oellm-autoexp-fake", "--json").stdout)["jobs"]
    assert {job["state"] for job in found} == {"succeeded"}


def test_the_page_about_stages_does_what_it_says(tmp_path: Path) -> None:
    """Its config runs with its script, its graph is what `plan` draws, and each state is that of its arm."""
    page = (ROOT / "docs" / "howto" / "stages.md").read_text()
    config, script, graph = re.findall(r"```(?:yaml|sh|)\n(.*?)```", page, re.DOTALL)[:3]
    (tmp_path / "stages.yaml").write_text(config)
    (tmp_path / "train.sh").write_text(script)
    cli = Cli(tmp_path)
    assert cli("plan", "stages.yaml", "--local", "--graph").stdout == graph
    done = cli("submit", "stages.yaml", "--local")
    assert done.returncode == 0, done.stdout
    state = tmp_path / "outputs" / "cooldown_lr0.0003_eval_share0.2" / "checkpoints" / "state"
    assert state.read_text().splitlines() == [f"lr 0.0003, {steps} steps" for steps in (1000, 200, 0)]
    again = cli("submit", "stages.yaml", "--local")
    assert again.returncode == 0 and "10 already done" in again.stdout
    (tmp_path / "stages.yaml").write_text(config.replace("steps: 1000", "steps: 2000"))
    refused = cli("submit", "stages.yaml", "--local")
    assert refused.returncode == 2
    assert "cooldown_lr0.001_stable (stage stable), which it waits for, has changed" in refused.stderr


def test_show_says_whom_a_job_comes_after_and_whom_to_retry(tmp_path: Path) -> None:
    """Also where what failed is two stages before it."""
    made = stage(tmp_path, {"stable": [FAILS]})
    session = run(made)
    told = conclusion(session, made.paths, session.jobs["eval"])
    assert told["comes after"] == ["decay (stage decay), cancelled"]
    assert told["what you can type"] == [f"oellm-autoexp retry {made.paths.state_dir} stable"]
    (row,) = rows(session, made.paths, [session.jobs["eval"]], 0.0)
    assert row["parents"] == ["decay"]
