"""lite0 from checkpoint to engines: padding, ReLU6 and the mean in the graph, depthwise layers in INT8, the same in training."""

from __future__ import annotations

from pathlib import Path

import netkit
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from typer.testing import CliRunner

from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.cli import app
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.models import load_model
from tsss_edge.onnxgraph.qdq import chosen_layers, plan, wanted_tensors
from tsss_edge.train.qat import find_checkpoint, load_calibration, rounded

DEPTHWISE = 16  # of lite0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt, fused.onnx, fused.int8.onnx."""
    folder = tmp_path_factory.mktemp("lite")
    checkpoint = netkit.checkpoint(folder / "best.pt", "lite0")
    data = netkit.write_set(folder / "data", train=6)
    floating = export_onnx(checkpoint, folder / "fused.onnx", objectness=True)
    calibrate(floating, data, folder / "fused.int8.onnx", method="minmax")
    return folder


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_the_graph_pads_clips_and_subtracts_as_the_network_does(run: Path) -> None:
    graph = onnx.load(run / "fused.onnx").graph
    nodes = {n.name: n for n in graph.node}
    assert [n.op_type for n in graph.node[:4]] == ["Cast", "Transpose", "Sub", "Conv"]
    assert attributes(nodes["encoder.stages.0.0"])["pads"] == [0, 0, 1, 1]
    wide = next(n for n in graph.node if attributes(n).get("kernel_shape") == [5, 5])
    assert attributes(wide)["pads"] == [1, 1, 2, 2] and attributes(wide)["strides"] == [2, 2]
    assert sum(n.op_type == "Clip" for n in graph.node) == 1 + 15 + DEPTHWISE  # stem, expansions, depthwise layers
    assert not [n for n in graph.node if n.op_type in ("Pad", "Mul", "BatchNormalization")]


def test_depthwise_layers_are_named_by_one_word(run: Path) -> None:
    graph = onnx.load(run / "fused.onnx")
    kept = chosen_layers(graph, ["depthwise", "encoder.stages.0.0"])
    nodes = {n.name: n for n in graph.graph.node}
    groups = [attributes(nodes[name]).get("group", 1) for name in kept]
    assert kept[0] == "encoder.stages.0.0" and len(kept) == 1 + DEPTHWISE and groups[0] == 1 and min(groups[1:]) > 1
    with pytest.raises(ArtifactError, match="no quantized layer 'class_hat' in this graph"):
        chosen_layers(graph, ["class_hat"])
    out = run / "q.onnx"
    call = ["calibrate", str(run / "fused.onnx"), "--data", "d", "--out", str(out), "--keep-float", "class_hat"]
    refused = CliRunner().invoke(app, call)
    assert isinstance(refused.exception, ArtifactError) and not out.exists()


def test_every_layer_but_the_heads_is_int8_and_the_picture_has_its_exact_range(run: Path) -> None:
    decided = {d.node: d for d in plan(onnx.load(run / "fused.onnx")).decisions if d.op == "Conv"}
    assert [name for name, d in decided.items() if not d.quantized] == ["class_head", "object_head"]
    _, table = load_calibration(run / "fused.int8.onnx")
    assert table.ranges["encoder.normalize.sub"] == 128.0  # |255 - 127|
    assert set(wanted_tensors(onnx.load(run / "fused.onnx"))) == set(table.ranges)


def test_the_net_rounded_in_training_is_the_int8_graph(run: Path) -> None:
    """A few values at a tie round to the other side; the float net is far from both."""
    model, table = load_calibration(run / "fused.int8.onnx")
    net = load_model(find_checkpoint(model))
    quantized = rounded(load_model(find_checkpoint(model)), model, table).eval()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    picture = netkit.picture(3)[None]
    x = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found, floating = (n(x).logits.numpy() for n in (quantized, net))
    expected = session.run(["logits"], {"image": picture})[0]
    assert np.abs(found - expected).mean() < 0.2 * np.abs(floating - expected).mean()


def test_openvino_runs_it_in_int8(run: Path, tmp_path: Path) -> None:
    engine = build_engine(run / "fused.int8.onnx", load_target("cpu"), tmp_path / "f")
    layers = sum(n.op_type == "Conv" for n in onnx.load(run / "fused.int8.onnx").graph.node)
    assert engine.record.realised["int8"] >= layers - 2  # the heads


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_tensorrt_rtx_builds_it_without_a_gpu(run: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = OnnxModel.load(run / ("fused.int8.onnx" if precision == "int8" else "fused.onnx"))
    if precision == "fp16":
        source = export_onnx(run / "best.pt", tmp_path / "half.onnx", precision="fp16")
    engine = build_engine(source.path, load_target("rtx"), tmp_path / "f", precision=precision)
    assert engine.record.build.strongly_typed is True
    assert sum(engine.record.build.typed.values()) > 50
