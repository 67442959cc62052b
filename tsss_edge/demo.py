"""The whole way on embedded data, in one call: data, training, export, calibration, engines, parity, bench, stream.

Every step is the same library call that its own command makes; the demo only chains them and keeps the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.config import TrainConfig, load_target
from tsss_edge.files import write_json

if TYPE_CHECKING:
    from tsss_edge.bench import BenchReport
    from tsss_edge.parity import ParityReport
    from tsss_edge.stream.recorder import StreamReport

STRONG_FRACTION = 0.5
# L-Net sees only the quarter of the pictures that is strong, so it takes more epochs than the others.
EPOCHS, LNET_EPOCHS = 32, 64
STREAM_FRAMES = 300
PYTORCH = "pytorch fp32 cpu"  # the back end's name of a checkpoint that runs on the CPU


class DemoSummary(Struct, frozen=True):
    """What the demo measured. mIoU in percent, agreement 0-1, times in seconds or milliseconds."""

    miou_supervised: float
    miou_labels: float  # L-Net's annotations of weak training images, against the masks nobody trained on
    miou_pnet: float
    ratio: float  # P-Net / supervised
    miou_fp32: float
    miou_int8: float
    int8_drop: float
    agreement: float
    parity_passed: bool
    latency_ms: dict[str, float]
    speedup_int8: float  # over PyTorch eager FP32, in alternating rounds on this machine
    stream: dict[str, Any]
    seconds: dict[str, float]
    total_s: float

    def table(self) -> str:
        """The closing table, for a terminal."""
        stream = self.stream
        rows = [
            ("supervised (all masks)", f"{self.miou_supervised:.2f} mIoU"),
            ("L-Net labels of weak images", f"{self.miou_labels:.2f} mIoU"),
            (
                "P-Net (half the categories without masks)",
                f"{self.miou_pnet:.2f} mIoU = {self.ratio:.3f} of supervised",
            ),
            ("FP32 reference", f"{self.miou_fp32:.2f} mIoU"),
            ("INT8 engine", f"{self.miou_int8:.2f} mIoU (drop {self.int8_drop:+.2f}), agreement {self.agreement:.4f}"),
            ("parity gate", "passed" if self.parity_passed else "FAILED"),
            *((f"latency {name}", f"{value:.2f} ms") for name, value in self.latency_ms.items()),
            ("INT8 engine against PyTorch FP32", f"{self.speedup_int8:.1f} x"),
            ("stream", f"{stream['fps']:.0f} fps, {stream['frames']} frames, {stream['dropped']} dropped"),
            ("total", f"{self.total_s:.0f} s"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


class _Clock:
    """Prints each step as it starts and keeps its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"   {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)


def run_demo(out: Path, *, seed: int = 0) -> DemoSummary:
    """Make everything below `out` (data, checkpoints, ONNX, engines, report, stream.mp4, summary.json).

    Run again, it goes on where it stopped: trainings resume from their checkpoints.
    """
    clock = _Clock()
    data = out / "data"
    supervised, method, label_miou = _train(out, data, clock, seed)
    fp32, int8 = _build(method, out, data, clock)
    parity, bench, stream = _prove(method, fp32, int8, out, data, clock)
    miou_supervised, miou_pnet = (checkpoint.meta.metrics["miou"] for checkpoint in (supervised, method))
    summary = DemoSummary(
        miou_supervised=miou_supervised,
        miou_labels=label_miou,
        miou_pnet=miou_pnet,
        ratio=miou_pnet / miou_supervised,
        miou_fp32=parity.miou_reference,
        miou_int8=parity.miou_engine,
        int8_drop=parity.miou_drop,
        agreement=parity.pixel_agreement,
        parity_passed=parity.passed,
        latency_ms={bench.runs_on: bench.latency_ms.p50} | {n: t.latency_ms.p50 for n, t in bench.compare.items()},
        speedup_int8=bench.compare[PYTORCH].ratio,
        stream=msgspec.to_builtins(stream),
        seconds=clock.seconds,
        total_s=round(sum(clock.seconds.values()), 1),
    )
    write_json(out / "summary.json", summary)
    return summary


