"""The one namer: from the values of a point to a name that a path, a git ref and Slurm accept.

The default shows the swept keys and no index, so a point that is added renames no other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault, did_you_mean
from oellm_autoexp.sweep.scalars import label

DEFAULT_TEMPLATE = "{project}_{params}"
#: File names end at 255 bytes (NAME_MAX); what is written beside a job adds suffixes to its name.
MAX_LENGTH = 200
#: A label of RFC 1123, which names Kubernetes objects.
KUBERNETES_MAX_LENGTH = 63

Values = Mapping[str, Any]

_ILLEGAL = re.compile(r"[^A-Za-z0-9._+=-]+")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
#: Fill, alignment, sign, zero, width, grouping, precision, type: what str.format offers for text and numbers.
_SPEC = re.compile(r"(?:.?[<>=^])?[-+ ]?#?0?\d{0,2}[,_]?(?:\.\d{1,2})?[a-zA-Z%]?")


class Namer:
    """Names the points of one sweep.

    `template` (None: `{project}_{params}`) holds `{project}`, `{index}`, `{params}` and keys in `keys`, with
    a format such as `{lr:.0e}` where wanted; `{{` and `}}` are braces. `params` are the keys that
    `{params}` shows (all of `keys` unless given): those of them that a point has, as `lr0.001_seed0`; of
    those in `bare` the value alone. `reads`: the keys that the template looks at; `named`: that it names.

    Raises:
        ConfigError: a placeholder that is unknown or broken.
    """

    def __init__(
        self,
        template: str | None,
        project: str,
        keys: Sequence[str],
        params: Sequence[str] | None = None,
        bare: Collection[str] = (),
    ) -> None:
        self.template = DEFAULT_TEMPLATE if template is None else template
        shown = tuple(keys if params is None else params)
        self._project = project
        self._keys = tuple(keys)
        self._short = {key: "" if key in bare else short for key, short in short_names(shown).items()}
        # Without anything to show, the default must not end in "_".
        text = "{project}" if template is None and not shown else self.template
        self.reads: frozenset[str] = frozenset()
        self.named: frozenset[str] = frozenset()
        self.uses_index = False
        self._pieces = self._parsed(text)

    def name(self, values: Values, index: int) -> str:
        """The legal name of a point.

        Raises:
            ConfigError: the point lacks a key of the template, or a format does not fit its value.
        """
        return legalize("".join(piece(values, index) for piece in self._pieces))

    def _parsed(self, text: str) -> list[Callable[[Values, int], str]]:
        pieces = []
        position = 0
        for match in _FIELD.finditer(text):
            if match.start() > position:
                pieces.append(_literal(text[position : match.start()]))
            token, position = match.group(), match.end()
            if token in ("{{", "}}"):
                pieces.append(_literal(token[0]))
            elif match.group(1) is None:
                raise self._fault(f"a single `{token}`", hint=f"write `{token * 2}` for the character")
            else:
                pieces.append(self._placeholder(match.group(1)))
        if position < len(text):
            pieces.append(_literal(text[position:]))
        return pieces

    def _placeholder(self, field: str) -> Callable[[Values, int], str]:
        name, _, spec = field.partition(":")
        if not _SPEC.fullmatch(spec):
            raise self._fault(
                f"`{{{field}}}` has a format that is not usable", hint="write one like {lr:.0e}"
            )
        if name in self._keys:
            self.reads |= {name}
            self.named |= {name}
            return lambda values, _index: self._shown(values, name, spec)
        if name == "params":
            self.reads |= set(self._short)
            return self._params
        if name == "project":
            return _literal(self._project)
        if name == "index":
            self.uses_index = True
            return lambda _values, index: format(index, spec)
        known = ["project", "index", "params", *self._keys]
        raise self._fault(f"unknown placeholder `{{{name}}}`", hint=did_you_mean(name, known))

    def _shown(self, values: Values, name: str, spec: str) -> str:
        if name not in values:
            hint = "give it a value in base_values or defaults, or use {params}"
            raise self._fault(f"a point has no `{name}` ({_listed(values)})", hint=hint)
        value = values[name]
        if not spec:
            return label(value)
        try:
            return format(value, spec)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._fault(f"`{{{name}:{spec}}}` does not fit {name}={value!r}: {error}") from None

    def _params(self, values: Values, _index: int) -> str:
        return "_".join(short + label(values[key]) for key, short in self._short.items() if key in values)

    def _fault(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(Fault(key="sweep.name_template", what=what, value=self.template, hint=hint))


def _literal(text: str) -> Callable[[Values, int], str]:
    return lambda _values, _index: text


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key with its last component where that is enough to tell it from the others."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def _listed(values: Values) -> str:
    return ", ".join(f"{key}={label(value)}"[:80] for key, value in values.items()) or "no values"


# ---------------------------------------------------------------- legal names


def legalize(text: str) -> str:
    """A legal name: letters, digits and `._+=-`, at most 200 characters, fit for a path and a git ref.

    A legal text stays as it is. Any other keeps what it can and ends in a hash of the whole, so different
    texts give different names. Sources: git-check-ref-format(1), sbatch(1).

    >>> legalize("tiny_lr0.001"), legalize("a b/c")
    ('tiny_lr0.001', 'a-b-c-539138d5')
    """
    name = _ILLEGAL.sub("-", text)
    name = re.sub(r"\.{2,}", ".", name).lstrip("-.")
    name = re.sub(r"(?:\.lock|\.)+$", "", name)
    if name == text and 0 < len(name) <= MAX_LENGTH:
        return name
    return _hashed(name.rstrip("-"), text, MAX_LENGTH)


def kubernetes_name(name: str) -> str:
    """A label of RFC 1123 for a name: lower case letters, digits and `-`, at most 63 characters.

    A name that is one already stays; any other ends in a hash of the whole.

    >>> kubernetes_name("tiny-1"), kubernetes_name("tiny_lr0.001")
    ('tiny-1', 'tiny-lr0-001-8dea6f7e')
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if made == name and 0 < len(made) <= KUBERNETES_MAX_LENGTH:
        return made
    return _hashed(made, name, KUBERNETES_MAX_LENGTH)


