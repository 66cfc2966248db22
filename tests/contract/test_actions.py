"""What every action does, whichever it is: it describes a deed; and what becomes of deeds in the loop."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sockets import ACTIONS, action, sealed
from world import Script, Stage, World

from oellm_autoexp.config import sockets as interfaces
from oellm_autoexp.config.sockets import AppendText, PostJson, RunCommand
from oellm_autoexp.core import events as ev
from oellm_autoexp.core.model import Scalar
from oellm_autoexp.monitor.perform import post
from oellm_autoexp.store.effects import Effects

DEEDS = tuple(getattr(interfaces, name) for name in get_args(interfaces.Deed) or ()) or (
    interfaces.RunCommand,
    interfaces.AppendText,
    interfaces.PostJson,
    interfaces.EndJob,
    interfaces.RestartJob,
)
FIELDS: dict[str, Scalar] = {
    "project": "p",
    "job": "a",
    "state": "failed",
    "reason": 'it\'s "broken"',
    "attempt": 2,
    "path": "/ckpt/1",
    "out": None,
    "lr": 1e-3,
}
#: What a log or a parameter may hold: anything but what no argv can.
HOSTILE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | (
    st.sampled_from(
        ["$(touch pwned)", "`touch pwned`", "'", '"', "'; touch pwned; '", "\\", "\n", "-n", "", "$0"]
    )
)


def variants(name: str) -> Iterator[dict[str, Any]]:
    """Configs that use placeholders wherever a config has text."""
    keys = {item.name for item in fields(action(name).config)}
    yield {}
    if "message" in keys:
        yield {"message": "{path} {attempt}"}
    if name == "NotifyAction":
        yield {"command": None, "url": "http://127.0.0.1:9/x"}
    if "command" in keys:
        yield {"command": ["echo", "{path}", "{lr}"]}


CASES = [(name, changes) for name in ACTIONS for changes in variants(name)]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_deed_is_described_and_nothing_is_done(name: str, changes: Mapping[str, Any]) -> None:
    """Pure: the same fields give the same deed, and they stay as they are."""
    one = action(name, **changes)
    given_fields, config = deepcopy(FIELDS), deepcopy(one.config)
    with sealed():
        deed = one.deed(given_fields)
        again = action(name, **changes).deed(FIELDS)
    assert deed == again
    assert isinstance(deed, DEEDS)
    assert given_fields == FIELDS
    assert one.config == config


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_placeholders_are_what_the_deed_reads(name: str, changes: Mapping[str, Any]) -> None:
    """With these fields alone it works; without any one of them it does not."""
    one = action(name, **changes)
    known = {field: FIELDS[field] for field in one.placeholders()}
    one.deed(known)
    for field in known:
        with pytest.raises(KeyError, match=field):
            one.deed({other: value for other, value in known.items() if other != field})


@pytest.mark.parametrize("name", ACTIONS)
def test_what_fires_an_action_is_checked(name: str) -> None:
    """`on` takes happenings that exist."""
    action(name, on=["job_failed", "session_ended"])
    with pytest.raises(ValueError, match="job_faild"):
        action(name, on=["job_faild"])


# ---------------------------------------------------------------- quoting

WITH_COMMAND = [name for name in ACTIONS if "command" in {item.name for item in fields(action(name).config)}]
#: Places in a command, and what a word there is for a value.
PLACES = {
    "{v}": "{}",
    '"{v}"': "{}",
    "'{v}'": "{}",
    "x{v}y": "x{}y",
    '"it\'s {v}!"': "it's {}!",
    "'a \"{v}\" b'": 'a "{}" b',
    "a\\ \\'{v}": "a '{}",
    "\\{v}": "{}",
    '"\\"\\{v}\\""': '"{}"',
    "{{{v}}}": "{{{}}}",
    '"$(printf \'%s.\' "{v}")"': "{}.",
    "\"`printf '%s.' '{v}'`\"": "{}.",
    "\"$(printf '%s.' {v})\"'{v}'": "{}.{}",
}


def words(command: str, cwd: Path) -> list[str]:
    done = subprocess.run(["/bin/sh", "-c", command], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", WITH_COMMAND)
@given(values=st.lists(HOSTILE, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_value_is_a_word_to_the_shell_byte_for_byte(
    name: str, values: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever it stands, within quotes, command substitutions, behind a comment: never code."""
    cwd = tmp_path_factory.mktemp("cwd")
    command, expected = "# it's a comment with {v0}\n", []
    for number, value in enumerate(values):
        for place, word in PLACES.items():
            command += f"printf '%s\\0' {place.replace('{v}', f'{{v{number}}}')} # '{{v{number}}}\n"
            expected.append(word.replace("{}", value) if "{{" not in word else "{" + value + "}")
    found = action(name, command=command)
    deed = found.deed({**FIELDS, **{f"v{number}": value for number, value in enumerate(values)}})
    assert isinstance(deed, RunCommand)
    assert isinstance(deed.command, str)
    assert words(deed.command, cwd) == expected
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("name", WITH_COMMAND)
@given(value=HOSTILE)
@settings(max_examples=25, deadline=None)
def test_an_argv_has_plain_values(name: str, value: str) -> None:
    """No shell reads it."""
    deed = action(name, command=["{v}", "a{v}", "{{v}}"]).deed({**FIELDS, "v": value})
    assert isinstance(deed, RunCommand)
    assert deed.command == (value, "a" + value, "{v}")


