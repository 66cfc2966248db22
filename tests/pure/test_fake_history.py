"""A fake cluster outlives the process that plays it, wherever that is killed."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef, SchedulerState
from oellm_autoexp.errors import LeadershipLost, SchedulerUnavailable, StateError, SubmitUnclear, UsageError
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient, FakeSlurmClientConfig
from oellm_autoexp.store.effects import Effects

SCENARIO = """\
pace: 60
stride: 600
cluster: {nodes: 3}
jobs:
- {work: 3h, checkpoint_every: 30min, log_every: 400, mishaps: [{every: 2h}]}
faults:
- {kind: node_fail, at: 40min, lasts: 30min, runs_on: true}
- {kind: frozen, at: 90min, lasts: 10min}
"""


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


class Dying(Effects):
    """Dies at its step number `last`."""

    def __init__(self, last: int) -> None:
        super().__init__(durable=False)
        self._left = last

    def step(self, name: str, target: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed


def client(root: Path, effects: Effects | None = None) -> FakeSlurmClient:
    scenario = root / "scenario.yaml"
    if not scenario.exists():
        scenario.write_text(SCENARIO)
    config = FakeSlurmClientConfig(scenario=str(scenario))
    return FakeSlurmClient(config, effects=effects or Effects(durable=False), state_dir=root / "state")


def task(root: Path, name: str) -> Task:
    script = root / f"{name}.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1 -t 2:00:00\nexport AUTOEXP_CHECKPOINT_DIR='/a b'\n")
    paths = {
        "log_path": str(root / "logs" / f"{name}.log"),
        "attempt_dir": str(root / "attempts" / name / "1"),
    }
    return Task(name=name, script_path=str(script), **paths)


def written(root: Path) -> dict[str, bytes]:
    """What the jobs have written."""
    files = [path for folder in ("logs", "attempts") for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.suffix != ".tmp"}


#: Names to submit, or None for a turn of waiting.
PLAN: tuple[str | None, ...] = ("a", None, None, "b", *[None] * 3, "c", "d", *[None] * 40)


def play(root: Path, effects: Effects | None, known: list[str]) -> FakeSlurmClient:
    """The plan, as far as it has not been carried out yet."""
    made = client(root, effects)
    made.prepare()  # What the last process left undone is done, though nothing may be left to ask for.
    for step in PLAN[len(known) :]:
        if step is None:
            made.clock.wait(1.0)
        else:
            made.submit(Submission(token=step, tasks=[task(root, step)]))
        known.append(step or "wait")
    return made


def test_a_cluster_that_is_made_again_is_the_same(tmp_path: Path) -> None:
    """States, time and bytes; a job that is forgotten is known to accounting."""
    known: list[str] = []
    made = play(tmp_path, None, known)
    again = client(tmp_path)
    assert again.clock.now() == made.clock.now()
    refs = list(made.find(["a", "b", "c", "d"]).values())
    assert list(again.find(["a", "b", "c", "d"]).values()) == refs and len(refs) == 4
    flat = [ref for each in refs for ref in each]
    assert again.poll(flat) == made.poll(flat)
    assert {fact.state for fact in again.poll(flat).values()} != {SchedulerState.GONE}
    before = written(tmp_path)
    assert before["logs/a.log"].startswith(b"training begins") and b'"/a b/step_' in before["logs/a.log"]
    again.clock.wait(1.0)
    assert client(tmp_path).clock.now() == again.clock.now() > made.clock.now()


def test_who_looks_writes_nothing(tmp_path: Path) -> None:
    """`submit` on a session that another process leads asks what time it is there."""
    play(tmp_path, None, [])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    log = tmp_path / "logs" / "a.log"
    log.write_bytes(before[log][:-10])
    looks = client(tmp_path)
    looks.poll([ref for refs in looks.find(["a", "b"]).values() for ref in refs])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before.keys()
    assert log.read_bytes() == before[log][:-10]


def test_a_process_that_was_stopped_plays_no_more_once_another_does(tmp_path: Path) -> None:
    """What it asks for then is refused before it is done, and is no part of the history."""
    first = client(tmp_path)
    first.clock.wait(1.0)
    second = client(tmp_path)
    second.prepare()
    lost = pytest.raises(LeadershipLost, match="another process plays this cluster")
    with lost:
        first.clock.wait(1.0)
    with lost:
        first.submit(Submission(token="a", tasks=[task(tmp_path, "a")]))
    assert first.clock.now() == second.clock.now() and not first.played.jobs
    second.submit(Submission(token="b", tasks=[task(tmp_path, "b")]))
    second.clock.wait(1.0)
    again = client(tmp_path)
    assert [job.token for job in again.played.jobs.values()] == ["b"]
    assert again.clock.now() == second.clock.now()


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["open", "wait", "submit"])), max_size=25))
@settings(max_examples=60, deadline=None)
def test_however_processes_alternate_one_history_counts(turns: list[tuple[int, str]]) -> None:
    """Whoever was not refused has the cluster that the next process finds."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        players = [client(root) for _ in range(3)]
        for number, (who, what) in enumerate(turns):
            try:
                if what == "open":
                    players[who] = client(root)
                    players[who].prepare()
                elif what == "wait":
                    players[who].clock.wait(1.0)
                else:
                    players[who].submit(Submission(token=f"{number}", tasks=[task(root, f"{number}")]))
            except LeadershipLost:
                continue
            again = client(root).played
            assert again.now == players[who].clock.now()
            assert {job.token for job in again.jobs.values()} == {
                job.token for job in players[who].played.jobs.values()
            }


