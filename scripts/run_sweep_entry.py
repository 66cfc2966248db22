"""Run one entry of a sweep.json: `--sweep FILE --index N [--dry-run]`. Works in a bare clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oellm_autoexp.services.sweep_entry import main

if __name__ == "__main__":
    sys.exit(main())
