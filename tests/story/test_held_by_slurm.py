"""What Slurm itself keeps from beginning or from going on: the loop waits, or says why it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from campaign import Campaign

from oellm_autoexp.core import events as ev
from oellm_autoexp.services.views import told
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects

PLAY = {"work": "2h", "log_every": 300}


def test_a_suspended_job_is_no_stall_and_goes_on(tmp_path: Path) -> None:
    """Three hours without a line, with a threshold of one: nobody could have written it."""
    suspend = {"kind": "suspend", "at": "1h", "lasts": "3h"}
    config = {"monitoring": {"class_name": "SlurmLogMonitor", "inactivity_threshold_seconds": 3600}}
    made = Campaign(tmp_path / "c", {"jobs": [PLAY], "faults": [suspend]}, config=config)
    job = made.run().jobs["j0"]
    assert (job.state.value, len(job.attempts)) == ("succeeded", 1)
    assert made.of(ev.CancelRequested) == [] == made.of(ev.AttemptRequeued)
    assert made.events[-1].at - made.events[0].at > 5 * 3600


def test_what_cannot_meet_its_deadline_is_not_tried_again(tmp_path: Path) -> None:
    """It was never begun, so that it has reached no time limit; a person has to change the config."""
    wide: dict[str, Any] = {"slurm": {"sbatch": {"nodes": 2, "time": "03:00:00", "deadline": "now+4hours"}}}
    scenario = {"cluster": {"nodes": 2}, "jobs": [{"match": "j0", "work": "2.5h"}, PLAY]}
    made = Campaign(tmp_path / "c", scenario, jobs=2, config=wide)
    session = made.run()
    late = session.jobs["j1"]
    assert session.jobs["j0"].state.value == "succeeded"
    assert (late.state.value, late.mode, len(late.attempts)) == ("failed", "crash.config", 1)
    assert "it could not end before its deadline" in late.reason


def test_a_dependency_is_waited_for_and_named(tmp_path: Path) -> None:
    """Slurm's reasons for waiting stand in the job's history; what can never be waits for a person."""
    points = [{"i": 0}, {"i": 1, "slurm.sbatch.dependency": "afterok:1"}]
    config = {"sweep": {"type": "list", "configs": points, "name_template": "j{i}"}}
    fails = {"match": "j0", "work": "1h", "mishaps": [{"after": "30min", "attempts": 1}]}
    made = Campaign(tmp_path / "c", {"jobs": [fails, PLAY]}, config=config)
    loop = made.submit()
    while loop.session.jobs["j0"].state.value != "succeeded":
        loop.tick()
        loop._clock.wait(60.0)
    waits = [event for event in made.of(ev.AttemptPending) if event.job == "j1"]
    assert [event.reason for event in waits] == ["Dependency", "DependencyNeverSatisfied"]
    assert "cancel it, and look at slurm.sbatch.dependency" in told(waits[1])
    assert loop.session.jobs["j1"].state.value == "pending"
    inbox.drop(made.paths, Effects(), "cancel", {"jobs": ["j1"]}, now=loop._clock.now())
    assert made.run().jobs["j1"].state.value == "cancelled"
