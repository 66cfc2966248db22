"""Job scripts: what they run, in which environment, and from which template."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import symbols
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.rendering.templates import launcher, render_file, render_job_script, render_text

#: A program that shows its own argv and initial environment, byte for byte.
SHOW = ["/bin/sh", "-c", "cat /proc/$$/cmdline; printf '\\0---\\0'; cat /proc/$$/environ"]

words = st.one_of(
    st.sampled_from(
        ["", "-", "it's", '"', "$HOME", "`id`", "a b", "a\nb", "\\", "!", "#", "~", "*", "{{ x }}"]
    ),
    st.text(st.characters(exclude_characters="\0\ue000\ue001", exclude_categories=["Cs"]), max_size=15),
)
names = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}Q", fullmatch=True)


def request(**changes: Any) -> ScriptRequest:
    return replace(ScriptRequest(name="job", argv=["true"], environment={}), **changes)


def run(script: str, tmp_path: Path, *args: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    path = tmp_path / "job script.sbatch"
    path.write_text(script)
    subprocess.run(["bash", "-n", path], check=True)
    env = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(["bash", path, *args], env=env, capture_output=True, check=True)
    argv, _, environ = done.stdout.decode().partition("\0---\0")
    pairs = (line.split("=", 1) for line in environ.split("\0") if line)
    return argv.split("\0")[len(SHOW) : -1], {pair[0]: pair[1] for pair in pairs}


@pytest.fixture
def guard(tmp_path: Path) -> Path:
    """A guard that only starts what it is given."""
    path = tmp_path / "the guard's.py"
    path.write_text(
        "import os, sys\n"
        "assert sys.argv[1] == '--'\n"
        "os.environ['GUARDED'] = os.environ.get('GUARDED', '') + 'x'\n"
        "os.execvp(sys.argv[2], sys.argv[2:])\n"
    )
    return path


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    argv=st.lists(words, max_size=12),
    environment=st.dictionaries(names, words, max_size=6),
    facts=st.dictionaries(st.sampled_from(["AUTOEXP_PROJECT", "AUTOEXP_SESSION"]), words),
    folder=st.text(st.sampled_from("a b'\"$-\n*é"), min_size=1, max_size=8),
)
def test_a_script_gives_its_command_argv_and_environment_byte_for_byte(
    tmp_path: Path, argv: list[str], environment: dict[str, str], facts: dict[str, str], folder: str
) -> None:
    """Hostile values in arguments, variables and directories reach the command unchanged."""
    out = str(tmp_path / folder)
    wanted = request(
        argv=[*SHOW, *argv],
        environment=environment,
        job_environment={**facts, "AUTOEXP_OUTPUT_DIR": out},
        cwd=out,
    )
    script = render_job_script(wanted)
    assert script == render_job_script(wanted)
    got, env = run(script, tmp_path)
    assert got == argv
    expected = {**facts, **environment, "AUTOEXP_OUTPUT_DIR": out, "PWD": out}
    assert {name: env[name] for name in expected} == expected


def test_everything_runs_inside_the_guard_once(tmp_path: Path, guard: Path) -> None:
    """The guard takes over first; set-up lines run under it; a nested job is guarded again."""
    log = tmp_path / "setup.log"
    wanted = request(
        argv=[*SHOW, "x"], environment={}, setup=[f'echo "$GUARDED" >> {log}'], guard_path=str(guard)
    )
    got, env = run(render_job_script(wanted), tmp_path)
    assert (got, env["GUARDED"], log.read_text()) == (["x"], "x", "x\n")
    # Started from within another job, with everything inherited from it: guarded again.
    _, env = run(render_job_script(wanted), tmp_path, **env)
    assert env["GUARDED"] == "xx"


def test_nothing_runs_after_a_setup_line_that_failed(tmp_path: Path) -> None:
    """A module that does not load ends the job instead of training without it."""
    (tmp_path / "s").write_text(render_job_script(request(argv=["touch", "ran"], setup=["false"])))
    done = subprocess.run(["bash", "s"], cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_file_of_variables_is_read_before_the_environment_that_refers_to_it(tmp_path: Path) -> None:
    """A secret comes from slurm.env_file; the script's bytes hold only its name."""
    env_file = tmp_path / "my env"
    env_file.write_text("HF_TOKEN='s3 cret'\n")
    script = render_job_script(
        request(
            argv=[*SHOW, f"--token={symbols.reference('HF_TOKEN')}", symbols.reference("AUTOEXP_ATTEMPT")],
            environment={"HUB_TOKEN": symbols.reference("HF_TOKEN")},
            slurm={"env_file": str(env_file)},
        )
    )
    assert "cret" not in script
    got, env = run(script, tmp_path, AUTOEXP_ATTEMPT="3")
    assert got == ["--token=s3 cret", "3"]
    assert env["HUB_TOKEN"] == "s3 cret"


