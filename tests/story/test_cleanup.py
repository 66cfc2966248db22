"""`cleanup` removes what ended sessions have left, and never anything that is not known to be ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Cli, until
from deaths import Dying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from oellm_autoexp.cli.main import app
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import JobSpec, SchedulerRef
from oellm_autoexp.errors import UsageError
from oellm_autoexp.services import cleanup as service
from oellm_autoexp.store import journal
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    return tmp_path


def cleanup(*words: str) -> Result:
    return RUNNER.invoke(app, ["cleanup", *words])


def files(folder: Path) -> list[str]:
    """Everything below but the user's state home."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "home" not in path.parts)


def made(
    base: Path, *, name: str = "tiny", state: Path | None = None, scripts: Path | None = None
) -> SessionPaths:
    """An ended session of one job, as a real one leaves it: script, log, output, journal, registry entry."""
    paths = SessionPaths(state or base / ".oellm-autoexp")
    folder = scripts or base / "scripts"
    for each in (folder, base / "logs", base / "job" / "checkpoints", paths.attempt("job", 1)):
        each.mkdir(parents=True, exist_ok=True)
    text = f"#!/bin/bash\nexport AUTOEXP_SESSION={paths.state_dir}\n"
    script = folder / f"{name}.sbatch"
    script.write_text(text)
    (base / "logs" / f"{name}.1.log").write_text("done\n")
    (base / "job" / "checkpoints" / "1.pt").write_text("weights")
    spec = JobSpec(
        name="job",
        id="0",
        index=0,
        parameters={},
        argv=("true",),
        output_dir=str(base / "job"),
        checkpoint_dir=str(base / "job" / "checkpoints"),
        script_path=str(script),
        script_digest=hashlib.sha256(text.encode()).hexdigest(),
        log_path=str(base / "logs" / f"{name}.{{attempt}}.log"),
    )
    pair = (("job", 1),)
    write(
        paths,
        ev.SessionOpened(at=0, project=name, session=str(paths.state_dir), nonce="n", scheduler={}),
        ev.JobAdded(at=0, spec=spec),
        ev.SubmitRequested(at=0, token="t", jobs=pair),
        ev.SubmitSpawned(at=0, token="t"),
        ev.SubmitAccepted(at=0, token="t", refs=(SchedulerRef(id="1", cluster="here", token="t"),)),
        ev.AttemptEnded(at=1, job="job", attempt=1, mode="success", reason="", evidence="exit 0"),
        ev.JobEnded(at=1, job="job", state="succeeded", mode="success", reason=""),
    )
    entry = Entry(name=name, state_dir=str(paths.state_dir), project=name, config_ref="", created=0)
    Registry().register(Effects(), entry)
    return paths


def write(paths: SessionPaths, *events: ev.Event) -> None:
    led, _ = journal.Journal.lead(paths, Effects(), now=0, monotonic=lambda: 0, wait=lambda _s: None)
    for event in events:
        led.append(event)
    led.close(0)


def real(base: Path, command: str = "echo done") -> Path:
    """A session that was really submitted; its config."""
    config = base / "sweep.yaml"
    body = {
        "project": {"name": "real"},
        "backend": {"class_name": "CommandBackend", "command": ["sh", "-c", command + " # ${i}"]},
        "sweep": {"axes": {"i": [0, 1]}},
        "scheduler": {"class_name": "local"},
    }
    config.write_text(json.dumps(body))
    return config


def test_an_ended_session_is_listed_and_only_yes_removes_it(here: Path) -> None:
    """State and scripts go; logs stay until --logs; outputs, sweep.json and the config stay always."""
    config = real(here, 'echo done; mkdir -p "$AUTOEXP_OUTPUT_DIR"; touch "$AUTOEXP_OUTPUT_DIR/model"')
    assert RUNNER.invoke(app, ["submit", str(config)]).exit_code == 0
    before = files(here)
    listed = cleanup()
    assert (
        listed.exit_code == 0
        and "2 succeeded" in listed.output
        and "--yes removes 1 session" in listed.output
    )
    assert "2 scripts" in listed.output and "2 logs" in listed.output
    assert files(here) == before
    assert cleanup("real", "--yes").exit_code == 0
    left = files(here / "outputs")
    one = [name for name in left if "real_i1" not in name]
    assert one == [
        *("logs", "logs/real_i0.1.log", "real_i0", "real_i0/checkpoints", "real_i0/model", "sweep.json")
    ]
    assert RUNNER.invoke(app, ["sessions"]).output == ""
    assert cleanup("--yes").output == ["No session is known.\n", " to remove.\n"][0]


