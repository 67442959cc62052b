"""Float or INT8 graph -> the same graph with FP16 casts, as a strongly typed TensorRT wants it, and which nodes stay FP32.

Input and outputs keep their types (uint8 in; float32 out, through a cast), Resize scales stay FP32 (in FP16 their rounding
can change the output size), and nodes whose values on real pictures come near FP16's largest number stay FP32.
A Q/DQ file leaves everything between its pairs FP32, and strong typing takes that at its word. So an INT8 file is cast
when an engine is built from it: INT8 where there are pairs, FP16 elsewhere. The file itself goes on to serve CPUs too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from tsss_edge.artifacts import OnnxModel, Precision, Struct
from tsss_edge.onnxgraph.qdq import calibrated_peaks, without_qdq
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.onnxgraph.view import LAYERS, OnnxGraph

FP16_MAX = 65504.0
HEADROOM = 4.0  # a value this close to FP16_MAX on the scanned pictures counts as overflow (ours)
FP16_TINY = 2.0**-14  # smallest normal number: a smaller scale would lose bits
FP16_QDQ_OPSET = 19  # the first whose QuantizeLinear takes float16
AS_ASKED, FP16_SCALES = "as asked", "FP16 scales"
FOLLOWERS = (
    "Relu",
    "Clip",
    "Add",
    "Resize",
    "Concat",
    "MaxPool",
    "AveragePool",
)  # take the type of what they come from
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def scan_peaks(model: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Largest magnitude of every float tensor over (1,H,W,3) uint8 pictures, infinite where a value is not finite."""
    names = float_tensors(model)
    run = run_tensors(model, names, fused=True)
    peaks = dict.fromkeys(names, 0.0)
    for picture in pictures:
        for name, value in run(picture).items():
            peak = float(np.abs(value).max(initial=0.0))
            peaks[name] = max(peaks[name], peak if np.isfinite(peak) else np.inf)
    return peaks


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 tensors that nodes compute, in order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    return [name for node in model.graph.node for name in node.output if kinds.get(name) == FLOAT]


def overflowing_nodes(
    model: onnx.ModelProto, peaks: Mapping[str, float], *, headroom: float = HEADROOM
) -> frozenset[str]:
    """Names of the nodes that FP16 cannot hold: a peak of an input or output above `FP16_MAX / headroom`, or a larger weight."""
    limit = FP16_MAX / headroom
    floats = [t for t in model.graph.initializer if t.data_type == FLOAT]
    weights = {t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0)) for t in floats}
    return frozenset(
        node.name
        for node in model.graph.node
        if any(peaks.get(t, 0.0) > limit or weights.get(t, 0.0) > FP16_MAX for t in (*node.input, *node.output))
        and node.op_type != "Cast"
    )


