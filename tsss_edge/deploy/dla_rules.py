"""Which layers of a network run on a Jetson's deep learning accelerator (DLA): told by TensorRT there, by its rules elsewhere.

Rules: NvInfer.h's limits of the layers, and NVIDIA's page "DLA Supported Layers and Restrictions". Every change between DLA
and GPU ("hop") moves a tensor through memory, so one unsupported layer in the middle costs two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tsss_edge.artifacts import DlaUse
from tsss_edge.onnxgraph.dla_ranges import every_range, int8_layers
from tsss_edge.onnxgraph.view import QDQ, OnnxGraph, attributes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def expected_dla(model: ModelProto, measured: Mapping[str, float] | None = None) -> DlaUse:
    """What the rules say of a graph, Q/DQ pairs left out: they become ranges or formats, not layers.

    `measured`: of an INT8 graph, the ranges beside its pairs (`CalibrationRecord.others`); without them fewer layers are INT8.
    """
    graph = OnnxGraph(model)
    nodes = [n for n in graph.nodes if n.op_type not in QDQ]
    refused = {n.name: reason for n in nodes if (reason := _refusal(n, graph))}
    use = DlaUse.of([n.name for n in nodes], refused)
    if len(nodes) == len(graph.nodes):
        return use
    return msgspec.structs.replace(use, int8=int8_layers(model, every_range(model, measured or {})))


def _refusal(node: NodeProto, graph: OnnxGraph) -> str:
    """Why the DLA cannot run a node; empty when it can."""
    if node.op_type in _FREE:
        return ""
    if node.op_type not in _RULES:
        return f"{node.op_type} is not a DLA layer"
    return _RULES[node.op_type](node, graph)


def _convolution(node: NodeProto, graph: OnnxGraph) -> str:
    values = attributes(node)
    kernel, stride, dilation = (values.get(name, [1]) for name in ("kernel_shape", "strides", "dilations"))
    if max(kernel) > 32 or max(stride) > 8 or max(dilation) > 32:
        return f"kernel {kernel}, stride {stride}, dilation {dilation} are beyond 32, 8, 32"
    grouped = node.op_type == "ConvTranspose" and (values.get("group", 1) != 1 or any(values.get("pads", [0])))
    return "a transposed convolution with groups or padding" if grouped else ""


def _resize(node: NodeProto, graph: OnnxGraph) -> str:
    scales = graph.weight(node.input[2]).tolist() if node.input[2] in graph.initializers else []
    values = attributes(node)
    linear = values.get("mode", b"nearest") == b"linear"
    most = 4 if linear else 32
    if len(scales) != 4 or scales[:2] != [1, 1] or any(s != int(s) or not 1 <= s <= most for s in scales[2:]):
        return (
            f"{'linear' if linear else 'nearest'} resize by {scales[2:] or 'a size'}, factors 1 to {most} are possible"
        )
    half_pixel = values.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
    return "" if half_pixel or not linear else "linear resize that is not half-pixel"


def _concat(node: NodeProto, graph: OnnxGraph) -> str:
    return "" if attributes(node).get("axis") == 1 else "concatenation along another axis than the channels"


_FREE = ("Relu", "Sigmoid", "Tanh", "Clip", "Add", "Sub", "Mul", "Max", "Min", "MaxPool", "AveragePool")
_RULES: dict[str, Callable[[Any, Any], str]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Resize": _resize,
    "Concat": _concat,
}
