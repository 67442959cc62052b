"""INT8 + FP16 graphs: same answers as the INT8 graph, FP16 between the pairs, layers left out on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chain
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from tiny import tiny_onnx

from tsss_edge.artifacts import OnnxModel
from tsss_edge.onnxgraph.casts import named_layers, typed_graphs, unquantized
from tsss_edge.onnxgraph.qdq import calibrated_peaks, without_qdq


def run(graph: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([session.run(["logits"], {"image": picture})[0] for picture in chain.pictures()])


def source(folder: Path) -> OnnxModel:
    meta = tiny_onnx(folder / "meta.onnx", precision="int8").meta
    return OnnxModel.save(folder / "chain.int8.onnx", chain.int8_chain(), meta)


def test_as_asked_answers_as_the_int8_graph(tmp_path: Path) -> None:
    given = source(tmp_path)
    want = run(onnx.load(given.path))
    asked, half = (run(onnx.load(g.path)) for g in typed_graphs(given, "int8", tmp_path))
    np.testing.assert_array_equal(asked, want)  # every layer is quantized here: nothing becomes FP16
    # FP16 has 11 bits: a value near a rounding step may land on the other side of it, one step of 1/127 of the range
    assert 0 < np.abs(half - want).max() < 0.03 * np.abs(want).max()


def scale_types(path: Path) -> set[int]:
    graph = onnx.load(path).graph
    constants = {t.name: t.data_type for t in graph.initializer}
    return {constants[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"}


def test_scales_are_fp32_first_but_on_a_dla(tmp_path: Path) -> None:
    first, second = typed_graphs(source(tmp_path), "int8", tmp_path)
    assert (first.what, second.what) == ("as asked", "FP16 scales")
    assert scale_types(first.path) == {TensorProto.FLOAT} and scale_types(second.path) == {TensorProto.FLOAT16}
    assert [g.what for g in typed_graphs(source(tmp_path), "int8", tmp_path, dla=True)] == ["FP16 scales", "as asked"]
    assert onnx.load(first.path).opset_import[0].version == 17, "what every TensorRT since 8.5 reads"


def test_what_no_pair_touches_is_fp16(tmp_path: Path) -> None:
    assert unquantized(chain.int8_chain()) == set()
    graph = without_qdq(chain.int8_chain(), ["conv1"])
    assert unquantized(graph) == {"conv1", "x2"}, "the convolution and its ReLU"
    meta = tiny_onnx(tmp_path / "meta.onnx", precision="int8").meta
    first, _ = typed_graphs(OnnxModel.save(tmp_path / "c.onnx", graph, meta), "int8", tmp_path)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(first.path)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    assert [kinds[t] for t in ("x1", "c1", "x2")] == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT16]


def test_float_files_are_parsed_as_they_are(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", precision="fp16")
    given = OnnxModel(path=model.path, sha256="", meta=msgspec.structs.replace(model.meta, float_nodes=("logits",)))
    (typed,) = typed_graphs(given, "fp16", tmp_path)
    assert (typed.path, typed.float_nodes) == (model.path, ("logits",))


def test_a_range_beyond_fp16_stays_fp32(tmp_path: Path) -> None:
    graph = chain.int8_chain()
    assert calibrated_peaks(graph)["x1"] == pytest.approx(chain.measured_ranges()[1], rel=1e-6)
    scale = next(t for t in graph.graph.initializer if t.name == "x1_step")
    scale.CopyFrom(numpy_helper.from_array(np.float32(1e5 / 127), "x1_step"))
    meta = tiny_onnx(tmp_path / "meta.onnx", precision="int8").meta
    given = OnnxModel.save(tmp_path / "wide.onnx", graph, meta)
    assert {"x1", "x1_q"} <= set(typed_graphs(given, "int8", tmp_path)[0].float_nodes)


def test_dropped_layers_read_their_float_inputs(tmp_path: Path) -> None:
    graph = chain.int8_chain()
    dropped = without_qdq(graph, ["conv1"])
    conv = next(n for n in dropped.graph.node if n.name == "conv1")
    assert conv.input[0] == "x1"
    assert not [n for n in dropped.graph.node if n.name.startswith("x1_")]
    assert run(dropped).shape == run(graph).shape
    everything = without_qdq(chain.int8_chain(), ["conv0", "conv1", "conv2"])
    assert not [n for n in everything.graph.node if n.op_type == "QuantizeLinear"]


def test_layers_are_found_in_what_builders_say() -> None:
    graph = chain.int8_chain()
    told = "Error Code 10: Could not find any implementation for node"
    assert named_layers(graph, f"{told} conv1 + x2.") == ["conv1"]
    assert named_layers(graph, f"{told} {{ForeignNode[conv0...conv2]}}.") == ["conv0", "conv2"]
    assert named_layers(graph, f"{told} conv12") == []
    assert named_layers(chain.float_chain(), f"{told} conv1") == [], "not quantized"


def test_fp16_scales_of_a_graph_whose_nodes_have_another_form_in_a_newer_opset(tmp_path: Path) -> None:
    """ReduceMean has its axes as an attribute up to opset 17, and as an input from 18 on: a squeeze-and-excitation block of PyTorch."""
    graph = chain.int8_chain()
    (last,) = [node for node in graph.graph.node if "logits" in node.output]
    last.output[0] = "scores"
    mean = onnx.helper.make_node("ReduceMean", ["scores"], ["mean"], name="mean", axes=[2, 3], keepdims=1)
    graph.graph.node.extend([mean, onnx.helper.make_node("Sub", ["scores", "mean"], ["logits"], name="sub")])
    meta = tiny_onnx(tmp_path / "meta.onnx", precision="int8").meta
    asked, half = typed_graphs(OnnxModel.save(tmp_path / "c.onnx", graph, meta), "int8", tmp_path)
    assert onnx.load(half.path).opset_import[0].version >= 19 and scale_types(half.path) == {TensorProto.FLOAT16}
    want = run(graph)
    for typed in (asked, half):
        assert np.abs(run(onnx.load(typed.path)) - want).max() < 0.03 * np.abs(want).max()
