"""Triton model repository: files, config, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tiny import CLASSES, pictures, tiny_onnx

from tsss_edge.artifacts import Engine
from tsss_edge.config import load_target
from tsss_edge.deploy.triton import write_repository
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.files import sha256_file, write_json

CPU = load_target("cpu")

STATIC = """name: "road"
backend: "openvino"
max_batch_size: 0
input [
  {
    name: "image"
    data_type: TYPE_UINT8
    dims: [ 1, 64, 96, 3 ]
  }
]
output [
  {
    name: "logits"
    data_type: TYPE_FP32
    dims: [ 1, 4, 8, 12 ]
  },
  {
    name: "objectness"
    data_type: TYPE_FP32
    dims: [ 1, 1, 8, 12 ]
  }
]
instance_group [
  {
    kind: KIND_CPU
    count: 2
  }
]
"""


def test_static_repository(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", objectness=True)
    engine = build_engine(model.path, CPU, tmp_path / "t", precision="fp32")
    folder = write_repository(engine.path, tmp_path / "repo", name="road", instances=2)
    assert {str(p.relative_to(tmp_path / "repo")) for p in (tmp_path / "repo").rglob("*") if p.is_file()} == {
        "README.md", "road/config.pbtxt", "road/record.json", "road/labels.txt", "road/1/model.xml", "road/1/model.bin",
    }  # fmt: skip
    assert (folder / "config.pbtxt").read_text() == STATIC
    assert sha256_file(folder / "1/model.xml") == engine.record.files["t.fp32.xml"]
    assert (folder / "labels.txt").read_text().split() == list(CLASSES.names)
    import openvino

    compiled = openvino.Core().compile_model(folder / "1/model.xml", "CPU")
    assert compiled(pictures())["logits"].shape == (1, 4, 8, 12)


def test_batching_repository(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", batch=0)
    engine = build_engine(model.path, msgspec.structs.replace(CPU, batch=(1, 4, 8)), tmp_path / "t", precision="fp32")
    text = (write_repository(engine.path, tmp_path / "repo") / "config.pbtxt").read_text()
    assert 'name: "t"' in text and "max_batch_size: 8" in text
    assert "dims: [ 64, 96, 3 ]" in text
    assert "preferred_batch_size: [ 4, 8 ]" in text


def test_tensorrt_plan_has_its_own_name_and_rtx_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("rtx"), tmp_path / "t", precision="fp32")
    with pytest.raises(ArtifactError, match="Triton has no back end for TensorRT-RTX"):
        write_repository(engine.path, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    write_json(Engine.record_path(engine.path), msgspec.structs.replace(engine.record, backend="tensorrt"))
    folder = write_repository(engine.path, tmp_path / "repo")
    assert (folder / "1/model.plan").is_file()
    assert 'platform: "tensorrt_plan"' in (folder / "config.pbtxt").read_text()
    assert "KIND_GPU" in (folder / "config.pbtxt").read_text()


def test_existing_model_and_damaged_engine_are_refused(tmp_path: Path) -> None:
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, CPU, tmp_path / "t", precision="fp32")
    write_repository(engine.path, tmp_path / "repo")
    with pytest.raises(ArtifactError, match="exists already"):
        write_repository(engine.path, tmp_path / "repo")
    engine.path.write_text("x")
    with pytest.raises(ArtifactError, match="its hash is not the one"):
        write_repository(engine.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
