"""From a text with `${…}` to a closure: OmegaConf's own grammar, without OmegaConf's nodes.

A closure is evaluated against a scope, which knows what the references mean at one point of a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, TypeAlias

# Not in OmegaConf's documentation; pinned by `omegaconf>=2.3,<2.4` and by tests.
from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarLexer import OmegaConfGrammarLexer as Lexer
from omegaconf.grammar_parser import parse

from oellm_autoexp.config import resolvers
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import did_you_mean
from oellm_autoexp.sweep.scalars import format_scalar, kind_of

#: A place in a config, from the root; list items by their number.
Path: TypeAlias = tuple[str, ...]

_SHELL_NAME = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\b")
_COMPUTED = ("env", "select", "decode", "dict.keys", "dict.values", "timestring")
RESOLVER_NAMES = tuple(f"oc.{name}" for name in sorted((*resolvers.NAMES, *_COMPUTED)))


class Problem(Exception):
    """Why a text cannot be evaluated; whoever knows where the text stands makes a `Fault` of it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class Missing(Problem):
    """A reference to something that does not exist (or is `???`)."""


class Scope(Protocol):
    """What references mean."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def timestamp(self) -> str | None: ...

    def get(self, path: Path) -> Any:
        """The value at a path.

        Raises:
            Missing: there is none.
        """


Code: TypeAlias = Callable[[Scope], Any]


@dataclass(frozen=True)
class Expression:
    """A compiled text. `reads`: dotted paths it refers to; one that ends in "." is only a beginning."""

    code: Code
    reads: frozenset[str]


def has_reference(text: str) -> bool:
    """Whether OmegaConf would evaluate the text (an escaped `\\${` counts: the backslash goes)."""
    return "${" in text


def compile_text(text: str, at: Path) -> Expression:
    """Compile a text that stands at the path `at` (relative references start there).

    Raises:
        Problem: broken syntax, an unknown resolver, a relative reference above the root.
    """
    return _compiled(text, at, "configValue", "DEFAULT_MODE")


def _compiled(text: str, at: Path, rule: str, mode: str) -> Expression:
    try:
        tree = parse(text, parser_rule=rule, lexer_mode=mode)
    except GrammarParseError as error:
        raise Problem(f"broken `${{…}}`: {error}", shell_hint(text)) from None
    except RecursionError:
        raise Problem("`${…}` is nested too deep") from None
    compiler = _Compiler(at)
    return Expression(compiler.on(tree.getChild(0)), frozenset(compiler.reads))


def shell_hint(text: str) -> str:
    """What to write when `${` is meant for a shell."""
    found = _SHELL_NAME.search(text)
    if found is None:
        return "write `\\${` where the characters themselves are meant"
    name = found.group(1)
    return f"for the shell's variable write `\\${{{name}}}`, for its value now `${{oc.env:{name}}}`"


def is_shell_name(name: str) -> bool:
    """Whether it begins as a shell's variable does, as in `${VAR%%.*}`.

    >>> is_shell_name("HOME"), is_shell_name("VAR%%"), is_shell_name("lr"), is_shell_name("Model")
    (True, True, False, False)
    """
    return _SHELL_NAME.match("${" + name) is not None


class _Constant:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, _scope: Scope) -> Any:
        return self.value


class _Compiler:
    """Makes closures of a syntax tree; one method per rule of the grammar."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.reads: set[str] = set()

    def on(self, ctx: Any) -> Code:
        made: Code = getattr(self, f"on_{type(ctx).__name__.removesuffix('Context')}")(ctx)
        return made

    def on_Text(self, ctx: Any) -> Code:
        children = list(ctx.getChildren())
        if len(children) == 1 and _is_interpolation(children[0]):
            return self.on(children[0])
        return self.joined(children)

    def on_Interpolation(self, ctx: Any) -> Code:
        return self.on(ctx.getChild(0))

    def on_Element(self, ctx: Any) -> Code:
        return self.on(ctx.getChild(0))

    def on_Primitive(self, ctx: Any) -> Code:
        children = list(ctx.getChildren())
        if len(children) > 1:
            return self.joined(children)
        if _is_interpolation(children[0]):
            return self.on(children[0])
        return _Constant(_primitive(children[0].symbol))

    on_DictKey = on_Primitive

    def on_QuotedValue(self, ctx: Any) -> Code:
        if ctx.getChildCount() == 2:
            return _Constant("")
        text = self.on(ctx.getChild(1))
        return text if isinstance(text, _Constant) else lambda scope: _text(text(scope))

    def on_ListContainer(self, ctx: Any) -> Code:
        items = self.sequence(ctx.getChild(1)) if ctx.getChildCount() == 3 else []
        return lambda scope: [item(scope) for item in items]

    def on_DictContainer(self, ctx: Any) -> Code:
        pairs = []
        for pair in list(ctx.getChildren())[1:-1:2]:
            key = self.on(pair.getChild(0))
            assert isinstance(key, _Constant)
            pairs.append((key.value, self.on(pair.getChild(2))))
        return lambda scope: {key: value(scope) for key, value in pairs}

    def sequence(self, ctx: Any) -> list[Code]:
        """The elements between commas; nothing between two commas is an empty text."""
        items: list[Code] = []
        after_comma = True
        for child in ctx.getChildren():
            if hasattr(child, "symbol"):
                if after_comma:
                    items.append(_Constant(""))
                after_comma = True
            else:
                items.append(self.on(child))
                after_comma = False
        return [*items, _Constant("")] if after_comma else items

    def joined(self, children: Sequence[Any]) -> Code:
        """Literal pieces and interpolations, one after the other as text."""
        pieces: list[str | Code] = []
        for child, following in zip_longest(children, children[1:]):
            piece = self.on(child) if _is_interpolation(child) else _unescaped(child.symbol, following)
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            else:
                pieces.append(piece)
        if len(pieces) == 1 and isinstance(pieces[0], str):
            return _Constant(pieces[0])
        return lambda scope: "".join(
            piece if isinstance(piece, str) else _text(piece(scope)) for piece in pieces
        )

    # ---- references

    def on_InterpolationNode(self, ctx: Any) -> Code:
        dots = 0
        keys: list[str | Code] = []
        for child in ctx.getChildren():
            if not hasattr(child, "symbol"):
                inner = child.getChild(0)
                keys.append(self.on(inner) if _is_interpolation(inner) else inner.symbol.text)
            elif not keys and child.symbol.type == Lexer.DOT:
                dots += 1
        start = self.above(dots) if dots else ()
        known = []
        for key in keys:
            if not isinstance(key, str):
                break
            known.append(key)
        if len(known) == len(keys):
            return self.reference((*start, *known))
        self.reads.add("".join(f"{key}." for key in (*start, *known)))
        return lambda scope: scope.get((*start, *(part for key in keys for part in _key_parts(key, scope))))

    def above(self, dots: int) -> Path:
        """The container that a reference with so many leading dots starts from."""
        if dots > len(self.at):
            raise Problem(f"a reference with {dots} leading dots goes above the top of the config")
        return self.at[: len(self.at) - dots]

    def reference(self, path: Path) -> Code:
        self.reads.add(".".join(path))
        return lambda scope: scope.get(path)

    # ---- resolvers

    def on_InterpolationResolver(self, ctx: Any) -> Code:
        name = ctx.getChild(1).getText()
        if "${" in name:
            raise Problem(f"the name of a resolver cannot be computed: `{name}`")
        sequence = ctx.getChild(3)
        arguments = [] if hasattr(sequence, "symbol") else self.sequence(sequence)
        short = name.removeprefix("oc.")
        if short in resolvers.NAMES:
            return _call(short, arguments)
        if short == "eval":
            raise Problem(
                f"`{name}` is not available: a config never runs code",
                "use the arithmetic resolvers: " + ", ".join(f"oc.{each}" for each in resolvers.NAMES),
            )
        if short not in _COMPUTED:
            hint = did_you_mean(name, RESOLVER_NAMES)
            raise Problem(
                f"unknown resolver `{name}`", shell_hint("${" + name) if is_shell_name(name) else hint
            )
        made: Code = getattr(self, f"make_{short.replace('.', '_')}")(arguments)
        return made

    def make_env(self, arguments: Sequence[Code]) -> Code:
        if len(arguments) not in (1, 2):
            raise Problem("`oc.env` takes a name and perhaps a default", "write ${oc.env:NAME,default}")
        name, default = arguments[0], arguments[1] if len(arguments) == 2 else None
        return lambda scope: _environment(scope, name(scope), default)

    def make_select(self, arguments: Sequence[Code]) -> Code:
        if len(arguments) not in (1, 2):
            raise Problem("`oc.select` takes a key and perhaps a default", "write ${oc.select:a.b,default}")
        path, default = self.path_of(arguments[0]), arguments[1] if len(arguments) == 2 else _Constant(None)

        def code(scope: Scope) -> Any:
            where = path(scope)
            try:
                return scope.get(where)
            except Missing:
                return default(scope)

        return code

    def make_dict_keys(self, arguments: Sequence[Code]) -> Code:
        found = self.mapping_of(arguments)
        return lambda scope: list(found(scope))

    def make_dict_values(self, arguments: Sequence[Code]) -> Code:
        found = self.mapping_of(arguments)
        return lambda scope: list(found(scope).values())

    def mapping_of(self, arguments: Sequence[Code]) -> Callable[[Scope], Mapping[str, Any]]:
        """The mapping at a path."""
        if len(arguments) != 1:
            raise Problem("`oc.dict.keys` and `oc.dict.values` take one key", "write ${oc.dict.keys:a.b}")
        path = self.path_of(arguments[0])

        def code(scope: Scope) -> Mapping[str, Any]:
            value = scope.get(path(scope))
            if not isinstance(value, Mapping):
                raise Problem(f"a {kind_of(value)} is not a mapping")
            return value

        return code

    def path_of(self, given: Code) -> Callable[[Scope], Path]:
        """The path that a key given as text means, relative when it begins with a dot."""

        def path(key: Any) -> Path:
            if not isinstance(key, str):
                raise Problem(f"a key must be text, not a {kind_of(key)}")
            dots = len(key) - len(key.lstrip("."))
            return (*(self.above(dots) if dots else ()), *_split(key))

        if isinstance(given, _Constant) and isinstance(given.value, str):
            known = path(given.value)
            self.reads.add(".".join(known))
            return lambda _scope: known
        self.reads.add("")
        return lambda scope: path(given(scope))

    def make_decode(self, arguments: Sequence[Code]) -> Code:
        if len(arguments) != 1:
            raise Problem("`oc.decode` takes one text")
        given = arguments[0]
        # What the decoded text refers to is not known before.
        self.reads.add("")

        def code(scope: Scope) -> Any:
            text = given(scope)
            if text is None:
                return None
            if not isinstance(text, str):
                raise Problem(f"`oc.decode` takes text, not a {kind_of(text)}")
            return _compiled(text, self.at, "singleElement", "VALUE_MODE").code(scope)

        return code

    def make_timestring(self, arguments: Sequence[Code]) -> Code:
        if arguments:
            raise Problem("`oc.timestring` takes no values", "write ${oc.timestring:}")

        def code(scope: Scope) -> str:
            if scope.timestamp is None:
                raise Problem("`oc.timestring` has no time here", "the same config must give the same plan")
            return scope.timestamp

        return code


