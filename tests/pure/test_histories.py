"""Journals of earlier versions are read by this one, and add up to the same verdicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from histories import summary
from invariants import check_indexes

from oellm_autoexp.core.events import KINDS
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.session import Session
from oellm_autoexp.store.journal import read

HISTORIES = sorted((Path(__file__).parents[1] / "data" / "histories").iterdir())


@pytest.mark.parametrize("history", HISTORIES, ids=lambda path: path.name)
def test_a_history_is_read_as_it_was_meant(history: Path, tmp_path: Path) -> None:
    """Every record of every leader counts; verdicts, reasons, decisions and actions are the same."""
    paths = SessionPaths(tmp_path / "state")
    shutil.copytree(history / "journal", paths.journal)
    session = Session()
    for event in read(paths).events:
        session.apply(event)
        check_indexes(session)
    assert summary(session) == json.loads((history / "summary.json").read_text())


def test_every_kind_of_record_stands_in_a_history() -> None:
    """A kind that is new needs one: `python tests/sim/histories.py` writes it."""
    segments = [path for history in HISTORIES for path in (history / "journal").iterdir()]
    kinds = {json.loads(line)["k"] for path in segments for line in path.read_text().splitlines()}
    assert KINDS.keys() <= kinds, KINDS.keys() - kinds
