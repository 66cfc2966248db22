"""`run` and `wrap`: one line does exactly what `submit` of the config does that it stands for."""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, path_without_cluster, printed, shown_files, until
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from oellm_autoexp.config import yaml_loader, yaml_writer
from oellm_autoexp.services import calls, one_line

#: Appends its words to a file, as one JSON text.
NOTE = "import json, sys; open('ran', 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
TINY = ("run", "--local", "--name", "tiny", "--sweep", "lr=1e-3,3e-4", "--sweep", "seed=range(0,2)")
NO_RESTART = ("-o", "restart_policies.crash.class_name=NoRestartPolicy")
WORDS = ("--", "python3", "-c", NOTE, "--lr={lr}", "{seed}")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def ran(folder: Path) -> list[list[str]]:
    return sorted(json.loads(line) for line in (folder / "ran").read_text().splitlines())


def shown(cli: Cli, *words: str) -> list[dict[str, Any]]:
    """The jobs of a plan, by a command that only shows them."""
    done = cli.within(words[0], "--json", *words[1:])
    assert done.returncode == 0, done.stderr
    jobs: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
    return jobs


def line(*words: str) -> tuple[str, ...]:
    """A line with more options before its command."""
    return (*TINY, *words, *WORDS)


# ---------------------------------------------------------------- run


def test_a_line_is_run_once_and_goes_on_when_it_is_typed_again(tmp_path: Path, cli: Cli) -> None:
    """Each combination once; the session has the name; other words are refused with the difference."""
    done = cli(*line())
    assert done.returncode == 0, done.stdout + done.stderr
    words = [["--lr=0.0003", "0"], ["--lr=0.0003", "1"], ["--lr=0.001", "0"], ["--lr=0.001", "1"]]
    assert ran(tmp_path) == words
    assert "4 already done: nothing is submitted again" in cli.within(*line()).stdout
    assert set(cli.states("tiny")) == {
        f"tiny_lr{lr}_seed{seed}" for lr in ("0.001", "0.0003") for seed in (0, 1)
    }
    refused = cli.within(*TINY, *WORDS[:-1], "--seed={seed}")
    assert refused.returncode == 2 and "0 -> --seed=0" in refused.stderr and "--name" in refused.stderr
    assert ran(tmp_path) == words
    more = cli(*TINY[:-1], "seed=0,1,2", *WORDS)
    assert more.returncode == 0 and len(ran(tmp_path)) == 6
    assert cli(*TINY, "--update", *WORDS[:-1], "--seed={seed}").returncode == 0
    assert ["--lr=0.001", "--seed=1"] in ran(tmp_path)


