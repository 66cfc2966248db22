"""A session that went badly in many ways, told in `status`, `show` and one file to send."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from world import Script, Stage, World

from oellm_autoexp.cli.main import app
from oellm_autoexp.core import events as ev
from oellm_autoexp.store.journal import read

EVIL = "OSError: <script>alert('x')</script> | [a](http://evil.example) `b`"
SCRIPTS: dict[tuple[str, int], Script] = {
    ("good", 1): [(10, "step 1"), (40, "Saved"), (80, "step 2"), (90, 0)],
    ("crashes", 1): [(10, "step 1"), (40, "Saved"), (60, "step 2"), (61, EVIL), (62, 1)],
    ("crashes", 2): [(10, "step 3"), (40, "Saved"), (90, 0)],
    ("stalls", 1): [(10, "step 1"), (40, "Saved")],
    ("stalls", 2): [(10, "step 2"), (40, "Saved"), (90, 0)],
    ("mistyped", 1): [(1, "usage: train.py"), (1, "train.py: error: no such option: --lrr"), (2, 2)],
}
RULES: dict[str, Any] = {
    "monitoring": {
        "class_name": "SlurmLogMonitor",
        "inactivity_threshold_seconds": 120,
        "startup_grace_seconds": 1,
        "log_signals": {
            "step": {"pattern": r"step (?P<step>\d+)", "counter": "step"},
            "saved": {"pattern": "Saved", "metadata": {"kind": "checkpoint"}},
        },
    },
    "restart_policies": {"crash": {"class_name": "AlwaysRestartPolicy", "max_retries": 7}},
    "actions": {},
    "job": {},
}
PROVENANCE = {
    "config": {"project": {"name": "p"}, "backend": {"environment": {"HF_TOKEN": "(secret)"}}},
    "git": {"commit": "c0ffee", "branch": "main", "dirty": True},
    "python": {"version": "3.11.7"},
    "versions": {"oellm-autoexp": "0.1.0"},
}
Call = Callable[..., str]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Four jobs over a simulated scheduler, led to their ends; one name is as hostile as names can be."""
    world = World(lambda name, attempt: SCRIPTS[(name.split("<")[0], attempt)])
    jobs = ["good<b>", "crashes", "stalls", "mistyped"]
    found = Stage(tmp_path, world, RULES, jobs)
    loop = found.submit()
    loop.record(
        ev.SessionOpened(
            at=world.now,
            project="p",
            session=str(found.paths.state_dir),
            nonce="n",
            scheduler={"class_name": "LocalScheduler"},
            source={"config": "my sweep.yaml", "cwd": "/data/here", "overrides": ["sweep.axes.lr=[1, 2]"]},
            provenance=PROVENANCE,
        )
    )
    found.run(loop, ticks=20_000)
    loop.close()
    return found


