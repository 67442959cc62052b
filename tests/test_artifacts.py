"""Artifacts that are read once, and files of another format."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path

import msgspec
import netkit
import onnx
import pytest
import torch
from tiny import tiny_onnx

from tsss_edge.artifacts import Checkpoint, Engine, EngineRecord, OnnxModel, load_artifact
from tsss_edge.errors import ArtifactError
from tsss_edge.files import decode_json


def test_a_loaded_graph_needs_its_file_no_more(tmp_path: Path) -> None:
    saved = tiny_onnx(tmp_path / "t.onnx")
    loaded = OnnxModel.load(saved.path)
    saved.path.unlink()
    assert loaded == saved and loaded.graph == saved.graph


def test_a_graph_that_travels_to_another_process_is_read_there(tmp_path: Path) -> None:
    loaded = OnnxModel.load(tiny_onnx(tmp_path / "t.onnx").path)
    there = pickle.loads(pickle.dumps(loaded))
    assert there == loaded and "graph" not in there.__dict__
    assert there.graph == loaded.graph


def test_a_graph_that_changed_on_disk_is_refused(tmp_path: Path) -> None:
    loaded = OnnxModel.load(tiny_onnx(tmp_path / "t.onnx").path)
    there = pickle.loads(pickle.dumps(loaded))
    tiny_onnx(tmp_path / "t.onnx", objectness=True)
    with pytest.raises(ArtifactError, match="changed since it was read"):
        _ = there.graph


def test_a_copy_may_be_changed(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx")
    copy = deepcopy(model.graph)
    del copy.graph.node[:]
    assert len(model.graph.graph.node)


def test_a_loaded_checkpoint_needs_its_file_no_more(tmp_path: Path) -> None:
    path = netkit.checkpoint(tmp_path / "best.pt").path
    loaded = Checkpoint.load(tmp_path)
    path.unlink()
    assert all(torch.is_tensor(t) for t in loaded.state().values())


def test_resume_gives_a_copy(tmp_path: Path) -> None:
    meta = netkit.checkpoint(tmp_path / "best.pt").meta
    last = Checkpoint.save(tmp_path / "last.pt", meta, {}, {"step": torch.zeros(1)})
    last.resume()["step"] += 1
    assert last.resume()["step"].item() == 0


@pytest.mark.parametrize(("found", "words"), [(None, "older.*export it again"), (1, "older"), (99, "newer.*update")])
def test_another_format_of_a_graph_is_refused(tmp_path: Path, found: int | None, words: str) -> None:
    path = tiny_onnx(tmp_path / "t.onnx").path
    graph = onnx.load(path)
    meta = msgspec.json.decode(graph.metadata_props[0].value)
    del meta["format"]
    graph.metadata_props[0].value = msgspec.json.encode(meta | ({"format": found} if found else {})).decode()
    onnx.save(graph, path)
    with pytest.raises(ArtifactError, match=words):
        OnnxModel.load(path)


def test_an_older_record_is_refused_whatever_its_fields_were(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"f\.json: made by an older tsss-edge .*build it again"):
        decode_json(b'{"flags": {}, "files": {}}', EngineRecord, tmp_path / "f.json", "build it again")


def test_a_format_that_is_no_number_is_damage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a valid EngineRecord"):
        decode_json(b'{"format": "two"}', EngineRecord, tmp_path / "f.json")


def test_the_door_takes_any_artifact_and_loaded_ones(tmp_path: Path) -> None:
    netkit.checkpoint(tmp_path / "best.pt")
    model = tiny_onnx(tmp_path / "t.onnx")
    assert isinstance(load_artifact(tmp_path), Checkpoint)
    assert load_artifact(model.path) == model and load_artifact(model) is model
    with pytest.raises(ArtifactError, match=r"expected a checkpoint"):
        load_artifact(tmp_path / "x.txt")
    with pytest.raises(ArtifactError, match="no such engine"):
        load_artifact(Engine.record_path(tmp_path / "x.xml").with_suffix(".xml"))
