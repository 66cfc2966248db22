"""What the documents say is true: links lead somewhere, configs plan, commands and options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from commands import shown_files

from oellm_autoexp.cli.main import app, spelled_out
from oellm_autoexp.config import scenario as scenarios
from oellm_autoexp.config import yaml_loader
from oellm_autoexp.planning import jobspec
from oellm_autoexp.schedulers.fake.scenario import Scenario
from oellm_autoexp.services import plan as service
from oellm_autoexp.sweep.grid import Grid
from oellm_autoexp.sweep.stages import REPEAT, STAGE

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for number, match in enumerate(
            re.finditer(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL), 1
        ):
            yield pytest.param(page, match.group(1), id=f"{named(page)}:{number}")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize(("page", "text"), list(blocks("yaml")))
def test_every_config_plans(page: Path, text: str, tmp_path: Path) -> None:
    """A whole config or scenario, as it is printed; a fragment in a small config that reads its variables."""
    (tmp_path / "block.yaml").write_text(text)
    if text.startswith("# faults.yaml"):
        assert scenarios.load(tmp_path / "block.yaml", Scenario).jobs
        return
    if text.startswith(("# job_spec.yaml", "# params.yaml")):
        for name, shown in shown_files(page.name).items():
            (tmp_path / name).write_text(shown)
        read = jobspec.read if text.startswith("# job_spec.yaml") else jobspec.read_parameters
        assert read(tmp_path / "block.yaml")
        return
    config = yaml_loader.load(tmp_path / "block.yaml")
    config.pop("defaults", None)
    config.setdefault("project", {"name": "tiny"})
    if "axes" in config:
        config = {"project": config["project"], "sweep": {"axes": config["axes"]}}
    free = [key for key in Grid(config.get("sweep")).keys if "." not in key or key.startswith("model.")]
    config.setdefault("backend", {"class_name": "CommandBackend", "command": ["echo", *reads(free)]})
    config.setdefault("actions", {}).setdefault("convert", {"command": "true"})
    if page.name == "plugins.md":
        source = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        assert source is not None
        (tmp_path / "my_backend.py").write_text(source.group(1))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    loaded = service.load(str(tmp_path / "sweep.yaml"), scheduler="local", cwd=tmp_path)
    # The block stands in no repository.
    assert service.plan(loaded, isolated=False).jobs


def reads(names: list[str]) -> list[str]:
    """Every variable but those that say what a point is: not every point has them."""
    return ["${" + name + "}" for name in names if name not in (STAGE, REPEAT)]


def commands() -> Iterator[Any]:
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            found = re.match(r"(?: {4})?(oellm-autoexp .*)", line)
            found = found or re.search(r"`(oellm-autoexp [a-z][^`]*)`", line)
            if found:
                yield pytest.param(found.group(1), id=f"{named(page)}:{number}")


@pytest.mark.parametrize("line", list(commands()))
def test_every_command_can_be_typed(line: str) -> None:
    """The command exists and takes these options and so many arguments."""
    words = spelled_out([word for word in shlex.split(line, comments=True)[1:] if word != "…"])
    command: Any = typer.main.get_command(app)
    while hasattr(command, "get_command") and not words[0].startswith("-"):
        with typer.Context(command) as context:
            inner = command.get_command(context, words[0])
        assert inner is not None, f"there is no command {words[0]}"
        command = inner
        del words[0]
    command.make_context("", words)
