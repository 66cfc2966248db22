"""Every mistake in a config is one clear message: file, line, key, and what to write instead."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.config import compose, yaml_loader
from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.services import plan as service
from oellm_autoexp.services import plugins

BASE = """\
project: {name: tiny}
backend: {class_name: CommandBackend, command: [python, train.py, "${lr}"]}
sweep: {axes: {lr: [0.1, 0.2]}}
"""


def load(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> compose.Composed:
    path = tmp_path / "sweep.yaml"
    path.write_text(textwrap.dedent(text))
    return compose.load(
        str(path), overrides=overrides, load_plugins=plugins.load, cwd=tmp_path, config_dir=None
    )


def faults(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> Sequence[Fault]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, overrides)
    assert caught.value.exit_code == 2
    return caught.value.faults


@dataclass(frozen=True)
class Mistake:
    """`text` is appended to BASE unless `whole`; `key`, `line` and `says` must be in the only fault."""

    name: str
    text: str
    key: str
    line: int
    says: str
    whole: bool = False
    overrides: Sequence[str] = field(default_factory=tuple)


MISTAKES = [
    # unknown keys
    Mistake("unknown section", "slrum: {array: true}", "slrum", 4, "did you mean `slurm`?"),
    Mistake("unknown key", "slurm:\n  arry: true", "slurm.arry", 5, "did you mean `array`?"),
    Mistake(
        "unknown key of a plug-in",
        "restart_policies:\n  crash:\n    class_name: AlwaysRestartPolicy\n    max_retry: 2",
        "restart_policies.crash.max_retry",
        7,
        "did you mean `max_retries`?",
    ),
    Mistake(
        "unknown key of a signal",
        "monitoring:\n  log_signals:\n    a: {patern: x, mode: crash}",
        "monitoring.log_signals.a.patern",
        6,
        "did you mean `pattern`?",
    ),
    Mistake(
        "unknown key of a sweep",
        "project: {name: t}\nsweep:\n  axis: {lr: [1]}",
        "sweep.axis",
        3,
        "did you mean `axes`?",
        whole=True,
    ),
    Mistake(
        "unknown key in a restart group",
        "restart:\n  policy: {}",
        "restart.policy",
        5,
        "did you mean `policies`?",
    ),
    # wrong types
    Mistake("a number for text", "slurm: {setup: [1]}", "slurm.setup.0", 4, 'write it in quotes: "1"'),
    Mistake("text for a boolean", "slurm:\n  array: yes", "slurm.array", 5, "write `true`"),
    Mistake("text for a list", "slurm:\n  setup: module load x", "slurm.setup", 5, "write `[module load x]`"),
    Mistake(
        "a list for a mapping", "slurm:\n  sbatch: [a]", "slurm.sbatch", 5, "must be a mapping, not a list"
    ),
    Mistake("text for a section", "slurm: lumi", "slurm", 4, "must be a mapping, not text"),
    Mistake(
        "text for a whole number",
        "restart_policies:\n  crash: {class_name: AlwaysRestartPolicy, max_retries: '2'}",
        "restart_policies.crash.max_retries",
        5,
        "write it without quotes",
    ),
    Mistake(
        "a fraction for a whole number",
        "scheduler: {max_jobs: 1.5}",
        "scheduler.max_jobs",
        4,
        "must be a whole number, not a fraction",
        overrides=["scheduler.class_name=local"],
    ),
    Mistake(
        "one of several",
        "monitoring: {log_signals: {a: {pattern: x, mode: crash, pattern_type: substr}}}",
        "monitoring.log_signals.a.pattern_type",
        4,
        "did you mean `substring`?",
    ),
    # class names
    Mistake(
        "unknown class",
        "restart_policies:\n  crash: {class_name: AlwaysRestart}",
        "restart_policies.crash.class_name",
        5,
        "did you mean `AlwaysRestartPolicy`?",
    ),
    Mistake(
        "no class",
        "restart_policies:\n  crash: {max_retries: 1}",
        "restart_policies.crash",
        5,
        "NoRestartPolicy",
    ),
    Mistake(
        "unknown scheduler",
        "scheduler:\n  class_name: locl",
        "scheduler.class_name",
        5,
        "did you mean `local`?",
    ),
    Mistake("a scheduler to come", "scheduler: {class_name: kubernetes}", "scheduler.class_name", 4, "local"),
    Mistake(
        "an unknown client of Slurm",
        "slurm:\n  client:\n    class_name: SlurmCleint",
        "scheduler.class_name",
        6,
        "there is no scheduler `SlurmCleint`",
    ),
    Mistake(
        "an unknown key of a client",
        "slurm:\n  client:\n    class_name: SlurmClient\n    max_job: 1",
        "scheduler.max_job",
        7,
        "did you mean `max_jobs`?",
    ),
    Mistake("a client that is a list", "slurm: {client: [a]}", "slurm.client", 4, "must be a mapping"),
    Mistake(
        "no class within a condition",
        "conditions:\n  both:\n    class_name: AllCondition\n    conditions:\n      - {path: /x}",
        "conditions.both.conditions.0",
        8,
        "FileExistsCondition",
    ),
    Mistake(
        "backend without a class",
        "project: {name: t}\nbackend: {command: [x]}",
        "backend",
        2,
        "CommandBackend, FabricBackend, NullBackend",
        whole=True,
    ),
    # references
    Mistake(
        "missing environment variable",
        "slurm:\n  environment: {A: '${oc.env:AUTOEXP_NOT_SET}'}",
        "slurm.environment.A",
        5,
        "export AUTOEXP_NOT_SET=",
    ),
    Mistake(
        "a reference to nothing",
        "metadata: {x: '${slurm.arry}'}\nslurm: {array: true}",
        "metadata.x",
        4,
        "did you mean `slurm.array`?",
    ),
    Mistake("a shell variable", "slurm: {setup: ['cd ${HOME}/x']}", "slurm.setup.0", 4, "${oc.env:HOME}"),
    Mistake("a broken reference", "metadata: {x: '${a'}", "metadata.x", 4, "broken `${…}`"),
    Mistake(
        "must be set",
        "slurm:\n  sbatch: {account: '???'}",
        "slurm.sbatch.account",
        5,
        "-o slurm.sbatch.account=",
    ),
    Mistake(
        "a variable that nothing reads",
        "sweep:\n  axes:\n    lr: [0.1]\n    seed: [1]\nproject: {name: t}\n"
        "backend: {class_name: CommandBackend, command: [a, '${lr}']}",
        "sweep.axes.seed",
        4,
        "${seed}",
        whole=True,
    ),
    Mistake(
        "a swept project",
        "project: {name: t}\nsweep:\n  axes:\n    project.name: [a, b]",
        "sweep.axes.project.name",
        4,
        "must be the same for every point",
        whole=True,
    ),
    # impossible values
    Mistake(
        "a negative threshold",
        "monitoring:\n  inactivity_threshold_seconds: -1",
        "monitoring.inactivity_threshold_seconds",
        5,
        "must not be negative",
    ),
    Mistake("a name with a slash", "project:\n  name: a/b", "project.name", 2, "part of a path", whole=True),
    Mistake(
        "no time to wait",
        "actions:\n  convert: {command: x, timeout_seconds: 0}",
        "actions.convert.timeout_seconds",
        5,
        "must be positive",
    ),
    Mistake(
        "an impossible value of a point",
        "project: {name: t}\nbackend: {class_name: NullBackend}\nscheduler: {class_name: local}\n"
        "sweep:\n  axes:\n    monitoring.inactivity_threshold_seconds: [-5]",
        "sweep.axes.monitoring.inactivity_threshold_seconds",
        6,
        "must not be negative",
        whole=True,
    ),
    Mistake("no project", "metadata: {a: 1}", "project", 0, "base_output_dir", whole=True),
    Mistake(
        "filters that leave nothing",
        "project: {name: t}\nsweep:\n  axes: {lr: [1]}\n  filter: lr > 1",
        "sweep",
        2,
        "leave no point",
        whole=True,
    ),
    Mistake(
        "a filter that names nothing",
        "project: {name: t}\nsweep:\n  axes: {lr: [1]}\n  filter: l > 1",
        "sweep.filter",
        4,
        "lr",
        whole=True,
    ),
    Mistake(
        "a name template that names nothing",
        "project: {name: t}\nsweep:\n  axes: {lr: [1]}\n  name_template: 'x{l}'",
        "sweep.name_template",
        4,
        "did you mean `lr`?",
        whole=True,
    ),
    Mistake(
        "an unknown group of Unix",
        "project:\n  name: t\n  group: no-such-group",
        "project.group",
        3,
        "there is no group `no-such-group`",
        whole=True,
    ),
    Mistake(
        "a section misspelled in a sweep",
        "project: {name: t}\nbackend: {class_name: CommandBackend, command: [a]}\n"
        "sweep:\n  axes:\n    slrum.sbatch.nodes: [1, 2]",
        "sweep.axes.slrum.sbatch.nodes",
        5,
        "did you mean `slurm.sbatch.nodes`?",
        whole=True,
    ),
    Mistake(
        "a swept key of a policy that does not exist",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "sweep:\n  axes:\n    restart_policies.crash.max_retries: [1]",
        "restart_policies.crash",
        5,
        "AlwaysRestartPolicy",
        whole=True,
    ),
    Mistake(
        "a group twice",
        "defaults:\n  - slurm: lumi\n  - slurm: juwels\n  - _self_",
        "defaults",
        6,
        "two options",
    ),
    Mistake("defaults that are no list", "defaults: {slurm: lumi}", "defaults", 4, "must be a list"),
    # files
    Mistake(
        "a missing template",
        "slurm:\n  template_path: ./x.sh.j2",
        "slurm.template_path",
        5,
        "there is no such file",
    ),
    Mistake("a missing env_file", "slurm:\n  env_file: secrets.env", "slurm.env_file", 5, "secrets.env"),
    Mistake("a missing plug-in", "plugins:\n  - ./mine.py", "plugins.0", 5, "no such file"),
    Mistake("plug-ins that are no list", "plugins: ./mine.py", "plugins", 4, "must be a list"),
    # patterns
    Mistake(
        "a pattern that does not compile",
        "monitoring:\n  log_signals:\n    a:\n      pattern: 'x(?P<a'\n      mode: crash",
        "monitoring.log_signals.a.pattern",
        7,
        "does not compile",
    ),
    Mistake(
        "a pattern that matches every line",
        "monitoring: {log_signals: {a: {pattern: 'x*', mode: crash}}}",
        "monitoring.log_signals.a.pattern",
        4,
        "every line",
    ),
    Mistake("a bad escape", 'monitoring: {log_signals: {a: {pattern: "\\S"}}}', "", 4, "single quotes"),
    Mistake(
        "a backspace in a pattern",
        'monitoring: {log_signals: {a: {pattern: "\\bnan", mode: crash}}}',
        "monitoring.log_signals.a.pattern",
        4,
        "single quotes",
    ),
    Mistake(
        "a group that a pattern lacks",
        "monitoring: {log_signals: {a: {pattern: 'x(?P<step>1)', counter: stp}}}",
        "monitoring.log_signals.a",
        4,
        "did you mean `step`?",
    ),
    Mistake(
        "a signal without effect",
        "monitoring: {log_signals: {a: {pattern: x}}}",
        "monitoring.log_signals.a",
        4,
        "`action`, a `mode`",
    ),
    # modes and actions
    Mistake(
        "an unknown mode of a signal",
        "monitoring: {log_signals: {a: {pattern: x, mode: crsh.oom}}}",
        "monitoring.log_signals.a.mode",
        4,
        "did you mean `crash`?",
    ),
    Mistake(
        "an unknown mode of a policy",
        "restart_policies:\n  tmeout: {class_name: NoRestartPolicy}",
        "restart_policies.tmeout",
        5,
        "did you mean `timeout`?",
    ),
    Mistake(
        "an unknown action",
        "monitoring: {log_signals: {a: {pattern: x, action: convrt}}}\nactions: {convert: {command: x}}",
        "monitoring.log_signals.a.action",
        4,
        "did you mean `convert`?",
    ),
    Mistake(
        "a field that no signal provides",
        "monitoring: {log_signals: {a: {pattern: 'x(?P<path>y)', action: convert}}}\n"
        "actions:\n  convert:\n    command: 'convert {pth}'",
        "actions.convert.command",
        7,
        "did you mean `path`?",
    ),
    Mistake("an unknown condition", "job:\n  start_condition: redy", "job.start_condition", 5, "redy"),
    Mistake(
        "a condition in place without a class",
        "job:\n  start_condition: {path: /x}",
        "job.start_condition",
        5,
        "FileExistsCondition",
    ),
    # YAML
    Mistake(
        "a bare time", "slurm:\n  sbatch:\n    time: 24:00:00", "slurm.sbatch.time", 6, 'time: "24:00:00"'
    ),
    Mistake(
        "a bare account", "slurm:\n  sbatch: {account: 0123}", "slurm.sbatch.account", 5, 'account: "0123"'
    ),
    Mistake(
        "a number for a partition", "slurm: {sbatch: {partition: 7}}", "slurm.sbatch.partition", 4, '"7"'
    ),
    Mistake(
        "a bare time in a sweep",
        "project: {name: t}\nsweep:\n  axes:\n    slurm.sbatch.time: [1:00:00]",
        "sweep.axes.slurm.sbatch.time.0",
        4,
        "in quotes|must be text",
        whole=True,
    ),
    Mistake("a bare time, short", "slurm:\n  sbatch: {t: 1:00:00}", "slurm.sbatch.t", 5, 't: "1:00:00"'),
    Mistake("a bare account, short", "slurm: {sbatch: {A: 0123}}", "slurm.sbatch.A", 4, 'A: "0123"'),
    Mistake("a bare time for srun", "slurm: {srun: {time: 10:00}}", "slurm.srun.time", 4, '"10:00"'),
    Mistake(
        "an option by its long and its short name",
        "slurm:\n  sbatch: {time: '1', t: '2'}",
        "slurm.sbatch.t",
        5,
        "the same option",
    ),
    Mistake(
        "a time without quotes in a list of configs",
        "project: {name: t}\nsweep:\n  type: list\n  configs:\n    - {slurm.sbatch.time: 1:00:00}",
        "sweep.configs.0.slurm.sbatch.time",
        5,
        '"1:00:00"',
        whole=True,
    ),
    Mistake(
        "an option in two spellings",
        "slurm:\n  sbatch: {gpus-per-node: 1, gpus_per_node: 2}",
        "slurm.sbatch.gpus_per_node",
        5,
        "the same option",
    ),
    Mistake(
        "a key twice", "slurm: {array: true}\nslurm: {}", "", 5, "`slurm` stands twice (first in line 4)"
    ),
    Mistake("a key that is no text", "metadata: {1: a}", "", 4, 'write "1": in quotes'),
    Mistake("a number without end", "metadata: {a: 1e400}", "", 4, "quote it"),
    Mistake(
        "a reference without quotes", "metadata: {a: [python, ${lr}]}", "", 4, 'write "${lr}" with quotes'
    ),
    Mistake("a bracket that is never closed", "metadata: {a: [1, 2", "", 4, "brackets"),
    Mistake("a list that ends with the file", "metadata: [", "", 4, "brackets"),
    Mistake("a text that is never closed", "metadata: {a: 'x", "", 4, "not YAML"),
    Mistake("a tab", "slurm:\n\tarray: true", "", 5, "spaces"),
    Mistake("an entry without a name", "actions:\n  - command: x", "actions.0", 5, "name"),
    Mistake(
        "two entries of one name",
        "actions:\n  - {name: a, command: x}\n  - {name: a, command: y}",
        "actions.1",
        6,
        "`a` stands twice",
    ),
    Mistake(
        "a mistake within a list form",
        "monitoring:\n  log_signals:\n    - name: a\n      pattern: x\n      mode: stall\n"
        "    - name: b\n      pattern: '('\n      mode: crash",
        "monitoring.log_signals.b.pattern",
        10,
        "does not compile",
    ),
    Mistake("a list for a config", "- a", "", 1, "must be a mapping", whole=True),
    Mistake(
        "an unknown option of a group",
        "defaults: [{slurm: lummi}, _self_]",
        "defaults",
        4,
        "did you mean `lumi`?",
    ),
    Mistake("a mistyped group", "defaults: [{slrum: lumi}, _self_]", "defaults", 4, "did you mean `slurm`?"),
    Mistake(
        "an unknown group", "defaults:\n  - clusters: lumi\n  - _self_", "defaults", 5, "no group `clusters`"
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_clear_message(tmp_path: Path, mistake: Mistake) -> None:
    """One fault with file, line, key and the repair; nothing is written."""
    text = mistake.text if mistake.whole else BASE + mistake.text
    found = faults(tmp_path, text + "\n", mistake.overrides)
    assert len(found) == 1, "\n".join(map(str, found))
    fault = found[0]
    assert fault.key.startswith(mistake.key), fault
    assert fault.line == mistake.line, fault
    assert fault.file == str(tmp_path / "sweep.yaml")
    assert any(part in str(fault) for part in mistake.says.split("|")), fault
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_flag_that_chooses_the_scheduler_hides_no_mistake(tmp_path: Path) -> None:
    """`--local` passes over keys that only another scheduler has, and refuses those that none has."""
    (tmp_path / "sweep.yaml").write_text(BASE + "scheduler: {class_name: slurm, max_jobs: 2, max_jobz: 3}\n")
    with pytest.raises(ConfigError) as caught:
        service.load("sweep.yaml", scheduler="local", cwd=tmp_path)
    (fault,) = caught.value.faults
    assert (fault.key, fault.line, fault.hint) == ("scheduler.max_jobz", 4, "did you mean `max_jobs`?")
    (tmp_path / "sweep.yaml").write_text(BASE + "scheduler: {class_name: local, kill_grace_seconds: 2}\n")
    assert service.load("sweep.yaml", scheduler="slurm", cwd=tmp_path).scheduler_config == {
        "class_name": "SlurmClient"
    }


#: What only a plan finds, since it needs the names of jobs: as `Mistake`.
PLANNED = [
    Mistake(
        "two points with one name",
        "project: {name: t}\nbackend: {class_name: CommandBackend, command: [a, '${lr}', '${s}']}\n"
        "sweep:\n  axes: {lr: [1, 2], s: [1, 2]}\n  name_template: 'x{lr}'",
        "sweep.name_template",
        5,
        "x{lr}_{s}",
        whole=True,
    ),
    Mistake(
        "two points that compute the same",
        "project: {name: t}\nbackend: {class_name: CommandBackend, command: [a, '${lr}']}\n"
        "sweep:\n  axes: {lr: [1, 1]}",
        "sweep",
        3,
        "points 0 and 1",
        whole=True,
    ),
    Mistake(
        "an impossible number of nodes", "slurm: {sbatch: {nodes: many}}", "slurm.sbatch.nodes", 4, "many"
    ),
    Mistake("an impossible time", "slurm: {sbatch: {time: 1 day}}", "slurm.sbatch.time", 4, "D-HH:MM:SS"),
    Mistake(
        "an impossible value at one point",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "sweep:\n  axes:\n    slurm.array: [true, maybe]",
        "sweep.axes.slurm.array",
        5,
        "true or false",
        whole=True,
    ),
    Mistake(
        "a missing environment variable at one point",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "sweep:\n  axes:\n    lr: [1, '${oc.env:AUTOEXP_NOT_SET}']",
        "sweep.axes.lr",
        5,
        "export AUTOEXP_NOT_SET",
        whole=True,
    ),
    Mistake(
        "a pattern that does not compile at one point",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "monitoring: {log_signals: {a: {pattern: x, mode: crash}}}\n"
        "sweep:\n  type: list\n  configs:\n    - {x: 1}\n"
        "    - {x: 2, monitoring.log_signals.a.pattern: '('}",
        "sweep.configs.1.monitoring.log_signals.a.pattern",
        8,
        "does not compile",
        whole=True,
    ),
    Mistake(
        "a condition that does not exist at one point",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "conditions: {ready: {class_name: FileExistsCondition, path: /x}}\n"
        "sweep:\n  type: list\n  configs:\n    - {x: 1, job.start_condition: ready}\n"
        "    - {x: 2, job.start_condition: redy}",
        "sweep.configs.0.job.start_condition",
        7,
        "did you mean `ready`?",
        whole=True,
    ),
    Mistake(
        "a class that does not exist at one point",
        "project: {name: t}\nsweep:\n  axes:\n    backend.class_name: [NullBackend, NulBackend]",
        "sweep.axes.backend.class_name",
        4,
        "did you mean `NullBackend`?",
        whole=True,
    ),
    Mistake(
        "a job that has the name of a directory",
        "project: {name: t}\nbackend: {class_name: NullBackend}\n"
        "sweep:\n  axes: {lr: [scripts]}\n  name_template: '{lr}'",
        "sweep.name_template",
        5,
        "other names",
        whole=True,
    ),
    Mistake(
        "a name that no variable has",
        "slurm:\n  environment:\n    A-B: x",
        "slurm.environment.A-B",
        6,
        "letters, digits",
    ),
    Mistake(
        "a NUL byte",
        'backend: {class_name: CommandBackend, command: ["a\\0"]}\nproject: {name: t}',
        "backend",
        1,
        "NUL",
        whole=True,
    ),
    Mistake(
        "a secret in plain text", "slurm:\n  environment: {A_KEY: x}", "slurm.environment.A_KEY", 5, "oc.env"
    ),
    Mistake(
        "a path of a log that names nothing",
        "monitoring:\n  log_path_template: '{nam}.log'",
        "monitoring.log_path_template",
        5,
        "did you mean `name`?",
    ),
]


@pytest.mark.parametrize("mistake", PLANNED, ids=lambda mistake: mistake.name)
def test_a_mistake_that_a_plan_finds_is_one_clear_message(tmp_path: Path, mistake: Mistake) -> None:
    """The same for what is seen only when points become jobs; still before anything is written."""
    path = tmp_path / "sweep.yaml"
    path.write_text((mistake.text if mistake.whole else BASE + mistake.text) + "\n")
    with pytest.raises(ConfigError) as caught:
        service.plan(service.load(str(path), scheduler="local", cwd=tmp_path))
    assert len(caught.value.faults) == 1, str(caught.value)
    fault = caught.value.faults[0]
    assert fault.key.startswith(mistake.key), fault
    assert (fault.file, fault.line) == (str(path), mistake.line), fault
    assert mistake.says in str(fault), fault
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.yaml"]


@given(st.text(alphabet="ab:-[]{}'\"\\#&*!|>%@`?, \n\t0.1e$", max_size=40))
def test_any_text_is_a_value_or_a_clear_mistake(text: str) -> None:
    """Whatever stands in a file, the parser ends with a value or with a mistake that has a place in it."""
    try:
        yaml_loader.parse(text, "x.yaml")
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.file == "x.yaml" and 0 <= fault.line <= text.count("\n") + 1, fault


def test_an_account_on_the_command_line_is_text(tmp_path: Path) -> None:
    """There are no quotes to be missed there: what was typed is what is meant."""
    given = ["slurm.sbatch.account=0123", "slurm.sbatch.time=24:00:00", "slurm.srun.partition=7"]
    slurm = load(tmp_path, BASE, given).tree.folded["slurm"]
    assert slurm == {"sbatch": {"account": "0123", "time": "24:00:00"}, "srun": {"partition": "7"}}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("slurm: {setup: {a: ['k=${oc.env:HF_TOKEN}']}}", "slurm.setup", "{'a': ['k=${HF_TOKEN}']}"),
        ("slurm: {array: ['${oc.env:HF_TOKEN}', 1]}", "slurm.array", "['${HF_TOKEN}', 1]"),
        ("slurm: {arry: {b: '${oc.env:HF_TOKEN}'}}", "slurm.arry", "{'b': '${HF_TOKEN}'}"),
        ("slurm: {sbatch: {time: {b: '${oc.env:HF_TOKEN}'}}}", "slurm.sbatch.time", "{'b': '${HF_TOKEN}'}"),
        ("monitoring: {log_signals: {a: {pattern: x, match: '${oc.env:HF_TOKEN}'}}}", "monitoring", ""),
    ],
)
def test_a_secret_in_a_message_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str, value: str
) -> None:
    """However deep it lies in the value that is refused: never itself, never with our own marks."""
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    found = faults(tmp_path, BASE + text)
    message = "\n".join(map(str, found))
    assert found[0].key.startswith(key) and found[0].value in (value, "${HF_TOKEN}"), message
    assert "${HF_TOKEN}" in message
    assert not any(mark in message for mark in ("s3cret", "\ue000", "ue000", "\ue001"))