def cast_fp16(model: onnx.ModelProto, *, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of `model` that computes in FP16.

    Args:    model: FP32, or INT8 with Q/DQ (Q/DQ first, then this: the result is INT8+FP16).
             keep_float: names of nodes that stay FP32, with casts around them. Layers whose scales are too small for
             FP16 stay FP32 in any case.
    Returns: opset 19 when it holds FP16 Q/DQ, else the opset of `model`.
    """
    graph = OnnxGraph(model)
    kept = _layers_with_tiny_scales(graph).union(keep_float)
    if any(node.op_type == "QuantizeLinear" and node.name not in kept for node in graph.nodes):
        graph = OnnxGraph(with_opset(model, FP16_QDQ_OPSET))
    return _Caster(graph, kept).run()


def with_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """`model`, its nodes converted where its opset is older than `least`: some nodes have another form in a newer one."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if opset >= least else version_converter.convert_version(model, least)


def _layers_with_tiny_scales(graph: OnnxGraph) -> set[str]:
    """Layers, with their Q/DQ, of which a scale is below FP16's smallest normal number.

    The whole layer stays FP32 (its input pair too, unless others share it): TensorRT needs one type for a layer's inputs.
    """
    kept: set[str] = set()
    for layer in (n for n in graph.nodes if n.op_type in LAYERS):
        pairs = [node for tensor in layer.input for node in graph.pair(tensor)]
        scales = [graph.weight(p.input[1]) for p in pairs if p.input[1] in graph.initializers]
        if any(float(scale.min()) < FP16_TINY for scale in scales):
            kept |= {layer.name, *(p.name for p in pairs)}
    return kept


class _Caster:
    """Walks the nodes in order, knows the type of each float tensor, and casts where a node wants the other one."""

    def __init__(self, graph: OnnxGraph, kept: set[str]) -> None:
        self.graph, self.kept = graph, kept
        self.kinds: dict[str, int] = {name: t.data_type for name, t in graph.initializers.items()}
        self.kinds |= {i.name: i.type.tensor_type.elem_type for i in graph.model.graph.input}
        self.computed = set(float_tensors(graph.model))
        self.outputs = {o.name for o in graph.model.graph.output if o.type.tensor_type.elem_type == FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.renamed: dict[str, str] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            self._convert(node, FLOAT if node.name in self.kept else HALF)
        result = deepcopy(self.graph.model)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.weights.values())
        if any(n.op_type == "QuantizeLinear" and self._kind(n.input[0]) == HALF for n in self.nodes):
            result.ir_version = max(result.ir_version, 9)
        onnx.checker.check_model(result, full_check=True)
        return result

    def _kind(self, tensor: str) -> int:
        return self.kinds.get(tensor, 0)

    def _convert(self, node: onnx.NodeProto, kind: int) -> None:
        new = deepcopy(node)
        fixed = {2} if node.op_type == "Resize" else set()  # its scales stay FP32
        for i, tensor in enumerate(node.input):
            new.input[i] = self._take(tensor, self._kind(tensor) if i in fixed else kind)
        if node.op_type == "Cast" and node.attribute[0].i == FLOAT and kind == HALF:
            new.attribute[0].i = HALF
        self.nodes.append(new)
        for i, tensor in enumerate(node.output):
            self.kinds[tensor] = kind if tensor in self.computed else 0
            if tensor in self.outputs and self.kinds[tensor] == HALF:
                self._cast_output(new, i)

    def _cast_output(self, node: onnx.NodeProto, index: int) -> None:
        """A float output of the graph keeps its type and name; the tensor behind it gets another name."""
        tensor = node.output[index]
        half = f"{tensor}.fp16"
        node.output[index] = half
        self.kinds |= {half: HALF, tensor: FLOAT}
        self.renamed[tensor] = half
        self.nodes.append(helper.make_node("Cast", [half], [tensor], name=f"{tensor}.cast", to=FLOAT))

    def _take(self, tensor: str, kind: int) -> str:
        """The name under which a node finds `tensor` in type `kind`; adds what is needed for that."""
        if tensor in self.graph.initializers:
            return self._weight(tensor, kind)
        tensor = self.renamed.get(tensor, tensor)
        if {self._kind(tensor), kind} != {FLOAT, HALF}:
            return tensor
        if (tensor, kind) not in self.casts:
            name = f"{tensor}.as_{'fp16' if kind == HALF else 'fp32'}"
            self.nodes.append(helper.make_node("Cast", [tensor], [name], name=name, to=kind))
            self.casts[tensor, kind] = name
            self.kinds[name] = kind
        return self.casts[tensor, kind]

    def _weight(self, name: str, kind: int) -> str:
        constant = self.graph.initializers[name]
        if constant.data_type != FLOAT or kind != HALF:
            self.weights[name] = constant
            return name
        half = f"{name}.fp16"
        if half not in self.weights:
            value = np.clip(self.graph.weight(name), -FP16_MAX, FP16_MAX).astype(np.float16)
            self.weights[half] = numpy_helper.from_array(value, half)
            self.kinds[half] = HALF
        return half


# ---------------------------------------------------------------------------------------------------------------------
# Files for strong typing


class TypedGraph(Struct, frozen=True):
    """One graph to parse. `float_nodes` are meant to stay FP32; every other FP32 convolution is a fault."""

    what: str  # in a list of attempts
    path: Path
    float_nodes: tuple[str, ...]


def typed_graphs(source: OnnxModel, precision: Precision, folder: Path, *, dla: bool = False) -> list[TypedGraph]:
    """What to parse, best first; INT8 gives two files in `folder`, every other precision is `source` itself.

    First only what no pair touches becomes FP16: the quantized layers keep FP32 scales, and the FP32 between them never
    reaches memory, since convolution, add and ReLU fuse. Then the same with FP16 scales, for builders that want those. That
    loses accuracy (measured on the demo's network, ONNX Runtime, 60 pictures: labels equal to FP32's 0.9900 against 0.9932),
    but a DLA knows no FP32, so there it is the first.
    """
    if precision != "int8":
        return [TypedGraph(what=AS_ASKED, path=source.path.resolve(), float_nodes=source.meta.float_nodes)]
    order = (FP16_SCALES, AS_ASKED) if dla else (AS_ASKED, FP16_SCALES)
    return [write_typed(source.graph, source, folder, what) for what in order]


def write_typed(graph: onnx.ModelProto, source: OnnxModel, folder: Path, what: str) -> TypedGraph:
    """`graph` with FP16 casts as a file in `folder`; `what` is `AS_ASKED` or `FP16_SCALES`."""
    overflowing = overflowing_nodes(graph, calibrated_peaks(graph))
    half = unquantized(graph)
    rest = {n.name for n in graph.graph.node if n.name not in half} if what == AS_ASKED else set()
    path = folder / f"typed-{len(list(folder.glob('typed-*.onnx')))}.onnx"
    OnnxModel.save(path, cast_fp16(graph, keep_float=overflowing | rest), source.meta)
    return TypedGraph(what=what, path=path, float_nodes=tuple(sorted(overflowing)))


def float_graph(source: OnnxModel, folder: Path) -> TypedGraph:
    """The INT8 file with no pairs left, as a file in `folder`: for builders that take ranges instead."""
    path = folder / "typed-0.onnx"
    OnnxModel.save(path, without_qdq(source.graph, {n.name for n in source.graph.graph.node}), source.meta)
    return TypedGraph(what=AS_ASKED, path=path, float_nodes=())


def unquantized(model: onnx.ModelProto) -> set[str]:
    """Names of the layers whose input no pair quantizes, and of what follows from nothing but them."""
    graph = OnnxGraph(model)
    half: set[str] = set()
    for node in graph.nodes:
        makers = [graph.maker[tensor].name for tensor in node.input if tensor in graph.maker]
        layer = node.op_type in LAYERS and not graph.is_dequantized(node.input[0])
        if layer or (node.op_type in FOLLOWERS and makers and half.issuperset(makers)):
            half.add(node.name)
    return half


def named_layers(model: onnx.ModelProto, message: str) -> list[str]:
    """Quantized convolutions that a builder's message names ("could not find any implementation for node a + b")."""
    graph = OnnxGraph(model)
    quantized = {n.name for n in graph.nodes if n.op_type == "Conv" and graph.is_dequantized(n.input[0])}
    words = {word.strip(".,;:") for word in re.split(r"[\s\[\]{}()]|\.\.\.", message)}
    return sorted(quantized & words)
