"""Commands from other processes are carried out once and answered."""

from __future__ import annotations

import json
import os
import threading

from oellm_autoexp.core.events import CommandAnswered, JobHeld
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.store import inbox
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Follower, Journal, read


def lead(paths: SessionPaths) -> Journal:
    return Journal.lead(paths, Effects(), now=1.0, monotonic=lambda: 0.0, wait=lambda _s: None)[0]


def answer(journal: Journal, command: inbox.Command, text: str = "done") -> None:
    journal.append(CommandAnswered(at=2.0, command=command.id, verb=command.verb, ok=True, text=text))
    journal.commit()


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds


def test_commands_arrive_whole_and_in_order(tmp_path):
    """Oldest first, with who gave them; acknowledging removes one."""
    paths = SessionPaths(tmp_path / "state")
    effects = Effects()
    assert inbox.pending(paths) == []
    late = inbox.drop(paths, effects, "cancel", {"jobs": ["ä", "b"]}, now=1000.5)
    early = inbox.drop(paths, effects, "retry", {}, now=99.0)
    first, second = inbox.pending(paths)
    assert (first.id, second.id) == (early, late)
    assert (second.verb, second.args, second.pid, second.at) == (
        "cancel",
        {"jobs": ["ä", "b"]},
        os.getpid(),
        1000.5,
    )
    inbox.acknowledge(effects, first)
    inbox.acknowledge(effects, first)
    assert [command.id for command in inbox.pending(paths)] == [late]


def test_a_file_that_is_no_command_is_reported_and_stops_nothing(tmp_path):
    """Neither a stray file nor a copy under another name is obeyed."""
    paths = SessionPaths(tmp_path)
    good = inbox.drop(paths, Effects(), "cancel", {}, now=5.0)
    body = {"id": "x", "verb": "cancel", "args": {}}
    bad = {
        "0-broken": b"{",
        "1-list": b"[]",
        "2-args": json.dumps({**body, "id": "2-args", "args": [1]}).encode(),
        "3-copy": (paths.inbox / f"{good}.json").read_bytes(),
        "4-bytes": b"\xff\xfe",
    }
    for name, data in bad.items():
        (paths.inbox / f"{name}.json").write_bytes(data)
    (paths.inbox / ".half.json").write_bytes(b"{")
    (paths.inbox / "5-directory.json").mkdir()
    reported: list[str] = []
    commands = inbox.pending(paths, lambda path, _why: reported.append(path.stem))
    assert [command.id for command in commands] == [good]
    assert reported == [*bad, "5-directory"]


def test_an_answered_command_whose_file_remained_is_known_as_answered(tmp_path):
    """The leader died between the answer's record and the removal of the file."""
    paths = SessionPaths(tmp_path)
    journal = lead(paths)
    inbox.drop(paths, Effects(), "cancel", {}, now=5.0)
    answer(journal, inbox.pending(paths)[0])
    session = Session()
    for event in read(paths).events:
        session.apply(event)
    (command,) = inbox.pending(paths)
    assert command.id in session.answered


def test_an_answer_is_found_among_other_events(tmp_path):
    """Those of other commands are passed over."""
    paths = SessionPaths(tmp_path)
    journal = lead(paths)
    follower = Follower(paths, after=read(paths))
    ids = [inbox.drop(paths, Effects(), "cancel", {}, now=float(n)) for n in range(3)]
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if clock.at > 1.0 and inbox.pending(paths):
            command = inbox.pending(paths)[0]
            journal.append(JobHeld(at=1.0, job="j", why=""))
            answer(journal, command, f"answer to {command.id}")
            inbox.acknowledge(Effects(), command)

    found = inbox.await_answer(ids[2], follower, monotonic=clock.monotonic, wait=wait, timeout_s=10.0)
    assert found is not None
    assert found.text == f"answer to {ids[2]}"


def test_no_answer_is_none_in_time_or_when_nobody_leads(tmp_path):
    """A leader that answered before it left has answered."""
    paths = SessionPaths(tmp_path)
    journal = lead(paths)
    command = inbox.drop(paths, Effects(), "cancel", {}, now=5.0)
    clock = Clock()

    def ask(timeout_s: float, **more: object) -> CommandAnswered | None:
        return inbox.await_answer(
            command,
            Follower(paths),
            monotonic=clock.monotonic,
            wait=clock.wait,
            timeout_s=timeout_s,
            **more,  # type: ignore[arg-type]
        )

    assert ask(3.0) is None
    assert 3.0 <= clock.at < 3.5
    assert ask(100.0, still_led=lambda: False) is None
    assert clock.at < 3.5

    def leaves() -> bool:
        answer(journal, inbox.pending(paths)[0])
        return False

    assert ask(100.0, still_led=leaves) is not None


def test_many_writers_do_not_lose_each_other_s_commands(tmp_path):
    """Threads that drop in the same instant."""
    paths = SessionPaths(tmp_path)
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(inbox.drop(paths, Effects(), "cancel", {}, now=1.0)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(command.id for command in inbox.pending(paths)) == sorted(ids)
    assert len(set(ids)) == 8
