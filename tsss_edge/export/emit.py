"""A PyTorch module of plain layers -> an ONNX graph with one readable node a layer, the same bytes every time.

The module is traced with torch.fx and each call becomes one ONNX node (opset 17). Nodes and the tensors they give share
a name that follows the module path: `encoder.stages.1.0` (a convolution with its folded batch norm),
`encoder.stages.1.0.relu`, `encoder.stages.1.1.add`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from tsss_edge.errors import ArtifactError
from tsss_edge.models.fused import fold_norms, layer_names

OPSET = 17
IR_VERSION = 8  # what ONNX 1.12 to 1.15 wrote: TensorRT 8.5's parser reads it
_CASTS = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}


def emit(module: nn.Module, inputs: dict[str, onnx.ValueInfoProto], outputs: dict[str, onnx.ValueInfoProto]) -> Any:
    """Trace `module` (its forward returns a dict by output name) -> onnx.ModelProto.

    Raises: ArtifactError: a layer that has no translation here, by its path.
    """
    graph = _Emitter(fx.symbolic_trace(module)).run()
    proto = helper.make_graph(
        graph.nodes, "tsss_edge", list(inputs.values()), [outputs[n] for n in graph.outputs], graph.weights
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "tsss-edge"
    onnx.checker.check_model(model, full_check=True)
    return model


def emit_floats(module: nn.Module, input_chw: Sequence[int]) -> Any:
    """A module (N,C,H,W) -> list of (N,c,h,w), all float32, with its batch norms folded away -> onnx.ModelProto.

    The input is "x", the outputs "0", "1", ...; the batch is free. Raises: as `emit` and `fold_norms`.
    """
    folded = ByNumber(fold_norms(module))
    with torch.no_grad():
        shapes = [list(t.shape[1:]) for t in folded(torch.zeros(1, *input_chw)).values()]
    values = {str(i): helper.make_tensor_value_info(str(i), TensorProto.FLOAT, ["N", *s]) for i, s in enumerate(shapes)}
    return emit(folded, {"x": helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *input_chw])}, values)


class ByNumber(nn.Module):
    """A module's list of outputs as a dict by number."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {str(i): value for i, value in enumerate(self.module(x))}


