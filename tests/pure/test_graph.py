"""The graph of a plan: as a tree of text, as Mermaid, as SVG; of many jobs their stages alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from commands import Cli
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.core.model import CONDITION, JobSpec, Parent
from oellm_autoexp.errors import UsageError
from oellm_autoexp.rendering.graph import Arrow, Box, Graph, mermaid, svg, text
from oellm_autoexp.services.graph import form_of, graph_of

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Boxes with any labels; arrows lead from the left to the right of a hidden order."""
    label = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)
    boxes = [
        Box(
            key=f"k{number}",
            label=f"box{number}{draw(label)}",
            detail=draw(label),
            group=draw(st.sampled_from("ab")),
        )
        for number in range(draw(st.integers(1, 7)))
    ]
    order = draw(st.permutations(boxes))
    arrows = [
        Arrow(start=order[one].key, end=order[other].key, loose=draw(st.booleans()))
        for one in range(len(order))
        for other in range(one + 1, len(order))
        if draw(st.integers(0, 2)) == 0
    ]
    return Graph(title='a & b "c" <d>', boxes=tuple(boxes), arrows=tuple(arrows))


@given(graphs())
def test_a_tree_has_each_box_once_and_names_all_that_it_waits_for(graph: Graph) -> None:
    lines = text(graph).splitlines()
    assert lines[0] == graph.title
    assert all(any(box.label in line for line in lines[1:]) for box in graph.boxes)
    assert len(lines) == 1 + len(graph.boxes)


@given(graphs())
def test_what_waits_stands_to_the_right_and_no_box_covers_another(graph: Graph) -> None:
    """Whatever the labels hold, the picture is XML; each arrow is drawn."""
    root = ET.fromstring(svg(graph))
    assert root.findtext(f"{SVG}title") == graph.title
    rects = [
        tuple(int(rect.get(name, "0")) for name in ("x", "y", "width", "height"))
        for rect in root.findall(f"{SVG}rect")
        if rect.get("x")
    ]
    assert len(rects) == len(graph.boxes)
    places = dict(zip((box.key for box in graph.boxes), rects, strict=True))
    for arrow in graph.arrows:
        one, other = places[arrow.start], places[arrow.end]
        assert one[0] + one[2] < other[0]
    for number, (x, y, width, height) in enumerate(rects):
        assert x + width <= int(root.get("width", "0")) and y + height <= int(root.get("height", "0"))
        for left, top, wide, high in rects[:number]:
            assert x >= left + wide or left >= x + width or y >= top + high or top >= y + height
    assert len(root.findall(f"{SVG}path")) == len(graph.arrows)


@given(graphs())
def test_mermaid_has_every_box_and_arrow(graph: Graph) -> None:
    drawn = mermaid(graph)
    assert len(re.findall(r"^ +j\d+\[\"", drawn, re.MULTILINE)) == len(graph.boxes)
    assert len(re.findall(r"^  j\d+ (-->|-\. start condition \.->) j\d+$", drawn, re.MULTILINE)) == len(
        graph.arrows
    )
    for line in drawn.splitlines():
        assert line.count('"') in (0, 2)


def spec(name: str, index: int, stage: str, *parents: Parent, **parameters: int) -> JobSpec:
    return JobSpec(
        name=name,
        id=name,
        index=index,
        parameters={"stage": stage, **parameters},
        argv=(),
        output_dir="",
        checkpoint_dir="",
        script_path="",
        script_digest="",
        log_path="",
        parents=parents,
    )


def arms(number: int) -> list[JobSpec]:
    """Each: three segments of `train`, two of `decay` on a condition, `eval` after both."""
    specs: list[JobSpec] = []
    for arm in range(number):
        for segment in (1, 2, 3):
            before = [Parent(job=f"t{arm}.{segment - 1}", id="", stage="train")] if segment > 1 else []
            specs.append(spec(f"t{arm}.{segment}", len(specs), "train", *before, repeat=segment))
        train = Parent(job=f"t{arm}.3", id="", stage="train", gate=CONDITION)
        specs += [spec(f"d{arm}.{which}", len(specs) + which, "decay", train) for which in (0, 1)]
        decay = Parent(job=f"d{arm}.1", id="", stage="decay")
        specs.append(
            spec(f"e{arm}", len(specs), "eval", decay, Parent(job=f"t{arm}.3", id="", stage="train"))
        )
    return specs


def test_a_few_jobs_are_drawn_one_by_one() -> None:
    assert text(graph_of("tiny", arms(1))) == (
        "tiny: 6 jobs in 3 stages\n"
        "t0.1\n"
        "└─ t0.2\n"
        "   └─ t0.3\n"
        "      ├─ d0.0  on its start condition\n"
        "      └─ d0.1  on its start condition\n"
        "         └─ e0  after t0.3 too\n"
    )


def test_of_many_jobs_the_stages_are_drawn() -> None:
    """However many: with their sizes, chains, and how many wait for each."""
    for number in (200, 2000):
        assert text(graph_of("tiny", arms(number))) == (
            f"tiny: {6 * number} jobs in 3 stages\n"
            f"train  {3 * number} jobs, chains of 3\n"
            f"└─ decay  {2 * number} jobs, 2 for each of train; on its start condition\n"
            f"   └─ eval  {number} jobs, 1 for each of decay, 1 for each of train; after train too\n"
        )


def test_a_plan_without_stages_says_so() -> None:
    plain = [spec(f"j{number}", number, "") for number in range(100)]
    assert text(graph_of("tiny", plain)) == "tiny: 100 jobs; none waits for another\n(no stage)  100 jobs\n"


def test_a_name_tells_the_form() -> None:
    assert [form_of(Path(name)) for name in ("a.svg", "a.mmd", "a.txt")] == ["svg", "mermaid", "text"]
    with pytest.raises(UsageError, match=r"end it in \.svg"):
        form_of(Path("a.png"))


CONFIG = """
project: {name: tiny, base_output_dir: ./outputs}
backend: {class_name: CommandBackend, command: [echo, "${load}"]}
sweep:
  type: list
  groups:
    - {stage: one, defaults: {load: none}}
    - {stage: two, defaults: {load: "${sibling.one.name}"}}
"""


def test_plan_draws_and_writes_nothing_else(tmp_path: Path) -> None:
    """To the terminal, in the form that is asked for, or to a file; `--json` names parents."""
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    cli = Cli(tmp_path)
    tree = "tiny: 2 jobs in 2 stages\ntiny_one\n└─ tiny_two\n"
    for words in (["--graph"], ["--graph", "text"], ["--graph=text"]):
        assert cli("plan", *words, "sweep.yaml", "--local").stdout == tree
    assert "j0 --> j1" in cli("plan", "sweep.yaml", "--local", "--graph", "mermaid").stdout
    assert cli("plan", "sweep.yaml", "--local", "--graph-file", "x.svg").returncode == 0
    assert ET.fromstring((tmp_path / "x.svg").read_text()).tag == f"{SVG}svg"
    assert not (tmp_path / "outputs").exists()
    assert cli("plan", "sweep.yaml", "--local", "--graph-file", "x.png").returncode == 2
    assert cli("plan", "sweep.yaml", "--local", "--graph", "--json").returncode == 2
    assert '"job": "tiny_one"' in cli("plan", "sweep.yaml", "--local", "--dry-run", "--json").stdout
