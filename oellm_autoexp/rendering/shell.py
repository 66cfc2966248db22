"""argv and environments as text for a POSIX shell. Pure; a word arrives in the process byte for byte.

References of `core.symbols` (values known only inside the job) become expansions of the shell; everything
else is quoted, whatever it holds.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache

from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError, Fault

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: The job stops with this message where a secret is not in its environment (`${NAME:?message}`).
_UNSET = "is not set: export it before you submit, or set it in slurm.env_file"


@lru_cache(maxsize=4096)  # Most words of a sweep are the same at every point.
def quote(text: str) -> str:
    """One shell word that expands to exactly this text.

    Raises:
        ConfigError: the text holds what no process can be given (NUL, half a surrogate pair).

    >>> quote("it's $5"), quote(""), quote("a" + symbols.reference("AUTOEXP_ATTEMPT"))
    ('\\'it\\'"\\'"\\'s $5\\'', "''", 'a"$AUTOEXP_ATTEMPT"')
    """
    check_text(text)
    if symbols.OPEN not in text:
        return shlex.quote(text)
    words = [
        shlex.quote(piece) if kind == "text" else expansion(piece) for kind, piece in symbols.split(text)
    ]
    return "".join(words)


def expansion(name: str) -> str:
    """The value of an environment variable as part of a word; a secret that is not set ends the script."""
    return f'"${{{name}:?{_UNSET}}}"' if symbols.is_secret(name) else f'"${name}"'


def join(argv: Iterable[str]) -> str:
    """The command line of an argv.

    Raises:
        ConfigError: a word that cannot be given to a process.
    """
    return " ".join(quote(word) for word in argv)


def exports(environment: Mapping[str, str]) -> list[str]:
    """One `export` line for each variable, in order.

    Raises:
        ConfigError: a name that is not one of an environment variable, a value that cannot be given.
    """
    return [f"export {check_name(name)}={quote(value)}" for name, value in environment.items()]


@lru_cache(maxsize=1024)
def check_name(name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: a shell cannot assign to it.
    """
    if not _NAME.fullmatch(name):
        what = f"`{name}` is not the name of an environment variable"
        raise ConfigError(Fault(what=what, hint="use letters, digits and _, not beginning with a digit"))
    return name


def check_text(text: str) -> None:
    """Refuse what cannot be part of an argv or an environment.

    Raises:
        ConfigError: a NUL byte, or half of a surrogate pair, which has no UTF-8.
    """
    if "\0" in text:
        raise ConfigError(Fault(what="holds a NUL byte, which no process can be given", value=repr(text)))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(Fault(what="is not valid as UTF-8", value=repr(text))) from None
