"""inspect: every kind of artifact in plain words, and damage told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, PREPROCESS, tiny_onnx

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, ParityRecord
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.config import load_target, shared_folder
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.export.build import build_engine
from tsss_edge.inspection import inspect_path
from tsss_edge.models import build_model
from tsss_edge.seals import write_sealed


def checkpoint(folder: Path) -> Path:
    meta = CheckpointMeta(
        stage="pnet", arch="edge-s", classes=CLASSES, preprocess=PREPROCESS, strong=("cat",), metrics={"miou": 71.25}
    )
    return Checkpoint.save(folder / "best.pt", meta, build_model("edge-s", num_classes=4).state_dict()).path


def test_checkpoint_and_run_folder(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    text = inspect_path(path).summary()
    for words in ("stage pnet", "edge-s", "4: background, cat, dog, cow", "96x64 RGB uint8", "71.25"):
        assert words in text
    run = inspect_path(tmp_path)
    assert run.kind == "run folder, checkpoint, stage pnet"
    assert run.facts["checkpoint"] == "best.pt"
    assert msgspec.json.decode(msgspec.json.encode(run))["facts"]["strong"] == ["cat"]


def test_onnx(tmp_path: Path) -> None:
    text = inspect_path(tiny_onnx(tmp_path / "t.onnx", precision="int8").path).summary()
    for words in ("precision", "int8", "minmax on 1 pictures of train", "opset", "17", "2 QuantizeLinear"):
        assert words in text


def test_engine_its_record_and_what_changed(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", precision="int8")
    engine = build_engine(model.path, load_target("cpu"), tmp_path / "t")
    assert inspect_path(engine.path).facts == inspect_path(tmp_path / "t.int8.json").facts
    text = inspect_path(engine.path).summary()
    for words in ("engine, openvino", "as built", "int8: 1", "not checked; run `tsss-edge parity`", "not measured"):
        assert words in text
    engine.with_record(
        parity=ParityRecord(
            passed=True, miou_reference=70.0, miou_engine=69.9, miou_drop=0.1, pixel_agreement=0.99,
            boundary_agreement=0.9, images=8, max_drop=0.5, data_sha256="0" * 64,
        )
    )  # fmt: skip
    assert "PASSED: mIoU 69.90 against 70.00 on 8 images" in inspect_path(engine.path).summary()
    engine.path.with_suffix(".bin").write_bytes(b"x")
    assert "CHANGED since the build" in inspect_path(engine.path).summary()
    engine.path.with_suffix(".bin").unlink()
    assert "MISSING" in inspect_path(engine.path).summary()
    engine.path.unlink()
    assert inspect_path(tmp_path / "t.int8.json").facts["files"] == {"t.int8.xml": "MISSING", "t.int8.bin": "MISSING"}


def test_plan_with_and_without_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("rtx"), tmp_path / "t", precision="fp32")
    text = inspect_path(engine.path).summary()
    assert "of TensorRT-RTX 1." in text and "8.0, 8.6, 8.9, 12.0, 12.1" in text and "fp32: 1" in text
    (tmp_path / "t.fp32.json").unlink()
    lost = inspect_path(engine.path)
    assert lost.kind == "engine without a record"


def test_dataset(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "JPEGImages/a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    report = inspect_path(tmp_path)
    assert report.kind == "dataset in PASCAL VOC layout"
    assert report.facts["split train"] == "1 images"
    assert report.facts["masks"] == 1
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("")
    with pytest.raises(DataError, match="the list is empty"):
        inspect_path(tmp_path)


def test_targets_and_calibration_table(tmp_path: Path) -> None:
    text = inspect_path(shared_folder("export") / "cpu.toml").summary()
    assert "deployment target" in text and "int8, bf16, fp32" in text
    ranges = {"a": 1.0, "b": 2.0}
    table = CalibTable(
        method="minmax", images=4, onnx_sha256="0" * 64, preprocess="1" * 16, ranges=ranges, peaks=ranges
    )
    write_sealed(tmp_path / "table.json", table)
    facts = inspect_path(tmp_path / "table.json").facts
    assert facts["method"] == "minmax" and facts["tensors with a range"] == 2
    changed = (tmp_path / "table.json").read_text().replace("2.0", "3.0")
    (tmp_path / "table.json").write_text(changed)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        inspect_path(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{}", "neither an engine record nor a calibration table"),
        ("a.json", b"{", "not a valid"),
        ("a.toml", b"x = 1", "neither a target"),
        ("a.pt", b"PK", "not a readable checkpoint"),
        ("a.onnx", b"\xff\xff", "not a readable ONNX"),
        ("a.engine", b"ftrt", "too short for a TensorRT plan"),
        ("a.jpg", b"", "expected a dataset or run folder"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        inspect_path(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file or folder"):
        inspect_path(tmp_path / "none.pt")
    with pytest.raises(ArtifactError, match="neither a dataset"):
        inspect_path(tmp_path)


def test_an_int8_file_says_why_each_node_is_what_it_is(tmp_path: Path) -> None:
    import netkit

    from tsss_edge.calib.calibrate import calibrate
    from tsss_edge.export.onnx_export import export_onnx
    from tsss_edge.onnxgraph.qdq import PairOptions

    floating = export_onnx(netkit.checkpoint(tmp_path / "best.pt").path, tmp_path / "f.onnx")
    data = netkit.write_set(tmp_path / "data", train=2)
    kept = PairOptions(float_nodes=("encoder.stages.0.0",))
    facts = inspect_path(calibrate(floating, data, tmp_path / "q.onnx", options=kept).path).facts
    assert facts["node encoder.stem (Conv)"] == "INT8, input per tensor, weight per output channel"
    assert facts["node class_head (Conv)"] == "float, makes a graph output"
    assert facts["node encoder.stages.0.0 (Conv)"].startswith("float, kept by choice")
    assert facts["node decoder.resize (Resize)"].startswith("float, no pair before a Resize")
    assert facts["nodes kept in float"] == ["encoder.stages.0.0"]
    assert not any(name.startswith("node ") for name in inspect_path(floating.path).facts)
