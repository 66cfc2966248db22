"""Drawings of results: whole XML with a mark for each job, whatever values and names they have."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.rendering.chart import Chart, Column, Curves, Line, Row, Scatter, Strip, drawn
from oellm_autoexp.rendering.marks import WIDTH, Dot
from oellm_autoexp.rendering.scales import Scale, is_logarithmic

SVG = "{http://www.w3.org/2000/svg}"
PLACES = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "points", "d", "width", "height"}
HOSTILE = "</svg><script>alert('x')</script> & | \" \x00 \ud800 \n é"
NUMBERS = st.one_of(st.floats(), st.floats(1e-3, 1e3))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def checked(chart: Chart) -> Sequence[ElementTree.Element]:
    """The marks of a drawing: it is whole, runs nothing, and every place in it is a number within."""
    root = ElementTree.fromstring(drawn(chart))
    assert root.get("width") == str(WIDTH)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
        "svg", "title", "style", "rect", "text", "line", "circle", "polyline", "path",
    }  # fmt: skip
    for each in root.iter():
        for name in PLACES & set(each.keys()):
            assert not re.search("nan|inf", each.get(name, "")), (each.tag, name)
    for each in root.iter(f"{SVG}circle"):
        assert 0 <= float(each.get("cx", "")) <= WIDTH
        assert 0 <= float(each.get("cy", "")) <= float(root.get("height", ""))
    return [each for each in root.iter() if "mark" in (each.get("class") or "").split()]


def said(name: str = "loss") -> dict[str, str | bool]:
    return {"title": f"{name} {HOSTILE}", "subtitle": HOSTILE, "metric": HOSTILE, "low_wins": True}


def dots(values: Sequence[float]) -> list[Dot]:
    return [
        Dot(value=value, tip=HOSTILE, best=at == 0 and math.isfinite(value))
        for at, value in enumerate(values)
    ]


@given(
    st.lists(st.tuples(FINITE, st.lists(NUMBERS, max_size=6), st.one_of(st.none(), FINITE)), max_size=9),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_points_over_a_number_are_one_for_each_job(
    columns: list[tuple[float, list[float], float | None]], low: bool
) -> None:
    made = [Column(at=at, dots=dots(values), mean=mean) for at, values, mean in columns]
    chart = Scatter(**{**said(), "low_wins": low}, x_label=HOSTILE, columns=made)  # type: ignore[arg-type]
    assert len(checked(chart)) == sum(len(values) for _, values, _ in columns)


@given(st.lists(st.tuples(st.text(), st.lists(NUMBERS, max_size=6)), max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_strip_has_a_dot_for_each_job(rows: list[tuple[str, list[float]]]) -> None:
    made = [
        Row(label=label, dots=dots(values), mean=1.0, best=at == 0) for at, (label, values) in enumerate(rows)
    ]
    assert len(checked(Strip(**said(), rows=made))) == sum(len(values) for _, values in rows)  # type: ignore[arg-type]


@given(
    st.lists(st.lists(st.tuples(FINITE, FINITE), max_size=6), max_size=12),
    st.sampled_from([0, 3, 9]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_curves_are_one_for_each_job(lines: list[list[tuple[float, float]]], groups: int, ramp: bool) -> None:
    made = [
        Line(
            points=points,
            group=at % max(1, groups),
            tip=HOSTILE,
            best=at == 0,
            best_at=points[0] if points else None,
        )
        for at, points in enumerate(lines)
    ]
    chart = Curves(
        **said(),  # type: ignore[arg-type]
        x_label="step",
        lines=made,
        groups_of=HOSTILE,
        groups=[f"{HOSTILE} {n}" for n in range(groups)],
        numbers=[float(n + 1) for n in range(groups)] if ramp else (),
    )
    assert len(checked(chart)) == len(lines)


def test_three_hundred_rows_do_not_write_over_each_other() -> None:
    """Labels keep a line's distance; the best row has its own."""
    rows = [Row(label=f"value {n}", dots=dots([float(n)]), mean=None, best=n == 2) for n in range(300)]
    root = ElementTree.fromstring(drawn(Strip(**said(), rows=rows)))  # type: ignore[arg-type]
    labels = [each for each in root.iter(f"{SVG}text") if (each.text or "").startswith("value ")]
    heights = [float(each.get("y", "")) for each in labels]
    assert min(b - a for a, b in pairwise(heights)) >= 12
    assert "value 2" in [each.text for each in labels]


@given(st.lists(FINITE, max_size=8), st.booleans())
def test_scales_keep_order_and_stay_within(values: list[float], log: bool) -> None:
    """Whatever the values; their round values lie within."""
    if log:
        values = [abs(value) for value in values if value]
    scale = Scale.over(values, 10.0, 110.0, log=log)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places) and all(10.0 <= place <= 110.0 for place in places)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 13 and all(10.0 <= scale.at(tick) <= 110.0 for tick in ticks)


def test_values_that_are_spread_by_factors_are_drawn_so() -> None:
    assert is_logarithmic([1e-4, 3e-4, 1e-3, 3e-3]) and is_logarithmic([1, 2, 4, 8, 16])
    assert not is_logarithmic([1, 25, 50, 75, 100]) and not is_logarithmic([0, 1, 10])
    assert not is_logarithmic([3.0]) and not is_logarithmic([])
