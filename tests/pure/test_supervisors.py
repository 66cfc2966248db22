"""The text that has a loop started again: other lines of a crontab stay, every path arrives whole."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oellm_autoexp.rendering import supervisors
from oellm_autoexp.rendering.supervisors import cron_lines, job, script, unit, with_lines, without_lines

PATH, NAME = "/home/me/daemon/lrsize-1a2b3c.sh", "lrsize-1a2b3c"
ODD = '/data/my dir/100% $HOME\'s "x" \\ é/a.sh'


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example("# no newline at the end")
@example(f"@reboot other {supervisors.mark('lrsize-1a2b3c4')}\n")
@example("5 * * * * a\x0cb\u2028c\r\n")
def test_a_crontab_keeps_its_other_lines(crontab: str) -> None:
    """Installed twice is installed once; uninstalled, it is what it was, but for a missing last line end."""
    before = crontab if not crontab or crontab.endswith("\n") else f"{crontab}\n"
    after = with_lines(crontab, PATH, NAME)
    assert after == before + "".join(f"{line}\n" for line in cron_lines(PATH, NAME))
    assert with_lines(after, PATH, NAME) == after
    assert without_lines(after, NAME) == before
    assert without_lines(crontab, NAME) == crontab


def test_sessions_share_a_crontab() -> None:
    """The lines of one are not those of another, whose name may begin alike."""
    both = with_lines(with_lines("", PATH, NAME), f"{PATH}2", f"{NAME}2")
    assert len(both.splitlines()) == 4
    assert without_lines(both, NAME) == with_lines("", f"{PATH}2", f"{NAME}2")


def test_cron_gives_the_shell_the_path_as_it_is() -> None:
    """A per cent sign would end the command and begin its input (crontab(5))."""
    for line in cron_lines(ODD, NAME):
        when, _, command = line.partition("/bin/sh ")
        assert when in ("@reboot ", "*/10 * * * * ")
        handed_over = command.replace(r"\%", "%")
        assert "%" not in command.replace(r"\%", "")
        assert shlex.split(handed_over, comments=True) == [ODD, "start", "--revive", ">/dev/null"]


def test_the_script_runs_the_program_in_what_it_needs_of_the_shell(tmp_path: Path) -> None:
    """Its PATH and where Slurm is; no secret, and nothing where the session's directory is not there."""
    state = tmp_path / "a $(touch x) 'b'"
    environ = {"PATH": "/usr/bin:/bin:/my tools", "SLURM_CONF": "/etc/s.conf", "HF_TOKEN": "hidden"}
    text = script(["printenv", "-0", "PATH", "SLURM_CONF", "HF_TOKEN"], str(state), environ)
    assert "hidden" not in text
    file = tmp_path / "script.sh"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["/bin/sh", str(file), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, env={})

    file.write_text(text)
    gone = run("run")
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, "", "")
    state.mkdir()
    assert run("run").stdout.split("\0")[:2] == ["/usr/bin:/bin:/my tools", "/etc/s.conf"]
    file.write_text(script(["printf", "%s|"], str(state), environ))
    assert run("start", "--revive").stdout == f"daemon|start|--revive|{state}|"
    assert not (tmp_path / "x").exists()


def test_a_unit_says_what_ends_and_what_does_not() -> None:
    """Jobs of this machine live in its control group: only the loop is ended with it."""
    lines = unit(PATH, NAME, "/state/daemon.log").splitlines()
    assert f'ExecStart=/bin/sh "{PATH}" run' in lines
    assert {"KillMode=process", "Restart=on-failure", "WantedBy=default.target"} <= set(lines)
    assert "StandardOutput=append:/state/daemon.log" in lines
    odd = unit('/a "b" $c %d \\e.sh', NAME, "/100%").splitlines()
    assert r"""ExecStart=/bin/sh "/a \"b\" $$c %%d \\e.sh" run""" in odd
    assert "StandardOutput=append:/100%%" in odd


def test_the_directives_of_a_job_are_ours_but_for_what_a_person_says() -> None:
    """Line for line."""
    text = job(PATH, "/home/me/j.sbatch", NAME, "/my state/%x.log", {"partition": "serial", "ntasks": "2"})
    assert [line for line in text.splitlines() if line.startswith("#SBATCH")] == [
        f"#SBATCH --job-name={NAME}",
        "#SBATCH --ntasks=2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --output='/my state/%%x.log'",
        "#SBATCH --open-mode=append",
        "#SBATCH --no-requeue",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --partition=serial",
    ]
    assert "#SBATCH --hold" in job(PATH, "/j", NAME, "/log", {"hold": True}).splitlines()


@pytest.mark.parametrize("name", supervisors.NEEDED)
def test_nothing_that_is_written_down_is_a_secret(name: str) -> None:
    from oellm_autoexp.core.symbols import is_secret

    assert not is_secret(name)
