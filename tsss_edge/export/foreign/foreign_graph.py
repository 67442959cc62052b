"""A foreign ONNX file -> a graph of fixed sizes at our opset, with what its input wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsss_edge.errors import ArtifactError
from tsss_edge.export.foreign.modern import convert, fold, name_nodes, stored_tensors, widen
from tsss_edge.files import reason, sha256_bytes, sha256_file

if TYPE_CHECKING:
    from onnx import ModelProto

Layout = Literal["nchw", "nhwc"]

DETECTORS = ("NonMaxSuppression", "RoiAlign", "EfficientNMS_TRT", "BatchedNMS_TRT", "MultiscaleRoiAlign")
INT8_KINDS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
)  # and QLinearConv, QLinearMatMul and their like
FLOATS = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Opened:
    """A foreign graph: one picture input of known size, every free dimension set, FP32 throughout."""

    graph: ModelProto
    input: str
    dtype: str  # of the file's own input, NumPy's name: float32, float16, uint8
    half: bool  # the file computes in FP16, at least in places
    layout: Layout
    size_hw: tuple[int, int]


def open_foreign(path: Path, *, layout: Layout | None, size_hw: tuple[int, int] | None) -> Opened:
    """Read a file, set its free dimensions (batch 1), bring it to opset 17 or higher and to FP32, and fold its constants.

    Args:    layout: of the input; None takes it from the shape. size_hw: for a graph that leaves it free.
    Raises:  ArtifactError: damaged, a detector, INT8, several inputs, no picture input, or a size that does not fit.
    """
    graph = read_foreign(path)
    _require_float_labels(graph, path)
    value = _picture_input(graph, path)
    dims = _dims(value)
    layout = layout or _layout(dims, path)
    size = _size(dims, layout, size_hw, path)
    dtype = _dtype(value, path)
    shape = [1, 3, *size] if layout == "nchw" else [1, *size, 3]
    graph = convert(set_shape(graph, value.name, shape), path)
    half = widen(graph.graph)
    graph = fold(graph)
    name_nodes(graph)
    return Opened(graph=graph, input=value.name, dtype=dtype, half=half, layout=layout, size_hw=size)


def read_foreign(path: Path) -> ModelProto:
    """Parse an ONNX file, its external weights too. Raises: ArtifactError: missing or damaged."""
    import onnx

    if not path.is_file():
        raise ArtifactError(f"{path}: no such ONNX file")
    try:
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
    except Exception as error:  # protobuf, the checker and missing weight files raise kinds without a common base
        raise ArtifactError(f"{path}: not a readable ONNX file ({reason(error)})") from error
    return graph


def _require_float_labels(graph: ModelProto, path: Path) -> None:
    """Raise ArtifactError for a detector, and for a network that is quantized already."""
    for kind in (node.op_type for node in graph.graph.node):
        if kind in DETECTORS:
            raise ArtifactError(f"{path}: holds {kind}, so it finds boxes; import takes networks that label pixels")
        if kind in INT8_KINDS or kind.startswith("QLinear"):
            raise ArtifactError(
                f"{path}: holds {kind}, so it is quantized already; give the float file it was made from"
            )


def source_sha256(path: Path) -> str:
    """SHA-256 of an ONNX file; where its weights lie in other files, of the hashes of all of them, those in order of name."""
    import onnx

    tensors = stored_tensors(onnx.load(path, load_external_data=False).graph)
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    hashes = [sha256_file(file) for file in (path, *(path.parent / name for name in sorted(beside)))]
    return sha256_bytes("".join(hashes).encode()) if beside else hashes[0]


def _picture_input(graph: ModelProto, path: Path) -> Any:
    weights = {t.name for t in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ArtifactError(
            f"{path}: has {len(inputs)} inputs ({names}); import takes networks with one picture as input"
        )
    return inputs[0]


def _dims(value: Any) -> list[int | None]:
    """Sizes of a value; None where free."""
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim
    ]


def _layout(dims: list[int | None], path: Path) -> Layout:
    if len(dims) == 4 and dims[1] == 3 and dims[3] != 3:
        return "nchw"
    if len(dims) == 4 and dims[3] == 3 and dims[1] != 3:
        return "nhwc"
    if len(dims) == 4 and dims[1:] == [None, None, None]:
        return "nchw"
    raise ArtifactError(
        f"{path}: its input is {_text(dims)}; expected one picture with 3 channels, as 1x3xHxW or 1xHxWx3 (say which by --layout)"
    )


def _size(dims: list[int | None], layout: Layout, asked: tuple[int, int] | None, path: Path) -> tuple[int, int]:
    if len(dims) != 4 or dims[1 if layout == "nchw" else 3] not in (3, None):
        raise ArtifactError(f"{path}: its input is {_text(dims)}; expected 3 channels in {layout.upper()}")
    if dims[0] not in (1, None):
        raise ArtifactError(f"{path}: takes batches of {dims[0]}; export it for batch 1 or a free batch")
    own = dims[2:4] if layout == "nchw" else dims[1:3]
    sides = []
    for fixed, wanted, name in zip(own, asked or (None, None), ("height", "width"), strict=True):
        if fixed is not None and wanted is not None and fixed != wanted:
            raise ArtifactError(
                f"{path}: its {name} is fixed to {fixed}, not {wanted}; leave --size out or export it again"
            )
        if fixed is None and wanted is None:
            raise ArtifactError(f"{path}: leaves the {name} free; give the network input by --size, for example 512")
        sides.append(int(fixed or wanted or 0))
    return sides[0], sides[1]


def _dtype(value: Any, path: Path) -> str:
    import onnx

    name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
    if name not in ("float32", "float16", "uint8"):
        raise ArtifactError(f"{path}: its input is {name}; expected float32, float16 or uint8 pixels")
    return str(name)


def _text(dims: list[int | None]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "a scalar"


def set_shape(graph: ModelProto, name: str, shape: list[int]) -> ModelProto:
    """A copy with the input's shape set and every other shape that the file states forgotten: they may be of other sizes."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    weights = {t.name for t in copy.graph.initializer}
    kept = [value for value in copy.graph.input if value.name not in weights]
    del copy.graph.input[:]  # old files (IR 3) list weights among the inputs; then nothing can be folded
    copy.graph.input.extend(kept)
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape
        del dims.dim[:]
        for side in shape:
            dims.dim.add().dim_value = side
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    assert [value.name for value in copy.graph.input] == [name]
    return copy


def rename_tensor(graph: Any, old: str, new: str) -> None:
    """Rename a tensor wherever it is written or read."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new
