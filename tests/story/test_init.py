"""`init`: the config that it writes runs exactly the given command, whatever that holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from oellm_autoexp.cli.main import app
from oellm_autoexp.config import yaml_loader
from oellm_autoexp.errors import UsageError
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services import starter

RUNNER = CliRunner()
GROUPS = ("jupiter", "juwels", "leonardo", "lumi", "lumi_srun", "marenostrum")


def argv_of(folder: Path, text: str) -> list[str]:
    """What a job of the config would run."""
    file = folder / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    jobs = planning.plan(planning.load(str(file), scheduler="local", cwd=folder)).jobs
    assert len(jobs) == 1
    return list(jobs[0].spec.argv)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("words", [[], *(["--slurm", name] for name in GROUPS)], ids=" ".join)
def test_the_config_plans_at_once(here: Path, words: list[str]) -> None:
    """`init` then `plan --local`, with nothing edited in between; the next commands are said."""
    done = RUNNER.invoke(app, ["init", *words, "--", "python", "train.py", "--lr", "1e-3", "--flag", "yes"])
    assert done.exit_code == 0, done.output
    assert "plan sweep.yaml --local" in done.output
    planned = RUNNER.invoke(app, ["plan", "sweep.yaml", "--local", "--json"])
    assert planned.exit_code == 0, planned.output
    assert '"train"' in planned.output and '"1e-3"' in planned.output
    assert bool(words) == ("defaults: [slurm: " in (here / "sweep.yaml").read_text())


def test_it_runs(here: Path) -> None:
    """Without --slurm no flag is needed: the config says that jobs run here."""
    assert RUNNER.invoke(app, ["init", "--", "sh", "-c", "echo ${HOME} > it\\'s"]).exit_code == 0
    done = RUNNER.invoke(app, ["submit", "sweep.yaml"])
    assert done.exit_code == 0, done.output
    assert (here / "it's").exists()


def test_an_existing_file_is_never_overwritten(here: Path) -> None:
    """Exit 2 with a hint; not even what a broken link points to is made."""
    for name in ("sweep.yaml", "linked.yaml"):
        (here / "sweep.yaml").write_text("mine")
        (here / "linked.yaml").unlink(missing_ok=True)
        (here / "linked.yaml").symlink_to(here / "nowhere")
        refused = RUNNER.invoke(app, ["init", "--output", name, "--", "true"])
        assert isinstance(refused.exception, UsageError) and "--output" in str(refused.exception)
    assert (here / "sweep.yaml").read_text() == "mine" and not (here / "nowhere").exists()


def test_print_writes_nothing(here: Path) -> None:
    """The same text on stdout."""
    shown = RUNNER.invoke(app, ["init", "--print", "--", "true"])
    assert shown.exit_code == 0 and "class_name: CommandBackend" in shown.output
    assert list(here.iterdir()) == []


def test_an_unknown_cluster_is_named_with_the_nearest(here: Path) -> None:
    """One of the shipped groups, or of the groups in ./config."""
    (here / "config" / "slurm").mkdir(parents=True)
    (here / "config" / "slurm" / "ours.yaml").write_text("sbatch: {nodes: 1}\n")
    for wrong, near in (("lumy", "lumi"), ("our", "ours")):
        refused = RUNNER.invoke(app, ["init", "--slurm", wrong, "--", "true"])
        assert isinstance(refused.exception, UsageError) and f"`{near}`" in str(refused.exception)
    assert RUNNER.invoke(app, ["init", "--slurm", "ours", "--", "true"]).exit_code == 0
    assert RUNNER.invoke(app, ["plan", "sweep.yaml", "--local"]).exit_code == 0


@pytest.mark.parametrize("words", ["", "-- ''", "-- echo ???", "--name 'a b' -- x", "--name logs -- x"])
def test_what_no_config_can_hold_is_refused(here: Path, words: str) -> None:
    """With exit 2, and no file."""
    refused = RUNNER.invoke(app, ["init", *shlex.split(words)])
    assert isinstance(refused.exception, UsageError)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("command", "name"), [(["python", "x/My run.py"], "My-run"), (["./logs"], "first")])
def test_the_project_is_named_after_the_program(command: list[str], name: str, here: Path) -> None:
    """In letters that are legal everywhere; never as a directory of ours."""
    assert f"name: {name}\n" in starter.config_text(command)
    argv_of(here, starter.config_text(command))


def test_what_is_commented_out_is_right(here: Path) -> None:
    """The examples in the comments plan, once they are no comments any more and the command reads them."""
    text = starter.config_text(["echo"], slurm="lumi").replace("[echo]", '[echo, "${lr}", "${seed}"]')
    text = re.sub(r"(?m)^( *)# ( *[\w.]+:( .*)?)$", r"\1\2", text)
    (here / "sweep.yaml").write_text(text)
    loaded = planning.load("sweep.yaml", scheduler="local")
    assert len(planning.plan(loaded).jobs) == 4
    written = yaml_loader.load(here / "sweep.yaml")
    assert {"sweep", "monitoring", "actions", "restart_policies"} <= set(written)
    assert written["slurm"]["setup"] and written["slurm"]["sbatch"]["account"]


# `${…}`, quotes, backslashes, YAML's and Unicode's own characters are more likely than by chance.
PIECES = st.one_of(
    st.sampled_from(list("$\\'\"{}[]#%-?!&*,|>@`=~ü🙂")),
    st.sampled_from(["${", "${lr}", "--x=", "1e-3", "0123", "24:00:00", "true", "null"]),
    st.sampled_from([" ", ": ", " #", "\n", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x7f", "\x1b"]),
)
WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\ue000\ue001\ue00f"), max_size=12),
    st.lists(PIECES, max_size=8).map("".join),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, min_size=1, max_size=12), st.sampled_from([None, "lumi"]))
def test_loading_it_gives_the_same_argv(tmp_path: Path, command: list[str], slurm: str | None) -> None:
    """Word by word, whatever the words hold; with Hydra's composition in between, too."""
    assume(command[0] and "???" not in command)
    assert argv_of(tmp_path, starter.config_text(command, slurm=slurm)) == command