def test_a_line_is_its_saved_config(tmp_path: Path, cli: Cli) -> None:
    """Same jobs with same ids; what the line has finished, `submit` of the file finds done, and back."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "config" / "slurm").mkdir(parents=True)
    (tmp_path / "config" / "slurm" / "ours.yaml").write_text("sbatch: {nodes: 2, partition: p}\n")
    given = ("-o", "slurm=ours", "-o", "slurm.sbatch.time=4:00:00", "-o", "backend.cwd=sub")
    given += ("-o", "restart_policies.crash.nan.class_name=NoRestartPolicy", "-o", "scheduler.max_jobs=2")
    planned = shown(cli, *line(*given, "--dry-run"))
    saved = cli.within(*line(*given, "--save-config", "tiny.yaml"))
    assert saved.returncode == 0 and "oellm-autoexp submit tiny.yaml" in saved.stdout, saved.stderr
    assert not (tmp_path / "outputs").exists()
    assert shown(cli, "plan", "tiny.yaml", "--dry-run") == planned
    assert cli(*line(*given)).returncode == 0
    assert len(ran(tmp_path / "sub")) == 4
    again = cli.within("submit", "tiny.yaml")
    assert again.returncode == 0 and "0 new; 4 already done" in again.stdout, again.stderr
    kept = tmp_path / "outputs/tiny/.oellm-autoexp/config.yaml"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert yaml_loader.load(kept)["slurm"] == {"sbatch": {"time": "4:00:00"}}
    # The same line leaves the file alone, another does not replace it.
    assert cli.within(*line(*given, "--save-config", "tiny.yaml")).returncode == 0
    refused = cli.within(*line("--save-config", "tiny.yaml"))
    assert refused.returncode == 2 and "exists already" in refused.stderr


def test_the_saved_config_may_move_with_its_outputs(tmp_path: Path, cli: Cli) -> None:
    """Its output directory is relative to it, where it lies below it."""
    assert cli.within(*line("--save-config", "tiny.yaml")).returncode == 0
    assert yaml_loader.load(tmp_path / "tiny.yaml")["project"]["base_output_dir"] == "./outputs/tiny"
    (tmp_path / "far").mkdir()
    assert cli.within(*line("--save-config", "far/tiny.yaml")).returncode == 0
    elsewhere = yaml_loader.load(tmp_path / "far" / "tiny.yaml")["project"]["base_output_dir"]
    assert elsewhere == str(tmp_path / "outputs" / "tiny")


HOSTILE = (
    "a b",
    "it's",
    '"',
    "; touch hacked",
    "$(touch hacked)",
    "`touch hacked`",
    "${HOME}",
    "ü🙂",
    "-n",
    "\\",
)
PLACED = (
    "{note}",
    "--note={note}",
    "\\{note}",
    "${note}",
    "{{note}}",
    "${{HOME}}",
    "*",
    "a\nb",
    "",
    "--",
    "~",
)


def test_values_and_words_reach_the_command_as_they_stand(tmp_path: Path, cli: Cli) -> None:
    """Blanks, quotes, what a shell or a config would take for its own, dashes, line ends, braces."""
    values = ",".join("'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" for value in HOSTILE)
    doubled = [value.replace("{", "{{").replace("}", "}}") for value in HOSTILE]
    done = cli("run", "--local", "--sweep", f"note={values}", "--", "python3", "-c", NOTE, *PLACED, *doubled)
    assert done.returncode == 0, done.stdout + done.stderr
    rest = ["{note}", "${HOME}", "*", "a\nb", "", "--", "~", *HOSTILE]
    expected = [[value, f"--note={value}", f"\\{value}", f"${value}", *rest] for value in HOSTILE]
    assert ran(tmp_path) == sorted(expected)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TINY, "--", "echo", "{lr}", "{sed}"], "did you mean `seed`?"),
        ([*TINY, "--", "echo", "{lr} {}"], "braces that are text are doubled: {{lr}} {{}}"),
        ([*TINY, "--", "echo", "{lr} {seed"], "`{` names no variable"),
        ([*TINY, "--", "echo", "{jb.name}"], "did you mean `job.name`?"),
        ([*TINY, "--", "echo", "{lr}"], "use it as {seed} in the command"),
        ([*TINY, "--sweep", "lr=1", "--", "echo", "{lr} {seed}"], "`lr` is swept already"),
        (["run", "--local"], "oellm-autoexp run -- python train.py"),
        (["run", "--local", "--sweep", "lr", "--", "echo"], "for example --sweep lr=1e-3,3e-4"),
        (["run", "--local", "--sweep", "lr=ü", "--", "echo"], "put other texts in quotes"),
        (["run", "--local", "--sweep", "lr=interval(0,1)", "--", "echo"], "choices and ranges"),
        (["run", "--local", "--sweep", "lr=shuffle(0,1)", "--", "echo"], "leave `shuffle` out"),
        (["run", "--local", "--sweep", "lr=range(0,0)", "--", "echo"], "there would be no jobs"),
        (["run", "--local", "--sweep", "+lr=1", "--", "echo"], "an axis is KEY=VALUES"),
        (["run", "--local", "--name", "a/b", "--", "echo"], "cannot be the name"),
        (["run", "--local", "--fake", "--", "echo"], "--local excludes"),
        (["run", "--local", "--", "echo", "???"], "stands for a value that is still to be set"),
        (["run", "--local", "-o", "backend.command=[ls]", "--", "echo"], "the command stands behind `--`"),
        (["run", "--local", "-o", "slurm.environment.MY_TOKEN=x1y2", "--", "echo"], "oc.env"),
        (["run", "--local", "-o", "slurm.sbtch.nodes=2", "--", "echo"], "slurm.sbtch"),
        (["run", "--", "echo"], "--local runs the jobs on this machine"),
    ],
)
def test_mistakes_are_refused_with_a_repair(
    words: list[str], said: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit 2; nothing was written, no temporary file is named, and no secret is repeated."""
    elsewhere = tmp_path_factory.mktemp("path")
    cli = Cli(tmp_path, home=elsewhere / "home", PATH=path_without_cluster(elsewhere / "bin"))
    refused = cli.within(*words)
    assert refused.returncode == 2 and said in refused.stderr, refused.stderr
    assert "oellm-autoexp-run-" not in refused.stderr and "x1y2" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_sweep_it_is_one_job_named_after_the_command(tmp_path: Path, cli: Cli) -> None:
    """Exit 1 and the reason where it fails; `--json` as of submit; `retry` and `monitor` know it."""
    (tmp_path / "My train.sh").write_text("echo RuntimeError: no data; test -e mended || exit 3\n")
    words = ("run", "--local", *NO_RESTART, "--json", "--", "sh", "My train.sh")
    done = cli(*words, "{job.output_dir}")
    (job,) = json.loads(done.stdout)["jobs"]
    assert (done.returncode, job["name"], job["state"]) == (1, "My-train", "failed")
    assert "RuntimeError: no data" in job["reason"]
    (tmp_path / "mended").touch()
    assert cli("retry", "My-train").returncode == 0
    assert cli("monitor", "My-train").returncode == 0


