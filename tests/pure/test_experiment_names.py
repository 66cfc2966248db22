"""Names of experiments: legal everywhere, different for different parameters, and read back."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from oellm_autoexp import ExperimentNaming, NamingStrategy

FUZZED = settings(max_examples=200, deadline=None, derandomize=True)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=140)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)
KEYS = st.sampled_from(["lr", "a.lr", "hidden_size", "hidden-size", "model.hidden_size", "ä", "x=y"])
PARAMETERS = st.dictionaries(KEYS, VALUES, max_size=4)
BASES = st.text(min_size=1, max_size=220) | st.sampled_from(["base", "a_b", "x=1", "a_lr=2", "../..", "-n"])
STRATEGIES = st.sampled_from(list(NamingStrategy))
#: What Slurm, a path and git take; none of them begins with a dash or a dot.
LEGAL = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]*", re.ASCII)


def name(
    parameters: dict[str, Any], base: str = "base", strategy: Any = NamingStrategy.PARAMETER_BASED
) -> str:
    return ExperimentNaming.generate_name(base, parameters, strategy)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: 1, 1.0 and true are three values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "base"),
        ({"optimizer.lr": 1e-3, "model.hidden_size": 256}, "base_model.hidden-size=256_optimizer.lr=0.001"),
        ({"lr": 1.0}, "base_lr=1.0"),
        ({"lr": 10.0}, "base_lr=10.0"),
        ({"amp": True, "clip": None}, "base_amp=true_clip=null"),
        ({"betas": [0.9, 0.95]}, "base_betas=0.9+0.95"),
        ({"type": "meta-llama-8B"}, "base_type=meta-llama-8B"),
    ],
)
def test_a_name_shows_its_parameters(parameters: dict[str, Any], expected: str) -> None:
    assert name(parameters) == expected
    assert ExperimentNaming.parse_experiment_name(expected) == parameters


def test_in_a_sweep_keys_are_shown_by_their_last_word_where_that_is_enough() -> None:
    keys = ["model.lr", "optimizer.lr", "data.batch_size"]
    made = ExperimentNaming.generate_name("b", {"optimizer.lr": 1, "data.batch_size": 2}, keys=keys)
    assert made == "b_optimizer.lr=1_batch-size=2"


@pytest.mark.parametrize(
    "value", ["a_b", "a=b", "1", "true", "a/b", "ü", "x..y", "a" * 200, {"k": 1}, [], [1]]
)
def test_what_a_name_cannot_show_exactly_ends_in_a_hash(value: Any) -> None:
    made = name({"v": value})
    assert re.fullmatch(r"base_.*[0-9a-f]{12}", made)
    assert made not in (name({"v": "a-b"}), name({"v": 1}), name({"v": True}), name({"v": None}))


@FUZZED
@given(BASES, PARAMETERS, PARAMETERS, STRATEGIES)
@example("b", {"lr": 1}, {"lr": 1.0}, NamingStrategy.PARAMETER_BASED)
@example("b", {"lr": 1}, {"lr": True}, NamingStrategy.HASH_BASED)
@example("b", {"a.lr": 1}, {"lr": 1}, NamingStrategy.PARAMETER_BASED)
@example("b", {"hidden_size": 1}, {"hidden-size": 1}, NamingStrategy.PARAMETER_BASED)
@example("b", {"lr": "x_a.lr=1"}, {"lr": "x", "a.lr": 1}, NamingStrategy.PARAMETER_BASED)
@example("b", {"lr": "meta-llama/A"}, {"lr": "meta-llama/B"}, NamingStrategy.PARAMETER_BASED)
def test_other_parameters_have_another_name(base: str, one: Any, other: Any, strategy: Any) -> None:
    if same(one, other):
        assert name(one, base, NamingStrategy.HASH_BASED) == name(other, base, NamingStrategy.HASH_BASED)
    else:
        assert name(one, base, strategy) != name(other, base, strategy)


@FUZZED
@given(BASES, PARAMETERS, STRATEGIES)
def test_every_name_is_legal(base: str, parameters: Any, strategy: Any) -> None:
    """As a path, the name of a Slurm job and a part of a git ref (git-check-ref-format(1))."""
    made = name(parameters, base, strategy)
    assert LEGAL.fullmatch(made) and len(made) <= 200
    assert ".." not in made and not made.endswith((".", ".lock"))


def test_git_takes_the_names() -> None:
    for base in ("base", "../..", "a.lock", "-n", "ü"):
        for value in ("x.lock", "..", "@{", "a b", 1e-5, -1, "."):
            ref = f"refs/heads/slurm-job/{name({'v': value}, base)}/1"
            subprocess.run(["git", "check-ref-format", ref], check=True)


@FUZZED
@given(PARAMETERS)
def test_a_name_without_a_hash_is_read_back_exactly(parameters: dict[str, Any]) -> None:
    made = name(parameters)
    assume(not re.search(r"_[0-9a-f]{12}$", made))
    assert same(ExperimentNaming.parse_experiment_name(made), dict(sorted(parameters.items())))


@FUZZED
@given(st.text(max_size=60))
def test_any_text_can_be_parsed(text: str) -> None:
    assert isinstance(ExperimentNaming.parse_experiment_name(text), dict)


def test_known_names_are_looked_up_first() -> None:
    known = {"run": {"lr": "a_b"}}
    assert ExperimentNaming.parse_experiment_name("run", known) == {"lr": "a_b"}
    assert ExperimentNaming.parse_experiment_name("run_lr=1", known) == {"lr": 1}


def test_names_by_time_begin_with_it() -> None:
    assert re.fullmatch(
        r"base_\d{8}_\d{6}_[0-9a-f]{12}", name({"lr": 1}, strategy=NamingStrategy.TIMESTAMP_BASED)
    )
