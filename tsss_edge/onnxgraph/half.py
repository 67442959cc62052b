"""Float or INT8 graph -> the same graph with FP16 casts in it, as strongly typed TensorRT wants, and which nodes must stay FP32.

Input and outputs keep their types (uint8 in; float32 out, through a cast), Resize scales stay FP32 (in FP16 their rounding
can change the output size), and nodes whose values on real pictures come near FP16's largest number stay FP32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tsss_edge.onnxgraph.sessions import open_session, with_batch

FP16_MAX = 65504.0
HEADROOM = 4.0  # a value this close to FP16_MAX on the scanned pictures counts as overflow (ours)
FP16_TINY = 2.0**-14  # smallest normal number: a smaller scale would lose bits
FP16_QDQ_OPSET = 19  # the first whose QuantizeLinear takes float16
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def scan_peaks(model: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Largest magnitude of every float tensor over (1,H,W,3) uint8 pictures, infinite where a value is not finite."""
    names = float_tensors(model)
    session = open_session(with_batch(model, 1, names))
    peaks = dict.fromkeys(names, 0.0)
    for picture in pictures:
        for name, value in zip(names, session.run(names, {"image": picture}), strict=True):
            peak = float(np.abs(value).max(initial=0.0))
            peaks[name] = max(peaks[name], peak if np.isfinite(peak) else np.inf)
    return peaks


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 tensors that nodes compute, in order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    return [name for node in model.graph.node for name in node.output if kinds.get(name) == TensorProto.FLOAT]


def overflowing_nodes(
    model: onnx.ModelProto, peaks: Mapping[str, float], *, headroom: float = HEADROOM
) -> frozenset[str]:
    """Names of the nodes that FP16 cannot hold: a peak of an input or output above `FP16_MAX / headroom`, or a larger weight."""
    limit = FP16_MAX / headroom
    weights = {t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0)) for t in _float_weights(model)}
    return frozenset(
        node.name
        for node in model.graph.node
        if any(peaks.get(t, 0.0) > limit or weights.get(t, 0.0) > FP16_MAX for t in (*node.input, *node.output))
        and node.op_type != "Cast"
    )


