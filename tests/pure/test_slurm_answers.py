"""What Slurm's commands print, as a real cluster printed it (scripts/capture_slurm.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.core.model import SchedulerState
from oellm_autoexp.schedulers.slurm import answers
from oellm_autoexp.schedulers.slurm.answers import SEPARATOR, Effect, Row

DATA = Path(__file__).parents[1] / "data" / "slurm"
S = SchedulerState


def queue() -> list[Row]:
    return list(answers.queue_rows((DATA / "queue.txt").read_text(), "dev"))


def account() -> list[Row]:
    return list(answers.account_rows((DATA / "account.txt").read_text(), "dev"))


#: Case: state, reason's beginning, exit code, signal. As squeue tells it.
QUEUED = {
    "completed": (S.COMPLETED, "", 0, 0),
    "exit3": (S.FAILED, "NonZeroExitCode", 3, 0),
    "exit143": (S.FAILED, "NonZeroExitCode", 143, 0),
    "killed": (S.FAILED, "JobLaunchFailure", 0, 9),
    "no-log": (S.FAILED, "JobLaunchFailure (0:53", 78, 0),
    "timeout": (S.TIMEOUT, "TimeLimit", 0, 15),
    "cancelled": (S.CANCELLED, "", 0, 9),
    "cancelled-pending": (S.CANCELLED, "", 0, 0),
    "node-fail": (S.NODE_FAIL, "NodeDown", 0, 0),
    "preempted": (S.PREEMPTED, "", 0, 15),
    "held": (S.PENDING, "JobHeldUser", None, 0),
    "begin": (S.PENDING, "BeginTime", None, 0),
    "too-long": (S.PENDING, "PartitionTimeLimit", None, 0),
    "too-many-nodes": (S.PENDING, "PartitionNodeLimit", None, 0),
    "never": (S.PENDING, "DependencyNeverSatisfied", None, 0),
    "special": (S.PENDING, "job requeued in held state", None, 0),
    "suspended": (S.HELD, "", None, 0),
    "running": (S.RUNNING, "", None, 0),
    "requeued": (S.RUNNING, "", None, 0),
}


@pytest.mark.parametrize("case", QUEUED)
def test_squeue_tells_of_every_state(case: str) -> None:
    """One row for each job, whatever became of it."""
    (row,) = [row for row in queue() if row.carries(case)]
    state, reason, code, signal = QUEUED[case]
    fact = row.fact
    assert (fact.state, fact.exit_code, fact.signal) == (state, code, signal)
    assert fact.reason.startswith(reason) and bool(reason) == bool(fact.reason)
    assert (row.comment, row.cluster, row.task) == (case, "dev", 0)
    assert fact.restart_count == (1 if case in ("requeued", "special") else 0)
    assert (fact.started_at is not None) == (state is not S.PENDING and case != "cancelled-pending")
    assert bool(fact.nodes) == (state is not S.PENDING and case != "cancelled-pending")


#: As sacct tells it, where that differs: it takes 128 off an exit code, and names who cancelled.
ACCOUNTED = {
    "completed": (S.COMPLETED, "", 0, 0),
    "preempted": (S.PREEMPTED, "", 0, 0),
    "exit3": (S.FAILED, "", 3, 0),
    "exit143": (S.FAILED, "", 15, 0),
    "killed": (S.FAILED, "", 0, 9),
    "no-log": (S.FAILED, "(0:53", 78, 0),
    "timeout": (S.TIMEOUT, "", 0, 0),
    "cancelled": (S.CANCELLED, "by 0 (user id)", 0, 0),
    "node-fail": (S.NODE_FAIL, "", 0, 0),
}


@pytest.mark.parametrize("case", ACCOUNTED)
def test_sacct_tells_of_every_end(case: str) -> None:
    """The last row of a job counts: a requeued one has several."""
    row = [row for row in account() if row.carries(case)][-1]
    state, reason, code, signal = ACCOUNTED[case]
    fact = row.fact
    assert (fact.state, fact.exit_code, fact.signal) == (state, code, signal)
    assert fact.reason.strip().startswith(reason)


def test_a_requeued_job_has_a_row_for_each_start_in_sacct() -> None:
    """Oldest first."""
    rows = [row.fact for row in account() if row.carries("requeued")]
    assert [fact.state for fact in rows] == [S.PENDING, S.RUNNING]
    assert rows[0].started_at is None and rows[1].started_at is not None


def test_the_tasks_of_an_array_are_told_apart() -> None:
    """Ended, running, and those that wait for their turn."""
    rows = {row.task: row for row in queue() if row.carries("array")}
    assert {row.array for row in rows.values()} == {rows[0].array}
    assert [rows[task].id for task in (0, 9, 600)] == [f"{rows[0].array}_{task}" for task in (0, 9, 600)]
    states = [rows[task].fact.state for task in (0, 9, 600)]
    assert states == [S.COMPLETED, S.FAILED, S.RUNNING]


def test_tasks_that_never_began_are_one_row_of_sacct() -> None:
    """A task with a row of its own is told by that, wherever it stands."""
    lines = [
        ("7_0", "COMPLETED", "0:0", "None", "100", "200", "node1", "dev", "a.a"),
        ("7_1", "CANCELLED by 0", "0:0", "None", "Unknown", "200", "None assigned", "dev", "a.a"),
        ("7_[0-2,5,8-9%2]", "PENDING", "0:0", "None", "Unknown", "Unknown", "None assigned", "dev", "a.a"),
        ("7_[3", "PENDING", "0:0", "None", "Unknown", "Unknown", "None assigned", "dev", "a.a"),
    ]
    rows = answers.account_rows("\n".join(map(SEPARATOR.join, lines)), "dev")
    last = {row.id: row.fact.state for row in rows}
    assert last.pop("7_[3") is S.PENDING
    waiting = dict.fromkeys(("7_2", "7_5", "7_8", "7_9"), S.PENDING)
    assert last == {"7_0": S.COMPLETED, "7_1": S.CANCELLED, **waiting}


def test_names_of_other_jobs_do_no_harm() -> None:
    """One has a bar and a line break in its name and comment: what is no row is passed over."""
    text = (DATA / "queue.txt").read_text()
    assert "strange|name\nof two lines" in text
    assert {row.comment for row in queue()} == {*QUEUED, "array", "fails", "preempting"}


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    """What is no row is none."""
    list(answers.queue_rows(text, "dev"))
    list(answers.account_rows(text, "dev"))
    answers.submitted(text)
    answers.cluster_facts(text)
    answers.refusal(1, text)
    assert "\n" not in answers.plain(text)


@given(st.lists(st.text(alphabet=st.sampled_from(f"0123456789:_{SEPARATOR}NA\n")), min_size=13))
def test_any_fields_are_read_without_an_error(fields: list[str]) -> None:
    """Numbers where words are meant, words where numbers are."""
    text = SEPARATOR.join(fields)
    list(answers.queue_rows(text, "dev"))
    list(answers.account_rows(text, "dev"))


# ---------------------------------------------------------------- sbatch


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("7\n", ("7", "")),
        ("7;lumi\n", ("7", "lumi")),
        ("Your budget: 12 hours\n7\n", ("7", "")),
        ("", None),
        ("Submitted batch job 7\n", None),
    ],
)
def test_an_accepted_submission_names_its_id(output: str, found: tuple[str, str] | None) -> None:
    """And, among several clusters, the one that has it; a site's plug-in may print more."""
    assert answers.submitted(output) == found


