"""The engine of batch scripts: the template of the first documents, and the one that comes along."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from oellm_autoexp import ConfigurationError, ExperimentConfig, SBATCHTemplateEngine, TemplateContext
from oellm_autoexp.core.experiment import SLURMConfig
from oellm_autoexp.errors import ConfigError
from oellm_autoexp.schedulers.slurm.text import options_of

#: As it was first written.
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{JOB_NAME}}
#SBATCH --account={{ACCOUNT}}
#SBATCH --partition={{PARTITION}}
#SBATCH --nodes={{NODES}}
#SBATCH --gpus-per-node={{GPUS_PER_NODE}}
#SBATCH --cpus-per-task={{CPUS_PER_TASK}}
#SBATCH --mem={{MEM}}
#SBATCH --time={{TIME}}
#SBATCH --output=experiments/{{EXPERIMENT_NAME}}/slurm_%j.out
#SBATCH --error=experiments/{{EXPERIMENT_NAME}}/slurm_%j.err
#SBATCH --open-mode=append  # Preserve logs across requeues
#SBATCH --signal=USR1@60  # Signal 60s before timeout
#SBATCH --requeue

# Recommended environment settings for DDP stability/performance
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK}
export MKL_NUM_THREADS=${SLURM_CPUS_PER_TASK}
export NCCL_ASYNC_ERROR_HANDLING=1
# Optional diagnostics: export NCCL_DEBUG=WARN
# Optional allocator tweak to reduce fragmentation on long runs
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Run training
python {{SCRIPT_PATH}} {{CONFIG_NAME}}
"""


def test_the_samples_of_the_engine_run_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("template.txt").write_text(TEMPLATE)
    engine = SBATCHTemplateEngine(template_path="template.txt")

    context = TemplateContext(
        job_name="my_job",
        account="my_account",
        partition="gpu",
        nodes=1,
        gpus_per_node=1,
    )

    script_path = engine.generate_sbatch_script(context, Path("job.sbatch"))
    preview = engine.preview_rendered_script(context)
    print(preview)

    assert script_path == Path("job.sbatch") and script_path.read_text() == preview
    assert capsys.readouterr().out == preview + "\n"
    assert options_of(preview) == {
        "job-name": "my_job",
        "account": "my_account",
        "partition": "gpu",
        "nodes": "1",
        "gpus-per-node": "1",
        "output": "experiments/my_job/slurm_%j.out",
        "error": "experiments/my_job/slurm_%j.err",
        "open-mode": "append",
        "signal": "USR1@60",
        "requeue": "",
    }
    body = TEMPLATE[TEMPLATE.index("\n\n# Recommended") : TEMPLATE.index("python {{")]
    assert body in preview and preview.endswith("\npython  \n")
    subprocess.run(["bash", "-n", script_path], check=True)


def test_the_template_that_comes_along_leaves_out_what_has_no_value() -> None:
    """No account or partition of somebody else's, no flag with a value."""
    script = SBATCHTemplateEngine().preview_rendered_script(TemplateContext(job_name="a"))
    assert options_of(script) == {"job-name": "a", "nodes": "1", "output": "experiments/a/%j.out"}
    slurm = SLURMConfig(
        account="x",
        gpus_per_node=0,
        requeue=True,
        mail_type="END",
        extra_args={"qos": "a b", "exclusive": True, "signal": "B:USR1@60", "time": "1:00"},
    )
    config = ExperimentConfig(experiment_name="e", slurm=slurm)
    script = SBATCHTemplateEngine().preview_rendered_script(
        TemplateContext.of(config, script_path="my train.py", config_name="c.yaml")
    )
    assert options_of(script) == {
        "job-name": "e",
        "account": "x",
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "0",
        "time": "1:00",
        "requeue": "",
        "output": "experiments/e/%j.out",
        "mail-type": "END",
        "qos": "a b",
        "exclusive": "",
        "signal": "B:USR1@60",
    }
    assert script.endswith("exec python3 'my train.py' c.yaml\n")


def test_every_variable_may_be_named_and_those_of_extra_args_too() -> None:
    names = [
        *("job_name", "EXPERIMENT_NAME", "SCRIPT_PATH", "CONFIG_NAME", "PYTHON_EXECUTABLE", "BRANCH_NAME"),
        *("COMMIT_HASH", "ACCOUNT", "PARTITION", "NODES", "NTASKS_PER_NODE", "GPUS_PER_NODE"),
        *("CPUS_PER_TASK", "MEM", "TIME", "CONSTRAINT", "REQUEUE", "OUTPUT_FILE", "ERROR_FILE"),
        *("MAIL_TYPE", "MAIL_USER", "MY_OPTION"),
    ]
    engine = SBATCHTemplateEngine(template_string="".join(f"{{{{{name}}}}}|" for name in names))
    script = engine.preview_rendered_script(TemplateContext(job_name="a", extra_args={"my-option": 5}))
    assert script == "a|a|||python3|||||1|||||||false|experiments/a/%j.out||||5|"


def test_another_template_may_be_given_for_one_script(tmp_path: Path) -> None:
    engine, context = SBATCHTemplateEngine(), TemplateContext(job_name="a")
    (tmp_path / "t").write_text("#!/bin/sh\n# {{JOB_NAME}}\n")
    path = engine.generate_sbatch_script(context, tmp_path / "s", template_path=tmp_path / "t")
    assert path.read_text() == "#!/bin/sh\n# a\n"
    engine.generate_sbatch_script(context, path, template_string="{{ job_name }}\n")
    assert path.read_text() == "a\n"


def test_templates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    context = TemplateContext(job_name="a")
    with pytest.raises(ConfigurationError, match=r"none\.txt.*No such file"):
        SBATCHTemplateEngine(tmp_path / "none.txt").preview_rendered_script(context)
    (tmp_path / "t").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        SBATCHTemplateEngine(tmp_path / "t").preview_rendered_script(context)
    with pytest.raises(ConfigError, match="did you mean `GPUS_PER_NODE`"):
        SBATCHTemplateEngine(template_string="{{GPUS_PR_NODE}}").preview_rendered_script(context)
