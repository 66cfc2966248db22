"""The package's public names: loaded at their first use, known to type checkers, forgiving of a slip."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import oellm_autoexp

NAMES = sorted(oellm_autoexp._HOMES)
SOURCE = Path(oellm_autoexp.__file__).read_text()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Neither what composes configs nor what draws on terminals, nor any other room."""
    program = (
        "import sys, oellm_autoexp\n"
        "heavy = {'hydra', 'omegaconf', 'compoconf', 'typer', 'rich', 'jinja2', 'yaml', 'typing'}\n"
        "rooms = [name for name in sys.modules if name.startswith('oellm_autoexp.')]\n"
        "print(sorted(heavy & set(sys.modules)), rooms)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=Path(oellm_autoexp.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_is_told_to_type_checkers(name: str) -> None:
    """To the thing of that name; the imports under TYPE_CHECKING say the same."""
    assert getattr(oellm_autoexp, name).__name__ == name
    home = oellm_autoexp._HOMES[name]
    told = rf"^    from {re.escape(home)} import (?:\(\s+)?{name} as {name}(?:,\s+\))?$"
    assert re.search(told, SOURCE, re.MULTILINE)
    assert name in dir(oellm_autoexp)


def test_dir_shows_what_a_person_may_use() -> None:
    """The public names and the version, nothing of how they are loaded."""
    assert [name for name in dir(oellm_autoexp) if not name.startswith("__")] == NAMES
    assert "__version__" in dir(oellm_autoexp)


def test_an_unknown_name_names_the_nearest() -> None:
    """As any module does, with the name that was meant."""
    with pytest.raises(AttributeError, match=r"no attribute 'submit_job': did you mean `submit_jobs`\?"):
        oellm_autoexp.submit_job  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute '__wrapped__'$"):
        oellm_autoexp.__wrapped__  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from oellm_autoexp import nothing_like_it")
