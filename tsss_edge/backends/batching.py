"""Requests that come one by one -> batches: a request waits a few milliseconds for others to share its call.

As DeepStream's nvstreammux and Triton's dynamic batcher do it: a batch starts when it is full, or when its first request has
waited long enough.
"""
# Letters: N batch, H height, W width.

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.base import AsyncBackend, Closing, Outputs, require_images


class _Batch:
    """Pictures that one call takes, and what came of it."""

    def __init__(self, request: int, images: NDArray[np.uint8], due: float) -> None:
        self.request, self.images, self.due = request, images, due
        self.count = 0
        self.started = threading.Event()
        self.waiting = threading.Lock()
        self.outputs: Outputs | None = None
        self.error: BaseException | None = None


class BatchingBackend(Closing):
    """An `AsyncBackend` of single pictures on one that takes batches; `inner` belongs to this object.

    Args: batch: pictures of a full batch. wait_ms: how long the first picture of a batch waits for more.
          slots: single pictures in flight; fewer than `batch` would never fill one.
    """

    def __init__(self, inner: AsyncBackend, *, batch: int, wait_ms: float, slots: int) -> None:
        assert batch > 1 and slots >= batch
        self.name = f"{inner.name}, batches up to {batch} within {wait_ms:g} ms"
        self.classes, self.preprocess, self.outputs = inner.classes, inner.preprocess, inner.outputs
        self.min_batch, self.slots = 1, slots
        self.calls = self.pictures = 0  # of the engine so far: how full its batches are
        self._inner, self._size, self._wait_s = inner, batch, wait_ms / 1000
        self._idle = deque(range(inner.slots))
        self._images = np.empty((inner.slots, batch, *inner.preprocess.size_hw, 3), np.uint8)
        self._changed = threading.Condition()
        self._open: _Batch | None = None
        self._of: list[tuple[_Batch, int] | None] = [None] * slots
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Put (1,H,W,3) uint8 RGB into the next batch; `images` may change afterwards."""
        require_images(images, self.preprocess.size_hw)
        if images.shape[0] != 1:
            raise ValueError(f"expected one picture, got {images.shape[0]}")
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._open is not None or self._idle)
            if self._open is None:
                request = self._idle.popleft()
                self._open = _Batch(request, self._images[request], time.monotonic() + self._wait_s)
            batch = self._open
            batch.images[batch.count] = images[0]
            self._of[slot] = batch, batch.count
            batch.count += 1
            if batch.count == self._size:
                self._open = None
                self._begin(batch)
            self._changed.notify_all()

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, (1,...) each, valid until its next `start`."""
        entry = self._of[slot]
        assert entry is not None, f"slot {slot} waited for without start"
        batch, row = entry
        batch.started.wait()
        with batch.waiting:
            if batch.outputs is None and batch.error is None:
                self._finish(batch)
        if batch.error is not None:
            raise batch.error
        assert batch.outputs is not None
        return {name: array[row : row + 1] for name, array in batch.outputs.items()}

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name; the engine's own batch, for nobody else waits."""
        return self._inner.infer(images)

    def close(self) -> None:
        """Finish what has started and close the engine. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._inner.close()

    def _begin(self, batch: _Batch) -> None:
        self.calls += 1
        self.pictures += batch.count
        try:
            self._inner.start(batch.request, batch.images[: batch.count])
        except Exception as error:  # it belongs to whoever waits
            batch.error = error
            self._idle.append(batch.request)
        batch.started.set()

    def _finish(self, batch: _Batch) -> None:
        """Once a batch: wait for the engine, keep its outputs, and free the request for the next batch."""
        try:
            found = self._inner.wait(batch.request)
            batch.outputs = {name: np.array(array[: batch.count]) for name, array in found.items()}
        except Exception as error:
            batch.error = error
        with self._changed:
            self._idle.append(batch.request)
            self._changed.notify_all()

    def _run(self) -> None:
        """Start batches whose time is up."""
        with self._changed:
            while True:
                if self._open is not None and (self._closed or time.monotonic() >= self._open.due):
                    batch, self._open = self._open, None
                    self._begin(batch)
                elif self._closed:
                    return
                else:
                    self._changed.wait(None if self._open is None else max(0.0, self._open.due - time.monotonic()))
