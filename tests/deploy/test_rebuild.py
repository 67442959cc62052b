"""Rebuild: a damaged or unfit engine comes back from its stored graph, proven again; what cannot come back says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from netkit import checkpoint, write_set
from tiny import tiny_onnx

from tsss_edge.artifacts import Engine, ParityRecord
from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.deploy import rebuild
from tsss_edge.deploy.rebuild import rebuild_engine, rebuild_if_unfit, stored_onnx, unfit
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.files import read_json, sha256_file, write_json
from tsss_edge.seals import write_sealed

CPU = msgspec.structs.replace(load_target("cpu"), min_reference=0.0)  # networks here are random
RTX = load_target("rtx")
ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", total_bytes=1 << 34, free_bytes=1 << 34, driver_cuda="13.0")
PROOF = ParityRecord(
    passed=True, miou_reference=70.0, miou_engine=70.0, miou_drop=0.0, pixel_agreement=1.0, boundary_agreement=1.0,
    images=1, max_drop=0.5, data_sha256="0" * 64,
)  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return build_engine(tiny_onnx(tmp_path / "t.onnx").path, CPU, tmp_path / "t", precision="fp32")


def test_a_fit_engine_is_left_alone(engine: Engine) -> None:
    before = engine.path.stat().st_mtime_ns
    assert unfit(engine.path) == ""
    assert rebuild_if_unfit(engine.path) is None
    assert engine.path.stat().st_mtime_ns == before


def test_a_damaged_engine_comes_back_and_inherits_no_verdict(engine: Engine) -> None:
    engine.with_record(parity=PROOF)
    content = engine.path.with_suffix(".bin").read_bytes()
    engine.path.with_suffix(".bin").write_bytes(b"x")
    rebuilt = rebuild_if_unfit(engine.path)
    assert rebuilt is not None and "its hash is not the one" in rebuilt.reason
    assert engine.path.with_suffix(".bin").read_bytes() == content
    assert Engine.load(engine.path).record.parity is None
    assert "not checked" in rebuilt.summary()


def test_parity_follows_where_reference_and_pictures_are_given(tmp_path: Path) -> None:
    data, reference = write_set(tmp_path / "data"), checkpoint(tmp_path / "net.pt")
    onnx = export_onnx(reference.path, tmp_path / "net.onnx")
    engine = build_engine(onnx.path, CPU, tmp_path / "net", precision="fp32")
    engine.path.unlink()
    rebuilt = rebuild_engine(engine.path, reference=reference.path, eval_data=data)
    assert rebuilt.parity is not None and rebuilt.parity.passed
    assert Engine.load(engine.path).record.parity == rebuilt.parity.record()
    assert "gate passed" in rebuilt.summary()


def test_the_graph_is_found_by_hash_under_another_name(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").rename(tmp_path / "renamed.onnx")
    assert stored_onnx(engine.path).path == tmp_path / "renamed.onnx"
    (tmp_path / "renamed.onnx").unlink()
    tiny_onnx(tmp_path / "t.onnx", objectness=True)  # the right name, another graph
    with pytest.raises(ArtifactError, match=r"the ONNX file it was built from \(t\.onnx, SHA-256 .* is not in"):
        rebuild_engine(engine.path)


def test_a_copy_under_another_name_is_not_built_beside_itself(engine: Engine, tmp_path: Path) -> None:
    """As Triton has it: a build would write `model.fp32.xml`, and the damaged one would stay."""
    (served := tmp_path / "served").mkdir()
    shutil.copyfile(engine.path, served / "model.xml")
    (served / "model.bin").write_bytes(b"x")
    record = msgspec.structs.replace(engine.record, files={"model.xml": "0", "model.bin": "0"})
    write_sealed(served / "model.json", record)
    shutil.copyfile(tmp_path / "t.onnx", served / "t.onnx")
    with pytest.raises(ArtifactError, match=r"a copy under another name than builds have \(NAME\.fp32\.xml\)"):
        rebuild_if_unfit(served / "model.xml")
    assert {p.name for p in served.iterdir()} == {"model.xml", "model.bin", "model.json", "t.onnx"}


def test_no_record_and_an_old_one_are_told(engine: Engine) -> None:
    path = Engine.record_path(engine.path)
    write_json(path, msgspec.structs.replace(engine.record, format=1))
    with pytest.raises(ArtifactError, match=r"made by an older tsss-edge .*build the engine again"):
        rebuild_engine(engine.path)
    path.unlink()
    with pytest.raises(ArtifactError, match="no record t"):
        rebuild_engine(engine.path)
    assert engine.path.is_file()


def test_checkpoints_and_graphs_are_no_engines(tmp_path: Path) -> None:
    assert rebuild_if_unfit(tiny_onnx(tmp_path / "t.onnx").path) is None


@pytest.fixture
def plan(tmp_path: Path) -> Engine:
    pytest.importorskip("tensorrt_rtx")
    return build_engine(tiny_onnx(tmp_path / "t.onnx").path, RTX, tmp_path / "t", precision="fp32")


def here(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, version: tuple[int, ...] = (1, 7, 1)) -> None:
    monkeypatch.setattr(rebuild, "first_gpu", lambda: gpu)
    monkeypatch.setattr(rebuild, "load", lambda flavour: Trt(None, flavour, version))


def test_a_plan_of_another_version_is_built_again(plan: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, ADA, tuple(map(int, plan.record.versions["tensorrt-rtx"].split("."))))
    assert rebuild_if_unfit(plan.path) is None
    here(monkeypatch, ADA, (1, 9, 0))
    rebuilt = rebuild_if_unfit(plan.path)
    assert rebuilt is not None and "this machine has TensorRT-RTX 1.9.0" in rebuilt.reason
    assert sha256_file(plan.path) == read_json(Engine.record_path(plan.path), type(plan.record)).files["t.fp32.engine"]


def test_without_a_gpu_no_build_helps(plan: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, None)
    with pytest.raises(UnavailableError, match="no build of it can run here"):
        rebuild_if_unfit(plan.path)