def _train(out: Path, data: Path, clock: _Clock, seed: int) -> tuple[Checkpoint, Checkpoint, float]:
    """Supervised baseline and the whole method -> (supervised, P-Net, mIoU of the transferred labels)."""
    from tsss_edge.data.supervision import strong_from_fraction
    from tsss_edge.data.synthetic import write_synthetic
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.files import read_json
    from tsss_edge.train.all import train_all
    from tsss_edge.train.pnet import train_supervised

    with clock.step("data: 20 categories, image-level labels for all, masks used for half of them"):
        write_synthetic(data, seed=seed)
    config = demo_config(seed)
    method = msgspec.structs.replace(config, val_every=LNET_EPOCHS)
    with clock.step("train supervised (all masks): the yardstick"):
        supervised = train_supervised(config, data, out / "supervised", resume=True)
    strong = strong_from_fraction(VocDataset.open(data).classes, STRONG_FRACTION)
    with clock.step("train L-Net, classifier, labels, P-Net (half the masks)"):
        pnet = train_all(method, data, out / "method", strong=strong, lnet_epochs=LNET_EPOCHS, resume=True)
    labels = read_json(out / "method/labels/manifest.json", dict)
    return supervised, pnet, float(labels["miou"])


def _build(method: Checkpoint, out: Path, data: Path, clock: _Clock) -> tuple[Path, Path]:
    """Export, calibrate, build -> (FP32 engine, INT8 engine), both OpenVINO; TensorRT-RTX too where it is installed."""
    from tsss_edge.calib.calibrate import calibrate
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.export.build import build_engine
    from tsss_edge.export.onnx_export import export_onnx

    dataset = VocDataset.open(data)
    pictures = [dataset.image_path(image_id) for image_id in dataset.ids("val")[:8]]
    with clock.step("export the fused graph, check it against PyTorch"):
        onnx = export_onnx(method.path, out / "fused.onnx", objectness=True, check_images=pictures)
    with clock.step("calibrate INT8 on the training split"):
        int8 = calibrate(onnx, data, out / "fused.int8.onnx", size=256)
    with clock.step("build engines: OpenVINO FP32 and INT8"):
        cpu = load_target("cpu")
        fp32_engine = build_engine(onnx.path, cpu, out / "fused.xml", precision="fp32")
        int8_engine = build_engine(int8.path, cpu, out / "fused.xml", precision="int8")
    if find_spec("tensorrt_rtx"):
        with clock.step("build the TensorRT-RTX INT8 plan (built on the CPU, runs on an RTX GPU)"):
            build_engine(int8.path, load_target("rtx"), out / "rtx" / "fused.engine", precision="int8")
    return fp32_engine.path, int8_engine.path


def _prove(
    method: Checkpoint, fp32: Path, int8: Path, out: Path, data: Path, clock: _Clock
) -> tuple[ParityReport, BenchReport, StreamReport]:
    """What `parity`, `bench` and `stream` found."""
    from tsss_edge.bench import bench_engine
    from tsss_edge.parity import check_parity
    from tsss_edge.stream.live_loop import stream

    with clock.step("parity: INT8 engine against the PyTorch checkpoint on the validation split"):
        parity = check_parity(int8, method.path, data, max_drop=1.0, report_dir=out / "report")
    with clock.step("bench: network alone, alternating rounds"):
        bench = bench_engine(int8, duration_s=2.0, compare=(fp32, method.path))
    with clock.step("stream a synthetic video with live mIoU and the parity watch"):
        source = f"synthetic://?size=640x480&frames={STREAM_FRAMES}&fps=30"
        sinks = [str(out / "stream.mp4")]
        report = stream(int8, source, sinks, reference=method.path, parity_every=30)
    return parity, bench, report


def demo_config(seed: int = 0) -> TrainConfig:
    """Settings that fit the embedded set into a few minutes on two cores."""
    return TrainConfig(arch="edge-s", size_hw=(128, 128), epochs=EPOCHS, batch=16, seed=seed, scale_range=(0.75, 1.5))