PREFIX = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("status", "text", "effect"),
    [
        (None, "", Effect.UNKNOWN),
        (-9, "", Effect.UNKNOWN),
        (0, "", Effect.UNKNOWN),
        (1, PREFIX + "Socket timed out on send/recv operation", Effect.UNKNOWN),
        (1, PREFIX + "Unable to contact slurm controller (receive failure)", Effect.UNKNOWN),
        (1, PREFIX + "Zero Bytes were transmitted or received", Effect.UNKNOWN),
        (1, PREFIX + "Unable to contact slurm controller (connect failure)", Effect.SILENT),
        (1, "sbatch: error: Munge encode failed: Failed to access socket", Effect.SILENT),
        (1, PREFIX + "Slurm backup controller in standby mode", Effect.SILENT),
        (
            1,
            "sbatch: error: AssocMaxSubmitJobLimit\n" + PREFIX + "Job violates accounting/QOS policy (job "
            "submit limit, user's size and/or time limits)",
            Effect.LIMIT,
        ),
        (1, "sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + PREFIX + "Job violates …", Effect.LIMIT),
        (1, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", Effect.LIMIT),
        (1, PREFIX + "Invalid partition name specified", Effect.REFUSED),
        (1, PREFIX + "Invalid account or account/partition combination specified", Effect.REFUSED),
        (1, PREFIX + "Invalid qos specification", Effect.REFUSED),
        (1, PREFIX + "Requested node configuration is not available", Effect.REFUSED),
        (1, PREFIX + "Requested time limit is invalid (missing or exceeds some limit)", Effect.REFUSED),
        (1, PREFIX + "Invalid job array specification", Effect.REFUSED),
        (1, "sbatch: error: Batch script is empty!", Effect.REFUSED),
        (255, "sbatch: error: Invalid --time specification", Effect.REFUSED),
        (255, "sbatch: unrecognized option '--bogus'", Effect.REFUSED),
        (1, PREFIX + "Requested partition configuration not available now", Effect.NONE),
        (1, PREFIX + "Required partition not available (inactive or drain)", Effect.NONE),
        (1, PREFIX + "Unspecified error", Effect.NONE),
        (1, "sbatch: error: something that a plug-in of the site says", Effect.NONE),
    ],
)
def test_what_a_failed_submission_has_done(status: int | None, text: str, effect: Effect) -> None:
    """Heard or not is never guessed; a limit is no mistake; what is not known is asked again."""
    assert answers.refusal(status, text) is effect


#: Errors of Slurm's library with which a request may have been carried out all the same.
UNHEARD = (
    "Unexpected message received",
    "Message send failure",
    "Message receive failure",
    "Communication shutdown failure",
    "Unable to contact slurm controller (send failure)",
    "Unable to contact slurm controller (receive failure)",
    "Unable to contact slurm controller (shutdown failure)",
    "Received zero length message",
    "Received message length < 0",
    "Failed to send entire message",
    "Header lengths are longer than data received",
    "Socket timed out on send/recv operation",
    "Zero Bytes were transmitted or received",
)


@pytest.mark.parametrize("text", (DATA / "errors.txt").read_text().splitlines())
def test_an_answer_that_got_lost_is_never_taken_for_a_refusal(text: str) -> None:
    """Of all errors that Slurm's library knows, exactly those of a broken conversation leave it open."""
    assert (answers.refusal(1, PREFIX + text) is Effect.UNKNOWN) == (text in UNHEARD)


def test_an_error_is_told_on_one_line() -> None:
    text = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: y\n"
    assert answers.plain(text) == "invalid partition specified: x; Batch job submission failed: y"


# ---------------------------------------------------------------- what a cluster is like


def test_a_cluster_says_what_it_is_like() -> None:
    facts = answers.cluster_facts((DATA / "config.txt").read_text())
    assert facts is not None
    assert (facts.name, facts.accounting, facts.max_array_tasks) == ("dev", True, 1001)
    assert (facts.message_timeout_s, facts.kill_wait_s) == (5.0, 4.0)
    assert facts.version.startswith("22.05")
    assert answers.cluster_facts("slurm_load_ctl_conf error") is None
