"""Job specs: a template, parameters, and what each job asks of Slurm; from these, the text of each script.

A spec is a YAML file with `template` and `parameters`; see docs/howto/generate.md for all of its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oellm_autoexp.config import yaml_loader
from oellm_autoexp.core.layout import RESERVED_JOB_NAMES
from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.planning.functions import UserFunction, function_of
from oellm_autoexp.planning.values import plain, shown
from oellm_autoexp.rendering import templates
from oellm_autoexp.sweep.grid import alternatives, fixed
from oellm_autoexp.sweep.names import Namer, UniqueNames, legalize
from oellm_autoexp.sweep.nodes import Node, Values, product, union
from oellm_autoexp.sweep.scalars import kind_of

#: What a template is given beside the parameters.
RESERVED = ("job_name", "slurm", "logs_dir", "params")

_KEYS = (
    "name",
    "description",
    "template",
    "output_dir",
    "logs_dir",
    "parameters",
    "slurm_args",
    "job_name_pattern",
)
_PARAMETER_KEYS = ("mode", "values", "filter", "parse")
_SLURM_KEYS = ("defaults", "logic")
_MODES = ("grid", "list")


@dataclass(frozen=True, kw_only=True)
class JobSpecFile:
    """A job spec that was read and found well-formed; every path is absolute.

    `file` is where it stands (None: it was put together by a program), `logs_dir` "" where none is given.
    """

    template: Path
    parameters: Parameters
    file: Path | None = None
    name: str = ""
    description: str = ""
    output_dir: Path = Path()
    logs_dir: str = ""
    slurm_defaults: Mapping[str, Any] = field(default_factory=dict)
    slurm_logic: UserFunction | None = None
    job_name_pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The points of a job spec: a product of values, or a list of combinations."""

    mode: str
    node: Node
    filter: UserFunction | None = None
    parse: UserFunction | None = None

    def points(self) -> Iterator[Values]:
        """The parameters of each job, in order.

        Raises:
            ConfigError: a function fails, or returns what is no answer.
        """
        for values in self.node.points():
            for parsed in self._parsed(values):
                # A list is chosen by hand; only a product has combinations that nobody wants.
                if self.filter is None or self.mode == "list" or _kept(self.filter, parsed):
                    yield parsed

    def _parsed(self, given: Values) -> Sequence[Values]:
        if self.parse is None:
            return [given]
        answer = self.parse(given)
        found = answer if isinstance(answer, (list, tuple)) else [answer]
        made = []
        for each in found:
            if not isinstance(each, Mapping):
                what = f"returned {shown(answer)} for {shown(given)}"
                raise self.parse.fault(what, "return a mapping of parameters, or a list of them")
            try:
                values = dict(fixed(each, self.parse.key).values)
            except ConfigError as error:
                raise self.parse.fault(f"returned {shown(each)}: {error.faults[0].what}") from None
            if values.keys() & set(RESERVED):
                what, hint = (
                    f"returned {shown(each)}",
                    f"{', '.join(RESERVED)} are names of the template's own",
                )
                raise self.parse.fault(what, hint)
            made.append(values)
        return made


def _kept(function: UserFunction, values: Values) -> bool:
    answer = function(values)
    # Booleans of NumPy are none of Python's.
    if type(answer).__name__ not in ("bool", "bool_"):
        hint = "return True for what is to be kept, False for the others"
        raise function.fault(f"returned {shown(answer)} for {shown(values)}", hint)
    return bool(answer)


# ---------------------------------------------------------------- reading


def read(path: Path) -> JobSpecFile:
    """A job spec from its file; relative paths start where the file stands.

    Raises:
        ConfigError: every mistake in it, with its key.
    """
    file = path.resolve()
    data = yaml_loader.load(path)
    try:
        return _spec(data, file)
    except ConfigError as error:
        raise ConfigError(*(_in_file(fault, str(path)) for fault in error.faults)) from error.__cause__


