"""DLA: what the rules say of our networks, and INT8 from ranges for the TensorRT versions that want it so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chain
import msgspec
import numpy as np
import onnx
import pytest
from netkit import checkpoint, hash_of, picture, write_set
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_onnx

from tsss_edge.artifacts import DlaUse, OnnxModel
from tsss_edge.backends.trt_api import Trt
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.deploy.dla_rules import expected_dla
from tsss_edge.export import tensorrt_build, tensorrt_worker
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.export.tensorrt_build import cache_text, parsed_graphs, plan_job
from tsss_edge.kernels.preprocess import preprocess
from tsss_edge.onnxgraph.casts import scan_peaks
from tsss_edge.onnxgraph.dla_ranges import every_range, float_twin, int8_layers

DLA = load_target("jetson-agx-orin-dla")


def test_hops_and_reasons() -> None:
    report = DlaUse.of(["a", "b", "c", "d"], {"b": "too wide", "d": "argmax"})
    assert report == DlaUse(on_dla=2, on_gpu={"b": "too wide", "d": "argmax"}, hops=3)
    assert report.text() == "2 layers on the DLA, 2 on the GPU (b: too wide, d: argmax), 3 hops"
    assert DlaUse.of(["a"], {}).text() == "1 layers on the DLA, 0 on the GPU, 0 hops"


@pytest.mark.parametrize("arch", ["edge-s", "edge-m"])
def test_our_networks_stay_on_the_dla_after_the_input(tmp_path: Path, arch: str) -> None:
    report = expected_dla(export_onnx(checkpoint(tmp_path / "c.pt", arch).path, tmp_path / "f.onnx").graph)
    assert list(report.on_gpu) == ["cast", "transpose"]
    assert report.hops == 1 and report.on_dla > 40


def test_labels_leave_it_for_the_wide_upsampling(tmp_path: Path) -> None:
    report = expected_dla(tiny_onnx(tmp_path / "t.onnx", head="labels").graph)
    assert report.on_gpu["wide"] == "linear resize by [8.0, 8.0], factors 1 to 4 are possible"
    assert "best" in report.on_gpu  # ArgMax


@pytest.mark.parametrize(
    ("kind", "attributes", "reason"),
    [
        ("Conv", {"kernel_shape": [33, 1]}, "beyond 32, 8, 32"),
        ("Conv", {"kernel_shape": [3, 3], "strides": [9, 1]}, "beyond"),
        ("ConvTranspose", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0]}, "groups or padding"),
        ("Concat", {"axis": 2}, "another axis"),
        ("Concat", {"axis": 1}, ""),
        ("Softmax", {"axis": 1}, "not a DLA layer"),
        ("MaxPool", {"kernel_shape": [2, 2]}, ""),
    ],
)
def test_rules(kind: str, attributes: dict[str, Any], reason: str) -> None:
    node = helper.make_node(kind, ["x", "w"], ["y"], name="layer", **attributes)
    weight = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 64, 64]) for n in "xy")
    graph = helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))
    told = expected_dla(graph).on_gpu.get("layer", "")
    assert reason in told and bool(reason) == bool(told)


def chain_file(folder: Path) -> OnnxModel:
    meta = tiny_onnx(folder / "meta.onnx", precision="int8").meta
    return OnnxModel.save(folder / "chain.onnx", chain.int8_chain(), meta)


def test_int8_before_11_is_a_float_graph_with_ranges(tmp_path: Path) -> None:
    source = chain_file(tmp_path)
    job = plan_job(Trt(None, "tensorrt", (10, 3, 0)), None, source, DLA, "int8", tmp_path, "t.engine")
    assert not job.strong and {"x0", "x1", "x2", "c0", "c1"} <= set(job.ranges)
    assert "logits" not in job.ranges, "the classifier stays FP16, as everywhere"
    assert job.ranges["x1"] == pytest.approx(chain.measured_ranges()[1], rel=1e-6)
    (graph,) = parsed_graphs(source, job, tmp_path)
    assert "QuantizeLinear" not in {n.op_type for n in onnx.load(graph.path).graph.node}


@pytest.fixture(scope="module", params=["edge-s", "edge-m"])
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("dla")
    model = export_onnx(checkpoint(folder / "c.pt", request.param).path, folder / "f.onnx", objectness=True)
    return calibrate(model, write_set(folder / "set"), folder / "f.int8.onnx", method="minmax")


def test_every_tensor_has_a_range_and_an_add_two_equal_ones(calibrated: OnnxModel) -> None:
    """From the pairs alone 10 of 22 convolutions and no Add had a range on every side."""
    assert calibrated.meta.calibration is not None
    ranges = every_range(calibrated.graph, calibrated.meta.calibration.others)
    graph = float_twin(calibrated.graph).graph
    weights = {t.name for t in graph.initializer}
    heads = [n for n in graph.node if n.op_type == "Conv" and n.output[0] not in ranges]
    assert len(heads) == 2, "only what makes the two outputs stays FP16"
    for node in (n for n in graph.node if n.op_type in ("Conv", "Add", "Resize", "Relu") and n not in heads):
        sides = [t for t in (*node.input, *node.output) if t and t not in weights]
        assert all(ranges.get(t, 0) > 0 for t in sides), node.name
        if node.op_type == "Add":
            assert ranges[node.input[0]] == ranges[node.input[1]]
    layers = sum(n.op_type in ("Conv", "Add") for n in graph.node)
    assert int8_layers(calibrated.graph, ranges) == (layers - 2, layers)


def test_ranges_hold_what_the_network_computes(calibrated: OnnxModel) -> None:
    """On the pictures that calibrated it; what a ReLU cuts off afterwards may saturate."""
    assert calibrated.meta.calibration is not None
    ranges = every_range(calibrated.graph, calibrated.meta.calibration.others)
    floating = float_twin(calibrated.graph)
    cut = {n.input[0] for n in floating.graph.node if n.op_type == "Relu"}
    pictures = [picture(hash_of(f"t{i}"), (48, 64)) for i in range(6)]
    inputs = [preprocess(p, calibrated.meta.preprocess, bgr=False)[None] for p in pictures]
    peaks = scan_peaks(floating, inputs)
    assert all(peaks[t] <= value * (1 + 1e-5) for t, value in ranges.items() if t in peaks and t not in cut)


def test_the_report_promises_what_it_can_hold(calibrated: OnnxModel) -> None:
    assert calibrated.meta.calibration is not None
    held = expected_dla(calibrated.graph, calibrated.meta.calibration.others)
    bare = expected_dla(calibrated.graph)
    assert held.int8 is not None and bare.int8 is not None
    assert held.int8[0] == held.int8[1] - 2 > bare.int8[0], "a file without the other ranges gets less, and says so"
    assert f"{held.int8[0]} of {held.int8[1]} convolutions and Adds in INT8" in held.text()
    assert expected_dla(float_twin(calibrated.graph)).int8 is None


def test_the_worker_reports_int8_only_where_all_ranges_are() -> None:
    def layer(kind: str, name: str, inputs: list[str], output: str) -> Any:
        tensors = [SimpleNamespace(name=t) for t in inputs]
        return SimpleNamespace(
            type=SimpleNamespace(name=kind), name=name, num_inputs=len(inputs), num_outputs=1,
            get_input=lambda i: tensors[i], get_output=lambda i: SimpleNamespace(name=output),
        )  # fmt: skip

    layers = [
        layer("CONVOLUTION", "a", ["x"], "y"),
        layer("ELEMENTWISE", "b", ["y", "x"], "z"),
        layer("CONVOLUTION", "c", ["z"], "o"),
    ]
    network = SimpleNamespace(num_layers=3, get_layer=lambda i: layers[i])
    config = SimpleNamespace(can_run_on_DLA=lambda layer: layer.name != "a")
    job = SimpleNamespace(ranges={"x": 1.0, "y": 1.0, "z": 1.0})
    use = tensorrt_worker._dla_report(network, config, job)  # type: ignore[arg-type]
    assert use.int8 == (1, 3), "a runs on the GPU, c has no range behind it"


def test_dry_run_names_the_file_of_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "load", lambda flavour: Trt(None, flavour, (10, 3, 0)))
    command = tensorrt_build.dry_command(DLA, "int8", "t.int8.onnx", "t.int8.engine", (64, 96))
    assert "--fp16 --int8 --calib=t.int8.calib.cache" in command and "--useDLACore=0" in command
    assert "--calib" not in tensorrt_build.dry_command(DLA, "fp16", "t.fp16.onnx", "t.fp16.engine", (64, 96))


def test_int8_from_11_on_is_q_dq_as_everywhere(tmp_path: Path) -> None:
    source = chain_file(tmp_path)
    for version, target in (((11, 5, 0), DLA), ((10, 3, 0), msgspec.structs.replace(DLA, dla_core=None))):
        job = plan_job(Trt(None, "tensorrt", version), None, source, target, "int8", tmp_path, "t.engine")
        assert job.strong and job.ranges == {}


def test_the_worker_sets_the_ranges_by_tensor_name() -> None:
    told: dict[str, tuple[float, float]] = {}

    def tensor(name: str) -> Any:
        return SimpleNamespace(name=name, set_dynamic_range=lambda low, high: told.update({name: (low, high)}))

    tensors = [tensor(name) for name in ("x1", "c1", "x2")]
    layers = [SimpleNamespace(num_outputs=1, get_output=lambda i, t=t: t) for t in tensors]
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    tensorrt_worker._set_ranges(network, {"x1": 2.0, "x2": 0.5})
    assert told == {"x1": (-2.0, 2.0), "x2": (-0.5, 0.5)}


@pytest.mark.parametrize(("version", "number"), [((8, 5, 3, 1), 8503), ((10, 3, 0), 100300)])
def test_ranges_as_a_calibration_cache(version: tuple[int, ...], number: int) -> None:
    text = cache_text(Trt(None, "tensorrt", version), {"x1": 127.0, "x2": 63.5})
    assert text == f"TRT-{number}-EntropyCalibration2\nx1: 3f800000\nx2: 3f000000\n"
