"""`generate`: scripts are written once, kept in step with their spec, and a person's edits are never lost."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, Cli, Done, Running, printed, shown_files
from deaths import Fatal, Killed
from rights import ordinary

from oellm_autoexp import CollectionManager, JobGenerator, generate_jobs_from_spec
from oellm_autoexp.errors import UsageError
from oellm_autoexp.services.collections import generate
from oellm_autoexp.services.collections import places as collections
from oellm_autoexp.services.collections.places import Place
from oellm_autoexp.store.effects import Effects

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --partition={{ slurm.partition }}
#SBATCH --time={{ slurm.time }}
#SBATCH --output={{ logs_dir }}/{{ job_name }}.%j.out

echo "{{ job_name }} --learning-rate {{ learning_rate }} --batch-size {{ batch_size }}" >> ran
"""
SPEC: dict[str, Any] = {
    "name": "exp1_sweep",
    "description": "Learning rate and batch size sweep",
    "template": "../../templates/train.job.j2",
    "output_dir": "job_scripts",
    "logs_dir": "logs",
    "parameters": {"values": {"learning_rate": [0.001, 0.01], "batch_size": [32, 64], "model": ["resnet18"]}},
    "slurm_args": {"defaults": {"partition": "gpu", "time": "24:00:00"}},
    "job_name_pattern": "{{ model }}_lr{{ learning_rate }}_bs{{ batch_size }}",
}
NAMES = [f"resnet18_lr{lr}_bs{bs}" for lr in ("0.001", "0.01") for bs in (32, 64)]
HOWTO = ROOT / "docs/howto"
WORDS = ("generate", "job_spec.yaml", "--collection", "exp1")


