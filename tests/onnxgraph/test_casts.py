"""FP16 casts: where they go, what keeps its type, what stays FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netkit
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tsss_edge.artifacts import Checkpoint, OnnxModel
from tsss_edge.config import load_target
from tsss_edge.export.onnx_export import EngineSources, export_onnx
from tsss_edge.onnxgraph.casts import cast_fp16, float_tensors, overflowing_nodes, scan_peaks
from tsss_edge.onnxgraph.qdq import insert_qdq, wanted_tensors

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def chain(weight: float = 2.0) -> onnx.ModelProto:
    """uint8 image (1,2,2,3) -> cast -> transpose -> conv (all weights `weight`) -> relu -> resize x2 -> logits (1,1,4,4)."""
    weights = [
        numpy_helper.from_array(np.full((1, 3, 1, 1), weight, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1, np.float32), "b"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], name="cast", to=FLOAT),
        helper.make_node("Transpose", ["cast"], ["nchw"], name="nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "w", "b"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("Resize", ["relu", "", "scales"], ["logits"], name="resize", mode="nearest"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", FLOAT, [1, 1, 4, 4])
    graph = helper.make_graph(nodes, "chain", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor, weights included."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return known | {t.name: t.data_type for t in model.graph.initializer}


def test_inside_is_fp16_and_outside_keeps_its_types() -> None:
    half = cast_fp16(chain())
    found = types(half)
    assert {found[t] for t in ("cast", "nchw", "conv", "relu", "w.fp16", "b.fp16", "logits.fp16")} == {HALF}
    assert found["image"] == TensorProto.UINT8 and found["logits"] == FLOAT
    assert [n.op_type for n in half.graph.node] == ["Cast", "Transpose", "Conv", "Relu", "Resize", "Cast"]


def test_resize_scales_stay_fp32() -> None:
    resize = next(n for n in cast_fp16(chain()).graph.node if n.op_type == "Resize")
    assert resize.input[2] == "scales" and types(cast_fp16(chain()))["scales"] == FLOAT


def test_values_by_hand() -> None:
    """2 * (10 + 20 + 30) = 120, exact in FP16."""
    image = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 2, 2, 3))
    result = run(cast_fp16(chain()), image)["logits"]
    assert result.dtype == np.float32 and (result == 120).all()


def test_overflow_is_found_on_real_values_and_kept_in_fp32() -> None:
    """200 * 3 * 255 = 153000 is beyond FP16; pictures that stay dark would not show it."""
    model, bright, dark = chain(200.0), np.full((1, 2, 2, 3), 255, np.uint8), np.ones((1, 2, 2, 3), np.uint8)
    assert not overflowing_nodes(model, scan_peaks(model, [dark]))
    peaks = scan_peaks(model, [dark, bright])
    assert peaks["conv"] == pytest.approx(153000) and peaks["nchw"] == 255
    kept = overflowing_nodes(model, peaks)
    assert kept == {"conv", "relu", "resize"}
    half = cast_fp16(model, keep_float=kept)
    assert (run(half, bright)["logits"] == 153000).all()
    assert types(half)["nchw"] == HALF and types(half)["conv"] == FLOAT


def test_headroom() -> None:
    """20 * 765 = 15300 fits, but with less than a factor 8 to spare."""
    model = chain(20.0)
    peaks = scan_peaks(model, [np.full((1, 2, 2, 3), 255, np.uint8)])
    assert not overflowing_nodes(model, peaks, headroom=4) and overflowing_nodes(model, peaks, headroom=8)


def test_weight_beyond_fp16_is_kept() -> None:
    model = chain(1e6)
    assert "conv" in overflowing_nodes(model, {})


def test_nan_counts_as_overflow() -> None:
    model = chain(np.nan)
    peaks = scan_peaks(model, [np.ones((1, 2, 2, 3), np.uint8)])
    assert peaks["conv"] == np.inf and "conv" in overflowing_nodes(model, peaks)


def test_only_float_tensors_are_scanned() -> None:
    assert float_tensors(chain()) == ["cast", "nchw", "conv", "relu", "logits"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return netkit.checkpoint(tmp_path_factory.mktemp("run") / "best.pt")


def test_export_in_fp16(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = export_onnx(checkpoint.path, tmp_path / "h.onnx", head="both", objectness=True, precision="fp16")
    assert model.meta.precision == "fp16"
    image = netkit.picture(3)[None]
    half = run(onnx.load(model.path), image)
    full = run(onnx.load(export_onnx(checkpoint.path, tmp_path / "f.onnx", head="both", objectness=True).path), image)
    assert {n: a.dtype for n, a in half.items()} == {n: a.dtype for n, a in full.items()}
    np.testing.assert_allclose(half["logits"], full["logits"], rtol=0, atol=1e-2 * np.abs(full["logits"]).max())
    assert (half["labels"] == full["labels"]).mean() > 0.99
    assert not np.array_equal(half["logits"], full["logits"])  # it really is another precision


def test_export_in_fp16_for_batches(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """The range scan takes one picture at a time, whatever the graph takes."""
    model = export_onnx(checkpoint.path, tmp_path / "h.onnx", precision="fp16", batch=2)
    images = np.stack([netkit.picture(s) for s in (3, 4)])
    single = export_onnx(checkpoint.path, tmp_path / "s.onnx", precision="fp16")
    expected = [run(onnx.load(single.path), images[i : i + 1])["logits"][0] for i in range(2)]
    found = run(onnx.load(model.path), images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 * np.abs(found).max())


def test_casting_a_file_scans_pictures(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """A layer 300 times as loud as trained overflows, on real pictures and, without any, on generated ones."""
    floating = export_onnx(checkpoint.path, tmp_path / "f.onnx")
    graph = onnx.load(floating.path)
    for name in ("encoder.stem.weight", "encoder.stem.bias"):
        tensor = next(t for t in graph.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(30000), name))
    loud = OnnxModel.save(tmp_path / "loud.onnx", graph, floating.meta)
    data = netkit.write_set(tmp_path / "data", train=4)
    target = load_target("rtx")
    half = EngineSources(loud, target, data).graph("fp16", tmp_path, "h")
    assert "encoder.stem" in half.meta.float_nodes
    blind = EngineSources(loud, target).graph("fp16", tmp_path, "b")
    assert "encoder.stem" in blind.meta.float_nodes
    for made in (half, blind):
        assert np.isfinite(run(onnx.load(made.path), netkit.picture(1)[None])["logits"]).all()


def int8_graph(tmp_path: Path, checkpoint: Checkpoint) -> Any:
    graph = onnx.load(export_onnx(checkpoint.path, tmp_path / "f.onnx").path)
    peaks = scan_peaks(graph, [netkit.picture(s)[None] for s in range(4)])
    return insert_qdq(graph, {t: peaks[t] for t in wanted_tensors(graph)})


def test_int8_and_fp16_together(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Q/DQ first, casts after: nearly what the INT8 graph gives."""
    int8 = int8_graph(tmp_path, checkpoint)
    mixed = cast_fp16(int8)
    found = types(mixed)
    scales = {found[n.input[1]] for n in mixed.graph.node if n.op_type == "QuantizeLinear"}
    assert scales == {HALF, FLOAT}  # FLOAT: the stem, whose weight scales are too small
    assert mixed.opset_import[0].version == 19
    head = next(n for n in mixed.graph.node if n.name == "class_head")
    assert found[head.input[0]] == HALF
    image = netkit.picture(9)[None]
    floating = run(onnx.load(tmp_path / "f.onnx"), image)["logits"]
    own, with_casts = (np.sqrt(np.mean((run(m, image)["logits"] - floating) ** 2)) for m in (int8, mixed))
    assert with_casts < 1.2 * own < 0.2 * floating.std()  # FP16 adds little to what INT8 costs (measured 1.0)


def test_tiny_scales_keep_their_layer_in_fp32(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """The stem's weights carry the 1/255: scales of some 1e-5 would be denormal in FP16."""
    mixed = cast_fp16(int8_graph(tmp_path, checkpoint))
    found = types(mixed)
    stem = next(n for n in mixed.graph.node if n.name == "encoder.stem")
    assert {found[t] for t in (*stem.input, *stem.output)} == {FLOAT}


def test_sixteen_bit_graph_of_the_trained_network_has_no_float_layer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    half = onnx.load(export_onnx(checkpoint.path, tmp_path / "h.onnx", precision="fp16").path)
    found = types(half)
    assert {found[n.output[0]] for n in half.graph.node if n.op_type == "Conv"} == {HALF}
