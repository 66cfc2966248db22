"""What every condition does, whichever it is: it describes a check; and what the values of checks are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sockets import CONDITIONS, condition, sealed

from oellm_autoexp.config.sockets import (
    AllOf,
    AnyOf,
    Check,
    CommandCheck,
    FileCheck,
    MetricCheck,
    Not,
    SignalCheck,
)
from oellm_autoexp.core.lifecycle import Gate
from oellm_autoexp.core.model import Attempt, Job, JobSpec, Scalar
from oellm_autoexp.monitor.checks import Checks, InlineExecutor, Known, evaluate
from oellm_autoexp.store.effects import Effects

FIELDS: dict[str, Scalar] = {"name": "a", "job": "a", "output_dir": "/out dir/[1]", "lr": 1e-3, "seed": None}
OPEN = CommandCheck(command="true")
CLOSED = CommandCheck(command="false")
UNKNOWN = CommandCheck(command=["sleep", "10"], timeout_s=0.02)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_check_is_described_and_nothing_is_looked_at(name: str) -> None:
    """Pure: the same fields give the same check."""
    one = condition(name)
    given_fields, config = deepcopy(FIELDS), deepcopy(one.config)
    with sealed():
        check = one.check(given_fields)
        again = condition(name).check(FIELDS)
    assert check == again
    assert isinstance(check, (CommandCheck, FileCheck, MetricCheck, SignalCheck, AllOf, AnyOf, Not))
    assert given_fields == FIELDS
    assert one.config == config


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_check_has_a_value_and_says_what_was_seen(name: str) -> None:
    """A person who waits for it can read why."""
    value, why = evaluate(condition(name).check(FIELDS), Effects())
    assert value in (Gate.OPEN, Gate.CLOSED)
    assert why


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("true", Gate.OPEN),
        ("false", Gate.CLOSED),
        ("echo 1", Gate.OPEN),
        ("echo 1; exit 3", Gate.OPEN),
        ("printf ' 1 \\n\\n'", Gate.OPEN),
        ("echo 0", Gate.CLOSED),
        ("echo 10", Gate.CLOSED),
        ("echo yes", Gate.CLOSED),
        ("printf '\\n'", Gate.OPEN),
        ("echo oops >&2", Gate.CLOSED),
        ("head -c 100000 /dev/zero", Gate.CLOSED),
        ("exit 127", Gate.CLOSED),
        (["test", "a b", "=", "a b"], Gate.OPEN),
        (["no-such-program-anywhere"], Gate.UNKNOWN),
        ("kill -9 $$", Gate.CLOSED),
        ("read line || exit 0", Gate.OPEN),
    ],
)
def test_a_command_holds_by_its_output_or_its_status(command: Any, value: Gate) -> None:
    """`1` on stdout, or status 0 and nothing printed; what cannot be run is not known."""
    entry = _value_of(condition("CommandCondition", command=command).check(FIELDS))
    assert entry[0] is value, entry


def _value_of(check: Check) -> tuple[Gate, str]:
    """As the loop sees it."""
    return Checks(InlineExecutor(), Effects()).value("a", "start", check, interval_s=1.0, now=0.0)


@given(
    value=st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20)
)
@example(value="[1]")
@example(value="*")
@example(value="a?[!x]")
@example(value='it\'s "$(x)"')
@settings(max_examples=60, deadline=None)
def test_a_value_is_itself_in_a_path_and_in_a_command(
    value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever it holds: brackets, stars, quotes. Only the config's own stars stand for anything."""
    if value in (".", "..") or len(value.encode()) > 200:
        return
    root = tmp_path_factory.mktemp("root")
    fields: Mapping[str, Scalar] = {"output_dir": str(root / value)}
    made = {
        "FileExistsCondition": condition("FileExistsCondition", path="{output_dir}/x").check(fields),
        "GlobCondition": condition("GlobCondition", pattern="{output_dir}/[x]*").check(fields),
        "CommandCondition": condition("CommandCondition", command='test -e "{output_dir}"/x').check(fields),
    }
    assert {name: evaluate(check, Effects())[0] for name, check in made.items()} == dict.fromkeys(
        made, Gate.CLOSED
    )
    (root / value).mkdir()
    (root / value / "x").touch()
    assert {name: evaluate(check, Effects())[0] for name, check in made.items()} == dict.fromkeys(
        made, Gate.OPEN
    )