def test_a_record_that_a_full_disk_has_cut_hides_no_other(tmp_path: Path) -> None:
    """The next one begins a line of its own."""

    class Cut(Effects):
        full = False

        def append(self, path: Path, data: bytes, **how: Any) -> None:
            if self.full and path.name == "cluster.jsonl":
                super().append(path, data[: len(data) // 2], **how)
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            super().append(path, data, **how)

    effects = Cut(durable=False)
    made = client(tmp_path, effects)
    made.clock.wait(1.0)
    effects.full = True
    with pytest.raises(StateError, match="No space left"):
        made.clock.wait(1.0)
    effects.full = False
    made.submit(Submission(token="a", tasks=[task(tmp_path, "a")]))
    assert [job.token for job in client(tmp_path).played.jobs.values()] == ["a"]


@given(st.lists(st.integers(1, 150), min_size=1, max_size=4))
@example(steps=[108, 30, 86])
@settings(max_examples=40, deadline=None)
def test_killed_at_any_step_it_goes_on_as_if_nothing_had_been(steps: list[int]) -> None:
    """The same bytes are in the logs and the guards' files, neither doubled nor missing."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        play(Path(one), None, [])
        root, known = Path(two), list[str]()
        for last in steps:
            try:
                play(root, Dying(last), known)
            except Killed:
                # A turn that was cut was never begun, or is played to its end by the next process.
                known[:] = progressed(root)
        play(root, None, known)
        assert {k.replace(two, ""): v.replace(two.encode(), b"") for k, v in written(root).items()} == {
            k.replace(one, ""): v.replace(one.encode(), b"") for k, v in written(Path(one)).items()
        }


FAULTS = """\
pace: 20
stride: 300
cluster: {nodes: 4, accounting_lag: 60, min_job_age: 120, queue_wait: 200}
jobs:
- {work: 2h, checkpoint_every: 30min, log_every: 400, mishaps: [{every: 12h}]}
faults:
- {kind: node_fail, every: 8h, lasts: 20min, runs_on: true}
- {kind: outage, every: 3h, lasts: 10min}
- {kind: crash, every: 3h, lasts: 2min}
- {kind: frozen, every: 4h, lasts: 5min}
- {kind: preempt, every: 1h}
- {kind: requeue, every: 1h}
- {kind: cancel, every: 4h}
- {kind: hold, every: 40min}
- {kind: release, every: 40min}
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_job_of_which_there_is_no_news_is_as_it_was(tmp_path: Path, seed: int) -> None:
    """A loop that looks only where there is news misses nothing that the scheduler says, and no byte."""
    (tmp_path / "scenario.yaml").write_text(f"seed: {seed}\n{FAULTS}")
    made = client(tmp_path)
    facts: dict[SchedulerRef, SchedulerFact] = {}
    sizes: dict[str, int] = {}
    named: dict[SchedulerRef, str] = {}
    owed, seen = set[str](), set[tuple[str, str]]()
    for turn in range(400):
        if turn % 8 == 0:
            name = f"job{turn}"
            with contextlib.suppress(SubmitUnclear, SchedulerUnavailable):
                (ref,) = made.submit(Submission(token=name, tasks=[task(tmp_path, name)]))
                named[ref] = name
        made.clock.wait(1.0)
        news = set(made.news())
        owed |= news
        for path in (tmp_path / "logs").glob("*.log"):
            size = path.stat().st_size
            assert size == sizes.get(path.stem, 0) or path.stem in news
            sizes[path.stem] = size
        with contextlib.suppress(SchedulerUnavailable):
            told = dict(made.poll(list(named)))
            for ref, fact in told.items():
                # What accounting says of a job comes when it comes: it is asked about in each turn.
                late = facts.get(ref, fact).state.ended
                assert ref not in facts or facts[ref] == fact or late or named[ref] in owed
                seen.add((fact.state.value, fact.reason))
            facts, owed = {**facts, **told}, set[str]()
    assert len(seen) > 6


def progressed(root: Path) -> list[str]:
    """How much of the plan the history has."""
    records = client(root)._inputs.read()[1:]
    found = []
    for record in records:
        if "until" in record:
            found.append("wait")
        elif "submit" in record:
            found.append(record["submit"])
    return found


def test_another_scenario_on_the_same_history_is_refused(tmp_path: Path) -> None:
    """It would not give the same cluster."""
    client(tmp_path).clock.wait(1.0)
    (tmp_path / "scenario.yaml").write_text(SCENARIO + "seed: 7\n")
    with pytest.raises(UsageError, match="began with another scenario"):
        client(tmp_path).clock.now()


def test_what_never_ends_meets_the_horizon(tmp_path: Path) -> None:
    """Virtual time is not spent for ever."""
    (tmp_path / "scenario.yaml").write_text("horizon: 1h\n")
    made = client(tmp_path)
    with pytest.raises(StateError, match="has not come to an end"):
        for _ in range(100):
            made.clock.wait(600.0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["#SBATCH --nodes=4", "#SBATCH --time=1-00:00:00"], {"nodes": 4, "time_limit": 86400.0}),
        (
            ["#SBATCH -N 2", "#SBATCH -t 30", "#SBATCH -p gpu"],
            {"nodes": 2, "time_limit": 1800.0, "partition": "gpu"},
        ),
        (["#SBATCH --no-requeue", "true", "#SBATCH --nodes=9"], {"nodes": 1, "requeue": False}),
        (["#SBATCH --requeue", "#SBATCH --time=UNLIMITED"], {"requeue": True, "time_limit": None}),
        (["#SBATCH --job-name='a b' --nodes=3"], {"nodes": 3}),
    ],
)
def test_the_directives_of_a_script_count_as_for_sbatch(
    tmp_path: Path, lines: list[str], expected: dict[str, Any]
) -> None:
    """Those before the first command, long or short, several on a line."""
    made, job = client(tmp_path), task(tmp_path, "a")
    Path(job.script_path).write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    made.submit(Submission(token="t", tasks=[job]))
    (played,) = made.played.jobs.values()
    assert {name: getattr(played.request, name) for name in expected} == expected


def test_when_a_word_was_found_is_part_of_the_history(tmp_path: Path) -> None:
    """The file is there at once when the cluster is played again, and the command begins no sooner."""
    made = client(tmp_path)
    made.submit(Submission(token="a", tasks=[task(tmp_path, "a")]))
    made.clock.wait(60.0)
    directory = tmp_path / "attempts" / "b" / "1"
    environment = {
        "AUTOEXP_AFTER_DIR": str(tmp_path / "attempts" / "a" / "1"),
        "AUTOEXP_AFTER_WAIT_S": "86400",
    }
    behind = replace(task(tmp_path, "b"), environment=environment)
    (ref,) = made.submit(Submission(token="b", tasks=[behind], after="1"))
    made.cancel(list(made.find(["a"])["a"]))
    while made.poll([ref])[ref].state is not SchedulerState.RUNNING:
        made.clock.wait(60.0)
    for _ in range(3):
        made.clock.wait(60.0)
    assert not directory.exists()
    directory.mkdir(parents=True)
    (directory / "go").touch()
    made.clock.wait(60.0)
    start = (directory / "start.0.json").read_text()
    again = client(tmp_path)
    again.clock.wait(60.0)
    (run,) = again.played.running
    assert run.start_text("b") == start
