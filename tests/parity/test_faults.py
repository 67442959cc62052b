"""Faults planted in the INT8 file of a real network: engine and all, parity fails and names stage and layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netkit
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

import tsss_edge.calib.sets
from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.calibrate import MethodOrAuto, calibrate
from tsss_edge.config import load_target
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.parity import ParityReport, check_parity

pytest.importorskip("openvino")

MAX_DROP = 20.0  # points; random weights label noise, so that mIoU alone tells little here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/best.pt, run/fused.onnx, run/fused.int8.onnx and a set of reddish pictures, data/."""
    folder = tmp_path_factory.mktemp("world")
    data = netkit.write_set(folder / "data", train=6, val=4, size_hw=netkit.SPEC.size_hw)
    for path in (data / "JPEGImages").glob("*.png"):
        picture = np.asarray(Image.open(path)) * np.array([1.0, 0.4, 0.15])
        Image.fromarray(picture.astype(np.uint8)).save(path)
    (folder / "run").mkdir()
    floating = export_onnx(netkit.checkpoint(folder / "run/best.pt").path, folder / "run/fused.onnx")
    calibrate(floating, data, folder / "run/fused.int8.onnx", method="minmax")
    return folder


def check(made: Path, folder: Path, plant: Callable[[Any], None]) -> ParityReport:
    """Build an engine from the INT8 file with a fault in it, and prove it."""
    shutil.copytree(made / "run", folder / "run")
    path = folder / "run/fused.int8.onnx"
    meta = OnnxModel.load(path).meta
    graph = onnx.load(path)
    plant(graph)
    OnnxModel.save(path, graph, meta)
    engine = build_engine(path, load_target("cpu"), folder / "run/fused.xml")
    return check_parity(engine.path, folder / "run/best.pt", made / "data", max_drop=MAX_DROP, allow_gain=True)


def multiply_scale(tensor: str, factor: float) -> Callable[[Any], None]:
    def plant(graph: Any) -> None:
        scale = next(t for t in graph.graph.initializer if t.name == f"{tensor}.scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))

    return plant


def test_a_healthy_engine_passes(made: Path, tmp_path: Path) -> None:
    report = check(made, tmp_path, lambda graph: None)
    assert report.passed, report.problems
    assert [s.name for s in report.stages] == ["PyTorch", "ONNX", "INT8 ONNX", "engine"]
    assert report.layers is not None and report.layers.guilty == "" and len(report.layers.layers) == 21


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("encoder.stages.1.1.first.relu", "encoder.stages.1.1.second"),
        ("encoder.stages.2.0.weight", "encoder.stages.2.0"),
    ],
)
def test_a_scale_times_eight_is_found_with_its_layer(made: Path, tmp_path: Path, tensor: str, layer: str) -> None:
    report = check(made, tmp_path, multiply_scale(tensor, 8.0))
    assert not report.passed
    assert any(p.startswith(f"INT8 ONNX: layer {layer}:") for p in report.problems), report.problems
    assert report.layers is not None and f"layer {layer} " in report.layers.guilty


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_calibration_with_swapped_channels_is_found(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: MethodOrAuto
) -> None:
    right = tsss_edge.calib.sets.load_picture

    def swapped(path: Path, spec: Any) -> NDArray[np.uint8]:
        return np.ascontiguousarray(right(path, spec)[..., ::-1])

    monkeypatch.setattr(tsss_edge.calib.sets, "load_picture", swapped)
    shutil.copytree(made / "run", tmp_path / "run")
    int8 = calibrate(
        OnnxModel.load(tmp_path / "run/fused.onnx"), made / "data", tmp_path / "run/fused.int8.onnx", method=method
    )
    engine = build_engine(int8.path, load_target("cpu"), tmp_path / "run/fused.xml")
    report = check_parity(engine.path, tmp_path / "run/best.pt", made / "data", max_drop=MAX_DROP, allow_gain=True)
    assert not report.passed
    assert any("calibration was not measured on the network's own input" in p for p in report.problems), report.problems


def quantize_output(graph: Any) -> None:
    """Q/DQ between the classifier and the graph's output."""
    head = next(n for n in graph.graph.node if n.output[0] == "logits")
    head.output[0] = "raw"
    names = ["out.scale", "out.zero"]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), names[0]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), names[1]))
    graph.graph.node.append(helper.make_node("QuantizeLinear", ["raw", *names], ["raw.q"], name="raw.q"))
    graph.graph.node.append(helper.make_node("DequantizeLinear", ["raw.q", *names], ["logits"], name="raw.dq"))


def test_a_pair_on_the_output_is_found(made: Path, tmp_path: Path) -> None:
    report = check(made, tmp_path, quantize_output)
    assert not report.passed
    assert any("INT8 ONNX: output logits is quantized" in p for p in report.problems), report.problems