class Bench:
    """A directory with a template and a spec, as the pages have it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "experiments/exp1"
        self.home.mkdir(parents=True)
        (root / "templates").mkdir()
        self.template = root / "templates/train.job.j2"
        self.template.write_text(TEMPLATE)
        self.spec()
        self.cli = Cli(self.home, home=root / "state")

    def spec(self, file: str = "job_spec.yaml", **changes: Any) -> None:
        (self.home / file).write_text(json.dumps({**SPEC, **changes}))

    def __call__(self, *words: str) -> dict[str, Any]:
        """What `generate --json` says."""
        done = self.cli.within(*words, "--json")
        assert done.returncode == 0, done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    @property
    def scripts(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted((self.home / "job_scripts").glob("*"))}

    @property
    def record(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads((self.state / "collection.json").read_text())
        return body

    @property
    def state(self) -> Path:
        return self.home / "outputs/exp1/.oellm-autoexp"

    def files(self) -> dict[str, bytes]:
        """All there is, but for the registry of the user."""
        files = [path for path in self.home.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.home)): path.read_bytes() for path in files}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def axes(**values: Any) -> dict[str, Any]:
    return {"values": {**SPEC["parameters"]["values"], **values}}


# ---------------------------------------------------------------- the first run and the next


def test_scripts_are_generated_as_a_preview_has_shown_them(bench: Bench) -> None:
    """The preview writes nothing; the logs have a directory; what is next is said."""
    before = bench.files()
    shown = bench.cli.within("generate", "job_spec.yaml", "--dry-run")
    assert shown.returncode == 0 and bench.files() == before, shown.stderr
    assert "Would be: 4 new\nNothing was written." in shown.stdout
    done = bench.cli.within(*WORDS)
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stdout.splitlines() if line.startswith("  res")] == NAMES
    assert "Generated: 4 new" in done.stdout and "submit --collection exp1" in done.stdout
    assert list(bench.scripts) == sorted(f"{name}.job" for name in NAMES)
    assert bench.scripts[f"{NAMES[0]}.job"] in shown.stdout
    assert f"--output={bench.home}/logs/{NAMES[0]}.%j.out\n" in bench.scripts[f"{NAMES[0]}.job"]
    assert (bench.home / "logs").is_dir()
    assert (bench.home / f"job_scripts/{NAMES[0]}.job").stat().st_mode & 0o111
    (origin,) = bench.record["origins"].values()
    assert origin["description"] == SPEC["description"]


def test_a_second_run_changes_nothing_at_all(bench: Bench) -> None:
    """Not a byte and no time of a file, with a tuple and a nested value in it too."""
    (bench.home / "f.py").write_text(
        "def get_slurm_args(params, defaults):\n    return {**defaults, 'gres': ('gpu', {'n': 1})}\n"
    )
    bench.spec(slurm_args={**SPEC["slurm_args"], "logic": "f.py"})
    assert bench(*WORDS)["added"] == NAMES
    before = {path: path.stat().st_mtime_ns for path in bench.home.rglob("*")}
    body = bench(*WORDS)
    assert (body["unchanged"], body["added"], body["changed"]) == (NAMES, [], [])
    assert {path: path.stat().st_mtime_ns for path in bench.home.rglob("*")} == before


def test_an_edited_spec_adds_what_is_new_and_keeps_what_it_has_no_more(bench: Bench) -> None:
    """Only the new scripts are written; the others stay in the collection, and that is said."""
    bench(*WORDS)
    first = bench.home / f"job_scripts/{NAMES[0]}.job"
    before = first.stat().st_mtime_ns
    bench.spec(parameters=axes(batch_size=[32, 128]))
    done = bench.cli.within(*WORDS)
    assert "Generated: 2 new, 2 unchanged, 2 no longer in it" in done.stdout
    assert "collections show exp1" in done.stdout
    assert first.stat().st_mtime_ns == before and len(bench.scripts) == len(bench.record["jobs"]) == 6


def test_an_edited_template_changes_the_scripts(bench: Bench) -> None:
    bench(*WORDS)
    bench.template.write_text(TEMPLATE + "echo more\n")
    assert bench(*WORDS)["changed"] == NAMES
    assert all(text.endswith("echo more\n") for text in bench.scripts.values())
    assert bench(*WORDS)["unchanged"] == NAMES


def test_a_script_that_is_gone_is_written_again(bench: Bench) -> None:
    bench(*WORDS)
    before = bench.scripts
    (bench.home / f"job_scripts/{NAMES[1]}.job").unlink()
    assert bench(*WORDS)["changed"] == [NAMES[1]]
    assert bench.scripts == before


# ---------------------------------------------------------------- what a person has written


def test_an_edited_script_is_kept_unless_it_is_forced(bench: Bench) -> None:
    """Refused before anything is written; where the spec stays the same it is the edit that counts, too."""
    bench(*WORDS)
    mine = bench.home / f"job_scripts/{NAMES[1]}.job"
    mine.write_text("#!/bin/bash\necho mine\n")
    bench.spec(parameters=axes(learning_rate=[0.001, 0.01, 0.1]))
    before = bench.files()
    for words in (WORDS, (*WORDS, "--dry-run")):
        refused = bench.cli.within(*words)
        assert refused.returncode == 2 and bench.files() == before
        assert f"{NAMES[1]}.job was edited" in refused.stderr and "--force overwrites it" in refused.stderr
    body = bench(*WORDS, "--force")
    assert (body["edited"], len(body["added"])) == ([NAMES[1]], 2)
    assert "mine" not in mine.read_text() and bench(*WORDS)["edited"] == []


def test_a_file_that_was_there_before_is_not_overwritten(bench: Bench) -> None:
    """And a collection that comes to nothing leaves nothing behind."""
    (bench.home / "job_scripts").mkdir()
    (bench.home / f"job_scripts/{NAMES[3]}.job").write_text("#!/bin/sh\nmine\n")
    before = bench.files()
    refused = bench.cli.within(*WORDS)
    assert refused.returncode == 2 and bench.files() == before
    assert not (bench.home / "outputs").exists() and not (bench.home / "logs").exists()


def test_a_template_that_fails_leaves_nothing_behind(bench: Bench) -> None:
    bench.template.write_text("#!/bin/sh\n{{ no_such }}\n")
    refused = bench.cli.within(*WORDS)
    assert refused.returncode == 2 and "train.job.j2:2:" in refused.stderr
    assert not (bench.home / "outputs").exists() and not (bench.home / "job_scripts").exists()


# ---------------------------------------------------------------- several specs


def test_two_specs_may_share_a_collection_but_no_name(bench: Bench) -> None:
    """The clash is refused with the other spec, before anything is written."""
    bench(*WORDS)
    bench.spec("more.yaml", parameters=axes(model=["resnet50"]), description="")
    assert len(bench("generate", "more.yaml", "--into", "exp1")["added"]) == 4
    assert len(bench.record["jobs"]) == 8 and bench(*WORDS)["missing"] == []
    bench.spec("clash.yaml", parameters=axes(model=["vit", "resnet18"]), output_dir="elsewhere")
    before = bench.files()
    refused = bench.cli.within("generate", "clash.yaml", "--collection", "exp1")
    assert refused.returncode == 2 and bench.files() == before
    assert f"another spec has a job `{NAMES[0]}`" in refused.stderr and "job_spec.yaml" in refused.stderr


def test_what_is_a_session_already_is_no_collection_and_the_other_way_round(bench: Bench) -> None:
    """Either is refused before it touches the other."""
    config = {
        "project": {"name": "exp1", "base_output_dir": "./outputs/exp1"},
        "backend": {"class_name": "CommandBackend", "command": ["true"]},
        "scheduler": {"class_name": "local"},
    }
    (bench.home / "sweep.yaml").write_text(json.dumps(config))
    bench(*WORDS)
    refused = bench.cli.within("submit", "sweep.yaml")
    assert refused.returncode == 2 and "it is a collection" in refused.stderr
    shutil.rmtree(bench.home / "outputs")
    assert bench.cli("submit", "sweep.yaml").returncode == 0
    before = bench.files()
    for words in (WORDS, ("collections", "import", "exp1", f"job_scripts/{NAMES[0]}.job")):
        refused = bench.cli.within(*words)
        assert refused.returncode == 2 and "submitted from a config" in refused.stderr, refused.stderr
    assert bench.files() == before


# ---------------------------------------------------------------- without a spec, for programs


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_template_and_parameters_do_without_a_spec(bench: Bench, wrapped: bool) -> None:
    """The parameters stand in the file as in a spec, or alone; a function says what is asked of Slurm."""
    values: dict[str, Any] = {"learning_rate": [0.1, 0.2], "batch_size": 8}
    body = {"parameters": {"mode": "grid", "values": values}} if wrapped else values
    (bench.home / "params.yaml").write_text(json.dumps(body))
    (bench.home / "logic.py").write_text(
        "def get_slurm_args(params, defaults):\n"
        "    print('hello')\n"
        "    return {'partition': 'p', 'time': '1:00'}\n"
    )
    words = ("generate", "--template", "../../templates/train.job.j2", "--params", "params.yaml")
    words += ("--output-dir", "jobs/scripts", "--collection", "exp1", "--slurm-args-file", "logic.py")
    done = bench.cli.within(*words, "--json")
    assert done.returncode == 0 and done.stderr.count("hello\n") == 2, done.stderr
    made = json.loads(done.stdout)
    assert made["added"] == ["learning_rate0.1_batch_size8", "learning_rate0.2_batch_size8"]
    script = Path(made["jobs"][0]["script_path"])
    assert script.parent == bench.home / "jobs/scripts" and "--time=1:00\n" in script.read_text()
    assert made["jobs"][0]["slurm_args"] == {"partition": "p", "time": "1:00"}
    assert bench(*words)["unchanged"] == made["added"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate"], "name a job spec, or --template and --params"),
        (["generate", "--template", "t.j2"], "generate --template t.job.j2 --params params.yaml"),
        (["generate", "none.yaml"], "none.yaml"),
        (["generate", "job_spec.yaml", "--params", "p.yaml"], "--params cannot stand beside a spec"),
        (["generate", "job_spec.yaml", "--collection", "a b"], "--collection"),
        (["generate", "job_spec.yaml", "--collection", ""], "--collection"),
        (["generate", "."], "."),
    ],
)
def test_usage_is_refused_with_a_repair(words: list[str], said: str, bench: Bench) -> None:
    before = bench.files()
    refused = bench.cli.within(*words)
    assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr
    assert bench.files() == before


def test_programs_generate_as_the_command_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate_jobs_from_spec`, and a generator with a collection that is saved."""
    monkeypatch.chdir(bench.home)
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.root / "state"))
    before = bench.files()
    results = generate_jobs_from_spec("job_spec.yaml", collection_name="exp1", dry_run=True)
    assert [job["job_name"] for job in results] == NAMES and bench.files() == before
    assert generate_jobs_from_spec("job_spec.yaml", collection_name="exp1") == results
    assert results[0]["slurm_args"] == SPEC["slurm_args"]["defaults"]
    assert Path(results[0]["script_path"]).is_file() and bench(*WORDS)["unchanged"] == NAMES

    generator = JobGenerator(
        template_path=bench.template,
        parameters={"mode": "grid", "values": {"learning_rate": [0.001, 0.01], "batch_size": [32, 64]}},
        slurm_defaults={"partition": "gpu", "time": "24:00:00"},
        job_name_pattern="{{ learning_rate }}_{{ batch_size }}",
    )
    assert "#SBATCH --job-name=0.001_32\n" in generator.preview(0) and generator.count_jobs() == 4
    manager = CollectionManager()
    assert not manager.exists("my_experiment")
    collection = manager.get_or_create("my_experiment")
    made = generator.generate(output_dir="jobs/exp1/scripts", collection=collection)
    assert not manager.exists("my_experiment")
    manager.save(collection)
    assert manager.exists("my_experiment") and {*manager.list()} == {"exp1", "my_experiment"}
    assert list(manager.load("my_experiment").jobs) == [job["job_name"] for job in made]
    with pytest.raises(UsageError, match="there is no collection 'my_experimnt'"):
        manager.load("my_experimnt")
    Path(made[0]["script_path"]).write_text("mine")
    with pytest.raises(UsageError, match=r"0\.001_32\.job was edited"):
        generator.generate("jobs/exp1/scripts", collection)
    assert generator.generate("jobs/exp1/scripts", collection, force=True) == made


