"""The whole way on embedded data, in one call: data, training, export, calibration, engines, parity, bench, stream.

Every step is the same library call that its own command makes; the demo only chains them and keeps the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.config import TrainConfig, load_target
from tsss_edge.errors import UnavailableError
from tsss_edge.files import write_json
from tsss_edge.machine import int8_saturates, usable_cores

if TYPE_CHECKING:
    from tsss_edge.bench import BenchReport
    from tsss_edge.parity import ParityReport
    from tsss_edge.stream.recorder import StreamReport

STRONG_FRACTION = 0.5
# L-Net sees only the quarter of the pictures that is strong, so it takes more epochs than the others. The classifier takes half of them.
EPOCHS, LNET_EPOCHS = 20, 26
STREAM_FRAMES = 300
SHOWN = 12  # validation pictures of demo.png
PHOTOS = (  # a cat (CC0), an astronaut and an admiral (public domain)
    ("skimage", "data", "chelsea.png"),
    ("skimage", "data", "astronaut.png"),
    ("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"),
)
PYTORCH, INT8 = "pytorch fp32 cpu", "openvino int8"  # the back ends' names of a checkpoint and of the engine on the CPU


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
    photos: str = ""  # picture of real photographs, where a network for them was given
    look_at: str = ""  # contact sheet of validation pictures

    def table(self) -> str:
        """What was found, for somebody who reads it for the first time."""
        lines = [
            "",
            "Labels: 20 categories, mIoU on pictures that no network saw",
            f"  all with masks (the yardstick)         {self.miou_supervised:6.2f}",
            f"  ten with masks, ten by their names only{self.miou_pnet:6.2f}   {self.ratio:.3f} of the yardstick",
            "Engine: the second network",
            f"  PyTorch, float32                       {self.miou_fp32:6.2f}   {self.latency_ms[PYTORCH]:.2f} ms a picture",
            f"  OpenVINO, INT8                         {self.miou_int8:6.2f}   {self.latency_ms[INT8]:.2f} ms, "
            f"{self.speedup_int8:.1f} times as fast; gate {'passed' if self.parity_passed else 'FAILED'}",
            "Live: that engine on a video of new scenes",
            f"  {self.stream['frames']} frames                             {self.stream['miou']:6.2f}   "
            f"{self.stream['fps']:.0f} frames/s, {self.stream['dropped']} dropped",
            f"{self.total_s / 60:.1f} minutes in all. Look at: {self.look_at}",
        ]
        return "\n".join([*lines, *([f"Real photographs: {self.photos}"] if self.photos else [])])


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


def run_demo(out: Path, *, seed: int = 0, photos: Path | None = None) -> DemoSummary:
    """Make everything below `out` (data, checkpoints, ONNX, engines, report, demo.png, stream.mp4, summary.json).

    Run again, it goes on where it stopped: trainings resume from their checkpoints.

    Args:   photos: a network for photographs; it segments real pictures of installed packages into photos.png.
    Raises: UnavailableError: `photos` is given, and no package with pictures is installed.
    """
    clock = _Clock()
    data = out / "data"
    supervised, method, label_miou = _train(out, data, clock, seed)
    fp32, int8 = _build(method, out, data, clock)
    parity, bench, stream = _prove(method, fp32, int8, out, data, clock)
    with clock.step("pictures"):
        sheet = show(int8, data, out / "demo.png")
        real = segment_photos(photos, out / "photos.png") if photos else None
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
        photos=str(real or ""),
        look_at=f"{sheet}, {out / 'stream.mp4'}, {out / 'report/parity.html'}",
    )
    write_json(out / "summary.json", summary)
    return summary


def _train(out: Path, data: Path, clock: _Clock, seed: int) -> tuple[Checkpoint, Checkpoint, float]:
    """Supervised baseline and the whole method -> (supervised, P-Net, mIoU of the transferred labels)."""
    from tsss_edge.data.supervision import strong_from_fraction
    from tsss_edge.data.synthetic import write_synthetic
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.files import read_json
    from tsss_edge.reproduce.pool import Task, threads_each, workers
    from tsss_edge.train.all import train_all, train_labellers
    from tsss_edge.train.supervised import train_supervised

    with clock.step("data: 20 categories, image-level labels for all, masks used for half of them"):
        write_synthetic(data, seed=seed)
    strong = strong_from_fraction(VocDataset.open(data).classes, STRONG_FRACTION)
    jobs = min(2, usable_cores())  # two networks of one thread each train faster than one of two
    config = demo_config(seed)
    shared = msgspec.structs.replace(config, threads=threads_each(config.threads, jobs))
    run = out / "method"
    tasks = [
        Task(
            "L-Net, classifier",
            partial(
                train_labellers, shared, data, run, strong=strong, source=None, lnet_epochs=LNET_EPOCHS, resume=True
            ),
        ),
        Task("the yardstick", partial(train_supervised, shared, data, out / "supervised", resume=True)),
    ]
    with (
        clock.step("train L-Net and classifier (half the masks), beside them the yardstick (all masks)"),
        workers(jobs, out / "jobs.log") as do_all,
    ):
        do_all(tasks)
    with clock.step("label and train P-Net on masks and labels, twice: the first labels again"):
        pnet = train_all(config, data, run, strong=strong, lnet_epochs=LNET_EPOCHS, resume=True)
    supervised = Checkpoint.load(out / "supervised" / "best.pt")
    labels = read_json(out / "method/labels/manifest.json", dict)
    return supervised, pnet, float(labels["miou"])


def _build(method: Checkpoint, out: Path, data: Path, clock: _Clock) -> tuple[Path, Path]:
    """Export, calibrate, build -> (FP32 engine, INT8 engine), both OpenVINO; TensorRT-RTX too where it is installed."""
    from tsss_edge.calib.calibrate import calibrate
    from tsss_edge.data.voc import VocDataset
    from tsss_edge.export.build import build_engine
    from tsss_edge.export.onnx_export import export_onnx
    from tsss_edge.onnxgraph.qdq import PairOptions

    dataset = VocDataset.open(data)
    pictures = [dataset.image_path(image_id) for image_id in dataset.ids("val")[:8]]
    with clock.step("export the fused graph, check it against PyTorch"):
        onnx = export_onnx(method.path, out / "fused.onnx", objectness=True, check_images=pictures)
    with clock.step("calibrate INT8 on the training split"):
        options = PairOptions(weight_bits=7 if int8_saturates() else 8)
        int8 = calibrate(onnx, data, out / "fused.int8.onnx", size=256, options=options)
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
        bench = bench_engine(int8, duration_s=1.0, compare=(fp32, method.path), compare_device="cpu")
    with clock.step("stream a video of new scenes of these categories, with live mIoU and the parity watch"):
        source = f"synthetic://?size=480x480&frames={STREAM_FRAMES}&fps=30&scene=15"
        sinks = [str(out / "stream.mp4")]
        report = stream(int8, source, sinks, reference=method.path, parity_every=30)
    return parity, bench, report


def show(engine: Path, data: Path, out: Path) -> Path:
    """The first validation pictures, what the engine sees in them, the truth: one sheet. A star: learnt from its name alone."""
    from tsss_edge.data.supervision import strong_from_fraction
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(data)
    names, strong = dataset.classes.names, strong_from_fraction(dataset.classes, STRONG_FRACTION)
    shown = []
    for image_id in dataset.ids("val")[:SHOWN]:
        truth = dataset.mask(image_id)
        there = [names[k] for k in np.unique(truth) if k in dataset.classes.objects]
        text = ", ".join(name if name in strong else f"{name}*" for name in there)
        shown.append((text, dataset.image(image_id), truth))
    return _sheet(engine, shown, out)


def segment_photos(network: Path, out: Path) -> Path:
    """Free photographs that lie in installed packages -> one sheet. Raises: UnavailableError: none is installed."""
    from tsss_edge.data.pictures import read_image

    pictures = [path for package, *parts in PHOTOS if (path := _in_package(package, *parts)) is not None]
    if not pictures:
        raise UnavailableError("no photograph to show; pip install scikit-image matplotlib (both bring some)")
    return _sheet(network, [(path.stem, read_image(path), None) for path in pictures], out)


def _sheet(network: Path, shown: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]], out: Path) -> Path:
    """Texts, pictures (H,W,3) and their truth, segmented, on one sheet at `out`."""
    from tsss_edge.backends import open_backend
    from tsss_edge.drawing.sheet import tile, write_sheet
    from tsss_edge.segment import segment_image

    with open_backend(network) as backend:
        tiles = [tile(text, image, segment_image(backend, image), truth) for text, image, truth in shown]
        write_sheet(out, tiles, backend.classes)
    return out


def _in_package(package: str, *parts: str) -> Path | None:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    return next((path for folder in folders if (path := Path(folder, *parts)).is_file()), None)


def demo_config(seed: int = 0) -> TrainConfig:
    """Settings that fit the embedded set into a few minutes on two cores."""
    return TrainConfig(
        arch="edge-s",
        size_hw=(128, 128),
        crop_hw=(96, 96),
        epochs=EPOCHS,
        batch=16,
        seed=seed,
        scale_range=(0.75, 1.5),
        val_every=EPOCHS,
    )
