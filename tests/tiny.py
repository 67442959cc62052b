"""Hand-made ONNX graphs and engines with known answers: one 8x8 convolution that tells classes by brightness.

With m = mean of an 8x8 cell / 255 and c_k = (k + 0.5) / K, logit k is 2 c_k m - c_k^2, which is -(m - c_k)^2 but for
a term all classes share: the largest is the class whose brightness is nearest, as `FakeBackend` answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tsss_edge.artifacts import (
    BuildInfo,
    CalibrationRecord,
    Classes,
    Engine,
    EngineRecord,
    Head,
    OnnxMeta,
    OnnxModel,
    Precision,
    Preprocess,
    Target,
)
from tsss_edge.files import sha256_bytes, write_json

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
PREPROCESS = Preprocess(size_hw=(64, 96))
STEP = 1 / 127  # of the INT8 activations: m and the pixels lie in 0-1

CALIBRATION = CalibrationRecord(
    method="minmax",
    images=1,
    image_list_sha256="0" * 64,
    image_sha256=("0" * 64,),
    split="train",
    seed=0,
    onnx_sha256="1" * 64,
)


def pictures(batch: int = 1, seed: int = 0, preprocess: Preprocess = PREPROCESS) -> np.ndarray:
    """(N,H,W,3) uint8, constant on 8x8 cells, brightness away from the borders between CLASSES."""
    rng = np.random.default_rng(seed)
    height, width = preprocess.size_hw
    ids = rng.integers(0, len(CLASSES), (batch, height // 8, width // 8))
    cells = (ids * 64 + rng.integers(16, 48, ids.shape)).astype(np.uint8)
    return np.ascontiguousarray(cells.repeat(8, 1).repeat(8, 2)[..., None].repeat(3, -1))


def tiny_onnx(
    path: Path,
    *,
    precision: Precision = "fp32",
    head: Head = "logits",
    objectness: bool = False,
    batch: int = 1,
    size_hw: tuple[int, int] | None = None,
    preprocess: Preprocess = PREPROCESS,
) -> OnnxModel:
    """Write the graph. `batch` 0 leaves it free; `size_hw` makes a graph that contradicts its description."""
    height, width = size_hw or preprocess.size_hw
    graph = _Graph(batch or "N", height, width)
    x = graph.image(precision)
    if head in ("logits", "both"):
        graph.conv_head(x, "logits", *_class_weights(len(CLASSES)), precision)
    if head in ("labels", "both"):
        graph.conv_head(x, "cells", *_class_weights(len(CLASSES)), precision, output=False)
        graph.labels("cells")
    if objectness:
        ones = np.full((1, 3, 8, 8), 1 / 192, np.float32)
        graph.conv_head(x, "objectness", ones, np.float32([-0.25]), precision)
    meta = OnnxMeta(
        arch="edge-s",
        classes=CLASSES,
        preprocess=preprocess,
        head=head,
        objectness=objectness,
        precision=precision,
        checkpoint_sha256="2" * 64,
        calibration=CALIBRATION if precision == "int8" else None,
    )
    return OnnxModel.save(path, graph.model(), meta)


def _class_weights(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(num_classes) + 0.5) / num_classes
    weight = np.broadcast_to(2 * centres[:, None, None, None] / 192, (num_classes, 3, 8, 8))
    return weight.astype(np.float32), (-(centres**2)).astype(np.float32)


class _Graph:
    def __init__(self, batch: int | str, height: int, width: int) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[Any] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def image(self, precision: Precision) -> str:
        kind, dtype = (TensorProto.FLOAT16, np.float16) if precision == "fp16" else (TensorProto.FLOAT, np.float32)
        x = self.node("Cast", ["image"], "as_float", to=kind)
        x = self.node("Transpose", [x], "as_nchw", perm=[0, 3, 1, 2])
        x = self.node("Mul", [x, self.constant("by_255", np.array(1 / 255, dtype))], "scaled")
        return self.quantize(x, np.float32(STEP)) if precision == "int8" else x

    def quantize(self, x: str, step: np.ndarray | np.float32, axis: int | None = None) -> str:
        scale = self.constant(f"{x}_step", np.asarray(step, np.float32))
        zero = self.constant(f"{x}_zero", np.zeros(np.shape(step), np.int8))
        more = {} if axis is None else {"axis": axis}
        q = self.node("QuantizeLinear", [x, scale, zero], f"{x}_q", **more)
        return self.node("DequantizeLinear", [q, scale, zero], f"{x}_dq", **more)

    def conv_head(
        self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, precision: Precision, *, output: bool = True
    ) -> None:
        dtype = np.float16 if precision == "fp16" else np.float32
        w = self.constant(f"{name}_w", weight.astype(dtype))
        if precision == "int8":
            w = self.quantize(w, (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32), axis=0)
        b = self.constant(f"{name}_b", bias.astype(dtype))
        half = precision == "fp16"
        self.node("Conv", [x, w, b], f"{name}_h" if half else name, kernel_shape=[8, 8], strides=[8, 8])
        if half:
            self.node("Cast", [f"{name}_h"], name, to=TensorProto.FLOAT)
        if output:
            shape = [self.batch, weight.shape[0], self.height // 8, self.width // 8]
            self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def labels(self, logits: str) -> None:
        scales = self.constant("x8", np.float32([1, 1, 8, 8]))
        x = self.node(
            "Resize", [logits, "", scales], "wide", mode="linear", coordinate_transformation_mode="half_pixel"
        )
        x = self.node("ArgMax", [x], "best", axis=1, keepdims=0)
        x = self.node("Cast", [x], "best_as_float", to=TensorProto.FLOAT)  # as `FusedNet` does
        self.node("Cast", [x], "labels", to=TensorProto.UINT8)
        shape = [self.batch, self.height, self.width]
        self.outputs.append(helper.make_tensor_value_info("labels", TensorProto.UINT8, shape))

    def model(self) -> Any:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, [self.batch, self.height, self.width, 3])
        graph = helper.make_graph(self.nodes, "tiny", [image], self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def written_engine(path: Path, meta: OnnxMeta, *, onnx: str = "", onnx_sha256: str = "") -> Engine:
    """An engine file that nobody can run, with a record that fits it."""
    path.write_bytes(b"<net/>")
    target = Target(name="cpu", backend="openvino", precisions=(meta.precision,))
    record = EngineRecord(
        backend="openvino",
        files={path.name: sha256_bytes(b"<net/>")},
        precision=meta.precision,
        onnx_sha256=onnx_sha256,
        meta=meta,
        build=BuildInfo(target=target, onnx=onnx, command=""),
    )
    write_json(Engine.record_path(path), record)
    return Engine.load(path)


def tiny_meta(
    classes: Classes = CLASSES, preprocess: Preprocess = PREPROCESS, precision: Precision = "int8", sha256: str = ""
) -> OnnxMeta:
    """Of a graph with logits that no file holds."""
    return OnnxMeta(
        arch="edge-s",
        classes=classes,
        preprocess=preprocess,
        head="logits",
        objectness=False,
        precision=precision,
        checkpoint_sha256=sha256,
    )
