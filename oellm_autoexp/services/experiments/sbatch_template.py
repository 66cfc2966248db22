"""Batch scripts from templates: `{{VAR}}` is filled in, everything else is the shell's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from oellm_autoexp.core.experiment import ExperimentConfig, SLURMConfig
from oellm_autoexp.errors import ConfigurationError, Fault
from oellm_autoexp.rendering import batch_template
from oellm_autoexp.services.experiments.grid_search import write

#: Where a project keeps its template, the first that is there; else the one that comes with this package.
TEMPLATES = (
    "slurm/slurm_template.sbatch",
    "slurm/template.sbatch",
    "slurm/slurm_template.txt",
    "slurm_template.sbatch",
    "slurm_template.txt",
)
DEFAULT_TEMPLATE = Path(batch_template.__file__).with_name("sbatch_template.sh.j2")


@dataclass(frozen=True, kw_only=True)
class TemplateContext:
    """What a template may name, in upper or lower case; None: the option is left out.

    `experiment_name` is by default `job_name`, `output_file` is `experiments/NAME/%j.out`. `extra_args` are
    further variables, by their names in upper case, and further options in the template that comes along.
    A list is a word of the shell for each item.
    """

    job_name: str
    experiment_name: str | None = None
    script_path: str = ""
    config_name: str = ""
    python_executable: str = "python3"
    branch_name: str | None = None
    commit_hash: str | None = None
    account: str | None = None
    partition: str | None = None
    nodes: int = 1
    ntasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    constraint: str | None = None
    requeue: bool = False
    output_file: str | None = None
    error_file: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    extra_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ExperimentConfig, **more: Any) -> TemplateContext:
        """The context of an experiment: what its section `slurm` says, and `more`, which wins."""
        slurm = config.slurm if config.slurm is not None else SLURMConfig()
        given: dict[str, Any] = {each.name: getattr(slurm, each.name) for each in fields(slurm)}
        output, error = given.pop("output"), given.pop("error")
        given |= {"output_file": output, "error_file": error, "requeue": bool(slurm.requeue)}
        given["job_name"] = slurm.job_name or config.experiment_name
        return cls(**{"experiment_name": config.experiment_name, **given, **more})

    def variables(self) -> dict[str, Any]:
        """Every variable by its name in lower case."""
        made = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra_args"}
        name = self.experiment_name or self.job_name
        made["experiment_name"] = name
        made["output_file"] = self.output_file or f"experiments/{name}/%j.out"
        own = [each for each in self.extra_args if _name(each) not in made]
        made["options"] = [(each.replace("_", "-"), self.extra_args[each]) for each in own]
        return {**made, **{_name(each): value for each, value in self.extra_args.items()}}


def _name(option: str) -> str:
    return option.replace("-", "_").lower()


class SBATCHTemplateEngine:
    """Renders batch scripts from the template at `template_path`, or from `template_string`.

    With neither it is the template that comes with this package.

        engine = SBATCHTemplateEngine("slurm_template.txt")
        context = TemplateContext(job_name="my_job", partition="gpu", gpus_per_node=1)
        print(engine.preview_rendered_script(context))
    """

    def __init__(self, template_path: str | Path | None = None, template_string: str | None = None) -> None:
        self.template_path = Path(template_path) if template_path is not None else None
        self.template_string = template_string

    @property
    def where(self) -> str:
        """The file of the template; "" for a text."""
        return "" if self.template_string is not None else str(self.template_path or DEFAULT_TEMPLATE)

    def source(self) -> str:
        """The text of the template.

        Raises:
            ConfigurationError: it cannot be read.
        """
        if self.template_string is not None:
            return self.template_string
        try:
            # As it is: with the line ends that it has.
            return Path(self.where).read_bytes().decode()
        except OSError as error:
            what = f"the template cannot be read: {error.strerror}"
            hint = "name another one, or none: then the one that comes along is used"
            raise ConfigurationError(Fault(file=self.where, what=what, hint=hint)) from None
        except UnicodeDecodeError:
            raise ConfigurationError(Fault(file=self.where, what="is not a text in UTF-8")) from None

    def generate_sbatch_script(
        self,
        context: TemplateContext,
        output_path: str | Path,
        *,
        template_path: str | Path | None = None,
        template_string: str | None = None,
    ) -> Path:
        """Write the script of a job, and say where; `template_path` or `template_string` is another one.

        Raises:
            ConfigurationError: the template cannot be read, or the script not be written.
            ConfigError: the template asks for what there is not, or is broken.
        """
        other = template_path is not None or template_string is not None
        engine = SBATCHTemplateEngine(template_path, template_string) if other else self
        path = Path(output_path)
        write(path, engine.preview_rendered_script(context), mode=0o755)
        return path

    def preview_rendered_script(self, context: TemplateContext) -> str:
        """The script of a job; nothing is written.

        Raises:
            ConfigurationError, ConfigError: as `generate_sbatch_script`.
        """
        return batch_template.render(self.source(), context.variables(), file=self.where)


def project_template(project_root: Path) -> Path | None:
    """The template that a project has; None: none."""
    places = (project_root / name for name in TEMPLATES)
    return next((place for place in places if place.is_file()), None)
