"""Float graph + CalibTable -> INT8 graph: where QuantizeLinear/DequantizeLinear pairs go, and why not elsewhere.

Explicit, symmetric, TensorRT's rules (`NvInfer.h`, IQuantizeLayer; NVIDIA's explicit quantization guide): a pair on the
activation input and on the weight of a convolution, never on a bias, a graph output, before a Resize, or between
convolution and ReLU; of an Add after a convolution, a pair on the other ("skip") input only. One tensor gets one pair,
whoever uses it. Each rule below is a function that gives the reason why a layer stays float, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tsss_edge.artifacts import Struct
from tsss_edge.calib.methods import LEVELS
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.errors import ArtifactError

LAYERS = ("Conv", "ConvTranspose")
INPUT_PEAK = 255.0  # of a uint8 picture
LEAST_SCALE = 1e-9  # of a weight channel that is all 0: TensorRT refuses a scale of 0
THIN = 16  # channels; below, INT8 kernels of GPUs are padded and gain nothing
_MOVES = ("Cast", "Transpose", "Reshape", "Identity")  # keep values as they are
_AXIS = {"Conv": 0, "ConvTranspose": 1}


class Options(Struct, frozen=True):
    """Choices of placement. The defaults are measured, see tests/calib and docs."""

    float_nodes: tuple[str, ...] = ()  # layers that stay float, by name (search puts its fallbacks here)
    first: bool = True  # quantize the layer that sees the picture
    last: bool = False  # quantize layers that make graph outputs (the classifier)
    residual: bool = True  # a pair on the skip input of Add


class Decision(Struct, frozen=True):
    """What was decided about one node, and why."""

    node: str
    op: str
    quantized: bool
    reason: str

    def line(self) -> str:
        """`encoder.stem (Conv): INT8, ...`"""
        return f"{self.node} ({self.op}): {'INT8' if self.quantized else 'float'}, {self.reason}"


class Plan(Struct, frozen=True):
    """Where pairs go: `inputs` are (node name, input index) that read the quantized tensor; `weights` are layer names."""

    decisions: tuple[Decision, ...]
    activations: tuple[str, ...]
    inputs: tuple[tuple[str, int], ...]
    weights: tuple[str, ...]


class Graph:
    """Look-ups in a float graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.inputs = {i.name for i in model.graph.input}
        self.outputs = {o.name for o in model.graph.output}

    def is_picture(self, tensor: str) -> bool:
        """Whether a tensor holds the pixel values of the graph's input, only cast or moved."""
        while tensor in self.maker and self.maker[tensor].op_type in _MOVES:
            tensor = self.maker[tensor].input[0]
        return tensor in self.inputs

    def reaches_output(self, node: onnx.NodeProto) -> bool:
        """Whether a graph output depends on `node` without another layer between."""
        stack = list(node.output)
        while stack:
            tensor = stack.pop()
            if tensor in self.outputs:
                return True
            stack += [t for user in self.users.get(tensor, []) if user.op_type not in LAYERS for t in user.output]
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Rules: the reason why a layer stays float, or None

Rule = Callable[[Graph, onnx.NodeProto, Options], "str | None"]


