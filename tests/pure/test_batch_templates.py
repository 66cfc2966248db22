"""Templates of batch scripts: values come in, and what is the shell's stays as it is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oellm_autoexp.errors import ConfigError
from oellm_autoexp.rendering.batch_template import render

#: What a shell, Slurm, awk, docker and others write, and an engine of templates could take for its own.
SHELL = [
    *(
        "${BASH}",
        "$(date +%F)",
        "$X",
        "${#array[@]}",
        "${x%.*}",
        "${x%%/*}",
        "%j",
        "%%",
        "`id`",
        "$((1 << 2))",
    ),
    *(
        "{%H}",
        "{#",
        "#}",
        "{1..3}",
        "{{1..3}}",
        "{{.Names}}",
        "}}",
        "%}",
        "{",
        "}",
        "{}",
        "'",
        '"',
        "\\",
        "#",
    ),
    *(" ", "\n", "\t", "é", "<<EOF\n", "EOF\n", "$'\\n'", "{{", "{%", "\u2028", "\x0b"),
]
hostile = st.one_of(
    st.sampled_from(
        ["it's", '"', "$HOME", "`id`", "a b", "a\nb", "\\", "!", "#", "~", "*", "-", "$(id)", "{{x}}"]
    ),
    st.text(
        st.characters(exclude_categories=["Cs", "Co"], exclude_characters="\0\r"), min_size=1, max_size=12
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(pieces=st.lists(st.sampled_from(SHELL), max_size=20))
@example(pieces=["{{", "{{.Names}}"])
def test_text_of_the_shell_is_untouched(pieces: list[str]) -> None:
    """Whatever braces, percents and quotes it holds; only a name within two braces is ours."""
    text = "#!/bin/bash\n#SBATCH --output=%x.%j\n" + "".join(pieces)
    if re.search(r"\{\{[-+]?\s*['\"é]", text):
        return  # A constant of Jinja's.
    assert render(text, {"name": "x"}) == text


def shown(script: str, tmp_path: Path) -> list[str]:
    """The argv that the last command of a script was given."""
    path = tmp_path / "s"
    path.write_text(script)
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(["bash", path], capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
    return done.stdout.decode().split("\0")[:-1]


PLACES = ["{}", '"{}"', "'{}'", 'x"$(printf %s {})"', "a{}b", "{}{}", '"don\'t {}"']


@settings(max_examples=120, deadline=None, derandomize=True)
@given(value=hostile, place=st.sampled_from(PLACES))
def test_a_value_is_text_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, value: str, place: str
) -> None:
    """In quotes, in substitutions, behind a comment with an apostrophe, behind a here-document."""
    head = "#!/bin/bash\n# it's {{X}}\ncat > /dev/null <<EOF\ndon't {{X}}\nEOF\n"
    script = render(head + "printf '%s\\0' " + place.replace("{}", "{{ X }}"), {"x": value})
    if "$(" in place and value.endswith("\n"):
        return  # A substitution drops line ends.
    wanted = place.replace("$(printf %s {})", "{}").replace('"', "", 9).replace("{}", "\0")
    wanted = wanted.replace("'\0'", "\0").replace("\0", value)
    assert shown(script, tmp_path_factory.mktemp("s")) == [wanted]


def test_here_documents_hold_values_as_text(tmp_path: Path) -> None:
    """Both forms: the shell neither runs them nor fills them in."""
    value = "$(id) `id` \\ ' \""
    text = "#!/bin/bash\ntr '\\n' '\\0' <<{}\n{{{{X}}}}\nEOF\n"
    for word in ("EOF", "'EOF'", "-EOF", "\\EOF"):
        assert shown(render(text.format(word), {"x": value}), tmp_path) == [value]


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("--account={{ACCOUNT}}", ""),
        ("--mem={{MEM}}", ""),
        ("--requeue={{REQUEUE}}", "#SBATCH --requeue\n"),
        ("--hold={{HOLD}}", ""),
        ("--constraint={{CONSTRAINT}}", "#SBATCH --constraint=a40|a100\n"),
        ("--comment={{COMMENT}}", "#SBATCH --comment='a b; # c'\n"),
        ("--mail-type={{MAIL}}  # when", "#SBATCH --mail-type=END,FAIL  # when\n"),
        ("-J {{name}} -N {{NODES}}", "#SBATCH -J x -N 2\n"),
        ("--output={{OUT}}", "#SBATCH --output=logs/%j.out\n"),
    ],
)
def test_directives_hold_values_of_options(line: str, made: str) -> None:
    """An option without a value is left out, a flag has none, and what sbatch would misread is quoted."""
    context = {
        "account": None,
        "mem": "",
        "requeue": True,
        "hold": False,
        "constraint": "a40|a100",
        "comment": "a b; # c",
        "mail": ["END", "FAIL"],
        "name": "x",
        "nodes": 2,
        "out": "logs/%j.out",
    }
    assert render(f"#!/bin/bash\n#SBATCH {line}\ntrue\n", context) == f"#!/bin/bash\n{made}true\n"


def test_statements_filters_and_both_cases_work() -> None:
    text = (
        "#!/bin/bash\n{% if REQUEUE %}\n#SBATCH --requeue\n{% endif %}\n{% for m in MODULES %}\n"
        "module load {{ m }}\n{% endfor %}\n{% if not mail %}\necho {{ NAME | upper }} {{ name ~ '-1' }} "
        "{{ MODULES }} {{ flag }} {{ WORDS | verbatim }} {{ words | quote }}\n{% endif %}\n"
    )
    context = {"requeue": True, "modules": ["cuda", "a b"], "mail": None, "name": "x", "flag": False}
    assert render(text, {**context, "words": "srun $X"}) == (
        "#!/bin/bash\n#SBATCH --requeue\nmodule load cuda\nmodule load 'a b'\n"
        "echo X x-1 cuda 'a b' false srun $X 'srun $X'\n"
    )


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("\n{{JOB_NAM}}\n", "x", r"t\.txt:2: .*'JOB_NAM' is undefined\n  -> did you mean `JOB_NAME`\?"),
        ("\n{{print $1}}\n", "x", r"t\.txt:2: broken template(.|\n)*verbatim"),
        ("\n{% if %}\n", "x", r"t\.txt:2: broken template"),
        ("\r\n", "x", "dos2unix"),
        ("\nx\ue00a\n", "x", r"t\.txt:2: .*holds a character"),
        ("\n{{JOB_NAME}}\n", "a\0b", "a value holds a character"),
        ("\n#SBATCH -J {{JOB_NAME}}\n", "a\nb", "a directive is one line"),
        ("\n{{JOB_NAME}}\n", {"a": 1}, "a mapping has no text"),
    ],
)
def test_what_cannot_be_rendered_is_told_with_its_place(text: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        render("#!/bin/bash" + text, {"job_name": value}, file="t.txt")
