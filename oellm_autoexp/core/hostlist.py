"""Node lists as Slurm writes them: `node[01-03,7],login1`. Source: scontrol(1), `show hostnames`."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

#: No list of a real cluster is longer; a broken one must not fill the memory.
MAX_HOSTS = 100_000
_PART = re.compile(r"\[([^\[\]]*)\]")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_host(text: str) -> bool:
    """Whether a text can be the name of one node."""
    return _HOST.fullmatch(text) is not None


@lru_cache(maxsize=64)  # A list of a large job has thousands of names.
def expand(text: str) -> tuple[str, ...]:
    """The names of a node list, in its order; what cannot be one has none.

    >>> expand("node[08-10,3],login1")
    ('node08', 'node09', 'node10', 'node3', 'login1')
    """
    names: list[str] = []
    if "[" not in text:
        # Thousands of names, written out.
        names = text.strip().split(",")
        return tuple(dict.fromkeys(names)) if len(names) <= MAX_HOSTS and all(map(is_host, names)) else ()
    for item in re.split(r",(?![^\[]*\])", text.strip()):
        pieces = _PART.split(item)
        # Texts stand at even places, the insides of brackets at odd ones.
        choices = [_numbers(piece) if at % 2 else [piece] for at, piece in enumerate(pieces)]
        count = 1
        for each in choices:
            count *= len(each)
        if len(names) + count > MAX_HOSTS:
            return ()
        names += ["".join(parts) for parts in product(*choices)]
    return tuple(dict.fromkeys(names)) if all(is_host(name) for name in names) else ()


def _numbers(inside: str) -> list[str]:
    """The members of `01-03,7`; none where it is something else."""
    found: list[str] = []
    for item in inside.split(","):
        first, dash, last = item.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not 0 <= int(last) - int(first) < MAX_HOSTS:
            return []
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found
