"""What a person reads of a session."""

from __future__ import annotations

from pathlib import Path

from oellm_autoexp.cli.render import flat
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Cursor, Job, JobSpec, JobState, LogSignal
from oellm_autoexp.core.session import Session
from oellm_autoexp.services import views
from oellm_autoexp.store.effects import Effects


def job(name: str, index: int = 0, state: JobState = JobState.WAITING) -> Job:
    spec = JobSpec(
        name=name,
        id=name,
        index=index,
        parameters={},
        argv=("true",),
        output_dir="/o",
        checkpoint_dir="/c",
        script_path="/s",
        script_digest="d",
        log_path="/l",
    )
    return Job(spec=spec, state=state)


def found(count: int) -> ev.SignalsFound:
    signals = tuple(
        LogSignal(rule="saved", file="log", generation=0, offset=n, line=f"saved {n}") for n in range(count)
    )
    return ev.SignalsFound(at=5.0, job="a", attempt=1, file="log", cursor=Cursor(), signals=signals)


def test_an_attempt_runs_before_what_its_log_says() -> None:
    """Both are taken in by one tick, the log first; a reader wants the order in which they came about."""
    session = Session(jobs={"a": job("a")})
    started = ev.AttemptStarted(at=5.0, job="a", attempt=1, started_at=4.0)
    told = [text for _, text in views.timeline([found(1), started], session, session.jobs["a"])]
    assert told == ["attempt 1 runs", "found in log: saved: saved 0"]


def test_many_signals_of_one_look_are_not_told_one_by_one() -> None:
    assert views.told(found(3)).endswith("saved: saved 2")
    assert views.told(found(9)).endswith("saved: saved 2; and 6 more")


def test_where_not_all_jobs_fit_those_are_shown_that_need_a_look() -> None:
    """Failed and running ones before those that are done, still in the order of the plan."""
    states = [JobState.SUCCEEDED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED]
    session = Session(jobs={f"j{n}": job(f"j{n}", n, state) for n, state in enumerate(states)})
    assert [shown.spec.name for shown in views.most_telling(session, 2)] == ["j1", "j3"]
    assert len(views.most_telling(session, 4)) == 4


def test_a_file_that_is_there_is_not_created_again(tmp_path: Path) -> None:
    """What another process has just written stays as it is."""
    path = tmp_path / "script"
    assert Effects().create(path, b"first", mode=0o644)
    assert not Effects().create(path, b"second", mode=0o644)
    assert path.read_bytes() == b"first"


def test_no_value_ends_its_cell_or_its_row() -> None:
    """Of a table in Markdown; what a terminal shows is else as it is."""
    assert flat(["job_a"], [["x|y\nz_1"], [None]], "md").splitlines()[2:] == ["| x\\|y z_1 |", "|  |"]