class _Emitter:
    """Walks the traced calls and collects nodes and weights."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.names = layer_names(traced)
        self.tensors: dict[fx.Node, str] = {}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: tuple[str, ...] = ()
        self._pads: dict[fx.Node, tuple[int, int, int, int]] = {}  # left, right, top, bottom: of the next convolution
        self._final: dict[fx.Node, str] = {}

    def run(self) -> _Emitter:
        (end,) = (n for n in self.traced.graph.nodes if n.op == "output")
        self._final = {self._maker(node): name for name, node in end.args[0].items()}
        self.outputs = tuple(end.args[0])
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.tensors[node] = str(node.target)
            elif node.op != "output":
                self._call(node)
        return self

    def _maker(self, node: fx.Node) -> fx.Node:
        """The call whose node makes this one's tensor: calls that change nothing have no node."""
        while node.op == "call_module" and type(self.modules[str(node.target)]) in _PASS_THROUGH:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node = source
        return node

    def _call(self, node: fx.Node) -> None:
        if node.op == "call_module":
            kind: Any = type(self.modules[str(node.target)])
        else:
            kind = node.target
        if kind in _PASS_THROUGH:
            self.tensors[node] = self._input(node)
            return
        if kind not in _TRANSLATIONS:
            raise ArtifactError(
                f"layer {self.names[node]} ({getattr(kind, '__name__', kind)}) has no ONNX translation here"
            )
        _TRANSLATIONS[kind](self, node)

    def _input(self, node: fx.Node, index: int = 0) -> str:
        source = node.args[index]
        assert isinstance(source, fx.Node)
        return self.tensors[source]

    def _node(self, node: fx.Node, kind: str, inputs: list[str], **attributes: Any) -> None:
        output = self._final.get(node, self.names[node])
        self.nodes.append(helper.make_node(kind, inputs, [output], name=self.names[node], **attributes))
        self.tensors[node] = output

    def _weight(self, name: str, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _constant(self, name: str, value: float) -> str:
        """A scalar, once by its name."""
        known = any(weight.name == name for weight in self.weights)
        return name if known else self._weight(name, np.array(value, np.float32))

    # -- one method a kind of layer

    def conv(self, node: fx.Node) -> None:
        conv, name = self.modules[str(node.target)], self.names[node]
        assert isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        left, right, top, bottom = self._pads.get(node.args[0], (0, 0, 0, 0))  # type: ignore[arg-type]
        (high, wide), pads = conv.padding, (top, left, bottom, right)
        inputs = [self._input(node), self._weight(f"{name}.weight", conv.weight.detach().numpy())]
        if conv.bias is not None:
            inputs.append(self._weight(f"{name}.bias", conv.bias.detach().numpy()))
        self._node(
            node,
            "Conv",
            inputs,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[have + more for have, more in zip((high, wide, high, wide), pads, strict=True)],
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def max_pool(self, node: fx.Node) -> None:
        pool = self.modules[str(node.target)]
        assert isinstance(pool, nn.MaxPool2d)
        kernel, stride, pads, dilation = (
            list(v) if isinstance(v, tuple) else [v, v]
            for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        more = {"dilations": dilation, "ceil_mode": int(pool.ceil_mode)}
        self._node(node, "MaxPool", [self._input(node)], kernel_shape=kernel, strides=stride, pads=pads * 2, **more)

    def zero_pad(self, node: fx.Node) -> None:
        """No node of its own: the convolution that reads it pads."""
        pad = self.modules[str(node.target)]
        readers = [self.modules.get(str(user.target)) for user in node.users]
        if not isinstance(pad, nn.ZeroPad2d) or not all(isinstance(reader, nn.Conv2d) for reader in readers):
            raise ArtifactError(f"padding {self.names[node]}: only a convolution may read it")
        self._pads[node] = pad.padding
        self.tensors[node] = self._input(node)

    def relu(self, node: fx.Node) -> None:
        self._node(node, "Relu", [self._input(node)])

    def relu6(self, node: fx.Node) -> None:
        bounds = [self._constant(f"clip.{name}", value) for name, value in (("min", 0.0), ("max", 6.0))]
        self._node(node, "Clip", [self._input(node), *bounds])

    def add(self, node: fx.Node) -> None:
        self._node(node, "Add", [self._input(node), self._input(node, 1)])

    def mul(self, node: fx.Node) -> None:
        value = node.args[1]
        if not isinstance(value, float):
            raise ArtifactError(f"product {self.names[node]}: only with a number")
        self._node(node, "Mul", [self._input(node), self._constant(f"{self.names[node]}.value", value)])

    def sub(self, node: fx.Node) -> None:
        value = node.args[1]
        if not isinstance(value, float):
            raise ArtifactError(f"subtraction {self.names[node]}: only of a number")
        self._node(node, "Sub", [self._input(node), self._constant(f"{self.names[node]}.value", value)])

    def concat(self, node: fx.Node) -> None:
        parts = node.args[0]
        assert isinstance(parts, (list, tuple))
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        self._node(node, "Concat", [self.tensors[p] for p in parts if isinstance(p, fx.Node)], axis=axis)

    def interpolate(self, node: fx.Node) -> None:
        mode, factor = node.kwargs["mode"], node.kwargs["scale_factor"]
        if mode not in ("nearest", "bilinear") or not isinstance(factor, float) or node.kwargs.get("align_corners"):
            raise ArtifactError(
                f"resize {self.names[node]}: only nearest and half-pixel bilinear by a factor are exported"
            )
        scales = self._weight(f"{self.names[node]}.scales", np.array([1, 1, factor, factor], np.float32))
        attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self._node(node, "Resize", [self._input(node), "", scales], **attributes)

    def argmax(self, node: fx.Node) -> None:
        self._node(node, "ArgMax", [self._input(node)], axis=node.args[1], keepdims=0)

    def cast(self, node: fx.Node) -> None:
        kind = node.args[1]
        assert isinstance(kind, torch.dtype)
        self._node(node, "Cast", [self._input(node)], to=_CASTS[kind])

    def permute(self, node: fx.Node) -> None:
        self._node(node, "Transpose", [self._input(node)], perm=list(node.args[1:]))


_PASS_THROUGH = {nn.Identity, nn.Dropout, nn.Dropout2d}  # eval mode
_TRANSLATIONS: dict[Any, Callable[[_Emitter, fx.Node], None]] = {
    nn.Conv2d: _Emitter.conv,
    nn.MaxPool2d: _Emitter.max_pool,
    nn.ZeroPad2d: _Emitter.zero_pad,
    nn.ReLU: _Emitter.relu,
    nn.ReLU6: _Emitter.relu6,
    F.relu: _Emitter.relu,
    operator.add: _Emitter.add,
    operator.mul: _Emitter.mul,
    operator.sub: _Emitter.sub,
    torch.cat: _Emitter.concat,
    F.interpolate: _Emitter.interpolate,
    "argmax": _Emitter.argmax,
    "to": _Emitter.cast,
    "permute": _Emitter.permute,
}
