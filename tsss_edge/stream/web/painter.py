"""Frame + labels (+ objectness) -> the JPEG that the page shows; on a thread of its own, never in the loop's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, Preprocess, Struct
from tsss_edge.drawing import Drawer
from tsss_edge.kernels.overlay import overlay
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.web.broadcast import Broadcast, jpeg_of

MAX_WIDTH = 960  # pixels; more than a page shows, and JPEG of 1080p costs four times as much
MAX_FPS = 25.0
JPEG_QUALITY = 82
UNKNOWN_BGR = (255, 64, 255)


class View(Struct, frozen=True):
    """What the page's controls say. `alpha` 0 shows the frame alone, 1 the colours alone. `names`: with outlines."""

    alpha: float = 0.5
    unknown: bool = True
    names: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha {self.alpha}: expected 0 to 1")


@dataclass(frozen=True)
class _Picture:
    image: NDArray[np.uint8]  # (h,w,3) BGR, at page size
    labels: NDArray[np.uint8]  # (h,w)
    objectness: NDArray[np.float32] | None  # at network grid
    frame_hw: tuple[int, int]
    classes: Classes | None  # of the engine that made it


class Painter(Broadcast):
    """Holds the newest picture and paints it while somebody watches. `offer` costs the loop one shrinking copy at most.

    Subscribers are called (on the painter's thread) with each new JPEG.
    """

    def __init__(
        self, classes: Classes, preprocess: Preprocess | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._classes = classes
        self._preprocess = preprocess
        self._clock = clock
        self._picture: _Picture | None = None
        self._view = View()
        self._drawer: Drawer | None = None
        self._drawn = classes  # of the drawer
        self._offered_at = float("-inf")
        super().__init__("web painter")

    @property
    def view(self) -> View:
        return self._view

    @view.setter
    def view(self, view: View) -> None:
        with self._changed:
            self._view = view
            self._touch()

    def offer(self, result: FrameResult) -> None:
        """Take a copy of a result at page size, unless one was taken a moment ago (a second ago when nobody watches)."""
        now = self._clock()
        if now - self._offered_at < (1.0 / MAX_FPS if self._subscribers else 1.0):
            return
        self._offered_at = now
        picture = _shrink(result)
        with self._changed:
            self._picture = picture
            self._touch()

    def _begin(self) -> Callable[[], bytes] | None:
        return None if self._picture is None else partial(self._paint, self._picture, self._view)

    def _paint(self, picture: _Picture, view: View) -> bytes:
        classes, labels, objectness = picture.classes or self._classes, picture.labels, picture.objectness
        image = overlay(picture.image, labels, classes.palette, view.alpha, shown=classes.objects)
        if view.unknown and objectness is not None and self._preprocess is not None:
            draw_unknown(image, unknown_mask(labels, objectness, classes, self._preprocess, picture.frame_hw))
        if view.names and view.alpha > 0:
            if self._drawer is None or self._drawer.frame_hw != labels.shape or self._drawn != classes:
                self._drawn = classes  # a promoted engine may bring others
                self._drawer = Drawer(classes, (labels.shape[0], labels.shape[1]))
            self._drawer(image, labels)
        return jpeg_of(image, JPEG_QUALITY)


def _shrink(result: FrameResult) -> _Picture:
    """A copy of a result at page size."""
    height, width = result.labels.shape
    ratio = min(1.0, MAX_WIDTH / width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    image, labels = np.empty((*size[::-1], 3), np.uint8), np.empty(size[::-1], np.uint8)
    cv2.resize(result.frame.image, size, dst=image, interpolation=cv2.INTER_AREA)
    cv2.resize(result.labels, size, dst=labels, interpolation=cv2.INTER_NEAREST)
    objectness = None if result.objectness is None else np.array(result.objectness, np.float32)
    return _Picture(image, labels, objectness, (height, width), result.classes)


def unknown_mask(
    labels: NDArray[np.uint8],
    objectness: NDArray[np.float32],
    classes: Classes,
    preprocess: Preprocess,
    frame_hw: tuple[int, int],
) -> NDArray[np.uint8]:
    """Where the objectness head sees an object and the class head background: (h,w) uint8, 0 or 1.

    Args: labels: (h,w) of the frame at any scale. objectness: (H/8,W/8) logits over the network input.
    """
    if not classes.background:
        return np.zeros_like(labels)
    placement = preprocess.place(frame_hw)
    network = cv2.resize(objectness, preprocess.size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    x, y, w, h = placement.target
    scale_y, scale_x = labels.shape[0] / frame_hw[0], labels.shape[1] / frame_hw[1]
    left, top = round(placement.source[0] * scale_x), round(placement.source[1] * scale_y)
    width, height = round(placement.source[2] * scale_x), round(placement.source[3] * scale_y)
    part = cv2.resize(network[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros_like(labels)
    inside = labels[top : top + height, left : left + width]
    mask[top : top + height, left : left + width] = (part > 0) & (inside == 0) & (inside != IGNORE)
    return mask


def draw_unknown(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Hatch and outline `mask` on a BGR picture, in place: a pattern, because every colour is already some class's."""
    if not mask.any():
        return
    diagonal = np.arange(mask.shape[0])[:, None] + np.arange(mask.shape[1])
    image[(mask > 0) & (diagonal // 3 % 4 == 0)] = UNKNOWN_BGR
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, outlines, -1, UNKNOWN_BGR, 2, cv2.LINE_AA)
