"""Biases of quantized layers moved so that, on average, they give what the float layers gave.

Rounding weights and cutting off activations shifts the mean of a layer's output, channel by channel; depthwise networks feel it most
(Nagel et al., arXiv 1906.04721, section 4.2). Each layer is looked at by itself, on inputs of the float graph: once as it was, once
with its pairs, beside each other in one graph. So no layer's correction depends on another's, and one pass over the pictures is enough.
"""
# Letters: C output channel.

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tsss_edge.calib.sets import evenly_spaced
from tsss_edge.errors import ArtifactError
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.onnxgraph.view import CONVOLUTIONS, QDQ, OnnxGraph

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

BIAS_PICTURES = 64  # of the calibration set; means settle long before ranges do
SHADOW, MEAN = ".shadow", ".mean"

Shifts = dict[str, NDArray[np.float64]]  # layer -> (C,) float mean less quantized mean


def correct_biases(
    float_model: ModelProto, int8_model: ModelProto, pictures: Sequence[Callable[[], NDArray[np.uint8]]]
) -> ModelProto:
    """A copy of `int8_model` with corrected biases. `float_model`: what it was made of, with the same names.

    Args:   pictures: functions that load one, (1,H,W,3) uint8; `BIAS_PICTURES` of them, evenly spaced, are looked at.
    Raises: ArtifactError: ONNX Runtime refuses a graph, or a mean is not finite.
    """
    shifts = measure_shifts(float_model, int8_model, evenly_spaced(pictures, BIAS_PICTURES))
    result = deepcopy(int8_model)
    for node in result.graph.node:
        if node.name in shifts:
            _shift(result, node, shifts[node.name])
    return result


def measure_shifts(
    float_model: ModelProto, int8_model: ModelProto, pictures: Sequence[Callable[[], NDArray[np.uint8]]]
) -> Shifts:
    """By how much the mean of each quantized layer moved, on the float graph's own inputs."""
    layers = quantized_layers(int8_model)
    if not layers or not pictures:
        return {}
    names = [f"{node.output[0]}{kind}{MEAN}" for node in layers for kind in ("", SHADOW)]
    run = run_tensors(side_by_side(float_model, int8_model, layers), names)
    total: list[NDArray[np.float64]] = [np.zeros(1)] * len(names)
    for load in pictures:
        found = run(load()[:1])
        total = [t + found[name].reshape(-1).astype(np.float64) for t, name in zip(total, names, strict=True)]
    if not all(np.isfinite(t).all() for t in total):
        raise ArtifactError("a layer's mean is NaN or infinite on a calibration picture; use another checkpoint")
    pairs = zip(layers, total[::2], total[1::2], strict=True)
    return {node.name: (was - now) / len(pictures) for node, was, now in pairs}


def quantized_layers(int8_model: ModelProto) -> list[NodeProto]:
    """Convolutions whose weight has a pair."""
    graph = OnnxGraph(int8_model)
    return [n for n in graph.nodes if n.op_type in CONVOLUTIONS and graph.is_dequantized(n.input[1])]


def side_by_side(float_model: ModelProto, int8_model: ModelProto, layers: Sequence[NodeProto]) -> ModelProto:
    """The float graph with each quantized layer beside its float one, both reading float tensors, and the means of both.

    Float tensors have the same names in both graphs, so the pairs of the INT8 graph take their inputs from the float one.
    """
    result = deepcopy(float_model)
    known = {t.name for t in result.graph.initializer}
    result.graph.initializer.extend(t for t in int8_model.graph.initializer if t.name not in known)
    result.graph.node.extend(node for node in int8_model.graph.node if node.op_type in QDQ)
    for node in layers:
        shadow = deepcopy(node)
        shadow.name, shadow.output[0] = f"{node.name}{SHADOW}", f"{node.output[0]}{SHADOW}"
        result.graph.node.append(shadow)
        for tensor in (node.output[0], shadow.output[0]):
            mean = helper.make_node("GlobalAveragePool", [tensor], [f"{tensor}{MEAN}"], name=f"{tensor}{MEAN}")
            result.graph.node.append(mean)
    return _in_order(result)


def _in_order(model: ModelProto) -> ModelProto:
    """Nodes after those that make their inputs."""
    made = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    waiting, ordered = list(model.graph.node), list[Any]()
    while waiting:
        ready = [n for n in waiting if all(name in made for name in n.input)]
        assert ready, "a graph without a cycle always has a next node"
        ordered += ready
        made |= {name for n in ready for name in n.output}
        waiting = [n for n in waiting if n.output[0] not in made]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def _shift(model: ModelProto, node: NodeProto, shift: NDArray[np.float64]) -> None:
    """Give a layer a bias of its own: the old one, if it had one, and `shift`."""
    graph = OnnxGraph(model)
    old = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(shift)
    if old is None:
        return  # its bias is computed by the graph
    name = f"{node.name}.corrected_bias"
    model.graph.initializer.append(numpy_helper.from_array((old + shift).astype(np.float32), name))
    before = node.input[2] if len(node.input) > 2 else ""
    del node.input[2:]
    node.input.append(name)
    if before in graph.initializers and not OnnxGraph(model).is_read(before):
        model.graph.initializer.remove(graph.initializers[before])
