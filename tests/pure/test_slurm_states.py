"""Every state and reason of Slurm has a meaning here."""

from __future__ import annotations

from pathlib import Path

import pytest

from oellm_autoexp.core.model import SchedulerState
from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED
from oellm_autoexp.schedulers.slurm.states import STATES, advice, explained, fact

DATA = Path(__file__).parents[1] / "data" / "slurm"


def listed(name: str) -> list[str]:
    return (DATA / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("word", listed("states"))
def test_no_state_of_slurm_is_unknown(word: str) -> None:
    """The list is that of Slurm's own library."""
    assert word in STATES


@pytest.mark.parametrize("reason", listed("reasons"))
def test_no_reason_of_slurm_is_unknown(reason: str) -> None:
    """The list is that of Slurm's own library."""
    assert advice(reason) is not None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("DependencyNeverSatisfied", "cancel it"),
        ("PartitionTimeLimit", "slurm.sbatch.time"),
        ("AssocMaxJobsLimit", "when other jobs have ended"),
        ("QOSMaxSubmitJobPerUserLimit", "when other jobs have ended"),
        ("MaxSubmitJobsPerAccount", "when other jobs have ended"),
        ("QOSMaxNodePerJobLimit", "this job alone"),
        ("AssocMaxWallDurationPerJobLimit", "this job alone"),
        ("QOSMinCpuNotSatisfied", "this job alone"),
        ("AssocGrpCPUMinutesLimit", "budget"),
        ("InvalidAccount", "slurm.sbatch.account"),
        ("JobHeldUser", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:node4", "down, drained or reserved"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs", "down, drained or reserved"),
    ],
)
def test_a_reason_comes_with_what_can_be_done(reason: str, words: str) -> None:
    """Of a job that waits; the reason itself stands before it, in Slurm's words."""
    told = explained(fact("PENDING", reason=reason).reason)
    assert told.startswith(f"{reason}: ") and words in told


def test_what_passes_by_itself_comes_without_advice() -> None:
    assert explained("Priority") == "Priority"
    assert explained("a word that Slurm has not") == "a word that Slurm has not"
    assert fact("RUNNING", reason="None").reason == ""


def test_a_word_of_a_later_slurm_concludes_nothing() -> None:
    """It is shown, and the attempt counts as alive."""
    told = fact("HIBERNATED", exit_code=1)
    assert told.state is SchedulerState.HELD and "HIBERNATED" in told.reason
    assert told.exit_code is None


def test_times_are_taken_where_they_are_no_forecast() -> None:
    """Of a job that waits, Slurm tells when it might start; of one that runs, when it would be ended."""
    given = {"started_at": 10.0, "ended_at": 20.0, "nodes": "node1"}
    waits, runs = fact("PENDING", **given), fact("RUNNING", **given)  # type: ignore[arg-type]
    assert (waits.started_at, waits.ended_at) == (None, None)
    assert (runs.started_at, runs.ended_at) == (10.0, None)
    assert fact("CANCELLED", started_at=20.0, ended_at=20.0).started_at is None
    assert fact("COMPLETING", **given).ended_at == 20.0  # type: ignore[arg-type]


def test_a_log_that_could_not_be_opened_is_a_command_that_never_began() -> None:
    """ "0:53" in Slurm: nothing of the user's was run, as when a guard cannot claim."""
    told = fact("FAILED", reason="JobLaunchFailure", signal=53, nodes="node1")
    assert (told.exit_code, told.signal) == (EXIT_CLAIM_FAILED, 0)
    assert "could not be opened on node1" in told.reason


def test_out_of_memory_is_a_kill() -> None:
    """Slurm's "0:125" is no signal."""
    assert fact("OUT_OF_MEMORY", signal=125).signal == 9
