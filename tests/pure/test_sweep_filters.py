"""Filters: a small grammar, and nothing else."""

from __future__ import annotations

import ast
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.sweep.filters import MAX_LENGTH, compile_filter

#: The same examples every time, whatever else the machine is doing.
FUZZED = settings(max_examples=100, deadline=None, derandomize=True)

POINT = {
    "lr": 1e-3,
    "seed": 1,
    "size": "small",
    "betas": [0.9, 0.95],
    "slurm.sbatch.nodes": 4,
    "slurm.sbatch.gpus-per-node": 8,
    "lambda": 0.5,
    "nothing": None,
}


def holds(text, point=POINT):
    return compile_filter(text, point)(point)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("lr < 0.01", True),
        ("0 < lr <= 1e-3 < 1", True),
        ("0 < lr < 1e-4 < 1", False),
        ("size == 'small' and not seed == 0", True),
        ("size in ['large', 'huge'] or seed not in (1, 2)", False),
        ("'mall' in size", True),
        ("slurm.sbatch.nodes * 8 >= 32", True),
        ("slurm.sbatch.nodes*slurm.sbatch.gpus-per-node == 32", True),
        ("slurm.sbatch.gpus-per-node - 1 == 7", True),
        ("size == 'slurm.sbatch.gpus-per-node'", False),
        ("lambda == 1 / 2", True),
        ("7 // 2 == 3 and 7 % 2 == 1 and 2 ** 10 == 1024 and -seed == +seed - 2", True),
        ("len(betas) == 2 and max(betas) == 0.95 and min(seed, 3, 2) == 1", True),
        ("nothing == None", True),
        ("nothing == null and true and not false", True),
        ("  seed ==\n 1 ", True),
    ],
)
def test_what_filters_can_say(text, expected):
    """Comparisons, logic, arithmetic, literals, len/min/max over plain, dotted and odd names."""
    assert holds(text) is expected


@pytest.mark.parametrize(
    "text, says",
    [
        ("lrr < 1", "did you mean `lr`"),
        ("nodes > 1", "did you mean `slurm.sbatch.nodes`"),
        ("slurm.sbatch > 1", "unknown name `slurm.sbatch`"),
        ("lr.real > 1", "unknown name `lr.real`"),
        ("__import__('os').system('x')", "a call"),
        ("size.upper() == 'S'", "a call"),
        ("min(betas, key=len) == 1", "a call"),
        ("max(*betas) == 1", "unpacking"),
        ("betas[0] == 1", "indexing"),
        ("[x for x in betas]", "comprehension"),
        ("(lambda: 1)", "lambda"),
        ("f'{size}' == 'x'", "f-string"),
        ("(a := 1)", "assignment"),
        ("seed == 1 if lr else seed", "if/else"),
        ("lr is None", "write =="),
        ("seed & 1", "BitAnd"),
        ("seed << 1", "LShift"),
        ("~seed == 1", "Invert"),
        ("{1: 2} == {}", "mapping"),
        ("b'x' == size", "bytes"),
        ("1j == seed", "complex"),
        ("... == seed", "ellipsis"),
        ("('a').b == seed", "a dot behind"),
        ("len() == 0", "something between"),
        ("lr <", "not an expression"),
        ("", "not an expression"),
        ("x = 1", "not an expression"),
        ("seed == 1" + " or seed == 1" * MAX_LENGTH, "longer than"),
        ("not " * 100 + "seed", "deep"),
        ("(" * 300 + "seed" + ")" * 300, "not an expression"),
    ],
)
def test_everything_else_is_refused_by_name(text, says):
    """The message names the construct and what is allowed instead."""
    with pytest.raises(ConfigError) as caught:
        compile_filter(text, [*POINT, "a"])
    assert says in str(caught.value)
    assert caught.value.faults[0].key == "sweep.filter"


@pytest.mark.parametrize(
    "text, says",
    [
        ("lr", "gives a number"),
        ("size + 'x' == 'y'", "needs numbers, not a text"),
        ("size < 3", "not supported"),
        ("seed in 3", "needs a list"),
        ("len(seed) == 1", "no len()"),
        ("1 / (seed - 1) == 0", "zero"),
        ("'a' * 10**9 == size", "needs numbers"),
        ("[1] * 10**9 == betas", "needs numbers"),
        ("9 ** 9 ** 9 == 1", "too large"),
        ("10 ** 1000 * 10 ** 1000 == 1", "too large"),
        ("(-8) ** 0.5 == 1", "root of a negative"),
        ("2.0 ** 99999 == 1", "too large"),
        ("missing == 1", "the point has no `missing`"),
    ],
)
def test_what_cannot_be_applied_to_a_point_is_said(text, says):
    """A mistake that shows on a point names the point; sizes are bounded."""
    compiled = compile_filter(text, [*POINT, "missing"])
    with pytest.raises(ConfigError) as caught:
        compiled(POINT)
    assert says in str(caught.value) and "lr=0.001" in str(caught.value)


PIECES = r"""
lr seed size betas slurm.sbatch.nodes lambda len( min( max( ( ) [ ] { } , . : := = == != < <= > >= in not and
or is + - * / // % ** ** @ ~ & 1 0 9 1e308 99999999 0.5 'a' "b" 'a'*9 None True true null if else for x é ${x}
# __import__ __class__ import lambda: f'{lr}' \\
"""
pieces = st.sampled_from([*PIECES.split(), "\n", "\x00"])


@FUZZED
@given(
    st.one_of(
        st.lists(pieces, max_size=25).map(" ".join), st.lists(pieces, max_size=12).map("".join), st.text()
    )
)
@example("9**9**9**9")
@example("(" * 99 + "1" + ")" * 99)
@example("-" * 1900 + "1")
@example("\ud800")
@example("'" * 3)
def test_hostile_text_is_refused_quickly(text):
    """Whatever the text: true, false or a config error, in no time."""
    began = time.process_time()
    try:
        assert isinstance(holds(text), bool)
    except ConfigError as error:
        assert error.faults[0].key == "sweep.filter"
    assert time.process_time() - began < 1.0


numbers = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, 1e3]))
terms = st.recursive(
    st.one_of(numbers.map(str), st.sampled_from(["a", "b"])),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "==", "and", "or", "in"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} [{parts[2]}])" if parts[1] == "in" else f"({' '.join(parts)})"
    ),
    max_leaves=12,
)


@FUZZED
@given(terms, numbers, numbers)
def test_allowed_expressions_mean_what_they_mean_in_python(text, a, b):
    """Within the grammar the closures agree with Python itself."""
    point = {"a": a, "b": b}
    try:
        expected = eval(compile(ast.parse(text, mode="eval"), "filter", "eval"), {}, point)
    except TypeError:
        return
    try:
        result = holds(text, point)
    except ConfigError as error:
        # Arithmetic on truth values is refused here and allowed there.
        assert "not a boolean" in str(error) or not isinstance(expected, bool)
    else:
        assert result is expected
