#!/usr/bin/env bash
# constraints.txt -> requirements.lock: every version with the hashes of its files, for `pip install --require-hashes`.
# torch is left out: which of its many builds fits is the machine's matter (TORCH in the Makefile).
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${1:?usage: lock.sh VENV_FOR_TOOLS}
[ -x "$tools/bin/uv" ] || { "${PYTHON:-python3}" -m venv "$tools" && "$tools/bin/pip" install --quiet uv==0.13.9; }
plain=$(mktemp --suffix=.txt) && trap 'rm -f "$plain" "$plain.lock"' EXIT
grep -v '^torch==' constraints.txt >"$plain"
"$tools/bin/uv" pip compile --quiet --no-deps --universal --python-version 3.11.5 --generate-hashes --no-header --no-annotate \
  --output-file "$plain.lock" "$plain" >/dev/null
{
  echo '# Every package but torch, with the hashes of its files: made by `make lock` from constraints.txt, for Python 3.11.5 and newer.'
  cat "$plain.lock"
} >requirements.lock
