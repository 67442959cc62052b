"""What both CUDA loops' tests use: settings, a source whose frames change kind, a sink that keeps, one picture copied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.kernels.overlay import overlay
from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan
from tsss_edge.kernels.yuv import Colour, Yuv, yuv_bytes
from tsss_edge.stream.frames import Frame, FrameResult, Picture, picture_hw

CLASSES = Classes(names=("sky", "road", "car", "tree"), background=False)  # class 0, black, is shown too
SPEC = Preprocess(size_hw=(64, 96), fit="letterbox")
VIDEO = Colour("bt709")


class Frames:
    """`count` pictures as fast as they are read; `picture(n)` makes them, n from 1."""

    live, fps, state = False, 30.0, "STREAMING"

    def __init__(self, count: int, picture: Callable[[int], Picture]) -> None:
        self.length: int | None = count
        self.size_hw = picture_hw(picture(1))
        self._picture, self._next = picture, 0

    def read(self, out: np.ndarray | None = None) -> Frame | None:
        if self._next == self.length:
            return None
        self._next += 1
        return Frame(self._picture(self._next), self._next - 1, 0.0)

    def close(self) -> None:
        pass


class Kept:
    """A sink that keeps every picture, its labels and its overlay."""

    wants_overlay = True

    def __init__(self) -> None:
        self.shown: list[tuple[Picture, np.ndarray, Picture]] = []

    def write(self, result: FrameResult) -> None:
        assert result.painted is not None
        self.shown.append((result.frame.picture.copy(), result.labels.copy(), result.painted.copy()))

    def close(self) -> None:
        pass


class Count(Kept):
    """A sink that keeps nothing."""

    def write(self, result: FrameResult) -> None:
        pass


def planes(seed: int, frame_hw: tuple[int, int], *, pairs: bool = False) -> Yuv:
    """Noise."""
    data = np.random.default_rng(seed).integers(0, 256, yuv_bytes(frame_hw), dtype=np.uint8)
    return Yuv.over(data, frame_hw, VIDEO, pairs=pairs)


def painted(picture: Picture, labels: np.ndarray) -> Picture:
    """The overlay by the CPU twins; of NV12 in I420."""
    if not isinstance(picture, Yuv):
        return overlay(picture, labels, CLASSES.palette, shown=CLASSES.objects)
    out = Yuv.empty(picture.frame_hw, picture.colour)
    picture.copy_to(out)
    return YuvOverlayPlan(picture.frame_hw, CLASSES.palette, picture.colour, shown=CLASSES.objects)(out, labels)


def assert_same(got: Picture, want: Picture) -> None:
    """Byte for byte, whatever their layout."""
    if not isinstance(got, Yuv) or not isinstance(want, Yuv):
        np.testing.assert_array_equal(got, want)  # type: ignore[arg-type]
        return
    for one, other in ((got.y, want.y), (got.u, want.u), (got.v, want.v)):
        np.testing.assert_array_equal(one, other)
