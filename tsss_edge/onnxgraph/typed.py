"""INT8 graph -> the graphs that a strongly typed TensorRT is given instead: INT8 where there are Q/DQ pairs, FP16 elsewhere.

The Q/DQ file itself leaves everything between the pairs FP32, and strong typing takes that at its word. Casting is part of the
build, so that the one INT8 file goes on to serve CPUs too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from tsss_edge.artifacts import OnnxModel, Precision, Struct
from tsss_edge.calib.methods import LEVELS
from tsss_edge.onnxgraph.half import cast_fp16, overflowing_nodes

QDQ = ("QuantizeLinear", "DequantizeLinear")
AS_ASKED, FP16_SCALES = "as asked", "FP16 scales"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FOLLOWERS = (
    "Relu",
    "Clip",
    "Add",
    "Resize",
    "Concat",
    "MaxPool",
    "AveragePool",
)  # take the type of what they come from


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
    graph = onnx.load(source.path)
    order = (FP16_SCALES, AS_ASKED) if dla else (AS_ASKED, FP16_SCALES)
    return [write_typed(graph, source, folder, what) for what in order]


def write_typed(graph: onnx.ModelProto, source: OnnxModel, folder: Path, what: str) -> TypedGraph:
    """`graph` with FP16 casts as a file in `folder`; `what` is `AS_ASKED` or `FP16_SCALES`."""
    overflowing = overflowing_nodes(graph, calibrated_peaks(graph))
    half = unquantized(graph)
    rest = {n.name for n in graph.graph.node if n.name not in half} if what == AS_ASKED else set()
    path = folder / f"typed-{len(list(folder.glob('typed-*.onnx')))}.onnx"
    OnnxModel.save(path, cast_fp16(graph, keep_float=overflowing | rest), source.meta)
    return TypedGraph(what=what, path=path, float_nodes=tuple(sorted(overflowing)))


def unquantized(graph: onnx.ModelProto) -> set[str]:
    """Names of the layers whose input no pair quantizes, and of what follows from nothing but them."""
    pairs = _dequantized(graph)
    maker = {tensor: node.name for node in graph.graph.node for tensor in node.output}
    half: set[str] = set()
    for node in graph.graph.node:
        computed = [tensor for tensor in node.input if tensor in maker]
        layer = node.op_type in LAYERS and node.input[0] not in pairs
        follows = node.op_type in FOLLOWERS and bool(computed) and all(maker[tensor] in half for tensor in computed)
        if layer or follows:
            half.add(node.name)
    return half


def source_ranges(source: OnnxModel) -> dict[str, float]:
    """`calibrated_peaks` of a file."""
    return calibrated_peaks(onnx.load(source.path))


def float_graph(source: OnnxModel, folder: Path) -> TypedGraph:
    """The INT8 file with no pairs left, as a file in `folder`: for builders that take ranges instead."""
    graph = onnx.load(source.path)
    path = folder / "typed-0.onnx"
    OnnxModel.save(path, without_qdq(graph, {n.name for n in graph.graph.node}), source.meta)
    return TypedGraph(what=AS_ASKED, path=path, float_nodes=())


def calibrated_peaks(graph: onnx.ModelProto) -> dict[str, float]:
    """Largest magnitude of each quantized activation on the calibration pictures, as its scale says."""
    scales = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    pairs = (n for n in graph.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in scales)
    return {n.input[0]: float(scales[n.input[1]].max()) * LEVELS for n in pairs}


def named_layers(graph: onnx.ModelProto, message: str) -> list[str]:
    """Quantized convolutions that a builder's message names ("could not find any implementation for node a + b")."""
    quantized = {n.name for n in graph.graph.node if n.op_type == "Conv" and n.input[0] in _dequantized(graph)}
    words = {word.strip(".,;:") for word in re.split(r"[\s\[\]{}()]|\.\.\.", message)}
    return sorted(quantized & words)


def without_qdq(graph: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy in which the named layers read their unquantized inputs; pairs that nobody reads any more go."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    maker = {name: node for node in result.graph.node for name in node.output}
    for node in result.graph.node:
        if node.name in layers:
            for index, tensor in enumerate(node.input):
                node.input[index] = _before_pair(maker, tensor)
    _remove_unread(result)
    onnx.checker.check_model(result, full_check=True)
    return result


def _dequantized(graph: onnx.ModelProto) -> set[str]:
    return {name for n in graph.graph.node if n.op_type == "DequantizeLinear" for name in n.output}


def _before_pair(maker: dict[str, Any], tensor: str) -> str:
    """The float tensor that a pair quantizes; `tensor` itself where there is none (weights stored as INT8 stay so)."""
    pair = maker.get(tensor)
    quantizer = maker.get(pair.input[0]) if pair is not None and pair.op_type == "DequantizeLinear" else None
    return str(quantizer.input[0]) if quantizer is not None and quantizer.op_type == "QuantizeLinear" else tensor


def _remove_unread(model: onnx.ModelProto) -> None:
    while unread := [n for n in model.graph.node if n.op_type in QDQ and not set(n.output) & _read(model)]:
        for node in unread:
            model.graph.node.remove(node)
    constants = [t for t in model.graph.initializer if t.name not in _read(model)]
    for tensor in constants:
        model.graph.initializer.remove(tensor)


def _read(model: onnx.ModelProto) -> set[str]:
    outputs: Iterable[str] = (o.name for o in model.graph.output)
    return {name for node in model.graph.node for name in node.input} | set(outputs)
