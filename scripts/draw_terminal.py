"""Draw what a command shows on a terminal: `draw_terminal.py docs/demo.svg -- oellm-autoexp status SESSION`.

The command runs on a pseudo-terminal, so it prints what a person would see. The picture is an SVG that
needs no font from the network and is the same for the same output.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text


def shown(command: list[str], columns: int, lines: int) -> str:
    """The output of a command on a terminal of that size.

    Raises:
        subprocess.CalledProcessError: the command did not end with 0.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
    env.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        data = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError as error:
                # Linux says EIO when the last writer of a terminal is gone.
                if error.errno != errno.EIO:
                    raise
                block = b""
            if not block:
                break
            data += block
    os.close(ours)
    if process.returncode:
        sys.stderr.buffer.write(data)
        raise subprocess.CalledProcessError(process.returncode, command)
    return data.decode(errors="replace").replace("\r\n", "\n")


def svg(output: str, title: str, columns: int) -> str:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for line in output.rstrip().split("\n"):
            text = Text.from_ansi(line)
            text.rstrip()
            console.print(text, no_wrap=True, crop=False, soft_wrap=True)
        drawn = console.export_svg(title=title, unique_id="terminal")
    # rich names a web font; a monospace of the reader's machine does, and nothing is fetched.
    return re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=150)
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--title", help="default: the command")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        output = shown(options.command, options.columns, options.lines)
    except subprocess.CalledProcessError as error:
        print(f"error: {error}\n  -> run `make demo` first", file=sys.stderr)
        return 1
    home = Path.cwd()
    output = output.replace(f"{home}/", "").replace(str(home), ".")
    title = options.title or shlex.join([Path(options.command[0]).name, *options.command[1:]])
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(svg(output, title, options.columns))
    print(f"wrote {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
