"""Directives of a job script for Slurm."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from oellm_autoexp.config.sockets import Submission, Task
from oellm_autoexp.errors import ConfigError, SubmitRejected
from oellm_autoexp.schedulers.slurm.text import (
    directives,
    left_until_deadline,
    options_of,
    options_of_shell,
    submission_options,
)


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


def test_a_signal_goes_to_the_script_which_hands_it_on() -> None:
    """Slurm would send it to the steps of srun alone, of which there may be none."""
    lines = directives("job", {"sbatch": {"signal": "SIGUSR1@300"}})
    assert lines[1:] == ["#SBATCH --signal=B:USR1@300"]
    assert directives("job", {"sbatch": {"signal": None}})[1:] == []
    for wrong in ("USR3@60", "USR1@soon", 99):
        with pytest.raises(ConfigError, match=r"slurm\.sbatch\.signal.*write USR1@300"):
            directives("job", {"sbatch": {"signal": wrong}})


def test_what_is_left_until_a_deadline_is_in_whole_minutes() -> None:
    """Where that is none, or the form is another, sbatch has the word."""
    now = datetime(2026, 12, 24, 17, 28, 30).timestamp()
    of = lambda text: left_until_deadline(f"#!/bin/sh\n#SBATCH --deadline={text}\ntrue\n", now)  # noqa: E731
    assert [of("2026-12-24T18:00"), of("2026-12-24T18:00:31")] == [1860, 1920]
    assert [of(text) for text in ("2026-12-24T17:29", "2026-12-23T18:00", "now+1hour", "T", "")] == [None] * 5


def test_what_a_shell_would_have_sbatch_do_is_named() -> None:
    """By the names of sbatch(1), which are not always those of its options."""
    shell = {
        "SBATCH_TIMELIMIT": "1:00",
        "SBATCH_EXCLUSIVE": "",
        "SBATCH_GPUS_PER_NODE": "a100:4",
        "SBATCH_MEM_PER_NODE": "4G",
        "SBATCH_ARRAY_INX": "1-3",
        "SBATCH_": "x",
        "SLURM_CONF": "/etc/slurm.conf",
        "MY_SBATCH_QOS": "x",
    }
    assert options_of_shell(shell) == {
        "SBATCH_ARRAY_INX": "--array=1-3",
        "SBATCH_EXCLUSIVE": "--exclusive",
        "SBATCH_GPUS_PER_NODE": "--gpus-per-node=a100:4",
        "SBATCH_MEM_PER_NODE": "--mem=4G",
        "SBATCH_TIMELIMIT": "--time=1:00",
    }


def test_what_waits_behind_another_job_depends_on_its_end_alone() -> None:
    """The option takes the place of the script's, which the job before has waited for."""
    script = "#!/bin/bash\n#SBATCH --dependency=afterok:7\n"
    tasks = (Task(name="a", script_path="s", log_path="l", attempt_dir="d"),)
    behind = submission_options(Submission(token="t", tasks=tasks, after="12_3"), script)
    assert "--dependency=afterany:12_3" in behind
    plain = submission_options(Submission(token="t", tasks=tasks), script)
    assert not any(option.startswith("--dependency") for option in plain)


def test_what_waits_behind_other_jobs_depends_on_what_its_script_does_too() -> None:
    """Nobody has waited for that yet. Beside one of several, which has no form for both, it cannot wait."""
    tasks = (Task(name="a", script_path="s", log_path="l", attempt_dir="d"),)
    behind = Submission(token="t", tasks=tasks, after="12_3:14", keeps_dependency=True)
    both = submission_options(behind, "#!/bin/bash\n#SBATCH -d afterok:7,singleton\n")
    assert "--dependency=afterany:12_3:14,afterok:7,singleton" in both
    assert "--dependency=afterany:12_3:14" in submission_options(behind, "#!/bin/bash\n")
    with pytest.raises(SubmitRejected, match="beside its own"):
        submission_options(behind, "#!/bin/bash\n#SBATCH --dependency=afterok:7?afterok:8\n")


def test_directives_are_read_in_every_form_that_sbatch_takes() -> None:
    """Long and short, with the value attached, behind `=` or in the next word; several in a line; quoted."""
    script = """#!/bin/bash
#SBATCH -N2 -n 4 --time=1:00 # --mem=1G
#SBATCH --exclusive -c8 --job-name="two words"
# a comment
##SBATCH --qos=low

#SBATCH -a1-3 --mem 16G
true
#SBATCH --hold
"""
    assert options_of(script) == {
        "nodes": "2",
        "ntasks": "4",
        "time": "1:00",
        "exclusive": "",
        "cpus-per-task": "8",
        "job-name": "two words",
        "array": "1-3",
        "mem": "16G",
    }
