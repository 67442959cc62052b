"""A back end without a network: pictures -> labels by brightness, so that a test knows every answer beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Head, Preprocess, TensorSpec
from tsss_edge.backends.base import STRIDE, Closing, Outputs, allocate, output_specs, require_images

Answer = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]

CONFIDENT = 8.0  # logit of the answered class; all others are 0


def brightness_cells(images: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """(N,H,W,3) uint8 -> (N,H/8,W/8) class ids: mean of an 8x8 cell over all channels, times K, over 256."""
    n, height, width, channels = images.shape
    cells = images.reshape(n, height // STRIDE, STRIDE, width // STRIDE, STRIDE, channels)
    mean = cells.mean(axis=(2, 4, 5), dtype=np.float64)
    ids: NDArray[np.uint8] = (mean * num_classes / 256).astype(np.uint8)
    return ids


class FakeBackend(Closing):
    """An `AsyncBackend` whose class at each stride-8 cell is `answer(images, K)`.

    logits: 8 for the answered class, 0 for the others. labels: the cell's class on its 8x8 pixels. objectness: +8 where
    the class is an object category, -8 elsewhere. Outputs of a slot are overwritten by its next call, as a real device does.

    Args:    answer: (images, K) -> (N,H/8,W/8) uint8; the default is by brightness, see `brightness_cells`.
             latency_ms: time from `start` to the result; slots run side by side.
             fail_at: raise RuntimeError at this call (0 is the first), for tests of what happens then.
    """

    def __init__(
        self,
        classes: Classes,
        preprocess: Preprocess,
        *,
        head: Head = "logits",
        objectness: bool = False,
        answer: Answer = brightness_cells,
        latency_ms: float = 0.0,
        slots: int = 1,
        fail_at: int | None = None,
    ) -> None:
        self.name = "fake"
        self.classes = classes
        self.preprocess = preprocess
        self.outputs: tuple[TensorSpec, ...] = output_specs(classes, preprocess, head=head, objectness=objectness)
        self.min_batch = 1
        self.slots = slots
        self.calls = 0
        self.closed = False
        self._answer = answer
        self._latency_s = latency_ms / 1000
        self._fail_at = fail_at
        self._arrays: list[dict[str, NDArray[Any]]] = [{} for _ in range(slots)]
        self._ready_at: list[float | None] = [None] * slots

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Begin (N,H,W,3) uint8 RGB in `slot`. The pictures are read before this returns."""
        assert not self.closed, "used after close"
        assert self._ready_at[slot] is None, f"slot {slot} started twice without wait"
        require_images(images, self.preprocess.size_hw)
        if self.calls == self._fail_at:
            raise RuntimeError(f"fake failure at call {self.calls}")
        self.calls += 1
        self._fill(slot, images)
        self._ready_at[slot] = time.monotonic() + self._latency_s

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, valid until its next `start`."""
        ready_at = self._ready_at[slot]
        assert ready_at is not None, f"slot {slot} waited for without start"
        self._ready_at[slot] = None
        if (left := ready_at - time.monotonic()) > 0:
            time.sleep(left)
        return self._arrays[slot]

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name, overwritten by the next call."""
        self.start(0, images)
        return self.wait(0)

    def close(self) -> None:
        self.closed = True

    def _fill(self, slot: int, images: NDArray[np.uint8]) -> None:
        n = images.shape[0]
        arrays = self._arrays[slot]
        if any(a.shape[0] != n for a in arrays.values()) or not arrays:
            arrays = self._arrays[slot] = allocate(self.outputs, n)
        ids = self._answer(images, len(self.classes))
        if "logits" in arrays:
            channel = np.arange(len(self.classes))[None, :, None, None]
            arrays["logits"][...] = (ids[:, None] == channel) * CONFIDENT
        if "labels" in arrays:
            arrays["labels"][...] = ids.repeat(STRIDE, axis=1).repeat(STRIDE, axis=2)
        if "objectness" in arrays:
            is_object = np.isin(ids, self.classes.objects)
            arrays["objectness"][:, 0] = np.where(is_object, CONFIDENT, -CONFIDENT)
