"""Convert a checkpoint to one file that other programs read, as an action on `Checkpoint saved: PATH`.

`PATH.export.json` holds, like a safetensors file, a header of names, shapes and offsets, and the numbers as
32-bit little-endian floats (in base64). A second conversion of the same checkpoint writes the same bytes.
Each one that was completed is a line of `conversions.jsonl` beside the checkpoints.

    python3 convert.py outputs/mine/checkpoints/step_000100
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import checkpoints

LOG = "conversions.jsonl"


def export(checkpoint: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    data = b""
    for name, rows in checkpoints.load(checkpoint, "model").items():
        packed = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
        tensors[name] = {
            "dtype": "F32",
            "shape": [len(rows), len(rows[0])],
            "data_offsets": [len(data), len(data) + len(packed)],
        }
        data += packed
    return {"tensors": tensors, "data": base64.b64encode(data).decode()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    checkpoint = parser.parse_args().checkpoint
    if not checkpoints.is_complete(checkpoint):
        print(f"error: {checkpoint} is not a complete checkpoint", file=sys.stderr)
        return 1
    target = checkpoint.with_name(checkpoint.name + ".export.json")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    checkpoints.write_durably(temporary, json.dumps(export(checkpoint)).encode())
    temporary.rename(target)
    # One small write to a file opened for appending is one line, also beside other writers.
    with (checkpoint.parent / LOG).open("a") as log:
        log.write(json.dumps({"checkpoint": checkpoint.name, "export": target.name}) + "\n")
    print(f"converted {checkpoint} to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
