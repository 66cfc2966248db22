"""Times, nodes and GPUs as people write them for Slurm, and what a plan may cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.model import Resources
from oellm_autoexp.core.times import format_time, parse_time
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.planning.resources import resources_of, totals


@settings(derandomize=True)
@given(st.integers(1, 10**8))
def test_a_time_that_was_written_is_read_as_the_same_seconds(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (5, 300),
        ("5", 300),
        ("5:30", 330),
        ("1:02:03", 3723),
        ("2-3", 183600),
        ("2-3:30", 185400),
        ("2-3:30:10", 185410),
        (" 24:00:00 ", 86400),
        ("90:00", 5400),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_every_form_of_slurm_is_read(text: Any, seconds: int | None) -> None:
    """Minutes; minutes and seconds; hours to seconds; and each with days."""
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "1-", "-", "1.5", "0", "00:00:00", "١"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_time(text)


@pytest.mark.parametrize(
    ("sbatch", "nodes", "gpus"),
    [
        ({}, 1, 0),
        ({"nodes": 4, "gpus-per-node": 8}, 4, 32),
        ({"nodes": 4, "gpus_per_node": "a100:8"}, 4, 32),
        ({"nodes": 2, "gpus": 3}, 2, 3),
        ({"gpus": "a100:2,v100:1"}, 1, 3),
        ({"nodes": "2-4", "gres": "gpu:a100:4(S:0-1),lustre:1"}, 4, 16),
        ({"gres": "gpu"}, 1, 1),
        ({"gres": "gpu:2"}, 1, 2),
        ({"gres": "mps:100"}, 1, 0),
        ({"tres-per-node": "gres/gpu:3", "nodes": 2}, 2, 6),
        ({"gpus-per-task": 1, "ntasks": 6}, 1, 6),
        ({"gpus-per-task": 2, "ntasks-per-node": 4, "nodes": 2}, 2, 16),
    ],
)
def test_nodes_and_gpus_are_counted(sbatch: dict[str, Any], nodes: int, gpus: int) -> None:
    """However GPUs are asked for, the number of all nodes together is known."""
    assert resources_of({"sbatch": sbatch}) == Resources(nodes=nodes, gpus=gpus)


def test_an_override_wins_and_a_mistake_names_its_key() -> None:
    """The error says which key holds what cannot be read."""
    slurm = {"sbatch": {"nodes": 1}, "sbatch_overrides": {"nodes": 2, "time": "1:00:00"}}
    assert resources_of(slurm) == Resources(nodes=2, time_limit_s=3600)
    with pytest.raises(ConfigError, match=r"slurm\.sbatch_overrides\.time: `soon` is not a time"):
        resources_of({"sbatch_overrides": {"time": "soon"}})
    with pytest.raises(ConfigError, match=r"slurm\.sbatch\.gpus-per-node"):
        resources_of({"sbatch": {"gpus-per-node": "many"}})
    assert resources_of({"sbatch": {"signal": "USR1@300"}}).signal == "B:USR1@300"
    with pytest.raises(ConfigError, match=r"slurm\.sbatch\.signal: .*no signal `SOON`"):
        resources_of({"sbatch": {"signal": "SOON"}})


def test_the_cost_of_a_plan_counts_every_allowed_restart() -> None:
    """GPU-hours of one attempt each, and with all restarts; unknown where a job has no time limit."""
    big = Resources(nodes=2, gpus=8, time_limit_s=7200)
    found = totals([(big, 2 * 7200), (big, 0), (Resources(), 5)])
    assert (found.jobs, found.nodes, found.gpus) == (3, 5, 16)
    assert (found.gpu_hours, found.gpu_hours_with_retries) == (32.0, 64.0)
    assert found.cost == "at most 32 GPU-hours in one attempt each, 64 with counted restarts"
    assert totals([(Resources(gpus=1), 0)]).gpu_hours is None
    assert "no time limit" in totals([(Resources(gpus=1), 0)]).cost
    assert totals([(big, None)]).gpu_hours_with_retries is None
