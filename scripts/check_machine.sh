#!/bin/bash
# Says what this machine lacks, and how to get it.  Usage: check_machine.sh [PYTHON [PROGRAM…]]
set -u
python=${1:-python3}
missing=()
for program in git "${@:2}"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if ! command -v "$python" >/dev/null; then
  missing+=(python3 python3-venv)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "error: $python is $("$python" -V 2>&1), but Python 3.10 or newer is needed." >&2
  echo "  -> say which one to use: make PYTHON=python3.11 …" >&2
  exit 2
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  # Debian keeps ensurepip in a package of its own, named after the version.
  missing+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "error: this machine lacks ${missing[*]}" >&2
  echo "  -> apt-get install ${missing[*]}" >&2
  exit 2
fi
