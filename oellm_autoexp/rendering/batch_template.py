"""Templates of batch scripts: `{{NAME}}` and Jinja's statements are ours, all else is the shell's.

The engine is that of `templates`. What it would misread is kept from it: `${#array[@]}` begins no comment,
`{%` is a statement only before one of Jinja's words, `{{` an expression only before a name. Each value is
one word of the shell, quoted where it stands and where it has to be; the items of a list are a word each.
In an `#SBATCH` line it is the value of an option, and an option whose value is missing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from oellm_autoexp.errors import ConfigError, Fault
from oellm_autoexp.rendering import templates
from oellm_autoexp.rendering.quoting import Quotes
from oellm_autoexp.sweep.scalars import format_scalar

# Of the private use area: what neither a template nor a value may hold.
_BEGIN, _END, _NEXT, _KEPT = "\ue00a", "\ue00b", "\ue00c", "\ue00d"
_RESERVED = re.compile(f"[{_BEGIN}{_END}{_NEXT}{_KEPT}\0]")
_WORDS = "if|elif|else|endif|for|endfor|set|endset|macro|endmacro|call|endcall|filter|endfilter|with|endwith"
_OURS = re.compile(
    rf"""(?P<ours>\{{\{{[-+]?(?=\s*[A-Za-z_'"(])|\{{%[-+]?(?=\s*(?:{_WORDS})\b))|\{{(?=[{{%#])"""
)
_VALUE = re.compile(f"{_BEGIN}(.)([^{_END}]*){_END}", re.DOTALL)
#: What follows up to a line that is the word, is a here-document: `<<EOF`, `<<-"EOF"`, not `<<<`.
_HERE = re.compile(r"(?<!<)<<(-?)\s*(\\|['\"]?)([A-Za-z_]\w*)['\"]?(?!<)")
_DIRECTIVE = "#SBATCH"
#: What sbatch would take for the end of a value, or for quotes.
_NOT_PLAIN = re.compile(r"[\s'\"\\#]")


def render(source: str, context: Mapping[str, Any], *, file: str = "") -> str:
    """A batch script from the text of its template; `file` is where the template stands.

    A name may be written in upper or lower case. The filter `verbatim` is for a value that is text of the
    shell, such as what a block of `set` holds. Values are texts, numbers, booleans (`true`, `false`), lists
    of these, or None.

    Raises:
        ConfigError: it is broken, asks for a name that `context` lacks, or a value cannot stand where it is.
    """
    _check(source, file)
    kept = _OURS.sub(lambda found: found.group() if found["ours"] else "{" + _KEPT, source)
    return _laid_out(
        templates.render_shell(kept, context, _marked, file=file).replace("{" + _KEPT, "{"), file
    )


def names(source: str) -> frozenset[str]:
    """The names that stand in a template, in lower case; some may be the shell's."""
    return frozenset(name.lower() for name in re.findall(r"[A-Za-z_]\w*", source))


def _check(source: str, file: str) -> None:
    if "\r" in source:
        what = "the template has the line ends of DOS, or another carriage return"
        raise ConfigError(Fault(file=file, what=what, hint="mend it: dos2unix FILE"))
    found = _RESERVED.search(source)
    if found:
        what = f"the template holds a character that no script needs: {found.group()!r}"
        raise ConfigError(Fault(file=file, line=source.count("\n", 0, found.start()) + 1, what=what))


def _marked(value: Any) -> str:
    """A value as the engine writes it: where it is, of which kind, and its text."""
    if isinstance(value, templates.Verbatim):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"{_BEGIN}l{_NEXT.join(_text(item) for item in value)}{_END}"
    if isinstance(value, str) and _BEGIN in value:
        # A piece of the template itself, from a block: what it holds is quoted in its new place.
        return value
    kind = "b" if isinstance(value, bool) else "t"
    return f"{_BEGIN}{kind}{'' if value is None else _text(value)}{_END}"


def _text(value: Any) -> str:
    try:
        text = format_scalar(value)
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(Fault(what="a value is not valid as UTF-8", value=repr(value)[:200])) from None
    except ValueError as error:
        raise ConfigError(Fault(what=f"a value cannot be written: {error}")) from None
    if _RESERVED.search(text):
        what = "a value holds a character that no script can"
        raise ConfigError(Fault(what=what, value=repr(text)[:200]))
    return text


# ---------------------------------------------------------------- values in their places

#: The kind of each value and its items.
_Values = Sequence[tuple[str, str]]
_SLOT = re.compile(f"{_BEGIN}([0-9]+){_END}")


def _laid_out(marked: str, file: str) -> str:
    values: list[tuple[str, str]] = []

    def slot(found: re.Match[str]) -> str:
        values.append((found[1], found[2]))
        return f"{_BEGIN}{len(values) - 1}{_END}"

    lines = re.findall(r"[^\n]*\n|[^\n]+", _VALUE.sub(slot, marked))
    count = sum(1 for _ in _head(lines))
    quotes = Quotes()
    out = []
    for line in lines[:count]:
        is_directive = line.startswith(_DIRECTIVE)
        out.append(_directive(line, values, file) if is_directive else _shell(line, values, quotes))
    rest = lines[count:]
    while rest:
        line = rest.pop(0)
        out.append(_shell(line, values, quotes))
        for length, is_text in _here_documents(line, rest):
            out += [_here(each, values, is_text=is_text) for each in rest[:length]]
            del rest[:length]
    return "".join(out)


def _head(lines: Sequence[str]) -> Iterator[str]:
    """The lines that may be directives: those before the first command."""
    for line in lines:
        if line.strip() and not line.startswith("#"):
            return
        yield line


def _directive(line: str, values: _Values, file: str) -> str:
    """An `#SBATCH` line; "" where it has a value that is missing."""
    parts = _SLOT.split(line)
    made = parts[0]
    for number, after in zip(parts[1::2], parts[2::2], strict=True):
        kind, text = values[int(number)]
        if not text or (kind == "b" and made.endswith("=") and text == "false"):
            return ""
        if kind == "b" and made.endswith("="):
            # An option without an argument: `--requeue`.
            made, text = made[:-1], ""
        if "\n" in text:
            raise ConfigError(Fault(file=file, what="a directive is one line", value=repr(text)[:200]))
        made += _of_option(text.replace(_NEXT, ",")) + after
    return made


def _of_option(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'" if _NOT_PLAIN.search(text) else text


def _shell(line: str, values: _Values, quotes: Quotes) -> str:
    def word(found: re.Match[str]) -> str:
        kind, text = values[int(found[1])]
        items = text.split(_NEXT) if kind == "l" else [text]
        return quotes.read(" ").join(_word(item, quotes) for item in items if text)

    return _filled(line, word, quotes.read)


def _word(text: str, quotes: Quotes) -> str:
    # What no shell could misread stands as it is, within quotes too.
    return quotes.read(text) if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII) else quotes.word(text)


def _filled(line: str, value: Callable[[re.Match[str]], str], text: Callable[[str], str]) -> str:
    out, end = [], 0
    for found in _SLOT.finditer(line):
        out += [text(line[end : found.start()]), value(found)]
        end = found.end()
    return "".join([*out, text(line[end:])])


def _here_documents(line: str, rest: Sequence[str]) -> Iterator[tuple[int, bool]]:
    """The lengths of the here-documents that a line begins, and whether each is text to the shell."""
    for dash, quoted, word in _HERE.findall(line):
        lines = (each.lstrip("\t") if dash else each for each in rest)
        end = next((n for n, each in enumerate(lines) if each.rstrip("\n") == word), None)
        if end is None:
            # A shift of numbers, say.
            return
        yield end + 1, bool(quoted)


def _here(line: str, values: _Values, *, is_text: bool) -> str:
    def value(found: re.Match[str]) -> str:
        text = values[int(found[1])][1].replace(_NEXT, " ")
        return text if is_text else re.sub(r"[\\`$]", r"\\\g<0>", text)

    return _filled(line, value, lambda text: text)
