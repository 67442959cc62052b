"""Each placement rule on a graph made by hand, and the reason it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tsss_edge.errors import ArtifactError
from tsss_edge.onnxgraph.qdq import (
    KEPT,
    PairOptions,
    PairPlan,
    exact_ranges,
    plan,
    skip_input,
    wanted_tensors,
)
from tsss_edge.onnxgraph.view import OnnxGraph

SIDE = 8  # pixels of the picture


class Net:
    """Grows a graph node by node; a node's output has its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.node("Cast", "image", name="cast", to=TensorProto.FLOAT)
        self.node("Transpose", "cast", name="nchw", perm=[0, 3, 1, 2])

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self, x: str, name: str, c_in: int, c_out: int, *, kernel: tuple[int, int] = (3, 3), group: int = 1
    ) -> str:
        weight = np.random.default_rng(len(self.nodes)).normal(size=(c_out, c_in // group, *kernel))
        self.weights.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        return self.node("Conv", x, f"{name}.w", name=name, group=group, pads=pads, kernel_shape=list(kernel))

    def resize(self, x: str, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), f"{name}.scales"))
        return self.node("Resize", x, "", f"{name}.scales", name=name, mode="nearest")

    def model(self, *outputs: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [image], infos, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stem(c_out: int = 16, **shape: Any) -> Net:
    net = Net()
    net.conv("nchw", "stem", 3, c_out, **shape)
    net.node("Relu", "stem", name="x")
    return net


def decide(model: onnx.ModelProto, **options: Any) -> PairPlan:
    return plan(model, PairOptions(**options))


def reason(decided: PairPlan, node: str) -> str:
    """`mid (Conv): INT8, ...`"""
    found = next(d for d in decided.decisions if d.node == node)
    return f"{found.node} ({found.op}): {'INT8' if found.quantized else 'float'}, {found.reason}"


def one_layer(c_in: int, c_out: int, **shape: Any) -> str:
    """Reason for a layer in the middle: stem, then `mid` with the given shape, then the classifier."""
    net = stem(c_in)
    net.conv("x", "mid", c_in, c_out, **shape)
    net.node("Relu", "mid", name="y")
    net.conv("y", "head", c_out, 5, kernel=(1, 1))
    return reason(decide(net.model("head")), "mid")


# -- rules on layers


@pytest.mark.parametrize(
    ("c_in", "c_out", "shape"),
    [
        (16, 16, {}),
        (16, 21, {}),
        (16, 8, {}),
        (8, 24, {}),
        (16, 32, {"kernel": (1, 1)}),
        (16, 16, {"kernel": (1, 3)}),
        (16, 16, {"group": 16}),
    ],
)
def test_layers_that_are_quantized(c_in: int, c_out: int, shape: dict[str, Any]) -> None:
    assert one_layer(c_in, c_out, **shape) == "mid (Conv): INT8, input per tensor, weight per output channel"


@pytest.mark.parametrize(
    ("c_in", "c_out", "shape", "why"),
    [
        (16, 12, {}, "has only 12 channels on one side"),
        (8, 8, {}, "has only 8 channels on one side"),
        (8, 16, {"kernel": (1, 3)}, "has only 8 channels on one side"),
        (16, 16, {"kernel": (1, 1), "group": 16}, "grouped, and its shape has no INT8 kernel"),
        (12, 12, {"group": 12}, "grouped, and its shape has no INT8 kernel"),
    ],
)
def test_thin_layers_stay_float(c_in: int, c_out: int, shape: dict[str, Any], why: str) -> None:
    assert one_layer(c_in, c_out, **shape) == f"mid (Conv): float, {why}"


@pytest.mark.parametrize(
    ("c_out", "kernel", "fits"),
    [(16, (3, 3), True), (8, (7, 7), True), (12, (3, 3), False), (16, (1, 3), False)],
)
def test_the_layer_on_the_picture(c_out: int, kernel: tuple[int, int], fits: bool) -> None:
    net = stem(c_out, kernel=kernel)
    net.conv("x", "head", c_out, 5)
    decided = decide(net.model("head"))
    assert ("stem" in decided.weights) == fits
    assert fits or "sees the picture, and its shape has no INT8 kernel" in reason(decided, "stem")


def test_the_layer_on_the_picture_by_choice() -> None:
    net = stem()
    net.conv("x", "head", 16, 16)
    decided = decide(net.model("head"), first=False)
    assert reason(decided, "stem") == "stem (Conv): float, sees the picture, kept by choice"


def test_layers_that_make_outputs_stay_float_unless_asked_for() -> None:
    """Through a Resize and an ArgMax too; a layer before another layer does not make an output."""
    net = stem()
    net.conv("x", "logits", 16, 32)
    net.resize("logits", "wide")
    net.node("ArgMax", "wide", name="labels", axis=1, keepdims=0)
    decided = decide(net.model("labels"))
    assert reason(decided, "logits") == "logits (Conv): float, makes a graph output" and decided.weights == ("stem",)
    assert decide(net.model("labels"), last=True).weights == ("stem", "logits")


def test_a_layer_with_an_output_on_the_way_stays_float() -> None:
    net = stem()
    net.conv("x", "mid", 16, 16)
    net.conv("mid", "head", 16, 16)
    assert "makes a graph output" in reason(decide(net.model("mid", "head")), "mid")


def test_a_computed_weight_stays_float() -> None:
    net = stem()
    net.weights.append(numpy_helper.from_array(np.ones((16, 16, 1, 1), np.float32), "raw"))
    net.node("Relu", "raw", name="made")
    net.node("Conv", "x", "made", name="mid")
    net.conv("mid", "head", 16, 5)
    assert reason(decide(net.model("head")), "mid") == "mid (Conv): float, its weight is computed by the graph"


def test_layers_kept_by_name() -> None:
    net = stem()
    net.conv("x", "mid", 16, 16)
    net.conv("mid", "head", 16, 5)
    decided = decide(net.model("head"), float_nodes=("mid",))
    assert reason(decided, "mid") == f"mid (Conv): float, {KEPT}" and decided.weights == ("stem",)


def test_a_grouped_transposed_convolution_stays_float() -> None:
    """Its weight, (in, out / groups, ...), has no axis of output channels; one group has."""
    for group, why in (
        (1, "INT8, input per tensor"),
        (16, "float, a grouped ConvTranspose has no axis of output channels"),
    ):
        net = stem()
        net.weights.append(numpy_helper.from_array(np.ones((16, 16 // group, 4, 4), np.float32), "w"))
        net.node("ConvTranspose", "x", "w", name="up", group=group, strides=[2, 2], pads=[1] * 4)
        net.conv("up", "head", 16, 5)
        assert reason(decide(net.model("head")), "up").startswith(f"up (ConvTranspose): {why}")


# -- where pairs go


def test_one_pair_for_all_users_of_a_tensor() -> None:
    net = stem()
    for name in ("a", "b"):
        net.conv("x", name, 16, 16)
    net.node("Add", "a", "b", name="sum")
    net.conv("sum", "head", 16, 5)
    decided = decide(net.model("head"))
    assert decided.activations == ("nchw", "x")
    assert decided.inputs == (("stem", 0), ("a", 0), ("b", 0))


def block(classes: int = 5) -> Net:
    """stem -> x; x -> first -> relu -> second; add(x, second) -> relu -> head."""
    net = stem()
    net.conv("x", "first", 16, 16)
    net.node("Relu", "first", name="inner")
    net.conv("inner", "second", 16, 16)
    net.node("Add", "x", "second", name="add")
    net.node("Relu", "add", name="y")
    net.conv("y", "head", 16, classes)
    return net


def test_a_residual_block_has_a_pair_on_the_skip_only() -> None:
    decided = decide(block().model("head"))
    assert ("add", 0) in decided.inputs and ("add", 1) not in decided.inputs
    assert decided.activations == ("nchw", "x", "inner")  # the skip shares the pair of x
    assert reason(decided, "add").startswith("add (Add): INT8, pair on the skip input (x) only")


@pytest.mark.parametrize("options", [{"residual": False}, {"float_nodes": ("add",)}])
def test_a_skip_kept_float(options: dict[str, Any]) -> None:
    decided = decide(block().model("head"), **options)
    assert ("add", 0) not in decided.inputs and reason(decided, "add") == "add (Add): float, skip kept float by choice"


def test_no_pair_on_the_skip_beside_a_float_layer() -> None:
    decided = decide(block().model("head"), float_nodes=("second",))
    assert reason(decided, "add") == "add (Add): float, the layer it follows is float" and len(decided.inputs) == 2


def test_an_add_of_two_layers_or_of_none_has_no_pair() -> None:
    net = block()
    graph = OnnxGraph(net.model("head"))
    add = next(n for n in graph.nodes if n.op_type == "Add")
    assert skip_input(graph, add) == 0
    net.conv("second", "other", 16, 16)  # now `second` has two users and cannot fuse with the Add
    assert skip_input(OnnxGraph(net.model("head")), add) is None


def test_a_constant_is_no_skip() -> None:
    """Some files add the bias of a layer by a node of its own."""
    net = stem()
    net.conv("x", "mid", 16, 16)
    net.weights.append(numpy_helper.from_array(np.ones((1, 16, 1, 1), np.float32), "bias"))
    net.node("Add", "mid", "bias", name="add")
    net.conv("add", "head", 16, 5)
    decided = decide(net.model("head"))
    assert decided.activations == ("nchw", "x")
    assert reason(decided, "add") == "add (Add): float, not one branch from a layer and one skip"


def test_no_pair_before_a_resize_but_behind_it() -> None:
    net = stem()
    net.resize("x", "wide")
    net.conv("wide", "mid", 16, 16)
    net.conv("mid", "head", 16, 5)
    decided = decide(net.model("head"))
    assert decided.activations == ("nchw", "wide")
    assert reason(decided, "wide") == "wide (Resize): float, no pair before a Resize; what reads it may have one"


def test_no_pair_between_layer_and_relu() -> None:
    decided = decide(block().model("head"))
    assert not {"stem", "first", "add"} & set(decided.activations)
    assert reason(decided, "inner") == "inner (Relu): float, part of the layer before it"


def test_every_node_has_a_decision_and_a_reason() -> None:
    model = block().model("head")
    decided = decide(model)
    assert [d.node for d in decided.decisions] == [n.name for n in model.graph.node]
    assert all(d.reason for d in decided.decisions)


# -- what is measured


def test_wanted_tensors_are_those_of_any_options() -> None:
    model = block(classes=16).model("head")
    wanted = set(wanted_tensors(model))
    assert set(decide(model, last=True).activations) - set(decide(model).activations) == {"y"}
    for options in ({}, {"last": True}, {"residual": False}, {"first": False}, {"float_nodes": ("first",)}):
        assert set(decide(model, **options).activations) <= wanted


def test_the_range_of_the_picture_is_known() -> None:
    model = block().model("head")
    assert exact_ranges(model, wanted_tensors(model)) == {"nchw": 255.0}


def test_an_int8_graph_is_refused() -> None:
    model = block().model("head")
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="q"))
    with pytest.raises(ArtifactError, match="INT8 already"):
        plan(model)


def test_two_nodes_of_one_name_are_refused() -> None:
    """Where pairs go is said by name."""
    model = block().model("head")
    model.graph.node[-1].name = model.graph.node[-2].name
    with pytest.raises(ArtifactError, match="several nodes of this graph are named 'y'; import or export it again"):
        plan(model)
