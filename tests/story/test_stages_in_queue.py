"""Jobs in the queue of the fake cluster while those run that they wait for; the invariants hold all along."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Cli
from deaths import Fatal, Killed
from played import Played, Setup, stage

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.errors import SchedulerUnavailable
from oellm_autoexp.services.views import conclusion, rows, timeline

PLAY = {"startup": 1.0, "log_every": 50.0, "stop_takes": 1.0}
#: What a job does that dies at once, in its first attempt only or in all.
DIES = {"kind": "exit", "after": 20.0, "lines": ["RuntimeError: boom"]}
ONCE = {**DIES, "attempts": 1}
AGAIN = {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0}}
NEVER = {"crash": {"class_name": "NoRestartPolicy"}}


@contextmanager
def played(
    jobs: dict[str, list[str]],
    plays: dict[str, dict[str, Any]] | None = None,
    *,
    cluster: dict[str, Any] | None = None,
    rules: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Played]:
    """Jobs with whom they wait for, each of 100 s of work unless `plays` says otherwise."""
    told = [{"match": name, **PLAY, "work": 100.0, **(plays or {}).get(name, {})} for name in jobs]
    habits = {"nodes": 8, "max_array_size": 1, **(cluster or {})}
    setup = Setup(
        jobs=list(jobs),
        parents=jobs,
        rules={"restart_policies": AGAIN, **(rules or {})},
        scenario={"cluster": habits, "jobs": told},
        **{"early_wait": 300.0, "pace": 5.0, "stride": 5.0, **changes},
    )
    with stage(setup) as made:
        yield made


def end(made: Played, loop: Any = None, on_tick: Callable[[], None] = lambda: None) -> dict[str, Job]:
    """To the end of the session, and of every invariant."""
    made.run(loop if loop is not None else made.submit(), on_tick)
    made.audit.look_at_the_journal()
    made.audit.at_the_end()
    return made.audit.session.jobs


def until(made: Played, loop: Any, what: Callable[[], bool]) -> None:
    """Turns of a loop up to a moment; then it is gone."""
    for _ in range(500):
        loop.tick()
        made.audit.look_at_the_journal(loop.session)
        if what():
            made.bury()
            return
        made.clock.wait(1.0)
    raise AssertionError("it never came to that")


def of(made: Played, kind: type[ev.Event]) -> list[Any]:
    return [event for event in made.audit.events if isinstance(event, kind)]


def asked(made: Played, name: str) -> list[tuple[int, str]]:
    """The submissions of a job: numbers, and behind what."""
    found = of(made, ev.SubmitRequested)
    return [(number, each.after) for each in found for job, number in each.jobs if job == name]


def states(jobs: dict[str, Job]) -> dict[str, str]:
    return {name: job.state.value for name, job in jobs.items()}


def is_queued(made: Played, name: str) -> bool:
    job = made.audit.session.jobs.get(name)
    return job is not None and job.successor is not None and job.successor.ref is not None


# ---------------------------------------------------------------- in order


def test_a_job_is_in_the_queue_while_its_parent_runs_and_begins_with_its_success() -> None:
    """One submission; no more than a poll lies between the two."""
    with played({"p": [], "c": ["p"], "g": ["c"]}) as made:
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert [asked(made, name) for name in "pcg"] == [[(1, "")], [(1, "1")], [(1, "2")]]
        before = None
        for name in "pcg":
            (attempt,) = jobs[name].attempts
            assert attempt.started_at is not None and attempt.ended_at is not None
            assert attempt.spawned_at is not None and (before is None or attempt.spawned_at < before - 50)
            assert before is None or 0 <= attempt.started_at - before <= 2 * made.setup.pace
            before = attempt.ended_at


def test_ours_is_what_is_done_without_being_asked() -> None:
    """Nothing is submitted before its time."""
    with played({"p": [], "c": ["p"]}, early_wait=None) as made:
        assert set(states(end(made)).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "")]


def test_a_job_with_several_parents_waits_behind_all() -> None:
    """The last one to end decides; a parent that has succeeded before is no matter."""
    with played({"p": [], "q": [], "c": ["p", "q"]}, {"q": {"work": 300.0}}) as made:
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "1:2")]
        assert (jobs["c"].attempts[0].started_at or 0) >= (jobs["q"].attempts[0].ended_at or 0)


def test_tasks_of_an_array_have_children_that_are_jobs_of_their_own() -> None:
    jobs = {"p": [], "q": [], "c": ["p"], "d": ["q"]}
    with played(jobs, cluster={"max_array_size": 10}) as made:
        assert set(states(end(made)).values()) == {"succeeded"}
        assert (asked(made, "c"), asked(made, "d")) == ([(1, "1_0")], [(1, "1_1")])


def test_with_one_slot_everything_comes_to_its_end() -> None:
    """Who waits in the queue has none; a parent that is restarted finds its own."""
    jobs = {"c": ["p"], "d": ["q", "p"], "p": [], "q": [], "e": ["p"]}
    with played(jobs, {"q": {"mishaps": [ONCE]}}, max_jobs=1) as made:
        loop = made.submit()

        def look() -> None:
            assert loop.session.live <= 1
            assert len(made.client.played.running) <= 1

        assert set(states(end(made, loop, look)).values()) == {"succeeded"}
        assert of(made, ev.SuccessorTaken)


def test_on_one_node_a_parent_that_is_restarted_gets_it_back() -> None:
    """What waits behind it is begun by the scheduler, and leaves the node at once."""
    with played({"p": [], "c": ["p"]}, {"p": {"mishaps": [ONCE]}}, cluster={"nodes": 1}) as made:
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        first, second = jobs["p"].attempts
        assert (second.started_at or 0) - (first.ended_at or 0) < 60


def test_a_limit_on_submissions_stops_nobody() -> None:
    """What is in the queue early may fill it; a parent that is restarted finds its place."""
    jobs = {"p": [], "q": [], "c": ["p"], "d": ["q"], "e": ["p"]}
    with played(jobs, {"p": {"mishaps": [ONCE]}}, cluster={"max_submit_jobs": 3}) as made:
        assert set(states(end(made)).values()) == {"succeeded"}


# ---------------------------------------------------------------- a parent that does not succeed


def test_a_parent_that_fails_takes_it_out_of_the_queue() -> None:
    """It never ran; its reason names the parent; a retry of that brings it back, in the queue again."""
    with played({"p": [], "c": ["p"]}, {"p": {"mishaps": [ONCE]}}, rules={"restart_policies": NEVER}) as made:
        jobs = end(made)
        assert states(jobs) == {"p": "failed", "c": "cancelled"}
        assert jobs["c"].attempts == () and jobs["c"].reason.startswith(
            "p (stage p) failed: RuntimeError: boom"
        )
        assert not [job for job in made.client.played.jobs.values() if not job.ended]
        made.drop("retry", "p")
        jobs = end(made, made.lead())
        assert states(jobs) == {"p": "succeeded", "c": "succeeded"}
        assert asked(made, "c") == [(1, "1"), (2, "3")]
        assert [attempt.number for attempt in jobs["c"].attempts] == [2]


def test_a_parent_that_is_restarted_has_it_submitted_again_behind_the_new_attempt() -> None:
    """No budget of its own is charged, and it is tried once."""
    with played({"p": [], "c": ["p"]}, {"p": {"mishaps": [ONCE]}}) as made:
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "1"), (2, "3")]
        job = jobs["c"]
        assert (job.restarts, job.spent, [each.number for each in job.attempts]) == (0, {}, [2])
        (settled,) = of(made, ev.SuccessorSettled)
        assert (settled.job, settled.attempt, settled.begun) == ("c", 1, False)


def test_a_chain_of_time_limits_has_it_wait_behind_the_last() -> None:
    """Beside the next attempt of the parent, which waits in the queue as well."""
    saves = {"work": 300.0, "checkpoint_every": 50.0, "checkpoint_takes": 1.0}
    with played({"p": [], "c": ["p"]}, {"p": saves}, time_limit=150, successor_wait=300.0) as made:
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert len(jobs["p"].attempts) > 1
        last = jobs["p"].attempts[-1].ref
        assert last is not None and jobs["c"].attempts[0].after == last.id


# ---------------------------------------------------------------- what a person does


@pytest.mark.parametrize("whom", ["c", "p"])
def test_cancel_takes_it_out_of_the_queue(whom: str) -> None:
    """By itself, or with its parent; nothing of it ever runs, and a retry starts it again."""
    with played({"p": [], "c": ["p"]}) as made:
        told = []

        def cancel() -> None:
            if is_queued(made, "c") and not told:
                told.append(made.drop("cancel", whom))

        jobs = end(made, on_tick=cancel)
        assert states(jobs) == {"p": "succeeded" if whom == "c" else "cancelled", "c": "cancelled"}
        assert jobs["c"].attempts == ()
        made.drop("retry", whom)
        assert set(states(end(made, made.lead())).values()) == {"succeeded"}


def test_a_changed_plan_takes_it_out_of_the_queue() -> None:
    """What was submitted is another script; the new one is submitted when its time has come."""
    with played({"p": [], "c": ["p"]}) as made:
        loop, told = made.submit(), []

        def change() -> None:
            if is_queued(made, "c") and not told:
                spec = replace(loop.session.jobs["c"].spec, script_digest="other")
                told.append(loop.record(ev.JobUpdated(at=made.clock.now(), job="c", spec=spec)))

        jobs = end(made, loop, change)
        assert set(states(jobs).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "1"), (2, "")]
        assert jobs["c"].spec.script_digest == "other"


def test_the_breaker_takes_it_out_of_the_queue() -> None:
    """It has not begun, and is no reason to wait for what it waits behind."""
    jobs = {"p": [], "c": ["p"], "x": [], "y": []}
    bad = {"mishaps": [DIES]}
    rules = {"restart_policies": NEVER}
    plays = {"x": bad, "y": bad, "p": {"work": 400.0}}
    with played(jobs, plays, rules=rules, breaker=2) as made:
        loop = made.submit()
        made.run(loop)
        made.audit.look_at_the_journal()
        assert states(loop.session.jobs) == {"p": "succeeded", "c": "waiting", "x": "failed", "y": "failed"}
        (dropped,) = of(made, ev.SuccessorDropped)
        assert dropped.why.startswith("breaker: 2 jobs died early")
        assert loop.session.ended is not None and loop.session.ended.reason == "breaker"
        assert not [job for job in made.client.played.jobs.values() if not job.ended]
        made.drop("retry", "x")
        loop = made.lead()
        made.run(loop)
        assert loop.session.jobs["c"].state is JobState.SUCCEEDED


def test_a_session_that_is_held_ends_when_it_is_out_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scancel that is not answered is called again, though nothing runs any more."""
    jobs = {"p": [], "c": ["p"], "x": [], "y": []}
    plays = {"x": {"mishaps": [DIES]}, "y": {"mishaps": [DIES]}}
    with played(jobs, plays, rules={"restart_policies": NEVER}, breaker=2) as made:
        loop, cancel, start = made.submit(), made.client.cancel, made.client.played.now

        def answer(refs: Any) -> None:
            if made.client.played.now - start < 400:
                raise SchedulerUnavailable("scancel: error: Socket timed out")
            cancel(refs)

        monkeypatch.setattr(made.client, "cancel", answer)
        made.run(loop)
        assert loop.session.ended is not None and loop.session.ended.reason == "breaker"
        assert loop.session.jobs["c"].successor is None