# ---------------------------------------------------------------- in the loop


def staged(tmp_path: Path, actions: Mapping[str, Any], *scripts: Script, **changes: Any) -> Stage:
    world = World(lambda name, attempt: scripts[attempt - 1] if name == "a" else ((20.0, 0),))
    rules = {
        "monitoring": {
            "class_name": "SlurmLogMonitor",
            "log_signals": {"saved": {"pattern": r"saved (?P<path>.*)", "action": list(actions)}},
        },
        "actions": dict(actions),
        "restart_policies": {
            "crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 1, "backoff_seconds": 0.0}
        },
    }
    return Stage(tmp_path, world, rules, ("a",), **changes)


def outcomes(stage: Stage) -> list[tuple[bool, str]]:
    return [(event.ok, event.reason) for event in stage.events if isinstance(event, ev.ActionEnded)]


def test_a_command_of_an_action_is_run_as_it_was_filled(tmp_path: Path) -> None:
    """Through the script that the guard runs, in the directory that the config names."""
    (tmp_path / "work here").mkdir()
    config = {
        "class_name": "CommandAction",
        "command": 'printf %s "{path}" > out',
        "cwd": f"{tmp_path}/work here",
    }
    value = 'a\'b "$(touch pwned)" `id` \\ é'
    stage = staged(tmp_path, {"convert": config}, ((1.0, f"saved {value}"), (2.0, 0)))
    stage.run(stage.submit())
    assert outcomes(stage) == [(True, "")]
    (script,) = [
        process.task.script_path for process in stage.world.processes if process.task.name == "convert"
    ]
    subprocess.run(["bash", script, "--claimed"], check=True)
    assert (tmp_path / "work here" / "out").read_text() == value
    assert not (tmp_path / "work here" / "pwned").exists()


def test_an_action_that_comes_late_speaks_of_its_own_attempt(tmp_path: Path) -> None:
    """Four run at once; those of the first attempt that had to wait still name it, not the second."""
    config = {"class_name": "CommandAction", "command": "convert {attempt} {path} {log_path}"}
    lines: Script = tuple((0.5, f"saved {number}") for number in range(6))
    stage = staged(tmp_path, {"convert": config}, (*lines, (1.0, 1)), ((40.0, 0),))
    stage.run(stage.submit())
    commands = [
        Path(process.task.script_path).read_text().splitlines()[-1]
        for process in stage.world.processes
        if process.task.name == "convert"
    ]
    assert len(commands) == 6
    for number, command in enumerate(commands):
        assert f"convert 1 {number} " in command
        assert "a.1.log" in command


def test_an_unknown_field_fails_the_action_and_nothing_else(tmp_path: Path) -> None:
    """A report may bring fewer fields than the action reads."""
    config = {"class_name": "AppendAction", "path": str(tmp_path / "x"), "text": "{nothing}"}
    stage = staged(tmp_path, {"note": config}, ((1.0, "saved 1"), (2.0, 0)))
    stage.run(stage.submit())
    assert outcomes(stage) == [(False, "cannot be carried out: it has no field 'nothing'")]
    assert stage.replayed().jobs["a"].state.value == "succeeded"


def test_texts_are_appended_once_and_in_order(tmp_path: Path) -> None:
    """Also where all are the same, and where somebody else writes to the file too."""
    notes = tmp_path / "notes"
    config = {"class_name": "AppendAction", "path": str(notes), "text": "saved"}
    lines: Script = tuple((float(number), f"saved {number}") for number in range(1, 5))
    stage = staged(tmp_path, {"note": config}, (*lines, (5.0, 0)))

    def write() -> None:
        with notes.open("a") as file:
            file.write("mine\n")

    stage.world.alarms.append((1002.4, write))
    stage.run(stage.submit())
    assert sorted(notes.read_text().splitlines()) == ["mine", "saved", "saved", "saved", "saved"]