def cast_fp16(
    model: onnx.ModelProto, *, keep_float: Collection[str] = (), float_scales: bool = False
) -> onnx.ModelProto:
    """A copy of `model` that computes in FP16.

    Args:    model: FP32, or INT8 with Q/DQ (Q/DQ first, then this: the result is INT8+FP16).
             keep_float: names of nodes that stay FP32, with casts around them.
             float_scales: leave quantized layers with FP32 scales (for builders that refuse FP16 ones); only what is not
             quantized becomes FP16. Layers whose scales are too small for FP16 are left so in any case.
    Returns: opset 19 when it holds FP16 Q/DQ, else the opset of `model`.
    """
    kept = set(keep_float)
    if float_scales:
        kept |= {n.name for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
        kept |= _fed_by(model, kept)
    else:
        kept |= _with_tiny_scales(model)
    return _Caster(model, kept).run()


def _float_weights(model: onnx.ModelProto) -> Iterator[Any]:
    return (t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)


def _fed_by(model: onnx.ModelProto, quantizers: set[str]) -> set[str]:
    """Names of the Conv-like nodes that take a tensor of `quantizers`."""
    tensors = {t for node in model.graph.node if node.name in quantizers for t in node.output}
    return {n.name for n in model.graph.node if n.op_type in _LAYERS and tensors & set(n.input)}


def _with_tiny_scales(model: onnx.ModelProto) -> set[str]:
    """Layers, with their Q/DQ, of which a scale is below FP16's smallest normal number.

    The whole layer stays FP32 (its input pair too, unless others share it): TensorRT needs one type for a layer's inputs.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in _float_weights(model)}
    maker = {name: node for node in model.graph.node for name in node.output}
    kept: set[str] = set()
    for layer in (n for n in model.graph.node if n.op_type in _LAYERS):
        pairs = [p for tensor in layer.input for p in _pair(maker, tensor)]
        if any(float(weights[p.input[1]].min()) < FP16_TINY for p in pairs if p.input[1] in weights):
            kept |= {layer.name, *(p.name for p in pairs)}
    return kept


def _pair(maker: Mapping[str, Any], tensor: str) -> list[Any]:
    """The Q/DQ nodes directly before a tensor."""
    found = []
    while tensor in maker and maker[tensor].op_type in ("QuantizeLinear", "DequantizeLinear"):
        found.append(maker[tensor])
        tensor = maker[tensor].input[0]
    return found


_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class _Caster:
    """Walks the nodes in order, knows the type of each float tensor, and casts where a node wants the other one."""

    def __init__(self, model: onnx.ModelProto, kept: set[str]) -> None:
        self.kept = kept
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.kinds: dict[str, int] = {t.name: t.data_type for t in model.graph.initializer}
        self.kinds |= {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        self.constants = {t.name: t for t in model.graph.initializer}
        self.computed = set(float_tensors(model))
        self.outputs = {o.name for o in model.graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.renamed: dict[str, str] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            self._convert(node, TensorProto.FLOAT if node.name in self.kept else TensorProto.FLOAT16)
        graph = self.model.graph
        half_qdq = any(
            n.op_type == "QuantizeLinear" and self._kind(n.input[0]) == TensorProto.FLOAT16 for n in self.nodes
        )
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.weights.values())
        if half_qdq:
            self.model.opset_import[0].version = max(self.model.opset_import[0].version, FP16_QDQ_OPSET)
            self.model.ir_version = max(self.model.ir_version, 9)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _kind(self, tensor: str) -> int:
        return self.kinds.get(tensor, 0)

    def _convert(self, node: Any, kind: int) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        fixed = {2} if node.op_type == "Resize" else set()  # its scales stay FP32
        for i, tensor in enumerate(node.input):
            new.input[i] = self._take(tensor, self.kinds.get(tensor, 0) if i in fixed else kind)
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and kind == TensorProto.FLOAT16:
            new.attribute[0].i = TensorProto.FLOAT16
        self.nodes.append(new)
        for i, tensor in enumerate(node.output):
            self.kinds[tensor] = kind if tensor in self.computed else 0
            if tensor in self.outputs and self.kinds[tensor] == TensorProto.FLOAT16:
                self._cast_output(new, i)

    def _cast_output(self, node: Any, index: int) -> None:
        """A float output of the graph keeps its type and name; the tensor behind it gets another name."""
        tensor = node.output[index]
        half = f"{tensor}.fp16"
        node.output[index] = half
        self.kinds |= {half: TensorProto.FLOAT16, tensor: TensorProto.FLOAT}
        self.renamed[tensor] = half
        self.nodes.append(helper.make_node("Cast", [half], [tensor], name=f"{tensor}.cast", to=TensorProto.FLOAT))

    def _take(self, tensor: str, kind: int) -> str:
        """The name under which a node finds `tensor` in type `kind`; adds what is needed for that."""
        if tensor in self.constants:
            return self._weight(tensor, kind)
        tensor = self.renamed.get(tensor, tensor)
        if self._kind(tensor) not in _FLOATS or self._kind(tensor) == kind or kind not in _FLOATS:
            return tensor
        if (tensor, kind) not in self.casts:
            name = f"{tensor}.as_{'fp16' if kind == TensorProto.FLOAT16 else 'fp32'}"
            self.nodes.append(helper.make_node("Cast", [tensor], [name], name=name, to=kind))
            self.casts[tensor, kind] = name
            self.kinds[name] = kind
        return self.casts[tensor, kind]

    def _weight(self, name: str, kind: int) -> str:
        constant = self.constants[name]
        if constant.data_type != TensorProto.FLOAT or kind != TensorProto.FLOAT16:
            self.weights[name] = constant
            return name
        half = f"{name}.fp16"
        if half not in self.weights:
            value = np.clip(numpy_helper.to_array(constant), -FP16_MAX, FP16_MAX).astype(np.float16)
            self.weights[half] = numpy_helper.from_array(value, half)
            self.kinds[half] = TensorProto.FLOAT16
        return half