def branch_name(experiment: str, at: int, commit: str) -> str:
    """The name of a branch for the jobs of an experiment; `at` are UTC epoch seconds.

    >>> branch_name("tiny", 1700000000, "0123456789abcdef")
    'slurm-job/tiny/1700000000/01234567'
    """
    return f"slurm-job/{legalize(experiment)}/{at}/{commit[:8]}"


def _hashed(start: str, text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    kept = start[: length - len(digest) - 1].rstrip("-.")
    return f"{kept}-{digest}" if kept else f"x{digest}"


# ---------------------------------------------------------------- no name twice


class UniqueNames:
    """Refuses a name that two points share.

    `key` is where the template stands; `placeholder` formats a key as the template shows it.
    """

    def __init__(
        self, template: str = "", key: str = "sweep.name_template", placeholder: str = "{{{}}}"
    ) -> None:
        self._template = template or DEFAULT_TEMPLATE
        self._key, self._placeholder = key, placeholder
        self._seen: dict[str, tuple[int, Values]] = {}

    def add(self, name: str, values: Values) -> None:
        """Take note of a point.

        Raises:
            ConfigError: another point has this name; says by which keys the two differ.
        """
        number = len(self._seen)
        first, other = self._seen.setdefault(name, (number, values))
        if first == number:
            return
        missing = object()
        differ = [
            key
            for key in dict.fromkeys([*other, *values])
            if other.get(key, missing) != values.get(key, missing)
        ]
        if differ:
            what = f"two points have the name `{name}`, which does not show {', '.join(differ)}"
            template = self._template + "".join(f"_{self._placeholder.format(key)}" for key in differ)
            hint = f"tell them apart with {self._key.rpartition('.')[2]}: '{template}'"
        else:
            what = f"the same point is declared twice (`{name}`)"
            hint = "remove one of the two declarations, or filter it out"
        shown = f"points {first} ({_listed(other)}) and {number} ({_listed(values)})"
        raise ConfigError(Fault(key=self._key, what=what, value=shown, hint=hint))
