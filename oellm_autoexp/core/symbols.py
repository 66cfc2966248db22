"""Values that are known only inside the job: environment references within otherwise resolved text.

`${job.attempt}` and secrets are not known (or must not be written) when a plan is made. They are carried
as references in the text and become `"$NAME"` in a script and `${NAME}` for people, so that scripts, ids
and files are equal for every attempt and never hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

# Two private-use characters frame a reference; they have no meaning in any text of a user.
OPEN, CLOSE = "\ue000", "\ue001"
_REFERENCE = re.compile(f"{OPEN}([A-Za-z_][A-Za-z0-9_]*){CLOSE}")
_SECRET_WORDS = frozenset(
    [
        "TOKEN",
        "TOKENS",
        "KEY",
        "KEYS",
        "APIKEY",
        "SECRET",
        "SECRETS",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "CREDENTIAL",
        "CREDENTIALS",
    ]
)

ATTEMPT_VARIABLE = "AUTOEXP_ATTEMPT"


def reference(name: str) -> str:
    """Text that stands for the value of environment variable `name` inside the job."""
    return f"{OPEN}{name}{CLOSE}"


def split(text: str) -> list[tuple[str, str]]:
    """Cut text into ("text", literal) and ("env", NAME) pieces; empty literals are left out."""
    pieces: list[tuple[str, str]] = []
    position = 0
    for match in _REFERENCE.finditer(text):
        if match.start() > position:
            pieces.append(("text", text[position : match.start()]))
        pieces.append(("env", match.group(1)))
        position = match.end()
    if position < len(text):
        pieces.append(("text", text[position:]))
    return pieces


def shown(text: str) -> str:
    """The text with references as `${NAME}`, for people and for JSON."""
    if OPEN not in text:
        return text
    return _REFERENCE.sub(lambda match: "${" + match.group(1) + "}", text)


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """The text with the values themselves, for a process that is about to use them; never to be written.

    Raises:
        ValueError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environ:
            raise ValueError(f"{name} is not set in the environment of the loop")
        return environ[name]

    return _REFERENCE.sub(value, text)


@lru_cache(maxsize=1024)
def is_secret(name: str) -> bool:
    """Whether an environment variable's name has one of the words TOKEN, KEY, SECRET, PASSWORD, … in it.

    >>> is_secret("HF_TOKEN"), is_secret("MONKEY_HOUSE"), is_secret("TOKENIZERS_PARALLELISM")
    (True, False, False)
    """
    return not _SECRET_WORDS.isdisjoint(name.upper().split("_"))
