"""Words and environments survive a shell byte for byte."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.rendering import shell

HOSTILE = [
    "",
    "-",
    "--",
    "-n",
    "it's",
    'say "x"',
    "$HOME",
    "${HOME}",
    "$(id)",
    "`id`",
    "a b",
    " a ",
    "a\nb",
    "\n",
    "\r\n",
    "\t",
    "\\",
    "\\n",
    "a\\",
    "!",
    "!!",
    "#x",
    "~",
    "~root",
    "*",
    "?",
    "[a]",
    "{a,b}",
    "a=b",
    "a=~",
    ";",
    "&",
    "|",
    "<(ls)",
    "%s",
    "\x01\x7f",
    "grüße",
    "日本語",
    "\u2028",
    "🙂",
    "\ufeff",
    "if",
    "x" * 5000,
]
words = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_characters="\0\ue000\ue001", exclude_categories=["Cs"]), max_size=20),
    st.text(st.sampled_from("'\"$`\\ \n-!#~*?[]{}()<>|&;=a"), max_size=12),
)
names = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}Q", fullmatch=True)


def through_bash(script: str, **environment: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(words, min_size=1, max_size=40))
def test_words_arrive_as_they_are(argv: list[str]) -> None:
    """Whatever a word holds, the process gets that word and no other."""
    assert through_bash(f"printf '%s\\0' {shell.join(argv)}") == argv


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.dictionaries(names, words, min_size=1, max_size=20))
def test_variables_arrive_as_they_are(environment: dict[str, str]) -> None:
    """Exported values reach the child's environment byte for byte."""
    seen = through_bash("\n".join([*shell.exports(environment), "env -0"]))
    got = dict(line.split("=", 1) for line in seen)
    assert {name: got[name] for name in environment} == environment


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.one_of(words, st.just(None)), min_size=1, max_size=8), words)
def test_a_reference_expands_within_any_text(pieces: list[str | None], value: str) -> None:
    """A value that is known only in the job takes the place of its reference, unsplit and unglobbed."""
    word = "".join(symbols.reference("AUTOEXP_ATTEMPT") if p is None else p for p in pieces)
    expected = "".join(value if p is None else p for p in pieces)
    got = through_bash(f"printf '%s\\0' {shell.quote(word)}", AUTOEXP_ATTEMPT=value)
    assert got == [expected]


def test_a_secret_that_is_not_set_ends_the_script_and_says_so() -> None:
    """A job without its secret stops before it starts, as a mistake in its configuration."""
    line = f"echo {shell.quote('key=' + symbols.reference('HF_TOKEN'))}"
    done = subprocess.run(["bash", "-c", line], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "HF_TOKEN" in done.stderr
    assert "slurm.env_file" in done.stderr
    done = subprocess.run(["bash", "-c", line], env={"HF_TOKEN": "a  b"}, capture_output=True, text=True)
    assert done.stdout == "key=a  b\n"


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=", "é", "A\n"])
def test_a_name_that_no_variable_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="environment variable"):
        shell.exports({name: "x"})


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_process_can_be_given_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"NUL|UTF-8"):
        shell.quote(text)
