"""Stands for a conversion: leaves a line beside the checkpoint each time it is run."""

import sys
from pathlib import Path

checkpoint = Path(sys.argv[1])
assert checkpoint.read_text() == "weights"
with checkpoint.with_suffix(".converted").open("a") as file:
    file.write(f"{checkpoint.name}\n")
