"""Which lines of a dead attempt's log say why it died. Pure text.

A crash of many processes prints the cause once and its consequences many times: the other ranks'
collectives break, launchers tell of dead children, the scheduler's step is torn down. Those lines are
*noise*: they are the answer only where nothing better is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Characters of an error line that are kept.
SHOWN = 400

#: What launchers and loggers put before a line: `3: `, `[rank3]: `, `[1,0]<stderr>:`, `(Worker pid=7) `.
_PREFIX = re.compile(
    r"(?:\[?\d+(?:,\d+)?\]?(?:<\w+>)?: |\[(?:rank|default)\d+\]:\s?|\[\d+,\d+\]<\w+>:\s?"
    r"|\(\w+ pid=\d+[^)]*\) |\s*[|+] )+"
)
_TRACEBACK = "Traceback (most recent call last):"
#: The line that ends a traceback, or stands alone: `torch.OutOfMemoryError: CUDA out of memory.`
_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Fault|Abort)\b\s*(?::|$)"
)
_ERROR = re.compile(
    # `error: 0.02` is a metric, `error:` without more says nothing.
    r"\b(?:error|fatal|fehler)\b(?: \w+)?\s*[\]:]\s*(?![-+.\d\s]+(?:[%,;|]|$))\S"
    r"|^\S* ?\[?(?:fatal|critical)\]?\b"
    r"|command not found|no such file or directory|permission denied|no space left on device"
    r"|disk quota exceeded|out of memory|oom[-_ ]kill|memory limit|segmentation fault|bus error|core dumped"
    r"|illegal instruction|cannot open shared object|undefined symbol|device-side assert|due to time limit"
    r"|due to preemption|due to node failure|uncorrectable|panic:",
    re.IGNORECASE | re.ASCII,
)
_NOISE = re.compile(
    r"received by pid|watchdog|sigterm|sigabrt|broken ?pipe|connection ?(?:reset|refused|closed)"
    r"|remote process exited"
    r"|childfailederror|processraisedexception|processexitedexception|calledprocesserror|distbackenderror"
    r"|ncclremoteerror|keyboardinterrupt|systemexit|\bnccl\b.*(?:abort|timeout|timed out)"
    r"|exited with exit code|failed \(exitcode"
    r"|non-zero exit|cancelled at(?!.*due to)|terminating|sending signal|\bretry|\bwarn|\bignor"
    r"|process group has not been destroyed|job step aborted",
    re.IGNORECASE | re.ASCII,
)
_INDENTED = (" ", "\t")
_CHANGING = re.compile(
    r"0[xX][0-9a-fA-F]+"
    r"|(?<![\w./-])(?:/tmp|/dev/shm|/scratch/tmp)(?:/[^\s'\":,;)]*)?"
    r"|\b(?=[0-9a-fA-F-]*\d)[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*\b"
    r"|\d+(?:[.:,T_-]\d+)*(?:[eE][-+]?\d+)?",
    re.ASCII,
)


def error_lines(lines: Iterable[str]) -> tuple[str, str]:
    """The first line that names a cause, and the last one ("" for none)."""
    causes, noise = ["", ""], ["", ""]
    inside: dict[str, bool] = {}
    for line in lines:
        prefix, text = _split(line)
        if text.startswith(_TRACEBACK):
            inside[prefix] = True
            continue
        if inside.get(prefix):
            # The frames are indented and quote source code, which may well say "error:".
            if not text or text.startswith(_INDENTED):
                continue
            inside[prefix] = False
        elif _EXCEPTION.match(text) is None and _ERROR.search(text) is None:
            continue
        found = text.strip()[:SHOWN]
        kept = noise if _NOISE.search(text) else causes
        kept[0] = kept[0] or found
        kept[1] = found
    first, last = causes if causes[0] else noise
    return first, last


def first_error(lines: Iterable[str]) -> str:
    """The first line that names a cause; "" for none."""
    return error_lines(lines)[0]


def _split(line: str) -> tuple[str, str]:
    match = _PREFIX.match(line)
    return (match.group(), line[match.end() :]) if match else ("", line)


def normalise_error(text: str) -> str:
    """The line without what changes from one death to the next: numbers, addresses, times, temporary paths.

    >>> normalise_error("worker 3 at 0x7f32: /tmp/a8d/x: step 1200, loss 2.1e-05")
    'worker # at #: #: step #, loss #'
    """
    return _CHANGING.sub("#", text)[:SHOWN]