def test_logs_go_with_logs(here: Path) -> None:
    """And the directory that held nothing else."""
    made(here / "outputs")
    shown = json.loads(cleanup("--logs", "--yes", "--json").output)["sessions"]
    assert [(row["name"], row["removed"]) for row in shown] == [("tiny", True)]
    assert files(here / "outputs") == ["job", "job/checkpoints", "job/checkpoints/1.pt"]


def test_a_session_at_work_is_refused_with_its_process(here: Path) -> None:
    """Named or not, it stays; and one whose jobs have not ended, whoever leads."""
    config = real(here, "sleep 60")
    paths = SessionPaths(here / "outputs" / ".oellm-autoexp")
    with Cli(here).leader("submit", str(config), "--json") as leader:
        until(
            lambda: "attempt_started" in "".join(p.read_text() for p in paths.journal.glob("*.jsonl")),
            "an attempt is started",
        )
        refused = cleanup("outputs", "--yes")
        assert refused.exit_code == 3 and f"process {leader.pid}" in refused.output
        leader.kill()
        leader.wait()
        refused = cleanup("outputs", "--yes")
        assert refused.exit_code == 3 and "have not ended, such as real_i0" in refused.output
        assert paths.journal.is_dir()
    RUNNER.invoke(app, ["cancel", "outputs", "--yes"])
    RUNNER.invoke(app, ["monitor", "outputs"])
    assert cleanup("outputs", "--yes").exit_code == 0
    assert not paths.state_dir.exists()


# ---------------------------------------------------------------- what is not ours


def scripts_in_state(base: Path) -> SessionPaths:
    return made(base, state=base)


def foreign(base: Path) -> SessionPaths:
    paths = made(base)
    (paths.state_dir / "thesis.tex").write_text("years of work")
    return paths


def moved(base: Path) -> SessionPaths:
    made(base.with_name("original")).state_dir.rename(base.with_name("copy"))
    return SessionPaths(base.with_name("copy"))


def outputs_within(base: Path) -> SessionPaths:
    return made(base / "attempts", state=base)


def no_journal(base: Path) -> SessionPaths:
    (base / "monitor").mkdir(parents=True)
    return SessionPaths(base)


def damaged(base: Path) -> SessionPaths:
    paths = made(base)
    segment = paths.journal / "00000001.jsonl"
    data = segment.read_bytes()
    segment.write_bytes(data[:300] + b"x" + data[301:])
    return paths


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (scripts_in_state, "not ours"),
        (foreign, "not ours: thesis.tex"),
        (moved, "moved or copied"),
        (outputs_within, "outputs of jobs lie in it"),
        (no_journal, "no journal of a session"),
        (damaged, "damaged"),
    ],
)
def test_what_may_not_be_ours_stays(here: Path, make: Callable[[Path], SessionPaths], said: str) -> None:
    """A state directory that is an output directory, holds something else, or was not made there."""
    paths = make(here / "base")
    before = files(here)
    refused = cleanup(str(paths.state_dir), "--yes", "--logs")
    assert refused.exit_code == 3 and said in refused.output
    assert files(here) == before


def test_a_link_is_not_followed(here: Path) -> None:
    """The link is refused with the name of what it leads to; links within lead to nothing's removal."""
    paths = made(here / "outputs")
    (here / "link").symlink_to(paths.state_dir)
    assert isinstance(cleanup("link", "--yes").exception, UsageError)
    precious = here / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (paths.state_dir / "metrics").symlink_to(precious)
    (here / "outputs/logs/tiny.1.log").unlink()
    (here / "outputs/logs/tiny.1.log").symlink_to(precious / "file")
    assert cleanup("outputs", "--yes", "--logs").exit_code == 0
    assert (precious / "file").read_text() == "kept" and (here / "outputs/logs/tiny.1.log").is_symlink()
    assert not paths.state_dir.exists()