def test_a_glob_counts(tmp_path: Path) -> None:
    """As many as are asked for, also below directories."""
    gate = condition("GlobCondition", pattern=f"{tmp_path}/**/*.pt", at_least=2).check(FIELDS)
    assert evaluate(gate, Effects()) == (Gate.CLOSED, f"0 of 2 match {tmp_path}/**/*.pt")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.pt").touch()
    assert evaluate(gate, Effects())[0] is Gate.CLOSED
    (tmp_path / "2.pt").touch()
    assert evaluate(gate, Effects())[0] is Gate.OPEN


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (AllOf(checks=(OPEN, OPEN)), Gate.OPEN),
        (AllOf(checks=()), Gate.OPEN),
        (AllOf(checks=(OPEN, UNKNOWN)), Gate.UNKNOWN),
        (AllOf(checks=(UNKNOWN, CLOSED)), Gate.CLOSED),
        (AnyOf(checks=(CLOSED, OPEN)), Gate.OPEN),
        (AnyOf(checks=()), Gate.CLOSED),
        (AnyOf(checks=(UNKNOWN, OPEN)), Gate.OPEN),
        (AnyOf(checks=(CLOSED, UNKNOWN)), Gate.UNKNOWN),
        (Not(check=OPEN), Gate.CLOSED),
        (Not(check=CLOSED), Gate.OPEN),
        (Not(check=UNKNOWN), Gate.UNKNOWN),
        (Not(check=AllOf(checks=(OPEN, UNKNOWN))), Gate.UNKNOWN),
        (AllOf(checks=(OPEN, CommandCheck(command=["no-such-program-anywhere"]))), Gate.UNKNOWN),
        (AnyOf(checks=(CommandCheck(command=["no-such-program-anywhere"]), OPEN)), Gate.OPEN),
        (Not(check=CommandCheck(command=["no-such-program-anywhere"])), Gate.UNKNOWN),
    ],
)
def test_doubt_is_kept_where_it_matters(check: Check, value: Gate) -> None:
    """An unknown part leaves doubt, unless the others decide."""
    assert _value_of(check)[0] is value


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    """A name that is too long for any file system stands for a file server that is not there."""
    for name, key in (("FileExistsCondition", "path"), ("GlobCondition", "pattern")):
        check = condition(name, **{key: f"{tmp_path}/{'x' * 300}/y"}).check(FIELDS)
        value, why = evaluate(check, Effects())
        assert value is Gate.UNKNOWN
        assert "File name too long" in why
        assert evaluate(Not(check=check), Effects())[0] is Gate.UNKNOWN
        missing = condition(name, **{key: f"{tmp_path}/none/y"}).check(FIELDS)
        assert evaluate(missing, Effects())[0] is Gate.CLOSED


def test_a_value_is_asked_for_once_an_interval_and_never_waited_for() -> None:
    """While a check is under way the last value counts."""

    class Later:
        def __init__(self) -> None:
            self.asked: list[Future[Any]] = []

        def submit(self, function: Any, /) -> Future[Any]:
            self.asked.append(Future())
            return self.asked[-1]

    later = Later()
    checks = Checks(later, Effects())

    def value(now: float, check: Check = OPEN) -> Gate:
        return checks.value("a", "start", check, interval_s=10.0, now=now)[0]

    assert [value(0.0), value(1.0), value(100.0)] == [Gate.UNKNOWN] * 3
    assert len(later.asked) == 1
    later.asked[0].set_result((Gate.OPEN, "x"))
    assert [value(101.0), value(102.0)] == [Gate.OPEN, Gate.OPEN]
    assert len(later.asked) == 2
    later.asked[1].set_exception(OSError("stale file handle"))
    assert value(103.0) is Gate.UNKNOWN
    assert value(104.0, CLOSED) is Gate.UNKNOWN  # another check: nothing is known of it
    assert len(later.asked) == 3