def test_a_dry_run_and_a_rehearsal_run_nothing(tmp_path: Path, cli: Cli) -> None:
    """The first writes nothing either, and shows the config."""
    dry = cli.within(*line("--dry-run"))
    assert (
        dry.returncode == 0
        and "class_name: CommandBackend" in dry.stdout
        and "Nothing was written." in dry.stdout
    )
    assert not (tmp_path / "outputs").exists()
    words = ("run", "--fake", "--sweep", "i=1,2", "--canary", "1", "--", "python3", "-c", NOTE, "{i}")
    played = cli.within(*words)
    assert played.returncode == 0 and "2 succeeded" in played.stdout, played.stderr
    assert not (tmp_path / "ran").exists()


def test_a_line_is_watched_in_the_background(tmp_path: Path, cli: Cli) -> None:
    """The terminal is free at once; the session has its verdict later."""
    words = (
        "run",
        "--local",
        "--detach",
        "--name",
        "far",
        "--",
        "sh",
        "-c",
        "until test -e go; do sleep 0.1; done",
    )
    begun = cli(*words)
    assert begun.returncode == 0 and "oellm-autoexp status" in begun.stdout, begun.stderr
    (tmp_path / "go").touch()
    until(lambda: cli.states("far") == {"far": ("succeeded", 1)}, "it has succeeded")


# ---------------------------------------------------------------- any command, any sweep

