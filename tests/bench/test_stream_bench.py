"""`bench --stream`: its arithmetic, its naive loop, and that it runs; nothing here depends on how fast the machine is."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from loopkit import CLASSES
from streamkit import write_video
from tiny import tiny_onnx

import tsss_edge.bench.stream_bench as bench
from tsss_edge.bench.stream_bench import StreamBench, bench_stream, naive_overlay, time_first_mask
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.export.build import build_engine
from tsss_edge.kernels.overlay import overlay
from tsss_edge.kernels.upsample_argmax import upsample_argmax


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(engine, FP32 ONNX file)."""
    folder = tmp_path_factory.mktemp("bench")
    model = tiny_onnx(folder / "tiny.onnx")
    return build_engine(model.path, load_target("cpu"), folder / "tiny.xml", precision="fp32").path, model.path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ROUNDS", 2),
        ("STREAM_FRAMES", 20),
        ("NAIVE_FRAMES", 3),
        ("NETWORK_CALLS", 10),
        ("STARTS", 1),
    ):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "time_first_mask", lambda engine, source, threads: 1.25)


def test_all_three_loops_and_what_follows_from_them(files: tuple[Path, Path], short: None, tmp_path: Path) -> None:
    engine, onnx = files
    report = bench_stream(engine, str(write_video(tmp_path / "v.mp4", frames=25)), naive=onnx, threads=2)
    assert list(report.core_ms) == ["decode", "preprocess", "network", "upsample_argmax", "overlay"]
    assert min(report.core_ms.values()) > 0
    assert report.bound_fps == pytest.approx(2000 / sum(report.core_ms.values()))
    assert report.efficiency == pytest.approx(report.stream_fps / report.bound_fps)
    assert report.naive_fps is not None and min(report.naive_fps, report.stream_fps, report.network_fps) > 0
    assert (report.frame_hw, report.rounds, report.first_mask_s) == ((48, 64), 2, 1.25)
    assert msgspec.json.decode(msgspec.json.encode(report), type=StreamBench) == report
    assert f"{report.ratio_naive:.1f} x the naive loop" in report.summary()


def test_ratios_are_of_each_round(files: tuple[Path, Path], short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is half as fast in the second round changes no ratio."""
    fps = {"stream": iter([9, 60, 30]), "naive": iter([9, 4, 2]), "network": iter([9, 80, 40])}
    monkeypatch.setattr(bench, "time_stream", lambda backend, source: next(fps["stream"]))
    monkeypatch.setattr(bench, "time_naive", lambda backend, source: next(fps["naive"]))
    monkeypatch.setattr(bench, "time_network", lambda backend: (next(fps["network"]), 1.0))
    monkeypatch.setattr(bench, "measure_stages", lambda backend, source, frames: {"network": 25.0})
    report = bench_stream(files[0], "synthetic://?size=96x64", naive=files[1], threads=2)
    assert (report.ratio_naive, report.ratio_network) == (15.0, 0.75)
    assert (report.stream_fps, report.bound_fps, report.efficiency) == (45.0, 80.0, 0.5625)


def test_without_a_naive_file_there_is_no_ratio(files: tuple[Path, Path], short: None) -> None:
    report = bench_stream(files[0], "synthetic://?size=96x64&frames=30")
    assert report.naive_fps is report.ratio_naive is None
    assert "naive" not in report.summary()


def test_the_naive_loop_gives_the_same_picture() -> None:
    """Up to rounding: half the frame and half the colour; black classes are darkened there, which ours leaves alone."""
    rng = np.random.default_rng(0)
    logits = np.zeros((4, 8, 12), np.float32)
    logits[1, :, :6] = 1
    logits[2, :, 6:] = 1
    image = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
    ours = overlay(image, upsample_argmax(logits, (48, 80)), CLASSES.palette)
    assert np.abs(naive_overlay(image, logits, CLASSES).astype(int) - ours).max() <= 1


def test_a_camera_cannot_be_measured(files: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="at its own rate"):
        bench_stream(files[0], "synthetic://?size=96x64&live=1")


def test_what_has_no_logits_or_several_sizes_is_refused_before_it_is_timed(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    model = tiny_onnx(tmp_path / "labels.onnx", head="labels")
    engine = build_engine(model.path, load_target("cpu"), tmp_path / "labels.xml", precision="fp32").path
    source = "synthetic://?size=96x64&frames=3"
    with pytest.raises(ArtifactError, match=r"labels\.fp32\.xml: gives no logits"):
        bench_stream(engine, source)
    for n, size in enumerate([(48, 64), (64, 48)]):
        cv2.imwrite(str(tmp_path / f"{n}.png"), np.zeros((*size, 3), np.uint8))
    with pytest.raises(DataError, match="several sizes"):
        bench_stream(files[0], f"{tmp_path}/*.png")


def test_time_to_the_first_mask_is_of_a_real_process(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STARTS", 1)
    assert 0.1 < time_first_mask(files[0], "synthetic://?size=96x64", 1) < 60
    with pytest.raises(DataError, match=r"gave no mask: error: .*nowhere\.mp4"):
        time_first_mask(files[0], "nowhere.mp4", 1)
