"""What has become of experiments that were launched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from oellm_autoexp.core.model import Job, JobState
from oellm_autoexp.services.experiments.grid_search import write

#: What stands for the id of a job that was only planned.
DRY_RUN_ID = "DRY_RUN"


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """What has become of one experiment so far. As text it is the id of its job."""

    experiment_name: str
    success: bool
    job_id: str | None = None
    #: As `status` shows it; "planned" in a dry run.
    state: str = "planned"
    error_message: str | None = None
    sbatch_script_path: Path | None = None
    output_dir: Path | None = None
    #: The text of the script.
    script: str = ""

    @property
    def error(self) -> str | None:
        """`error_message`."""
        return self.error_message

    def __str__(self) -> str:
        return self.job_id or ""


@dataclass(frozen=True, kw_only=True)
class GridSearchResult:
    """What has become of a search so far; its items are the ids of its jobs."""

    name: str
    results: Sequence[ExperimentResult]
    #: What `oellm-autoexp status` takes.
    config_path: Path | None = None

    @property
    def total_experiments(self) -> int:
        return len(self.results)

    @property
    def submitted_jobs(self) -> list[str]:
        """The ids of the jobs that the scheduler has taken."""
        return [each.job_id for each in self.results if each.job_id is not None]

    @property
    def failed_submissions(self) -> dict[str, str]:
        """What went wrong, by experiment."""
        return {each.experiment_name: each.error_message or "" for each in self.results if not each.success}

    @property
    def success_rate(self) -> float:
        """Percent of the experiments."""
        good = sum(each.success for each in self.results)
        return 100.0 * good / len(self.results) if self.results else 0.0

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[str]:
        return iter(self.submitted_jobs)

    def save_summary(self, path: str | Path) -> None:
        """Save it as JSON.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        rows = [
            {
                "experiment_name": each.experiment_name,
                "job_id": each.job_id,
                "state": each.state,
                "error": each.error_message,
                "output_dir": str(each.output_dir) if each.output_dir is not None else None,
            }
            for each in self.results
        ]
        data = {"name": self.name, "total": len(rows), "success_rate": self.success_rate, "experiments": rows}
        write(Path(path), json.dumps(data, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class SLURMJobResult(ExperimentResult):
    """What has become of one experiment. As text it is the id of its job.

    `success`: the session has it, and it has not failed. `job_id` is None while it waits for its turn
    (`state` "waiting"), and "DRY_RUN" where nothing was to be submitted.
    """

    #: In UTC; None until the scheduler has it.
    submission_time: datetime | None = None
    #: What is different from what the template says.
    notices: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BatchSubmissionResult:
    """What has become of several experiments, in the order in which they were given."""

    job_results: Sequence[SLURMJobResult] = ()

    @property
    def total_experiments(self) -> int:
        return len(self.job_results)

    @property
    def successful_jobs(self) -> list[str]:
        """The ids of the jobs that the scheduler has taken."""
        return [each.job_id for each in self.job_results if each.success and each.job_id is not None]

    @property
    def waiting_experiments(self) -> list[str]:
        """Those that are submitted when it is their turn."""
        return [each.experiment_name for each in self.job_results if each.success and each.job_id is None]

    @property
    def failed_jobs(self) -> dict[str, str]:
        """What went wrong, by experiment."""
        return {each.experiment_name: each.error or "" for each in self.job_results if not each.success}

    @property
    def success_count(self) -> int:
        """Of those that have an id or wait for their turn."""
        return sum(each.success for each in self.job_results)

    @property
    def failure_count(self) -> int:
        return self.total_experiments - self.success_count

    @property
    def success_rate(self) -> float:
        """Percent of the experiments."""
        return 100.0 * self.success_count / self.total_experiments if self.job_results else 0.0


def standing(job: Job) -> dict[str, Any]:
    """The fields of a result that say what has become of a job so far."""
    attempt = job.attempt
    failed = job.state in (JobState.FAILED, JobState.CANCELLED)
    return {
        "success": not failed,
        "job_id": attempt.ref.id if attempt is not None and attempt.ref is not None else None,
        "state": job.state.value,
        "error_message": job.reason if failed else None,
    }


def result_of(job: Job) -> SLURMJobResult:
    """What has become of a job so far."""
    attempt = job.attempt
    at = attempt.ref.submitted_at if attempt is not None and attempt.ref is not None else 0.0
    return SLURMJobResult(
        experiment_name=job.spec.name,
        sbatch_script_path=Path(job.spec.script_path),
        output_dir=Path(job.spec.output_dir),
        submission_time=datetime.fromtimestamp(at, tz=timezone.utc) if at else None,
        **standing(job),
    )


def failed_result(name: str, why: str) -> SLURMJobResult:
    """That an experiment was not submitted."""
    return SLURMJobResult(experiment_name=name, success=False, state="refused", error_message=why)
