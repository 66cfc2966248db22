"""Experiments as a config of this program: a point for each, with what it runs and what it asks of Slurm."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oellm_autoexp.config import experiments as configs
from oellm_autoexp.core.experiment import ExperimentConfig, plain
from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.errors import Fault, ValidationError
from oellm_autoexp.services.batch_script import Wrapped
from oellm_autoexp.services.experiments.validation import sbatch_of
from oellm_autoexp.sweep.names import legalize, short_names

#: Words of our own among the variables of a sweep.
_OWN = ("experiment", "config_digest", "project", "index", "params", "experiments")
_OPTION = re.compile(r"[A-Za-z0-9-]+", re.ASCII)
_TAKEN = frozenset(
    {*configs.HINTS, "sweep", "backend", "monitoring", "job", "project", "actions", "conditions"}
)
_SAID = ("slurm", "description", "tags", "created_by", "created_at", "logging")


@dataclass(frozen=True, kw_only=True)
class Named:
    """An experiment: the name of its job, the parameters that tell it from the others, its config."""

    job: str
    parameters: Mapping[str, Any]
    config: ExperimentConfig
    #: What it runs; None: the command that all experiments run.
    script: Wrapped | None = None

    @property
    def sbatch(self) -> Mapping[str, Any]:
        """What it asks of Slurm: what its script says, or else its config."""
        if self.script is None:
            return sbatch_of(self.config)
        found: Mapping[str, Any] = self.script.sections.get("slurm", {}).get("sbatch", {})
        return found

    def said(self, section: str, key: str) -> Any:
        """What its script says beside that."""
        return self.script.sections.get(section, {}).get(key) if self.script is not None else None


def named(points: Iterable[tuple[Mapping[str, Any], ExperimentConfig]]) -> list[Named]:
    """Experiments by the names of their jobs.

    Raises:
        ValidationError: two have one name, or it is one of ours.
    """
    made: dict[str, Named] = {}
    for parameters, config in points:
        each = named_one(config, parameters)
        if each.job in made:
            raise same_name(config)
        made[each.job] = each
    return list(made.values())


def named_one(config: ExperimentConfig, parameters: Mapping[str, Any]) -> Named:
    """An experiment by the name of its job.

    Raises:
        ValidationError: it is one of ours.
    """
    job = legalize(config.experiment_name)
    if job in RESERVED_JOB_NAMES:
        raise ValidationError(
            Fault(key="experiment_name", what=f"`{job}` is the name of a directory of ours")
        )
    return Named(job=job, parameters=parameters, config=config)


def same_name(config: ExperimentConfig) -> ValidationError:
    """That there is an experiment of this name already."""
    what = f"two experiments have the name `{config.experiment_name}`"
    return ValidationError(Fault(key="experiment_name", what=what, hint="give them different names"))


def config_of(
    found: Sequence[Named],
    *,
    project: Mapping[str, Any],
    slurm: Mapping[str, Any],
    command: Sequence[str],
    cwd: Path,
    cluster: str | None = None,
    store_sweep_json: bool = True,
) -> dict[str, Any]:
    """The config of this package that stands for experiments.

    `command`, of which each is given its config, is run by those without a script. `project` and `slurm` are
    what else these sections hold, as in a config; `cluster` is a group of options.

    Raises:
        ValidationError: scripts of which one config cannot be made.
    """
    keys = dict.fromkeys(key for each in found for key in each.parameters)
    variables = _variables(tuple(keys))
    rows, own = [], {}
    for each in found:
        row = {name: _shown(each.parameters.get(key)) for key, name in variables.items()}
        digest = _digest(each.config)
        rows.append({"experiment": each.job, **configs.escaped(row), "config_digest": digest})
        own[digest] = _own_of(each, configs.escaped(str(cwd)))
    made: dict[str, Any] = {
        **({"defaults": [{"slurm": cluster}, "_self_"]} if cluster else {}),
        "project": dict(project),
        "backend": {
            "class_name": "CommandBackend",
            "command": [*configs.escaped(list(command)), "${job.output_dir}/config.yaml"],
            "cwd": _common("cwd", own),
        },
        "slurm": {
            "sbatch": {option: _common(f"sbatch.{option}", own) for option in _options(own)},
            "export": _common("export", own),
            **slurm,
        },
        # A job is another one when its config is.
        "metadata": {name: f"${{{name}}}" for name in (*variables.values(), "config_digest")},
    }
    scripts = [each.script for each in found if each.script is not None]
    if scripts:
        _run_scripts(made, scripts)
    # What differs is looked up here: as parameters of a sweep it would be part of what a job is.
    made["metadata"]["experiments"] = own
    return {
        **made,
        "sweep": {
            "type": "list",
            "configs": rows,
            "name_template": "{experiment}",
            "store_sweep_json": store_sweep_json,
        },
    }


def _own_of(each: Named, cwd: str) -> dict[str, Any]:
    """What an experiment has for itself, in the form of a config."""
    for option in each.sbatch:
        if not _OPTION.fullmatch(option):
            raise ValidationError(Fault(key="slurm.extra_args", what=f"`{option}` is no option of sbatch"))
    said = each.said("backend", "cwd")
    return {
        "sbatch": configs.escaped(each.sbatch),
        "export": configs.escaped(each.said("slurm", "export")),
        "cwd": configs.escaped(said) if said is not None else cwd,
        **({"script": configs.escaped(each.script.words[-2])} if each.script is not None else {}),
    }


def _options(own: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(option for each in own.values() for option in each["sbatch"]))


def _common(key: str, own: Mapping[str, dict[str, Any]]) -> Any:
    """A value where it is the same for all experiments, else a reference to that of each, which is made."""
    section, _, option = key.partition(".")
    homes = [each[section] if option else each for each in own.values()]
    values = [home.setdefault(option or section, None) for home in homes]
    if all(value == values[0] for value in values):
        for home in homes:
            del home[option or section]
        return values[0]
    return f"${{metadata.experiments.${{config_digest}}.{key}}}"


def _run_scripts(made: dict[str, Any], scripts: Sequence[Wrapped]) -> None:
    """Have each experiment run its script."""
    heads = {tuple(each.words[:-2]) for each in scripts}
    clusters = {tuple(each.sections.get("scheduler", {}).get("clusters", ())) for each in scripts}
    for several, what in ((heads, "interpreters"), (clusters, "clusters")):
        if len(several) > 1:
            hint = "submit those that differ by themselves, each kind in an experiments_dir of its own"
            raise ValidationError(Fault(what=f"the scripts name different {what}", hint=hint))
    script = "${metadata.experiments.${config_digest}.script}"
    made["backend"]["command"] = [*configs.escaped(list(heads.pop())), script, "${job.name}.sbatch"]
    setup = next((each.sections["slurm"]["setup"] for each in scripts if _has_setup(each)), None)
    if setup is not None:
        made["slurm"]["setup"] = setup
    if any(clusters):
        made["scheduler"] = {"clusters": list(clusters.pop())}


def _has_setup(script: Wrapped) -> bool:
    return "setup" in script.sections.get("slurm", {})


def _variables(keys: Sequence[str]) -> dict[str, str]:
    """A free variable for each key: its last word where nothing else has that name."""
    made = {}
    for key, short in short_names(keys).items():
        is_free = short not in _OWN and short not in _TAKEN and "." not in short
        made[key] = short if is_free else f"parameter_{key.replace('.', '_')}"
    return made


def _shown(value: Any) -> Any:
    """A parameter as `status` shows it. A mapping would be several parameters."""
    data = plain(value)
    return json.dumps(data, sort_keys=True) if isinstance(data, Mapping) else data


def _digest(config: ExperimentConfig) -> str:
    """Of what an experiment computes: neither what it asks of Slurm nor what is said about it."""
    data = {key: value for key, value in config.to_dict().items() if key not in _SAID}
    # As a key of a config it must not look like a number.
    return f"c{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]}"
