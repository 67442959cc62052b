"""The scripts that measure, run small: kernels, soak of the live loop, the surface of TensorRT's bindings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import kernel_bench
import label_quality
import numpy as np
import pytest
from soak import live as soak

ROOT = Path(__file__).parents[2]


def test_kernels_beside_their_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "FRAMES", ((64, 64), (72, 128)))
    monkeypatch.setattr(kernel_bench, "GRID", (8, 8))
    monkeypatch.setattr(kernel_bench, "SECONDS", 0.01)
    monkeypatch.setattr(kernel_bench, "ROUNDS", 1)
    out = tmp_path / "kernels.md"
    monkeypatch.setattr(sys, "argv", ["kernel_bench.py", "--out", str(out)])
    kernel_bench.main()
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["kernel"] for row in rows] == ["upsample_argmax"] * 4 + ["overlay", "preprocess"]
    assert all(row["ours_ms"] > 0 and row["ratio"] > 0 for row in rows)
    assert "| preprocess | to 512x512, OpenCV | 128x72 |" in out.read_text()


def test_a_short_soak_reports_ages_memory_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.Stops, "near", lambda self, moment: False)  # one stop of a second would leave no mask
    report = soak.soak_live(1.0, engine_ms=20.0, fps=30.0, size="64x48")
    ages = report["age_ms"]
    assert (
        1 <= report["masks"] <= 30 <= report["arrived"]
    )  # a busy machine counts frames that the player was too late for
    assert 0 < ages["p50"] <= ages["p99"] <= ages["max"] and report["engine_ms"] >= 20
    assert report["memory_mib"]["start"] > 0 and report["viewer_bytes"] > 0
    assert set(report["passed"]) == {"age", "memory", "drops"}


def test_slope_is_of_the_second_half() -> None:
    times = [float(t) for t in range(20)]
    assert soak.slope_per_minute(times, [9.0] * 10 + [t * 1.0 for t in range(10)]) == pytest.approx(60.0)
    assert soak.slope_per_minute([0.0], [1.0]) == 0.0


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the wheel of TensorRT-RTX")
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("readelf")), reason="needs gcc and readelf")
def test_surface_of_the_installed_bindings(tmp_path: Path) -> None:
    spec = find_spec("tensorrt_rtx_bindings")
    assert spec is not None and spec.origin is not None
    library = Path(spec.origin).with_name("tensorrt_rtx.so")
    with zipfile.ZipFile(tmp_path / "rtx.whl", "w") as wheel:
        wheel.write(library, "tensorrt_rtx/tensorrt_rtx.so")
    command = [sys.executable, ROOT / "scripts/record_trt_api.py", tmp_path / "rtx.whl", tmp_path / "rtx.json"]
    subprocess.run(command, check=True)
    told = json.loads((tmp_path / "rtx.json").read_text())
    assert "create_network" in told["names"]["Builder"] and told["wheel"] == "rtx.whl"


def test_label_quality_counts_unsure_pixels_as_missed() -> None:
    """Two classes and a background; of the cat 2 of 4 pixels are found, 1 is unsure, 1 taken for background."""
    counts = np.array([[10, 0, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0]])  # truth, label; the last column is unsure
    said = label_quality.line(counts, [1, 2], ("background", "cat", "dog"))
    assert said == "background 90.9, mean of weak 50.00 (cat 50.0); 92.9% labelled, 92.3% of them rightly"
