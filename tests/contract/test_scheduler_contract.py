"""What every scheduler must do, whichever it is: submit under a token, be asked, be found again, cancel."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import schedulers
from schedulers import BENCHES, HOLD, Bench

from oellm_autoexp.config.sockets import Submission
from oellm_autoexp.core.model import SchedulerRef, SchedulerState
from oellm_autoexp.errors import SubmitRejected

#: Marked where it needs a cluster.
KINDS = [pytest.param(kind, marks=[pytest.mark.slurm] if kind == "slurm" else []) for kind in BENCHES]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "slurm":
        request.getfixturevalue("slurm")
    return name


@pytest.fixture
def bench(kind: str, tmp_path: Path) -> Iterator[Bench]:
    made = BENCHES[kind](tmp_path)
    yield made
    made.stop()


#: Those that run what they are given; the others play it.
RUNNERS = [param for param in KINDS if BENCHES[str(param.values[0])].runs_commands]
runners = pytest.mark.parametrize("kind", RUNNERS, indirect=True)


# ---------------------------------------------------------------- render


def test_rendering_is_pure_and_gives_a_script_that_a_shell_can_read(bench: Bench) -> None:
    """Equal requests give equal bytes, and bash finds no fault in them."""
    request = bench.request("it's", "echo \"$HOME\" 'x y'\n", NAME="a 'b' $c \n d")
    script = bench.scheduler.render(request)
    assert script == bench.scheduler.render(request) == bench.make().render(request)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# ---------------------------------------------------------------- submit


def test_one_task_runs_once_and_completes(bench: Bench) -> None:
    """A submission of one gives one reference, which carries its token and ends as completed."""
    (ref,) = bench.submit("tok", bench.task("one", "true"))
    assert (ref.token, ref.task, ref.cluster) == (bench.token("tok"), 0, bench.scheduler.cluster)
    assert bench.ended(ref).state is SchedulerState.COMPLETED
    if bench.runs_commands:
        assert bench.ran == ["one"]


def test_an_array_gives_a_reference_for_each_task_in_order(bench: Bench) -> None:
    """Tasks of one submission run as themselves, each once; one poll tells of all."""
    refs = bench.submit("tok", *(bench.task(f"t{index}", f"exit {index}") for index in range(4)))
    assert [ref.task for ref in refs] == [0, 1, 2, 3]
    assert len({ref.id for ref in refs}) == 4
    bench.until(lambda: all(f.state.ended for f in bench.scheduler.poll(refs).values()), "all have ended")
    if bench.runs_commands:
        facts = bench.scheduler.poll(refs)
        assert [facts[ref].exit_code for ref in refs] == [0, 1, 2, 3]
        assert bench.ran == ["t0", "t1", "t2", "t3"]


def test_an_array_keeps_to_its_bound_which_may_change(bench: Bench) -> None:
    """Where the scheduler can: the tasks wait for each other, and more run once more may."""
    if not bench.scheduler.capabilities.throttles:
        with pytest.raises(SubmitRejected):
            bench.scheduler.update(bench.submit("tok", bench.task("one", HOLD)), {"at_once": 2})
        return
    tasks = [bench.task(f"t{index}", HOLD) for index in range(3)]
    refs = bench.scheduler.submit(Submission(token=bench.token("tok"), tasks=tasks, at_once=1))
    states = lambda: [bench.scheduler.poll(refs)[ref].state for ref in refs]  # noqa: E731
    running, pending = SchedulerState.RUNNING, SchedulerState.PENDING
    bench.until(lambda: states() == [running, pending, pending], "one runs")
    waits = bench.scheduler.poll(refs)[refs[2]]
    assert waits.reason.startswith("JobArrayTaskLimit")
    bench.scheduler.update([refs[2]], {"at_once": 2})
    bench.until(lambda: states() == [running, running, pending], "two run")
    bench.scheduler.cancel([refs[0]])
    bench.until(lambda: states()[1:] == [running, running], "the last follows")


def test_more_tasks_than_an_array_may_have_are_refused(bench: Bench) -> None:
    """Too large an array is refused for good, and nothing of it runs."""
    task = bench.task("one", "true")
    with pytest.raises(SubmitRejected):
        bench.submit("tok", *[task] * (bench.scheduler.capabilities.max_array_size + 1))
    assert bench.find("tok") == {}


# ---------------------------------------------------------------- find


def test_a_submission_is_found_by_its_token(bench: Bench) -> None:
    """The same references as `submit` gave; a token that was never submitted is absent."""
    refs = bench.submit("tok", bench.task("one", HOLD))
    other = bench.submit("other", bench.task("two", HOLD))
    assert bench.find("tok", "none", "other") == {"tok": refs, "other": other}
    assert bench.find() == {}


def test_a_submission_is_found_by_the_next_daemon(bench: Bench) -> None:
    """Alive or ended, it is known to one that has only the scheduler to ask."""
    refs = bench.submit("tok", bench.task("one", "true"))
    assert bench.again().find("tok") == {"tok": refs}
    bench.ended(refs[0])
    again = bench.again()
    assert again.find("tok") == {"tok": refs}
    assert again.scheduler.poll(refs)[refs[0]].state is SchedulerState.COMPLETED


# ---------------------------------------------------------------- poll


def test_every_reference_has_an_answer(bench: Bench) -> None:
    """Running, ended and unknown ones together; what the scheduler does not know is gone."""
    (alive,) = bench.submit("a", bench.task("alive", HOLD))
    (over,) = bench.submit("b", bench.task("over", "true"))
    bench.ended(over)
    bench.until(lambda: bench.fact(alive).state is SchedulerState.RUNNING, "it runs")
    unknown = SchedulerRef(id="nothing.0", cluster=bench.scheduler.cluster, token="nothing")
    facts = bench.scheduler.poll([unknown, over, alive])
    assert facts.keys() == {unknown, over, alive}
    assert [facts[ref].state for ref in (alive, over, unknown)] == [
        SchedulerState.RUNNING,
        SchedulerState.COMPLETED,
        SchedulerState.GONE,
    ]
    assert facts[alive].started_at is not None
    assert bench.scheduler.poll([]) == {}


@runners
@pytest.mark.parametrize(
    ("command", "code"), [("exit 3", 3), ("exit 255", 255), ("kill -KILL $$", 137), ("no-such-program", 127)]
)
def test_the_way_a_command_ended_comes_through(bench: Bench, command: str, code: int) -> None:
    """Exit codes and signals are told as a shell would (128 + signal)."""
    (ref,) = bench.submit("tok", bench.task("one", command))
    fact = bench.ended(ref)
    assert fact.state is SchedulerState.FAILED
    assert code == (128 + fact.signal if fact.signal else fact.exit_code)


@runners
def test_output_and_environment_arrive(bench: Bench) -> None:
    """Both streams go to the task's log; the command sees the variables of the task, and its token."""
    command = 'echo "out $AUTOEXP_ATTEMPT $AUTOEXP_TOKEN"; echo err >&2; echo "$WORDS"'
    task = bench.task("one", command, {"AUTOEXP_ATTEMPT": "7", "WORDS": "it's \n ü $x"})
    bench.ended(bench.submit("tok", task)[0])
    assert bench.log(task) == f"out 7 {bench.token('tok')}\nerr\nit's \n ü $x\n"


