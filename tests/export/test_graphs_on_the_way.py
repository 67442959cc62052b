"""Graphs that `build-engine` makes or finds on the way: which ones it takes, keeps, and never overwrites."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from netkit import checkpoint, write_set
from tiny import tiny_onnx

from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.deploy.kit import write_kit
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine, dry_run
from tsss_edge.export.onnx_export import EngineSources, export_onnx
from tsss_edge.files import sha256_file
from tsss_edge.parity import check_parity

CPU = load_target("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, net.pt, net.onnx and net.int8.onnx, calibrated by the largest value."""
    root = tmp_path_factory.mktemp("made")
    checkpoint(root / "net.pt")
    export_onnx(root / "net.pt", root / "net.onnx")
    calibrate(OnnxModel.load(root / "net.onnx"), write_set(root / "data"), root / "net.int8.onnx", method="minmax")
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy of `made`."""
    return shutil.copytree(made, tmp_path / "world")


def test_a_calibrated_file_is_taken_and_left_as_it_is_even_where_there_is_data(world: Path) -> None:
    before = sha256_file(world / "net.int8.onnx")
    engine = build_engine(world / "net.onnx", CPU, world / "net.xml", precision="int8", calib_data=world / "data")
    assert engine.record.meta.calibration is not None and engine.record.meta.calibration.method == "minmax"
    assert (sha256_file(world / "net.int8.onnx"), engine.record.onnx_sha256) == (before, before)
    assert engine.record.build.kept == ()


def test_a_graph_that_someone_made_is_not_overwritten(world: Path) -> None:
    before = sha256_file(world / "net.int8.onnx")
    with pytest.raises(ArtifactError, match=r"net\.int8\.onnx: exists, and no `build-engine` made it"):
        build_engine(world / "net.pt", CPU, world / "net.xml", precision="int8", calib_data=world / "data")
    assert sha256_file(world / "net.int8.onnx") == before
    assert not list(world.glob("net.*.xml"))


def test_a_graph_that_a_build_made_is_made_again_by_the_next(world: Path) -> None:
    out = world / "out/net.xml"
    first = build_engine(world / "net.pt", CPU, out, precision="int8", calib_data=world / "data")
    checkpoint(world / "net.pt", seed=1)
    second = build_engine(world / "net.pt", CPU, out, precision="int8", calib_data=world / "data")
    assert second.record.onnx_sha256 != first.record.onnx_sha256
    assert sha256_file(out.with_name("net.int8.onnx")) == second.record.onnx_sha256


def test_an_int8_engine_of_a_checkpoint_keeps_what_proves_it(world: Path) -> None:
    """Float graph and ranges stay, so that the gate sees layers, scales and calibration."""
    out = world / "out"
    engine = build_engine(world / "net.pt", CPU, out / "net.xml", precision="int8", calib_data=world / "data")
    kept = ["net.fp32.onnx", "net.int8.onnx", "net.int8.ranges.json"]
    assert engine.record.build.kept == tuple(kept)
    assert sorted(p.name for p in out.iterdir()) == sorted([*kept, *engine.record.files, "net.int8.json"])
    report = check_parity(engine.path, world / "net.pt", world / "data", max_drop=100, allow_gain=True)
    assert report.layers is not None and not report.notes
    (out / "net.fp32.onnx").unlink()
    (world / "net.onnx").unlink()  # the same graph, in a folder that is looked into
    report = check_parity(engine.path, world / "net.pt", world / "data", max_drop=100, allow_gain=True)
    assert report.layers is None
    assert any("scales and calibration were not checked" in note for note in report.notes)


def test_twins_are_calibrated_files_of_ours(world: Path) -> None:
    """Not those with TensorRT's casts, which carry the same description, and nothing of other people's."""
    shutil.copyfile(world / "net.int8.onnx", world / "a.int8.trt.onnx")
    (world / "a_int8.onnx").write_bytes(b"something else")
    twin = EngineSources(world / "net.onnx", CPU).twin
    assert twin is not None and twin.path.name == "net.int8.onnx"
    assert build_engine(world / "net.onnx", CPU, world / "f.xml", precision="fp32").record.precision == "fp32"
    assert dry_run(world / "net.onnx", CPU, world / "f.xml", precision="int8")[0].onnx == "net.int8.onnx"


def test_a_target_s_head_holds_for_graphs_too(tmp_path: Path) -> None:
    """A graph cannot be given another head; the default takes what is there."""
    graph = tiny_onnx(tmp_path / "net.onnx", head="both")
    assert EngineSources(graph, CPU).possible()
    with pytest.raises(
        ArtifactError, match=r"gives both, target cpu wants labels; give the checkpoint, or a file exported"
    ):
        EngineSources(graph, msgspec.structs.replace(CPU, head="labels"))


@pytest.mark.parametrize("model", ["net.pt", "net.onnx"])
def test_fp16_is_scanned_on_the_pictures_that_are_there(
    world: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    import tsss_edge.export.onnx_export as graph

    scanned: list[int] = []
    to_half = graph.to_half

    def spy(model: object, meta: object, pictures: list[np.ndarray]) -> object:
        scanned.append(len(pictures))
        return to_half(model, meta, pictures)  # type: ignore[arg-type]

    monkeypatch.setattr(graph, "to_half", spy)
    target = msgspec.structs.replace(CPU, precisions=("fp16",))
    EngineSources(world / model, target, world / "data").graph("fp16", world, "a")
    EngineSources(world / model, target).graph("fp16", world, "b")
    assert scanned == [6, 2]  # the training split; two generated pictures


def test_a_kit_of_one_precision(tmp_path: Path) -> None:
    target = load_target("jetson-orin")
    kit = write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit", precision="fp16")
    assert kit.graphs == {"fp16": "fused.fp16.onnx"}
    with pytest.raises(ArtifactError, match="builds fp16 from"):
        write_kit(tmp_path / "fused.onnx", target, tmp_path / "other", precision="int8")
    assert not (tmp_path / "other").exists()