PIECES = st.one_of(
    st.sampled_from([*"$\\'\"[]#%-?!&*,|>@`=~ü🙂:;() \n", "{{", "}}", "{a}", "{b}", "${a}", "${{", "1e-3"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\ue000\ue001\ue00f{}"), max_size=6),
)
TEXTS = st.lists(PIECES, max_size=6).map("".join)
VALUES = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\ue000\ue001\ue00f"), min_size=1, max_size=8),
)
AXES = st.fixed_dictionaries({key: st.lists(VALUES, min_size=1, max_size=3, unique_by=repr) for key in "ab"})


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def typed(value: Any) -> str:
    """A value as a person types it for Hydra."""
    if not isinstance(value, str):
        return text_of(value)
    # A backslash counts where it stands before a quote.
    end = len(value) - len(value.rstrip("\\"))
    quoted = value.replace("\\'", "\\\\'").replace("'", "\\'") + "\\" * end
    return f"'{quoted}'"


def expected(word: str, values: Mapping[str, Any]) -> str:
    """What a word becomes, piece by piece."""
    out, rest = "", word
    while rest:
        for piece, text in [
            ("{{", "{"),
            ("}}", "}"),
            *((f"{{{key}}}", text_of(v)) for key, v in values.items()),
        ]:
            if rest.startswith(piece):
                out, rest = out + text, rest.removeprefix(piece)
                break
        else:
            out, rest = out + rest[0], rest[1:]
    return out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, max_size=5), AXES)
def test_the_saved_config_gives_the_words_of_the_line(
    tmp_path: Path, words: list[str], axes: dict[str, list[Any]]
) -> None:
    """For any command and any sweep: the same argv, names and ids, and it is what the braces say."""
    assume("???" not in words and "???" not in axes["a"] + axes["b"])
    assume(not any("'" in v and "\\" in v for v in axes["a"] + axes["b"] if isinstance(v, str)))
    assume(len({text_of(v) for v in axes["a"]}) == len(axes["a"]))
    assume(len({text_of(v) for v in axes["b"]}) == len(axes["b"]))
    given_line = one_line.Line(
        command=["echo", *words, "{a}", "{b}"],
        name="any",
        sweep=[f"{key}={','.join(map(typed, values))}" for key, values in axes.items()],
        scheduler="local",
    )
    planned = [
        (job.spec.name, job.spec.id, job.spec.argv) for job in one_line.planned(given_line, tmp_path).jobs
    ]
    file = tmp_path / "any.yaml"
    file.write_text(yaml_writer.dump(one_line.config_of(given_line, tmp_path)), encoding="utf-8")
    read = [(job.spec.name, job.spec.id, job.spec.argv) for job in calls.planned(file).jobs]
    assert planned == read
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    assert [list(argv) for _, _, argv in planned] == [
        [expected(word, point) for word in given_line.command] for point in points
    ]


JSON = st.recursive(
    st.one_of(VALUES, st.none(), st.lists(TEXTS, min_size=2, max_size=5).map("\n".join)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(TEXTS.filter(lambda key: key != "<<"), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["project", "slurm", "sweep"]), JSON, min_size=1))
def test_what_is_written_is_read_as_the_same(config: dict[str, Any]) -> None:
    """Any plain values, texts of several lines too."""
    assert yaml_loader.parse(yaml_writer.dump(config), "written") == config


# ---------------------------------------------------------------- wrap

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH -N2 --time=1:00:00 -o slurm-%j.out
# what it is for

set -u
for word in "$@"; do
	printf '<%s>' "${word}" >> ran
