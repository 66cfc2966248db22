"""Scenario files: times with units, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.config import groups
from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.schedulers.fake.run import JobRequest, Kind, steps
from oellm_autoexp.schedulers.fake.scenario import Mishap, Play, Scenario, quiet


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15min", 900), ("1.5h", 5400), ("7 d", 604800), ("30", 30), ("2.5", 2.5)],
)
def test_a_time_is_seconds_or_has_a_unit(tmp_path: Path, text: str, seconds: float) -> None:
    """As numbers or as text, at any depth; a line that a job writes is left as it is."""
    path = tmp_path / "s.yaml"
    path.write_text(
        f"cluster: {{min_job_age: {text}, partitions: {{p: {{max_time: {text}}}}}}}\n"
        f"jobs:\n- work: {text}\n  lines: {{done: 90s}}\n  mishaps: [{{after: {text}, lines: [90s]}}]\n"
    )
    scenario = scenarios.load(path, Scenario)
    assert scenario.cluster.min_job_age == scenario.cluster.partitions["p"].max_time == seconds
    (play,) = scenario.jobs
    assert (play.work, play.mishaps[0].after) == (seconds, seconds)
    assert (play.lines.done, play.mishaps[0].lines) == ("90s", ["90s"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sed: 1", "s.yaml:1: sed: unknown key"),
        ("\ncluster: {nodes: many}", "s.yaml:2: cluster.nodes: must be a whole number"),
        ("jobs:\n- work: 2 weeks", "90s, 15min, 36h, 7d"),
        ("jobs:\n- mishaps: [{kind: hang}]", "give exactly one of after, at_work and every"),
        ("faults: [{kind: nodefail, at: 1h}]", "did you mean `node_fail`?"),
        ("faults: [{kind: outage}]", "give either at or every"),
        ("{pace: 1h, stride: 1min}", "pace: must be more than 0 and at most stride"),
        ("cluster: {nodes: 0}", "must be at least 1"),
        (
            "faults: [{kind: outage, at: 1h, sticky: {every: 1h, drained_after: 1h}}]",
            "only what befalls a node",
        ),
        ("jobs:\n- mishaps: [{kind: exit, ends_after: 1h, after: 1h}]", "ends_after: is for a hang"),
        (
            "faults: [{kind: node_error, at: 1h, sticky: {every: 0, drained_after: 1h}}]",
            "must be more than 0",
        ),
        ("attended: 0", "attended: must be more than 0"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    """The file, the key and a repair."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        scenarios.load(path, Scenario)
    assert says in str(error.value) and str(path) in str(error.value)


def test_the_published_figures_are_in_the_model_of_them() -> None:
    """466 interruptions in 54 days on 2,048 nodes, 47 of them planned; the shares of the causes."""
    model = scenarios.load(groups.shipped() / "faults" / "llama3.yaml", Scenario)
    node_days = 2048 * 54 * 86400.0
    counts = {fault.name: node_days / fault.every for fault in model.faults if fault.every}
    assert len(counts) == len(model.faults) and all(fault.of_a_node for fault in model.faults)
    assert sum(counts.values()) == pytest.approx(466, abs=0.5)
    assert counts["planned maintenance"] == pytest.approx(47, abs=0.1)
    assert counts["GPU failed (Xid 79)"] == pytest.approx(148, abs=0.1)
    assert counts["GPU memory failed (HBM3, SRAM)"] == pytest.approx(72 + 19, abs=0.1)
    hangs = [counts[fault.name] for fault in model.faults if fault.symptom.kind == "hang"]
    assert sum(hangs) == pytest.approx(35 + 7 + 6, abs=0.1)


def test_a_quiet_cluster_keeps_pace_with_the_config() -> None:
    """A config that takes five seconds of silence for a stall gets jobs that write more often than that."""
    usual, quick = quiet(), quiet(5.0)
    assert quiet(3600.0) == usual and not usual.jobs
    (play,) = quick.jobs
    assert play.log_every == 1.25 and play.work == pytest.approx(45) and quick.pace == 0.125
    assert Scenario().turning(3600.0) == Scenario() and Scenario().turning(10.0).pace == 5.0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the key that names it."""
    with pytest.raises(ConfigError, match=r"scheduler\.scenario: there is no such scenario .*none\.yaml"):
        scenarios.load(tmp_path / "none.yaml", Scenario)


REQUEST = JobRequest(name="one", log_path="/log", attempt_dir="/attempt")


@given(
    st.floats(0, 20000),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(10, 5000)),
    st.floats(10, 5000),
    st.one_of(st.none(), st.floats(0, 30000)),
)
def test_what_a_job_does_adds_up(
    total: float, part: float, checkpoint: float | None, log: float, death: float | None
) -> None:
    """It starts, works, saves only what was done, and ends once, at its work or at its mishap."""
    mishaps = [Mishap(after=death, code=9)] if death is not None else []
    play = Play(work=total, checkpoint_every=checkpoint, log_every=log, mishaps=mishaps, startup=5.0)
    begun = total * part
    done = list(steps(play, REQUEST, begun, total, Scenario().stream()))
    assert [step.kind for step in done].count(Kind.END) == 1 and done[-1].kind is Kind.END
    works = [step.work for step in done]
    assert works == sorted(works) and works[0] == begun
    saves = [step for step in done if step.kind is Kind.SAVE]
    lasted = sum(step.after_s for step in done)
    if done[-1].code == 0:
        assert works[-1] == total
        assert lasted == pytest.approx(5 + total - begun + len(saves) * play.checkpoint_takes)
    else:
        assert death is not None and lasted == pytest.approx(5 + death)
    assert checkpoint is not None or not saves


def test_a_mishap_strikes_at_its_time_or_its_work_and_only_in_the_attempts_that_it_names() -> None:
    """Work that a checkpoint has saved is not met again."""
    late = Play(work=100.0, startup=0.0, checkpoint_every=None, mishaps=[Mishap(at_work=50.0, attempts=1)])
    second = JobRequest(name="one", log_path="/log", attempt_dir="/attempt", attempt=2)
    stream = Scenario().stream()
    assert list(steps(late, REQUEST, 0.0, 100.0, stream))[-1].work == 50.0
    assert list(steps(late, REQUEST, 60.0, 100.0, stream))[-1].work == 100.0
    assert list(steps(late, second, 0.0, 100.0, stream))[-1].work == 100.0
