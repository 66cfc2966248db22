"""Directives of a job script for Slurm."""

from __future__ import annotations

from typing import Any

import pytest

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.schedulers.slurm_text import directives


def test_options_become_directives_and_overrides_win() -> None:
    """Either spelling of a key, flags, short options, lists and values with blanks."""
    slurm: dict[str, Any] = {
        "sbatch": {"gpus_per_node": 4, "nodes": 1, "exclusive": True, "requeue": False, "qos": None, "n": 2},
        "sbatch_overrides": {"nodes": 8, "nodelist": ["a1", "a2"], "comment": "it's a run"},
        "sbatch_extra_directives": ["--hint=nomultithread", "#SBATCH --signal=B:USR1@60"],
    }
    assert directives("job", slurm) == [
        "#SBATCH --job-name=job",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --nodes=8",
        "#SBATCH --exclusive",
        "#SBATCH -n 2",
        "#SBATCH --nodelist=a1,a2",
        """#SBATCH --comment='it'"'"'s a run'""",
        "#SBATCH --hint=nomultithread",
        "#SBATCH --signal=B:USR1@60",
    ]


@pytest.mark.parametrize(
    ("slurm", "key"),
    [
        ({"sbatch": {"comment": "a\nrm -rf"}}, r"slurm\.sbatch\.comment"),
        ({"sbatch": {"comment": {"a": 1}}}, r"slurm\.sbatch\.comment"),
        ({"sbatch_extra_directives": ["--x\n#SBATCH --y"]}, r"slurm\.sbatch_extra_directives\.0"),
    ],
)
def test_what_is_not_one_line_is_refused(slurm: dict[str, Any], key: str) -> None:
    """A value cannot bring commands of its own into the script."""
    with pytest.raises(ConfigError, match=key):
        directives("job", slurm)