def test_canaries_are_waited_for_before_it_is_in_the_queue() -> None:
    """The jobs that wait for others are none, and wait for them, too."""
    with played({"p": [], "c": ["p"], "q": [], "d": ["q"]}, canary=1) as made:
        assert set(states(end(made)).values()) == {"succeeded"}
        (proved,) = (event.at for event in of(made, ev.JobEnded) if event.job == "p")
        early = {event.jobs[0][0]: event.at for event in of(made, ev.SubmitRequested) if event.after}
        assert list(early) == ["d"] and early["d"] >= proved


# ---------------------------------------------------------------- nobody leads


def test_without_a_leader_it_goes_on_behind_a_certain_success() -> None:
    """Whoever comes back finds it, with its exit, as the attempt that it is."""
    with played({"p": [], "c": ["p"]}, early_wait=60.0) as made:
        until(made, made.submit(), lambda: is_queued(made, "c"))
        made.pass_time(1000.0)
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "1")]
        assert len(jobs["c"].attempts) == 1
        (settled,) = of(made, ev.SuccessorSettled)
        assert settled.begun


def test_it_is_found_running_by_whoever_leads_next() -> None:
    """It goes on as if it had been told to."""
    with played({"p": [], "c": ["p"]}, {"c": {"work": 2000.0}}, early_wait=60.0) as made:
        until(made, made.submit(), lambda: is_queued(made, "c"))
        made.pass_time(600.0)
        assert [run.request.name for run in made.client.played.running] == ["c"]
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert len(jobs["c"].attempts) == 1 and asked(made, "c") == [(1, "1")]


