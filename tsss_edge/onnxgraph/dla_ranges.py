"""INT8 graph -> a range for every tensor, for builders that take ranges instead of Q/DQ pairs (DLA, before TensorRT 11).

A layer runs in INT8 on a DLA only if every tensor around it has a range, and an Add or Concat only if its inputs have the same
(NvInfer.h; NVIDIA's cuDLA-samples calibrate every tensor too). Pairs stand on convolution inputs and skips alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tsss_edge.onnxgraph.qdq import calibrated_peaks, without_qdq
from tsss_edge.onnxgraph.view import CONVOLUTIONS, OnnxGraph

_MOVES = ("Relu", "Resize", "MaxPool", "AveragePool", "Transpose", "Cast", "Identity", "Concat")  # add no magnitude
_ALIKE = ("Resize", "MaxPool", "AveragePool", "Concat")  # input and output in one scale
COUNTED = (*CONVOLUTIONS, "Add")


def every_range(model: onnx.ModelProto, measured: Mapping[str, float]) -> dict[str, float]:
    """Range by tensor of the float graph: from the pairs, from `measured` (`CalibrationRecord.others`), or its neighbours.

    Layers without a pair (kept float by choice, or because they make a graph output) have none, so that they stay FP16.
    """
    graph = OnnxGraph(float_twin(model))
    ranges = {**measured, **calibrated_peaks(model)}
    while _spread(graph, ranges):
        pass
    _equalize(graph, ranges)
    known = {tensor for node in graph.nodes for tensor in node.output} - _kept_float(model)
    return {tensor: value for tensor, value in ranges.items() if tensor in known and value > 0}


def int8_layers(model: onnx.ModelProto, ranges: Mapping[str, float]) -> tuple[int, int]:
    """(convolutions and Adds with a range on every side, all of them)."""
    graph = OnnxGraph(float_twin(model))
    layers = [node for node in graph.nodes if node.op_type in COUNTED]
    held = [all(t in ranges for t in (*node.input, *node.output) if t not in graph.initializers) for node in layers]
    return sum(held), len(layers)


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with no pairs left."""
    return without_qdq(model, {node.name for node in model.graph.node})


def _spread(graph: OnnxGraph, ranges: dict[str, float]) -> bool:
    """Give tensors the range of a neighbour that moves values only. True when one got one."""
    before = len(ranges)
    for node in graph.nodes:
        if node.op_type not in _MOVES:
            if node.op_type in CONVOLUTIONS:
                _before_relu(graph, node, ranges)
            continue
        inputs = [tensor for tensor in node.input if tensor and tensor not in graph.initializers]
        if all(tensor in ranges for tensor in inputs):
            ranges.setdefault(node.output[0], max(ranges[tensor] for tensor in inputs))
        elif node.output[0] in ranges and node.op_type != "Relu":
            for tensor in inputs:
                ranges.setdefault(tensor, ranges[node.output[0]])
    return len(ranges) > before


def _before_relu(graph: OnnxGraph, node: onnx.NodeProto, ranges: dict[str, float]) -> None:
    """What only a ReLU reads may saturate below 0, and above as the ReLU's output does."""
    users = graph.users.get(node.output[0], [])
    if [user.op_type for user in users] == ["Relu"] and users[0].output[0] in ranges:
        ranges.setdefault(node.output[0], ranges[users[0].output[0]])


def _equalize(graph: OnnxGraph, ranges: dict[str, float]) -> None:
    """The larger one for all that must be equal: inputs of an Add, all sides of a Concat, Resize or pooling."""
    group = {tensor: {tensor} for tensor in ranges}
    for node in graph.nodes:
        sides = node.input if node.op_type == "Add" else (*node.input, *node.output) if node.op_type in _ALIKE else ()
        together = [tensor for tensor in sides if tensor in group]
        merged = set().union(*(group[tensor] for tensor in together))
        group.update(dict.fromkeys(merged, merged))
    ranges.update({tensor: max(ranges[other] for other in group[tensor]) for tensor in ranges})


def _kept_float(model: onnx.ModelProto) -> set[str]:
    """Outputs of the layers that no pair quantizes, and of the graph."""
    graph = OnnxGraph(model)
    dequantized = {t for node in graph.nodes if node.op_type == "DequantizeLinear" for t in node.output}
    floating = [n for n in graph.nodes if n.op_type in CONVOLUTIONS and n.input[0] not in dequantized]
    return {tensor for node in floating for tensor in node.output} | set(graph.outputs)
