"""Job specs: the printed examples, names, functions of a person's, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import selection
from oellm_autoexp.core.collection import Collection, Origin, ScriptJob, decoded, encoded
from oellm_autoexp.core.model import Job, JobSpec, JobState
from oellm_autoexp.errors import ConfigError, UsageError
from oellm_autoexp.planning import jobspec
from oellm_autoexp.services.collections.generate import JobGenerator

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --partition={{ slurm.partition }}
#SBATCH --time={{ slurm.time }}
#SBATCH --mem={{ slurm.mem }}
{% if slurm.gpus is defined %}
#SBATCH --gres=gpu:{{ slurm.gpus }}
{% endif %}
#SBATCH --output={{ logs_dir }}/{{ job_name }}.%j.out
#SBATCH --error={{ logs_dir }}/{{ job_name }}.%j.err

echo "Learning rate: {{ learning_rate }}"

python train.py \\
    --lr {{ learning_rate }} \\
    --bs {{ batch_size }} \\
    {% if epochs is defined %}--epochs {{ epochs }}{% endif %}
"""
FULL = """\
name: my_experiment
description: "Hyperparameter sweep for ResNet training"
template: templates/train.job.j2
output_dir: job_scripts
logs_dir: logs
parameters:
  mode: grid
  values:
    learning_rate: [0.001, 0.01, 0.1]
    batch_size: [32, 64]
    model: [resnet18, resnet50]
  filter:
    file: params_filter.py
    function: include_params
slurm_args:
  defaults:
    partition: gpu
    time: "24:00:00"
    mem: "32G"
    gpus: 1
  logic:
    file: slurm_logic.py
    function: get_slurm_args
job_name_pattern: "{{ model }}_lr{{ learning_rate }}_bs{{ batch_size }}"
"""
LOGIC = """\
def get_slurm_args(params: dict, defaults: dict) -> dict:
    args = defaults.copy()
    if params.get('model', 'resnet18') == 'resnet50':
        args['mem'] = '64G'
        args['gpus'] = 2
    if params.get('batch_size', 32) >= 128:
        args['mem'] = '64G'
    return args
"""
FILTER = """\
def include_params(params: dict) -> bool:
    return not (params.get("model") == "resnet50" and params.get("batch_size") == 64)
"""


