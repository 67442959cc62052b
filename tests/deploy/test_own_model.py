"""A foreign network through the whole chain: import, calibrate, build, parity against its own float graph, stream, kit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import netkit
import numpy as np
import pytest
from foreignkit import SIZE_HW, write_net
from onnx import numpy_helper

from tsss_edge.api import import_model
from tsss_edge.artifacts import Engine, OnnxModel
from tsss_edge.backends import open_backend
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.data.pictures import read_mask
from tsss_edge.deploy.choose import choose_engine
from tsss_edge.deploy.kit import write_kit
from tsss_edge.deploy.triton import write_repository
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.parity import check_parity
from tsss_edge.segment import segment_files, segment_image
from tsss_edge.stream.live_loop import stream

KINDS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {  # of `write_net`, grid
    "stride 4": ({}, (16, 24)),
    "stride 4, upsampled by itself": ({"resize": "half_pixel"}, (16, 24)),
    "full size": ({"resize": "align_corners"}, (64, 96)),
    "class ids at stride 4": ({"end": "argmax"}, (16, 24)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return netkit.write_set(tmp_path_factory.mktemp("own") / "data", size_hw=(48, 80))


def bring_in(folder: Path, data: Path, **changes: Any) -> Path:
    net = write_net(folder / "net.onnx", **changes)
    import_model(net, folder / "own.onnx", classes=netkit.CLASSES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), data=data)
    return folder / "own.onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_chain(tmp_path: Path, data: Path, kind: str) -> None:
    changes, grid = KINDS[kind]
    own = bring_in(tmp_path, data, **changes)
    int8 = calibrate(OnnxModel.load(own), data, tmp_path / "own.int8.onnx", size=4, method="minmax")
    engine = build_engine(int8, load_target("cpu"), tmp_path / "own.xml")
    (output,) = engine.record.outputs
    assert output.shape[-2:] == grid
    report = check_parity(engine.path, own, data, max_drop=100, min_reference=0, threads=1)
    assert report.passed, report.problems
    assert [stage.name for stage in report.stages] == ["ONNX", "INT8 ONNX", "engine"]
    assert report.pixel_agreement > 0.9
    done = stream(
        engine.path, str(data / "JPEGImages"), [f"{tmp_path}/masks/"], reference=own, parity_every=1, threads=1
    )
    assert done.frames == 9
    assert done.parity is not None and done.parity.agreement is not None and done.parity.agreement > 0.9
    written = read_mask(tmp_path / "masks/000000.png")
    assert written.shape == (48, 80)
    assert len(np.unique(written)) > 1
    segment_files(engine.path, [str(data / "JPEGImages/t0.png")], tmp_path / "segmented")
    np.testing.assert_array_equal(read_mask(tmp_path / "segmented/t0.png"), written)


def test_labels_at_frame_size_are_those_of_the_file(tmp_path: Path, data: Path) -> None:
    """A frame of the network's size gets the foreign network's own argmax."""
    from tsss_edge.export.foreign.normalise import Normalisation
    from tsss_edge.export.foreign.proof import original_runner

    own = bring_in(tmp_path, data, resize="half_pixel")
    picture = netkit.picture(5, SIZE_HW)
    with open_backend(own, threads=1) as backend:
        labels = segment_image(backend, picture)
    how = Normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    scores = original_runner(tmp_path / "net.onnx", "float32", "nchw", how)(picture[None])["answer"][0]
    differs = labels != scores.argmax(0)
    ordered = np.sort(scores, axis=0)
    assert (ordered[-1] - ordered[-2])[differs].max(initial=0) < 1e-4  # ties


def test_build_engine_chooses_with_the_imported_graph_as_reference(tmp_path: Path, data: Path) -> None:
    own = bring_in(tmp_path, data)
    with pytest.raises(
        Exception, match="the reference itself has mIoU"
    ):  # random weights: the gate is not passed by being empty
        choose_engine(
            OnnxModel.load(own), load_target("cpu"), tmp_path / "best.xml", eval_data=data, duration_s=0.1, threads=1
        )
    assert not list(tmp_path.glob("best*"))


def test_another_import_is_no_reference(tmp_path: Path, data: Path) -> None:
    own = bring_in(tmp_path, data)
    other = tmp_path / "other.onnx"
    import_model(tmp_path / "net.onnx", other, classes=netkit.CLASSES)
    engine = build_engine(own, load_target("cpu"), tmp_path / "own.xml", precision="fp32")
    with pytest.raises(ArtifactError, match="not made from"):
        check_parity(engine.path, other, data, threads=1)
    int8 = calibrate(OnnxModel.load(own), data, tmp_path / "own.int8.onnx", size=4, method="minmax")
    with pytest.raises(ArtifactError, match="no reference"):
        check_parity(engine.path, int8.path, data, threads=1)


def test_another_graph_of_the_same_import_is_judged_by_the_given_one(tmp_path: Path, data: Path) -> None:
    """It says that it came of the same file; what it answers is another matter."""
    own = OnnxModel.load(bring_in(tmp_path, data))
    graph = copy.deepcopy(own.graph)
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(-value, tensor.name))
    broken = OnnxModel.save(tmp_path / "broken.onnx", graph, own.meta)
    report = check_parity(broken, own, data, max_drop=100, min_reference=0, threads=1)
    assert [stage.name for stage in report.stages] == ["ONNX", "derived ONNX"] and report.pixel_agreement < 0.9
    int8 = calibrate(broken, data, tmp_path / "broken.int8.onnx", size=4, method="minmax")
    report = check_parity(int8, own, data, max_drop=100, min_reference=0, threads=1)
    assert [stage.name for stage in report.stages] == ["ONNX", "derived ONNX", "INT8 ONNX"]
    assert report.pixel_agreement < 0.9 and report.layers is not None and not report.layers.scales
    assert check_parity(own, own, data, max_drop=100, min_reference=0, threads=1).pixel_agreement == 1.0


def test_kit_and_triton_repository(tmp_path: Path, data: Path) -> None:
    own = bring_in(tmp_path, data)
    write_kit(OnnxModel.load(own), load_target("jetson-orin"), tmp_path / "kit", calib_data=data, eval_data=data)
    assert (tmp_path / "kit/reference.onnx").read_bytes() == own.read_bytes()
    engine = build_engine(own, load_target("cpu"), tmp_path / "own.xml", precision="fp32")
    write_repository(Engine.load(engine.path), tmp_path / "repository")
    config = next((tmp_path / "repository").rglob("config.pbtxt")).read_text()
    assert "16" in config and "24" in config


def test_a_network_without_a_layer_for_int8_is_told_so(tmp_path: Path, data: Path) -> None:
    from foreignkit import K, Maker
    from onnx import TensorProto

    make = Maker()
    make.node("Identity", make.conv("input", (K, 3)), out="answer")
    net = make.save(tmp_path / "thin.onnx", [1, 3, *SIZE_HW], {"answer": TensorProto.FLOAT})
    import_model(net, tmp_path / "own.onnx", classes=netkit.CLASSES, mean=(0.4, 0.5, 0.6))
    with pytest.raises(ArtifactError, match="no layer of it is worth INT8"):
        calibrate(OnnxModel.load(tmp_path / "own.onnx"), data, tmp_path / "own.int8.onnx", size=2)