def test_a_script_that_was_edited_stays(here: Path) -> None:
    """Its bytes are not what was rendered; it is counted in the list."""
    made(here / "outputs")
    script = here / "outputs" / "scripts" / "tiny.sbatch"
    script.write_text("# mine now\n")
    assert "1 scripts that are not as we wrote them stay" in cleanup("--yes").output
    assert script.read_text() == "# mine now\n"


def test_two_sessions_may_share_a_script_directory(here: Path) -> None:
    """Each takes its own; a log that both have written stays."""
    one = made(here / "a", name="one", scripts=here / "shared")
    two = made(here / "b", name="two", scripts=here / "shared")
    assert cleanup("one", "--yes").exit_code == 0
    assert [path.name for path in (here / "shared").iterdir()] == ["two.sbatch"]
    assert not one.state_dir.exists() and two.journal.is_dir()
    made(here / "a", name="two", scripts=here / "other", state=here / "c")
    shutil.copy(here / "a" / "logs" / "two.1.log", here / "b" / "logs")
    both = json.loads(cleanup("--json").output)["sessions"]
    assert sum(len(row["logs"]) for row in both) == 2


def test_a_session_of_which_only_the_name_is_left(here: Path) -> None:
    """It is forgotten; one whose disk may only be away is not."""
    paths = made(here / "outputs")
    away = made(here / "disk" / "outputs", name="away")
    shutil.rmtree(paths.state_dir)
    (here / "disk").rename(here / "unmounted")
    shown = cleanup("--yes")
    assert shown.exit_code == 0 and "not mounted" in shown.output
    assert [entry.name for entry in Registry().list_all()] == ["away"]
    assert not away.state_dir.exists()


# ---------------------------------------------------------------- killed anywhere


def found(*references: str) -> list[service.Candidate]:
    return service.candidates(references, lambda _reference: Path())


def in_a_child(steps: int) -> bool:
    """Remove what is found in a process that dies on the way; whether it came to the end."""
    with warnings.catch_warnings():
        # About threads of the test runner, none of which the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            service.remove(found()[0], logs=True, effects=Dying(steps))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_cleanup_that_dies_anywhere_can_be_done_again(here: Path) -> None:
    """Whatever the step: the second one comes to the same end, and outputs are never touched."""
    steps = 0
    while True:
        paths = made(here / "outputs")
        done = in_a_child(steps)
        if not done:
            assert (here / "outputs/job/checkpoints/1.pt").exists()
            for candidate in found():
                service.remove(candidate, logs=True)
        assert files(here / "outputs") == ["job", "job/checkpoints", "job/checkpoints/1.pt"], f"step {steps}"
        assert Registry().list_all() == []
        assert not paths.state_dir.exists()
        if done:
            break
        steps += 1
    assert steps > 10


THINGS = st.sampled_from(
    [".oellm-autoexp/mine", ".oellm-autoexp/monitor/mine", "scripts/mine", "logs/mine", "job/state/mine"]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(THINGS, st.booleans()), unique=True, max_size=4), st.booleans())
def test_what_a_user_put_there_survives(here: Path, things: list[tuple[str, bool]], logs: bool) -> None:
    """Files and links to precious ones, wherever: what links lead to is never lost, nor what lies beside."""
    base = here / "outputs"
    shutil.rmtree(base, ignore_errors=True)
    made(base)
    precious = here / "precious"
    precious.write_text("kept")
    for name, is_link in things:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if is_link:
            path.symlink_to(precious)
        else:
            path.write_text("mine")
    words = ["--yes", *(["--logs"] if logs else [])]
    assert cleanup(*words).exit_code == 0
    assert precious.read_text() == "kept"
    for name, _ in things:
        inside = name.startswith(".oellm-autoexp/monitor")
        assert (base / name).exists() or (inside and not (base / ".oellm-autoexp").exists())
    assert (base / "job" / "checkpoints" / "1.pt").exists()


@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_it_asks(here: Path, answer: str) -> None:
    """Only a yes removes."""
    paths = made(here / "outputs")
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = Cli(here)("cleanup", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0 and "Remove 1 session?" in done.stdout, done.stderr
    assert paths.state_dir.exists() == (answer == "n")
