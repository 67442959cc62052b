"""The live loop beside the loop that most people write and beside the network alone: how much of the machine it uses.

All three run in alternating rounds of one process, so that the ratios hold on a busy machine too. What a frame costs is
measured apart, one stage after the other, as CPU time: a loop that lost nothing would give `cores / sum of core-ms`
frames a second.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.backends import AsyncBackend, Backend, open_backend
from tsss_edge.bench.conditions import Machine, examine_machine, notes_on, read_load, read_mhz
from tsss_edge.bench.power import read_power
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.kernels.overlay import OverlayPlan
from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.kernels.preprocess_yuv import YuvPreprocessPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.machine import usable_cores
from tsss_edge.stream.frames import Frame, Picture, Source, bgr_of, picture_hw
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import open_engine
from tsss_edge.stream.process import decode_threads, opencv_threads
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import NullSink
from tsss_edge.stream.sources import open_source
from tsss_edge.stream.thread_plan import ThreadPlan, open_for_file
from tsss_edge.stream.uris import parse_source

ROUNDS = 3
STREAM_FRAMES = 300  # a round of the loop, or the whole source where that is shorter
NAIVE_FRAMES = 20
NETWORK_CALLS = 150
KEPT_FRAMES = 30  # decoded frames that the stages are timed on
STARTS = 3


class StreamBench(Struct, frozen=True):
    """Frames a second are medians over the rounds; ratios are medians of each round's own ratio."""

    engine: str
    source: str
    frame_hw: tuple[int, int]
    naive_fps: float | None  # read, resize, ONNX Runtime FP32, resize of every class, argmax, blend
    stream_fps: float  # the live loop with blending, all frames / the whole round
    network_fps: float  # as many requests in flight as the loop has
    ratio_naive: float | None
    ratio_network: float
    core_ms: dict[str, float]  # CPU time a frame, each stage by itself
    bound_fps: float  # cores / sum of core_ms
    efficiency: float  # stream_fps / bound_fps
    first_mask_s: float  # from the start of the process
    rounds: int
    machine: Machine
    notes: tuple[str, ...]

    def summary(self) -> str:
        """For a terminal."""
        stages = ", ".join(f"{name} {ms:.2f}" for name, ms in self.core_ms.items())
        naive = [] if self.naive_fps is None else [f"naive loop       {self.naive_fps:8.1f} frames/s"]
        ratio = "" if self.ratio_naive is None else f"  {self.ratio_naive:.1f} x the naive loop"
        return "\n".join(
            [
                "{1}x{0} frames".format(*self.frame_hw),
                *naive,
                f"live loop        {self.stream_fps:8.1f} frames/s{ratio}",
                f"network alone    {self.network_fps:8.1f} frames/s  (the loop gives {self.ratio_network:.2f} of it)",
                f"core-ms a frame  {sum(self.core_ms.values()):8.2f}  ({stages})",
                f"bound            {self.bound_fps:8.1f} frames/s  (the loop gives {self.efficiency:.2f} of it)",
                f"first mask       {self.first_mask_s:8.2f} s after the start of the process",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def bench_stream(engine: Path, source: str, *, naive: Path | None = None, threads: int | None = None) -> StreamBench:
    """Time the live loop on a file or synthetic source.

    Args:    naive: FP32 ONNX file for the naive loop; None leaves that out. threads: of the network; None: as `stream` plans them.
    Raises:  ArtifactError, UnavailableError: as `open_backend`; no logits. DataError: the source is live, or its frames differ
             in size.
    """
    mhz, load, power = read_mhz(), read_load(), read_power()
    cores = threads or usable_cores()
    with closing(open_source(source)) as opened:
        if opened.live:
            raise DataError(f"{source}: a camera gives frames at its own rate; measure on a video file or synthetic://")
        frames = list(islice(_read(opened), KEPT_FRAMES))
    if len({picture_hw(frame) for frame in frames}) > 1:
        raise DataError(f"{source}: frames of several sizes; a benchmark wants one")
    backend, plan = _opened(engine, source, threads)
    with ExitStack() as stack:
        stack.callback(backend.close)
        _require_logits(backend, engine)
        core_ms = measure_stages(backend, source, frames)
        loops: dict[str, Callable[[], float]] = {
            "stream": lambda: time_stream(backend, source),
            "network": lambda: time_network(backend)[0],
        }
        if naive is not None:
            reference = stack.enter_context(open_backend(naive))
            _require_logits(reference, naive)
            loops["naive"] = lambda: time_naive(reference, source)
        rounds = [{name: loop() for name, loop in loops.items()} for _ in range(1 + ROUNDS)]  # the first is the warm-up
        fps = {name: np.array([one[name] for one in rounds[1:]]) for name in loops}
    machine = examine_machine(threads=threads, mhz_before=mhz, load_before=load)
    stream_fps, bound = float(np.median(fps["stream"])), 1000 * cores / sum(core_ms.values())
    return StreamBench(
        engine=engine.name,
        source=parse_source(source).shown,
        frame_hw=picture_hw(frames[0]),
        naive_fps=float(np.median(fps["naive"])) if "naive" in fps else None,
        stream_fps=stream_fps,
        network_fps=float(np.median(fps["network"])),
        ratio_naive=float(np.median(fps["stream"] / fps["naive"])) if "naive" in fps else None,
        ratio_network=float(np.median(fps["stream"] / fps["network"])),
        core_ms=core_ms,
        bound_fps=bound,
        efficiency=stream_fps / bound,
        first_mask_s=time_first_mask(engine, source, cores),
        rounds=ROUNDS,
        machine=machine,
        notes=(*([plan.why] if plan else []), *notes_on(machine), *read_power().notes(power)),
    )


def _opened(engine: Path, source: str, threads: int | None) -> tuple[AsyncBackend, ThreadPlan | None]:
    """The engine as `stream` opens it for a file."""
    if threads is None:
        return open_for_file(engine, source, blend=True)
    return open_engine(engine, live=False, threads=threads), None


def time_stream(backend: AsyncBackend, source: str) -> float:
    """Frames a second of the live loop, filling and draining included."""
    recorder = Recorder()
    with closing(open_source(source, decode_threads=decode_threads())) as opened:
        started = time.perf_counter()
        if run(opened, backend, [NullSink(wants_overlay=True)], recorder, max_frames=STREAM_FRAMES) == "interrupted":
            raise KeyboardInterrupt
        return recorder.frames / (time.perf_counter() - started)


def time_network(backend: AsyncBackend) -> tuple[float, float]:
    """The network alone with all its slots in flight -> (pictures a second, core-ms a picture)."""
    images = np.random.default_rng(0).integers(
        0, 256, (backend.slots, 1, *backend.preprocess.size_hw, 3), dtype=np.uint8
    )
    for slot in range(backend.slots):
        backend.start(slot, images[slot])
    started, cpu = time.perf_counter(), time.process_time()
    for call in range(NETWORK_CALLS):
        backend.wait(call % backend.slots)
        backend.start(call % backend.slots, images[call % backend.slots])
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    for slot in range(backend.slots):
        backend.wait(slot)
    return NETWORK_CALLS / wall, 1000 * cpu / NETWORK_CALLS


def time_naive(backend: Backend, source: str) -> float:
    """Frames a second of the loop that most people write."""
    classes, size_hw = backend.classes, backend.preprocess.size_hw
    with _naive_frames(source) as frames:
        started, count = time.perf_counter(), 0
        for image in islice(frames, NAIVE_FRAMES):
            x = np.asarray(cv2.resize(image, size_hw[::-1])[..., ::-1], np.uint8)[None]
            naive_overlay(image, backend.infer(x.repeat(backend.min_batch, axis=0))["logits"][0], classes)
            count += 1
        return count / (time.perf_counter() - started)


@contextmanager
def _naive_frames(source: str) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """BGR frames as most people read them: a file by OpenCV."""
    if not Path(source).is_file():
        with closing(open_source(source)) as opened:
            yield (bgr_of(picture) for picture in _read(opened))
        return
    capture = cv2.VideoCapture(source)
    try:
        yield (np.asarray(image, np.uint8) for ok, image in iter(capture.read, (False, None)) if ok)
    finally:
        capture.release()


def naive_overlay(image: NDArray[np.uint8], logits: NDArray[np.float32], classes: Classes) -> NDArray[np.uint8]:
    """Every class resized to the frame, argmax, half frame and half colour: (H,W,3) BGR, (K,h,w) -> (H,W,3)."""
    size = (image.shape[1], image.shape[0])
    labels = np.stack([cv2.resize(one, size) for one in logits]).argmax(axis=0).astype(np.uint8)
    palette = np.array(classes.palette, np.uint8)[:, ::-1]
    blended: NDArray[np.uint8] = (0.5 * image + 0.5 * palette[labels]).astype(np.uint8)
    return blended


def measure_stages(backend: AsyncBackend, source: str, frames: list[Picture]) -> dict[str, float]:
    """CPU time of each stage by itself, milliseconds a frame."""
    frame_hw = picture_hw(frames[0])
    preprocess, overlay = _plans(backend, frames[0])
    x, labels = np.zeros((1, *backend.preprocess.size_hw, 3), np.uint8), np.zeros(frame_hw, np.uint8)
    logits = []
    for image in frames:
        preprocess(image, x[0])
        logits.append(backend.infer(x)["logits"][0].copy())
    upsample = UpsampleArgmaxPlan(logits[0].shape, frame_hw, backend.preprocess.place(frame_hw))
    masks = [upsample(one, labels).copy() for one in logits]
    with opencv_threads(1):
        return {
            "decode": _decode_core_ms(source),
            "preprocess": _core_ms(lambda n: preprocess(frames[n], x[0]), len(frames)),
            "network": float(np.median([time_network(backend)[1] for _ in range(ROUNDS)])),
            "upsample_argmax": _core_ms(lambda n: upsample(logits[n], labels), len(frames)),
            "overlay": _core_ms(lambda n: overlay(frames[n], masks[n]), len(frames)),
        }


def _plans(backend: AsyncBackend, first: Picture) -> tuple[Callable[..., object], Callable[..., object]]:
    """Preprocess and overlay of the loop for frames like `first`; the overlay works on a copy, as the loop's does."""
    palette, shown, frame_hw = backend.classes.palette, backend.classes.objects, picture_hw(first)
    if isinstance(first, Yuv):
        paint, planes = YuvOverlayPlan(frame_hw, palette, first.colour, shown=shown), first.copy()

        def overlay_yuv(picture: Yuv, labels: NDArray[np.uint8]) -> None:
            picture.copy_to(planes)
            paint(planes, labels)

        return YuvPreprocessPlan(frame_hw, backend.preprocess), overlay_yuv
    blend, copied = OverlayPlan(frame_hw, palette, shown=shown), first.copy()

    def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        np.copyto(copied, image)
        blend(copied, labels)

    return PreprocessPlan(frame_hw, backend.preprocess, bgr=True), overlay


def _core_ms(stage: Callable[[int], object], frames: int) -> float:
    """CPU time of `stage(n)`, milliseconds; every frame three times, the first round is the warm-up."""
    for n in range(frames):
        stage(n)
    cpu = time.process_time()
    for n in range(2 * frames):
        stage(n % frames)
    return 1000 * (time.process_time() - cpu) / (2 * frames)


def _decode_core_ms(source: str) -> float:
    with closing(open_source(source, decode_threads=decode_threads())) as opened:
        cpu, count, frame = time.process_time(), 0, None
        while count < STREAM_FRAMES and (frame := opened.read(_again(frame))) is not None:
            count += 1
        return 1000 * (time.process_time() - cpu) / count


def _again(frame: Frame | None) -> NDArray[np.uint8] | None:
    """An array that the next frame may be written into."""
    return None if frame is None or isinstance(frame.picture, Yuv) else frame.picture


def time_first_mask(engine: Path, source: str, threads: int) -> float:
    """Seconds from the start of a `tsss-edge stream` process to its first mask, median of a few.

    A failed accuracy gate does not matter to speed.
    """
    command = [sys.executable, "-m", "tsss_edge", "stream", str(engine), source, "-", "--max-frames", "1"]
    command += ["--threads", str(threads), "--force"]
    return float(np.median([_seconds_to_first_line(command) for _ in range(STARTS)]))


def _seconds_to_first_line(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        _, message = process.communicate()
    if not line:
        raise DataError(f"a stream of its own gave no mask: {message.strip()}")
    return seconds


def _read(source: Source) -> Iterator[Picture]:
    while (frame := source.read()) is not None:
        yield frame.picture


def _require_logits(backend: Backend, path: Path) -> None:
    if all(spec.name != "logits" for spec in backend.outputs):
        raise ArtifactError(
            f"{path}: gives no logits, and the stages of a benchmark begin with them; use --head logits"
        )