# ---------------------------------------------------------------- cancel, update


def test_a_cancelled_attempt_ends(bench: Bench) -> None:
    """`cancel` asks; the end is seen by `poll`, and it is no success."""
    task = bench.task("one", HOLD)
    (ref,) = bench.submit("tok", task)
    if bench.runs_commands:
        bench.running(task)
    bench.scheduler.cancel([ref])
    fact = bench.ended(ref)
    assert fact.state not in (SchedulerState.COMPLETED, SchedulerState.GONE)


def test_cancelling_at_once_is_as_good(bench: Bench) -> None:
    """An attempt that has hardly begun can be cancelled, too."""
    (ref,) = bench.submit("tok", bench.task("one", HOLD))
    bench.scheduler.cancel([ref])
    assert bench.ended(ref).state is not SchedulerState.COMPLETED


def test_cancelling_what_is_over_or_unknown_does_nothing(bench: Bench) -> None:
    """No error, and the verdict stays."""
    (ref,) = bench.submit("tok", bench.task("one", "true"))
    before = bench.ended(ref)
    bench.scheduler.cancel([ref, SchedulerRef(id="nothing.0", cluster=ref.cluster, token="nothing")])
    bench.scheduler.cancel([])
    assert bench.fact(ref) == before


# ---------------------------------------------------------------- behind another


def test_what_waits_behind_another_begins_after_its_end_however_it_ends(bench: Bench) -> None:
    """Behind one task of several where there are arrays; a scheduler without queue says that it cannot."""
    if not bench.scheduler.capabilities.successors:
        assert not hasattr(bench.scheduler.config, "successor")
        return
    first, *_ = bench.submit("tok", bench.task("one", HOLD), bench.task("two", "true"))
    (second,) = bench.submit("next", bench.task("three", "true"), after=first.id)
    bench.until(lambda: bench.fact(first).state is SchedulerState.RUNNING, "the first runs")
    bench.until(lambda: "Dependency" in bench.fact(second).reason, "the second waits for it")
    bench.scheduler.cancel([first])
    assert bench.ended(second).state is SchedulerState.COMPLETED
    assert bench.fact(first).state is SchedulerState.CANCELLED


def test_what_waits_behind_several_begins_after_the_last_of_them(bench: Bench) -> None:
    """One of them a task of an array, one a job."""
    if not bench.scheduler.capabilities.successors:
        return
    first, *_ = bench.submit("tok", bench.task("one", HOLD), bench.task("two", "true"))
    (second,) = bench.submit("too", bench.task("three", HOLD))
    (last,) = bench.submit("next", bench.task("four", "true"), after=f"{first.id}:{second.id}")
    bench.until(lambda: bench.fact(second).state is SchedulerState.RUNNING, "the second runs")
    bench.scheduler.cancel([first])
    assert bench.ended(first).state is SchedulerState.CANCELLED
    bench.until(lambda: "Dependency" in bench.fact(last).reason, "the last waits for the second")
    bench.scheduler.cancel([second])
    assert bench.ended(last).state is SchedulerState.COMPLETED


