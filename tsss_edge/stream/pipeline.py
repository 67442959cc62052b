"""Source and engine overlapped: frames in, results in order out. What is done to a frame is for `Stages` to know.

Up to three generators, each on a thread of its own, and the consumer's thread (the sinks) after them:

    read --> feed: free slot, start --> finish: wait, result --> sinks
               ^                          |                        |
               '-------- free slots ------'-- (or only recycled) --'

A live source is read by `feed` itself, and only when a frame can start: one that waits in a queue would grow old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.stream.frames import Frame, Result, Source
from tsss_edge.stream.postprocess import Spares
from tsss_edge.stream.prefetch import prefetch
from tsss_edge.stream.ring import SlotRing

READ_AHEAD = 2  # decoded frames that wait for a slot
READY = 2  # of files: results that wait for the sinks


class Stages(Protocol):
    """What happens to a frame between source and sinks (`CpuStages`, `CudaStages`), to several at once in slots.

    `start` belongs to one thread, `wait` and `result` to another, each within `thread()`. All add to `stages_ms`.
    """

    @property
    def name(self) -> str: ...  # what runs where, for the report
    @property
    def slots(self) -> int: ...
    @property
    def in_flight(self) -> int: ...  # frames that run at once, of a file; of a live source it is one
    @property
    def holds_slot(self) -> bool: ...  # a result's arrays are its slot's: free again when the result is recycled
    def thread(self) -> AbstractContextManager[object]: ...
    def start(self, slot: int, image: NDArray[np.uint8], stages_ms: dict[str, float]) -> None: ...
    def wait(self, slot: int, stages_ms: dict[str, float]) -> None: ...  # the network is done, its outputs are safe
    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> Result: ...  # of the last `wait`
    def recycle(self, result: Result) -> None: ...
    def close(self) -> None: ...  # safe to call twice


class _Job(NamedTuple):
    """A frame in the engine."""

    frame: Frame
    slot: int
    stages_ms: dict[str, float]


class Pipeline:
    """Iterate `results()`, and hand each result back with `recycle` when the sinks are done with it."""

    def __init__(self, source: Source, stages: Stages) -> None:
        self._source, self._stages = source, stages
        self._ring = SlotRing(stages.slots, 1 if source.live else stages.in_flight)
        self._slot_of: dict[int, int] = {}
        self._stopped = threading.Event()
        self._images = Spares(np.uint8)

    def results(self) -> Generator[Result, None, None]:
        """Every result, in the order of the source. Raises: what source and stages raise."""
        frames = self._read()
        if not self._source.live:
            frames = prefetch(frames, depth=READ_AHEAD, name="decode", wake=self._stop)
        jobs = prefetch(self._feed(frames), depth=self._stages.slots, name="feed", wake=self._stop)
        return prefetch(self._finish(jobs), depth=ready_results(live=self._source.live), name="finish", wake=self._stop)

    def recycle(self, result: Result) -> None:
        """Take back the arrays of a result."""
        slot = self._slot_of.pop(id(result))
        if self._stages.holds_slot:
            self._ring.give(slot)
        self._stages.recycle(result)
        if not self._source.live:  # a live source still compares its last picture with the next one
            self._images.give(result.frame.image)

    def _stop(self) -> None:
        """Bring every thread back from where it may block, so that it can end."""
        self._stopped.set()
        self._ring.close()
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
        """First a slot and then a frame, so that the frame is the newest there is."""
        with closing(frames), self._stages.thread():
            while (slot := self._ring.take()) is not None and (frame := next(frames, None)) is not None:
                job = _Job(frame, slot, {} if frame.decode_ms is None else {"decode": frame.decode_ms})
                self._stages.start(slot, frame.image, job.stages_ms)
                yield job

    def _finish(self, jobs: Generator[_Job, None, None]) -> Generator[Result, None, None]:
        with closing(jobs), self._stages.thread():
            for job in jobs:
                self._stages.wait(job.slot, job.stages_ms)
                self._ring.ran()
                if not self._stages.holds_slot:
                    self._ring.give(job.slot)
                result = self._stages.result(job.slot, job.frame, job.stages_ms)
                self._slot_of[id(result)] = job.slot
                yield result


def ready_results(*, live: bool) -> int:
    """Results that may wait for the sinks."""
    return 1 if live else READY
