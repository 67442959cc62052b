#!/usr/bin/env bash
# requirements.lock -> dist/NAME.cdx.json: the list of everything that a wheel is built and tested with (CycloneDX), beside the wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${1:?usage: sbom.sh VENV_FOR_TOOLS}
[ -x "$tools/bin/cyclonedx-py" ] || { "${PYTHON:-python3}" -m venv "$tools" && "$tools/bin/pip" install --quiet cyclonedx-bom==7.5.0; }
wheel=$(ls dist/*.whl) # one: `make wheel` empties the folder first
list=$(mktemp) && trap 'rm -f "$list"' EXIT
PYTHONWARNINGS=ignore "$tools/bin/cyclonedx-py" requirements --pyproject pyproject.toml --output-reproducible --of JSON \
  --output-file "$list" requirements.lock 2> >(grep -v 'is ignored: it is neither' >&2) # a folder of pip's own settings
install -m 644 "$list" "${wheel%-py3-none-any.whl}.cdx.json"
ls dist
