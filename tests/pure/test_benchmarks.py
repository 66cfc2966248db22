"""The page of figures has a place for each benchmark, and a run changes nothing but its table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HOME = Path(__file__).parents[2] / "benchmarks"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", HOME / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RUN, TABLE = loaded("run"), loaded("table")


@pytest.mark.parametrize("name", [*RUN.BENCHMARKS, "machine"])
def test_each_table_has_its_place_in_the_page(name: str) -> None:
    page = RUN.PAGE.read_text()
    changed = RUN.filled(page, name, "| a |\n")
    assert f"<!-- table: {name} -->\n\n| a |\n\n<!-- end -->" in changed
    assert changed.count("<!-- end -->") == page.count("<!-- end -->")
    assert RUN.filled(changed, name, "| a |\n") == changed


def test_every_script_is_run() -> None:
    scripts = {path.name for path in HOME.glob("*.py")} - {"run.py", "table.py"}
    assert {script for script, _, _ in RUN.BENCHMARKS.values()} == scripts


def test_a_page_without_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tables named journal"):
        RUN.filled("nothing here", "journal", "")


def test_a_table_is_markdown_and_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table = TABLE.Table("what", "CPU s", left=(8,))
    table.row("ours", TABLE.number(0.01234))
    printed = capsys.readouterr().out
    assert printed.splitlines() == ["| what     |  CPU s |", "|----------|-------:|", "| ours     | 0.0123 |"]
    assert RUN.rows_of(f"said before\n{printed}\nsaid after\n") == printed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.032149, "0.0321"),
        (1.5, "1.50"),
        (74.04, "74.0"),
        (1097.6, "1,098"),
        (0.000123, "0.000123"),
    ],
)
def test_figures_have_the_digits_that_count(value: float, text: str) -> None:
    assert TABLE.number(value) == text
