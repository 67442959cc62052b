"""One view of an ONNX graph: who makes and who reads a tensor, what is constant, and what stands behind a Q/DQ pair."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LEVELS = 127  # steps of a symmetric INT8 tensor on each side; only rounding uses -128
QDQ = ("QuantizeLinear", "DequantizeLinear")
CONVOLUTIONS = ("Conv", "ConvTranspose")  # the layers that get pairs
LAYERS = (*CONVOLUTIONS, "Gemm", "MatMul")  # everything that multiplies by weights
INPUT_PEAK = 255.0  # of a uint8 picture
_MOVES = ("Cast", "Transpose", "Reshape", "Identity")  # keep values as they are
_KEEP_SIGN = (*_MOVES, *QDQ, "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")


@dataclass(frozen=True)
class ActivationRounding:
    """How an activation is rounded: to multiples of `scale`, from `low` to `high` of them."""

    scale: float
    low: int
    high: int


class OnnxGraph:
    """Look-ups in an onnx.ModelProto, float or INT8. A view is for reading: make a new one after a change.

    nodes: in the graph's order. maker: tensor -> the node that computes it. initializers: name -> TensorProto.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.initializers = {t.name: t for t in model.graph.initializer}
        self.inputs = frozenset(i.name for i in model.graph.input)
        self.outputs = frozenset(o.name for o in model.graph.output)

    @cached_property
    def users(self) -> dict[str, list[NodeProto]]:
        """Tensor -> the nodes that read it, in order."""
        users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                users.setdefault(name, []).append(node)
        return users

    def is_read(self, tensor: str) -> bool:
        """Whether a node or the caller of the graph reads a tensor."""
        return tensor in self.users or tensor in self.outputs

    # -- values

    def weight(self, name: str) -> NDArray[Any]:
        """Value of an initializer, as it is stored."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.initializers[name])

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Value of an initializer, a Constant node, or one of them behind Q/DQ. None for a tensor that pictures change."""
        from onnx import numpy_helper

        if tensor in self.initializers:
            return self.weight(tensor)
        node = self.maker.get(tensor)
        if node is not None and node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        if node is not None and node.op_type == "QuantizeLinear":
            return self._scaled(node, lambda values, steps: np.clip(np.rint(values / steps), -LEVELS - 1, LEVELS))
        if node is not None and node.op_type == "DequantizeLinear":
            return self._scaled(node, lambda values, steps: values.astype(np.float32) * steps)
        return None

    def _scaled(self, node: NodeProto, formula: Any) -> NDArray[Any] | None:
        """`formula` of the values and the scale of a Q or DQ node; None where one of them is not constant."""
        values, scale = self.constant(node.input[0]), self.constant(node.input[1])
        if values is None or scale is None:
            return None
        axis = attributes(node).get("axis", 1)
        shape = [] if scale.size == 1 else [-1 if d == axis % values.ndim else 1 for d in range(values.ndim)]
        return np.asarray(formula(values, scale.reshape(shape)))

    # -- Q/DQ pairs

    def pair(self, tensor: str) -> list[NodeProto]:
        """The Q/DQ nodes directly before a tensor, last first."""
        found: list[NodeProto] = []
        while tensor in self.maker and self.maker[tensor].op_type in QDQ:
            found.append(self.maker[tensor])
            tensor = found[-1].input[0]
        return found

    def source(self, tensor: str) -> str:
        """The float tensor that the output of a pair stands for. Other tensors, and weights stored as INT8, are themselves."""
        kinds = [node.op_type for node in self.pair(tensor)[:2]]
        return str(self.pair(tensor)[1].input[0]) if kinds == ["DequantizeLinear", "QuantizeLinear"] else tensor

    def is_dequantized(self, tensor: str) -> bool:
        """Whether a DequantizeLinear makes this tensor."""
        return tensor in self.maker and self.maker[tensor].op_type == "DequantizeLinear"

    def activation_roundings(self) -> dict[str, ActivationRounding]:
        """Float tensor -> how it is rounded, for every QuantizeLinear with one scale on a tensor that is not stored."""
        found = {}
        for node in self.nodes:
            scale = self.constant(node.input[1]) if node.op_type == "QuantizeLinear" else None
            if scale is not None and scale.size == 1 and node.input[0] not in self.initializers:
                zero = self.constant(node.input[2]) if len(node.input) > 2 else None
                limits = np.iinfo(np.uint8 if zero is None else zero.dtype)  # without a zero point, ONNX means uint8
                middle = 0 if zero is None else int(zero.item())
                found[node.input[0]] = ActivationRounding(float(scale.item()), limits.min - middle, limits.max - middle)
        return found

    def activation_scales(self) -> dict[str, float]:
        """Float tensor -> scale, of the same tensors."""
        return {tensor: rounding.scale for tensor, rounding in self.activation_roundings().items()}

    def pair_faults(self) -> tuple[str, ...]:
        """Faults of form that need no picture: a quantized graph output, or two ends of one pair that differ."""
        found = [
            f"output {output.name} is quantized (a DequantizeLinear makes it): no Q/DQ may stand on a graph output"
            for output in self.model.graph.output
            if self.is_dequantized(output.name)
        ]
        for pair in (self.pair(node.output[0])[:2] for node in self.nodes if node.op_type == "DequantizeLinear"):
            scales = [self.constant(node.input[1]) for node in pair]
            known = len(pair) == 2 and pair[1].op_type == "QuantizeLinear" and all(s is not None for s in scales)
            if known and not np.array_equal(*scales):  # type: ignore[arg-type]
                found.append(f"{pair[1].input[0]} is quantized with one scale and dequantized with another")
        return tuple(found)

    # -- walks

    def nearest_before(self, tensor: str, wanted: Collection[str]) -> set[str]:
        """The tensors of `wanted` that are met first on the ways up from `tensor`, itself included."""
        found, stack, seen = set[str](), [tensor], set[str]()
        while stack:
            name = stack.pop()
            if name in wanted:
                found.add(name)
            elif name in self.maker and name not in seen:
                stack.extend(self.maker[name].input)
            seen.add(name)
        return found

    def is_picture(self, tensor: str) -> bool:
        """Whether a tensor holds the pixel values of the graph's input, only cast, moved, or less a mean."""
        return self.picture_peak(tensor) is not None

    def picture_peak(self, tensor: str) -> float | None:
        """Largest magnitude that a tensor which holds the picture can have; None for another tensor."""
        mean = 0.0
        while tensor in self.maker and self.maker[tensor].op_type in (*_MOVES, "Sub"):
            node = self.maker[tensor]
            if node.op_type == "Sub":
                value = self.constant(node.input[1])
                if value is None or value.size != 1:
                    return None
                mean += float(value.item())
            tensor = node.input[0]
        return max(abs(mean), abs(INPUT_PEAK - mean)) if tensor in self.inputs else None

    def never_negative(self, tensor: str) -> bool:
        """Whether no picture can make a value of `tensor` negative, as far as the graph tells."""
        if tensor in self.inputs:
            return True  # a uint8 picture
        node = self.maker.get(tensor)
        if node is None:
            return False
        if node.op_type == "Clip":
            least = self.constant(node.input[1]) if len(node.input) > 1 else None
            return least is not None and float(least.min()) >= 0
        if node.op_type in ("Add", "Concat"):
            return all(self.never_negative(name) for name in node.input)
        cubic = attributes(node).get("mode") == b"cubic"  # it overshoots
        return node.op_type == "Relu" or (
            node.op_type in _KEEP_SIGN and not cubic and self.never_negative(node.input[0])
        )

    def reaches_output(self, node: NodeProto) -> bool:
        """Whether a graph output depends on `node` without another convolution between."""
        stack = list(node.output)
        while stack:
            tensor = stack.pop()
            if tensor in self.outputs:
                return True
            stack += [t for user in self.users.get(tensor, []) if user.op_type not in CONVOLUTIONS for t in user.output]
        return False


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node by name, as Python values (text is bytes)."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