@pytest.mark.parametrize(
    ("slurm", "whole"),
    [
        ({}, ""),
        ({"launcher_cmd": "nice -n 5"}, "nice -n 5"),
        ({"launcher_cmd": ["nice", "a b", 5]}, "nice 'a b' 5"),
        ({"launcher_cmd": "run it", "launcher_env_passthrough": True}, 'run it --env A="$A" --env B="$B"'),
        (
            {"launcher_cmd": "/opt/apptainer exec --nv x.sif", "launcher_env_passthrough": True},
            '/opt/apptainer exec --env A="$A" --env B="$B" --nv x.sif',
        ),
        (
            {"launcher_cmd": "srun -l apptainer run x.sif", "launcher_env_passthrough": True},
            'srun -l apptainer run --env A="$A" --env B="$B" x.sif',
        ),
        # srun(1) has no --env, and hands the environment on by itself.
        ({"launcher_cmd": "srun -n 4", "launcher_env_passthrough": True}, "srun -n 4"),
        (
            {"launcher_cmd": "srun", "srun": {"ntasks": 2}, "launcher_env_passthrough": True},
            "srun --ntasks=2",
        ),
        ({"launcher_env_passthrough": True}, ""),
        (
            {"srun": {"cpu_bind": "a b", "n": 4, "exclusive": True, "x": None}},
            "srun --cpu-bind='a b' -n4 --exclusive",
        ),
        ({"srun": {"ntasks": 2}, "launcher_cmd": "apptainer exec i"}, "srun --ntasks=2 apptainer exec i"),
        ({"srun_opts": "-l", "launcher_cmd": "numactl srun -v x"}, "numactl srun -l -v x"),
    ],
)
def test_the_launcher_stands_before_the_command(slurm: dict[str, Any], whole: str) -> None:
    """A prefix, its `--env` flags and srun's options each have their place."""
    assert launcher({"environment": {"A": "1", "B": "2"}, **slurm}).whole == whole


@pytest.mark.parametrize("argv", [["-x"], ["-a b"], [""]])
def test_a_command_is_never_taken_for_an_option_of_exec(argv: list[str], tmp_path: Path) -> None:
    """A command that does not exist is reported as that: exit 127."""
    (tmp_path / "s").write_text(render_job_script(request(argv=argv)))
    done = subprocess.run(["bash", "s"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 127


def test_a_launcher_may_set_variables(tmp_path: Path) -> None:
    script = render_job_script(request(argv=[*SHOW], slurm={"launcher_cmd": "FLAVOUR=sweet nice"}))
    assert run(script, tmp_path)[1]["FLAVOUR"] == "sweet"


# ---------------------------------------------------------------- templates of users


def own(tmp_path: Path, text: str, **changes: Any) -> str:
    path = tmp_path / "own.sh"
    path.write_text(text)
    return render_job_script(
        request(slurm={"template_path": str(path)}, **changes), directives=["#SBATCH --nodes=1"]
    )


def test_a_template_of_ones_own_names_things_in_either_case(tmp_path: Path) -> None:
    """Lower and upper case both work, blocks leave no blank lines, values keep Jinja's signs."""
    text = (
        "#!/bin/sh\n{% if lr %}\n# {{ job_name }} {{JOB_NAME}} {{ lr }} {{LR}}\n{% endif %}\n"
        "{{ launcher_cmd }}\n"
    )
    script = own(tmp_path, text, argv=["echo", "{{ x }}"], parameters={"lr": 0.1})
    assert script == "#!/bin/sh\n# job job 0.1 0.1\necho '{{ x }}'\n"


def test_a_template_without_the_guard_is_guarded_behind_its_head(tmp_path: Path) -> None:
    """At most one attempt runs, whoever wrote the template; Slurm still reads the directives."""
    text = "#!/bin/bash\n{{ sbatch_directives }}\n#SBATCH --exclusive\n\nmodule load x\n{{ launcher_cmd }}\n"
    lines = own(tmp_path, text, argv=["a"], guard_path="/g.py").splitlines()
    assert lines[1:3] == ["#SBATCH --nodes=1", "#SBATCH --exclusive"]
    at = next(n for n, line in enumerate(lines) if "/g.py" in line)
    assert at < lines.index("module load x")
    placed = own(tmp_path, "#!/bin/bash\numask 7\n{{ guard }}\n", argv=["a"], guard_path="/g.py")
    assert placed.count("/g.py") == 1


def test_a_template_names_what_does_not_exist(tmp_path: Path) -> None:
    """The error names the file, the name and the nearest one that exists."""
    with pytest.raises(ConfigError) as error:
        own(tmp_path, "{{ job_nam }}\n")
    assert "own.sh" in str(error.value)
    assert "did you mean `job_name`?" in str(error.value)


@pytest.mark.parametrize("text", ["{% if %}", "{{ 1/0 }}", "{{ ().__class__.__mro__ }}", "{{ 'a' | nope }}"])
def test_a_broken_template_is_a_mistake_in_the_config(tmp_path: Path, text: str) -> None:
    """Broken, failing and forbidden templates are refused with the name of the file."""
    with pytest.raises(ConfigError, match=r"own\.sh"):
        own(tmp_path, text)
    with pytest.raises(ConfigError, match=r"sweep\.x"):
        render_text(text, {}, key="sweep.x")


def test_a_template_that_is_missing_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.template_path.*No such file"):
        render_file(tmp_path / "none", {}, key="slurm.template_path")


def test_a_template_that_changed_is_read_again(tmp_path: Path) -> None:
    assert own(tmp_path, "one\n") == "one\n"
    assert own(tmp_path, "other\n") == "other\n"


def test_the_filter_quotes_for_the_shell() -> None:
    assert render_text("{{ x | quote }} {{ X }}", {"x": "a b"}) == "'a b' a b"
