"""Names of points, and the text of values."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.sweep.names import Namer, UniqueNames, kubernetes_name, legalize
from oellm_autoexp.sweep.scalars import format_scalar, label

#: The same examples every time, whatever else the machine is doing.
FUZZED = settings(max_examples=100, deadline=None, derandomize=True)


def name(template, values, *, keys=None, params=None, index=7, project="tiny"):
    return Namer(template, project, keys or list(values), params).name(values, index)


@pytest.mark.parametrize(
    "template, expected",
    [
        (None, "tiny_lr0.001_nodes4_seed0"),
        ("{project}_lr{lr}_s{seed}", "tiny_lr0.001_s0"),
        ("{lr:.0e}", "1e-03"),
        ("{slurm.sbatch.nodes:03d}-{index}", "004-7"),
        ("n{index:04d}", "n0007"),
        ("x_{params}", "x_lr0.001_nodes4_seed0"),
    ],
)
def test_templates(template, expected):
    """Placeholders are the project, the index, all swept keys, or one key with a format."""
    assert name(template, {"lr": 1e-3, "slurm.sbatch.nodes": 4, "seed": 0}) == expected


def test_default_name_shows_what_is_swept_and_no_index():
    """Short names where they are unambiguous, whole keys where not; only what the point has."""
    keys = ["a.lr", "b.lr", "b.wd", "fixed"]
    assert name(None, {"a.lr": 1, "b.wd": True}, keys=keys, params=keys[:3]) == "tiny_a.lr1_wdtrue"
    assert name(None, {"fixed": 1}, params=[]) == "tiny"
    assert name("{project}", {}, project="tiny") == "tiny"


def test_adding_a_point_renames_nobody():
    """The default name of a point depends on that point alone."""
    one, more = Namer(None, "p", ["lr"]), Namer(None, "p", ["lr"])
    assert [one.name({"lr": v}, i) for i, v in enumerate([1, 2])] == [
        more.name({"lr": v}, i) for i, v in enumerate([0, 1, 2])
    ][1:]


@pytest.mark.parametrize(
    "template, says",
    [
        ("{sed}", "did you mean `seed`"),
        ("{nodes}", "did you mean `slurm.sbatch.nodes`"),
        ("{}", "unknown placeholder `{}`"),
        ("{lr", "a single `{`"),
        ("lr}", "write `}}`"),
        ("{lr!r}", "unknown placeholder"),
        ("{lr:999999999d}", "not usable"),
        ("{lr.real}", "unknown placeholder"),
        ("{lr:s}", "does not fit"),
        ("{other}", "a point has no `other`"),
    ],
)
def test_wrong_templates_are_refused(template, says):
    """With the template, the place and the nearest name."""
    with pytest.raises(ConfigError) as caught:
        name(
            template,
            {"lr": 1e-3, "seed": 0, "slurm.sbatch.nodes": 1},
            keys=["lr", "seed", "slurm.sbatch.nodes", "other"],
        )
    assert says in str(caught.value)
    assert caught.value.faults[0].key == "sweep.name_template" and caught.value.faults[0].value == template


def test_what_a_template_reads_is_known():
    """So that a variable which only a name shows counts as read."""
    assert Namer("{a}_{index}", "p", ["a", "b"]).reads == {"a"}
    assert Namer("{params}", "p", ["a", "b"], ["b"]).reads == {"b"}
    assert Namer("{a}_{index}", "p", ["a"]).uses_index and not Namer(None, "p", ["a"]).uses_index


@FUZZED
@given(st.text(max_size=250))
@example("..")
@example("-rf")
@example("a.lock")
@example("a.lock.lock")
@example(".git")
@example("a..b")
@example("日本")
@example("\ud800")
@example("x" * 300)
@example("é" * 300)
def test_names_are_legal_everywhere(text):
    """As a path component, a git branch, a Slurm job name, and again as what it is."""
    legal = legalize(text)
    assert re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]*", legal) and len(legal) <= 200
    assert ".." not in legal and not legal.endswith((".", ".lock")) and legalize(legal) == legal
    kubernetes = kubernetes_name(text)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", kubernetes) and len(kubernetes) <= 63
    assert kubernetes_name(kubernetes) == kubernetes


def test_git_itself_agrees(tmp_path):
    """git check-ref-format accepts what `legalize` makes of difficult texts."""
    texts = ["a..b", "x.lock", "-", "@{u}", "a b~^:?*[\\", "/", ".", "ünï", "+=._-", "@", "HEAD"]
    for text in texts:
        done = subprocess.run(
            ["git", "check-ref-format", "--branch", f"autoexp/{legalize(text)}"], cwd=tmp_path
        )
        assert done.returncode == 0, text


@FUZZED
@given(st.lists(st.text(max_size=300), unique=True, max_size=6))
@example(["a b", "a-b", "a/b", "A B"])
@example(["x" * 300, "x" * 301])
@example(["a_b", "a-b", "A-b"])
def test_different_texts_get_different_names(texts):
    """Where a name cannot say everything, a hash of the whole does."""
    assert len({legalize(text) for text in texts}) == len(texts)
    assert len({kubernetes_name(text) for text in texts}) == len(texts)


def check_unique(named, template=""):
    names = UniqueNames(template)
    for text, values in named:
        names.add(text, values)


def test_the_same_name_twice_is_refused_with_the_difference():
    """Both points and the keys by which they differ are named, and a template is suggested."""
    with pytest.raises(ConfigError) as caught:
        check_unique([("p", {"lr": 1}), ("q", {}), ("p", {"lr": 1, "seed": 2})], "{project}_{lr}")
    text = str(caught.value)
    assert "does not show seed" in text and "points 0 (lr=1) and 2 (lr=1, seed=2)" in text
    assert "{project}_{lr}_{seed}" in text
    with pytest.raises(ConfigError, match="declared twice"):
        check_unique([("p", {"lr": 1}), ("p", {"lr": 1})])
    check_unique([("p", {"lr": 1}), ("q", {"lr": 1})])


@pytest.mark.parametrize(
    "value, text",
    [
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-3, "-3"),
        (1e-3, "0.001"),
        (3e-4, "0.0003"),
        (0.00001, "1e-05"),
        (1.0, "1.0"),
        ("", ""),
        ("a b", "a b"),
        ([1, "b", 2.5], "1,b,2.5"),
        ([], ""),
    ],
)
def test_scalars_have_one_text(value, text):
    """The same in names and in argv, however the number was written."""
    assert format_scalar(value) == text


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1]], [None], {1}, b"x"])
def test_what_has_no_text_is_refused(value):
    """null and mappings never become part of a command by accident."""
    with pytest.raises(ValueError, match="has no text"):
        format_scalar(value)


def test_labels_are_total():
    """A name can show any value a point may have."""
    assert label(None) == "null" and label([0.9, None]) == "0.9+null"
    assert re.fullmatch("[0-9a-f]{8}", label({"a": 1})) and label({}) != label([])
    assert label({"a": 1, "b": 2}) == label({"b": 2, "a": 1})
