"""One formula, two compilers: the `.cu` formulas built by g++ for the CPU beside the CPU kernels that the product runs -> a table.

    PYTHONPATH=tests python scripts/kernel_compilers.py

Answers a question once: should the CPU kernels be the `.cu` formulas themselves? One thread; CPU time; both in alternating rounds. Of
the start: a fresh process that imports what makes the first mask and makes it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from hostcuda import HostKernels
from kernel_bench import CLASSES, GRID, random_field
from pages import table

from tsss_edge.artifacts import Placement, Preprocess, voc_color
from tsss_edge.kernels import fatbin
from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan, yuv_tint_table
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.kernels.preprocess_yuv import YuvPreprocessPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
from tsss_edge.kernels.yuv import Colour, Yuv, yuv_bytes

FLAGS = ("-O3", "-march=x86-64-v3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++")
FRAME_HW, SIZE_HW = (720, 1280), (512, 512)
ROUNDS, CALLS = 15, 5
FIRST_MASK = """
import time; start = time.process_time()
import numpy as np
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
UpsampleArgmaxPlan((21, 64, 64), (720, 1280))(np.zeros((21, 64, 64), np.float32), np.empty((720, 1280), np.uint8))
print(time.process_time() - start)
"""
LOADED = """
import time; start = time.process_time()
import ctypes, sys, numpy
ctypes.CDLL(sys.argv[1])
print(time.process_time() - start)
"""


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        subprocess.run(["g++", *FLAGS, "-o", str(library), str(fatbin.FOLDER / "kernels.cu")], check=True)
        rows = [(name, *compared(ours, theirs)) for name, (ours, theirs) in pairs(HostKernels(library)).items()]
        starts = [min(started(code, str(library)) for _ in range(5)) for code in (FIRST_MASK, LOADED)]
    texts = [(name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}") for name, ours, theirs in rows]
    print(table(("kernel, 1280x720", "CPU kernel, ms", "the `.cu` formula by g++, ms", "ratio"), texts))
    print(
        f"first mask in a fresh process: {starts[0]:.2f} s of CPU time; loading the library instead: {starts[1]:.2f} s"
    )


def pairs(host: HostKernels) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By kernel: ours and the formula, each on arrays of its own."""
    rng, spec = np.random.default_rng(0), Preprocess(size_hw=SIZE_HW)
    frame = rng.integers(0, 256, (*FRAME_HW, 3), dtype=np.uint8)
    x = np.empty((*SIZE_HW, 3), np.uint8)
    bgr = PreprocessPlan(FRAME_HW, spec, bgr=True)
    picture = Yuv.over(rng.integers(0, 256, yuv_bytes(FRAME_HW), dtype=np.uint8), FRAME_HW, Colour())
    yuv = YuvPreprocessPlan(FRAME_HW, spec)
    logits = random_field(8.0)
    upsample, labels = UpsampleArgmaxPlan((CLASSES, *GRID), FRAME_HW), np.empty(FRAME_HW, np.uint8)
    whole = Placement((0, 0, *FRAME_HW[::-1]), (0, 0, *SIZE_HW[::-1]))
    upsample(logits, labels)
    palette = tuple(voc_color(k) for k in range(CLASSES))
    mine, others = picture.copy(), picture.copy()
    overlay = YuvOverlayPlan(FRAME_HW, palette, picture.colour)
    tints, keep = yuv_tint_table(palette, picture.colour, 0.5, range(1, CLASSES))
    return {
        "BGR to network input, 512x512": (lambda: bgr(frame, x), lambda: host.preprocess(frame, spec, bgr=True)),
        "I420 to network input": (lambda: yuv(picture, x), lambda: host.preprocess_yuv(picture, spec)),
        "21 classes to labels": (
            lambda: upsample(logits, labels),
            lambda: host.upsample_argmax(logits, FRAME_HW, whole),
        ),
        "overlay on I420": (lambda: overlay(mine, labels), lambda: host.overlay_yuv(others, labels, tints, keep)),
    }


def compared(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median CPU milliseconds a call of each, in alternation."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for work, kept in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            for _ in range(CALLS):
                work()
            if number:  # the first compiles and fills caches
                kept.append(1000 * (time.process_time() - start) / CALLS)
    return float(np.median(times[0])), float(np.median(times[1]))


def started(code: str, library: str) -> float:
    """CPU seconds that a fresh Python tells of itself."""
    done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