def _call(name: str, arguments: Sequence[Code]) -> Code:
    try:
        function = resolvers.function(name, len(arguments))
    except ValueError as error:
        raise Problem(str(error), f"write {resolvers.usage(name)}") from None

    def code(scope: Scope) -> Any:
        values = [argument(scope) for argument in arguments]
        try:
            return function(*values)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise Problem(f"`oc.{name}`: {error}", f"write {resolvers.usage(name)}") from None

    return code


def _environment(scope: Scope, name: Any, default: Code | None) -> str | None:
    if not isinstance(name, str) or not name.lstrip("$"):
        raise Problem("`oc.env` needs the name of a variable", "write ${oc.env:NAME,default}")
    # `$NAME` was written in older configs and means the same.
    name = name.removeprefix("$")
    if name in scope.environment:
        # A secret is never written down; the job reads it from its own environment.
        return symbols.reference(name) if symbols.is_secret(name) else scope.environment[name]
    if default is None:
        hint = f"export {name}=…, or give a default: ${{oc.env:{name},default}}"
        raise Problem(f"the environment variable {name} is not set", hint)
    value = default(scope)
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    try:
        return format_scalar(value)
    except ValueError as error:
        raise Problem(f"within a text: {error}") from None


def _key_parts(key: str | Code, scope: Scope) -> Sequence[str]:
    if isinstance(key, str):
        return (key,)
    value = key(scope)
    if not isinstance(value, str):
        raise Problem(f"the key that a nested `${{…}}` gives must be text, not a {kind_of(value)}")
    return _split(value)