@pytest.fixture
def call(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(verb: str, *words: str) -> str:
        done = CliRunner().invoke(app, [verb, str(stage.paths.state_dir), *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(done.output)

    return run


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said += data


def test_status_tells_where_the_time_went(call: Call) -> None:
    """One line below the table for people; for programs the parts of each job and of all, which add up."""
    line = next(line for line in call("status").splitlines() if line.startswith("ETTR"))
    assert re.match(r"ETTR \d\d % of 00:\d\d:\d\d job time; (hang|start-up) \d+ %, ", line), line
    shown = json.loads(call("status", "--json"))
    jobs = {job["name"]: job["goodput"] for job in shown["jobs"]}
    assert jobs["stalls"]["hours"]["hang"] * 3600 == pytest.approx(120, abs=5)
    assert jobs["crashes"]["hours"]["rolled_back"] * 3600 == pytest.approx(22, abs=12)
    assert jobs["good<b>"]["ettr"] > 0.8 and jobs["mistyped"]["ettr"] == 0
    whole = shown["goodput"]
    assert sum(whole["hours"].values()) == pytest.approx(whole["wall_hours"], abs=1e-5)
    assert whole["wall_hours"] == pytest.approx(sum(job["wall_hours"] for job in jobs.values()), abs=1e-5)
    only = json.loads(call("status", "stalls", "--json"))["goodput"]
    assert only == jobs["stalls"], "of the jobs that were asked for"


def test_show_breaks_one_job_down(call: Call) -> None:
    shown = call("show", "stalls")
    assert re.search(r"where time went:   ETTR \d+ % of .*\(told by checkpoints\)\n", shown)
    assert re.search(r"productive 00:0.*, hang 00:02:0", shown)
    assert json.loads(call("show", "stalls", "--json"))["goodput"]["hours"]["hang"] > 0


def test_a_report_says_what_was_asked_what_happened_and_how_to_do_it_again(
    call: Call, tmp_path: Path
) -> None:
    """In HTML by default, named after the project; the drawings are in it."""
    assert call("report") == f"Written: {tmp_path}/p-report.html\n"
    page = Page((tmp_path / "p-report.html").read_text())
    for said in (
        "3 succeeded, 1 failed",
        "c0ffee (branch main) with changes that are not in it",
        "(secret)",
        "max_retries=7",
        "train.py: error: no such option: --lrr (exit 2, usage error)",
        "no output for 00:02:0",
        "restart 1 of 7 after crash in 10 s",
        "cd /data/here\ngit checkout c0ffee\npip install oellm-autoexp==0.1.0\n"
        "oellm-autoexp submit 'my sweep.yaml' -o 'sweep.axes.lr=[1, 2]' --local",
    ):
        assert said in page.said, said
    assert page.tags.count("svg") == 1 + 4 and page.tags.count("rect") > 15
    headings = re.findall(r"<h2>(.*?)</h2>", (tmp_path / "p-report.html").read_text())
    assert headings == [
        "Where the time went",
        "Jobs",
        "What went wrong",
        "What happened and why",
        "What was asked",
        "How to do it again",
    ]


def test_what_a_log_says_stays_text(call: Call, tmp_path: Path) -> None:
    """Neither a job's name nor an error line becomes part of the page; nothing is loaded."""
    call("report", "-o", "r.html")
    call("report", "-o", "r.md")
    page, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    assert EVIL in Page(page).said and "good<b>" in Page(page).said
    assert not {"script", "b", "a", "img", "link"} & set(Page(page).tags)
    assert "<script>" not in text and "\\<script\\>" in text and "http://" not in text
    assert "good\\<b\\>" in text


def test_a_report_is_told_by_the_journal_alone(call: Call, stage: Stage, tmp_path: Path) -> None:
    """Logs that are gone change nothing but the time at which it was made."""

    def report() -> str:
        call("report", "-o", "r.html")
        return re.sub(r"as of [-0-9: UTC]+", "", (tmp_path / "r.html").read_text())

    before = report()
    for log in (tmp_path / "logs").iterdir():
        log.unlink()
    assert report() == before
    assert read(stage.paths).events


def test_the_form_follows_the_name_or_the_option(call: Call, tmp_path: Path) -> None:
    call("report", "-o", "a.md")
    call("report", "-o", "b.txt", "--format", "md")
    call("report", "--format", "md")
    assert (tmp_path / "a.md").read_text().startswith("# Report on p\n")
    assert (tmp_path / "b.txt").read_text().startswith("# Report on p\n")
    assert (tmp_path / "p-report.md").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "pdf"], "--format is html or md, not 'pdf'"),
        (["-o", "."], "it is a directory"),
        (["-o", "nowhere/r.html"], "cannot be written: No such file or directory"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(
    stage: Stage, tmp_path: Path, words: list[str], said: str
) -> None:
    words = [str(tmp_path / word) if word in (".", "nowhere/r.html") else word for word in words]
    done = CliRunner().invoke(app, ["report", str(stage.paths.state_dir), *words])
    assert done.exit_code != 0 and said in str(done.exception)


def test_a_session_in_the_making_can_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first submission there is no time to speak of, and that is no mistake."""
    stage = Stage(tmp_path, World(lambda _name, _attempt: []), RULES, ["a"])
    stage.submit().close()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", str(stage.paths.state_dir)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = Page((tmp_path / "p-report.html").read_text())
    assert "1 waiting" in page.said and "Where the time went" not in page.said
