"""Float graph + CalibTable -> INT8 graph with explicit, symmetric Q/DQ pairs; and the reasons back from such a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tsss_edge.calib.methods import LEVELS
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.errors import ArtifactError
from tsss_edge.onnxgraph.placement import Decision, Options, Plan, plan

LEAST_SCALE = 1e-9  # of a weight channel that is all 0: TensorRT refuses a scale of 0
_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of the output channels in a weight


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