# ---------------------------------------------------------------- disks, deaths, crowds


def small_files() -> None:
    """As on a full disk: no file grows beyond 64 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_disk_that_fills_up_is_told_and_the_same_again_goes_on(bench: Bench) -> None:
    """The half of a script that was written is not taken for a person's."""
    bench.template.write_text(TEMPLATE + "# filler\n" * 9000)
    full = bench.cli(*WORDS, preexec_fn=small_files)
    assert full.returncode == 3 and "cannot be written: File too large" in full.stderr, full.stderr
    assert "do the same again" in full.stderr and "Traceback" not in full.stderr
    (part,) = bench.scripts.values()
    assert len(part) == 65536
    assert bench(*WORDS)["added"] == NAMES
    assert all(text.endswith("# filler\n") and len(text) > 81000 for text in bench.scripts.values())


def test_a_directory_that_cannot_be_written_is_named(bench: Bench) -> None:
    (bench.home / "job_scripts").mkdir(mode=0o555)
    refused: Done = bench.cli(*WORDS, preexec_fn=ordinary)
    assert refused.returncode == 3 and "job_scripts" in refused.stderr, refused.stderr
    assert "Permission denied" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("edited", [False, True])
def test_killed_at_any_step_the_same_again_ends_alike(
    bench: Bench, edited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time, and when a template was edited: all is as after a run without a death."""
    monkeypatch.chdir(bench.home)
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.root / "state"))
    expected, steps = run_with_deaths(bench, edited, at=0)
    assert {*steps} >= {"create:after", "sync:before", "write:rename"} and len(steps) > 10
    for at in range(1, len(steps) + 1):
        found, _ = run_with_deaths(bench, edited, at)
        assert found == expected, f"killed at step {at}: {steps[at - 1]}"


def run_with_deaths(bench: Bench, edited: bool, at: int) -> tuple[dict[str, bytes], list[str]]:
    """From the beginning; killed at a step (0: never), and done again. All files, and the steps."""
    for name in ("outputs", "job_scripts", "logs"):
        shutil.rmtree(bench.home / name, ignore_errors=True)
    bench.template.write_text(TEMPLATE)
    if edited:
        into(Effects())
        bench.template.write_text(TEMPLATE + "echo more\n")
    effects = Fatal(at)
    if at:
        with pytest.raises(Killed):
            into(effects)
        into(Effects())
    else:
        into(effects)
    # What a death within `write` leaves beside the file is nobody's.
    return {name: data for name, data in bench.files().items() if not name.endswith(".tmp")}, effects.names


def into(effects: Effects) -> None:
    generator = JobGenerator.from_spec("job_spec.yaml")
    place: Place = collections.place_of("exp1", Path.cwd())
    generate.into(generator, place, generator.spec.output_dir, effects)


def test_many_at_once_lose_no_job_of_a_collection(bench: Bench) -> None:
    """Each of them one spec, some the same; together they leave the jobs of all."""
    for number in range(4):
        bench.spec(f"spec{number}.yaml", parameters=axes(model=[f"m{number}"]))
    started: list[Running] = [
        bench.cli.start("generate", f"spec{number % 4}.yaml", "--collection", "exp1", "--json")
        for number in range(8)
    ]
    told = [json.loads(process.communicate()[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    assert len(bench.record["jobs"]) == len(bench.scripts) == 16
    assert sum(len(each["added"]) for each in told) == 16
    assert sum(len(each["unchanged"]) for each in told) == 16


def test_what_a_function_says_of_itself_stands_where_errors_do(bench: Bench) -> None:
    """Exit 2, file and line, and a standard output that is empty."""
    text = """
    def include_params(params):
        print("looking")
        return params["no_such"]
    """
    (bench.home / "f.py").write_text(textwrap.dedent(text))
    bench.spec(parameters={**axes(), "filter": "f.py"})
    refused = bench.cli.within(*WORDS, "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{bench.home}/f.py:4: parameters.filter: include_params raised KeyError" in refused.stderr
    assert "looking" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("page", ["generate.md", "collections.md"])
def test_every_command_of_the_pages_does_what_it_says(page: str, tmp_path: Path) -> None:
    """One after the other, and then the program, in a directory with the files that the pages show."""
    (tmp_path / "train.py").write_text("import sys; open('ran', 'a').write(' '.join(sys.argv) + '\\n')\n")
    (tmp_path / "job.sbatch").write_text("#!/bin/bash\npython3 train.py --by hand\n")
    for name, text in {**shown_files("generate.md"), **shown_files("collections.md")}.items():
        (tmp_path / name).write_text(text)
    cli = Cli(tmp_path)
    for words in printed(page):
        done = cli.within(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert sorted(ran)[-6:] == sorted({*ran})[-6:] and len(ran) == (6 if page == "generate.md" else 7)
    (program,) = re.findall(
        r"^```python\n(from .*?)^```", HOWTO.joinpath("generate.md").read_text(), re.S | re.M
    )
    done = cli.run(sys.executable, "-c", program)
    assert done.returncode == 0 and "4 jobs: ['0.001_32'" in done.stdout, done.stderr
