"""Triton model repository: files, config, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, pictures, tiny_onnx

from tsss_edge.artifacts import Engine, Target
from tsss_edge.backends import open_backend
from tsss_edge.config import load_target
from tsss_edge.deploy import triton
from tsss_edge.deploy.triton import write_repository
from tsss_edge.errors import ArtifactError
from tsss_edge.export.build import build_engine
from tsss_edge.files import sha256_file, write_json

CPU = load_target("cpu")


def config(folder: Path) -> Any:
    """`config.pbtxt` as Triton reads it: an unknown field or a wrong type is an error."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def engine_of(tmp_path: Path, *, batch: int = 1, name: str = "t", target: Target = CPU, **options: Any) -> Engine:
    model = tiny_onnx(tmp_path / f"{name}.onnx", batch=batch, **options)
    return build_engine(model.path, target, tmp_path / name, precision="fp32")


def answers(file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    import openvino

    found = openvino.Core().compile_model(file, "CPU")(images)
    return {port.get_any_name(): np.array(value) for port, value in found.items()}


def test_an_engine_of_one_picture_is_served_in_batches(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, objectness=True)
    folder = write_repository(engine.path, tmp_path / "repo", name="road", instances=2)
    assert {str(p.relative_to(tmp_path / "repo")) for p in (tmp_path / "repo").rglob("*") if p.is_file()} == {
        "README.md", "config.json", "road/config.pbtxt", "road/labels.txt",
        "road/1/model.xml", "road/1/model.bin", "road/1/model.json",
    }  # fmt: skip
    told = config(folder)
    assert (told.name, told.backend, told.max_batch_size) == ("road", "openvino", 8)
    assert list(told.input[0].dims) == [64, 96, 3] and list(told.output[0].dims) == [4, 8, 12]
    assert [o.label_filename for o in told.output] == ["labels.txt"] * 2
    assert (folder / "labels.txt").read_text().split() == list(CLASSES.names)
    assert told.dynamic_batching.max_queue_delay_microseconds == 2000
    assert told.version_policy.latest.num_versions == 2
    assert [(w.batch_size, list(w.inputs["image"].dims), w.inputs["image"].zero_data) for w in told.model_warmup] == [
        (1, [64, 96, 3], True),
        (8, [64, 96, 3], True),
    ]
    assert (told.instance_group[0].count, told.parameters["HINT_BF16"].string_value) == (2, "NO")
    served = Engine.load(folder / "1/model.xml")
    assert served.record.inputs[0].shape == (-1, 64, 96, 3) and served.record.parity is None
    batch = answers(folder / "1/model.xml", pictures(3))
    for row in range(3):
        alone = answers(engine.path, pictures(3)[row : row + 1])
        assert all(np.array_equal(alone[name][0], batch[name][row]) for name in alone)


def test_without_batches_the_files_are_those_of_the_engine(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    folder = write_repository(engine.path, tmp_path / "repo", max_batch=1)
    told = config(folder)
    assert told.max_batch_size == 0 and list(told.input[0].dims) == [1, 64, 96, 3]
    assert not told.HasField("dynamic_batching")
    assert [w.batch_size for w in told.model_warmup] == [1]  # 0 would be passed over
    assert sha256_file(folder / "1/model.xml") == engine.record.files["t.fp32.xml"]
    assert Engine.load(folder / "1/model.xml").record.onnx_sha256 == engine.record.onnx_sha256


def test_a_graph_that_counts_on_one_picture_is_not_batched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_same_answers", lambda *given: False)
    folder = write_repository(engine_of(tmp_path).path, tmp_path / "repo")
    assert config(folder).max_batch_size == 0
    assert "one picture a call" in (tmp_path / "repo/README.md").read_text()


@pytest.mark.parametrize("batch", [0, 1])
def test_onnx_files_are_served_by_onnx_runtime(tmp_path: Path, batch: int) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", batch=batch)
    folder = write_repository(model.path, tmp_path / "repo")
    told = config(folder)
    assert (told.backend, told.default_model_filename, told.max_batch_size) == ("onnxruntime", "model.onnx", 8)
    with open_backend(folder / "1/model.onnx") as served, open_backend(model.path) as original:
        batched = served.infer(pictures(3))["logits"].copy()
        alone = [original.infer(pictures(3)[row : row + 1])["logits"][0].copy() for row in range(3)]
    assert np.array_equal(batched, np.stack(alone))


def test_a_next_version_stands_beside_the_first_and_must_look_the_same(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    with pytest.raises(ArtifactError, match="does not exist; leave --next-version out"):
        write_repository(engine_of(tmp_path).path, repository, next_version=True)
    first, second = engine_of(tmp_path), engine_of(tmp_path, name="newer")
    other = engine_of(tmp_path, name="other", objectness=True)
    folder = write_repository(first.path, repository, name="road")
    write_repository(second.path, repository, name="road", next_version=True)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    with pytest.raises(ArtifactError, match="not that of the new version"):
        write_repository(other.path, repository, name="road", next_version=True)
    assert not (folder / "3").exists()


def test_ensembles_tie_steps_of_known_tensors_together(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    write_repository(engine_of(tmp_path).path, repository, name="road", python=True, ensemble=True)
    models = {p.name: config(p) for p in repository.iterdir() if p.is_dir()}
    assert set(models) == {"road", "road_post", "road_from_jpeg", "road_from_frame", "road_jpeg", "road_frame"}
    for name in ("road_jpeg", "road_frame"):
        known = {tensor.name for tensor in models[name].input}
        for step in models[name].ensemble_scheduling.step:
            assert set(step.input_map) == {tensor.name for tensor in models[step.model_name].input}
            assert set(step.output_map) <= {tensor.name for tensor in models[step.model_name].output}
            assert set(step.input_map.values()) <= known
            known |= set(step.output_map.values())
        assert {tensor.name for tensor in models[name].output} == {"labels"} <= known
        assert (repository / name / "1").is_dir()
    assert models["road"].backend == "python" and (repository / "road/1/model.py").is_file()


def test_openvino_model_server_finds_the_networks(tmp_path: Path) -> None:
    write_repository(engine_of(tmp_path).path, tmp_path / "repo", name="road", ensemble=True)
    write_repository(tiny_onnx(tmp_path / "x.onnx").path, tmp_path / "repo", name="yard")
    told = json.loads((tmp_path / "repo/config.json").read_text())
    paths = [entry["config"]["base_path"] for entry in told["model_config_list"]]
    assert paths == ["/models/road", "/models/yard"]
    (tmp_path / "repo/road/1").rename(tmp_path / "repo/road/2")  # an operator keeps the newest alone
    write_repository(tmp_path / "x.onnx", tmp_path / "repo", name="door")
    told = json.loads((tmp_path / "repo/config.json").read_text())
    paths = [entry["config"]["base_path"] for entry in told["model_config_list"]]
    assert paths == ["/models/door", "/models/road", "/models/yard"]


def test_an_ensemble_takes_no_network_s_name(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    write_repository(engine.path, tmp_path / "repo", name="cam_frame")
    before = (tmp_path / "repo/cam_frame/config.pbtxt").read_bytes()
    with pytest.raises(ArtifactError, match="cam_frame: a network has the name of a part of this ensemble"):
        write_repository(engine.path, tmp_path / "repo", name="cam", ensemble=True)
    assert (tmp_path / "repo/cam_frame/config.pbtxt").read_bytes() == before and not (tmp_path / "repo/cam").exists()
    write_repository(engine.path, tmp_path / "repo", name="road", ensemble=True)
    write_repository(engine.path, tmp_path / "repo", name="road", ensemble=True, next_version=True)  # its own parts


def test_a_served_record_claims_no_signature(tmp_path: Path) -> None:
    engine = engine_of(tmp_path).with_record(signature="of the builder")
    folder = write_repository(engine, tmp_path / "repo")
    assert not Engine.load(folder / "1/model.xml").record.signed


def test_tensorrt_plans_and_rtx_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("rtx"), tmp_path / "t", precision="fp32")
    with pytest.raises(ArtifactError, match="Triton has no back end for TensorRT-RTX"):
        write_repository(engine.path, tmp_path / "repo")
    assert not (tmp_path / "repo/t").exists()
    write_json(Engine.record_path(engine.path), msgspec.structs.replace(engine.record, backend="tensorrt"))
    told = config(write_repository(engine.path, tmp_path / "repo"))
    assert (told.platform, told.default_model_filename) == ("tensorrt_plan", "model.engine")
    assert told.optimization.cuda.graphs and told.max_batch_size == 0


def test_existing_model_and_damaged_engine_are_refused(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    write_repository(engine.path, tmp_path / "repo")
    with pytest.raises(ArtifactError, match="exists already"):
        write_repository(engine.path, tmp_path / "repo")
    engine.path.write_text("x")
    with pytest.raises(ArtifactError, match="its hash is not the one"):
        write_repository(engine.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
