"""A fake cluster without a disk: what its jobs write is kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.schedulers.fake.cluster import FakeCluster
from oellm_autoexp.schedulers.fake.queue import FakeJob
from oellm_autoexp.schedulers.fake.run import JobRequest
from oellm_autoexp.schedulers.fake.scenario import ClusterFault, Scenario


class Memory:
    """Logs and whole files by path."""

    def __init__(self) -> None:
        self.logs: dict[str, str] = {}
        self.files: dict[str, str] = {}
        #: Attempts that the leader has given up, by their directories.
        self.given_up: set[str] = set()

    def append(self, path: str, text: str) -> None:
        self.logs[path] = self.logs.get(path, "") + text

    def write(self, path: str, text: str) -> None:
        self.files[path] = text

    def withdrawn(self, attempt_dir: str) -> bool:
        return attempt_dir in self.given_up


class FakeWorld:
    """A cluster under a scenario as a file would say it; times are seconds after its start."""

    def __init__(self, **scenario: Any) -> None:
        self.memory = Memory()
        self.scenario = scenarios.parse(scenario, Scenario)
        self.cluster = FakeCluster(self.scenario, self.memory)

    @property
    def now(self) -> float:
        return self.cluster.now - self.scenario.start

    def to(self, seconds: float) -> None:
        self.cluster.advance(self.scenario.start + seconds)

    def submit(self, *names: str, **request: Any) -> Sequence[FakeJob]:
        return self.cluster.submit("-".join(names), [self.request(name, **request) for name in names])

    def one(self, name: str = "one", **request: Any) -> FakeJob:
        return self.submit(name, **request)[0]

    @staticmethod
    def request(name: str, **request: Any) -> JobRequest:
        attempt = request.get("attempt", 1)
        places = {"log_path": f"/logs/{name}.{attempt}", "attempt_dir": f"/attempts/{name}/{attempt}"}
        return JobRequest(name=name, **{**places, **request})

    def befall(self, kind: Any, **fault: Any) -> None:
        self.cluster.befall(ClusterFault(kind=kind, at=0.0, **fault))

    def word(self, job: FakeJob) -> tuple[str, str, str]:
        """State, reason and ExitCode, as squeue and scontrol show them."""
        return job.state, job.reason, f"{job.exit_code}:{job.signal}"