SIGNALS = {
    "a success signal": {"termination_string": "training is done"},
    "a signal that ends a job": {
        "log_signals": {"nan": {"pattern": "loss nan", "mode": "crash.nan", "grace_seconds": 5}}
    },
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_without_a_leader_it_does_not_begin_where_only_the_log_tells_of_success(kind: str) -> None:
    """It ends without having run anything, and is submitted as ever when somebody leads again."""
    lines = {"done": "training is done"}
    rules = {"monitoring": {"class_name": "SlurmLogMonitor", **SIGNALS[kind]}}
    plays = {name: {"lines": lines} for name in "pc"}
    with played({"p": [], "c": ["p"]}, plays, rules=rules, early_wait=60.0) as made:
        until(made, made.submit(), lambda: is_queued(made, "c"))
        made.pass_time(1000.0)
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert asked(made, "c") == [(1, "1"), (2, "")]
        assert [each.number for each in jobs["c"].attempts] == [2]


@pytest.mark.parametrize(
    "plays",
    [{"p": {"mishaps": [DIES]}}, {"p": {"code": 3}}, {"p": {"mishaps": [{**DIES, "kind": "kill"}]}}],
    ids=["dies", "exits with another status", "leaves no record"],
)
def test_without_a_leader_it_does_not_begin_behind_any_other_end(plays: dict[str, Any]) -> None:
    """What becomes of it is said by whoever leads next."""
    with played({"p": [], "c": ["p"]}, plays, early_wait=60.0, rules={"restart_policies": NEVER}) as made:
        until(made, made.submit(), lambda: is_queued(made, "c"))
        made.pass_time(1000.0)
        jobs = end(made)
        assert states(jobs) == {"p": "failed", "c": "cancelled"}
        assert jobs["c"].attempts == ()


def test_a_cancel_of_its_parent_that_nobody_leads_through_keeps_it_from_running() -> None:
    """An end from outside with status 0 is no success of the parent's own."""
    with played({"p": [], "c": ["p"]}, {"p": {"work": 5000.0}}, early_wait=60.0) as made:
        until(made, made.submit(), lambda: is_queued(made, "c"))
        (ref,) = (attempt.ref for attempt in made.audit.session.jobs["p"].attempts)
        assert ref is not None
        made.client.cancel([ref])
        made.pass_time(1000.0)
        made.audit.look_at_the_journal()
        assert not made.client.played.running
        assert states(end(made)) == {"p": "cancelled", "c": "cancelled"}


# ---------------------------------------------------------------- what is told of it


def test_status_and_show_tell_of_it() -> None:
    """That it waits in the queue already, why it went, and why not."""
    with played({"p": [], "c": ["p"]}, {"p": {"mishaps": [{**ONCE, "after": 60.0}]}}) as made:
        loop = made.submit()
        until(made, loop, lambda: is_queued(made, "c"))
        job = loop.session.jobs["c"]
        (row,) = rows(loop.session, made.paths, [job], 0.0)
        assert row["successor"] == {"number": 1, "scheduler_id": "2"} and row["attempts"] == 0
        assert row["reason"] == "waits until p (stage p) has succeeded"
        assert (
            "attempt 1 waits in the queue for that (2)"
            in conclusion(loop.session, made.paths, job)["what was done"]
        )
        end(made)
        session = made.audit.session
        told = [text for _, text in timeline(made.audit.events, session, session.jobs["c"])]
        assert "attempt 2 submitted: 4, to wait in the queue behind 3" in told
        assert any(text.startswith("attempt 1, which waits in the queue, is not to begin") for text in told)
        assert "attempt 2, which waited in the queue, goes on: its time has come" in told


CONFIG = """
project: {name: arms, base_output_dir: ./outputs}
backend: {class_name: CommandBackend, command: [echo, "${load}", "${lr}"]}
scheduler: {class_name: CLASS, dependency: native}
slurm: {array: true}
sweep:
  groups:
    - params: {lr: [1, 2]}
    - type: list
      groups:
        - {stage: stable, defaults: {load: none}}
        - {stage: decay, defaults: {load: "${sibling.stable.output_dir}"}}
"""


def test_a_staged_sweep_can_be_rehearsed_so(tmp_path: Path) -> None:
    """As the fake cluster plays it: an array of parents, and a job for each child."""
    cli = Cli(tmp_path)
    (tmp_path / "arms.yaml").write_text(CONFIG.replace("CLASS", "fake"))
    done = cli("submit", "arms.yaml", "--fake")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(cli("status", "outputs/.oellm-autoexp-fake", "--json").stdout)["jobs"]
    assert {job["state"] for job in found} == {"succeeded"}
    shown = cli("show", "outputs/.oellm-autoexp-fake", "arms_lr1_decay").stdout
    assert "which waited in the queue, goes on" in shown, shown


def test_where_there_is_no_queue_jobs_wait_with_us_and_a_note_says_so(tmp_path: Path) -> None:
    """On this machine; and on several clusters, where an id means nothing."""
    cli = Cli(tmp_path)
    (tmp_path / "arms.yaml").write_text(CONFIG.replace("CLASS", "slurm"))
    done = cli("submit", "arms.yaml", "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    note = "scheduler.dependency: native is not used, for LocalScheduler has no queue"
    assert note in done.stderr, done.stderr
    assert set(cli.states().values()) == {("succeeded", 1)}
    (tmp_path / "two.yaml").write_text(CONFIG.replace("CLASS", "slurm, clusters: [a, b]"))
    planned = cli("plan", "two.yaml")
    assert "an id means nothing on another of several clusters" in planned.stderr, planned.stderr
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("CLASS", "slurm").replace("native", "afterok"))
    refused = cli("plan", "bad.yaml")
    assert refused.returncode == 2 and "must be ours or native, got 'afterok'" in refused.stderr


@pytest.mark.parametrize("step", ["link", "cancel"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_leader_that_dies_while_it_takes_it_out_of_the_queue_leaves_that_to_the_next(
    step: str, where: str
) -> None:
    """Around its claim, and around the call that cancels it: it is tried once, and charged nothing."""
    with played({"p": [], "c": ["p"]}, {"p": {"mishaps": [ONCE]}}) as made:
        wanted: list[str] = []

        def die(name: str, _target: str) -> None:
            if wanted and name == f"{step}:{where}":
                raise Killed(wanted.pop())

        def arm() -> None:
            if is_queued(made, "c") and not made.audit.session.jobs["p"].attempts[-1].mode:
                wanted[:] = ["now"]

        with pytest.raises(Killed):
            made.run(made.submit(Fatal(0, on_step=die)), arm)
        made.bury()
        made.pass_time(100.0)
        jobs = end(made)
        assert set(states(jobs).values()) == {"succeeded"}
        assert jobs["c"].spent == {} and len(jobs["c"].attempts) == 1
