"""An INT8 graph of ours as an `openvino.Model` -> the same with the roundings that OpenVINO's INT8 kernels are fastest with.

The file keeps TensorRT's rules: signed steps, no pair between a convolution and the Add behind it. Two things differ here:

- What cannot be negative gets unsigned steps, 0 to 255 over the same range. It needs no zero point in the kernels, and its steps
  are half as wide.
- The branch of an Add that comes from a convolution gets a rounding too, so that convolution, Add, ReLU and the next rounding are
  one INT8 kernel; without it the convolution writes float32. Its range is the peak that calibration saw.

NNCF makes both choices; measured beside it in docs/results/quantization.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tsss_edge.onnxgraph.view import LEVELS, OnnxGraph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx import ModelProto, NodeProto

STEPS = 256


def fast_pairs(model: Any, source: ModelProto, peaks: Mapping[str, float]) -> None:
    """Change `model` (openvino.Model), read from `source`, in place. A graph without pairs stays as it is.

    Args: peaks: largest magnitude of float tensors (`CalibrationRecord.others`); a branch that is not named stays float.
    """
    graph = OnnxGraph(source)
    ports = {name: port for op in model.get_ordered_ops() for port in op.outputs() for name in port.get_names()}
    for quantize, tensor, peak in signed_pairs(graph):
        if graph.never_negative(tensor):
            for dequantize in graph.users[quantize.output[0]]:
                _round(ports[tensor], ports[dequantize.output[0]], 0.0, peak)
    for branch in (float_branch(graph, node) for node in graph.nodes):
        if branch in peaks and branch in ports:
            _round(ports[branch], ports[branch], -peaks[branch] * (LEVELS + 1) / LEVELS, peaks[branch])


def signed_pairs(graph: OnnxGraph) -> Iterator[tuple[NodeProto, str, float]]:
    """(QuantizeLinear, float tensor, range) of every signed, symmetric pair on an activation."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.initializers or len(node.input) < 3:
            continue
        scale, zero = graph.constant(node.input[1]), graph.constant(node.input[2])
        if scale is not None and scale.size == 1 and zero is not None and zero.dtype == np.int8 and not zero.any():
            yield node, str(node.input[0]), float(scale.reshape(())) * LEVELS


def float_branch(graph: OnnxGraph, node: NodeProto) -> str:
    """Of an Add with a pair on one input: the other one, where an INT8 convolution makes it for this Add alone; else empty."""
    paired = [graph.is_dequantized(tensor) for tensor in node.input]
    if node.op_type != "Add" or paired.count(True) != 1:
        return ""
    tensor = str(node.input[paired.index(False)])
    maker = graph.maker.get(tensor)
    from_int8 = maker is not None and maker.op_type == "Conv" and graph.is_dequantized(maker.input[0])
    return tensor if from_int8 and len(graph.users[tensor]) == 1 else ""


def _round(source: Any, read: Any, low: float, high: float) -> None:
    """Whoever reads `read` reads `source`, rounded to 256 steps from `low` to `high`."""
    from openvino import opset13

    readers = list(read.get_target_inputs())
    limits = [np.float32(value) for value in (low, high, low, high)]
    rounded = opset13.fake_quantize(source, *limits, levels=STEPS).output(0)
    for reader in readers:
        reader.replace_source_output(rounded)
