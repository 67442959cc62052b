"""Sources and sinks that the loop's tests can steer: scripted frames, a slow or failing sink, what a sink saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streamkit import gray_image

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.sources.live import EndOfStream, Shot

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
PREPROCESS = Preprocess(size_hw=(64, 96))
GRAYS = (30, 90, 160, 220)  # of the classes 0 to 3 to FakeBackend: a quarter of 0-255 each
PATIENCE_S = 20.0


def fake(**options: Any) -> FakeBackend:
    """A `FakeBackend` on CLASSES and PREPROCESS, two slots unless told."""
    return FakeBackend(CLASSES, PREPROCESS, **{"slots": 2, **options})


class Pictures:
    """A file-like source: frame n is of class n % 4 everywhere. `sizes` and `errors` (raised instead) by frame."""

    live = False
    fps = 25.0

    def __init__(
        self,
        frames: int,
        *,
        size_hw: tuple[int, int] = (48, 80),
        sizes: dict[int, tuple[int, int]] | None = None,
        errors: dict[int, Exception] | None = None,
        truth: bool = False,
    ) -> None:
        self.length: int | None = frames
        self.size_hw = size_hw
        self.state = "OPEN"
        self._sizes, self._errors, self._truth = sizes or {}, errors or {}, truth
        self._index = 0

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        n = self._index
        if n in self._errors:
            raise self._errors[n]
        if n == self.length:
            self.state = "ENDED"
            return None
        self.state = "STREAMING"
        self.size_hw = self._sizes.get(n, self.size_hw)
        if out is None or out.shape != (*self.size_hw, 3):
            out = np.empty((*self.size_hw, 3), np.uint8)
        out[...] = GRAYS[n % 4]
        self._index += 1
        truth = np.full(self.size_hw, n % 4, np.uint8) if self._truth else None
        return Frame(out, n, time.monotonic(), truth=truth)

    def close(self) -> None:
        self.state = "ENDED"


class Beat:
    """A `Capture` that gives a frame every `period_s`, of class n % 4; ends after `frames`."""

    def __init__(self, period_s: float, frames: int = 1_000_000) -> None:
        self.fps = 1 / period_s
        self._period_s, self._frames = period_s, frames
        self._started = time.monotonic()
        self._next = 0
        self._stopped = threading.Event()

    def read(self) -> Shot | None:
        if self._next == self._frames:
            raise EndOfStream
        wait = self._started + self._next * self._period_s - time.monotonic()
        if self._stopped.wait(max(wait, 0)):
            return None
        self._next += 1
        return Shot(gray_image(GRAYS[(self._next - 1) % 4]), time.monotonic())

    def release(self) -> None:
        self._stopped.set()


class Seen:
    """A sink that notes index, label and overlay of every result. `on_write` may sleep or raise."""

    def __init__(
        self, *, wants_overlay: bool = False, on_write: Callable[[FrameResult], None] = lambda result: None
    ) -> None:
        self.wants_overlay = wants_overlay
        self.indices: list[int] = []
        self.labels: list[list[int]] = []  # the different ids of each frame
        self.shapes: list[tuple[int, ...]] = []
        self.ages_ms: list[float] = []
        self.overlays: list[NDArray[np.uint8]] = []
        self.verdicts: list[dict[str, Any] | None] = []
        self.stages: list[list[str]] = []
        self.dropped: list[int] = []
        self.closed = 0
        self._on_write = on_write

    def write(self, result: FrameResult) -> None:
        self.indices.append(result.frame.index)
        self.labels.append(np.unique(result.labels).tolist())
        self.shapes.append(result.labels.shape)
        self.ages_ms.append(result.age_ms)
        self.verdicts.append(result.parity)
        self.stages.append(list(result.stages_ms))
        self.dropped.append(result.dropped)
        if result.overlay is not None:
            self.overlays.append(result.overlay.copy())
        self._on_write(result)

    def close(self) -> None:
        self.closed += 1