def write(folder: Path, **files: str) -> None:
    """Files by their names, in which `__` is a dot."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(textwrap.dedent(text))


def made(folder: Path, text: str | dict[str, Any], template: str = TEMPLATE, **files: str) -> JobGenerator:
    """The generator of a spec in `folder`, with its template and the files of its functions."""
    (folder / "templates").mkdir(exist_ok=True)
    (folder / "templates/train.job.j2").write_text(template)
    write(folder, **files)
    body = text if isinstance(text, str) else _yaml({"template": "templates/train.job.j2", **text})
    (folder / "spec.yaml").write_text(body)
    return JobGenerator.from_spec(folder / "spec.yaml")


def _yaml(spec: dict[str, Any]) -> str:
    return json.dumps(spec, ensure_ascii=False)


def values(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    """The points of a section `parameters`."""
    return [dict(point) for point in jobspec.parameters_of(parameters, folder).points()]


def refused(folder: Path, text: str | dict[str, Any], template: str = TEMPLATE, **files: str) -> str:
    """What is said of a spec that is wrong, or of its first script."""
    with pytest.raises(ConfigError) as error:
        made(folder, text, template, **files).preview()
    return str(error.value)


def grid(**axes: Any) -> dict[str, Any]:
    return {"parameters": {"values": axes}}


# ---------------------------------------------------------------- the printed examples


def test_the_full_spec_makes_what_it_says(tmp_path: Path) -> None:
    """Names from the pattern, in the order of the grid, less what the filter drops; Slurm by the logic."""
    generator = made(tmp_path, FULL, params_filter__py=FILTER, slurm_logic__py=LOGIC)
    names = [
        f"{model}_lr{lr}_bs{bs}"
        for lr in ("0.001", "0.01", "0.1")
        for bs in (32, 64)
        for model in ("resnet18", "resnet50")
        if (model, bs) != ("resnet50", 64)
    ]
    assert generator.list_job_names() == names
    assert generator.count_jobs() == len(names) == 9
    spec = generator.spec
    assert (spec.output_dir, spec.logs_dir) == (tmp_path / "job_scripts", str(tmp_path / "logs"))
    assert spec.description == "Hyperparameter sweep for ResNet training"
    first, second = generator.preview(0), generator.preview(1)
    assert f"#SBATCH --output={tmp_path}/logs/resnet18_lr0.001_bs32.%j.out\n" in first
    assert "--mem=32G\n#SBATCH --gres=gpu:1\n#SBATCH --output" in first
    assert "--mem=64G\n#SBATCH --gres=gpu:2\n" in second
    assert first.endswith("    --bs 32 \\\n") and "epochs" not in first
    with pytest.raises(IndexError):
        generator.preview(9)


def test_a_grid_is_the_product_in_the_order_of_its_keys(tmp_path: Path) -> None:
    """The last key changes fastest, one value needs no list, and grid is the default."""
    expected = [{"lr": lr, "bs": bs} for lr in (0.001, 0.01) for bs in (32, 64)]
    assert values(tmp_path, values={"lr": [0.001, 0.01], "bs": [32, 64]}) == expected
    assert values(tmp_path, mode="grid", values={"lr": 0.1, "m": "a"}) == [{"lr": 0.1, "m": "a"}]
    assert values(tmp_path, values={"betas": [[0.9, 0.95], None]}) == [
        {"betas": [0.9, 0.95]},
        {"betas": None},
    ]


def test_a_filter_drops_combinations_of_a_grid_and_none_of_a_list(tmp_path: Path) -> None:
    """Its name is include_params unless another is given; `file.py:function` names it too."""
    text = """\
        def include_params(params: dict) -> bool:
            return not (params.get("algorithm") == "algo_b" and params.get("dataset") == "small")
        def none(params):
            return False
        """
    write(tmp_path, params_filter__py=text)
    axes = {"algorithm": ["algo_a", "algo_b"], "dataset": ["small", "large"]}
    kept = [("algo_a", "small"), ("algo_a", "large"), ("algo_b", "large")]
    for named in ({"file": "params_filter.py"}, "params_filter.py", "params_filter.py:include_params"):
        found = values(tmp_path, mode="grid", values=axes, filter=named)
        assert [tuple(point.values()) for point in found] == kept
    listed = [{"lr": 0.001, "bs": 32, "model": "small"}, {"lr": 0.01, "bs": 64, "model": "large"}]
    assert values(tmp_path, mode="list", values=listed, filter="params_filter.py:none") == listed
    assert values(tmp_path, mode="list", values=listed[0]) == listed[:1]
    said = refused(tmp_path, {"parameters": {"values": axes, "filter": "params_filter.py:none"}})
    assert "parameters.filter: keeps no combination" in said


def test_parse_turns_a_point_into_one_or_several(tmp_path: Path) -> None:
    """Before the filter, in both modes."""
    text = """\
        def parse_params(params):
            return [{**params, "seed": n} for n in (0, 1)] if params["lr"] > 0.05 else {"lr": params["lr"]}
        def include_params(params):
            return params.get("seed") != 1
        """
    write(tmp_path, f__py=text)
    for mode, points in (("grid", {"lr": [0.1, 0.01]}), ("list", [{"lr": 0.1}, {"lr": 0.01}])):
        found = values(tmp_path, mode=mode, values=points, parse="f.py")
        assert found == [{"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 1}, {"lr": 0.01}]
    found = values(tmp_path, values={"lr": [0.1, 0.01]}, parse="f.py", filter="f.py")
    assert found == [{"lr": 0.1, "seed": 0}, {"lr": 0.01}]


def test_a_program_says_the_same_without_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start where it runs; `logs_dir` is `.` where there is none, `params` has all of them."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, t__j2="#!/bin/sh\necho {{ slurm.time }} {{ logs_dir }} {{ params | tojson }} {{LR}}\n")
    generator = JobGenerator(
        template_path="t.j2",
        parameters={"mode": "grid", "values": {"lr": [0.001, 0.01]}},
        slurm_defaults={"partition": "gpu", "time": "24:00:00"},
        job_name_pattern="{{ lr }}",
    )
    assert generator.list_job_names() == ["0.001", "0.01"]
    assert generator.preview(1) == '#!/bin/sh\necho 24:00:00 . {"lr": 0.01} 0.01\n'


# ---------------------------------------------------------------- names


def test_default_names_show_the_parameters_in_the_order_of_the_spec(tmp_path: Path) -> None:
    """Not in that of the alphabet; what has no parameters is called like its spec, or its template."""
    axes = {"learning_rate": 0.001, "batch_size": 32, "model": "resnet18"}
    assert made(tmp_path, grid(**axes)).list_job_names() == ["learning_rate0.001_batch_size32_modelresnet18"]
    bare = {"parameters": {"mode": "list", "values": [{}]}}
    assert made(tmp_path, bare).list_job_names() == ["train"]
    assert made(tmp_path, {"name": "one", **bare}).list_job_names() == ["one"]


def test_names_that_no_file_can_have_are_made_legal_and_stay_apart(tmp_path: Path) -> None:
    """Slashes, blanks and `..` end in a hash of the whole; nothing leaves the directory of scripts."""
    models = ["meta-llama/L3", "meta-llama L3", "../../etc", "a b", "-x", ".lock", "ü"]
    pattern = {"job_name_pattern": "{{ model }}", **grid(model=models)}
    names = made(tmp_path, pattern).list_job_names()
    assert len({*names}) == len(models) and names[0].startswith("meta-llama-L3-")
    assert all("/" not in name and not name.startswith((".", "-")) for name in names)


#: Texts as people and tools write them, and any other.
TEXTS = st.one_of(
    st.sampled_from(["a/b", "a b", "..", "", "{{ x }}", "a'b", "ü🙂", "~"]), st.text(max_size=12)
)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.dictionaries(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda key: key not in jobspec.RESERVED),
        st.lists(SCALARS, min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    has_pattern=st.booleans(),
)
def test_generated_names_are_unique_and_legal_or_refused(
    axes: dict[str, list[Any]], has_pattern: bool, tmp_path: Path
) -> None:
    """As a path and a git ref; the number of jobs is the product, counted without rendering a script."""
    pattern = "-".join(f"{{{{ {key} }}}}" for key in axes) if has_pattern else None
    try:
        generator = JobGenerator(
            template_path=tmp_path / "none.j2", parameters={"values": axes}, job_name_pattern=pattern
        )
    except ConfigError as error:
        assert any(
            said in str(error)
            for said in ("have the name", "declared twice", "no text in UTF-8", "gives no name", "of ours")
        )
        return
    names = generator.list_job_names()
    assert generator.count_jobs() == math.prod(map(len, axes.values())) == len({*names})
    for name in names:
        assert 0 < len(name) <= 200 and not {*name} & {*"/ ~^:?*[\\\0\n"}
    checked = subprocess.run(["git", "check-ref-format", f"refs/heads/{names[0]}"], check=False)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"job_name_pattern": "{{ lr }}", **grid(lr=[1], bs=[1, 2])}, "does not show bs"),
        ({"job_name_pattern": "x", **grid(lr=[1, 2])}, "tell them apart with job_name_pattern: 'x_{{ lr }}'"),
        (grid(v=["null", None]), "with job_name_pattern: 'v{{ v }}"),
        (grid(lr=[1, 1]), "the same point is declared twice"),
        ({"job_name_pattern": " ", **grid(lr=[1])}, "gives no name to {'lr': 1}"),
        ({"job_name_pattern": "logs", **grid(lr=[1])}, "`logs` is a name of a directory of ours"),
        ({"job_name_pattern": "{{ lr", **grid(lr=[1])}, "spec.yaml: job_name_pattern: broken template"),
        ({"job_name_pattern": "{{ lrr }}", **grid(lr=[1])}, "did you mean `lr`?"),
    ],
)
def test_names_that_tell_nothing_apart_are_refused(spec: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, spec)


# ---------------------------------------------------------------- mistakes in a spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"paramaters": {}, **grid(lr=[1])}, "paramaters: unknown key\n  -> did you mean `parameters`?"),
        ({"parameters": {"value": {"lr": [1]}}}, "parameters.value: unknown key"),
        ({"slurm_args": {"default": {}}, **grid(lr=[1])}, "did you mean `defaults`?"),
        ({"slurm_args": {"logic": {"fil": "x.py"}}, **grid(lr=[1])}, "slurm_args.logic.fil: unknown key"),
        ({}, "parameters: is missing"),
        (grid(), "parameters.values: is empty"),
        (grid(lr=[]), "parameters.values.lr: has no values"),
        ({"parameters": {"mode": "list", "values": []}}, "is empty, so there would be no jobs"),
        ({"parameters": {"mode": "list", "values": [3]}}, "parameters.values.0: must be a mapping"),
        ({"parameters": {"mode": "random", "values": {"lr": 1}}}, "parameters.mode: must be grid or list"),
        ({"parameters": {"values": [{"lr": 1}]}}, "must be a mapping, not a list"),
        (grid(job_name=[1]), "parameters.values.job_name: is a name of the template's own"),
        ({"parameters": {"mode": "list", "values": [{"slurm": 1}]}}, "parameters.values.0.slurm"),
        ({"template": "none.j2", **grid(lr=[1])}, "template: there is no file"),
        ({"template": None, **grid(lr=[1])}, "add `template: train.job.j2`"),
        ({"name": 3, **grid(lr=[1])}, "name: must be text, not a number"),
        (
            {"parameters": {"values": {"lr": [1]}, "filter": "nofile.py"}},
            "parameters.filter: there is no file",
        ),
        ({"parameters": {"values": {"lr": [1]}, "filter": "f.py:a b"}}, "names no function"),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_a_repair(
    spec: dict[str, Any], said: str, tmp_path: Path
) -> None:
    told = refused(tmp_path, spec)
    assert said in told and "spec.yaml" in told


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = refused(tmp_path, {"tempalte": "x", "logs_dir": 3, **grid(lr=[], slurm=[1])})
    assert all(key in told for key in ("tempalte", "logs_dir", "values.lr", "values.slurm"))


def test_a_template_that_asks_for_what_there_is_not_names_job_line_and_the_near_one(tmp_path: Path) -> None:
    """Never an empty text, as in `#SBATCH --time=`."""
    spec = {"job_name_pattern": "j{{ lr }}", **grid(lr=[1])}
    told = refused(tmp_path, spec, "#!/bin/sh\n\necho {{ lrr }}\n")
    assert "train.job.j2:3: " in told and "(job j1)" in told and "did you mean `lr`?" in told
    assert "'dict object' has no attribute 'time'" in refused(
        tmp_path, spec, "#SBATCH --time={{ slurm.time }}\n"
    )
    assert "train.job.j2:2: broken template" in refused(tmp_path, spec, "\n{% if %}\n")
    assert "ZeroDivisionError" in refused(tmp_path, spec, "{{ 1 // (lr - 1) }}")
    assert "unsafe" in refused(tmp_path, spec, "{{ ''.__class__.__mro__ }}")


def test_a_template_of_the_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert made(tmp_path, {"template": "~/templates/train.job.j2", **grid(lr=[1])}).count_jobs() == 1


# ---------------------------------------------------------------- hostile values

HOSTILE = [
    "it's",
    'say "so"',
    "{{ lr }}",
    "{% raw %}",
    "${HOME} $(id) `id`",
    "ü🙂\u2028",
    "a\nb",
    "",
    "0123",
    "24:00:00",
    [1, [2, "x"]],
    {"a": {"b": [None]}},
    None,
    1e300,
]


def test_values_reach_a_template_as_they_stand(tmp_path: Path) -> None:
    """Quotes, braces, line ends, lists and mappings: nothing is evaluated, and nothing told apart is lost."""
    spec = {"description": HOSTILE[0], "slurm_args": {"defaults": {"x": HOSTILE}}, **grid(v=HOSTILE)}
    generator = made(tmp_path, spec, "#!/bin/sh\n{{ v | tojson }}\n{{ slurm.x | tojson }}\n")
    assert generator.count_jobs() == len({*generator.list_job_names()}) == len(HOSTILE)
    for number, value in enumerate(HOSTILE):
        _, shown, slurm = generator.preview(number).splitlines()
        assert (json.loads(shown), json.loads(slurm)) == (value, HOSTILE)


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800", "a\0b", {3: 4}, {1}, b"x", [object()]])
def test_what_no_record_can_hold_is_refused_wherever_it_is_given(value: Any, tmp_path: Path) -> None:
    """By a program as a parameter or for Slurm, within a list too."""
    write(tmp_path, t__j2="#!/bin/sh\n")
    for given_values, slurm in (({"v": [value]}, {}), ({"v": [[value]]}, {}), ({"v": [1]}, {"x": value})):
        with pytest.raises(ConfigError) as error:
            JobGenerator(tmp_path / "t.j2", {"values": given_values}, slurm_defaults=slurm)
        assert "parameters.values.v" in str(error.value) or "slurm_args.defaults.x" in str(error.value)


# ---------------------------------------------------------------- functions of a person's

PLACES = {
    "filter": ("include_params(params)", {"parameters": {"values": {"lr": [1, 2]}, "filter": "f.py"}}),
    "parse": ("parse_params(params)", {"parameters": {"values": {"lr": [1, 2]}, "parse": "f.py"}}),
    "logic": ("get_slurm_args(params, defaults)", {**grid(lr=[1, 2]), "slurm_args": {"logic": "f.py"}}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("\n    return params['lrr']", "f.py:3: {key}: {name} raised KeyError: 'lrr'"),
        ("\n    import sys\n    sys.exit(3)", "f.py:4: {key}: {name} raised SystemExit: 3"),
        ("return 3", "f.py:2: {key}: {name} returned 3 for"),
        ("return", "f.py:2: {key}: {name} returned None for"),
        ("return {1: 2}", "f.py:2: {key}: {name} returned {{1: 2}}"),
        ("yield", "f.py:2: {key}: {name} returned <generator"),
        ("return object()", "f.py:2: {key}: {name} returned <object"),
    ],
)
def test_a_function_that_fails_names_its_line_and_one_that_returns_junk_its_own(
    place: str, body: str, said: str, tmp_path: Path
) -> None:
    head, spec = PLACES[place]
    told = refused(tmp_path, spec, "#!/bin/sh\n", f__py=f"# a comment\ndef {head}: {body}\n")
    key = {"logic": "slurm_args.logic"}.get(place, f"parameters.{place}")
    assert said.format(key=key, name=head.partition("(")[0]) in told, told


def test_a_file_that_cannot_be_loaded_names_its_line(tmp_path: Path) -> None:
    """A syntax error, in it or in what it imports; what it raises; a function that it does not have."""
    _, spec = PLACES["filter"]
    assert "f.py:2: parameters.filter: " in refused(tmp_path, spec, f__py="\ndef include_params(:\n")
    for name, text, said in (
        ("a", "import broken_part", "broken_part.py:1: "),
        ("b", "\nraise SystemExit('no')", "b.py:2: "),
        ("c", "import no_such_module", "c.py:1: "),
        ("d", "def includes_params(params): ...", "did you mean `includes_params`?"),
        ("e", "include_params = 3", "has no function `include_params`"),
        ("g", "def include_params(params):\n    exec('1 +')", "g.py:2: "),
    ):
        write(tmp_path, broken_part__py="def (\n", **{f"{name}__py": text})
        broken = {"parameters": {"values": {"lr": [1]}, "filter": f"{name}.py"}}
        assert said in refused(tmp_path, broken), name
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    "body", ["\n    while True:\n        pass", "\n    import time\n    time.sleep(1000)"]
)
def test_a_function_that_does_not_return_is_stopped(body: str, tmp_path: Path) -> None:
    """It says which, and for how long it had been waited."""
    write(tmp_path, f__py=f"def include_params(params): {body}\n")
    found = jobspec.parameters_of({"values": {"lr": [1]}, "filter": "f.py"}, tmp_path)
    assert found.filter is not None
    slow = replace(found, filter=replace(found.filter, limit_s=0.05))
    with pytest.raises(ConfigError, match=r"f\.py:\d+: .*include_params did not return within 0\.05 s"):
        list(slow.points())


def test_functions_are_given_copies(tmp_path: Path) -> None:
    """What one does to its arguments is seen by none, and not by the script."""
    text = """\
        def include_params(params):
            params["nested"].append(9); params["more"] = 1
            return True
        def get_slurm_args(params, defaults):
            params.clear(); defaults["gres"].append("x"); defaults["seen"] = 1
            return {"gres": defaults["gres"]}
        """
    spec = {
        "parameters": {"values": {"nested": [[1], [2]]}, "filter": "f.py"},
        "slurm_args": {"defaults": {"gres": ["gpu"]}, "logic": "f.py"},
    }
    template = "#!/bin/sh\n{{ params | tojson }} {{ slurm | tojson }}\n"
    generator = made(tmp_path, spec, template, f__py=text)
    assert [generator.preview(n).splitlines()[1] for n in (0, 1)] == [
        '{"nested": [1]} {"gres": ["gpu", "x"]}',
        '{"nested": [2]} {"gres": ["gpu", "x"]}',
    ]
    assert generator.spec.slurm_defaults == {"gres": ["gpu"]}


def test_tuples_of_a_function_are_lists_as_in_a_file(tmp_path: Path) -> None:
    """Else the second run would call them changed."""
    text = """\
        def parse_params(params):
            return {"betas": (0.9, 0.95)}
        def get_slurm_args(params, defaults):
            return {"gres": ("gpu", 1)}
        """
    spec = {"parameters": {"values": {"x": [1]}, "parse": "f.py"}, "slurm_args": {"logic": "f.py"}}
    (job,) = jobspec.planned(made(tmp_path, spec, f__py=text).spec)
    assert (job.parameters, job.slurm) == ({"betas": [0.9, 0.95]}, {"gres": ["gpu", 1]})


@pytest.mark.parametrize("answer", ["{'job_name': 1}", "{'a b': 1}", "{'x': float('nan')}", "{'x': {1}}"])
def test_what_parse_returns_is_checked_like_a_spec(answer: str, tmp_path: Path) -> None:
    _, spec = PLACES["parse"]
    assert "f.py:1: " in refused(tmp_path, spec, f__py=f"def parse_params(p): return {answer}\n") or (
        "parameters.values.x: is not a number" in refused(tmp_path, spec)
    )


# ---------------------------------------------------------------- the record of a collection

JSON = st.recursive(
    st.one_of(st.none(), SCALARS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
MAPPINGS = st.dictionaries(TEXTS, JSON, max_size=3)
SCRIPTS = st.builds(
    ScriptJob,
    name=TEXTS,
    script=TEXTS,
    digest=TEXTS,
    parameters=MAPPINGS,
    slurm=MAPPINGS,
    overrides=st.lists(TEXTS, max_size=2).map(tuple),
    origin=TEXTS,
    extra=MAPPINGS,
    replaced_by=TEXTS,
)
ORIGINS = st.dictionaries(
    TEXTS, st.builds(Origin, spec=TEXTS, description=TEXTS, template=TEXTS, logs_dir=TEXTS), max_size=3
)


@settings(max_examples=100, deadline=None)
@given(jobs=st.lists(SCRIPTS, max_size=4), origins=ORIGINS)
def test_a_collection_comes_back_from_its_file_as_it_was(
    jobs: list[ScriptJob], origins: dict[str, Origin]
) -> None:
    """With the order of its jobs; its text is JSON with a line for each."""
    collection = Collection("c", "/w", jobs, origins)
    text = encoded(collection)
    back = decoded(text)
    assert (back.name, back.cwd, back.origins) == ("c", "/w", origins)
    assert [*back.jobs.items()] == [*collection.jobs.items()]
    assert encoded(back) == text and json.loads(text)["version"] == 1
    assert len(text.split("\n")) == len(collection) + 3 + (not collection.jobs)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"version": 2}', '{"version": 1, "jobs": [{}]}', '{"version": 1, "jobs": 3}'],
)
def test_what_is_no_collection_is_told_from_one(text: str) -> None:
    with pytest.raises(ValueError):
        decoded(text)


def test_what_runs_of_a_job_is_the_script_with_its_other_parameters() -> None:
    job = ScriptJob(name="a", script="/s/a.job", digest="", parameters={"lr": 1, "bs": 2})
    again = replace(job, extra={"bs": 1}, replaced_by="/s/a.retry-1.job")
    assert (job.runs, job.given) == ("/s/a.job", {"lr": 1, "bs": 2})
    assert (again.runs, again.given) == ("/s/a.retry-1.job", {"lr": 1, "bs": 1})


# ---------------------------------------------------------------- words that choose


def job_of(state: JobState, mode: str = "") -> Job:
    spec = JobSpec(
        name="a",
        id="0",
        index=0,
        parameters={},
        argv=(),
        output_dir="",
        checkpoint_dir="",
        script_path="",
        script_digest="",
        log_path="",
    )
    return replace(Job(spec=spec), state=state, mode=mode)


@pytest.mark.parametrize(
    ("word", "chosen"),
    [
        ("all", "none oom done running gone"),
        ("unsubmitted", "none"),
        ("failed", "oom"),
        ("crash", "oom"),
        ("OOM", "oom"),
        ("out-of-memory", "oom"),
        ("crash.nan", ""),
        ("timeout", ""),
        ("completed", "done"),
        ("success", "done"),
        ("running", "running"),
        ("cancelled", "gone"),
        ("canceled", "gone"),
        ("ended", "oom done gone"),
    ],
)
def test_a_word_chooses_by_state_or_by_error_mode(word: str, chosen: str) -> None:
    """An error mode with its finer ones; what has not ended has none."""
    jobs = {
        "none": None,
        "oom": job_of(JobState.FAILED, "crash.oom"),
        "done": job_of(JobState.SUCCEEDED, "success"),
        "running": job_of(JobState.RUNNING, "timeout"),
        "gone": job_of(JobState.CANCELLED, "cancelled"),
    }
    checked = selection.checked(word)
    assert [name for name, job in jobs.items() if selection.chosen(job, checked)] == chosen.split()


def test_a_word_that_means_nothing_is_refused_unless_a_job_has_it_as_its_mode() -> None:
    with pytest.raises(UsageError, match="did you mean `timeout`"):
        selection.checked("timout")
    assert selection.checked("diverged", [job_of(JobState.FAILED, "diverged")]) == "diverged"


def test_a_spec_is_yaml_as_everywhere(tmp_path: Path) -> None:
    """A time without quotes is text, a key that stands twice is a mistake, with its line."""
    text = "template: templates/train.job.j2\nslurm_args: {defaults: {time: 24:00:00}}\n"
    generator = made(
        tmp_path, f"{text}parameters: {{values: {{lr: [1e-3]}}}}\n", "#!/bin/sh\n{{ slurm.time }}\n"
    )
    assert generator.preview() == "#!/bin/sh\n24:00:00\n" and generator.list_job_names() == ["lr0.001"]
    assert "stands twice" in refused(tmp_path, f"{text}parameters: {{}}\nparameters: {{}}\n")
