"""A digest in every artifact: any changed bit is refused, and files from before the digests still open."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import msgspec
import netkit
import onnx
import pytest
import torch
from tiny import tiny_meta, tiny_onnx, written_engine

from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel
from tsss_edge.errors import ArtifactError
from tsss_edge.seals import ONNX_SEAL, ZIP_SEAL


def flips(path: Path, count: int, *, seed: int = 0, last: int = 0) -> list[int]:
    """Offsets of bits: `count` at random, and all of the last `last` bytes, where the seal is."""
    size = path.stat().st_size
    some = random.Random(seed).sample(range(8 * size), count)
    return [*some, *(8 * byte + random.Random(byte).randrange(8) for byte in range(size - last, size))]


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = netkit.checkpoint(tmp_path / "best.pt").path
    Checkpoint.load(path)
    for bit in flips(path, 40, last=22 + len(ZIP_SEAL) + 64):
        flipped(path, bit)
        with pytest.raises(ArtifactError, match=r"best\.pt: "):
            Checkpoint.load(path)
        flipped(path, bit)
    Checkpoint.load(path)


def test_every_flipped_bit_of_a_graph_is_refused(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "t.onnx").path
    for bit in flips(path, 100, last=len(ONNX_SEAL) + 64):
        flipped(path, bit)
        with pytest.raises(ArtifactError, match=r"t\.onnx: "):
            OnnxModel.load(path)
        flipped(path, bit)
    assert OnnxModel.load(path).graph == onnx.load(path)


def test_every_flipped_bit_of_a_record_is_refused_or_says_the_same(tmp_path: Path) -> None:
    engine = written_engine(tmp_path / "e.xml", tiny_meta()).with_record(device="a machine")
    path = Engine.record_path(engine.path)
    refused = 0
    for bit in flips(path, 200):
        flipped(path, bit)
        try:
            assert Engine.load(engine.path).record == engine.record, "only blanks between the values"
        except ArtifactError:
            refused += 1
        flipped(path, bit)
    assert refused > 100


def test_a_verdict_that_was_edited_is_refused(tmp_path: Path) -> None:
    engine = written_engine(tmp_path / "e.xml", tiny_meta()).with_record(created="yesterday")
    path = Engine.record_path(engine.path)
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**content, "created": "today"}))
    with pytest.raises(ArtifactError, match=r"e\.json: was changed after it was written"):
        Engine.load(engine.path)
    path.write_bytes(msgspec.json.encode({**content, "signature": "mine"}))
    with pytest.raises(ArtifactError, match=r"e\.json: was changed after it was written"):
        Engine.load(engine.path)


def test_files_from_before_the_digests_open_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = netkit.checkpoint(tmp_path / "best.pt").path
    torch.save(torch.load(path, weights_only=True), path)
    model = tiny_onnx(tmp_path / "t.onnx").path
    graph = onnx.load(model)
    del graph.metadata_props[1:]
    onnx.save(graph, model)
    written_engine(tmp_path / "e.xml", tiny_meta())  # its record is written without one
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Checkpoint.load(path), OnnxModel.load(model), Engine.load(tmp_path / "e.xml")
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0].rpartition("/")[2] for line in told] == ["best.pt", "t.onnx", "e.json"]
    assert all("carries no digest" in line for line in told)


def test_a_graph_that_another_tool_changed_is_refused(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "t.onnx").path
    graph = onnx.load(path)
    graph.producer_name = "another tool"
    onnx.save(graph, path)
    with pytest.raises(ArtifactError, match=r"t\.onnx: "):
        OnnxModel.load(path)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = netkit.checkpoint(tmp_path / "best.pt").path
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - len(ZIP_SEAL) - 64, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError):
            Checkpoint.load(path)