# ---------------------------------------------------------------- nodes

with_nodes = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if BENCHES[str(kind.values[0])].has_nodes], indirect=True
)


@with_nodes
def test_what_waits_of_an_array_is_changed_though_some_of_it_runs(bench: Bench) -> None:
    """One call for all; that the running ones cannot be changed any more is no refusal."""
    tasks = [bench.task(f"t{index}", HOLD) for index in range(3)]
    nodes = sorted(bench.scheduler.eligible_nodes(tasks[0].script_path) or ())
    refs = bench.scheduler.submit(Submission(token=bench.token("tok"), tasks=tasks, at_once=1))
    bench.until(lambda: bench.fact(refs[0]).state is SchedulerState.RUNNING, "the first runs")
    bench.scheduler.update(refs, {"exclude": nodes[:-1]})
    bench.scheduler.cancel([refs[0]])
    bench.until(lambda: bench.fact(refs[1]).state is SchedulerState.RUNNING, "the second runs")
    assert bench.fact(refs[1]).nodes == nodes[-1]
    with pytest.raises(SubmitRejected):
        bench.scheduler.update(refs[:2], {"exclude": nodes[:1]})


@with_nodes
def test_an_excluded_node_is_not_given(bench: Bench) -> None:
    """Neither at submission nor, for what still waits, later; the running one keeps its node."""
    task = bench.task("one", HOLD)
    nodes = sorted(bench.scheduler.eligible_nodes(task.script_path) or ())
    assert len(nodes) > 1
    (ref,) = bench.submit("one", task, exclude=nodes[1:])
    bench.until(lambda: bench.fact(ref).state is SchedulerState.RUNNING, "it runs")
    assert bench.fact(ref).nodes == nodes[0]
    with pytest.raises(SubmitRejected):
        bench.scheduler.update([ref], {"exclude": nodes[:1]})
    (second,) = bench.submit("two", bench.task("two", "true"), exclude=nodes[1:])
    bench.scheduler.update([second], {"exclude": nodes[:1]})
    fact = bench.ended(second)
    assert fact.state is SchedulerState.COMPLETED and fact.nodes != nodes[0]
    with pytest.raises(SubmitRejected):
        bench.submit("three", bench.task("three", "true"), exclude=nodes)
    with pytest.raises(SubmitRejected):
        bench.submit("four", bench.task("four", "true"), exclude=["no-such-node"])


# ---------------------------------------------------------------- the submitter dies


@pytest.fixture
def submit_and_die(kind: str) -> Iterator[Callable[[Path, int, int], int]]:
    """Submits in a process of its own that dies at an effect step; gives its exit status."""
    argv = [sys.executable, schedulers.__file__, kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as submitters:
        asked, told = submitters.stdin, submitters.stdout
        assert asked is not None and told is not None

        def submit(root: Path, count: int, last: int) -> int:
            asked.write(f"{count} {last} {root}\n")
            asked.flush()
            return int(told.readline())

        yield submit
        asked.close()


@runners
def test_jobs_outlive_their_submitter(
    kind: str, tmp_path: Path, submit_and_die: Callable[[Path, int, int], int]
) -> None:
    """A submission whose process has ended is found, runs on, and is told about."""
    bench = BENCHES[kind](tmp_path)
    assert submit_and_die(tmp_path, 1, 10**6) == 0
    (ref,) = bench.find("tok")["tok"]
    assert bench.ended(ref).state is SchedulerState.COMPLETED
    assert bench.ran == ["t0"]


@runners
@pytest.mark.parametrize("count", [1, 3])
def test_a_submitter_that_dies_at_any_step_leaves_all_or_tells_what_is_missing(
    kind: str, tmp_path: Path, count: int, submit_and_die: Callable[[Path, int, int], int]
) -> None:
    """Whatever step of `submit` is the last: look it up, submit what is absent, and each ran exactly once."""
    names = [f"t{index}" for index in range(count)]
    seen, left = set(), []
    for last in itertools.count():
        root = tmp_path / str(last)
        root.mkdir()
        died = submit_and_die(root, count, last) != 0
        bench = BENCHES[kind](root)
        found = bench.find("tok").get("tok", [])
        seen.add(len(found))
        refs = found
        if len(found) < count:
            refs = bench.submit("tok", *(bench.task(name, "true") for name in names))
        assert [ref.task for ref in refs] == list(range(count))
        again = bench.again().find("tok")
        assert again == {"tok": refs}, f"died at step {last}, {found=}, {bench.left}"
        left.append((bench, refs, f"died at step {last}, {found=}"))
        if not died:
            break
    assert seen >= {0, count}
    for bench, refs, how in left:
        facts = [bench.ended(ref) for ref in refs]
        states = {fact.state for fact in facts}
        assert states == {SchedulerState.COMPLETED}, f"{how}, {facts}, {bench.left}"
        assert bench.ran == names, how
