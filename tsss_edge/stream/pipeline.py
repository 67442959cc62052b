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
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.stream.frames import Frame, Result, Source
from tsss_edge.stream.postprocess import Postprocess, Spares, timed
from tsss_edge.stream.prefetch import prefetch

READ_AHEAD = 2  # decoded frames that wait for a slot


@dataclass(slots=True)
class _Job:
    """A frame in the engine."""

    frame: Frame
    slot: int
    started: float
    stages_ms: dict[str, float]


class Pipeline:
    """Iterate `results()`, and hand each result back with `recycle` when the sinks are done with it.

    Args:    blend: make `Result.overlay`. ahead: results that may wait for the sinks.
    """

    def __init__(self, source: Source, backend: AsyncBackend, *, blend: bool, ahead: int) -> None:
        self._source = source
        self._backend = backend
        self._postprocess = Postprocess(backend, blend=blend)
        self._ahead = ahead
        self._stopped = threading.Event()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(backend.slots):
            self._free.put(slot)
        self._inputs = np.zeros((backend.slots, 1, *backend.preprocess.size_hw, 3), np.uint8)
        self._plan: PreprocessPlan | None = None
        self._images = Spares(np.uint8)

    def results(self) -> Generator[Result, None, None]:
        """Every result, in the order of the source. Raises: what source, engine or kernels raise."""
        frames = self._read()
        if not self._source.live:
            frames = prefetch(frames, depth=READ_AHEAD, name="decode", wake=self._stop)
        jobs = prefetch(self._feed(frames), depth=self._backend.slots, name="preprocess", wake=self._stop)
        return prefetch(self._finish(jobs), depth=self._ahead, name="postprocess", wake=self._stop)

    def recycle(self, result: Result) -> None:
        """Take back the arrays of a result."""
        self._postprocess.recycle(result)
        if not self._source.live:  # a live source still compares its last picture with the next one
            self._images.give(result.frame.image)

    def _stop(self) -> None:
        """Bring every thread back from where it may block, so that it can end."""
        self._stopped.set()
        self._free.put(None)
        if self._source.live:  # a file's reader comes back by itself, and its decoder bears one thread only
            self._source.close()

    def _read(self) -> Generator[Frame, None, None]:
        while not self._stopped.is_set():
            started = time.monotonic()
            frame = self._source.read(self._images.take_any())
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
                images = self._inputs[slot]
                with timed(stages, "preprocess"):
                    self._resize(frame.image, images[0])
                job = _Job(frame, slot, time.monotonic(), stages)
                self._backend.start(slot, images)
                yield job
        finally:
            frames.close()

    def _resize(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        frame_hw = (image.shape[0], image.shape[1])
        if self._plan is None or self._plan.frame_hw != frame_hw:
            self._plan = PreprocessPlan(frame_hw, self._backend.preprocess, bgr=True)
        self._plan(image, out)

    def _finish(self, jobs: Generator[_Job, None, None]) -> Generator[Result, None, None]:
        try:
            for job in jobs:
                self._postprocess.keep(self._backend.wait(job.slot))
                job.stages_ms["network"] = (time.monotonic() - job.started) * 1000
                self._free.put(job.slot)
                yield self._postprocess.result(job.frame, job.stages_ms)
        finally:
            jobs.close()
