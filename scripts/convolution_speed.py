"""How fast OpenVINO runs each convolution of an engine on one core, by its own counters -> JSON.

python scripts/convolution_speed.py runs/stream-engine/fused.int8.xml runs/stream-engine/fused.onnx > convolutions.json

The ONNX file is the float graph of the same network: multiply-accumulates are counted there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino

RUNS, WARM_UP = 30, 10


def multiply_accumulates(path: Path) -> dict[str, int]:
    """By convolution, from the shapes of the graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = (*graph.value_info, *graph.output)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    weights = {weight.name: list(weight.dims) for weight in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    return {n.name: int(np.prod(weights[n.input[1]]) * np.prod(shapes[n.output[0]][2:])) for n in nodes}


def milliseconds(path: Path) -> dict[str, float]:
    """Median by convolution, one thread."""
    options = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    request = compiled.create_infer_request()
    image = np.random.default_rng(0).integers(0, 256, list(compiled.inputs[0].shape), dtype=np.uint8)
    times: dict[str, list[float]] = {}
    for run in range(RUNS):
        request.infer({0: image})
        for layer in (x for x in request.profiling_info if x.node_type == "Convolution" and run >= WARM_UP):
            times.setdefault(layer.node_name.partition("/")[0], []).append(layer.real_time.total_seconds() * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("onnx", type=Path)
    args = parser.parse_args()
    work, times = multiply_accumulates(args.onnx), milliseconds(args.engine)
    layers: list[dict[str, Any]] = [
        {"name": name, "gmac": macs / 1e9, "ms": times[name], "gmac_per_s": macs / 1e6 / times[name]}
        for name, macs in work.items()
        if name in times
    ]
    found = {"gmac": sum(work.values()) / 1e9, "ms": sum(times.values()), "layers": layers}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