done
echo " $0 old" >> ran
"""


def script(folder: Path, text: str = SCRIPT, name: str = "job.sbatch") -> str:
    (folder / name).write_text(text)
    return name


def test_a_script_runs_as_it_was_when_it_was_wrapped(tmp_path: Path, cli: Cli) -> None:
    """With its arguments; an edit reaches no job that is there, and is refused as another job."""
    words = ("wrap", "--local", script(tmp_path), "--", "a b", "$(id)", "{{x}}")
    done = cli(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: --output is left out" in done.stderr
    assert (tmp_path / "ran").read_text() == "<a b><$(id)><{x}> job.sbatch old\n"
    assert cli.states("outputs/train") == {"train": ("succeeded", 1)}
    script(tmp_path, SCRIPT.replace("old", "new"))
    refused = cli.within(*words)
    assert refused.returncode == 2
    assert 'echo " $0 old" >> ran -> echo " $0 new" >> ran' in refused.stderr
    assert cli("retry", "train", "train").returncode == 0
    assert cli("monitor", "train").returncode == 0
    assert (tmp_path / "ran").read_text().count("old") == 2
    assert cli(*words[:2], "--update", *words[2:]).returncode == 0
    assert (tmp_path / "ran").read_text().endswith("new\n")


def test_what_a_script_asks_of_slurm_is_no_other_job(tmp_path: Path, cli: Cli) -> None:
    """Its directives are slurm.sbatch, below -o; other ones apply to the jobs that are there."""
    words = ("wrap", script(tmp_path), "--local", "-o", "slurm.sbatch.time=2:00:00")
    (before,) = shown(cli, *words, "--dry-run")
    assert cli.within(*words, "--save-config", "train.yaml").returncode == 0
    saved = yaml_loader.load(tmp_path / "train.yaml")
    assert saved["slurm"] == {"sbatch": {"nodes": 2, "time": "2:00:00"}}
    assert shown(cli, "plan", "train.yaml", "--dry-run") == [before]
    script(tmp_path, SCRIPT.replace("-N2", "--mem=32G -p gpu"))
    (after,) = shown(cli, *words, "--dry-run")
    assert (after["id"], after["argv"]) == (before["id"], before["argv"])


def test_an_array_is_a_sweep(tmp_path: Path, cli: Cli) -> None:
    """Each task has its number, and what the script reads of the others; `%2` is max_jobs."""
    text = "#!/bin/bash\n#SBATCH -a 1-5:2,8%2\n" + (
        'echo "$SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT up to $SLURM_ARRAY_TASK_MAX" >> ran\n'
    )
    done = cli("wrap", "--local", script(tmp_path, text))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted((tmp_path / "ran").read_text().split("\n")) == [
        "",
        *(f"{n} of 4 up to 8" for n in (1, 3, 5, 8)),
    ]
    assert set(cli.states("job")) == {"job_1", "job_3", "job_5", "job_8"}
    assert cli.within("wrap", "--save-config", "job.yaml", "job.sbatch").returncode == 0
    saved = yaml_loader.load(tmp_path / "job.yaml")
    assert saved["scheduler"] == {"max_jobs": 2} and "slurm" not in saved


def test_an_array_that_grows_keeps_its_tasks(tmp_path: Path, cli: Cli) -> None:
    """What the script does not read of the array is no part of its jobs."""
    text = "#!/bin/bash\n#SBATCH --array={}\n#SBATCH --export=NONE --chdir=sub -M one,two\ntrue\n"
    words = ("wrap", "job.sbatch", "--dry-run", "--local")
    script(tmp_path, text.format("0-1"))
    few = shown(cli, *words)
    script(tmp_path, text.format("0-9"))
    assert shown(cli, *words)[:2] == few
    assert (
        cli.within(
            "wrap", "job.sbatch", "--save-config", "job.yaml", "--sweep", "x=1,2", "--", "{x}"
        ).returncode
        == 0
    )
    saved = yaml_loader.load(tmp_path / "job.yaml")
    assert saved["slurm"] == {"export": "NONE"} and saved["scheduler"] == {"clusters": ["one", "two"]}
    assert saved["backend"]["cwd"] == str(tmp_path / "sub")
    assert len({job["name"] for job in shown(cli, "plan", "job.yaml", "--dry-run")}) == 20


@pytest.mark.parametrize(
    ("shebang", "words"),
    [
        ("#!/bin/sh", ["/bin/sh"]),
        ("#! /bin/bash -l", ["/bin/bash", "-l"]),
        ("#!/bin/bash -", ["/bin/bash"]),
        ("#!/usr/bin/env bash", ["/usr/bin/env", "bash"]),
        ("#!/usr/bin/env -S A=1 bash -e", ["/usr/bin/env", "-S", "A=1", "bash", "-e"]),
    ],
)
def test_the_shell_is_that_of_the_script(
    shebang: str, words: Sequence[str], tmp_path: Path, cli: Cli
) -> None:
    """With its options, and it runs."""
    (job,) = shown(cli, "wrap", "--local", script(tmp_path, f"{shebang}\ntrue\n"), "--dry-run", "--", "x")
    assert job["argv"] == [*words, "-c", "true\n", "job.sbatch", "x"]
    ran = cli.run(*job["argv"])
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo\n", "begins with a line such as #!/bin/bash"),
        ("#!/usr/bin/env python3\nprint()\n", "oellm-autoexp run -- python3 job.sbatch"),
        ("#!/bin/bash\r\ntrue\r\n", "dos2unix"),
        ("#!/bin/bash\n#SBATCH --comment='x\n", "close the quotes"),
        ("#!/bin/bash\n#SBATCH -N1\n#SBATCH hetjob\n#SBATCH -N2\n", "several components"),
        ("#!/bin/bash\n#SBATCH --test-only\n", "`--dry-run` shows"),
        ("#!/bin/bash\n#SBATCH --array=1-x\n", "no tasks of an array"),
        ("#!/bin/bash\n#SBATCH --array=3-1\n", "has no tasks"),
        ("#!/bin/bash\n#SBATCH --array=1-3:0\n", "no tasks of an array"),
        (f"#!/bin/bash\n{'true # no' * 20_000}\n", "KiB"),
        ("#!/bin/bash\necho \0\n", "NUL"),
        ("#!/bin/bash\n#SBATCH --time=soon\n", "slurm.sbatch.time"),
    ],
)
def test_a_script_that_cannot_be_wrapped_is_refused(text: str, said: str, tmp_path: Path, cli: Cli) -> None:
    """With what to do instead, and nothing written."""
    refused = cli.within("wrap", "--local", script(tmp_path, text))
    assert refused.returncode == 2 and said in refused.stderr, refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_script_that_is_not_there_is_refused(tmp_path: Path, cli: Cli) -> None:
    """As are bytes that are no text."""
    assert "cannot be read" in cli.within("wrap", "--local", "job.sbatch").stderr
    (tmp_path / "job.sbatch").write_bytes(b"#!/bin/bash\n\xff\n")
    refused = cli.within("wrap", "--local", "job.sbatch")
    assert refused.returncode == 2 and "UTF-8" in refused.stderr


def test_the_report_says_how_a_line_is_done_again(tmp_path: Path, cli: Cli) -> None:
    """By the config that is kept of it."""
    assert cli("run", "--local", "--name", "one", "--", "true").returncode == 0
    assert cli.within("report", "one", "-o", "report.md").returncode == 0
    text = next(
        row for row in (tmp_path / "report.md").read_text().splitlines() if "oellm-autoexp submit" in row
    )
    words = shlex.split(text)
    again = cli.within(*words[words.index("submit") :])
    assert again.returncode == 0 and "1 already done" in again.stdout, again.stderr


# ---------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", ["run.md", "coming-from.md"])
def test_every_command_of_a_page_does_what_it_says(page: str, tmp_path: Path, cli: Cli) -> None:
    """One after the other, in a directory with a training and a batch script."""
    (tmp_path / "train.py").write_text("import sys; open('ran', 'a').write(' '.join(sys.argv) + '\\n')\n")
    script(tmp_path, SCRIPT.replace("=train", "=wrapped"))
    for name, text in shown_files("generate.md").items():
        (tmp_path / name).write_text(text)
    tried = 0
    for words in printed(page):
        if words[0] == "adopt":  # It needs a job of another's.
            continue
        done = cli(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        tried += 1
        if "hydra" in words and words[0] == "run":
            saved = cli.within("run", "--save-config", "hydra.yaml", *words[1:])
            assert saved.returncode == 0, saved.stderr
    assert tried >= 6
    assert len(set((tmp_path / "ran").read_text().splitlines())) >= 5
