"""A config played on the fake cluster in this process: its session, its events, and the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Job
from oellm_autoexp.core.session import Session
from oellm_autoexp.monitor.loop import Loop
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient
from oellm_autoexp.services import calls, submit
from oellm_autoexp.services.lead import Watch, lead
from oellm_autoexp.services.session import replay
from oellm_autoexp.store import journal

#: The first moment of a rehearsal, 2026-01-01.
START = 1_767_225_600.0


@dataclass
class Campaign:
    """A sweep of `jobs` jobs (or the config's own sweep) under a scenario, in a directory."""

    root: Path
    scenario: Mapping[str, Any]
    jobs: int = 1
    config: Mapping[str, Any] | None = None
    overrides: Sequence[str] = ()
    loop: Loop | None = None

    def submit(self, *overrides: str, on_event: Callable[[ev.Event], None] = lambda _event: None) -> Loop:
        """What `submit --fake` does, before the first turn."""
        self.root.mkdir(exist_ok=True)
        whole = {
            "project": {"name": "t", "base_output_dir": str(self.root / "out")},
            "backend": {"class_name": "NullBackend"},
            "sweep": {"axes": {"i": list(range(self.jobs))}, "name_template": "j{i}"},
            **(self.config or {}),
        }
        (self.root / "c.yaml").write_text(json.dumps(whole))
        (self.root / "s.yaml").write_text(json.dumps(self.scenario))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(self.root / "home"))
            plan = calls.planned(
                self.root / "c.yaml",
                overrides=[*self.overrides, *overrides],
                scheduler="fake",
                scenario=self.root / "s.yaml",
            )
            self.paths = plan.loaded.paths
            _, loop = submit.submit(plan, watch=Watch(on_event=on_event))
        assert loop is not None
        self.loop = loop
        return loop

    def lead(self) -> Loop:
        """What `monitor` does, before the first turn; the leader before is gone."""
        self.loop = lead(self.paths)
        return self.loop

    def run(self, *overrides: str) -> Session:
        """To its end."""
        loop = self.loop or self.submit(*overrides)
        loop.run()
        loop.close()
        self.loop = None
        assert replay(self.paths) == loop.session
        return loop.session

    @property
    def cluster(self) -> Any:
        assert self.loop is not None
        scheduler = self.loop._scheduler
        assert isinstance(scheduler, FakeSlurmClient)
        return scheduler.played

    @property
    def events(self) -> Sequence[ev.Event]:
        return journal.read(self.paths).events

    def of(self, kind: type[ev.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def ran_on(job: Job) -> list[str]:
    """The nodes of each attempt."""
    return [attempt.nodes for attempt in job.attempts]
