"""A float graph of three convolutions and its INT8 twin with symmetric Q/DQ, in which faults can be planted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE_HW = (64, 96)
CLASSES = 4
STRIDES = (2, 2, 2)
CHANNELS = (3, 8, 16, CLASSES)


def weights(seed: int = 0) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(weight, bias) of each convolution; variance kept, so that no layer is louder than the others."""
    rng = np.random.default_rng(seed)
    pairs = []
    for c_in, c_out in pairwise(CHANNELS):
        weight = rng.normal(0, np.sqrt(2 / (9 * c_in)), (c_out, c_in, 3, 3)).astype(np.float32)
        pairs.append((weight, rng.normal(0, 0.1, c_out).astype(np.float32)))
    return pairs


def pictures(count: int = 3, seed: int = 1) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (1, *SIZE_HW, 3), dtype=np.uint8) for _ in range(count)]


def float_chain() -> Any:
    """image -> x0 -> conv0 -> relu -> x1 -> conv1 -> relu -> x2 -> conv2 = logits (1,4,8,12)."""
    return _Chain(ranges=None).model()


def int8_chain(ranges: list[float] | None = None, **faults: Any) -> Any:
    """The same with Q/DQ on every convolution's input and weight. Faults, each by layer index:

    input_scale, weight_scale: {layer: factor on the scale}. dequantize_scale: {layer: factor on the DQ's end only}.
    bias: {layer: added}. output: True puts Q/DQ on the logits.
    """
    return _Chain(ranges=ranges or measured_ranges(), **faults).model()


def measured_ranges() -> list[float]:
    """Largest magnitude of the input of each convolution over `pictures()`: minmax calibration."""
    import onnxruntime

    model = float_chain()
    names = ["x0", "x1", "x2"]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(names, {"image": picture}) for picture in pictures()]
    return [max(float(np.abs(run[i]).max()) for run in runs) for i in range(len(names))]


class _Chain:
    def __init__(
        self,
        ranges: list[float] | None,
        *,
        input_scale: dict[int, float] | None = None,
        weight_scale: dict[int, float] | None = None,
        dequantize_scale: dict[int, float] | None = None,
        bias: dict[int, float] | None = None,
        output: bool = False,
    ) -> None:
        self.ranges = ranges
        self.input_scale, self.weight_scale = input_scale or {}, weight_scale or {}
        self.dequantize_scale, self.bias, self.output = dequantize_scale or {}, bias or {}, output
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self) -> Any:
        self.node("Cast", ["image"], "cast", to=TensorProto.FLOAT)
        self.node("Transpose", ["cast"], "nchw", perm=[0, 3, 1, 2])
        self.node("Mul", ["nchw", self.constant("by_255", np.float32(1 / 255))], "x0")
        for i in range(len(STRIDES)):
            self.layer(i)
        if self.output:
            self.quantize("raw", np.float32(0.05), "logits")
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SIZE_HW, 3])
        logits = helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, [1, CLASSES, SIZE_HW[0] // 8, SIZE_HW[1] // 8]
        )
        graph = helper.make_graph(self.nodes, "chain", [image], [logits], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def layer(self, i: int) -> None:
        weight, bias = weights()[i]
        x, w = f"x{i}", self.constant(f"w{i}", weight)
        if self.ranges is not None:
            step = np.float32(self.ranges[i] / 127 * self.input_scale.get(i, 1.0))
            x = self.quantize(x, step, f"x{i}_dq", factor=self.dequantize_scale.get(i, 1.0))
            w = self.int8_weight(i, weight)
        last = i == len(STRIDES) - 1
        name = ("raw" if self.output else "logits") if last else f"c{i}"
        b = self.constant(f"b{i}", (bias + self.bias.get(i, 0.0)).astype(np.float32))
        self.node(
            "Conv", [x, w, b], name, node_name=f"conv{i}", pads=[1] * 4, strides=[STRIDES[i]] * 2, kernel_shape=[3, 3]
        )
        if not last:
            self.node("Relu", [name], f"x{i + 1}")

    def int8_weight(self, i: int, weight: NDArray[np.float32]) -> str:
        """Stored as INT8 with one scale an output channel."""
        steps = (np.abs(weight).max(axis=(1, 2, 3)) / 127 * self.weight_scale.get(i, 1.0)).astype(np.float32)
        values = np.clip(np.rint(weight / steps[:, None, None, None]), -127, 127).astype(np.int8)
        names = [self.constant(f"w{i}_q", values), self.constant(f"w{i}_step", steps)]
        names.append(self.constant(f"w{i}_zero", np.zeros(len(steps), np.int8)))
        return self.node("DequantizeLinear", names, f"w{i}_dq", axis=0)

    def quantize(self, x: str, step: np.float32, output: str, factor: float = 1.0) -> str:
        ends = [self.constant(f"{x}_step", step), self.constant(f"{x}_zero", np.int8(0))]
        back = [self.constant(f"{x}_back", np.float32(step * factor)), ends[1]]
        self.node("QuantizeLinear", [x, *ends], f"{x}_q")
        return self.node("DequantizeLinear", [f"{x}_q", *back], output)

    def node(self, kind: str, inputs: list[str], output: str, node_name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=node_name or output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name
