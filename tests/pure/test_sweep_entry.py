"""An entry of a sweep.json runs as it was planned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import symbols
from oellm_autoexp.core.model import JobSpec
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.planning.sweep_json import sweep_json
from oellm_autoexp.services.sweep_entry import EntryError, read

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_sweep_entry.py"
SECRET = symbols.reference("HF_TOKEN")

words = st.text(st.characters(exclude_characters="\0\ue000\ue001", exclude_categories=["Cs"]), max_size=12)


def written(tmp_path: Path, *requests: ScriptRequest, parameters: dict[str, Any] | None = None) -> Path:
    def spec(request: ScriptRequest) -> JobSpec:
        return JobSpec(
            name=request.name,
            id="0",
            index=0,
            parameters=parameters or {},
            argv=(),
            output_dir=str(tmp_path / request.name),
            checkpoint_dir="",
            script_path="",
            script_digest="",
            log_path="/logs/x.{attempt}.log",
        )

    path = tmp_path / "sweep.json"
    path.write_text("".join(sweep_json("tiny", [(spec(each), each) for each in requests])), encoding="utf-8")
    return path


def run(path: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--sweep", path, *options],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
    )


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(argv=st.lists(words, min_size=1, max_size=6), environment=st.dictionaries(words, words, max_size=4))
def test_an_entry_keeps_words_and_variables(
    tmp_path: Path, argv: list[str], environment: dict[str, str]
) -> None:
    """Texts that look like references stay text; true references are filled in."""
    literal = "${HF_TOKEN}"
    path = written(
        tmp_path,
        ScriptRequest(
            name="a",
            argv=[*argv, literal, f"t={SECRET}"],
            environment={**environment, "X": literal, "Y": SECRET},
        ),
    )
    got, env = read(path, 0).filled({"HF_TOKEN": "s3"})
    assert got == [*argv, literal, "t=s3"]
    expected = {**environment, "X": literal, "Y": "s3"}
    assert {name: env[name] for name in expected} == expected


def test_an_entry_runs_with_its_environment_and_gives_its_exit_code(tmp_path: Path) -> None:
    """The command's own exit status comes back, its output directory exists."""
    command = ["sh", "-c", 'echo "$OELLM_AUTOEXP_JOB_NAME $A $PWD"; exit 7']
    path = written(
        tmp_path,
        ScriptRequest(name="a", argv=["false"], environment={}),
        ScriptRequest(name="b", argv=command, environment={"A": "1 2"}, cwd=str(tmp_path)),
    )
    done = run(path, "--index", "1")
    assert (done.returncode, done.stdout) == (7, f"b 1 2 {tmp_path}\n")
    assert (tmp_path / "b").is_dir()


def test_a_dry_run_shows_the_command_and_no_secret(tmp_path: Path) -> None:
    """Nothing is run or made; the file and the output hold the name of the secret only."""
    path = written(
        tmp_path, ScriptRequest(name="a", argv=["touch", "a b", SECRET], environment={"T": SECRET})
    )
    done = run(path, "--index", "0", "--dry-run", HF_TOKEN="s3cret")
    assert "Command: touch 'a b' '${HF_TOKEN}'" in done.stdout
    assert "Environment overrides: {'T': '${HF_TOKEN}'}" in done.stdout
    assert "s3cret" not in done.stdout + path.read_text()
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    """A missing secret, entry, file or program is one line, with the exit code of a shell."""
    path = written(
        tmp_path,
        ScriptRequest(name="a", argv=["echo", SECRET], environment={}),
        ScriptRequest(name="b", argv=["no-such-program"], environment={}),
    )
    done = run(path, "--index", "0")
    assert done.returncode == 2
    assert "HF_TOKEN is not set" in done.stderr
    done = run(path, "--index", "1")
    assert (done.returncode, "no-such-program" in done.stderr) == (127, True)
    done = run(path, "--index", "2")
    assert (done.returncode, "it has 2" in done.stderr) == (2, True)
    done = run(tmp_path / "none.json", "--index", "0")
    assert (done.returncode, "No such file" in done.stderr) == (2, True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"jobs": [{}]}', '{"jobs": [{"name": 1, "launch": 3}]}'])
def test_what_is_no_sweep_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(EntryError, match="sweep"):
        read(path, 0)


def test_the_file_is_json_with_a_line_for_each_job(tmp_path: Path) -> None:
    """Parameters are texts; the first attempt's log is named; no job at all is fine too."""
    path = written(
        tmp_path,
        ScriptRequest(name="a", argv=["x"], environment={}),
        parameters={"lr": 1e-3, "on": True, "none": None, "betas": [0.9, 0.95]},
    )
    document = json.loads(path.read_text())
    assert document["project"] == "tiny"
    job = document["jobs"][0]
    assert job["parameters"] == {"lr": "0.001", "on": "true", "none": "null", "betas": "[0.9, 0.95]"}
    assert job["log_path"] == "/logs/x.1.log"
    assert job["launch"] == {"argv": ["x"], "environment": {}}
    assert json.loads(written(tmp_path).read_text())["jobs"] == []