def test_a_condition_does_not_see_the_job_that_the_loop_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm is stays known: a condition may ask it."""
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SLURM_CPU_BIND", "AUTOEXP_ATTEMPT"):
        monkeypatch.setenv(name, "outer")
    monkeypatch.setenv("SLURM_CONF", "/here")
    seen = CommandCheck(command='[ "$(env | grep -c outer)" = 0 ] && [ "$SLURM_CONF" = /here ]')
    assert evaluate(seen, Effects())[0] is Gate.OPEN


def job(**changes: Any) -> Job:
    spec = JobSpec(
        name="a",
        id="id",
        index=0,
        parameters={},
        argv=(),
        output_dir="/out",
        checkpoint_dir="/out/c",
        script_path="/a.sh",
        script_digest="d",
        log_path="/a.{attempt}.log",
    )
    return replace(Job(spec=spec), **changes)


def test_a_metric_holds_once_it_was_that_high_or_that_low(tmp_path: Path) -> None:
    """Any value that was kept counts, of the attempts since the job was last begun anew."""
    series = tmp_path / "a.jsonl"
    lines = [
        {"t": 1, "attempt": 1, "loss": 0.5},
        {"t": 2, "attempt": 2, "loss": 3.0},
        {"t": 3, "attempt": 3, "loss": 2.5},
        {"t": 4, "attempt": 3, "loss": "nan"},
        {"t": 5, "attempt": 3, "loss": True},
        {"t": 6, "attempt": 3, "loss": 2.75, "step": 5},
    ]
    series.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{torn")
    jobs = {"a": job(first_attempt=2)}
    known = Known(job=jobs.get, series=lambda name: tmp_path / f"{name}.jsonl")

    def value(**limits: float) -> tuple[Gate, str]:
        made = condition("MetricCondition", metric="loss", **{"at_least": None, "at_most": None, **limits})
        return evaluate(made.check(FIELDS), Effects(), known)

    assert value(at_most=2.5) == (Gate.OPEN, "`loss` of a was 2.5 at best (asked for: at most 2.5)")
    assert value(at_most=2.0) == (Gate.CLOSED, "`loss` of a was 2.5 at best (asked for: at most 2)")
    assert value(at_least=3.0)[0] is Gate.OPEN
    assert value(at_least=3.5)[0] is Gate.CLOSED
    other = condition("MetricCondition", metric="accuracy", at_most=1.0).check(FIELDS)
    assert evaluate(other, Effects(), known) == (Gate.CLOSED, "a has told no `accuracy`")


def test_a_counter_is_a_metric_too_once_this_life_of_the_job_got_ahead() -> None:
    """A mark of an earlier verdict says nothing of what was begun anew."""
    old, new = (
        Attempt(number=number, token="t", requested_at=0.0, progressed_at=at)
        for number, at in ((1, 5.0), (2, None))
    )
    check = condition("MetricCondition", metric="step", at_least=100, at_most=None).check(FIELDS)
    for jobs, expected in (
        ({"a": job(attempts=(old,), high_water={"step": 100.0})}, Gate.OPEN),
        ({"a": job(attempts=(old,), high_water={"step": 99.0})}, Gate.CLOSED),
        ({"a": job(attempts=(old, new), first_attempt=2, high_water={"step": 100.0})}, Gate.CLOSED),
    ):
        known = Known(job=jobs.get, series=lambda name: Path("/nowhere"))
        assert evaluate(check, Effects(), known)[0] is expected


def test_a_signal_holds_once_it_was_found() -> None:
    """Of the sibling that the condition names, or of the job itself; asked for at every look."""
    fields = {**FIELDS, "sibling.stable": "b"}
    jobs = {"a": job(), "b": job(seen=frozenset({"saved"}))}
    checks = Checks(InlineExecutor(), Effects(), Known(job=jobs.get))
    own, other = (
        condition("SignalCondition", signal="saved", sibling=stage).check(fields)
        for stage in (None, "stable")
    )

    def value(check: Check) -> Gate:
        return checks.value("a", "start", check, interval_s=1000.0, now=0.0)[0]

    assert (value(own), value(other)) == (Gate.CLOSED, Gate.OPEN)
    assert value(AllOf(checks=(other, Not(check=own)))) is Gate.OPEN
    jobs["a"] = job(seen=frozenset({"saved"}))
    assert value(own) is Gate.OPEN


def test_a_metric_has_one_bound() -> None:
    for limits in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError, match="one of at_least and at_most"):
            condition("MetricCondition", metric="loss", **{"at_least": None, "at_most": None, **limits})
