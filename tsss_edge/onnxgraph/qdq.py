"""Float graph -> the same graph with INT8 Q/DQ pairs, and for every node the reason why it has one or not.

Explicit, symmetric, by TensorRT's rules (`NvInfer.h`, IQuantizeLayer; NVIDIA's explicit quantization guide): a pair on the
activation input and on the weight of a convolution, never on a bias, a graph output, before a Resize, or between
convolution and ReLU (or Clip). Of an Add after a convolution, only the other ("skip") input has a pair. A tensor has one pair,
whoever reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tsss_edge.artifacts import Struct
from tsss_edge.errors import ArtifactError
from tsss_edge.onnxgraph.view import CONVOLUTIONS, LEVELS, QDQ, OnnxGraph, attributes

LEAST_SCALE = 1e-9  # of a weight channel that is all 0: TensorRT refuses a scale of 0
DEPTHWISE = "depthwise"  # in a list of layers: all of them
THIN = 16  # channels; below, INT8 kernels of GPUs are padded and gain nothing
KEPT = "kept by choice (search puts the layers here that cost most)"
_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of the output channels in a weight
_OTHERS = {
    "Resize": "no pair before a Resize; what reads it may have one",
    "Relu": "part of the layer before it",
    "Clip": "part of the layer before it",
    "Sub": "takes the mean from the picture",
    "Concat": "its users have the pairs",
    "Cast": "moves values only",
    "Transpose": "moves values only",
    "ArgMax": "never quantized",
}


class PairOptions(Struct, frozen=True):
    """Choices of placement. The defaults are measured, see docs/quantization.md."""

    float_nodes: tuple[str, ...] = ()  # layers and Adds that stay float, by name (search puts its fallbacks here)
    first: bool = True  # quantize the layer that sees the picture
    last: bool = False  # quantize layers that make graph outputs (the classifier)
    residual: bool = True  # a pair on the skip input of Add
    weight_bits: int = 8  # 7 halves the range of weights, for CPUs that add two products in 16 bits (machine.py)

    @property
    def weight_levels(self) -> int:
        """Steps of a weight on each side: 127 of 8 bits, 63 of 7."""
        return int(2 ** (self.weight_bits - 1)) - 1


class PairDecision(Struct, frozen=True):
    """What was decided about one node, and why."""

    node: str
    op: str
    quantized: bool
    reason: str


class PairPlan(Struct, frozen=True):
    """Where pairs go: `inputs` are (node name, input index) that read the quantized tensor; `weights` are layer names."""

    decisions: tuple[PairDecision, ...]
    activations: tuple[str, ...]
    inputs: tuple[tuple[str, int], ...]
    weights: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Rules: the reason why a layer stays float, or None


def why_float(graph: OnnxGraph, node: onnx.NodeProto, options: PairOptions) -> str | None:
    """Kept by the caller, a weight that is not stored (its scales are computed here), the classifier (it decides on small
    differences and is cheap), or a shape without a fast INT8 kernel."""
    if node.name in options.float_nodes:
        return KEPT
    if node.input[1] not in graph.initializers:
        return "its weight is computed by the graph"
    if not options.last and graph.reaches_output(node):
        return "makes a graph output"
    rule = first_layer if graph.is_picture(node.input[0]) else thin_layer
    return rule(graph, node, options)


def first_layer(graph: OnnxGraph, node: onnx.NodeProto, options: PairOptions) -> str | None:
    """The layer on the picture: square kernel, one group, output channels in eights (ModelOpt's rule for its first layer)."""
    if not options.first:
        return "sees the picture, kept by choice"
    shape, groups = graph.weight(node.input[1]).shape, attributes(node).get("group", 1)
    fits = node.op_type == "Conv" and groups == 1 and shape[0] % 8 == 0 and shape[-1] == shape[-2]
    return None if fits else "sees the picture, and its shape has no INT8 kernel"


def thin_layer(graph: OnnxGraph, node: onnx.NodeProto, options: PairOptions) -> str | None:
    """Few channels: only square kernels of one group with channels in eights and 16 on one side are worth it."""
    shape, groups = graph.weight(node.input[1]).shape, attributes(node).get("group", 1)
    least, most = sorted((shape[0], shape[1] * groups))
    if groups > 1 and node.op_type == "ConvTranspose":  # its weight's axis 1 counts the outputs of one group
        return "a grouped ConvTranspose has no axis of output channels"
    if groups > 1:
        return None if most % 8 == 0 and shape[-1] >= 3 else "grouped, and its shape has no INT8 kernel"
    fits = shape[0] % 8 == 0 and shape[1] % 8 == 0 and most >= THIN and shape[-1] == shape[-2]
    return None if least >= THIN or fits else f"has only {least} channels on one side"


def skip_input(graph: OnnxGraph, node: onnx.NodeProto) -> int | None:
    """Which input of an Add is the skip: the one that does not come straight from a layer, when the other does.

    A constant (a bias of its own) is none. The layer's own branch keeps no pair, so that layer, Add and ReLU become one kernel.
    """
    if any(graph.constant(t) is not None for t in node.input):
        return None
    straight = [
        t in graph.maker and graph.maker[t].op_type in CONVOLUTIONS and len(graph.users[t]) == 1 for t in node.input
    ]
    return straight.index(False) if node.op_type == "Add" and straight.count(True) == 1 else None


def plan(model: onnx.ModelProto, options: PairOptions | None = None) -> PairPlan:
    """Decide for every node of a float graph. Raises: ArtifactError: it is quantized already, or two nodes have one name."""
    options = options or PairOptions()
    if any(n.op_type in QDQ for n in model.graph.node):
        raise ArtifactError("this graph is INT8 already; calibrate the float one")
    if twice := [name for name, count in Counter(n.name for n in model.graph.node).items() if count > 1]:
        raise ArtifactError(f"several nodes of this graph are named {twice[0]!r}; import or export it again")
    graph = OnnxGraph(model)
    decisions: list[PairDecision] = []
    inputs: list[tuple[onnx.NodeProto, int]] = []
    weights: list[str] = []
    for node in graph.nodes:
        index, reason = _decide(graph, node, weights, options)
        if index is not None:
            inputs.append((node, index))
            weights += [node.name] if node.op_type in CONVOLUTIONS else []
        decisions.append(PairDecision(node=node.name, op=node.op_type, quantized=index is not None, reason=reason))
    return PairPlan(
        decisions=tuple(decisions),
        activations=tuple(dict.fromkeys(node.input[i] for node, i in inputs)),
        inputs=tuple((node.name, i) for node, i in inputs),
        weights=tuple(weights),
    )


def _decide(
    graph: OnnxGraph, node: onnx.NodeProto, quantized: Sequence[str], options: PairOptions
) -> tuple[int | None, str]:
    """Which input of a node gets a pair (None: no input), and why. `quantized`: names of the layers before it that do."""
    if node.op_type in CONVOLUTIONS:
        reason = why_float(graph, node, options)
        return (None, reason) if reason else (0, "input per tensor, weight per output channel")
    if node.op_type != "Add":
        return None, _OTHERS.get(node.op_type, "not a layer with weights")
    skip = skip_input(graph, node)
    if skip is None:
        return None, "not one branch from a layer and one skip"
    if not options.residual or node.name in options.float_nodes:
        return None, "skip kept float by choice"
    if graph.maker[node.input[1 - skip]].name not in quantized:
        return None, "the layer it follows is float"
    return skip, f"pair on the skip input ({node.input[skip]}) only, the other comes from the layer it fuses with"


def chosen_layers(model: onnx.ModelProto, names: Collection[str]) -> tuple[str, ...]:
    """Names of layers and Adds that may be quantized; the word "depthwise" stands for all convolutions of one channel a group.

    Raises: ArtifactError: no such node, or it has no pair under any options.
    """
    known = {d.node for d in plan(model, PairOptions(last=True)).decisions if d.quantized}
    if strangers := sorted(set(names) - known - {DEPTHWISE}):
        raise ArtifactError(f"no quantized layer {strangers[0]!r} in this graph; `tsss-edge inspect` lists them all")
    depthwise = {n.name for n in model.graph.node if n.op_type == "Conv" and attributes(n).get("group", 1) > 1} & known
    wanted = {*names} | (depthwise if DEPTHWISE in names else set())
    return tuple(n.name for n in model.graph.node if n.name in wanted)


def wanted_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that may get a pair under any options: what to measure."""
    return plan(model, PairOptions(last=True)).activations


def exact_ranges(model: onnx.ModelProto, tensors: Collection[str]) -> dict[str, float]:
    """Ranges that need no measuring: of the picture itself."""
    graph = OnnxGraph(model)
    return {t: peak for t in tensors if (peak := graph.picture_peak(t)) is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Insertion


def insert_qdq(
    model: onnx.ModelProto, ranges: Mapping[str, float], options: PairOptions | None = None
) -> onnx.ModelProto:
    """A copy of a float graph with all pairs in it. Each node's doc_string says what was decided (`explain` reads it).

    Args:    ranges: the magnitude of each tensor that becomes 127, as a CalibTable holds them.
    Raises:  ArtifactError: the graph is INT8 already, or the range of a tensor is missing.
    """
    options = options or PairOptions()
    decided = plan(model, options)
    if missing := [t for t in decided.activations if t not in ranges]:
        raise ArtifactError(f"the calibration table has no range for {missing[0]}: it belongs to another graph")
    return _Inserter(model, ranges, options.weight_levels).run(decided)


def weight_scales(weight: NDArray[np.float32], axis: int, levels: int = LEVELS) -> NDArray[np.float32]:
    """One scale an output channel: largest magnitude / `levels`, so that weights use -levels to levels."""
    peaks = np.abs(weight).max(axis=tuple(d for d in range(weight.ndim) if d != axis))
    scales: NDArray[np.float32] = np.maximum(peaks / levels, LEAST_SCALE).astype(np.float32)
    return scales


class _Inserter:
    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, float], weight_levels: int) -> None:
        self.graph, self.ranges, self.weight_levels = OnnxGraph(model), ranges, weight_levels
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.made: dict[str, str] = {}

    def run(self, decided: PairPlan) -> onnx.ModelProto:
        for old, decision in zip(self.graph.nodes, decided.decisions, strict=True):
            node = deepcopy(old)
            for index, tensor in enumerate(node.input):
                if (node.name, index) in decided.inputs:
                    node.input[index] = self._pair(tensor, np.array(self.ranges[tensor] / LEVELS, np.float32))
            if node.name in decided.weights:
                weight, axis = node.input[1], _AXIS[node.op_type]
                scales = weight_scales(self.graph.weight(weight), axis, self.weight_levels)
                node.input[1] = self._pair(weight, scales, axis=axis)
            node.doc_string = f"{'INT8' if decision.quantized else 'float'}: {decision.reason}"
            self.nodes.append(node)
        result = deepcopy(self.graph.model)
        del result.graph.node[:], result.graph.value_info[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.constants)
        onnx.checker.check_model(result, full_check=True)
        return result

    def _pair(self, tensor: str, scale: NDArray[np.float32], **attributes: Any) -> str:
        """Add Q and DQ after `tensor` once; the name of what DQ gives."""
        if tensor not in self.made:
            names = [f"{tensor}.scale", f"{tensor}.zero"]
            zeros = np.zeros(scale.shape, np.int8)
            self.constants += [numpy_helper.from_array(scale, names[0]), numpy_helper.from_array(zeros, names[1])]
            q, dq = f"{tensor}.q", f"{tensor}.dq"
            self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *names], [q], name=q, **attributes))
            self.nodes.append(helper.make_node("DequantizeLinear", [q, *names], [dq], name=dq, **attributes))
            self.made[tensor] = dq
        return self.made[tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Reading back and taking out


def explain(model: onnx.ModelProto) -> list[PairDecision]:
    """What was decided for each node: read from an INT8 graph of ours, or as it would be decided for a float graph."""
    if not any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        return list(plan(model).decisions)
    return [
        PairDecision(
            node=n.name, op=n.op_type, quantized=n.doc_string.startswith("INT8"), reason=n.doc_string.partition(": ")[2]
        )
        for n in model.graph.node
        if n.op_type not in QDQ
    ]


def calibrated_peaks(model: onnx.ModelProto) -> dict[str, float]:
    """Largest magnitude of each quantized activation on the calibration pictures, as its scale says."""
    return {tensor: r.scale * r.high for tensor, r in OnnxGraph(model).activation_roundings().items()}


def without_qdq(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy in which the named layers read their unquantized inputs. Pairs that nothing reads any more go."""
    graph = OnnxGraph(deepcopy(model))
    for node in (n for n in graph.nodes if n.name in layers):
        for index, tensor in enumerate(node.input):
            node.input[index] = graph.source(tensor)
    _remove_unread(graph.model)
    onnx.checker.check_model(graph.model, full_check=True)
    return graph.model


def _remove_unread(model: onnx.ModelProto) -> None:
    """Take out Q/DQ nodes that nothing reads, as often as there are some, then constants that nothing reads."""
    graph = OnnxGraph(model)
    if gone := [n for n in graph.nodes if n.op_type in QDQ and not graph.is_read(n.output[0])]:
        for node in gone:
            model.graph.node.remove(node)
        return _remove_unread(model)
    for name, tensor in graph.initializers.items():
        if not graph.is_read(name):
            model.graph.initializer.remove(tensor)
