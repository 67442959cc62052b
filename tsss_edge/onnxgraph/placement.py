"""Float graph -> where QuantizeLinear/DequantizeLinear pairs go, and for every other place the reason why not.

Explicit, symmetric, TensorRT's rules (`NvInfer.h`, IQuantizeLayer; NVIDIA's explicit quantization guide): a pair on the
activation input and on the weight of a convolution, never on a bias, a graph output, before a Resize, or between
convolution and ReLU (or Clip); of an Add after a convolution, a pair on the other ("skip") input only. One tensor gets one pair,
whoever uses it. Each rule below is a function that gives the reason why a layer stays float, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx
from onnx import numpy_helper

from tsss_edge.artifacts import Struct
from tsss_edge.errors import ArtifactError

LAYERS = ("Conv", "ConvTranspose")
INPUT_PEAK = 255.0  # of a uint8 picture
THIN = 16  # channels; below, INT8 kernels of GPUs are padded and gain nothing
KEPT = "kept by choice (search puts the layers here that cost most)"
_MOVES = ("Cast", "Transpose", "Reshape", "Identity")  # keep values as they are


class Options(Struct, frozen=True):
    """Choices of placement. The defaults are measured, see tests/calib and docs."""

    float_nodes: tuple[str, ...] = ()  # layers and Adds that stay float, by name (search puts its fallbacks here)
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
        """Whether a tensor holds the pixel values of the graph's input, only cast, moved, or less a mean."""
        return self.picture_peak(tensor) is not None

    def picture_peak(self, tensor: str) -> float | None:
        """Largest magnitude of a tensor that holds the picture; None for another tensor."""
        mean = 0.0
        while tensor in self.maker and self.maker[tensor].op_type in (*_MOVES, "Sub"):
            node = self.maker[tensor]
            if node.op_type == "Sub":
                if node.input[1] not in self.weights or self.weights[node.input[1]].size != 1:
                    return None
                mean += float(self.weights[node.input[1]].item())
            tensor = node.input[0]
        return max(abs(mean), abs(INPUT_PEAK - mean)) if tensor in self.inputs else None

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
    return KEPT if node.name in options.float_nodes else None


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
    "Clip": "part of the layer before it",
    "Sub": "takes the mean from the picture",
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
    if not options.residual or node.name in options.float_nodes:
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
    return {t: peak for t in tensors if (peak := graph.picture_peak(t)) is not None}
