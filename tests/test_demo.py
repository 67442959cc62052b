"""The demo: its closing table and pictures; and, in `make test-all`, the whole way in small."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, tiny_onnx

import tsss_edge.demo
from tsss_edge.data import synthetic
from tsss_edge.data.voc import SetWriter
from tsss_edge.demo import DemoSummary, run_demo, segment_photos, show
from tsss_edge.errors import UnavailableError
from tsss_edge.stream import live_loop

SUMMARY = DemoSummary(
    miou_supervised=72.5,
    miou_labels=83.6,
    miou_pnet=70.4,
    ratio=0.971,
    miou_fp32=70.4,
    miou_int8=70.3,
    int8_drop=0.1,
    agreement=0.99,
    parity_passed=True,
    latency_ms={"openvino int8": 0.57, "openvino fp32": 1.27, "pytorch fp32 cpu": 4.43},
    speedup_int8=7.8,
    stream={"frames": 300, "miou": 69.0, "fps": 121.0, "dropped": 0},
    seconds={"data": 120.0},
    total_s=120.0,
    look_at="demo.png",
)


def test_the_table_puts_each_figure_beside_what_it_is_measured_against() -> None:
    lines = SUMMARY.table().splitlines()
    assert any(line.split()[-5:] == ["70.40", "0.971", "of", "the", "yardstick"] for line in lines)
    assert any("INT8" in line and "0.57 ms, 7.8 times as fast; gate passed" in line for line in lines)
    assert any("69.00" in line and "121 frames/s, 0 dropped" in line for line in lines)
    assert lines[-1] == "2.0 minutes in all. Look at: demo.png"
    failed = msgspec.structs.replace(SUMMARY, parity_passed=False, photos="photos.png").table()
    assert "gate FAILED" in failed and failed.endswith("Real photographs: photos.png")


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_pictures_are_shown_with_their_truth(tmp_path: Path) -> None:
    writer = SetWriter.open(tmp_path / "data", CLASSES, {"made by": "test"})
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)
        writer.add("val", f"p{number}", pixels, (pixels[..., 0] % len(CLASSES)).astype(np.uint8))
    writer.finish()
    sheet = show(tiny_onnx(tmp_path / "net.onnx").path, tmp_path / "data", tmp_path / "demo.png")
    assert min(size_of(sheet)) > 200


def test_photographs_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    network = tiny_onnx(tmp_path / "net.onnx").path
    assert min(size_of(segment_photos(network, tmp_path / "photos.png"))) > 200
    monkeypatch.setattr(tsss_edge.demo, "PHOTOS", (("no_such_package", "x.png"), ("msgspec", "x.png")))
    with pytest.raises(UnavailableError, match="pip install scikit-image matplotlib"):
        segment_photos(network, tmp_path / "none.png")


@pytest.mark.slow_all
def test_the_whole_way_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs teach nothing; what is asked is that every step takes what the one before made."""
    monkeypatch.setattr(tsss_edge.demo, "EPOCHS", 2)
    monkeypatch.setattr(tsss_edge.demo, "LNET_EPOCHS", 2)
    monkeypatch.setattr(tsss_edge.demo, "STREAM_FRAMES", 40)
    monkeypatch.setattr(synthetic, "write_synthetic", functools.partial(synthetic.write_synthetic, train=64, val=12))
    monkeypatch.setattr(
        live_loop, "stream", functools.partial(live_loop.stream, force=True)
    )  # it learnt nothing: no gate
    summary = run_demo(tmp_path / "demo")
    assert {"data", "train", "label", "export", "calibrate", "build", "parity", "bench", "stream", "pictures"} <= {
        name.split()[0].rstrip(":") for name in summary.seconds
    }
    assert summary.stream["frames"] == 40 and summary.stream["miou"] is not None
    assert all((tmp_path / "demo" / name).stat().st_size for name in ("demo.png", "stream.mp4", "summary.json"))
    assert summary.table().count("\n") > 8
