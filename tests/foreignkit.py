"""Small foreign segmentation graphs, made with onnx.helper: no exporter, so that a test takes milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save, shape_inference

SIZE_HW = (64, 96)
K = 5


class Maker:
    """Collects nodes and weights; every method gives the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(seed)

    def weight(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def node(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, channels: tuple[int, int], *, stride: int = 1, pad: int = 1, bias: bool = True) -> str:
        values = self.random.normal(0, 0.3, (*channels, 3, 3)).astype(np.float32)
        inputs = [x, self.weight(values)]
        if bias:
            inputs.append(self.weight(self.random.normal(0, 0.1, channels[0]).astype(np.float32)))
        return self.node("Conv", *inputs, strides=[stride, stride], pads=[pad] * 4)

    def save(
        self,
        path: Path,
        shape: list[int | str],
        outputs: dict[str, int],
        *,
        opset: int = 17,
        dtype: int = TensorProto.FLOAT,
    ) -> Path:
        values = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
        graph = helper.make_graph(
            self.nodes, "foreign", [helper.make_tensor_value_info("input", dtype, shape)], values, self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(shape_inference.infer_shapes(model), path)
        return path


def write_net(
    path: Path,
    *,
    classes: int = K,
    pad: int = 1,
    end: str = "",
    resize: str = "",
    layout: str = "nchw",
    shape: list[int | str] | None = None,
    extra: bool = False,
    opset: int = 17,
) -> Path:
    """Three convolutions to stride 4. `end`: softmax, sigmoid, argmax after it; `resize`: half_pixel or align_corners, to full size."""
    make = Maker()
    x = "input" if layout == "nchw" else make.node("Transpose", "input", perm=[0, 3, 1, 2])
    x = make.node("Relu", make.conv(x, (16, 3), stride=2, pad=pad))
    x = make.node("Relu", make.conv(x, (16, 16)))
    aux = x = make.conv(x, (classes, 16), stride=2, pad=pad)
    if resize:
        empty = make.weight(np.array([], np.float32))
        sizes = make.weight(np.array([1, classes, *SIZE_HW], np.int64))
        x = make.node(
            "Resize", x, "", empty if opset < 11 else "", sizes, mode="linear", coordinate_transformation_mode=resize
        )
    if layout == "nhwc":
        x = make.node("Transpose", x, perm=[0, 2, 3, 1])
    axis = 1 if layout == "nchw" else 3
    if end == "softmax":
        x = make.node("Softmax", x, axis=axis)
    elif end == "sigmoid":
        x = make.node("Sigmoid", x)
    elif end == "argmax":
        x = make.node("ArgMax", x, axis=axis, keepdims=0)
    make.node("Identity", x, out="answer")
    outputs = {"answer": TensorProto.INT64 if end == "argmax" else TensorProto.FLOAT}
    if extra:
        make.node(
            "ReduceMean", aux, make.weight(np.array([2, 3], np.int64)), out="embedding"
        ) if opset >= 18 else make.node("ReduceMean", aux, axes=[2, 3], out="embedding")
        outputs = {"embedding": TensorProto.FLOAT} | outputs
    default = [1, 3, *SIZE_HW] if layout == "nchw" else [1, *SIZE_HW, 3]
    return make.save(path, shape or default, outputs, opset=opset)