def _split(key: str) -> list[str]:
    """`a.b[0].c` in its parts."""
    return re.findall(r"[^.\[\]]+", key)


def _is_interpolation(node: Any) -> bool:
    return type(node).__name__ == "InterpolationContext"


def _primitive(symbol: Any) -> Any:
    kind, text = symbol.type, symbol.text
    if kind == Lexer.NULL:
        return None
    if kind == Lexer.INT:
        return int(text)
    if kind == Lexer.FLOAT:
        return float(text)
    if kind == Lexer.BOOL:
        return text.lower() == "true"
    return text[1::2] if kind == Lexer.ESC else text


def _unescaped(symbol: Any, following: Any) -> str:
    """The text of a token without the backslashes that only protect what stands behind them.

    Before a `${` that counts (or at the end of a quoted text) two backslashes are one; before an escaped
    `\\${` one of an odd number goes; anywhere else backslashes are themselves.
    """
    kind: int = symbol.type
    text: str = symbol.text
    before_reference = following is not None and _is_interpolation(following)
    if kind == Lexer.ESC_INTER:
        return text[-(len(text) // 2 + 1) :]
    if (
        kind == Lexer.ESC
        or (kind == Lexer.TOP_ESC and before_reference)
        or (kind == Lexer.QUOTED_ESC and (following is None or before_reference))
    ):
        return text[1::2]
    return text
