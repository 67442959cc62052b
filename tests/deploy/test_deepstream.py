"""DeepStream folder: both configurations key by key, labels, palette, and what is refused."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

import msgspec
import pytest
from tiny import CLASSES, tiny_onnx

from tsss_edge.artifacts import Engine, Preprocess, TensorSpec
from tsss_edge.config import load_target
from tsss_edge.deploy.deepstream import infer_text, preprocess_text, write_deepstream
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.files import sha256_file, write_json


@pytest.fixture(scope="module")
def openvino_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("engine")
    return build_engine(tiny_onnx(folder / "t.onnx").path, load_target("cpu"), folder / "t", precision="fp32")


@pytest.fixture
def engine(openvino_engine: Engine, tmp_path: Path) -> Engine:
    """A plan of TensorRT as far as its record goes."""
    plan = tmp_path / "t.engine"
    plan.write_bytes(b"plan")
    record = msgspec.structs.replace(
        openvino_engine.record, backend="tensorrt", precision="int8", files={"t.engine": sha256_file(plan)}
    )
    write_json(plan.with_suffix(".json"), record)
    return Engine.load(plan)


def settings(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def with_record(engine: Engine, **fields: object) -> Engine:
    return msgspec.structs.replace(engine, record=msgspec.structs.replace(engine.record, **fields))


def test_the_folder_runs_the_same_plan(engine: Engine, tmp_path: Path) -> None:
    folder = write_deepstream(engine.path, tmp_path / "out")
    names = {"t.engine", "record.json", "labels.txt", "palette.json", "preprocess.txt", "infer.txt", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert sha256_file(folder / "t.engine") == engine.sha256
    assert (folder / "labels.txt").read_text().split() == list(CLASSES.names)
    assert json.loads((folder / "palette.json").read_text()) == {
        name: list(colour) for name, colour in zip(CLASSES.names, CLASSES.palette, strict=True)
    }
    assert settings((folder / "infer.txt").read_text()) == {
        "property": {
            "gie-unique-id": "1",
            "process-mode": "1",
            "model-engine-file": "t.engine",
            "labelfile-path": "labels.txt",
            "batch-size": "1",
            "network-mode": "1",
            "network-type": "2",
            "num-detected-classes": "4",
            "input-tensor-from-meta": "1",
            "output-blob-names": "logits",
            "segmentation-output-order": "0",
            "segmentation-threshold": "0.0",
        }
    }
    read = settings((folder / "preprocess.txt").read_text())
    assert list(read) == ["property", "user-configs", "group-0"]
    assert read["property"]["network-input-shape"] == "1;64;96;3"
    assert (read["property"]["tensor-data-type"], read["property"]["network-input-order"]) == ("1", "1")
    assert read["property"]["target-unique-ids"] == "1"
    assert read["group-0"]["src-ids"] == "0"
    assert "nobody has proven the plan" in (folder / "README.md").read_text()
    with pytest.raises(ArtifactError, match="exists already"):
        write_deepstream(engine.path, tmp_path / "out")


def test_cameras_letterbox_and_dla(engine: Engine) -> None:
    target = msgspec.structs.replace(engine.record.build.target, batch=(1, 4, 8), dla_core=1)
    record = msgspec.structs.replace(
        engine.record,
        meta=msgspec.structs.replace(engine.meta, preprocess=Preprocess(size_hw=(64, 96), fit="letterbox")),
        build=msgspec.structs.replace(engine.record.build, target=target),
        inputs=(TensorSpec(name="image", dtype="uint8", shape=(-1, 64, 96, 3)),),
    )
    read = settings(preprocess_text(record, 3))
    assert (read["property"]["maintain-aspect-ratio"], read["property"]["symmetric-padding"]) == ("1", "1")
    assert read["property"]["network-input-shape"] == "3;64;96;3"
    assert read["group-0"]["src-ids"] == "0;1;2"
    infer = settings(infer_text(record, "x.engine", 3))["property"]
    assert (infer["batch-size"], infer["enable-dla"], infer["use-dla-core"]) == ("3", "1", "1")


def test_what_deepstream_cannot_run_is_refused(engine: Engine, tmp_path: Path) -> None:
    labels = (TensorSpec(name="labels", dtype="uint8", shape=(1, 64, 96)),)
    cropped = msgspec.structs.replace(engine.meta, preprocess=Preprocess(size_hw=(64, 96), fit="crop"))
    for wrong, words in (
        (with_record(engine, backend="openvino"), "DeepStream runs TensorRT plans"),
        (with_record(engine, backend="tensorrt-rtx"), "DeepStream runs TensorRT plans"),
        (with_record(engine, outputs=labels), "gives no logits"),
        (with_record(engine, meta=cropped), "fit crop"),
    ):
        with pytest.raises(ArtifactError, match=words):
            write_deepstream(wrong, tmp_path / "out")
    with pytest.raises(ArtifactError, match="takes 1 to 1 pictures at once, not 2"):
        write_deepstream(engine, tmp_path / "out", sources=2)
    assert not (tmp_path / "out").exists()
