"""Which points won, and which values make trouble: told of a real session, in every form."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import ROOT, Cli

#: Two learning rates by two tags, by two seeds; one tag is as hostile as a value can be, one rate diverges.
TAG = "a|b <i>\"q\"'c', é,\n-- {x}"
RATES, TAGS, SEEDS = (0.001, 0.1), ("plain", TAG), (0, 1)
TRAIN = """
import json, sys
lr, tag, seed = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
loss = 2.0 + lr + seed / 8 + (tag == "plain")
if lr == 0.1 and seed == 1:
    loss = float("nan")
told = {"metrics": {"loss": loss, "acc": 1 / (1 + lr), "odd|<name>": seed}, "progress": {"step": 100 + seed}}
if not (lr == 0.001 and seed == 1 and tag == "plain"):
    print("@autoexp", json.dumps(told), flush=True)
sys.exit(lr == 0.1)
"""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A directory in which the session has come to its end; nothing that is tried here changes it."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "train.py").write_text(TRAIN)
    config: dict[str, Any] = {
        "project": {"name": "tiny"},
        "backend": {
            "class_name": "CommandBackend",
            "command": ["python3", "train.py", "${lr}", "${tag}", "${seed}"],
        },
        "sweep": {
            "axes": {"lr": list(RATES), "tag": list(TAGS), "seed": list(SEEDS), "rank": [7]},
            "name_template": "tiny_{lr}_{seed}_{index}",
        },
        "restart_policies": {"crash": {"class_name": "NoRestartPolicy"}},
        "scheduler": {"class_name": "local", "max_jobs": 4},
    }
    config["backend"]["command"].append("${rank}")
    (folder / "sweep.yaml").write_text(json.dumps(config))
    made = Cli(folder)
    done = made("submit", "sweep.yaml", "--local")
    assert done.returncode == 1, done.stdout + done.stderr
    assert sorted(state for state, _ in made.states().values()) == ["failed"] * 4 + ["succeeded"] * 4
    return made


def results(cli: Cli, *words: str) -> str:
    done = cli.within("results", "outputs", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_metric_those_that_there_are_are_listed(cli: Cli) -> None:
    assert results(cli).splitlines() == [
        "acc         7 of 8 jobs  high is better",
        "loss        7 of 8 jobs  low is better",
        "odd|<name>  7 of 8 jobs",
        "step        7 of 8 jobs",
        "Compare: oellm-autoexp results SESSION --metric NAME",
    ]
    listed = json.loads(results(cli, "--format", "json"))["metrics"]
    assert listed[0] == {"name": "acc", "jobs": 7, "better": "high"} and listed[2]["better"] is None
    assert list(csv.reader(io.StringIO(results(cli, "--format", "csv"))))[1] == ["acc", "7", "high"]
    assert "| odd\\|\\<name\\> | 7 |  |" in results(cli, "--format", "md")


def test_the_best_job_comes_first_and_nobody_is_dropped(cli: Cli) -> None:
    """One row a job for a file or a program; what is NaN has no rank; who has no such metric is named."""
    found = json.loads(results(cli, "--metric", "loss", "--format", "json"))
    assert list(found) == [
        "session", "metric", "statistic", "better", "by", "averaged_over", "groups", "jobs", "without",
    ]  # fmt: skip
    assert (found["statistic"], found["better"], found["by"], found["groups"]) == ("min", "low", [], [])
    first = found["jobs"][0]
    assert first["value"] == 2.001 and first["step"] == 100 and first["rank"] == 1 and first["attempt"] == 1
    assert first["parameters"] == {"lr": 0.001, "tag": TAG, "seed": 0, "rank": 7}
    values = [job["value"] for job in found["jobs"]]
    assert values[:5] == sorted(values[:5]) and values[5:] == [None, None]
    assert [job["rank"] for job in found["jobs"]] == [1, 2, 3, 4, 5, None, None]
    assert [each["state"] for each in found["without"]] == ["succeeded"]
    lines = results(cli, "--metric", "loss").splitlines()
    assert lines[0] == (
        f"Best: {first['job']}, 2.001 at step 100. The least loss of each job counts; less is better."
    )
    assert lines[2].startswith("1 *") and len(lines) == 2 + 7 + 2
    assert lines[-2] == f"1 job has no loss: {found['without'][0]['job']} (succeeded)"
    assert lines[-1].startswith("2 jobs have no finite value, and no rank: tiny_0.1_1_")
    assert not any(line.endswith(" ") for line in lines)


def test_values_of_a_key_are_compared_by_their_means(cli: Cli) -> None:
    found = json.loads(results(cli, "--metric", "loss", "--by", "lr", "--format", "json"))
    assert found["averaged_over"] == ["tag", "seed"]
    good, bad = found["groups"]
    assert good["values"] == {"lr": "0.001"} and (good["jobs"], good["without"]) == (4, 1)
    assert good["mean"] == pytest.approx((2.001 + 2.126 + 3.001) / 3) and good["best"] == 2.001
    assert (bad["jobs"], bad["not_finite"], bad["without"]) == (4, 2, 0)
    assert bad["std"] == pytest.approx(math.sqrt(0.5))
    assert sum(group["jobs"] for group in found["groups"]) == 8
    pairs = json.loads(results(cli, "--metric", "loss", "--by", "tag,lr", "--format", "json"))
    assert pairs["groups"][0]["values"] == {"tag": TAG, "lr": "0.001"}
    assert "3 of 4" in results(cli, "--metric", "loss", "--by", "lr")


def test_a_table_for_programs_can_be_read_back(cli: Cli) -> None:
    """RFC 4180, whatever the values; a parameter called as a column is told apart."""
    text = results(cli, "--metric", "loss", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 8 and {row["tag"] for row in rows} == set(TAGS)
    assert [row["value"] for row in rows[-3:]] == ["nan", "nan", ""]
    assert float(rows[0]["value"]) == 2.001 and set(rows[0]) >= {"rank", "job", "state", "step", "count"}
    by = results(cli, "--metric", "loss", "--by", "rank,tag", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(by, newline="")))
    assert [row["parameters.rank"] for row in rows] == ["7", "7"] and [row["rank"] for row in rows] == [
        "1",
        "2",
    ]


def test_what_a_value_says_stays_text(cli: Cli) -> None:
    """In Markdown one row a job, in the table one line."""
    for words in (["--by", "tag"], []):
        text = results(cli, "--metric", "loss", *words, "--format", "md")
        rows = [line for line in text.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(cells) == 1 and "<i>" not in text and len(rows) == 2 + (2 if words else 7)
    assert r"a|b <i>\"q\"'c', é,\n-- {x}".replace('\\"', '"') in results(
        cli, "--metric", "loss", "--by", "tag"
    )


@pytest.mark.parametrize("words", [["--by", "lr"], ["--by", "tag"], ["--by", "lr,tag,seed"], []])
def test_a_drawing_has_a_mark_for_each_job(cli: Cli, words: list[str], tmp_path: Path) -> None:
    root = ElementTree.fromstring(results(cli, "--metric", "loss", *words, "--format", "svg"))
    marks = [each for each in root.iter() if "mark" in (each.get("class") or "").split()]
    assert len(marks) == 7
    assert "1 job has no loss" in "".join(root.itertext())
    path = tmp_path / "drawn.svg"
    assert results(cli, "--metric", "loss", *words, "-o", str(path)) == f"Written: {path}\n"
    assert ElementTree.fromstring(path.read_text()).tag == root.tag


def test_what_counts_and_what_is_better_can_be_said(cli: Cli) -> None:
    def best(*words: str) -> Any:
        return json.loads(results(cli, *words, "--format", "json"))["jobs"][0]["value"]

    assert best("--metric", "acc") == pytest.approx(1 / 1.001) and best("--metric", "acc", "--min") < 0.91
    assert best("--metric", "loss", "--last") == 2.001 and best("--metric", "loss", "--mean") == 2.001
    assert best("--metric", "loss", "--max") == 3.1 and best("--metric", "loss", "--better", "high") == 3.1
    assert best("--metric", "odd|<name>", "--last", "--better", "low") == 0
    assert best("--metric", "loss", "tag=plain") == 3.001
    found = json.loads(results(cli, "--metric", "loss", "--step", "odd|<name>", "--format", "json"))
    assert {(job["parameters"]["seed"], job["step"]) for job in found["jobs"][:5]} == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "los"], "no job has a metric `los`\n  -> did you mean `loss`?"),
        (["--metric", "los", "--min"], "did you mean `loss`?"),
        (["--metric", "step"], "is less or more of `step` better? Its name does not tell"),
        (["--metric", "loss", "--by", "lrr"], "did you mean `lr`?"),
        (["--metric", "loss", "--min", "--last"], "--min and --last exclude each other"),
        (["--metric", "loss", "--format", "pdf"], "--format is table, md, csv, json or svg, not 'pdf'"),
        (["--metric", "loss", "--better", "up"], "--better is low or high, not 'up'"),
        (["--by", "lr"], "results of what?"),
        (["--metric", "loss", "nobody"], "no job is meant by 'nobody'"),
        (["--metric", "loss", "-o", "."], "it is a directory"),
    ],
)
def test_what_cannot_be_ranked_is_refused(cli: Cli, words: list[str], said: str) -> None:
    """With what to do instead."""
    refused = cli.within("results", "outputs", *words)
    assert refused.returncode == 2 and said in refused.stderr and not refused.stdout, refused.stderr


def test_what_differs_from_the_rest_is_said_first(cli: Cli) -> None:
    """For people a line and a table, for programs the same with counts that add up."""
    done = cli.within("collections", "analyze", "outputs")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "lr=0.1: 4 of 4 crash, others 0 of 4" and lines[1] == ""
    assert re.match(r"lr +0\.1 +4 +0 of 4 \(0 %\) +4 of 4 \(100 %\) +crash 4 ", lines[3])
    told = json.loads(cli.within("collections", "analyze", "outputs", "--json", "--by", "lr,tag").stdout)
    assert told["findings"][0]["text"] == lines[0] and told["parameters"] == ["lr", "tag"]
    assert [row["jobs"] for row in told["values"]] == [4] * 4
    assert {row["value"] for row in told["values"]} == {"0.1", "0.001", *TAGS}
    few = cli.within("collections", "analyze", "outputs", "--min-support", "5").stdout
    assert "6 values with fewer than 5 jobs left out" in few
    assert (
        "5 more below these: --top 6" in cli.within("collections", "analyze", "outputs", "--top", "1").stdout
    )
    refused = cli.within("collections", "analyze", "outputs", "--by", "lrr")
    assert refused.returncode == 2 and "did you mean `lr`?" in refused.stderr
    assert cli.within("collections", "analyze", "outputs", "--top", "0").returncode == 2


def test_a_report_has_the_results(cli: Cli, tmp_path: Path) -> None:
    """By the metrics that most jobs have, a loss first."""
    path = tmp_path / "report.md"
    assert cli.within("report", "outputs", "-o", str(path)).returncode == 0
    section = path.read_text().split("## Results\n")[1].split("\n## ")[0]
    assert section.index("least loss") < section.index("greatest acc")
    assert "1 job has no loss" in section


def test_what_an_updated_job_said_before_is_of_another_point(tmp_path: Path) -> None:
    """Only what its name stands for now counts."""
    cli = Cli(tmp_path)
    for loss in (1.0, 2.0):
        said = f'print(\'@autoexp {{"metrics": {{"loss": {loss}}}}}\')'
        config = {
            "project": {"name": "changed"},
            "backend": {"class_name": "CommandBackend", "command": ["python3", "-c", said]},
            "scheduler": {"class_name": "local"},
        }
        (tmp_path / "one.yaml").write_text(json.dumps(config))
        done = cli("submit", "one.yaml", "--update", "--local")
        assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results(cli, "--metric", "loss", "--format", "json"))
    assert [(job["value"], job["attempt"], job["count"]) for job in found["jobs"]] == [(2.0, 2, 1)]


def test_a_session_without_metrics_says_how_to_have_some(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert cli("run", "--local", "--name", "dumb", "--", "true").returncode == 0
    listed = cli.within("results", "dumb")
    assert listed.returncode == 0 and "@autoexp" in listed.stdout
    refused = cli.within("results", "dumb", "--metric", "loss")
    assert refused.returncode == 2 and "no metrics have been kept yet" in refused.stderr


def test_every_command_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    """One after the other, on a session with the keys that it speaks of."""
    cli = Cli(tmp_path)
    (tmp_path / "train.py").write_text(
        "import json, sys\n"
        "print('@autoexp', json.dumps({'metrics': {'loss': float(sys.argv[1]), 'step': 1}}))\n"
    )
    config = {
        "project": {"name": "tiny"},
        "backend": {"class_name": "CommandBackend", "command": ["python3", "train.py", "${lr}", "${batch}"]},
        "sweep": {"axes": {"lr": [1e-3, 3e-4], "batch": [16, 32]}},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(config))
    assert cli("submit", "sweep.yaml", "--local").returncode == 0
    page, tried = (ROOT / "docs" / "howto" / "results.md").read_text(), 0
    for found in re.findall(r"^    oellm-autoexp (.*)", page, re.MULTILINE):
        done = cli.within(*shlex.split(found, comments=True))
        assert done.returncode == 0 and done.stdout, (found, done.stderr)
        tried += 1
    assert tried >= 10
    assert ElementTree.parse(tmp_path / "by-lr.svg") and ElementTree.parse(tmp_path / "curves.svg")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 4