@pytest.mark.parametrize(("status", "ok"), [(200, True), (204, True), (404, False), (500, False)])
def test_a_webhook_gets_one_json_object(tmp_path: Path, status: int, ok: bool, monkeypatch: Any) -> None:
    """With the job, its state and reason, and the message; what the server says is the outcome."""
    monkeypatch.setenv("no_proxy", "*")
    with server(status) as (url, received):
        config = {"class_name": "NotifyAction", "url": url}
        stage = staged(tmp_path, {"tell": config}, ((1.0, "RuntimeError: é"), (1.1, 1)), ((1.0, 1),))
        stage.rules["monitoring"]["log_signals"]["saved"].pop("action")
        stage.run(stage.submit())
    job, session = received
    assert (job["job"], job["state"], job["attempt"]) == ("a", "failed", 2)
    assert job["message"] == "p: a failed: exit 1; all 1 restarts for crash are used up"
    assert (session["state"], session["reason"]) == ("session_ended", "every job has a verdict")
    assert [found for found, _ in outcomes(stage)] == [ok, ok]
    assert {reason for _, reason in outcomes(stage)} == {f"HTTP {status}"}


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real HTTP server on this machine, and what it was sent."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/hook", received
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def test_numbers_that_json_does_not_have_are_sent_as_text(monkeypatch: Any) -> None:
    """A loss that is not a number must not make the whole message unreadable."""
    monkeypatch.setenv("no_proxy", "*")
    with server(200) as (url, received):
        body = {"loss": float("nan"), "best": float("-inf"), "step": 3, "none": None}
        assert post(PostJson(url=url, body=body), Effects()) == 200
    assert received == [{"loss": "nan", "best": "-inf", "step": 3, "none": None}]


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9/", "refused"), ("file:///etc/passwd", "is not an http address"), ("http://", "")],
)
def test_a_webhook_that_nobody_answers_is_a_failed_action(
    tmp_path: Path, url: str, reason: str, monkeypatch: Any
) -> None:
    """The session comes to its end all the same."""
    monkeypatch.setenv("no_proxy", "*")
    config = {"class_name": "NotifyAction", "url": url, "on": []}
    stage = staged(tmp_path, {"tell": config}, ((1.0, "saved 1"), (2.0, 0)))
    stage.run(stage.submit())
    ((ok, said),) = outcomes(stage)
    assert not ok
    assert reason in said


def test_a_refused_submission_is_told_like_any_failure(tmp_path: Path) -> None:
    """The scheduler takes the job never; whoever waits for `job_failed` hears of it."""
    config = {
        "class_name": "AppendAction",
        "path": str(tmp_path / "told"),
        "text": "{job}: {reason}",
        "on": ["job_failed"],
    }
    stage = staged(tmp_path, {"tell": config}, ())
    stage.world.rejected.add(("a", 1))
    stage.run(stage.submit())
    assert (tmp_path / "told").read_text() == "a: the scheduler refused it: invalid account\n"
    assert stage.world.processes == []


def test_blindness_is_told_once(tmp_path: Path) -> None:
    """When the scheduler stops answering, and not at each question that goes unanswered."""
    config = {
        "class_name": "AppendAction",
        "path": str(tmp_path / "told"),
        "text": "{state}: {reason}",
        "on": ["blind"],
    }
    stage = staged(tmp_path, {"tell": config}, ((30.0, 0),))
    stage.world.outages = [(1002.0, 1020.0)]
    stage.run(stage.submit())
    assert (tmp_path / "told").read_text() == "blind: the controller does not answer\n"


@pytest.mark.parametrize("kind", ["CancelAction", "FinishAction", "RestartAction"])
def test_an_action_ends_or_restarts_its_job(tmp_path: Path, kind: str) -> None:
    """Once per occurrence; the attempt is ended first."""
    config = {"class_name": kind, "message": "because of {path}"}
    stage = staged(tmp_path, {"act": config}, ((1.0, "saved 1"),), ((2.0, 0),))
    stage.run(stage.submit())
    job = stage.replayed().jobs["a"]
    expected = {
        "CancelAction": ("cancelled", 1),
        "FinishAction": ("succeeded", 1),
        "RestartAction": ("succeeded", 2),
    }
    assert (job.state.value, len(job.attempts)) == expected[kind]
    assert job.attempts[0].reason == "because of 1"
    assert [event.by for event in stage.events if isinstance(event, ev.CancelRequested)] == ["act"]


def test_an_append_names_its_text_with_one_line_end() -> None:
    """One is added where there is none."""
    for text in ("x", "x\n"):
        deed = action("AppendAction", path="{path}", text=text).deed(FIELDS)
        assert deed == AppendText(path="/ckpt/1", text="x\n")
