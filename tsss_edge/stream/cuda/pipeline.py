"""Source and GPU overlapped: frames in, results in order out. The CPU's counterpart is `stream/pipeline.py`.

    read --> feed: free slot, start --> finish: wait for the GPU --> sinks
               ^                                                       |
               '------------------ recycled slots --------------------'

A result's arrays are the pinned memory of its slot, so nothing is copied on the CPU after the GPU is done, and a slot is
free again only when the sinks are done with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.stream.cuda.ring import SlotRing
from tsss_edge.stream.frames import Frame, Result, Source
from tsss_edge.stream.postprocess import Spares, timed
from tsss_edge.stream.prefetch import prefetch

READ_AHEAD = 2  # decoded frames that wait for a slot
IN_FLIGHT = 3  # frames that the GPU has at once, of a file: one copied in, one in the network, one copied out


class SlotDevice(Protocol):
    """What the pipeline asks of `CudaFrames`; the tests have one without a GPU."""

    @property
    def slots(self) -> int: ...
    def current(self) -> AbstractContextManager[None]: ...
    def start(self, slot: int, image: NDArray[np.uint8]) -> None: ...
    def wait(self, slot: int) -> Any: ...  # frames.Answer
    def close(self) -> None: ...


class _Job(NamedTuple):
    """A frame on the GPU."""

    frame: Frame
    slot: int
    stages_ms: dict[str, float]


class CudaPipeline:
    """Iterate `results()` once, and hand each result back with `recycle` when the sinks are done with it.

    Args: ahead: results that may wait for the sinks. The device needs `slots_needed` slots, and is closed with `results`.
    """

    def __init__(self, source: Source, device: SlotDevice, *, ahead: int) -> None:
        self._source, self._device, self._ahead = source, device, ahead
        self._ring = SlotRing(device.slots, min(in_flight(live=source.live), device.slots))
        self._images = Spares(np.uint8)
        self._slot_of: dict[int, int] = {}
        self._stopped = threading.Event()

    def results(self) -> Generator[Result, None, None]:
        """Every result, in the order of the source. Raises: what source and device raise."""
        frames = self._read()
        if not self._source.live:
            frames = prefetch(frames, depth=READ_AHEAD, name="decode")
        jobs = prefetch(self._feed(frames), depth=self._device.slots, name="feed")
        with closing(self._device), closing(prefetch(self._finish(jobs), depth=self._ahead, name="finish")) as results:
            yield from results

    def recycle(self, result: Result) -> None:
        """Take back the slot of a result, and its frame's array."""
        self._ring.give(self._slot_of.pop(id(result)))
        if not self._source.live:  # a live source still compares its last picture with the next one
            self._images.give(result.frame.image)

    def close(self) -> None:
        """Wake every thread, so that the generator of `results` can be closed."""
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
        with closing(frames), self._device.current():
            while (slot := self._ring.take()) is not None and (frame := next(frames, None)) is not None:
                stages = {} if frame.decode_ms is None else {"decode": frame.decode_ms}
                with timed(stages, "to_pinned"):
                    self._device.start(slot, frame.image)
                yield _Job(frame, slot, stages)

    def _finish(self, jobs: Generator[_Job, None, None]) -> Generator[Result, None, None]:
        # Right to left: when waiting fails, `feed` is woken before it is waited for.
        with closing(jobs), closing(self._ring), self._device.current():
            for job in jobs:
                answer = self._device.wait(job.slot)
                self._ring.ran()
                job.stages_ms.update(answer.stages_ms)
                result = Result(job.frame, answer.labels, answer.objectness, answer.overlay, job.stages_ms)
                self._slot_of[id(result)] = job.slot
                yield result


def in_flight(*, live: bool) -> int:
    """Frames on the GPU at once."""
    return 1 if live else IN_FLIGHT


def slots_needed(*, live: bool, ahead: int) -> int:
    """Slots for a stream: on the GPU, waiting for the sinks, with the sinks, and one that `finish` holds until there is
    room among the waiting ones."""
    return in_flight(live=live) + ahead + 2
