"""Look-ups in an ONNX graph with Q/DQ nodes: what a tensor stands for, its scale, its weights, and its values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.base import import_extra
from tsss_edge.onnxgraph.sessions import with_batch

LEVELS = 127  # of a symmetric INT8 tensor, each side


class QdqGraph:
    """An ONNX graph with the look-ups that the comparison needs."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.producer: dict[str, Any] = {name: node for node in self.nodes for name in node.output}
        self.initializers = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.tensors = frozenset(self.producer)

    def activation_scales(self) -> dict[str, float]:
        """Scale by float tensor, for every QuantizeLinear on an activation with one scale."""
        scales = {}
        for node in self.nodes:
            scale = self.constant(node.input[1]) if node.op_type == "QuantizeLinear" else None
            if scale is not None and scale.size == 1 and node.input[0] not in self.initializers:
                scales[node.input[0]] = float(scale.reshape(()))
        return scales

    def float_source(self, tensor: str) -> str:
        """The float tensor that a DequantizeLinear output stands for; other tensors are themselves."""
        node = self.producer.get(tensor)
        if node is None or node.op_type != "DequantizeLinear":
            return tensor
        quantize = self.producer.get(node.input[0])
        return str(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else tensor

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Value of a weight: an initializer, a Constant, or one of them behind Q/DQ; None for an activation."""
        from onnx import numpy_helper

        if tensor in self.initializers:
            return self.initializers[tensor]
        node = self.producer.get(tensor)
        if node is None:
            return None
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node)
        return None

    def _dequantized(self, node: Any) -> NDArray[Any] | None:
        before = self.producer.get(node.input[0])
        values, scale = self.constant(node.input[0]), self.constant(node.input[1])
        if values is None and before is not None and before.op_type == "QuantizeLinear":
            values, scale = self.constant(before.input[0]), self.constant(before.input[1])
            if values is None or scale is None:
                return None
            steps = self._along(scale, before, values.ndim)
            values = np.clip(np.rint(values / steps), -LEVELS - 1, LEVELS)
            scale = self.constant(node.input[1])
        if values is None or scale is None:
            return None
        return np.asarray(values.astype(np.float32) * self._along(scale, node, values.ndim))

    @staticmethod
    def _along(scale: NDArray[Any], node: Any, ndim: int) -> NDArray[Any]:
        """A scale vector shaped to broadcast along the node's axis (1 by ONNX's default)."""
        if scale.size == 1:
            return scale.reshape(())
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        return scale.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)])

    def compared_before(self, node: Any, compared: Iterable[str]) -> set[str]:
        """Nearest tensors upstream of a node that are compared."""
        wanted, found, stack, seen = set(compared), set[str](), [node.input[0]], set[str]()
        while stack:
            tensor = stack.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in wanted:
                found.add(tensor)
            elif tensor in self.producer:
                stack.extend(self.producer[tensor].input)
        return found

    def layer_behind(self, tensor: str) -> Any:
        """The node that computes a tensor, Q/DQ after it left out."""
        return self.producer[self.float_source(tensor)]

    def structure_problems(self) -> tuple[str, ...]:
        """Faults of form that need no picture: a quantized graph output, or two ends of one Q/DQ that differ."""
        found = [
            f"output {output.name} is quantized (a DequantizeLinear makes it): no Q/DQ may stand on a graph output"
            for output in self.model.graph.output
            if output.name in self.producer and self.producer[output.name].op_type == "DequantizeLinear"
        ]
        for node in self.nodes:
            before = self.producer.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if before is None or before.op_type != "QuantizeLinear":
                continue
            ends = [self.constant(n.input[1]) for n in (before, node)]
            if ends[0] is not None and ends[1] is not None and not np.array_equal(ends[0], ends[1]):
                found.append(f"{before.input[0]} is quantized with one scale and dequantized with another")
        return tuple(found)

    def session(self, tensors: Sequence[str]) -> Any:
        """A function of one picture that gives `tensors`, computed as the graph is written (no fusion)."""
        runtime = import_extra("onnxruntime", "onnx")
        model = with_batch(self.model, 1, tensors)
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: session.run(list(tensors), {name: image})
