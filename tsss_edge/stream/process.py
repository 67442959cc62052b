"""Settings of the whole process that the loop needs: signals, OpenCV's threads and messages. And pictures made BGR."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.machine import usable_cores

# FFmpeg inside OpenCV writes about every damaged packet; our error says it once. A value that the user set stays.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a service manager sends


class Interrupts:
    """Within the block SIGINT and SIGTERM raise KeyboardInterrupt, but wait for the end of a `held` block.

    A second signal does not wait. On another thread than the main one, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._held = self._pending = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._held or self._pending:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that a signal does not cut in two."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            raise KeyboardInterrupt


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    """Within the block OpenCV works on `count` threads: the loop's own threads fill the cores already."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def decode_threads() -> int:
    """Threads of a video decoder: a quarter of the cores. On two cores one is as fast as two (docs/results/stream.md)."""
    return max(1, usable_cores() // 4)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block OpenCV logs nothing, because what it would say becomes our error message."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H,W), (H,W,1), (H,W,3) or (H,W,4) uint8 as OpenCV returns it -> (H,W,3) BGR, without a copy where it is that."""
    if image.ndim == 3 and image.shape[2] == 3:
        return image.astype(np.uint8, copy=False)
    channels = 1 if image.ndim == 2 else image.shape[2]
    code = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}[channels]
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)