def kept_by_name(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """A layer that the caller (search, the user) keeps in float."""
    return "kept by choice (search or --float)" if node.name in options.float_nodes else None


def constant_weight(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """Scales of weights are computed here, so the weight must be stored in the graph."""
    return None if node.input[1] in graph.weights else "its weight is computed by the graph"


def last_layer(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """The classifier decides on small differences and is cheap: float unless asked for."""
    return "makes a graph output" if not options.last and graph.reaches_output(node) else None


def first_layer(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """The layer on the picture: square kernel, one group, output channels in eights (ModelOpt's rule for its first layer)."""
    if not graph.is_picture(node.input[0]):
        return None
    if not options.first:
        return "sees the picture, kept by choice"
    shape = graph.weights[node.input[1]].shape
    fits = node.op_type == "Conv" and group_of(node) == 1 and shape[0] % 8 == 0 and shape[-1] == shape[-2]
    return None if fits else "sees the picture, and its shape has no INT8 kernel"


def thin_layer(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """Few channels: only square kernels of one group with channels in eights and 16 on one side are worth it."""
    if graph.is_picture(node.input[0]):
        return None
    shape = graph.weights[node.input[1]].shape
    least, most = sorted((shape[0], shape[1] * group_of(node)))
    if group_of(node) > 1:
        return None if most % 8 == 0 and shape[-1] >= 3 else "grouped, and its shape has no INT8 kernel"
    fits = shape[0] % 8 == 0 and shape[1] % 8 == 0 and most >= THIN and shape[-1] == shape[-2]
    return None if least >= THIN or fits else f"has only {least} channels on one side"


RULES: tuple[Rule, ...] = (kept_by_name, constant_weight, last_layer, first_layer, thin_layer)


def group_of(node: onnx.NodeProto) -> int:
    """Groups of a convolution."""
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def why_float(graph: Graph, node: onnx.NodeProto, options: Options) -> str | None:
    """The first rule's reason against quantizing a layer; None when it is quantized."""
    return next((reason for rule in RULES if (reason := rule(graph, node, options))), None)


def skip_input(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Which input of an Add is the skip: the one that does not come straight from a layer, when the other does.

    The layer's own branch keeps no pair, so that layer, Add and ReLU become one kernel.
    """
    straight = [t in graph.maker and graph.maker[t].op_type in LAYERS and len(graph.users[t]) == 1 for t in node.input]
    return straight.index(False) if node.op_type == "Add" and straight.count(True) == 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# Plan


def plan(model: onnx.ModelProto, options: Options | None = None) -> Plan:
    """Decide for every node of a float graph. Raises: ArtifactError: the graph is quantized already."""
    options = options or Options()
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node):
        raise ArtifactError("this graph is INT8 already; calibrate the float one")
    graph = Graph(model)
    inputs: list[tuple[str, int]] = []
    weights: list[str] = []
    decisions: list[Decision] = []
    for node in graph.nodes:
        if node.op_type in LAYERS:
            reason = why_float(graph, node, options)
            if reason is None:
                inputs.append((node.name, 0))
                weights.append(node.name)
            decisions.append(_decision(node, reason is None, reason or "input per tensor, weight per output channel"))
        elif node.op_type == "Add":
            quantized, reason = _decide_add(graph, node, weights, options)
            if quantized:
                inputs.append((node.name, skip_input(graph, node) or 0))
            decisions.append(_decision(node, quantized, reason))
        else:
            decisions.append(_decision(node, False, _OTHERS.get(node.op_type, "not a layer with weights")))
    by_name = {node.name: node for node in graph.nodes}
    activations = dict.fromkeys(by_name[name].input[i] for name, i in inputs)
    return Plan(
        decisions=tuple(decisions), activations=tuple(activations), inputs=tuple(inputs), weights=tuple(weights)
    )


_OTHERS = {
    "Resize": "no pair before a Resize; what reads it may have one",
    "Relu": "part of the layer before it",
    "Concat": "its users have the pairs",
    "Cast": "moves values only",
    "Transpose": "moves values only",
    "ArgMax": "never quantized",
}


def _decision(node: onnx.NodeProto, quantized: bool, reason: str) -> Decision:
    return Decision(node=node.name, op=node.op_type, quantized=quantized, reason=reason)


def _decide_add(graph: Graph, node: onnx.NodeProto, quantized: Sequence[str], options: Options) -> tuple[bool, str]:
    skip = skip_input(graph, node)
    if skip is None:
        return False, "not one branch from a layer and one skip"
    if not options.residual:
        return False, "skip kept float by choice"
    if graph.maker[node.input[1 - skip]].name not in quantized:
        return False, "the layer it follows is float"
    return True, f"pair on the skip input ({node.input[skip]}) only, the other comes from the layer it fuses with"


def wanted_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that may get a pair under any options: what to measure."""
    return plan(model, Options(last=True)).activations


def exact_ranges(model: onnx.ModelProto, tensors: Collection[str]) -> dict[str, float]:
    """Ranges that need no measuring: of the picture itself."""
    graph = Graph(model)
    return {t: INPUT_PEAK for t in tensors if graph.is_picture(t)}


# ---------------------------------------------------------------------------------------------------------------------
# Insertion


def insert_qdq(model: onnx.ModelProto, table: CalibTable, options: Options | None = None) -> onnx.ModelProto:
    """A copy of a float graph with all pairs in it; each node's doc_string says what was decided (`explain` reads it).

    Raises: ArtifactError: the graph is INT8 already, or the table lacks a tensor.
    """
    decided = plan(model, options)
    if missing := [t for t in decided.activations if t not in table.ranges]:
        raise ArtifactError(f"the calibration table has no range for {missing[0]}: it belongs to another graph")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return _Inserter(result, decided, table.ranges).run()


def explain(model: onnx.ModelProto) -> list[Decision]:
    """What was decided for each node: read from an INT8 graph of ours, or as it would be decided for a float graph."""
    if not any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        return list(plan(model).decisions)
    return [
        Decision(
            node=n.name, op=n.op_type, quantized=n.doc_string.startswith("INT8"), reason=n.doc_string.partition(": ")[2]
        )
        for n in model.graph.node
        if n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]


def weight_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """One scale an output channel: largest magnitude / 127, so that weights use -127 to 127."""
    peaks = np.abs(weight).max(axis=tuple(d for d in range(weight.ndim) if d != axis))
    scales: NDArray[np.float32] = np.maximum(peaks / LEVELS, LEAST_SCALE).astype(np.float32)
    return scales


class _Inserter:
    def __init__(self, model: onnx.ModelProto, decided: Plan, ranges: dict[str, float]) -> None:
        self.model, self.plan, self.ranges = model, decided, ranges
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}

    def run(self) -> onnx.ModelProto:
        wanted = set(self.plan.inputs)
        for node, decision in zip(list(self.model.graph.node), self.plan.decisions, strict=True):
            for index in range(len(node.input)):
                if (node.name, index) in wanted:
                    node.input[index] = self._activation(node.input[index])
            if node.name in self.plan.weights:
                node.input[1] = self._weight(node.input[1], _AXIS[node.op_type])
            node.doc_string = f"{'INT8' if decision.quantized else 'float'}: {decision.reason}"
            self.nodes.append(node)
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
        del self.model.graph.node[:], self.model.graph.value_info[:]
        self.model.graph.node.extend(nodes)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _activation(self, tensor: str) -> str:
        scale = np.array(self.ranges[tensor] / LEVELS, np.float32)
        return self._pair(tensor, scale, {})

    def _weight(self, name: str, axis: int) -> str:
        return self._pair(name, weight_scales(self.weights[name], axis), {"axis": axis})

    def _pair(self, tensor: str, scale: NDArray[np.float32], attributes: dict[str, Any]) -> str:
        """Add Q and DQ after `tensor` once; the name of what DQ gives."""
        if tensor not in self.made:
            names = [
                self._constant(f"{tensor}.scale", scale),
                self._constant(f"{tensor}.zero", np.zeros(scale.shape, np.int8)),
            ]
            q, dq = f"{tensor}.q", f"{tensor}.dq"
            self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *names], [q], name=q, **attributes))
            self.nodes.append(helper.make_node("DequantizeLinear", [q, *names], [dq], name=dq, **attributes))
            self.made[tensor] = dq
        return self.made[tensor]

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name
