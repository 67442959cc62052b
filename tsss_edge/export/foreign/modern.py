"""A foreign graph of any opset and float type -> the same in FP32 at our opset, constants folded, every node named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsss_edge.backends.base import import_extra
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import reason

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17  # as our own exports; higher ones are kept
IR_VERSION = 9
RESIZE_OPSET = 11  # the first whose Resize says which centres it means


def convert(graph: ModelProto, path: Path) -> ModelProto:
    """The graph at opset 17 or higher. Raises: ArtifactError: an operator has no successor."""
    from onnx import version_converter

    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    foreign = {n.domain for n in graph.graph.node} - {"", "ai.onnx"}
    if foreign:
        op = next(n.op_type for n in graph.graph.node if n.domain in foreign)
        raise ArtifactError(
            f"{path}: uses {op} of {', '.join(sorted(foreign))}; export it with standard ONNX operators"
        )
    graph.ir_version = max(graph.ir_version, IR_VERSION)  # IR 3 would want weights among the inputs again
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < OPSET:
        try:
            graph = version_converter.convert_version(graph, OPSET)
        except Exception as error:  # the converter raises RuntimeError and its own kinds
            raise ArtifactError(
                f"{path}: opset {opset} cannot be brought to {OPSET} ({reason(error)}); "
                "export it again with a newer opset"
            ) from error
    if opset < RESIZE_OPSET:
        _keep_old_centres(graph)
    return graph


def _keep_old_centres(graph: ModelProto) -> None:
    """Say of every Resize that came from opset 10 or lower where its points lie: the converter leaves that to a newer default."""
    from onnx import helper

    for node in graph.graph.node:
        if node.op_type == "Resize" and all(a.name != "coordinate_transformation_mode" for a in node.attribute):
            options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in options.items())


def widen(graph: Any) -> bool:
    """FP16 weights, constants, values and casts become FP32, and true when there were any. Changes `graph`.

    ONNX Runtime's CPU computes FP16 in FP32 between casts of its own, which would end up in the folded graph.
    """
    from onnx import TensorProto, numpy_helper

    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    tensors = [tensor for tensor in stored_tensors(graph) if tensor.data_type == half]
    for tensor in tensors:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return _widen_types(graph, half, full) or bool(tensors)


def _widen_types(graph: Any, half: int, full: int) -> bool:
    """Types that values state and that nodes make: the part of `widen` without numbers."""
    attributes = [a for node in graph.node for a in node.attribute]
    values = [v.type.tensor_type for v in (*graph.input, *graph.output, *graph.value_info)]
    typed = [value for value in values if value.elem_type == half]
    made = [a for a in attributes if a.name in ("to", "dtype") and a.i == half]
    for value in typed:
        value.elem_type = full
    for attribute in made:
        attribute.i = full
    inner = [_widen_types(a.g, half, full) for a in attributes if a.HasField("g")]
    return bool(typed or made) or any(inner)


def name_nodes(graph: ModelProto) -> None:
    """Give every node without a name one: plans and records speak of nodes by name. Changes `graph`.

    Two nodes of one name need no care here: ONNX Runtime refuses such a file.
    """
    for node in graph.graph.node:
        if not node.name:
            node.name = f"{node.op_type}.{next(filter(None, node.output))}"


def fold(graph: ModelProto) -> ModelProto:
    """Constants, shape arithmetic and batch norms folded by ONNX Runtime's basic passes, which keep to standard operators.

    Raises: ArtifactError: ONNX Runtime refuses the graph.
    """
    import onnx

    runtime = import_extra("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 3
        try:
            runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except UnavailableError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise ArtifactError(f"ONNX Runtime refuses the graph: {reason(error)}") from error
        folded = onnx.load(options.optimized_model_filepath)
    return folded if all(n.domain in ("", "ai.onnx") for n in folded.graph.node) else graph


def stored_tensors(graph: Any) -> Iterator[Any]:
    """Every stored tensor: weights, and constants in attributes, in the branches of If and Loop too."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("g"):
            yield from stored_tensors(attribute.g)
