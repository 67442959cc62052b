"""Networks and frames -> times: alternating rounds for networks, stage by stage for a whole frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.backends import Backend
from tsss_edge.metrics import Percentiles, percentiles
from tsss_edge.segment import labels_at

WARMUP_CALLS = 5
WARMUP_S = 0.3
ROUNDS = 8  # each network runs in so many slices of the time, in turn with the others

Stamp = Callable[[str], None]


class Timed(Struct, frozen=True):
    """One network alone, one request at a time: a picture, or a batch where the engine takes nothing smaller."""

    file: str
    latency_ms: Percentiles
    throughput_fps: float  # pictures / seconds spent in calls
    runs: int
    ratio: float  # its median / the engine's median, a picture, from alternating rounds of one run
    best_ms: float  # the least disturbed call
    ratio_best: float  # its best / the engine's best, a picture: what to read on a busy machine


class EndToEnd(Struct, frozen=True):
    """Frame in memory -> blended frame in memory, one after the other on one thread."""

    latency_ms: Percentiles
    throughput_fps: float
    stages_ms: dict[str, float]  # median of each stage
    limited_by: str  # the stage with the largest median
    frame_hw: tuple[int, int]
    runs: int


def warm_up(call: Callable[[], object]) -> None:
    """At least `WARMUP_CALLS` calls and `WARMUP_S` seconds: lazy kernels, caches and clocks settle."""
    start, calls = perf_counter(), 0
    while calls < WARMUP_CALLS or perf_counter() - start < WARMUP_S:
        call()
        calls += 1


def alternate(calls: Sequence[Callable[[], object]], *, duration_s: float, rounds: int = ROUNDS) -> list[list[float]]:
    """Time several calls side by side, `duration_s` each, in alternating slices -> milliseconds of every call.

    Other work on the machine then slows all of them alike, and the ratio of their medians holds.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, mine in zip(calls, times, strict=True):
            end = perf_counter() + duration_s / rounds
            while True:
                start = perf_counter()
                call()
                stop = perf_counter()
                mine.append((stop - start) * 1000)
                if stop >= end:
                    break
    return times


def network_call(backend: Backend, seed: int = 0) -> Callable[[], object]:
    """The network alone on its least batch of random pictures (its speed does not depend on the content)."""
    height, width = backend.preprocess.size_hw
    images = np.random.default_rng(seed).integers(0, 256, (backend.min_batch, height, width, 3), dtype=np.uint8)
    return lambda: backend.infer(images)


def time_end_to_end(backend: Backend, frame: NDArray[np.uint8], *, duration_s: float) -> EndToEnd:
    """Preprocess, network, upsample + argmax, overlay, on one frame, (H,W,3) uint8 BGR, again and again.

    Stages run one after the other on this thread; `stream` overlaps them and is faster.
    """
    frame_hw = (frame.shape[0], frame.shape[1])
    process = _frame_process(backend, frame)
    warm_up(lambda: process(lambda stage: None))
    stages: dict[str, list[float]] = {}
    totals: list[float] = []
    end = perf_counter() + duration_s
    while perf_counter() < end:
        marks: list[tuple[str, float]] = []
        start = perf_counter()
        process(lambda stage, marks=marks: marks.append((stage, perf_counter())))  # type: ignore[misc]
        totals.append((marks[-1][1] - start) * 1000)
        for stage, mark in marks:
            stages.setdefault(stage, []).append((mark - start) * 1000)
            start = mark
    medians = {stage: float(np.median(times)) for stage, times in stages.items()}
    return EndToEnd(
        latency_ms=percentiles(totals),
        throughput_fps=1000 * len(totals) / sum(totals),
        stages_ms=medians,
        limited_by=max(medians, key=lambda stage: medians[stage]),
        frame_hw=frame_hw,
        runs=len(totals),
    )


def _frame_process(backend: Backend, frame: NDArray[np.uint8]) -> Callable[[Stamp], None]:
    """One frame through everything; `stamp(stage)` is called as each stage ends. Buffers are made once."""
    from tsss_edge.kernels.overlay import OverlayPlan
    from tsss_edge.kernels.preprocess import PreprocessPlan

    frame_hw = (frame.shape[0], frame.shape[1])
    placement = backend.preprocess.place(frame_hw)
    to_input = PreprocessPlan(frame_hw, backend.preprocess, bgr=True)
    blend = OverlayPlan(frame_hw, backend.classes.palette, shown=backend.classes.objects)
    x = np.zeros((backend.min_batch, *backend.preprocess.size_hw, 3), np.uint8)
    blended = frame.copy()

    def process(stamp: Stamp) -> None:
        to_input(frame, x[0])
        stamp("preprocess")
        outputs = backend.infer(x)
        stamp("network")
        labels = labels_at(outputs, frame_hw, placement)
        stamp("upsample_argmax")
        blend(blended, labels)
        stamp("overlay")

    return process
