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
from tsss_edge.export.typed_graph import calibrated_peaks, named_layers, typed_graphs, without_qdq


def run(graph: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([session.run(["logits"], {"image": picture})[0] for picture in chain.pictures()])


def source(folder: Path) -> OnnxModel:
    meta = tiny_onnx(folder / "meta.onnx", precision="int8").meta
    return OnnxModel.save(folder / "chain.int8.onnx", chain.int8_chain(), meta)


def test_both_typed_graphs_answer_as_the_int8_graph(tmp_path: Path) -> None:
    given = source(tmp_path)
    want = run(onnx.load(given.path))
    graphs = typed_graphs(given, "int8", tmp_path)
    assert [g.what for g in graphs] == ["as asked", "FP32 scales"]
    for typed in graphs:
        got = run(onnx.load(typed.path))
        # FP16 has 11 bits: a value near a rounding step may land on the other side of it, one step of 1/127 of the range
        assert np.abs(got - want).max() < 0.03 * np.abs(want).max()
        assert OnnxModel.load(typed.path).meta.precision == "int8"


def test_scales_are_fp16_first_and_fp32_second(tmp_path: Path) -> None:
    for typed, kind in zip(typed_graphs(source(tmp_path), "int8", tmp_path), ("FLOAT16", "FLOAT"), strict=True):
        graph = onnx.load(typed.path).graph
        constants = {t.name: t.data_type for t in graph.initializer}
        kinds = {constants[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"}
        assert kinds == {getattr(TensorProto, kind)}


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
