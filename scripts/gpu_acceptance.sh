#!/bin/sh
# Everything that needs a CUDA GPU, in one command on any host: gpu tests, FP16 and INT8 engines with whatever TensorRT is
# there, parity against PyTorch, bench, stream. Writes OUT/gpu_report.json after each step and prints a table; exit 0 when
# nothing failed or was left. Run again with the same --out, it goes on where it stopped.
#
#   scripts/gpu_acceptance.sh [--out DIR] [--budget SECONDS] [--device N] [--checkpoint CKPT --data DIR]
#
# From a clone: makes a venv (.venv-gpu) with the extras below. Without a network: `tsss-edge bundle --extra train --extra onnx
# --extra rtx --file scripts --file tests`, then on the host ./install.sh and PYTHON=venv/bin/python files/scripts/gpu_acceptance.sh
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv --system-site-packages "$here/.venv-gpu"
    PYTHON="$here/.venv-gpu/bin/python"
    extras=train,onnx
    # RTX first: its wheel comes from the package index. TensorRT itself is taken from the system or from NVIDIA's index.
    "$PYTHON" -m pip install -q "$here[$extras,rtx]" pytest hypothesis httpx || "$PYTHON" -m pip install -q "$here[$extras]" pytest hypothesis httpx
    "$PYTHON" -m pip install -q "$here[tensorrt]" || echo "no TensorRT from pip; going on without" >&2
    "$PYTHON" -m pip install -q "$here[cuda]" || echo "no PyCUDA (needs the CUDA toolkit); going on without" >&2
fi
[ -d "$here/tests" ] && set -- --tests "$here/tests" "$@"
export PYTHONPATH="$here/scripts${PYTHONPATH:+:$PYTHONPATH}"  # the tool lies in scripts/acceptance
exec "$PYTHON" -m acceptance "$@"