def read_parameters(path: Path) -> Parameters:
    """The parameters alone, from a file that holds that section, or the mapping of values that it would.

    Raises:
        ConfigError: every mistake in it, with its key.
    """
    data = yaml_loader.load(path)
    data = data["parameters"] if data.keys() == {"parameters"} else data
    if isinstance(data, Mapping) and "values" not in data and "mode" not in data:
        data = {"values": data}
    try:
        return parameters_of(data, path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(*(_in_file(fault, str(path)) for fault in error.faults)) from error.__cause__


def _in_file(fault: Fault, file: str) -> Fault:
    return fault if fault.file else replace(fault, file=file)


def _spec(data: Mapping[str, Any], file: Path) -> JobSpecFile:
    faults = list(_unknown(data, _KEYS, ""))
    texts = {}
    for key in ("name", "description", "template", "output_dir", "logs_dir", "job_name_pattern"):
        value = data.get(key)
        if value is not None and not isinstance(value, str):
            what, hint = f"must be text, not a {kind_of(value)}", f'write it in quotes: "{value}"'
            faults.append(Fault(key=key, what=what, value=shown(value), hint=hint))
        texts[key] = value if isinstance(value, str) else None
    try:
        plain({key: text for key, text in texts.items() if text}, "")
    except ConfigError as error:
        faults += [replace(fault, key=fault.key[1:]) for fault in error.faults]
    base = file.parent
    if not texts["template"]:
        hint = "add `template: train.job.j2`, a path relative to the spec"
        faults += [Fault(key="template", what="is missing", hint=hint)] if not data.get("template") else []
    elif not (base / Path(texts["template"]).expanduser()).is_file():
        faults.append(Fault(key="template", what=f"there is no file {base / texts['template']}"))
    made: dict[str, Any] = {}
    for key, reader in (("parameters", parameters_of), ("slurm_args", _slurm)):
        try:
            made[key] = reader(data.get(key), base)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    defaults, logic = made["slurm_args"]
    return JobSpecFile(
        file=file,
        name=texts["name"] or "",
        description=texts["description"] or "",
        template=(base / Path(texts["template"] or "").expanduser()).resolve(),
        output_dir=(base / Path(texts["output_dir"] or ".").expanduser()).resolve(),
        logs_dir=str((base / Path(texts["logs_dir"]).expanduser()).resolve()) if texts["logs_dir"] else "",
        parameters=made["parameters"],
        slurm_defaults=defaults,
        slurm_logic=logic,
        job_name_pattern=texts["job_name_pattern"],
    )


def _unknown(section: Mapping[str, Any], known: Sequence[str], prefix: str) -> Iterator[Fault]:
    for key in section:
        if key not in known:
            yield Fault(key=f"{prefix}{key}", what="unknown key", hint=did_you_mean(key, known))


def parameters_of(given: Any, base: Path) -> Parameters:
    """The section `parameters`: `mode` (grid or list), `values`, and functions `filter` and `parse`.

    Raises:
        ConfigError: every mistake in it.
    """
    if not isinstance(given, Mapping):
        hint = "write `parameters: {mode: grid, values: {lr: [0.1, 0.01]}}`"
        what = "is missing" if given is None else f"must be a mapping, not a {kind_of(given)}"
        raise ConfigError(Fault(key="parameters", what=what, hint=hint))
    faults = list(_unknown(given, _PARAMETER_KEYS, "parameters."))
    mode = given.get("mode", "grid")
    if mode not in _MODES:
        what = "must be grid or list"
        faults.append(Fault(key="parameters.mode", what=what, value=shown(mode)))
    node, functions = Node(), {}
    try:
        node = (_listed if mode == "list" else _product)(given.get("values"))
    except ConfigError as error:
        faults += error.faults
    for name, default in (("filter", "include_params"), ("parse", "parse_params")):
        try:
            functions[name] = function_of(given.get(name), default, base, f"parameters.{name}")
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return Parameters(mode=str(mode), node=node, **functions)


def _product(values: Any) -> Node:
    place = "parameters.values"
    if not isinstance(values, Mapping):
        what = "is missing" if values is None else f"must be a mapping, not a {kind_of(values)}"
        raise ConfigError(Fault(key=place, what=what, hint="write `values: {lr: [0.1, 0.01], seed: [0, 1]}`"))
    faults, parts = list(_reserved(values, place)), []
    for key, given in values.items():
        listed = given if isinstance(given, (list, tuple)) else [given]
        try:
            parts.append(alternatives(key, listed, f"{place}.{key}"))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    if not parts:
        raise ConfigError(Fault(key=place, what="is empty, so there would be no jobs"))
    return product(parts)


def _listed(values: Any) -> Node:
    place = "parameters.values"
    found = [values] if isinstance(values, Mapping) else values
    if not isinstance(found, (list, tuple)):
        what = "is missing" if found is None else f"must be a list, not a {kind_of(found)}"
        raise ConfigError(Fault(key=place, what=what, hint="write `values: [{lr: 0.1}, {lr: 0.01}]`"))
    faults: list[Fault] = []
    parts = []
    for number, given in enumerate(found):
        inner = f"{place}.{number}"
        if not isinstance(given, Mapping):
            faults.append(Fault(key=inner, what=f"must be a mapping, not a {kind_of(given)}"))
            continue
        faults += _reserved(given, inner)
        try:
            parts.append(fixed(given, inner))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    if not parts:
        raise ConfigError(Fault(key=place, what="is empty, so there would be no jobs"))
    return union(parts)


def _reserved(values: Mapping[str, Any], place: str) -> Iterator[Fault]:
    for name in RESERVED:
        if name in values:
            hint = f"call the parameter something else than {', '.join(RESERVED)}"
            yield Fault(key=f"{place}.{name}", what="is a name of the template's own", hint=hint)


def _slurm(given: Any, base: Path) -> tuple[Mapping[str, Any], UserFunction | None]:
    if given is None:
        return {}, None
    if not isinstance(given, Mapping):
        what = f"must be a mapping, not a {kind_of(given)}"
        raise ConfigError(Fault(key="slurm_args", what=what, hint="write `slurm_args: {defaults: {…}}`"))
    faults = list(_unknown(given, _SLURM_KEYS, "slurm_args."))
    defaults = given.get("defaults")
    if defaults is not None and not isinstance(defaults, Mapping):
        what = f"must be a mapping, not a {kind_of(defaults)}"
        faults.append(Fault(key="slurm_args.defaults", what=what))
    logic = None
    try:
        logic = function_of(given.get("logic"), "get_slurm_args", base, "slurm_args.logic")
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return dict(defaults or {}), logic


# ---------------------------------------------------------------- rendering


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One job of a spec before its script is rendered."""

    name: str
    parameters: Values
    slurm: Mapping[str, Any]


def planned(spec: JobSpecFile) -> list[Planned]:
    """The jobs of a spec in order, each with a name of its own.

    Raises:
        ConfigError: there are none, two have one name, or a function fails.
    """
    try:
        return list(_planned(spec))
    except ConfigError as error:
        raise ConfigError(*(_in_file(fault, str(spec.file or "")) for fault in error.faults)) from (
            error.__cause__
        )


def _planned(spec: JobSpecFile) -> Iterator[Planned]:
    points = [plain(values, "parameters.values") for values in spec.parameters.points()]
    if not points:
        key = "parameters.filter" if spec.parameters.filter is not None else "parameters.parse"
        what = "keeps no combination, so there would be no jobs"
        raise ConfigError(Fault(key=key, what=what))
    keys = tuple(dict.fromkeys(key for values in points for key in values))
    named = _namer(spec, keys)
    pattern = spec.job_name_pattern or "_".join(f"{key}{{{{ {key} }}}}" for key in keys)
    unique = UniqueNames(pattern, "job_name_pattern", "{{{{ {} }}}}")
    for values in points:
        name = named(values)
        if name in RESERVED_JOB_NAMES:
            what = f"`{name}` is a name of a directory of ours"
            raise ConfigError(Fault(key="job_name_pattern", what=what, hint="add something to the pattern"))
        unique.add(name, values)
        yield Planned(name=name, parameters=values, slurm=slurm_of(spec, values))


def _namer(spec: JobSpecFile, keys: Sequence[str]) -> Callable[[Values], str]:
    if spec.job_name_pattern is not None:
        pattern = spec.job_name_pattern
        return lambda values: legalize(_from_pattern(pattern, values))
    if not keys:
        # A template that needs no parameters.
        return lambda _values: legalize(spec.name or spec.template.name.partition(".")[0])
    namer = Namer("{params}", spec.name, keys)
    return lambda values: namer.name(values, 0)


def _from_pattern(pattern: str, values: Values) -> str:
    key = "job_name_pattern"
    name = templates.render_text(pattern, {**values, "params": values}, key=key).strip()
    if not name:
        hint = "leave it out for names such as lr0.1_seed0"
        raise ConfigError(Fault(key=key, what=f"gives no name to {shown(values)}", value=pattern, hint=hint))
    return name


def slurm_of(spec: JobSpecFile, values: Values) -> Mapping[str, Any]:
    """What a job asks of Slurm, as its template sees it.

    Raises:
        ConfigError: the function fails, or returns something else than a mapping.
    """
    if spec.slurm_logic is None:
        return plain(spec.slurm_defaults, "slurm_args.defaults")
    answer = spec.slurm_logic(values, dict(spec.slurm_defaults))
    if not isinstance(answer, Mapping) or not all(isinstance(key, str) for key in answer):
        what = f"returned {shown(answer)} for {shown(values)}"
        raise spec.slurm_logic.fault(what, "return the mapping of arguments: args = defaults.copy(); …")
    try:
        return plain(answer, "")
    except ConfigError as error:
        fault = error.faults[0]
        what = f"returned {fault.value} as `{fault.key[1:]}` for {shown(values)}: {fault.what}"
        raise spec.slurm_logic.fault(what) from None


def rendered(spec: JobSpecFile, job: Planned) -> str:
    """The text of the script of a job.

    Raises:
        ConfigError: the template is broken, or asks for what there is not.
    """
    context = {
        **job.parameters,
        "job_name": job.name,
        "slurm": job.slurm,
        "logs_dir": spec.logs_dir or ".",
        "params": job.parameters,
    }
    try:
        return templates.render_file(spec.template, context)
    except ConfigError as error:
        faults = (replace(fault, what=f"{fault.what} (job {job.name})") for fault in error.faults)
        raise ConfigError(*faults) from error.__cause__
