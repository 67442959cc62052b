"""The roundings of an OpenVINO engine: where they are, over which range, and that they change the answers little."""

from __future__ import annotations

from typing import Any

import netkit
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tsss_edge.artifacts import OnnxModel
from tsss_edge.backends.ov import read_ir
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.onnxgraph.openvino_pairs import fast_pairs, float_branch, signed_pairs
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.onnxgraph.sessions import OpenVinoCompiler, run_tensors
from tsss_edge.onnxgraph.view import OnnxGraph


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("run")
    model = export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "fused.onnx")
    return calibrate(model, netkit.write_set(folder / "set", train=4), folder / "q.onnx", method="minmax", size=4)


def peaks_of(model: OnnxModel) -> dict[str, float]:
    assert model.meta.calibration is not None
    return model.meta.calibration.others


def roundings(model: Any) -> list[tuple[float, float]]:
    """(low, high) of every FakeQuantize of an activation."""
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
    ends = [[float(np.ravel(op.input_value(i).get_node().data)[0]) for i in (1, 2)] for op in found]
    return [(low, high) for low, high in ends]


def test_a_relu_s_output_gets_unsigned_steps_over_the_same_range(int8: OnnxModel) -> None:
    graph = OnnxGraph(int8.graph)
    pairs = {tensor: peak for _, tensor, peak in signed_pairs(graph) if graph.never_negative(tensor)}
    assert pairs["transpose"] == pytest.approx(255), "the picture: every value keeps its own step"
    assert pairs["encoder.stem.relu"] == pytest.approx(127 * graph.activation_scales()["encoder.stem.relu"])
    signed = set(graph.activation_scales()) - set(pairs)
    assert signed and all("add" in tensor or "resize" in tensor for tensor in signed), "sums may be negative"


def test_the_branch_of_a_convolution_is_rounded_too(int8: OnnxModel) -> None:
    graph = OnnxGraph(int8.graph)
    branches = {n.name: float_branch(graph, n) for n in graph.nodes if n.op_type == "Add"}
    assert branches["encoder.stages.1.1.add"] == "encoder.stages.1.1.second" and all(branches.values())
    model = read_ir(int8.path)
    before = roundings(model)
    fast_pairs(model, int8.graph, peaks_of(int8))
    after = roundings(model)
    peak = peaks_of(int8)["encoder.stages.1.1.second"]
    assert len(after) == len(before) + len(branches)
    assert any(high == pytest.approx(peak) and low == pytest.approx(-peak * 128 / 127) for low, high in after)
    assert not any(low == 0 for low, _ in before) and sum(low == 0 for low, _ in after) > 10


def test_without_peaks_no_branch_is_rounded_and_a_float_graph_stays(int8: OnnxModel) -> None:
    model, floating = read_ir(int8.path), read_ir(int8.path.with_name("fused.onnx"))
    count = len(roundings(model))
    fast_pairs(model, int8.graph, {})
    assert len(roundings(model)) == count
    fast_pairs(floating, OnnxModel.load(int8.path.with_name("fused.onnx")).graph, peaks_of(int8))
    assert roundings(floating) == []


def test_answers_are_nearer_to_the_float_network(int8: OnnxModel) -> None:
    """Half as wide steps where nothing is negative gain more than the branches' roundings cost (measured: 0.43 -> 0.40)."""
    folder, options = int8.path.parent, PairOptions(weight_bits=7)  # on which no processor saturates
    floating = OnnxModel.load(folder / "fused.onnx")
    seven = calibrate(floating, folder / "set", folder / "q7.onnx", method="minmax", size=4, options=options)
    exact, as_written = (run_tensors(model.graph, ["logits"]) for model in (floating, seven))
    engine = OpenVinoCompiler()(seven.graph, "int8", peaks_of(seven))
    errors: dict[str, list[float]] = {"as written": [], "engine": []}
    for seed in range(6):
        picture = netkit.picture(seed)[None]
        truth = np.array(exact(picture)["logits"])
        for name, run in (("as written", as_written), ("engine", engine)):
            errors[name].append(float(np.abs(run(picture)["logits"] - truth).mean()))
    assert np.mean(errors["engine"]) < np.mean(errors["as written"])


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [("Relu", {}, True), ("Sigmoid", {}, False), ("Identity", {}, True), ("Neg", {}, False)],
)
def test_what_can_be_negative(op: str, attributes: dict[str, Any], expected: bool) -> None:
    picture = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 4, 4, 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node(op, ["x"], ["y"], **attributes),
    ]
    graph = OnnxGraph(helper.make_model(helper.make_graph(nodes, "g", [picture], [result])))
    assert graph.never_negative("x") and graph.never_negative("y") is expected
    assert not graph.never_negative("unknown")


def test_a_clip_and_a_resize_are_looked_into() -> None:
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 1, 4, 4])
    nodes = [
        helper.make_node("Clip", ["v", "zero", "six"], ["relu6"]),
        helper.make_node("Clip", ["v", "", "six"], ["capped"]),
        helper.make_node("Resize", ["relu6", "", "twice"], ["linear"], mode="linear"),
        helper.make_node("Resize", ["relu6", "", "twice"], ["cubic"], mode="cubic"),
        helper.make_node("Add", ["relu6", "capped"], ["sum"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(number, np.float32), name)
        for name, number in (("zero", 0.0), ("six", 6.0), ("twice", [1.0, 1.0, 2.0, 2.0]))
    ]
    made = helper.make_graph(nodes, "g", [], [value], constants)
    graph = OnnxGraph(helper.make_model(made))
    assert graph.never_negative("relu6") and graph.never_negative("linear")
    assert not any(graph.never_negative(name) for name in ("capped", "cubic", "sum", "v"))
