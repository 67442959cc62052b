"""The script that makes docs/results/quantization.md, on fake back ends."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import quantization_page
import quantization_table as script
from numpy.typing import NDArray
from PIL import Image
from tiny import tiny_meta, written_engine

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Engine, Preprocess
from tsss_edge.backends.fake import FakeBackend, brightness_cells
from tsss_edge.data.voc import write_mask

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96))


def make_set(root: Path) -> Path:
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES.names))
    (root / "ImageSets/Segmentation/val.txt").write_text("p0\np1\n")
    for i in range(2):
        ids = np.full((64, 96), i + 1, np.uint8)
        Image.fromarray((ids * 64 + 32)[..., None].repeat(3, -1)).save(root / f"JPEGImages/p{i}.png")
        write_mask(root / f"SegmentationClass/p{i}.png", ids)
    return root


def make_engine(path: Path) -> Engine:
    return written_engine(path, tiny_meta(CLASSES, SPEC))


def all_wrong(images: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    return (brightness_cells(images, k) + 1) % k


def test_table_from_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.save(
        tmp_path / "best.pt", CheckpointMeta(stage="supervised", arch="edge-s", classes=CLASSES, preprocess=SPEC), {}
    )

    def build(network: object, methods: list[str], **_: object) -> None:
        network.engines["FP32"] = make_engine(tmp_path / "float.xml")  # type: ignore[attr-defined]
        for method in methods:
            network.engines[f"INT8 {method}"] = make_engine(tmp_path / f"{method}.xml")  # type: ignore[attr-defined]

    def open_fake(path: Path, **_: object) -> FakeBackend:
        answer = all_wrong if path.name == "mse.xml" else brightness_cells
        return FakeBackend(CLASSES, SPEC, answer=answer, latency_ms=8 if path.suffix == ".pt" else 2)

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr(script, "open_backend", open_fake)
    out = tmp_path / "results/quantization.md"
    args = ["--network", "Toy edge-s", str(checkpoint.path), str(make_set(tmp_path / "data"))]
    args += ["--methods", "minmax", "mse", "--duration", "0.1", "--work", str(tmp_path / "work"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["quantization_table.py", *args])
    script.main()

    table = msgspec.json.decode(out.with_suffix(".json").read_bytes(), type=quantization_page.QuantizationTable)
    rows = {row.engine: row for row in table.rows}
    assert list(rows) == [
        "PyTorch FP32",
        "ONNX Runtime FP32",
        "ONNX Runtime FP16",
        "OpenVINO FP32",
        "OpenVINO INT8 minmax",
        "OpenVINO INT8 mse",
    ]
    assert rows["OpenVINO INT8 minmax"].drop == 0.0 and rows["OpenVINO INT8 minmax"].passed
    assert rows["OpenVINO INT8 mse"].drop == 100.0 and not rows["OpenVINO INT8 mse"].passed
    assert rows["OpenVINO INT8 minmax"].speedup > 1.5  # 8 ms against 2 ms
    text = out.read_text()
    assert "## Toy edge-s" in text and "2 pictures" in text
    assert "| OpenVINO INT8 mse | 0.00 | +100.00 |" in text and "| FAILED |" in text
    assert str(tmp_path) not in text  # no path of this machine
    stored = Engine.load(tmp_path / "mse.xml").record.parity
    assert stored is not None and not stored.passed


def test_auto_is_the_row_of_the_method_it_chose(tmp_path: Path) -> None:
    import netkit

    from tsss_edge.calib.calibrate import calibrate
    from tsss_edge.export.onnx_export import export_onnx
    from tsss_edge.onnxgraph.qdq import PairOptions

    floating = export_onnx(netkit.checkpoint(tmp_path / "best.pt").path, tmp_path / "f.onnx")
    data, kept = netkit.write_set(tmp_path / "data", train=2), PairOptions(float_nodes=("encoder.stem",))
    searched = calibrate(floating, data, tmp_path / "q.onnx", method="mse", options=kept)
    network = script.Network("n", None, None, tmp_path, int8={"INT8 auto+search": searched})
    rows = [row(f"OpenVINO INT8 {name}", miou) for name, miou in (("minmax", 1.0), ("mse", 2.0), ("auto+search", 3.0))]
    found = script.with_auto(network, rows)
    assert [(r.engine, r.miou, r.note) for r in found] == [
        ("OpenVINO INT8 minmax", 1.0, ""),
        ("OpenVINO INT8 mse", 2.0, ""),
        ("OpenVINO INT8 auto", 2.0, "chose mse"),
        ("OpenVINO INT8 auto+search", 3.0, "float: encoder.stem"),
    ]


def row(engine: str, miou: float) -> object:
    return quantization_page.EngineRow(
        network="n", engine=engine, runs_on="", miou=miou, drop=0.0, drop_interval=(0.0, 0.0), pixel_agreement=1.0,
        boundary_agreement=1.0, passed=True, images=1, p50_ms=1.0, best_ms=1.0, speedup=1.0,
    )  # fmt: skip


def test_further_sections_are_shown_and_kept() -> None:
    section = quantization_page.Section(
        title="Speed", text="Side by side.", columns=("what", "ms"), rows=(("a", "1.0"),)
    )
    lines = quantization_page.section_table(section)
    assert lines == ["", "| what | ms |\n|---|---|\n| a | 1.0 |"]
    assert quantization_page.section_table(quantization_page.Section(title="t", text="x")) == []
