"""Source, engine and kernels overlapped: frames in, results in order out.

Three generators, each on a thread of its own, and the consumer's thread (the sinks) after them:

    read --> feed: preprocess, start --> finish: wait, upsample + argmax, overlay --> sinks
               ^                           |
               '------- free slots --------'

The engine works on as many frames as it has slots; a slot is free again as soon as its outputs are copied. A live source
is read by `feed` itself, and only when a slot is free: a frame that waits in a queue would grow old.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend, Outputs
from tsss_edge.errors import ArtifactError
from tsss_edge.kernels.overlay import overlay
from tsss_edge.kernels.preprocess import preprocess
from tsss_edge.kernels.upsample_argmax import upsample_argmax
from tsss_edge.segment import resize_labels
from tsss_edge.stream.frames import Frame, Result, Source
from tsss_edge.stream.prefetch import prefetch

READ_AHEAD = 2  # decoded frames that wait for a slot
FINITE_FRAMES = 8  # an engine that overflows does so on its first pictures


@dataclass(slots=True)
class _Job:
    """A frame in the engine."""

    frame: Frame
    slot: int
    started: float
    stages_ms: dict[str, float]


class _Spares:
    """Arrays of one kind that are used again and again. Those of another shape (the camera changed it) are let go."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype = dtype
        self._arrays: deque[NDArray[Any]] = deque()  # its append and popleft are thread-safe

    def take(self, shape: tuple[int, ...]) -> NDArray[Any]:
        while (array := self.take_any()) is not None:
            if array.shape == shape:
                return array
        return np.empty(shape, self._dtype)

    def take_any(self) -> NDArray[Any] | None:
        try:
            return self._arrays.popleft()
        except IndexError:
            return None

    def give(self, array: NDArray[Any] | None) -> None:
        if array is not None:
            self._arrays.append(array)


class Pipeline:
    """Iterate `results()`, and hand each result back with `recycle` when the sinks are done with it.

    Args:    blend: make `Result.overlay`. ahead: results that may wait for the sinks.
    """

    def __init__(self, source: Source, backend: AsyncBackend, *, blend: bool, ahead: int) -> None:
        self._source = source
        self._backend = backend
        self._blend = blend
        self._ahead = ahead
        self._stopped = threading.Event()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(backend.slots):
            self._free.put(slot)
        self._inputs = np.zeros((backend.slots, 1, *backend.preprocess.size_hw, 3), np.uint8)
        self._outputs: dict[str, NDArray[Any]] = {}  # of the frame that `finish` works on
        self._frames, self._blended = _Spares(np.uint8), _Spares(np.uint8)
        self._labels, self._objectness = _Spares(np.uint8), _Spares(np.float32)
        self._finished = 0

    def results(self) -> Generator[Result, None, None]:
        """Every result, in the order of the source. Raises: what source, engine or kernels raise."""
        frames = self._read()
        if not self._source.live:
            frames = prefetch(frames, depth=READ_AHEAD, name="decode")
        jobs = prefetch(self._feed(frames), depth=self._backend.slots, name="preprocess")
        return prefetch(self._finish(jobs), depth=self._ahead, name="upsample, overlay")

    def recycle(self, result: Result) -> None:
        """Take back the arrays of a result."""
        if not self._source.live:  # a live source still compares its last picture with the next one
            self._frames.give(result.frame.image)
        self._labels.give(result.labels)
        self._objectness.give(result.objectness)
        self._blended.give(result.overlay)

    def close(self) -> None:
        """Wake every thread, so that the generators of `results` can be closed."""
        self._stopped.set()
        self._free.put(None)
        if self._source.live:  # a file's reader comes back by itself, and its decoder bears one thread only
            self._source.close()

    def _read(self) -> Generator[Frame, None, None]:
        while not self._stopped.is_set():
            started = time.monotonic()
            frame = self._source.read(self._frames.take_any())
            if frame is None:
                return
            if not self._source.live:  # at a camera the time is mostly waiting
                frame.decode_ms = (time.monotonic() - started) * 1000
            yield frame

    def _feed(self, frames: Generator[Frame, None, None]) -> Generator[_Job, None, None]:
        """First a free slot and then a frame, so that the frame is the newest there is."""
        try:
            while (slot := self._free.get()) is not None and (frame := next(frames, None)) is not None:
                stages = {} if frame.decode_ms is None else {"decode": frame.decode_ms}
                image = self._inputs[slot]
                with _timed(stages, "preprocess"):
                    preprocess(frame.image, self._backend.preprocess, bgr=True, out=image[0])
                job = _Job(frame, slot, time.monotonic(), stages)
                self._backend.start(slot, image)
                yield job
        finally:
            frames.close()

    def _finish(self, jobs: Generator[_Job, None, None]) -> Generator[Result, None, None]:
        try:
            for job in jobs:
                self._keep(self._backend.wait(job.slot))
                job.stages_ms["network"] = (time.monotonic() - job.started) * 1000
                self._free.put(job.slot)
                yield self._result(job)
        finally:
            jobs.close()

    def _keep(self, outputs: Outputs) -> None:
        """Copy what the next use of the slot overwrites."""
        for name, array in outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty_like(array)
            np.copyto(self._outputs[name], array)
        if self._finished < FINITE_FRAMES:
            require_finite(self._outputs)
        self._finished += 1

    def _result(self, job: _Job) -> Result:
        image = job.frame.image
        frame_hw = (image.shape[0], image.shape[1])
        with _timed(job.stages_ms, "upsample_argmax"):
            labels = self._segment(frame_hw)
        blended = None
        if self._blend:
            with _timed(job.stages_ms, "overlay"):
                blended = overlay(image, labels, self._backend.classes.palette, out=self._blended.take((*frame_hw, 3)))
        return Result(job.frame, labels, self._copy_objectness(), blended, job.stages_ms)

    def _segment(self, frame_hw: tuple[int, int]) -> NDArray[np.uint8]:
        placement = self._backend.preprocess.place(frame_hw)
        if "logits" in self._outputs:
            return upsample_argmax(self._outputs["logits"][0], frame_hw, placement, out=self._labels.take(frame_hw))
        return resize_labels(self._outputs["labels"][0], frame_hw, placement)

    def _copy_objectness(self) -> NDArray[np.float32] | None:
        if (array := self._outputs.get("objectness")) is None:
            return None
        copy = self._objectness.take(array.shape[2:])
        np.copyto(copy, array[0, 0])
        return copy


@contextmanager
def _timed(stages_ms: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    stages_ms[name] = (time.monotonic() - started) * 1000


def require_finite(outputs: Outputs) -> None:
    """Raise ArtifactError when an output holds NaN or infinity."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(
                f"the engine's {name} hold NaN or infinity, expected finite numbers; "
                "build it again, in FP32 where this machine's lower precision overflows"
            )
