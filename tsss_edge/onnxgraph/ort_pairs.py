"""An INT8 graph of ours -> the same with the roundings that ONNX Runtime's x86 kernels want: unsigned activations, signed weights.

ONNX Runtime joins convolution, ReLU and the next rounding to one INT8 kernel only where the rounding's zero point is its lowest
step, and an Add only where both inputs are rounded. A signed, symmetric file runs there as float convolutions with detours, slower
than FP32. The ranges are the file's own: 0 to 255 over a range without negative values, else 128 in the middle of it.
TensorRT takes neither unsigned steps nor a zero point, so this file is for ONNX Runtime alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tsss_edge.onnxgraph.openvino_pairs import float_branch, signed_pairs
from tsss_edge.onnxgraph.view import LEVELS, OnnxGraph

MIDDLE = 128  # zero point of a range with negative values


def unsigned_form(model: onnx.ModelProto, peaks: Mapping[str, float]) -> onnx.ModelProto:
    """A copy with unsigned pairs on all activations, and one on the branch of an Add that comes from a convolution.

    Args: peaks: largest magnitude of float tensors (`CalibrationRecord.others`); a branch that is not named stays float.
    """
    result = deepcopy(model)
    graph, before = OnnxGraph(result), OnnxGraph(model)
    for quantize, tensor, peak in signed_pairs(before):
        scale, zero = steps(peak, never_negative=before.never_negative(tensor))
        for name, value in ((quantize.input[1], scale), (quantize.input[2], zero)):
            graph.initializers[name].CopyFrom(numpy_helper.from_array(value, name))
    nodes: list[onnx.NodeProto] = []
    for node, old in zip(graph.nodes, before.nodes, strict=True):
        branch = float_branch(before, old)
        if branch in peaks:
            nodes += _pair(result, branch, peaks[branch])
            node.input[list(node.input).index(branch)] = f"{branch}.dq"
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def steps(peak: float, *, never_negative: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) that cover 0 to `peak`, or -`peak` to `peak`, with 256 unsigned steps."""
    if never_negative:
        return np.array(peak / 255, np.float32), np.array(0, np.uint8)
    return np.array(peak / LEVELS, np.float32), np.array(MIDDLE, np.uint8)


def _pair(model: onnx.ModelProto, tensor: str, peak: float) -> list[onnx.NodeProto]:
    scale, zero = steps(peak, never_negative=False)
    names = [f"{tensor}.scale", f"{tensor}.zero"]
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip((scale, zero), names, strict=True))
    q, dq = f"{tensor}.q", f"{tensor}.dq"
    return [
        helper.make_node("QuantizeLinear", [tensor, *names], [q], name=q),
        helper.make_node("DequantizeLinear", [q, *names], [dq], name=dq),
    ]
