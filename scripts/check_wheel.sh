#!/bin/bash
# Installs a wheel in a clean environment and runs the demo from a directory that is no checkout.
# Usage: check_wheel.sh WHEEL [PYTHON]
set -euo pipefail
wheel=$(realpath "$1")
python=${2:-python3}
demo=$(realpath "$(dirname "$0")/../examples/demo")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
mkdir -p "$place/work/examples/demo"
cp "$demo"/*.py "$demo"/*.txt "$demo"/*.yaml "$place/work/examples/demo"
cd "$place/work"
export PATH="$place/venv/bin:$PATH"
unset PYTHONPATH

oellm-autoexp --help >/dev/null
autoexp --help >/dev/null
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is not None)' ||
  { echo "error: the core must not bring torch" >&2; exit 1; }
code=0
oellm-autoexp submit examples/demo/sweep.yaml --local || code=$?
oellm-autoexp status examples/demo/sweep.yaml --json | python3 examples/demo/check.py --submit-exit-code "$code"
oellm-autoexp report examples/demo/sweep.yaml -o report.md
grep -q '^## Where the time went$' report.md || { echo "error: the report says nothing" >&2; exit 1; }
echo "the wheel $(basename "$wheel") works in a clean environment"
